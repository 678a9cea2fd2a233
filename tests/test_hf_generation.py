"""Whatever drives the model, it sees what the masked full-length run sees: all generation, and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import trimtok_fast as tt
from tests.hf_oracle import (
    TOLERANCE,
    assert_close,
    compact,
    hidden,
    masked_run,
    next_position,
    prefill_positions,
)
from tests.hf_zoo import EOS, FAMILIES, GENERATE, TEXT, TWO, VARIANTS, VOCABULARY, Family, accepted, model_of

CONFIG = tt.PruneConfig(keep_ratio=0.4)
FULL = {"return_dict_in_generate": True, "output_logits": True}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
#: With several beams or sequences, transformers repeats the encoded images one by one, by `pooler_output`.
#: Llama 4 does not read that, and the images of a GLM-4V row come out in the wrong order, patched or not.
REPEATABLE = pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES.values() if family.name not in ("llama4", "glm4v")],
    ids=lambda family: family.name,
)
ROWS = (("i1", "i0"), ("i2",), ("i0",))


def prepared(family: Family, rows: Any = TWO, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
    model = model_of(family.name)
    return model, accepted(model, family.inputs(rows, **kwargs))


def kept_of(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """The positions that a patched prefill keeps."""
    with tt.patched(model, CONFIG, **options) as handle, torch.no_grad():
        model(**inputs)
    return handle.last.kept


def generate(model: Any, inputs: dict[str, Tensor], **changes: Any) -> Any:
    torch.manual_seed(5)
    return model.generate(**{**inputs, **GENERATE, **FULL, **changes})


def assert_same_generation(actual: Any, expected: Any) -> None:
    assert torch.equal(actual.sequences, expected.sequences)
    assert_close(torch.stack(actual.logits), torch.stack(expected.logits))


@pytest.mark.parametrize(
    "rows, side", [(TWO, "left"), (ROWS, "left"), (ROWS, "none")], ids=["one-row", "batch", "even-batch"]
)
@EVERY_FAMILY
def test_greedy(family: Family, rows: Any, side: str) -> None:
    model, inputs = prepared(family, rows, padding_side=side)
    with tt.patched(model, CONFIG) as handle:
        pruned = generate(model, inputs)
        kept = handle.last.kept
    assert torch.equal(kept, kept_of(model, inputs))
    with hidden(model, kept):
        assert_same_generation(pruned, generate(model, inputs))


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if family.video], ids=lambda family: family.name
)
def test_greedy_with_videos(family: Family, side: str) -> None:
    model, inputs = prepared(family, (("v0",), ("i0", "v1"), ("i2",)), padding_side=side)
    with tt.patched(model, CONFIG) as handle:
        pruned = generate(model, inputs)
    with hidden(model, handle.last.kept):
        assert_same_generation(pruned, generate(model, inputs))


@REPEATABLE
def test_sampling_several_sequences(family: Family) -> None:
    model, inputs = prepared(family, ROWS)
    sampling = {"do_sample": True, "num_return_sequences": 2}
    kept = kept_of(model, inputs)
    with tt.patched(model, CONFIG) as handle:
        pruned = generate(model, inputs, **sampling)
        assert torch.equal(handle.last.kept, kept.repeat_interleave(2, 0))
    with hidden(model, kept):
        assert_same_generation(pruned, generate(model, inputs, **sampling))


@REPEATABLE
def test_beams(family: Family) -> None:
    model, inputs = prepared(family, ROWS)
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "min_new_tokens": 6}
    with tt.patched(model, CONFIG):
        pruned = generate(model, inputs, output_scores=True, **beams)
    with hidden(model, kept_of(model, inputs)):
        masked = generate(model, inputs, output_scores=True, **beams)
    assert torch.equal(pruned.beam_indices, masked.beam_indices)
    assert torch.equal(pruned.sequences, masked.sequences)
    assert torch.allclose(pruned.sequences_scores, masked.sequences_scores, atol=1e-4)


@EVERY_FAMILY
def test_a_static_cache(family: Family) -> None:
    model, inputs = prepared(family, ROWS)
    with tt.patched(model, CONFIG):
        static = generate(model, inputs, cache_implementation="static")
    with hidden(model, kept_of(model, inputs)):
        assert_same_generation(static, generate(model, inputs))


@EVERY_FAMILY
def test_assisted_decoding_by_prompt_lookup(family: Family) -> None:
    """Few words to choose from, all of them in the prompt: drafts are made, and most are wrong."""
    model, inputs = prepared(family, tail=12)
    words = inputs["input_ids"][0, -12:].tolist()
    few = {
        "suppress_tokens": [token for token in range(VOCABULARY) if token not in words],
        "max_new_tokens": 12,
        "min_new_tokens": 12,
    }
    with hidden(model, kept_of(model, inputs)):
        masked = generate(model, inputs, **few)
    calls = 0

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1

    counter = model.register_forward_pre_hook(count)
    try:
        with tt.patched(model, CONFIG):
            looked_up = generate(model, inputs, prompt_lookup_num_tokens=3, **few)
    finally:
        counter.remove()
    assert torch.equal(looked_up.sequences, masked.sequences)
    assert 1 < calls <= 12


@EVERY_FAMILY
def test_without_a_cache(family: Family) -> None:
    """Each step is a prefill of its own; a query that does not grow with the answer keeps the choice."""
    model, inputs = prepared(family, ROWS)
    with tt.patched(model, CONFIG, query="none") as handle:
        pruned = generate(model, inputs, use_cache=False)
        assert handle.stats.prefills == GENERATE["max_new_tokens"]
    with hidden(model, kept_of(model, inputs, query="none")):
        assert_same_generation(pruned, generate(model, inputs, use_cache=False))


@EVERY_FAMILY
@pytest.mark.parametrize("masked", [True, False], ids=["grown-mask", "no-mask"])
def test_a_hand_written_decode_loop(family: Family, masked: bool) -> None:
    """Ids and cache alone: positions and what the cache holds are found."""
    model, inputs = prepared(family)
    kept = kept_of(model, inputs)
    steps, mask = [], inputs["attention_mask"]
    with tt.patched(model, CONFIG), torch.no_grad():
        out = model(**inputs, use_cache=True)
        chosen = []
        for _ in range(3):
            ids = out.logits[:, -1:, TEXT.start : TEXT.stop].argmax(-1) + TEXT.start
            chosen.append(ids)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            given = {"attention_mask": mask} if masked else {}
            out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True, **given)
            steps.append(out.logits)
    _, expected = masked_run(model, inputs, kept, torch.cat(chosen, 1))
    assert_close(torch.cat(steps, 1), expected)


def talk(model: Any, inputs: dict[str, Tensor], whole: bool) -> list[Tensor]:
    """Two further turns on the first turn's cache; logits, and the conversation."""
    rows = len(inputs["input_ids"])
    words = torch.randint(TEXT.start, TEXT.stop, (2, rows, 5), generator=torch.Generator().manual_seed(9))
    out, logits = generate(model, inputs), []
    said, mask = out.sequences, inputs["attention_mask"]
    for turn in words:
        said = torch.cat([said, turn], 1)
        mask = torch.cat([mask, mask.new_ones(rows, said.shape[1] - mask.shape[1])], 1)
        # The last token of an answer is not in the cache yet.
        ids = said if whole else said[:, -turn.shape[1] - 1 :]
        later = {"input_ids": ids, "attention_mask": mask}
        out = generate(model, later, past_key_values=out.past_key_values)
        said = torch.cat([said, out.sequences[:, ids.shape[1] :]], 1)
        logits += out.logits
    return [torch.stack(logits), said]


