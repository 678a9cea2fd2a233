"""The whole greedy of a segment in one launch: `coverage`, `max_min` and `max_mean` over stored similarities.

    coverage   argmax_j Σ_i max(0, sim⁺(i, j) − best_i)         METHOD §3, by §5's way with exact gains
    max_min    argmax_i min_{s picked} (1 − cosine(i, s))
    max_mean   argmax_i (1 − mean_{s picked} cosine(i, s))

One program a segment, all segments of a group at once. `state` holds what a pick is chosen by:

    coverage   the gain, a whole number. A pick s moves the tokens Δ = {i: sim⁺(i, s) > best_i}; only their
               rows are read, to take clamp(sim⁺(i, j), old best_i, new best_i) − old best_i out of gain_j
    max_min    the distance to the nearest pick
    max_mean   −Σ_{s picked} cosine(i, s)

and, while no pick of `max_min` or `max_mean` has a direction, how typical a token is, û_i · Σ û. What is
picked has the lowest state of all, for good. Gains are exact and depend on no order.

Two forms of one body; a segment's size alone decides. *Staged*: `directions` and `similarity` have run, with
many programs a segment. *Fused*, for segments of up to 64 tokens: the program first does, in the same tiles
and the same order, what they would have done for its segment: similarity, diversity and selection in one
launch. The bits are the same.

Segments of up to 4,096 tokens keep state and best in registers; larger ones stream them from memory. The
staged form is compiled twice for each objective: with few warps for up to 1,024 tokens, with many for more.

`coverage` reads Σ|Δ| + b rows of m entries for b picks (Σ|Δ| is 2.4 to 5.8 times m, METHOD §5), the others
b rows; fused adds what `directions` and `similarity` count. Who moves from what to what, 12 bytes a row, is
read by every warp, from the cache after the first.
Ties go to the lowest row. A zero token's value is 0, and picked it changes no other. Seeds come first, in
their order. Limits: gains are int64, in units of up to 2^22: right for 2^20 tokens and far more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels import common
from trimtok_fast.kernels import directions as directions_kernel
from trimtok_fast.kernels.common import Traffic
from trimtok_fast.kernels.directions import directions_tile
from trimtok_fast.kernels.similarity import PAD, similarity_tile

#: The gain of what is picked: no gain is as large, so nothing taken out of it or added brings it back.
TAKEN = tl.constexpr(-(2**62))
#: Listed tokens whose shares of a column are added up in an int32.
AT_ONCE = tl.constexpr(256)


@triton.jit
def _opening(partial_ptr, columns, size, padded, tiles, UNIT: tl.constexpr, OBJECTIVE: tl.constexpr):
    """State before the first pick: the column sums."""
    total = tl.zeros(columns.shape, tl.int64)
    for tile in range(0, tiles):
        total += tl.load(partial_ptr + tile * padded + columns, mask=columns < padded, other=0).to(tl.int64)
    if OBJECTIVE == "coverage":
        state = tl.where(columns < size, total, TAKEN)
    else:
        state = tl.where(columns < size, total.to(tl.float32) / UNIT, float("-inf"))
    return state


@triton.jit
def _largest(state, present, count, OBJECTIVE: tl.constexpr):
    """The largest value in a tile, the lowest column that has it."""
    if OBJECTIVE == "max_mean":
        # count times the value of METHOD §3, which spares a division
        state = tl.where(present | (state == float("-inf")), state + count, 0.0)
    return tl.max(state, 0, return_indices=True)


@triton.jit
def absorb(state, cosine, present, count, OBJECTIVE: tl.constexpr):
    """What a pick with a direction makes of the state of `max_min` and `max_mean`."""
    taken = state == float("-inf")
    if OBJECTIVE == "max_min":
        distance = tl.where(present, 1.0 - cosine, 0.0)
        state = tl.where(count == 0, distance, tl.minimum(state, distance))
    else:
        state = tl.where(count == 0, 0.0, state) - cosine
    return tl.where(taken, float("-inf"), state)


@triton.jit
def list_moved(moved_ptr, number, slot_rows, columns, best, similarity):
    """Append the tokens of a tile that move to the list: who, from what, to what."""
    moves = similarity > best
    place = moved_ptr + number + tl.cumsum(moves.to(tl.int32), 0) - 1
    tl.store(place, columns.to(tl.int32), mask=moves)
    tl.store(place + slot_rows, best, mask=moves)
    tl.store(place + 2 * slot_rows, similarity, mask=moves)
    return number + tl.sum(moves.to(tl.int32), 0)


@triton.jit
def _hand_over(gain, matrix_ptr, moved_ptr, number, slot_rows, columns, padded, BLOCK_R: tl.constexpr):
    """Take out of the gains of a tile what the listed tokens no longer give."""
    offs_r = tl.arange(0, BLOCK_R)
    inside = (columns < padded)[None, :]
    # What several rows of the list take out of a column stays apart while they are read: adding it up is work
    # for many warps. An int32 has room for AT_ONCE entries of up to 2^22.
    for first in range(0, number, AT_ONCE * BLOCK_R):
        total = tl.zeros([BLOCK_R, columns.shape[0]], tl.int32)
        for begin in range(first, tl.minimum(first + AT_ONCE * BLOCK_R, number), BLOCK_R):
            listed = moved_ptr + begin + offs_r
            mask_r = begin + offs_r < number
            row = tl.load(listed, mask=mask_r, other=0).to(tl.int64)
            old = tl.load(listed + slot_rows, mask=mask_r, other=0)[:, None]
            new = tl.load(listed + 2 * slot_rows, mask=mask_r, other=0)[:, None]
            entry = matrix_ptr + row[:, None] * padded + columns[None, :]
            entry = tl.load(entry, mask=mask_r[:, None] & inside, other=0)
            total += tl.minimum(tl.maximum(entry.to(tl.int32), old), new) - old
        gain -= tl.sum(total.to(tl.int64), 0)
    return gain


@triton.jit
def largest_streamed(state_ptr, scale_ptr, padded, count, OBJECTIVE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The largest value in a segment, the lowest column that has it."""
    lowest: tl.constexpr = TAKEN if OBJECTIVE == "coverage" else float("-inf")
    top = tl.full([], lowest, state_ptr.dtype.element_ty)
    pick = tl.full([], 0, tl.int32)
    for begin in range(0, padded, BLOCK_N):
        at = begin + tl.arange(0, BLOCK_N)
        state = tl.load(state_ptr + at, mask=at < padded, other=lowest)
        present = tl.load(scale_ptr + at, mask=at < padded, other=0.0) > 0
        value, place = _largest(state, present, count, OBJECTIVE)
        pick = tl.where(value > top, (begin + place).to(tl.int32), pick)
        top = tl.maximum(top, value)
    return top, pick


