"""Triton kernels that the tests compile and execute: the everyday ones, and the awkward shapes of real work.

They live in a plain module (not in a test file) so that a child process can import them by name.
"""

import triton
import triton.language as tl

# --- everyday kernels -----------------------------------------------------------------------------


@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    total = tl.load(x + offsets, mask=mask, other=0.0) + tl.load(y + offsets, mask=mask, other=0.0)
    tl.store(out + offsets, total, mask=mask)


@triton.jit
def softmax_kernel(x, out, n, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    values = tl.load(x + row * stride + columns, mask=columns < n, other=-float("inf")).to(tl.float32)
    exponentials = tl.exp(values - tl.max(values, 0))
    tl.store(out + row * stride + columns, exponentials / tl.sum(exponentials, 0), mask=columns < n)


@triton.jit
def column_sum_kernel(x, out, M, N, BM: tl.constexpr, BN: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    values = tl.load(x + rows[:, None] * N + columns[None, :], mask=mask, other=0.0)
    tl.atomic_add(out + columns, tl.sum(values, 0), mask=columns < N)


@triton.jit
def transpose_softmax_kernel(x, out, M, N, BM: tl.constexpr, BN: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    values = tl.load(x + rows[:, None] * N + columns[None, :])
    exponentials = tl.exp(values - tl.max(values, 1)[:, None])
    exponentials = exponentials / tl.sum(exponentials, 1)[:, None]
    tl.store(out + columns[:, None] * M + rows[None, :], tl.trans(exponentials))


@triton.jit
def dot_kernel(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    accumulator = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        a_tile = tl.load(a + rows[:, None] * K + (k + inner)[None, :])
        b_tile = tl.load(b + (k + inner)[:, None] * N + columns[None, :])
        accumulator = tl.dot(a_tile, b_tile, accumulator)
    tl.store(c + rows[:, None] * N + columns[None, :], accumulator)


@triton.jit
def strided_dot_kernel(
    a,
    b,
    c,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    scale=1.0,
    BM: tl.constexpr = 64,
    BN: tl.constexpr = 64,
    BK: tl.constexpr = 32,
):
    """Operands in any order: transposed ones reach the matrix units another way."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    accumulator = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        a_tile = tl.load(a + rows[:, None] * stride_am + (k + inner)[None, :] * stride_ak)
        b_tile = tl.load(b + (k + inner)[:, None] * stride_bk + columns[None, :] * stride_bn)
        accumulator = tl.dot(a_tile, b_tile, accumulator)
    tl.store(c + rows[:, None] * N + columns[None, :], accumulator * scale)


@triton.jit
def int8_dot_kernel(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    accumulator = tl.zeros((BM, BN), tl.int32)
    for k in range(0, K, BK):
        a_tile = tl.load(a + rows[:, None] * K + (k + inner)[None, :])
        b_tile = tl.load(b + (k + inner)[:, None] * N + columns[None, :])
        accumulator = tl.dot(a_tile, b_tile, accumulator, out_dtype=tl.int32)
    tl.store(c + rows[:, None] * N + columns[None, :], accumulator)


@triton.jit
def attention_kernel(q, k, v, out, T, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    block, head = tl.program_id(0), tl.program_id(1)
    rows, features = block * BM + tl.arange(0, BM), tl.arange(0, D)
    base = head * T * D
    queries = tl.load(q + base + rows[:, None] * D + features[None, :], mask=rows[:, None] < T, other=0.0)
    highest = tl.full((BM,), -float("inf"), tl.float32)
    weight_sum = tl.zeros((BM,), tl.float32)
    accumulator = tl.zeros((BM, D), tl.float32)
    for start in range(0, (block + 1) * BM, BN):
        keys = start + tl.arange(0, BN)
        key_tile = tl.load(
            k + base + keys[None, :] * D + features[:, None], mask=keys[None, :] < T, other=0.0
        )
        scores = tl.dot(queries, key_tile) * scale
        scores = tl.where((rows[:, None] >= keys[None, :]) & (keys[None, :] < T), scores, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - new_highest[:, None])
        rescale = tl.exp(highest - new_highest)
        weight_sum = weight_sum * rescale + tl.sum(weights, 1)
        value_tile = tl.load(
            v + base + keys[:, None] * D + features[None, :], mask=keys[:, None] < T, other=0.0
        )
        accumulator = tl.dot(weights.to(v.dtype.element_ty), value_tile, accumulator * rescale[:, None])
        highest = new_highest
    tl.store(
        out + base + rows[:, None] * D + features[None, :],
        accumulator / weight_sum[:, None],
        mask=rows[:, None] < T,
    )


@triton.jit
def silu_kernel(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + offsets, mask=offsets < n, other=0.0).to(tl.float32)
    tl.store(out + offsets, (values * tl.sigmoid(values)).to(out.dtype.element_ty), mask=offsets < n)


@triton.jit
def spin_lock_kernel(x, out, lock, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    values = tl.load(x + tl.program_id(0) * BLOCK + offsets)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(out + offsets, tl.load(out + offsets) + values)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@triton.jit
def strided_copy_kernel(
    x, out, rows, columns, stride_xm, stride_xn, stride_om, stride_on, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    values = tl.load(x + row * stride_xm + offsets * stride_xn, mask=mask, other=0.0)
    tl.store(out + row * stride_om + offsets * stride_on, values, mask=mask)


# --- (a) ragged segments --------------------------------------------------------------------------


@triton.jit
def segment_statistics_kernel(
    x, cu_seqlens, row_norm, segment_sum, stride_row, d, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """One program a segment: every row's norm, and the sum of the rows, over a d that no block divides."""
    segment = tl.program_id(0)
    start = tl.load(cu_seqlens + segment)
    end = tl.load(cu_seqlens + segment + 1)
    for column_start in range(0, d, BLOCK_D):
        columns = column_start + tl.arange(0, BLOCK_D)
        column_mask = columns < d
        total = tl.zeros((BLOCK_D,), tl.float32)
        for first in range(start, end, BLOCK_ROWS):
            rows = first + tl.arange(0, BLOCK_ROWS)
            mask = (rows < end)[:, None] & column_mask[None, :]
            tile = tl.load(
                x + rows.to(tl.int64)[:, None] * stride_row + columns[None, :], mask=mask, other=0.0
            )
            total += tl.sum(tile.to(tl.float32), 0)
        tl.store(segment_sum + segment.to(tl.int64) * d + columns, total, mask=column_mask)
    for first in range(start, end, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        squares = tl.zeros((BLOCK_ROWS,), tl.float32)
        for column_start in range(0, d, BLOCK_D):
            columns = column_start + tl.arange(0, BLOCK_D)
            mask = (rows < end)[:, None] & (columns < d)[None, :]
            tile = tl.load(
                x + rows.to(tl.int64)[:, None] * stride_row + columns[None, :], mask=mask, other=0.0
            )
            tile = tile.to(tl.float32)
            squares += tl.sum(tile * tile, 1)
        tl.store(row_norm + rows, tl.sqrt(squares), mask=rows < end)


# --- (b) a tile product whose epilogue keeps a row minimum ----------------------------------------


@triton.jit
def row_minimum_kernel(
    x, y, values, M, N, D, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr
):
    """values[i] = min(values[i], min_j (1 - x_i . y_j)); the product is never stored."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inner = tl.arange(0, BK)
    best = tl.load(values + rows, mask=rows < M, other=0.0)
    for first in range(0, N, BN):
        columns = first + tl.arange(0, BN)
        products = tl.zeros((BM, BN), tl.float32)
        for k in range(0, D, BK):
            depth = k + inner
            x_tile = tl.load(
                x + rows.to(tl.int64)[:, None] * D + depth[None, :],
                mask=(rows[:, None] < M) & (depth[None, :] < D),
                other=0.0,
            )
            y_tile = tl.load(
                y + columns.to(tl.int64)[None, :] * D + depth[:, None],
                mask=(columns[None, :] < N) & (depth[:, None] < D),
                other=0.0,
            )
            products = tl.dot(x_tile, y_tile, products, input_precision=PRECISION)
        distance = tl.where(columns[None, :] < N, 1.0 - products, float("inf"))
        best = tl.minimum(best, tl.min(distance, 1))
    tl.store(values + rows, best, mask=rows < M)


# --- (c) a persistent greedy loop -----------------------------------------------------------------


@triton.jit
def greedy_kernel(similarity, cu_segments, cu_budgets, picks, gains, stride, BLOCK: tl.constexpr):
    """One program a segment: farthest-point picks from the segment's block of a similarity matrix."""
    segment = tl.program_id(0)
    start = tl.load(cu_segments + segment)
    size = (tl.load(cu_segments + segment + 1) - start).to(tl.int32)
    first_pick = tl.load(cu_budgets + segment)
    budget = (tl.load(cu_budgets + segment + 1) - first_pick).to(tl.int32)
    lanes = tl.arange(0, BLOCK)
    mask = lanes < size
    distance = tl.where(mask, float("inf"), -float("inf"))
    for turn in range(0, budget):
        best, pick = tl.max(distance, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(picks + first_pick + turn, start + pick)
        tl.store(gains + first_pick + turn, best)
        row = tl.load(similarity + (start + pick) * stride + start + lanes, mask=mask, other=0.0)
        distance = tl.where(mask, tl.minimum(distance, 1.0 - row), -float("inf"))
        distance = tl.where(lanes == pick, -1.0, distance)


# --- (d) sorting, scanning, counting --------------------------------------------------------------


@triton.jit
def packed_sort_kernel(keys, sorted_keys, top, n, BLOCK: tl.constexpr, K: tl.constexpr):
    """Order-preserving packing of (fp32 value, index) into int64; ties go to the lower index."""
    lanes = tl.arange(0, BLOCK)
    value = tl.load(keys + lanes, mask=lanes < n, other=-float("inf"))
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    packed = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - lanes).to(tl.int64)
    tl.store(sorted_keys + lanes, tl.sort(packed, descending=True))
    tl.store(top + tl.arange(0, K), tl.topk(packed, K))


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def scan_kernel(x, running_maximum, running_sum, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    values = tl.load(x + row * n + lanes, mask=lanes < n, other=0)
    tl.store(running_maximum + row * n + lanes, tl.associative_scan(values, 0, larger), mask=lanes < n)
    tl.store(running_sum + row * n + lanes, tl.cumsum(values, 0), mask=lanes < n)


@triton.jit
def histogram_gather_kernel(x, counts, order, gathered, BLOCK: tl.constexpr, BINS: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    values = tl.load(x + lanes)
    tl.store(counts + tl.arange(0, BINS), tl.histogram(values, BINS))
    tl.store(gathered + lanes, tl.gather(values, tl.load(order + lanes), 0))


# --- (e) early exits and nested loops -------------------------------------------------------------


@triton.jit
def early_exit_kernel(flags, x, out, n, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    if tl.load(flags + program) != 0:
        return
    offsets = program * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + offsets, mask=offsets < n, other=0.0)
    peak = tl.max(values, 0)
    tl.store(out + offsets, values - peak, mask=offsets < n)


@triton.jit
def collatz_kernel(seeds, steps, rounds, n, BLOCK: tl.constexpr):
    """A while inside a for, with trip counts that differ from program to program."""
    program = tl.program_id(0)
    total = 0
    for item in range(0, n):
        value = tl.load(seeds + program * n + item)
        count = 0
        while value != 1:
            value = tl.where(value % 2 == 0, value // 2, 3 * value + 1)
            count += 1
        tl.store(steps + program * n + item, count)
        total += count
    lanes = tl.arange(0, BLOCK)
    tl.store(rounds + program * BLOCK + lanes, total + lanes)


# --- (f) counters ---------------------------------------------------------------------------------


@triton.jit
def counter_kernel(labels, counters, tickets, last, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Per-label counts by atomics, unique tickets, and the program that arrives last says so."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    label = tl.load(labels + offsets, mask=mask, other=0)
    ticket = tl.atomic_add(counters + label, 1, mask=mask)
    tl.store(tickets + offsets, ticket, mask=mask)
    tl.atomic_max(counters + BINS, tl.program_id(0))
    arrived = tl.atomic_add(counters + BINS + 1, 1)
    if arrived == tl.num_programs(0) - 1:
        tl.store(last, tl.program_id(0))


# --- kernels that are wrong on purpose ------------------------------------------------------------


@triton.jit
def unmasked_load_kernel(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets) * 2, mask=offsets < n)


@triton.jit
def colliding_store_kernel(x, out, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    tl.store(out + lanes, tl.load(x + tl.program_id(0) * BLOCK + lanes))


@triton.jit
def global_race_kernel(x, scratch, out, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Threads hand values to other threads through global memory: Triton places no barrier for that."""
    lanes = tl.arange(0, BLOCK)
    tl.store(scratch + lanes, tl.load(x + lanes))
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + lanes, tl.load(scratch + (BLOCK - 1 - lanes)))
