"""The budgets kernel: the plan that torch makes, to the token."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings

import trimtok_fast as tt
from benchmarks.workloads import make_tokens
from tests.kernel_harness import guarded, guarded_allocation, plant, simulated
from tests.test_budgets import alignment_of, problems, statistics_of
from trimtok_fast.backends import triton as triton_backend
from trimtok_fast.budgets import plan_of
from trimtok_fast.kernels import budgets
from trimtok_fast.segments import cumulative

BLOCK = budgets.launch_config()["BLOCK"]


def check_plan(images, samples, statistics, config):
    """The kernel's plan, which is the one of torch."""
    plan = triton_backend.plan_budgets(statistics, images, samples, config)
    wanted = plan_of(statistics, images, samples, config)
    for name, value in vars(wanted).items():
        found = getattr(plan, name)
        assert found.dtype == torch.int64 and found.tolist() == value.tolist(), name
    return plan


def many_images(sizes, texts, seed=0):
    """Samples of so many images each, of any size and diversity, some without any."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    images = cumulative(torch.randint(1, 700, (count,), generator=generator).tolist())
    samples = cumulative(sizes)
    diversity = torch.rand(count, generator=generator) * 2 * (torch.rand(count, generator=generator) > 0.1)
    lengths = torch.tensor(images.lengths)
    nonzero = (lengths * (1 - 0.3 * torch.rand(count, generator=generator))).long()
    variation = torch.rand(len(sizes), generator=generator)
    alignment = alignment_of(samples.of(images).lengths, texts)
    return images, samples, statistics_of(diversity.tolist(), variation.tolist(), nonzero.tolist(), alignment)


@settings(max_examples=25, deadline=None)
@given(problems())
def test_the_plan_of_torch(problem):
    check_plan(*problem)


@pytest.mark.parametrize(
    ("keep", "split"), [(0.01, "adaptive"), (0.2, "adaptive"), (0.2, 0.3), (0.7, 1.0), (1.0, 0.0)]
)
def test_more_images_than_a_tile(keep, split):
    config = tt.PruneConfig(keep_ratio=keep, stage_split=split, pool_fraction=0.3)
    plan = check_plan(*many_images([BLOCK + 3, 1, 2 * BLOCK], [True, False, False]), config)
    assert plan.image_budgets.sum() == plan.survivors.sum()


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_alike_images_share_by_remainder(count):
    images, samples = cumulative([7] * count), cumulative([count])
    statistics = statistics_of([0.5] * count, [0.1], [7] * count)
    plan = check_plan(images, samples, statistics, tt.PruneConfig(keep_ratio=0.33, stage_split=1.0))
    assert plan.image_budgets.diff().max() <= 0 if count > 1 else True


BY_HAND = [
    # sizes, diversity, nonzero, text, options
    ([10, 30, 60], [1.0, 0.0, 0.0], [10, 30, 60], False, dict(keep_tokens=40, stage_split=1.0)),
    ([10, 40, 40], [2.0, 0.1, 0.1], [10, 40, 40], False, dict(keep_tokens=50, stage_split=1.0)),
    ([50, 50], [0.5, 0.5], [50, 50], True, dict(stage_split=1.0)),
    ([50, 50], [0.125, 0.375], [50, 50], True, dict(pool_fraction=0.5)),
    ([10, 30, 60], [1.0, 4e-6, 0.0], [10, 30, 60], False, dict(keep_tokens=40, stage_split=1.0)),
]


@pytest.mark.parametrize(
    ("sizes", "diversity", "nonzero", "text", "options"),
    BY_HAND,
    ids=["full", "hands on", "floors", "text", "rounding"],
)
def test_by_hand(sizes, diversity, nonzero, text, options):
    statistics = statistics_of(diversity, [0.5], nonzero, alignment_of([sum(sizes)], [text]))
    check_plan(cumulative(sizes), cumulative([len(sizes)]), statistics, tt.PruneConfig(**options))


def test_the_threshold_of_diversity_in_fp64():
    statistics = statistics_of([5e-6, 0.0], [0.5], [90, 90])
    statistics = dataclasses.replace(statistics, diversity=torch.tensor([5e-6, 0.0], dtype=torch.float64))
    config = tt.PruneConfig(keep_tokens=60, stage_split=1.0)
    check_plan(cumulative([90, 90]), cumulative([2]), statistics, config)


def test_weights_far_apart():
    sizes, config = [1, 1, 1, 100_000, 90], tt.PruneConfig(keep_tokens=50_001, stage_split=1.0)
    statistics = statistics_of([2.0, 0.0, 0.0, 1e-5, 2.0], [0.5], sizes)
    check_plan(cumulative(sizes), cumulative([5]), statistics, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("diversity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("variation", [0.01, torch.inf, torch.nan])
def test_where_a_statistic_is_undefined_or_0(variation, diversity, dtype):
    statistics = statistics_of([diversity] * 3, [variation], [9] * 3)
    statistics = dataclasses.replace(
        statistics, diversity=statistics.diversity.to(dtype), variation=statistics.variation.to(dtype)
    )
    check_plan(cumulative([9] * 3), cumulative([3]), statistics, tt.PruneConfig())


def test_statistics_of_tokens_in_strided_memory():
    tokens, text = make_tokens("photo-like", 90, 16), make_tokens("noise", 4, 16, seed=1)
    cu_tokens, cu_images = [0, 20, 41, 90], [0, 2, 3]
    found = tt.token_statistics(tokens, cu_tokens, cu_images, text=text, cu_text=[0, 4, 4])
    names = ("diversity", "variation", "nonzero", "alignment")
    found = dataclasses.replace(found, **{name: guarded(getattr(found, name), 2) for name in names})
    images, samples = cumulative([20, 21, 49]), cumulative([2, 1])
    check_plan(images, samples, found, tt.PruneConfig())


def test_compiled_code():
    problem = many_images([BLOCK + 3, 2], [True, False])
    with simulated():
        check_plan(*problem, tt.PruneConfig(pool_fraction=0.3))
        check_plan(*problem, tt.PruneConfig(stage_split=0.3))


def test_nothing_is_written_beside_the_plan():
    problem = many_images([3, BLOCK + 1, 2], [False, True, False])
    with guarded_allocation():
        check_plan(*problem, tt.PruneConfig())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("tl.where(with_text, images, 0)", "0", id="floors without text"),
        pytest.param("with_text = alignment == alignment", "with_text = alignment != alignment", id="text"),
        pytest.param(
            "diversity - ZERO_DIVERSITY / 2 > 0", "diversity > -1.0", id="diversity that is rounding"
        ),
        pytest.param("tl.maximum(survivors, kept), floor_sum)", "survivors, kept)", id="floors of stage 1"),
        pytest.param("full <= survivors", "full < 0", id="all with weight are full"),
        pytest.param("reached <= survivors, level, low", "reached <= kept, level, low", id="another total"),
        pytest.param("/ SHARE_TOLERANCE + 0.5", "/ SHARE_TOLERANCE * 0.0", id="no remainders"),
        pytest.param("other[None, :] < own[:, None]", "other[None, :] > own[:, None]", id="ties to the last"),
        pytest.param("split * tl.log2", "0.5 * tl.log2", id="the split"),
        pytest.param("fixed) / tl.where(", "fixed) * 0.9 / tl.where(", id="not solved again"),
        pytest.param("(farther == farther) & (mean > 0)", "mean >= 0", id="undefined variation"),
        pytest.param("fraction * (survivors - kept)", "(survivors - kept)", id="the pool's share"),
    ],
)
def test_a_planted_fault_is_caught(old, new, monkeypatch, tmp_path):
    plant(monkeypatch, budgets, old, new, tmp_path)
    with pytest.raises(AssertionError):
        for keep, split in ((0.2, "adaptive"), (0.7, 1.0)):
            test_more_images_than_a_tile(keep, split)
        test_alike_images_share_by_remainder(BLOCK + 1)
        test_where_a_statistic_is_undefined_or_0(torch.nan, 0.5, torch.float32)
        for case in BY_HAND:
            test_by_hand(*case)
