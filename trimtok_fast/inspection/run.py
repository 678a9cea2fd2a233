"""Inspect the kernels: compile what a workload launches, hold it against the budgets, give the floors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import triton

from trimtok_fast.inspection import DTYPES
from trimtok_fast.inspection.compilation import Launch, Resources, compiling_for, resources
from trimtok_fast.inspection.devices import DATA_SHEETS, TARGETS, Target
from trimtok_fast.inspection.workload import KNOWN, Workload
from trimtok_fast.kernels.common import Traffic

#: Kernels that multiply directions by directions: with 16-bit tokens, on matrix units.
PRODUCTS = (
    *("directions.directions", "similarity.similarity", "greedy.fused"),
    *("recomputed.norms", "recomputed.sums", "recomputed.meet", "recomputed.hand_over"),
    *("opening.prepare", "nominate.nominate", "absorb.absorb", "finish.finish"),
)
#: How much of the rows' bits has to come in loads of 128, where the rows lie on 16 bytes. Not all: a block of
#: 16 rows, as the columns of the narrowest product, has less than 16 bytes for each thread.
WIDE_ROWS = 1 / 2


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel.

    Attributes:
        kernel: its name.
        module: the file it stands in.
        target: what it was compiled for.
        steps: the workload's steps that launch it.
        resources: what it takes.
        occupancy: share of a multiprocessor's warps that its programs can fill: an estimate.
        broken: the budgets that it breaks, in words.
    """

    kernel: str
    module: str
    target: str
    steps: tuple[str, ...]
    resources: Resources
    occupancy: float
    broken: tuple[str, ...]

    @property
    def place(self) -> str:
        """Module and kernel."""
        return f"{self.module}.{self.kernel}"


@dataclass(frozen=True)
class Floor:
    """The least that a kernel's share of a step costs.

    Attributes:
        step: of the workload.
        module: the file of the kernels.
        traffic: what it moves and does.
        seconds: by the GPU's name.
    """

    step: str
    module: str
    traffic: Traffic
    seconds: dict[str, float]


@dataclass(frozen=True)
class Inspection:
    """What `inspect_kernels` found.

    Attributes:
        workload: what was launched, but not run.
        triton: the version that compiled.
        variants: every compiled form of every kernel, by target.
        floors: the least that each step costs.
    """

    workload: Workload
    triton: str
    variants: tuple[Variant, ...]
    floors: tuple[Floor, ...]

    @property
    def broken(self) -> list[str]:
        """All broken budgets, one line each."""
        return [f"{v.place} on {v.target}: {what}" for v in self.variants for what in v.broken]

    def as_json(self) -> dict[str, Any]:
        """The same as numbers, strings, lists and dictionaries."""
        return {
            "workload": asdict(self.workload),
            "triton": self.triton,
            "kernels": [asdict(v) | {"widest_load": v.resources.widest_load} for v in self.variants],
            "floors": [asdict(floor) | {"traffic": floor.traffic._asdict()} for floor in self.floors],
            "sources": {sheet.name: sheet.source for sheet in DATA_SHEETS},
            "broken": self.broken,
        }


def inspect_kernels(
    workload: Workload, targets: Iterable[str] = TARGETS, announce: Callable[[str], None] = lambda text: None
) -> Inspection:
    """Compile every kernel that the workload launches, for every target.

    Args:
        workload: the shapes; no memory is touched for them.
        targets: keys of `TARGETS`.
        announce: called with each target's name before it is compiled for.
    """
    variants: list[Variant] = []
    floors: list[Floor] = []
    for name in targets:
        announce(name)
        launched: dict[str, list[Launch]] = {}
        with compiling_for(TARGETS[name]) as launches:
            for step, launch_all in workload.steps().items():
                launch_all()
                launched[step] = launches[:]
                launches.clear()
        variants += _variants(launched, TARGETS[name], workload)
        floors = floors or list(_floors(launched, workload))
    return Inspection(workload, triton.__version__, tuple(variants), tuple(floors))


def _variants(launched: dict[str, list[Launch]], target: Target, workload: Workload) -> list[Variant]:
    by_code: dict[int, tuple[Launch, list[str]]] = {}
    for step, launches in launched.items():
        for launch in launches:
            _, steps = by_code.setdefault(id(launch.code), (launch, []))
            if step not in steps:
                steps.append(step)
    found = []
    every = resources([launch.code for launch, _ in by_code.values()])
    for (launch, steps), taken in zip(by_code.values(), every, strict=True):
        found.append(
            Variant(
                kernel=launch.kernel,
                module=launch.module,
                target=target.name,
                steps=tuple(steps),
                resources=taken,
                occupancy=target.occupancy(taken.registers, taken.shared_bytes, taken.num_warps),
                broken=tuple(_broken(launch, taken, target, workload)),
            )
        )
    return found


def _broken(launch: Launch, taken: Resources, target: Target, workload: Workload) -> Iterable[str]:
    itemsize = DTYPES[workload.dtype].itemsize
    if taken.spills > 0:
        yield f"{taken.spills} spills, wanted none"
    if taken.shared_bytes > target.shared_bytes:
        yield f"{taken.shared_bytes} bytes of shared memory, wanted at most {target.shared_bytes}"
    if taken.endless_loops > 0:
        yield f"{taken.endless_loops} loops whose condition the compiler has taken for true"
    if not taken.load_bits:
        yield "no global load: nothing is left of the kernel"
    if itemsize == 2 and taken.products_by_hand > 0:
        yield f"{taken.products_by_hand} of {taken.products} products without matrix instructions"
    if itemsize == 2 and f"{launch.module}.{launch.kernel}" in PRODUCTS and taken.matrix_instructions == 0:
        yield "no matrix instruction"
    wide = taken.wide_rows
    if wide is not None and workload.dim * itemsize % 16 == 0 and wide < WIDE_ROWS:
        yield f"{wide:.0%} of the bits of rows loaded 128 at a time, wanted {WIDE_ROWS:.0%}"


def _floors(launched: dict[str, list[Launch]], workload: Workload) -> Iterable[Floor]:
    sixteen_bits = DTYPES[workload.dtype].itemsize == 2
    for step in KNOWN:
        modules = {launch.module for launch in launched[step]}
        for module, traffic in workload.traffic(step, modules).items():
            seconds = {sheet.name: sheet.floor(*traffic, sixteen_bits=sixteen_bits) for sheet in DATA_SHEETS}
            yield Floor(step, module, traffic, seconds)
