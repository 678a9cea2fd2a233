"""Compile what is launched, exactly as the launch would, and read from the machine code what it costs."""

from __future__ import annotations

import inspect
import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from trimtok_fast.errors import BackendUnavailableError
from trimtok_fast.inspection.devices import Target
from trimtok_fast.kernels import common

#: Mnemonics of the matrix units.
MATRIX = re.compile(r"HMMA|HGMMA|UTC\w*MMA|IMMA|DMMA|QGMMA|OMMA|QMMA|v_s?mfmac?_")


@dataclass(frozen=True)
class Launch:
    """A kernel that was launched, compiled instead.

    Attributes:
        kernel: its name, without the `_` and `_kernel` around it.
        module: the last part of the name of the module it stands in.
        code: what triton made of it; the same object for the same variant.
    """

    kernel: str
    module: str
    code: Any


class _AbsentDevice:
    """Stands in for triton's driver: knows what to compile for, and has no device."""

    def __init__(self, target: Target) -> None:
        self.target = GPUTarget(target.backend, target.architecture, target.warp_size)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target  # a kernel keeps its variants by device

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0


@contextmanager
def compiling_for(target: Target) -> Iterator[list[Launch]]:
    """Inside, what is launched is compiled for `target`, is not run, and is put on the list.

    Triton itself specialises and compiles, by the path that a launch takes; its cache on disk is used.

    Raises:
        BackendUnavailableError: triton was loaded with `TRITON_INTERPRET=1`, and has nothing to compile.
    """
    if triton.knobs.runtime.interpret:
        raise BackendUnavailableError(
            "TRITON_INTERPRET", "no interpreter", "TRITON_INTERPRET=1", "Unset it before triton is imported."
        )
    launches: list[Launch] = []
    run, former = JITFunction.run, driver._active

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        code = run(kernel, *args, grid=grid, warmup=True, **options)
        name = kernel.__name__.removeprefix("_").removesuffix("_kernel")
        module = kernel.__module__.rpartition(".")[2]
        launches.append(Launch(name, module, code))

    JITFunction.run = compile_only
    driver.set_active(_AbsentDevice(target))
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = former


@dataclass(frozen=True)
class Resources:
    """What one variant of a kernel takes.

    Attributes:
        num_warps: warps of a program.
        registers: of a thread (AMD: VGPRs and AGPRs together).
        spills: instructions that spill registers to memory and reload them. AMD's SGPRs spill to lanes of
            VGPRs, which takes no memory: only where those run out is scratch memory read and written, and
            that counts here.
        scalar_spills: AMD's SGPRs that wait in lanes of VGPRs.
        shared_bytes: shared memory of a program.
        matrix_instructions: of the machine code, without repetition by loops.
        products: `tl.dot`s with 16-bit operands in the kernel.
        products_by_hand: those of them that the compiler did not give to the matrix units.
        endless_loops: `while` loops whose condition the compiler has taken for true.
        load_bits: global loads by the bits that a thread loads at once.
        row_bits: those of them that load rows of tokens or directions, in `common.load_rows`.
    """

    num_warps: int
    registers: int
    spills: int
    scalar_spills: int
    shared_bytes: int
    matrix_instructions: int
    products: int
    products_by_hand: int
    endless_loops: int
    load_bits: dict[int, int]
    row_bits: dict[int, int]

    @property
    def widest_load(self) -> int:
        """Bits that a thread loads at once, at most."""
        return max(self.load_bits, default=0)

    @property
    def wide_rows(self) -> float | None:
        """What share of the bits of rows is loaded 128 at a time; `None` where no rows are."""
        bits = sum(width * count for width, count in self.row_bits.items())
        return 128 * self.row_bits.get(128, 0) / bits if bits else None


