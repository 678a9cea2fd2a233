"""The greedy MAP of a determinantal point process: a pick a launch, without its kernel (METHOD §6).

    L_si   = r_s r_i û_s · û_i                              for the pick s
    c_t(i) = (L_si − Σ_{u < t} c_u(s) c_u(i)) / √left_s     row t of a Cholesky factor
    left_i −= c_t(i)²                                       from r_i² on; the next pick has the most left

One program a segment and tile of BLOCK_M of its tokens; launch `step` makes pick step − 1. Every program
finds it among the bests that the tiles left in the launch before, brings its own tile up to date and leaves
its best; the first also writes the pick down. Bests of two launches alternate, and every other value is
written by the program that owns it, so no program waits for another of its launch.

A pick reads its segment's tokens, m · d · bytes, and the factor so far, 4 m · t, and writes 4 m of it; 24
bytes a token besides. These are products of a matrix with one vector: memory bounds them, and matrix units do
not help. 2 m (d + t) operations. What fits the L2 cache is read from there.
Tokens stand in the order in which ties are broken, so that the lowest place wins. What is left below 1e-5 of
a token's own r², or 1e-9 of the largest, counts as 0, and a pick with nothing left changes nothing. A token
without a direction, or that is not finite, has scale 0 and r² 0: nothing is left of it, not even NaN.
Limits: the factor takes 4 m · budget bytes; a segment has at most 2^31 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.kernels.common import Traffic, load_rows, repeated

SPENT_SHARE = tl.constexpr(constants.SPENT_SHARE)
SPENT = tl.constexpr(constants.SPENT)
#: Places in the lower half of a key, negated, so that the largest key has the lowest place.
LAST_PLACE = tl.constexpr(2**32 - 1)


@triton.jit(do_not_specialize=["step", "tiles_of_all"])
def _dpp_kernel(
    # out: int64 [Σ budgets], fp32 [Σ budgets]
    indices_ptr,
    gain_ptr,
    # workspace: fp32 [N], fp32 [Σ m · budget], int64 [2, tiles_of_all]
    left_ptr,
    factor_ptr,
    best_ptr,
    # tensors: tokens [M, D]; by place: their rows int64 [N], r / ‖x‖ fp32 [N], r² fp32 [N]
    tokens_ptr,
    rows_ptr,
    scale_ptr,
    whole_ptr,
    # int64: [g + 1], [g], and where a segment's picks, tiles and factor begin [g]
    cu_segments_ptr,
    budgets_ptr,
    first_pick_ptr,
    first_tile_ptr,
    first_factor_ptr,
    # sizes
    step,
    tiles_of_all,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    # compiled in
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile = tl.program_id(0)
    segment = tl.program_id(1).to(tl.int64)
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    budget = tl.load(budgets_ptr + segment)
    if (tile * BLOCK_M >= size) | (step > budget):
        return
    first_tile = tl.load(first_tile_ptr + segment)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    mask_m = offs_m < size
    whole = tl.load(whole_ptr + start + offs_m, mask=mask_m, other=0.0)
    left = whole
    if step > 0:
        top = tl.full([], 0, tl.int64)
        tiles = tl.cdiv(size, BLOCK_M)
        from_tile = best_ptr + ((step + 1) % 2).to(tl.int64) * tiles_of_all + first_tile
        for chunk in range(0, tiles, BLOCK_N):
            offs_n = chunk + tl.arange(0, BLOCK_N)
            top = tl.maximum(top, tl.max(tl.load(from_tile + offs_n, mask=offs_n < tiles, other=0), 0))
        place = LAST_PLACE - (top & LAST_PLACE)
        value = ((top >> 32) - 1).to(tl.int32).to(tl.float32, bitcast=True)
        pick_row = tl.load(rows_ptr + start + place)
        out = tl.load(first_pick_ptr + segment)
        if tile == 0:
            tl.store(indices_ptr + out + step - 1, pick_row)
            tl.store(gain_ptr + out + step - 1, value)
        left = tl.load(left_ptr + start + offs_m, mask=mask_m, other=-1.0)
        if (value > 0) & (step < budget):
            scale = tl.load(scale_ptr + start + offs_m, mask=mask_m, other=0.0)
            pick_scale = tl.load(scale_ptr + start + place)
            row = tl.load(rows_ptr + start + offs_m, mask=mask_m, other=0)
            products = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            for channel in range(0, D, BLOCK_D):
                offs_d = channel + tl.arange(0, BLOCK_D)
                x = load_rows(tokens_ptr, row, mask_m, channel, stride_tokens_m, stride_tokens_d, D, BLOCK_D)
                x = x.to(tl.float32)
                at = offs_d.to(tl.int64) * stride_tokens_d
                picked = tl.load(tokens_ptr + pick_row * stride_tokens_m + at, mask=offs_d < D, other=0.0)
                picked = picked.to(tl.float32) * pick_scale
                products += (x * scale[:, None]) * picked[None, :]
            count = step - 1
            factor_ptr += tl.load(first_factor_ptr + segment)
            known = tl.zeros([BLOCK_T, BLOCK_M], tl.float32)
            for earlier in range(0, count, BLOCK_T):
                offs_t = earlier + tl.arange(0, BLOCK_T).to(tl.int64)
                mask_t = offs_t < count
                own = tl.load(
                    factor_ptr + offs_t[:, None] * size + offs_m[None, :],
                    mask=mask_t[:, None] & mask_m[None, :],
                    other=0.0,
                )  # [BLOCK_T, BLOCK_M]
                known += own * tl.load(factor_ptr + offs_t * size + place, mask=mask_t, other=0.0)[:, None]
            column = (tl.sum(products, 1) - tl.sum(known, 0)) / tl.sqrt_rn(value)
            tl.store(factor_ptr + count.to(tl.int64) * size + offs_m, column, mask=mask_m)
            # The first pick had the largest r² of all.
            largest = tl.where(step > 1, tl.load(gain_ptr + out, mask=step > 1, other=0.0), value)
            rest = left - column * column
            rest = tl.where(rest > tl.maximum(whole * SPENT_SHARE, largest * SPENT), rest, 0.0)
            left = tl.where(left < 0, left, rest)
        left = tl.where(offs_m == place, -1.0, left)  # what is picked has less than nothing
    tl.debug_barrier()  # threads that hold the same value have all loaded it before one replaces it
    tl.store(left_ptr + start + offs_m, left, mask=mask_m)
    bits = left.to(tl.int32, bitcast=True).to(tl.int64) + 1
    key = tl.where(mask_m & (left >= 0), (bits << 32) | (LAST_PLACE - offs_m), 0)
    tl.store(best_ptr + (step % 2).to(tl.int64) * tiles_of_all + first_tile + tile, tl.max(key, 0))


def launch_config() -> dict[str, int]:
    """Block sizes and warps: small tiles, as a segment has a GPU to fill; 128 bits a thread and load."""
    return {"BLOCK_M": 16, "BLOCK_D": 256, "BLOCK_T": 64, "BLOCK_N": 128, "num_warps": 4, "num_stages": 2}


def tile_count(size: int) -> int:
    """Tiles of a segment of this size."""
    return triton.cdiv(size, launch_config()["BLOCK_M"])


def traffic(sizes: Sequence[int], budgets: Sequence[int], d: int, dtype: torch.dtype) -> Traffic:
    """What picking takes, while something is left to pick: every launch reads anew."""
    moved = operations = 0
    for size, budget in zip(sizes, budgets, strict=True):
        steps, factor = max(0, budget - 1), max(0, budget - 1) * max(0, budget - 2) // 2
        # Each launch: r² and what is left, read and written, and the bests of the tiles. Each pick but the
        # last: the tokens, their rows and scales, the factor's earlier rows and its new one.
        moved += (budget + (budget > 0)) * (8 * size + 8 * tile_count(size)) + budget * (
            4 * size + 8 * tile_count(size) + 12
        )
        moved += steps * size * (d * dtype.itemsize + 16) + 4 * factor * size
        operations += 2 * size * (steps * d + factor)
    return Traffic(moved, operations=operations)


def dpp_launch(
    indices: Tensor,
    gain: Tensor,
    *,
    left: Tensor,
    factor: Tensor,
    best: Tensor,
    tokens: Tensor,
    rows: Tensor,
    scale: Tensor,
    whole: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    first_pick: Tensor,
    first_tile: Tensor,
    first_factor: Tensor,
    largest_size: int,
    largest_budget: int,
) -> None:
    """Pick in all segments; the kernel's signature says what each tensor is."""
    launch = repeated(
        _dpp_kernel,
        (tile_count(largest_size), len(budgets)),
        indices_ptr=indices,
        gain_ptr=gain,
        left_ptr=left,
        factor_ptr=factor,
        best_ptr=best,
        tokens_ptr=tokens,
        rows_ptr=rows,
        scale_ptr=scale,
        whole_ptr=whole,
        cu_segments_ptr=cu_segments,
        budgets_ptr=budgets,
        first_pick_ptr=first_pick,
        first_tile_ptr=first_tile,
        first_factor_ptr=first_factor,
        tiles_of_all=best.shape[1],
        stride_tokens_m=tokens.stride(0),
        stride_tokens_d=tokens.stride(1),
        D=tokens.shape[1],
        **launch_config(),
        enable_fp_fusion=False,
    )
    for step in range(largest_budget + 1):
        launch(step=step)
