"""Similarities of whole segments into a bounded workspace, with their column sums in the same pass.

    cosine(i, j) = û_i · û_j, 1 between duplicates              METHOD, shapes
    sim⁺(i, j) = max(0, cosine(i, j)) in whole units            METHOD §3, §5
    sum_j = Σ_i of what is stored                               coverage's first gains; û_j · Σ û otherwise

One program a segment and pair of tiles of BLOCK_M tokens, on and below the diagonal only; what lies above is
stored mirrored, so the matrix is symmetric to the bit. The operands are the slots that `directions` filled:
no masks, 128-bit loads, matrix units.

The sums are whole numbers (UNIT for 1), so they depend on no order. A program leaves the sums over its own
rows and over its own columns in two places of `partial` that are its alone; whoever needs a sum adds up one
number a tile. No atomics, and nothing has to be zeroed before.

A segment of m tokens takes t = ⌈m / BLOCK_M⌉ tiles: t (t + 1) / 2 · BLOCK_M² · d multiply-adds (0.61 m² d
at m = 784, 0.53 m² d at 1,024), reads t (t + 1) · BLOCK_M · d directions, mostly from the cache, and writes
m² entries and t · m sums. Zero tokens and the rows that fill up the last tile have similarity 0 to all.
Limits: sums in units of 2^22 for up to 2^20 tokens, and in a tile below 2^31.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.kernels.common import Traffic
from trimtok_fast.kernels.directions import launch_config

DUPLICATE = tl.constexpr(1 - constants.ZERO_DISTANCE)


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
def similarity_tile(
    # where the segment's slot begins: [rows, WIDTH], fp32 [rows], [rows, rows], int32 [tiles, rows]
    directions_ptr,
    scale_ptr,
    matrix_ptr,
    partial_ptr,
    # rows of the segment's matrix, and which tile of it this is; column_tile <= row_tile
    padded,
    row_tile,
    column_tile,
    # compiled in
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    COVERAGE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of a segment's matrix and its mirror image."""
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    rows = row_tile * BLOCK_M + offs_m.to(tl.int64)
    columns = column_tile * BLOCK_M + offs_m.to(tl.int64)
    from_rows = directions_ptr + rows[:, None] * WIDTH + offs_d[None, :]
    from_columns = directions_ptr + columns[:, None] * WIDTH + offs_d[None, :]
    product = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    for begin in range(0, WIDTH, BLOCK_D):
        left = tl.load(from_rows + begin)  # [BLOCK_M, BLOCK_D]
        right = tl.load(from_columns + begin)
        product = tl.dot(left, tl.trans(right), product, input_precision=INPUT_PRECISION)
    cosine = cosine_of(product, tl.load(scale_ptr + rows), tl.load(scale_ptr + columns), COVERAGE)
    if row_tile == column_tile:
        # The two halves of a product may differ in the last bit: the upper one is made a mirror image too.
        cosine = tl.where(offs_m[:, None] >= offs_m[None, :], cosine, tl.trans(cosine))
    units = units_of(cosine, UNIT)
    tl.store(partial_ptr + row_tile * padded + columns, tl.sum(units, 0))
    stored = (units if COVERAGE else cosine).to(matrix_ptr.dtype.element_ty)
    tl.store(matrix_ptr + rows[:, None] * padded + columns[None, :], stored)
    if row_tile != column_tile:
        tl.store(partial_ptr + column_tile * padded + rows, tl.sum(units, 1))
        tl.store(matrix_ptr + columns[:, None] * padded + rows[None, :], tl.trans(stored))


@triton.jit(do_not_specialize=["first", "above"])
def _similarity_kernel(
    # out: int16, int32 or fp32 [slots, slot_rows²], int32 [slots, slot_rows / BLOCK_M · slot_rows]
    matrix_ptr,
    partial_ptr,
    # tensors: [slots, slot_rows, WIDTH], fp32 [slots, slot_rows], int64 [g + 1]
    directions_ptr,
    scale_ptr,
    cu_segments_ptr,
    # sizes: the group's first segment, rows of a slot, segments of up to `above` tokens are left out
    first,
    slot_rows,
    above,
    # compiled in
    WIDTH: tl.constexpr,
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
    # Tiles of a triangle, row by row: the root finds the row up to rounding.
    row_tile = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row_tile = tl.where(row_tile * (row_tile + 1) // 2 > index, row_tile - 1, row_tile)
    row_tile = tl.where((row_tile + 1) * (row_tile + 2) // 2 <= index, row_tile + 1, row_tile)
    similarity_tile(
        directions_ptr + slot * slot_rows * WIDTH,
        scale_ptr + slot * slot_rows,
        matrix_ptr + slot * slot_rows * slot_rows,
        partial_ptr + slot * (slot_rows // BLOCK_M) * slot_rows,
        tiles * BLOCK_M,
        row_tile,
        index - row_tile * (row_tile + 1) // 2,
        WIDTH,
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
        tiles = triton.cdiv(size, block)
        rows = tiles * block
        moved += rows * (width * dtype.itemsize + 4 + rows * entry.itemsize + 4 * tiles)
        products += tiles * (tiles + 1) // 2 * block * block * width
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
        above,
        WIDTH=width,
        UNIT=unit,
        COVERAGE=coverage,
        INPUT_PRECISION=input_precision,
        BLOCK_M=config.block_m,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )
