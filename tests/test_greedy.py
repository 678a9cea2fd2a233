"""Greedy selection: the torch backend against the textbook, and the textbook against cases done by hand."""

from __future__ import annotations

import math

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import DTYPES, KINDS, SHAPES, make_tokens
from trimtok_fast.backends import greedy, lockstep
from trimtok_fast.backends.directions import Directions
from trimtok_fast.certificate import TOLERANCE, certify
from trimtok_fast.config import OBJECTIVES

BACKENDS = ("reference", "torch")


def check_selection(
    tokens,
    cu_segments,
    budgets,
    objective,
    origin=None,
    rows=None,
    seeds=None,
    cu_seeds=None,
    backend="torch",
    **options,
):
    """A backend's picks pass the certificate, equal the textbook's where it is apart, and cover as much.

    On the torch backend in all ways that a segment's size and budget choose between.
    """
    arguments = dict(objective=objective, origin=origin, rows=rows, seeds=seeds, cu_seeds=cu_seeds)
    expected = tt.greedy_select(tokens, cu_segments, budgets, backend="reference", **arguments)
    found = tt.greedy_select(tokens, cu_segments, budgets, backend=backend, **arguments, **options)
    _check_picks(tokens, cu_segments, budgets, found, expected, **arguments)
    small = {
        "coverage": [(0, 0, 0)],
        "max_min": [(greedy.SMALL, 5, 1), (greedy.SMALL, greedy.FEW, greedy.RUNNING), (0, 0, 0)],
        "max_mean": [],
    }
    for largest, few, running in small[objective] if backend == "torch" else []:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lockstep, "LARGEST", 0)
            patch.setattr(greedy, "ONE_ROUND", 0)
            patch.setattr(greedy, "SMALL", largest)
            patch.setattr(greedy, "FEW", few)
            patch.setattr(greedy, "RUNNING", running)
            other = tt.greedy_select(tokens, cu_segments, budgets, backend=backend, **arguments, **options)
        _check_picks(tokens, cu_segments, budgets, other, expected, **arguments)
        if objective == "coverage":
            assert torch.equal(found[0], other[0]) and torch.equal(found[1], other[1])
    return found


def _check_picks(
    tokens, cu_segments, budgets, result, textbook_result, objective, origin, rows, seeds, cu_seeds
):
    (found, gain), (expected, expected_gain) = result, textbook_result
    assert found.shape == gain.shape == (sum(budgets),)
    assert found.dtype == torch.int64 and gain.dtype == torch.float32
    tolerance, start = TOLERANCE[tokens.dtype], 0
    for k, budget in enumerate(budgets):
        span = torch.arange(cu_segments[k], cu_segments[k + 1])
        picks, textbook = found[start : start + budget], expected[start : start + budget]
        number = 0 if seeds is None else (len(seeds) if cu_seeds is None else cu_seeds[k + 1] - cu_seeds[k])
        judge = dict(
            objective=objective,
            seeds=number,
            origin=None if origin is None else origin[k],
            rows=span if rows is None else rows[span],
        )
        assert len(set(picks.tolist())) == budget
        if budget:
            own, oracle = certify(tokens, picks, **judge), certify(tokens, textbook, **judge)
            assert oracle.regret <= 1e-9
            assert own.regret <= tolerance
            if objective == "coverage":
                assert own.coverage == pytest.approx(oracle.coverage, rel=100 * tolerance)
            if oracle.margin > tolerance:
                assert picks.tolist() == textbook.tolist()
                ours, theirs = gain[start : start + budget], expected_gain[start : start + budget]
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-5)
        start += budget


