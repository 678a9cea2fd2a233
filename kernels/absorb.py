"""All tokens against the accepted picks: `absorb` of `rounds` (METHOD §5, step 4).

One program a tile. v_i = min(v_i, distance to the accepted picks), a tall product with the minimum in its
epilogue: nothing is stored but v, and the four best of each group for the next `nominate`.

Reads the segment's tokens once a round, twice for 33 to 48 and 65 to 96 accepted picks (blocks of columns are
powers of 2), and 26 bytes a token besides; of stored û 14. m · d multiply-adds for every accepted pick, their
number rounded up to 16 (97 to 112: to 128), on matrix units.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels import common
from trimtok_fast.kernels.common import load_rows, repeated
from trimtok_fast.kernels.directions import direction_block
from trimtok_fast.kernels.rounds_common import (
    ACCEPTED,
    BLOCK_M,
    CANDIDATES,
    GROUP,
    KEEP,
    NO_KEY,
    STATE,
    distance_of,
    key_of,
    positions_of,
)


@triton.jit
def lower(
    nearest,
    first_column,
    accepted,
    tokens_ptr,
    origin_ptr,
    scale_ptr,
    row,
    position,
    mask,
    inverse,
    columns_ptr,
    column_scale_ptr,
    slots_ptr,
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_d,
    stride_columns_c,
    WIDTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The minimum of `nearest` and the distances to COLUMNS accepted picks.

    An `inverse` of `None`: the tokens are û, rounded.
    """
    offs_c = first_column + tl.arange(0, COLUMNS)
    slot = tl.load(slots_ptr + offs_c, mask=offs_c < accepted, other=0).to(tl.int64)
    product = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        if inverse is None:
            rounded = load_rows(
                tokens_ptr, row, mask, first, stride_tokens_m, stride_tokens_d, WIDTH, BLOCK_D
            )
        else:
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
            rounded = unit.to(columns_ptr.dtype.element_ty)
        column = load_rows(columns_ptr, slot, None, first, stride_columns_c, 1, WIDTH, BLOCK_D)
        product = tl.dot(rounded, tl.trans(column), product, input_precision=INPUT_PRECISION)
    # Read only now: what lives through a product takes its registers.
    scale = tl.load(scale_ptr + position, mask=mask, other=0.0)
    column_scale = tl.load(column_scale_ptr + offs_c)
    return tl.minimum(nearest, tl.min(distance_of(product, scale, column_scale), axis=1))


@triton.jit
def leave_best(best_ptr, tile, value, position):
    """Each group's best keys, the largest first."""
    key = tl.reshape(key_of(value, position), [BLOCK_M // GROUP, GROUP])
    group = tl.arange(0, BLOCK_M // GROUP) + tile * (BLOCK_M // GROUP)
    for place in tl.static_range(KEEP):
        best = tl.max(key, axis=1)
        tl.store(best_ptr + group * KEEP + place, best)
        key = tl.where(key == best[:, None], NO_KEY, key)


@triton.jit(do_not_specialize=["segments"])
def _absorb_kernel(
    # tensors, as in `_nominate_kernel`
    tokens_ptr,
    origin_ptr,
    rows_ptr,
    cu_segments_ptr,
    cu_tiles_ptr,
    tile_segment_ptr,  # int64 [tiles], g where there is no tile
    inverse_ptr,
    scale_ptr,
    value_ptr,
    best_ptr,
    state_ptr,
    columns_ptr,
    column_scale_ptr,
    slots_ptr,
    # sizes
    segments,
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
    program = tl.program_id(0).to(tl.int64)
    segment = tl.load(tile_segment_ptr + program)
    if segment == segments:
        return
    accepted = tl.load(state_ptr + segment * STATE + ACCEPTED)
    if accepted == 0:
        return
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    tile = program - tl.load(cu_tiles_ptr + segment)
    position, mask = positions_of(tile, size)
    if rows_ptr is None:
        tokens_ptr += start * stride_tokens_m
        columns_ptr += start * stride_columns_c
        row, inverse = position.to(tl.int64), None
    else:
        columns_ptr += segment * stride_columns_g
        row = tl.load(rows_ptr + start + position, mask=mask, other=0)
        inverse = tl.load(inverse_ptr + start + position, mask=mask, other=0.0)
    scale_ptr += start
    value_ptr += start
    value = tl.load(value_ptr + position, mask=mask, other=-1.0)
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    column_scale_ptr += segment * CANDIDATES
    slots_ptr += segment * CANDIDATES

    # The accepted columns, rounded up to 16, as blocks of 128, 64, 32 and 16: two of them at most, because 97
    # to 112, which would take three, go as 128.
    done = tl.zeros([], tl.int64)
    for halving in tl.static_range(0, 4):
        if accepted - done > (CANDIDATES >> halving) - (32 if halving == 0 else 16):
            value = lower(
                value,
                done,
                accepted,
                tokens_ptr,
                origin_ptr,
                scale_ptr,
                row,
                position,
                mask,
                inverse,
                columns_ptr,
                column_scale_ptr,
                slots_ptr,
                stride_tokens_m,
                stride_tokens_d,
                stride_origin_d,
                stride_columns_c,
                WIDTH,
                INPUT_PRECISION,
                CANDIDATES >> halving,
                BLOCK_D,
            )
            done += CANDIDATES >> halving
    tl.store(value_ptr + position, value, mask=mask)

    best_ptr += tl.load(cu_tiles_ptr + segment) * (BLOCK_M // GROUP * KEEP)
    leave_best(best_ptr, tile, tl.where(mask, value, -1.0), position)


def absorb_launcher(
    *,
    tile_segment: Tensor,
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
    """What launches all tokens of all segments against the picks of one round."""
    halves, block_d = columns.dtype.itemsize == 2, config["BLOCK_D"]
    if common.multiplies_from_shared_memory():
        # A round waits for memory: as much of it is under way as there is room.
        options = dict(BLOCK_D=block_d if halves else 2 * block_d, num_warps=4, num_stages=4 if halves else 3)
        options |= common.registers(255)
    else:
        # Half the channels at a time: the widest product takes half the registers, and two programs share a
        # multiprocessor where they fit (sm_120: they do not).
        options = {**config, "BLOCK_D": max(16, block_d // 2), "num_stages": common.stages(4, columns.dtype)}
        options |= common.registers(128 if halves and common.capability() < 120 else 255)
    return repeated(
        _absorb_kernel,
        (len(tile_segment),),
        tile_segment_ptr=tile_segment,
        segments=len(cu_segments) - 1,
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
        **options,
    )
