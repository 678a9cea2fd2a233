"""Ops and methods on three kinds of tokens against what a user would pick instead, with targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, figures
from benchmarks.harness import OURS, Case, Effort, Row, track
from benchmarks.harness import measure as measure_case
from benchmarks.machine import device
from benchmarks.options import Options
from benchmarks.report import digits, duration, size, table, verdict
from benchmarks.workloads import make_tokens


@dataclass
class Plan:
    """A case to be built when its turn comes, so that only one input is in memory.

    Attributes:
        name: for `--only` and the progress.
        build: makes the case.
        kind: of the tokens.
        targets: by contender.
    """

    name: str
    build: Callable[[], Case]
    kind: str
    targets: dict[str, float] = field(default_factory=dict)


def plans(quick: bool) -> list[Plan]:
    """All cases."""
    scale = 8 if quick else 1
    some: list[Plan] = []

    def add(kind: str, build: Callable[..., Case], count: int, *rest: Any, **targets: Any) -> None:
        width = 256 if quick else 1024
        some.append(
            Plan(
                f"{build.__name__}, {kind}, {count} x {width}",
                lambda: build(make_tokens(kind, count, width).to(device()), *rest),
                kind,
                targets["targets"],
            )
        )

    for kind in ("clusters",) if quick else ("photo-like", "clusters", "noise"):
        count = 8192 // scale
        bests = {cases.QUICKFPS: 20, cases.FPS: 10, cases.RUNNING: 3, cases.TALL: 1.5}
        add(kind, cases.max_min, count, round(0.2 * count), False, targets=bests)
        count = 1024 // scale
        bests = dict.fromkeys((cases.QUICKFPS, cases.FPS, cases.RUNNING), 1.5)
        add(kind, cases.max_min, count, round(0.2 * count), targets=bests)
        count = 4096 // scale
        bests = {cases.APRICOT: 3, cases.SQUARE: 1.7}
        add(kind, cases.coverage, count, round(0.2 * count), targets=bests)
        add(kind, cases.divprune, count, round(0.2 * count), False, targets={cases.RESCAN: 5})
        add(kind, cases.divprune, count, round(0.2 * count), True, targets={cases.RESCAN: 15})
        add(kind, cases.trimtokenator, count, round(0.2 * count), targets={cases.FULL: 1})
        count = 2048 // scale
        add(kind, cases.dpp, count, round(0.2 * count), targets={cases.LOOP: 1.2})

    images, size, width = (4, 144, 512) if quick else (32, 576, 3584)
    some.append(
        Plan(
            f"token_statistics, clusters, bf16, {images} x {size} x {width}",
            lambda: cases.statistics(
                make_tokens("clusters", images * size, width, dtype=torch.bfloat16).to(device()), images
            ),
            "clusters",
            {cases.PAIRWISE: 12, cases.PAIRWISE_16: 3},
        )
    )
    if device() == "cuda":  # the prompt that the kernels are for, far too long for a CPU
        some.append(
            Plan(
                f"prune, clusters, bf16, {images} x {size} x {width}",
                lambda: cases.prune(
                    make_tokens("clusters", images * size, width, dtype=torch.bfloat16).to(device()),
                    images,
                    0.2,
                ),
                "clusters",
            )
        )
    return some


def measure(options: Options) -> dict[str, Any]:
    """All rows."""
    wanted = options.chosen(plans(options.quick), lambda plan: plan.name)
    kinds_of_case = {plan.name.split(",")[0] for plan in wanted} if device() == "cpu" else set()
    for plan in plans(quick=True):  # what is loaded or compiled once is no contender's time
        if plan.name.split(",")[0] in kinds_of_case:
            measure_case(plan.build(), Effort(0, 0))
    rows = []
    for plan in track(wanted, "speed", lambda plan: plan.name):
        case = plan.build()
        case.name += f", {plan.kind}"
        for name, target in plan.targets.items() if not options.quick else ():  # they are for the full shapes
            case.contenders[name].target = target
        if not options.quick and cases.LOOP in case.contenders:
            case.contenders[cases.LOOP].memory_target = 5
        rows += [asdict(row) for row in measure_case(case, options.effort())]
        del case
    return {"rows": rows}


def tables(results: dict[str, Any]) -> str:
    """One line a contender, ratios over ours."""
    rows = [Row(**row) for row in results["rows"]]
    header = ["case", "contender", "median", "runs", "time / ours", "peak memory", "target", "met"]
    return table(
        header,
        [
            [
                row.case,
                row.contender,
                row.note if row.seconds is None else _median(row),
                str(row.rounds or ""),
                "" if row.ratio is None else digits(row.ratio),
                size(row.peak_bytes) if row.rounds else "",
                row.target,
                verdict(row.met),
            ]
            for row in rows
        ],
    )


def _median(row: Row) -> str:
    parts = [duration(row.seconds or 0)]
    if row.gigabytes is not None:
        parts.append(f"{row.gigabytes:,.0f} GB/s")
    if row.share_of_floor is not None:
        parts.append(f"{row.share_of_floor:.0%} of the floor")
    return ", ".join(parts)


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of time over ours on a logarithmic axis; left of 1 is faster than we are."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in (Row(**row) for row in results["rows"]):
        if row.contender != OURS and row.ratio is not None:
            shape = row.case.rsplit(", ", 1)[0]
            groups.setdefault(shape, {}).setdefault(row.contender, []).append(row.ratio)
    bars = sum(map(len, groups.values())) + len(groups)
    with figures.saved(path, figsize=(9, 0.27 * bars + 1.2)) as (figure, axes):
        ticks, labels, place = [], [], 0.0
        for shape, contenders in groups.items():
            axes.text(
                0, place, f"  {shape}", transform=axes.get_yaxis_transform(), weight="bold", va="center"
            )
            for name, ratios in contenders.items():
                place += 1
                middle = statistics.median(ratios)
                limit = name.startswith("limit")
                colour = figures.MUTED if limit else figures.OURS if middle >= 1 else figures.LOSS
                axes.barh(place, middle - 1, left=1, color=colour, height=0.72)
                axes.plot(ratios, [place] * len(ratios), ".", color="black", markersize=3)
                end = max(1, *ratios)
                axes.annotate(
                    f"{digits(middle)} ×", (end, place), (4, 0), textcoords="offset points", va="center"
                )
                ticks.append(place)
                labels.append(name)
            place += 1.3
        axes.set_yticks(ticks, labels)
        axes.set_ylim(place - 0.5, -0.8)
        axes.set_xscale("log")
        figures.plain_numbers(axes.xaxis)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel("time / ours")
        axes.set_title(
            "bar: median over the kinds of tokens, dots: each kind\n"
            "blue: slower than we are, orange: faster, grey: a bound and no rival",
            weight="normal",
        )
        figure.suptitle("What a user would pick instead")
