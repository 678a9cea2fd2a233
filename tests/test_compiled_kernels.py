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
from pathlib import Path

import pytest

from trimtok_fast.inspection import DTYPES
from trimtok_fast.inspection.devices import TARGETS

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (896, 1280, 3584, 8192)
#: What every run of the suite compiles; `make test-all` takes the rest.
ALWAYS = {(target, 3584, dtype) for target in ("sm_90", "gfx942") for dtype in ("bf16", "fp32")}
EVERY = [
    pytest.param(*case, id="-".join(map(str, case)), marks=() if case in ALWAYS else pytest.mark.slow)
    for case in ((target, dim, dtype) for target in TARGETS for dim in WIDTHS for dtype in DTYPES)
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


def count_variants(dtype):
    """The most variants of a kernel with the same compiled-in sizes, over 50 random prompts."""
    from trimtok_fast.inspection.compilation import compiling_for
    from trimtok_fast.inspection.workload import PRUNE, Workload

    generator = random.Random(0)
    variants = defaultdict(set)
    with compiling_for(TARGETS["sm_90"]) as launches:
        for _ in range(50):
            prompt = Workload(
                images=generator.randint(1, 12),
                tokens=generator.randint(8, 1200),
                dim=3584,
                dtype=dtype,
                keep=generator.uniform(0.05, 0.9),
                words=generator.randint(1, 300),
            )
            for step in PRUNE:
                prompt.steps()[step]()
                for launch in launches:
                    variants[f"{step}: {launch.module}.{launch.kernel} {launch.compiled_in}"].add(
                        id(launch.code)
                    )
                launches.clear()
    return {name: len(codes) for name, codes in variants.items()}


@pytest.mark.parametrize(
    "dtype", [pytest.param(d, marks=() if d == "bf16" else pytest.mark.slow) for d in DTYPES]
)
def test_sizes_of_a_prompt_are_not_compiled_in(dtype):
    code = f"import json, tests.test_compiled_kernels as t; print(json.dumps(t.count_variants({dtype!r})))"
    variants = json.loads(run_python("-c", code))
    assert len({name.split(":")[0] for name in variants}) == 5
    assert {name: count for name, count in variants.items() if count > 2} == {}