def resources(codes: Sequence[Any]) -> list[Resources]:
    """Read what kernels take from what triton compiled for one target."""
    if not codes:
        return []
    read = _read_nvidia if "cubin" in codes[0].asm else _read_amd
    return [_resources(code, reading) for code, reading in zip(codes, read(codes), strict=True)]


@dataclass(frozen=True)
class _Reading:
    """What is read from machine code; the names are those of `Resources`."""

    registers: int
    spills: int
    scalar_spills: int
    opcodes: Counter[str]
    load_bits: Counter[int]


def _resources(code: Any, reading: _Reading) -> Resources:
    products, by_hand = _products(code.asm["ttgir"])
    return Resources(
        num_warps=code.metadata.num_warps,
        registers=reading.registers,
        spills=reading.spills,
        scalar_spills=reading.scalar_spills,
        shared_bytes=code.metadata.shared,
        matrix_instructions=sum(count for name, count in reading.opcodes.items() if MATRIX.match(name)),
        products=products,
        products_by_hand=by_hand,
        endless_loops=len(_ENDLESS.findall(code.asm["ttgir"])),
        load_bits=dict(reading.load_bits),
        row_bits=dict(_row_bits(code.asm["ptx" if "ptx" in code.asm else "amdgcn"])),
    )


def _read_nvidia(codes: Sequence[Any]) -> list[_Reading]:
    return [
        _nvidia_reading(code, opcodes) for code, opcodes in zip(codes, _nvidia_opcodes(codes), strict=True)
    ]


def _nvidia_reading(code: Any, opcodes: Counter[str]) -> _Reading:
    usage = _tool("cuobjdump", code.asm["cubin"], "-res-usage")
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"cuobjdump says nothing about {code.metadata.name}: {usage[:300]}")
    spills = sum(count for name, count in opcodes.items() if name.split(".")[0] in ("LDL", "STL"))
    load_bits: Counter[int] = Counter()
    for name, count in opcodes.items():
        parts = name.split(".")
        if parts[0] in ("LDG", "LDGSTS"):
            widths = [int(digits) for part in parts for digits in re.findall(r"^[US]?(\d+)$", part)]
            load_bits[max(widths, default=32)] += count
    return _Reading(int(registers[1]), spills, 0, opcodes, load_bits)


#: `/*0a10*/  @!P0 LDG.E.128 R4, ...`
_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")

_PTX_TARGET = re.compile(r"^\.target sm_(\w+)", re.MULTILINE)


def _nvidia_opcodes(codes: Sequence[Any]) -> list[Counter[str]]:
    """All are disassembled at once, one behind the other: nvdisasm takes half a second to start."""
    instructions = [_instructions(code.asm["cubin"]) for code in codes]
    ends = list(accumulate(map(len, instructions)))
    # `.target sm_90a` of the PTX is SM90a to nvdisasm.
    (architecture,) = {name for code in codes for name in _PTX_TARGET.findall(code.asm["ptx"])}
    sass = _tool("nvdisasm", b"".join(instructions), "--binary", f"SM{architecture}")
    opcodes: list[Counter[str]] = [Counter() for _ in codes]
    for address, opcode in _SASS.findall(sass):
        opcodes[bisect_right(ends, int(address, 16))][opcode] += 1
    return opcodes


def _instructions(cubin: bytes) -> bytes:
    """The kernel's section of a cubin, a 64-bit ELF file."""
    (sections_at,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, sections_at + size * i) for i in range(count)]
    names_at = sections[names][4]
    text = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(b".text.", names_at + name)
    ]
    return b"".join(text)


