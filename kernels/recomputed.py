"""Greedy in segments whose similarities do not fit the workspace: they are computed at each use.

The objectives and the state are those of `greedy`. What is stored is as long as a segment: rows, norms,
state, best, the list of moved tokens. Five kernels; a program has a segment and, but for `pick`, a tile of
BLOCK_M of its tokens:

    norms       the tile's rows of `tokens`, inverse norms, scales
    sums        the tile's column sums, which the state starts with
    pick        one program a segment: the pick, by the state
    meet        the tile's similarities to the pick. `coverage` raises best and lists what moves, in any
                order; the others update the state
    hand_over   `coverage` only: takes out of the tile's gains what the listed tokens no longer give

The last three are launched once for every pick that a budget may hold; what has met its budget exits at once.
A similarity is a product of the same two operands in the same order wherever it is used, and gains are whole
numbers: they stay exact, and no order of programs changes a bit. (The one atomic counts the listed tokens.)

Multiply-adds, all on matrix units: m² d to open; per pick 16 m d, for `coverage` another |Δ| m d with |Δ|
rounded up to BLOCK_M. A tile reads the tokens that it is multiplied with, mostly from the cache.
Ties go to the lowest row; zeros and NaN as in `directions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels import common
from trimtok_fast.kernels.common import Traffic, repeated
from trimtok_fast.kernels.directions import direction_block, inverse_length, inverse_norms, launch_config
from trimtok_fast.kernels.greedy import TAKEN, absorb, largest_streamed, list_moved, value_of
from trimtok_fast.kernels.similarity import cosine_of, units_of

#: Columns of the product with a pick: the fewest that every matrix unit takes.
ONE = tl.constexpr(16)


@triton.jit
def _directed(token_ptr, inverse_ptr, scale_ptr, place, mask):
    """Of some places in a segment: rows of `tokens`, inverse norms, scales."""
    return (
        tl.load(token_ptr + place, mask=mask, other=0),
        tl.load(inverse_ptr + place, mask=mask, other=0.0),
        tl.load(scale_ptr + place, mask=mask, other=0.0),
    )


@triton.jit
def _product(
    tokens_ptr,
    origin_ptr,
    # rows of `tokens`, which of them are any, inverse norms: of the product's rows and of its columns
    row_token,
    row_mask,
    row_inverse,
    column_token,
    column_mask,
    column_inverse,
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_d,
    D: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Products of the directions of some tokens with those of others, [BLOCK_M, BLOCK_N]."""
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in range(0, D, BLOCK_D):
        left = direction_block(
            tokens_ptr,
            origin_ptr,
            row_token,
            row_mask,
            row_inverse,
            begin,
            stride_tokens_m,
            stride_tokens_d,
            stride_origin_d,
            D,
            DTYPE,
            BLOCK_D,
        )
        right = direction_block(
            tokens_ptr,
            origin_ptr,
            column_token,
            column_mask,
            column_inverse,
            begin,
            stride_tokens_m,
            stride_tokens_d,
            stride_origin_d,
            D,
            DTYPE,
            BLOCK_D,
        )
        product = tl.dot(left, tl.trans(right), product, input_precision=INPUT_PRECISION)
    return product


@triton.jit
def _segment_of(cu_segments_ptr, budgets_ptr, segment, above, step, tile, BLOCK_M: tl.constexpr):
    """A segment's first row and its size, and whether this tile of it has anything to do for this pick."""
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    wanted = (size > above) & (tile * BLOCK_M < size) & (step < tl.load(budgets_ptr + segment))
    return start, size, wanted


