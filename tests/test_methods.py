"""The other methods of `prune`: right by loops in fp64, complete results, batches, bad methods."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import trimtok_fast as tt
from benchmarks.workloads import DTYPES, KINDS, make_tokens
from tests.kernel_harness import awkward
from tests.test_planted_faults import plant
from tests.test_prune import CU_IMAGES, CU_TEXT, CU_TOKENS, batch, without_kernels
from trimtok_fast.backends import reference
from trimtok_fast.certificate import TOLERANCE, certify
from trimtok_fast.methods import divprune, random, trimtokenator, uniform
from trimtok_fast.pipeline import KEPT, STAGE_2
from trimtok_fast.registry import METHODS
from trimtok_fast.segments import _rows_on, integers_on

NAMES = ("trimtokenator", "cdpruner", "divprune", "random", "uniform")
GREEDY = ("trimtokenator", "cdpruner", "divprune")


@pytest.fixture(autouse=True)
def registered():
    """Whatever a test registers, or plants, is gone afterwards."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def prune(method, tokens, text=None, backend="torch", **options):
    """The three samples of `test_prune`, by a method."""
    config = tt.PruneConfig(method=method, **options)
    cu_text = None if text is None else CU_TEXT
    return tt.prune(tokens, CU_TOKENS, CU_IMAGES, text=text, cu_text=cu_text, config=config, backend=backend)


def samples():
    """Rows of each sample, and whether it has text."""
    for sample in range(3):
        rows = slice(*(CU_TOKENS[CU_IMAGES[k]] for k in (sample, sample + 1)))
        yield sample, rows, slice(*CU_TEXT[sample : sample + 2])


def textbook_divprune(tokens, text, budget):
    """The matrix, the seed and the loop, as METHOD §6 says."""
    unit = torch.nn.functional.normalize(tokens.double())
    distance = 1 - unit @ unit.T
    distance.fill_diagonal_(math.inf)
    picks = [int(distance.min(1).values.argmax())]
    while len(picks) < budget:
        nearest = distance[:, picks].min(1).values
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    return picks


def textbook_trimtokenator(tokens, text, budget):
    """Mean squared distances to the text tokens, then the mean distance to the picks."""
    rows = torch.arange(len(tokens))
    if len(text):
        apart = torch.cdist(tokens.double(), text.double(), compute_mode="donot_use_mm_for_euclid_dist")
        count = max(math.floor(0.8 * len(tokens) + 0.5), budget)
        rows = apart.square().mean(1).argsort()[:count].sort().values
    unit = torch.nn.functional.normalize(tokens[rows].double())
    picks = [int((unit @ unit.sum(0)).argmax())]
    while len(picks) < budget:
        mean = 1 - (unit @ unit[picks].T).mean(1)
        mean[picks] = -math.inf
        picks.append(int(mean.argmax()))
    return rows[picks].tolist()


def textbook_cdpruner(tokens, text, budget):
    """The kernel, and the largest Schur complement of one more token; the rest by relevance."""
    unit = torch.nn.functional.normalize(tokens.double())
    relevance = torch.ones(len(tokens)).double()
    if len(text):
        cosine = unit @ torch.nn.functional.normalize(text.double()).mean(0)
        relevance = (cosine - cosine.min()) / (cosine.max() - cosine.min())
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    kernel.diagonal().copy_(relevance.square())
    picks, independent = [], []
    while len(picks) < budget:
        across = kernel[independent]
        left = kernel.diagonal() - (across * torch.linalg.solve(across[:, independent], across)).sum(0)
        left[left < 1e-5 * relevance.square()] = 0
        rows = [i for i in range(len(tokens)) if i not in picks]
        picks.append(max(rows, key=lambda i: (float(left[i]), float(relevance[i]), -i)))
        if left[picks[-1]] > 0:
            independent.append(picks[-1])
    return picks


TEXTBOOKS = {
    "divprune": textbook_divprune,
    "trimtokenator": textbook_trimtokenator,
    "cdpruner": textbook_cdpruner,
}


