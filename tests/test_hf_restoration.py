"""A patch stays on its own model, and goes without a trace."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtok_fast as tt
from tests.hf_oracle import assert_close, language_model, masked_run
from tests.hf_zoo import FAMILIES, FIVE, GENERATE, ONE, TEXT, TWO, Family, accepted, model_of

CONFIG, OTHER = tt.PruneConfig(keep_ratio=0.4), tt.PruneConfig(keep_ratio=0.6)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
LLAVA = FAMILIES["llava"]


def trace(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Everything that hangs on the model's modules and their classes, by identity; hook lists entry by entry.

    `rope_deltas` is left out: the Qwen models write it themselves in every call.
    """
    found: dict[tuple[str, str], Any] = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if key == "rope_deltas":
                continue
            entries = isinstance(value, dict)
            found[path, key] = [(name, id(entry)) for name, entry in value.items()] if entries else id(value)
        for kind in type(module).__mro__:
            for key, value in vars(kind).items():
                if key not in ("__dict__", "__weakref__", "_abc_impl"):
                    found[kind.__qualname__, key] = id(value)
        for key, value in vars(sys.modules[type(module).__module__]).items():
            if inspect.isfunction(value) or inspect.isclass(value):
                found[type(module).__module__, key] = id(value)
    for key, value in vars(torch.nn.modules.module).items():
        if key.startswith("_global_"):
            found["torch", key] = list(value.items()) if isinstance(value, dict) else id(value)
    return found


def prepared(family: Family = LLAVA, rows: Any = TWO) -> tuple[Any, dict[str, Tensor]]:
    model = model_of(family.name)
    return model, accepted(model, family.inputs(rows))


def fresh(family: Family = LLAVA) -> tuple[Any, dict[str, Tensor]]:
    """A model that nobody else sees, and inputs of its own."""
    model = family.build()
    return model, accepted(model, family.inputs(TWO))


def forward(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """No test of this file leaves a shared model patched."""
    yield
    assert not any(tt.is_patched(model_of(name)) for name in ("llava", "qwen2_5_vl"))


@EVERY_FAMILY
def test_nothing_is_left_behind(family: Family) -> None:
    model, inputs = prepared(family)
    plain, ids = forward(model, inputs), model.generate(**inputs, **GENERATE)
    before, keys = trace(model), list(model.state_dict())
    with tt.patched(model, CONFIG):
        assert trace(model) != before
        assert tt.is_patched(model)
        assert list(model.state_dict()) == keys
        assert forward(model, inputs).shape != plain.shape
        model.generate(**inputs, **GENERATE)
    assert trace(model) == before
    assert not tt.is_patched(model)
    assert torch.equal(forward(model, inputs), plain)
    assert torch.equal(model.generate(**inputs, **GENERATE), ids)


def test_nothing_is_left_behind_by_an_exception() -> None:
    model, inputs = prepared()
    forward(model, inputs)
    before = trace(model)
    with pytest.raises(KeyboardInterrupt), tt.patched(model, CONFIG):
        forward(model, inputs)
        raise KeyboardInterrupt
    assert trace(model) == before


@pytest.mark.parametrize("where", ["outer", "language model", "head"])
def test_a_call_that_fails_leaves_the_patch_in_order(where: str) -> None:
    """The next call is not mistaken for the rest of the one that failed."""
    model, inputs = fresh()
    module = {"outer": model.model, "language model": language_model(model).layers[1], "head": model.lm_head}

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with tt.patched(model, CONFIG) as handle:
        pruned, kept = forward(model, inputs), handle.last.kept
        hook = module[where].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            forward(model, inputs)
        hook.remove()
        text = {key: inputs[key][:, -5:] for key in ("input_ids", "attention_mask")}
        assert forward(model, text).shape[1] == 5
        assert torch.equal(forward(model, inputs), pruned)
        assert torch.equal(handle.last.kept, kept)


def test_a_failing_decode_step_can_be_repeated() -> None:
    model, inputs = fresh()
    ids = torch.tensor([[TEXT.start]])

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        hook = language_model(model).layers[0].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids, past_key_values=cache, use_cache=True)
        hook.remove()
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    assert_close(logits, masked_run(model, inputs, handle.last.kept, ids)[1])


