"""Budgets: exact totals, floors, caps and proportions on arbitrary input, and cases done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trimtok_fast as tt
from trimtok_fast.budgets import plan_of
from trimtok_fast.segments import Segments, cumulative
from trimtok_fast.statistics import TokenStatistics

diversities = st.sampled_from([0.0, 1e-5, 0.5, 2.0]) | st.floats(0, 2, width=32)


def statistics_of(diversity, variation, nonzero):
    """Statistics as budgets see them."""
    nothing = torch.empty(0)
    return TokenStatistics(
        None, nothing, nothing, torch.tensor(nonzero), torch.tensor(diversity), torch.tensor(variation), None
    )


@st.composite
def problems(draw):
    """A batch of samples: images, their sizes and statistics, and a config."""
    shape = draw(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=3))
    lengths = [length for sample in shape for length in sample]
    images, samples = cumulative(lengths), cumulative([len(sample) for sample in shape])
    floor = draw(st.integers(0, 4))
    config = tt.PruneConfig(
        keep_ratio=draw(st.floats(1e-6, 1.0)),
        min_tokens_per_image=floor,
        pool_fraction=draw(st.floats(0, 1)),
        stage_split=draw(st.just("adaptive") | st.floats(0, 1)),
    )
    nonzero = [draw(st.integers(0, length)) for length in lengths]
    diversity = [draw(diversities) for _ in lengths]
    variation = [draw(diversities | st.just(math.nan)) for _ in shape]
    return images, samples, statistics_of(diversity, variation, nonzero), config


def check_plan(images, samples, statistics, config):
    """Everything that METHOD §2 promises of a plan."""
    plan = plan_of(statistics, images, samples, config)
    significant = statistics.diversity > 5e-6  # token_statistics gives nothing between 0 and 1e-5
    weights = (statistics.nonzero * statistics.diversity.double() * significant).tolist()
    budgets = plan.image_budgets.tolist()
    assert plan.keep.tolist() == tt.kept_counts(images.offsets, samples.offsets, config=config)
    for sample, span in enumerate(samples):
        lengths, own = images.lengths[span], budgets[span]
        floors = [min(config.min_tokens_per_image, length) for length in lengths]
        keep, survivors, pool = (int(x[sample]) for x in (plan.keep, plan.survivors, plan.pool))
        total = sum(lengths)
        inside = sum(statistics.diversity.double()[span] * significant[span]) / len(lengths)
        across = float(statistics.variation[sample])
        share = 0.5 if math.isnan(across) or inside + across == 0 else across / (inside + across)
        weight = share if config.stage_split == "adaptive" else config.stage_split
        wanted = total * (keep / total) ** float(weight) + 0.5
        assert survivors in {min(max(math.floor(wanted + e), keep), total) for e in (-1e-6, 1e-6)}
        assert pool == keep + math.floor(config.pool_fraction * (survivors - keep) + 0.5)
        assert max(1, sum(floors)) <= keep <= pool <= survivors <= sum(lengths)
        assert sum(own) == survivors
        assert all(low <= budget <= high for low, budget, high in zip(floors, own, lengths, strict=True))
        # In proportion: of two images that are neither at their floor nor full, none is a token ahead of its
        # share.
        free = [
            (budget, weight)
            for budget, weight, low, high in zip(own, weights[span], floors, lengths, strict=True)
            if low < budget < high and weight > 0
        ]
        for budget, weight in free:
            for other, other_weight in free:
                assert (budget - 1) / weight <= (other + 1) / other_weight * (1 + 1e-6)
        # An image without weight gets more than its floor only when every image with weight is full.
        starving = any(w > 0 and b < m for w, b, m in zip(weights[span], own, lengths, strict=True))
        for budget, weight, low in zip(own, weights[span], floors, strict=True):
            assert not (starving and weight == 0 and budget > low)
    return plan


@given(problems())
def test_totals_are_exact_and_shares_proportional(problem):
    check_plan(*problem)


@given(problems())
def test_a_batch_plans_each_sample_as_if_alone(problem):
    images, samples, statistics, config = problem
    together = plan_of(statistics, images, samples, config)
    for sample, span in enumerate(samples):
        alone = plan_of(
            statistics_of(
                statistics.diversity[span].tolist(),
                statistics.variation[sample : sample + 1].tolist(),
                statistics.nonzero[span].tolist(),
            ),
            cumulative(images.lengths[span]),
            Segments((0, span.stop - span.start)),
            config,
        )
        assert together.image_budgets[span].tolist() == alone.image_budgets.tolist()
        assert (together.survivors[sample], together.pool[sample]) == (alone.survivors[0], alone.pool[0])


def plan(lengths, diversity, variation, nonzero=None, **options):
    """The plan of one sample."""
    statistics = statistics_of(diversity, [variation], nonzero or list(lengths))
    return check_plan(cumulative(lengths), Segments((0, len(lengths))), statistics, tt.PruneConfig(**options))


def test_by_hand():
    # B = 20, w = 0.75 / (0.25 + 0.75) = 3/4, B_1 = 100 · 0.2^0.75 = 29.9 -> 30, P = 20 + 5.
    out = plan([50, 50], [0.125, 0.375], 0.75)
    assert (out.keep.tolist(), out.survivors.tolist(), out.pool.tolist()) == ([20], [30], [25])
    assert out.image_budgets.tolist() == [8, 22]  # 7.5 and 22.5: the odd token goes to the lower image


def test_totals_are_exact_however_far_apart_the_weights_are():
    out = plan([1, 1, 1, 100_000, 90], [2.0, 0.0, 0.0, 1e-5, 2.0], 0.5, keep_tokens=50_001, stage_split=1.0)
    assert out.image_budgets.sum() == 50_001


def test_a_full_image_hands_its_share_on():
    out = plan([10, 40, 40], [2.0, 0.1, 0.1], 1.0, keep_tokens=50, stage_split=1.0)
    assert out.image_budgets.tolist() == [10, 20, 20]


def test_when_all_with_weight_are_full_the_rest_goes_by_size():
    out = plan([10, 30, 60], [1.0, 0.0, 0.0], 1.0, keep_tokens=40, stage_split=1.0)
    assert out.image_budgets.tolist() == [10, 10, 20]


def test_no_diversity_anywhere_splits_by_size():
    out = plan([10, 30, 60], [0.0, 0.0, 0.0], 0.0, keep_tokens=50, stage_split=1.0)
    assert out.image_budgets.tolist() == [5, 15, 30]


def test_zero_tokens_do_not_count_in_the_weights():
    out = plan([100, 100], [1.0, 1.0], 1.0, nonzero=[20, 60], keep_tokens=40, stage_split=1.0)
    assert out.image_budgets.tolist() == [10, 30]


@pytest.mark.parametrize(("variation", "survivors"), [(math.nan, 45), (0.0, 100), (0.5, 45)])
def test_the_split_is_even_where_variation_is_undefined(variation, survivors):
    # 100 · 0.2^(1/2) = 44.7; no variation at all leaves everything to stage 2.
    assert plan([50, 50], [0.5, 0.5], variation).survivors.item() == survivors


def test_no_diversity_and_no_variation_split_evenly():
    assert plan([50, 50], [0.0, 0.0], 0.0).survivors.item() == 45


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep_ratio": 0.2}, [20, 1]),
        ({"keep_ratio": 0.125}, [13, 1]),  # 12.5 is rounded up
        ({"keep_ratio": 0.145}, [15, 1]),  # 14.5 too, which is 14.499... in binary
        ({"keep_ratio": 1.0}, [100, 3]),
        ({"keep_ratio": 1e-9}, [2, 1]),  # every image keeps one
        ({"keep_ratio": 1e-9, "min_tokens_per_image": 0}, [1, 1]),  # but something stays
        ({"keep_ratio": 1e-9, "min_tokens_per_image": 70}, [100, 3]),  # 60 + 40: both below the floor
        ({"keep_tokens": 7}, [7, 3]),
    ],
    ids=str,
)
def test_kept_counts_by_hand(options, expected):
    assert tt.kept_counts([0, 60, 100, 103], [0, 2, 3], config=tt.PruneConfig(**options)) == expected


def test_a_ratio_of_counts_keeps_that_count():
    for size in range(1, 200):
        for kept in range(1, size + 1):
            config = tt.PruneConfig(keep_ratio=kept / size)
            assert tt.kept_counts([0, size], config=config) == [kept]
