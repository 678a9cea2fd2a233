"""`dpp_select` on the reference and the torch backend: determinants, rank, ties, batches, memory."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trimtok_fast as tt
from benchmarks.workloads import DTYPES, KINDS, SHAPES, make_tokens
from tests.kernel_harness import awkward
from tests.test_planted_faults import plant
from trimtok_fast.backends import dpp, reference
from trimtok_fast.backends import torch as torch_backend
from trimtok_fast.certificate import TOLERANCE

BACKENDS = ["reference", "torch"]


def weights(count, seed=5):
    """Relevances in [0, 1), none of them alike."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def vectors_of(tokens, relevance=None):
    """r û in fp64."""
    x, _ = reference.usable(tokens)
    unit = reference.directions_about(x, None, reference.inverse_norm_about(x, None))
    return unit if relevance is None else unit * relevance.double().nan_to_num().clamp(min=0)[:, None]


def by_determinants(tokens, relevance, budget):
    """The textbook of the textbook: the pick that makes the largest determinant."""
    vectors = vectors_of(tokens, relevance)
    picks = []
    for _ in range(budget):
        left = [i for i in range(len(tokens)) if i not in picks]
        dets = [torch.linalg.det((rows := vectors[[*picks, i]]) @ rows.T) for i in left]
        picks.append(left[int(torch.stack(dets).argmax())])
    return picks


