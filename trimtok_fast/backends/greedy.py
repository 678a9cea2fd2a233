"""Exact greedy, fast (METHOD §5): the textbook's picks in one segment, without the textbook's cost.

What is as long as a segment stays on the host, in numpy: a pick is a dozen operations on such vectors, each
shorter than a launch. What is as large as a block of similarities stays on the tokens' device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.backends.directions import BLOCK_ROWS, Array, Directions, Similarities, to_device, to_host

#: Tokens that have changed hands before coverage brings all gains up to date: until then, bounds do.
MOVED = 32
#: The bound of a picked token.
PICKED = -1
#: Where max_min picks a third or more of at most this many tokens, one round takes them all for candidates.
ONE_ROUND = 2560
#: Segments of at most this many tokens in which max_min brings all values up to date after every round, and
#: the candidates of a round there.
SMALL, FEW = 1024, 64
#: Tokens in the running there for each pick that is to come; and the share of them that is worth the copying.
RUNNING, SHRUNK = 5, 0.5
#: The largest value of no tokens, and where it stands.
NOTHING = (-np.inf, -1)
#: A product's columns come in such numbers where BLAS is at its best: 22 of them take longer than 32.
COLUMNS = 16
#: max_min brings this many times a round's candidates up to date.
WORKING_SET = 4


def coverage(
    directions: Directions, budget: int, seeds: list[int], workspace_bytes: int
) -> tuple[list[int], list[float]]:
    """Facility location with exact gains (METHOD §5), and lazily.

    A pick moves the few tokens whose best it raises; only they change any gain. The moves of some picks are
    collected and taken out of all gains together. Meanwhile the gains, which only fall, are bounds, and the
    two or three that could win a pick are made exact.
    """
    similarities = coverage_similarities(directions, workspace_bytes)
    dtype, scale = similarities.dtype, similarities.scale
    gain = np.zeros(len(directions), dtype=np.int64)
    for part in directions.parts():
        gain += to_host(similarities[part].sum(0, dtype=dtype))
    gain[directions.copies] = 0  # as if the first of them were picked, which is no later
    known = to_host(
        directions.rows.new_zeros(len(directions), dtype=dtype)
    )  # the best that `gain` counts with
    best, bound = known.copy(), gain.copy()

    picks: list[int] = []
    gains: list[float] = []
    for step in range(budget):
        moved = (best > known).nonzero()[0]
        if len(moved) >= MOVED:
            for start in range(0, len(moved), BLOCK_ROWS):
                some = moved[start : start + BLOCK_ROWS]
                gain -= _handed_over(similarities, some, known[some], best[some])
            np.maximum(gain, 0, out=gain)  # recomputed similarities may differ in a bit
            known, bound = best.copy(), np.where(bound == PICKED, PICKED, gain)
            moved = moved[:0]
        if step < len(seeds):
            pick, value = seeds[step], float("inf")
        else:
            pick = _lazy_argmax(similarities, gain, bound, moved, known[moved], best[moved])
            value = int(bound[pick]) / scale
        picks.append(pick)
        gains.append(value)
        gain[directions.first[pick]] = 0  # another token, where a seed is a copy
        bound[pick] = PICKED
        np.maximum(best, similarities.row(pick), out=best)
    return picks, gains


def whole_numbers(dtype: torch.dtype) -> tuple[torch.dtype, float]:
    """What sim⁺ is counted in, and how many for 1: sums do not hang on the order, running gains do not drift.

    Ties that are exact in the maths are exact here, where similarities are stored; where they are made again
    at each use, those of equal tokens are. BLOCK_ROWS similarities, summed, fit the dtype.
    """
    return (torch.int64, 2.0**40) if dtype == torch.float64 else (torch.int32, 2.0**22)


def coverage_similarities(directions: Directions, workspace_bytes: int) -> Similarities:
    """sim⁺ of one segment, as whole numbers."""
    dtype, scale = whole_numbers(directions.dtype)
    duplicate = scale * (1 - constants.ZERO_DISTANCE)

    def finish(cosine: Tensor) -> Tensor:
        return cosine.clamp_(min=0).masked_fill_(cosine > duplicate, scale).add_(0.5)

    return Similarities(directions, workspace_bytes, dtype, scale, finish)


def _handed_over(similarities: Similarities, moved: Array, old: Array, new: Array) -> Array:
    """What every token's gain loses when the best of the `moved` tokens rises from `old` to `new`."""
    # max(0, s − old) − max(0, s − new) = clamp(s, old, new) − old
    block = similarities[to_device(moved, similarities.directions)]
    torch.maximum(block, to_device(old, similarities.directions).unsqueeze(1), out=block)
    torch.minimum(block, to_device(new, similarities.directions).unsqueeze(1), out=block)
    return to_host(block.sum(0, dtype=similarities.dtype)) - old.sum(dtype=np.int64)


def _lazy_argmax(
    similarities: Similarities, gain: Array, bound: Array, moved: Array, old: Array, new: Array
) -> int:
    """The token with the largest gain. Gains only fall: the bounds of most never need to be made exact."""
    exact: set[int] = set()
    while True:
        pick = int(bound.argmax())
        if pick in exact or len(moved) == 0:
            return pick
        entries = similarities.entries(pick, moved)
        lost = np.minimum(np.maximum(entries, old), new) - old
        bound[pick] = max(0, gain[pick] - int(np.add.reduce(lost)))
        exact.add(pick)


def _opening(directions: Directions, budget: int, seeds: list[int]) -> list[int]:
    """The seeds, then the most typical tokens until one of the picks has a direction."""
    picks = list(seeds)
    if len(picks) == budget or directions.present[picks].any():
        return picks
    total = torch.stack([directions[part].sum(0).double() for part in directions.parts()]).sum(0)
    total = total.to(directions.dtype)
    typical = np.concatenate([to_host(directions[part] @ total) for part in directions.parts()])
    typical[directions.copies] = -np.inf
    typical[picks] = -np.inf
    while len(picks) < budget:
        picks.append(int(typical.argmax()))
        if directions.present[picks[-1]]:
            break
        typical[picks[-1]] = -np.inf
    return picks


def max_mean(
    directions: Directions, budget: int, seeds: list[int], workspace_bytes: int
) -> tuple[list[int], list[float]]:
    """One stored row per pick, added to the running sum of the cosines to all picks."""
    picks = _opening(directions, budget, seeds)
    gains = [float("inf")] * len(picks)
    if len(picks) == budget:
        return picks, gains
    similarities = Similarities(directions, workspace_bytes, directions.dtype)
    total, count = np.zeros(len(directions)), 0
    pending = [pick for pick in picks if directions.present[pick]]
    while len(picks) < budget:
        for pick in pending:
            total += similarities.row(pick)
            count += 1
        value = np.where(directions.present, 1 - total / count, 0.0)
        value[picks] = -np.inf
        pick = int(value.argmax())
        picks.append(pick)
        gains.append(float(value[pick]))
        pending = [pick] if directions.present[pick] else []
    return picks, gains


def _unmet(directions: Directions) -> Array:
    """Values that know of no pick: 0 for tokens that gain nothing, those without a direction and copies.

    A copy's value is the first's until that is picked, which is no later, and 0 from then on.
    """
    value = np.where(directions.present & ~directions.copies, np.inf, 0.0)
    return value.astype(to_host(directions.inverse_norm[:0]).dtype)


def _distance(cosine: Array) -> Array:
    distance = 1 - cosine
    distance[distance < constants.ZERO_DISTANCE] = 0
    return distance


