"""`prune` on 64 images, up to 100,000 tokens: does it end, in how much memory, how does its time grow?"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

import trimtok_fast as tt
from benchmarks.workloads import make_tokens

IMAGES, WIDTH, KEEP = 64, 1024, 0.1


def sample(count: int) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Tokens of 64 images of one size, their boundaries, and 16 text tokens."""
    size = count // IMAGES
    tokens = torch.empty(IMAGES * size, WIDTH)  # filled in place: building it must not set the memory's peak
    for image in range(IMAGES):
        tokens[image * size : (image + 1) * size] = make_tokens("clusters", size, WIDTH, seed=image)
    return tokens, list(range(0, size * IMAGES + 1, size)), make_tokens("noise", 16, WIDTH, seed=1000)


def seconds(count: int) -> tuple[float, float]:
    """Time of stage 1 (statistics, budgets, the greedy of every image) and of the whole."""
    tokens, boundaries, text = sample(count)
    config = tt.PruneConfig(keep_ratio=KEEP)
    start = time.perf_counter()
    stats = tt.token_statistics(tokens, boundaries, text=text)
    plan = tt.plan_budgets(stats, boundaries, config=config)
    origin = stats.origin.expand(IMAGES, WIDTH) if stats.origin is not None else None
    tt.greedy_select(tokens, boundaries, plan.image_budgets, origin=origin, inverse_norm=stats.inverse_norm)
    middle = time.perf_counter()
    out = tt.prune(tokens, boundaries, text=text, config=config)
    end = time.perf_counter()
    assert len(out.indices) == tt.kept_counts(boundaries, config=config)[0]
    return middle - start, end - middle


def extra_bytes(count: int) -> tuple[int, int]:
    """Growth of the process's peak memory over `prune`, and the input's own size; in a fresh process."""
    code = f"from benchmarks.long_context import report_memory; report_memory({count})"
    grown, own = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    return int(grown), int(own)


def report_memory(count: int) -> None:
    """Print what `extra_bytes` reads."""
    tokens, boundaries, text = sample(count)
    tt.prune(tokens[: 64 * 10], list(range(0, 641, 10)), text=text)  # load what is loaded once
    before = peak_bytes()
    tt.prune(tokens, boundaries, text=text, config=tt.PruneConfig(keep_ratio=KEEP))
    print(peak_bytes() - before, tokens.nbytes)


def peak_bytes() -> int:
    """The process's largest resident size so far (Linux; `ru_maxrss` would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def facts(quick: bool) -> list[str]:
    """What was measured, in sentences."""
    counts = [count // (16 if quick else 1) // IMAGES * IMAGES for count in (25_000, 50_000, 100_000)]
    times = {count: seconds(count) for count in counts}
    first, last = counts[0], counts[-1]
    stage_1, whole = (math.log(times[last][i] / times[first][i], last / first) for i in (0, 1))
    grown, own = extra_bytes(last)
    workspace = tt.PruneConfig().workspace_bytes
    return [
        f"prune, {IMAGES} images, {last:,} x {WIDTH} fp32, keep {KEEP:.0%}, with text:"
        f" {times[last][1]:.1f} s, of which stage 1 (with statistics and budgets) {times[last][0]:.1f} s",
        f"from {first:,} to {last:,} tokens stage 1 grows as M^{stage_1:.2f} (target: at most 1.1),"
        f" the whole as M^{whole:.2f} (target: at most 2)",
        f"peak memory grows by {grown / 2**20:.0f} MiB (target: below the input's {own / 2**20:.0f} MiB"
        f" plus the workspace's {workspace / 2**20:.0f} MiB)",
    ]
