"""A round's candidates and the picks among them: `nominate` of `rounds` (METHOD §5, steps 1 to 3).

One program a segment. Its candidates are the largest of what the groups left: each its four best. No token
that a group holds back beats its fourth, so the largest fourth is what a pick has to beat. Their number is
cut to C by bisection; their C × C distances are one product; then the textbook greedy among them, while the
best beats the bar under the tie rule. The first always does.

Reads C tokens and writes their û, or reads û where it is stored; and 2 bytes a token of the segment at every
step of the bisection. C² · d multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels import common
from trimtok_fast.kernels.common import load_rows, repeated
from trimtok_fast.kernels.rounds_common import (
    ACCEPTED,
    BLOCK_M,
    BLOCK_SCAN,
    CANDIDATES,
    COUNT,
    GROUP,
    KEEP,
    LAST,
    MET,
    NO_KEY,
    STATE,
    distance_of,
    fill,
    key_of,
    position_of,
    value_in,
    write_columns,
)


@triton.jit
def _count_above(best_ptr, entries, bar):
    """How many of the groups' keys are above the bar."""
    number = tl.zeros([], tl.int32)
    for first in range(0, entries, BLOCK_SCAN):
        offs = first + tl.arange(0, BLOCK_SCAN)
        key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
        number += tl.sum((key > bar).to(tl.int32), axis=0)
    return number


@triton.jit
def _choose(best_ptr, entries, limit):
    """Where to cut the groups' keys: the largest, the cut, and the bar that a pick must beat.

    Above the cut stand at most `limit` keys, the candidates; the bar bounds all other tokens.
    """
    top = tl.full([], NO_KEY, tl.int64)
    bar = tl.full([], NO_KEY, tl.int64)
    for first in range(0, entries, BLOCK_SCAN):
        offs = first + tl.arange(0, BLOCK_SCAN)
        key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
        top = tl.maximum(top, tl.max(key, axis=0))
        # The last that a group left beats what the group held back: to equal it is enough.
        bar = tl.maximum(bar, tl.max(tl.where(offs % KEEP == KEEP - 1, key - 1, NO_KEY), axis=0))
    low, high, cut = bar, top, bar
    number = _count_above(best_ptr, entries, cut)
    if number > limit:
        while number != limit:
            cut = low + (high - low) // 2
            number = _count_above(best_ptr, entries, cut)
            if number > limit:
                low = cut
            else:
                high = cut
        for first in range(0, entries, BLOCK_SCAN):
            offs = first + tl.arange(0, BLOCK_SCAN)
            key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
            bar = tl.maximum(bar, tl.max(tl.where(key <= cut, key, NO_KEY), axis=0))
    return top, cut, bar


@triton.jit
def _collect(best_ptr, entries, cut, scratch_ptr, candidates_ptr):
    """Write the positions of the keys above the cut, in ascending order; how many there are."""
    number = tl.zeros([], tl.int32)
    for first in range(0, entries, BLOCK_SCAN):
        offs = first + tl.arange(0, BLOCK_SCAN)
        key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
        above = (key > cut).to(tl.int32)
        place = number + tl.cumsum(above, axis=0) - 1
        tl.store(scratch_ptr + place, position_of(key).to(tl.int32), mask=above > 0)
        number += tl.sum(above, axis=0)
    tl.debug_barrier()
    offs = tl.arange(0, CANDIDATES)
    position = tl.load(scratch_ptr + offs, mask=offs < number, other=LAST)
    # A copy of the same numbers, because one vector cannot be read along both axes.
    other = tl.load(scratch_ptr + offs, mask=offs < number, other=LAST)
    rank = tl.sum((other[None, :] < position[:, None]).to(tl.int32), axis=1)
    tl.store(candidates_ptr + rank, position, mask=offs < number)
    return number


@triton.jit
def _contest(apart_ptr, slots_ptr, gain_ptr, value, position, bar, number, room):
    """The textbook greedy among the candidates, while the best beats the bar; how many picks stand.

    Candidates stand in ascending order, so their slots break ties as their positions would.
    """
    offs = tl.arange(0, CANDIDATES)
    taking_part = offs < number
    # Among equal values, those below the bar's position beat it.
    below = tl.sum((taking_part & (position < position_of(bar))).to(tl.int64), axis=0)
    bar = tl.maximum((bar >> 32 << 32) + (below ^ LAST), NO_KEY)
    key = key_of(tl.where(taking_part, value, -1.0), offs)
    accepted = tl.zeros([], tl.int64)
    best = tl.max(key, axis=0)
    while (best > bar) & (accepted < room):
        slot = position_of(best)
        tl.store(slots_ptr + accepted, slot.to(tl.int32))
        tl.store(gain_ptr + accepted, value_in(best))
        distance = tl.load(apart_ptr + slot * CANDIDATES + offs)
        key = tl.where(offs == slot, NO_KEY, tl.minimum(key, key_of(distance, offs)))
        accepted += 1
        best = tl.max(key, axis=0)
    return accepted


