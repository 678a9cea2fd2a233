"""Wrap a few PTX instructions into a kernel that applies them to arrays, one element a thread."""

from fractions import Fraction

import numpy as np

from tests.ptxsim import execute_ptx

HEADER = """.version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 smem[];
"""


def run(body, outputs, threads=None, shared_bytes=0, declare="", grid=1, extra=(), **inputs):
    """Run `body`; keywords are input registers filled from arrays, `outputs` maps registers to dtypes.

    `extra` are arrays whose addresses appear in 64-bit registers x0, x1, ... Returns the outputs as arrays.
    """
    threads = threads or len(next(iter(inputs.values())))
    assert threads % 32 == 0
    results = {name: np.zeros(threads * grid, np.dtype(dtype)) for name, dtype in outputs.items()}
    arrays = {**inputs, **results}
    lines = [".reg .b32 tid, cta, index;", ".reg .b64 pointer, offset;", ".reg .pred p, q, r, s;", declare]
    lines += [f".reg .b{max(16, array.dtype.itemsize * 8)} {name};" for name, array in arrays.items()]
    lines += [f".reg .b64 x{i};" for i in range(len(extra))]
    lines += ["mov.u32 tid, %tid.x;", "mov.u32 cta, %ctaid.x;", f"mad.lo.s32 index, cta, {threads}, tid;"]
    lines += [f"ld.param.b64 x{i}, [parameter_x{i}];" for i in range(len(extra))]

    def access(name, array, store):
        size = array.dtype.itemsize
        lines.append(f"ld.param.b64 pointer, [parameter_{name}];")
        lines.append(f"mul.wide.u32 offset, index, {size};")
        lines.append("add.s64 pointer, pointer, offset;")
        lines.append(
            f"st.global.b{8 * size} [pointer], {name};"
            if store
            else f"ld.global.b{8 * size} {name}, [pointer];"
        )

    for name, array in inputs.items():
        access(name, array, False)
    lines.append(body)
    for name, array in results.items():
        access(name, array, True)
    names = [*arrays, *(f"x{i}" for i in range(len(extra)))]
    parameters = ",\n".join(f".param .u64 parameter_{name}" for name in names)
    text = "\n".join(lines)
    ptx = f"{HEADER}.visible .entry test({parameters})\n.reqntid {threads}\n{{\n{text}\nret;\n}}\n"
    execute_ptx(ptx, grid, [*arrays.values(), *extra], shared_bytes)
    return results[next(iter(outputs))] if len(outputs) == 1 else results


def all_pairs(values, dtype):
    """Two arrays that hold every pair of the given values, padded to whole warps."""
    first, second = np.meshgrid(np.array(values, dtype), np.array(values, dtype))
    count = -(-first.size // 32) * 32
    assert count <= 1024
    return np.resize(first.ravel(), count), np.resize(second.ravel(), count)


def integers(dtype, count=20, seed=0):
    """Edge cases and random values of an integer type."""
    info = np.iinfo(dtype)
    edges = {
        0,
        1,
        2,
        info.max,
        info.max - 1,
        info.min,
        info.min + 1,
        info.max // 2,
        *([-1, -2] if info.min else []),
    }
    random = np.random.default_rng(seed).integers(info.min, info.max, count, dtype=dtype, endpoint=True)
    return [*sorted(edges), *random.tolist()]


def floats(dtype=np.float32, count=18, seed=0):
    """Edge cases and random values of a float type."""
    info = np.finfo(dtype)
    edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        np.inf,
        -np.inf,
        np.nan,
        info.max,
        info.tiny,
        -info.tiny / 4,
    ]
    random = np.random.default_rng(seed)
    return np.array([*edges, *(random.standard_normal(count) * 10.0 ** random.integers(-3, 4, count))], dtype)


def wrap(value, dtype):
    """A Python integer, reduced to an integer type."""
    bits = np.dtype(dtype).itemsize * 8
    value &= (1 << bits) - 1
    return value - (1 << bits) if np.iinfo(dtype).min < 0 and value >> (bits - 1) else value


def nearest(exact: Fraction, dtype):
    """The float nearest to an exact value, ties to even: by looking at the neighbours."""
    guess = np.dtype(dtype).type(float(exact))
    if not np.isfinite(guess):
        return guess
    integer = {2: np.uint16, 4: np.uint32}[np.dtype(dtype).itemsize]
    candidates = [guess, np.nextafter(guess, dtype(np.inf)), np.nextafter(guess, dtype(-np.inf))]
    candidates = [c for c in candidates if np.isfinite(c)]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(integer)) & 1))


def same(actual, expected):
    """Equal bit for bit, except that all NaNs are alike."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.dtype.kind == "f":
        both_nan = np.isnan(actual) & np.isnan(expected)
        equal = (actual == expected) & (np.signbit(actual) == np.signbit(expected)) | both_nan
    else:
        equal = actual == expected
    assert equal.all(), (
        f"first difference at {np.flatnonzero(~equal)[0]}: "
        f"{actual[~equal][0]!r}, expected {expected[~equal][0]!r}"
    )
