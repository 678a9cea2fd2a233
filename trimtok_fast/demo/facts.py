"""The demo's numbers under the names that people read, once for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from trimtok_fast.budgets import stage_weight
from trimtok_fast.demo import OURS, WITHOUT_QUERY
from trimtok_fast.demo.comparison import NEEDLES, Score
from trimtok_fast.demo.overlay import SINGLE_STAGE, STAGES, Stage
from trimtok_fast.demo.run import STEPS, DemoResult


@dataclass(frozen=True)
class PictureFacts:
    """A picture's row in the table of pictures.

    Attributes:
        name: of the picture.
        before: its tokens.
        diversity: D_intra.
        budget: what stage 1 leaves of it.
        kept: what stays.
    """

    name: str
    before: int
    diversity: float
    budget: int
    kept: int


@dataclass(frozen=True)
class SampleFacts:
    """What the budgets were made from, and what became of the sample's tokens.

    Attributes:
        diversity: mean D_intra of the pictures.
        variation: D_inter; NaN with one picture.
        split: w, the share of the pruning that stage 1 does, on a log scale.
        total: tokens before.
        survivors: tokens after stage 1.
        pool: candidates of the selection.
        kept: tokens after.
        fronts: Pareto fronts among the kept tokens; 0 without a query.
    """

    diversity: float
    variation: float
    split: float
    total: int
    survivors: int
    pool: int
    kept: int
    fronts: int


@dataclass(frozen=True)
class Column:
    """A column of the comparison.

    Attributes:
        name: its heading.
        short: its heading where space is short.
        meaning: one sentence.
        cells: a text for each method.
        best: which of the cells are the best ones.
    """

    name: str
    short: str
    meaning: str
    cells: Sequence[str]
    best: Sequence[bool]


def picture_facts(result: DemoResult) -> list[PictureFacts]:
    """One row for each picture, with what the shown method keeps of it."""
    columns = zip(
        result.pictures,
        result.pruned.statistics.diversity.tolist(),
        result.pruned.plan.image_budgets.tolist(),
        result.shown.kept,
        strict=True,
    )
    before = result.shown.stage.shape[1]
    return [PictureFacts(picture.name, before, *numbers) for picture, *numbers in columns]


def sample_facts(result: DemoResult) -> SampleFacts:
    """The numbers of the whole sample."""
    statistics, plan = result.pruned.statistics, result.pruned.plan
    diversity, variation = statistics.diversity.mean(), statistics.variation[0]
    return SampleFacts(
        diversity=diversity.item(),
        variation=variation.item(),
        split=stage_weight(
            diversity, variation, torch.tensor(result.options.query is not None), result.options.config
        ).item(),
        total=result.total,
        survivors=int(plan.survivors),
        pool=int(plan.pool),
        kept=result.budget,
        fronts=0 if result.pruned.front is None else int(result.pruned.front.max()) + 1,
    )


def headline(result: DemoResult) -> str:
    """The shown method, with the query where it has one."""
    query = result.options.query
    if result.options.method != OURS:
        return result.shown.title
    return f"{result.shown.title}, {f'query “{query}”' if query else 'no query'}"


def step_seconds(result: DemoResult) -> list[tuple[str, float]]:
    """The steps of `prune` by name, with their seconds."""
    return [(name, result.seconds.get(step, 0.0)) for step, name in STEPS.items()]


def legend(result: DemoResult, method: str) -> Sequence[Stage]:
    """The stages in which a method drops tokens."""
    if method not in (OURS, WITHOUT_QUERY):
        return SINGLE_STAGE
    if method == WITHOUT_QUERY or result.options.query is None:
        return STAGES[:2]  # no Pareto selection
    return STAGES


def comparison_columns(result: DemoResult) -> list[Column]:
    """The comparison, column by column."""
    scores = [selection.score for selection in result.selections.values()]
    count = len(result.pictures)
    columns = [
        _column(
            "mean distance",
            "mean",
            "cosine distance to the nearest kept token, mean over all tokens",
            [score.mean_distance for score in scores],
        ),
        _column(
            "largest distance",
            "worst",
            "the largest of these distances",
            [score.largest_distance for score in scores],
        ),
        _column(
            "KL divergence",
            "KL",
            "how far the classifier's answer moves, mean over the pictures",
            [score.divergence for score in scores],
        ),
        _column(
            "same answer",
            "same",
            f"pictures, of {count}, whose likeliest class stays the same",
            [score.same_answer for score in scores],
            largest=True,
        ),
        _column(
            "emptied",
            "empty",
            "pictures that lose all of their tokens",
            [score.emptied for score in scores],
        ),
    ]
    if result.options.query is not None:
        columns.append(_recall_column(scores, result.options.query))
    return columns


def _recall_column(scores: Sequence[Score], query: str) -> Column:
    shares = [score.recall or 0.0 for score in scores]
    return replace(
        _column(
            f"best {NEEDLES}",
            f"best {NEEDLES}",
            f"share of the {NEEDLES} tokens that speak most for “{query}” that stay",
            shares,
            largest=True,
        ),
        cells=[f"{share:.0%}" for share in shares],
    )


def _column(name: str, short: str, meaning: str, values: Sequence[float], largest: bool = False) -> Column:
    cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in values]
    best = max(values) if largest else min(values)
    return Column(name, short, meaning, cells, [value == best for value in values])
