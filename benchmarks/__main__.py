"""Measure `trimtok_fast` against what a user would pick instead; losses are printed as plainly as wins."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks import device_time, long_context, machine, prefill, speed, sweep
from benchmarks.options import Options
from benchmarks.report import duration


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        about: what it measures.
        measure: returns what goes into the JSON.
        tables: makes markdown of that.
        plot: makes a picture of it, in a file.
    """

    about: str
    measure: Callable[[Options], dict[str, Any]]
    tables: Callable[[dict[str, Any]], str]
    plot: Callable[[dict[str, Any], Path], None]


def _of_quality(name: str) -> Callable[..., Any]:
    """A function of the section that needs the demo's photographs and weights, loaded when it is called."""
    return lambda *arguments: getattr(importlib.import_module("benchmarks.quality"), name)(*arguments)


def _measure_quality(options: Options) -> dict[str, Any]:
    return _of_quality("measure")(options.quick, lambda step: print(f"quality: {step}", flush=True))


SECTIONS = {
    "speed": Section(
        "ops and methods on three kinds of tokens, with targets", speed.measure, speed.tables, speed.plot
    ),
    "sweep": Section(
        "ops and prune over tokens, width and kept share", sweep.measure, sweep.tables, sweep.plot
    ),
    "prefill": Section(
        "time to first token, and the break-even", prefill.measure, prefill.tables, prefill.plot
    ),
    "long-context": Section(
        "prune on 16, 64 and 256 images", long_context.measure, long_context.tables, long_context.plot
    ),
    "device-time": Section(
        "what of a call is the device's, by CUDA graphs",
        device_time.measure,
        device_time.tables,
        device_time.plot,
    ),
    "quality": Section(
        "every method on real photographs, judged by tasks",
        _measure_quality,
        _of_quality("tables"),
        _of_quality("plot"),
    ),
}
EPILOG = (
    "sections:\n"
    + "\n".join(f"  {name:14}{section.about}" for name, section in SECTIONS.items())
    + """

examples:
  python -m benchmarks --quick                            every section at small shapes
  python -m benchmarks --section sweep --only max_min
  python -m benchmarks --section prefill,long-context --out results
  python -m benchmarks --render                           tables and plots again, from the JSON that is there
"""
)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. Try: {self.prog} --help\n")


def _sections(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SECTIONS:
            close = difflib.get_close_matches(name, SECTIONS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentTypeError(f"wanted some of {', '.join(SECTIONS)}, got {name!r}{hint}")
    return names


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"wanted a whole number above 0, got {text!r}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if 0 <= seconds < float("inf"):
        return seconds
    raise argparse.ArgumentTypeError(f"wanted a number of seconds, got {text!r}")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small shapes, one round, no targets: minutes for everything")
    add(
        "--section",
        type=_sections,
        metavar="NAMES",
        default=list(SECTIONS),
        help="some of the sections below, with commas between them (default: all)",
    )
    add(
        "--only",
        metavar="TEXT",
        default="",
        help="only cases whose name contains this, commas aside (speed, sweep, long-context, device-time)",
    )
    add(
        "--rounds",
        type=_positive,
        metavar="N",
        default=7,
        help="interleaved rounds of a case, at most (default: 7)",
    )
    add(
        "--patience",
        type=_seconds,
        metavar="SECONDS",
        default=10,
        help="time of a contender in a case, after which it sits out the later rounds (default: 10)",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add(
        "--threads",
        type=_positive,
        metavar="N",
        default=cores,
        help=f"torch threads (default: {cores}, the cores)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("benchmarks/scratch"),
        help="where results.json, results.md and the plots go; sections not run now stay as they are there "
        "(default: benchmarks/scratch)",
    )
    add("--render", action="store_true", help="measure nothing: tables and plots again from results.json")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sections, each written down before the next one starts."""
    chosen = _build_parser().parse_args(argv)
    torch.set_num_threads(chosen.threads)
    chosen.out.mkdir(parents=True, exist_ok=True)
    if machine.device() == "cpu":
        print("No CUDA device: the torch backend on the CPU. `trimtok kernels` gives the kernels' floors.")
    options = Options(chosen.quick, chosen.rounds, chosen.patience, chosen.only)
    file = chosen.out / "results.json"
    document = json.loads(file.read_text()) if file.exists() else {}
    for name in chosen.section:
        if not chosen.render:
            start = time.perf_counter()
            results = SECTIONS[name].measure(options)
            document[name] = {
                "machine": machine.describe(),
                "quick": chosen.quick,
                "seconds": time.perf_counter() - start,
                "results": results,
            }
            file.write_text(
                json.dumps({key: document[key] for key in SECTIONS if key in document}, indent=1) + "\n"
            )
        if name in document:
            print("\n" + render(name, document[name]))
            SECTIONS[name].plot(document[name]["results"], chosen.out / f"{name}.png")
    pages = [render(name, document[name]) for name in SECTIONS if name in document]
    (chosen.out / "results.md").write_text("\n".join(["# Results\n", *pages]))
    print(f"Wrote {file}, results.md and the plots beside it")


def render(name: str, entry: dict[str, Any]) -> str:
    """A section in markdown, with its machine."""
    where = ", ".join(f"{key} {value}" for key, value in entry["machine"].items())
    shapes = "quick: small shapes" if entry["quick"] else "full shapes"
    head = f"## {name}: {SECTIONS[name].about}\n\n{where}; {shapes}; took {duration(entry['seconds'])}\n"
    return f"{head}\n![{name}]({name}.png)\n\n{SECTIONS[name].tables(entry['results'])}"


if __name__ == "__main__":
    main()
