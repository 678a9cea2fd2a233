"""What the kernels compile to, on targets that need not be there: `trimtok kernels` and its budgets."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from itertools import accumulate
from pathlib import Path

import pytest

from trimtok_fast.inspection import DTYPES
from trimtok_fast.inspection.devices import TARGETS

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (896, 1280, 3584, 8192)
#: What every run of the suite compiles; `make test-all` takes the rest.
ALWAYS = {(target, 3584, "bf16") for target in ("sm_90", "gfx942")}
#: Only loads tell fp16 from bf16, and only fp32 has other blocks: fp16 goes with one width.
EVERY = [
    pytest.param(*case, id="-".join(map(str, case)), marks=() if case in ALWAYS else pytest.mark.slow)
    for case in ((target, dim, dtype) for target in TARGETS for dim in WIDTHS for dtype in DTYPES)
    if case[2] != "fp16" or case[1] == 3584
]


def run_python(*arguments, status=0):
    """A process in which kernels are compiled: this one may interpret them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode in (status, 0), done.stderr[-3000:]
    return done.stdout


@functools.cache
def inspect(target, dim, dtype):
    options = ["--target", target, "--dim", str(dim), "--dtype", dtype]
    return json.loads(run_python("-m", "trimtok_fast", "kernels", "--json", *options, status=1))


@pytest.mark.parametrize(("target", "dim", "dtype"), EVERY)
def test_every_kernel_keeps_its_budgets(target, dim, dtype):
    """No spills, shared memory that is there, matrix instructions, loads of 128 bits, loops that end."""
    found = inspect(target, dim, dtype)
    assert found["broken"] == []
    assert all(0 < kernel["occupancy"] <= 1 for kernel in found["kernels"])
    assert all(0 < seconds < 10 for floor in found["floors"] for seconds in floor["seconds"].values())


def test_no_kernel_is_left_out():
    defined = {
        f"{path.stem}.{name}"
        for path in (ROOT / "kernels").glob("*.py")
        for name in re.findall(r"^def _(\w+)_kernel\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    inspected = {
        f"{kernel['module']}.{kernel['kernel']}" for kernel in inspect("sm_90", 3584, "bf16")["kernels"]
    }
    assert inspected == defined


def prompts(count):
    """Random prompts: images of all sizes, some to a sample, with text or without, any share kept."""
    draw = random.Random(0)
    for number in range(count):
        # Where no similarities can be stored, a pick takes launches of its own: few and small images there.
        stored = number % 25 > 0
        largest = [256, 1024, 4096] if stored else [64]
        images = [draw.randint(1, draw.choice(largest)) for _ in range(draw.randint(1, 8))]
        cu_images = sorted({0, len(images), *draw.choices(range(len(images) + 1), k=draw.randint(0, 2))})
        words = [draw.randint(0, 90) for _ in cu_images[1:]] if draw.random() < 0.8 else None
        yield images, cu_images, words, draw.uniform(0.05, 0.9), 2**29 if stored else 0


def variants(dtype):
    """How often each kernel would be compiled over 50 prompts, pruned and gathered without any value."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    import trimtok_fast as tt
    from tests.ptxsim.aot import describe_argument, specialization_of
    from trimtok_fast.backends import triton as backend
    from trimtok_fast.kernels import common, rounds

    known, seen = set(), defaultdict(set)

    def specialise(kernel, *arguments, grid, warmup, **options):
        # Each objective is an op of its own.
        module, objective = kernel.__module__.rpartition(".")[2], options.get("OBJECTIVE", "")
        name = f"{module}.{kernel.__name__} {objective}".strip()
        launch = repr((name, [*map(describe_argument, (*arguments, *options.values()))]))
        if launch not in known:
            known.add(launch)
            seen[name].add(specialization_of(kernel, *arguments, target="sm_90", **options))

    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(type(common.row_norm), "run", specialise)
        patch.setattr(common, "platform", lambda: "cuda")
        patch.setattr(common, "capability", lambda: 90)
        patch.setattr(rounds, "planned_rounds", lambda *sizes: 2)  # a round after another is launched alike
        patch.setattr(backend, "INTERPRETED", True)  # so that it takes tensors of the CPU
        for images, cu_images, words, share, workspace_bytes in prompts(50):
            tokens = torch.empty(sum(images), 3584, dtype=DTYPES[dtype])
            text = None if words is None else torch.empty(sum(words), 3584, dtype=tokens.dtype)
            out = tt.prune(
                tokens,
                [0, *accumulate(images)],
                cu_images,
                text=text,
                cu_text=None if words is None else [0, *accumulate(words)],
                config=tt.PruneConfig(keep_ratio=share, workspace_bytes=workspace_bytes, check_finite=False),
                backend="triton",
            )
            backend.gather_tokens(tokens, out.indices)
    return {name: len(forms) for name, forms in seen.items()}


@pytest.mark.parametrize(
    "dtype", [pytest.param(d, marks=() if d == "bf16" else pytest.mark.slow) for d in DTYPES]
)
def test_no_kernel_is_compiled_more_than_twice_over_50_prompts(dtype):
    code = f"import json, tests.test_compiled_kernels as t; print(json.dumps(t.variants({dtype!r})))"
    counts = json.loads(run_python("-c", code))
    kernels = {
        name: sum(n for key, n in counts.items() if key.split()[0] == name)
        for name in {key.split()[0] for key in counts}
    }
    assert {"greedy._fused_kernel", "greedy._staged_kernel", "absorb._absorb_kernel"} < set(kernels)
    # Of each objective there is one for few tokens and one for many.
    assert counts["greedy._staged_kernel coverage"] == counts["greedy._staged_kernel max_min"] == 2
    del kernels["greedy._staged_kernel"]
    assert {name: count for name, count in kernels.items() if count > 2} == {}
