"""Similarities of whole segments into a bounded workspace, with their column sums in the same pass.

    cosine(i, j) = û_i · û_j, 1 between duplicates              METHOD, shapes
    sim⁺(i, j) = max(0, cosine(i, j)) in whole units            METHOD §3, §5
    sum_j = Σ_i of what is stored                               coverage's first gains; û_j · Σ û otherwise

One program a segment and pair of tiles of BLOCK_M tokens, on and above the diagonal only; what lies below is
stored mirrored, so the matrix is symmetric to the bit. The operands are the slots that `directions` filled:
no masks, 128-bit loads, matrix units. Above the diagonal, a segment's last tiles are as wide as what is left
of it, rounded up to 16.

The sums are whole numbers (UNIT for 1), so they depend on no order. A program leaves the sums over its own
rows and over its own columns in two places of `partial` that are its alone; whoever needs a sum adds up one
number a tile. No atomics, and nothing has to be zeroed before.

A segment of m tokens takes t = ⌈m / BLOCK_M⌉ tiles: up to t (t + 1) / 2 · BLOCK_M² · d multiply-adds (at most
0.6 m² d from m = 576 on: 0.59 at 577, 0.55 at 784, 0.53 at 1,024), reads t (t + 1) · BLOCK_M · d directions,
mostly from the cache, and writes m² entries and t · m sums. Zero tokens, and the rows that round m up to 16,
have similarity 0 to all.
Limits: sums in units of 2^22 for up to 2^20 tokens, and in a tile below 2^31.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.kernels.common import Traffic, load_rows, stages
from trimtok_fast.kernels.directions import launch_config, product_warps

DUPLICATE = tl.constexpr(1 - constants.ZERO_DISTANCE)
#: A segment's matrix is as large as the segment, rounded up to this: the narrowest block of a product.
PAD = tl.constexpr(16)


@triton.jit
def cosine_of(product, row_scale, column_scale, COVERAGE: tl.constexpr):
    """Cosines (sim⁺ for `coverage`) from products of directions."""
    cosine = product * (row_scale[:, None] * column_scale[None, :])
    return tl.where(cosine > DUPLICATE, 1.0, tl.maximum(cosine, 0.0 if COVERAGE else -1.0))


@triton.jit
def units_of(cosine, UNIT: tl.constexpr):
    """The nearest whole numbers of units."""
    return tl.floor(cosine * UNIT + 0.5).to(tl.int32)


@triton.jit
def _block(
    total,
    directions_ptr,
    scale_ptr,
    matrix_ptr,
    partial_ptr,
    width,
    padded,
    row_tile,
    column_tile,
    first,
    UNIT: tl.constexpr,
    COVERAGE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_N columns of a tile, from `first` on, and their mirror image. Returns the rows' sums so far."""
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    rows = row_tile * BLOCK_M + offs_m.to(tl.int64)
    columns = first + offs_n.to(tl.int64)
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in range(0, width, BLOCK_D):
        left = load_rows(directions_ptr, rows, None, begin, width, 1, None, BLOCK_D)
        right = load_rows(directions_ptr, columns, None, begin, width, 1, None, BLOCK_D)
        product = tl.dot(left, tl.trans(right), product, input_precision=INPUT_PRECISION)
    cosine = cosine_of(product, tl.load(scale_ptr + rows), tl.load(scale_ptr + columns), COVERAGE)
    if BLOCK_M == BLOCK_N:  # noqa: SIM102 - known when it is compiled, unlike the next
        if row_tile == column_tile:
            # The two halves of a product may differ in the last bit: one is made a mirror image too.
            cosine = tl.where(offs_m[:, None] >= offs_n[None, :], cosine, tl.trans(cosine))
    units = units_of(cosine, UNIT)
    stored = (units if COVERAGE else cosine).to(matrix_ptr.dtype.element_ty)
    inside = (rows < padded)[:, None] & (columns < padded)[None, :]
    tl.store(matrix_ptr + rows[:, None] * padded + columns[None, :], stored, mask=inside)
    if row_tile != column_tile:
        tl.store(partial_ptr + row_tile * padded + columns, tl.sum(units, 0))
        tl.store(matrix_ptr + columns[:, None] * padded + rows[None, :], tl.trans(stored))
    return total + tl.sum(units, 1)


@triton.jit
def similarity_tile(
    # where the segment's slot begins: [rows, width], fp32 [rows], [padded, padded], int32 [tiles, padded]
    directions_ptr,
    scale_ptr,
    matrix_ptr,
    partial_ptr,
    # columns of a direction, rows of the segment's matrix, and which tile of it: row_tile <= column_tile
    width,
    padded,
    row_tile,
    column_tile,
    # compiled in
    UNIT: tl.constexpr,
    COVERAGE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of a segment's matrix and its mirror image."""
    total = tl.zeros([BLOCK_M], tl.int32)
    first = column_tile * BLOCK_M
    rest = tl.where(row_tile == column_tile, BLOCK_M, tl.minimum(padded - first, BLOCK_M))
    # The last columns of a segment, a multiple of PAD, come as blocks of 64, 32 and 16.
    for halving in tl.static_range(0, 3):
        if rest >= BLOCK_M >> halving:
            total = _block(
                total,
                directions_ptr,
                scale_ptr,
                matrix_ptr,
                partial_ptr,
                width,
                padded,
                row_tile,
                column_tile,
                first,
                UNIT,
                COVERAGE,
                INPUT_PRECISION,
                BLOCK_M,
                BLOCK_M >> halving,
                BLOCK_D,
            )
            first += BLOCK_M >> halving
            rest -= BLOCK_M >> halving
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(partial_ptr + column_tile * padded + rows, total, mask=rows < padded)


@triton.jit(do_not_specialize=["first", "above"])
def _similarity_kernel(
    # out: int16, int32 or fp32 [slots, slot_rows²], int32 [slots, slot_rows / BLOCK_M · slot_rows]
    matrix_ptr,
    partial_ptr,
    # tensors: [slots, slot_rows, WIDTH], fp32 [slots, slot_rows], int64 [g + 1]
    directions_ptr,
    scale_ptr,
    cu_segments_ptr,
    # sizes: the group's first segment, rows of a slot, columns of a direction; segments of up to `above`
    # tokens are left out
    first,
    slot_rows,
    width,
    above,
    # compiled in
    UNIT: tl.constexpr,
    COVERAGE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    index = tl.program_id(0)
    slot = tl.program_id(1).to(tl.int64)
    segment = first + slot
    size = tl.load(cu_segments_ptr + segment + 1) - tl.load(cu_segments_ptr + segment)
    tiles = tl.cdiv(size, BLOCK_M)
    if (size <= above) | (size > slot_rows) | (index >= tiles * (tiles + 1) // 2):
        return
    # Tiles of a triangle, column by column: the root finds the column up to rounding.
    column_tile = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    column_tile = tl.where(column_tile * (column_tile + 1) // 2 > index, column_tile - 1, column_tile)
    column_tile = tl.where((column_tile + 1) * (column_tile + 2) // 2 <= index, column_tile + 1, column_tile)
    similarity_tile(
        directions_ptr + slot * slot_rows * width,
        scale_ptr + slot * slot_rows,
        matrix_ptr + slot * slot_rows * slot_rows,
        partial_ptr + slot * (slot_rows // BLOCK_M) * slot_rows,
        width,
        tl.cdiv(size, PAD) * PAD,
        index - column_tile * (column_tile + 1) // 2,
        column_tile,
        UNIT,
        COVERAGE,
        INPUT_PRECISION,
        BLOCK_M,
        BLOCK_D,
    )


def traffic(sizes: Sequence[int], width: int, dtype: torch.dtype, entry: torch.dtype) -> Traffic:
    """What the similarities of segments of these sizes take, from directions of this width and type."""
    block = launch_config(dtype).block_m
    moved = products = 0
    for size in sizes:
        tiles, padded = triton.cdiv(size, block), triton.cdiv(size, PAD.value) * PAD.value
        moved += tiles * block * (width * dtype.itemsize + 4) + padded * (padded * entry.itemsize + 4 * tiles)
        # The last column of tiles is as wide as what is left, but on the diagonal.
        before = max(0, tiles - 1)
        whole = before * (before + 1) // 2 + (tiles > 0)
        products += (whole * block + before * (padded - before * block)) * block * width
    return Traffic(moved, products=products)


def similarity_launch(
    matrix: Tensor,
    partial: Tensor,
    *,
    directions: Tensor,
    scale: Tensor,
    cu_segments: Tensor,
    first: int,
    above: int,
    unit: float,
    coverage: bool,
    input_precision: str,
) -> None:
    """Fill the matrices and sums of the slots that `directions_launch` has filled."""
    slots, slot_rows, width = directions.shape
    config = launch_config(directions.dtype)
    tiles = slot_rows // config.block_m
    _similarity_kernel[(tiles * (tiles + 1) // 2, slots)](
        matrix,
        partial,
        directions,
        scale,
        cu_segments,
        first,
        slot_rows,
        width,
        above,
        UNIT=unit,
        COVERAGE=coverage,
        INPUT_PRECISION=input_precision,
        BLOCK_M=config.block_m,
        BLOCK_D=config.block_d,
        num_warps=product_warps(directions.dtype),
        num_stages=stages(config.num_stages, directions.dtype),
        enable_fp_fusion=False,
    )