@EVERY_FAMILY
@pytest.mark.parametrize(
    "rows, whole",
    [(TWO, True), (ROWS, True), (ROWS, False)],
    ids=["all-ids-one-row", "all-ids-batch", "new-ids-batch"],
)
def test_further_turns(family: Family, rows: Any, whole: bool) -> None:
    """`generate()` is given the cache, a mask of all, and all ids so far or the new ones."""
    model, inputs = prepared(family, rows)
    with hidden(model, kept_of(model, inputs)):
        expected = talk(model, inputs, whole)
    with tt.patched(model, CONFIG) as handle:
        actual = talk(model, inputs, whole)
        assert handle.stats.prefills == 1
    assert torch.equal(actual[1], expected[1])
    assert_close(actual[0], expected[0])


@EVERY_FAMILY
def test_a_second_turn_by_calls(family: Family) -> None:
    """The new words alone, in two calls of the model itself."""
    model, inputs = prepared(family)
    first = torch.randint(TEXT.start, TEXT.stop, (1, 6), generator=torch.Generator().manual_seed(9))
    kept = kept_of(model, inputs)
    with tt.patched(model, CONFIG), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        pruned = [
            model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            for ids in first.split([4, 2], 1)
        ]
    _, expected = masked_run(model, inputs, kept, first)
    assert_close(torch.cat(pruned, 1), expected)


