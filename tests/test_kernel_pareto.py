"""The Pareto kernel: the reference's fronts, whatever the values, the segments, and who knows their ends."""

from __future__ import annotations

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import DTYPES
from tests.kernel_harness import SENTINEL, guarded, plant, simulated
from tests.ptxsim import ExecutionFault
from trimtok_fast.backends import triton as triton_backend
from trimtok_fast.kernels import pareto

BLOCK = pareto.launch_config()["BLOCK"]
SIZES = [1, 2, 7, 31, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 251]


def points(count, levels, dtype=torch.float32):
    """Few levels make ties, equal points and many fronts; many make a few."""
    return torch.randint(0, levels, (2, count), generator=torch.Generator().manual_seed(count)).to(dtype)


def check_fronts(diversity, alignment, cu_segments):
    found = tt.pareto_front(diversity, alignment, cu_segments, backend="triton")
    expected = tt.pareto_front(diversity, alignment, cu_segments, backend="reference")
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


@pytest.mark.parametrize("levels", [3, 12, 10**6])
@pytest.mark.parametrize("count", SIZES)
def test_fronts_at_every_size(count, levels):
    check_fronts(*points(count, levels), [0, count])


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64], ids=[*DTYPES, "fp64"])
def test_fronts_of_every_dtype(dtype):
    check_fronts(*points(150, 40, dtype), [0, 150])


def test_ranks_are_taken_in_the_dtype_given():
    fine = 1 + torch.arange(90, dtype=torch.float64) * 2.0**-50
    check_fronts(fine, fine, [0, 90])
    check_fronts(fine, -fine, [0, 90])


def test_two_dtypes():
    check_fronts(points(90, 9)[0], points(90, 9, torch.bfloat16)[1], [0, 90])


def test_ragged_segments_in_strided_memory():
    diversity, alignment = points(300, 9)
    check_fronts(guarded(diversity, 3), guarded(alignment, 2), [0, 1, 66, 66, 230, 300])


def test_no_points():
    assert tt.pareto_front(torch.empty(0), torch.empty(0), [0, 0], backend="triton").tolist() == []


def test_equal_points_of_two_segments_share_nothing():
    # The last of the first segment, in front 1, equals the first of the second, in front 0.
    values = torch.tensor([2.0, 1.0, 1.0, 0.5])
    check_fronts(values, values, [0, 2, 4])


def test_equal_points_across_tiles_share_a_front():
    check_fronts(torch.zeros(3 * BLOCK), torch.ones(3 * BLOCK), [0, 3 * BLOCK])
    check_fronts(torch.arange(3.0).repeat(BLOCK), torch.ones(3 * BLOCK), [0, 3 * BLOCK])


def test_infinities_and_minus_zero():
    infinity = torch.inf
    diversity = torch.tensor([infinity, 1.0, 0.0, -0.0, -infinity, infinity, -infinity])
    alignment = torch.tensor([0.0, 1.0, -0.0, 0.0, 5.0, -infinity, -infinity])
    check_fronts(diversity, alignment, [0, 7])


def test_one_front_and_as_many_fronts_as_points():
    line = torch.arange(2.0 * BLOCK + 1)
    check_fronts(line, -line, [0, len(line)])
    check_fronts(line, line, [0, len(line)])


def test_boundaries_on_the_device_may_end_early():
    diversity, alignment = points(200, 9)
    boundaries = torch.tensor([0, 70, 70, 130])
    found = triton_backend.pareto_front(diversity, alignment, boundaries)
    expected = tt.pareto_front(diversity[:130], alignment[:130], boundaries, backend="reference")
    assert torch.equal(found[:130], expected)
    assert (found[130:] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_compiled_code(dtype):
    with simulated():
        check_fronts(*points(3 * BLOCK + 5, 12, dtype), [0, 1, BLOCK, BLOCK, 3 * BLOCK + 5])


def test_nothing_is_written_beside_a_segment():
    y = torch.arange(70.0)
    top, front = guarded(torch.zeros(70)), guarded(torch.zeros(70, dtype=torch.int32))
    leads, ends = torch.ones(70, dtype=torch.int8), torch.tensor([0, 0, 67])
    pareto.pareto_launch(front, alignment=y, leads=leads, cu_segments=ends, top=top)
    assert front.tolist() == [0] * 67 + [0] * 3
    assert (front._base != SENTINEL).sum() == 70 and (~top._base.isnan()).sum() == 70


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("top >= y", "top > y", id="a tie with a top does not dominate"),
        pytest.param("y[:, None] >= y[None, :]", "y[:, None] > y[None, :]", id="nor one in the tile"),
        pytest.param("while rising > 0:", "for _ in range(1):", id="one round of raising"),
        pytest.param("ahead <= fronts) &", "ahead < fronts) &", id="the last front is not searched"),
        pytest.param("step * 2 <= fronts", "step * 4 <= fronts", id="search over half of the fronts"),
        pytest.param("tl.max(followed.to(tl.int32), axis=1) == 0", "front >= 0", id="any point is a top"),
        pytest.param("top_ptr + start + front, y", "top_ptr + start + front, y - y", id="tops are lost"),
        pytest.param("tl.maximum(fronts, tl.max(", "tl.minimum(fronts, tl.max(", id="fronts not counted"),
    ],
)
def test_a_planted_fault_is_caught(old, new, monkeypatch, tmp_path):
    plant(monkeypatch, pareto, old, new, tmp_path)
    with pytest.raises((AssertionError, ExecutionFault)), simulated():
        check_fronts(*points(4 * BLOCK, 12), [0, 30, 4 * BLOCK])
        check_fronts(torch.arange(3.0 * BLOCK), torch.arange(3.0 * BLOCK), [0, 3 * BLOCK])


def test_a_missing_barrier_is_caught(monkeypatch, tmp_path):
    barrier = "tl.debug_barrier()  # before they are replaced, and sees the new ones in the next tile"
    plant(monkeypatch, pareto, barrier, "pass", tmp_path)
    with pytest.raises((AssertionError, ExecutionFault)), simulated():
        check_fronts(*points(4 * BLOCK, 12), [0, 4 * BLOCK])
