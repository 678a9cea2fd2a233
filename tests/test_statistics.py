"""Statistics: closed forms against pairwise definitions, and against cases done by hand."""

from __future__ import annotations

import math

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import DTYPES, KINDS, SHAPES, make_tokens

FLOATS = ("origin", "inverse_norm", "direction_sum", "diversity", "variation", "alignment")


def check_statistics(tokens, cu_tokens, cu_images=None, rtol=1e-5, atol=2e-6, backend="torch", **options):
    """The backend's statistics are the reference's, computed from pairs in fp64."""
    found = tt.token_statistics(tokens, cu_tokens, cu_images, backend=backend, **options)
    expected = tt.token_statistics(tokens, cu_tokens, cu_images, backend="reference", **options)
    assert torch.equal(found.nonzero, expected.nonzero)
    for name in FLOATS:
        own, oracle = getattr(found, name), getattr(expected, name)
        if oracle is None:
            assert own is None
        else:
            scale = oracle.nan_to_num().abs().max().item() if name in ("origin", "direction_sum") else 1.0
            torch.testing.assert_close(own, oracle, rtol=rtol, atol=atol * max(scale, 1.0), equal_nan=True)


@pytest.mark.parametrize("center", ["sample", "none"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_torch_agrees_with_the_definition_at_every_shape(count, width, dtype, center):
    tokens = make_tokens("noise", count, width, dtype=dtype)
    text = make_tokens("noise", 3, width, seed=1, dtype=dtype)
    half = count // 2
    check_statistics(tokens, [0, half, count] if half else [0, count], text=text, center=center)


@pytest.mark.parametrize("center", ["sample", "none"])
@pytest.mark.parametrize("offset", [0, 3, 100], ids=["no offset", "offset 3", "offset 100"])
@pytest.mark.parametrize("kind", KINDS)
def test_ragged_samples_with_and_without_text(kind, offset, center):
    tokens = make_tokens(kind, 700, 48, offset=offset)
    text = make_tokens("noise", 9, 48, seed=1)
    # About the mean, what fp32 rounds off ‖x‖ weighs 100 times more.
    tolerance = 1e-4 if offset == 100 and center == "sample" else 1e-5
    options = {"text": text, "cu_text": [0, 4, 4, 9], "center": center}
    check_statistics(tokens, [0, 1, 300, 311, 700], [0, 2, 3, 4], rtol=tolerance, atol=tolerance, **options)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_by_hand(backend):
    tokens = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [-5.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    out = tt.token_statistics(
        tokens, [0, 2, 4, 6], text=torch.tensor([[7.0, 0.0]]), center="none", backend=backend
    )
    assert out.origin is None
    torch.testing.assert_close(out.inverse_norm, torch.tensor([1 / 2, 1 / 3, 1, 1 / 5, 1, 1 / 2]))
    torch.testing.assert_close(out.direction_sum, torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 2.0]]))
    # A right angle: 1; opposite: 2; equal: 0. The second image has no direction: one pair is left, at 45
    # degrees.
    torch.testing.assert_close(out.diversity, torch.tensor([1.0, 2.0, 0.0]))
    torch.testing.assert_close(out.variation, torch.tensor([1 - math.sqrt(0.5)]))
    torch.testing.assert_close(out.alignment, torch.tensor([1.0, 0.0, 1.0, -1.0, 0.0, 0.0]))
    centred = tt.token_statistics(tokens, [0, 2, 4, 6], backend=backend)
    torch.testing.assert_close(centred.origin, torch.tensor([[-1 / 3, 1.0]]))
    torch.testing.assert_close(centred.inverse_norm[5], torch.tensor(1 / math.hypot(1 / 3, 1.0)))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("backend", "count"),
    [(backend, count) for backend in ("reference", "torch") for count in (2, 255, 4000)]
    + [("triton", 2), ("triton", 255)],  # the interpreter takes its time
)
def test_a_constant_image_has_no_diversity(count, dtype, backend):
    tokens = make_tokens("noise", 1, 300, dtype=dtype).expand(count, 300)
    out = tt.token_statistics(tokens, [0, count], backend=backend)
    assert out.diversity.tolist() == [0.0]
    assert out.inverse_norm.tolist() == [0.0] * count, "about the mean, only rounding is left"


