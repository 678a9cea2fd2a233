"""What every PTX opcode does: one small function an opcode, in a table.

The table also says which operand counts, modifiers and types each opcode takes. Anything else is refused
before the kernel starts; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import numerics
from .errors import ExecutionFault, UnsupportedInstruction
from .numerics import FLOAT, SIGNED, UNSIGNED
from .parse import Immediate, Instruction, Kernel, Pair, Symbol, Vector, bit_width

INTEGERS = "s16 u16 s32 u32 s64 u64"
BITS = "b16 b32 b64"
FLOATS = "f32 f64 f16 bf16 f16x2 bf16x2 f32x2"
CACHE = "ca cg cs lu cv wb wt nc volatile relaxed acquire release acq_rel weak cta gpu sys cluster"
SPACES = "global shared shared::cta"


@dataclass(frozen=True)
class Spec:
    handler: Callable
    operands: frozenset[int]
    modifiers: frozenset[str]
    types: frozenset[str]
    convergent: bool


TABLE: dict[str, Spec] = {}


def instruction(
    opcodes: str,
    operands: int | tuple[int, ...],
    modifiers: str = "",
    types: str = "",
    convergent: bool = False,
):
    """Put a function into the table. `convergent`: all threads of a warp must execute it together."""
    counts = frozenset((operands,) if isinstance(operands, int) else operands)

    def register(handler: Callable) -> Callable:
        for opcode in opcodes.split():
            TABLE[opcode] = Spec(
                handler, counts, frozenset(modifiers.split()), frozenset(types.split()), convergent
            )
        return handler

    return register


def objection(current: Instruction) -> str | None:
    """Why an instruction cannot be executed, or None."""
    spec = TABLE.get(current.opcode)
    if spec is None:
        hint = {
            "wgmma": "; execute on sm_80",
            "tcgen05": "; execute on sm_80",
            "mbarrier": "; execute on sm_80",
        }
        return f"not implemented: {current.opcode}{hint.get(current.opcode, '')}"
    for modifier in current.modifiers:
        if modifier in current.types:
            if modifier not in spec.types:
                return f"not implemented: {current.opcode} of type .{modifier}"
        elif modifier not in spec.modifiers and not modifier.startswith(("L1::", "L2::")):
            return f"not implemented: {current.opcode} with .{modifier}"
    if len(current.operands) not in spec.operands:
        return f"{current.opcode} with {len(current.operands)} operands"
    return None


def prepare(kernel: Kernel) -> None:
    """Attach the handlers; raise with everything that is not implemented."""
    problems: dict[str, str] = {}
    for current in kernel.instructions:
        why = objection(current)
        if why:
            problems.setdefault(why, current.text)
            continue
        spec = TABLE[current.opcode]
        warp_wide = current.opcode in ("bar", "barrier") and "warp" in current.modifiers
        current.handler = nothing if warp_wide else spec.handler
        current.convergent = spec.convergent or warp_wide
        if current.opcode == "bra" and current.operands[0].name not in kernel.labels:
            problems.setdefault(f"branch to an unknown label {current.operands[0].name}", current.text)
    if problems:
        raise UnsupportedInstruction(
            "\n".join(f"{why}\n  in `{text[:160]}`" for why, text in problems.items())
        )


def space_of(current: Instruction) -> str:
    for modifier in current.modifiers:
        if modifier == "global":
            return "global"
        if modifier.startswith("shared"):
            return "shared"
    raise UnsupportedInstruction(f"not implemented: generic addresses; {current.describe()}")


def access_widths(current: Instruction) -> list[tuple[str, int]]:
    """(space, bytes a thread touches at once) for every memory access an instruction makes."""
    if current.opcode in ("ldmatrix", "stmatrix") or "mma_async" in current.modifiers:
        return [("shared", 16)]
    if current.opcode == "cp" and len(current.operands) > 2:
        return [("shared", current.operands[2].bits), ("global", current.operands[2].bits)]
    if current.opcode in ("ld", "st", "atom", "red") and "param" not in current.modifiers:
        return [(space_of(current), bit_width(current.type) // 8 * vector_length(current))]
    return []


def vector_length(current: Instruction) -> int:
    return next((int(m[1:]) for m in current.modifiers if m in ("v2", "v4", "v8")), 1)


def items(operand) -> tuple:
    return operand.items if isinstance(operand, Vector) else (operand,)


# --- control --------------------------------------------------------------------------------------


@instruction(
    "membar fence nanosleep griddepcontrol prefetch discard",
    (0, 1, 2),
    "cta gl gpu sys cluster sc acq_rel acquire release proxy alias async global shared::cta shared::cluster "
    "async::generic launch_dependents wait L1 L2",
    "u32",
)
def nothing(machine, current: Instruction) -> None:
    """Memory order is checked through barriers only; fences and hints change nothing here."""


@instruction("bra", 1, "uni")
@instruction("ret exit", 0)
def control(machine, current: Instruction) -> None:
    raise AssertionError("the scheduler handles branches itself")


@instruction("bar barrier", (1, 2), "sync cta aligned warp")
def barrier(machine, current: Instruction) -> None:
    raise AssertionError("the scheduler handles barriers itself")


@instruction("trap", 0)
def trap(machine, current: Instruction) -> None:
    machine.fault(ExecutionFault, "trap", machine.active)


@instruction("call", 0, "uni")
def call(machine, current: Instruction) -> None:
    if "__assertfail" not in current.text:
        raise UnsupportedInstruction(f"not implemented: {current.describe()}")
    machine.fault(ExecutionFault, "tl.device_assert failed", machine.active)


# --- moving bits ----------------------------------------------------------------------------------


@instruction("mov", 2, "", f"{INTEGERS} {BITS} f32 f64 pred b128")
def mov(machine, current: Instruction) -> None:
    target, source = current.operands
    if current.type == "pred":
        machine.write(target, machine.read_predicate(source))
    elif isinstance(target, Vector):
        whole = machine.read(source, f"b{bit_width(current.type)}")
        width = bit_width(current.type) // len(target.items)
        for position, part in enumerate(target.items):
            machine.write(part, (whole >> whole.dtype.type(width * position)).astype(UNSIGNED[width]))
    elif isinstance(source, Vector):
        width, count = bit_width(current.type), len(source.items)
        wide, part_width = UNSIGNED[width], width // count
        whole = wide(0)
        for position, part in enumerate(source.items):
            whole = whole | (
                machine.read_part(part, f"b{part_width}").astype(wide) << wide(part_width * position)
            )
        machine.write(target, whole)
    else:
        machine.write(target, machine.read(source, f"b{bit_width(current.type)}"))


@instruction("cvta", 2, "to global", "u64")
def cvta(machine, current: Instruction) -> None:
    machine.write(current.operands[0], machine.read(current.operands[1], "u64"))


@instruction("selp", 4, "", f"{INTEGERS} {BITS} f32 f64")
def selp(machine, current: Instruction) -> None:
    target, yes, no, condition = current.operands
    kind = f"b{bit_width(current.type)}"
    machine.write(
        target, np.where(machine.read_predicate(condition), machine.read(yes, kind), machine.read(no, kind))
    )


@instruction("prmt", 4, "", "b32")
def prmt(machine, current: Instruction) -> None:
    low, high, selector = (machine.read(o, "u32") for o in current.operands[1:])
    pool = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
    result = np.uint64(0)
    for position in range(4):
        nibble = (selector >> np.uint32(4 * position)) & np.uint32(15)
        byte = (pool >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        sign = np.where((byte & np.uint64(128)) != 0, np.uint64(255), np.uint64(0))
        byte = np.where((nibble & np.uint32(8)) != 0, sign, byte)
        result = result | (byte << np.uint64(8 * position))
    machine.write(current.operands[0], result.astype(np.uint32))


@instruction("createpolicy", (2, 3), "fractional range", "b64")
def createpolicy(machine, current: Instruction) -> None:
    machine.write(current.operands[0], np.uint64(0))  # cache hints have no effect here


# --- integer and logic ----------------------------------------------------------------------------


@instruction("and or xor", 3, "", f"{BITS} pred")
def logic(machine, current: Instruction) -> None:
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[current.opcode]
    machine.write(
        current.operands[0],
        function(
            machine.read(current.operands[1], current.type), machine.read(current.operands[2], current.type)
        ),
    )


@instruction("not", 2, "", f"{BITS} pred")
def invert(machine, current: Instruction) -> None:
    machine.write(current.operands[0], ~machine.read(current.operands[1], current.type))


@instruction("lop3", 5, "", "b32")
def lop3(machine, current: Instruction) -> None:
    a, b, c = (machine.read(o, "u32") for o in current.operands[1:4])
    table, result = current.operands[4].bits, np.uint32(0)
    for row in range(8):
        if table >> row & 1:
            result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
    machine.write(current.operands[0], result)


@instruction("shl", 3, "", BITS)
def shl(machine, current: Instruction) -> None:
    width = bit_width(current.type)
    value, count = machine.read(current.operands[1], current.type), machine.read(current.operands[2], "u32")
    shifted = value << np.minimum(count, np.uint32(width - 1)).astype(value.dtype)
    machine.write(current.operands[0], np.where(count >= width, value.dtype.type(0), shifted))


@instruction("shr", 3, "", f"{INTEGERS} {BITS}")
def shr(machine, current: Instruction) -> None:
    width = bit_width(current.type)
    value, count = machine.read(current.operands[1], current.type), machine.read(current.operands[2], "u32")
    shifted = value >> np.minimum(count, np.uint32(width - 1)).astype(value.dtype)
    if current.type[0] != "s":  # an arithmetic shift by too much leaves copies of the sign
        shifted = np.where(count >= width, value.dtype.type(0), shifted)
    machine.write(current.operands[0], shifted)


@instruction("shf", 4, "l r wrap clamp", "b32")
def shf(machine, current: Instruction) -> None:
    low, high, count = (machine.read(o, "u32") for o in current.operands[1:])
    count = count & np.uint32(31) if "wrap" in current.modifiers else np.minimum(count, np.uint32(32))
    pair = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
    if "l" in current.modifiers:
        result = (pair << count.astype(np.uint64)) >> np.uint64(32)
    else:
        result = pair >> count.astype(np.uint64)
    machine.write(current.operands[0], (result & np.uint64(0xFFFFFFFF)).astype(np.uint32))


def low_mask(count: np.ndarray, dtype: type) -> np.ndarray:
    """count ones, for counts up to the full width."""
    width = np.dtype(dtype).itemsize * 8
    ones = dtype(np.iinfo(dtype).max)
    return np.where(count == 0, dtype(0), ones >> (width - np.maximum(count, 1)).astype(dtype))


@instruction("bfe", 4, "", "u32 s32 u64 s64")
def bfe(machine, current: Instruction) -> None:
    width = bit_width(current.type)
    dtype = UNSIGNED[width]
    value = machine.read(current.operands[1], f"u{width}")
    start, length = (machine.read(o, "u32").astype(np.int64) & 255 for o in current.operands[2:])
    available = np.minimum(length, np.maximum(width - start, 0))
    shifted = np.where(start >= width, dtype(0), value >> np.minimum(start, width - 1).astype(dtype))
    mask = low_mask(available, dtype)
    result = shifted & mask
    if current.type[0] == "s":
        top = np.minimum(start + length - 1, width - 1)
        sign = ((value >> np.maximum(top, 0).astype(dtype)) & dtype(1)).astype(bool) & (length > 0)
        result = np.where(sign, result | ~mask, result)
    machine.write(current.operands[0], result)


@instruction("bfi", 5, "", "b32 b64")
def bfi(machine, current: Instruction) -> None:
    width = bit_width(current.type)
    dtype = UNSIGNED[width]
    field, base = (machine.read(o, f"u{width}") for o in current.operands[1:3])
    start, length = (machine.read(o, "u32").astype(np.int64) & 255 for o in current.operands[3:])
    available = np.minimum(length, np.maximum(width - start, 0))
    safe_start = np.minimum(start, width - 1).astype(dtype)
    mask = np.where(start >= width, dtype(0), low_mask(available, dtype) << safe_start)
    machine.write(current.operands[0], (base & ~mask) | ((field << safe_start) & mask))


@instruction("popc clz brev bfind", 2, "", "b32 b64 u32 u64")
def count_bits(machine, current: Instruction) -> None:
    width = bit_width(current.type)
    value = machine.spread(machine.read(current.operands[1], f"u{width}"))
    bits = np.unpackbits(
        np.ascontiguousarray(value).view(np.uint8).reshape(-1, width // 8), axis=1, bitorder="little"
    )
    highest = np.where(bits.any(1), width - 1 - bits[:, ::-1].argmax(1), -1)
    if current.opcode == "brev":
        packed = np.packbits(bits[:, ::-1], axis=1, bitorder="little")
        machine.write(current.operands[0], np.ascontiguousarray(packed).view(UNSIGNED[width])[:, 0])
        return
    result = {"popc": bits.sum(1), "clz": width - 1 - highest, "bfind": highest}[current.opcode]
    machine.write(current.operands[0], (result.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32))


# --- arithmetic -----------------------------------------------------------------------------------

CANONICAL_NAN = {"f32": np.uint32(0x7FFFFFFF), "f16": np.uint16(0x7FFF)}


def unpack_floats(machine, current: Instruction, operand, kind: str) -> list[np.ndarray]:
    """An operand as fp32 or fp64 arrays: two of them for a packed type."""
    if kind.endswith("x2"):
        element, width = kind[:-2], bit_width(kind) // 2
        whole = machine.read(operand, f"b{2 * width}")
        halves = [(whole >> whole.dtype.type(width * i)).astype(UNSIGNED[width]) for i in (0, 1)]
        parts = [h.view(FLOAT[width]) if element != "bf16" else h for h in halves]
    else:
        element, parts = kind, [machine.read(operand, kind)]
    if element == "bf16":
        parts = [numerics.bf16_to_f32(p) for p in parts]
    elif element == "f16":
        parts = [p.astype(np.float32) for p in parts]
    if "ftz" in current.modifiers:
        parts = [numerics.flush_subnormals(p) for p in parts]
    return parts


def pack_floats(machine, current: Instruction, values: list[np.ndarray], kind: str) -> np.ndarray:
    """Round to the type and put the halves together; a NaN result is the one that the hardware makes."""
    element = kind[:-2] if kind.endswith("x2") else kind
    packed = []
    for value in values:
        value = np.asarray(value)
        if "sat" in current.modifiers:
            value = np.where(np.isnan(value), value.dtype.type(0), np.clip(value, 0, 1)).astype(value.dtype)
        if "ftz" in current.modifiers:
            value = numerics.flush_subnormals(value)
        if "relu" in current.modifiers:
            value = np.where(value < 0, value.dtype.type(0), value)
        if element == "bf16":
            packed.append(numerics.f32_to_bf16(value))
            continue
        value = value.astype(FLOAT[bit_width(element)])
        raw = value.view(UNSIGNED[bit_width(element)])
        nan = np.isnan(value)
        packed.append(
            np.where(nan, CANONICAL_NAN[element], raw) if element in CANONICAL_NAN and nan.any() else raw
        )
    if not kind.endswith("x2"):
        return packed[0]
    width = bit_width(kind) // 2
    wide = UNSIGNED[2 * width]
    return packed[0].astype(wide) | (packed[1].astype(wide) << wide(width))


def is_float(kind: str) -> bool:
    return kind[0] == "f" or kind.startswith("bf")


def arithmetic(machine, current: Instruction, function: Callable) -> None:
    """A two-operand operation on any type; `add.f32.bf16 d, a, c` mixes a narrow a with an fp32 c."""
    target, first, second = current.operands
    kind = current.types[0]
    if is_float(kind):
        narrow = current.types[-1]
        pairs = zip(
            unpack_floats(machine, current, first, narrow),
            unpack_floats(machine, current, second, kind),
            strict=True,
        )
        machine.write(target, pack_floats(machine, current, [function(a, b) for a, b in pairs], kind))
        return
    a, b = machine.read(first, kind), machine.read(second, kind)
    if "sat" in current.modifiers:
        wide = function(a.astype(np.int64), b.astype(np.int64))
        machine.write(target, np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32))
        return
    machine.write(target, function(a, b))


@instruction("add sub", 3, "rn ftz sat", f"{INTEGERS} {FLOATS}")
def add_sub(machine, current: Instruction) -> None:
    if "sat" in current.modifiers and not is_float(current.type) and current.type != "s32":
        raise UnsupportedInstruction(f"not implemented: {current.name}")
    arithmetic(machine, current, np.add if current.opcode == "add" else np.subtract)


@instruction("mul", 3, "rn ftz sat lo hi wide", f"{INTEGERS} {FLOATS}")
def mul(machine, current: Instruction) -> None:
    if is_float(current.type):
        arithmetic(machine, current, np.multiply)
    else:
        machine.write(current.operands[0], integer_product(machine, current))


def integer_product(machine, current: Instruction) -> np.ndarray:
    kind = current.type
    a, b = (machine.read(o, kind) for o in current.operands[1:3])
    width, signed = bit_width(kind), kind[0] == "s"
    if "wide" in current.modifiers:
        dtype = (SIGNED if signed else UNSIGNED)[2 * width]
        return np.multiply(a.astype(dtype), b.astype(dtype))
    if "hi" in current.modifiers:
        return numerics.multiply_high(np.atleast_1d(a), np.atleast_1d(b), width, signed)
    if "lo" not in current.modifiers:
        raise UnsupportedInstruction(f"{current.name}: neither .lo, .hi nor .wide")
    return np.multiply(a, b)


@instruction("mad", 4, "lo hi wide", INTEGERS)
def mad(machine, current: Instruction) -> None:
    product = integer_product(machine, current)
    wide = f"{current.type[0]}{product.dtype.itemsize * 8}"
    machine.write(current.operands[0], product + machine.read(current.operands[3], wide))


@instruction("fma", 4, "rn ftz sat relu", FLOATS)
def fma(machine, current: Instruction) -> None:
    kind, narrow = current.types[0], current.types[-1]
    a, b = (unpack_floats(machine, current, o, narrow) for o in current.operands[1:3])
    c = unpack_floats(machine, current, current.operands[3], kind)
    if kind == "f64":
        results = [numerics.fma64(x, y, z) for x, y, z in zip(a, b, c, strict=True)]
    else:
        results = [numerics.fma_odd(x, y, z) for x, y, z in zip(a, b, c, strict=True)]
        if "16" in kind:
            results = [numerics.narrow_odd(r) for r in results]
        else:
            results = [r.astype(np.float32) for r in results]
    machine.write(current.operands[0], pack_floats(machine, current, results, kind))


def extreme(opcode: str, propagate_nan: bool) -> Callable:
    """max or min of floats: a lone NaN loses (or wins, with .NaN), and -0 is less than +0."""
    function = {
        ("max", False): np.fmax,
        ("max", True): np.maximum,
        ("min", False): np.fmin,
        ("min", True): np.minimum,
    }[(opcode, propagate_nan)]

    def apply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        zeros = (a == 0) & (b == 0)
        return np.where(zeros, a + b if opcode == "max" else -((-a) + (-b)), function(a, b))

    return apply


@instruction("max min", (3, 4), "ftz NaN", f"{INTEGERS} {FLOATS}")
def max_min(machine, current: Instruction) -> None:
    kind, target = current.type, current.operands[0]
    if is_float(kind):
        function = extreme(current.opcode, "NaN" in current.modifiers)
        columns = zip(*(unpack_floats(machine, current, o, kind) for o in current.operands[1:]), strict=True)
        results = []
        for column in columns:
            result = column[0]
            for other in column[1:]:
                result = function(result, other)
            results.append(result)
        machine.write(target, pack_floats(machine, current, results, kind))
        return
    if len(current.operands) != 3:
        raise UnsupportedInstruction(f"{current.name} with {len(current.operands)} operands")
    function = np.maximum if current.opcode == "max" else np.minimum
    machine.write(
        target, function(machine.read(current.operands[1], kind), machine.read(current.operands[2], kind))
    )


@instruction("div rem", 3, "rn full approx ftz", f"{INTEGERS} f32 f64")
def div_rem(machine, current: Instruction) -> None:
    kind = current.type
    if is_float(kind):
        if current.opcode == "rem":
            raise UnsupportedInstruction(f"not implemented: {current.name}")
        arithmetic(machine, current, np.divide)
        return
    a, b = (machine.spread(machine.read(o, kind)) for o in current.operands[1:])
    unsigned = UNSIGNED[bit_width(kind)]
    # Magnitudes, so that the smallest integer divides as PTX has it: towards zero, wrapping.
    x = np.where(a < 0, (-a).astype(unsigned), a.astype(unsigned)) if kind[0] == "s" else a
    y = np.where(b < 0, (-b).astype(unsigned), b.astype(unsigned)) if kind[0] == "s" else b
    zero = y == 0
    safe = np.where(zero, unsigned(1), y)
    if current.opcode == "div":
        result = x // safe
        negative = (a < 0) != (b < 0)
    else:
        result = np.where(zero, x, x % safe)
        negative = a < 0
    if kind[0] == "s":
        result = np.where(negative, (~result) + unsigned(1), result)
    if current.opcode == "div":  # the hardware's answer to a division by zero is all ones
        result = np.where(zero, unsigned(np.iinfo(unsigned).max), result)
    machine.write(current.operands[0], result)


@instruction("neg abs", 2, "ftz", "s16 s32 s64 f32 f64 f16 bf16 f16x2 bf16x2")
def neg_abs(machine, current: Instruction) -> None:
    kind, operand = current.type, current.operands[1]
    if not is_float(kind):
        value = machine.read(operand, kind)
        machine.write(current.operands[0], np.negative(value) if current.opcode == "neg" else np.abs(value))
        return
    if "ftz" in current.modifiers:
        function = np.negative if current.opcode == "neg" else np.abs
        values = unpack_floats(machine, current, operand, kind)
        machine.write(current.operands[0], pack_floats(machine, current, [function(v) for v in values], kind))
        return
    width = bit_width(kind)  # a matter of sign bits, whatever the float
    value = machine.read(operand, f"b{width}")
    sign = 1 << (width - 1) | (1 << (width // 2 - 1) if kind.endswith("x2") else 0)
    dtype = UNSIGNED[width]
    flipped = value ^ dtype(sign) if current.opcode == "neg" else value & dtype(~sign & ((1 << width) - 1))
    machine.write(current.operands[0], flipped)


@instruction("copysign", 3, "", "f32 f64")
def copysign(machine, current: Instruction) -> None:
    sign, magnitude = (machine.read(o, current.type) for o in current.operands[1:])
    machine.write(current.operands[0], np.copysign(magnitude, sign))


APPROXIMATIONS = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda v: 1 / v,
    "sqrt": np.sqrt,
    "rsqrt": lambda v: 1 / np.sqrt(v),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@instruction("ex2 lg2 rcp sqrt rsqrt sin cos tanh", 2, "approx rn ftz", "f32 f64 f16 bf16 f16x2 bf16x2")
def approximate(machine, current: Instruction) -> None:
    """Computed exactly in fp64 and rounded; the hardware's approximations may be an ulp or two away."""
    function = APPROXIMATIONS[current.opcode]
    values = unpack_floats(machine, current, current.operands[1], current.type)
    exact = [np.asarray(function(v.astype(np.float64))) for v in values]
    if current.type != "f64":
        exact = [e.astype(np.float32) if current.type == "f32" else numerics.narrow_odd(e) for e in exact]
    machine.write(current.operands[0], pack_floats(machine, current, exact, current.type))


