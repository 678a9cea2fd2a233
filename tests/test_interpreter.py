"""What the interpreter's memory must not lose: its own checks, and the rules of types."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _arithmetic_kernel(x_ptr, y_ptr, out_ptr, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    here = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + here), tl.load(y_ptr + here)
    if OPERATION == "add":
        result = x + y
    elif OPERATION == "sub":
        result = x - y
    elif OPERATION == "mul":
        result = x * y
    else:
        result = x / y
    tl.store(out_ptr + here, result)


def compute(operation, x, y, dtype):
    out = torch.empty(16, dtype=dtype)
    _arithmetic_kernel[(1,)](x.expand(16).contiguous(), y.expand(16).contiguous(), out, operation, 16)
    return out[0].item()


@pytest.mark.parametrize(
    ("operation", "x", "y"), [("add", 2**30, 2**30), ("sub", -(2**30), 2**30 + 1), ("mul", 2**16, 2**15)]
)
def test_an_overflow_of_32_bits_is_seen(operation, x, y):
    x, y = torch.tensor([x], dtype=torch.int32), torch.tensor([y], dtype=torch.int32)
    with pytest.raises(Exception, match="int32 overflow"):
        compute(operation, x, y, torch.int32)
    assert compute(operation, x - x, y, torch.int32) == {"add": y, "sub": -y, "mul": 0}[operation]


@pytest.mark.parametrize(
    ("operation", "x", "y", "expected"),
    [
        ("div", torch.tensor([1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32), 0.5),
        ("div", torch.tensor([1.0]).half(), torch.tensor([3.0]).half(), 1 / 3),
        ("add", torch.tensor([1], dtype=torch.int32), torch.tensor([0.5]), 1.5),
        ("add", torch.tensor([256.0]).bfloat16(), torch.tensor([1.0]), 257),
        ("mul", torch.tensor([2**40]), torch.tensor([2], dtype=torch.int32), 2**41),
    ],
)
def test_types_are_promoted_as_ever(operation, x, y, expected):
    dtype = torch.int64 if isinstance(expected, int) and expected > 2**40 else torch.float32
    assert compute(operation, x, y, dtype) == pytest.approx(expected, rel=1e-7)
