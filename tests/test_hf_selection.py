"""What the patch keeps is what `prune` keeps, of the right images and for the right question."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import trimtok_fast as tt
from tests.hf_oracle import embeddings
from tests.hf_zoo import FAMILIES, FIVE, TEXT, TWO, Family, accepted, model_of

CONFIG = tt.PruneConfig(keep_ratio=0.4)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
A_FEW = pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])


def expected(model, inputs: dict[str, Tensor], owner: Tensor, asked: Tensor | None) -> tuple[Tensor, list]:
    """Kept positions and results, row by row: `prune` over the merged embeddings and the zoo's images."""
    merged = embeddings(model, inputs)
    kept, results = torch.ones_like(owner, dtype=torch.bool), []
    for row, images in enumerate(owner):
        visual = (images >= 0).nonzero().squeeze(1)
        if not len(visual):
            results.append(None)
            continue
        visual = visual[images[visual].argsort(stable=True)]
        boundaries = [0, *images[visual].bincount().cumsum(0).tolist()]
        text = None if asked is None else merged[row][asked[row]]
        result = tt.prune(merged[row][visual], boundaries, text=text, config=CONFIG)
        kept[row, visual] = False
        kept[row, visual[result.indices]] = True
        results.append(result)
    return kept, results


def words(family: Family, inputs: dict[str, Tensor], owner: Tensor, after: bool = True) -> Tensor:
    """bool [B, T]: the text, or the text behind the last picture where there is some."""
    text = (owner < 0) & inputs["attention_mask"].bool()
    for token in family.special:
        text &= inputs["input_ids"] != token
    behind = text & ((owner >= 0).flip(1).cumsum(1).flip(1) == 0)
    return torch.where(behind.any(1, keepdim=True), behind, text) if after else text


def assert_same(results: list, wanted: list) -> None:
    """The same choice for the same reasons."""
    assert len(results) == len(wanted)
    for result, want in zip(results, wanted, strict=True):
        if want is None:
            assert result is None
            continue
        assert torch.equal(result.indices, want.indices)
        assert torch.equal(result.cu_tokens, want.cu_tokens)
        assert torch.equal(result.plan.image_budgets, want.plan.image_budgets)
        assert torch.equal(result.distance, want.distance)
        assert (result.alignment is None) == (want.alignment is None)


ROWS = {
    "five": (FIVE, "left"),
    "ragged-left": (None, "left"),
    "ragged-right": (None, "right"),
    "even": (None, "none"),
}
VIDEOS = {"mixed-ragged": ((("v0",), ("i0", "v1"), ("i2",)), "left")}
CASES = [
    pytest.param(family, case[0] or family.ragged, case[1], id=f"{family.name}-{label}")
    for family in FAMILIES.values()
    for label, case in {**ROWS, **(VIDEOS if family.video else {})}.items()
]


@pytest.mark.parametrize("family, rows, side", CASES)
def test_the_kept_tokens_are_those_of_prune(family: Family, rows, side: str) -> None:
    model = model_of(family.name)
    inputs, owner = family.prompt(rows, side)
    inputs = accepted(model, inputs)
    kept, results = expected(model, inputs, owner, words(family, inputs, owner))
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        model(**inputs)
    assert torch.equal(handle.last.kept, kept)
    assert_same(handle.last.results, results)
    assert handle.last.visual_before.tolist() == (owner >= 0).sum(1).tolist()
    assert handle.last.visual_after.tolist() == (kept & (owner >= 0)).sum(1).tolist()


@A_FEW
@pytest.mark.parametrize("tail", [0, 6], ids=["no-text-behind", "text-behind"])
@pytest.mark.parametrize("query", ["after_images", "all", "none"])
def test_the_query_is_the_text_it_names(name: str, query: str, tail: int) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs, owner = family.prompt(FIVE, tail=tail)
    inputs = accepted(model, inputs)
    asked = None if query == "none" else words(family, inputs, owner, after=query == "after_images")
    kept, results = expected(model, inputs, owner, asked)
    with tt.patched(model, CONFIG, query=query) as handle, torch.no_grad():
        model(**inputs)
    assert torch.equal(handle.last.kept, kept)
    assert_same(handle.last.results, results)


