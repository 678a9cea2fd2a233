"""Greedy selection by the kernels: in the interpreter, and as compiled for a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trimtok_fast as tt
from benchmarks.workloads import KINDS, make_tokens
from tests import test_greedy
from tests.kernel_harness import launched, plant, quick, quick_faults, simulated
from tests.test_greedy import check_selection
from trimtok_fast.backends import triton_greedy as backend
from trimtok_fast.certificate import certify
from trimtok_fast.config import OBJECTIVES
from trimtok_fast.kernels import greedy, recomputed

#: The ways to do a segment, each for all sizes that the tests below have.
STAGED = greedy.LaunchConfig(fused=0)
FORMS = {
    "fused": greedy.LaunchConfig(fused=512),
    "staged": STAGED,
    "staged, the larger kind": STAGED._replace(small=16, large=512),
    # As many threads as tokens at a time: copies in other threads would look like races.
    "streamed": STAGED._replace(small=16, large=32, streamed=64, large_warps=2),
}


def use(monkeypatch, form):
    """Do all segments in one form from here on."""
    monkeypatch.setattr(greedy, "launch_config", lambda: form)


def select(
    tokens, cu_segments, budgets, objective="coverage", seeds=(), cu_seeds=None, known=True, **options
):
    """`greedy_select` of the kernels, from sequences."""
    lengths = tuple(end - start for start, end in itertools.pairwise(cu_segments))
    seeds = torch.tensor(seeds, dtype=torch.int64)
    arguments = dict(
        lengths=lengths if known else None,
        bound=max(lengths),
        total=sum(budgets),
        seeds=seeds,
        cu_seeds=torch.tensor([0] * len(budgets) + [len(seeds)] if cu_seeds is None else cu_seeds),
        origin=None,
        inverse_norm=None,
        rows=None,
        workspace_bytes=2**25,
    )
    return backend.select_stored(
        tokens,
        torch.tensor(cu_segments),
        torch.tensor(budgets),
        objective=objective,
        **{**arguments, **options},
    )


def same(one, other):
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("dtype", quick("fp32", "bf16"))
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("count", "width"), [(1, 1), (2, 3), (7, 5), (31, 16), (64, 33), (127, 64), (129, 8)]
)
def test_the_textbooks_picks_at_every_shape(count, width, objective, dtype):
    tokens = make_tokens("noise", count, width, dtype=dtype)
    for budget in sorted({1, max(1, count // 5), count}):
        check_selection(tokens, [0, count], [budget], objective, backend="triton")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("count", "budget"), [(255, 20), (256, 20), (257, 20), (1021, 6), (1025, 6)])
def test_the_textbooks_picks_at_the_borders_of_the_classes(count, budget, objective):
    tokens = make_tokens("photo-like", count, 24)
    check_selection(tokens, [0, count], [budget], objective, backend="triton")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("offset", [0, 100], ids=["centred", "mean 100 x the spread"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_textbooks_picks_on_structured_tokens(kind, offset, objective):
    tokens = make_tokens(kind, 300, 48, offset=offset)
    origin = tokens.double().mean(0, keepdim=True).float()
    check_selection(tokens, [0, 300], [60], objective, origin=origin, backend="triton")


@pytest.mark.parametrize("dtype", quick("fp32"))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ragged_segments_rows_and_seeds_together(objective, dtype):
    tokens = make_tokens("clusters", 500, 24, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(500, generator=generator)[:430]
    offsets, budgets = [0, 0, 100, 101, 430], [0, 30, 1, 60]
    origin = torch.randn(4, 24, generator=generator) * 0.1
    seeds = rows[[5, 50, 400, 102]]
    for norms in (None, (1 / tokens.float().norm(dim=1)) if dtype == torch.float32 else None):
        about = origin if norms is None else torch.zeros_like(origin)
        check_selection(
            tokens,
            offsets,
            budgets,
            objective,
            about,
            rows,
            seeds=seeds,
            cu_seeds=[0, 0, 2, 2, 4],
            backend="triton",
            inverse_norm=norms,
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "case", [name for name in vars(test_greedy.TestDegenerate) if name.startswith("test_")]
)
def test_degenerate(case, objective):
    getattr(test_greedy.TestDegenerate(), case)(objective, "triton")


@pytest.mark.parametrize(
    "case",
    [
        test_greedy.test_max_min_by_hand,
        test_greedy.test_max_mean_by_hand,
        test_greedy.test_coverage_by_hand,
        test_greedy.test_coverage_ties_that_involve_duplicates_are_exact,
    ],
    ids=lambda case: case.__name__,
)
def test_by_hand(case):
    case("triton")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_order_of_rows_does_not_matter(objective):
    test_greedy.test_the_order_of_rows_does_not_matter(objective, "triton")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e19], ids=str)
def test_what_is_not_finite_counts_as_a_zero_token(bad, objective):
    test_greedy.test_what_is_not_finite_counts_as_a_zero_token(bad, objective, "triton")


@pytest.mark.parametrize("dtype", quick("fp16"))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_all_forms_give_the_same_bits(objective, dtype, monkeypatch):
    tokens = make_tokens("clusters", 330, 70, offset=0.5, dtype=dtype)
    tokens[[3, 200]] = 0
    tokens[40:50] = tokens[50:60]
    origin = tokens.double().mean(0, keepdim=True).float().repeat(3, 1)
    results = []
    for form in FORMS.values():
        use(monkeypatch, form)
        results.append(
            select(
                tokens,
                [0, 65, 129, 330],
                [20, 5, 20],
                objective,
                seeds=[3, 140],
                cu_seeds=[0, 1, 1, 2],
                origin=origin,
            )
        )
    assert all(same(result, results[0]) for result in results)
    for k, (low, high, start, end) in enumerate([(0, 65, 0, 20), (65, 129, 20, 25), (129, 330, 25, 45)]):
        judge = dict(objective=objective, seeds=int(k != 1), origin=origin[k], rows=torch.arange(low, high))
        assert certify(tokens, results[0][0][start:end], **judge).regret <= test_greedy.TOLERANCE[dtype]


def test_how_many_shares_of_a_gain_are_added_up_in_32_bits_changes_no_bit(monkeypatch):
    tokens = make_tokens("clusters", 200, 16)
    expected = select(tokens, [0, 200], [20])
    monkeypatch.setattr(greedy, "AT_ONCE", 1)
    assert same(select(tokens, [0, 200], [20]), expected)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_lengths_that_the_host_does_not_know_change_no_bit(objective):
    tokens = make_tokens("clusters", 500, 40)
    offsets, budgets = [0, 37, 300, 300, 301, 500], [9, 8, 0, 1, 10]
    expected = select(tokens, offsets, budgets, objective)
    assert same(select(tokens, offsets, budgets, objective, known=False, bound=1100), expected)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_small_workspace_means_more_groups_and_the_same_bits(objective):
    tokens = make_tokens("clusters", 500, 40)
    offsets, budgets = [0, 100, 200, 230, 500], [5, 6, 3, 8]
    expected = select(tokens, offsets, budgets, objective)
    form = backend.form_of(tokens, objective)
    for fitting, groups in ((270, 2), (500, 1)):
        size = backend.slot_bytes(fitting, form) * (1 if fitting < 500 else 4)
        with launched() as launches:
            found = select(tokens, offsets, budgets, objective, workspace_bytes=size)
        assert same(found, expected)
        greedily = [launch for launch in launches if launch.name in ("fused", "staged")]
        first_segments = {next(n for n in one.arguments if isinstance(n, int)) for one in greedily}
        assert len(first_segments) == groups


@pytest.mark.parametrize("dtype", quick("fp32"))
@pytest.mark.parametrize("objective", ["coverage", "max_mean"])
def test_what_does_not_fit_the_workspace_is_computed_at_each_use(objective, dtype):
    tokens = make_tokens("photo-like", 220, 40, offset=1.0, dtype=dtype)
    tokens[[30, 200]] = 0
    tokens[150:160] = tokens[160:170]
    rows = torch.randperm(220, generator=torch.Generator().manual_seed(2))[:200]
    origin = tokens.double().mean(0, keepdim=True).float().repeat(3, 1)
    arguments = ([0, 40, 170, 200], [5, 9, 12], objective, origin, rows)
    for workspace_bytes in (0, backend.slot_bytes(64, backend.form_of(tokens, objective))):
        check_selection(
            tokens,
            *arguments,
            seeds=rows[[3, 50, 180]],
            cu_seeds=[0, 1, 2, 3],
            backend="triton",
            workspace_bytes=workspace_bytes,
        )


@pytest.mark.parametrize("known", [True, False], ids=["known lengths", "unknown lengths"])
@pytest.mark.parametrize("objective", ["coverage", "max_mean"])
def test_a_batch_equals_its_segments_alone_whether_they_fit_or_not(objective, known):
    tokens = make_tokens("clusters", 200, 40, dtype=torch.bfloat16)
    offsets, budgets = [0, 37, 150, 200], [3, 4, 3]
    workspace_bytes = backend.slot_bytes(64, backend.form_of(tokens, objective))
    options = dict(known=known, workspace_bytes=workspace_bytes)
    together = select(tokens, offsets, budgets, objective, **options)
    parts = [
        select(tokens[low:high], [0, high - low], [budget], objective, **options)
        for (low, high), budget in zip(itertools.pairwise(offsets), budgets, strict=True)
    ]
    indices = [part[0] + low for part, low in zip(parts, offsets, strict=False)]
    assert same(together, (torch.cat(indices), torch.cat([part[1] for part in parts])))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_unused_rows_and_places_are_left_alone(objective):
    tokens = make_tokens("noise", 90, 8)
    rows = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    rows[70:] = -1
    expected = select(tokens, [0, 30, 70], [10, 12], objective, rows=rows[:70])
    found = select(tokens, [0, 30, 70], [10, 12], objective, rows=rows, total=25)
    assert torch.equal(found[0][:22], expected[0]) and torch.equal(found[1][:22], expected[1])
    assert (found[0][22:] == -1).all() and found[1][22:].isnan().all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_is_written_outside_the_slots(objective, monkeypatch):
    made, allocate = [], backend.allocate
    fill = {torch.int16: -7777, torch.int32: -77777777, torch.int64: -77777777}

    def guarded(tokens, slots, *arguments):
        outer = allocate(tokens, slots + 2, *arguments)
        for tensor in outer:
            if tensor is not None:
                tensor.fill_(fill.get(tensor.dtype, float("nan")))
        made.append(outer)
        return backend.Workspace(*(None if tensor is None else tensor[1:-1] for tensor in outer))

    tokens = make_tokens("clusters", 229, 40)
    for form in FORMS.values():
        use(monkeypatch, form)
        monkeypatch.setattr(backend, "allocate", allocate)
        expected = select(tokens, [0, 100, 229], [5, 12], objective)
        monkeypatch.setattr(backend, "allocate", guarded)
        assert same(select(tokens, [0, 100, 229], [5, 12], objective), expected)
    for tensor in itertools.chain(*made):
        for slot in () if tensor is None else (tensor[0], tensor[-1]):
            assert (slot == fill[slot.dtype] if slot.dtype in fill else slot.isnan()).all()


@pytest.mark.parametrize("fits", [True, False], ids=["stored", "recomputed"])
@pytest.mark.parametrize("known", [True, False], ids=["known lengths", "unknown lengths"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_value_is_read_on_the_host(objective, known, fits):
    if objective == "max_min" and not fits:
        pytest.skip("max_min goes in rounds there")

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function.__name__.split(".")[0] not in ("_local_scalar_dense", "nonzero", "is_nonzero")
            return function(*args, **(kwargs or {}))

    tokens, rows = make_tokens("noise", 60, 8), torch.arange(60)
    boundaries = torch.tensor([0, 20, 60])
    with NoReads(), launched(lambda launch: None) as launches:
        backend.select_stored(
            tokens,
            boundaries,
            torch.tensor([3, 4]),
            lengths=(20, 40) if known else None,
            bound=40,
            total=9,
            objective=objective,
            seeds=torch.tensor([2]),
            cu_seeds=torch.tensor([0, 1, 1]),
            origin=None,
            inverse_norm=None,
            rows=rows,
            workspace_bytes=2**25 if fits else 0,
        )
    assert launches


@pytest.mark.parametrize("dtype", quick("fp16"))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_compiled_code_is_right_free_of_races_and_the_same_in_all_forms(objective, dtype, monkeypatch):
    tokens = make_tokens("clusters", 110, 70, offset=0.5, dtype=dtype)
    tokens[[3, 100]] = 0
    tokens[90:95] = tokens[75:80]
    origin = tokens.double().mean(0, keepdim=True).float().repeat(2, 1)
    results = []
    for form in FORMS.values():
        use(monkeypatch, form)
        with simulated():
            results.append(
                select(
                    tokens,
                    [0, 67, 110],
                    [7, 7],
                    objective,
                    seeds=[3, 70],
                    cu_seeds=[0, 1, 2],
                    origin=origin,
                    rows=torch.arange(110).flip(0).roll(-43),
                )
            )
    assert all(same(result, results[0]) for result in results)
    for k, (low, high, start, end) in enumerate([(0, 67, 0, 7), (67, 110, 7, 14)]):
        judge = dict(objective=objective, seeds=1, origin=origin[k], rows=torch.arange(low, high))
        assert certify(tokens, results[0][0][start:end], **judge).regret <= test_greedy.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", quick("bf16"))
@pytest.mark.parametrize("objective", ["coverage", "max_mean"])
def test_the_compiled_code_is_right_where_nothing_is_stored(objective, dtype):
    tokens = make_tokens("clusters", 100, 70, offset=0.5, dtype=dtype)
    tokens[3] = 0
    tokens[90:95] = tokens[75:80]
    origin = tokens.double().mean(0, keepdim=True).float()
    expected, _ = select(tokens, [0, 100], [6], objective, seeds=[3], origin=origin)
    with simulated():
        found, _ = select(tokens, [0, 100], [6], objective, seeds=[3], origin=origin, workspace_bytes=0)
    judge = dict(objective=objective, seeds=1, origin=origin[0])
    assert certify(tokens, found, **judge).regret <= test_greedy.TOLERANCE[dtype]
    assert found.tolist() == expected.tolist()


def test_coverage_reads_the_rows_of_the_moved_tokens_and_no_more():
    # Every warp reads the list of who moves, 12 bytes a row, from the cache: that too is counted.
    size = 576
    tokens = make_tokens("photo-like", size, 32)
    with simulated(profile=True) as reports:
        picks, _ = select(tokens, [0, size], [12])
    cosines = torch.nn.functional.normalize(tokens.double())
    cosines = (cosines @ cosines.T).clamp(min=0)
    best, moved = torch.zeros(size).double(), 0
    for pick in picks.tolist():
        moved += int((cosines[pick] > best + 1e-6).sum())
        best = best.maximum(cosines[pick])
    rows = (moved + len(picks)) * size * 4
    assert rows <= 32 * reports[-1].sectors["load"] <= 1.2 * rows


def selections(objectives, workspace_bytes):
    """Ragged rows, seeds, zero tokens, duplicates: the checks that a fault has to fail."""
    tokens = make_tokens("clusters", 130, 24, offset=0.5)
    tokens[::20] = 0
    rows = torch.randperm(130, generator=torch.Generator().manual_seed(1))[:120]
    tokens[rows[50:54]] = tokens[rows[60:64]]
    origin = torch.randn(3, 24, generator=torch.Generator().manual_seed(2)) * 0.1
    options = dict(backend="triton", workspace_bytes=workspace_bytes)
    seeds = {"seeds": rows[[5, 9, 100]], "cu_seeds": [0, 2, 2, 3]}
    alike, zero = make_tokens("noise", 1, 16).expand(70, 16), make_tokens("noise", 12, 8)
    zero[4] = 0
    for objective in objectives:
        budgets = [6, 12 if workspace_bytes else 5, 2]
        check_selection(tokens, [0, 30, 100, 120], budgets, objective, origin, rows, **seeds, **options)
        check_selection(zero, [0, 12], [12], objective, seeds=[4], **options)
        assert tt.greedy_select(alike, [0, 70], [3], objective=objective, **options)[0].tolist() == [0, 1, 2]


FAULTS = {
    (greedy, "gains as they were"): ("gain -= tl.sum(total.to(tl.int64), 0)", "gain -= 0"),
    (greedy, "more than the move"): ("tl.maximum(entry.to(tl.int32), old)", "entry.to(tl.int32)"),
    (greedy, "only the first moved"): (
        "range(first, tl.minimum(first + AT_ONCE * BLOCK_R, number), BLOCK_R)",
        "range(first, first + 1, BLOCK_R)",
    ),
    (greedy, "best forgets"): ("best = tl.maximum(best, similarity)", "best = similarity"),
    (greedy, "picked again"): ("state = tl.where(columns == pick, TAKEN, state)", "pass"),
    (greedy, "padding picked"): ("tl.where(columns < size, total, TAKEN)", "total + 2**40"),
    (greedy, "sums of the first tile"): (
        "for tile in range(0, tiles):\n        total",
        "for tile in range(0, 1):\n        total",
    ),
    (greedy, "tie to the highest row"): (
        "tl.max(state, 0, return_indices=True)",
        "(tl.max(state, 0), "
        "tl.max(tl.where(state == tl.max(state, 0), tl.arange(0, state.shape[0]), -1), 0))",
    ),
    (greedy, "the newest pick alone"): ("tl.minimum(state, distance))", "distance)"),
    (greedy, "zero tokens far from all"): ("tl.where(present, 1.0 - cosine, 0.0)", "1.0 - cosine"),
    (greedy, "zero pick lowers others"): (
        "if tl.load(scale_ptr + pick) > 0:\n                cosine",
        "if True:\n                cosine",
    ),
    (greedy, "sum for mean"): ("else top / count", "else top"),
    (greedy, "one seed for all"): (
        "pick = tl.load(seeds_ptr + step).to(tl.int32)\n        else:\n            top, pick = _largest(",
        "pick = tl.load(seeds_ptr).to(tl.int32)\n        else:\n            top, pick = _largest(",
    ),
    (greedy, "picks of the first segment"): (
        "first_pick = tl.load(offsets_ptr + segment)\n    first_seed",
        "first_pick = tl.load(offsets_ptr)\n    first_seed",
    ),
    (recomputed, "gains as they were"): ("gain -= tl.sum(handed, 0).to(tl.int64)", "gain -= 0"),
    (recomputed, "list not emptied"): ("tl.store(last_ptr + 1, 0)", "pass"),
    (recomputed, "best forgets"): ("tl.maximum(best, similarity))", "similarity)"),
    (recomputed, "picks not counted"): ("tl.load(count_ptr) + tl.load", "tl.load"),
    (recomputed, "origin of the first segment"): (
        "origin_ptr += (first + slot) * stride_origin_g\n    own =",
        "pass\n    own =",
    ),
    (recomputed, "scales of others"): (
        "(product, row_scale, scale, True)",
        "(product, scale, row_scale, True)",
    ),
}


#: The objectives and the workspace that a fault is looked for with.
CHECKS = {greedy: (OBJECTIVES, 2**25), recomputed: (("coverage", "max_mean"), 0)}


@pytest.mark.parametrize(
    "fault", quick_faults(FAULTS), ids=lambda fault: f"{fault[0].__name__.rpartition('.')[2]}: {fault[1]}"
)
def test_a_fault_is_seen(fault, monkeypatch, tmp_path):
    plant(monkeypatch, fault[0], *FAULTS[fault], tmp_path)
    with pytest.raises((AssertionError, IndexError)):
        selections(*CHECKS[fault[0]])


@pytest.mark.parametrize("module", CHECKS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_selections_without_a_fault_pass(module):
    selections(*CHECKS[module])


#: Barriers that nothing else stands in for; others are doubled by those that sums across warps bring along.
BARRIERS = {
    "coverage": "tl.store(state_ptr + pick, TAKEN)\n            tl.debug_barrier()\n",
    "max_min": "if tl.load(scale_ptr + pick) > 0:\n                tl.debug_barrier()\n",
}


@pytest.mark.parametrize(("objective", "snippet"), BARRIERS.items(), ids=BARRIERS)
def test_a_missing_barrier_is_seen(objective, snippet, monkeypatch, tmp_path):
    from tests.ptxsim import GlobalRace

    plant(monkeypatch, greedy, snippet, snippet.replace("tl.debug_barrier()", "pass"), tmp_path)
    use(monkeypatch, FORMS["streamed"])
    with pytest.raises(GlobalRace), simulated():
        select(make_tokens("noise", 70, 70, dtype=torch.float16), [0, 70], [3], objective)
