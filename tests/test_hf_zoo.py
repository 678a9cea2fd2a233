"""The ground under the other tests of the patch: the tiny models, their prompts, and the oracle."""

from __future__ import annotations

import pytest
import torch

from tests.hf_oracle import embeddings, masked_run, run
from tests.hf_zoo import FAMILIES, TEXT, TWO, VARIANTS, Family, accepted, model_of

ZOO = (*FAMILIES.values(), *VARIANTS.values())
EVERY_FAMILY = pytest.mark.parametrize("family", ZOO, ids=lambda family: family.name)
EVERY_ATTENTION = pytest.mark.parametrize(
    "family, attention",
    [
        pytest.param(family, attention, id=f"{family.name}-{attention}")
        for family in ZOO
        for attention in family.attentions
    ],
)
NEW_IDS = torch.randint(TEXT.start, TEXT.stop, (3, 2), generator=torch.Generator().manual_seed(1))


def features(family: Family, name: str) -> torch.Tensor:
    """The tokens of one item alone, as the model's own towers make them: [m, d]."""
    model = model_of(family.name)
    inputs, owner = family.prompt(((name,),), tail=0)
    merged = embeddings(model, accepted(model, inputs))
    return merged[0][owner[0] >= 0]


@EVERY_FAMILY
@pytest.mark.parametrize("side", ["left", "right"])
def test_owner_says_which_picture_a_position_shows(family: Family, side: str) -> None:
    rows = family.ragged
    model = model_of(family.name)
    inputs, owner = family.prompt(rows, side)
    merged = embeddings(model, accepted(model, inputs))
    for row, names in enumerate(rows):
        visual = owner[row] >= 0
        alone = torch.cat([features(family, name) for name in names]) if names else merged[row][visual]
        assert torch.allclose(merged[row][visual], alone, atol=1e-5)
        images = owner[row][visual].unique(return_counts=True)
        counts = [
            torch.tensor([n for n in family.item(name).owner if n >= 0]).unique(return_counts=True)[1]
            for name in names
        ]
        assert images[0].tolist() == list(range(len(images[0])))
        assert images[1].tolist() == (torch.cat(counts).tolist() if counts else [])


@EVERY_ATTENTION
def test_the_oracle_with_nothing_dropped_is_the_plain_run(family: Family, attention: str) -> None:
    model = model_of(family.name, attention)
    inputs = accepted(model, family.inputs(family.ragged))
    kept = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    valid = inputs["attention_mask"].bool()
    for masked, plain in zip(
        masked_run(model, inputs, kept, NEW_IDS), run(model, inputs, NEW_IDS), strict=True
    ):
        seen = valid if masked.shape[1] == valid.shape[1] else ...
        assert torch.allclose(masked[seen], plain[seen], atol=1e-5)


@EVERY_FAMILY
def test_every_visual_position_matters_to_the_oracle(family: Family) -> None:
    """Dropping any one changes the logits of the last prompt token far beyond the laws' tolerance."""
    model = model_of(family.name)
    inputs, owner = family.prompt(TWO, tail=2)
    inputs = accepted(model, inputs)
    plain, _ = run(model, inputs)
    for position in (owner[0] >= 0).nonzero().squeeze(1)[::5].tolist():
        kept = torch.ones_like(owner, dtype=torch.bool)
        kept[0, position] = False
        masked, _ = masked_run(model, inputs, kept)
        change = (masked[0, position + 1 :] - plain[0, position + 1 :]).abs().max() / plain.abs().max()
        assert change > 1e-3
