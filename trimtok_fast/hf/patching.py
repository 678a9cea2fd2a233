"""`patch`, `patched`, `unpatch`, `is_patched`: put the hooks on a model, take them off without a trace."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtok_fast.config import PruneConfig, check_config
from trimtok_fast.errors import (
    InvalidInputError,
    PatchStateError,
    UnsupportedDtypeError,
    UnsupportedModelError,
)
from trimtok_fast.hf.families import Place, find_place
from trimtok_fast.hf.hooks import FeatureGetter, Hook, Hooks
from trimtok_fast.hf.images import MODALITIES
from trimtok_fast.hf.selection import QUERIES, PositionRule, Prefill, Settings

#: The handle of each patched model, by its outer module. The hooks keep it alive, and nothing else here does.
_HANDLES: weakref.WeakKeyDictionary[nn.Module, weakref.ref[PatchHandle]] = weakref.WeakKeyDictionary()

Undo = Callable[[], None]


@dataclass
class PatchStats:
    """Sums over the prefills with images since the patch.

    Attributes:
        prefills: how many there were.
        visual_before: visual tokens that came.
        visual_after: visual tokens that the language model was given.
        seconds: spent selecting.
    """

    prefills: int = 0
    visual_before: int = 0
    visual_after: int = 0
    seconds: float = 0.0


class PatchHandle:
    """A patched model.

    Attributes:
        last: the last prefill with images, `None` before the first.
        stats: the sums over all of them.
        settings: what `patch` was called with.
    """

    last: Prefill | None
    stats: PatchStats

    def __init__(self, place: Place, settings: Settings) -> None:
        self.settings = settings
        self.last = None
        self.stats = PatchStats()
        self._place = place
        self._undo: list[Undo] = []

    @property
    def active(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._undo)

    def unpatch(self) -> None:
        """Take the hooks off; nothing happens the second time."""
        if self._undo:
            _HANDLES.pop(self._place.outer, None)
        while self._undo:
            self._undo.pop()()

    def _record(self, prefill: Prefill) -> None:
        self.last = prefill
        self.stats.prefills += 1
        self.stats.visual_before += int(prefill.visual_before.sum())
        self.stats.visual_after += int(prefill.visual_after.sum())
        self.stats.seconds += prefill.seconds

    def _apply(self) -> None:
        """All of the plan, or nothing."""
        try:
            for do in _plan(self._place, self.settings, self._record):
                self._undo.append(do())
        except BaseException:
            self.unpatch()
            raise
        _HANDLES[self._place.outer] = weakref.ref(self)


def patch(
    model: nn.Module,
    config: PruneConfig | None = None,
    *,
    query: str | PositionRule = "after_images",
    image_index: PositionRule | None = None,
    allow_window_drift: bool = False,
    replace: bool = False,
) -> PatchHandle:
    """Make a multimodal model of transformers prune its visual tokens in every prefill.

    Args:
        model: a model of a supported family, or of your own, built like them, with `image_index`.
        config: how much to keep and by which rules; `None` is `PruneConfig()`, a fifth.
        query: the text that tokens are aligned to: `"after_images"`, the text after a row's last visual token
            (all of its text where none follows), `"all"`, `"none"`, or a callable
            `(input_ids [B, T], visual bool [B, T]) -> bool [B, T]`.
        image_index: a callable `(input_ids [B, T], visual bool [B, T]) -> integers [B, T]`, the number of the
            image that each visual token belongs to, within its row; `None` is the family's own rule.
        allow_window_drift: let sliding windows count kept tokens where they cannot follow the original
            positions (FlashAttention); such windows reach further back than they did.
        replace: take the place of another patch instead of raising.

    Returns:
        `PatchHandle`; the one that is there if the model is patched in the same way.

    Raises:
        UnsupportedModelError: no visual tokens in the sequence, an unknown family, several models in one
            module, or compiled modules.
        PatchStateError: the model is patched in another way and `replace` is false.
        InvalidInputError: `query` is none of the above.
        UnsupportedDtypeError: an argument of another type.

    Note:
        Positions are kept, not renumbered. Logits and hidden states are as long as what is kept, padded on
        the side that the batch pads; `handle.last` says which positions those are. The KV cache that a
        prefill returns speaks of original positions and is to be continued by the patched model only. Without
        a cache (`use_cache=False`) each step of `generate()` is a prefill, which selects anew, with the text
        so far as its query. Copies and pickles of a patched model are not patched. A call that cannot be
        pruned is an error of that call (`InvalidInputError`, `PatchStateError`), never a full-length run.
    """
    _check_switches(allow_window_drift=allow_window_drift, replace=replace)
    settings = _check_settings(config, query, image_index, allow_window_drift)
    place = find_place(model, any_family=image_index is not None)
    _check_place(model, place)
    current = _handle_of(place.outer)
    if current is not None:
        if current.settings == settings:
            return current
        if not replace:
            raise PatchStateError(
                "model",
                "a model that is not patched, or in the same way",
                f"one patched with {current.settings}",
                "Call unpatch first, or pass replace=True.",
            )
        current.unpatch()
    handle = PatchHandle(place, settings)
    handle._apply()
    return handle


@contextmanager
def patched(model: nn.Module, config: PruneConfig | None = None, **options: Any) -> Iterator[PatchHandle]:
    """`patch` inside a `with`: whatever happens in there, the model leaves as it came.

    Args:
        model: see `patch`.
        config: see `patch`.
        **options: see `patch`.

    Yields:
        The `PatchHandle`.
    """
    before = _handle_of_model(model)
    handle = patch(model, config, **options)
    try:
        yield handle
    finally:
        if handle is not before:
            handle.unpatch()
            if before is not None:
                before._apply()


def unpatch(model: nn.Module) -> nn.Module:
    """Take a patch off, if there is one.

    Args:
        model: what was given to `patch`, or a model around it.

    Returns:
        The model.
    """
    handle = _handle_of_model(model)
    if handle is not None:
        handle.unpatch()
    return model


def is_patched(model: nn.Module) -> bool:
    """Whether the model prunes."""
    return _handle_of_model(model) is not None


def _handle_of(outer: nn.Module) -> PatchHandle | None:
    reference = _HANDLES.get(outer)
    return None if reference is None else reference()


def _handle_of_model(model: nn.Module) -> PatchHandle | None:
    handles = (_handle_of(module) for module in model.modules()) if isinstance(model, nn.Module) else ()
    return next((handle for handle in handles if handle is not None), None)


def _check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise UnsupportedDtypeError(name, "True or False", type(value).__name__, "Pass a bool.")


def _check_settings(config: object, query: object, image_index: object, allow_window_drift: bool) -> Settings:
    if not callable(query) and query not in QUERIES:
        raise InvalidInputError(
            "query",
            f"one of {', '.join(map(repr, QUERIES))}, or a callable that gives a mask",
            repr(query),
            "`patch` says what each means.",
        )
    if image_index is not None and not callable(image_index):
        raise UnsupportedDtypeError(
            "image_index", "a callable or None", type(image_index).__name__, "`patch` says what it is given."
        )
    return Settings(check_config(config), query, image_index, allow_window_drift)  # type: ignore[arg-type]


def _check_place(model: nn.Module, place: Place) -> None:
    """Raise where hooks would not be called, or would miss what is computed from full-length outputs."""
    for module in (model, place.head, place.outer, place.language_model):
        compiled = type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                "model",
                "modules that call their hooks",
                f"a {'compiled' if compiled else 'scripted'} {type(module).__name__}, which may skip them",
                "Patch the model as it was before.",
            )
    embeddings = getattr(place.head, "get_output_embeddings", None)
    if place.head is not place.outer and embeddings is not None and embeddings() is None:
        raise UnsupportedModelError(
            "model",
            "a head that gives logits for each position",
            f"{type(place.head).__name__}, which reads full-length outputs",
            "Patch the model without its head.",
        )


def _plan(
    place: Place, settings: Settings, record: Callable[[Prefill], None]
) -> Iterator[Callable[[], Undo]]:
    """What to do, each step returning its undoing."""
    hooks = Hooks(place, settings, record, _sharding(place))
    head, outer, language_model = place.head, place.outer, place.language_model
    before = "register_forward_pre_hook"
    after = "register_forward_hook"
    yield from (
        lambda: getattr(head, before)(Hook(hooks.before_head), with_kwargs=True).remove,
        lambda: getattr(outer, before)(Hook(hooks.before_outer), with_kwargs=True).remove,
        lambda: getattr(language_model, before)(Hook(hooks.before_language_model), with_kwargs=True).remove,
        lambda: (
            getattr(language_model, after)(
                Hook(hooks.after_language_model), with_kwargs=True, always_call=True
            ).remove
        ),
        lambda: getattr(outer, after)(Hook(hooks.after_outer), always_call=True).remove,
    )
    for modality in MODALITIES:
        name = f"get_{modality}_features"
        if hasattr(outer, name):
            yield lambda modality=modality, name=name: _watch(outer, name, hooks, modality)  # type: ignore[misc]


def _watch(outer: Any, name: str, hooks: Hooks, modality: str) -> Undo:
    own = vars(outer).get(name)
    report = functools.partial(hooks.after_features, modality)
    setattr(outer, name, FeatureGetter(outer, name, report))

    def restore() -> None:
        if own is None:
            delattr(outer, name)
        else:
            setattr(outer, name, own)

    return restore


def _sharding(place: Place) -> Any:
    """The process group over which tensor parallelism shards the model."""
    meshes = (getattr(module, "_device_mesh", None) for module in (place.head, place.outer))
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    if mesh is None or mesh.size() == 1:
        return None
    return (mesh if mesh.ndim == 1 else mesh["tp"]).get_group()
