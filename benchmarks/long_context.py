"""`prune` on 16, 64 and 256 images: the time of each stage, what is kept, and how far memory rises."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import trimtok_fast as tt
from benchmarks import checks, figures
from benchmarks.harness import growth, track
from benchmarks.machine import Peak, device, in_fresh_process
from benchmarks.options import Options
from benchmarks.report import bullets, duration, size, table, verdict
from benchmarks.workloads import make_tokens

WIDTH, KEEP, WORDS = 1024, 0.1, 16
#: As `prune` names its stages to a profiler.
STAGES = ("statistics", "budgets", "stage1", "stage2", "pareto")


@dataclass(frozen=True)
class Prompt:
    """One sample.

    Attributes:
        images: number of images.
        size: tokens of each.
        text: whether there is any.
    """

    images: int
    size: int
    text: bool

    def __str__(self) -> str:
        return f"{self.images} x {self.size:,} x {WIDTH:,}, {'with' if self.text else 'without'} text"


def prompts(quick: bool) -> list[Prompt]:
    """Images of one size, more and more of them; then fewer and larger ones."""
    shapes = [(4, 64), (8, 64), (16, 64)] if quick else [(16, 390), (64, 390), (256, 390), (64, 1562)]
    return [Prompt(*shape, text) for text in (False, True) for shape in shapes]


def measure(options: Options) -> dict[str, Any]:
    """Every prompt in a fresh process."""
    wanted = options.chosen(prompts(options.quick), lambda prompt: f"prune, {prompt}")
    found = [
        {"prompt": asdict(prompt), **in_fresh_process(measure_prompt, prompt)}
        for prompt in track(wanted, "long context", str)
    ]
    return {"prompts": found, "workspace": tt.PruneConfig().workspace_bytes, "targets": not options.quick}


def measure_prompt(prompt: Prompt) -> dict[str, Any]:
    """Time, memory and counts of one `prune`, after a small one: on a GPU after itself, which compiles."""
    count = prompt.images * prompt.size
    tokens = torch.empty(count, WIDTH, device=device())
    for image in range(prompt.images):
        rows = slice(image * prompt.size, (image + 1) * prompt.size)
        tokens[rows] = make_tokens("clusters", prompt.size, WIDTH, seed=image)
    boundaries = list(range(0, count + 1, prompt.size))
    text = make_tokens("noise", WORDS, WIDTH, seed=1000).to(tokens) if prompt.text else None
    config = tt.PruneConfig(keep_ratio=KEEP)
    if device() == "cuda":
        tt.prune(tokens, boundaries, text=text, config=config)
    else:
        tt.prune(tokens[:256], [0, 128, 256], text=text, config=config)
    with Peak() as peak, stopwatch() as seconds:
        out = tt.prune(tokens, boundaries, text=text, config=config)
    checks.assert_pruned(tokens, boundaries, text, config, out, whole=count <= 2**14)
    return {
        "tokens": count,
        "survivors": int((out.stage >= 1).sum()),
        "pool": int((out.stage >= 2).sum()),
        "kept": len(out.indices),
        "seconds": seconds,
        "peak_bytes": peak.grown,
        "input_bytes": tokens.nbytes,
    }


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds of each stage and of the whole, in place of the ranges that `prune` shows to a profiler."""
    seconds = dict.fromkeys((*STAGES, "whole"), 0.0)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = _now()
        yield
        seconds[name.removeprefix("trimtok::")] += _now() - start

    with mock.patch("trimtok_fast.pipeline.record_function", timed), timed("whole"):
        yield seconds


def _now() -> float:
    if device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def tables(results: dict[str, Any]) -> str:
    """A line a prompt, then what it should reach."""
    lines = []
    for entry in results["prompts"]:
        seconds, prompt = entry["seconds"], Prompt(**entry["prompt"])
        lines.append(
            [
                f"{prompt.images} x {prompt.size:,}",
                "yes" if prompt.text else "no",
                *(f"{entry[name]:,}" for name in ("tokens", "survivors", "pool", "kept")),
                *(duration(seconds[stage]) for stage in STAGES),
                duration(seconds["whole"]),
                size(entry["peak_bytes"]),
                size(entry["input_bytes"]),
            ]
        )
    header = [
        "images",
        "text",
        "tokens",
        "survivors",
        "pool",
        "kept",
        *STAGES,
        "whole",
        "peak memory",
        "input",
    ]
    text = f"Width {WIDTH:,}, fp32, keep {KEEP:.0%}. One run each.\n\n" + table(header, lines)
    return text + ("\n" + bullets(_targets(results)) if results["targets"] else "")


