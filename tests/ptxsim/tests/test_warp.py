"""Instructions that work across a warp: shuffles, votes, reductions, matrix fragments."""

import itertools

import numpy as np
import pytest
import torch

from tests.ptxsim.tests.harness import floats, run, same


def bf16(values):
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).bfloat16()


@pytest.mark.parametrize("mode", ["bfly", "up", "down", "idx"])
@pytest.mark.parametrize("segment", [0, 0x1000, 0x1800, 0x1C00])
@pytest.mark.parametrize("clamp", [0, 7, 31])
def test_shuffles(mode, segment, clamp):
    values = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)
    for distance in (0, 1, 5, 16, 31, 33):
        expected, inside = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
        for thread in range(64):  # the ISA's pseudo-code, lane by lane
            lane, base = thread % 32, thread // 32 * 32
            b, c, mask = distance & 31, clamp & 31, segment >> 8 & 31
            highest, lowest = lane & mask | c & ~mask, lane & mask
            j = {"bfly": lane ^ b, "up": lane - b, "down": lane + b, "idx": lowest | b & ~mask}[mode]
            valid = j >= highest if mode == "up" else j <= highest
            expected[thread], inside[thread] = values[base + (j if valid else lane)], valid
        code = f"shfl.sync.{mode}.b32 d|p, a, {distance}, {segment | clamp}, -1; selp.b32 e, 1, 0, p;"
        result = run(code, {"d": np.uint32, "e": np.uint32}, a=values)
        same(result["d"], expected)
        same(result["e"], inside)


def test_votes():
    a = np.zeros(128, np.int32)
    a[5], a[32:64], a[70:90] = 1, 1, 1
    code = (
        "setp.ne.s32 p, a, 0; vote.sync.any.pred q, p, -1; selp.b32 d, 1, 0, q; vote.sync.all.pred q, p, -1;"
        "selp.b32 e, 1, 0, q; vote.sync.uni.pred q, !p, -1; selp.b32 f, 1, 0, q;"
        "vote.sync.ballot.b32 g, p, 0xffffffff; activemask.b32 h;"
    )
    result = run(code, dict.fromkeys("defgh", np.uint32), a=a)
    warps = a.reshape(4, 32) != 0
    ballots = (warps.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)
    for name, expected in {
        "d": warps.any(1),
        "e": warps.all(1),
        "f": warps.all(1) | ~warps.any(1),
        "g": ballots,
        "h": np.full(4, 2**32 - 1),
    }.items():
        same(result[name], np.repeat(expected, 32).astype(np.uint32))


def test_elect():
    result = run("elect.sync d|p, -1; selp.b32 e, 1, 0, p;", {"d": np.uint32, "e": np.uint32}, threads=64)
    same(result["e"], (np.arange(64) % 32 == 0).astype(np.uint32))


@pytest.mark.parametrize(
    ("code", "dtype", "function"),
    [
        ("add.u32", np.uint32, np.add),
        ("add.s32", np.int32, np.add),
        ("max.s32", np.int32, np.maximum),
        ("min.u32", np.uint32, np.minimum),
        ("and.b32", np.uint32, np.bitwise_and),
        ("or.b32", np.uint32, np.bitwise_or),
        ("xor.b32", np.uint32, np.bitwise_xor),
    ],
)
def test_reductions(code, dtype, function):
    info = np.iinfo(dtype)
    a = np.random.default_rng(0).integers(info.min, info.max, 96, dtype=dtype)
    expected = np.repeat(function.reduce(a.reshape(3, 32), 1, dtype=dtype), 32)
    same(run(f"redux.sync.{code} d, a, -1;", {"d": dtype}, a=a), expected)