@triton.jit(do_not_specialize=["limit"])
def _nominate_kernel(
    # tensors
    tokens_ptr,  # [M, d]
    origin_ptr,  # [g, d] or None, which is 0
    rows_ptr,  # int64 [N]
    cu_segments_ptr,  # int64 [g + 1]
    budgets_ptr,  # int64 [g]
    cu_budgets_ptr,  # int64 [g + 1]
    cu_tiles_ptr,  # int64 [g + 1]
    inverse_ptr,  # fp32 [N]
    scale_ptr,  # fp32 [N]
    value_ptr,  # fp32 [N]
    best_ptr,  # int64 [tiles, BLOCK_M / GROUP, KEEP] keys
    state_ptr,  # int64 [g, STATE]
    scratch_ptr,  # int32 [g, CANDIDATES]
    candidates_ptr,  # int32 [g, CANDIDATES] positions
    candidate_scale_ptr,  # fp32 [g, CANDIDATES]
    apart_ptr,  # fp32 [g, CANDIDATES, CANDIDATES] distances of all candidates (last axis) to each
    columns_ptr,  # [g, CANDIDATES, d] the candidates' û, rounded for the products; or [1, N, d], all tokens'
    column_scale_ptr,  # fp32 [g, CANDIDATES] of the accepted ones; 0 past them
    slots_ptr,  # int32 [g, CANDIDATES] where the accepted ones stand in the columns, in order
    picks_ptr,  # int64 [total] where they stand in rows
    gain_ptr,  # fp32 [total]
    # sizes
    limit,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    stride_columns_g,
    stride_columns_c,
    # constants
    WIDTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    state_ptr += segment * STATE
    count = tl.load(state_ptr + COUNT)
    met = tl.load(state_ptr + MET)
    budget = tl.load(budgets_ptr + segment)
    if count == budget:
        return
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    scale_ptr += start
    value_ptr += start
    picks_ptr += tl.load(cu_budgets_ptr + segment)
    gain_ptr += tl.load(cu_budgets_ptr + segment)
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    candidates_ptr += segment * CANDIDATES
    candidate_scale_ptr += segment * CANDIDATES
    column_scale_ptr += segment * CANDIDATES
    slots_ptr += segment * CANDIDATES
    apart_ptr += segment * CANDIDATES * CANDIDATES
    if rows_ptr is None:
        columns_ptr += start * stride_columns_c
    else:
        rows_ptr += start
        inverse_ptr += start
        columns_ptr += segment * stride_columns_g
    offs_c = tl.arange(0, CANDIDATES)

    bar = tl.full([], NO_KEY, tl.int64)
    number = tl.zeros([], tl.int64)
    accepted = tl.zeros([], tl.int64)
    pending = count - met
    if pending > 0:
        number = tl.minimum(pending, CANDIDATES)
        pick = tl.load(picks_ptr + met + offs_c, mask=offs_c < number, other=0)
        tl.store(candidates_ptr + offs_c, (pick - start).to(tl.int32), mask=offs_c < number)
    else:
        best_ptr += tl.load(cu_tiles_ptr + segment) * (BLOCK_M // GROUP * KEEP)
        entries = tl.cdiv(size, GROUP) * KEEP
        top, cut, bar = _choose(best_ptr, entries, limit)
        if top >> 32 > 0:
            scratch_ptr += segment * CANDIDATES
            number = _collect(best_ptr, entries, cut, scratch_ptr, candidates_ptr).to(tl.int64)
        else:
            picks_end, gain_end = picks_ptr + count, gain_ptr + count
            count += fill(value_ptr, picks_end, gain_end, start, 0.0, size, budget - count)
            met = count

    if number > 0:
        tl.debug_barrier()
        mask_c = offs_c < number
        position = tl.load(candidates_ptr + offs_c, mask=mask_c, other=0)
        scale = tl.load(scale_ptr + position, mask=mask_c, other=0.0)
        tl.store(candidate_scale_ptr + offs_c, scale)
        if rows_ptr is None:
            place = position.to(tl.int64)
        else:
            place = offs_c.to(tl.int64)
            row = tl.load(rows_ptr + position, mask=mask_c, other=0)
            inverse = tl.load(inverse_ptr + position, mask=mask_c, other=0.0)
            write_columns(
                columns_ptr,
                tokens_ptr,
                origin_ptr,
                row,
                mask_c,
                inverse,
                stride_tokens_m,
                stride_tokens_d,
                stride_origin_d,
                stride_columns_c,
                WIDTH,
                CANDIDATES,
                BLOCK_D,
            )
        tl.debug_barrier()

        if pending > 0:
            tl.store(slots_ptr + offs_c, place.to(tl.int32), mask=mask_c)
            tl.store(column_scale_ptr + offs_c, tl.load(candidate_scale_ptr + offs_c))
            accepted = number
            met += number
        else:
            product = tl.zeros([CANDIDATES, CANDIDATES], tl.float32)
            for first in range(0, WIDTH, BLOCK_D):
                column = load_rows(columns_ptr, place, mask_c, first, stride_columns_c, 1, WIDTH, BLOCK_D)
                product = tl.dot(column, tl.trans(column), product, input_precision=INPUT_PRECISION)
            # Read along either axis, and only now: what lives through a product takes its registers.
            scale = tl.load(candidate_scale_ptr + offs_c)
            other = tl.load(candidate_scale_ptr + offs_c)
            distance = distance_of(product, scale, other)
            # Transposed: a pick reads its distances in one row.
            tl.store(apart_ptr + offs_c[None, :] * CANDIDATES + offs_c[:, None], distance)
            tl.debug_barrier()
            position = tl.load(candidates_ptr + offs_c, mask=mask_c, other=0)
            value = tl.load(value_ptr + position, mask=mask_c, other=-1.0)
            room = budget - count
            gain_ptr += count
            accepted = _contest(apart_ptr, slots_ptr, gain_ptr, value, position, bar, number, room)
            tl.debug_barrier()
            mask_a = offs_c < accepted
            slot = tl.load(slots_ptr + offs_c, mask=mask_a, other=0)
            pick = tl.load(candidates_ptr + slot, mask=mask_a, other=0)
            scale = tl.load(candidate_scale_ptr + slot, mask=mask_a, other=0.0)
            tl.store(column_scale_ptr + offs_c, scale)
            if rows_ptr is None:
                tl.debug_barrier()
                tl.store(slots_ptr + offs_c, pick, mask=mask_a)
            tl.store(picks_ptr + count + offs_c, start + pick, mask=mask_a)
            tl.store(value_ptr + pick, tl.full([CANDIDATES], -1.0, tl.float32), mask=mask_a)
            count += accepted
            met = count
    if count == budget:
        accepted = tl.zeros([], tl.int64)
    tl.store(state_ptr + COUNT, count)
    tl.store(state_ptr + MET, met)
    tl.store(state_ptr + ACCEPTED, accepted)


def nominate_launcher(
    *,
    scratch: Tensor,
    candidates: Tensor,
    candidate_scale: Tensor,
    apart: Tensor,
    limit: int,
    budgets: Tensor,
    cu_budgets: Tensor,
    picks: Tensor,
    gain: Tensor,
    best: Tensor,
    columns: Tensor,
    column_scale: Tensor,
    slots: Tensor,
    tokens: Tensor,
    origin: Tensor | None,
    rows: Tensor,
    cu_segments: Tensor,
    cu_tiles: Tensor,
    inverse: Tensor,
    scale: Tensor,
    value: Tensor,
    state: Tensor,
    config: dict[str, int],
    input_precision: str,
) -> Callable[[], None]:
    """What launches a round's nomination in all segments; the kernel's signature says what each tensor is."""
    # fp32 takes more registers where products read those: a third stage would take some from it.
    narrow = columns.dtype.itemsize == 4 and not common.multiplies_from_shared_memory()
    return repeated(
        _nominate_kernel,
        (len(budgets),),
        scratch_ptr=scratch,
        candidates_ptr=candidates,
        candidate_scale_ptr=candidate_scale,
        apart_ptr=apart,
        limit=limit,
        budgets_ptr=budgets,
        cu_budgets_ptr=cu_budgets,
        picks_ptr=picks,
        gain_ptr=gain,
        best_ptr=best,
        columns_ptr=columns,
        column_scale_ptr=column_scale,
        slots_ptr=slots,
        tokens_ptr=tokens,
        origin_ptr=origin,
        rows_ptr=rows,
        cu_segments_ptr=cu_segments,
        cu_tiles_ptr=cu_tiles,
        inverse_ptr=inverse,
        scale_ptr=scale,
        value_ptr=value,
        state_ptr=state,
        stride_tokens_m=tokens.stride(0),
        stride_tokens_d=tokens.stride(1),
        stride_origin_g=0 if origin is None else origin.stride(0),
        stride_origin_d=0 if origin is None else origin.stride(1),
        stride_columns_g=columns.stride(0),
        stride_columns_c=columns.stride(1),
        WIDTH=tokens.shape[1],
        INPUT_PRECISION=input_precision,
        enable_fp_fusion=False,
        **{**config, "num_stages": 2 if narrow else 3},
    )
