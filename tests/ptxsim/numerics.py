"""Number formats and roundings that numpy lacks.

f16 and bf16 arithmetic is done in fp32 and rounded once more: fp32 has at least 2p + 2 bits of both, so for
one addition, product, quotient or root the second rounding cannot change the result. Fused multiply-adds are
the exception; they go through round-to-odd, which keeps enough for the last rounding to be the right one.
"""

from __future__ import annotations

import numpy as np

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}

QUIET_NAN_BF16 = np.uint16(0x7FFF)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(values: np.ndarray, mode: str = "rn") -> np.ndarray:
    """Round fp32 to bf16 bits; mode rn (to nearest even) or rz (truncate)."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    if mode == "rn":
        bits = bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))
    rounded = (bits >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(values), QUIET_NAN_BF16, rounded)


def round_to_tf32(values: np.ndarray) -> np.ndarray:
    """cvt.rna.tf32.f32: to nearest, ties away from zero; the 13 low bits come out as zero."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, np.where(np.isnan(values), np.uint32(0x7FFFFFFF), bits))


def to_odd(rounded: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Turn round-to-nearest into round-to-odd, given the sign of (exact - rounded)."""
    integer = UNSIGNED[rounded.dtype.itemsize * 8]
    even = (np.ascontiguousarray(rounded).view(integer) & integer(1)) == 0
    fix = even & (error != 0) & np.isfinite(rounded)
    if not np.any(fix):
        return rounded
    toward = np.where(error > 0, np.inf, -np.inf).astype(rounded.dtype)
    return np.where(fix, np.nextafter(rounded, toward), rounded)


def fma_odd(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of fp32 (or shorter) operands in fp64, rounded to odd: one more rounding makes it exact."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: 24 + 24 bits fit in 53
    addend = c.astype(np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)  # Knuth's two-sum
    return to_odd(total, np.where(np.isfinite(total), error, 0.0))


def narrow_odd(values: np.ndarray) -> np.ndarray:
    """fp64 -> fp32 rounded to odd."""
    narrow = values.astype(np.float32)
    return to_odd(narrow, np.where(np.isfinite(narrow), values - narrow.astype(np.float64), 0.0))


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """fp64 multiply-add with the rounding errors added back (Dekker): right but for the rarest ties."""
    product, splitter = a * b, np.float64(134217729.0)
    a_high = a * splitter - (a * splitter - a)
    b_high = b * splitter - (b * splitter - b)
    a_low, b_low = a - a_high, b - b_high
    product_error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    part = total - product
    total_error = (product - (total - part)) + (c - part)
    correction = product_error + total_error
    return np.where(np.isfinite(correction), total + correction, total)


def round_float(values: np.ndarray, dtype: type, mode: str) -> np.ndarray:
    """Narrow a float array with rounding mode rn, rz, rm (down) or rp (up)."""
    rounded = values.astype(dtype)
    if mode == "rn":
        return rounded
    back = rounded.astype(np.float64)
    exact = values.astype(np.float64)
    infinity = np.array(np.inf, dtype)
    too_high = {"rz": (back > exact) & (exact >= 0), "rm": back > exact, "rp": np.zeros(values.shape, bool)}[
        mode
    ]
    too_low = {"rz": (back < exact) & (exact <= 0), "rp": back < exact, "rm": np.zeros(values.shape, bool)}[
        mode
    ]
    rounded = np.where(too_high, np.nextafter(rounded, -infinity), rounded)
    return np.where(too_low, np.nextafter(rounded, infinity), rounded)


def flush_subnormals(values: np.ndarray) -> np.ndarray:
    """.ftz: fp32 subnormals count as zero of the same sign."""
    if values.dtype != np.float32:
        return values
    return np.where(np.abs(values) < np.float32(2.0**-126), np.copysign(np.float32(0), values), values)


def float_to_int(values: np.ndarray, bits: int, signed: bool, from_f64: bool) -> np.ndarray:
    """Saturating conversion of already rounded floats, NaN as PTX has it."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    dtype = (SIGNED if signed else UNSIGNED)[bits]
    wide = values.astype(np.float64)
    inside = (wide > low) & (wide < float(high))
    result = np.where(inside, wide, 0.0).astype(dtype)
    result = np.where(wide >= float(high), dtype(high), np.where(wide <= low, dtype(low), result))
    nan = UNSIGNED[bits](1 << (bits - 1)).view(dtype) if from_f64 or bits == 64 else dtype(0)
    return np.where(np.isnan(wide), nan, result).astype(dtype)


def multiply_high(a: np.ndarray, b: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Upper half of the 2 * bits wide product."""
    if bits < 64:
        wide = (SIGNED if signed else UNSIGNED)[2 * bits]
        product = np.multiply(a.astype(wide), b.astype(wide))
        return (product >> wide(bits)).astype((SIGNED if signed else UNSIGNED)[bits])
    x, y = np.asarray(a).view(np.uint64), np.asarray(b).view(np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> shift, y & low, y >> shift
    middle = x1 * y0 + ((x0 * y0) >> shift)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> shift) + (other >> shift)
    if signed:  # the unsigned product counts each negative operand as 2^64 too much
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
        return high.view(np.int64)
    return high
