"""Whole kernels, compiled for several targets and executed, against numpy or torch in fp64."""

import numpy as np
import pytest
import torch

from tests.ptxsim import execute
from tests.ptxsim.tests import sample_kernels as kernels

TARGETS = ("sm_75", "sm_80", "sm_90", "sm_120")
# sm_75 has no bf16 or tf32 units: Triton falls back to fp32 arithmetic there.
every_target = pytest.mark.parametrize("target", TARGETS)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def close(actual, expected, tolerance):
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= tolerance, f"largest error {error:.2e}"


@every_target
@pytest.mark.parametrize("n", [1, 255, 256, 1000])
def test_add(target, n, rng):
    x, y, out = torch.randn(n, generator=rng), torch.randn(n, generator=rng), torch.full((n,), -7.0)
    report = execute(kernels.add_kernel, (-(-n // 256),), x, y, out, n, BLOCK=256, target=target)
    assert torch.equal(out, x + y)
    assert report.bytes == {"load": 8 * n, "store": 4 * n}
    assert report.distinct_bytes_loaded == 8 * n


@every_target
def test_softmax(target, rng):
    x = torch.randn(4, 1000, generator=rng)
    out = torch.empty_like(x)
    execute(kernels.softmax_kernel, (4,), x, out, 1000, 1000, BLOCK=1024, target=target)
    close(out, x.double().softmax(1), 1e-8)


@every_target
def test_column_sum(target, rng):
    x, out = torch.randn(100, 70, generator=rng), torch.zeros(70)
    report = execute(kernels.column_sum_kernel, (4, 3), x, out, 100, 70, BM=32, BN=32, target=target)
    close(out, x.double().sum(0), 1e-5)
    assert report.requests["atomic"] > 0


@every_target
def test_transpose_softmax(target, rng):
    x, out = torch.randn(64, 64, generator=rng), torch.zeros(64, 64)
    execute(kernels.transpose_softmax_kernel, (2, 2), x, out, 64, 64, BM=32, BN=32, target=target)
    close(out, x.double().reshape(64, 2, 32).softmax(2).reshape(64, 64).T, 1e-6)


@every_target
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_stages", [1, 3])
def test_dot(target, dtype, num_stages, rng):
    a, b = (torch.randn(64, 128, generator=rng).to(dtype), torch.randn(128, 64, generator=rng).to(dtype))
    c = torch.zeros(64, 64)
    report = execute(
        kernels.dot_kernel,
        (2, 2),
        a,
        b,
        c,
        64,
        64,
        128,
        BM=32,
        BN=32,
        BK=32,
        target=target,
        num_stages=num_stages,
    )
    close(c, a.double() @ b.double(), 1e-4)
    if target != "sm_75":
        assert report.count("mma.sync") > 0
        assert (report.count("cp.async") > 0) == (num_stages == 3)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_int8_dot(target):
    values = np.random.default_rng(0)
    a, b = (values.integers(-128, 128, (64, 64)).astype(np.int8) for _ in "ab")
    c = np.zeros((64, 64), np.int32)
    execute(kernels.int8_dot_kernel, (2, 2), a, b, c, 64, 64, 64, BM=32, BN=32, BK=32, target=target)
    assert np.array_equal(c, a.astype(np.int32) @ b.astype(np.int32))


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_120"])
def test_attention(target, rng):
    heads, length, depth = 2, 100, 64
    q, k, v = (torch.randn(heads, length, depth, generator=rng).half() for _ in "qkv")
    out = torch.zeros(heads, length, depth)
    execute(
        kernels.attention_kernel,
        (2, heads),
        q,
        k,
        v,
        out,
        length,
        depth**-0.5,
        D=depth,
        BM=64,
        BN=32,
        target=target,
    )
    scores = q.double() @ k.double().transpose(1, 2) / depth**0.5
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    close(out, scores.softmax(-1) @ v.double(), 1e-3)


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_silu(target, dtype, rng):
    x = torch.randn(1000, generator=rng).to(dtype)
    out = torch.zeros(1000, dtype=dtype)
    execute(kernels.silu_kernel, (4,), x, out, 1000, BLOCK=256, target=target)
    expected = torch.nn.functional.silu(x.double())
    relative = ((out.double() - expected).abs() / expected.abs().clamp_min(1e-3)).max()
    assert relative <= {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-8}[dtype]


@every_target
def test_spin_lock(target, rng):
    x, out, lock = torch.randn(5, 256, generator=rng), torch.zeros(256), torch.zeros(1, dtype=torch.int32)
    report = execute(kernels.spin_lock_kernel, (5,), x, out, lock, BLOCK=256, target=target)
    close(out, x.double().sum(0), 1e-5)
    assert lock.item() == 0
    assert report.conflicts  # ordered by the lock, which the tool leaves to the reader to judge


@every_target
@pytest.mark.parametrize("view", ["plain", "transposed", "sliced", "expanded input", "zero-dimensional"])
def test_strided_tensors(target, view, rng):
    base, out = torch.randn(40, 50, generator=rng).bfloat16(), torch.zeros(50, 40, dtype=torch.bfloat16)
    x = {
        "plain": base,
        "transposed": base.T,
        "sliced": base[3:30:2, 5:41:3],
        "expanded input": base[:1].expand(7, 50),
        "zero-dimensional": base[2, 3],
    }[view]
    shape = tuple(x.shape) + (1,) * (2 - x.dim())
    strides = tuple(x.stride()) + (1,) * (2 - x.dim())
    target_view = out.T[: shape[0], : shape[1]] if shape[0] <= 40 else out[: shape[0], : shape[1]]
    execute(
        kernels.strided_copy_kernel,
        (shape[0],),
        x,
        target_view,
        *shape,
        *strides,
        *target_view.stride(),
        BLOCK=64,
        target=target,
    )
    assert torch.equal(target_view.reshape(shape), x.reshape(shape))
    assert out.count_nonzero() == x.count_nonzero()


# --- (a) ragged segments


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segment_statistics(target, dtype, rng):
    d, lengths = 100, [5, 0, 37, 16, 1]
    rows = sum(lengths)
    padded = torch.randn(rows, 128, generator=rng).to(dtype)
    x = padded[:, :d]  # rows lie 128 apart: int64 offsets, masked tails
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)
    row_norm, segment_sum = torch.full((rows,), -1.0), torch.full((len(lengths), d), -1.0)
    execute(
        kernels.segment_statistics_kernel,
        (len(lengths),),
        x,
        cu_seqlens,
        row_norm,
        segment_sum,
        x.stride(0),
        d,
        BLOCK_ROWS=16,
        BLOCK_D=64,
        target=target,
    )
    close(row_norm, x.double().norm(dim=1), 1e-5)
    expected = torch.stack([part.double().sum(0) for part in x.split(lengths)])
    close(segment_sum, expected, 1e-4)


# --- (b) tile product with a row-minimum epilogue


@every_target
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        (torch.bfloat16, "tf32", 1e-5),
        (torch.float32, "ieee", 1e-5),
        (torch.float32, "tf32x3", 1e-5),
        (torch.float32, "tf32", 1e-1),
    ],
)
def test_row_minimum(target, dtype, precision, tolerance, rng):
    m, n, d = 70, 50, 72
    x, y = torch.randn(m, d, generator=rng).to(dtype), torch.randn(n, d, generator=rng).to(dtype)
    values = torch.full((m,), 5.0)
    values[:10] = -1000.0
    expected = torch.minimum(values.double(), (1 - x.double() @ y.double().T).amin(1))
    execute(
        kernels.row_minimum_kernel,
        (3,),
        x,
        y,
        values,
        m,
        n,
        d,
        BM=32,
        BN=32,
        BK=32,
        PRECISION=precision,
        target=target,
    )
    close(values, expected, tolerance)
    if (precision, target) == ("tf32", "sm_80") and dtype == torch.float32:
        assert (values.double() - expected).abs().max() > 1e-4  # plain tf32 is visibly worse than tf32x3


