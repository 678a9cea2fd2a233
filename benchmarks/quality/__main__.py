"""`python -m benchmarks.quality`: measure, print the tables, write JSON, tables and plot."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.quality import choices, measure, plot, tables


def main() -> None:
    """Run the study, or what settles the defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half of the photographs, fewer budgets")
    parser.add_argument("--choices", action="store_true", help="the tables behind docs/choices.md instead")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/scratch"), help="where results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()

    def progress(line: str) -> None:
        print(f"[{time.perf_counter() - started:4.0f} s] {line} …", file=sys.stderr, flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    name = "choices" if options.choices else "quality"
    if options.choices:
        results = choices.measure(options.quick, progress)
        text = choices.tables(results)
    else:
        results = measure(options.quick, progress)
        text = tables(results)
        plot(results, options.out / f"{name}.png")
    (options.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(text)
    print(text)
    print(f"Wrote {name}.* to {options.out}")


if __name__ == "__main__":
    main()
