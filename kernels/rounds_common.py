"""What the kernels of `rounds` agree on: positions, groups and tiles, keys, columns, a segment's state."""

from __future__ import annotations

import triton
import triton.language as tl

from trimtok_fast.kernels.common import ZERO_DISTANCE
from trimtok_fast.kernels.directions import direction_block

#: Tokens in a group.
GROUP = tl.constexpr(16)
#: How many of its largest values a group hands to `nominate`: a power of 2.
KEEP = tl.constexpr(4)
#: Tokens in a tile: small enough that a GPU is full from 10,000 tokens on.
BLOCK_M = tl.constexpr(64)
#: The most candidates that a round can have.
CANDIDATES = tl.constexpr(128)
#: The fewest columns that a product can have.
FEWEST = tl.constexpr(16)
#: Keys, or positions, that one program looks at together.
BLOCK_SCAN = tl.constexpr(2048)
#: Counts down to the position in a key: of equal values, the lowest position has the largest key.
LAST = tl.constexpr(2**31 - 1)
#: What stands for no key at all.
NO_KEY = tl.constexpr(-1)

#: A segment's state: picks made, picks whose distances v knows, columns that `absorb` is to take in.
COUNT, MET, ACCEPTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
STATE = tl.constexpr(3)


@triton.jit
def key_of(value, position):
    """What orders by value, then by the lower position. -1 for a value below 0: picked, or no token."""
    bits = value.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(value >= 0, (bits << 32) | (position ^ LAST), NO_KEY)


@triton.jit
def position_of(key):
    """The position that a key was made of."""
    return (key & 0xFFFFFFFF) ^ LAST


@triton.jit
def value_in(key):
    """The value that a key was made of."""
    return (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def positions_of(tile, size):
    """The positions of a tile's tokens, [BLOCK_M] group by group, and which of them exist."""
    groups = tl.cdiv(size, GROUP).to(tl.int32)
    offs = tl.arange(0, BLOCK_M)
    group = (offs // GROUP + tile * (BLOCK_M // GROUP)).to(tl.int32)
    position = group + (offs % GROUP) * groups
    return position, (group < groups) & (position < size)


@triton.jit
def fill(value_ptr, picks_ptr, gain_ptr, start, gain, limit, room):
    """Pick the tokens of value 0, by position, below `limit`; how many there were room for."""
    filled = tl.zeros([], tl.int64)
    first = tl.zeros([], tl.int64)
    while (first < limit) & (filled < room):
        offs = first + tl.arange(0, BLOCK_SCAN)
        value = tl.load(value_ptr + offs, mask=offs < limit, other=-1.0)
        wanted = (value == 0).to(tl.int32)
        place = filled + tl.cumsum(wanted, axis=0) - 1
        taken = (wanted > 0) & (place < room)
        tl.store(picks_ptr + place, start + offs, mask=taken)
        tl.store(gain_ptr + place, tl.full([BLOCK_SCAN], gain, tl.float32), mask=taken)
        tl.store(value_ptr + offs, tl.full([BLOCK_SCAN], -1.0, tl.float32), mask=taken)
        filled = tl.minimum(filled + tl.sum(wanted, axis=0), room)
        first += BLOCK_SCAN
    return filled


@triton.jit
def write_columns(
    columns_ptr,
    tokens_ptr,
    origin_ptr,
    row,
    mask,
    inverse,
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_d,
    stride_columns_c,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store û of some rows, rounded for the products."""
    offs_c = tl.arange(0, COLUMNS)
    for first in tl.range(0, WIDTH, BLOCK_D, num_stages=3):  # the next blocks are under way meanwhile
        offs_d = first + tl.arange(0, BLOCK_D)
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
        pointers = columns_ptr + offs_c[:, None] * stride_columns_c + offs_d[None, :]
        stored = mask[:, None]
        if WIDTH % BLOCK_D != 0:
            stored &= (offs_d < WIDTH)[None, :]
        tl.store(pointers, unit.to(columns_ptr.dtype.element_ty), mask=stored)


@triton.jit
def distance_of(product, scale, column_scale):
    """1 − cosine of rows and columns, 0 between duplicates, infinite to a column without a direction."""
    distance = 1 - product * scale[:, None] * column_scale[None, :]
    distance = tl.where(distance < ZERO_DISTANCE, 0.0, distance)
    return tl.where(column_scale[None, :] > 0, distance, float("inf"))