# --- comparing ------------------------------------------------------------------------------------

COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@instruction(
    "setp",
    (3, 4),
    " ".join([*COMPARISONS, *UNORDERED, "num", "nan", *COMBINE, "ftz"]),
    f"{INTEGERS} {BITS} f32 f64 f16 bf16",
)
def setp(machine, current: Instruction) -> None:
    kind, comparison = current.type, current.modifiers[0]
    if is_float(kind):
        a, b = (unpack_floats(machine, current, o, kind)[0] for o in current.operands[1:3])
        nan = np.isnan(a) | np.isnan(b)
        if comparison in ("lo", "ls", "hi", "hs"):
            raise UnsupportedInstruction(f"not implemented: {current.name}")
        if comparison in ("num", "nan"):
            result = nan if comparison == "nan" else ~nan
        elif comparison in UNORDERED:
            result = COMPARISONS[UNORDERED[comparison]](a, b) | nan
        else:
            result = COMPARISONS[comparison](a, b) & ~nan
    else:
        unsigned_only = comparison in ("lo", "ls", "hi", "hs")
        if comparison not in COMPARISONS or (kind[0] == "b" and comparison not in ("eq", "ne")):
            raise UnsupportedInstruction(f"not implemented: {current.name}")
        read_as = f"u{bit_width(kind)}" if unsigned_only else kind
        result = COMPARISONS[comparison](*(machine.read(o, read_as) for o in current.operands[1:3]))
    result = machine.spread(np.asarray(result, bool))
    opposite = ~result
    combine = next((m for m in current.modifiers[1:] if m in COMBINE), None)
    if (combine is not None) != (len(current.operands) == 4):
        raise UnsupportedInstruction(f"{current.name} with {len(current.operands)} operands")
    if combine:
        other = machine.read_predicate(current.operands[3])
        result, opposite = COMBINE[combine](result, other), COMBINE[combine](opposite, other)
    target = current.operands[0]
    if isinstance(target, Pair):
        machine.write(target.first, result)
        machine.write(target.second, opposite)
    else:
        machine.write(target, result)


