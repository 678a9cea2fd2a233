"""`prune` end to end: backends agree, a batch equals its samples, and the result means what it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import trimtok_fast as tt
from benchmarks.workloads import DTYPES, KINDS, make_tokens
from trimtok_fast import pipeline, segments
from trimtok_fast.certificate import TOLERANCE, certify
from trimtok_fast.config import OBJECTIVES
from trimtok_fast.kernels import common
from trimtok_fast.segments import _rows_on, integers_on

CU_TOKENS = [0, 40, 41, 200, 260, 500, 520, 640]
CU_IMAGES = [0, 2, 3, 7]
CU_TEXT = [0, 3, 3, 8]  # the second sample has no text
IMAGE_SAMPLE = [0, 0, 1, 2, 2, 2, 2]


def set_aside(lengths, kept, floor, text_share=0.5):
    """METHOD §2 of a sample with text: what each image keeps for itself, and what survives for the text."""
    floors = [min(floor, length) for length in lengths]
    share = (1 - text_share) * (kept - sum(floors)) / (sum(lengths) - sum(floors))
    anchors = [low + math.floor(share * (length - low)) for low, length in zip(floors, lengths, strict=True)]
    return anchors, [kept * length // sum(lengths) for length in lengths]


def batch(kind="clusters", dtype=torch.float32, offset=0.0):
    """Three samples, 2 + 1 + 4 images, and their text."""
    return make_tokens(kind, 640, 32, offset=offset, dtype=dtype), make_tokens(
        "noise", 8, 32, seed=1, dtype=dtype
    )


def check_prune(tokens, text, config):
    """The torch backend's result is the reference's, or as good."""
    arguments = {"text": text, "cu_text": None if text is None else CU_TEXT, "config": config}
    found = tt.prune(tokens, CU_TOKENS, CU_IMAGES, backend="torch", **arguments)
    expected = tt.prune(tokens, CU_TOKENS, CU_IMAGES, backend="reference", **arguments)
    for name in ("keep", "survivors", "pool", "image_budgets"):
        assert torch.equal(getattr(found.plan, name), getattr(expected.plan, name)), name
    same = len(set(found.indices.tolist()) & set(expected.indices.tolist()))
    assert same >= 0.97 * len(expected.indices)
    if same == len(expected.indices):
        tolerance = TOLERANCE[tokens.dtype]
        torch.testing.assert_close(found.distance, expected.distance, rtol=tolerance, atol=tolerance)
        assert (found.stage == expected.stage).float().mean() >= 0.97
        if text is not None:
            torch.testing.assert_close(
                found.alignment, expected.alignment, rtol=tolerance, atol=tolerance, equal_nan=True
            )
            assert torch.equal(found.front, expected.front)
    return found


@pytest.mark.parametrize("with_text", [True, False], ids=["text", "no text"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_agrees_with_the_reference(kind, dtype, with_text):
    tokens, text = batch(kind, dtype)
    check_prune(tokens, text if with_text else None, tt.PruneConfig(keep_ratio=0.15))


@pytest.mark.parametrize(
    "options",
    [
        {"center": "none"},
        {"pool_objective": "coverage"},
        {"image_objective": "max_min", "pool_objective": "max_mean"},
        {"min_tokens_per_image": 0},
        {"min_tokens_per_image": 9},
        {"pool_fraction": 0.0},
        {"pool_fraction": 1.0},
        {"stage_split": 0.0},
        {"stage_split": 1.0},
        {"keep_ratio": 1.0},
        {"keep_ratio": 1e-6, "min_tokens_per_image": 0},
        {"keep_tokens": 33},
        {"workspace_bytes": 0},
        {"candidates": 3},
    ],
    ids=str,
)
def test_every_option_reaches_both_backends_alike(options):
    tokens, text = batch("photo-like", offset=1.0)
    check_prune(tokens, text, tt.PruneConfig(**options))


@pytest.mark.parametrize("image_objective", OBJECTIVES)
@pytest.mark.parametrize("pool_objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_batch_equals_its_samples_alone(dtype, image_objective, pool_objective):
    tokens, text = batch(dtype=dtype, offset=1.0)
    config = tt.PruneConfig(keep_ratio=0.2, image_objective=image_objective, pool_objective=pool_objective)
    together = tt.prune(tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=CU_TEXT, config=config)
    kept = 0
    for sample in range(3):
        first, last = CU_IMAGES[sample : sample + 2]
        low, high = CU_TOKENS[first], CU_TOKENS[last]
        words = text[CU_TEXT[sample] : CU_TEXT[sample + 1]]
        boundaries = [offset - low for offset in CU_TOKENS[first : last + 1]]
        alone = tt.prune(
            tokens[low:high].clone(), boundaries, text=words if len(words) else None, config=config
        )
        own = slice(kept, kept + len(alone.indices))
        assert torch.equal(together.indices[own], alone.indices + low)
        assert torch.equal(together.cu_tokens[first : last + 1] - kept, alone.cu_tokens)
        assert torch.equal(together.distance[own], alone.distance)
        assert torch.equal(together.stage[low:high], alone.stage)
        assert torch.equal(together.statistics.inverse_norm[low:high], alone.statistics.inverse_norm)
        if len(words):
            assert torch.equal(together.alignment[own], alone.alignment)
            assert torch.equal(together.front[own], alone.front)
        else:
            assert together.alignment[own].isnan().all() and (together.front[own] == -1).all()
        kept += len(alone.indices)
    assert kept == len(together.indices)


def test_the_result_means_what_it_says():
    tokens, text = batch()
    config = tt.PruneConfig(keep_ratio=0.2, min_tokens_per_image=2)
    out = tt.prune(tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=CU_TEXT, config=config)
    assert out.plan.keep.tolist() == tt.kept_counts(CU_TOKENS, CU_IMAGES, config=config)
    assert (out.indices.diff() > 0).all()
    assert torch.equal(out.gather(tokens), tokens[out.indices])
    counts = torch.bincount(
        torch.bucketize(out.indices, torch.tensor(CU_TOKENS[1:]), right=True), minlength=7
    )
    assert torch.equal(out.cu_tokens.diff(), counts)
    lengths = torch.tensor(CU_TOKENS).diff()
    assert (counts >= lengths.clamp(max=2)).all(), "every image keeps its floor"
    assert torch.equal(out.stage == 3, torch.isin(torch.arange(640), out.indices))
    per_sample = torch.bucketize(torch.arange(640), torch.tensor([41, 200]), right=True)
    for stage, total in ((1, out.plan.survivors), (2, out.plan.pool), (3, out.plan.keep)):
        assert torch.equal(torch.bincount(per_sample[out.stage >= stage], minlength=3), total)
    survivors = torch.bincount(
        torch.bucketize((out.stage >= 1).nonzero()[:, 0], torch.tensor(CU_TOKENS[1:]), right=True)
    )
    assert torch.equal(survivors, out.plan.image_budgets)
    anchors = (out.front == -1) & ~out.alignment.isnan()
    for sample in (0, 2):  # the second has no text
        own = slice(CU_IMAGES[sample], CU_IMAGES[sample + 1])
        aside, _ = set_aside(lengths[own].tolist(), int(out.plan.keep[sample]), floor=2)
        low, high = out.cu_tokens[own.start], out.cu_tokens[own.stop]
        assert anchors[low:high].sum() == sum(aside)
        assert (counts[own] >= torch.tensor(aside)).all()
    assert torch.isfinite(out.distance).all()
    torch.testing.assert_close(out.alignment, out.statistics.alignment[out.indices], equal_nan=True)


@pytest.mark.parametrize(("kind", "offset"), [("clusters", 0.0), ("photo-like", 3.0)])
def test_whole_fronts_go_first_and_the_cut_one_by_the_sum_of_both(kind, offset):
    tokens, text = batch(kind, offset=offset)
    config = tt.PruneConfig(keep_ratio=0.2, pool_fraction=0.9)
    out = tt.prune(tokens[:200], CU_TOKENS[:4], text=text[:3], config=config)
    pool = (out.stage >= 2).nonzero()[:, 0]
    kept_front = out.front.max()
    anchors = out.indices[out.front == -1]
    # δ of the whole pool, from an independent replay of the textbook.
    order, gain = tt.greedy_select(
        tokens[:200],
        [0, int(out.plan.survivors)],
        out.plan.pool,
        objective="max_min",
        seeds=anchors,
        origin=out.statistics.origin,
        rows=(out.stage >= 1).nonzero()[:, 0],
        backend="reference",
    )
    assert sorted(order.tolist()) == pool.tolist()
    delta = dict(zip(order.tolist(), gain.tolist(), strict=True))
    free = [row for row in pool.tolist() if row not in anchors.tolist()]
    points = torch.tensor([[delta[row], out.statistics.alignment[row].item()] for row in free])
    front = tt.pareto_front(points[:, 0], points[:, 1], [0, len(free)], backend="reference")
    kept = [row in out.indices.tolist() for row in free]
    assert all(keep for keep, rank in zip(kept, front.tolist(), strict=True) if rank < kept_front)
    assert not any(keep for keep, rank in zip(kept, front.tolist(), strict=True) if rank > kept_front)
    cut = front == kept_front
    low, high = points[cut].min(0).values, points[cut].max(0).values
    score = ((points[cut] - low) / (high - low)).sum(1)
    chosen = torch.tensor(kept)[cut]
    assert 0 < chosen.sum() < len(chosen), "the case must cut a front"
    assert score[chosen].min() >= score[~chosen].max() - 1e-6


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("floor", [0, 2])
def test_the_pool_starts_from_the_anchors_and_its_order_decides_without_text(floor, backend):
    tokens, text = batch("photo-like", offset=1.0)
    config = tt.PruneConfig(keep_ratio=0.2, min_tokens_per_image=floor)
    out = tt.prune(tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=CU_TEXT, config=config, backend=backend)
    lengths = torch.tensor(CU_TOKENS).diff().tolist()
    seeds, aside = [], []
    for sample in range(3):
        own = slice(CU_IMAGES[sample], CU_IMAGES[sample + 1])
        anchors, best = set_aside(lengths[own], int(out.plan.keep[sample]), floor)
        if sample == 1:  # without text
            anchors, best = [min(floor, length) for length in lengths[own]], [0]
        aside += anchors
        for image, count in enumerate(best, own.start):
            alignment = out.statistics.alignment[CU_TOKENS[image] : CU_TOKENS[image + 1]]
            seeds.append(CU_TOKENS[image] + alignment.topk(count).indices)
    picks, _ = tt.greedy_select(
        tokens,
        CU_TOKENS,
        out.plan.image_budgets,
        seeds=torch.cat(seeds),
        cu_seeds=torch.tensor([0, *map(len, seeds)]).cumsum(0),
        origin=out.statistics.origin[IMAGE_SAMPLE],
        backend=backend,
    )
    stretches = [
        stretch[min(len(best), len(stretch) - count) :][:count]
        for stretch, best, count in zip(
            picks.split(out.plan.image_budgets.tolist()), seeds, aside, strict=True
        )
    ]
    for sample in range(3):
        low, high = (CU_TOKENS[CU_IMAGES[k]] for k in (sample, sample + 1))
        own = slice(CU_IMAGES[sample], CU_IMAGES[sample + 1])
        anchors = torch.cat(stretches[own])
        survivors = (out.stage[low:high] >= 1).nonzero()[:, 0] + low
        order, gain = tt.greedy_select(
            tokens,
            [0, len(survivors)],
            out.plan.pool[sample : sample + 1],
            objective="max_min",
            seeds=anchors,
            rows=survivors,
            origin=out.statistics.origin[sample : sample + 1],
            inverse_norm=out.statistics.inverse_norm,
            backend=backend,
        )
        assert torch.equal((out.stage[low:high] >= 2).nonzero()[:, 0] + low, order.sort().values)
        kept = (out.stage[low:high] == 3).nonzero()[:, 0] + low
        assert torch.isin(anchors, kept).all()
        if sample == 1:
            assert torch.equal(kept, order[: out.plan.keep[sample]].sort().values)
        delta = torch.full((640,), torch.nan)
        delta[order] = gain.where(gain.isfinite(), gain[gain.isfinite()].max())
        assert torch.equal(out.distance[torch.isin(out.indices, kept)], delta[kept])


def test_scores_of_the_cut_front_that_tie_go_to_the_lowest_row():
    # On an arc about the text's axis, which is the first pick: the two ends are as far from it as tokens get,
    # the two next to it as much like the text. Each of the four has 1 + 0 in the front that is cut.
    angles = torch.tensor([0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5])
    tokens = torch.stack([angles.cos(), angles.sin()], 1)
    text = torch.tensor([[1.0, 0.0]])
    config = tt.PruneConfig(
        keep_tokens=2, center="none", stage_split=0.0, text_share=1.0, min_tokens_per_image=0
    )
    for order in (torch.arange(7), torch.tensor([0, 2, 1, 4, 3, 6, 5])):
        for backend in ("reference", "torch"):
            out = tt.prune(tokens[order], [0, 7], text=text, config=config, backend=backend)
            assert out.statistics.origin is None
            assert out.indices.tolist() == [0, 1]


@pytest.mark.parametrize("pool_objective", OBJECTIVES)
@pytest.mark.parametrize("workspace_bytes", [0, 2**29], ids=["in rounds", "stored"])
def test_nothing_in_prune_waits_for_the_device(pool_objective, workspace_bytes, monkeypatch, request):
    """Run on tensors without values, with kernels that do nothing: whatever reads a value raises."""
    config = tt.PruneConfig(
        check_finite=False, pool_objective=pool_objective, workspace_bytes=workspace_bytes
    )
    without_kernels(monkeypatch)
    for cache in (integers_on, _rows_on):
        cache.cache_clear()
        request.addfinalizer(cache.cache_clear)
    with FakeTensorMode():
        tokens, text = torch.empty(640, 32), torch.empty(8, 32)
        out = tt.prune(
            tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=CU_TEXT, config=config, backend="triton"
        )
        assert len(out.indices) == sum(tt.kept_counts(CU_TOKENS, CU_IMAGES, config=config))
        for value in (out.indices, out.cu_tokens, out.plan.pool, out.stage):
            with pytest.raises(DataDependentOutputException):
                value.tolist()


def test_tables_that_a_graph_captures_stay(monkeypatch):
    held = {}
    monkeypatch.setattr(segments, "_captured", held)
    made = segments.table_cache(maxsize=1)(lambda device, number: [number])
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    captured = made(gpu, 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert made(gpu, 2) == [2] and made(gpu, 1) is not captured
    assert list(held.values()) == [captured]


def without_kernels(monkeypatch):
    """Let every launch of a kernel do nothing."""
    monkeypatch.setattr(type(common.row_norm), "run", lambda *arguments, **options: None)


@pytest.mark.parametrize(("boundaries", "expected"), [((0, 5), [1, 4]), ((0, 3, 5), [1, 2, 4, 3])])
def test_the_most_aligned_of_each_image(boundaries, expected):
    alignment, images = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.7]), segments.Segments(boundaries)
    counts = segments.cumulative([2] * len(images))
    assert pipeline._most_aligned(alignment, images, counts, alignment.device).tolist() == expected


def test_each_stage_is_greedy_by_its_certificate():
    tokens, _ = batch("photo-like", offset=3.0)
    out = tt.prune(tokens, CU_TOKENS, CU_IMAGES, config=tt.PruneConfig(keep_ratio=0.3))
    origin = out.statistics.origin
    picks, _ = tt.greedy_select(
        tokens, CU_TOKENS, out.plan.image_budgets, origin=origin[IMAGE_SAMPLE], backend="torch"
    )
    assert torch.equal(picks.sort().values, (out.stage >= 1).nonzero()[:, 0])
    start = 0
    for image, budget in enumerate(out.plan.image_budgets.tolist()):
        sample = IMAGE_SAMPLE[image]
        rows = torch.arange(*CU_TOKENS[image : image + 2])
        own = picks[start : start + budget]
        assert certify(tokens, own, objective="coverage", origin=origin[sample], rows=rows).regret < 1e-5
        start += budget


def test_a_plan_overrides_the_budgets():
    tokens, text = batch()
    plan = tt.prune(tokens, CU_TOKENS, CU_IMAGES, config=tt.PruneConfig(keep_ratio=0.5)).plan
    out = tt.prune(tokens, CU_TOKENS, CU_IMAGES, config=tt.PruneConfig(keep_ratio=0.1), plan=plan)
    assert out.plan is plan and len(out.indices) == int(plan.keep.sum())


def test_keeping_everything_keeps_everything():
    tokens, text = batch()
    config = tt.PruneConfig(keep_ratio=1.0)
    out = tt.prune(tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=CU_TEXT, config=config)
    assert out.indices.tolist() == list(range(640)) and out.cu_tokens.tolist() == CU_TOKENS


def test_one_token():
    out = tt.prune(torch.ones(1, 1), [0, 1], text=torch.ones(1, 1))
    assert out.indices.tolist() == [0] and out.distance.tolist() == [0.0]


@pytest.mark.parametrize("fill", [0.0, 1.0], ids=["all zero", "all equal"])
def test_tokens_without_any_structure(fill):
    tokens = torch.full((640, 8), fill)
    found = tt.prune(tokens, CU_TOKENS, CU_IMAGES, backend="torch")
    expected = tt.prune(tokens, CU_TOKENS, CU_IMAGES, backend="reference")
    assert torch.equal(found.indices, expected.indices)
    assert (found.distance == 0).all()


def test_int32_and_int64_boundaries_and_lists_are_the_same():
    tokens, text = batch()
    results = [
        tt.prune(tokens, make(CU_TOKENS), make(CU_IMAGES), text=text, cu_text=make(CU_TEXT)).indices
        for make in (list, tuple, torch.tensor, lambda values: torch.tensor(values, dtype=torch.int32))
    ]
    assert all(torch.equal(results[0], other) for other in results)


def test_gather_is_differentiable():
    tokens, _ = batch()
    tokens.requires_grad_()
    out = tt.prune(tokens, CU_TOKENS, CU_IMAGES)
    out.gather(tokens).sum().backward()
    assert torch.equal(tokens.grad[:, 0] == 1, out.stage == 3)


def test_the_callers_modes_change_nothing():
    tokens, text = batch("photo-like")
    arguments = {"text": text, "cu_text": CU_TEXT}
    plain = tt.prune(tokens, CU_TOKENS, CU_IMAGES, **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        other = tt.prune(tokens, CU_TOKENS, CU_IMAGES, **arguments)
    assert torch.equal(plain.indices, other.indices) and torch.equal(plain.distance, other.distance)
    torch.set_default_dtype(torch.float64)
    try:
        other = tt.prune(tokens, CU_TOKENS, CU_IMAGES, **arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(plain.indices, other.indices) and torch.equal(plain.distance, other.distance)