def _tool(name: str, data: bytes, *options: str) -> str:
    """Run one of the binary tools that come with triton on a file with this in it."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        done = subprocess.run([path, *options, file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip()[:300]}")
    return done.stdout + done.stderr


_AMD_OPCODE = re.compile(r"^\s+((?:v|s|ds|global|buffer|flat|scratch)_[a-z0-9_]+)", re.MULTILINE)
_AMD_LOAD = re.compile(
    r"(?:global|buffer|flat)_load_(?:lds_)?(?:[us]?(byte|short|dword)|[usb](\d+))(?:x(\d))?"
)
_AMD_BITS = {"byte": 8, "short": 16, "dword": 32}


def _amd_bits(load: re.Match[str]) -> int:
    return (_AMD_BITS[load[1]] if load[1] else int(load[2])) * int(load[3] or 1)


def _read_amd(codes: Sequence[Any]) -> list[_Reading]:
    return [_amd_reading(code) for code in codes]


def _amd_reading(code: Any) -> _Reading:
    assembly = code.asm["amdgcn"]

    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the assembly of {code.metadata.name} has no .{key}")
        return int(found[1])

    opcodes = Counter(_AMD_OPCODE.findall(assembly))
    load_bits: Counter[int] = Counter()
    for name, count in opcodes.items():
        if load := _AMD_LOAD.match(name):
            load_bits[_amd_bits(load)] += count
    # Of what is spilled, vgpr_spill_count says how many registers, the instructions whether to memory.
    in_memory = sum(count for name, count in opcodes.items() if name.startswith("scratch_"))
    spills = max(number("vgpr_spill_count"), in_memory)
    return _Reading(number("vgpr_count"), spills, number("sgpr_spill_count"), opcodes, load_bits)


#: What the two assemblers' texts say of source files and lines, and the loads that come from them:
#: `.file 3 "/…/kernels" "common.py"`, `.loc 3 72 15 …`, `ld.global.v4.b32 { … }`, `cp.async.cg … , 0x10`,
#: `global_load_dwordx4 …`.
_FILE = re.compile(r"^\s*\.file\s+(\d+) (.*)", re.MULTILINE)
_LINE = re.compile(r"^\s*\.loc\s+(\d+) (\d+)")
_PTX_LOAD = re.compile(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bufs](\d+)\b")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S* .*?, (0x[0-9a-f]+|\d+)[,;]")


def _row_bits(assembly: str) -> Counter[int]:
    """Loads by their bits, of the source lines of `common.load_rows`."""
    source, first = inspect.getsourcelines(common.load_rows.fn)
    lines = range(first, first + len(source))
    files = {number for number, name in _FILE.findall(assembly) if re.search(r'[/"]common\.py"', name)}
    inside = False
    bits: Counter[int] = Counter()
    for text in assembly.splitlines():
        if found := _LINE.match(text):
            inside = found[1] in files and int(found[2]) in lines
        elif inside and (found := _PTX_LOAD.search(text)):
            bits[int(found[2]) * int(found[1] or 1)] += 1
        elif inside and (found := _PTX_COPY.search(text)):
            bits[8 * int(found[1], 0)] += 1
        elif inside and (found := _AMD_LOAD.search(text)):
            bits[_amd_bits(found)] += 1
    return bits


#: `%c = tt.dot %a, %b, %acc ... : tensor<64x64xf16, ...> * tensor<64x64xf16, ...> -> tensor<64x64xf32, #mma>`
_DOT = re.compile(r"(tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma)\b[^\n]*? : ([^\n]*)")


#: What a constant condition of a `while` loop looks like.
_ENDLESS = re.compile(r"scf\.condition\(%true")


def _products(ttgir: str) -> tuple[int, int]:
    """How many products of 16-bit operands there are, and how many of them have no matrix unit's layout."""
    layouts = dict(re.findall(r"^(#\w+) = #([\w.]+)", ttgir, re.MULTILINE))
    products = by_hand = 0
    for operation, types in _DOT.findall(ttgir):
        if not re.search(r"xb?f16\b", types.split("->")[0]):
            continue
        products += 1
        if operation == "tt.dot":
            layout = re.search(r"-> tensor<[^,>]*, (#\w+)", types)
            by_hand += layout is None or not re.search("mma|mfma", layouts.get(layout[1], ""))
    return products, by_hand
