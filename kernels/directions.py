"""Directions of a segment's tokens into a bounded workspace: what the products of `similarity` are made of.

    û_i = (x_i − origin) · inverse_norm_i                       METHOD, shapes
    scale_i = 1 / ‖round(û_i)‖, so that cosine(i, j) = scale_i · scale_j · round(û_i) · round(û_j)

One program a segment and tile of BLOCK_M of its tokens. x is cast to fp32 at the load and the origin
subtracted there. Tokens of 16 bits get directions in fp16, whatever their own type: no component exceeds 1,
so fp16 has eight times the digits of bf16 at the same cost. The squared norm is the diagonal of a product on
the matrix unit, summed exactly as `similarity` sums: duplicates have a cosine of 1 to the last bits, though
matrix units truncate.

Every segment has a slot of its own. Its rows are filled up with zeros to whole tiles and its width to whole
blocks, so that the products need no masks and load 128 bits at a time, whatever the tokens' strides.

Reads each token once, m · d · bytes (twice without given norms), and writes m · width · bytes of directions;
width is d rounded up to BLOCK_D. BLOCK_M · m · d multiply-adds, hidden behind the loads.
A token without a direction (inverse norm 0), or that is not finite (NaN), gets zeros and scale 0.
Limits: d is compiled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels import common
from trimtok_fast.kernels.common import (
    LARGEST_NORM,
    SCALE,
    SMALL_SQUARE,
    UNSCALE,
    ZERO_NORM,
    ZERO_SHARE,
    Traffic,
    inverse_where,
    load_centred,
)


@triton.jit
def _length(square, enlarged):
    """The root of a sum of squares, from the sum and the sum of the enlarged numbers' squares."""
    return tl.where(square < SMALL_SQUARE, tl.sqrt_rn(enlarged) * UNSCALE, tl.sqrt_rn(square))


