"""The gather kernel: rows to the bit, from and to any strides, and nothing beside them."""

from __future__ import annotations

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import DTYPES, SHAPES, make_tokens
from tests.kernel_harness import guarded, guarded_allocation, plant, simulated
from tests.ptxsim import ExecutionFault
from trimtok_fast.backends import triton as triton_backend
from trimtok_fast.kernels import gather

LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T.contiguous().T,
    "every third column": lambda x: guarded(x, column_step=3),
    "misaligned": lambda x: guarded(x, lead=3),
    "one row over and over": lambda x: x[:1].expand(len(x), -1),
}


def check_gather(tokens, indices):
    with guarded_allocation():
        found = triton_backend.gather_tokens(tokens, indices)
    assert found.is_contiguous()
    assert torch.equal(found, tokens[indices.long()])


def some_rows(rows, count, dtype=torch.int64):
    return torch.randint(rows, (count,), generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_rows_at_every_shape(count, width, dtype):
    check_gather(make_tokens("noise", count, width, dtype=dtype), some_rows(count, count))


@pytest.mark.parametrize("width", [127, 128, 384, 1023, 1025, 3584])
def test_rows_of_every_block_of_channels(width):
    check_gather(make_tokens("noise", 9, width, dtype=torch.bfloat16), some_rows(9, 33))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout, index_dtype):
    tokens = layout(make_tokens("noise", 40, 24, dtype=torch.float16))
    check_gather(tokens, guarded(some_rows(40, 77, index_dtype), column_step=2))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_output_may_have_any_strides(layout):
    tokens, indices = layout(make_tokens("noise", 40, 24)), some_rows(40, 50)
    out = guarded(torch.zeros(50, 24), column_step=2, lead=1)
    gather.gather_launch(out, tokens=tokens, indices=guarded(indices, column_step=2))
    assert torch.equal(out, tokens[indices])
    assert out._base.isnan().sum() == out._base.numel() - out.numel(), "written beside the output"


def test_no_rows():
    check_gather(make_tokens("noise", 5, 8), some_rows(5, 0))


def test_what_is_not_finite_is_copied():
    tokens = torch.tensor([[float("nan"), 1.0], [float("inf"), -0.0]])
    found = tt.gather_tokens(tokens, torch.tensor([1, 0]), backend="triton")
    assert torch.equal(found.view(torch.int32), tokens.flip(0).view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_gradients_of_repeated_rows_add_up(dtype):
    tokens = make_tokens("noise", 20, 12, dtype=dtype)
    indices, weight = some_rows(20, 61), make_tokens("noise", 61, 12, seed=1, dtype=dtype)
    leaf = tokens.clone().requires_grad_()
    (tt.gather_tokens(leaf, indices, backend="triton") * weight).sum().backward()
    expected = torch.zeros(20, 12, dtype=torch.float64).index_add(0, indices, weight.double())
    assert leaf.grad.dtype == dtype
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_second_derivatives():
    leaf = make_tokens("noise", 6, 3).requires_grad_()
    (first,) = torch.autograd.grad(
        tt.gather_tokens(leaf, some_rows(6, 9), backend="triton").pow(3).sum(), leaf, create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), leaf)
    torch.testing.assert_close(
        second, 6 * leaf.detach() * torch.bincount(some_rows(6, 9), minlength=6)[:, None]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", [33, 128, 896])
def test_compiled_code(width, dtype):
    tokens, indices = make_tokens("noise", 20, width, dtype=dtype), some_rows(20, 37)
    with simulated(profile=True) as reports:
        check_gather(tokens, indices)
        check_gather(guarded(tokens, column_step=2, lead=1), indices.int())
    read, written = tokens[indices.unique()].nbytes + indices.nbytes, tokens[indices].nbytes
    for report in reports[:1]:
        assert (report.distinct_bytes_loaded, report.distinct_bytes_stored) == (read, written)
        assert report.bytes["store"] == written


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("mask_m = offs_m < rows", "mask_m = offs_m <= rows", id="a row past the end"),
        pytest.param("(offs_d < D)", "(offs_d < BLOCK_D)", id="channels past the end"),
        pytest.param("* stride_indices", "* 1", id="indices taken for contiguous"),
        pytest.param(
            "offs_m[:, None] * stride_out_m", "offs_m[:, None] * stride_tokens_m", id="source's stride"
        ),
        pytest.param("stride_tokens_d, D, BLOCK_D)", "1, D, BLOCK_D)", id="channels taken for contiguous"),
        pytest.param("program_id(1) * BLOCK_D", "program_id(1) * 0", id="first channels alone"),
    ],
)
def test_a_planted_fault_is_caught(old, new, monkeypatch, tmp_path):
    tokens, indices = guarded(make_tokens("noise", 5, 1100), column_step=2), guarded(some_rows(5, 7), 2)
    plant(monkeypatch, gather, old, new, tmp_path)
    # As PTX: the interpreter does not stop an access out of bounds, and crashes.
    with pytest.raises((AssertionError, ExecutionFault)), simulated():
        check_gather(tokens, indices)