def check_textbook(method, kind, dtype, backend="torch"):
    """Every sample's picks are the textbook's."""
    tokens, text = batch(kind, dtype=dtype)
    out = prune(method, tokens, text, backend)
    for sample, rows, words in samples():
        own = out.indices[(out.indices >= rows.start) & (out.indices < rows.stop)] - rows.start
        expected = TEXTBOOKS[method](tokens[rows], text[words], int(out.plan.keep[sample]))
        assert own.tolist() == sorted(expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", GREEDY)
def test_the_textbooks_picks(method, kind, backend):
    check_textbook(method, kind, torch.float32, backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("method", GREEDY)
def test_the_textbooks_picks_of_16_bit_tokens(method, dtype):
    check_textbook(method, "noise", dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("count", [1, 2, 255, 1023, 1025, 2500])
def test_distances_to_the_nearest_other(count, dtype):
    tokens = make_tokens("clusters", count, 24, dtype=dtype)
    tokens[5:7] = 0
    tokens[count // 2] = tokens[-1]
    inverse = tt.token_statistics(tokens, [0, count], center="none", backend="torch").inverse_norm
    found = divprune.distance_to_nearest_other(tokens, inverse)
    x = tokens.double()
    unit = reference.directions_about(x, None, reference.inverse_norm_about(x, None))
    distance = reference.distance_of(unit @ unit.T)
    present = x.norm(dim=1) > 0
    distance[:, ~present] = math.inf
    distance.fill_diagonal_(math.inf)
    expected = torch.where(present, distance.min(1).values, 0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("block", [1, 2, 1024])
def test_zero_tokens_are_nobodys_nearest_and_copies_at_0(block, monkeypatch):
    monkeypatch.setattr(divprune, "BLOCK", block)
    tokens = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    found = divprune.distance_to_nearest_other(tokens, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert found.tolist() == [2.0, 0.0, 2.0, 0.0]
    found = divprune.distance_to_nearest_other(tokens[:2], torch.tensor([1.0, 0.0]))
    assert found.tolist() == [math.inf, 0.0]
    copies = make_tokens("noise", 20, 33).repeat(2, 1)
    assert (divprune.distance_to_nearest_other(copies, 1 / copies.norm(dim=1)) == 0).all()


def test_divprunes_seed_by_hand():
    # 3 is farthest from its nearest other; then what is farthest from the picks
    angles = torch.tensor([0.0, 5.0, 10.0, 90.0]).deg2rad()
    tokens = torch.stack([angles.cos(), angles.sin()], dim=1)
    for budget, expected in ((1, [3]), (2, [0, 3]), (3, [0, 2, 3])):
        config = tt.PruneConfig(method="divprune", keep_tokens=budget)
        assert tt.prune(tokens, [0, 4], config=config).indices.tolist() == expected


def test_the_nearest_tokens_to_the_text_go_first_and_then_the_diverse():
    # 1 and 4 are far from the text: of five tokens four stay in the race
    tokens = torch.tensor([[1.0, 0.0], [-9.0, -1.0], [1.0, 0.2], [0.0, 1.0], [-1.0, 1.0]])
    config = tt.PruneConfig(method="trimtokenator", keep_tokens=2)
    text = torch.tensor([[2.0, 0.5], [0.0, 0.5]])
    assert tt.prune(tokens, [0, 5], text=text, config=config).indices.tolist() == [0, 3]
    assert tt.prune(tokens, [0, 5], config=config).indices.tolist() == [1, 3]
    keep_all = tt.PruneConfig(method="trimtokenator", keep_tokens=5)
    assert tt.prune(tokens, [0, 5], text=text, config=keep_all).indices.tolist() == [0, 1, 2, 3, 4]


def test_uniform_by_hand():
    config = tt.PruneConfig(method="uniform", keep_tokens=4)
    assert tt.prune(torch.ones(23, 2), [0, 5, 10, 23], [0, 2, 3], config=config).indices.tolist() == [
        *(0, 2, 5, 7),
        *(10, 13, 16, 19),
    ]


def splitmix64(seed, index):
    """In Python's integers, as it was published."""
    mask = 2**64 - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_random_keys_are_splitmix64():
    assert splitmix64(1234567, 0) == 6457827717110365317  # the generator's published first output
    for seed in (0, 1, 2**63 - 1):
        keys = random._splitmix64(seed, torch.arange(50)).tolist()
        assert [key % 2**64 for key in keys] == [splitmix64(seed, i) for i in range(50)]


def drawn(seed, keep, count=200):
    config = tt.PruneConfig(method="random", seed=seed, keep_tokens=keep)
    return set(tt.prune(torch.ones(count, 1), [0, count], config=config).indices.tolist())


def test_random_hangs_on_the_seed_and_the_position_alone():
    assert drawn(3, 50) == drawn(3, 50) != drawn(4, 50)
    assert drawn(3, 20) < drawn(3, 50), "a larger budget keeps what a smaller one does"
    tokens, _ = batch()
    out = prune("random", tokens, seed=3, keep_tokens=20, min_tokens_per_image=0)
    for _, rows, _ in samples():
        own = {row - rows.start for row in out.indices.tolist() if row in range(rows.start, rows.stop)}
        assert own == drawn(3, 20, rows.stop - rows.start)


def test_random_is_fair():
    counts = torch.zeros(50)
    for seed in range(400):
        counts[list(drawn(seed, 10, 50))] += 1
    # 80 of 400 each; chi-squared of 49 degrees, by the share of variance that drawing without return leaves
    assert (counts - 80).square().sum() / 80 / 0.8 < 95


def check_complete(method, text=True, **options):
    """Everything that the result promises."""
    tokens, words = batch()
    out = prune(method, tokens, words if text else None, **options)
    options.pop("backend", None)
    kept = tt.kept_counts(CU_TOKENS, CU_IMAGES, config=tt.PruneConfig(method=method, **options))
    assert out.plan.keep.tolist() == out.plan.pool.tolist() == kept and len(out.indices) == sum(kept)
    assert out.plan.survivors.tolist() == [41, 159, 440]
    assert out.plan.image_budgets.tolist() == torch.tensor(CU_TOKENS).diff().tolist()
    assert (out.indices.diff() > 0).all() and out.indices.dtype == torch.int64
    assert torch.equal(out.cu_tokens, torch.searchsorted(out.indices, torch.tensor(CU_TOKENS)))
    per_sample = torch.bucketize(out.indices, torch.tensor([41, 200]), right=True)
    assert torch.bincount(per_sample).tolist() == kept
    assert torch.equal(out.stage == KEPT, torch.isin(torch.arange(640), out.indices))
    assert out.stage.dtype == torch.int8 and (out.stage >= STAGE_2).all()
    assert torch.equal(out.gather(tokens), tokens[out.indices])
    assert len(out.statistics.inverse_norm) == 640 and out.distance.shape == out.indices.shape
    assert out.distance.isfinite().all() if method in GREEDY else out.distance.isnan().all()
    if text:
        torch.testing.assert_close(out.alignment, out.statistics.alignment[out.indices], equal_nan=True)
        assert (out.front == -1).all() and out.front.shape == out.indices.shape
    else:
        assert out.alignment is None and out.front is None
    return out


@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
@pytest.mark.parametrize(
    "options",
    [{}, {"keep_ratio": 0.005, "min_tokens_per_image": 3}, {"keep_tokens": 50}, {"keep_ratio": 1.0}],
    ids=["a fifth", "floors", "50", "all"],
)
@pytest.mark.parametrize("method", NAMES)
def test_a_complete_result_of_the_size_known_beforehand(method, options, text):
    check_complete(method, text, **options)


@pytest.mark.parametrize("method", ["trimtokenator", "divprune"])
def test_values_are_those_of_the_picks(method):
    tokens, text = batch("photo-like")
    out = prune(method, tokens, text)
    for _, rows, words in samples():
        inside = (out.indices >= rows.start) & (out.indices < rows.stop)
        order = TEXTBOOKS[method](tokens[rows], text[words], int(inside.sum()))
        unit = torch.nn.functional.normalize(tokens[rows].double())
        values = []
        for step in range(1, len(order)):
            apart = 1 - unit[order[step]] @ unit[order[:step]].T
            values.append(float(apart.min() if method == "divprune" else apart.mean()))
        expected = dict(zip(order, [max(values), *values], strict=True))
        own = [expected[row - rows.start] for row in out.indices[inside].tolist()]
        torch.testing.assert_close(out.distance[inside], torch.tensor(own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("method", NAMES)
def test_a_batch_equals_its_samples_alone(method, dtype):
    tokens, text = batch(dtype=dtype, offset=1.0)
    together = prune(method, tokens, text)
    kept = 0
    for sample, rows, words in samples():
        boundaries = [offset - rows.start for offset in CU_TOKENS[slice(*CU_IMAGES[sample : sample + 2])]]
        alone = tt.prune(
            tokens[rows].clone(),
            [*boundaries, rows.stop - rows.start],
            text=text[words] if words.start < words.stop else None,
            config=tt.PruneConfig(method=method),
        )
        own = slice(kept, kept + len(alone.indices))
        assert torch.equal(together.indices[own], alone.indices + rows.start)
        assert torch.equal(together.distance[own].isnan(), alone.distance.isnan())
        assert torch.equal(together.distance[own].nan_to_num(), alone.distance.nan_to_num())
        assert torch.equal(together.stage[rows], alone.stage)
        kept += len(alone.indices)
    assert kept == len(together.indices)


@pytest.mark.parametrize("method", NAMES)
def test_input_is_not_written_to_and_strides_change_nothing(method):
    tokens, text = batch()
    tokens[3], text[1] = 0, 0
    expected = prune(method, tokens, text)
    for view in awkward(tokens).values():
        before, words = view.clone(), text.clone()
        found = prune(method, view, text)
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.distance, expected.distance, equal_nan=True)
        assert torch.equal(view, before) and torch.equal(text, words)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("method", NAMES)
def test_tokens_without_any_structure(method, backend):
    for fill in (0.0, 1.0):
        out = prune(method, torch.full((640, 8), fill), torch.ones(8, 8), backend)
        assert len(out.indices) == 128
        assert method == "random" or out.indices[:8].tolist() == (
            list(range(8)) if method in GREEDY else [0, 5, 10, 15, 20, 25, 30, 35]
        )
    one = tt.prune(torch.ones(1, 1), [0, 1], text=torch.ones(1, 1), config=tt.PruneConfig(method=method))
    assert one.indices.tolist() == [0]


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("method", GREEDY)
def test_what_is_not_finite_is_refused_or_counts_as_a_zero_token(method, backend):
    tokens, text = batch()
    tokens[7], tokens[300, 2], text[0] = math.nan, math.inf, math.nan
    with pytest.raises(tt.InvalidInputError, match="`tokens`.*row 7"):
        prune(method, tokens, text, backend)
    found = prune(method, tokens, text, backend, check_finite=False)
    zeros, words = tokens.clone(), text.clone()
    zeros[[7, 300]], words[0] = 0, 0
    if method == "divprune":
        assert torch.equal(found.indices, prune(method, zeros, words, backend).indices)
    assert not {7, 300} & set(found.indices.tolist())
    assert found.distance.isfinite().all()


@pytest.mark.parametrize("method", NAMES)
def test_fp64_tokens_and_a_common_offset(method):
    tokens, text = batch("photo-like", dtype=torch.float64, offset=2.0)
    out = prune(method, tokens, text)
    single = prune(method, tokens.float(), text.float())
    assert torch.equal(out.indices, single.indices), "the picks of this batch are clear"


@pytest.mark.parametrize("method", NAMES)
def test_the_config_decides_nothing_that_the_method_does_not_know(method):
    tokens, text = batch(offset=1.0)
    expected = prune(method, tokens, text)
    rules = dict(center="none", pool_fraction=0.9, stage_split=0.1, image_objective="max_min")
    found = prune(method, tokens, text, **rules, pool_objective="max_mean", candidates=7, workspace_bytes=0)
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("method", NAMES)
def test_a_plan_decides_how_many_stay(method):
    tokens, text = batch()
    plan = tt.prune(tokens, CU_TOKENS, CU_IMAGES, config=tt.PruneConfig(keep_ratio=0.4)).plan
    out = tt.prune(tokens, CU_TOKENS, CU_IMAGES, plan=plan, config=tt.PruneConfig(method=method))
    assert torch.equal(out.indices, prune(method, tokens, keep_ratio=0.4).indices)


@pytest.mark.parametrize("method", NAMES)
def test_nothing_waits_for_the_device(method, monkeypatch, request):
    without_kernels(monkeypatch)
    for cache in (integers_on, _rows_on):
        cache.cache_clear()
        request.addfinalizer(cache.cache_clear)
    with FakeTensorMode():
        tokens, text = torch.empty(640, 32), torch.empty(8, 32)
        out = prune(method, tokens, text, "triton", check_finite=False)
        assert len(out.indices) == 128
        with pytest.raises(DataDependentOutputException):
            out.indices.tolist()


def test_names_go_through_the_config():
    config = tt.PruneConfig(method="random", seed=7)
    assert tt.PruneConfig.from_dict(config.to_dict()) == config
    assert tt.PruneConfig().method == "trimtokenator-lc"
    with pytest.raises(tt.InvalidInputError, match="`method`.*Did you mean 'divprune'"):
        tt.PruneConfig(method="divprun")


def test_a_method_of_ones_own():
    seen = []

    @tt.register_method("mine", center="sample")
    def mine(batch):
        seen.append(batch)
        return batch.greedy("coverage")

    tokens, text = batch(offset=1.0)
    out = prune("mine", tokens, text, center="none", keep_ratio=0.1)
    picks, gain = tt.greedy_select(
        tokens, [0, 41, 200, 640], out.plan.keep, origin=out.statistics.origin, backend="torch"
    )
    picks, order = picks.sort()
    assert torch.equal(out.indices, picks) and torch.equal(out.distance, gain[order])
    assert [seen[0].words(k) is None for k in range(3)] == [False, True, False]
    assert torch.equal(seen[0].words(2), text[3:])


@pytest.mark.parametrize(
    ("picks", "got"),
    [
        (torch.tensor([0, 0, 5, 6]), "others"),
        (torch.tensor([0, 1, 2, 6]), "others"),
        (torch.tensor([5, 6, 0, 1]), "others"),
        (torch.tensor([0, 1, 5, 10]), "others"),
        (torch.tensor([-1, 1, 5, 6]), "others"),
        (torch.tensor([0, 1, 5]), "int64 [3]"),
        (torch.tensor([0.0, 1.0, 5.0, 6.0]), "float32 [4]"),
        ([0, 1, 5, 6], "list"),
        ((torch.tensor([0, 1, 5, 6]), torch.ones(3)), "float32 [3]"),
    ],
    ids=[
        "twice",
        "wrong samples",
        "order of samples",
        "past the end",
        "negative",
        "few",
        "floats",
        "a list",
        "values",
    ],
)
def test_a_method_that_picks_what_it_must_not_is_refused(picks, got):
    tt.register_method("mine")(lambda batch: picks)
    config = tt.PruneConfig(method="mine", keep_tokens=2)
    with pytest.raises(tt.InvalidInputError, match="`method`") as caught:
        tt.prune(torch.ones(10, 3), [0, 5, 10], [0, 1, 2], config=config)
    assert got in str(caught.value)


def test_bad_registrations():
    for name in ("", "divprune", "trimtokenator-lc"):
        with pytest.raises(tt.InvalidInputError, match="`name`"):
            tt.register_method(name)(lambda batch: None)
    with pytest.raises(tt.UnsupportedDtypeError, match="`name`"):
        tt.register_method(3)
    with pytest.raises(tt.InvalidInputError, match="`center`"):
        tt.register_method("mine", center="mean")
    with pytest.raises(tt.UnsupportedDtypeError, match="`select`"):
        tt.register_method("mine")("no function")
    assert "mine" not in METHODS


@pytest.mark.parametrize("method", ["trimtokenator", "divprune"])
def test_picks_pass_the_certificate_where_ties_are_near(method):
    tokens = make_tokens("photo-like", 900, 48, offset=3.0)
    text = make_tokens("noise", 6, 48, seed=1)
    config = tt.PruneConfig(method=method, keep_ratio=0.3)
    batch = tt.prune(tokens, [0, 900], text=text, config=config)
    rows = torch.arange(900)
    if method == "trimtokenator":
        apart = (tokens.double() - text.double().mean(0)).norm(dim=1)
        rows = apart.argsort()[:720].sort().values
    order = batch.indices[batch.distance.argsort(descending=True, stable=True)]
    objective, seeds = ("max_min", 1) if method == "divprune" else ("max_mean", 0)
    if method == "divprune":  # values fall: their order is the picks'
        assert certify(tokens, order, objective=objective, seeds=seeds).regret <= TOLERANCE[torch.float32]
    assert torch.isin(batch.indices, rows).all()


NOISE = partial(check_textbook, "divprune", "noise", torch.float32)
TEXTED = partial(check_textbook, "trimtokenator", "noise", torch.float32)


def nearest_others():
    for count in (2, 255, 1025, 2500):
        test_distances_to_the_nearest_other(count, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        for block in (1, 1024):
            test_zero_tokens_are_nobodys_nearest_and_copies_at_0(block, patch)


FAULTS = {
    (divprune.divprune, NOISE): [
        ("seed by position", "rows.start + ", ""),
        ("the most crowded token", ".argmax()", ".argmin()"),
    ],
    (divprune.distance_to_nearest_other, nearest_others): [
        ("itself the nearest", "cosine.fill_diagonal_(-torch.inf)", "pass"),
        ("columns not served", ".amax(0)", ".amin(0)"),
        ("a tile left out", "range(row,", "range(row + BLOCK,"),
        ("zero tokens near", "cosine.masked_fill_(~present[columns], -torch.inf)", "pass"),
        ("zero tokens near columns", "masked_fill(~present[rows, None], -torch.inf)", "clone()"),
        ("zero tokens far", "present & (distance", "(distance"),
        ("copies apart", ">= constants.ZERO_DISTANCE", "> -1"),
    ],
    (trimtokenator.trimtokenator, TEXTED): [
        ("text of another sample", "batch.words(sample)", "batch.words(0)")
    ],
    (trimtokenator._relevant, TEXTED): [
        ("the least relevant", "argsort(stable=True)", "argsort(descending=True)"),
        ("no first step", "[:count]", ""),
    ],
    (trimtokenator.distance_to_text, TEXTED): [("about 0", " - mean", "")],
    (uniform.uniform, test_uniform_by_hand): [
        ("from the batch's start", "rows.start + ", ""),
        ("rounded apart", "* (rows.stop - rows.start) // keep", "* ((rows.stop - rows.start) // keep)"),
    ],
    (random.random, test_random_hangs_on_the_seed_and_the_position_alone): [
        ("by row", "keys[: rows.stop - rows.start]", "keys.roll(rows.start)[: rows.stop - rows.start]"),
        ("seed ignored", "batch.config.seed", "0"),
    ],
    (random._shifted, test_random_keys_are_splitmix64): [
        ("sign brought in", "(value >> bits) & (2 ** (64 - bits) - 1)", "value >> bits")
    ],
}


@pytest.mark.parametrize(
    ("function", "old", "new", "check"),
    [
        pytest.param(function, old, new, check, id=f"{function.__name__}: {name}")
        for (function, check), faults in FAULTS.items()
        for name, old, new in faults
    ],
)
def test_a_planted_fault_is_caught(function, old, new, check, monkeypatch):
    plant(monkeypatch, function, old, new)
    with pytest.raises((AssertionError, tt.InvalidInputError)):
        check()
