"""Helpers that more than one kernel uses, and the method's constants as the compiler wants them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from trimtok_fast import statistics as constants

ZERO_NORM = tl.constexpr(constants.ZERO_NORM)
LARGEST_NORM = tl.constexpr(constants.LARGEST_NORM)
ZERO_SHARE = tl.constexpr(constants.ZERO_SHARE)
ZERO_DISTANCE = tl.constexpr(constants.ZERO_DISTANCE)
ZERO_DIVERSITY = tl.constexpr(constants.ZERO_DIVERSITY)
ZERO_SUM = tl.constexpr(constants.ZERO_SUM)

#: A sum of squares below this has lost digits: squares of what is below 1e-19 are subnormal in fp32. The row
#: is then squared anew, scaled by a power of two, which is exact. Above, fp32 holds the squares of all norms
#: up to `LARGEST_NORM`.
SMALL_SQUARE = tl.constexpr(1e-20)
SCALE = tl.constexpr(2.0**60)
UNSCALE = tl.constexpr(2.0**-60)


class Traffic(NamedTuple):
    """What a launch has to move and to do, at least.

    Attributes:
        bytes_moved: to and from the GPU's memory; what caches can keep is counted once.
        products: multiply-adds of `tl.dot`.
        operations: of fp32, outside the matrix units.
    """

    bytes_moved: int
    products: int = 0
    operations: int = 0


def platform() -> str:
    """Where launched kernels run: `"cuda"`, `"hip"`, or `"interpreter"`."""
    if not isinstance(row_norm, triton.JITFunction):
        return "interpreter"
    backend: str = triton.runtime.driver.active.get_current_target().backend
    return backend


def capability() -> int:
    """The compute capability, 90 for 9.0; 0 where there is no NVIDIA GPU."""
    return int(triton.runtime.driver.active.get_current_target().arch) if platform() == "cuda" else 0


def stages(wanted: int, dtype: torch.dtype) -> int:
    """How many loads a loop of products has under way, by the type of what it multiplies.

    One in fp32 on gfx950: what is under way goes straight to shared memory there (triton 3.9), and one of two
    fp32 operands only 32 bits at a time.
    """
    if dtype == torch.float32 and platform() == "hip":
        return 1 if triton.runtime.driver.active.get_current_target().arch == "gfx950" else wanted
    return wanted


def multiplies_from_shared_memory() -> bool:
    """Whether matrix units read there what they multiply (sm_90, sm_100): wide blocks take no registers."""
    return 90 <= capability() < 120


def registers(most: int) -> dict[str, int]:
    """The launch option that lets a thread have so many: unless told, ptxas may spill to need fewer still."""
    return {"maxnreg": most} if platform() == "cuda" else {}


def repeated(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> Callable[..., None]:
    """What launches a kernel again and again; a call names the arguments that change.

    Triton looks at every argument of every launch, for longer than a GPU needs for a small kernel. Here it
    does so the first time, and what it has compiled then is launched directly. So the compiler must see no
    difference in what changes: numbers that it does not specialise.
    """
    launcher: Any = None
    values: dict[str, Any] = {}

    def launch(**changed: Any) -> None:
        nonlocal launcher
        if launcher is not None:
            launcher(*(values | changed).values())
            return
        compiled = kernel[grid](**arguments, **changed)
        if compiled is not None:  # as it is in the interpreter
            launcher = compiled[(*grid, 1, 1)]
            for name in kernel.arg_names:
                value = changed[name] if name in changed else arguments[name]
                # About a tensor's address the driver would be asked every time.
                values[name] = value.data_ptr() if isinstance(value, torch.Tensor) else value

    return launch


@triton.jit
def load_rows(rows_ptr, row, mask_m, begin, stride_m, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Channels from `begin` on of some rows, in their own type; zeros where the mask or the channels end.

    A mask of `None`: all rows are there. A D of `None`: so are all channels. Whatever streams rows loads them
    here: these are the loads that `trimtok kernels` holds to 128 bits.
    """
    offs_d = begin + tl.arange(0, BLOCK_D)
    pointers = rows_ptr + row[:, None] * stride_m + offs_d[None, :].to(tl.int64) * stride_d
    if D is None or D % BLOCK_D == 0:
        if mask_m is None:
            return tl.load(pointers)
        else:
            return tl.load(pointers, mask=mask_m[:, None], other=0.0)
    elif mask_m is None:
        return tl.load(pointers, mask=(offs_d < D)[None, :], other=0.0)
    else:
        return tl.load(pointers, mask=mask_m[:, None] & (offs_d < D)[None, :], other=0.0)


@triton.jit
def load_centred(
    # tensors: tokens [M, D], origin [D] or None, which is 0
    tokens_ptr,
    origin_ptr,
    # rows of `tokens`, which of them are any, and the first of the channels
    row,
    mask_m,
    begin,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_origin_d,
    # compiled in
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A block of channels of some tokens in fp32: as they are, and less the origin."""
    x = load_rows(tokens_ptr, row, mask_m, begin, stride_tokens_m, stride_tokens_d, D, BLOCK_D)
    x = x.to(tl.float32)
    centred = x
    if origin_ptr is not None:
        offs_d = begin + tl.arange(0, BLOCK_D)
        origin = tl.load(origin_ptr + offs_d * stride_origin_d, mask=offs_d < D, other=0.0)
        centred = x - origin.to(tl.float32)[None, :]
    return x, centred


@triton.jit
def row_norm(x):
    """‖x‖ of every row of an fp32 tile, accurate from 1e-25 to 1e18; above it may be infinite."""
    square = tl.sum(x * x, axis=1)
    norm = tl.sqrt_rn(square)
    small = square < SMALL_SQUARE
    if tl.max(small.to(tl.int32), axis=0) > 0:
        scaled = tl.where(small[:, None], x, 0.0) * SCALE
        norm = tl.where(small, tl.sqrt_rn(tl.sum(scaled * scaled, axis=1)) * UNSCALE, norm)
    return norm


@triton.jit
def inverse_where(condition, value):
    """1 / value where the condition holds, else 0."""
    return tl.where(condition, 1.0 / tl.where(condition, value, 1.0), 0.0)
