"""Loads, stores, atomics and asynchronous copies."""

import numpy as np
import pytest

from tests.ptxsim.tests.harness import integers, run, same

WIDTHS = [
    ("b8", 1),
    ("b16", 1),
    ("b32", 1),
    ("b64", 1),
    ("b32", 2),
    ("b64", 2),
    ("b32", 4),
    ("b16", 4),
    ("b16", 2),
    ("b32", 8),
    ("b8", 4),
]


@pytest.mark.parametrize(("kind", "count"), WIDTHS)
def test_global_vectors(kind, count):
    size = int(kind[1:]) // 8
    source = np.random.default_rng(0).integers(0, 256, 64 * size * count, dtype=np.uint8)
    copy = np.zeros_like(source)
    vector = f".v{count}" if count > 1 else ""
    names = ", ".join(f"r{i}" for i in range(count))
    declare = "".join(f".reg .b{max(16, 8 * size)} r{i};" for i in range(count))
    code = (
        f"mul.wide.u32 offset, tid, {size * count}; add.s64 x0, x0, offset; add.s64 x1, x1, offset;"
        f"ld.global{vector}.{kind} {{{names}}}, [x0]; st.global{vector}.{kind} [x1], {{{names}}};"
        "mov.u32 d, tid;"
    )
    run(code, {"d": np.uint32}, threads=64, extra=(source, copy), declare=declare)
    assert np.array_equal(source, copy)


@pytest.mark.parametrize("kind", ["s8", "u8", "s16", "u16"])
def test_extending_loads(kind):
    dtype = np.dtype(f"{'u' if kind[0] == 'u' else ''}int{kind[1:]}")
    source = np.resize(np.array(integers(dtype), dtype), 32)
    code = f"mul.wide.u32 offset, tid, {dtype.itemsize}; add.s64 x0, x0, offset; ld.global.{kind} d, [x0+0];"
    same(run(code, {"d": np.int32}, threads=32, extra=(source,)), source.astype(np.int32))


@pytest.mark.parametrize(("kind", "count"), [w for w in WIDTHS if w[1] * int(w[0][1:]) <= 128])
def test_shared_vectors(kind, count):
    size = int(kind[1:]) // 8
    source = np.random.default_rng(0).integers(0, 256, 64 * size * count, dtype=np.uint8)
    copy = np.zeros_like(source)
    vector = f".v{count}" if count > 1 else ""
    names = ", ".join(f"r{i}" for i in range(count))
    declare = ".reg .b32 at;" + "".join(f".reg .b{max(16, 8 * size)} r{i};" for i in range(count))
    step = size * count
    code = (
        f"mul.wide.u32 offset, tid, {step}; add.s64 x0, x0, offset;"
        f"ld.global{vector}.{kind} {{{names}}}, [x0];"
        f"mul.lo.s32 at, tid, {step}; mov.b32 d, smem; add.s32 at, at, d;"
        f"st.shared{vector}.{kind} [at], {{{names}}};"
        f"bar.sync 0; sub.s32 at, {63 * step}, at; ld.shared{vector}.{kind} {{{names}}}, [at];"
        f"add.s64 x1, x1, offset; st.global{vector}.{kind} [x1], {{{names}}};"
    )
    run(code, {"d": np.uint32}, threads=64, extra=(source, copy), declare=declare, shared_bytes=64 * step)
    assert np.array_equal(copy.reshape(64, step), source.reshape(64, step)[::-1])


def test_predicated_load_touches_nothing():
    source = np.arange(10, dtype=np.int32)
    code = (
        "mul.wide.u32 offset, tid, 4; add.s64 x0, x0, offset; setp.lt.s32 p, tid, 10; mov.b32 d, -5;"
        "@p ld.global.b32 d, [x0];"
    )
    same(
        run(code, {"d": np.int32}, threads=32, extra=(source,)),
        np.where(np.arange(32) < 10, np.arange(32), -5),
    )


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(
    ("code", "dtype", "function"),
    [
        ("add.u32", np.uint32, np.add),
        ("add.u64", np.uint64, np.add),
        ("max.s32", np.int32, np.maximum),
        ("min.s32", np.int32, np.minimum),
        ("max.u32", np.uint32, np.maximum),
        ("min.u64", np.uint64, np.minimum),
        ("and.b32", np.uint32, np.bitwise_and),
        ("or.b32", np.uint32, np.bitwise_or),
        ("xor.b64", np.uint64, np.bitwise_xor),
    ],
)
def test_integer_atomics(space, code, dtype, function):
    info = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(info.min, info.max, 96, dtype=dtype)
    cells = np.array([3, 5, 7, 11], dtype)
    expected = cells.copy()
    function.at(expected, np.arange(96) % 4, values)
    size = cells.itemsize
    bits = 8 * size
    start = (
        f"and.b32 at, tid, 3; mul.lo.s32 at, at, {size}; cvt.u64.u32 offset, at; add.s64 pointer, x0, offset;"
    )
    declare = f".reg .b32 at; .reg .b{bits} old, cell;"
    if space == "global":
        body = f"{start} atom.global.gpu.acq_rel.{code} d, [pointer], a;"
    else:
        body = (
            f"{start} setp.lt.s32 p, tid, 4;"
            f"@p ld.global.b{bits} cell, [pointer]; @p st.shared.b{bits} [at], cell;"
            f"bar.sync 0; atom.shared.relaxed.cta.{code} d, [at], a; bar.sync 0;"
            f"@p ld.shared.b{bits} cell, [at]; @p st.global.b{bits} [pointer], cell;"
        )
    old = run(body, {"d": dtype}, a=values, extra=(cells,), declare=declare, shared_bytes=64)
    same(cells, expected)
    for cell in range(4):  # every thread saw some state on the way, the first the start value
        assert dtype([3, 5, 7, 11][cell]) in old[cell::4]


