"""Compilation targets with their limits, and GPUs with what their data sheets promise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A processor that kernels are compiled for, and what one multiprocessor (AMD: compute unit) of it holds.

    Attributes:
        name: as the compiler writes it.
        backend: `"cuda"` or `"hip"`.
        architecture: as triton's `GPUTarget` wants it.
        warp_size: threads in a warp (AMD: a wave).
        shared_bytes: shared memory (AMD: LDS) that one program may use.
        shared_bytes_total: shared memory of the multiprocessor.
        shared_bytes_reserved: what the system takes of it for every program.
        warps: warps that it can hold.
        programs: programs that it can hold.
        schedulers: parts that warps and registers are split over.
        registers: of each part, for one thread of every warp in it.
        register_unit: registers of a thread are handed out in multiples of this.
    """

    name: str
    backend: str
    architecture: int | str
    warp_size: int
    shared_bytes: int
    shared_bytes_total: int
    shared_bytes_reserved: int
    warps: int
    programs: int
    schedulers: int = 4
    registers: int = 512
    register_unit: int = 8

    def occupancy(self, registers: int, shared_bytes: int, num_warps: int) -> float:
        """Share of the warps that a multiprocessor can hold with programs like this one: an estimate.

        From registers, shared memory and the number of warps alone, by the allocation rules of the CUDA
        programming guide (technical specifications by compute capability) and of LLVM's AMDGPU backend.
        """
        unit = self.register_unit
        of_part = self.registers // max(unit, -(-registers // unit) * unit)
        by_registers = of_part * self.schedulers // num_warps
        by_shared = self.shared_bytes_total // max(1, shared_bytes + self.shared_bytes_reserved)
        resident = min(by_registers, by_shared, self.warps // num_warps, self.programs)
        return resident * num_warps / self.warps


def _nvidia(capability: int, shared: int, shared_total: int, warps: int, programs: int) -> Target:
    kib = 1024
    name = f"sm_{capability}"
    return Target(name, "cuda", capability, 32, shared * kib, shared_total * kib, kib, warps, programs)


def _amd(name: str, shared: int) -> Target:
    return Target(name, "hip", name, 64, shared * 1024, shared * 1024, 0, warps=32, programs=32)


#: The targets, by name.
TARGETS = {
    target.name: target
    for target in (
        _nvidia(80, shared=163, shared_total=164, warps=64, programs=32),
        _nvidia(90, shared=227, shared_total=228, warps=64, programs=32),
        _nvidia(100, shared=227, shared_total=228, warps=64, programs=32),
        _nvidia(120, shared=99, shared_total=100, warps=48, programs=24),
        _amd("gfx942", shared=64),
        _amd("gfx950", shared=160),
    )
}


@dataclass(frozen=True)
class DataSheet:
    """What a vendor promises of a GPU: peaks that no program reaches.

    Attributes:
        name: of the GPU.
        bandwidth: of its memory, bytes a second.
        matrix_16: operations a second of the matrix units on fp16 and bf16, dense.
        matrix_32: the same for products as exact as fp32's: a third of tf32's rate on NVIDIA, where three of
            tf32 make one; the rate of fp32 itself on AMD.
        vector: fp32 operations a second outside the matrix units.
        source: where the numbers stand.
    """

    name: str
    bandwidth: float
    matrix_16: float
    matrix_32: float
    vector: float
    source: str

    def floor(self, bytes_moved: int, products: int, operations: int, *, sixteen_bits: bool) -> float:
        """Seconds that it takes at least to move the bytes, or to do the work: whichever is longer.

        Args:
            bytes_moved: to and from the GPU's memory.
            products: multiply-adds on the matrix units.
            operations: other operations.
            sixteen_bits: whether the products' operands are fp16 or bf16.
        """
        matrix = self.matrix_16 if sixteen_bits else self.matrix_32
        return max(bytes_moved / self.bandwidth, 2 * products / matrix, operations / self.vector)


#: The GPUs that floors are given for.
DATA_SHEETS = (
    DataSheet(
        "A100", 2.039e12, 312e12, 156e12 / 3, 19.5e12, "NVIDIA A100 Tensor Core GPU datasheet, SXM 80 GB"
    ),
    DataSheet(
        "H100", 3.35e12, 989.4e12, 494.7e12 / 3, 66.9e12, "NVIDIA H100 Tensor Core GPU datasheet, SXM5"
    ),
    DataSheet("H200", 4.8e12, 989.4e12, 494.7e12 / 3, 66.9e12, "NVIDIA H200 Tensor Core GPU datasheet, SXM"),
    DataSheet(
        "B200", 8.0e12, 2250e12, 1125e12 / 3, 75e12, "NVIDIA HGX B200 datasheet, an eighth of the board"
    ),
    DataSheet("MI300X", 5.3e12, 1307.4e12, 163.4e12, 163.4e12, "AMD Instinct MI300X accelerator data sheet"),
)
