"""Whether a result is right: certificates in fp64, most of them without a square matrix, for large inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import trimtok_fast as tt
from trimtok_fast.budgets import anchors_of, text_seeds_of
from trimtok_fast.certificate import TOLERANCE, certify
from trimtok_fast.segments import cumulative
from trimtok_fast.statistics import ZERO_DISTANCE

#: What a rival may fall short by: it sums in an order of its own, and near ties fall either way.
RIVALS = 1e-4
#: Rows of a block of distances.
BLOCK = 4096


def assert_picks(picks: Tensor, rows: Tensor | range, budget: int) -> None:
    """As many as asked for, each once, of these rows."""
    assert picks.shape == (budget,), f"{list(picks.shape)} picks, not {budget}"
    assert len(picks.unique()) == budget, "a row is picked twice"
    if isinstance(rows, range):
        assert bool(((picks >= rows.start) & (picks < rows.stop)).all()), "a pick is out of range"
    else:
        assert bool(torch.isin(picks, rows).all()), "a pick is none of the rows"


def assert_max_min(tokens: Tensor, picks: Tensor, tolerance: float, seeds: int = 0) -> None:
    """Every pick is the farthest from those before it, up to `tolerance`."""
    _assert_small(max_min_regret(tokens, picks, seeds), tolerance)


def assert_coverage(tokens: Tensor, picks: Tensor, tolerance: float) -> None:
    """Every pick gains the most, up to `tolerance`."""
    _assert_small(certify(tokens, picks, objective="coverage").regret, tolerance)


def assert_max_mean(tokens: Tensor, picks: Tensor, rows: Tensor, tolerance: float) -> None:
    """Every pick among `rows` is the farthest from the mean of those before it, up to `tolerance`."""
    _assert_small(certify(tokens, picks, objective="max_mean", rows=rows).regret, tolerance)


def assert_determinant(tokens: Tensor, relevance: Tensor, picks: Tensor, tolerance: float) -> None:
    """Every pick has the most left, up to `tolerance`."""
    _assert_small(determinant_regret(tokens, relevance, picks), tolerance)


def _assert_small(regret: float, tolerance: float) -> None:
    assert regret <= tolerance, f"a pick falls short of the best by {regret:.2g}, {tolerance:g} are allowed"


def _directions(tokens: Tensor, origin: Tensor | None = None) -> Tensor:
    x = tokens.detach().double()
    return torch.nn.functional.normalize(x if origin is None else x - origin.double(), dim=1)


def max_min_regret(tokens: Tensor, picks: Tensor, seeds: int = 0, origin: Tensor | None = None) -> float:
    """`certify(…, objective="max_min").regret`, for tokens with directions, in memory of BLOCK × picks."""
    unit = _directions(tokens, origin)
    chosen = unit[picks]
    farthest = unit.new_zeros(len(picks))  # from the picks up to each step
    for rows in unit.split(BLOCK):
        farthest = torch.maximum(farthest, _nearest(rows, chosen).amax(0))
    # How far each pick was from those before it: one left of the diagonal.
    own = torch.cat(
        [
            _nearest(chosen[start : start + BLOCK], chosen).diagonal(start - 1)
            for start in range(1, len(picks), BLOCK)
        ]
        or [farthest[:0]]
    )
    judged = slice(max(seeds, 1) - 1, len(picks) - 1)
    shortfall, best = (farthest[:-1] - own)[judged], farthest[:-1][judged]
    regret = float(shortfall.max() / best.max().clamp(min=1e-3)) if len(best) else 0.0
    if seeds == 0:
        typical = unit @ unit.sum(0)
        first = (typical.max() - typical[picks[0]]) / typical.max().clamp(min=1e-3)
        regret = max(regret, float(first))
    return regret


def _nearest(rows: Tensor, chosen: Tensor) -> Tensor:
    """Distance of each row to the nearest of the first, the first two, … chosen."""
    distance = (1 - rows @ chosen.T).clamp_(min=0)
    return distance.masked_fill_(distance < ZERO_DISTANCE, 0).cummin(1).values


def determinant_regret(tokens: Tensor, relevance: Tensor, picks: Tensor) -> float:
    """The largest shortfall of what a pick had left against the most that was left, over the first's.

    What is left of a token at step t is r² minus the squares of the first t rows of the Cholesky factor, and
    these come all at once from a triangular system. The picks must be linearly independent.
    """
    vectors = _directions(tokens) * relevance.double()[:, None]
    chosen = vectors[picks]
    lower = torch.linalg.cholesky(chosen @ chosen.T)
    most = vectors.new_zeros(len(picks))
    for rows in vectors.split(BLOCK):
        factor = torch.linalg.solve_triangular(lower, chosen @ rows.T, upper=False)
        left = rows.square().sum(1) - (factor.square().cumsum(0) - factor.square())
        most = torch.maximum(most, left.amax(1))
    return float((most - lower.diagonal().square()).max() / most[0])


def assert_fronts(diversity: Tensor, alignment: Tensor, front: Tensor) -> None:
    """Nobody dominates within a front, and everybody is dominated by someone of the front before.

    Then the fronts are right: who is dominated by a token of a later front is so by one of its own, too.
    """
    order = alignment.argsort(descending=True, stable=True)
    order = order[diversity[order].argsort(descending=True, stable=True)]
    order = order[front[order].argsort(stable=True)]
    x, y, number = diversity[order], alignment[order], front[order]
    same = number[1:] == number[:-1]
    apart = (x[1:] < x[:-1]) & (y[1:] > y[:-1])
    equal = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    assert bool((~same | apart | equal).all()), "a token dominates another of its front"
    assert number[0] == 0 and bool((number.diff() <= 1).all()), "a front is missing"
    sizes = torch.bincount(number).tolist()
    fronts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    for (x_before, y_before), (x_own, y_own) in zip(fronts, fronts[1:], strict=False):
        # Along a front x falls and y rises: of those with as large an x, the last has the largest y.
        place = torch.searchsorted(-x_before, -x_own, right=True) - 1
        x_best, y_best = x_before[place.clamp(min=0)], y_before[place.clamp(min=0)]
        dominated = (place >= 0) & (y_best >= y_own) & ((x_best > x_own) | (y_best > y_own))
        assert bool(dominated.all()), "a token's front is too late"


def assert_pruned(
    tokens: Tensor,
    boundaries: Sequence[int],
    text: Tensor | None,
    config: tt.PruneConfig,
    out: tt.PruneResult,
    whole: bool = True,
    backend: str = "auto",
) -> None:
    """As many are kept as was announced; with `whole`, both stages repeated by its ops and certified."""
    kept = tt.kept_counts(boundaries, config=config)[0]
    assert len(out.indices) == kept, f"{len(out.indices)} tokens are kept, not {kept}"
    assert bool((out.indices.diff() > 0).all()), "rows are kept twice or out of order"
    if not whole:
        return
    statistics = tt.token_statistics(tokens, boundaries, text=text, backend=backend)
    plan = tt.plan_budgets(statistics, boundaries, config=config)
    origin, lengths = statistics.origin, torch.tensor(boundaries).diff().tolist()
    counts = text_seeds_of(lengths, kept, text is not None)
    seeds = [
        low + statistics.alignment[low:high].argsort(descending=True, stable=True)[:count]
        for low, high, count in zip(boundaries, boundaries[1:], counts, strict=False)
        if count
    ]
    picks, _ = tt.greedy_select(
        tokens,
        boundaries,
        plan.image_budgets,
        objective=config.image_objective,
        seeds=torch.cat(seeds) if seeds else None,
        cu_seeds=cumulative(counts).offsets if seeds else None,
        origin=origin.expand(len(lengths), -1),
        inverse_norm=statistics.inverse_norm,
        backend=backend,
    )
    assert torch.equal(picks.sort().values, (out.stage >= 1).nonzero()[:, 0]), "stage 1 differs from its op"
    tolerance, budgets = TOLERANCE[tokens.dtype], plan.image_budgets.tolist()
    first = picks[: budgets[0]]
    regret = certify(
        tokens[: boundaries[1]], first, objective=config.image_objective, seeds=counts[0], origin=origin[0]
    ).regret
    _assert_small(regret, tolerance)

    survivors = picks.sort().values
    anchors = torch.cat(
        [
            own[min(seeds, length - count) :][:count]
            for own, seeds, length, count in zip(
                picks.split(budgets),
                counts,
                lengths,
                anchors_of(lengths, kept, text is not None, config),
                strict=True,
            )
        ]
    )
    pool, _ = tt.greedy_select(
        tokens,
        [0, len(survivors)],
        plan.pool,
        objective=config.pool_objective,
        seeds=anchors,
        origin=origin,
        inverse_norm=statistics.inverse_norm,
        rows=survivors,
        backend=backend,
    )
    assert torch.equal(pool.sort().values, (out.stage >= 2).nonzero()[:, 0]), "the pool differs from its op"
    places = torch.searchsorted(survivors, pool)
    _assert_small(max_min_regret(tokens[survivors], places, len(anchors), origin[0]), tolerance)
