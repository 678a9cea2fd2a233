"""`dpp_select` by its kernel: in the interpreter, and as compiled for a GPU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import DTYPES, KINDS, make_tokens
from tests import test_dpp
from tests.kernel_harness import awkward, guarded_allocation, plant, quick_faults, simulated
from tests.test_dpp import check_against_reference, weights
from trimtok_fast.kernels import dpp

#: A tile is of 16 tokens, a block of 256 channels.
COUNTS = [(1, 1), (2, 3), (15, 5), (16, 40), (17, 257), (33, 300), (61, 64)]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("count", "width"), COUNTS)
def test_the_kernel_agrees_with_the_reference(count, width, dtype):
    tokens = make_tokens("clusters", count, width, dtype=dtype)
    for relevance in (weights(count), None):
        check_against_reference(tokens, [0, count], [max(1, count // 5)], relevance, "triton")


@pytest.mark.parametrize("kind", KINDS)
def test_the_references_picks(kind):
    tokens, relevance = make_tokens(kind, 60, 150), weights(60)
    expected = tt.dpp_select(tokens, [0, 60], [30], relevance=relevance, backend="reference")
    found = tt.dpp_select(tokens, [0, 60], [30], relevance=relevance, backend="triton")
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_more_tiles_and_rows_than_are_read_at_a_time(monkeypatch):
    small = {**dpp.launch_config(), "BLOCK_N": 2, "BLOCK_T": 2}
    monkeypatch.setattr(dpp, "launch_config", lambda: small)
    # The largest r² stand in the first tiles, and after a pick or two all of them are copies.
    tokens, relevance = make_tokens("noise", 80, 30), weights(80).sort(descending=True).values
    tokens[:40] = tokens[:1]
    check_against_reference(tokens, [0, 80], [9], relevance, "triton")


def test_by_hand():
    test_dpp.test_by_hand("triton")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [1, 7])
def test_when_nothing_is_left_the_rest_goes_by_relevance(width, dtype):
    tokens, relevance = make_tokens("noise", 40, width, dtype=dtype), weights(40)
    tokens[5] = 0
    picks, left = tt.dpp_select(tokens, [0, 40], [20], relevance=relevance, backend="triton")
    assert (left[:width] > 0).all() and (left[width:] == 0).all()
    rest = relevance.clone()
    rest[picks[:width]] = -1
    assert picks[width:].tolist() == rest.argsort(descending=True)[: 20 - width].tolist()


def test_ties_and_what_counts_as_nothing():
    test_dpp.test_ties_go_to_the_larger_relevance_then_to_the_lowest_row("triton")
    test_dpp.test_bad_relevance_and_tokens_count_as_nothing("triton")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_copies_have_nothing_left(dtype):
    tokens, relevance = make_tokens("noise", 20, 90, dtype=dtype).repeat(2, 1), weights(20).repeat(2)
    picks, left = tt.dpp_select(tokens, [0, 40], [40], relevance=relevance, backend="triton")
    assert sorted(picks[:20].tolist()) == list(range(20)) and (left[20:] == 0).all()


def check_batch(dtype=torch.float32):
    """Ragged segments give the bits that each gives alone, and the reference's picks."""
    tokens, relevance = make_tokens("photo-like", 70, 24, dtype=dtype), weights(70)
    boundaries, budgets = [0, 0, 1, 30, 31, 70], [0, 1, 7, 0, 9]
    picks, left = tt.dpp_select(tokens, boundaries, budgets, relevance=relevance, backend="triton")
    start = 0
    for k, budget in enumerate(budgets):
        rows, own = slice(boundaries[k], boundaries[k + 1]), slice(start, start + budget)
        alone = tt.dpp_select(
            tokens[rows].clone(),
            [0, rows.stop - rows.start],
            [budget],
            relevance=relevance[rows],
            backend="triton",
        )
        assert torch.equal(picks[own], alone[0] + rows.start) and torch.equal(left[own], alone[1])
        start += budget
    check_against_reference(tokens, boundaries, budgets, relevance, "triton")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_batch_equals_its_segments_alone(dtype):
    check_batch(dtype)