# --- converting -----------------------------------------------------------------------------------

TO_INTEGER = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
CVT_TYPES = "u8 s8 u16 s16 u32 s32 u64 s64 f16 f32 f64 bf16 tf32 f16x2 bf16x2"


@instruction("cvt", (2, 3), "rzi rni rmi rpi rn rz rm rp rna ftz sat relu", CVT_TYPES)
def cvt(machine, current: Instruction) -> None:
    if len(current.types) != 2:
        raise UnsupportedInstruction(f"not implemented: {current.name}")
    to, source = current.types
    target = current.operands[0]
    mode = next((m for m in current.modifiers if m in ("rn", "rz", "rm", "rp", "rna")), None)
    to_integer = next((TO_INTEGER[m] for m in current.modifiers if m in TO_INTEGER), None)
    packed = to.endswith("x2")
    if packed != (len(current.operands) == 3):
        raise UnsupportedInstruction(f"{current.name} with {len(current.operands)} operands")
    if packed:
        if source != "f32":
            raise UnsupportedInstruction(f"not implemented: {current.name}")
        high, low = (narrow(machine.read(o, "f32"), to[:-2], mode, current) for o in current.operands[1:])
        machine.write(target, low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16)))
    elif is_float(source):
        value = machine.read(current.operands[1], source)
        value = numerics.bf16_to_f32(value) if source == "bf16" else value
        if "ftz" in current.modifiers:
            value = numerics.flush_subnormals(value)
        if to_integer is not None:
            value = to_integer(value)
        if to == "tf32":
            if mode != "rna" or source != "f32":
                raise UnsupportedInstruction(f"not implemented: {current.name}")
            machine.write(target, numerics.round_to_tf32(value))
        elif is_float(to):
            machine.write(target, narrow(value, to, mode or "rn", current))
        else:
            if to_integer is None:
                raise UnsupportedInstruction(f"{current.name}: float to integer without a rounding mode")
            result = numerics.float_to_int(value, bit_width(to), to[0] == "s", source == "f64")
            machine.write(target, result)
    else:
        convert_integer(machine, current, to, source, mode)