@pytest.mark.parametrize(
    "dtype",
    [  # What 16 bits change, bf16 shows before fp16.
        pytest.param(dtype, id=name, marks=pytest.mark.slow if name == "fp16" else ())
        for name, dtype in DTYPES.items()
    ],
)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_torch_makes_the_textbooks_picks_at_every_shape(count, width, objective, dtype):
    tokens = make_tokens("noise", count, width, dtype=dtype)
    for budget in sorted({1, max(1, count // 5), count}):
        check_selection(tokens, [0, count], [budget], objective, candidates=8)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("offset", [0, 100], ids=["centred", "mean 100 x the spread"])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_makes_the_textbooks_picks_on_structured_tokens(kind, offset, objective):
    tokens = make_tokens(kind, 700, 48, offset=offset)
    origin = tokens.double().mean(0, keepdim=True).float()
    check_selection(tokens, [0, 700], [140], objective, origin=origin)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ragged_segments_rows_and_seeds_together(objective):
    tokens = make_tokens("clusters", 400, 24)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(400, generator=generator)[:230]
    offsets, budgets = [0, 0, 100, 101, 230], [0, 30, 1, 129]
    origin = torch.randn(4, 24, generator=generator) * 0.1
    check_selection(
        tokens,
        offsets,
        budgets,
        objective,
        origin,
        rows,
        seeds=rows[[5, 50, 200, 102]],
        cu_seeds=[0, 0, 2, 2, 4],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("workspace", [0, 4_000, 300_000, 2**29])
def test_groups_hold_what_is_small_once_and_within_the_workspace(workspace, dtype):
    sizes = dict(enumerate([3, 512, 513, 40, 1, 200, 200, 7, 64] * 40))
    width, itemsize = 24, dtype.itemsize
    found = list(lockstep.groups(sizes, width, dtype, workspace))
    members = [index for group in found for index in group]
    assert len(members) == len(set(members))
    for group in found:
        largest = max(sizes[index] for index in group)
        table, making = len(group) * largest**2 * itemsize, largest * (largest + width) * itemsize
        assert largest <= lockstep.LARGEST
        assert table + making <= workspace
        assert table <= lockstep.GROUP_BYTES
    fits = {i for i, m in sizes.items() if m <= 512 and m * (2 * m + width) * itemsize <= workspace}
    assert set(members) == fits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_order_of_rows_does_not_matter(objective, backend):
    tokens = make_tokens("noise", 90, 8)
    rows = torch.arange(20, 80)
    shuffled = rows[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    one = tt.greedy_select(tokens, [0, 60], [20], objective=objective, rows=rows, backend=backend)
    other = tt.greedy_select(tokens, [0, 60], [20], objective=objective, rows=shuffled, backend=backend)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_does_not_fit_the_workspace_is_computed_block_by_block(objective):
    tokens = make_tokens("photo-like", 600, 32)
    check_selection(tokens, [0, 600], [120], objective, workspace_bytes=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_token_is_picked_twice_where_similarities_are_computed_again(objective):
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randn(40, 64, generator=generator)[torch.randint(40, (200,), generator=generator)]
    indices, gain = tt.greedy_select(tokens, [0, 200], [180], objective=objective, workspace_bytes=0)
    assert len(set(indices.tolist())) == 180
    assert not (gain < 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e19], ids=str)
def test_what_is_not_finite_counts_as_a_zero_token(bad, objective, backend):
    tokens = make_tokens("noise", 60, 16)
    tokens[[3, 40]] = 0
    expected = tt.greedy_select(tokens, [0, 60], [50], objective=objective, backend=backend)
    tokens[3, 2] = bad
    tokens[40] = -bad
    found = tt.greedy_select(tokens, [0, 60], [50], objective=objective, backend=backend)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("candidates", [1, 2, 37, 128, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_change_the_speed_of_max_min_and_nothing_else(kind, candidates):
    tokens = make_tokens(kind, 1100, 16)
    check_selection(tokens, [0, 1100], [100], "max_min", candidates=candidates)


def test_small_segments_keep_to_the_workspace(monkeypatch):
    """Directions, those in the running and the centres: three times the tokens in fp32 at most."""
    used = []

    def in_the_running(*arguments):
        used.append(arguments)
        return way(*arguments)

    way = greedy._in_the_running
    monkeypatch.setattr(greedy, "_in_the_running", in_the_running)
    tokens = make_tokens("noise", 100, 16)
    found = [
        tt.greedy_select(tokens, [0, 100], [20], objective="max_min", workspace_bytes=workspace_bytes)[0]
        for workspace_bytes in (3 * tokens.nbytes, 3 * tokens.nbytes - 1)
    ]
    assert len(used) == 1 and torch.equal(*found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_min_by_hand(backend):
    angles = torch.tensor([0.0, 15.0, 50.0, 90.0, 170.0]).deg2rad()
    tokens = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0, 5.0, 2.0, 9.0, 3.0]]).T
    indices, gain = tt.greedy_select(tokens, [0, 5], [4], objective="max_min", backend=backend)
    # The directions' sum points at 53.5 degrees, closest to 50; then 170 (120 away), 0 (50 away), 90 (40
    # away).
    assert indices.tolist() == [2, 4, 0, 3]
    expected = [math.inf, *(1 - math.cos(math.radians(angle)) for angle in (120, 50, 40))]
    torch.testing.assert_close(gain, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_mean_by_hand(backend):
    tokens = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-0.6, 0.8]])
    indices, gain = tt.greedy_select(tokens, [0, 4], [3], objective="max_mean", backend=backend)
    # The sum is (1.8, 2.2): 1.8, 2.76, 2.84, 0.68. Then 0.4, 0.04, -, 0.72; the mean is (0, 0.8) and 0 scores
    # 1.
    assert indices.tolist() == [2, 3, 0]
    torch.testing.assert_close(gain, torch.tensor([math.inf, 0.72, 1.0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coverage_by_hand(backend):
    tokens = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    # Column sums of sim+: 1.8, 1 + .8 + .6 = 2.4, 1.6, 1.0; then what is left: (.2, 0), (.4 for 2), (1 for
    # 3).
    indices, gain = tt.greedy_select(tokens, [0, 4], [4], objective="coverage", backend=backend)
    assert indices.tolist() == [1, 3, 2, 0]
    torch.testing.assert_close(gain, torch.tensor([2.4, 1.0, 0.4, 0.2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coverage_ties_that_involve_duplicates_are_exact(backend):
    # Rows 0 and 1 serve each other: 1 + 1. Row 2 serves itself and half of rows 3 and 4: 1 + 1/2 + 1/2.
    tokens = torch.zeros(5, 8)
    tokens[[0, 1], 0] = tokens[2, 1] = 1
    tokens[3, [1, 2, 3, 4]] = tokens[4, [1, 5, 6, 7]] = 1
    assert tt.greedy_select(tokens, [0, 5], [2], backend=backend)[0].tolist() == [0, 2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
class TestDegenerate:
    """Inputs on which a fast greedy goes wrong first."""

    def test_equal_tokens_are_picked_from_the_lowest_row(self, objective, backend):
        tokens = make_tokens("noise", 1, 64).expand(300, 64)
        indices, gain = tt.greedy_select(tokens, [0, 300], [290], objective=objective, backend=backend)
        assert indices.tolist() == list(range(290))
        assert gain[1:].abs().max() < 1e-5

    def test_duplicates_are_picked_last_and_from_the_lowest_row(self, objective, backend):
        if objective == "max_mean":
            pytest.skip("max_mean may well prefer a copy of an extreme token: that is its nature")
        distinct = make_tokens("noise", 40, 64)
        tokens = distinct.repeat(5, 1)
        indices, gain = tt.greedy_select(tokens, [0, 200], [200], objective=objective, backend=backend)
        assert sorted(indices[:40].tolist()) == list(range(40))
        assert indices[40:].tolist() == list(range(40, 200))
        assert gain[40:].tolist() == [0.0] * 160

    def test_what_equals_a_seed_is_picked_last(self, objective, backend):
        if objective == "max_mean":
            pytest.skip("max_mean may well prefer a copy of an extreme token: that is its nature")
        tokens = make_tokens("noise", 60, 65)
        tokens[40:] = tokens[20:40]
        indices, gain = tt.greedy_select(
            tokens, [0, 60], [60], objective=objective, seeds=list(range(40, 60)), backend=backend
        )
        assert indices[40:].tolist() == list(range(20, 40))
        assert gain[40:].tolist() == [0.0] * 20

    def test_orthogonal_tokens_tie(self, objective, backend):
        indices, _ = tt.greedy_select(torch.eye(9), [0, 9], [9], objective=objective, backend=backend)
        assert indices.tolist() == list(range(9))

    def test_zero_tokens_gain_nothing_and_change_nothing(self, objective, backend):
        tokens = make_tokens("noise", 60, 16)
        tokens[::3] = 0
        tokens[1::3] *= 1e-10
        present = [row for row in range(60) if row % 3]
        alone, alone_gain = tt.greedy_select(
            tokens[present], [0, 40], [40], objective=objective, backend=backend
        )
        indices, gain = tt.greedy_select(tokens, [0, 60], [60], objective=objective, backend=backend)
        kept = indices % 3 != 0
        assert indices[kept].tolist() == [present[i] for i in alone.tolist()]
        torch.testing.assert_close(gain[kept], alone_gain)
        assert (gain[~kept] == 0).all()

    def test_the_first_pick_among_duplicates_is_the_lowest_row(self, objective, backend):
        for seed in range(220, 230):
            tokens = make_tokens("noise", 1, 64, seed=seed).repeat(75, 1)
            indices, _ = tt.greedy_select(tokens, [0, 75], [2], objective=objective, backend=backend)
            assert indices.tolist() == [0, 1]

    def test_only_zero_tokens(self, objective, backend):
        indices, _ = tt.greedy_select(torch.zeros(5, 4), [0, 5], [4], objective=objective, backend=backend)
        assert indices.tolist() == [0, 1, 2, 3]

    def test_a_zero_seed_leaves_the_first_pick_open(self, objective, backend):
        tokens = make_tokens("noise", 30, 8)
        tokens[4] = 0
        free, _ = tt.greedy_select(tokens, [0, 30], [6], objective=objective, backend=backend)
        seeded, gain = tt.greedy_select(tokens, [0, 30], [7], objective=objective, seeds=[4], backend=backend)
        assert seeded.tolist() == [4, *free.tolist()]
        assert gain[0] == math.inf

    def test_seeds_come_first_in_their_order(self, objective, backend):
        tokens = make_tokens("noise", 30, 8)
        indices, gain = tt.greedy_select(
            tokens, [0, 30], [5], objective=objective, seeds=[7, 3, 20], backend=backend
        )
        assert indices[:3].tolist() == [7, 3, 20]
        assert gain[:3].tolist() == [math.inf] * 3
        assert torch.isfinite(gain[3:]).all()

    def test_what_total_leaves_over_is_marked(self, objective, backend):
        tokens = make_tokens("noise", 30, 8)
        indices, gain = tt.greedy_select(tokens, [0, 30], [4], objective=objective, total=7, backend=backend)
        assert indices[4:].tolist() == [-1, -1, -1]
        assert gain[4:].isnan().all() and not gain[:4].isnan().any()

    def test_strided_and_misaligned_tokens_give_the_same_bits(self, objective, backend):
        tokens = make_tokens("noise", 80, 13)
        expected = tt.greedy_select(tokens, [0, 80], [30], objective=objective, backend=backend)
        wide = torch.full((81, 31), float("nan"))
        wide[1:, 1:27:2] = tokens
        for view in (tokens.T.contiguous().T, wide[1:, 1:27:2]):
            found = tt.greedy_select(view, [0, 80], [30], objective=objective, backend=backend)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])

    def test_a_batch_equals_its_segments_alone(self, objective, backend):
        tokens = make_tokens("clusters", 500, 40, dtype=torch.bfloat16)
        offsets, budgets = [0, 37, 300, 301, 500], [9, 60, 1, 50]
        together = tt.greedy_select(tokens, offsets, budgets, objective=objective, backend=backend)
        start = 0
        for low, high, budget in zip(offsets, offsets[1:], budgets, strict=False):
            alone = tt.greedy_select(
                tokens[low:high], [0, high - low], [budget], objective=objective, backend=backend
            )
            assert torch.equal(together[0][start : start + budget], alone[0] + low)
            assert torch.equal(together[1][start : start + budget], alone[1])
            start += budget


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_given_norms_are_used(objective):
    tokens = make_tokens("noise", 50, 8)
    muted = 1 / tokens.norm(dim=1)
    muted[10:] = 0
    indices, _ = tt.greedy_select(
        tokens, [0, 50], [10], objective=objective, inverse_norm=muted, backend="torch"
    )
    assert sorted(indices.tolist()) == list(range(10))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_fp64_tokens_are_computed_in_fp64(objective):
    # So far from 0 that fp32 would have nothing left of the spread.
    tokens = make_tokens("noise", 64, 32).double() + 1e7
    origin = tokens.mean(0, keepdim=True)
    check_selection(tokens, [0, 64], [20], objective, origin=origin)
    found, _ = tt.greedy_select(tokens, [0, 64], [20], objective=objective, origin=origin, backend="torch")
    assert certify(tokens, found, objective=objective, origin=origin[0]).regret < 1e-9


def test_what_equals_a_seed_gains_nothing_where_similarities_are_computed_again():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(12, 64, generator=generator) + torch.randn(1, 64, generator=generator)
        picks, gain = tt.greedy_select(
            tokens.repeat(2, 1), [0, 24], [24], seeds=[17, 20, 23], workspace_bytes=0, backend="torch"
        )
        assert picks[12:].tolist() == [5, 8, 11, *(row for row in range(12, 24) if row not in (17, 20, 23))]
        assert (gain[12:] == 0).all()


@pytest.mark.parametrize("workspace_bytes", [0, 2**20], ids=["computed again", "stored"])
def test_similarities_of_copies_are_those_of_the_first(workspace_bytes, uneven_products):
    kind = torch.randint(20, (300,), generator=torch.Generator().manual_seed(0))
    directions = Directions(
        make_tokens("noise", 20, 33)[kind], torch.arange(300), None, None, workspace_bytes
    )
    similarities = greedy.coverage_similarities(directions, workspace_bytes)
    assert (similarities.matrix is None) == (workspace_bytes == 0)
    columns = directions.copies.nonzero()[0]
    for copy in columns[::9].tolist():
        first = int(directions.first[copy])
        row, entries = similarities.row(copy), similarities.entries(copy, columns)
        assert (row == similarities.row(first)).all() and (row == row[directions.first]).all()
        assert (entries == similarities.entries(first, columns)).all()
        assert torch.equal(similarities[torch.tensor([copy])], similarities[torch.tensor([first])])


def test_gains_that_end_below_0_pick_no_token_twice(uneven_products, monkeypatch):
    monkeypatch.setattr(greedy, "MOVED", 1)
    for seed in range(10):
        tokens = make_tokens("noise", 40, 16, seed=seed)
        tokens = torch.cat([tokens, 2 * tokens])  # of one direction, but no copies
        picks, gain = tt.greedy_select(tokens, [0, 80], [80], workspace_bytes=0, backend="torch")
        assert sorted(picks.tolist()) == list(range(80))
        assert (gain >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_copies_are_found(dtype):
    # Entries of 0, −0 and ±1: many of one norm and one first entry, equal and not; muted and unusable ones.
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(-1, 2, (900, 6), generator=generator).to(dtype)
    tokens = torch.where((tokens == 0) & (torch.rand(900, 6, generator=generator) < 0.5), -0.0, tokens)
    tokens[40:44], tokens[50:53, 2] = 0, math.nan
    inverse_norm = 1 / tokens.float().norm(dim=1)
    inverse_norm[~(inverse_norm < math.inf)] = 0
    inverse_norm[60:900:9] = 0
    inverse_norm[61:900:9] *= 2
    rows = torch.arange(5, 900)
    found = Directions(tokens, rows, None, inverse_norm, 0)
    known: dict[tuple, int] = {}
    for place, row in enumerate(rows.tolist()):
        own = (*(tokens[row].float() + 0).tolist(), float(inverse_norm[row]))
        expected = known.setdefault(own, place) if inverse_norm[row] > 0 else place
        assert found.first[place] == expected, row
        assert found.copies[place] == (expected < place)
    assert 100 < found.copies.sum() < 800


@pytest.mark.parametrize("way", ["default", "small", "rounds", "no workspace"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_of_equal_tokens_the_lowest_row_goes_first(objective, way, uneven_products, monkeypatch):
    if way != "default":
        monkeypatch.setattr(greedy, "ONE_ROUND", 0)
        monkeypatch.setattr(greedy, "SMALL", greedy.SMALL if way == "small" else 0)
        monkeypatch.setattr(lockstep, "LARGEST", 0)
    options = {"workspace_bytes": 0} if way == "no workspace" else {}
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        count, kinds = 4 + 5 * seed, 2 + seed % 4 + seed // 2
        tokens = torch.randn(kinds, (33, 64, 129, 40)[seed % 4], generator=generator)
        kind = torch.randint(kinds, (count,), generator=generator)
        seeds = [count - 1] if seed % 3 == 0 else []
        picks, _ = tt.greedy_select(
            tokens[kind],
            [0, count],
            [count // 2],
            objective=objective,
            seeds=seeds,
            backend="torch",
            **options,
        )
        kinds_of = kind.tolist()
        left = [row for row in range(count) if row not in seeds]
        for pick in picks[len(seeds) :].tolist():
            assert pick == next(row for row in left if kinds_of[row] == kinds_of[pick]), f"seed {seed}"
            left.remove(pick)


def tied_tokens():
    """Four entries of ±1 each: of norm 2, so that every cosine is exact and ties are too."""
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(0, 2, (300, 8), generator=generator) * 2.0 - 1
    return signs * (torch.rand(300, 8, generator=generator).argsort(dim=1) < 4)


@pytest.mark.parametrize("candidates", [1, 2, 7])
def test_ties_among_tokens_outside_the_round_go_to_the_lowest_row(candidates):
    found, oracle = (
        tt.greedy_select(
            tied_tokens(), [0, 300], [300], objective="max_min", candidates=candidates, backend=backend
        )[0].tolist()
        for backend in BACKENDS
    )
    assert found == oracle


@pytest.mark.parametrize("running", [1, 2, 5])
def test_ties_with_who_left_the_running_go_to_the_lowest_row(running, monkeypatch):
    monkeypatch.setattr(greedy, "ONE_ROUND", 0)
    monkeypatch.setattr(greedy, "FEW", 4)
    monkeypatch.setattr(greedy, "RUNNING", running)
    found, oracle = (
        tt.greedy_select(tied_tokens(), [0, 300], [50], objective="max_min", backend=backend)[0].tolist()
        for backend in BACKENDS
    )
    assert found == oracle


@pytest.mark.parametrize("backend", BACKENDS)
def test_gather_takes_rows_in_any_order_and_again(backend):
    tokens = make_tokens("noise", 9, 5)[:, 1:4]
    rows = torch.tensor([7, 0, 7, 8, 3])
    assert torch.equal(tt.gather_tokens(tokens, rows, backend=backend), tokens[rows])
