"""The hooks: what is done around the head, the outer module and the language model."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trimtok_fast.errors import InvalidInputError, PatchStateError
from trimtok_fast.hf.cache import Slots, TrimmedCache, half_written, seal
from trimtok_fast.hf.families import Place
from trimtok_fast.hf.images import MODALITIES, check_placeholders
from trimtok_fast.hf.masks import padding_mask
from trimtok_fast.hf.selection import Prefill, Prompt, Settings, select
from trimtok_fast.hf.trimming import kept_slots, resume, trim_labels, trim_prefill


@dataclass
class Call:
    """One call of the outer module, from its arguments to the end of its language model.

    Attributes:
        ids: [B, T], or `None` with `inputs_embeds`.
        mask: the attention mask as it came.
        entries: tokens of each entry of the feature getters that were asked, by modality.
        labels: a tensor of our own that the head computes its loss from.
        logits_to_keep: what the head was asked for.
        slots: what the KV cache holds once the language model is through; `None` if the call is left alone.
        before: what a trimmed cache held before.
    """

    ids: Tensor | None
    mask: Any
    entries: dict[str, list[int]]
    labels: Tensor | None = None
    logits_to_keep: Any = None
    slots: Slots | None = None
    before: Slots | None = None


class Now(threading.local):
    """What a thread is in the middle of.

    Attributes:
        asked: the head's labels and `logits_to_keep`, until the outer module is called.
        ahead: whether images were encoded and the outer module was not called since.
        call: the outer module's call.
    """

    asked: tuple[Tensor | None, Any] = (None, None)
    ahead = False
    call: Call | None = None


@dataclass
class Hooks:
    """The hooks of one patched model.

    Attributes:
        place: the hooked modules.
        settings: the caller's.
        record: is given each prefill with images.
        group: the process group over which the model is sharded, or `None`.
    """

    place: Place
    settings: Settings
    record: Callable[[Prefill], None]
    group: Any = None
    _now: Now = field(default_factory=Now)

    def before_head(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put tensors of our own in place of labels and mask, which shrink with the logits."""
        kwargs = _named(module, args, kwargs)
        ids, labels = kwargs.get("input_ids"), kwargs.get("labels")
        if isinstance(labels, Tensor) and ids is not None and labels.shape == ids.shape:
            kwargs["labels"] = labels = labels.detach()
            if isinstance(mask := kwargs.get("attention_mask"), Tensor):
                kwargs["attention_mask"] = mask.detach()  # some heads leave padding out of the loss
        else:
            labels = None
        self._now.asked = labels, kwargs.get("logits_to_keep")
        return (), kwargs

    def before_outer(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note ids, mask and the features that come ready-made."""
        kwargs = _named(module, args, kwargs)
        features = _ready_made(kwargs)
        labels, logits_to_keep = self._now.asked
        self._now.asked, self._now.ahead = (None, None), False
        self._now.call = Call(
            ids=kwargs.get("input_ids"),
            mask=kwargs.get("attention_mask"),
            entries={m: lengths(features[m]) for m in MODALITIES if features.get(m) is not None},
            labels=labels,
            logits_to_keep=logits_to_keep,
        )
        return (), kwargs

    def after_features(self, modality: str, features: Any) -> None:
        """Note how many tokens each entry has."""
        call = self._now.call
        if call is None:  # encoded ahead of the call, as `generate()` does
            self._now.ahead = True
        else:
            call.entries[modality] = lengths(features)

    def before_language_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Trim a prefill, translate what follows one."""
        call = self._now.call
        if call is None:
            self._check_passed_over()
            return None
        cache = kwargs.get("past_key_values")
        config, drift = _config(module), self.settings.allow_window_drift
        if call.entries:
            self._check_first(cache)
        if isinstance(cache, TrimmedCache):
            call.before = cache.slots
            call.slots = resume(kwargs, config, drift)
            return args, kwargs
        if hasattr(cache, "slots"):  # unsealed for a call that was interrupted
            raise half_written()
        if call.ids is None:
            if not _length(cache):
                raise InvalidInputError(
                    "inputs_embeds",
                    "input_ids, in which the placeholders of the images can be found",
                    "inputs_embeds alone",
                    "Pass input_ids and the images, or unpatch the model for this call.",
                )
            return None
        if call.ids.shape[1] > 1 and not _length(cache):
            check_placeholders(call.ids, call.entries, self.place.outer.config)
        if call.entries:
            self._prefill(call, kwargs, config)
        return args, kwargs

    def _check_first(self, cache: Any) -> None:
        """Raise where images come on top of something."""
        everything = self.settings.config.keep_ratio == 1
        if isinstance(cache, TrimmedCache) or (_length(cache) and not everything):
            raise PatchStateError(
                "past_key_values",
                "an empty KV cache in the call that brings images",
                "images on top of a KV cache that is not empty, as in chunked prefill",
                "Prefill all images in one call (prefill_chunk_size=None), or start from an empty cache.",
            )

    def _check_passed_over(self) -> None:
        """Raise where images were encoded and no call of the outer module was seen."""
        if self._now.ahead:
            self._now.ahead = False
            raise PatchStateError(
                "model",
                "a call of the model itself, not of its `forward`",
                f"images and a language model called past the hooks of {type(self.place.outer).__name__}",
                "Write `model(...)`, and update a library that calls `forward` in your place.",
            )

    def _prefill(self, call: Call, kwargs: dict[str, Any], config: Any) -> None:
        ids, embeds = call.ids.to(kwargs["inputs_embeds"].device), kwargs["inputs_embeds"]  # type: ignore[union-attr]
        valid = _valid(call.mask, ids)
        prompt = Prompt(ids, embeds, valid, kwargs.get("position_ids"), call.entries)
        prefill = select(prompt, self.place.family, self.place.outer.config, self.settings, self.group)
        if prefill is None:
            return
        if torch.equal(prefill.visual_before, prefill.visual_after):
            self.record(prefill)
            return
        if isinstance(call.logits_to_keep, Tensor):
            raise InvalidInputError(
                "logits_to_keep",
                "a number of last positions",
                "a tensor of positions, some of which are dropped",
                "Pass an int, or pick from the logits by `handle.last.kept`.",
            )
        slots = kept_slots(prefill.kept, valid)
        trim_prefill(kwargs, prefill.kept, slots, config, self.settings.allow_window_drift)
        self.record(prefill)
        if call.labels is not None:
            call.labels.data = trim_labels(call.labels, slots.columns)
            if isinstance(call.mask, Tensor) and call.mask.ndim == 2:
                call.mask.data = padding_mask(call.mask, slots.columns).to(call.mask)
        call.slots = slots

    def after_language_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Leave with the KV cache what it holds."""
        call = self._now.call
        if call is None:
            return
        cache = kwargs.get("past_key_values")
        if output is None:  # the call failed
            if call.before is not None and not isinstance(cache, TrimmedCache):
                seal(cache, call.before)
        elif call.slots is not None:
            cache = _cache_of(output) if cache is None else cache
            if cache is not None:
                seal(cache, call.slots)

    def after_outer(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forget the call, whether it failed or not."""
        self._now.call = None


class Hook:
    """A hook on one module, never compiled; a copy of the module gets one that does nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = torch.compiler.disable(function)

    def __call__(self, *args: Any) -> Any:
        """Run it."""
        return self.function(*args)

    def __reduce__(self) -> Any:
        return Hook, (_nothing,)


def _nothing(*_: Any) -> None:
    return None


class FeatureGetter:
    """Stands in for a module's own getter and reports what it returned; a copied module gets its own getter.

    `generate()` reads the getter's signature, so it is the original's.
    """

    def __init__(self, module: nn.Module, name: str, report: Callable[[Any], None]) -> None:
        self.original = getattr(module, name)
        functools.update_wrapper(self, self.original)
        self.module, self.name, self.report = module, name, report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The features, as the module's own getter returns them."""
        features = self.original(*args, **kwargs)
        self.report(features)
        return features

    def __reduce__(self) -> Any:
        return _own_getter, (self.module, self.name)


def _own_getter(module: nn.Module, name: str) -> Any:
    return getattr(type(module), name).__get__(module)


def _ready_made(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Features that were encoded before the call, by modality."""
    features = kwargs.get("mm_encoder_outputs")
    if features is None:
        features = kwargs.get("image_hidden_states")  # what Idefics3 called it
    if isinstance(features, dict):
        return features
    return {} if features is None else {"image": features}


def lengths(features: Any) -> list[int]:
    """Tokens of each entry that a feature getter returned."""
    entries = getattr(features, "pooler_output", features)
    if isinstance(entries, Tensor):
        return [entries.shape[-2]] * entries.shape[:-2].numel() if entries.ndim > 2 else [len(entries)]
    if isinstance(entries, list | tuple):
        return [entry.shape[:-1].numel() for entry in entries if isinstance(entry, Tensor)]
    return []


def _named(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    names = list(inspect.signature(type(module).forward).parameters)[1:] if args else []
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _config(language_model: Any) -> Any:
    return language_model.config.get_text_config()


def _length(cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def _cache_of(output: Any) -> Any:
    """The KV cache in what a language model returned."""
    found = getattr(output, "past_key_values", None)
    if found is None and isinstance(output, tuple):
        found = next((part for part in output if hasattr(part, "get_seq_length")), None)
    return found


def _valid(mask: Any, ids: Tensor) -> Tensor:
    """Which positions of `ids` are no padding: bool [B, T]."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if not isinstance(mask, Tensor):
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.ndim == 4:  # somebody looks at it
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        mask = seen.any(dim=(1, 2))[:, : ids.shape[1]]
    return mask[:, -ids.shape[1] :].to(ids.device).bool().expand(len(ids), -1)