@triton.jit(do_not_specialize=["first", "above"])
def _norms_kernel(
    # out [slots, slot_rows]: int64, fp32, fp32
    token_ptr,
    inverse_ptr,
    scale_ptr,
    # tensors: tokens [M, D], origin [g, D], inverse_norm fp32 [M], rows int64 [N]; int64 [g + 1], [g]
    tokens_ptr,
    origin_ptr,
    inverse_norm_ptr,
    rows_ptr,
    cu_segments_ptr,
    budgets_ptr,
    # sizes: the first slot's segment, rows of a slot; only segments above a size are done
    first,
    slot_rows,
    above,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    stride_inverse_norm,
    # compiled in
    D: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1).to(tl.int64)
    start, size, wanted = _segment_of(cu_segments_ptr, budgets_ptr, first + slot, above, 0, tile, BLOCK_M)
    if not wanted:
        return
    if origin_ptr is not None:
        origin_ptr += (first + slot) * stride_origin_g
    own = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = own < size
    token = tl.load(rows_ptr + start + own, mask=mask_m, other=0)
    inverse = inverse_norms(
        tokens_ptr,
        origin_ptr,
        inverse_norm_ptr,
        token,
        mask_m,
        stride_tokens_m,
        stride_tokens_d,
        stride_origin_d,
        stride_inverse_norm,
        D,
        BLOCK_M,
        BLOCK_D,
    )
    square = _product(
        tokens_ptr,
        origin_ptr,
        token,
        mask_m,
        inverse,
        token,
        mask_m,
        inverse,
        stride_tokens_m,
        stride_tokens_d,
        stride_origin_d,
        D,
        DTYPE,
        INPUT_PRECISION,
        BLOCK_M,
        BLOCK_M,
        BLOCK_D,
    )
    place = slot * slot_rows + own
    tl.store(token_ptr + place, token)
    tl.store(inverse_ptr + place, inverse)
    tl.store(scale_ptr + place, inverse_length(square, BLOCK_M))


@triton.jit(do_not_specialize=["first", "above"])
def _sums_kernel(
    # out [slots, slot_rows]: int64 or fp32; int32 for `coverage`
    state_ptr,
    best_ptr,
    # workspace [slots, slot_rows]: int64, fp32, fp32
    token_ptr,
    inverse_ptr,
    scale_ptr,
    # tensors: tokens [M, D], origin [g, D]; int64 [g + 1], [g]
    tokens_ptr,
    origin_ptr,
    cu_segments_ptr,
    budgets_ptr,
    # sizes, as in `_norms_kernel`
    first,
    slot_rows,
    above,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    # compiled in
    OBJECTIVE: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1).to(tl.int64)
    _, size, wanted = _segment_of(cu_segments_ptr, budgets_ptr, first + slot, above, 0, tile, BLOCK_M)
    if not wanted:
        return
    if origin_ptr is not None:
        origin_ptr += (first + slot) * stride_origin_g
    token_ptr += slot * slot_rows
    inverse_ptr += slot * slot_rows
    scale_ptr += slot * slot_rows
    offs_m = tl.arange(0, BLOCK_M)
    own = tile * BLOCK_M + offs_m
    mask_m = own < size
    token, inverse, scale = _directed(token_ptr, inverse_ptr, scale_ptr, own, mask_m)
    total = tl.zeros([BLOCK_M], tl.int64)
    for row_tile in range(0, tl.cdiv(size, BLOCK_M)):
        row = row_tile * BLOCK_M + offs_m
        row_token, row_inverse, row_scale = _directed(token_ptr, inverse_ptr, scale_ptr, row, row < size)
        product = _product(
            tokens_ptr,
            origin_ptr,
            row_token,
            row < size,
            row_inverse,
            token,
            mask_m,
            inverse,
            stride_tokens_m,
            stride_tokens_d,
            stride_origin_d,
            D,
            DTYPE,
            INPUT_PRECISION,
            BLOCK_M,
            BLOCK_M,
            BLOCK_D,
        )
        cosine = cosine_of(product, row_scale, scale, OBJECTIVE == "coverage")
        total += tl.sum(units_of(cosine, UNIT), 0).to(tl.int64)
    place = slot * slot_rows + own
    if OBJECTIVE == "coverage":
        tl.store(state_ptr + place, tl.where(mask_m, total, TAKEN))
        tl.store(best_ptr + place, tl.zeros([BLOCK_M], tl.int32))
    else:
        tl.store(state_ptr + place, tl.where(mask_m, total.to(tl.float32) / UNIT, float("-inf")))