def convert_integer(machine, current: Instruction, to: str, source: str, mode: str | None) -> None:
    value, target = machine.read(current.operands[1], source), current.operands[0]
    if is_float(to):
        if to == "f64":
            result = value.astype(np.float64)
        elif mode == "rn" and to == "f32":
            result = value.astype(np.float32)
        elif bit_width(source) <= 32:
            result = narrow(value.astype(np.float64), to, mode or "rn", current)
        else:
            raise UnsupportedInstruction(f"not implemented: {current.name}")
        machine.write(target, result)
        return
    dtype = (SIGNED if to[0] == "s" else UNSIGNED)[bit_width(to)]
    if "sat" in current.modifiers:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        info = np.iinfo(value.dtype)
        value = np.clip(value, max(low, info.min), min(high, info.max))
    machine.write(target, value.astype(dtype))


def narrow(value: np.ndarray, to: str, mode: str | None, current: Instruction) -> np.ndarray:
    """fp32 or fp64 -> any float type, with rounding; returns floats, or bits for bf16."""
    value = np.asarray(value)
    if "sat" in current.modifiers:
        value = np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(value.dtype)
    if "relu" in current.modifiers:
        value = np.where(value < 0, value.dtype.type(0), value)
    if to == "bf16":
        if mode not in ("rn", "rz"):
            raise UnsupportedInstruction(f"not implemented: {current.name}")
        if value.dtype == np.float64:
            value = (
                numerics.narrow_odd(value) if mode == "rn" else numerics.round_float(value, np.float32, "rz")
            )
        return numerics.f32_to_bf16(value.astype(np.float32), mode)
    dtype = FLOAT[bit_width(to)]
    result = numerics.round_float(value, dtype, mode or "rn").astype(dtype)
    if "ftz" in current.modifiers:
        result = numerics.flush_subnormals(result)
    raw = result.view(UNSIGNED[bit_width(to)])
    return np.where(np.isnan(result), CANONICAL_NAN[to], raw) if to in CANONICAL_NAN else raw


