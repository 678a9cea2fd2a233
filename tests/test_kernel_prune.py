"""`prune` and `greedy_select` on kernels as a whole: all stages, segments that fit and one that does not."""

from __future__ import annotations

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import make_tokens
from tests.kernel_harness import launched
from tests.test_greedy import check_selection
from trimtok_fast.backends import triton_greedy
from trimtok_fast.config import OBJECTIVES

CU_TOKENS, CU_IMAGES, CU_TEXT = [0, 30, 31, 60, 90], [0, 2, 4], [0, 5, 5]
#: Two kinds of workspace: in the smaller one the first image fits, the samples do not.
WORKSPACES = {"in rounds": 20_000, "stored": 2**29}


def batch(dtype):
    """Two samples of two images, the second without text."""
    tokens = make_tokens("clusters", 90, 16, offset=1.0, dtype=dtype)
    return tokens, make_tokens("noise", 5, 16, seed=1, dtype=dtype)


@pytest.mark.parametrize("workspace_bytes", WORKSPACES.values(), ids=WORKSPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_prune_keeps_what_the_reference_keeps(dtype, workspace_bytes):
    tokens, text = batch(dtype)
    config = tt.PruneConfig(keep_ratio=0.2, workspace_bytes=workspace_bytes)
    found, expected = (
        tt.prune(tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=CU_TEXT, config=config, backend=backend)
        for backend in ("triton", "reference")
    )
    assert torch.equal(found.plan.image_budgets, expected.plan.image_budgets)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.stage, expected.stage)
    assert torch.equal(found.front, expected.front)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(found.distance, expected.distance, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        found.alignment, expected.alignment, rtol=tolerance, atol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize("workspace_bytes", [100_000, 2**29], ids=["in rounds", "stored"])
def test_buffers_hold_as_many_survivors_as_shapes_allow(workspace_bytes):
    tokens, text = make_tokens("clusters", 278, 16), make_tokens("noise", 5, 16, seed=1)
    config = tt.PruneConfig(keep_tokens=60, workspace_bytes=workspace_bytes)
    found, expected = (
        tt.prune(tokens, [0, 140, 278], text=text, config=config, backend=backend)
        for backend in ("triton", "reference")
    )
    assert found.plan.survivors.tolist() == [129], "one more than two tiles: with text the shapes say it"
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.stage, expected.stage)


def test_a_batch_on_kernels_equals_its_samples_alone():
    tokens, text = batch(torch.bfloat16)
    config = tt.PruneConfig(keep_ratio=0.2, workspace_bytes=20_000)
    together = tt.prune(
        tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=CU_TEXT, config=config, backend="triton"
    )
    first = tt.prune(tokens[:31].clone(), [0, 30, 31], text=text, config=config, backend="triton")
    second = tt.prune(tokens[31:].clone(), [0, 29, 59], config=config, backend="triton")
    assert torch.equal(together.indices, torch.cat([first.indices, second.indices + 31]))
    assert torch.equal(together.distance, torch.cat([first.distance, second.distance]))
    assert torch.equal(together.stage, torch.cat([first.stage, second.stage]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.01e18], ids=["nan", "inf", "huge"])
@pytest.mark.parametrize("argument", ["tokens", "text"])
def test_what_is_not_finite_is_refused_after_the_kernels_went_over_it(argument, value):
    tokens, text = batch(torch.float32)
    (tokens if argument == "tokens" else text)[2, 3] = value
    with pytest.raises(tt.InvalidInputError, match="row 2") as raised:
        tt.prune(tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=CU_TEXT, backend="triton")
    assert raised.value.argument == argument


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_segments_that_fit_the_workspace_beside_one_that_does_not(objective):
    tokens = make_tokens("clusters", 70, 12)
    found = check_selection(
        tokens, [0, 9, 60, 70], [3, 10, 10], objective, backend="triton", workspace_bytes=20_000
    )
    start = 0
    for low, high, budget in ((0, 9, 3), (9, 60, 10), (60, 70, 10)):
        alone = tt.greedy_select(
            tokens[low:high].clone(),
            [0, high - low],
            [budget],
            objective=objective,
            workspace_bytes=20_000,
            backend="triton",
        )
        own = slice(start, start + budget)
        assert torch.equal(found[0][own], alone[0] + low) and torch.equal(found[1][own], alone[1])
        start += budget


def test_max_min_of_more_tokens_than_a_program_should_stream_goes_in_rounds(monkeypatch):
    monkeypatch.setattr(triton_greedy, "ROUNDS_ABOVE", 30)
    tokens = make_tokens("clusters", 61, 12)
    with launched() as launches:
        check_selection(
            tokens, [0, 30, 61], [6, 7], "max_min", backend="triton", seeds=[3, 40], cu_seeds=[0, 1, 2]
        )
    assert {"fused", "absorb"} <= {launch.name for launch in launches}


def test_budgets_are_not_read_where_their_total_is_given():
    tokens = make_tokens("noise", 20, 8)
    budgets = torch.tensor([3, 2])
    picks, gain = tt.greedy_select(tokens, [0, 12, 20], budgets, total=9, backend="triton")
    expected, _ = tt.greedy_select(tokens, [0, 12, 20], budgets, backend="reference")
    assert picks.tolist() == [*expected.tolist(), -1, -1, -1, -1] and gain[5:].isnan().all()
    for wrong, error in ((budgets.float(), TypeError), (budgets[:1], ValueError)):
        with pytest.raises(error, match="budgets"):
            tt.greedy_select(tokens, [0, 12, 20], wrong, total=9, backend="triton")
