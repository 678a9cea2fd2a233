"""Ops and `prune` as called, and replayed from a CUDA graph: the host's time and the device's."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trimtok_fast as tt
from benchmarks import contenders, figures
from benchmarks.harness import timed, track
from benchmarks.machine import device
from benchmarks.options import Options
from benchmarks.report import duration, table
from benchmarks.workloads import make_tokens


@dataclass(frozen=True)
class Workload:
    """Something to be called.

    Attributes:
        name: what, with its shape.
        build: makes the call, which takes nothing.
    """

    name: str
    build: Callable[[], Callable[[], Any]]


def boundaries(tokens: Tensor, size: int) -> range:
    """Of images of one size."""
    return range(0, len(tokens) + 1, size)


def workloads(quick: bool) -> list[Workload]:
    """Prompts for a language model, and single segments."""
    images, size, width, large, segment = (4, 64, 256, 256, 256) if quick else (32, 576, 3584, 1562, 1024)
    some: list[Workload] = []

    def add(name: str, count: int, width: int, build: Callable[[Tensor], Callable[[], Any]]) -> None:
        dtype = torch.bfloat16 if device() == "cuda" else torch.float32  # few CPUs multiply in 16 bits
        some.append(
            Workload(name, lambda: build(make_tokens("clusters", count, width, dtype=dtype).to(device())))
        )

    def statistics_of(center: str) -> None:
        add(
            f"token_statistics, center={center!r}, {images} x {size} x {width:,}",
            images * size,
            width,
            lambda tokens: lambda: tt.token_statistics(tokens, boundaries(tokens, size), center=center),
        )

    def prune(images: int, size: int, width: int, share: float, text: bool) -> None:
        def build(tokens: Tensor) -> Callable[[], Any]:
            words = make_tokens("noise", 64, width, seed=1).to(tokens) if text else None
            # The check reads a value back, which a graph cannot hold.
            config = tt.PruneConfig(keep_ratio=share, check_finite=False)
            return lambda: tt.prune(tokens, boundaries(tokens, size), text=words, config=config)

        name = f"prune, {images} x {size:,} x {width:,}, keep {share:.0%}"
        add(f"{name}, {'with' if text else 'without'} text", images * size, width, build)

    def select(objective: str, count: int) -> None:
        def build(tokens: Tensor) -> Callable[[], Any]:
            return lambda: tt.greedy_select(tokens, [0, count], [count // 5], objective=objective)

        add(f"{objective}, {count:,} x 1,024, {count // 5:,} picks", count, 1024, build)

    statistics_of("none")
    statistics_of("sample")
    add(
        f"rival of the first: pairwise matrix, {images} x {size} x {width:,}",
        images * size,
        width,
        lambda tokens: lambda: contenders.pairwise_diversity(tokens, images, tokens.dtype),
    )
    for text in (False, True):
        prune(1, size, width, 0.2, text)
        prune(images, size, width, 0.2, text)
        prune(2 * images, large, width // 4 if quick else 1024, 0.1, text)
    for count in (segment, 8 * segment):
        select("max_min", count)
    for count in (segment, 4 * segment):
        select("coverage", count)
    return some


def measure(options: Options) -> dict[str, Any]:
    """Median seconds of each call, and of its replay where there is a GPU; small ones where there is none."""
    small = options.quick or device() == "cpu"
    wanted = options.chosen(workloads(small), lambda work: work.name)
    rows, rounds = [], options.effort().rounds
    for work in track(wanted, "device time", lambda work: work.name):
        run = work.build()
        run()
        row = {"name": work.name, "call": _median(run, rounds), "replay": None}
        if device() == "cuda":
            row["replay"] = _median(captured(run), rounds)
        rows.append(row)
    return {"rows": rows}


def _median(run: Callable[[], Any], rounds: int) -> float:
    return statistics.median(timed(run)[0] for _ in range(rounds))


def captured(run: Callable[[], Any]) -> Callable[[], None]:
    """A replay of what a call does on the GPU; the call must have been made before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def tables(results: dict[str, Any]) -> str:
    """A line a workload."""
    lines = [
        [row["name"], duration(row["call"]), "" if row["replay"] is None else duration(row["replay"])]
        for row in results["rows"]
    ]
    missing = "" if any(row["replay"] for row in results["rows"]) else "No GPU: nothing to replay.\n\n"
    return missing + table(["what", "as called", "replayed from a CUDA graph"], lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars on a logarithmic axis: the call, and within it the replay."""
    rows = results["rows"]
    with figures.saved(path, figsize=(9, 0.3 * len(rows) + 1.2)) as (figure, axes):
        axes.barh(
            range(len(rows)), [1e3 * row["call"] for row in rows], color=figures.MUTED, label="as called"
        )
        replays = [(place, 1e3 * row["replay"]) for place, row in enumerate(rows) if row["replay"]]
        if replays:
            places, values = zip(*replays, strict=True)
            axes.barh(places, values, height=0.45, color=figures.OURS, label="replayed from a CUDA graph")
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.invert_yaxis()
        axes.set_xscale("log")
        figures.plain_numbers(axes.xaxis)
        axes.set_xlabel("milliseconds")
        axes.legend()
        figure.suptitle("The call and what of it is the device's")