def loss_by_hand(logits: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Mean cross entropy of each next kept token, over all rows."""
    logits = torch.cat([row[:-1] for row in logits])
    return torch.nn.functional.cross_entropy(
        logits, torch.cat([row[1:] for row in labels]), ignore_index=-100
    )


@pytest.mark.parametrize("side", ["left", "right"])
@EVERY_FAMILY
def test_the_loss_and_the_gradient_to_the_pixels(family: Family, side: str) -> None:
    model, inputs = prepared(family, ROWS, padding_side=side)
    if family.name == "paligemma":  # its labels are the suffix, which token types tell from the prompt
        inputs["token_type_ids"] = inputs["token_type_ids"].clone()
    labels = torch.where(
        (inputs["input_ids"] >= TEXT.start) & (inputs["input_ids"] < TEXT.stop), inputs["input_ids"], -100
    )
    before = labels.clone()
    kept = kept_of(model, inputs)
    pixels = inputs["pixel_values"].requires_grad_()

    with tt.patched(model, CONFIG):
        out = model(**inputs, labels=labels)
        (pruned,) = torch.autograd.grad(out.loss, pixels)
    assert torch.equal(labels, before)

    with hidden(model, kept):
        logits = compact(model(**inputs).logits, kept, inputs["attention_mask"])
    loss = loss_by_hand(logits, compact(labels, kept, inputs["attention_mask"]))
    (masked,) = torch.autograd.grad(loss, pixels)
    assert out.loss.item() == pytest.approx(loss.item(), rel=TOLERANCE)
    assert masked.abs().max() > 0
    assert (pruned - masked).abs().max() <= 1e-4 * masked.abs().max()


def test_end_of_sequence_in_a_batch_stops_only_its_row() -> None:
    """Rows that are done go on with padding, whose positions nobody may confuse with the prompt's."""
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = prepared(family, ROWS)
    free = {"max_new_tokens": 6, "min_new_tokens": 0, "suppress_tokens": None}
    first = generate(model, inputs).sequences[0, -3].item()
    stop = {**free, "eos_token_id": [EOS, first]}
    with tt.patched(model, CONFIG):
        pruned = generate(model, inputs, **stop)
    with hidden(model, kept_of(model, inputs)):
        assert_same_generation(pruned, generate(model, inputs, **stop))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize(
    "how, rows",
    [
        ("reorder_cache", [2, 0, 1]),
        ("batch_select_indices", [1]),
        ("batch_repeat_interleave", [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder", "select", "repeat"],
)
def test_what_a_cache_holds_follows_its_rows(name: str, how: str, rows: list[int]) -> None:
    """Beam search and its relatives shuffle, drop and repeat rows; these three hold different positions."""
    model, inputs = prepared(FAMILIES[name], ROWS)
    new_ids = torch.randint(TEXT.start, TEXT.stop, (3, 2), generator=torch.Generator().manual_seed(2))
    steps, mask = [], inputs["attention_mask"][rows]
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        start = prefill_positions(model, inputs)
        cache = model(**inputs, **start, use_cache=True).past_key_values
        deltas = None if start else model.model.rope_deltas[rows]
        getattr(cache, how)(2 if how == "batch_repeat_interleave" else torch.tensor(rows))
        for ids in new_ids[rows].split(1, 1):
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            position = next_position(mask, deltas)
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            steps.append(out.logits)
    _, expected = masked_run(model, inputs, handle.last.kept, new_ids)
    assert_close(torch.cat(steps, 1), expected[rows])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_a_cropped_cache_forgets_what_was_cropped(name: str, relative: bool) -> None:
    """Rejected drafts are taken back, by their number or by the length that stays."""
    model, inputs = prepared(FAMILIES[name])
    drafts, new_ids = torch.randint(
        TEXT.start, TEXT.stop, (2, 1, 3), generator=torch.Generator().manual_seed(2)
    )
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        length = cache.get_seq_length()
        model(input_ids=drafts, past_key_values=cache, use_cache=True)
        cache.crop(-3 if relative else length)
        logits = model(input_ids=new_ids, past_key_values=cache, use_cache=True).logits
    _, expected = masked_run(model, inputs, handle.last.kept, new_ids)
    assert_close(logits, expected)


WINDOWS = ["gemma3", "aya_vision", "llama4", *VARIANTS]


@pytest.mark.parametrize(
    "name, cache",
    [
        pytest.param(name, cache, id=f"{name}-{cache or 'dynamic'}")
        for name in WINDOWS
        for cache in (None, "static")
        if (name, cache) != ("paligemma-window", "static")  # transformers hands it a mask that it cannot read
    ],
)
def test_windows_pass_over_the_prompt(name: str, cache: str | None) -> None:
    """An answer longer than the windows, so that the cache lets go of the prompt, token by token."""
    family = {**FAMILIES, **VARIANTS}[name]
    model, inputs = prepared(family, ROWS)
    long = {"max_new_tokens": 30, "min_new_tokens": 30}
    with tt.patched(model, CONFIG):
        pruned = generate(model, inputs, cache_implementation=cache, **long)
    with hidden(model, kept_of(model, inputs)):
        assert_same_generation(pruned, generate(model, inputs, **long))


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("count", [2, 7, 40])
def test_windows_take_several_tokens_at_once(name: str, count: int) -> None:
    family = {**FAMILIES, **VARIANTS}[name]
    model, inputs = prepared(family)
    words = torch.randint(TEXT.start, TEXT.stop, (1, count + 5), generator=torch.Generator().manual_seed(9))
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        pruned = [
            model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            for ids in words.split([3, count, 1, 1], 1)
        ]
    _, expected = masked_run(model, inputs, handle.last.kept, words)
    assert_close(torch.cat(pruned, 1), expected)