# --- memory ---------------------------------------------------------------------------------------


@instruction("ld", (2, 3), f"param {SPACES} v2 v4 v8 {CACHE}", f"b8 u8 s8 {INTEGERS} {BITS} f32 f64")
def ld(machine, current: Instruction) -> None:
    target, source = current.operands[:2]
    width = bit_width(current.type)
    dtype = (SIGNED if current.type[0] == "s" else UNSIGNED)[width]
    if "param" in current.modifiers:
        if not isinstance(source.base, Symbol) or source.base.name not in machine.parameters or source.offset:
            raise UnsupportedInstruction(f"not implemented: {current.describe()}")
        machine.write(
            target, UNSIGNED[width](machine.parameters[source.base.name] & ((1 << width) - 1)).view(dtype)
        )
        return
    targets = items(target)
    if len(targets) != vector_length(current):
        raise UnsupportedInstruction(f"{current.name} into {len(targets)} registers")
    size = width // 8
    machine.polled |= bool({"volatile", "acquire", "relaxed"} & set(current.modifiers))
    data = machine.load(space_of(current), machine.address(source), size * len(targets), machine.active)
    values = data.view(dtype)
    for position, register in enumerate(targets):
        machine.write(register, values[:, position])


@instruction("st", (2, 3), f"param {SPACES} v2 v4 v8 {CACHE}", f"b8 u8 s8 {INTEGERS} {BITS} f32 f64")
def st(machine, current: Instruction) -> None:
    target, source = current.operands[:2]
    if "param" in current.modifiers:
        return  # arguments of a failing assertion; `call` reports it
    values = items(source)
    if len(values) != vector_length(current):
        raise UnsupportedInstruction(f"{current.name} from {len(values)} registers")
    width = bit_width(current.type)
    columns = np.empty((machine.lanes, len(values)), UNSIGNED[width])
    for position, value in enumerate(values):
        columns[:, position] = machine.read(value, f"b{width}" if width > 8 else "u8")
    machine.store(space_of(current), machine.address(target), columns.view(np.uint8), machine.active)