def regret(tokens, relevance, picks):
    """The largest shortfall of a pick against the best at its step, as a share of the first; fp64."""
    left = vectors_of(tokens, relevance)
    first, worst, done = float(left.square().sum(1).max()), 0.0, []
    for pick in picks.tolist():
        value = left.square().sum(1)
        value[done] = 0
        worst = max(worst, float(value.max() - value[pick]) / max(first, 1e-30))
        done.append(pick)
        if value[pick] > 1e-9 * first:
            new = left[pick] / left[pick].norm()
            left = left - (left @ new)[:, None] * new
    return worst


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    # 2 leads; of 1 only the part across 2 is left, (0.9 · 0.6)²; copies of what is picked have nothing left
    tokens = torch.tensor([[0.0, 3.0], [0.8, 0.6], [2.0, 0.0], [2.0, 0.0]])
    relevance = torch.tensor([0.5, 0.9, 1.0, 0.2])
    picks, left = tt.dpp_select(tokens, [0, 4], [4], relevance=relevance, backend=backend)
    assert picks.tolist() == [2, 1, 0, 3]
    torch.testing.assert_close(left, torch.tensor([1.0, 0.2916, 0.0, 0.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [True, False], ids=["relevance", "no relevance"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_pick_makes_the_largest_determinant(kind, weighted, backend):
    tokens = make_tokens(kind, 40, 24, seed=2)
    tokens[0] *= 1  # lengths play no part
    relevance = weights(40) if weighted else None
    if not weighted:  # else the first pick is a tie of all
        relevance = 1 - 1e-4 * weights(40)
    picks, left = tt.dpp_select(tokens, [0, 40], [12], relevance=relevance, backend=backend)
    assert picks.tolist() == by_determinants(tokens, relevance, 12)
    product = torch.linalg.det((rows := vectors_of(tokens, relevance)[picks]) @ rows.T)
    torch.testing.assert_close(left.double().prod(), product, rtol=1e-4, atol=0)


def check_against_reference(tokens, cu_segments, budgets, relevance, backend="torch", **options):
    """Equal to the textbook, or as good at every pick."""
    arguments = dict(relevance=relevance, **options)
    picks, left = tt.dpp_select(tokens, cu_segments, budgets, backend=backend, **arguments)
    expected, expected_left = tt.dpp_select(tokens, cu_segments, budgets, backend="reference", **arguments)
    tolerance = TOLERANCE[tokens.dtype]
    start = 0
    for k, budget in enumerate(budgets):
        own, rows = slice(start, start + budget), slice(cu_segments[k], cu_segments[k + 1])
        assert len(set(picks[own].tolist())) == budget
        if torch.equal(picks[own], expected[own]):
            largest = float(expected_left[own].max()) if budget else 1.0
            torch.testing.assert_close(left[own], expected_left[own], rtol=0, atol=tolerance * largest)
        else:
            weight = None if relevance is None else relevance[rows]
            assert regret(tokens[rows], weight, picks[own] - rows.start) <= tolerance
        start += budget


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_torch_agrees_with_the_reference(count, width, dtype):
    tokens = make_tokens("clusters", count, width, dtype=dtype)
    for relevance in (weights(count), None):
        check_against_reference(tokens, [0, count], [max(1, count // 5)], relevance)


@pytest.mark.parametrize("candidates", [1, 3, 64, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_candidates_decides_no_pick(kind, candidates):
    tokens, relevance = make_tokens(kind, 500, 200), weights(500)
    picks, _ = tt.dpp_select(tokens, [0, 500], [150], relevance=relevance, backend="reference")
    found, _ = tt.dpp_select(
        tokens, [0, 500], [150], relevance=relevance, candidates=candidates, backend="torch"
    )
    assert torch.equal(found, picks)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64], ids=[*DTYPES, "fp64"])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_when_nothing_is_left_the_rest_goes_by_relevance(width, dtype, backend):
    tokens, relevance = make_tokens("noise", 600, width).to(dtype), weights(600)
    tokens[50] = 0
    picks, left = tt.dpp_select(tokens, [0, 600], [300], relevance=relevance, backend=backend)
    assert (left[:width] > 0).all() and (left[width:] == 0).all(), "the rank is the width"
    rest = relevance.clone()
    rest[picks[:width]] = -1
    assert picks[width:].tolist() == rest.argsort(descending=True)[: 300 - width].tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_copies_have_nothing_left(dtype, backend):
    tokens, relevance = make_tokens("noise", 60, 90, dtype=dtype).repeat(2, 1), weights(60).repeat(2)
    picks, left = tt.dpp_select(tokens, [0, 120], [120], relevance=relevance, backend=backend)
    assert sorted(picks[:60].tolist()) == list(range(60)) and (left[:60] > 0).all()
    assert (left[60:] == 0).all()
    assert picks[60:].tolist() == (relevance[:60].argsort(descending=True) + 60).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_larger_relevance_then_to_the_lowest_row(backend):
    tokens = torch.eye(6)[[0, 0, 1, 2, 3, 3]]
    assert tt.dpp_select(tokens, [0, 6], [6], backend=backend)[0].tolist() == [0, 2, 3, 4, 1, 5]
    relevance = torch.tensor([0.5, 0.5, 0.5, 1.0, 0.0, 0.0])
    picks, left = tt.dpp_select(tokens, [0, 6], [6], relevance=relevance, backend=backend)
    assert picks.tolist() == [3, 0, 2, 1, 4, 5]
    assert left.tolist() == [1.0, 0.25, 0.25, 0.0, 0.0, 0.0]
    none = torch.zeros(4, 3)
    assert tt.dpp_select(none, [0, 4], [3], backend=backend)[0].tolist() == [0, 1, 2]


def test_of_equal_tokens_the_lowest_row_goes_first(uneven_products):
    for seed in range(30):
        tokens = make_tokens("noise", 20, (33, 64, 129)[seed % 3], seed=seed)
        kind = torch.randint(20, (70,), generator=torch.Generator().manual_seed(seed))
        picks, _ = tt.dpp_select(tokens[kind], [0, 70], [kind.unique().numel()], backend="torch")
        assert picks.tolist() == [int((kind == kind[pick]).nonzero()[0]) for pick in picks]


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_relevance_and_tokens_count_as_nothing(backend):
    tokens, relevance = make_tokens("noise", 40, 60), weights(40)
    tokens[3, 1], tokens[4], relevance[5], relevance[6] = math.nan, math.inf, math.nan, -2.0
    picks, left = tt.dpp_select(tokens, [0, 40], [40], relevance=relevance, backend=backend)
    assert set(picks[left == 0].tolist()) == {3, 4, 5, 6}
    # 3 and 4 have a relevance but no direction
    assert picks[36:].tolist() == ([3, 4] if relevance[3] > relevance[4] else [4, 3]) + [5, 6]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_batch_equals_its_segments_alone(dtype):
    tokens, relevance = make_tokens("photo-like", 1200, 40, dtype=dtype), weights(1200)
    boundaries, budgets = [0, 0, 1, 300, 301, 1200], [0, 1, 60, 0, 200]
    picks, left = tt.dpp_select(tokens, boundaries, budgets, relevance=relevance, backend="torch")
    start = 0
    for k, budget in enumerate(budgets):
        rows, own = slice(boundaries[k], boundaries[k + 1]), slice(start, start + budget)
        alone = tt.dpp_select(
            tokens[rows].clone(),
            [0, rows.stop - rows.start],
            [budget],
            relevance=relevance[rows],
            backend="torch",
        )
        assert torch.equal(picks[own], alone[0] + rows.start) and torch.equal(left[own], alone[1])
        start += budget
    check_against_reference(tokens, boundaries, budgets, relevance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_norms_and_strides_change_nothing(backend):
    tokens, relevance = make_tokens("clusters", 150, 20), weights(150)
    tokens[9] = 0
    expected = tt.dpp_select(tokens, [0, 150], [15], relevance=relevance, backend=backend)
    norms = tt.token_statistics(tokens, [0, 150], center="none").inverse_norm
    for view in awkward(tokens).values():
        before = view.clone()
        for inverse_norm in (None, norms):
            found = tt.dpp_select(
                view, [0, 150], [15], relevance=relevance, inverse_norm=inverse_norm, backend=backend
            )
            assert torch.equal(found[0], expected[0])
            torch.testing.assert_close(found[1], expected[1])
        assert torch.equal(view, before)


def test_no_kernel_matrix_is_ever_made():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    tokens, relevance = make_tokens("clusters", 3000, 16), weights(3000)
    with Largest() as seen:
        tt.dpp_select(tokens, [0, 3000], [60], relevance=relevance, backend="torch")
    assert seen.elements == 3000 * 60, "the factor is the largest of all"


def test_lengths_and_a_common_scale_of_relevance_play_no_part():
    tokens, relevance = make_tokens("noise", 300, 50), weights(300)
    expected, left = tt.dpp_select(tokens, [0, 300], [40], relevance=relevance)
    scaled = tokens * torch.logspace(-6, 6, 300)[:, None]
    found, other = tt.dpp_select(scaled, [0, 300], [40], relevance=relevance * 1e-3)
    assert torch.equal(found, expected)
    torch.testing.assert_close(other * 1e6, left, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("relevance", torch.ones(9), tt.InvalidInputError),
        ("relevance", torch.ones(10, 1), tt.InvalidInputError),
        ("relevance", torch.ones(10, dtype=torch.int64), tt.UnsupportedDtypeError),
        ("relevance", [1.0] * 10, tt.UnsupportedDtypeError),
        ("inverse_norm", torch.ones(11), tt.InvalidInputError),
        ("budgets", [11], tt.InvalidInputError),
        ("budgets", [1, 1], tt.InvalidInputError),
        ("budgets", [2.0], tt.UnsupportedDtypeError),
        ("cu_segments", [0, 9], tt.InvalidInputError),
        ("candidates", 0, tt.InvalidInputError),
        ("backend", "cuda", tt.InvalidInputError),
        ("tokens", torch.ones(10), tt.InvalidInputError),
    ],
)
def test_bad_input(argument, value, error):
    arguments = {"tokens": torch.ones(10, 3), "cu_segments": [0, 10], "budgets": [2], argument: value}
    with pytest.raises(error, match=f"`{argument}`"):
        tt.dpp_select(**arguments)


def test_the_size_of_a_block_decides_no_pick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpp, "BLOCK_ROWS", 7)
        test_the_number_of_candidates_decides_no_pick("photo-like", 64)


CHECK = partial(test_the_number_of_candidates_decides_no_pick, "clusters", 3)


def agreement():
    """Few candidates and small working sets, small blocks, ragged segments, what is left."""
    CHECK()
    test_the_size_of_a_block_decides_no_pick()
    test_torch_agrees_with_the_reference(257, 40, torch.float32)
    test_ties_go_to_the_larger_relevance_then_to_the_lowest_row("torch")
    test_a_batch_equals_its_segments_alone(torch.float32)
    test_bad_relevance_and_tokens_count_as_nothing("torch")
    test_when_nothing_is_left_the_rest_goes_by_relevance(7, torch.float32, "torch")


BY_HAND = partial(test_by_hand, "reference")
FAULTS = {
    (dpp.dpp, agreement): [
        ("older picks cost nothing", "own.square_().sum(1)", "own[:, known:].square_().sum(1)"),
        ("older picks forgotten", "own[:, :start].T, alpha=-1", "own[:, :start].T, alpha=0"),
        ("factor not solved for", "= torch.linalg", "= 0 * torch.linalg"),
        ("lengths count", ".mul_(inverse_norm)", ""),
        (
            "lengths of picks count",
            ".mul_(vectors.inverse_norm.index_select(0, lacking).unsqueeze(1))",
            "",
        ),
        ("another's vector", "vectors.load(lacking, ", "vectors.load(lacking.flip(0), "),
        ("another's row of the factor", ".index_select(0, lacking)\n", ".index_select(0, lacking.flip(0))\n"),
        ("the first block of picks alone", "range(known, count, BLOCK_ROWS)", "[known]"),
        ("factor not kept", "factor[:, known:count].index_copy_(0, at, own[:, known:])", "pass"),
        ("bound of the rest ignored", "outside = max(", "outside = min("),
        ("never more than the rank", "return picks + rest", "return picks + rest[:0]"),
        ("zero tokens have something", "vectors.present & ~", "~"),
        ("rounding counts", "whole * constants.SPENT_SHARE", "whole * 0"),
    ],
    (dpp._contest, agreement): [
        ("bound ignored", "value[best] < bound or", "False and"),
        ("candidates blind to each other", "value -= row * row", "value -= 0"),
        ("earlier winners forgotten", " - rows[:done, best] @ rows[:done]", ""),
        ("root forgotten", "row /= root", "pass"),
        ("picked again", "value[won] = PICKED", "pass"),
    ],
    (torch_backend.dpp_select, agreement): [
        ("the least relevant first", "descending=True", "descending=False"),
        ("rows of the first segment", "segment.start, segment.stop,", "0, segment.stop - segment.start,"),
        ("relevance ignored", "vectors.inverse_norm * weight", "vectors.inverse_norm"),
    ],
    (reference.dpp_select, BY_HAND): [
        ("nothing taken out", "left - part[:, None] * new", "left"),
        ("relevance ignored", "unit * weight[:, None]", "unit"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "old", "new", "check"),
    [
        pytest.param(function, old, new, check, id=f"{function.__module__[13:]}.{function.__name__}: {name}")
        for (function, check), faults in FAULTS.items()
        for name, old, new in faults
    ],
)
def test_a_planted_fault_is_caught(function, old, new, check, monkeypatch):
    plant(monkeypatch, function, old, new)
    with pytest.raises((AssertionError, IndexError)):
        check()
