"""What the numbers are taken on: its name, its memory, and fresh processes on it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import platform
import re
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

#: Slow to import, and starting no thread by it: loaded once, before the fresh processes are forked.
SLOW_TO_LOAD = ("apricot", "torch_fps", "torch_quickfps")


def device() -> str:
    """Where the contenders run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe() -> dict[str, str | int]:
    """The machine and what runs on it."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device() == "cuda" else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    found = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), flags=re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


@cache
def available_bytes() -> float:
    """Memory that a contender can have: what the device has free; infinite where the system does not tell."""
    if device() == "cuda":
        return torch.cuda.mem_get_info()[0]
    return _kilobytes("/proc/meminfo", "MemAvailable") or float("inf")


class Peak:
    """How far memory rises in a `with` block above where it stood: on the device, or in this process.

    Attributes:
        grown: bytes, after the block; `None` where the system does not tell (it is Linux that does).
    """

    grown: int | None = None

    def __enter__(self) -> Peak:
        if device() == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        _give_back()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the largest size so far counts from here
            self._before = _kilobytes("/proc/self/status", "VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(self, *failure: object) -> None:
        if device() == "cuda":
            self.grown = torch.cuda.max_memory_allocated() - self._before
        elif self._before is not None:
            self.grown = max(0, (_kilobytes("/proc/self/status", "VmHWM") or 0) - self._before)


def _give_back() -> None:
    """Return to the system what is freed but kept: used again, it would not count as a rise."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(path: str, key: str) -> int | None:
    """Bytes behind a key of a file that counts them in kB."""
    found = re.search(rf"^{key}:\s+(\d+) kB", _read(path), flags=re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _read(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else ""


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a module's function returns, or raises, in a process that has run nothing before.

    The processes are forked from one that has imported torch and computed nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, *SLOW_TO_LOAD])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_report, args=(theirs, torch.get_num_threads(), function, arguments), daemon=True
    )
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        answer = MemoryError(f"{function.__name__}{arguments} died with exit status {process.exitcode}")
    process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _report(connection: Connection, threads: int, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(threads)
    try:
        connection.send(function(*arguments))
    except Exception as error:
        connection.send(error)
