"""The statistics kernels: the reference's numbers from one reading of the tokens (two about the mean)."""

from __future__ import annotations

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import DTYPES, SHAPES, make_tokens
from tests import test_statistics
from tests.kernel_harness import guarded, guarded_allocation, launched, plant, quick_faults, simulated
from tests.ptxsim import ExecutionFault
from trimtok_fast.kernels import statistics

CHUNK = statistics.CHUNK_M
CENTERS = ("sample", "none")
#: More than are added up at a time.
MANY_CHUNKS = (statistics.combine_config(4)["BLOCK_C"] + 1) * CHUNK


def check_statistics(tokens, *boundaries, **options):
    with guarded_allocation():
        test_statistics.check_statistics(tokens, *boundaries, backend="triton", **options)


#: Channels that make a chunk several tiles, so that loads of the next are under way.
WIDE = 140


def hard_batch(dtype=torch.float32, width=20):
    """Ends of chunks, zero tokens, an image of them, one without a sum, text of any length, and none."""
    tokens = make_tokens("clusters", 3 * CHUNK + 60, width, offset=1.0, dtype=dtype)
    tokens[7:CHUNK:7] = 0
    tokens[CHUNK + 1 : CHUNK + 22] = 0
    tokens[CHUNK + 22] = torch.nan
    tokens[CHUNK + 31 : CHUNK + 40] = -tokens[CHUNK + 22 : CHUNK + 31].nan_to_num()
    tokens[CHUNK + 22] = tokens[CHUNK + 31] = torch.inf
    tokens[CHUNK + 50] = 0
    tokens[CHUNK + 50] = tokens[CHUNK + 40 : 2 * CHUNK + 40].sum(0) / (CHUNK - 1)
    text = make_tokens("noise", CHUNK + 12, width, seed=1, dtype=dtype)
    text[2], text[9, 0] = 0, torch.nan
    cu_tokens = [0, 1, CHUNK + 1, CHUNK + 21, CHUNK + 40, 2 * CHUNK + 40, 3 * CHUNK + 60]
    return {
        "tokens": tokens,
        "cu_tokens": cu_tokens,
        "cu_images": [0, 4, 5, 6],
        "text": text,
        "cu_text": [0, CHUNK + 1, CHUNK + 1, CHUNK + 12],
    }


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_the_reference_at_every_shape(count, width, dtype, center):
    tokens = make_tokens("noise", count, width, dtype=dtype)
    text = make_tokens("noise", 3, width, seed=1, dtype=dtype)
    half = count // 2
    check_statistics(tokens, [0, half, count] if half else [0, count], text=text, center=center)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, MANY_CHUNKS])
def test_chunks_begin_and_end_anywhere(count, center):
    tokens = make_tokens("photo-like", count + 3, 12)
    check_statistics(tokens, [0, 3, count + 3], [0, 1, 2], center=center)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_batch_with_everything_in_it(dtype, center):
    check_statistics(**hard_batch(dtype), center=center)


@pytest.mark.parametrize("center", CENTERS)
def test_text_of_another_dtype(center):
    check_statistics(**hard_batch(torch.bfloat16) | {"text": hard_batch()["text"]}, center=center)


@pytest.mark.parametrize("center", CENTERS)
def test_text_without_words(center):
    tokens = make_tokens("noise", 20, 8)
    options = {"text": tokens[:0], "cu_text": [0, 0, 0], "center": center}
    check_statistics(tokens, [0, 5, 20], [0, 1, 2], **options)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(lambda x: x.T.contiguous().T, id="transposed"),
        pytest.param(lambda x: guarded(x, column_step=3), id="every third column"),
        pytest.param(lambda x: guarded(x, lead=3), id="misaligned"),
        pytest.param(lambda x: x[::2].repeat_interleave(2, 0)[::3], id="every third row"),
    ],
)
def test_layouts(layout, center):
    tokens = layout(make_tokens("noise", 150, 48, dtype=torch.bfloat16))
    text = layout(make_tokens("noise", 9, 48, seed=1, dtype=torch.bfloat16))
    check_statistics(tokens, [0, len(tokens)], text=text, center=center)


