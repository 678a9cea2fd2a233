"""`max_min` without a matrix (METHOD §5): nominate the largest values, absorb the picks made among them.

    v_i = min over the picked s of distance(i, s)             next pick = argmax v_i, ties to the lowest row
    a round: the C largest v; their C × C distances; the textbook greedy among them, while the best beats all
    that stands outside; then v_i = min(v_i, distance to the accepted picks) for every token

Who does what. A segment's positions 0 … m − 1 are its rows in ascending order. They fall into G = ⌈m / 16⌉
groups: position p belongs to group p mod G, so that neighbours, which resemble each other, are spread. A tile
is 4 consecutive groups.

- `opening`: norms, the initial values, the seeds and the first pick.
- `nominate`, once a round: a segment's candidates, and the picks among them.
- `absorb`, once a round: all tokens against the accepted picks.
- `finish`: whatever the planned rounds have left.

Bytes and operations stand with each. What counts is `absorb`: m · d multiply-adds for every accepted pick,
their number rounded up to 16, and the segment's tokens read once or twice a round. Where there is room for
them, `opening` stores all û, rounded for the products, and the rounds read those; else they make them again.

Ties go to the lowest position. Zero tokens, and tokens that are not finite, have value 0 and change no other
value. When no value is above 0, all values are 0 for good: the rest goes out by position at once. A cosine is
the product of the rounded û over their own norms, which are products of the same kind: duplicates are at 0.

Limits: 2³¹ − 2 tokens a segment, whose position shares 64 bits with its value; 128 candidates a round, whose
product fills one program's registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from trimtok_fast.kernels import common
from trimtok_fast.kernels.absorb import absorb_launcher
from trimtok_fast.kernels.common import Traffic
from trimtok_fast.kernels.finish import finish_launch
from trimtok_fast.kernels.nominate import nominate_launcher
from trimtok_fast.kernels.opening import opening_launch
from trimtok_fast.kernels.rounds_common import BLOCK_M, CANDIDATES


def launch_config(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes, warps and stages, by the tokens' width and type alone."""
    # An fp32 product keeps three copies of what it multiplies in registers.
    widest = 64 if dtype.itemsize == 2 else 16
    # As many threads on AMD, where a warp has 64: more would load less than 128 bits each.
    warps = 4 if common.platform() == "hip" else 8
    return dict(BLOCK_D=min(widest, max(16, triton.next_power_of_2(width))), num_warps=warps, num_stages=2)


def tile_count(rows: int, segments: int, bound: int) -> int:
    """How many tiles `rows` rows in `segments` segments of at most `bound` can have."""
    return min(rows // BLOCK_M.value + segments, triton.cdiv(bound, BLOCK_M.value) * segments)


def planned_rounds(total: int, bound: int, seeds: int, limit: int) -> int:
    """How many rounds to launch: enough for ordinary tokens, about twice what photographs need.

    A round whose candidates all stand accepts `limit` picks; most rounds accept half of that or more. Not
    enough rounds costs time in the finisher; too many cost two launches each that find nothing to do (some
    2 to 5 microseconds on a GPU, an estimate).

    Args:
        total: an upper bound of the sum of the budgets.
        bound: an upper bound of a segment's tokens.
        seeds: how many there are in all segments.
        limit: the candidates of a round.
    """
    picks = min(total, bound)
    opening = triton.cdiv(max(1, min(seeds, bound)), CANDIDATES.value)
    return opening + min(picks, 16 + 2 * triton.cdiv(picks, limit))


def stores(rows: int, d: int, dtype: torch.dtype, workspace_bytes: int) -> bool:
    """Whether û of all rows is stored, rounded for the products: read as often as tokens, but ready made.

    Each element is rounded as it would be elsewhere: no pick hangs on it.
    """
    return rows * d * dtype.itemsize <= workspace_bytes


def traffic(
    sizes: Sequence[int], budgets: Sequence[int], d: int, dtype: torch.dtype, limit: int, *, stored: bool
) -> Traffic:
    """What a selection with given norms and one seed takes, at least: in rounds that accept all candidates.

    The opening goes over the tokens and 24 bytes beside each: row, norms and value. So do all rounds but the
    last, with 2 bytes of keys. Where û is stored the opening writes it, and rounds read that, and neither row
    nor norm of the token; else each round writes its candidates' and reads them again.
    """
    beside = 14 if stored else 26
    moved = products = 0
    for size, budget in zip(sizes, budgets, strict=True):
        rounds = triton.cdiv(budget, limit)
        columns = (size if stored else 2 * rounds * limit) * d * dtype.itemsize
        if rounds > 0:
            moved += size * (rounds * d * dtype.itemsize + 24 + beside * (rounds - 1)) + columns
        products += (triton.cdiv(budget, 16) * 16 + BLOCK_M.value) * size * d + rounds * limit * limit * d
    return Traffic(moved, products=products)


def rounds_launch(
    picks: Tensor,
    gain: Tensor,
    *,
    tokens: Tensor,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    cu_budgets: Tensor,
    seeds: Tensor,
    cu_seeds: Tensor,
    cu_tiles: Tensor,
    tile_segment: Tensor,
    inverse: Tensor,
    scale: Tensor,
    value: Tensor,
    part: Tensor,
    total: Tensor,
    typical: Tensor,
    best: Tensor,
    state: Tensor,
    scratch: Tensor,
    candidates: Tensor,
    candidate_scale: Tensor,
    apart: Tensor,
    columns: Tensor,
    stored: bool,
    column_scale: Tensor,
    slots: Tensor,
    limit: int,
    rounds: int,
    input_precision: str,
) -> None:
    """Launch the whole selection.

    Shapes and types stand at the kernels. Tensors other than tokens, origin and inverse_norm are contiguous.
    `columns` has room for û of a round's candidates, [g, CANDIDATES, d]; if `stored`, of all rows, [1, N, d].
    `limit` is the number of a round's candidates, 1 to `CANDIDATES`; `rounds` how many to launch.
    """
    shared: dict[str, Any] = dict(
        cu_segments=cu_segments,
        cu_tiles=cu_tiles,
        inverse=inverse,
        scale=scale,
        value=value,
        state=state,
        config=launch_config(tokens.shape[1], tokens.dtype),
        input_precision=input_precision,
    )
    given: dict[str, Any] = dict(tokens=tokens, origin=origin, rows=rows)
    read: dict[str, Any] = dict(tokens=columns[0], origin=None, rows=None) if stored else given
    chosen: dict[str, Any] = dict(budgets=budgets, cu_budgets=cu_budgets, picks=picks, gain=gain)
    met: dict[str, Any] = dict(best=best, columns=columns, column_scale=column_scale, slots=slots)
    opening_launch(
        inverse_norm=inverse_norm,
        seeds=seeds,
        cu_seeds=cu_seeds,
        tile_segment=tile_segment,
        part=part,
        total=total,
        typical=typical,
        unit=columns[0] if stored else None,
        dtype=columns.dtype,
        **chosen,
        **given,
        **shared,
    )
    nominate = nominate_launcher(
        scratch=scratch,
        candidates=candidates,
        candidate_scale=candidate_scale,
        apart=apart,
        limit=limit,
        **chosen,
        **met,
        **read,
        **shared,
    )
    absorb = absorb_launcher(tile_segment=tile_segment, **met, **read, **shared)
    for _ in range(rounds):
        nominate()
        absorb()
    finish_launch(**chosen, **met, **read, **shared)
