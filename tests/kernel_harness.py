"""What tests of kernels share: guarded memory, launches watched or run as PTX, kernels with a fault.

A launch anywhere goes through `launched`, interpreted or not: no test has to know which modules launch what.
`simulated` compiles it for a GPU and executes the PTX on the CPU (tests/ptxsim).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.workloads import DTYPES
from tests.ptxsim import CompiledCode, ExecutionFault, ExecutionReport, compile_for, run_compiled
from trimtok_fast.kernels import common

BARRIER = re.compile(r"^[ \t]*bar\.sync[^;]*;", re.MULTILINE)
SENTINEL = 77
_NUMBERS = itertools.count()


def quick(*names: str) -> list[Any]:
    """All dtypes; those that are not named take too long together for `make test`."""
    return [
        pytest.param(dtype, id=name, marks=() if name in names else pytest.mark.slow)
        for name, dtype in DTYPES.items()
    ]


def quick_faults(faults: Iterable[Any]) -> list[Any]:
    """Faults to plant; all but every third take too long together for `make test`."""
    return [
        fault
        if number % 3 == 0
        else pytest.param(
            *(fault.values if hasattr(fault, "values") else (fault,)),
            id=getattr(fault, "id", None),
            marks=pytest.mark.slow,
        )
        for number, fault in enumerate(faults)
    ]


def guarded(values: Tensor, column_step: int = 1, lead: int = 1) -> Tensor:
    """The values as part of a larger buffer, `lead` elements off its alignment, among NaN (or a sentinel)."""
    rows, columns = (1, *values.shape)[-2:]
    guard = float("nan") if values.is_floating_point() else SENTINEL
    pitch = columns * column_step + lead + 2
    buffer = torch.full(((rows + 2) * pitch,), guard, dtype=values.dtype)
    view = buffer.as_strided((rows, columns), (pitch, column_step), pitch + lead)
    view.copy_(values.reshape(rows, columns))
    return view.view_as(values) if values.ndim == 2 else view[0]


def awkward(tokens):
    """The same values: transposed, strided and misaligned among NaN."""
    count, width = tokens.shape
    options = {"dtype": tokens.dtype, "device": tokens.device}
    wide = torch.full((count + 2, 2 * width + 5), float("nan"), **options)
    wide[1:-1, 1 : 1 + 2 * width : 2] = tokens
    flat = torch.full((count * width + 2,), float("nan"), **options)
    flat[1:-1] = tokens.flatten()
    return {
        "transposed": tokens.T.contiguous().T,
        "strided": wide[1:-1, 1 : 1 + 2 * width : 2],
        "misaligned": flat[1:-1].view(count, width),
    }


@contextlib.contextmanager
def guarded_allocation() -> Iterator[None]:
    """Every `new_empty` starts as NaN (or the largest integer) amid a zone that must not be written to."""
    zone = 64
    buffers = []

    def new_empty(self: Tensor, *shape: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        kind = dtype or self.dtype
        guard, poison = (
            (SENTINEL, float("nan")) if kind.is_floating_point else (SENTINEL, torch.iinfo(kind).max)
        )
        buffer = torch.full((size.numel() + 2 * zone,), guard, dtype=kind, device=self.device)
        buffers.append(buffer)
        return buffer[zone : zone + size.numel()].fill_(poison).view(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", new_empty)
        yield
    for buffer in buffers:
        around = torch.cat([buffer[:zone], buffer[len(buffer) - zone :]])
        assert (around == SENTINEL).all(), "written past an output"


class Launch(NamedTuple):
    """One launch: the kernel, its grid, what it was called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name, without the `_` and `_kernel` around it."""
        return str(self.kernel.__name__).removeprefix("_").removesuffix("_kernel")

    def interpret(self) -> None:
        """Run it in Triton's interpreter."""
        _INTERPRET(self.kernel, *self.arguments, grid=self.grid, warmup=False, **self.options)


#: What `kernel[grid]` calls.
_FUNCTION: Any = type(common.row_norm)
_INTERPRET = _FUNCTION.run


@contextlib.contextmanager
def launched(run: Callable[[Launch], object] = Launch.interpret) -> Iterator[list[Launch]]:
    """Inside, what is launched goes on the list, and `run` does it."""
    launches: list[Launch] = []

    def launch(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Launch(kernel, tuple(grid), arguments, options))
        run(launches[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_FUNCTION, "run", launch)
        yield launches


@contextlib.contextmanager
def simulated(
    target: str = "sm_80",
    change: Callable[[str, CompiledCode], CompiledCode] = lambda name, code: code,
    **simulation: Any,
) -> Iterator[list[ExecutionReport]]:
    """Inside, every launch executes its PTX, with races, bounds and alignment checked.

    Args:
        target: what to compile for; sm_80 to sm_120.
        change: called with a kernel's name and its code, before it runs.
        simulation: options of `ptxsim.execute`, as `seed` or `profile`.

    Yields:
        The reports, in the order of the launches. None may have a conflict in the end.
    """
    reports: list[ExecutionReport] = []

    def run(launch: Launch) -> None:
        code = compile_for(launch.kernel, *launch.arguments, target=target, assembled=False, **launch.options)
        named = {name: value for name, value in launch.options.items() if name in code.signature}
        options = {"profile": False, **named, **simulation}
        reports.append(run_compiled(change(launch.name, code), launch.grid, *launch.arguments, **options))

    with launched(run), pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "platform", lambda: "cuda")
        patch.setattr(common, "capability", lambda: int(target.removeprefix("sm_")))
        yield reports
    for report in reports:
        assert not report.conflicts, f"{report.kernel}: {report.conflicts}"


def without_each_barrier(launch: Callable[[], object], kernel: str) -> list[str]:
    """Delete each barrier of a kernel's PTX in turn, and launch: what is reported, "" where nothing is.

    Args:
        launch: launches the kernel, on fresh outputs; raises AssertionError if the results are wrong.
        kernel: its name, as in `Launch.name`.
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


def plant(patch: pytest.MonkeyPatch, module: ModuleType, old: str, new: str, folder: Path) -> None:
    """Give the jit functions of a file, wherever they are used, the code of a copy, a snippet replaced."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times {old!r}"
    # A name of its own: the process that compiles keeps what it has imported.
    name = f"mutant_{next(_NUMBERS)}_of_{module.__name__.rpartition('.')[2]}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    for key, function in vars(module).items():
        if isinstance(function, _FUNCTION) and function.fn.__module__ == module.__name__:
            copy = getattr(changed, key)
            patch.setattr(function, "fn", copy.fn)
            patch.setattr(function, "rewriter", copy.rewriter)