ATOMIC_OPERATIONS = {
    "add": lambda old, value, other: old + value,
    "exch": lambda old, value, other: value,
    "max": lambda old, value, other: np.maximum(old, value),
    "min": lambda old, value, other: np.minimum(old, value),
    "and": lambda old, value, other: old & value,
    "or": lambda old, value, other: old | value,
    "xor": lambda old, value, other: old ^ value,
    "cas": lambda old, value, other: np.where(old == value, other, old),
    "inc": lambda old, value, other: np.where(old >= value, old.dtype.type(0), old + old.dtype.type(1)),
}
ATOMIC_MODIFIERS = f"{SPACES} {CACHE} noftz {' '.join(ATOMIC_OPERATIONS)} v2 v4"


@instruction("atom", (3, 4), ATOMIC_MODIFIERS, "b32 b64 b16 u32 s32 u64 s64 f32 f64 f16 bf16 f16x2 bf16x2")
def atom(machine, current: Instruction) -> None:
    atomic(machine, current, current.operands[0], current.operands[1:])


@instruction("red", 2, ATOMIC_MODIFIERS, "b32 b64 u32 s32 u64 s64 f32 f64 f16 bf16 f16x2 bf16x2")
def red(machine, current: Instruction) -> None:
    atomic(machine, current, None, current.operands)


def atomic(machine, current: Instruction, target, operands: tuple) -> None:
    kind = current.type
    name = next(m for m in current.modifiers if m in ATOMIC_OPERATIONS)
    if (name == "cas") != (len(operands) == 3):
        raise UnsupportedInstruction(f"{current.name} with {len(current.operands)} operands")
    if is_float(kind) and name not in ("add", "exch"):
        raise UnsupportedInstruction(f"not implemented: {current.name}")
    size, space = bit_width(kind) // 8, space_of(current)
    machine.polled = True
    sources = items(operands[1])
    targets = items(target) if target is not None else ()
    lanes = np.flatnonzero(machine.active)
    addresses = machine.address(operands[0])[lanes]
    visit = machine.visit_global if space == "global" else machine.visit_shared
    visit(addresses, size * len(sources), lanes, "atomic")
    for position, source in enumerate(sources):
        at = addresses + position * size
        if space == "global":
            rows, image = (at - machine.global_base) // size, machine.memory.image
        else:
            rows, image = machine.shared_rows(at, size, lanes, "atomic"), machine.shared.image
        values = machine.spread(machine.read(source, f"b{8 * size}"))[lanes]
        others = machine.spread(machine.read(operands[2], f"b{8 * size}"))[lanes] if name == "cas" else values
        old = apply_in_some_order(
            machine, current, image.view(UNSIGNED[8 * size]), rows, values, others, name
        )
        if targets:
            result = np.zeros(machine.lanes, UNSIGNED[8 * size])
            result[lanes] = old
            machine.write(targets[position], result)


def apply_in_some_order(
    machine,
    current: Instruction,
    cells: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    others: np.ndarray,
    name: str,
) -> np.ndarray:
    """Apply an atomic operation once a lane; lanes that share an address take turns in a random order."""
    kind, operation = current.type, ATOMIC_OPERATIONS[name]

    def step(old: np.ndarray, value: np.ndarray, other: np.ndarray) -> np.ndarray:
        if not is_float(kind) or name == "exch":
            view = (SIGNED if kind[0] == "s" else UNSIGNED)[bit_width(kind)]
            return operation(old.view(view), value.view(view), other.view(view)).view(old.dtype)
        return add_floats(kind, old, value)

    shuffled = machine.rng.permutation(len(rows))
    order = shuffled[np.argsort(rows[shuffled], kind="stable")]
    ranks = np.arange(len(rows))
    firsts = np.flatnonzero(np.diff(rows[order], prepend=-1))
    ranks -= np.repeat(firsts, np.diff(np.append(firsts, len(rows))))
    result = np.zeros_like(values)
    for turn in range(int(ranks.max()) + 1 if len(ranks) else 0):
        chosen = order[ranks == turn]
        old = cells[rows[chosen]]
        result[chosen] = old
        cells[rows[chosen]] = step(old, values[chosen], others[chosen])
    return result


