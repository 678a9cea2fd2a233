"""How each sample's pruning is split between the stages, and its survivors among the images (METHOD §2).

    b_k = clamp(λ · nonzero_k · D_k, floor_k, length_k), for the λ at which Σ b_k = B_1, in whole numbers

One program a sample, which passes over its images in tiles of BLOCK: their sums give D̄ and with it B_1; λ is
found by bisection, as Σ b_k rises with it, and then solved for once more among the images between floor and
length; each image's rank among the remainders is counted, so nothing is sorted or stored between the passes.

Work: n (3 + BISECTIONS) clamps and n² comparisons for n images, on 28 bytes an image that stay in the cache.
A sample keeps one program busy, however many images it has.
In fp64, and in the order of the images: a sample's numbers are what they are without other samples.
"""

import struct

import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast import budgets as constants
from trimtok_fast.kernels.common import ZERO_DIVERSITY, Traffic

SHARE_TOLERANCE = tl.constexpr(constants.SHARE_TOLERANCE)
LEAST_WEIGHT = tl.constexpr(constants.LEAST_WEIGHT)
DIFFERENT = tl.constexpr(constants.DIFFERENT)
#: Halvings of λ's range: to the last bit of fp64 where shares differ a hundred million times.
BISECTIONS = tl.constexpr(80)


@triton.jit
def _load_diversity(diversity_ptr, first, stop, BLOCK: tl.constexpr):
    """D of a tile's images, fp64; 0 for what may be rounding, and past the last."""
    offs = first + tl.arange(0, BLOCK)
    diversity = tl.load(diversity_ptr + offs, mask=offs < stop, other=0.0).to(tl.float64)
    # Half the threshold, as a value at the threshold may be rounded down.
    # By a difference: in a comparison triton rounds the constant to fp32.
    return tl.where(diversity - ZERO_DIVERSITY / 2 > 0, diversity, 0.0)


@triton.jit
def _load_images(
    diversity_ptr,
    nonzero_ptr,
    lengths_ptr,
    floors_ptr,
    first,
    stop,
    saturated,
    BLOCK: tl.constexpr,
):
    """Weight, floor and length of a tile's images, fp64; 0 past the last.

    Saturated: every image with a positive weight is full, and the others share the rest by their size.
    """
    offs = first + tl.arange(0, BLOCK)
    mask = offs < stop
    nonzero = tl.load(nonzero_ptr + offs, mask=mask, other=0).to(tl.float64)
    length = tl.load(lengths_ptr + offs, mask=mask, other=0).to(tl.float64)
    floor = tl.load(floors_ptr + offs, mask=mask, other=0).to(tl.float64)
    weight = nonzero * _load_diversity(diversity_ptr, first, stop, BLOCK)
    positive = weight > 0
    floor = tl.where((saturated > 0) & positive, length, floor)
    weight = tl.where((saturated > 0) & (weight <= 0), length, weight)
    return weight, floor, length