@triton.jit
def inverse_norms(
    # tensors: tokens [M, D], origin [D], inverse_norm [M]
    tokens_ptr,
    origin_ptr,
    inverse_norm_ptr,
    # rows of `tokens` and which of them are any
    token,
    mask_m,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_d,
    stride_inverse_norm,
    # compiled in
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """1 / ‖x − origin‖ of some tokens, as given or computed; 0 without a direction or where not finite."""
    if inverse_norm_ptr is not None:
        inverse = tl.load(inverse_norm_ptr + token * stride_inverse_norm, mask=mask_m, other=0.0)
        inverse = tl.where(inverse > 0, inverse, 0.0)  # false for NaN
    else:
        square = tl.zeros([BLOCK_M], tl.float32)
        enlarged = tl.zeros([BLOCK_M], tl.float32)
        centred_square = tl.zeros([BLOCK_M], tl.float32)
        centred_enlarged = tl.zeros([BLOCK_M], tl.float32)
        for begin in range(0, D, BLOCK_D):
            x, centred = load_centred(
                tokens_ptr,
                origin_ptr,
                token,
                mask_m,
                begin,
                stride_tokens_m,
                stride_tokens_d,
                stride_origin_d,
                D,
                BLOCK_D,
            )
            square += tl.sum(x * x, 1)
            enlarged += tl.sum((x * SCALE) * (x * SCALE), 1)
            centred_square += tl.sum(centred * centred, 1)
            centred_enlarged += tl.sum((centred * SCALE) * (centred * SCALE), 1)
        norm = _length(square, enlarged)
        distance = _length(centred_square, centred_enlarged)
        usable = mask_m & (norm >= ZERO_NORM) & (norm <= LARGEST_NORM) & (distance > norm * ZERO_SHARE)
        inverse = inverse_where(usable, distance)
    return inverse


@triton.jit
def direction_block(
    # tensors: tokens [M, D], origin [D]
    tokens_ptr,
    origin_ptr,
    # rows of `tokens`, which of them are any, their inverse norms, and the first of the channels
    token,
    mask_m,
    inverse,
    begin,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_d,
    # compiled in
    D: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some channels of some tokens' directions, zeros where there is none."""
    _, centred = load_centred(
        tokens_ptr,
        origin_ptr,
        token,
        mask_m,
        begin,
        stride_tokens_m,
        stride_tokens_d,
        stride_origin_d,
        D,
        BLOCK_D,
    )
    # What is not finite must not spread, not even times 0.
    return tl.where((inverse > 0)[:, None], centred * inverse[:, None], 0.0).to(DTYPE)


@triton.jit
def inverse_length(square, BLOCK_M: tl.constexpr):
    """1 / the root of the diagonal of a tile of products; 0 where that is 0."""
    offs_m = tl.arange(0, BLOCK_M)
    diagonal = tl.sum(tl.where(offs_m[:, None] == offs_m[None, :], square, 0.0), 1)
    return inverse_where(diagonal > 0, tl.sqrt_rn(diagonal))


@triton.jit
def directions_tile(
    # where the segment's slot begins: [rows, WIDTH] and fp32 [rows]
    directions_ptr,
    scale_ptr,
    # tensors: tokens [M, D], origin [D], inverse_norm [M], rows int64 [N]
    tokens_ptr,
    origin_ptr,
    inverse_norm_ptr,
    rows_ptr,
    # the segment's first row, its size, and which of its tiles this is
    start,
    size,
    tile,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_d,
    stride_inverse_norm,
    # compiled in
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Fill one tile of a segment's slot."""
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = offs_m < size
    token = tl.load(rows_ptr + start + offs_m, mask=mask_m, other=0)
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
    square = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    for begin in range(0, WIDTH, BLOCK_D):
        unit = direction_block(
            tokens_ptr,
            origin_ptr,
            token,
            mask_m,
            inverse,
            begin,
            stride_tokens_m,
            stride_tokens_d,
            stride_origin_d,
            D,
            directions_ptr.dtype.element_ty,
            BLOCK_D,
        )
        tl.store(directions_ptr + offs_m[:, None] * WIDTH + (begin + offs_d)[None, :], unit)
        square = tl.dot(unit, tl.trans(unit), square, input_precision=INPUT_PRECISION)
    tl.store(scale_ptr + offs_m, inverse_length(square, BLOCK_M))


@triton.jit(do_not_specialize=["first", "above"])
def _directions_kernel(
    # out: fp16 or fp32 [slots, slot_rows, WIDTH], fp32 [slots, slot_rows]
    directions_ptr,
    scale_ptr,
    # tensors: tokens [M, D], int64 [g + 1], origin [g, D], inverse_norm fp32 [M], rows int64 [N]
    tokens_ptr,
    cu_segments_ptr,
    origin_ptr,
    inverse_norm_ptr,
    rows_ptr,
    # sizes: the group's first segment, rows of a slot, segments of up to `above` tokens are left out
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
    WIDTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1).to(tl.int64)
    segment = first + slot
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    if (size <= above) | (size > slot_rows) | (tile * BLOCK_M >= size):
        return
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    directions_tile(
        directions_ptr + slot * slot_rows * WIDTH,
        scale_ptr + slot * slot_rows,
        tokens_ptr,
        origin_ptr,
        inverse_norm_ptr,
        rows_ptr,
        start,
        size,
        tile,
        stride_tokens_m,
        stride_tokens_d,
        stride_origin_d,
        stride_inverse_norm,
        D,
        WIDTH,
        INPUT_PRECISION,
        BLOCK_M,
        BLOCK_D,
    )


class LaunchConfig(NamedTuple):
    """How the products of directions are cut: `directions`, `similarity` and the fused form agree on it."""

    block_m: int
    block_d: int
    num_stages: int


def launch_config(dtype: torch.dtype) -> LaunchConfig:
    """Tiles for directions of this type; fp32 goes in three parts, which take registers."""
    return LaunchConfig(block_m=64, block_d=16 if dtype == torch.float32 else 64, num_stages=3)


def product_warps(dtype: torch.dtype) -> int:
    """Warps for them: in fp32 as many threads on AMD, where a warp has 64, so that each loads 128 bits."""
    if dtype == torch.float32:
        return 4 if common.platform() == "hip" else 8
    return 4


def directions_dtype(tokens: torch.dtype) -> torch.dtype:
    """What the directions of such tokens are stored in."""
    return torch.float32 if tokens == torch.float32 else torch.float16


def traffic(sizes: Sequence[int], d: int, dtype: torch.dtype) -> Traffic:
    """What the directions of segments of these sizes take, for tokens of this type with given norms."""
    stored = directions_dtype(dtype)
    config = launch_config(stored)
    width = triton.cdiv(d, config.block_d) * config.block_d
    rows = sum(triton.cdiv(size, config.block_m) * config.block_m for size in sizes)
    moved = sum(sizes) * (d * dtype.itemsize + 4) + rows * (width * stored.itemsize + 4)
    return Traffic(moved, products=rows * config.block_m * width)


def directions_launch(
    directions: Tensor,
    scale: Tensor,
    *,
    tokens: Tensor,
    cu_segments: Tensor,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor,
    first: int,
    above: int,
    input_precision: str,
) -> None:
    """Fill the slots [slots, slot_rows, width] of as many segments, from segment `first` on."""
    slots, slot_rows, width = directions.shape
    config = launch_config(directions.dtype)
    _directions_kernel[(slot_rows // config.block_m, slots)](
        directions,
        scale,
        tokens,
        cu_segments,
        origin,
        inverse_norm,
        rows,
        first,
        slot_rows,
        above,
        tokens.stride(0),
        tokens.stride(1),
        0 if origin is None else origin.stride(0),
        0 if origin is None else origin.stride(1),
        0 if inverse_norm is None else inverse_norm.stride(0),
        D=tokens.shape[1],
        WIDTH=width,
        INPUT_PRECISION=input_precision,
        BLOCK_M=config.block_m,
        BLOCK_D=config.block_d,
        num_warps=product_warps(directions.dtype),
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )
