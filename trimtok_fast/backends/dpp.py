"""Greedy MAP of a determinantal point process in rounds, without its kernel (METHOD §6).

The published loop (Chen, Zhang and Zhou, 2018) keeps the Cholesky factor of the picks' kernel, a row a pick:

    c_i = (L_si − Σ_t c_t(s) c_t(i)) / √left_s,    left_i −= c_i²           for the pick s and all tokens i

and needs row s of the kernel L and a product with all earlier rows at every pick. Here, as in `max_min`: what
is left of a token only falls, so a value that lacks the latest picks is a bound. The tokens with the largest
bounds are brought up to date with all picks they lack at once, by a product and a triangular solution; among
the best of them the textbook runs on a small kernel, while its best beats the largest value outside.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.backends.directions import BLOCK_ROWS, Array, Directions, to_device, to_host
from trimtok_fast.backends.greedy import largest

#: A round brings this many times its candidates up to date.
WORKING_SET = 4
#: A round has this many candidates for each that the last one accepted, within bounds.
ACCEPTED = 6
#: The value of what is picked: what is left of a token is never below 0.
PICKED = -1.0


def dpp(
    vectors: Directions, relevance: Tensor, budget: int, candidates: int
) -> tuple[list[int], list[float]]:
    """Places of the picks, and what was left of each.

    Args:
        vectors: r û of the segment's tokens, in the order in which ties are broken.
        relevance: r of each, not negative.
        budget: picks.
        candidates: of a round, at most.
    """
    # A copy of an earlier token has nothing of its own: of equal tokens, the first has the largest r.
    whole = np.where(vectors.present & ~vectors.copies, to_host(relevance.double()) ** 2, 0.0)
    spent = np.maximum(whole * constants.SPENT_SHARE, whole.max() * constants.SPENT)
    left = whole.copy()
    factor = relevance.new_empty(len(left), budget)
    met = np.zeros(len(left), dtype=np.int64)  # how many columns of the factor each token has
    # Where tokens are gathered, and the picks that they are to meet.
    block = factor.new_empty(max(BLOCK_ROWS, min(candidates, len(left))), vectors.tokens.shape[1])
    others = factor.new_empty(min(BLOCK_ROWS, budget), vectors.tokens.shape[1])

    def refresh(part: Array) -> None:
        known, count = int(met[part].min()), len(picks)
        if known == count:
            return
        at = to_device(part, vectors)
        tokens = vectors.load(at, block[: len(part)])
        inverse_norm = vectors.inverse_norm.index_select(0, at)
        own = factor[:, :count].index_select(0, at)
        for start in range(known, count, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, count)
            lacking = to_device(np.array(picks[start:stop]), vectors)
            lower = factor[:, :stop].index_select(0, lacking)
            # Few rows on the left of many columns: the other way round, BLAS takes up to four times as long.
            rest = vectors.load(lacking, others[: stop - start]) @ tokens.T
            rest.mul_(inverse_norm).mul_(vectors.inverse_norm.index_select(0, lacking).unsqueeze(1))
            rest.addmm_(lower[:, :start], own[:, :start].T, alpha=-1)
            own[:, start:stop] = torch.linalg.solve_triangular(lower[:, start:], rest, upper=False).T
        factor[:, known:count].index_copy_(0, at, own[:, known:])
        met[part], left[part] = count, _cut(whole[part] - to_host(own.square_().sum(1).double()), spent[part])

    picks: list[int] = []
    gains: list[float] = []
    size, some = min(WORKING_SET * candidates, len(left)), candidates
    while len(picks) < budget and left.max() > 0:
        working, outside = largest(left, size)
        working = working[left[working] > 0]
        stale = working[met[working].argsort(kind="stable")]  # those that lack the most picks together
        for start in range(0, len(stale), BLOCK_ROWS):
            refresh(stale[start : start + BLOCK_ROWS])
        chosen, beaten = largest(left[working], some)
        contenders = working[chosen]
        if beaten[1] >= 0:
            outside = max(
                outside, (beaten[0], int(working[beaten[1]])), key=lambda bound: (bound[0], -bound[1])
            )
        at, count = to_device(contenders, vectors), len(picks)
        known = factor[:, :count].index_select(0, at)
        unit = vectors.load(at, block[: len(at)]).mul_(vectors.inverse_norm.index_select(0, at)[:, None])
        kernel = to_host(torch.addmm(unit @ unit.T, known, known.T, alpha=-1).double())
        won, rows = _contest(kernel, left, spent, contenders, outside, budget - len(picks))
        gains += [float(row[place] ** 2) for row, place in zip(rows, won, strict=True)]
        picks += contenders[won].tolist()
        new = to_device(rows.T, vectors).to(factor.dtype)
        factor[:, count : len(picks)].index_copy_(0, at, new)
        met[contenders] = len(picks)
        # Where few were accepted, half of the candidates would have done.
        some = min(candidates, max((candidates + 1) // 2, ACCEPTED * len(won)))
    rest = np.flatnonzero(left != PICKED)[: budget - len(picks)].tolist()
    return picks + rest, gains + [0.0] * len(rest)


def _cut(left: Array, spent: Array) -> Array:
    """What is left, and 0 where that is rounding."""
    return np.where(left > spent, left, 0.0)


def _contest(
    kernel: Array, left: Array, spent: Array, contenders: Array, outside: tuple[float, int], budget: int
) -> tuple[Array, Array]:
    """The textbook greedy among the contenders, while the best beats what stands outside.

    Returns:
        The places of those who won, and the factor's row of each. Brings `left` of the contenders up to date.
    """
    bound, bound_row = outside
    value, floor = left[contenders], spent[contenders]
    won: list[int] = []
    rows = np.empty((min(budget, len(value)), len(value)))
    while len(won) < len(rows):
        best = int(value.argmax())
        if value[best] <= 0 or value[best] < bound or (value[best] == bound and contenders[best] > bound_row):
            break
        done = len(won)
        root = value[best] ** 0.5
        row = rows[done]
        row[:] = kernel[best] - rows[:done, best] @ rows[:done]
        row /= root
        row[best] = root
        won.append(best)
        value -= row * row  # which leaves the pick itself nothing but rounding
        value *= value > floor
    value[won] = PICKED
    left[contenders] = value
    return np.array(won, dtype=np.int64), rows[: len(won)]
