"""Every op and `prune` over tokens, width and kept share, on a CPU each point in a fresh process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, figures
from benchmarks.harness import OURS, Case, Effort, Row, growth, track
from benchmarks.harness import measure as measure_case
from benchmarks.machine import device, in_fresh_process
from benchmarks.options import Options
from benchmarks.report import digits, duration, size, table
from benchmarks.workloads import make_tokens

#: Tokens of an image, where an op works image by image.
IMAGE = 1024
#: What each op is, for the reader.
OPS = {
    "token_statistics": "image by image, about 0",
    "coverage": "`greedy_select`, one segment",
    "max_min": "`greedy_select`, one segment",
    "dpp": "`dpp_select`, one segment",
    "pareto_front": "points at random",
    "gather_tokens": "rows at random",
    "prune": "the default method with text",
}
#: Those that keep nothing, or know no width.
SHARELESS, WIDTHLESS = ("token_statistics", "pareto_front"), ("pareto_front",)


@dataclass(frozen=True)
class Point:
    """An op at one size.

    Attributes:
        op: a key of `OPS`.
        count: number of tokens.
        width: channels of a token.
        share: of the tokens that is kept.
        image: tokens of an image, where there are images.
    """

    op: str
    count: int
    width: int
    share: float
    image: int = IMAGE

    def __str__(self) -> str:
        shape = f"{self.count:,}" if self.op in WIDTHLESS else f"{self.count:,} x {self.width:,}"
        return shape if self.op in SHARELESS else f"{shape}, {self.share:.0%}"

    def case(self) -> Case:
        """The contenders on clusters of tokens."""
        if self.op == "pareto_front":
            return cases.pareto(self.count, device())
        tokens = make_tokens("clusters", self.count, self.width).to(device())
        budget, images = round(self.share * self.count), self.count // self.image
        if self.op == "token_statistics":
            return cases.statistics(tokens, images)
        if self.op == "prune":
            return cases.prune(tokens, images, self.share)
        selections = {
            "coverage": cases.coverage,
            "max_min": cases.max_min,
            "dpp": cases.dpp,
            "gather_tokens": cases.gather,
        }
        return selections[self.op](tokens, budget)


def grid(quick: bool) -> list[Point]:
    """Along the number of tokens, then the width, then the kept share; the axes cross at two points."""
    if quick:
        counts = square = low_rank = (256, 512, 1024)
        middle, widths, shares, image = 512, (128, 256), (0.05, 0.2), 128
    else:
        counts, middle, image = (1024, 4096, 16384, 100352), 4096, IMAGE
        widths, shares = (1024, 3584, 8192), (0.05, 0.1, 0.2)
        # One segment's coverage takes a matrix; more picks than channels leave a determinant nothing.
        square, low_rank = (1024, 4096, 8192), (1024, 4096, 16384)
    along = {"coverage": square, "dpp": low_rank}
    points = []
    for op in OPS:
        points += [Point(op, count, widths[0], shares[0], image) for count in along.get(op, counts)]
        if op not in WIDTHLESS:
            share = shares[0] if op in SHARELESS else shares[-1]
            points += [Point(op, middle, width, share, image) for width in widths]
        if op not in SHARELESS:
            points += [Point(op, middle, widths[0], share, image) for share in shares]
    return list(dict.fromkeys(points))


def measure(options: Options) -> dict[str, Any]:
    """All rows of all points. A contender's pace at a point says whether it has the time for the next."""
    paces: dict[tuple[str, str], float] = {}
    found = []
    wanted = options.chosen(grid(options.quick), lambda point: f"{point.op}, {point}")
    for point in track(wanted, "sweep", lambda point: f"{point.op}, {point}"):
        effort = options.effort(rounds=2, patience=0.2 * options.patience)
        effort.longest = options.patience / 2
        effort.paces = {name: pace for (op, name), pace in paces.items() if op == point.op}
        # A quick look spends no seconds on starting processes, nor on who compiles anew at every call.
        if options.quick:
            rows = measure_point(point, effort, without=(cases.APRICOT,))
        elif device() == "cuda":  # whose memory is counted as it is handed out, whoever had it before
            torch.cuda.empty_cache()
            rows = measure_point(point, effort)
        else:
            rows = in_fresh_process(measure_point, point, effort)
        for row in rows:
            if row.seconds and row.work:
                paces[point.op, row.contender] = row.seconds / row.work
        found.append({"point": asdict(point), "rows": [asdict(row) for row in rows]})
    return {"points": found}


def measure_point(point: Point, effort: Effort, without: tuple[str, ...] = ()) -> list[Row]:
    """The rows of one point; what is loaded or compiled once is no contender's time or memory."""
    if device() == "cpu":
        _warm_up(point.op, without)
    return measure_case(_without(point.case(), without), effort)


@cache
def _warm_up(op: str, without: tuple[str, ...]) -> None:
    """Run everybody once on little: once in a process."""
    measure_case(_without(Point(op, 256, 64, 0.1, image=128).case(), without), Effort(0, 0))


def _without(case: Case, names: tuple[str, ...]) -> Case:
    for name in names:
        case.contenders.pop(name, None)
    return case


def _by_op(results: dict[str, Any]) -> dict[str, list[tuple[Point, dict[str, Row]]]]:
    by_op: dict[str, list[tuple[Point, dict[str, Row]]]] = {}
    for entry in results["points"]:
        point = Point(**entry["point"])
        rows = {row["contender"]: Row(**row) for row in entry["rows"]}
        by_op.setdefault(point.op, []).append((point, rows))
    return by_op