def _targets(results: dict[str, Any]) -> list[str]:
    found = []
    for text in (False, True):
        entries = [entry for entry in results["prompts"] if entry["prompt"]["text"] == text]
        alike = [entry for entry in entries if entry["prompt"]["size"] == entries[0]["prompt"]["size"]]
        sizes, where = [entry["tokens"] for entry in alike], "with text" if text else "without text"
        first = growth(sizes, [sum(entry["seconds"][stage] for stage in STAGES[:3]) for entry in alike])
        whole = growth(sizes, [entry["seconds"]["whole"] for entry in alike])
        if first is not None and whole is not None:
            found.append(
                f"{where}: up to stage 1 time grows as M^{first:.2f}, target at most 1.1, met: "
                f"{verdict(first <= 1.1)}; the whole as M^{whole:.2f}, target at most 2, "
                f"met: {verdict(whole <= 2)}"
            )
        known = [entry for entry in entries if entry["peak_bytes"] is not None]
        if known:
            worst = max(known, key=lambda entry: entry["peak_bytes"] - entry["input_bytes"])
            fits = worst["peak_bytes"] <= worst["input_bytes"] + results["workspace"]
            found.append(
                f"{where}: memory rises by {size(worst['peak_bytes'])}, target at most the input's "
                f"{size(worst['input_bytes'])} and the workspace's {size(results['workspace'])}, "
                f"met: {verdict(fits)}"
            )
    return found


def plot(results: dict[str, Any], path: Path) -> None:
    """Stacked bars of the stages, and memory beside its bound."""
    entries = results["prompts"]
    labels = []
    for entry in entries:
        prompt = Prompt(**entry["prompt"])
        labels.append(f"{prompt.images} x {prompt.size:,}\n{'with' if prompt.text else 'without'} text")
    with figures.saved(path, 1, 2, figsize=(12, 0.55 * len(entries) + 1.6)) as (figure, (left, right)):
        start = [0.0] * len(entries)
        for stage, colour in zip(
            STAGES, (figures.MUTED, "#444b52", figures.OURS, *figures.COLOURS), strict=False
        ):
            values = [entry["seconds"][stage] for entry in entries]
            left.barh(labels, values, left=start, color=colour, label=stage, height=0.7)
            start = [before + value for before, value in zip(start, values, strict=True)]
        for place, (end, entry) in enumerate(zip(start, entries, strict=True)):
            note = f"{duration(end)}, {entry['kept']:,} of {entry['tokens']:,} kept"
            left.annotate(note, (end, place), (4, 0), textcoords="offset points", va="center")
        left.set_xlim(0, 1.45 * max(start))
        left.set_title("Seconds of each stage")
        left.legend(loc="lower right", ncols=len(STAGES), fontsize=7.5)
        grown = [(entry["peak_bytes"] or 0) / 2**20 for entry in entries]
        bound = [(entry["input_bytes"] + results["workspace"]) / 2**20 for entry in entries]
        right.barh(labels, grown, color=figures.OURS, height=0.7, label="peak above the input")
        right.plot(bound, labels, "|", color="black", markersize=14, label="the input's own size + workspace")
        right.set_title("Memory, MiB")
        right.set_xlim(0, 1.1 * max(bound + grown))
        right.set_ylim(len(entries) + 0.6, -0.6)
        right.legend(loc="lower right", ncols=2, fontsize=7.5)
        right.set_yticklabels([])
        left.set_ylim(right.get_ylim())
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
        figure.suptitle(f"Long context: prune, width {WIDTH:,}, keep {KEEP:.0%}")
