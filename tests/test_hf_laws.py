"""The two laws of the patch, for every family: keeping all changes no bit, and dropping is masking."""

from __future__ import annotations

import pytest
import torch

import trimtok_fast as tt
from tests.hf_oracle import assert_close, compact, masked_run, run, trimmed
from tests.hf_zoo import FAMILIES, FIVE, GENERATE, ONE, TEXT, TWO, VARIANTS, Family, accepted, model_of

IMAGES = {
    "one": (ONE, "left"),
    "two": (TWO, "left"),
    "five": (FIVE, "left"),
    "ragged-left": (None, "left"),
    "ragged-right": (None, "right"),
    "even": (None, "none"),
}
VIDEOS = {
    "video": ((("v0",),), "left"),
    "mixed": ((("i0", "v1", "i1"),), "left"),
    "mixed-ragged": ((("v0",), ("i0", "v1"), ("i2",)), "left"),
}
#: What of a family's other attentions than the last `make test` runs: one of images, one of videos.
SHORT = {"ragged-left", "mixed-ragged"}
CASES = [
    pytest.param(
        family,
        case[0] or family.ragged,
        case[1],
        attention,
        id=f"{family.name}-{label}-{attention}",
        marks=() if attention == family.attentions[-1] or label in SHORT else pytest.mark.slow,
    )
    for family in (*FAMILIES.values(), *VARIANTS.values())
    for label, case in {**IMAGES, **(VIDEOS if family.video else {})}.items()
    for attention in family.attentions
]


@pytest.mark.parametrize("family, rows, side, attention", CASES)
def test_keeping_everything_changes_no_bit(family: Family, rows, side: str, attention: str) -> None:
    model = model_of(family.name, attention)
    inputs = accepted(model, family.inputs(rows, side))
    with torch.no_grad():
        logits = model(**inputs).logits
        ids = model.generate(**inputs, **GENERATE)
    with tt.patched(model, tt.PruneConfig(keep_ratio=1.0)) as handle, torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
        assert bool(handle.last.kept.all())
        assert torch.equal(model.generate(**inputs, **GENERATE), ids)


@pytest.mark.parametrize("family, rows, side, attention", CASES)
def test_dropping_is_masking(family: Family, rows, side: str, attention: str) -> None:
    model = model_of(family.name, attention)
    inputs, owner = family.prompt(rows, side)
    inputs = accepted(model, inputs)
    new_ids = torch.randint(TEXT.start, TEXT.stop, (len(rows), 4), generator=torch.Generator().manual_seed(1))
    with tt.patched(model, tt.PruneConfig(keep_ratio=0.4)) as handle:
        prefill, decode = run(model, inputs, new_ids)
        kept = handle.last.kept
    assert bool(kept[owner < 0].all()), "a position that is no visual token was dropped"
    assert bool((~kept[owner.amax(1) >= 0]).any(1).all()), "nothing was dropped"
    mask = inputs["attention_mask"]
    full_prefill, full_decode = masked_run(model, inputs, kept, new_ids)
    assert_close(trimmed(prefill, kept, mask), compact(full_prefill, kept, mask))
    assert_close(decode, full_decode)