def test_float_atomics_and_reductions():
    values = (
        np.random.default_rng(0).integers(-100, 100, 96).astype(np.float32)
    )  # sums are exact in any order
    cells, total = np.zeros(4, np.float32), np.zeros(4, np.float32)
    code = (
        "and.b32 at, tid, 3; mul.wide.u32 offset, at, 4; add.s64 x0, x0, offset; add.s64 x1, x1, offset;"
        "atom.global.gpu.relaxed.add.f32 d, [x0], a; red.global.gpu.relaxed.add.f32 [x1], a;"
    )
    run(code, {"d": np.float32}, a=values, extra=(cells, total), declare=".reg .b32 at;")
    same(cells, values.reshape(-1, 4).sum(0))
    same(total, cells)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packed_float_atomics(kind):
    one = {"f16": 0x3C00, "bf16": 0x3F80}[kind]
    two, three = {"f16": (0x4000, 0x4200), "bf16": (0x4000, 0x4040)}[kind]
    cells = np.array([0], np.uint32)
    run(
        f"setp.lt.s32 p, tid, 3; @p red.global.gpu.relaxed.add.noftz.{kind}x2 [x0], a; mov.b32 d, a;",
        {"d": np.uint32},
        a=np.full(32, one, np.uint32),
        extra=(cells,),
    )
    assert cells[0] == three
    single = np.array([one], np.uint16)
    run(
        f"setp.lt.s32 p, tid, 1; @p atom.global.gpu.relaxed.add.noftz.{kind} d, [x0], a; @!p mov.b16 d, a;",
        {"d": np.uint16},
        a=np.full(32, one, np.uint16),
        extra=(single,),
    )
    assert single[0] == two


def test_vector_atomics():
    cells = np.zeros(4, np.float32)
    code = "atom.global.v4.f32.gpu.relaxed.add {d, e, f, g}, [x0], {a, a, b, b};"
    run(
        code,
        dict.fromkeys("defg", np.float32),
        a=np.ones(32, np.float32),
        b=np.full(32, 2, np.float32),
        extra=(cells,),
    )
    same(cells, np.array([32, 32, 64, 64], np.float32))


def test_exchange_and_compare():
    cells = np.array([5, 100], np.int32)
    code = (
        "setp.eq.s32 p, tid, 7; mov.b32 d, -1; mov.b32 e, -1; mov.b32 f, -1;"
        "@p atom.global.gpu.acq_rel.exch.b32 d, [x0], 42; @p atom.global.gpu.acq_rel.cas.b32 e, [x0], 42, 9;"
        "@p atom.global.gpu.acq_rel.cas.b32 f, [x0+4], 99, 1;"
    )
    result = run(code, dict.fromkeys("def", np.int32), threads=32, extra=(cells,))
    assert [result[n][7] for n in "def"] == [5, 42, 100]
    same(cells, np.array([9, 100], np.int32))


def test_compare_and_swap_has_one_winner():
    cell = np.zeros(1, np.int32)
    winners = run(
        "add.s32 a2, tid, 1; atom.global.gpu.acq_rel.cas.b32 d, [x0], 0, a2;",
        {"d": np.int32},
        threads=64,
        extra=(cell,),
        declare=".reg .b32 a2;",
    )
    assert (winners == 0).sum() == 1
    assert cell[0] == np.flatnonzero(winners == 0)[0] + 1


@pytest.mark.parametrize("size", [4, 8, 16])
def test_async_copies(size):
    source = np.random.default_rng(0).integers(0, 256, 64 * size, dtype=np.uint8)
    copy = np.zeros_like(source)
    words = size // 4
    names = ", ".join(f"r{i}" for i in range(words))
    vector = f".v{words}" if words > 1 else ""
    way = "cg" if size == 16 else "ca"
    code = (
        f"mul.wide.u32 offset, tid, {size}; add.s64 x0, x0, offset; mul.lo.s32 at, tid, {size};"
        f"setp.lt.s32 p, tid, 40; selp.b32 n, {size}, 0, p;"
        f"cp.async.{way}.shared.global [at], [x0], {size}, n; cp.async.commit_group; cp.async.wait_group 0;"
        f"bar.sync 0; sub.s32 at, {63 * size}, at; ld.shared{vector}.b32 {{{names}}}, [at];"
        f"add.s64 x1, x1, offset; st.global{vector}.b32 [x1], {{{names}}}; mov.b32 d, n;"
    )
    run(
        code,
        {"d": np.uint32},
        threads=64,
        extra=(source, copy),
        shared_bytes=64 * size,
        declare=f".reg .b32 at, n, {names};",
    )
    expected = source.reshape(64, size).copy()
    expected[40:] = 0
    assert np.array_equal(copy.reshape(64, size), expected[::-1])


def test_barriers_order_warps():
    code = (
        "xor.b32 other, tid, 96; shl.b32 at, tid, 2; shl.b32 from, other, 2; st.shared.b32 [at], a;"
        "bar.sync 0;"
        "ld.shared.b32 d, [from];"
    )
    a = np.arange(128, dtype=np.int32)
    same(run(code, {"d": np.int32}, a=a, declare=".reg .b32 at, from, other;", shared_bytes=512), a ^ 96)
