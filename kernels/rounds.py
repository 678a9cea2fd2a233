"""`max_min` without a matrix (METHOD §5): nominate the largest values, absorb the picks made among them.

    v_i = min over the picked s of distance(i, s)             next pick = argmax v_i, ties to the lowest row
    a round: the C largest v; their C × C distances; the textbook greedy among them, while the best beats all
    that stands outside; then v_i = min(v_i, distance to the accepted picks) for every token

Who does what. A segment's positions 0 … m − 1 are its rows in ascending order. They fall into G = ⌈m / 16⌉
groups: position p belongs to group p mod G, so that neighbours, which resemble each other, are spread. A tile
is 8 consecutive groups.

- `prepare`: one program a tile. û's norms, the initial values, the tile's part of Σ û.
- `total`: one program a segment and BLOCK_D channels. Adds those parts up in their order.
- `typical`: one program a tile. The tile's most typical token; nothing where a seed has a direction.
- `open`: one program a segment. The seeds, then the first pick.
- `nominate`: one program a segment. Its candidates are the largest of what the groups left: each its four
  best. No token that a group holds back beats its fourth, so the largest fourth is what a pick has to beat.
- `absorb`: one program a tile. v against the accepted picks, with the minimum in the epilogue: nothing is
  stored but v, and the four best of each group for the next `nominate`.
- `finish`: one program a segment. The textbook, until the budget is met: right whatever the planned rounds
  have left, but one program reads all tokens for every pick.

Bytes: `absorb` reads the segment's tokens once a round, twice for 33 to 48 and 65 to 96 accepted picks
(blocks are powers of 2), and 28 bytes a token besides; `prepare` reads them once, twice without given norms;
`typical` once. `nominate` reads C tokens, and 2 bytes a token of the segment at every step of a bisection.
Operations: m · d multiply-adds for every accepted pick, their number rounded up to 16 (97 to 112: to 128), on
matrix units; C² · d a round in `nominate`; 128 · m · d once in `prepare`.

Ties go to the lowest position. Zero tokens, and tokens that are not finite, have value 0 and change no other
value. When no value is above 0, all values are 0 for good: the rest goes out by position at once. A cosine is
the product of the rounded û over their own norms, which are products of the same kind: duplicates are at 0.

Limits: 2³¹ − 2 tokens a segment, whose position shares 64 bits with its value; 128 candidates a round, whose
product fills one program's registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels.common import LARGEST_NORM, ZERO_DISTANCE, ZERO_NORM, ZERO_SHARE, Traffic

#: Tokens in a group.
GROUP = tl.constexpr(16)
#: How many of its largest values a group hands to `nominate`: a power of 2.
KEEP = tl.constexpr(4)
#: Tokens in a tile.
BLOCK_M = tl.constexpr(128)
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
#: Below every key of a typical token, which may be negative.
NO_TYPICAL = tl.constexpr(-(2**63))

#: A segment's state: picks made, picks whose distances v knows, columns that `absorb` is to take in.
COUNT, MET, ACCEPTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
STATE = tl.constexpr(3)

TRITON_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _key(value, position):
    """What orders by value, then by the lower position. -1 for a value below 0: picked, or no token."""
    bits = value.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(value >= 0, (bits << 32) | (position ^ LAST), NO_KEY)


@triton.jit
def _position(key):
    return (key & 0xFFFFFFFF) ^ LAST


@triton.jit
def _value(key):
    return (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _positions_of(tile, size):
    """The positions of a tile's tokens, [BLOCK_M] group by group, and which of them exist."""
    groups = tl.cdiv(size, GROUP).to(tl.int32)
    offs = tl.arange(0, BLOCK_M)
    group = (offs // GROUP + tile * (BLOCK_M // GROUP)).to(tl.int32)
    position = group + (offs % GROUP) * groups
    return position, (group < groups) & (position < size)


@triton.jit
def _centered(
    tokens_ptr,
    stride_tokens_m,
    stride_tokens_d,
    origin_ptr,
    stride_origin_d,
    row,
    mask,
    offs_d,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Tokens, and tokens − origin, in fp32, [rows, BLOCK_D]; zeros past the width."""
    pointers = tokens_ptr + row[:, None] * stride_tokens_m + offs_d[None, :] * stride_tokens_d
    if WIDTH % BLOCK_D == 0:
        x = tl.load(pointers, mask=mask[:, None], other=0.0).to(tl.float32)
    else:
        x = tl.load(pointers, mask=mask[:, None] & (offs_d < WIDTH)[None, :], other=0.0).to(tl.float32)
    centered = x
    if origin_ptr is not None:
        origin = tl.load(origin_ptr + offs_d * stride_origin_d, mask=offs_d < WIDTH, other=0.0)
        centered = x - origin.to(tl.float32)[None, :]
    return x, centered


@triton.jit
def _directions(
    tokens_ptr,
    stride_tokens_m,
    stride_tokens_d,
    origin_ptr,
    stride_origin_d,
    row,
    mask,
    inverse,
    offs_d,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """û in fp32, [rows, BLOCK_D]; zeros without a direction, and past the width."""
    _, centered = _centered(
        tokens_ptr,
        stride_tokens_m,
        stride_tokens_d,
        origin_ptr,
        stride_origin_d,
        row,
        mask,
        offs_d,
        WIDTH,
        BLOCK_D,
    )
    return tl.where(inverse[:, None] > 0, centered, 0.0) * inverse[:, None]


@triton.jit
def _write_columns(
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
    for first in range(0, WIDTH, BLOCK_D):
        offs_d = first + tl.arange(0, BLOCK_D)
        unit = _directions(
            tokens_ptr,
            stride_tokens_m,
            stride_tokens_d,
            origin_ptr,
            stride_origin_d,
            row,
            mask,
            inverse,
            offs_d,
            WIDTH,
            BLOCK_D,
        )
        pointers = columns_ptr + offs_c[:, None] * stride_columns_c + offs_d[None, :]
        stored = mask[:, None]
        if WIDTH % BLOCK_D != 0:
            stored &= (offs_d < WIDTH)[None, :]
        tl.store(pointers, unit.to(columns_ptr.dtype.element_ty), mask=stored)


@triton.jit
def _distance(product, scale, column_scale):
    """1 − cosine of rows and columns, 0 between duplicates, infinite to a column without a direction."""
    distance = 1 - product * scale[:, None] * column_scale[None, :]
    distance = tl.where(distance < ZERO_DISTANCE, 0.0, distance)
    return tl.where(column_scale[None, :] > 0, distance, float("inf"))


@triton.jit(do_not_specialize=["segments"])
def _prepare_kernel(
    # tensors
    tokens_ptr,  # [M, d]
    origin_ptr,  # [g, d] or None, which is 0
    given_ptr,  # [M] 1 / ‖x − origin‖, or None
    rows_ptr,  # int64 [N], ascending in each segment
    cu_segments_ptr,  # int64 [g + 1]
    cu_tiles_ptr,  # int64 [g + 1]
    tile_segment_ptr,  # int64 [tiles], g where there is no tile
    inverse_ptr,  # fp32 [N] 1 / ‖x − origin‖, 0 without a direction
    scale_ptr,  # fp32 [N] 1 / ‖û as rounded for the products‖, 0 without a direction
    value_ptr,  # fp32 [N]
    part_ptr,  # fp32 [tiles, d] the tiles' sums of û
    # sizes
    segments,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    stride_given_m,
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
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    position, mask = _positions_of(program - tl.load(cu_tiles_ptr + segment), size)
    row = tl.load(rows_ptr + start + position, mask=mask, other=0)
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    offs_d = tl.arange(0, BLOCK_D)

    if given_ptr is not None:
        inverse = tl.load(given_ptr + row * stride_given_m, mask=mask, other=0.0).to(tl.float32)
    else:
        square = tl.zeros([BLOCK_M], tl.float32)
        centered_square = tl.zeros([BLOCK_M], tl.float32)
        for first in range(0, WIDTH, BLOCK_D):
            x, centered = _centered(
                tokens_ptr,
                stride_tokens_m,
                stride_tokens_d,
                origin_ptr,
                stride_origin_d,
                row,
                mask,
                first + offs_d,
                WIDTH,
                BLOCK_D,
            )
            square += tl.sum(x * x, axis=1)
            centered_square += tl.sum(centered * centered, axis=1)
        norm, centered_norm = tl.sqrt_rn(square), tl.sqrt_rn(centered_square)
        has_direction = (norm >= ZERO_NORM) & (norm <= LARGEST_NORM)
        has_direction &= centered_norm > norm * ZERO_SHARE
        inverse = tl.where(has_direction, 1 / tl.where(has_direction, centered_norm, 1.0), 0.0)
    inverse = tl.where(inverse > 0, inverse, 0.0)  # NaN too

    product = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        unit = _directions(
            tokens_ptr,
            stride_tokens_m,
            stride_tokens_d,
            origin_ptr,
            stride_origin_d,
            row,
            mask,
            inverse,
            first + offs_d,
            WIDTH,
            BLOCK_D,
        )
        tl.store(
            part_ptr + program * stride_part_t + first + offs_d,
            tl.sum(unit, axis=0),
            mask=first + offs_d < WIDTH,
        )
        rounded = unit.to(DOT_DTYPE)
        product = tl.dot(rounded, tl.trans(rounded), product, input_precision=INPUT_PRECISION)
    offs_m = tl.arange(0, BLOCK_M)
    square = tl.sum(tl.where(offs_m[:, None] == offs_m[None, :], product, 0.0), axis=1)
    scale = tl.where(square > 0, 1 / tl.sqrt_rn(tl.where(square > 0, square, 1.0)), 0.0)
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
    position, mask = _positions_of(program - tl.load(cu_tiles_ptr + segment), size)
    row = tl.load(rows_ptr + start + position, mask=mask, other=0)
    inverse = tl.load(inverse_ptr + start + position, mask=mask, other=0.0)
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    offs_d = tl.arange(0, BLOCK_D)
    typical = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        unit = _directions(
            tokens_ptr,
            stride_tokens_m,
            stride_tokens_d,
            origin_ptr,
            stride_origin_d,
            row,
            mask,
            inverse,
            first + offs_d,
            WIDTH,
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
def _fill(value_ptr, picks_ptr, gain_ptr, start, gain, limit, room):
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
    count = tl.load(cu_seeds_ptr + segment + 1) - first_seed
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
        limit = tl.where(best >> 32 > 0, 0, tl.where(best >> 32 == 0, _position(best), size))
        tl.debug_barrier()
        picks_end, gain_end = picks_ptr + count, gain_ptr + count
        count += _fill(value_ptr, picks_end, gain_end, start, float("inf"), limit, budget - count)
        if (count < budget) & (best > NO_TYPICAL):
            tl.store(picks_ptr + count, start + _position(best))
            tl.store(gain_ptr + count, float("inf"))
            tl.store(value_ptr + _position(best), -1.0)
            met = count
            count += 1
    tl.store(state_ptr + segment * STATE + COUNT, count)
    tl.store(state_ptr + segment * STATE + MET, met)
    tl.store(state_ptr + segment * STATE + ACCEPTED, 0)


@triton.jit
def _count_above(best_ptr, entries, bar):
    """How many of the groups' keys are above the bar."""
    number = tl.zeros([], tl.int32)
    for first in range(0, entries, BLOCK_SCAN):
        offs = first + tl.arange(0, BLOCK_SCAN)
        key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
        number += tl.sum((key > bar).to(tl.int32), axis=0)
    return number


@triton.jit
def _choose(best_ptr, entries, limit):
    """Where to cut the groups' keys: the largest, the cut, and the bar that a pick must beat.

    Above the cut stand at most `limit` keys, the candidates; the bar bounds all other tokens.
    """
    top = tl.full([], NO_KEY, tl.int64)
    bar = tl.full([], NO_KEY, tl.int64)
    for first in range(0, entries, BLOCK_SCAN):
        offs = first + tl.arange(0, BLOCK_SCAN)
        key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
        top = tl.maximum(top, tl.max(key, axis=0))
        # The last that a group left beats what the group held back: to equal it is enough.
        bar = tl.maximum(bar, tl.max(tl.where(offs % KEEP == KEEP - 1, key - 1, NO_KEY), axis=0))
    low, high, cut = bar, top, bar
    number = _count_above(best_ptr, entries, cut)
    if number > limit:
        while number != limit:
            cut = low + (high - low) // 2
            number = _count_above(best_ptr, entries, cut)
            if number > limit:
                low = cut
            else:
                high = cut
        for first in range(0, entries, BLOCK_SCAN):
            offs = first + tl.arange(0, BLOCK_SCAN)
            key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
            bar = tl.maximum(bar, tl.max(tl.where(key <= cut, key, NO_KEY), axis=0))
    return top, cut, bar


@triton.jit
def _collect(best_ptr, entries, cut, scratch_ptr, candidates_ptr):
    """Write the positions of the keys above the cut, in ascending order; how many there are."""
    number = tl.zeros([], tl.int32)
    for first in range(0, entries, BLOCK_SCAN):
        offs = first + tl.arange(0, BLOCK_SCAN)
        key = tl.load(best_ptr + offs, mask=offs < entries, other=NO_KEY)
        above = (key > cut).to(tl.int32)
        place = number + tl.cumsum(above, axis=0) - 1
        tl.store(scratch_ptr + place, _position(key).to(tl.int32), mask=above > 0)
        number += tl.sum(above, axis=0)
    tl.debug_barrier()
    offs = tl.arange(0, CANDIDATES)
    position = tl.load(scratch_ptr + offs, mask=offs < number, other=LAST)
    # A copy of the same numbers, because one vector cannot be read along both axes.
    other = tl.load(scratch_ptr + offs, mask=offs < number, other=LAST)
    rank = tl.sum((other[None, :] < position[:, None]).to(tl.int32), axis=1)
    tl.store(candidates_ptr + rank, position, mask=offs < number)
    return number


@triton.jit
def _contest(apart_ptr, slots_ptr, gain_ptr, value, position, bar, number, room):
    """The textbook greedy among the candidates, while the best beats the bar; how many picks stand.

    Candidates stand in ascending order, so their slots break ties as their positions would.
    """
    offs = tl.arange(0, CANDIDATES)
    taking_part = offs < number
    # Among equal values, those below the bar's position beat it.
    below = tl.sum((taking_part & (position < _position(bar))).to(tl.int64), axis=0)
    bar = tl.maximum((bar >> 32 << 32) + (below ^ LAST), NO_KEY)
    key = _key(tl.where(taking_part, value, -1.0), offs)
    accepted = tl.zeros([], tl.int64)
    best = tl.max(key, axis=0)
    while (best > bar) & (accepted < room):
        slot = _position(best)
        tl.store(slots_ptr + accepted, slot.to(tl.int32))
        tl.store(gain_ptr + accepted, _value(best))
        distance = tl.load(apart_ptr + slot * CANDIDATES + offs)
        key = tl.where(offs == slot, NO_KEY, tl.minimum(key, _key(distance, offs)))
        accepted += 1
        best = tl.max(key, axis=0)
    return accepted


@triton.jit(do_not_specialize=["limit"])
def _nominate_kernel(
    # tensors
    tokens_ptr,  # [M, d]
    origin_ptr,  # [g, d] or None, which is 0
    rows_ptr,  # int64 [N]
    cu_segments_ptr,  # int64 [g + 1]
    budgets_ptr,  # int64 [g]
    cu_budgets_ptr,  # int64 [g + 1]
    cu_tiles_ptr,  # int64 [g + 1]
    inverse_ptr,  # fp32 [N]
    scale_ptr,  # fp32 [N]
    value_ptr,  # fp32 [N]
    best_ptr,  # int64 [tiles, BLOCK_M / GROUP, KEEP] keys
    state_ptr,  # int64 [g, STATE]
    scratch_ptr,  # int32 [g, CANDIDATES]
    candidates_ptr,  # int32 [g, CANDIDATES] positions
    candidate_scale_ptr,  # fp32 [g, CANDIDATES]
    apart_ptr,  # fp32 [g, CANDIDATES, CANDIDATES] distances of all candidates (last axis) to each
    columns_ptr,  # [g, CANDIDATES, d] the candidates' û, rounded for the products
    column_scale_ptr,  # fp32 [g, CANDIDATES] of the accepted ones; 0 past them
    slots_ptr,  # int32 [g, CANDIDATES] which candidates were accepted, in order
    picks_ptr,  # int64 [total] where they stand in rows
    gain_ptr,  # fp32 [total]
    # sizes
    limit,
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
    state_ptr += segment * STATE
    count = tl.load(state_ptr + COUNT)
    met = tl.load(state_ptr + MET)
    budget = tl.load(budgets_ptr + segment)
    if count == budget:
        return
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    rows_ptr += start
    inverse_ptr += start
    scale_ptr += start
    value_ptr += start
    picks_ptr += tl.load(cu_budgets_ptr + segment)
    gain_ptr += tl.load(cu_budgets_ptr + segment)
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    candidates_ptr += segment * CANDIDATES
    candidate_scale_ptr += segment * CANDIDATES
    column_scale_ptr += segment * CANDIDATES
    slots_ptr += segment * CANDIDATES
    apart_ptr += segment * CANDIDATES * CANDIDATES
    columns_ptr += segment * stride_columns_g
    offs_c = tl.arange(0, CANDIDATES)
    offs_d = tl.arange(0, BLOCK_D)

    bar = tl.full([], NO_KEY, tl.int64)
    number = tl.zeros([], tl.int64)
    accepted = tl.zeros([], tl.int64)
    pending = count - met
    if pending > 0:
        number = tl.minimum(pending, CANDIDATES)
        pick = tl.load(picks_ptr + met + offs_c, mask=offs_c < number, other=0)
        tl.store(candidates_ptr + offs_c, (pick - start).to(tl.int32), mask=offs_c < number)
    else:
        best_ptr += tl.load(cu_tiles_ptr + segment) * (BLOCK_M // GROUP * KEEP)
        entries = tl.cdiv(size, GROUP) * KEEP
        top, cut, bar = _choose(best_ptr, entries, limit)
        if top >> 32 > 0:
            scratch_ptr += segment * CANDIDATES
            number = _collect(best_ptr, entries, cut, scratch_ptr, candidates_ptr).to(tl.int64)
        else:
            picks_end, gain_end = picks_ptr + count, gain_ptr + count
            count += _fill(value_ptr, picks_end, gain_end, start, 0.0, size, budget - count)
            met = count

    if number > 0:
        tl.debug_barrier()
        mask_c = offs_c < number
        position = tl.load(candidates_ptr + offs_c, mask=mask_c, other=0)
        row = tl.load(rows_ptr + position, mask=mask_c, other=0)
        inverse = tl.load(inverse_ptr + position, mask=mask_c, other=0.0)
        scale = tl.load(scale_ptr + position, mask=mask_c, other=0.0)
        tl.store(candidate_scale_ptr + offs_c, scale)
        _write_columns(
            columns_ptr,
            tokens_ptr,
            origin_ptr,
            row,
            mask_c,
            inverse,
            stride_tokens_m,
            stride_tokens_d,
            stride_origin_d,
            stride_columns_c,
            WIDTH,
            CANDIDATES,
            BLOCK_D,
        )
        tl.debug_barrier()

        if pending > 0:
            tl.store(slots_ptr + offs_c, offs_c, mask=mask_c)
            tl.store(column_scale_ptr + offs_c, tl.load(candidate_scale_ptr + offs_c))
            accepted = number
            met += number
        else:
            product = tl.zeros([CANDIDATES, CANDIDATES], tl.float32)
            for first in range(0, WIDTH, BLOCK_D):
                pointers = columns_ptr + offs_c[:, None] * stride_columns_c + (first + offs_d)[None, :]
                mask = mask_c[:, None]
                if WIDTH % BLOCK_D != 0:
                    mask &= (first + offs_d < WIDTH)[None, :]
                column = tl.load(pointers, mask=mask, other=0.0)
                product = tl.dot(column, tl.trans(column), product, input_precision=INPUT_PRECISION)
            # Read along either axis, and only now: what lives through a product takes its registers.
            scale = tl.load(candidate_scale_ptr + offs_c)
            other = tl.load(candidate_scale_ptr + offs_c)
            distance = _distance(product, scale, other)
            # Transposed: a pick reads its distances in one row.
            tl.store(apart_ptr + offs_c[None, :] * CANDIDATES + offs_c[:, None], distance)
            tl.debug_barrier()
            position = tl.load(candidates_ptr + offs_c, mask=mask_c, other=0)
            value = tl.load(value_ptr + position, mask=mask_c, other=-1.0)
            room = budget - count
            gain_ptr += count
            accepted = _contest(apart_ptr, slots_ptr, gain_ptr, value, position, bar, number, room)
            tl.debug_barrier()
            mask_a = offs_c < accepted
            slot = tl.load(slots_ptr + offs_c, mask=mask_a, other=0)
            pick = tl.load(candidates_ptr + slot, mask=mask_a, other=0)
            scale = tl.load(candidate_scale_ptr + slot, mask=mask_a, other=0.0)
            tl.store(column_scale_ptr + offs_c, scale)
            tl.store(picks_ptr + count + offs_c, start + pick, mask=mask_a)
            tl.store(value_ptr + pick, tl.full([CANDIDATES], -1.0, tl.float32), mask=mask_a)
            count += accepted
            met = count
    if count == budget:
        accepted = tl.zeros([], tl.int64)
    tl.store(state_ptr + COUNT, count)
    tl.store(state_ptr + MET, met)
    tl.store(state_ptr + ACCEPTED, accepted)


@triton.jit
def _lower(
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
    """The minimum of `nearest` and the distances to COLUMNS accepted picks."""
    offs_c = first_column + tl.arange(0, COLUMNS)
    slot = tl.load(slots_ptr + offs_c, mask=offs_c < accepted, other=0)
    offs_d = tl.arange(0, BLOCK_D)
    product = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        unit = _directions(
            tokens_ptr,
            stride_tokens_m,
            stride_tokens_d,
            origin_ptr,
            stride_origin_d,
            row,
            mask,
            inverse,
            first + offs_d,
            WIDTH,
            BLOCK_D,
        )
        pointers = columns_ptr + slot[:, None] * stride_columns_c + (first + offs_d)[None, :]
        if WIDTH % BLOCK_D == 0:
            column = tl.load(pointers)
        else:
            column = tl.load(pointers, mask=(first + offs_d < WIDTH)[None, :], other=0.0)
        rounded = unit.to(columns_ptr.dtype.element_ty)
        product = tl.dot(rounded, tl.trans(column), product, input_precision=INPUT_PRECISION)
    # Read only now: what lives through a product takes its registers.
    scale = tl.load(scale_ptr + position, mask=mask, other=0.0)
    column_scale = tl.load(column_scale_ptr + offs_c)
    return tl.minimum(nearest, tl.min(_distance(product, scale, column_scale), axis=1))


@triton.jit
def _leave_best(best_ptr, tile, value, position):
    """Each group's best keys, the largest first."""
    key = tl.reshape(_key(value, position), [BLOCK_M // GROUP, GROUP])
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
    position, mask = _positions_of(tile, size)
    row = tl.load(rows_ptr + start + position, mask=mask, other=0)
    inverse = tl.load(inverse_ptr + start + position, mask=mask, other=0.0)
    scale_ptr += start
    value_ptr += start
    value = tl.load(value_ptr + position, mask=mask, other=-1.0)
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    columns_ptr += segment * stride_columns_g
    column_scale_ptr += segment * CANDIDATES
    slots_ptr += segment * CANDIDATES

    # The accepted columns, rounded up to 16, as blocks of 128, 64, 32 and 16: two of them at most, because 97
    # to 112, which would take three, go as 128.
    done = tl.zeros([], tl.int64)
    for halving in tl.static_range(0, 4):
        if accepted - done > (CANDIDATES >> halving) - (32 if halving == 0 else 16):
            value = _lower(
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
    _leave_best(best_ptr, tile, tl.where(mask, value, -1.0), position)


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
    rows_ptr += start
    inverse_ptr += start
    scale_ptr += start
    value_ptr += start
    best_ptr += first_tile * (BLOCK_M // GROUP * KEEP)
    picks_ptr += tl.load(cu_budgets_ptr + segment)
    gain_ptr += tl.load(cu_budgets_ptr + segment)
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
                pick = _position(top)
                tl.store(picks_ptr + count, start + pick)
                tl.store(gain_ptr + count, _value(top))
                tl.store(value_ptr + pick, -1.0)
                count += 1
            else:
                _fill(value_ptr, picks_ptr + count, gain_ptr + count, start, 0.0, size, budget - count)
                count = budget
        met += 1
        if count < budget:
            row = tl.load(rows_ptr + pick) + tl.zeros([FEWEST], tl.int64)
            inverse = tl.load(inverse_ptr + pick) + tl.zeros([FEWEST], tl.float32)
            _write_columns(
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
                BLOCK_D,
            )
            tl.store(slots_ptr, 0)
            tl.store(column_scale_ptr + offs_c, tl.where(offs_c == 0, tl.load(scale_ptr + pick), 0.0))
            tl.debug_barrier()
            for tile in range(0, tiles):
                position, mask_m = _positions_of(tile, size)
                value = tl.load(value_ptr + position, mask=mask_m, other=-1.0)
                value = _lower(
                    value,
                    0,
                    1,
                    tokens_ptr,
                    origin_ptr,
                    scale_ptr,
                    tl.load(rows_ptr + position, mask=mask_m, other=0),
                    position,
                    mask_m,
                    tl.load(inverse_ptr + position, mask=mask_m, other=0.0),
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
                _leave_best(best_ptr, tile, tl.where(mask_m, value, -1.0), position)
            tl.debug_barrier()


def launch_config(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes, warps and stages, by the tokens' width and type alone."""
    # An fp32 product keeps three copies of what it multiplies in registers.
    widest = 64 if dtype.itemsize == 2 else 16
    return dict(BLOCK_D=min(widest, max(16, triton.next_power_of_2(width))), num_warps=8, num_stages=2)


def tile_count(rows: int, segments: int, bound: int) -> int:
    """How many tiles `rows` rows in `segments` segments of at most `bound` can have."""
    return min(rows // BLOCK_M.value + segments, triton.cdiv(bound, BLOCK_M.value) * segments)


def planned_rounds(total: int, bound: int, seeds: int, limit: int) -> int:
    """How many rounds to launch: enough for ordinary tokens, about twice what photographs need.

    A round whose candidates all stand accepts `limit` picks; most rounds accept half of that or more. Not
    enough rounds costs time in the finisher; too many cost two launches each that find nothing to do (some
    2 to 5 microseconds on a GPU, an estimate).

    Args:
        total: an upper bound of the sum of the budgets.
        bound: an upper bound of a segment's tokens.
        seeds: how many there are in all segments.
        limit: the candidates of a round.
    """
    picks = min(total, bound)
    opening = triton.cdiv(max(1, min(seeds, bound)), CANDIDATES.value)
    return opening + min(picks, 16 + 2 * triton.cdiv(picks, limit))


def traffic(sizes: Sequence[int], budgets: Sequence[int], d: int, dtype: torch.dtype, limit: int) -> Traffic:
    """What a selection with given norms takes, at least: in rounds that accept all their candidates."""
    moved = products = 0
    for size, budget in zip(sizes, budgets, strict=True):
        rounds = triton.cdiv(budget, limit)
        columns = rounds * limit * d * dtype.itemsize
        moved += (2 + rounds) * size * (d * dtype.itemsize + 16) + 2 * columns
        products += (triton.cdiv(budget, 16) * 16 + BLOCK_M.value) * size * d + rounds * limit * limit * d
    return Traffic(moved, products=products)


def rounds_launch(
    picks: Tensor,
    gain: Tensor,
    *,
    tokens: Tensor,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    cu_budgets: Tensor,
    seeds: Tensor,
    cu_seeds: Tensor,
    cu_tiles: Tensor,
    tile_segment: Tensor,
    inverse: Tensor,
    scale: Tensor,
    value: Tensor,
    part: Tensor,
    total: Tensor,
    typical: Tensor,
    best: Tensor,
    state: Tensor,
    scratch: Tensor,
    candidates: Tensor,
    candidate_scale: Tensor,
    apart: Tensor,
    columns: Tensor,
    column_scale: Tensor,
    slots: Tensor,
    limit: int,
    rounds: int,
    input_precision: str,
) -> None:
    """Launch the whole selection.

    Shapes and types stand at the kernels. Tensors other than tokens, origin and inverse_norm are contiguous.
    `limit` is the number of a round's candidates, 1 to `CANDIDATES`; `rounds` how many to launch.
    """
    segments, width = len(budgets), tokens.shape[1]
    config = launch_config(width, tokens.dtype)
    common = dict(
        tokens_ptr=tokens,
        origin_ptr=origin,
        rows_ptr=rows,
        cu_segments_ptr=cu_segments,
        cu_tiles_ptr=cu_tiles,
        inverse_ptr=inverse,
        scale_ptr=scale,
        stride_tokens_m=tokens.stride(0),
        stride_tokens_d=tokens.stride(1),
        stride_origin_g=0 if origin is None else origin.stride(0),
        stride_origin_d=0 if origin is None else origin.stride(1),
        WIDTH=width,
        enable_fp_fusion=False,
        **config,
    )
    tiles = (len(tile_segment),)
    # Half the channels at a time: this product and the sums of û share the registers.
    half = {**common, "BLOCK_D": max(16, config["BLOCK_D"] // 2)}
    _prepare_kernel[tiles](
        given_ptr=inverse_norm,
        tile_segment_ptr=tile_segment,
        value_ptr=value,
        part_ptr=part,
        segments=segments,
        stride_given_m=0 if inverse_norm is None else inverse_norm.stride(0),
        stride_part_t=part.stride(0),
        DOT_DTYPE=TRITON_DTYPE[columns.dtype],
        INPUT_PRECISION=input_precision,
        **half,
    )
    opening = dict(budgets_ptr=budgets, cu_seeds_ptr=cu_seeds, seeds_ptr=seeds)
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
        **opening,
    )
    _typical_kernel[tiles](
        tile_segment_ptr=tile_segment,
        total_ptr=total,
        typical_ptr=typical,
        segments=segments,
        stride_total_g=total.stride(0),
        **opening,
        **common,
    )
    _open_kernel[(segments,)](
        cu_segments_ptr=cu_segments,
        cu_tiles_ptr=cu_tiles,
        scale_ptr=scale,
        typical_ptr=typical,
        value_ptr=value,
        cu_budgets_ptr=cu_budgets,
        state_ptr=state,
        picks_ptr=picks,
        gain_ptr=gain,
        num_warps=8,
        enable_fp_fusion=False,
        **opening,
    )
    columns_of = dict(
        value_ptr=value,
        best_ptr=best,
        state_ptr=state,
        columns_ptr=columns,
        column_scale_ptr=column_scale,
        slots_ptr=slots,
        stride_columns_g=columns.stride(0),
        stride_columns_c=columns.stride(1),
        INPUT_PRECISION=input_precision,
        **common,
    )
    picks_of = dict(budgets_ptr=budgets, cu_budgets_ptr=cu_budgets, picks_ptr=picks, gain_ptr=gain)
    for _ in range(rounds):
        _nominate_kernel[(segments,)](
            scratch_ptr=scratch,
            candidates_ptr=candidates,
            candidate_scale_ptr=candidate_scale,
            apart_ptr=apart,
            limit=limit,
            **picks_of,
            **columns_of,
        )
        _absorb_kernel[tiles](tile_segment_ptr=tile_segment, segments=segments, **columns_of)
    _finish_kernel[(segments,)](**picks_of, **columns_of)