def max_min(
    directions: Directions, budget: int, seeds: list[int], candidates: int, workspace_bytes: int
) -> tuple[list[int], list[float]]:
    """k-centre in rounds (METHOD §5), and lazily; without a matrix, but for small segments.

    A token's value, its distance to the picks, only falls. So a value that lacks the latest picks is a bound,
    and it is enough to bring those tokens up to date that could still win, the working set: the largest
    values. The best of them are the round's candidates; picks among these stand while they beat the largest
    value outside. Tokens that are never near the top never meet most of the picks, which saves a half or more
    of the tall products.
    """
    picks = _opening(directions, budget, seeds)
    gains = [float("inf")] * len(picks)
    if len(picks) == budget:
        return picks, gains
    present = directions.present
    matrix = Similarities.nbytes(directions, directions.dtype)
    if len(directions) <= min(ONE_ROUND, 3 * budget) and matrix <= workspace_bytes:
        more, distances = _one_round(directions, picks, budget - len(picks), workspace_bytes)
        return picks + more, gains + distances
    if len(directions) <= SMALL and 3 * directions.nbytes <= workspace_bytes:
        more, distances = _in_the_running(directions, picks, budget - len(picks))
        return picks + more, gains + distances
    opening = directions[torch.tensor([p for p in picks if present[p]], device=directions.rows.device)]
    # As columns: a product with rows on the left and columns on the right is the fastest that BLAS has.
    centres = opening.new_zeros(opening.shape[1], budget)
    count = len(opening)
    centres[:, :count] = opening.T
    value = _unmet(directions)
    met = np.zeros(len(value), dtype=np.int64)  # how many of the centres each value knows of

    def refresh(part: Array, unit: Tensor) -> None:
        known = int(met[part].min())
        if known < count:
            nearest = _distance(to_host((unit @ centres[:, _even(known, count)]).amax(1)))
            value[part] = np.fmin(value[part], nearest)  # fmin: what is not a number never lowers anything
            met[part] = count

    for block in directions.parts(WORKING_SET * BLOCK_ROWS):
        refresh(block, directions[block])
    value[picks] = -1
    # A large segment gets more candidates: fewer rounds, each with larger products, which a CPU likes.
    candidates = max(candidates, len(value) // 32)
    # Where half of the segment would be in the working set, all of it may as well: no rows to copy out.
    size = WORKING_SET * candidates if 2 * WORKING_SET * candidates < len(value) else len(value)
    while len(picks) < budget:
        working, outside = largest(value, size)
        if len(working) == len(value):
            refresh(slice(0, len(value)), directions[slice(0, len(value))])
        else:  # those that lack the most picks together
            order = working[met[working].argsort(kind="stable")]
            for start in range(0, len(order), BLOCK_ROWS):
                stale = order[start : start + BLOCK_ROWS]
                if met[stale[0]] < count:
                    refresh(stale, directions[to_device(stale, directions)])
        working = working[value[working] >= outside[0]]
        if len(working) == 0:
            continue
        chosen, beaten = largest(value[working], candidates)
        contenders = working[chosen]
        if beaten[1] >= 0:
            outside = higher(outside, (beaten[0], int(working[beaten[1]])))
        won, distances, joining = _round(
            directions, contenders, value[contenders], outside, budget - len(picks)
        )
        accepted = contenders[won]
        picks += accepted.tolist()
        gains += distances
        value[accepted] = -1
        centres[:, count : count + len(joining)] = joining.T
        count += len(joining)
    return picks, gains


def _one_round(
    directions: Directions, picks: list[int], budget: int, workspace_bytes: int
) -> tuple[list[int], list[float]]:
    """All tokens as candidates: one square product, half of it made, for all of the tall ones."""
    present = directions.present

    def finish(cosine: Tensor) -> Tensor:
        distance = cosine.neg_().add_(1)
        return distance.masked_fill_(distance < constants.ZERO_DISTANCE, 0)

    apart = to_host(Similarities(directions, workspace_bytes, directions.dtype, finish=finish)[slice(None)])
    apart[~present] = np.inf  # a zero token that is picked changes no other value
    value = np.minimum(_unmet(directions), apart[picks].min(0))
    value[picks] = -1
    won, distances = _contest(apart, value, np.arange(len(value)), NOTHING, budget)
    return won.tolist(), distances


def _in_the_running(directions: Directions, picks: list[int], budget: int) -> tuple[list[int], list[float]]:
    """Rounds of few candidates, with one product after each that brings every value up to date.

    Every value of the tokens in the running: several for each pick that is to come, those with the largest.
    The values of the others are bounds from then on; should one of them be the largest, all run again.
    """
    present, whole, values = directions.present, directions[slice(0, len(directions))], _unmet(directions)
    running, unit, value = np.arange(len(values)), whole, values
    # The largest of the bounds, and how many of the centres all of them know of.
    bound, met, several = NOTHING, 0, RUNNING
    opening = np.array([pick for pick in picks if present[pick]])
    centres, count = whole.new_empty(len(opening) + budget, whole.shape[1]), len(opening)
    centres[:count] = directions[to_device(opening, directions)]
    won: list[int] = []
    gains: list[float] = []

    def nearest(unit: Tensor, known: int) -> Array:
        return _distance(to_host((unit @ centres[_even(known, count)].T).amax(1)))

    # fmin throughout: what is not a number never lowers anything
    np.fmin(value, nearest(unit, 0), out=value)
    value[picks] = -1
    while True:
        size = several * (budget - len(won))
        if size < SHRUNK * len(running):
            values[running], met = value, met or count
            stays, left = largest(value, size)
            bound = higher(bound, (left[0], int(running[left[1]])))
            running, value = running[stays], value[stays]
            unit = directions[to_device(running, directions)]
        chosen, outside = largest(value, min(FEW, size))
        if outside[1] >= 0:
            outside = outside[0], int(running[outside[1]])
        contenders = running[chosen]
        accepted, distances, joining = _round(
            directions, contenders, value[chosen], higher(outside, bound), budget - len(won)
        )
        won += contenders[accepted].tolist()
        gains += distances
        if len(won) == budget:
            return won, gains
        value[chosen[accepted]] = -1
        if len(accepted) == 0:
            values[running] = value
            others = np.setdiff1d(np.arange(len(values)), running)
            if met < count:
                again = directions[to_device(others, directions)]
                values[others] = np.fmin(values[others], nearest(again, met))
            running, unit, value = np.arange(len(values)), whole, values
            bound, met, several = NOTHING, 0, 2 * several
        else:
            centres[count : count + len(joining)] = joining
            count += len(joining)
            np.fmin(value, nearest(unit, count - len(joining)), out=value)


def _round(
    directions: Directions, contenders: Array, value: Array, outside: tuple[float, int], budget: int
) -> tuple[Array, list[float], Tensor]:
    """Which contenders are picked, at which distances; and their directions.

    One without a direction is picked when all values are 0, and lowers none.
    """
    unit = directions[to_device(contenders, directions)]
    apart = _distance(to_host(unit @ unit.T))
    won, distances = _contest(apart, value, contenders, outside, budget)
    return won, distances, unit[to_device(won, directions)]


def _even(known: int, count: int) -> slice:
    """The centres from `known` to `count`, and some before: to meet one again changes nothing."""
    return slice(max(0, count - COLUMNS * -(-(count - known) // COLUMNS)), count)


def higher(one: tuple[float, int], other: tuple[float, int]) -> tuple[float, int]:
    """The larger of two values with the places they stand at, on a tie the one that stands first."""
    return max(one, other, key=lambda bound: (bound[0], -bound[1]))


def largest(value: Array, count: int) -> tuple[Array, tuple[float, int]]:
    """Where the `count` largest values stand, ascending, ties to the lowest; and the largest of the rest."""
    if count >= len(value):
        return np.arange(len(value)), NOTHING
    threshold = np.partition(value, len(value) - count)[len(value) - count]
    above = np.flatnonzero(value > threshold)
    level = np.flatnonzero(value == threshold)
    chosen = np.sort(np.concatenate([above, level[: count - len(above)]]))
    if len(above) + len(level) > count:
        return chosen, (float(threshold), int(level[count - len(above)]))
    rest = np.where(value < threshold, value, -np.inf)
    return chosen, (float(rest.max()), int(rest.argmax()))


def _contest(
    apart: Array, value: Array, contenders: Array, outside: tuple[float, int], budget: int
) -> tuple[Array, list[float]]:
    """The textbook greedy among the contenders, while the best beats what stands outside."""
    bound, bound_row = outside
    won: list[int] = []
    gains: list[float] = []
    while len(won) < budget:
        best = int(value.argmax())
        if value[best] < bound or (value[best] == bound and contenders[best] > bound_row):
            break
        won.append(best)
        gains.append(float(value[best]))
        np.fmin(value, apart[best], out=value)
        value[best] = -1
    return np.array(won, dtype=np.int64), gains
