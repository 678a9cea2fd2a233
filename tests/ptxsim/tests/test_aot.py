"""Compilation ahead of time, reports, and the child process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ptxsim import PtxsimError, aot, compile_for, resource_report
from tests.ptxsim.tests import sample_kernels as kernels

ROOT = Path(__file__).resolve().parents[3]


def test_specialisation_follows_the_arguments():
    x = torch.zeros(1024)
    aligned = compile_for(kernels.add_kernel, x, x, x, 1024, BLOCK=512)
    assert [["tt.divisibility", 16]] == aligned.attributes["n"] == aligned.attributes["x"]
    odd = compile_for(kernels.add_kernel, x[1:], x, x, 1000, BLOCK=512)
    assert not odd.attributes.get("x") and not odd.attributes.get("n")
    assert odd.attributes["y"]
    assert "ld.global.v4" in aligned.ptx and "ld.global.v4" not in odd.ptx
    one = compile_for(kernels.add_kernel, x, x, x, 1, BLOCK=512)
    assert one.signature["n"] == "constexpr" and one.constants["n"] == 1
    assert compile_for(kernels.add_kernel, x, x, x, 2**40, BLOCK=512).signature["n"] == "i64"
    assert aligned.signature["x"] == "*fp32"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.bool, "*u1"),
        (torch.int8, "*i8"),
        (torch.uint8, "*u8"),
        (torch.int64, "*i64"),
        (torch.bfloat16, "*bf16"),
        (torch.float16, "*fp16"),
        (torch.float64, "*fp64"),
    ],
)
def test_dtypes(dtype, name):
    x = torch.zeros(64, dtype=dtype)
    assert (
        compile_for(kernels.strided_copy_kernel, x, x, 1, 64, 64, 1, 64, 1, BLOCK=64).signature["x"] == name
    )


def test_numpy_and_torch_compile_alike():
    x = np.zeros(100, np.float32)
    first = compile_for(kernels.add_kernel, x, x[4:], x[3:], 96, BLOCK=256)
    t = torch.zeros(100)
    assert compile_for(kernels.add_kernel, t, t[4:], t[3:], 96, BLOCK=256) is first


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
def test_resources_on_nvidia(target):
    a = torch.zeros(64, 64).half()
    code = compile_for(
        kernels.dot_kernel, a, a, torch.zeros(64, 64), 64, 64, 64, BM=64, BN=64, BK=32, target=target
    )
    report = resource_report(code)
    assert 16 <= report.registers <= 255
    if target != "sm_75":
        assert report.spill_bytes == 0
        assert report.uses("HMMA", "HGMMA", "UTCHMMA") > 0
        assert report.load_widths[128] > 0
        assert report.shared_bytes > 0


@pytest.mark.parametrize("target", ["gfx942", "gfx950", "gfx1100", "gfx1200"])
def test_resources_on_amd(target):
    a = torch.zeros(64, 64).half()
    code = compile_for(
        kernels.dot_kernel, a, a, torch.zeros(64, 64), 64, 64, 64, BM=64, BN=64, BK=32, target=target
    )
    report = resource_report(code)
    assert 16 <= report.registers <= 512
    assert report.details["vgpr_spill_count"] == 0
    assert report.uses("v_mfma", "v_wmma") > 0
    assert report.load_widths[128] > 0
    with pytest.raises(PtxsimError, match="no PTX"):
        code.ptx  # noqa: B018 - the property raises


def test_spills_are_seen():
    a = torch.zeros(128, 128).half()
    code = compile_for(
        kernels.dot_kernel,
        a,
        a,
        torch.zeros(128, 128),
        128,
        128,
        128,
        BM=128,
        BN=128,
        BK=32,
        num_warps=4,
        maxnreg=64,
    )
    report = resource_report(code)
    assert report.details["spill_loads"] > 0


def test_child_process_compiles_the_same():
    x = torch.zeros(1000)
    here = compile_for(kernels.softmax_kernel, x, x, 1000, 1000, BLOCK=1024)
    request = aot.Request(
        aot.reference_to(kernels.softmax_kernel),
        [aot.describe_argument(v) for v in (x, x, 1000, 1000)],
        {"BLOCK": 1024},
        "sm_80",
        {"num_warps": 4, "num_stages": 2},
    )
    assert aot._child().compile(request).ptx == here.ptx


def test_child_process_reports_errors():
    request = aot.Request(aot.reference_to(kernels.softmax_kernel), [1], {"BLOCK": 1000}, "sm_80", {})
    with pytest.raises(PtxsimError, match="softmax_kernel does not compile for sm_80"):
        aot._child().compile(request)


SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
if {late}: import triton
os.environ["TRITON_INTERPRET"] = "1"
import torch, triton, triton.language as tl
from tests.ptxsim import execute
from tests.ptxsim.tests import sample_kernels as kernels

@triton.jit
def double(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, 2 * tl.load(x + i))

if __name__ == "__main__":
    x = torch.randn(4, 1000)
    out = torch.zeros_like(x)
    report = execute(kernels.softmax_kernel, (4,), x, out, 1000, 1000, BLOCK=1024)
    assert (out - x.softmax(1)).abs().max() < 1e-7
    assert report.count("shfl") > 0
    y = torch.ones(64)
    execute(double, (1,), y, BLOCK=64)
    assert (y == 2).all()
    print("executed")
"""


@pytest.mark.parametrize("late", [False, True])
def test_execute_under_the_interpreter(late, tmp_path):
    """TRITON_INTERPRET=1 in the parent, set before or after importing triton; a kernel in the script too."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), late=late))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if not late:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "executed", done.stderr
