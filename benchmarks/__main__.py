"""`python -m benchmarks`: measure, print the table, write JSON, table and plot."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from benchmarks import harness, long_context, prefill
from benchmarks.cases import all_cases


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes, a minute; no targets")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds per case (default 7)")
    parser.add_argument(
        "--patience", type=float, default=20, help="seconds a slow contender may use (default 20)"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/scratch"), help="where results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("No CUDA device: the torch backend on the CPU. `trimtok kernels` gives the kernels' floors.")

    rows: list[harness.Row] = []
    for case in all_cases(options.quick, device):
        if options.only in case.name:
            print(f"{case.name} …", flush=True)
            rows += harness.measure(case, options.rounds, options.patience)
    facts: list[str] = []
    if options.only in "prefill":
        for case, more in prefill.cases(options.quick):
            print(f"{case.name} …", flush=True)
            rows += harness.measure(case, options.rounds, options.patience)
            facts += more()
    if options.quick:  # the targets are for the full shapes
        rows = [dataclasses.replace(row, target="", met=None) for row in rows]
    if options.only in "prune":
        print("prune, long context …", flush=True)
        facts += long_context.facts(options.quick)
    print("\n" + harness.to_table(rows, facts))
    print("Wrote", *harness.write(rows, facts, options.out))


if __name__ == "__main__":
    main()