def add_floats(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Element-wise float addition on raw bits, for atomics."""
    if kind.endswith("x2"):
        half = UNSIGNED[16]
        low = add_floats(kind[:-2], a.astype(half), b.astype(half))
        high = add_floats(kind[:-2], (a >> np.uint32(16)).astype(half), (b >> np.uint32(16)).astype(half))
        return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))
    if kind == "bf16":
        return numerics.f32_to_bf16(numerics.bf16_to_f32(a) + numerics.bf16_to_f32(b))
    dtype = FLOAT[bit_width(kind)]
    return (a.view(dtype) + b.view(dtype)).view(a.dtype)


@instruction("cp", (0, 1, 3, 4, 5), "async ca cg shared shared::cta global commit_group wait_group wait_all")
def cp_async(machine, current: Instruction) -> None:
    """The bytes arrive at once; touching them before the owner has waited for them is reported as a race."""
    if current.modifiers[0] != "async" or "bulk" in current.modifiers:
        raise UnsupportedInstruction(f"not implemented: {current.name}")
    if "commit_group" in current.modifiers:
        machine.groups_committed = machine.groups_committed + machine.active.astype(np.int32)
        return
    if "wait_group" in current.modifiers or "wait_all" in current.modifiers:
        everything = "wait_all" in current.modifiers
        machine.finish_async_copies(0 if everything else current.operands[0].bits, everything)
        return
    hinted = "L2::cache_hint" in current.modifiers
    rest = current.operands[3 : len(current.operands) - hinted]
    if not isinstance(current.operands[2], Immediate) or len(rest) > 1:
        raise UnsupportedInstruction(f"not implemented: {current.describe()}")
    size = current.operands[2].bits
    wanted = machine.spread(machine.read(rest[0], "u32")) if rest else np.full(machine.lanes, size, np.uint32)
    if not np.isin(wanted[machine.active], (0, size)).all():
        raise UnsupportedInstruction(f"not implemented: cp.async of part of its size; {current.describe()}")
    target, source = (machine.address(o) for o in current.operands[:2])
    data = machine.load("global", source, size, machine.active & (wanted == size))  # the others get zeros
    machine.store("shared", target, data, machine.active)
    machine.start_async_copy(target, size, machine.active)


# --- across a warp --------------------------------------------------------------------------------


def require_full_warps(machine, current: Instruction, mask_operand=None) -> None:
    warps = machine.active.reshape(-1, 32)
    if (warps.any(1) & ~warps.all(1)).any():
        raise UnsupportedInstruction(
            f"not implemented: {current.name} by part of a warp; {current.describe()}"
        )
    if mask_operand is not None:
        mask = machine.spread(machine.read(mask_operand, "u32"))
        if (mask[machine.active] != 0xFFFFFFFF).any():
            raise UnsupportedInstruction(
                f"not implemented: a member mask of part of a warp; {current.describe()}"
            )


@instruction("shfl", 5, "sync up down bfly idx", "b32", convergent=True)
def shfl(machine, current: Instruction) -> None:
    target, value, distance, clamp, mask = current.operands
    require_full_warps(machine, current, mask)
    values = machine.per_warp(machine.read(value, "b32"))
    distance = machine.per_warp(machine.read(distance, "u32")).astype(np.int64) & 31
    clamp = machine.per_warp(machine.read(clamp, "u32")).astype(np.int64)
    segment, clamp = (clamp >> 8) & 31, clamp & 31
    lane = np.arange(32)
    limit = (lane & segment) | (clamp & ~segment)
    mode = current.modifiers[1]
    source = {
        "up": lane - distance,
        "down": lane + distance,
        "bfly": lane ^ distance,
        "idx": (lane & segment) | (distance & ~segment),
    }[mode]
    inside = source >= limit if mode == "up" else source <= limit
    result = np.take_along_axis(values, np.where(inside, source, lane), 1).reshape(-1)
    if isinstance(target, Pair):
        machine.write(target.second, inside.reshape(-1))
        target = target.first
    machine.write(target, result)


def mask_of(bits: np.ndarray) -> np.ndarray:
    """[warps, 32] bools -> one 32-bit mask a warp, repeated over its lanes."""
    masks = (bits.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)
    return np.repeat(masks, 32)


@instruction("vote", 3, "sync all any uni ballot", "pred b32", convergent=True)
def vote(machine, current: Instruction) -> None:
    require_full_warps(machine, current, current.operands[2])
    bits = machine.per_warp(machine.read_predicate(current.operands[1]))
    mode = current.modifiers[1]
    if mode == "ballot":
        machine.write(current.operands[0], mask_of(bits))
        return
    result = {"all": bits.all(1), "any": bits.any(1), "uni": bits.all(1) | ~bits.any(1)}[mode]
    machine.write(current.operands[0], np.repeat(result, 32))


@instruction("activemask", 1, "", "b32")
def activemask(machine, current: Instruction) -> None:
    machine.write(current.operands[0], mask_of(machine.active.reshape(-1, 32)))


@instruction("elect", 2, "sync", convergent=True)
def elect(machine, current: Instruction) -> None:
    require_full_warps(machine, current, current.operands[1])
    target = current.operands[0]
    machine.write(target.first, np.uint32(0))
    machine.write(target.second, machine.lane_ids % 32 == 0)


@instruction("redux", 3, "sync add min max and or xor NaN", "u32 s32 b32 f32", convergent=True)
def redux(machine, current: Instruction) -> None:
    require_full_warps(machine, current, current.operands[2])
    kind, mode = current.type, current.modifiers[1]
    values = machine.per_warp(machine.read(current.operands[1], kind))
    if kind == "f32":
        function = extreme(mode, "NaN" in current.modifiers)
        result = values[:, 0]
        for lane in range(1, 32):
            result = function(result, values[:, lane])
        result = pack_floats(machine, current, [result], kind)
    else:
        function = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[mode]
        result = function.reduce(values, 1, dtype=values.dtype)
    machine.write(current.operands[0], np.repeat(result, 32))


# --- matrices -------------------------------------------------------------------------------------


def matrix_lanes(machine, matrix: int) -> tuple[np.ndarray, np.ndarray]:
    """Lanes that hold the row addresses of the n-th matrix: [warps, 8], and as a mask of the active ones."""
    lanes = np.arange(machine.lanes // 32)[:, None] * 32 + 8 * matrix + np.arange(8)
    mask = np.zeros(machine.lanes, bool)
    mask[lanes.reshape(-1)] = True
    return lanes, mask & machine.active


LANE = np.arange(32)
ROW_OF_LANE, PAIR_OF_LANE = LANE // 4, LANE % 4


@instruction("ldmatrix", 2, "sync aligned m8n8 x1 x2 x4 trans shared shared::cta", "b16", convergent=True)
def ldmatrix(machine, current: Instruction) -> None:
    require_full_warps(machine, current)
    targets = items(current.operands[0])
    addresses = machine.address(current.operands[1])
    if f"x{len(targets)}" not in current.modifiers:
        raise UnsupportedInstruction(f"{current.name} into {len(targets)} registers")
    for matrix, target in enumerate(targets):
        lanes, mask = matrix_lanes(machine, matrix)
        data = machine.load("shared", addresses, 16, mask)
        rows = data[lanes].view(np.uint16)  # [warps, 8 rows, 8 columns]
        if "trans" in current.modifiers:
            rows = rows.transpose(0, 2, 1)
        low = rows[:, ROW_OF_LANE, 2 * PAIR_OF_LANE].astype(np.uint32)
        high = rows[:, ROW_OF_LANE, 2 * PAIR_OF_LANE + 1].astype(np.uint32)
        machine.write(target, (low | (high << np.uint32(16))).reshape(-1))


@instruction("stmatrix", 2, "sync aligned m8n8 x1 x2 x4 trans shared shared::cta", "b16", convergent=True)
def stmatrix(machine, current: Instruction) -> None:
    require_full_warps(machine, current)
    sources = items(current.operands[1])
    addresses = machine.address(current.operands[0])
    if f"x{len(sources)}" not in current.modifiers:
        raise UnsupportedInstruction(f"{current.name} from {len(sources)} registers")
    for matrix, source in enumerate(sources):
        lanes, mask = matrix_lanes(machine, matrix)
        value = machine.per_warp(machine.read(source, "b32"))
        rows = np.zeros((value.shape[0], 8, 8), np.uint16)
        rows[:, ROW_OF_LANE, 2 * PAIR_OF_LANE] = (value & np.uint32(0xFFFF)).astype(np.uint16)
        rows[:, ROW_OF_LANE, 2 * PAIR_OF_LANE + 1] = (value >> np.uint32(16)).astype(np.uint16)
        if "trans" in current.modifiers:
            rows = rows.transpose(0, 2, 1)
        data = np.zeros((machine.lanes, 16), np.uint8)
        data[lanes] = np.ascontiguousarray(rows).view(np.uint8)
        machine.store("shared", addresses, data, mask)


def matrix_elements(registers: np.ndarray, kind: str) -> list[np.ndarray]:
    """The elements packed in 32-bit registers, lowest first, as fp64 (exact)."""
    if kind == "f16":
        halves = [(registers >> np.uint32(16 * i)).astype(np.uint16).view(np.float16) for i in (0, 1)]
        return [h.astype(np.float64) for h in halves]
    if kind == "bf16":
        halves = [(registers >> np.uint32(16 * i)).astype(np.uint16) for i in (0, 1)]
        return [numerics.bf16_to_f32(h).astype(np.float64) for h in halves]
    if kind == "tf32":  # the hardware ignores the 13 low bits
        return [(registers & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)]
    dtype = np.int8 if kind == "s8" else np.uint8
    return [(registers >> np.uint32(8 * i)).astype(np.uint8).view(dtype).astype(np.float64) for i in range(4)]


MMA_SHAPES = {
    ("f16", 8),
    ("f16", 16),
    ("bf16", 8),
    ("bf16", 16),
    ("tf32", 4),
    ("tf32", 8),
    ("s8", 16),
    ("s8", 32),
    ("u8", 16),
    ("u8", 32),
}


@instruction(
    "mma",
    4,
    "sync aligned row col satfinite m16n8k4 m16n8k8 m16n8k16 m16n8k32",
    "f32 f16 bf16 tf32 s32 s8 u8",
    convergent=True,
)
def mma(machine, current: Instruction) -> None:
    """D = A B + C on one warp, summed in fp64 and rounded once; the hardware rounds in between."""
    require_full_warps(machine, current)
    to, kind_a, kind_b, kind_c = current.types
    depth = int(next(m for m in current.modifiers if m.startswith("m16n8k"))[6:])
    same_family = kind_a == kind_b or {kind_a, kind_b} == {"s8", "u8"}
    if (kind_a, depth) not in MMA_SHAPES or not same_family or to != kind_c:
        raise UnsupportedInstruction(f"not implemented: {current.name}")
    a, b = (
        np.stack([machine.per_warp(machine.read(r, "b32")) for r in items(o)]) for o in current.operands[1:3]
    )
    warps, packed = machine.lanes // 32, {"f16": 2, "bf16": 2, "tf32": 1}.get(kind_a, 4)
    if len(a) * 32 * packed != 16 * depth or len(b) * 32 * packed != 8 * depth:
        raise UnsupportedInstruction(f"{current.name} with {len(a)} and {len(b)} registers")
    left, right = np.zeros((warps, 16, depth)), np.zeros((warps, depth, 8))
    for index, registers in enumerate(a):
        for element, values in enumerate(matrix_elements(registers, kind_a)):
            left[:, ROW_OF_LANE + 8 * (index % 2), packed * (PAIR_OF_LANE + 4 * (index // 2)) + element] = (
                values
            )
    for index, registers in enumerate(b):
        for element, values in enumerate(matrix_elements(registers, kind_b)):
            right[:, packed * (PAIR_OF_LANE + 4 * index) + element, ROW_OF_LANE] = values
    product = left @ right
    add_fragment(machine, current, product, items(current.operands[3]), items(current.operands[0]), to)


def add_fragment(
    machine, current: Instruction, product: np.ndarray, addends: tuple, targets: tuple, kind: str
) -> None:
    """Add the accumulator fragment to [warps, 16, 8 * n] products and write the result fragment."""

    def part(index: int) -> np.ndarray:
        column = 8 * (index // 4) + 2 * PAIR_OF_LANE + index % 2
        return product[:, ROW_OF_LANE + 8 * (index // 2 % 2), column].reshape(-1)

    if kind == "f16":
        for index, (addend, target) in enumerate(zip(addends, targets, strict=True)):
            halves = unpack_floats(machine, current, addend, "f16x2")
            sums = [numerics.narrow_odd(part(2 * index + i) + halves[i]) for i in (0, 1)]
            machine.write(target, pack_floats(machine, current, sums, "f16x2"))
        return
    results = []
    for index, addend in enumerate(addends):
        total = part(index) + machine.read(addend, kind)
        if kind == "s32":
            whole = np.clip(total, -(2.0**31), 2.0**31 - 1) if "satfinite" in current.modifiers else total
            results.append(whole.astype(np.int64).astype(np.int32))
        else:
            results.append(pack_floats(machine, current, [total.astype(np.float32)], "f32"))
    for target, result in zip(targets, results, strict=True):
        machine.write(target, result)
