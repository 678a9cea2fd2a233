"""The certificate of a greedy selection: every pick replayed in fp64 (METHOD §5).

Rounding differs between backends, so near ties may fall either way, and one flipped tie changes everything
after it. What must hold is not the same picks but that every pick was, at its step, as good as the best one
up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtok_fast.backends import reference

#: What METHOD §5 allows, by the tokens' dtype.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Certificate:
    """How far one segment's picks are from greedy.

    Attributes:
        regret: the largest shortfall of a pick's value against the best value available at its step, relative
            to the larger of 1e-3 and the run's largest finite value. 0: the textbook's picks, up to exact
            ties.
        margin: the smallest lead of a pick over the runner-up of its step, on the same scale; where it is
            above the tolerance, every right backend makes exactly these picks.
        coverage: Σ_i max_s sim⁺(i, s) over the picks s, what `coverage` maximises.
        radius: the largest distance of a token to its nearest pick, what `max_min` is after.
    """

    regret: float
    margin: float
    coverage: float
    radius: float


def certify(
    tokens: Tensor,
    picks: Tensor | Sequence[int],
    *,
    objective: str,
    seeds: int = 0,
    origin: Tensor | None = None,
    rows: Tensor | None = None,
) -> Certificate:
    """Replay one segment's picks in fp64.

    Args:
        tokens: floats [M, d].
        picks: int64 [b], rows of `tokens` in the order of the picks.
        objective: `"coverage"`, `"max_min"` or `"max_mean"`.
        seeds: how many of the first picks were given, and are not judged.
        origin: [d], the point that the directions are taken about; `None` is 0.
        rows: int64 [m], the rows that belong to the segment; `None` is all of them.

    Returns:
        `Certificate`.

    Note:
        Takes an m × m matrix in fp64: for tests and benchmarks.

    Source:
        METHOD §5, ours.

    Example:
        >>> import torch
        >>> certify(torch.eye(3), [0, 1], objective="max_min").regret
        0.0
    """
    rows = torch.arange(len(tokens)) if rows is None else rows.sort().values.cpu()
    x, _ = reference.usable(tokens.detach().cpu()[rows])
    center = None if origin is None else origin.detach().cpu().double()
    unit = reference.directions_about(x, center, reference.inverse_norm_about(x, center))
    places = torch.searchsorted(rows, torch.as_tensor(picks).cpu())
    order = places.tolist()
    replay = {"coverage": _replay_coverage, "max_min": _replay_max_min, "max_mean": _replay_max_mean}[
        objective
    ]
    present = unit.norm(dim=1) > 0
    # Until a pick has a direction, max_min and max_mean compare how typical tokens are, on a scale of its
    # own.
    opening = next((step + 1 for step, pick in enumerate(order) if present[pick]), len(order))
    typical = unit @ unit.sum(0)
    steps, opening_steps, largest = [(0.0, torch.inf)], [(0.0, torch.inf)], 1e-3
    for step, value in enumerate(replay(unit, present, order)):
        first = objective != "coverage" and step < opening
        value = (typical if first else value).clone()
        value[places[:step]] = -torch.inf
        if step < seeds:
            continue
        best, own = float(value.max()), float(value[order[step]])
        value[order[step]] = -torch.inf
        shortfall, lead = best - own, own - float(value.max())
        if first:
            scale = max(best, 1e-3)
            opening_steps.append((shortfall / scale, lead / scale))
        else:
            steps.append((shortfall, lead))
            largest = max(largest, best)
    steps = [(shortfall / largest, lead / largest) for shortfall, lead in steps] + opening_steps
    regret, margin = max(step[0] for step in steps), min(step[1] for step in steps)
    cosine = unit @ unit[order].T
    covered = reference.similarity_of(cosine).max(1).values.sum()
    return Certificate(
        regret, margin, float(covered), float(reference.distance_of(cosine).min(1).values.max())
    )


def _replay_coverage(unit: Tensor, present: Tensor, order: list[int]) -> Iterator[Tensor]:
    similarity = reference.similarity_of(unit @ unit.T)
    best = unit.new_zeros(len(unit))
    gain = similarity.sum(0)
    for pick in order:
        yield gain
        moved = (similarity[:, pick] > best).nonzero().squeeze(1)
        old, new = best[moved, None], similarity[moved, pick, None]
        gain = gain - (similarity[moved].clamp(old, new) - old).sum(0)
        best[moved] = new[:, 0]


def _replay_max_min(unit: Tensor, present: Tensor, order: list[int]) -> Iterator[Tensor]:
    distance = reference.distance_of(unit @ unit.T)
    nearest = torch.where(present, torch.inf, 0.0).double()
    for pick in order:
        yield nearest
        if present[pick]:
            nearest = torch.where(present, nearest.minimum(distance[:, pick]), nearest)


def _replay_max_mean(unit: Tensor, present: Tensor, order: list[int]) -> Iterator[Tensor]:
    total, count = unit.new_zeros(unit.shape[1]), 0
    for pick in order:
        yield torch.where(present, 1 - unit @ total / max(count, 1), 0.0)
        total, count = total + unit[pick], count + int(present[pick])
