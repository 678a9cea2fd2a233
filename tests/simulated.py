"""Run whole ops with the code that the kernels compile to: their PTX, executed on the CPU (tests/ptxsim)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.ptxsim import CompiledCode, ExecutionFault, ExecutionReport, compile_for, run_compiled
from trimtok_fast.kernels import common

BARRIER = re.compile(r"^[ \t]*bar\.sync[^;]*;", re.MULTILINE)


@contextlib.contextmanager
def simulated(
    target: str = "sm_80",
    change: Callable[[str, CompiledCode], CompiledCode] = lambda name, code: code,
    **simulation: Any,
) -> Iterator[list[ExecutionReport]]:
    """Inside, every launch of a kernel executes its PTX, with races, bounds and alignment checked.

    Args:
        target: what to compile for; sm_80 to sm_120.
        change: called with a kernel's name and its code, before it runs.
        simulation: options of `ptxsim.execute`, as `seed` or `races`.

    Yields:
        The reports, in the order of the launches.
    """
    reports: list[ExecutionReport] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        code = change(kernel.__name__, compile_for(kernel, *args, target=target, **options))
        arguments = {name: value for name, value in options.items() if name in code.signature}
        reports.append(run_compiled(code, grid, *args, **arguments, **{"profile": False, **simulation}))

    with pytest.MonkeyPatch.context() as patch:
        # What `kernel[grid]` calls, interpreted or not.
        patch.setattr(type(common.row_norm), "run", run)
        patch.setattr(common, "platform", lambda: "cuda")
        yield reports


def without_each_barrier(launch: Callable[[], object], kernel: str) -> list[str]:
    """Delete each barrier of a kernel's PTX in turn, and launch: what is reported, "" where nothing is.

    Args:
        launch: launches the kernel, on fresh outputs; raises AssertionError if the results are wrong.
        kernel: its name.
    """

    def delete(index: int) -> Callable[[str, CompiledCode], CompiledCode]:
        def change(name: str, code: CompiledCode) -> CompiledCode:
            if name != kernel:
                return code
            barrier = list(BARRIER.finditer(code.ptx))[index]
            ptx = code.ptx[: barrier.start()] + code.ptx[barrier.end() :]
            return replace(code, asm={**code.asm, "ptx": ptx})

        return change

    def count(name: str, code: CompiledCode) -> CompiledCode:
        if name == kernel:
            numbers.append(len(BARRIER.findall(code.ptx)))
        return code

    numbers: list[int] = []
    with simulated(change=count):
        launch()
    reports = []
    for index in range(min(numbers)):
        try:
            with simulated(change=delete(index)):
                launch()
        except (ExecutionFault, AssertionError) as fault:
            reports.append(type(fault).__name__)
        else:
            reports.append("")
    return reports
