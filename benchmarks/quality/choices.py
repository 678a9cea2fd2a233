"""What settles the defaults of METHOD: every choice of ours against what else was tried (docs/choices.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import trimtok_fast as tt
from benchmarks.quality.study import OURS, QUERIES, compared, scores, selected, spread, with_text
from benchmarks.quality.tables import LEGEND, section
from benchmarks.quality.tokens import Pictures, clips, photographs, pictures_of, with_constant
from trimtok_fast.budgets import text_seeds_of
from trimtok_fast.demo.classifier import INPUT_SIDE, Classifier

SHARES = (0.2, 0.1, 0.05)
DEFAULT = "default"

#: Without text: what is tried, by its fields.
SPLITS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    **{f"stage_split={w:g}": {"stage_split": w} for w in (0.0, 0.25, 0.5, 0.75, 1.0)},
    **{
        f"stage_split={w:g}, pool_objective=coverage": {"stage_split": w, "pool_objective": "coverage"}
        for w in (0.0, 0.5)
    },
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "image_objective=max_min": {"image_objective": "max_min"},
    "image_objective=max_mean": {"image_objective": "max_mean"},
}
CENTERS: dict[str, dict[str, Any]] = {DEFAULT: {}, "center=none": {"center": "none"}}
#: With text.
TEXTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    **{f"text_share={share:g}": {"text_share": share} for share in (0.25, 0.75, 1.0)},
    **{f"pool_fraction={share:g}": {"pool_fraction": share} for share in (0.5, 0.75)},
    **{f"stage_split={w:g}": {"stage_split": w} for w in (0.25, 0.75)},
    "pool_objective=coverage": {"pool_objective": "coverage"},
}
#: Shares of stage 1's budget that an even sample of each image takes first.
EVEN = (0.25, 0.5, 1.0)


def measure(quick: bool = False, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Everything that was tried, as `study.measure` gives it; the differences are from the default's."""
    classifier = Classifier()
    progress("tokens")
    photos = pictures_of(classifier, photographs(quick), INPUT_SIDE, lambda: None)
    moving = pictures_of(classifier, clips(), INPUT_SIDE, lambda: None)
    shares = SHARES[1:2] if quick else SHARES

    def plain(title: str, pictures: Pictures, tried: dict[str, dict[str, Any]], times: float = 0) -> Any:
        progress(title)
        seen = with_constant(pictures.tokens, times) if times else None
        return {
            str(share): compared(
                {
                    name: scores(
                        classifier,
                        pictures,
                        selected(pictures, tt.PruneConfig(keep_ratio=share, **fields), seen=seen),
                    )
                    for name, fields in tried.items()
                },
                DEFAULT,
            )
            for share in shares
        }

    parts = {
        title: plain(title, *arguments)
        for title, arguments in {
            "The split, photographs": (photos, SPLITS),
            "The split, two clips of frames that repeat one another": (moving, SPLITS),
            "The objective of stage 1, photographs": (photos, OBJECTIVES),
            "The centre, photographs": (photos, CENTERS),
            "The centre, photographs with a constant vector of 3 × the mean norm": (photos, CENTERS, 3),
        }.items()
    }
    title = "An even sample first, photographs"
    progress(title)
    parts[title] = {
        str(share): compared(
            {
                DEFAULT: scores(classifier, photos, selected(photos, tt.PruneConfig(keep_ratio=share))),
                **{
                    f"even sample, {part:.0%} of the budget": scores(
                        classifier, photos, evenly_seeded(photos, share, part)
                    )
                    for part in EVEN
                },
            },
            DEFAULT,
        )
        for share in shares
    }
    asked = {}
    queries = spread(photos.needles(), 4 if quick else QUERIES)
    for share in shares[-2:]:
        progress(f"text at {share:.0%}")
        asked[str(share)] = compared(
            {
                name: with_text(classifier, photos, OURS, share, queries, **fields)
                for name, fields in TEXTS.items()
            },
            DEFAULT,
        )
    return {"queries": len(queries), "without text": parts, "with text": asked}


def evenly_seeded(pictures: Pictures, share: float, part: float) -> Tensor:
    """Coverage inside each image after an even sample of it, which is `part` of the whole budget."""
    config = tt.PruneConfig(keep_ratio=share, stage_split=1.0)
    boundaries = pictures.boundaries
    statistics = tt.token_statistics(pictures.tokens, boundaries)
    budgets = tt.plan_budgets(statistics, boundaries, config=config).image_budgets
    sizes = [end - start for start, end in zip(boundaries, boundaries[1:], strict=False)]
    wanted = text_seeds_of(sizes, int(part * budgets.sum()), True)
    counts = [min(count, budget) for count, budget in zip(wanted, budgets.tolist(), strict=True)]
    seeds = [
        start + torch.arange(count) * size // max(count, 1)
        for start, size, count in zip(boundaries, sizes, counts, strict=False)
    ]
    assert statistics.origin is not None
    return tt.greedy_select(
        pictures.tokens,
        boundaries,
        budgets,
        seeds=torch.cat(seeds),
        cu_seeds=torch.tensor([0, *counts]).cumsum(0),
        origin=statistics.origin.expand(len(sizes), -1),
        inverse_norm=statistics.inverse_norm,
    )[0]


def tables(results: dict[str, Any]) -> str:
    """Markdown of what `measure` returns."""
    lines = ["# What settles the defaults", "", LEGEND]
    for title, shares in results["without text"].items():
        lines += section(title, shares, ("KL", "same answer", "mean distance"))
    title = f"With text, photographs, {results['queries']} queries"
    lines += section(title, results["with text"], ("needle", "evidence", "best 20", "KL"))
    return "\n".join(lines) + "\n"
