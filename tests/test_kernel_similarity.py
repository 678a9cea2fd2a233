"""Directions and similarities by the kernels, against fp64: in the interpreter, and as compiled for a GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.workloads import DTYPES, SHAPES, make_tokens
from tests.kernel_harness import Recorder, awkward, mutant
from trimtok_fast.backends import reference
from trimtok_fast.backends import triton_greedy as backend
from trimtok_fast.kernels import directions, similarity

#: Of a cosine: what the rounding of directions to 16 bits, or of sums to fp32, may do.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-3}
SENTINEL = {torch.int16: -9999, torch.int32: -99999999}


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
        rows=rows,
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
    rows = backend.slot_rows_of(size, form)
    tiles = rows * work.partial.shape[1] // work.partial.shape[2]
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
        expected = reference.similarity_of(unit)
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


def on_the_simulator(kernel, grid, arguments, options, target="sm_80"):
    """Execute the PTX of a launch, with checks for races and bounds."""
    from tests.ptxsim import execute

    execute(kernel, grid, *arguments, target=target, **options)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("objective", ["coverage", "max_min"])
def test_the_compiled_code_is_right_and_free_of_races(objective, dtype, monkeypatch):
    for module, name in ((directions, "_directions_kernel"), (similarity, "_similarity_kernel")):
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), on_the_simulator))
    tokens = make_tokens("clusters", 170, 90, offset=1.0, dtype=dtype)
    tokens[7] = 0
    tokens[150] = tokens[20]
    origin = tokens.double().mean(0, keepdim=True).float().repeat(2, 1)
    precision = "tf32x3" if dtype == torch.float32 else "ieee"
    check_similarities(tokens, [0, 31, 170], objective, origin, precision=precision)


FAULTS = {
    "mirror not transposed": ("tl.trans(stored))", "stored)"),
    "diagonal tile counted twice": (
        "tl.sum(units, 0))",
        "tl.sum(units, 0) * tl.where(row_tile == column_tile, 2, 1))",
    ),
    "last block of channels lost": ("range(0, WIDTH, BLOCK_D)", "range(0, WIDTH - BLOCK_D, BLOCK_D)"),
    "negative similarities": ("0.0 if COVERAGE else -1.0", "-1.0"),
    "duplicates almost 1": ("cosine > DUPLICATE", "cosine > 2.0"),
    "sums of the rows only": ("+ rows, tl.sum(units, 1))", "+ rows, tl.sum(units, 0))"),
    "wrong tile of the triangle": ("index - row_tile * (row_tile + 1)", "index - row_tile * (row_tile - 1)"),
}


@pytest.mark.parametrize(("old", "new"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_similarity_is_seen(old, new, monkeypatch, tmp_path):
    check = partial(check_similarities, make_tokens("noise", 200, 130), [0, 200], "coverage")
    duplicates = partial(
        test_duplicates_zeros_and_what_is_not_finite, objective="max_min", dtype=torch.float32
    )
    monkeypatch.setattr(
        similarity, "_similarity_kernel", mutant(similarity, old, new, tmp_path)._similarity_kernel
    )
    with pytest.raises(AssertionError):
        check()
        duplicates()


DIRECTION_FAULTS = {
    "rows by position": ("token = tl.load(rows_ptr + token, mask=mask_m, other=0)", "pass"),
    "origin of the first segment": ("origin_ptr += segment * stride_origin_g", "pass"),
    "origin of the padding": (
        "return tl.where((inverse > 0)[:, None], x * inverse[:, None], 0.0)",
        "return (x * tl.where(inverse > 0, inverse, 1.0)[:, None])",
    ),
    "stride of the channels": (
        "offs_d[None, :] * stride_tokens_d, mask=mask, other=0.0)\n    x = ",
        "offs_d[None, :], mask=mask, other=0.0)\n    x = ",
    ),
    "channels past the last": (
        "mask = mask_m[:, None] & (offs_d < D)[None, :]\n    from_row",
        "mask = mask_m[:, None] & (offs_d >= 0)[None, :]\n    from_row",
    ),
}


@pytest.mark.parametrize(("old", "new"), DIRECTION_FAULTS.values(), ids=DIRECTION_FAULTS)
def test_a_fault_in_directions_is_seen(old, new, monkeypatch, tmp_path):
    monkeypatch.setattr(
        directions, "_directions_kernel", mutant(directions, old, new, tmp_path)._directions_kernel
    )
    with pytest.raises(AssertionError):
        test_ragged_segments_of_rows_about_origins("coverage", torch.float32)
        test_duplicates_zeros_and_what_is_not_finite("coverage", torch.float32)
        test_strides_and_alignment_change_no_bit(torch.float32)
