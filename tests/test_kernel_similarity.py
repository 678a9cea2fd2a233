"""Directions and similarities by the kernels, against fp64: in the interpreter, and as compiled for a GPU."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch

from benchmarks.workloads import DTYPES, SHAPES, make_tokens
from tests.kernel_harness import awkward, plant, simulated
from trimtok_fast.backends import reference
from trimtok_fast.backends import triton_greedy as backend
from trimtok_fast.kernels import common, directions, similarity

#: Of a cosine: what the rounding of directions to 16 bits, or of sums to fp32, may do.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-3}
SENTINEL = {torch.int16: -9999, torch.int32: -99999999, torch.int64: -99999999}


def similarities(
    tokens, cu_segments, objective, origin=None, inverse_norm=None, rows=None, above=0, precision="ieee"
):
    """All slots, between slots of sentinels that must stay: the matrices, the partial sums, the form."""
    lengths = [end - start for start, end in zip(cu_segments, cu_segments[1:], strict=False)]
    form = backend.form_of(tokens, objective)
    size, slots = max(lengths), len(lengths)
    guarded = backend.allocate(tokens, slots + 2, size, form, objective)
    for tensor in guarded:
        if tensor is not None:
            tensor.fill_(SENTINEL.get(tensor.dtype, float("nan")))
    work = backend.Workspace(*(None if tensor is None else tensor[1:-1] for tensor in guarded))
    group = dict(cu_segments=torch.tensor(cu_segments), first=0, above=above, input_precision=precision)
    directions.directions_launch(
        work.directions,
        work.scale,
        tokens=tokens,
        origin=origin,
        inverse_norm=inverse_norm,
        rows=torch.arange(len(tokens)) if rows is None else rows,
        **group,
    )
    similarity.similarity_launch(
        work.matrix,
        work.partial,
        directions=work.directions,
        scale=work.scale,
        unit=form.unit,
        coverage=objective == "coverage",
        **group,
    )
    for tensor in (guarded.directions, guarded.scale, guarded.matrix, guarded.partial):
        for slot in (tensor[0], tensor[-1]):
            untouched = slot == SENTINEL[slot.dtype] if slot.dtype in SENTINEL else slot.isnan()
            assert untouched.all()
    return work, form


def of_slot(work, form, slot, size):
    """A segment's matrix, whole with what fills it up, and its column sums."""
    rows = -(-size // similarity.PAD.value) * similarity.PAD.value
    tiles = backend.slot_rows_of(size, form) * work.partial.shape[1] // work.partial.shape[2]
    matrix = work.matrix[slot].flatten()[: rows * rows].view(rows, rows)
    return matrix, work.partial[slot].flatten()[: tiles * rows].view(tiles, rows).long().sum(0)


def check_similarities(tokens, cu_segments, objective, origin=None, rows=None, **options):
    """Right to rounding, symmetric, exact for duplicates; its sums are the sums of what is stored."""
    work, form = similarities(tokens, cu_segments, objective, origin, rows=rows, **options)
    for k, (start, end) in enumerate(zip(cu_segments, cu_segments[1:], strict=False)):
        size = end - start
        if size == 0:
            continue
        own = slice(start, end) if rows is None else rows[start:end]
        x, _ = reference.usable(tokens[own])
        center = None if origin is None else origin[k].double()
        unit = reference.directions_about(x, center, reference.inverse_norm_about(x, center))
        expected = reference.similarity_of(unit @ unit.T)
        if objective != "coverage":
            expected = torch.where(expected == 1, 1.0, unit @ unit.T)
        matrix, total = of_slot(work, form, k, size)
        found = matrix[:size, :size].double()
        units = found if objective == "coverage" else (found * form.unit + 0.5).floor()
        assert torch.equal(units.sum(0).long(), total[:size])
        assert torch.equal(found, found.T)
        assert (matrix[size:] == 0).all() and (matrix[:, size:] == 0).all() and (total[size:] == 0).all()
        cosine = found / form.unit if objective == "coverage" else found
        rounding = 0.5 / form.unit if objective == "coverage" else 0
        torch.testing.assert_close(cosine, expected, rtol=0, atol=TOLERANCE[tokens.dtype] + rounding)
        assert (cosine.diagonal() == (unit.norm(dim=1) > 0)).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("objective", ["coverage", "max_min"])
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_similarities_at_every_shape(count, width, objective, dtype):
    check_similarities(make_tokens("noise", count, width, dtype=dtype), [0, count], objective)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("objective", ["coverage", "max_mean"])
def test_ragged_segments_of_rows_about_origins(objective, dtype):
    tokens = make_tokens("clusters", 400, 70, offset=1.0, dtype=dtype)
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:230]
    origin = tokens.double().mean(0).float() + torch.randn(4, 70) * 0.1
    check_similarities(tokens, [0, 0, 100, 101, 230], objective, origin, rows)


