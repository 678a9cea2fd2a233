"""On a GPU: compiled kernels against the textbook, and what only a GPU can show.

`make test-gpu` runs these with the interpreter off; where there is no GPU, or where there is an interpreter,
they are skipped. Tokens come from the CPU and results go back there: the tests of the interpreter that know
kernels by their ops alone are done here once more, on the device.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

import trimtok_fast as tt
from benchmarks import checks
from benchmarks.device_time import captured
from benchmarks.workloads import DTYPES, KINDS, make_tokens
from tests import test_greedy
from tests.kernel_harness import awkward
from tests.test_dpp import check_against_reference, weights
from tests.test_greedy import check_selection
from tests.test_kernel_budgets import many_images

# Once more, on the device.
from tests.test_kernel_dpp import (  # noqa: F401
    test_by_hand,
    test_copies_have_nothing_left,
    test_ties_and_what_counts_as_nothing,
    test_when_nothing_is_left_the_rest_goes_by_relevance,
)
from tests.test_kernel_pareto import (  # noqa: F401
    test_equal_points_across_tiles_share_a_front,
    test_equal_points_of_two_segments_share_nothing,
    test_fronts_at_every_size,
    test_infinities_and_minus_zero,
    test_one_front_and_as_many_fronts_as_points,
)
from tests.test_kernel_prune import (  # noqa: F401
    test_a_batch_on_kernels_equals_its_samples_alone,
    test_buffers_hold_as_many_survivors_as_shapes_allow,
    test_prune_keeps_what_the_reference_keeps,
    test_segments_that_fit_the_workspace_beside_one_that_does_not,
    test_what_is_not_finite_is_refused_after_the_kernels_went_over_it,
)
from tests.test_kernel_statistics import (  # noqa: F401
    test_a_batch_with_everything_in_it,
    test_chunks_begin_and_end_anywhere,
    test_squares_neither_underflow_nor_overflow,
    test_text_of_another_dtype,
    test_text_without_words,
    test_the_ends_of_what_is_a_direction,
)
from tests.test_statistics import check_statistics
from trimtok_fast.config import CENTERS, OBJECTIVES

# Before the fixture below has changed what the package's names stand for.
from trimtok_fast import gather_tokens, greedy_select, prune, token_statistics  # isort: skip

GPU = torch.device("cuda")
OPS = ("token_statistics", "greedy_select", "dpp_select", "pareto_front", "gather_tokens", "prune")

#: (tokens, width): fused, staged in both classes, streamed; whole and broken blocks.
SHAPES = [(1, 1), (7, 5), (127, 64), (256, 40), (257, 40), (577, 64), (1025, 24), (4100, 64)]
#: In so little room every segment of more than a few tokens has its similarities computed again.
SCANT = 2**16


pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs a GPU, and no interpreter: make test-gpu",
)


def moved(value, device):
    """A result, or an argument, with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(entry, device) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, tt.PruneConfig):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: moved(entry, device) for name, entry in fields.items()})
    return value


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    """What is asked of the kernels, with tensors of the CPU, is done on the GPU."""

    def on_gpu(op):
        def run(*arguments, backend="auto", **options):
            if backend != "triton":
                return op(*arguments, backend=backend, **options)
            options = {name: moved(value, GPU) for name, value in options.items()}
            return moved(op(*moved(arguments, GPU), backend=backend, **options), "cpu")

        return run

    for name in OPS:
        monkeypatch.setattr(tt, name, on_gpu(getattr(tt, name)))


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("count", "width"), [*SHAPES, (300, 896), (300, 3584), (130, 8192)])
def test_statistics_are_the_references(count, width, dtype, center):
    tokens = make_tokens("clusters", count, width, offset=1.0, dtype=dtype)
    text, half = make_tokens("noise", 3, width, seed=1, dtype=dtype), count // 2
    boundaries = [0, half, count] if half else [0, count]
    check_statistics(tokens, boundaries, text=text, center=center, backend="triton", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", ["adaptive", 0.3])
@pytest.mark.parametrize("keep", [0.01, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_budgets_are_those_of_the_cpu(seed, keep, split):
    images, samples, statistics = many_images([67, 1, 32, 200], [True, False, True, False], seed)
    statistics = dataclasses.replace(statistics, inverse_norm=torch.ones(images.end))
    config = tt.PruneConfig(keep_ratio=keep, stage_split=split, pool_fraction=0.3)
    boundaries = images.offsets, samples.offsets
    wanted = tt.plan_budgets(statistics, *boundaries, config=config)
    found = tt.plan_budgets(moved(statistics, GPU), *boundaries, config=config)
    assert all(torch.equal(moved(value, "cpu"), vars(wanted)[name]) for name, value in vars(found).items())


@pytest.mark.parametrize("workspace_bytes", [2**29, SCANT], ids=["stored", "computed again"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_the_textbooks_picks_at_every_shape(count, width, objective, dtype, workspace_bytes):
    tokens = make_tokens("clusters", count, width, dtype=dtype)
    budget = max(1, min(count // 5, 200 if workspace_bytes > SCANT else 40))
    check_selection(
        tokens, [0, count], [budget], objective, backend="triton", workspace_bytes=workspace_bytes
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_textbooks_picks_at_the_width_of_a_language_model(kind, objective, dtype):
    tokens = make_tokens(kind, 900, 3584, offset=1.0, dtype=dtype)
    origin = torch.stack([part.double().mean(0).float() for part in tokens.split([100, 576, 224])])
    check_selection(tokens, [0, 100, 676, 900], [20, 115, 44], objective, origin=origin, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_rounds_over_many_programs(kind, dtype):
    tokens = make_tokens(kind, 30_000, 64, dtype=dtype)
    picks, _ = tt.greedy_select(
        tokens, [0, 30_000], [3000], objective="max_min", workspace_bytes=2**24, backend="triton"
    )
    checks.assert_picks(picks, range(30_000), 3000)
    checks.assert_max_min(tokens, picks, test_greedy.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [200, 1024])
def test_rounds_over_stored_directions_give_the_bits_of_those_made_again(width, dtype):
    tokens = make_tokens("photo-like", 12_000, width, offset=1.0, dtype=dtype)
    origin = torch.stack([part.double().mean(0).float() for part in tokens.split([5_000, 7_000])])
    stored, made_again = (
        tt.greedy_select(
            tokens,
            [0, 5_000, 12_000],
            [600, 900],
            objective="max_min",
            origin=origin,
            workspace_bytes=workspace_bytes,
            backend="triton",
        )
        for workspace_bytes in (2**29, 2**20)
    )
    assert torch.equal(stored[0], made_again[0]) and torch.equal(stored[1], made_again[1])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("layout", ["transposed", "strided", "misaligned"])
def test_strides_and_alignment_change_no_pick(layout, objective):
    tokens = make_tokens("clusters", 300, 48, dtype=torch.bfloat16).to(GPU)
    plain, odd = (
        tt.greedy_select(x, [0, 300], [60], objective=objective, backend="triton")
        for x in (tokens, awkward(tokens)[layout])
    )
    assert torch.equal(plain[0], odd[0]) and torch.equal(plain[1], odd[1])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_determinants_are_the_references(kind, dtype):
    tokens = make_tokens(kind, 700, 200, dtype=dtype)
    check_against_reference(tokens, [0, 100, 700], [20, 120], weights(700), backend="triton")


def test_more_elements_than_int32_counts():
    count, width = 700_000, 3584
    tokens = torch.empty(count, width, dtype=torch.bfloat16, device=GPU)
    for rows in tokens.split(50_000):
        rows.normal_(generator=torch.Generator(GPU).manual_seed(len(rows)))
    assert tokens.numel() > 2**31
    last = [count - 300, count]
    found = tt.token_statistics(tokens, [0, *last], center="none", backend="triton")
    expected = tt.token_statistics(tokens[last[0] :].cpu(), [0, 300], center="none", backend="reference")
    torch.testing.assert_close(found.diversity[1:], expected.diversity, rtol=1e-4, atol=1e-5)
    rows = torch.arange(count - 1, 0, -70_001)
    assert torch.equal(tt.gather_tokens(tokens, rows, backend="triton"), tokens[rows.to(GPU)].cpu())
    picks, _ = tt.greedy_select(
        tokens, [0, 300], [30], rows=torch.arange(*last), objective="max_min", backend="triton"
    )
    alone, _ = tt.greedy_select(tokens[last[0] :], [0, 300], [30], objective="max_min", backend="triton")
    assert torch.equal(picks, alone + last[0])


CU_TOKENS = [0, 576, 1152, 1252, 2452, 3028]
QUIET = tt.PruneConfig(check_finite=False)


def prompt(seed=0, words=20, dtype=torch.bfloat16):
    """Two samples of three and two images, with text, on the GPU."""
    tokens = make_tokens("photo-like", CU_TOKENS[-1], 896, seed=seed, offset=1.0, dtype=dtype)
    text = make_tokens("noise", words, 896, seed=seed + 1, dtype=dtype)
    return tokens.to(GPU), text.to(GPU)


def run_prune(tokens, text, config=QUIET):
    """Prunes the two samples."""
    return prune(
        tokens, CU_TOKENS, [0, 3, 5], text=text, cu_text=[0, 12, 20], config=config, backend="triton"
    )


def assert_same(found, expected):
    """Two `PruneResult`s, bit for bit."""
    for name in ("indices", "cu_tokens", "distance", "alignment", "front", "stage"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_pruning_is_right_stage_by_stage(dtype, monkeypatch):
    tokens, text = prompt(dtype=dtype)
    boundaries = CU_TOKENS[:4]
    out = prune(tokens[:1252], boundaries, text=text, backend="triton")
    monkeypatch.setattr(tt, "greedy_select", greedy_select)
    monkeypatch.setattr(tt, "token_statistics", token_statistics)
    checks.assert_pruned(tokens[:1252], boundaries, text, tt.PruneConfig(), out)


def test_every_run_gives_the_same_bits():
    tokens, text = prompt()
    first = run_prune(tokens, text)
    for _ in range(20):
        assert_same(run_prune(tokens, text), first)


def test_pruning_never_waits_for_the_gpu():
    tokens, text = prompt()
    expected = run_prune(tokens, text)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run_prune(tokens, text)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(found, expected)


def test_pruning_is_captured_in_a_graph():
    tokens, text = prompt()
    run_prune(tokens, text)  # compiles
    made = []
    replay = captured(lambda: made.append(run_prune(tokens, text)))
    for seed in (0, 5, 6):
        other, words = prompt(seed)
        tokens.copy_(other)
        text.copy_(words)
        replay()
        assert_same(made[-1], run_prune(other, words))


def test_a_graph_outlives_what_caches_hold():
    tokens, text = prompt()
    expected = run_prune(tokens, text)
    made = []
    replay = captured(lambda: made.append(run_prune(tokens, text)))
    for count in range(40, 130):
        prune(tokens[:count], [0, count], config=QUIET, backend="triton")
    # Where a table was let go, something else stands now.
    filling = [torch.full((size,), -1, device=GPU) for size in (8, 64, 512, 4096) for _ in range(500)]
    replay()
    assert_same(made[-1], expected)
    del filling


def test_selection_compiles_whole():
    tokens, _ = prompt()

    def halved(tokens):
        indices, _ = greedy_select(tokens, CU_TOKENS, [50] * 5, backend="triton")
        return gather_tokens(tokens, indices) * 0.5

    assert torch.equal(torch.compile(halved, fullgraph=True)(tokens), halved(tokens))


def test_another_stream_gives_the_same_bits():
    tokens, text = prompt()
    expected = run_prune(tokens, text)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = run_prune(tokens, text)
    stream.synchronize()
    assert_same(found, expected)


def test_auto_takes_the_kernels():
    tokens, text = prompt()
    assert_same(prune(tokens, CU_TOKENS, [0, 3, 5], text=text, cu_text=[0, 12, 20]), run_prune(tokens, text))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_patched_model_keeps_what_prune_keeps(name):
    pytest.importorskip("transformers")
    from tests.hf_zoo import FAMILIES, FIVE
    from tests.test_hf_selection import CONFIG, assert_same, expected, words

    family = FAMILIES[name]
    model = family.build().to(GPU)
    inputs, owner = family.prompt(FIVE)
    asked = words(family, inputs, owner).to(GPU)
    inputs, owner = {key: value.to(GPU) for key, value in inputs.items()}, owner.to(GPU)
    kept, results = expected(model, inputs, owner, asked)
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
        model(**inputs)
    assert torch.equal(handle.last.kept, kept)
    assert_same(handle.last.results, results)
