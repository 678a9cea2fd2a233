"""Integer, logic and bit instructions against Python's unbounded integers."""

import numpy as np
import pytest

from tests.ptxsim.tests.harness import all_pairs, integers, run, same, wrap

TYPES = {
    "s16": np.int16,
    "u16": np.uint16,
    "s32": np.int32,
    "u32": np.uint32,
    "s64": np.int64,
    "u64": np.uint64,
}
WIDER = {"s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64}
every_type = pytest.mark.parametrize("kind", TYPES)


def expect(function, dtype, *columns):
    return np.array(
        [wrap(function(*(int(v) for v in row)), dtype) for row in zip(*columns, strict=True)], dtype
    )


def truncating_division(a, b):
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


@every_type
@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul.lo", lambda a, b: a * b),
        ("max", max),
        ("min", min),
    ],
)
def test_arithmetic(kind, opcode, function):
    a, b = all_pairs(integers(TYPES[kind]), TYPES[kind])
    same(run(f"{opcode}.{kind} d, a, b;", {"d": TYPES[kind]}, a=a, b=b), expect(function, TYPES[kind], a, b))


@every_type
@pytest.mark.parametrize("opcode", ["div", "rem"])
def test_division(kind, opcode):
    a, b = all_pairs([v for v in integers(TYPES[kind]) if v], TYPES[kind])
    function = truncating_division if opcode == "div" else lambda x, y: x - y * truncating_division(x, y)
    same(run(f"{opcode}.{kind} d, a, b;", {"d": TYPES[kind]}, a=a, b=b), expect(function, TYPES[kind], a, b))


@every_type
def test_multiply_high(kind):
    a, b = all_pairs(integers(TYPES[kind]), TYPES[kind])
    bits = 8 * a.itemsize
    same(
        run(f"mul.hi.{kind} d, a, b;", {"d": TYPES[kind]}, a=a, b=b),
        expect(lambda x, y: x * y >> bits, TYPES[kind], a, b),
    )


@pytest.mark.parametrize("kind", WIDER)
def test_multiply_wide(kind):
    a, b = all_pairs(integers(TYPES[kind]), TYPES[kind])
    c = np.resize(np.array(integers(WIDER[kind]), WIDER[kind]), len(a))
    same(
        run(f"mul.wide.{kind} d, a, b;", {"d": WIDER[kind]}, a=a, b=b),
        expect(lambda x, y: x * y, WIDER[kind], a, b),
    )
    same(
        run(f"mad.wide.{kind} d, a, b, c;", {"d": WIDER[kind]}, a=a, b=b, c=c),
        expect(lambda x, y, z: x * y + z, WIDER[kind], a, b, c),
    )


@every_type
def test_multiply_add(kind):
    a, b = all_pairs(integers(TYPES[kind]), TYPES[kind])
    c = a[::-1].copy()
    same(
        run(f"mad.lo.{kind} d, a, b, c;", {"d": TYPES[kind]}, a=a, b=b, c=c),
        expect(lambda x, y, z: x * y + z, TYPES[kind], a, b, c),
    )


def test_saturating_add():
    a, b = all_pairs(integers(np.int32), np.int32)
    same(
        run("add.sat.s32 d, a, b;", {"d": np.int32}, a=a, b=b),
        expect(lambda x, y: max(-(2**31), min(2**31 - 1, x + y)), np.int32, a, b),
    )


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_negate_and_absolute(kind):
    a = np.resize(np.array(integers(TYPES[kind]), TYPES[kind]), 32)
    same(run(f"neg.{kind} d, a;", {"d": TYPES[kind]}, a=a), expect(lambda x: -x, TYPES[kind], a))
    same(run(f"abs.{kind} d, a;", {"d": TYPES[kind]}, a=a), expect(abs, TYPES[kind], a))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    dtype = TYPES[f"u{bits}"]
    a, b = all_pairs(integers(dtype), dtype)
    same(run(f"and.b{bits} d, a, b;", {"d": dtype}, a=a, b=b), a & b)
    same(run(f"or.b{bits} d, a, b;", {"d": dtype}, a=a, b=b), a | b)
    same(run(f"xor.b{bits} d, a, b;", {"d": dtype}, a=a, b=b), a ^ b)
    same(run(f"not.b{bits} d, a;", {"d": dtype}, a=a), ~a)


@pytest.mark.parametrize("table", [0x00, 0x80, 0x96, 0xE8, 0xCA, 0x3C, 0xFF])
def test_lop3(table):
    a, b = all_pairs(integers(np.uint32), np.uint32)
    c = np.roll(a, 7)
    expected = np.zeros_like(a)
    for bit in range(32):
        row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
        expected |= (np.uint32(table) >> row & 1) << np.uint32(bit)
    same(run(f"lop3.b32 d, a, b, c, {table};", {"d": np.uint32}, a=a, b=b, c=c), expected)