@pytest.mark.parametrize("scale", [1e-16, 1e-11, 1e-9, 1e15])
def test_squares_neither_underflow_nor_overflow(scale):
    tokens = make_tokens("noise", 60, 24, offset=20.0)
    text = make_tokens("noise", 3, 24, seed=1)
    found = tt.token_statistics(tokens * scale, [0, 60], text=text, backend="triton")
    plain = tt.token_statistics(tokens, [0, 60], text=text, backend="triton")
    for name in ("diversity", "alignment"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=1e-5, atol=1e-6)
    for name, power in (("inverse_norm", scale), ("origin", 1 / scale)):
        torch.testing.assert_close(getattr(found, name) * power, getattr(plain, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [0.99e-18, 1.01e-18, 0.99e18, 1.01e18, 3e38])
@pytest.mark.parametrize("center", CENTERS)
def test_the_ends_of_what_is_a_direction(norm, center):
    tokens = make_tokens("noise", 9, 3) * (1e-15 if norm < 1 else 1e15)
    tokens[4] = torch.tensor([0.0, norm, 0.0])
    check_statistics(tokens, [0, 9], center=center, rtol=1e-4)


@pytest.mark.parametrize("count", [64, 1000])
def test_no_cancellation_in_a_nearly_constant_image(count, monkeypatch):
    monkeypatch.setattr(statistics, "ZERO_DIVERSITY", 0.0)
    tokens = make_tokens("noise", 1, 300).expand(count, 300)
    out = tt.token_statistics(tokens, [0, count], backend="triton")
    assert out.diversity.item() < 1e-5
    assert (out.origin - tokens[0]).norm() < 1e-6 * tokens[0].norm()


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
def test_three_launches_at_most(text, center):
    batch = hard_batch()
    if not text:
        batch |= {"text": None, "cu_text": None}
    with launched() as launches:
        check_statistics(**batch, center=center)
    assert len(launches) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("center", CENTERS)
def test_compiled_code(center, dtype):
    with simulated():
        check_statistics(**hard_batch(dtype, WIDE), center=center)


@pytest.mark.parametrize("center", CENTERS)
def test_compiled_code_reads_each_token_once(center):
    tokens = make_tokens("noise", 2 * CHUNK, 256, dtype=torch.bfloat16)
    with simulated(profile=True) as reports:
        check_statistics(tokens, [0, 2 * CHUNK], center=center)
    passes = 2 if center == "sample" else 1
    assert sum(report.distinct_bytes_loaded for report in reports) > passes * tokens.nbytes
    assert sum(32 * report.sectors["load"] for report in reports) < 1.1 * passes * tokens.nbytes


def test_compiled_code_gives_the_same_bits_in_any_order():
    batch, found = hard_batch(width=WIDE), []
    for seed in (0, 1):
        with simulated(seed=seed):
            found.append(tt.token_statistics(**batch, backend="triton"))
    for name in vars(found[0]):
        one, other = (getattr(out, name).nan_to_num(nan=-7.0) for out in found)
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("old", "new"),
    quick_faults(
        [
            pytest.param(
                "mask_m = offs_m < last\n        x =",
                "mask_m = offs_m <= last\n        x =",
                id="a row of the next",
            ),
            pytest.param("tl.where(usable[:, None], x, 0.0)", "x", id="what is not finite spreads"),
            pytest.param("usable & (norm >= ZERO_NORM)", "usable", id="zero tokens have a direction"),
            pytest.param("(usable & mask_m)", "usable", id="rows past the end counted"),
            pytest.param(
                "stride_m, stride_d, D, BLOCK_D).to(tl.float32)",
                "stride_m, 1, D, BLOCK_D).to(tl.float32)",
                id="channels taken for contiguous",
            ),
            pytest.param("direction += ", "direction = ", id="the last tile alone"),
            pytest.param(
                "count_ptr + 1, first", "count_ptr, first", id="usable rows for those that are not zero"
            ),
            pytest.param("total_ptr + chunk * D", "total_ptr", id="one chunk's sum of tokens"),
            pytest.param(
                "cosine = tl.where(usable, ", "cosine = tl.where(norm == norm, ", id="infinite tokens align"
            ),
            pytest.param("centred > norm * ZERO_SHARE", "centred > 0", id="rounding has a direction"),
            pytest.param(
                "_load_channels(origin_ptr + sample * D, ",
                "_load_channels(origin_ptr, ",
                id="origin of the first sample",
            ),
            pytest.param(
                "cosine = tl.sum(x * mean_text[None, :], axis=1) * inverse",
                "cosine = inverse",
                id="no cosine",
            ),
            pytest.param("length > count * ZERO_SUM", "length > 0", id="rounding of a sum has a direction"),
            pytest.param("directed += ", "directed = ", id="images not counted"),
            pytest.param("directed > 1, variation", "directed > 0, variation", id="variation of one image"),
            pytest.param("pairs = count * (count - 1)", "pairs = count * count", id="pairs with oneself"),
            pytest.param("present_rows += present", "present_rows += usable", id="zero tokens counted"),
            pytest.param("first_chunk + tl.program_id(0)", "tl.program_id(0)", id="text taken for tokens"),
        ]
    ),
)
def test_a_planted_fault_is_caught(old, new, monkeypatch, tmp_path):
    plant(monkeypatch, statistics, old, new, tmp_path)
    batch = hard_batch(width=WIDE)
    batch["tokens"] = guarded(batch["tokens"], column_step=2)
    with pytest.raises((AssertionError, ExecutionFault)), simulated():
        for center in CENTERS:
            check_statistics(**batch, center=center)


@pytest.mark.parametrize("sums", ["rows += tl.load", "total += tl.sum(sums"], ids=["rows", "sums"])
def test_a_sum_over_the_last_chunks_alone_is_caught(sums, monkeypatch, tmp_path):
    plant(monkeypatch, statistics, sums, sums.replace("+=", "="), tmp_path)
    with pytest.raises(AssertionError):
        check_statistics(make_tokens("noise", MANY_CHUNKS, 4), [0, MANY_CHUNKS])