# --- (c) a persistent greedy loop


def greedy_in_numpy(similarity, cu, cu_budgets):
    picks, gains = [], []
    for segment, (start, end) in enumerate(zip(cu[:-1], cu[1:], strict=True)):
        distance = np.full(end - start, np.inf, np.float32)
        for _ in range(cu_budgets[segment + 1] - cu_budgets[segment]):
            pick = int(np.argmax(distance))
            picks.append(start + pick)
            gains.append(distance[pick])
            distance = np.minimum(distance, np.float32(1) - similarity[start + pick, start:end])
            distance[pick] = -1
    return np.array(picks), np.array(gains, np.float32)


@every_target
def test_greedy(target):
    values = np.random.default_rng(0)
    cu, budgets = np.array([0, 40, 41, 130]), np.array([0, 12, 13, 33])
    points = values.standard_normal((130, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[50] = points[60] = points[70]  # ties
    similarity = (points @ points.T).astype(np.float32)
    picks, gains = np.full(33, -1, np.int64), np.zeros(33, np.float32)
    execute(kernels.greedy_kernel, (3,), similarity, cu, budgets, picks, gains, 130, BLOCK=128, target=target)
    expected_picks, expected_gains = greedy_in_numpy(similarity, cu, budgets)
    assert np.array_equal(picks, expected_picks)
    assert np.array_equal(gains, expected_gains)


# --- (d) sorting, scanning, counting


@every_target
def test_packed_sort(target, rng):
    n, block, k = 200, 256, 16
    keys = torch.randn(n, generator=rng).round(decimals=1) + 0.0  # many ties; no -0.0, which packs below 0.0
    ordered, top = torch.zeros(block, dtype=torch.int64), torch.zeros(k, dtype=torch.int64)
    execute(kernels.packed_sort_kernel, (1,), keys, ordered, top, n, BLOCK=block, K=k, target=target)
    order = 0x7FFFFFFF - (ordered & 0xFFFFFFFF)
    expected = torch.sort(keys, descending=True, stable=True).indices
    assert torch.equal(order[:n], expected)
    assert torch.equal(top, ordered[:k])


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_scan(target, dtype, rng):
    x = torch.randint(-1000, 1000, (3, 100), generator=rng).to(dtype)
    maxima, sums = torch.zeros_like(x), torch.zeros_like(x)
    execute(kernels.scan_kernel, (3,), x, maxima, sums, 100, BLOCK=128, target=target)
    # The fill of the masked lanes (0) comes after the real ones, so it changes nothing.
    assert torch.equal(maxima, x.cummax(1).values)
    assert torch.equal(sums, x.cumsum(1))


@every_target
def test_histogram_and_gather(target, rng):
    x = torch.randint(0, 32, (512,), generator=rng, dtype=torch.int32)
    order = torch.randperm(512, generator=rng).int()
    counts, gathered = torch.zeros(32, dtype=torch.int32), torch.zeros(512, dtype=torch.int32)
    execute(
        kernels.histogram_gather_kernel, (1,), x, counts, order, gathered, BLOCK=512, BINS=32, target=target
    )
    assert torch.equal(counts, torch.bincount(x, minlength=32).int())
    assert torch.equal(gathered, x[order.long()])


# --- (e) early exits and nested loops


@every_target
def test_early_exit(target, rng):
    n, flags = 1000, torch.tensor([0, 1, 1, 0], dtype=torch.int32)
    x, out = torch.randn(n, generator=rng), torch.full((n,), 9.0)
    execute(kernels.early_exit_kernel, (4,), flags, x, out, n, BLOCK=256, target=target)
    assert (out[256:768] == 9).all()
    assert torch.equal(out[:256], x[:256] - x[:256].max())
    assert torch.equal(out[768:], x[768:] - x[768:].max().clamp_min(0))


@every_target
def test_collatz(target):
    seeds = torch.tensor([[27, 1, 6], [97, 2, 3], [1, 1, 1], [871, 7, 9]], dtype=torch.int32)
    steps, rounds = torch.zeros_like(seeds), torch.zeros(4, 128, dtype=torch.int32)
    execute(kernels.collatz_kernel, (4,), seeds, steps, rounds, 3, BLOCK=128, target=target)

    def length(value):
        return 0 if value == 1 else 1 + length(value // 2 if value % 2 == 0 else 3 * value + 1)

    expected = torch.tensor([[length(v) for v in row] for row in seeds.tolist()], dtype=torch.int32)
    assert torch.equal(steps, expected)
    assert torch.equal(rounds, expected.sum(1, keepdim=True).int() + torch.arange(128, dtype=torch.int32))


# --- (f) counters


@every_target
@pytest.mark.parametrize("seed", [0, 1])
def test_counters(target, seed, rng):
    n, bins = 1000, 16
    labels = torch.randint(0, bins, (n,), generator=rng, dtype=torch.int32)
    counters = torch.zeros(bins + 2, dtype=torch.int32)
    tickets, last = torch.full((1024,), -1, dtype=torch.int32), torch.full((1,), -1, dtype=torch.int32)
    execute(
        kernels.counter_kernel,
        (4,),
        labels,
        counters,
        tickets[:n],
        last,
        n,
        BLOCK=256,
        BINS=bins,
        target=target,
        seed=seed,
    )
    assert torch.equal(counters[:bins], torch.bincount(labels, minlength=bins).int())
    assert counters[bins] == 3 and counters[bins + 1] == 4
    assert 0 <= last.item() < 4
    for label in range(bins):
        mine = tickets[:n][labels == label].sort().values
        assert torch.equal(mine, torch.arange(len(mine), dtype=torch.int32))
    assert (tickets[n:] == -1).all()


# --- sm_90 with tiles that are large enough for wgmma


TILES = [((64, 64, 32), 1, 4), ((64, 128, 64), 3, 4), ((128, 32, 16), 2, 4), ((64, 16, 128), 2, 4)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize(("tile", "num_stages", "num_warps"), [*TILES, ((128, 128, 64), 3, 8)])
def test_wgmma(dtype, a_transposed, b_transposed, tile, num_stages, num_warps, rng):
    bm, bn, bk = tile
    m, n, k = 128, bn, 128
    a = torch.randn((k, m) if a_transposed else (m, k), generator=rng).to(dtype)
    b = torch.randn((n, k) if b_transposed else (k, n), generator=rng).to(dtype)
    a, b = a.T if a_transposed else a, b.T if b_transposed else b
    c = torch.zeros(m, n)
    report = execute(
        kernels.strided_dot_kernel,
        (m // bm, 1),
        a,
        b,
        c,
        m,
        n,
        k,
        *a.stride(),
        *b.stride(),
        scale=0.5,
        BM=bm,
        BN=bn,
        BK=bk,
        target="sm_90",
        num_stages=num_stages,
        num_warps=num_warps,
    )
    assert report.count("wgmma.mma_async") > 0
    if dtype == torch.float32:  # tf32: the low 13 bits do not count
        a, b = (v.contiguous().view(torch.int32).bitwise_and(~0x1FFF).view(torch.float32) for v in (a, b))
    close(c, 0.5 * (a.double() @ b.double()), 1e-5)


def test_wgmma_int8(rng):
    a, b = (torch.randint(-128, 128, (64, 64), generator=rng, dtype=torch.int8) for _ in "ab")
    c = torch.zeros(64, 64, dtype=torch.int32)
    report = execute(
        kernels.int8_dot_kernel, (1, 1), a, b, c, 64, 64, 64, BM=64, BN=64, BK=64, target="sm_90"
    )
    assert report.count("wgmma.mma_async") > 0
    assert torch.equal(c, (a.double() @ b.double()).int())


def test_attention_with_wgmma(rng):
    q, k, v = (torch.randn(1, 100, 64, generator=rng).half() for _ in "qkv")
    out = torch.zeros(1, 100, 64)
    report = execute(
        kernels.attention_kernel, (2, 1), q, k, v, out, 100, 0.125, D=64, BM=64, BN=32, target="sm_90"
    )
    assert report.count("wgmma.mma_async") > 0
    scores = q.double() @ k.double().transpose(1, 2) / 8
    scores = scores.masked_fill(~torch.ones(100, 100, dtype=torch.bool).tril(), -torch.inf)
    close(out, scores.softmax(-1) @ v.double(), 1e-3)
