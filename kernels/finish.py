"""What the planned rounds leave: `finish` of `rounds`.

One program a segment: the textbook, until the budget is met. Right whatever is left, but one program reads
all tokens of the segment for every pick.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels import common
from trimtok_fast.kernels.absorb import leave_best, lower
from trimtok_fast.kernels.rounds_common import (
    BLOCK_M,
    BLOCK_SCAN,
    CANDIDATES,
    COUNT,
    FEWEST,
    GROUP,
    KEEP,
    MET,
    NO_KEY,
    STATE,
    fill,
    position_of,
    positions_of,
    value_in,
    write_columns,
)


@triton.jit
def _finish_kernel(
    # tensors, as in `_nominate_kernel`
    tokens_ptr,
    origin_ptr,
    rows_ptr,
    cu_segments_ptr,
    budgets_ptr,
    cu_budgets_ptr,
    cu_tiles_ptr,
    inverse_ptr,
    scale_ptr,
    value_ptr,
    best_ptr,
    state_ptr,
    columns_ptr,
    column_scale_ptr,
    slots_ptr,
    picks_ptr,
    gain_ptr,
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
    count = tl.load(state_ptr + segment * STATE + COUNT)
    met = tl.load(state_ptr + segment * STATE + MET)
    budget = tl.load(budgets_ptr + segment)
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    first_tile = tl.load(cu_tiles_ptr + segment)
    tiles = tl.load(cu_tiles_ptr + segment + 1) - first_tile
    scale_ptr += start
    value_ptr += start
    best_ptr += first_tile * (BLOCK_M // GROUP * KEEP)
    picks_ptr += tl.load(cu_budgets_ptr + segment)
    gain_ptr += tl.load(cu_budgets_ptr + segment)
    if rows_ptr is None:
        tokens_ptr += start * stride_tokens_m
        columns_ptr += start * stride_columns_c
    else:
        rows_ptr += start
        inverse_ptr += start
        columns_ptr += segment * stride_columns_g
    column_scale_ptr += segment * CANDIDATES
    slots_ptr += segment * CANDIDATES
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    offs_c = tl.arange(0, FEWEST)

    while count < budget:
        pick = tl.zeros([], tl.int64)
        if met < count:
            pick = tl.load(picks_ptr + met) - start
        else:
            entries = tl.cdiv(size, GROUP) * KEEP
            top = tl.full([], NO_KEY, tl.int64)
            for first in range(0, entries, BLOCK_SCAN):
                offs = first + tl.arange(0, BLOCK_SCAN)
                key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
                top = tl.maximum(top, tl.max(key, axis=0))
            if top >> 32 > 0:
                pick = position_of(top)
                tl.store(picks_ptr + count, start + pick)
                tl.store(gain_ptr + count, value_in(top))
                tl.store(value_ptr + pick, -1.0)
                count += 1
            else:
                fill(value_ptr, picks_ptr + count, gain_ptr + count, start, 0.0, size, budget - count)
                count = budget
        met += 1
        if count < budget:
            if rows_ptr is None:
                tl.store(slots_ptr, pick.to(tl.int32))
            else:
                row = tl.load(rows_ptr + pick) + tl.zeros([FEWEST], tl.int64)
                inverse = tl.load(inverse_ptr + pick) + tl.zeros([FEWEST], tl.float32)
                write_columns(
                    columns_ptr,
                    tokens_ptr,
                    origin_ptr,
                    row,
                    offs_c == 0,
                    inverse,
                    stride_tokens_m,
                    stride_tokens_d,
                    stride_origin_d,
                    stride_columns_c,
                    WIDTH,
                    FEWEST,
                    4 * BLOCK_D,  # few rows: each thread still loads 128 bits
                )
                tl.store(slots_ptr, 0)
            tl.store(column_scale_ptr + offs_c, tl.where(offs_c == 0, tl.load(scale_ptr + pick), 0.0))
            tl.debug_barrier()
            for tile in range(0, tiles):
                position, mask_m = positions_of(tile, size)
                value = tl.load(value_ptr + position, mask=mask_m, other=-1.0)
                if rows_ptr is None:
                    row_m, inverse_m = position.to(tl.int64), None
                else:
                    row_m = tl.load(rows_ptr + position, mask=mask_m, other=0)
                    inverse_m = tl.load(inverse_ptr + position, mask=mask_m, other=0.0)
                value = lower(
                    value,
                    0,
                    1,
                    tokens_ptr,
                    origin_ptr,
                    scale_ptr,
                    row_m,
                    position,
                    mask_m,
                    inverse_m,
                    columns_ptr,
                    column_scale_ptr,
                    slots_ptr,
                    stride_tokens_m,
                    stride_tokens_d,
                    stride_origin_d,
                    stride_columns_c,
                    WIDTH,
                    INPUT_PRECISION,
                    FEWEST,
                    BLOCK_D,
                )
                tl.store(value_ptr + position, value, mask=mask_m)
                leave_best(best_ptr, tile, tl.where(mask_m, value, -1.0), position)
            tl.debug_barrier()


def finish_launch(
    *,
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
) -> None:
    """Whatever all segments still want."""
    _finish_kernel[(len(budgets),)](
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
        **{**config, "num_stages": common.stages(config["num_stages"], columns.dtype)},
        **common.registers(255),
    )