@pytest.mark.parametrize("registration", ["register_forward_pre_hook", "register_forward_hook"])
@pytest.mark.parametrize("successes", [0, 1, 2])
def test_a_patch_that_fails_half_way_is_rolled_back(
    registration: str, successes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = prepared()
    before, original, calls = trace(model), getattr(nn.Module, registration), 0

    def register(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > successes:
            raise MemoryError
        return original(*args, **kwargs)

    with monkeypatch.context() as patching:
        patching.setattr(nn.Module, registration, register)
        try:
            tt.patch(model, CONFIG)
        except MemoryError:
            failed = True
        else:
            failed = False
            tt.unpatch(model)
    assert failed == (calls > successes)
    assert calls
    assert trace(model) == before
    assert not tt.is_patched(model)


def test_a_second_model_of_the_class_is_not_touched() -> None:
    model, inputs = prepared()
    second, _ = fresh()
    plain, before = forward(second, inputs), trace(second)
    with tt.patched(model, CONFIG):
        assert trace(second) == before
        assert not tt.is_patched(second)
        assert torch.equal(forward(second, inputs), plain)
        with tt.patched(second, OTHER) as handle:
            forward(second, inputs)
            assert handle.last.visual_after.tolist() != handle.last.visual_before.tolist()
        assert tt.is_patched(model)


@EVERY_FAMILY
def test_copies_and_pickles_of_a_patched_model_are_not_patched(family: Family) -> None:
    """Pickled before its first call: transformers hangs hooks on a model then that no pickle takes."""
    plain = forward(*prepared(family))
    model, inputs = fresh(family)
    with tt.patched(model, CONFIG) as handle:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        pruned = forward(model, inputs)
        copies.append(copy.deepcopy(model))
        last = handle.last
        for other in copies:
            assert not tt.is_patched(other)
            assert torch.equal(forward(other, inputs), plain)
            assert handle.last is last
            with tt.patched(other, CONFIG):
                assert torch.equal(forward(other, inputs), pruned)
            assert torch.equal(forward(other, inputs), plain)
        assert torch.equal(forward(model, inputs), pruned)


def test_copies_and_pickles_after_unpatching_know_nothing_of_a_patch() -> None:
    model, _ = fresh()
    before = {key for key, _ in trace(copy.deepcopy(model)).items()}
    tt.patch(model, CONFIG).unpatch()
    assert {key for key, _ in trace(copy.deepcopy(model)).items()} == before
    assert b"trimtok" not in pickle.dumps(model)


def test_a_copied_cache_goes_on_like_the_first() -> None:
    model, inputs = prepared()
    ids = torch.tensor([[TEXT.start + 3]])
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        copies = [cache, copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
        logits = [model(input_ids=ids, past_key_values=one, use_cache=True).logits for one in copies]
    expected = masked_run(model, inputs, handle.last.kept, ids)[1]
    for one in logits:
        assert_close(one, expected)


def test_a_patched_model_is_freed_like_any_other() -> None:
    model, inputs = fresh()
    handle = tt.patch(model, CONFIG)
    forward(model, inputs)
    gone = weakref.ref(model)
    del model, handle
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_interleaved_generations_do_not_mix(name: str) -> None:
    """Two conversations on one model, in turns; the second begins while the first is being answered."""
    family = FAMILIES[name]
    model = model_of(name)
    prompts = [accepted(model, family.inputs(rows)) for rows in (FIVE, ONE)]
    answers = torch.randint(TEXT.start, TEXT.stop, (2, 1, 3), generator=torch.Generator().manual_seed(7))
    kept, caches, logits, masks, deltas = [], [], ([], []), [p["attention_mask"] for p in prompts], []
    with tt.patched(model, CONFIG) as handle, torch.no_grad():

        def step(turn: int, number: int) -> None:
            ids = answers[turn][:, number : number + 1]
            masks[turn] = torch.cat([masks[turn], torch.ones_like(ids)], 1)
            position = masks[turn].sum(1, keepdim=True) - 1
            if deltas[turn] is not None:
                position = (position + deltas[turn]).expand(3, -1, -1)
            out = model(input_ids=ids, position_ids=position, past_key_values=caches[turn], use_cache=True)
            logits[turn].append(out.logits)

        for turn, prompt in enumerate(prompts):
            caches.append(model(**prompt, use_cache=True).past_key_values)
            deltas.append(getattr(model.model, "rope_deltas", None))
            kept.append(handle.last.kept)
            step(0, turn)
        step(1, 0)
        step(1, 1)
        step(0, 2)
        step(1, 2)
    for turn in range(2):
        expected = masked_run(model, prompts[turn], kept[turn], answers[turn])[1]
        assert_close(torch.cat(logits[turn], 1), expected)


@pytest.mark.parametrize(
    "names", [("llava", "llava"), ("llava", "internvl")], ids=["one-model", "two-models"]
)
def test_generations_in_two_threads_do_not_mix(names: tuple[str, str]) -> None:
    models, prompts = zip(
        *(prepared(FAMILIES[name], rows) for name, rows in zip(names, (FIVE, ONE), strict=True)), strict=True
    )
    with tt.patched(models[0], CONFIG), tt.patched(models[1], CONFIG):
        alone = [model.generate(**prompt, **GENERATE) for model, prompt in zip(models, prompts, strict=True)]
        together: dict[int, list[Tensor]] = {0: [], 1: []}
        start = threading.Barrier(2)

        def work(number: int) -> None:
            start.wait()
            for _ in range(4):
                together[number].append(models[number].generate(**prompts[number], **GENERATE))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(2):
        assert len(together[number]) == 4
        assert all(torch.equal(ids, alone[number]) for ids in together[number])


def test_patching_twice_alike_is_patching_once() -> None:
    model, inputs = prepared()
    handle = tt.patch(model, CONFIG)
    try:
        once = trace(model)
        assert tt.patch(model, tt.PruneConfig(keep_ratio=0.4)) is handle
        assert trace(model) == once
        forward(model, inputs)
        assert handle.stats.visual_before == int((LLAVA.owner(TWO) >= 0).sum())
    finally:
        tt.unpatch(model)


@pytest.mark.parametrize("options", [{"config": OTHER}, {"query": "none"}, {"allow_window_drift": True}])
def test_patching_twice_otherwise_is_an_error_unless_it_replaces(options: dict[str, Any]) -> None:
    model, inputs = prepared()
    plain, before = forward(model, inputs), trace(model)
    handle = tt.patch(model, CONFIG)
    once = trace(model)
    config = options.pop("config", CONFIG)
    with pytest.raises(tt.PatchStateError, match="replace=True"):
        tt.patch(model, config, **options)
    assert trace(model) == once
    assert tt.patch(model, CONFIG) is handle
    second = tt.patch(model, config, replace=True, **options)
    assert second is not handle
    forward(model, inputs)
    assert handle.last is None
    assert second.last is not None
    handle.unpatch()  # the first is gone already, and takes nothing of the second with it
    assert tt.is_patched(model)
    second.unpatch()
    assert trace(model) == before
    assert torch.equal(forward(model, inputs), plain)


def test_unpatching_twice_is_unpatching_once() -> None:
    model, _ = prepared()
    before = trace(model)
    handle = tt.patch(model, CONFIG)
    assert tt.unpatch(model) is model
    assert tt.unpatch(model) is model
    handle.unpatch()
    assert trace(model) == before
    with tt.patched(model, CONFIG):
        tt.unpatch(model)
        assert trace(model) == before
    assert trace(model) == before


def test_nested_patches_come_off_in_their_order() -> None:
    model, inputs = prepared()
    plain = forward(model, inputs)
    lengths = []
    with tt.patched(model, CONFIG) as outer:
        lengths.append(forward(model, inputs).shape[1])
        with tt.patched(model, CONFIG) as same:
            assert same is outer
        assert tt.is_patched(model)
        with pytest.raises(tt.PatchStateError), tt.patched(model, OTHER):
            pass
        with tt.patched(model, OTHER, replace=True):
            lengths.append(forward(model, inputs).shape[1])
        lengths.append(forward(model, inputs).shape[1])
    assert lengths[0] == lengths[2] < lengths[1] < plain.shape[1]
    assert torch.equal(forward(model, inputs), plain)


def test_a_patch_can_be_put_on_any_number_of_times() -> None:
    model, inputs = prepared()
    before, pruned = trace(model), []
    for _ in range(3):
        with tt.patched(model, CONFIG):
            pruned.append(forward(model, inputs))
        assert trace(model) == before
    assert torch.equal(pruned[0], pruned[1])
    assert torch.equal(pruned[0], pruned[2])


def test_other_peoples_hooks_and_overrides_stay() -> None:
    """Hooks put on before and during the patch, and an instance's own feature getter."""
    model, inputs = fresh()
    called: list[str] = []
    own = model.model.get_image_features
    model.model.get_image_features = lambda *args, **kwargs: called.append("getter") or own(*args, **kwargs)
    mine = model.model.get_image_features
    lm = language_model(model)
    forward(model, inputs)
    called.clear()
    lm.register_forward_pre_hook(lambda *_: called.append("before"))
    before = trace(model)
    with tt.patched(model, CONFIG) as handle:
        during = lm.register_forward_pre_hook(lambda *_: called.append("during"))
        forward(model, inputs)
        assert not bool(handle.last.kept.all())
    assert called == ["getter", "before", "during"]
    assert model.model.get_image_features is mine
    called.clear()
    forward(model, inputs)
    assert called == ["getter", "before", "during"]
    during.remove()
    assert trace(model) == before


def test_generate_still_reads_the_feature_getters_signature() -> None:
    model, _ = prepared()
    wanted = inspect.signature(model.model.get_image_features)
    with tt.patched(model, CONFIG):
        assert inspect.signature(model.model.get_image_features) == wanted


class Wrapper(nn.Module):
    """Stands around a model, as parallel and adapter libraries do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **kwargs: Any) -> Any:
        return self.inner(**kwargs)


def test_a_class_that_a_library_derived_for_the_model_is_known() -> None:
    """As FSDP puts its own in place of every module's class."""
    model, inputs = fresh()
    with tt.patched(model, CONFIG):
        pruned = forward(model, inputs)
    for module in (model, model.model):
        module.__class__ = type(f"Sharded{type(module).__name__}", (type(module),), {})
    with tt.patched(model, CONFIG):
        assert torch.equal(forward(model, inputs), pruned)


def test_a_wrapper_and_a_headless_model_are_patched_alike() -> None:
    model, inputs = fresh()
    with tt.patched(model, CONFIG):
        pruned = forward(model, inputs)
        assert tt.is_patched(Wrapper(model))
    wrapped = Wrapper(model)
    with tt.patched(wrapped, CONFIG):
        assert torch.equal(forward(wrapped, inputs), pruned)
        assert torch.equal(forward(model, inputs), pruned)
    with tt.patched(model.model, CONFIG) as handle, torch.no_grad():
        states = model.model(**inputs).last_hidden_state
        assert torch.equal(model.lm_head(states), pruned)
        assert not bool(handle.last.kept.all())
    assert not tt.is_patched(model)
