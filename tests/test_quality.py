"""The quality benchmark: every metric against values by hand, its tokens, its intervals and its tables."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("efficientnet_lite_pytorch", reason="the extra `demo` is not installed")

import trimtok_fast as tt
from benchmarks.quality import metrics, plot, study, tables
from benchmarks.quality.bootstrap import interval
from benchmarks.quality.choices import evenly_seeded
from benchmarks.quality.tokens import Pictures, crops, stereo, with_constant, with_scaled_channels
from benchmarks.workloads import make_tokens

HALF, QUARTER = math.log(0.5), math.log(0.25)
#: Two pictures of two tokens on the axes, and a zero token.
TOKENS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
BOUNDARIES = [0, 2, 5]


def test_the_classifier_reads_the_mean_of_what_is_kept():
    found = metrics.pooled(TOKENS, torch.tensor([0, 2, 3]), BOUNDARIES)
    assert found.tolist() == [[2.0, 0.0], [0.5, 2.0]]


def test_of_a_picture_that_lost_all_it_reads_zeros():
    assert metrics.pooled(TOKENS, torch.tensor([2]), BOUNDARIES).tolist() == [[0.0, 0.0], [0.0, 3.0]]


def test_divergence_by_hand():
    before = torch.tensor([[HALF, HALF], [HALF, HALF]])
    after = torch.tensor([[QUARTER, math.log(0.75)], [HALF, HALF]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert metrics.divergence(before, after).tolist() == pytest.approx([expected, 0.0], abs=1e-6)


def test_same_answer_by_hand():
    before, after = torch.tensor([[0.0, -1.0], [0.0, -1.0]]), torch.tensor([[-0.1, -2.0], [-2.0, -0.1]])
    assert metrics.same_answer(before, after).tolist() == [1.0, 0.0]


def test_distances_by_hand():
    # 45° between (1, 1) and either axis; the zero token has no distance.
    mean, largest = metrics.nearest_kept(TOKENS, torch.tensor([0]), BOUNDARIES)
    diagonal = 1 - math.sqrt(0.5)
    assert mean.tolist() == pytest.approx([0.5, (1 + diagonal) / 2], abs=1e-6)
    assert largest == pytest.approx(1.0)


def test_the_needle_test_by_hand():
    before = torch.tensor([[HALF, HALF], [math.log(0.2), math.log(0.8)]])
    after = torch.tensor([[HALF, HALF], [math.log(0.6), math.log(0.4)]])
    assert metrics.found(after, picture=1, label=1) == 0.0
    assert metrics.found(after, picture=1, label=0) == 1.0
    assert metrics.evidence(before, after, picture=1, label=1) == pytest.approx(0.5)
    assert metrics.evidence(before, after, picture=1, label=0) == 1.0, "more than there was is all"


def test_recall_by_hand():
    votes = torch.tensor([3.0, 1.0, 2.0, 0.0])
    assert metrics.recall(votes, torch.tensor([0, 1]), count=2) == 0.5


def test_the_second_view_apart_from_the_first_by_hand():
    kept = torch.tensor([0, 2, 3])  # (0, 3) and (1, 1) against (2, 0)
    assert metrics.apart(TOKENS, kept, boundary=2) == pytest.approx((1 + 1 - math.sqrt(0.5)) / 2, abs=1e-6)
    assert math.isnan(metrics.apart(TOKENS, torch.tensor([0, 1]), boundary=2))


def test_a_difference_that_is_the_same_everywhere_has_no_width():
    hard = np.arange(20.0)  # what is hard for both does not widen the interval
    assert interval(hard + 2, hard) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_is_that_of_the_mean():
    difference = np.random.default_rng(1).normal(0.0, 1.0, 400)
    mean, low, high = interval(difference, np.zeros(400))
    assert mean == pytest.approx(difference.mean())
    assert high - low == pytest.approx(2 * 1.96 * difference.std() / 20, rel=0.1)


def test_an_unpaired_interval_would_be_noticed(monkeypatch):
    """The planted fault: the two methods resampled apart."""

    def unpaired(first, second, seed=0):
        draw = np.random.default_rng(seed).integers(0, len(first), (2, 2000, len(first)))
        means = first[draw[0]].mean(1) - second[draw[1]].mean(1)
        return means.mean(), *np.quantile(means, [0.025, 0.975])

    monkeypatch.setitem(globals(), "interval", unpaired)
    with pytest.raises(AssertionError):
        test_a_difference_that_is_the_same_everywhere_has_no_width()


def test_projectors_do_what_they_say():
    tokens = make_tokens("noise", 40, 200)
    moved = with_constant(tokens, 3) - tokens
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-4, rtol=1e-4)
    assert moved[0].norm().item() == pytest.approx(3 * tokens.norm(dim=1).mean().item(), rel=1e-4)
    scale = with_scaled_channels(tokens) / tokens
    assert sorted(scale[0].round().tolist()) == [1.0] * 198 + [30.0] * 2


def test_crops_are_square_and_two_views_are_two():
    pictures = crops(30)
    assert len({name for name, _ in pictures}) == 30
    assert all(image.width == image.height for _, image in pictures)
    assert [name for name, _ in stereo()] == ["motorcycle left", "motorcycle right"]


class Reader:
    """A classifier of four classes, one an axis."""

    def log_probabilities(self, pooled):
        return pooled[..., :4].log_softmax(-1)

    def query(self, label):
        return torch.eye(8)[label : label + 1]


@pytest.fixture(scope="module")
def pictures():
    """Four pictures of 40 tokens; of two, a few tokens make a class that no other picture has."""
    tokens = 0.2 * make_tokens("noise", 160, 8).abs()
    for picture in range(4):
        tokens[40 * picture : 40 * picture + 4, min(picture, 3)] += 30.0
    tokens[40 * 3 : 40 * 3 + 4, 0] += 40.0  # the last is answered as the first is
    answers = Reader().log_probabilities(tokens.view(4, 40, 8).mean(1))
    return Pictures(["a", "b", "c", "d"], tokens, [0, 40, 80, 120, 160], answers)


def test_needles_are_answers_that_no_other_picture_shares(pictures):
    assert pictures.needles() == [(1, 1), (2, 2)]
    assert pictures.needles(likely=1.1) == []


def test_a_method_that_is_told_finds_its_needle(pictures):
    found = study.with_text(Reader(), pictures, study.OURS, 0.1, pictures.needles()).cases
    assert found["needle"] == [1.0, 1.0] and found["best 20"][0] > 0
    blind = study.with_text(Reader(), pictures, "uniform", 0.1, pictures.needles()).cases
    assert len(blind["needle"]) == 2


def test_keeping_all_loses_nothing(pictures):
    found = study.without_text(Reader(), pictures, study.OURS, 1.0)
    assert found.cases["KL"] == pytest.approx([0.0] * 4, abs=1e-6)
    assert found.cases["same answer"] == [1.0] * 4
    assert found.cases["mean distance"] == pytest.approx([0.0] * 4, abs=1e-6)


def test_even_seeds_are_among_what_is_kept(pictures):
    kept = evenly_seeded(pictures, 0.2, 1.0)
    assert len(kept) == tt.kept_counts(pictures.boundaries, config=tt.PruneConfig(keep_ratio=0.2))[0]
    assert {0, 40, 80, 120} <= set(kept.tolist())


def test_tables_mark_what_is_better_and_what_is_worse(tmp_path):
    def row(mean, difference=None):
        return {"mean": mean} if difference is None else {"mean": mean, "difference": difference}

    def scores(kl, other):
        metrics_of = {
            "same answer": row(0.9),
            "mean distance": row(0.1),
            "largest distance": 0.5,
            "needle": row(0.5),
            "evidence": row(0.5),
            "best 20": row(0.5),
        }
        return {
            "ours": {**metrics_of, "KL": row(kl)},
            "other": {**metrics_of, "KL": row(kl, other), "needle": row(0.9, (0.4, 0.1, 0.7))},
        }

    shares = {"0.2": scores(0.5, (0.1, 0.05, 0.2)), "0.1": scores(0.25, (-0.1, -0.2, 0.1))}
    results = {
        "pictures": 2,
        "tokens": 392,
        "seconds": 1.0,
        "queries": 2,
        "without text": shares,
        "spaces": {"changed": shares},
        "with text": shares,
        "crops": {"crops": 4, "queries": 2, "shares": shares},
        "stereo": {
            "0.2": {
                "ours": {
                    "first kept": 3,
                    "second kept": 1,
                    "second dropped": 0.75,
                    "apart": 0.5,
                    "mean distance": 0.1,
                }
            }
        },
    }
    text = tables(results)
    assert "*0.500* (+0.100 [+0.050, +0.200])" in text, "a KL above the default's is worse"
    assert "**0.900** (+0.400 [+0.100, +0.700])" in text, "a needle more is better"
    assert "| 0.250 (-0.100 [-0.200, +0.100])" in text, "an interval around 0 says nothing"
    assert "| 20% | ours | 3 | 1 | 75% | 0.500 | 0.100 |" in text
    plot(results, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 1000