@triton.jit
def _clamp(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def _share(level, level_between, weight, floor, length):
    """b_k before it is rounded; 0 for what is not there."""
    share = _clamp(level * weight, floor, length)
    between = (share > floor) & (share < length)
    return _clamp(tl.where(between, level_between * weight, share), floor, length)


@triton.jit
def _whole(share):
    """⌊share⌋."""
    return tl.floor(share + SHARE_TOLERANCE)


@triton.jit
def _remainder(share):
    """What is left of it, as a whole number, so that equal remainders tie."""
    return tl.floor((share - _whole(share)) / SHARE_TOLERANCE + 0.5)


@triton.jit(do_not_specialize=["split_bits", "fraction_bits"])
def _budgets_kernel(
    # tensors
    diversity_ptr,  # fp32 or fp64 [n]
    nonzero_ptr,  # int64 [n]
    variation_ptr,  # fp32 or fp64 [s]
    alignment_ptr,  # fp32 or fp64 [M], NaN without text; or None
    lengths_ptr,  # int64 [n]
    floors_ptr,  # int64 [2, n]: without text, with text
    kept_ptr,  # int64 [s]
    cu_images_ptr,  # int64 [s + 1]
    first_rows_ptr,  # int64 [s], of each sample's tokens
    survivors_ptr,  # int64 [s], an output
    pool_ptr,  # int64 [s], an output
    budgets_ptr,  # int64 [n], an output
    # numbers: the share of the pruning that stage 1 does, and the pool's, as the bits of fp64
    split_bits,
    fraction_bits,
    # compiled in
    ADAPTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0)
    start = tl.load(cu_images_ptr + sample)
    stop = tl.load(cu_images_ptr + sample + 1)
    kept = tl.load(kept_ptr + sample).to(tl.float64)
    with_text = start < start
    if alignment_ptr is not None:
        alignment = tl.load(alignment_ptr + tl.load(first_rows_ptr + sample))
        with_text = alignment == alignment
    images = tl.load(cu_images_ptr + tl.num_programs(0))
    floors_ptr += tl.where(with_text, images, 0)

    total = kept * 0
    size, floor_sum, diversity_sum, full, highest = total, total, total, total, total
    for first in range(start, stop, BLOCK):
        weight, floor, length = _load_images(
            diversity_ptr, nonzero_ptr, lengths_ptr, floors_ptr, first, stop, 0, BLOCK
        )
        size += tl.sum(length, axis=0)
        floor_sum += tl.sum(floor, axis=0)
        diversity_sum += tl.sum(_load_diversity(diversity_ptr, first, stop, BLOCK), axis=0)
        full += tl.sum(tl.where(weight > 0, length, floor), axis=0)
        ratio = tl.where(weight > 0, length / tl.where(weight > 0, weight, 1.0), 0.0)
        highest = tl.maximum(highest, tl.max(ratio, axis=0))

    split = split_bits.to(tl.int64).to(tl.float64, bitcast=True)
    if ADAPTIVE:
        mean = diversity_sum / (stop - start).to(tl.float64)
        variation = tl.load(variation_ptr + sample).to(tl.float64)
        farther = variation * (1.0 - mean)
        # Where one of the two is undefined, there is nothing to choose between images.
        known = (farther == farther) & (mean > 0)
        farther = tl.maximum(farther, 0.0) / tl.where(known, mean, 1.0)
        differ = tl.where(known, tl.minimum(farther / DIFFERENT, 1.0), 1.0)
        split = tl.where(with_text, LEAST_WEIGHT, LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * differ)
    survivors = tl.floor(size * tl.exp2(split * tl.log2(kept / size)) + 0.5 + SHARE_TOLERANCE)
    survivors = tl.minimum(tl.maximum(tl.maximum(survivors, kept), floor_sum), size)
    fraction = fraction_bits.to(tl.int64).to(tl.float64, bitcast=True)
    more = tl.where(with_text, tl.floor(fraction * (survivors - kept) + 0.5), 0.0)
    tl.store(survivors_ptr + sample, survivors.to(tl.int64))
    tl.store(pool_ptr + sample, (kept + more).to(tl.int64))

    saturated = (full <= survivors).to(tl.int32)
    low = total
    high = tl.where(saturated > 0, 1.0, highest)
    for _ in range(BISECTIONS):
        level = 0.5 * (low + high)
        reached = total
        for first in range(start, stop, BLOCK):
            weight, floor, length = _load_images(
                diversity_ptr, nonzero_ptr, lengths_ptr, floors_ptr, first, stop, saturated, BLOCK
            )
            reached += tl.sum(_clamp(level * weight, floor, length), axis=0)
        low = tl.where(reached <= survivors, level, low)
        high = tl.where(reached <= survivors, high, level)

    fixed, rising = total, total
    for first in range(start, stop, BLOCK):
        weight, floor, length = _load_images(
            diversity_ptr, nonzero_ptr, lengths_ptr, floors_ptr, first, stop, saturated, BLOCK
        )
        share = _clamp(low * weight, floor, length)
        between = (share > floor) & (share < length)
        fixed += tl.sum(tl.where(between, 0.0, share), axis=0)
        rising += tl.sum(tl.where(between, weight, 0.0), axis=0)
    level = (survivors - fixed) / tl.where(rising > 0, rising, 1.0)

    left = survivors
    for first in range(start, stop, BLOCK):
        weight, floor, length = _load_images(
            diversity_ptr, nonzero_ptr, lengths_ptr, floors_ptr, first, stop, saturated, BLOCK
        )
        left -= tl.sum(_whole(_share(low, level, weight, floor, length)), axis=0)
    for first in range(start, stop, BLOCK):
        own = first + tl.arange(0, BLOCK)
        weight, floor, length = _load_images(
            diversity_ptr, nonzero_ptr, lengths_ptr, floors_ptr, first, stop, saturated, BLOCK
        )
        share = _share(low, level, weight, floor, length)
        remainder = _remainder(share)
        rank = tl.zeros([BLOCK], tl.int32)
        for second in range(start, stop, BLOCK):
            other = second + tl.arange(0, BLOCK)
            weight, floor, length = _load_images(
                diversity_ptr, nonzero_ptr, lengths_ptr, floors_ptr, second, stop, saturated, BLOCK
            )
            rival = _remainder(_share(low, level, weight, floor, length))
            ahead = (rival[None, :] > remainder[:, None]) | (
                (rival[None, :] == remainder[:, None]) & (other[None, :] < own[:, None])
            )
            rank += tl.sum(ahead.to(tl.int32), axis=1)
        # Fewer are left than have a remainder: one that is full, or not there, comes behind them all.
        budget = _whole(share).to(tl.int64) + (rank.to(tl.float64) < left).to(tl.int64)
        tl.store(budgets_ptr + own, budget, mask=own < stop)


def launch_config() -> dict[str, int]:
    """Block size and warps: BLOCK × BLOCK comparisons, 8 a thread."""
    return {"BLOCK": 32, "num_warps": 4, "num_stages": 1}


def traffic(images: int, samples: int) -> Traffic:
    """What planning takes, at least. Its time is that of steps that wait for one another."""
    return Traffic(36 * images + 52 * samples)


def budgets_launch(
    budgets: Tensor,
    survivors: Tensor,
    pool: Tensor,
    *,
    diversity: Tensor,
    nonzero: Tensor,
    variation: Tensor,
    alignment: Tensor | None,
    lengths: Tensor,
    floors: Tensor,
    kept: Tensor,
    cu_images: Tensor,
    first_rows: Tensor,
    split: float | None,
    pool_fraction: float,
) -> None:
    """Plan all samples; the kernel's signature says what each tensor is. A split of `None` is adaptive."""
    _budgets_kernel[(len(kept),)](
        diversity,
        nonzero,
        variation,
        alignment,
        lengths,
        floors,
        kept,
        cu_images,
        first_rows,
        survivors,
        pool,
        budgets,
        _bits(split or 0.0),
        _bits(pool_fraction),
        ADAPTIVE=split is None,
        **launch_config(),
        enable_fp_fusion=False,
    )


def _bits(value: float) -> int:
    """Of fp64: triton would round a number to fp32."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
