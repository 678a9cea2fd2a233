"""The parts of the patch by themselves: a sealed KV cache, slots, masks, images, what attention is told."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig, DynamicCache, LlamaConfig, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import trimtok_fast as tt
from tests.hf_zoo import FAMILIES, GENERATE, ONE, TWO, accepted, model_of
from trimtok_fast.hf import masks
from trimtok_fast.hf.cache import Slots, TrimmedCache, seal, unseal
from trimtok_fast.hf.families import Family
from trimtok_fast.hf.images import image_starts, numbered
from trimtok_fast.hf.trimming import kept_slots, trim_labels

CONFIG = tt.PruneConfig(keep_ratio=0.4)


def test_importing_the_package_loads_neither_transformers_nor_the_patch() -> None:
    code = (
        "import sys, trimtok_fast as tt\n"
        "assert not {'transformers', 'trimtok_fast.hf'} & set(sys.modules)\n"
        "assert 'patched' in dir(tt) and callable(tt.patched)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# A KV cache of six slots in two rows, the second padded, that speaks of ten positions.


def _sealed() -> tuple[Any, Tensor]:
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6, 4), layer)
    columns = torch.tensor([[0, 1, 4, 7, 8, 9], [-1, -1, 0, 2, 8, 9]])
    seal(cache, Slots(columns, 10))
    return cache, columns


def test_a_sealed_cache_speaks_of_original_positions() -> None:
    cache, _ = _sealed()
    assert isinstance(cache, DynamicCache)
    assert cache.get_seq_length() == cache.get_seq_length(1) == 10
    assert cache.get_mask_sizes(3, 0) == (13, 0)
    unseal(cache)
    assert type(cache) is DynamicCache
    assert cache.get_seq_length() == 6


def test_an_unpatched_model_cannot_extend_it() -> None:
    cache, _ = _sealed()
    with pytest.raises(tt.PatchStateError, match="past_key_values"):
        cache.update(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4), 0)


@pytest.mark.parametrize("count", [-2, 8], ids=["so-many-less", "so-many-stay"])
def test_crop_counts_original_positions(count: int) -> None:
    cache, columns = _sealed()
    keys = cache.layers[1].keys
    cache.crop(count)
    assert cache.get_seq_length() == 8
    assert torch.equal(cache.slots.columns, columns[:, :4])
    assert torch.equal(cache.layers[1].keys, keys[:, :, :4])


def test_rows_move_together() -> None:
    cache, columns = _sealed()
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.slots.columns, columns.flip(0))
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.slots.columns, columns[[1, 1, 0, 0]])
    cache.batch_select_indices(torch.tensor([3]))
    assert torch.equal(cache.slots.columns, columns[:1])
    assert cache.layers[0].keys.shape[0] == 1


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_is_sealed_too_and_lives_its_own_life(twin: Any) -> None:
    cache, columns = _sealed()
    other = twin(cache)
    assert isinstance(other, TrimmedCache) and isinstance(other, DynamicCache)
    cache.crop(-4)
    assert torch.equal(other.slots.columns, columns)
    assert other.get_seq_length() == 10
    assert other.layers[0].keys.shape[2] == 6


def test_a_reset_cache_is_a_plain_one() -> None:
    cache = StaticCache(
        config=LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2), max_cache_len=9
    )
    cache.update(torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4), 0)
    seal(cache, Slots(torch.tensor([[0, 3, 6, 7]]), 8))
    assert cache.get_seq_length() == 8
    cache.reset()
    assert type(cache) is StaticCache
    assert "slots" not in vars(cache)
    assert int(cache.get_seq_length()) == 0


# Slots and labels.


@pytest.mark.parametrize(
    "valid, expected, right",
    [
        ([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], [[0, 3, 4], [-1, 2, 4]], False),
        ([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], [[0, 3, 4], [0, 2, -1]], True),
        ([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], [[-1, 0, 3, 4], [0, 1, 2, 4]], False),
    ],
    ids=["left", "right", "none"],
)
def test_rows_are_padded_where_the_batch_is(valid: Any, expected: Any, right: bool) -> None:
    valid = torch.tensor(valid, dtype=torch.bool)
    kept = torch.tensor([[1, 0, 0, 1, 1], [1, 1, 1, 0, 1]], dtype=torch.bool)
    if not valid[1, 1]:
        kept[1, 3] = False
    elif not valid[1, 4]:
        kept[1, 1] = False
    slots = kept_slots(kept, valid)
    assert slots.columns.tolist() == expected
    assert (slots.length, slots.right) == (5, right)


def test_padding_neither_has_a_label_nor_foretells_one() -> None:
    labels = torch.arange(10).view(2, 5)
    columns = torch.tensor([[0, 1, 4], [-1, 2, 3]])
    assert trim_labels(labels, columns).tolist() == [[0, 1, 4], [-100, -100, 8]]


# Masks of slots against masks of positions, cut.


def _config(kinds: list[str], attention: str) -> Any:
    return SimpleNamespace(
        layer_types=kinds, sliding_window=3, attention_chunk_size=4, _attn_implementation=attention
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("left", [0, 2], ids=["whole", "left-padded"])
def test_windows_follow_the_original_positions(left: int, attention: str) -> None:
    length = 12
    columns = torch.tensor([[-1, 0, 2, 3, 7, 8, 10, 11]])
    padding = (torch.arange(length) >= left)[None].long()
    at = torch.arange(length)
    causal = (at[None] <= at[:, None]) & padding.bool()
    wanted = {
        "full_attention": causal,
        "sliding_attention": causal & (at[None] > at[:, None] - 3),
        "chunked_attention": causal & ((at[None] - left) // 4 == (at[:, None] - left) // 4),
    }
    config = _config(list(wanted), attention)
    made = masks.window_masks(padding, columns, columns, None, config, torch.float32)
    for kind, mask in wanted.items():
        part = made[kind][0, 0, 1:]
        seen = part if attention == "sdpa" else part == 0
        assert torch.equal(seen[:, 1:], mask[columns[0, 1:]][:, columns[0, 1:]]), kind
        assert not bool(seen[:, 0].any()), kind


def test_masks_of_positions_are_cut_to_slots() -> None:
    mask = torch.randn(2, 1, 6, 6)
    columns = torch.tensor([[0, 3, 5], [-1, 1, 4]])
    cut = masks.slot_masks(mask, columns, 0, columns, None, SimpleNamespace())
    low = torch.finfo(torch.float32).min
    for row in range(2):
        for query in range(3):
            for key in range(3):
                if columns[row, query] < 0:
                    continue
                value = (
                    mask[row, 0, columns[row, query], columns[row, key]] if columns[row, key] >= 0 else low
                )
                assert cut[row, 0, query, key] == value


# Where images begin.

P, W = 9, 1  # a placeholder, a word


@pytest.mark.parametrize(
    "rule, ids, expected",
    [
        ("runs", [W, P, P, W, P, W], [0, 0, 1]),
        ("closed", [5, P, 6, P, 7, 5, P, 7, W], [0, 0, 1]),
        ("closed", [5, P, 6, P], [0, 1]),
        ("tiled", [4, 2, P, 4, 3, P, 8, 4, 3, P, 4, 4, 2, P, 4, W], [0, 0, 0, 1]),
        ("opened", [3, P, 6, P, 7, W, 3, P, 6, 7], [0, 0, 1]),
    ],
    ids=["runs", "closed", "closed-at-the-end", "tiled", "opened"],
)
def test_marks_tell_images_apart(rule: str, ids: list[int], expected: list[int]) -> None:
    row = torch.tensor([ids])
    visual = row == P
    config = SimpleNamespace(visual_indicator_token_ids=[3, 6, 7])
    starts = image_starts(Family("a", rule), row, visual, None, {"image": []}, config)
    assert numbered(starts, visual)[visual].tolist() == expected


def test_frames_are_told_apart_by_their_positions() -> None:
    positions = torch.tensor(
        [[0, 1, 1, 1, 1, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 1, 2, 1, 2, 3]]
    )
    row = torch.tensor([[W, *[P] * 8, W]])
    visual = row == P
    starts = image_starts(
        Family("a", "grid"), row, visual, positions[:, None], {"video": [8]}, SimpleNamespace()
    )
    assert numbered(starts, visual)[visual].tolist() == [0] * 4 + [1] * 4


# What attention and loss are told.


def test_flash_attention_is_told_that_one_row_is_one_sequence() -> None:
    told: list[dict[str, Any]] = []

    def spy(module: Any, *args: Any, **kwargs: Any) -> Any:
        told.append(kwargs)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["flash_spy"] = spy
    try:
        family = FAMILIES["llava"]
        model = family.build()
        inputs = accepted(model, family.inputs(ONE, "left"))
        model.model.language_model.config._attn_implementation = "flash_spy"
        with tt.patched(model, CONFIG) as handle, torch.no_grad():
            model(**inputs)
    finally:
        del ALL_ATTENTION_FUNCTIONS["flash_spy"]
    width = int(handle.last.kept.sum())
    for kwargs in told:
        assert kwargs["cu_seq_lens_q"].tolist() == kwargs["cu_seq_lens_k"].tolist() == [0, width]
        assert kwargs["max_length_q"] == kwargs["max_length_k"] == width
    assert len(told) == model.config.text_config.num_hidden_layers


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_loss_without_gradients(guard: Any) -> None:
    model = model_of("llava", "sdpa")
    inputs = accepted(model, FAMILIES["llava"].inputs(TWO, "left"))
    labels = inputs["input_ids"].clone()
    with tt.patched(model, CONFIG) as handle, guard():
        out = model(**inputs, labels=labels)
    kept = handle.last.kept[0]
    targets = labels[0][kept][1:]
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1].float(), targets)
    assert torch.allclose(out.loss, expected)
    assert torch.equal(labels, inputs["input_ids"]), "the caller's labels were changed"


def test_a_call_that_is_refused_leaves_its_cache_sealed() -> None:
    family = FAMILIES["llama4"]
    model = family.build()
    inputs = accepted(model, family.inputs(ONE, "left"))
    length = inputs["input_ids"].shape[1]
    model.config.text_config.attn_temperature_tuning = True
    model.config.text_config.floor_scale = length + 1
    with tt.patched(model, CONFIG), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        for _ in range(2):
            with pytest.raises(tt.UnsupportedModelError, match="allow_window_drift"):
                model(input_ids=torch.tensor([[11]]), past_key_values=cache)
            assert isinstance(cache, TrimmedCache)
            assert cache.get_seq_length() == length


class Adapters(torch.nn.Module):
    """Calls the forward of what it holds, past its hooks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model

    def forward(self, **kwargs: Any) -> Any:
        return self.base_model.forward(**kwargs)


def test_a_forward_that_is_called_past_its_hooks() -> None:
    """It prunes where the hooks of the modules within are enough, and is refused where it would not."""
    with_head, bare = FAMILIES["llava"].build(), FAMILIES["llava"].build().model
    inputs = accepted(with_head, FAMILIES["llava"].inputs(TWO))
    text = {key: inputs[key][:, -5:] for key in ("input_ids", "attention_mask")}
    with tt.patched(Adapters(with_head), CONFIG) as handle, torch.no_grad():
        logits = Adapters(with_head)(**inputs).logits
    assert logits.shape[1] == int(handle.last.kept.sum())
    with tt.patched(Adapters(bare), CONFIG) as handle, torch.no_grad():
        with pytest.raises(tt.PatchStateError, match="forward"):
            Adapters(bare)(**inputs)
        assert Adapters(bare)(**text).last_hidden_state.shape[1] == 5
        assert bare(**inputs).last_hidden_state.shape[1] == int(handle.last.kept.sum())
        bare.get_image_features(inputs["pixel_values"])
        assert bare(**inputs).last_hidden_state.shape[1] == int(handle.last.kept.sum())


def test_a_module_that_is_compiled_after_the_patch() -> None:
    """Its hooks are not traced, and run."""
    model = FAMILIES["llava"].build()
    inputs = accepted(model, FAMILIES["llava"].inputs(ONE))
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        logits = model(**inputs).logits
        model.model.language_model.compile(backend="eager")
        assert torch.equal(model(**inputs).logits, logits)
    assert handle.stats.prefills == 2


def test_compiled_decoding_over_a_static_cache(monkeypatch) -> None:
    """generate() compiles its decode steps on a GPU; here dynamo traces them and runs them as they are."""
    family = FAMILIES["llava"]
    model = family.build()
    inputs = accepted(model, family.inputs(TWO, "left"))
    static = {
        "cache_implementation": "static",
        "compile_config": CompileConfig(backend="eager", mode=None, fullgraph=False),
    }
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        ids = model.generate(**inputs, **GENERATE)
        monkeypatch.setattr(model, "_valid_auto_compile_criteria", lambda *_: True)
        frames = dict(torch._dynamo.utils.counters["frames"])
        compiled = model.generate(**inputs, **GENERATE, **static)
    assert torch.equal(compiled, ids)
    assert handle.stats.prefills == 2
    assert torch._dynamo.utils.counters["frames"]["ok"] > frames.get("ok", 0), "nothing was traced"
