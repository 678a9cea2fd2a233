"""Interleaved timing, and what is made of it: JSON, a table, a plot."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from trimtok_fast.kernels.common import Traffic


@dataclass
class Row:
    """One contender in one case.

    Attributes:
        case: what was measured, with its shape.
        contender: who did it.
        seconds: median over the rounds.
        rounds: how many there were.
        ratio: its time over ours, from the medians of one interleaved run.
        target: what the ratio should reach, e.g. ">= 3" or "<= 1.5" (of ours over it); empty without one.
        met: whether it does; `None` without a target.
        gigabytes: a second, of those that the kernels must move; on a GPU only.
        share_of_floor: what the GPU's data sheet allows at best, over the time taken; `None` without one.
    """

    case: str
    contender: str
    seconds: float
    rounds: int
    ratio: float
    target: str = ""
    met: bool | None = None
    gigabytes: float | None = None
    share_of_floor: float | None = None


@dataclass
class Case:
    """Contenders on one input.

    Attributes:
        name: what is measured, with its shape.
        ours: the package's own way.
        others: what it is measured against, by name.
        check: asserts that all results are right; runs once, before anything is timed.
        at_least: how many times faster than each contender ours should be.
        at_most: how many times its time ours may take, of the contenders that are limits, not rivals.
        traffic: what our kernels must move and do, as their modules state it; asked for on a GPU only.
        sixteen_bits: whether the tokens are fp16 or bf16.
    """

    name: str
    ours: Callable[[], object]
    others: dict[str, Callable[[], object]]
    check: Callable[[], None]
    at_least: dict[str, float] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)
    traffic: Callable[[], Traffic] | None = None
    sixteen_bits: bool = False


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call: on a GPU its device time with a cold cache, else wall time on idle cores."""
    if torch.cuda.is_available():
        torch.empty(2**28, dtype=torch.int8, device="cuda").zero_()  # larger than any L2
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    time.sleep(0.3)  # until the threads of the last contender have stopped spinning
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure(case: Case, rounds: int, patience: float) -> list[Row]:
    """Check, then time all contenders in turn, round by round.

    A contender that has used up `patience` seconds sits out the later rounds, after two at least.
    """
    case.check()
    contenders = {"trimtok_fast": case.ours, **case.others}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            if len(times[name]) < 2 or sum(times[name]) < patience:
                times[name].append(timed(run))
    # The check has run most of them once; what is timed often enough loses its first round as a warm-up too.
    times = {name: values[1:] if len(values) > 2 else values for name, values in times.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    own = medians["trimtok_fast"]
    rows = [Row(case.name, "trimtok_fast", own, len(times["trimtok_fast"]), 1.0)]
    if case.traffic is not None and torch.cuda.is_available():
        rows[0].gigabytes, rows[0].share_of_floor = against_floor(case.traffic(), own, case.sixteen_bits)
    for name in case.others:
        row = Row(case.name, name, medians[name], len(times[name]), medians[name] / own)
        if name in case.at_least:
            row.target, row.met = f">= {case.at_least[name]:g}", row.ratio >= case.at_least[name]
        if name in case.at_most:
            row.target, row.met = f"ours <= {case.at_most[name]:g} x", 1 / row.ratio <= case.at_most[name]
        rows.append(row)
    return rows


def against_floor(traffic: Traffic, seconds: float, sixteen_bits: bool) -> tuple[float, float | None]:
    """Gigabytes a second; and the floor on this GPU over the time, if its data sheet is known."""
    from trimtok_fast.inspection.devices import DATA_SHEETS

    name = torch.cuda.get_device_name()
    sheet = next((sheet for sheet in DATA_SHEETS if sheet.name in name), None)
    share = None if sheet is None else sheet.floor(*traffic, sixteen_bits=sixteen_bits) / seconds
    return traffic.bytes_moved / seconds / 1e9, share


def machine() -> dict[str, str | int]:
    """What the numbers were taken on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def to_table(rows: list[Row], facts: list[str]) -> str:
    """Markdown: one line a contender, ratios over ours."""
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    lines = [
        where,
        "",
        "| case | contender | median | time / ours | target | met |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = "" if row.met is None else ("yes" if row.met else "**no**")
        time_taken = f"{row.seconds * 1e3:.4g} ms"
        if row.gigabytes is not None:
            time_taken += f", {row.gigabytes:,.0f} GB/s"
        if row.share_of_floor is not None:
            time_taken += f", {row.share_of_floor:.0%} of the floor"
        cells = [row.case, row.contender, time_taken, f"{row.ratio:.3g}", row.target, met]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *[f"- {fact}" for fact in facts], ""])


def write(rows: list[Row], facts: list[str], folder: Path) -> list[Path]:
    """`results.json`, `results.md` and `results.png` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "rows": [asdict(row) for row in rows], "facts": facts}
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "results.md").write_text(to_table(rows, facts))
    plot(rows, folder / "results.png")
    return [folder / f"results.{kind}" for kind in ("json", "md", "png")]


def plot(rows: list[Row], path: Path) -> None:
    """Each contender's time over ours, on a logarithmic axis; to the left of 1 it is faster than we are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.contender != "trimtok_fast"]
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(shown) + 1.3), layout="constrained")
    colours = ["#2a78b5" if row.ratio >= 1 else "#c2571a" for row in shown]
    bars = axes.barh(
        [f"{row.case} · {row.contender}" for row in shown], [row.ratio for row in shown], color=colours
    )
    axes.bar_label(bars, [f"{row.ratio:.2g} ×" for row in shown], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_xlabel("time / trimtok_fast's")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
