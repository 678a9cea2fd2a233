"""Non-dominated sorting: against the definition, by hand, and its laws on arbitrary points."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trimtok_fast as tt
from trimtok_fast.backends.reference import dominates

# Few distinct values: ties and equal points everywhere.
coarse = st.integers(-3, 3).map(float)
fine = st.floats(-10, 10, width=32)
points = st.lists(st.tuples(coarse, coarse) | st.tuples(fine, fine), min_size=1, max_size=40)


def check_fronts(diversity, alignment, cu_segments):
    """The torch backend's ranks are the reference's."""
    found = tt.pareto_front(diversity, alignment, cu_segments, backend="torch")
    assert torch.equal(found, tt.pareto_front(diversity, alignment, cu_segments, backend="reference"))
    return found


@given(points)
def test_fronts_obey_their_definition(pairs):
    values = torch.tensor(pairs)
    ranks = check_fronts(values[:, 0], values[:, 1], [0, len(pairs)]).tolist()
    assert set(ranks) == set(range(max(ranks) + 1)), "no front is skipped"
    for one, rank in zip(pairs, ranks, strict=True):
        above = [other_rank for other, other_rank in zip(pairs, ranks, strict=True) if dominates(other, one)]
        assert rank == (max(above) + 1 if above else 0)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_by_hand(backend):
    diversity = torch.tensor([3.0, 2.0, 1.0, 2.0, 2.0, 1.0, 1.0, 9.0])
    alignment = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 2.0, 1.0, 9.0])
    ranks = tt.pareto_front(diversity, alignment, [0, 7, 7, 8], backend=backend)
    assert ranks.tolist() == [0, 0, 0, 1, 0, 1, 2, 0]


def test_infinities_and_minus_zero():
    diversity = torch.tensor([torch.inf, 1.0, 0.0, -0.0, -torch.inf])
    alignment = torch.tensor([0.0, 1.0, -0.0, 0.0, 5.0])
    assert check_fronts(diversity, alignment, [0, 5]).tolist() == [0, 0, 1, 1, 0]


def test_many_points_in_ragged_segments():
    generator = torch.Generator().manual_seed(0)
    diversity = torch.rand(500, generator=generator).mul(20).round()
    check_fronts(diversity, torch.rand(500, generator=generator), [0, 1, 200, 200, 431, 500])


def test_one_front_and_as_many_fronts_as_points():
    line = torch.arange(1000.0)
    assert (tt.pareto_front(line, -line, [0, 1000]) == 0).all()
    assert tt.pareto_front(line, line, [0, 1000]).tolist() == list(range(999, -1, -1))
