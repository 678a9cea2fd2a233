"""Float arithmetic, comparisons and conversions, against numpy, torch or exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.ptxsim.tests.harness import all_pairs, floats, integers, nearest, run, same


def bf16_bits(values):
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).bfloat16().view(torch.uint16).numpy()


def bf16_values(bits):
    return torch.from_numpy(np.ascontiguousarray(bits)).view(torch.bfloat16).float().numpy()


@pytest.mark.parametrize(("kind", "dtype"), [("f32", np.float32), ("f64", np.float64), ("f16", np.float16)])
@pytest.mark.parametrize(
    ("opcode", "function"), [("add", np.add), ("sub", np.subtract), ("mul", np.multiply)]
)
def test_arithmetic(kind, dtype, opcode, function):
    a, b = all_pairs(floats(dtype), dtype)
    with np.errstate(all="ignore"):
        same(run(f"{opcode}.{kind} d, a, b;", {"d": dtype}, a=a, b=b), function(a, b))


@pytest.mark.parametrize("opcode", ["add", "sub", "mul"])
def test_bf16_arithmetic(opcode):
    a, b = all_pairs(bf16_values(bf16_bits(floats())), np.float32)
    x, y = (torch.from_numpy(v).bfloat16() for v in (a, b))
    expected = {"add": x + y, "sub": x - y, "mul": x * y}[opcode].float().numpy()
    result = run(f"{opcode}.bf16 d, a, b;", {"d": np.uint16}, a=bf16_bits(a), b=bf16_bits(b))
    same(bf16_values(result), expected)


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2", "f32x2"])
def test_packed_arithmetic(kind):
    element = {"f16x2": np.float16, "bf16x2": np.uint16, "f32x2": np.float32}[kind]
    whole = np.uint64 if kind == "f32x2" else np.uint32
    raw = np.random.default_rng(0).standard_normal((2, 128)).astype(np.float32)
    a, b = (bf16_bits(r) if kind == "bf16x2" else r.astype(element) for r in raw)
    for opcode, function in (("add", np.add), ("mul", np.multiply)):
        result = run(f"{opcode}.{kind} d, a, b;", {"d": whole}, a=a.view(whole), b=b.view(whole)).view(
            element
        )
        if kind == "bf16x2":
            same(bf16_values(result), bf16_values(bf16_bits(function(bf16_values(a), bf16_values(b)))))
        else:
            same(result, function(a, b))


def fma_operands(dtype):
    """Products with addends that nearly cancel them, or are half an ulp: where double rounding shows."""
    random = np.random.default_rng(1)
    a, b = (random.standard_normal(512).astype(dtype) for _ in "ab")
    exact = a.astype(np.float64) * b
    c = random.standard_normal(512).astype(dtype)
    c[:128] = -exact[:128].astype(dtype)
    scale = np.finfo(dtype).nmant
    c[128:384] = (
        np.exp2(np.floor(np.log2(np.abs(exact[128:384])))) * 2.0 ** random.integers(scale - 2, scale + 4, 256)
    ).astype(dtype)
    return a, b, c


@pytest.mark.parametrize(("kind", "dtype"), [("f32", np.float32), ("f16", np.float16)])
def test_fused_multiply_add(kind, dtype):
    a, b, c = fma_operands(dtype)
    finite = np.isfinite(c)
    expected = [
        nearest(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), dtype)
        for x, y, z in zip(a[finite], b[finite], c[finite], strict=True)
    ]
    result = run(f"fma.rn.{kind} d, a, b, c;", {"d": dtype}, a=a, b=b, c=c)
    assert np.array_equal(result[finite], np.array(expected, dtype))


def test_fused_multiply_add_rounds_once():
    """1 + 2^-23 + 2^-24 (1 - 2^-46) lies just below a tie that fp64 rounds it onto."""
    a = np.full(32, 2.0**-24 * (1 + 2.0**-23), np.float32)
    b = np.full(32, 1 - 2.0**-23, np.float32)
    c = np.full(32, 1 + 2.0**-23, np.float32)
    same(run("fma.rn.f32 d, a, b, c;", {"d": np.float32}, a=a, b=b, c=c), c)
    same(run("fma.rn.f32 d, a, b, c;", {"d": np.float32}, a=-a, b=b, c=-c), -c)


def test_fused_multiply_add_bf16():
    a, b, c = (bf16_values(bf16_bits(v)) for v in fma_operands(np.float32))
    c = c * np.float32(2.0**-16)

    def round_bf16(exact):
        low = bf16_values(bf16_bits(np.array([float(exact)])))[0]
        step = np.uint32(1 << 16)
        near = [
            np.array([low.view(np.uint32) + np.uint32(i) * step], np.uint32).view(np.float32)[0]
            for i in (0, 1)
        ]
        near.append(np.array([low.view(np.uint32) - step], np.uint32).view(np.float32)[0])
        near = [v for v in near if np.isfinite(v)]
        return min(near, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) >> 16 & 1))

    expected = [
        round_bf16(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    result = run("fma.rn.bf16 d, a, b, c;", {"d": np.uint16}, a=bf16_bits(a), b=bf16_bits(b), c=bf16_bits(c))
    assert np.array_equal(bf16_values(result), np.array(expected, np.float32))


def test_mixed_multiply_add():
    """fma.rn.f32.bf16: narrow factors, fp32 addend and result."""
    random = np.random.default_rng(2)
    a, b = (bf16_bits(random.standard_normal(256)) for _ in "ab")
    c = random.standard_normal(256).astype(np.float32)
    expected = (bf16_values(a).astype(np.float64) * bf16_values(b) + c).astype(np.float32)
    same(run("fma.rn.f32.bf16 d, a, b, c;", {"d": np.float32}, a=a, b=b, c=c), expected)
    same(run("add.f32.bf16 d, a, c;", {"d": np.float32}, a=a, c=c), bf16_values(a) + c)
    same(run("sub.f32.bf16 d, a, c;", {"d": np.float32}, a=a, c=c), bf16_values(a) - c)


@pytest.mark.parametrize(("kind", "dtype"), [("f32", np.float32), ("f16", np.float16)])
@pytest.mark.parametrize("opcode", ["max", "min"])
@pytest.mark.parametrize("nan", ["", ".NaN"])
def test_extremes(kind, dtype, opcode, nan):
    a, b = all_pairs(floats(dtype), dtype)
    result = run(f"{opcode}{nan}.{kind} d, a, b;", {"d": dtype}, a=a, b=b)
    pick = max if opcode == "max" else min

    def one(x, y):
        if np.isnan(x) or np.isnan(y):
            return np.nan if nan or (np.isnan(x) and np.isnan(y)) else (y if np.isnan(x) else x)
        return pick((x, not np.signbit(x)), (y, not np.signbit(y)))[0]  # -0 counts as less than +0

    same(result, np.array([one(x, y) for x, y in zip(a, b, strict=True)], dtype))


def test_three_operand_extremes():
    a, b = all_pairs(floats()[:11], np.float32)
    c = np.roll(a, 5)
    same(run("max.f32 d, a, b, c;", {"d": np.float32}, a=a, b=b, c=c) + 0, np.fmax(np.fmax(a, b), c) + 0)


def test_nan_results_are_canonical():
    a = np.full(32, np.inf, np.float32)
    assert (run("sub.f32 d, a, a;", {"d": np.uint32}, a=a) == 0x7FFFFFFF).all()
    assert (run("sqrt.rn.f32 d, a;", {"d": np.uint32}, a=-a) == 0x7FFFFFFF).all()


@pytest.mark.parametrize(
    "comparison", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
)
def test_comparisons(comparison):
    a, b = all_pairs(floats()[:20], np.float32)
    unordered = np.isnan(a) | np.isnan(b)
    plain = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    if comparison in ("num", "nan"):
        expected = unordered if comparison == "nan" else ~unordered
    elif comparison[-1] == "u":
        expected = plain[comparison[:-1]] | unordered
    else:
        expected = plain[comparison] & ~unordered
    same(
        run(f"setp.{comparison}.f32 p, a, b; selp.b32 d, 1, 0, p;", {"d": np.int32}, a=a, b=b),
        expected.astype(np.int32),
    )


def test_division_and_roots():
    a, b = all_pairs(floats(), np.float32)
    with np.errstate(all="ignore"):
        for code in ("div.full.f32", "div.rn.f32"):
            same(run(f"{code} d, a, b;", {"d": np.float32}, a=a, b=b), a / b)
        same(run("sqrt.rn.f32 d, a;", {"d": np.float32}, a=a), np.sqrt(a))
        same(run("rcp.rn.f32 d, a;", {"d": np.float32}, a=a), np.float32(1) / a)


@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("ex2.approx.f32", np.exp2),
        ("lg2.approx.f32", np.log2),
        ("rsqrt.approx.f32", lambda v: 1 / np.sqrt(v)),
        ("sqrt.approx.f32", np.sqrt),
        ("rcp.approx.f32", lambda v: 1 / v),
        ("sin.approx.f32", np.sin),
        ("cos.approx.f32", np.cos),
        ("tanh.approx.f32", np.tanh),
    ],
)
def test_approximations(opcode, function):
    a = np.resize(np.concatenate([floats(), np.linspace(-10, 10, 100, dtype=np.float32)]), 128)
    with np.errstate(all="ignore"):
        same(
            run(f"{opcode} d, a;", {"d": np.float32}, a=a), function(a.astype(np.float64)).astype(np.float32)
        )


def test_flush_to_zero():
    a = np.resize(np.array([1e-39, -1e-39, 2.0**-126, 1.0], np.float32), 32)
    result = run(
        "mul.ftz.f32 d, a, 0f3F800000; mul.f32 e, a, 0f3F800000; ex2.approx.ftz.f32 f, b;"
        "abs.ftz.f32 g, a; neg.ftz.f32 h, a;",
        {"d": np.float32, "e": np.float32, "f": np.float32, "g": np.float32, "h": np.float32},
        a=a,
        b=np.full(32, -130, np.float32),
    )
    flushed = np.where(np.abs(a) < 2.0**-126, np.copysign(np.float32(0), a), a)
    same(result["d"], flushed)
    same(result["g"], np.abs(flushed))
    same(result["h"], -flushed)
    same(result["e"], a)
    same(result["f"], np.zeros(32, np.float32))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_sign_operations(kind):
    dtype = np.float32 if kind == "f32" else np.float16
    a = np.resize(floats(dtype), 32)
    raw = a.view(np.uint32 if kind == "f32" else np.uint16)
    top = raw.dtype.type(1 << (8 * raw.itemsize - 1))
    same(run(f"neg.{kind} d, a;", {"d": raw.dtype}, a=raw), raw ^ top)
    same(run(f"abs.{kind} d, a;", {"d": raw.dtype}, a=raw), raw & ~top)


def test_copysign():
    a, b = all_pairs(floats()[:10], np.float32)
    same(run("copysign.f32 d, a, b;", {"d": np.float32}, a=a, b=b), np.copysign(b, a))


# --- conversions


@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize(
    ("mode", "function"), [("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)]
)
def test_float_to_integer(to, mode, function):
    bits, signed = int(to[1:]), to[0] == "s"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    a = np.resize(
        np.concatenate(
            [floats(), np.array([low, high, 2.0**bits, -(2.0**bits), 0.49, -0.51, 126.5, 127.5], np.float32)]
        ),
        64,
    )
    dtype = np.dtype(f"{'' if signed else 'u'}int{max(bits, 16)}")

    def one(x):
        if np.isnan(x):
            return (-(1 << 63) if signed else 1 << 63) if bits == 64 else 0
        return high if x == np.inf else low if x == -np.inf else max(low, min(high, int(function(float(x)))))

    expected = np.array([one(x) for x in a], dtype)
    same(run(f"cvt.{mode}.{to}.f32 d, a;", {"d": dtype}, a=a), expected)


@pytest.mark.parametrize("source", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_integer_to_float(source):
    dtype = np.dtype(f"{'u' if source[0] == 'u' else ''}int{source[1:]}")
    a = np.resize(np.array(integers(dtype, 40), dtype), 64)
    expected = np.array([nearest(Fraction(int(v)), np.float32) for v in a], np.float32)
    same(run(f"cvt.rn.f32.{source} d, a;", {"d": np.float32}, a=a), expected)
    same(run(f"cvt.rn.f64.{source} d, a;", {"d": np.float64}, a=a), np.array([float(int(v)) for v in a]))


def test_narrowing():
    random = np.random.default_rng(4)
    a = np.concatenate([floats(), (random.standard_normal(400) * 10.0 ** random.integers(-8, 6, 400))])
    a = np.resize(a.astype(np.float32), 448)
    ties = np.arange(0x3F800000, 0x3F800000 + 64 * 0x1000, 0x1000, dtype=np.uint32).view(np.float32)
    a[-64:] = ties  # halfway cases of fp16 and bf16
    with np.errstate(all="ignore"):
        same(run("cvt.rn.f16.f32 d, a;", {"d": np.float16}, a=a), a.astype(np.float16))
    same(bf16_values(run("cvt.rn.bf16.f32 d, a;", {"d": np.uint16}, a=a)), bf16_values(bf16_bits(a)))
    truncated = (a.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    same(
        bf16_values(run("cvt.rz.bf16.f32 d, a;", {"d": np.uint16}, a=a)),
        np.where(np.isnan(a), np.nan, truncated),
    )
    packed = run("cvt.rn.bf16x2.f32 d, a, b;", {"d": np.uint32}, a=a, b=a[::-1].copy())
    assert ((packed >> 16).astype(np.uint16)[~np.isnan(a)] == bf16_bits(a)[~np.isnan(a)]).all()
    packed = run("cvt.rn.f16x2.f32 d, a, b;", {"d": np.uint32}, a=a, b=a[::-1].copy()).view(np.float16)
    with np.errstate(all="ignore"):
        same(packed[1::2], a.astype(np.float16))
        same(packed[::2], a[::-1].astype(np.float16))


@pytest.mark.parametrize(
    ("mode", "keep"),
    [("rz", lambda c, x: abs(c) <= abs(x)), ("rm", lambda c, x: c <= x), ("rp", lambda c, x: c >= x)],
)
def test_directed_rounding(mode, keep):
    a = np.random.default_rng(5).standard_normal(256) * 100
    result = run(f"cvt.{mode}.f32.f64 d, a;", {"d": np.float32}, a=a)
    for x, r in zip(a, result, strict=True):
        around = [
            np.float32(x),
            np.nextafter(np.float32(x), np.float32(np.inf)),
            np.nextafter(np.float32(x), np.float32(-np.inf)),
        ]
        assert r == min((c for c in around if keep(float(c), x)), key=lambda c: abs(float(c) - x))


def test_widening():
    halves = np.arange(0, 2**16, 64, dtype=np.uint16)
    same(run("cvt.f32.f16 d, a;", {"d": np.float32}, a=halves), halves.view(np.float16).astype(np.float32))
    same(run("cvt.f32.bf16 d, a;", {"d": np.float32}, a=halves), bf16_values(halves))
    a = np.resize(floats(), 32)
    same(run("cvt.f64.f32 d, a;", {"d": np.float64}, a=a), a.astype(np.float64))
    same(run("cvt.rn.f32.f64 d, a;", {"d": np.float32}, a=a.astype(np.float64)), a)


def test_tf32():
    a = np.resize(
        np.concatenate([floats(), np.random.default_rng(6).standard_normal(200)]).astype(np.float32), 224
    )
    result = run("cvt.rna.tf32.f32 d, a;", {"d": np.uint32}, a=a)
    finite = np.isfinite(a) & (np.abs(a) < 1e38)
    assert (result[finite] & 0x1FFF == 0).all()
    for x, r in zip(a[finite], result.view(np.float32)[finite], strict=True):
        step = Fraction(float(np.spacing(np.float32(abs(x))))) * 2**13
        magnitude = abs(Fraction(float(x)))
        away = (magnitude / step + Fraction(1, 2)).__floor__() * step  # ties away from zero
        assert abs(Fraction(float(r))) == away


@pytest.mark.parametrize("source", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_integer_to_integer(source, to):
    dtype = np.dtype(f"{'u' if source[0] == 'u' else ''}int{source[1:]}")
    wanted = np.dtype(f"{'u' if to[0] == 'u' else ''}int{to[1:]}")
    stored = np.dtype(f"{'u' if to[0] == 'u' else ''}int{max(16, int(to[1:]))}")
    a = np.resize(np.array(integers(dtype), dtype), 32)
    same(run(f"cvt.{to}.{source} d, a;", {"d": stored}, a=a), a.astype(wanted).astype(stored))
    low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
    saturated = np.array([max(low, min(high, int(v))) for v in a], stored)
    same(run(f"cvt.sat.{to}.{source} d, a;", {"d": stored}, a=a), saturated)
