"""Budgets: exact totals, floors, caps and proportions on arbitrary input, and cases done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trimtok_fast as tt
from benchmarks.workloads import make_tokens
from trimtok_fast.budgets import plan_of, pools_at_most, survivors_at_most
from trimtok_fast.segments import Segments, cumulative
from trimtok_fast.statistics import TokenStatistics

diversities = st.sampled_from([0.0, 1e-5, 0.5, 2.0]) | st.floats(0, 2, width=32)


def statistics_of(diversity, variation, nonzero, alignment=None):
    """Statistics as budgets see them."""
    nothing = torch.empty(0)
    return TokenStatistics(
        None,
        nothing,
        nothing,
        torch.tensor(nonzero),
        torch.tensor(diversity),
        torch.tensor(variation),
        alignment,
    )


def alignment_of(sizes, texts):
    """Alignments of samples of these sizes, NaN in those without text; none without any text."""
    if not any(texts):
        return None
    return torch.cat(
        [torch.full((size,), 0.0 if text else math.nan) for size, text in zip(sizes, texts, strict=True)]
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
        text_share=draw(st.floats(0, 1)),
    )
    nonzero = [draw(st.integers(0, length)) for length in lengths]
    diversity = [draw(diversities) for _ in lengths]
    variation = [draw(diversities | st.just(math.nan)) for _ in shape]
    alignment = alignment_of(samples.of(images).lengths, [draw(st.booleans()) for _ in shape])
    return images, samples, statistics_of(diversity, variation, nonzero, alignment), config


def check_plan(images, samples, statistics, config):
    """Everything that METHOD §2 promises of a plan, and what is said of it from shapes alone."""
    plan = plan_of(statistics, images, samples, config)
    starts = samples.of(images).offsets[:-1]
    texts = [statistics.alignment is not None and not statistics.alignment[row].isnan() for row in starts]
    bounds = survivors_at_most(plan.keep.tolist(), images, samples, texts, config)
    pools = pools_at_most(plan.keep.tolist(), bounds, texts, config)
    significant = statistics.diversity > 5e-6  # token_statistics gives nothing between 0 and 1e-5
    weights = (statistics.nonzero * statistics.diversity.double() * significant).tolist()
    budgets = plan.image_budgets.tolist()
    assert plan.keep.tolist() == tt.kept_counts(images.offsets, samples.offsets, config=config)
    for sample, span in enumerate(samples):
        lengths, own = images.lengths[span], budgets[span]
        base = [min(config.min_tokens_per_image, length) for length in lengths]
        text, bound = texts[sample], bounds[sample]
        keep, survivors, pool = (int(x[sample]) for x in (plan.keep, plan.survivors, plan.pool))
        total = sum(lengths)
        floors = base
        if text:
            share = (1 - config.text_share) * (keep - sum(base)) / max(total - sum(base), 1)
            anchors = [
                low + math.floor(share * (m - low) + 1e-9) for low, m in zip(base, lengths, strict=True)
            ]
            assert sum(anchors) <= keep
            seeds = [math.floor(keep * m / total + 1e-9) for m in lengths]
            floors = [min(sum(pair), m) for *pair, m in zip(anchors, seeds, lengths, strict=True)]
        inside = sum(statistics.diversity.double()[span] * significant[span]) / len(lengths)
        across = float(statistics.variation[sample])
        farther = max(across * (1 - inside), 0.0)  # NaN comes first, and stays
        differ = 1.0 if math.isnan(across) or inside == 0 else min(3 * farther / float(inside), 1.0)
        weight = 0.5 if text else 0.5 + 0.5 * differ
        weight = weight if config.stage_split == "adaptive" else config.stage_split
        wanted = total * (keep / total) ** float(weight) + 0.5
        assert survivors in {
            min(max(math.floor(wanted + e), keep, sum(floors)), total) for e in (-1e-6, 1e-6)
        }
        assert pool == keep + text * math.floor(config.pool_fraction * (survivors - keep) + 0.5)
        assert max(1, sum(base)) <= keep <= pool <= survivors <= bound <= sum(lengths)
        assert pool <= pools[sample] <= bound
        if text or config.stage_split != "adaptive":  # the split hangs on no statistics
            assert bound <= survivors + 1 and pools[sample] <= pool + 1
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
                None if statistics.alignment is None else statistics.alignment[samples.of(images)[sample]],
            ),
            cumulative(images.lengths[span]),
            Segments((0, span.stop - span.start)),
            config,
        )
        assert together.image_budgets[span].tolist() == alone.image_budgets.tolist()
        assert (together.survivors[sample], together.pool[sample]) == (alone.survivors[0], alone.pool[0])


def plan(lengths, diversity, variation, nonzero=None, text=False, **options):
    """The plan of one sample."""
    alignment = alignment_of([sum(lengths)], [text])
    statistics = statistics_of(diversity, [variation], nonzero or list(lengths), alignment)
    return check_plan(cumulative(lengths), Segments((0, len(lengths))), statistics, tt.PruneConfig(**options))


def test_by_hand():
    # D_intra = 1/4, and tokens of two images are 1/18 · (1 − 1/4) = 1/24 farther apart, a sixth of it:
    # w = 1/2 + 1/2 · 3/6 = 3/4, B = 20, B_1 = 100 · 0.2^0.75 = 29.9 -> 30; without text P = B.
    out = plan([50, 50], [0.125, 0.375], 1 / 18)
    assert (out.keep.tolist(), out.survivors.tolist(), out.pool.tolist()) == ([20], [30], [20])
    assert out.image_budgets.tolist() == [8, 22]  # 7.5 and 22.5: the odd token goes to the lower image


def test_by_hand_with_text():
    # w = 1/2: B_1 = 100 · 0.2^0.5 = 44.7 -> 45, P = 20 + 12.5 -> 33. Of each image 1 + ⌊0.5 · 18 · 49/98⌋ = 5
    # stay for the image and ⌊20 · 50/100⌋ = 10 survive for the text: at least 15, and 33.75 is the other's.
    out = plan([50, 50], [0.125, 0.375], 1 / 18, text=True, pool_fraction=0.5)
    assert (out.keep.tolist(), out.survivors.tolist(), out.pool.tolist()) == ([20], [45], [33])
    assert out.image_budgets.tolist() == [15, 30]


def test_what_is_set_aside_binds_even_where_the_split_leaves_less():
    out = plan([50, 50], [0.5, 0.5], 1.0, text=True, stage_split=1.0)
    assert (out.keep.tolist(), out.survivors.tolist(), out.image_budgets.tolist()) == ([20], [30], [15, 15])


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


@pytest.mark.parametrize(("variation", "survivors"), [(math.nan, 20), (0.0, 45), (1 / 3, 20), (0.5, 20)])
def test_stage_1_does_all_where_images_differ_or_variation_is_undefined(variation, survivors):
    # 100 · 0.2^(1/2) = 44.7; no variation at all leaves half of the pruning to stage 2.
    assert plan([50, 50], [0.5, 0.5], variation).survivors.item() == survivors


def test_a_constant_vector_on_every_token_leaves_the_split_alone():
    tokens = make_tokens("clusters", 400, 32) + 0.1 * make_tokens("noise", 8, 32).repeat_interleave(50, 0)
    offset = 30 * torch.nn.functional.normalize(make_tokens("noise", 1, 32, seed=1))
    found = [tt.prune(x, range(0, 401, 50)).plan.survivors.item() for x in (tokens, tokens + offset)]
    assert found[0] > 80 and abs(found[0] - found[1]) <= 0.1 * found[0]


def test_images_without_diversity_are_left_to_stage_1():
    assert plan([50, 50], [0.0, 0.0], 0.0).survivors.item() == 20


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