def test_queries_choose_differently() -> None:
    """Else the test above could not tell them apart."""
    model, inputs = model_of("llava"), accepted(model_of("llava"), FAMILIES["llava"].inputs(FIVE))
    kept = []
    for query in ("after_images", "all", "none"):
        with tt.patched(model, CONFIG, query=query) as handle, torch.no_grad():
            model(**inputs)
        kept.append(handle.last.kept)
    assert not any(torch.equal(kept[one], kept[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


@A_FEW
def test_a_callable_query_is_given_ids_and_images_and_names_the_text(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs, owner = family.prompt(family.ragged)
    inputs = accepted(model, inputs)
    seen = []

    def second_word(ids: Tensor, visual: Tensor) -> Tensor:
        seen.append((ids, visual))
        mask = torch.zeros_like(visual)
        mask[:, -2] = True
        return mask

    asked = torch.zeros_like(owner, dtype=torch.bool)
    asked[:, -2] = True
    kept, results = expected(model, inputs, owner, asked)
    with tt.patched(model, CONFIG, query=second_word) as handle, torch.no_grad():
        model(**inputs)
    assert torch.equal(seen[0][0], inputs["input_ids"])
    assert torch.equal(seen[0][1], owner >= 0)
    assert torch.equal(handle.last.kept, kept)
    assert_same(handle.last.results, results)


@A_FEW
def test_image_index_overrides_the_images(name: str) -> None:
    """Images that alternate from token to token, which no rule of a family finds."""
    family, model = FAMILIES[name], model_of(name)
    inputs, owner = family.prompt(family.ragged)
    inputs = accepted(model, inputs)
    other = torch.where(owner >= 0, (owner >= 0).cumsum(1) % 2, -1)
    kept, results = expected(model, inputs, other, words(family, inputs, owner))
    with tt.patched(model, CONFIG, image_index=lambda ids, visual: other) as handle, torch.no_grad():
        model(**inputs)
    assert torch.equal(handle.last.kept, kept)
    assert_same(handle.last.results, results)


@A_FEW
@pytest.mark.parametrize("config", [tt.PruneConfig(keep_tokens=7), tt.PruneConfig(keep_ratio=0.15)])
def test_every_row_keeps_what_its_budget_says(name: str, config: tt.PruneConfig) -> None:
    family, model = FAMILIES[name], model_of(name)
    inputs, owner = family.prompt(family.ragged)
    inputs = accepted(model, inputs)
    with tt.patched(model, config) as handle, torch.no_grad():
        model(**inputs)
    for row, images in enumerate(owner):
        counts = images[images >= 0].bincount().tolist()
        wanted = (
            tt.kept_counts([0, *torch.tensor(counts).cumsum(0).tolist()], config=config) if counts else [0]
        )
        assert handle.last.visual_after[row] == wanted[0]


def test_a_row_alone_keeps_what_it_keeps_in_a_batch() -> None:
    family, model = FAMILIES["qwen2_5_vl"], model_of("qwen2_5_vl")
    inputs, owner = family.prompt(family.ragged)
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        model(**accepted(model, inputs))
        together = handle.last.kept
        row, valid = 0, inputs["attention_mask"][0].bool()
        alone, _ = family.prompt(family.ragged[:1])
        assert torch.equal(alone["input_ids"][0], inputs["input_ids"][row][valid])
        model(**accepted(model, alone))
    assert torch.equal(handle.last.kept[0], together[row][valid])


@EVERY_FAMILY
def test_text_only_calls_are_left_alone(family: Family) -> None:
    """No selection, the same bits, and `handle.last` still tells of the last call with images."""
    model = model_of(family.name)
    ids = torch.randint(TEXT.start, TEXT.stop, (2, 7), generator=torch.Generator().manual_seed(3))
    text = accepted(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **family.sequence(ids)})
    with torch.no_grad():
        plain = model(**text).logits
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        assert torch.equal(model(**text).logits, plain)
        assert handle.last is None
        assert handle.stats.seconds == 0
        model(**accepted(model, family.inputs(TWO)))
        last = handle.last
        model(**text)
        assert handle.last is last


def test_a_row_without_images_is_untouched_beside_rows_with() -> None:
    family, model = FAMILIES["llava"], model_of("llava")
    inputs, _ = family.prompt(family.ragged)
    row = family.ragged.index(())
    with torch.no_grad():
        plain = model(**inputs).logits
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        pruned = model(**inputs).logits
    count = int(inputs["attention_mask"][row].sum())
    assert handle.last.results[row] is None
    assert bool(handle.last.kept[row].all())
    assert torch.allclose(pruned[row, -count:], plain[row, -count:], atol=1e-5)


def test_stats_sum_over_the_calls() -> None:
    family, model = FAMILIES["llava"], model_of("llava")
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        seconds = before = after = 0
        for rows in (TWO, family.ragged, FIVE):
            model(**family.inputs(rows))
            seconds += handle.last.seconds
            before += int(handle.last.visual_before.sum())
            after += int(handle.last.visual_after.sum())
    assert handle.last.seconds > 0
    assert handle.stats.seconds == pytest.approx(seconds)
    assert (handle.stats.visual_before, handle.stats.visual_after) == (before, after)


def test_a_wrong_image_index_is_an_error_even_where_everything_is_kept() -> None:
    family, model = FAMILIES["llava"], model_of("llava")
    options = dict(image_index=lambda ids, visual: visual)
    everything = tt.patched(model, tt.PruneConfig(keep_ratio=1.0), **options)
    with everything, torch.no_grad(), pytest.raises(tt.InvalidInputError, match="image_index"):
        model(**family.inputs(family.ragged))


def test_keeping_everything_selects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("distances were computed")

    monkeypatch.setattr("trimtok_fast.hf.selection.prune", never)
    family, model = FAMILIES["llava"], model_of("llava")
    for config in (tt.PruneConfig(keep_ratio=1.0), tt.PruneConfig(keep_tokens=10_000)):
        with tt.patched(model, config) as handle, torch.no_grad():
            model(**family.inputs(family.ragged))
        assert handle.last.visual_after.tolist() == handle.last.visual_before.tolist()
    with tt.patched(model, CONFIG), torch.no_grad(), pytest.raises(AssertionError, match="distances"):
        model(**family.inputs(family.ragged))
