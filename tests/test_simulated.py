"""Whole ops with the code that the kernels compile to for an A100, executed on the CPU."""

from __future__ import annotations

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import make_tokens
from tests.kernel_harness import simulated, without_each_barrier

TOKENS = {
    name: make_tokens("photo-like", 70, 64, dtype=getattr(torch, name)) for name in ("float32", "bfloat16")
}


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_prune_as_ptx_keeps_what_the_textbook_keeps(dtype):
    tokens, text = TOKENS[dtype], make_tokens("noise", 5, 64, seed=3, dtype=TOKENS[dtype].dtype)
    arguments = dict(text=text, cu_text=[0, 3, 5], config=tt.PruneConfig(keep_ratio=0.4))
    with simulated() as reports:
        out = tt.prune(tokens, [0, 20, 41, 70], [0, 2, 3], backend="triton", **arguments)
    wanted = tt.prune(tokens, [0, 20, 41, 70], [0, 2, 3], backend="reference", **arguments)
    assert {report.kernel for report in reports} >= {"_sums_kernel", "_fused_kernel", "_pareto_kernel"}
    assert torch.equal(out.indices, wanted.indices)
    assert torch.equal(out.front, wanted.front)


@pytest.mark.parametrize(
    "objective", ["max_min", "coverage", pytest.param("max_mean", marks=pytest.mark.slow)]
)
def test_selection_past_the_workspace_as_ptx(objective):
    tokens = TOKENS["bfloat16"]
    arguments = dict(objective=objective, candidates=16)
    with simulated() as reports:
        picks, _ = tt.greedy_select(
            tokens, [0, 33, 70], [6, 9], workspace_bytes=0, backend="triton", **arguments
        )
    assert not {"_similarity_kernel", "_fused_kernel"} & {report.kernel for report in reports}
    assert torch.equal(picks, tt.greedy_select(tokens, [0, 33, 70], [6, 9], **arguments)[0])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["max_min", "coverage"])
def test_greedy_without_one_of_its_barriers_is_caught(objective):
    tokens = TOKENS["bfloat16"][:40]
    wanted, _ = tt.greedy_select(tokens, [0, 40], [8], objective=objective)

    def launch():
        picks, _ = tt.greedy_select(tokens, [0, 40], [8], objective=objective, backend="triton")
        assert torch.equal(picks, wanted)

    reports = without_each_barrier(launch, "fused")
    assert {"GlobalRace", "SharedRace"} & set(reports), reports