def test_float_reductions():
    a = np.resize(floats(), 64)
    with np.errstate(all="ignore"):
        for code, function in (("max", np.fmax), ("min", np.fmin), ("max.NaN", np.maximum)):
            expected = np.repeat(function.reduce(a.reshape(2, 32), 1), 32)
            assert np.array_equal(
                run(f"redux.sync.{code}.f32 d, a, -1;", {"d": np.float32}, a=a), expected, equal_nan=True
            )


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count, transposed):
    tile = np.random.default_rng(0).integers(
        0, 2**16, (2, 32, 8), dtype=np.uint16
    )  # 32 rows of 16 bytes a warp
    words = tile.reshape(2, 32, 4, 2).view(np.uint32).reshape(2 * 32, 4)
    registers = ", ".join(f"d{i}" for i in range(count))
    trans = ".trans" if transposed else ""
    code = (
        f"shl.b32 at, tid, 4; st.shared.v4.b32 [at], {{w0, w1, w2, w3}}; bar.sync 0;"
        f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [at];"
    )
    result = run(
        code,
        {f"d{i}": np.uint32 for i in range(count)},
        shared_bytes=1024,
        declare=".reg .b32 at;",
        **{f"w{i}": words[:, i].copy() for i in range(4)},
    )
    result = [result] if count == 1 else [result[f"d{i}"] for i in range(count)]
    for matrix, thread in itertools.product(range(count), range(64)):
        warp, lane = divmod(thread, 32)
        block = tile[warp, 8 * matrix : 8 * matrix + 8]
        block = block.T if transposed else block
        low, high = block[lane // 4, 2 * (lane % 4)], block[lane // 4, 2 * (lane % 4) + 1]
        assert result[matrix][thread] == int(high) << 16 | int(low)


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix_undoes_ldmatrix(transposed):
    words = np.random.default_rng(0).integers(0, 2**32, (4, 64), dtype=np.uint32)
    trans = ".trans" if transposed else ""
    code = (
        f"shl.b32 at, tid, 4; stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [at], {{w0, w1, w2, w3}};"
        f"bar.sync 0; ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{d0, d1, d2, d3}}, [at];"
    )
    result = run(
        code,
        {f"d{i}": np.uint32 for i in range(4)},
        shared_bytes=1024,
        declare=".reg .b32 at;",
        **{f"w{i}": words[i] for i in range(4)},
    )
    for i in range(4):
        same(result[f"d{i}"], words[i])


def pack(elements):
    """Elements of 8, 16 or 32 bits -> one 32-bit register, lowest first."""
    return np.array(elements).view(np.uint32)[0]


# Which lane holds which element is spelled out by hand below, from the ISA's figures of the fragments.
MMA = [
    ("m16n8k8", "f16"),
    ("m16n8k16", "f16"),
    ("m16n8k8", "bf16"),
    ("m16n8k16", "bf16"),
    ("m16n8k4", "tf32"),
    ("m16n8k8", "tf32"),
    ("m16n8k16", "s8"),
    ("m16n8k32", "s8"),
    ("m16n8k32", "u8"),
]


@pytest.mark.parametrize(("shape", "kind"), MMA)
def test_mma(shape, kind):
    depth, packed = int(shape[6:]), {"f16": 2, "bf16": 2, "tf32": 1}.get(kind, 4)
    random = np.random.default_rng(0)
    a, b = random.standard_normal((16, depth)), random.standard_normal((depth, 8))
    if kind == "f16":
        a_raw, b_raw = a.astype(np.float16), b.astype(np.float16)
        a, b = a_raw.astype(np.float64), b_raw.astype(np.float64)
    elif kind == "bf16":
        a, b = bf16(a), bf16(b)
        a_raw, b_raw = a.view(torch.uint16).numpy(), b.view(torch.uint16).numpy()
        a, b = a.double().numpy(), b.double().numpy()
    elif kind == "tf32":  # the low 13 bits are there, and must not count
        a_raw, b_raw = a.astype(np.float32), b.astype(np.float32)
        a, b = (
            (v.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
            for v in (a_raw, b_raw)
        )
    else:
        dtype = np.int8 if kind == "s8" else np.uint8
        info = np.iinfo(dtype)
        a_raw, b_raw = (
            random.integers(info.min, info.max, s).astype(dtype) for s in ((16, depth), (depth, 8))
        )
        a, b = a_raw.astype(np.int64), b_raw.astype(np.int64)
    integer = kind in ("s8", "u8")
    c = (
        random.integers(-1000, 1000, (16, 8)).astype(np.int32)
        if integer
        else random.standard_normal((16, 8)).astype(np.float32)
    )
    count_a, count_b = 16 * depth // (32 * packed), 8 * depth // (32 * packed)
    inputs = {f"a{i}": np.zeros(32, np.uint32) for i in range(count_a)}
    inputs |= {f"b{i}": np.zeros(32, np.uint32) for i in range(count_b)}
    inputs |= {f"c{i}": np.zeros(32, c.dtype) for i in range(4)}
    for lane in range(32):
        group, member = lane // 4, lane % 4
        for i in range(count_a):
            row = group + (8 if i % 2 else 0)
            first = member * packed + (depth // 2 if i >= 2 else 0)
            inputs[f"a{i}"][lane] = pack(a_raw[row, first : first + packed])
        for i in range(count_b):
            first = member * packed + (depth // 2 if i else 0)
            inputs[f"b{i}"][lane] = pack(np.ascontiguousarray(b_raw[first : first + packed, group]))
        for i in range(4):
            inputs[f"c{i}"][lane] = c[group + 8 * (i >= 2), 2 * member + i % 2]
    accumulator = "s32" if integer else "f32"
    lists = {
        x: ", ".join(f"{x}{i}" for i in range(n))
        for x, n in zip("abcd", (count_a, count_b, 4, 4), strict=True)
    }
    code = (
        f"mma.sync.aligned.{shape}.row.col.{accumulator}.{kind}.{kind}.{accumulator} {{{lists['d']}}}, "
        f"{{{lists['a']}}}, {{{lists['b']}}}, {{{lists['c']}}};"
    )
    result = run(code, {f"d{i}": c.dtype for i in range(4)}, **inputs)
    expected = a @ b + c
    for lane, i in itertools.product(range(32), range(4)):
        value = expected[lane // 4 + 8 * (i >= 2), 2 * (lane % 4) + i % 2]
        assert result[f"d{i}"][lane] == np.dtype(c.dtype).type(value)


def test_mma_with_half_accumulators():
    random = np.random.default_rng(1)
    a, b, c = (random.standard_normal(s).astype(np.float16) for s in ((16, 8), (8, 8), (16, 8)))
    inputs = {name: np.zeros(32, np.uint32) for name in ("a0", "a1", "b0", "c0", "c1")}
    for lane in range(32):
        group, pair = lane // 4, 2 * (lane % 4)
        for i in (0, 1):
            inputs[f"a{i}"][lane] = pack(a[group + 8 * i, pair : pair + 2])
            inputs[f"c{i}"][lane] = pack(c[group + 8 * i, pair : pair + 2])
        inputs["b0"][lane] = pack(np.ascontiguousarray(b[pair : pair + 2, group]))
    result = run(
        "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {d0, d1}, {a0, a1}, {b0}, {c0, c1};",
        {"d0": np.uint32, "d1": np.uint32},
        **inputs,
    )
    expected = (a.astype(np.float64) @ b.astype(np.float64) + c).astype(np.float16)
    for lane, i in itertools.product(range(32), (0, 1)):
        group, pair = lane // 4, 2 * (lane % 4)
        same(np.array([result[f"d{i}"][lane]]).view(np.float16), expected[group + 8 * i, pair : pair + 2])
