"""The opening of `rounds`: norms and first values, the most typical token, the seeds and the first pick.

- `prepare`: one program a tile. û's norms, the initial values, the tile's part of Σ û.
- `total`: one program a segment and 128 channels. Adds those parts up in their order.
- `typical`: one program a tile. The tile's most typical token; nothing where a seed has a direction.
- `open`: one program a segment. The seeds, then the first pick.

Reads the tokens twice, once more without given norms, and writes û where it is to be stored; 64 · m · d
multiply-adds in `prepare`. How typical a token is, û · Σ û, may be negative, and is 0 for a zero token: those
go first that beat the best of the rest.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels.common import registers
from trimtok_fast.kernels.directions import direction_block, inverse_length, inverse_norms
from trimtok_fast.kernels.rounds_common import (
    ACCEPTED,
    BLOCK_M,
    COUNT,
    LAST,
    MET,
    STATE,
    fill,
    position_of,
    positions_of,
)

#: Below every key of a typical token, which may be negative.
NO_TYPICAL = tl.constexpr(-(2**63))

TRITON_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit(do_not_specialize=["segments"])
def _prepare_kernel(
    # tensors
    tokens_ptr,  # [M, d]
    origin_ptr,  # [g, d] or None, which is 0
    given_ptr,  # [M] 1 / ‖x − origin‖, or None
    rows_ptr,  # int64 [N], ascending in each segment
    cu_segments_ptr,  # int64 [g + 1]
    budgets_ptr,  # int64 [g]
    cu_tiles_ptr,  # int64 [g + 1]
    tile_segment_ptr,  # int64 [tiles], g where there is no tile
    inverse_ptr,  # fp32 [N] 1 / ‖x − origin‖, 0 without a direction
    scale_ptr,  # fp32 [N] 1 / ‖û as rounded for the products‖, 0 without a direction
    value_ptr,  # fp32 [N]
    part_ptr,  # fp32 [tiles, d] the tiles' sums of û
    unit_ptr,  # [N, d] û, rounded for the products, or None: then they are made again in every round
    # sizes
    segments,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    stride_given_m,
    stride_unit_m,
    stride_part_t,
    # constants
    WIDTH: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    segment = tl.load(tile_segment_ptr + program)
    if segment == segments:
        return
    if tl.load(budgets_ptr + segment) == 0:
        return
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    position, mask = positions_of(program - tl.load(cu_tiles_ptr + segment), size)
    row = tl.load(rows_ptr + start + position, mask=mask, other=0)
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    offs_d = tl.arange(0, BLOCK_D)

    inverse = inverse_norms(
        tokens_ptr,
        origin_ptr,
        given_ptr,
        row,
        mask,
        stride_tokens_m,
        stride_tokens_d,
        stride_origin_d,
        stride_given_m,
        WIDTH,
        BLOCK_M,
        BLOCK_D,
    )
    product = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        unit = direction_block(
            tokens_ptr,
            origin_ptr,
            row,
            mask,
            inverse,
            first,
            stride_tokens_m,
            stride_tokens_d,
            stride_origin_d,
            WIDTH,
            tl.float32,
            BLOCK_D,
        )
        tl.store(
            part_ptr + program * stride_part_t + first + offs_d,
            tl.sum(unit, axis=0),
            mask=first + offs_d < WIDTH,
        )
        rounded = unit.to(DOT_DTYPE)
        if unit_ptr is not None:
            pointers = unit_ptr + (start + position)[:, None] * stride_unit_m + (first + offs_d)[None, :]
            tl.store(pointers, rounded, mask=mask[:, None] & (first + offs_d < WIDTH)[None, :])
        product = tl.dot(rounded, tl.trans(rounded), product, input_precision=INPUT_PRECISION)
    scale = inverse_length(product, BLOCK_M)
    tl.store(inverse_ptr + start + position, inverse, mask=mask)
    tl.store(scale_ptr + start + position, scale, mask=mask)
    tl.store(value_ptr + start + position, tl.where(scale > 0, float("inf"), 0.0), mask=mask)


@triton.jit
def _is_open(segment, budgets_ptr, cu_seeds_ptr, seeds_ptr, scale_ptr):
    """Whether the segment wants a pick, and no seed has a direction."""
    first = tl.load(cu_seeds_ptr + segment)
    end = tl.load(cu_seeds_ptr + segment + 1)
    is_open = tl.load(budgets_ptr + segment) > end - first
    for block in range(first, end, BLOCK_M):
        offs = block + tl.arange(0, BLOCK_M)
        seed = tl.load(seeds_ptr + offs, mask=offs < end, other=0)
        scale = tl.load(scale_ptr + seed, mask=offs < end, other=0.0)
        is_open = is_open & (tl.max(scale, axis=0) == 0)
    return is_open


@triton.jit
def _total_kernel(
    # tensors
    budgets_ptr,  # int64 [g]
    cu_seeds_ptr,  # int64 [g + 1]
    seeds_ptr,  # int64 [seeds] where they stand in rows
    cu_tiles_ptr,  # int64 [g + 1]
    scale_ptr,  # fp32 [N]
    part_ptr,  # fp32 [tiles, d]
    total_ptr,  # fp32 [g, d] Σ û
    # strides
    stride_part_t,
    stride_total_g,
    # constants
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    if not _is_open(segment, budgets_ptr, cu_seeds_ptr, seeds_ptr, scale_ptr):
        return
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    end = tl.load(cu_tiles_ptr + segment + 1)
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(tl.load(cu_tiles_ptr + segment), end, BLOCK_T):
        offs_t = first + tl.arange(0, BLOCK_T)
        pointers = part_ptr + offs_t[:, None] * stride_part_t + offs_d[None, :]
        part = tl.load(pointers, mask=(offs_t < end)[:, None] & (offs_d < WIDTH)[None, :], other=0.0)
        total += tl.sum(part, axis=0)
    tl.store(total_ptr + segment * stride_total_g + offs_d, total, mask=offs_d < WIDTH)


@triton.jit(do_not_specialize=["segments"])
def _typical_kernel(
    # tensors
    tokens_ptr,  # [M, d]
    origin_ptr,  # [g, d] or None, which is 0
    rows_ptr,  # int64 [N]
    cu_segments_ptr,  # int64 [g + 1]
    budgets_ptr,  # int64 [g]
    cu_seeds_ptr,  # int64 [g + 1]
    seeds_ptr,  # int64 [seeds]
    cu_tiles_ptr,  # int64 [g + 1]
    tile_segment_ptr,  # int64 [tiles]
    inverse_ptr,  # fp32 [N]
    scale_ptr,  # fp32 [N]
    total_ptr,  # fp32 [g, d]
    typical_ptr,  # int64 [tiles] key of the most typical token that has a direction
    # sizes
    segments,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    stride_total_g,
    # constants
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    segment = tl.load(tile_segment_ptr + program)
    if segment == segments:
        return
    if not _is_open(segment, budgets_ptr, cu_seeds_ptr, seeds_ptr, scale_ptr):
        return
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    position, mask = positions_of(program - tl.load(cu_tiles_ptr + segment), size)
    row = tl.load(rows_ptr + start + position, mask=mask, other=0)
    inverse = tl.load(inverse_ptr + start + position, mask=mask, other=0.0)
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    offs_d = tl.arange(0, BLOCK_D)
    typical = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        unit = direction_block(
            tokens_ptr,
            origin_ptr,
            row,
            mask,
            inverse,
            first,
            stride_tokens_m,
            stride_tokens_d,
            stride_origin_d,
            WIDTH,
            tl.float32,
            BLOCK_D,
        )
        pointers = total_ptr + segment * stride_total_g + first + offs_d
        total = tl.load(pointers, mask=first + offs_d < WIDTH, other=0.0)
        typical += tl.sum(unit * total[None, :], axis=1)
    # Adding 0 makes 0 of -0; flipping the lower bits of what is negative makes whole numbers in its order.
    bits = (typical + 0.0).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    key = tl.where(inverse > 0, (bits << 32) | (position ^ LAST), NO_TYPICAL)
    tl.store(typical_ptr + program, tl.max(key, axis=0))


@triton.jit
def _open_kernel(
    # tensors
    cu_segments_ptr,  # int64 [g + 1]
    budgets_ptr,  # int64 [g]
    cu_budgets_ptr,  # int64 [g + 1]
    cu_seeds_ptr,  # int64 [g + 1]
    seeds_ptr,  # int64 [seeds]
    cu_tiles_ptr,  # int64 [g + 1]
    scale_ptr,  # fp32 [N]
    typical_ptr,  # int64 [tiles]
    value_ptr,  # fp32 [N]
    state_ptr,  # int64 [g, STATE]
    picks_ptr,  # int64 [total] where they stand in rows
    gain_ptr,  # fp32 [total]
):
    segment = tl.program_id(0).to(tl.int64)
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    budget = tl.load(budgets_ptr + segment)
    value_ptr += start
    picks_ptr += tl.load(cu_budgets_ptr + segment)
    gain_ptr += tl.load(cu_budgets_ptr + segment)
    first_seed = tl.load(cu_seeds_ptr + segment)
    # Whose budget is 0 is left alone, with seeds too.
    count = tl.minimum(tl.load(cu_seeds_ptr + segment + 1) - first_seed, budget)
    for first in range(0, count, BLOCK_M):
        offs = first + tl.arange(0, BLOCK_M)
        seed = tl.load(seeds_ptr + first_seed + offs, mask=offs < count, other=0)
        tl.store(picks_ptr + offs, seed, mask=offs < count)
        tl.store(gain_ptr + offs, tl.full([BLOCK_M], float("inf"), tl.float32), mask=offs < count)
        tl.store(value_ptr + seed - start, tl.full([BLOCK_M], -1.0, tl.float32), mask=offs < count)
    met = tl.zeros([], tl.int64)

    if _is_open(segment, budgets_ptr, cu_seeds_ptr, seeds_ptr, scale_ptr):
        best = tl.full([], NO_TYPICAL, tl.int64)
        end = tl.load(cu_tiles_ptr + segment + 1)
        for first in range(tl.load(cu_tiles_ptr + segment), end, BLOCK_M):
            offs = first + tl.arange(0, BLOCK_M)
            key = tl.load(typical_ptr + offs, mask=offs < end, other=NO_TYPICAL)
            best = tl.maximum(best, tl.max(key, axis=0))
        # How typical a zero token is, is 0: those go first that beat the best of the others.
        limit = tl.where(best >> 32 > 0, 0, tl.where(best >> 32 == 0, position_of(best), size))
        tl.debug_barrier()
        picks_end, gain_end = picks_ptr + count, gain_ptr + count
        count += fill(value_ptr, picks_end, gain_end, start, float("inf"), limit, budget - count)
        if (count < budget) & (best > NO_TYPICAL):
            tl.store(picks_ptr + count, start + position_of(best))
            tl.store(gain_ptr + count, float("inf"))
            tl.store(value_ptr + position_of(best), -1.0)
            met = count
            count += 1
    tl.store(state_ptr + segment * STATE + COUNT, count)
    tl.store(state_ptr + segment * STATE + MET, met)
    tl.store(state_ptr + segment * STATE + ACCEPTED, 0)


def opening_launch(
    *,
    inverse_norm: Tensor | None,
    seeds: Tensor,
    cu_seeds: Tensor,
    tile_segment: Tensor,
    part: Tensor,
    total: Tensor,
    typical: Tensor,
    unit: Tensor | None,
    dtype: torch.dtype,
    budgets: Tensor,
    cu_budgets: Tensor,
    picks: Tensor,
    gain: Tensor,
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
) -> None:
    """Open all segments; directions are rounded to `dtype`. The kernels say what each tensor is."""
    segments, width = len(budgets), tokens.shape[1]
    of_tokens: dict[str, Any] = dict(
        tokens_ptr=tokens,
        origin_ptr=origin,
        rows_ptr=rows,
        tile_segment_ptr=tile_segment,
        inverse_ptr=inverse,
        segments=segments,
        stride_tokens_m=tokens.stride(0),
        stride_tokens_d=tokens.stride(1),
        stride_origin_g=0 if origin is None else origin.stride(0),
        stride_origin_d=0 if origin is None else origin.stride(1),
        WIDTH=width,
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )
    of_segments: dict[str, Any] = dict(
        cu_segments_ptr=cu_segments,
        cu_tiles_ptr=cu_tiles,
        scale_ptr=scale,
        enable_fp_fusion=False,
    )
    opened: dict[str, Any] = dict(budgets_ptr=budgets, cu_seeds_ptr=cu_seeds, seeds_ptr=seeds)
    _prepare_kernel[(len(tile_segment),)](
        given_ptr=inverse_norm,
        budgets_ptr=budgets,
        value_ptr=value,
        part_ptr=part,
        unit_ptr=unit,
        stride_given_m=0 if inverse_norm is None else inverse_norm.stride(0),
        stride_unit_m=0 if unit is None else unit.stride(0),
        stride_part_t=part.stride(0),
        DOT_DTYPE=TRITON_DTYPE[dtype],
        INPUT_PRECISION=input_precision,
        # Half the channels at a time: this product and the sums of û share the registers.
        BLOCK_D=max(16, config["BLOCK_D"] // 2),
        **registers(255),
        **of_tokens,
        **of_segments,
    )
    _total_kernel[(segments, triton.cdiv(width, 128))](
        cu_tiles_ptr=cu_tiles,
        scale_ptr=scale,
        part_ptr=part,
        total_ptr=total,
        stride_part_t=part.stride(0),
        stride_total_g=total.stride(0),
        WIDTH=width,
        BLOCK_T=16,
        BLOCK_D=128,
        num_warps=4,
        enable_fp_fusion=False,
        **opened,
    )
    _typical_kernel[(len(tile_segment),)](
        total_ptr=total,
        typical_ptr=typical,
        stride_total_g=total.stride(0),
        BLOCK_D=config["BLOCK_D"],
        **opened,
        **of_tokens,
        **of_segments,
    )
    _open_kernel[(segments,)](
        typical_ptr=typical,
        value_ptr=value,
        cu_budgets_ptr=cu_budgets,
        state_ptr=state,
        picks_ptr=picks,
        gain_ptr=gain,
        num_warps=8,
        **opened,
        **of_segments,
    )