def test_an_origin_far_away_costs_no_digits():
    tokens = make_tokens("noise", 130, 48, offset=100)
    check_similarities(tokens, [0, 130], "max_min", tokens.double().mean(0, keepdim=True).float())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("objective", ["coverage", "max_min"])
def test_duplicates_zeros_and_what_is_not_finite(objective, dtype):
    tokens = make_tokens("noise", 50, 33, dtype=dtype).repeat(3, 1)
    tokens[[5, 60]] = 0
    tokens[70, 3], tokens[71] = float("nan"), float("inf")
    work, form = similarities(tokens, [0, 150], objective)
    matrix, _ = of_slot(work, form, 0, 150)
    one = form.unit if objective == "coverage" else 1
    alike = matrix[:50, 100:150].diagonal() == one
    assert alike.tolist() == [i != 5 for i in range(50)]
    assert (matrix[[5, 60, 70, 71]] == 0).all() and (matrix[:, [5, 60, 70, 71]] == 0).all()


@pytest.mark.parametrize("scale", [1e-21, 1e-19, 1e-17, 1e17, 1e19], ids=str)
def test_norms_that_are_not_given_are_right_at_every_scale(scale):
    tokens = make_tokens("noise", 40, 16)
    check_similarities(tokens * scale, [0, 40], "coverage")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_given_norms_mark_zero_tokens_and_what_is_not_finite(dtype):
    tokens = make_tokens("noise", 40, 16, dtype=dtype)
    expected, form = similarities(tokens, [0, 40], "coverage")
    inverse = 1 / tokens.float().norm(dim=1)
    inverse[3], inverse[7], tokens[7] = 0, float("nan"), float("nan")
    found, _ = similarities(tokens, [0, 40], "coverage", inverse_norm=inverse)
    matrix, whole = of_slot(found, form, 0, 40)[0], of_slot(expected, form, 0, 40)[0].clone()
    whole[[3, 7]] = whole[:, [3, 7]] = 0
    assert (matrix - whole).abs().max() <= 1


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_strides_and_alignment_change_no_bit(dtype):
    tokens = make_tokens("noise", 70, 13, dtype=dtype)
    expected, _ = similarities(tokens, [0, 70], "coverage")
    for view in awkward(tokens).values():
        found, _ = similarities(view, [0, 70], "coverage")
        assert torch.equal(found.matrix, expected.matrix) and torch.equal(found.partial, expected.partial)


def test_segments_of_other_classes_are_left_alone():
    tokens = make_tokens("noise", 200, 16)
    work, form = similarities(tokens, [0, 60, 200], "coverage", above=60)
    assert (work.matrix[0] == SENTINEL[form.matrix]).all() and work.scale[0].isnan().all()
    assert (of_slot(work, form, 1, 140)[0][:140, :140].diagonal() == form.unit).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("objective", ["coverage", "max_min"])
def test_the_compiled_code_is_right_and_free_of_races(objective, dtype):
    tokens = make_tokens("clusters", 170, 90, offset=1.0, dtype=dtype)
    tokens[7] = 0
    tokens[150] = tokens[20]
    origin = tokens.double().mean(0, keepdim=True).float().repeat(2, 1)
    precision = "tf32x3" if dtype == torch.float32 else "ieee"
    with simulated():
        check_similarities(tokens, [0, 31, 170], objective, origin, precision=precision)


