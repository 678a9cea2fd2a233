"""What tests of kernels share: guarded memory, launches counted or run as PTX, kernels with a fault."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ptxsim import ExecutionReport, execute

SENTINEL = 77
_NUMBERS = itertools.count()


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
    wide = torch.full((count + 2, 2 * width + 5), float("nan"), dtype=tokens.dtype)
    wide[1:-1, 1 : 1 + 2 * width : 2] = tokens
    flat = torch.full((count * width + 2,), float("nan"), dtype=tokens.dtype)
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


class Launches:
    """Stands in for a kernel: hands each launch to `run`."""

    def __init__(self, kernel: Any, run: Callable[..., None]) -> None:
        self.kernel, self.run = kernel, run

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.run(self.kernel, grid, *args, **options)


class Recorder:
    """Stands in for a kernel: keeps what it is launched with, and passes it on if there is something to."""

    def __init__(self, kernel, run=None):
        self.kernel, self.run, self.calls = kernel, run, []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.calls.append((grid, arguments, options))
            if self.run is not None:
                self.run(self.kernel, grid, arguments, options)

        return launch


@contextlib.contextmanager
def launches_of(module: ModuleType, run: Callable[..., None] | None = None) -> Iterator[list[str]]:
    """Names of the kernels that were launched, in order; `run` launches them in another way."""
    names: list[str] = []

    def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        names.append(kernel.__name__)
        if run is None:
            kernel[grid](*args, **options)
        else:
            run(kernel, grid, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in vars(module) if name.startswith("_") and name.endswith("_kernel")]:
            patch.setattr(module, name, Launches(getattr(module, name), launch))
        yield names


@contextlib.contextmanager
def simulated(module: ModuleType, **options: Any) -> Iterator[list[tuple[str, ExecutionReport]]]:
    """The module's kernels run as the PTX that they compile to; the reports, and no conflict in any."""
    reports: list[tuple[str, ExecutionReport]] = []

    def run(kernel: Any, grid: tuple[int, ...], *args: Any, **arguments: Any) -> None:
        reports.append((kernel.__name__, execute(kernel, grid, *args, **arguments, **options)))

    with launches_of(module, run):
        yield reports
    for name, report in reports:
        assert not report.conflicts, f"{name}: {report.conflicts}"


def mutant(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """The kernel's file with one snippet replaced, as a module of its own."""
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
    return changed