@pytest.mark.parametrize("kind", [*TYPES, "b16", "b32", "b64"])
def test_shifts(kind):
    dtype = TYPES[kind.replace("b", "u")]
    bits = np.dtype(dtype).itemsize * 8
    counts = np.array([0, 1, 7, bits - 1, bits, bits + 1, 63, 64, 65, 255, 2**31, 2**32 - 1], np.uint32)
    values = np.array(integers(dtype), dtype)
    a, s = (m.ravel() for m in np.meshgrid(values, counts))
    n = len(a) // 32 * 32
    a, s = a[:n].copy(), s[:n].copy()
    same(run(f"shr.{kind} d, a, s_;", {"d": dtype}, a=a, s_=s), expect(lambda x, y: x >> y, dtype, a, s))
    if kind[0] == "b":
        same(
            run(f"shl.{kind} d, a, s_;", {"d": dtype}, a=a, s_=s),
            expect(lambda x, y: x << y if y < 64 else 0, dtype, a, s),
        )


@pytest.mark.parametrize("direction", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shift(direction, mode):
    a, b = all_pairs(integers(np.uint32), np.uint32)
    s = np.resize(np.array([0, 1, 31, 32, 33, 40, 2**32 - 1], np.uint32), len(a))

    def funnel(low, high, count):
        count = count & 31 if mode == "wrap" else min(count, 32)
        pair = high << 32 | low
        return pair << count >> 32 if direction == "l" else pair >> count

    same(
        run(f"shf.{direction}.{mode}.b32 d, a, b, s_;", {"d": np.uint32}, a=a, b=b, s_=s),
        expect(funnel, np.uint32, a, b, s),
    )


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_extract_field(kind):
    bits = int(kind[1:])
    dtype, unsigned = TYPES[kind], TYPES[f"u{bits}"]
    values = np.array(integers(unsigned), unsigned)
    fields = [(p, n) for p in (0, 1, 5, bits - 1, bits, 255) for n in (0, 1, 4, bits - 1, bits, 200)]
    cases = [(v, p, n) for v in values[:24] for p, n in fields][:864]
    a = np.array([c[0] for c in cases], unsigned)
    start, length = (np.array([c[i] for c in cases], np.uint32) for i in (1, 2))

    def field(value, position, count):  # the ISA's own definition, bit by bit
        sign = 0
        if kind[0] == "s" and count:
            sign = value >> min(position + count - 1, bits - 1) & 1
        out = 0
        for i in range(bits):
            inside = i < count and position + i < bits
            out |= (value >> (position + i) & 1 if inside else sign) << i
        return out

    same(
        run(f"bfe.{kind} d, a, start, length;", {"d": dtype}, a=a, start=start, length=length),
        expect(field, dtype, a, start, length),
    )


@pytest.mark.parametrize("bits", [32, 64])
def test_insert_field(bits):
    dtype = TYPES[f"u{bits}"]
    a, b = all_pairs(integers(dtype), dtype)
    start = np.resize(np.array([0, 3, 16, bits - 1, bits, 255], np.uint32), len(a))
    length = np.resize(np.array([0, 1, 8, bits - 3, bits], np.uint32), len(a))

    def insert(field, base, position, count):
        for i in range(count):
            if position + i < bits:
                base = base & ~(1 << position + i) | (field >> i & 1) << position + i
        return base

    same(
        run(f"bfi.b{bits} d, a, b, start, length;", {"d": dtype}, a=a, b=b, start=start, length=length),
        expect(insert, dtype, a, b, start, length),
    )


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_bits(bits):
    dtype = TYPES[f"u{bits}"]
    a = np.resize(np.array(integers(dtype, 40), dtype), 64)
    same(run(f"popc.b{bits} d, a;", {"d": np.uint32}, a=a), expect(lambda v: v.bit_count(), np.uint32, a))
    same(
        run(f"clz.b{bits} d, a;", {"d": np.uint32}, a=a),
        expect(lambda v: bits - v.bit_length(), np.uint32, a),
    )
    same(
        run(f"bfind.u{bits} d, a;", {"d": np.uint32}, a=a), expect(lambda v: v.bit_length() - 1, np.uint32, a)
    )
    same(
        run(f"brev.b{bits} d, a;", {"d": dtype}, a=a),
        expect(lambda v: int(f"{v:0{bits}b}"[::-1], 2), dtype, a),
    )


def test_prmt():
    a, b = all_pairs(integers(np.uint32, 20), np.uint32)
    selector = np.random.default_rng(3).integers(0, 2**32, len(a), dtype=np.uint32)

    def permute(low, high, select):
        pool, out = (high << 32 | low).to_bytes(8, "little"), []
        for i in range(4):
            nibble = select >> 4 * i & 15
            byte = pool[nibble & 7]
            out.append((255 if byte & 128 else 0) if nibble & 8 else byte)
        return int.from_bytes(bytes(out), "little")

    same(
        run("prmt.b32 d, a, b, c;", {"d": np.uint32}, a=a, b=b, c=selector),
        expect(permute, np.uint32, a, b, selector),
    )


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@every_type
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_comparisons(kind, comparison):
    a, b = all_pairs(integers(TYPES[kind]), TYPES[kind])
    same(
        run(f"setp.{comparison}.{kind} p, a, b; selp.b32 d, 1, 0, p;", {"d": np.int32}, a=a, b=b),
        expect(COMPARISONS[comparison], np.int32, a, b),
    )


@pytest.mark.parametrize(("unsigned", "plain"), [("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")])
def test_unsigned_comparisons(unsigned, plain):
    a, b = all_pairs(integers(np.uint32), np.uint32)
    same(
        run(f"setp.{unsigned}.u32 p, a, b; selp.b32 d, 1, 0, p;", {"d": np.int32}, a=a, b=b),
        expect(COMPARISONS[plain], np.int32, a, b),
    )


@pytest.mark.parametrize("combine", ["and", "or", "xor"])
@pytest.mark.parametrize("negate", ["", "!"])
def test_combined_comparisons(combine, negate):
    a, b = all_pairs([0, 1, 2, 3], np.int32)
    code = (
        f"setp.gt.s32 r, a, 1; setp.lt.{combine}.s32 p|q, a, b, {negate}r;"
        "selp.b32 d, 1, 0, p; selp.b32 e, 1, 0, q;"
    )
    result = run(code, {"d": np.int32, "e": np.int32}, a=a, b=b)
    operation = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[combine]
    other = ~(a > 1) if negate else a > 1
    same(result["d"], operation(a < b, other).astype(np.int32))
    same(result["e"], operation(~(a < b), other).astype(np.int32))


def test_predicate_logic():
    a, b = all_pairs([0, 1], np.int32)
    code = (
        "setp.ne.s32 p, a, 0; setp.ne.s32 q, b, 0; and.pred r, p, q; or.pred s, p, q; selp.b32 d, 1, 0, r;"
        "selp.b32 e, 1, 0, s; xor.pred r, p, q; not.pred s, r; selp.b32 f, 1, 0, r; selp.b32 g, 1, 0, s;"
        "mov.pred p, -1; selp.b32 h, 1, 0, p;"
    )
    result = run(code, dict.fromkeys("defgh", np.int32), a=a, b=b)
    same(result["d"], a & b)
    same(result["e"], a | b)
    same(result["f"], a ^ b)
    same(result["g"], 1 - (a ^ b))
    same(result["h"], np.ones_like(a))


def test_moving_vectors():
    a = np.resize(np.array(integers(np.uint64), np.uint64), 32)
    code = (
        "mov.b64 {low, high}, a; mov.b64 d, {high, low}; mov.b32 {h0, h1}, low; mov.b32 e, {h1, h0};"
        "mov.b64 {_, f}, a;"
    )
    result = run(
        code,
        {"d": np.uint64, "e": np.uint32, "f": np.uint32},
        a=a,
        declare=".reg .b32 low, high; .reg .b16 h0, h1;",
    )
    same(result["d"], a << np.uint64(32) | a >> np.uint64(32))
    low = a.astype(np.uint32)
    same(result["e"], low << np.uint32(16) | low >> np.uint32(16))
    same(result["f"], (a >> np.uint64(32)).astype(np.uint32))


def test_predication():
    a = np.arange(64, dtype=np.int32)
    code = "mov.b32 d, 7; setp.lt.s32 p, a, 20; @p mov.b32 d, a; @!p add.s32 d, a, 100;"
    same(run(code, {"d": np.int32}, a=a), np.where(a < 20, a, a + 100))


def test_special_registers():
    result = run(
        "mov.u32 d, %laneid; mov.u32 e, %warpid; mov.u32 f, %ctaid.x; mov.u32 g, %nctaid.x;"
        "mov.u32 h, %ntid.x; mov.u32 i, %lanemask_lt;",
        dict.fromkeys("defghi", np.uint32),
        threads=64,
        grid=3,
    )
    index = np.arange(192)
    for name, expected in {
        "d": index % 32,
        "e": index % 64 // 32,
        "f": index // 64,
        "g": 0 * index + 3,
        "h": 0 * index + 64,
        "i": (1 << index % 32) - 1,
    }.items():
        same(result[name], expected.astype(np.uint32))