@pytest.mark.parametrize("count", [64, 4000])
def test_no_cancellation_in_a_nearly_constant_image(count, monkeypatch):
    monkeypatch.setattr("trimtok_fast.statistics.ZERO_DIVERSITY", 0.0)
    tokens = make_tokens("noise", 1, 300).expand(count, 300)
    assert tt.token_statistics(tokens, [0, count], backend="torch").diversity.item() < 1e-5


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_zero_tokens_are_left_out(backend):
    tokens = make_tokens("noise", 40, 16)
    holes = torch.zeros(60, 16)
    holes[::3] = 1e-20
    present = [row for row in range(60) if row % 3]
    holes[present] = tokens
    out = tt.token_statistics(holes, [0, 30, 60], center="none", backend=backend)
    alone = tt.token_statistics(tokens, [0, 20, 40], center="none", backend=backend)
    assert out.nonzero.tolist() == [20, 20]
    assert (out.inverse_norm[::3] == 0).all()
    torch.testing.assert_close(out.diversity, alone.diversity)
    torch.testing.assert_close(out.variation, alone.variation)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_variation_needs_two_images_with_a_direction(backend):
    tokens = torch.cat([make_tokens("noise", 10, 4), torch.zeros(5, 4)])
    out = tt.token_statistics(tokens, [0, 10, 15], [0, 2], backend=backend)
    assert out.variation.isnan().all()
    assert out.diversity[1] == 0


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e19], ids=str)
def test_what_is_not_finite_is_marked_and_left_out(bad, backend):
    tokens = make_tokens("noise", 20, 4)
    tokens[7, 2] = bad
    others = [row for row in range(20) if row != 7]
    for center in ("sample", "none"):
        out = tt.token_statistics(tokens, [0, 20], text=tokens[5:8], center=center, backend=backend)
        alone = tt.token_statistics(tokens[others], [0, 19], center=center, backend=backend)
        assert out.inverse_norm.isnan().nonzero().tolist() == [[7]]
        torch.testing.assert_close(out.inverse_norm[others], alone.inverse_norm)
        torch.testing.assert_close(out.diversity, alone.diversity)
        assert torch.isfinite(out.alignment).all() and out.alignment[7] == 0


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_scale_does_not_matter(scale):
    tokens = make_tokens("photo-like", 300, 64)
    out = tt.token_statistics(tokens * scale, [0, 100, 300], backend="torch")
    plain = tt.token_statistics(tokens, [0, 100, 300], backend="torch")
    torch.testing.assert_close(out.diversity, plain.diversity)
    torch.testing.assert_close(out.variation, plain.variation)
    torch.testing.assert_close(out.inverse_norm * scale, plain.inverse_norm)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_fp64_in_fp64_out(backend):
    out = tt.token_statistics(
        torch.eye(4, dtype=torch.float64), [0, 2, 4], text=torch.eye(4)[:1], backend=backend
    )
    assert all(getattr(out, name).dtype == torch.float64 for name in FLOATS)


@pytest.mark.parametrize("center", ["sample", "none"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_batch_equals_its_samples_alone(backend, dtype, center):
    tokens = make_tokens("clusters", 900, 40, dtype=dtype)
    text = make_tokens("noise", 9, 40, seed=1, dtype=dtype)
    together = tt.token_statistics(
        tokens,
        [0, 3, 300, 311, 700, 900],
        [0, 2, 4, 5],
        text=text,
        cu_text=[0, 4, 4, 9],
        center=center,
        backend=backend,
    )
    second = tt.token_statistics(tokens[300:700], [0, 11, 400], center=center, backend=backend)
    third = tt.token_statistics(tokens[700:], [0, 200], text=text[4:], center=center, backend=backend)
    for name, own, alone in (("images", slice(2, 4), second), ("images", slice(4, 5), third)):
        assert torch.equal(together.direction_sum[own], alone.direction_sum), name
        assert torch.equal(together.diversity[own], alone.diversity)
    assert torch.equal(together.variation[1:2], second.variation)
    assert torch.equal(together.inverse_norm[300:700], second.inverse_norm)
    assert torch.equal(together.inverse_norm[700:], third.inverse_norm)
    assert torch.equal(together.alignment[700:], third.alignment)
    assert together.alignment[300:700].isnan().all()
    if center == "sample":
        assert torch.equal(together.origin[1:2], second.origin)