@triton.jit
def _list_moved_streamed(moved_ptr, best_ptr, row_ptr, slot_rows, padded, BLOCK_N: tl.constexpr):
    """List the tokens of a segment that a pick moves, and raise their best."""
    number = 0
    for begin in range(0, padded, BLOCK_N):
        at = begin + tl.arange(0, BLOCK_N)
        best = tl.load(best_ptr + at, mask=at < padded, other=0)
        similarity = tl.load(row_ptr + at, mask=at < padded, other=0).to(tl.int32)
        number = list_moved(moved_ptr, number, slot_rows, at, best, similarity)
        tl.store(best_ptr + at, similarity, mask=(at < padded) & (similarity > best))
    return number


@triton.jit
def value_of(top, count, OBJECTIVE: tl.constexpr, UNIT: tl.constexpr):
    """The gain of a pick, from the largest state; infinite for a first pick of `max_min` and `max_mean`."""
    value = float("inf")
    if OBJECTIVE == "coverage":
        value = top.to(tl.float32) / UNIT
    elif count > 0:
        value = top if OBJECTIVE == "max_min" else top / count
    return value


@triton.jit
def _pick_in_registers(
    # out and lists, from where the segment begins in each: int64, fp32; rows int64, seeds int64
    indices_ptr,
    gain_ptr,
    rows_ptr,
    seeds_ptr,
    # the segment's slot: fp32 [rows], [padded, padded], int32 [tiles, padded], int32 [3, slot_rows]
    scale_ptr,
    matrix_ptr,
    partial_ptr,
    moved_ptr,
    # sizes
    seeded,
    budget,
    size,
    padded,
    tiles,
    slot_rows,
    # compiled in
    OBJECTIVE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """All picks in a segment of up to BLOCK_N tokens."""
    columns = tl.arange(0, BLOCK_N)
    inside = columns < padded
    state = _opening(partial_ptr, columns, size, padded, tiles, UNIT, OBJECTIVE)
    best = tl.zeros([BLOCK_N], tl.int32)
    present = tl.load(scale_ptr + columns, mask=inside, other=0.0) > 0
    count = 0.0  # picks that have a direction
    for step in range(0, budget):
        value = float("inf")
        if step < seeded:
            pick = tl.load(seeds_ptr + step).to(tl.int32)
        else:
            top, pick = _largest(state, present, count, OBJECTIVE)
            value = value_of(top, count, OBJECTIVE, UNIT)
        tl.store(indices_ptr + step, tl.load(rows_ptr + pick))
        tl.store(gain_ptr + step, value)
        row_ptr = matrix_ptr + pick.to(tl.int64) * padded
        if OBJECTIVE == "coverage":
            similarity = tl.load(row_ptr + columns, mask=inside, other=0).to(tl.int32)
            number = list_moved(moved_ptr, 0, slot_rows, columns, best, similarity)
            best = tl.maximum(best, similarity)
            tl.debug_barrier()
            state = tl.where(columns == pick, TAKEN, state)
            state = _hand_over(state, matrix_ptr, moved_ptr, number, slot_rows, columns, padded, BLOCK_R)
            tl.debug_barrier()  # the list is written anew
        else:
            state = tl.where(columns == pick, float("-inf"), state)
            if tl.load(scale_ptr + pick) > 0:
                cosine = tl.load(row_ptr + columns, mask=inside, other=0.0)
                state = absorb(state, cosine, present, count, OBJECTIVE)
                count += 1.0


@triton.jit
def _pick_streamed(
    # as in `_pick_in_registers`
    indices_ptr,
    gain_ptr,
    rows_ptr,
    seeds_ptr,
    scale_ptr,
    matrix_ptr,
    partial_ptr,
    moved_ptr,
    # the segment's slot: int64 or fp32 [slot_rows], int32 [slot_rows]
    state_ptr,
    best_ptr,
    # sizes
    seeded,
    budget,
    size,
    padded,
    tiles,
    slot_rows,
    # compiled in
    OBJECTIVE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """All picks in a segment of any size, BLOCK_N tokens at a time."""
    columns = tl.arange(0, BLOCK_N)
    for begin in range(0, padded, BLOCK_N):
        at = begin + columns
        inside = at < padded
        state = _opening(partial_ptr, at, size, padded, tiles, UNIT, OBJECTIVE)
        tl.store(state_ptr + at, state, mask=inside)
        if OBJECTIVE == "coverage":
            tl.store(best_ptr + at, tl.zeros([BLOCK_N], tl.int32), mask=inside)
    # Here and below: Triton itself orders no thread's store before another thread's load.
    tl.debug_barrier()
    count = 0.0  # picks that have a direction
    for step in range(0, budget):
        value = float("inf")
        if step < seeded:
            pick = tl.load(seeds_ptr + step).to(tl.int32)
        else:
            top, pick = largest_streamed(state_ptr, scale_ptr, padded, count, OBJECTIVE, BLOCK_N)
            value = value_of(top, count, OBJECTIVE, UNIT)
        tl.store(indices_ptr + step, tl.load(rows_ptr + pick))
        tl.store(gain_ptr + step, value)
        row_ptr = matrix_ptr + pick.to(tl.int64) * padded
        tl.debug_barrier()  # the state that was just compared is written to
        if OBJECTIVE == "coverage":
            number = _list_moved_streamed(moved_ptr, best_ptr, row_ptr, slot_rows, padded, BLOCK_N)
            tl.store(state_ptr + pick, TAKEN)
            tl.debug_barrier()
            for begin in range(0, padded, BLOCK_N):
                at = begin + columns
                gain = tl.load(state_ptr + at, mask=at < padded, other=0)
                gain = _hand_over(gain, matrix_ptr, moved_ptr, number, slot_rows, at, padded, BLOCK_R)
                tl.store(state_ptr + at, gain, mask=at < padded)
        else:
            tl.store(state_ptr + pick, float("-inf"))
            if tl.load(scale_ptr + pick) > 0:
                tl.debug_barrier()
                for begin in range(0, padded, BLOCK_N):
                    at = begin + columns
                    inside = at < padded
                    held = tl.load(state_ptr + at, mask=inside, other=0.0)
                    cosine = tl.load(row_ptr + at, mask=inside, other=0.0)
                    exists = tl.load(scale_ptr + at, mask=inside, other=0.0) > 0
                    tl.store(state_ptr + at, absorb(held, cosine, exists, count, OBJECTIVE), mask=inside)
                count += 1.0
        tl.debug_barrier()


@triton.jit(do_not_specialize=["first", "largest"])
def _fused_kernel(
    # out: int64 [total], fp32 [total]
    indices_ptr,
    gain_ptr,
    # workspace: [slots, slot_rows, WIDTH], fp32 [slots, slot_rows], [slots, slot_rows²], int32 [slots, tiles,
    # slot_rows]; int32 [slots, 3, slot_rows] for `coverage`
    directions_ptr,
    scale_ptr,
    matrix_ptr,
    partial_ptr,
    moved_ptr,
    # tensors: tokens [M, D], origin [g, D], inverse_norm fp32 [M], rows int64 [N]
    tokens_ptr,
    origin_ptr,
    inverse_norm_ptr,
    rows_ptr,
    # int64: [g + 1], [g], where a segment's picks begin [g], places in their segments [seeds], [g + 1]
    cu_segments_ptr,
    budgets_ptr,
    offsets_ptr,
    seeds_ptr,
    cu_seeds_ptr,
    # sizes: the group's first segment, rows of a slot; only segments of up to `largest` tokens are done
    first,
    slot_rows,
    largest,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_g,
    stride_origin_d,
    stride_inverse_norm,
    # compiled in
    OBJECTIVE: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    segment = first + slot
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    budget = tl.load(budgets_ptr + segment)
    if (size > largest) | (budget == 0):
        return
    tiles = tl.cdiv(size, BLOCK_M)
    padded = tl.cdiv(size, PAD) * PAD
    directions_ptr += slot * slot_rows * WIDTH
    scale_ptr += slot * slot_rows
    matrix_ptr += slot * slot_rows * slot_rows
    partial_ptr += slot * (slot_rows // BLOCK_M) * slot_rows
    if OBJECTIVE == "coverage":
        moved_ptr += slot * 3 * slot_rows
    if origin_ptr is not None:
        origin_ptr += segment * stride_origin_g
    for tile in range(0, tiles):
        directions_tile(
            directions_ptr,
            scale_ptr,
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
    tl.debug_barrier()  # Triton itself orders no thread's store before another thread's load
    for column_tile in range(0, tiles):
        for row_tile in range(0, column_tile + 1):
            similarity_tile(
                directions_ptr,
                scale_ptr,
                matrix_ptr,
                partial_ptr,
                WIDTH,
                padded,
                row_tile,
                column_tile,
                UNIT,
                OBJECTIVE == "coverage",
                INPUT_PRECISION,
                BLOCK_M,
                BLOCK_D,
            )
    tl.debug_barrier()
    first_pick = tl.load(offsets_ptr + segment)
    first_seed = tl.load(cu_seeds_ptr + segment)
    _pick_in_registers(
        indices_ptr + first_pick,
        gain_ptr + first_pick,
        rows_ptr + start,
        seeds_ptr + first_seed,
        scale_ptr,
        matrix_ptr,
        partial_ptr,
        moved_ptr,
        tl.load(cu_seeds_ptr + segment + 1) - first_seed,
        budget,
        size,
        padded,
        tiles,
        slot_rows,
        OBJECTIVE,
        UNIT,
        BLOCK_N,
        BLOCK_R,
    )


@triton.jit(do_not_specialize=["first", "above", "largest"])
def _staged_kernel(
    # out: int64 [total], fp32 [total]
    indices_ptr,
    gain_ptr,
    # workspace: fp32 [slots, slot_rows], [slots, slot_rows²], int32 [slots, tiles, slot_rows]; int64 or fp32
    # [slots, slot_rows]; for `coverage` int32 [slots, 3, slot_rows], int32 [slots, slot_rows]
    scale_ptr,
    matrix_ptr,
    partial_ptr,
    state_ptr,
    moved_ptr,
    best_ptr,
    # int64: [N], [g + 1], [g], where a segment's picks begin [g], places in their segments [seeds], [g + 1]
    rows_ptr,
    cu_segments_ptr,
    budgets_ptr,
    offsets_ptr,
    seeds_ptr,
    cu_seeds_ptr,
    # sizes: the group's first segment, rows of a slot; only segments of above < m <= largest are done
    first,
    slot_rows,
    above,
    largest,
    # compiled in; STREAMED is 0 where nothing is
    OBJECTIVE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    REGISTERS: tl.constexpr,
    STREAMED: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    segment = first + slot
    start = tl.load(cu_segments_ptr + segment)
    size = tl.load(cu_segments_ptr + segment + 1) - start
    budget = tl.load(budgets_ptr + segment)
    if (size <= above) | (size > largest) | (budget == 0):
        return
    tiles = tl.cdiv(size, BLOCK_M)
    padded = tl.cdiv(size, PAD) * PAD
    scale_ptr += slot * slot_rows
    matrix_ptr += slot * slot_rows * slot_rows
    partial_ptr += slot * (slot_rows // BLOCK_M) * slot_rows
    state_ptr += slot * slot_rows
    if OBJECTIVE == "coverage":
        moved_ptr += slot * 3 * slot_rows
        best_ptr += slot * slot_rows
    first_pick = tl.load(offsets_ptr + segment)
    indices_ptr += first_pick
    gain_ptr += first_pick
    rows_ptr += start
    first_seed = tl.load(cu_seeds_ptr + segment)
    seeded = tl.load(cu_seeds_ptr + segment + 1) - first_seed
    seeds_ptr += first_seed
    if size <= REGISTERS:
        _pick_in_registers(
            indices_ptr,
            gain_ptr,
            rows_ptr,
            seeds_ptr,
            scale_ptr,
            matrix_ptr,
            partial_ptr,
            moved_ptr,
            seeded,
            budget,
            size,
            padded,
            tiles,
            slot_rows,
            OBJECTIVE,
            UNIT,
            REGISTERS,
            ELEMENTS // REGISTERS,
        )
    elif STREAMED > 0:
        _pick_streamed(
            indices_ptr,
            gain_ptr,
            rows_ptr,
            seeds_ptr,
            scale_ptr,
            matrix_ptr,
            partial_ptr,
            moved_ptr,
            state_ptr,
            best_ptr,
            seeded,
            budget,
            size,
            padded,
            tiles,
            slot_rows,
            OBJECTIVE,
            UNIT,
            STREAMED,
            ELEMENTS // STREAMED,
        )


class LaunchConfig(NamedTuple):
    """How segments are done, by their size alone. Sizes are in tokens, elements in entries of the matrix."""

    #: The fused form goes up to here: one tile. What more tiles a program multiplies alone takes longer than
    #: two launches.
    fused: int = 64
    fused_warps: int = 8
    fused_elements: int = 4096
    #: The staged form, kept in registers: few warps, as every pick makes them wait for one another.
    small: int = 1024
    small_warps: int = 4
    small_elements: int = 8192
    #: The staged form of larger segments: in registers up to here, above it so many tokens at a time.
    large: int = 4096
    large_warps: int = 16
    large_elements: int = 8192
    streamed: int = 2048


def launch_config() -> LaunchConfig:
    """Block sizes and warps of both forms."""
    return LaunchConfig()


def traffic(sizes: Sequence[int], budgets: Sequence[int], objective: str, entry: torch.dtype) -> Traffic:
    """What picking takes, at least, in segments of these sizes whose similarities are stored.

    A row of the matrix for every pick, and with `coverage` for every token whose best moves: each moves once,
    if any pick resembles it, and more often as the data will have it.
    """
    moved = operations = 0
    for size, budget in zip(sizes, budgets, strict=True):
        rows = budget + (size if objective == "coverage" else 0)
        moved += rows * size * entry.itemsize + 12 * budget
        operations += 2 * rows * size
    return Traffic(moved, operations=operations)


def fused_launch(
    indices: Tensor,
    gain: Tensor,
    *,
    directions: Tensor,
    scale: Tensor,
    matrix: Tensor,
    partial: Tensor,
    moved: Tensor | None,
    tokens: Tensor,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    offsets: Tensor,
    seeds: Tensor,
    cu_seeds: Tensor,
    first: int,
    objective: str,
    unit: float,
    input_precision: str,
) -> None:
    """Pick in all segments of a group that are small enough for one program to multiply."""
    slots, slot_rows, width = directions.shape
    config, tiles = launch_config(), directions_kernel.launch_config(directions.dtype)
    _fused_kernel[(slots,)](
        indices,
        gain,
        directions,
        scale,
        matrix,
        partial,
        moved,
        tokens,
        origin,
        inverse_norm,
        rows,
        cu_segments,
        budgets,
        offsets,
        seeds,
        cu_seeds,
        first,
        slot_rows,
        min(config.fused, slot_rows),
        tokens.stride(0),
        tokens.stride(1),
        0 if origin is None else origin.stride(0),
        0 if origin is None else origin.stride(1),
        0 if inverse_norm is None else inverse_norm.stride(0),
        OBJECTIVE=objective,
        UNIT=unit,
        D=tokens.shape[1],
        WIDTH=width,
        INPUT_PRECISION=input_precision,
        BLOCK_M=tiles.block_m,
        BLOCK_D=tiles.block_d,
        BLOCK_N=config.fused,
        BLOCK_R=config.fused_elements // config.fused,
        # As many threads on AMD, where a warp has 64.
        num_warps=config.fused_warps // (2 if common.platform() == "hip" else 1),
        # In 16 bits a third stage spills on sm_120, in 32 its lack does on sm_90.
        num_stages=2 if directions.dtype == torch.float16 else common.stages(tiles.num_stages, torch.float32),
        enable_fp_fusion=False,
    )


def staged_launch(
    indices: Tensor,
    gain: Tensor,
    *,
    directions: Tensor,
    scale: Tensor,
    matrix: Tensor,
    partial: Tensor,
    state: Tensor,
    moved: Tensor | None,
    best: Tensor | None,
    rows: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    offsets: Tensor,
    seeds: Tensor,
    cu_seeds: Tensor,
    first: int,
    above: int,
    small: bool,
    objective: str,
    unit: float,
) -> None:
    """Pick in a group's segments, after `similarity_launch`: in its small ones, or in all others.

    Segments of up to `above` tokens are left out.
    """
    config, slot_rows = launch_config(), scale.shape[1]
    if small:
        largest = min(config.small, slot_rows)
        registers, streamed, elements, warps = config.small, 0, config.small_elements, config.small_warps
    else:
        above, largest = max(above, config.small), slot_rows
        registers, streamed, elements, warps = (
            config.large,
            config.streamed,
            config.large_elements,
            config.large_warps,
        )
    _staged_kernel[(len(scale),)](
        indices,
        gain,
        scale,
        matrix,
        partial,
        state,
        moved,
        best,
        rows,
        cu_segments,
        budgets,
        offsets,
        seeds,
        cu_seeds,
        first,
        slot_rows,
        above,
        largest,
        OBJECTIVE=objective,
        UNIT=unit,
        BLOCK_M=directions_kernel.launch_config(directions.dtype).block_m,
        REGISTERS=registers,
        STREAMED=streamed,
        ELEMENTS=elements,
        num_warps=warps,
        num_stages=1,
        enable_fp_fusion=False,
        # All that a thread can have: there is no use for a second program.
        **common.registers(min(255, 2048 // warps)),
    )