def test_strides_alignment_and_poisoned_memory_change_no_bit():
    tokens, relevance = make_tokens("clusters", 70, 20), weights(70)
    norms = tt.token_statistics(tokens, [0, 70], center="none").inverse_norm
    arguments = dict(relevance=relevance, inverse_norm=norms, backend="triton")
    expected = tt.dpp_select(tokens, [0, 30, 70], [9, 12], **arguments)
    for view in awkward(tokens).values():
        with guarded_allocation():
            found = tt.dpp_select(view, [0, 30, 70], [9, 12], **arguments)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def check_simulated(dtype=torch.float32):
    """The PTX of the kernel on two segments, with a zero token, a copy and one that is not finite."""
    tokens, relevance = make_tokens("clusters", 90, 70, dtype=dtype), weights(90)
    tokens[3], tokens[60], tokens[40, 2] = 0, tokens[50], math.nan
    norms = tt.token_statistics(tokens, [0, 90], center="none", backend="torch").inverse_norm
    arguments = dict(relevance=relevance, inverse_norm=norms)
    with simulated() as reports:
        picks, left = tt.dpp_select(tokens, [0, 35, 90], [5, 7], backend="triton", **arguments)
    assert len(reports) == 8
    expected = tt.dpp_select(tokens, [0, 35, 90], [5, 7], backend="reference", **arguments)
    assert torch.equal(picks, expected[0])
    torch.testing.assert_close(left, expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_compiled_code_is_right_and_free_of_races(dtype):
    check_simulated(dtype)


@pytest.mark.parametrize(("boundaries", "budgets"), [([0, 90], [9]), ([0, 0, 33, 90], [0, 1, 6])])
def test_traffic_is_what_the_compiled_code_moves(boundaries, budgets):
    tokens, relevance = make_tokens("clusters", 90, 200, dtype=torch.bfloat16), weights(90)
    norms = tt.token_statistics(tokens, [0, 90], center="none", backend="torch").inverse_norm
    arguments = dict(relevance=relevance, inverse_norm=norms, backend="triton")
    with simulated(profile=True) as reports:
        tt.dpp_select(tokens, boundaries, budgets, **arguments)
    moved = sum(report.distinct_bytes_loaded + report.distinct_bytes_stored for report in reports)
    sizes = [end - start for start, end in itertools.pairwise(boundaries)]
    assert dpp.traffic(sizes, budgets, 200, tokens.dtype).bytes_moved == pytest.approx(moved, rel=0.01)


FAULTS = {
    "factor of the first segment": ("factor_ptr += tl.load(first_factor_ptr + segment)", "pass"),
    "row of the factor overwritten": ("count.to(tl.int64) * size + offs_m, column", "offs_m, column"),
    "one row of the factor forgotten": ("mask_t = offs_t < count", "mask_t = offs_t < count - 1"),
    "picked again": ("tl.where(offs_m == place, -1.0, left)", "left"),
    "rounding counts": ("rest > tl.maximum(whole * SPENT_SHARE, largest * SPENT)", "rest > 0"),
    "root forgotten": (" / tl.sqrt_rn(value)", ""),
    "stride of the channels": ("offs_d.to(tl.int64) * stride_tokens_d", "offs_d.to(tl.int64)"),
    "places for rows": (
        "tl.store(indices_ptr + out + step - 1, pick_row)",
        "tl.store(indices_ptr + out, place)",
    ),
}


@pytest.mark.parametrize(
    ("old", "new"), quick_faults(pytest.param(*fault, id=name) for name, fault in FAULTS.items())
)
def test_a_fault_in_the_kernel_is_seen(old, new, monkeypatch, tmp_path):
    plant(monkeypatch, dpp, old, new, tmp_path)
    with pytest.raises((AssertionError, IndexError)):
        check_batch()
        test_copies_have_nothing_left(torch.float32)
        test_ties_and_what_counts_as_nothing()
        test_strides_alignment_and_poisoned_memory_change_no_bit()