Points = Sequence[tuple[Point, dict[str, Row]]]


def _along(points: Points, axis: str) -> Points:
    """The points that differ along an axis alone, ascending."""
    if axis == "count":
        chosen = [entry for entry in points if entry[0].width == points[0][0].width]
        low = min(point.share for point, _ in chosen)
        chosen = [entry for entry in chosen if entry[0].share == low]
    elif axis == "width":
        widest = max(point.width for point, _ in points)
        anchor = next(point for point, _ in points if point.width == widest)
        chosen = [
            entry for entry in points if (entry[0].count, entry[0].share) == (anchor.count, anchor.share)
        ]
    else:
        shares = [point.share for point, _ in points]
        anchor = next(point for point, _ in points if point.share == max(shares))
        chosen = [
            entry for entry in points if (entry[0].count, entry[0].width) == (anchor.count, anchor.width)
        ]
    return sorted(chosen, key=lambda entry: getattr(entry[0], axis))


def _names(points: Points) -> list[str]:
    return list(dict.fromkeys(name for _, rows in points for name in rows))


def exponents(points: Points) -> dict[str, float | None]:
    """With which power of the number of tokens each contender's time grows."""
    chosen = _along(points, "count")
    sizes = [point.count for point, _ in chosen]
    return {
        name: growth(sizes, [rows[name].seconds if name in rows else None for _, rows in chosen])
        for name in _names(points)
    }


def tables(results: dict[str, Any]) -> str:
    """A table an op: median time, time over ours, peak memory of every contender at every point."""
    parts = [
        "Cells: median time (time / ours), peak memory above the input. "
        "The last line of each table is the exponent of the growth with the number of tokens, "
        "of the points of the smallest share and width that were run.\n"
    ]
    for op, points in _by_op(results).items():
        names, powers = _names(points), exponents(points)
        lines = [[str(point), *(_cell(rows.get(name)) for name in names)] for point, rows in points]
        lines.append(
            ["growth", *("–" if powers[name] is None else f"N^{powers[name]:.2f}" for name in names)]
        )
        parts.append(f"### {op}\n\n{OPS[op]}\n\n" + table(["tokens", *names], lines))
    return "\n".join(parts)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.seconds is None:
        return row.note
    ratio = "" if row.contender == OURS else f" ({digits(row.ratio or 0)} ×)"
    more = "" if row.gigabytes is None else f", {row.gigabytes:,.0f} GB/s"
    more += "" if row.share_of_floor is None else f", {row.share_of_floor:.0%} of the floor"
    return f"{duration(row.seconds)}{ratio}, {size(row.peak_bytes)}{more}"


def plot(results: dict[str, Any], path: Path) -> None:
    """A line of panels an op: time and memory by tokens, time over ours by width and by kept share."""
    by_op = _by_op(results)
    shape = {"figsize": (15, 2.7 * len(by_op) + 0.6), "gridspec_kw": {"width_ratios": (0.9, 1.3, 1.3, 1, 1)}}
    with figures.saved(path, len(by_op), 5, squeeze=False, **shape) as (figure, panels):
        for (op, points), (legend, time, memory, width, share) in zip(by_op.items(), panels, strict=True):
            _draw(time, points, "count", "seconds", "seconds, by tokens")
            _draw(memory, points, "count", "peak_bytes", "peak memory, MiB, by tokens")
            _draw(width, points, "width", "ratio", "time / ours, by channels")
            _draw(share, points, "share", "ratio", "time / ours, by kept share")
            legend.set_axis_off()
            legend.set_title(op, fontsize=12, loc="left")
            legend.text(0, 1, OPS[op], transform=legend.transAxes, va="top", wrap=True)
            known = next((axes for axes in (time, memory, width, share) if axes.lines), time)
            legend.legend(*known.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(-0.05, 0.4))
        figure.suptitle("Growth. A cross: there a contender drops out, for time or memory.")


def _draw(axes: Any, points: Points, axis: str, value: str, title: str) -> None:
    """A line a contender along an axis; nothing where that has one point."""
    chosen, names, powers = _along(points, axis), _names(points), exponents(points)
    if len({getattr(point, axis) for point, _ in chosen}) < 2:
        axes.set_axis_off()
        return
    rivals = [name for name in names if name != OURS]
    colours = {OURS: figures.OURS, **dict(zip(rivals, figures.COLOURS * 2, strict=False))}
    for name in names:
        rows = [(getattr(point, axis), entry[name]) for point, entry in chosen if name in entry]
        unit = 2**20 if value == "peak_bytes" else 1
        known = [(x, getattr(row, value) / unit) for x, row in rows if getattr(row, value)]
        if not known:
            continue
        power = powers[name] if value == "seconds" else None
        axes.plot(
            *zip(*known, strict=True),
            "--" if name.startswith("limit") else "-",
            marker="o",
            markersize=3.5,
            color=colours[name],
            linewidth=2.2 if name == OURS else 1.2,
            label=name if power is None else f"{name}: N^{power:.2f}",
        )
        if axis == "count" and any(row.note for _, row in rows):
            axes.plot(*known[-1], "x", color=colours[name], markersize=9)
    if not axes.lines:
        axes.set_axis_off()
        return
    axes.set_title(title)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [getattr(point, axis) for point, _ in chosen]
    axes.set_xticks(ticks, [f"{tick:.0%}" if axis == "share" else f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    figures.plain_numbers(axes.yaxis)
