"""Rows by index: out[i] = tokens[indices[i]].

One program a tile of BLOCK_M rows and BLOCK_D channels. Reads and writes K × d elements, and the indices once
a column of tiles; no arithmetic. Rows that are contiguous and lie on 16 bytes are copied 16 bytes a thread;
the compiler narrows that for other strides. Indices may repeat; they are not checked here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels.common import Traffic, load_rows


@triton.jit(do_not_specialize=["rows"])
def _gather_kernel(
    # tensors
    tokens_ptr,  # [M, d]
    indices_ptr,  # int32 or int64 [K]
    out_ptr,  # [K, d]
    # sizes
    rows,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_indices,
    stride_out_m,
    stride_out_d,
    # block sizes
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    begin = tl.program_id(1) * BLOCK_D
    offs_d = (begin + tl.arange(0, BLOCK_D)).to(tl.int64)
    mask_m = offs_m < rows
    mask = mask_m[:, None] & (offs_d < D)[None, :]
    index = tl.load(indices_ptr + offs_m * stride_indices, mask=mask_m, other=0).to(tl.int64)
    row = load_rows(tokens_ptr, index, mask_m, begin, stride_tokens_m, stride_tokens_d, D, BLOCK_D)
    tl.store(out_ptr + offs_m[:, None] * stride_out_m + offs_d[None, :] * stride_out_d, row, mask=mask)


def launch_config(d: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes and warps: 64 bytes a thread; whole blocks where a power of two of fair size divides d."""
    divisor = d & -d
    block_d = min(1024, divisor if divisor >= 128 else triton.next_power_of_2(d))
    block_m = max(1, 128 * 64 // dtype.itemsize // block_d)
    return {"BLOCK_M": min(64, block_m), "BLOCK_D": block_d, "num_warps": 4, "num_stages": 1}


def traffic(rows: int, d: int, dtype: torch.dtype) -> Traffic:
    """What copying so many rows takes."""
    return Traffic(rows * (2 * d * dtype.itemsize + 8))


def gather_launch(out: Tensor, *, tokens: Tensor, indices: Tensor) -> None:
    """Copy row `indices[i]` of `tokens` to row i of `out`."""
    count, d = out.shape
    config = launch_config(d, tokens.dtype)
    _gather_kernel[(triton.cdiv(count, config["BLOCK_M"]), triton.cdiv(d, config["BLOCK_D"]))](
        tokens,
        indices,
        out,
        count,
        tokens.stride(0),
        tokens.stride(1),
        indices.stride(0),
        out.stride(0),
        out.stride(1),
        D=d,
        **config,
        enable_fp_fusion=False,
    )