@triton.jit(do_not_specialize=["first", "above", "step"])
def _pick_kernel(
    # out: int64 [total], fp32 [total]
    indices_ptr,
    gain_ptr,
    # workspace: state [slots, slot_rows]; the pick and how many have moved, int32 [slots, 2]; picks with a
    # direction before the last, and whether that has one, fp32 [slots, 2]
    state_ptr,
    last_ptr,
    count_ptr,
    # workspace [slots, slot_rows]: int64, fp32
    token_ptr,
    scale_ptr,
    # int64: [g + 1], [g], where a segment's picks begin [g], places in their segments [seeds], [g + 1]
    cu_segments_ptr,
    budgets_ptr,
    offsets_ptr,
    seeds_ptr,
    cu_seeds_ptr,
    # sizes, as in `_norms_kernel`, and the number of the pick
    first,
    slot_rows,
    above,
    step,
    # compiled in
    OBJECTIVE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_SCAN: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    segment = first + slot
    _, size, wanted = _segment_of(cu_segments_ptr, budgets_ptr, segment, above, step, 0, BLOCK_M)
    if not wanted:
        return
    token_ptr += slot * slot_rows
    scale_ptr += slot * slot_rows
    state_ptr += slot * slot_rows
    last_ptr += slot * 2
    count_ptr += slot * 2
    count = tl.load(count_ptr) + tl.load(count_ptr + 1)
    first_seed = tl.load(cu_seeds_ptr + segment)
    value = float("inf")
    if step < tl.load(cu_seeds_ptr + segment + 1) - first_seed:
        pick = tl.load(seeds_ptr + first_seed + step).to(tl.int32)
    else:
        padded = tl.cdiv(size, BLOCK_M) * BLOCK_M
        top, pick = largest_streamed(state_ptr, scale_ptr, padded, count, OBJECTIVE, BLOCK_SCAN)
        value = value_of(top, count, OBJECTIVE, UNIT)
    out = tl.load(offsets_ptr + segment) + step
    tl.store(indices_ptr + out, tl.load(token_ptr + pick))
    tl.store(gain_ptr + out, value)
    tl.debug_barrier()  # other threads may still compare the state, or read the counts
    tl.store(state_ptr + pick, TAKEN if OBJECTIVE == "coverage" else float("-inf"))
    tl.store(last_ptr, pick)
    tl.store(last_ptr + 1, 0)
    tl.store(count_ptr, count)
    tl.store(count_ptr + 1, (tl.load(scale_ptr + pick) > 0).to(tl.float32))


@triton.jit(do_not_specialize=["first", "above", "step"])
def _meet_kernel(
    # workspace, as in `_pick_kernel`: [slots, slot_rows], [slots, 2], [slots, 2]; for `coverage` int32
    # [slots, slot_rows] and [slots, 3, slot_rows]
    state_ptr,
    last_ptr,
    count_ptr,
    best_ptr,
    moved_ptr,
    # workspace [slots, slot_rows]: int64, fp32, fp32
    token_ptr,
    inverse_ptr,
    scale_ptr,
    # tensors: tokens [M, D], origin [g, D]; int64 [g + 1], [g]
    tokens_ptr,
    origin_ptr,
    cu_segments_ptr,
    budgets_ptr,
    # sizes, as in `_pick_kernel`
    first,
    slot_rows,
    above,
    step,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    # compiled in
    OBJECTIVE: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1).to(tl.int64)
    _, size, wanted = _segment_of(cu_segments_ptr, budgets_ptr, first + slot, above, step, tile, BLOCK_M)
    if not wanted:
        return
    if origin_ptr is not None:
        origin_ptr += (first + slot) * stride_origin_g
    token_ptr += slot * slot_rows
    inverse_ptr += slot * slot_rows
    scale_ptr += slot * slot_rows
    state_ptr += slot * slot_rows
    last_ptr += slot * 2
    count_ptr += slot * 2
    own = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = own < size
    token, inverse, scale = _directed(token_ptr, inverse_ptr, scale_ptr, own, mask_m)
    offs_n = tl.arange(0, ONE)
    alone = offs_n == 0
    pick = tl.load(last_ptr) + tl.zeros([ONE], tl.int32)
    pick_token, pick_inverse, pick_scale = _directed(token_ptr, inverse_ptr, scale_ptr, pick, alone)
    product = _product(
        tokens_ptr,
        origin_ptr,
        pick_token,
        alone,
        pick_inverse,
        token,
        mask_m,
        inverse,
        stride_tokens_m,
        stride_tokens_d,
        stride_origin_d,
        D,
        DTYPE,
        INPUT_PRECISION,
        ONE,
        BLOCK_M,
        BLOCK_D,
    )
    # The pick along the first axis: sm_100 has no layout for a prefix sum along a product's rows.
    cosine = cosine_of(product, pick_scale, scale, OBJECTIVE == "coverage")
    cosine = tl.sum(tl.where(alone[:, None], cosine, 0.0), 0)
    if OBJECTIVE == "coverage":
        best_ptr += slot * slot_rows
        similarity = units_of(cosine, UNIT)
        best = tl.load(best_ptr + own)
        moving = tl.sum((similarity > best).to(tl.int32), 0)
        if moving > 0:
            number = tl.atomic_add(last_ptr + 1, moving)
            list_moved(moved_ptr + slot * 3 * slot_rows, number, slot_rows, own, best, similarity)
            tl.store(best_ptr + own, tl.maximum(best, similarity))
    elif tl.load(count_ptr + 1) > 0:
        state = tl.load(state_ptr + own)
        tl.store(state_ptr + own, absorb(state, cosine, scale > 0, tl.load(count_ptr), OBJECTIVE))


@triton.jit(do_not_specialize=["first", "above", "step"])
def _hand_over_kernel(
    # workspace, as in `_meet_kernel`: int64 [slots, slot_rows], [slots, 2], [slots, 3, slot_rows]
    state_ptr,
    last_ptr,
    moved_ptr,
    # workspace [slots, slot_rows]: int64, fp32, fp32
    token_ptr,
    inverse_ptr,
    scale_ptr,
    # tensors: tokens [M, D], origin [g, D]; int64 [g + 1], [g]
    tokens_ptr,
    origin_ptr,
    cu_segments_ptr,
    budgets_ptr,
    # sizes, as in `_pick_kernel`
    first,
    slot_rows,
    above,
    step,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    # compiled in
    UNIT: tl.constexpr,
    D: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1).to(tl.int64)
    _, size, wanted = _segment_of(cu_segments_ptr, budgets_ptr, first + slot, above, step, tile, BLOCK_M)
    if not wanted:
        return
    if origin_ptr is not None:
        origin_ptr += (first + slot) * stride_origin_g
    token_ptr += slot * slot_rows
    inverse_ptr += slot * slot_rows
    scale_ptr += slot * slot_rows
    state_ptr += slot * slot_rows
    moved_ptr += slot * 3 * slot_rows
    offs_m = tl.arange(0, BLOCK_M)
    own = tile * BLOCK_M + offs_m
    mask_m = own < size
    token, inverse, scale = _directed(token_ptr, inverse_ptr, scale_ptr, own, mask_m)
    number = tl.load(last_ptr + slot * 2 + 1)
    gain = tl.load(state_ptr + own)
    for begin in range(0, number, BLOCK_M):
        listed = begin + offs_m < number
        place = moved_ptr + begin + offs_m
        row = tl.load(place, mask=listed, other=0)
        old = tl.load(place + slot_rows, mask=listed, other=0)[:, None]
        new = tl.load(place + 2 * slot_rows, mask=listed, other=0)[:, None]
        row_token, row_inverse, row_scale = _directed(token_ptr, inverse_ptr, scale_ptr, row, listed)
        product = _product(
            tokens_ptr,
            origin_ptr,
            row_token,
            listed,
            row_inverse,
            token,
            mask_m,
            inverse,
            stride_tokens_m,
            stride_tokens_d,
            stride_origin_d,
            D,
            DTYPE,
            INPUT_PRECISION,
            BLOCK_M,
            BLOCK_M,
            BLOCK_D,
        )
        entry = units_of(cosine_of(product, row_scale, scale, True), UNIT)
        handed = tl.minimum(tl.maximum(entry, old), new) - old
        gain -= tl.sum(handed, 0).to(tl.int64)
    tl.store(state_ptr + own, gain)


def traffic(
    sizes: Sequence[int], budgets: Sequence[int], d: int, dtype: torch.dtype, objective: str
) -> Traffic:
    """What picking takes, at least: with `coverage`, every token's best moves once."""
    moved = products = 0
    for size, budget in zip(sizes, budgets, strict=True):
        reads, columns = 2 + budget, size + ONE.value * budget
        if objective == "coverage":
            reads, columns = reads + budget, columns + size
        moved += reads * size * d * dtype.itemsize
        products += columns * size * d
    return Traffic(moved, products=products)


def recomputed_launch(
    indices: Tensor,
    gain: Tensor,
    *,
    token: Tensor,
    inverse: Tensor,
    scale: Tensor,
    state: Tensor,
    best: Tensor | None,
    moved: Tensor | None,
    last: Tensor,
    count: Tensor,
    tokens: Tensor,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    offsets: Tensor,
    seeds: Tensor,
    cu_seeds: Tensor,
    first: int,
    above: int,
    steps: int,
    objective: str,
    unit: float,
    dtype: torch.dtype,
    input_precision: str,
) -> None:
    """Pick up to `steps` times in segments of more than `above` tokens, from segment `first` on."""
    slots, slot_rows = token.shape
    config = launch_config(dtype)
    tiles = (slot_rows // config.block_m, slots)
    per_segment: dict[str, Any] = dict(
        cu_segments_ptr=cu_segments,
        budgets_ptr=budgets,
        first=first,
        slot_rows=slot_rows,
        above=above,
        BLOCK_M=config.block_m,
        num_stages=common.stages(config.num_stages, dtype),
        enable_fp_fusion=False,
    )
    multiplied: dict[str, Any] = dict(
        token_ptr=token,
        inverse_ptr=inverse,
        scale_ptr=scale,
        tokens_ptr=tokens,
        origin_ptr=origin,
        stride_tokens_m=tokens.stride(0),
        stride_tokens_d=tokens.stride(1),
        stride_origin_g=0 if origin is None else origin.stride(0),
        stride_origin_d=0 if origin is None else origin.stride(1),
        D=tokens.shape[1],
        DTYPE=tl.float32 if dtype == torch.float32 else tl.float16,
        INPUT_PRECISION=input_precision,
        BLOCK_D=config.block_d,
        # The products' operands pass through registers, of which AMD gives a thread of 8 warps too few.
        num_warps=4 if common.platform() == "hip" else 8,
        **common.registers(255),
        **per_segment,
    )
    chosen_by: dict[str, Any] = dict(OBJECTIVE=objective, UNIT=unit)
    _norms_kernel[tiles](
        inverse_norm_ptr=inverse_norm,
        rows_ptr=rows,
        stride_inverse_norm=0 if inverse_norm is None else inverse_norm.stride(0),
        **multiplied,
    )
    fewer = common.stages(2, dtype)  # with a third stage, ptxas spills on sm_80
    _sums_kernel[tiles](state_ptr=state, best_ptr=best, **chosen_by, **{**multiplied, "num_stages": fewer})
    pick = repeated(
        _pick_kernel,
        (slots,),
        indices_ptr=indices,
        gain_ptr=gain,
        state_ptr=state,
        last_ptr=last,
        count_ptr=count,
        token_ptr=token,
        scale_ptr=scale,
        offsets_ptr=offsets,
        seeds_ptr=seeds,
        cu_seeds_ptr=cu_seeds,
        BLOCK_SCAN=1024,
        num_warps=4,
        **chosen_by,
        **per_segment,
    )
    meet = repeated(
        _meet_kernel,
        tiles,
        state_ptr=state,
        last_ptr=last,
        count_ptr=count,
        best_ptr=best,
        moved_ptr=moved,
        **chosen_by,
        **multiplied,
    )
    hand_over = repeated(
        _hand_over_kernel, tiles, state_ptr=state, last_ptr=last, moved_ptr=moved, UNIT=unit, **multiplied
    )
    for step in range(steps):
        pick(step=step)
        meet(step=step)
        if objective == "coverage":
            hand_over(step=step)