@pytest.mark.parametrize("size", [577, pytest.param(784, marks=pytest.mark.slow)])
def test_the_compiled_code_does_little_more_than_half_the_products(size):
    """The multiply-adds that its matrix instructions do, those of the padding too: 0.6 m² d at most."""
    tokens = make_tokens("noise", size, 64, dtype=torch.float16)
    with simulated(races="record") as reports:
        work, form = similarities(tokens, [0, size], "coverage")
    shapes = re.compile(r"mma\..*\.m(\d+)n(\d+)k(\d+)\.")
    done = 0
    for name, count in reports[-1].instructions.items():
        if found := shapes.match(name):
            done += count * math.prod(map(int, found.groups()))
    assert done == similarity.traffic((size,), form.width, form.directions, form.matrix).products
    assert 0.5 * size**2 * 64 < done <= 0.6 * size**2 * 64


FAULTS = {
    "mirror not transposed": ("tl.trans(stored))", "(tl.trans(stored) if BLOCK_N != BLOCK_M else stored))"),
    "diagonal tile counted twice": (
        "return total + tl.sum(units, 1)",
        "return total + tl.sum(units, 1) * tl.where(row_tile == column_tile, 2, 1)",
    ),
    "last block of channels lost": ("range(0, width, BLOCK_D)", "range(0, width - BLOCK_D, BLOCK_D)"),
    "negative similarities": ("0.0 if COVERAGE else -1.0", "-1.0"),
    "duplicates almost 1": ("cosine > DUPLICATE", "cosine > 2.0"),
    "sums of the rows only": ("+ columns, tl.sum(units, 0))", "+ columns, 0 * tl.sum(units, 0))"),
    "wrong tile of the triangle": (
        "index - column_tile * (column_tile + 1)",
        "index - column_tile * (column_tile - 1)",
    ),
    "last block of columns lost": ("if rest >= BLOCK_M", "if rest > BLOCK_M"),
    "last columns stored as if whole": ("tl.cdiv(size, PAD) * PAD", "tl.cdiv(size, BLOCK_M) * BLOCK_M"),
}


@pytest.mark.parametrize(("old", "new"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_similarity_is_seen(old, new, monkeypatch, tmp_path):
    check = partial(check_similarities, make_tokens("noise", 200, 130), [0, 200], "coverage")
    duplicates = partial(
        test_duplicates_zeros_and_what_is_not_finite, objective="max_min", dtype=torch.float32
    )
    plant(monkeypatch, similarity, old, new, tmp_path)
    with pytest.raises(AssertionError):
        check()
        duplicates()


DIRECTION_FAULTS = {
    "rows by position": ("tl.load(rows_ptr + start + offs_m, mask=mask_m, other=0)", "start + offs_m"),
    "origin of the first segment": ("origin_ptr += segment * stride_origin_g", "pass"),
    "origin of the padding": (
        "return tl.where((inverse > 0)[:, None], centred * inverse[:, None], 0.0)",
        "return (centred * tl.where(inverse > 0, inverse, 1.0)[:, None])",
    ),
}


BLOCK_FAULTS = {
    "stride of the channels": ("offs_d[None, :].to(tl.int64) * stride_d", "offs_d[None, :]"),
    "channels past the last": (
        "mask_m[:, None] & (offs_d < D)[None, :], other=0.0)\n",
        "mask_m[:, None] & (offs_d >= 0)[None, :], other=0.0)\n",
    ),
    "origin added": ("x - origin.to", "x + origin.to"),
}


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        pytest.param(module, *fault, id=name)
        for module, faults in ((directions, DIRECTION_FAULTS), (common, BLOCK_FAULTS))
        for name, fault in faults.items()
    ],
)
def test_a_fault_in_directions_is_seen(module, old, new, monkeypatch, tmp_path):
    plant(monkeypatch, module, old, new, tmp_path)
    with pytest.raises(AssertionError):
        test_ragged_segments_of_rows_about_origins("coverage", torch.float32)
        test_duplicates_zeros_and_what_is_not_finite("coverage", torch.float32)
        test_strides_and_alignment_change_no_bit(torch.float32)
