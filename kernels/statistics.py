"""Streaming statistics: direction sums, diversity, mean tokens, inverse norms, text alignment (METHOD §1).

    S_k    = Σ x_i / ‖x_i‖ over image k                     D_intra = 1 − (‖S_k‖² − z_k) / (z_k (z_k − 1))
    μ_j    = mean of x_i over sample j                      D_inter = the same of S_k / ‖S_k‖ over its images
    û_i    = (x_i − μ_j) / ‖x_i − μ_j‖                      a_i = û_i · t̄_j,  t̄_j = mean of t / ‖t‖

Who does what. Rows come in chunks of `CHUNK_M` that start where their image (or their sample's text) starts.

- `_sums_kernel`: one program a chunk. Tiles of BLOCK_M whole rows go through its registers; the sums over the
  chunk stay there in fp32 and are written once.
- `_combine_kernel`: one program a segment and BLOCK_D channels, adds up the sums of the segment's chunks in
  fp64: images to S, samples to μ, their texts to t̄.
- `_finish_kernel`: one program a sample for D_intra and D_inter, from S in fp64; and one a chunk for the
  second pass, about μ.

Launches: sums, combine, finish. With `center="none"` the tokens are read once, so t̄ must be known before:
with text, sums runs twice, first over the text, and finish adds up the chunks itself.

Bytes: X once or, about μ, twice; 4 d written and read per chunk and sum, 6 % of a pass in bf16. 6 operations
an element and pass: bound by memory everywhere.

Rules. Zero tokens and what is not finite add nothing, the latter get inverse norm NaN. No atomics, every sum
in a fixed order that starts with its image: a batch gives each sample the bits that it gets alone (in memory
of the same alignment: narrower loads sum a row in another order).

Limits. d up to `MAX_WIDTH`: a row must fit the registers of one program. Workspaces and outputs are
contiguous.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels import common
from trimtok_fast.kernels.common import (
    LARGEST_NORM,
    ZERO_DIVERSITY,
    ZERO_NORM,
    ZERO_SHARE,
    ZERO_SUM,
    Traffic,
    inverse_where,
    load_rows,
    row_norm,
)

#: Rows whose sums are taken in fp32, by one program: few enough for the digits that D_intra needs and to keep
#: every multiprocessor busy, enough that the sums' own traffic hardly counts.
CHUNK_M = 64
MAX_WIDTH = 8192


@triton.jit
def _load_channels(row_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    offs_d = tl.arange(0, BLOCK_D)
    return tl.load(row_ptr + offs_d, mask=offs_d < D, other=0.0)


@triton.jit
def _load_sum(sums_ptr, first, last, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Sum of rows first to last − 1, in fp64."""
    total = tl.zeros([BLOCK_D], tl.float64)
    for row in range(first, last):
        total += _load_channels(sums_ptr + row * D, D, BLOCK_D).to(tl.float64)
    return total


@triton.jit
def _sum_chunk(
    chunk,
    first,
    last,
    rows_ptr,
    direction_ptr,
    total_ptr,
    count_ptr,
    norm_ptr,
    inverse_norm_ptr,
    alignment_ptr,
    mean_text,
    words,
    stride_m,
    stride_d,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The sums over rows first to last − 1, as row `chunk` of the outputs; `None` for what is not wanted."""
    offs_d = tl.arange(0, BLOCK_D)
    direction = tl.zeros([BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_D], tl.float32)
    usable_rows = tl.zeros([BLOCK_M], tl.int32)
    present_rows = tl.zeros([BLOCK_M], tl.int32)
    for row in tl.range(first, last, BLOCK_M, num_stages=STAGES):
        offs_m = row + tl.arange(0, BLOCK_M).to(tl.int64)
        mask_m = offs_m < last
        x = load_rows(rows_ptr, offs_m, mask_m, 0, stride_m, stride_d, D, BLOCK_D).to(tl.float32)
        norm = row_norm(x)
        usable = norm <= LARGEST_NORM
        present = usable & (norm >= ZERO_NORM)
        inverse = inverse_where(present, norm)
        x = tl.where(usable[:, None], x, 0.0)
        direction += tl.sum(x * inverse[:, None], axis=0)
        usable_rows += (usable & mask_m).to(tl.int32)
        present_rows += present.to(tl.int32)
        if total_ptr is not None:
            total += tl.sum(x, axis=0)
        if norm_ptr is not None:
            tl.store(norm_ptr + offs_m, norm, mask=mask_m)
        if inverse_norm_ptr is not None:
            tl.store(inverse_norm_ptr + offs_m, tl.where(usable, inverse, float("nan")), mask=mask_m)
        if alignment_ptr is not None:
            cosine = tl.sum(x * mean_text[None, :], axis=1) * inverse
            tl.store(alignment_ptr + offs_m, tl.where(words > 0, cosine, float("nan")), mask=mask_m)
    tl.store(direction_ptr + chunk * D + offs_d, direction, mask=offs_d < D)
    if total_ptr is not None:
        tl.store(total_ptr + chunk * D + offs_d, total, mask=offs_d < D)
    tl.store(count_ptr + chunk * 2, tl.sum(usable_rows, axis=0).to(tl.int64))
    tl.store(count_ptr + chunk * 2 + 1, tl.sum(present_rows, axis=0).to(tl.int64))


@triton.jit(do_not_specialize=["first_chunk", "text_chunks"])
def _sums_kernel(
    # tensors; floats without a type are fp32
    tokens_ptr,  # [M, d], fp32, fp16 or bf16
    text_ptr,  # [t, d], any float; None without text
    chunks_ptr,  # int64 [chunks, 3]: first row, end, sample; those of the text before those of the tokens
    cu_text_ptr,  # int64 [s + 1]: rows of the text
    cu_text_chunks_ptr,  # int64 [s + 1]: their chunks
    direction_ptr,  # [chunks, d], sums of x / ‖x‖
    total_ptr,  # [chunks, d], sums of x; None with center="none"
    count_ptr,  # int64 [chunks, 2]: usable rows; those of them that are not zero
    norm_ptr,  # [M], ‖x‖; None with center="none"
    inverse_norm_ptr,  # [M]; None about the mean
    alignment_ptr,  # [M]; None about the mean and without text
    # sizes
    first_chunk,
    text_chunks,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    stride_text_m,
    stride_text_d,
    # block sizes, tiles that are on their way
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    chunk = first_chunk + tl.program_id(0).to(tl.int64)
    first = tl.load(chunks_ptr + chunk * 3)
    last = tl.load(chunks_ptr + chunk * 3 + 1)
    sample = tl.load(chunks_ptr + chunk * 3 + 2)
    if chunk < text_chunks:
        if text_ptr is not None:
            _sum_chunk(
                chunk,
                first,
                last,
                text_ptr,
                direction_ptr,
                None,
                count_ptr,
                None,
                None,
                None,
                None,
                0,
                stride_text_m,
                stride_text_d,
                D,
                BLOCK_M,
                BLOCK_D,
                1,
            )
    else:
        mean_text = None
        words = 0
        if alignment_ptr is not None:
            words = tl.load(cu_text_ptr + sample + 1) - tl.load(cu_text_ptr + sample)
            start = tl.load(cu_text_chunks_ptr + sample)
            end = tl.load(cu_text_chunks_ptr + sample + 1)
            mean_text = (_load_sum(direction_ptr, start, end, D, BLOCK_D) / tl.maximum(words, 1)).to(
                tl.float32
            )
        _sum_chunk(
            chunk,
            first,
            last,
            tokens_ptr,
            direction_ptr,
            total_ptr,
            count_ptr,
            norm_ptr,
            inverse_norm_ptr,
            alignment_ptr,
            mean_text,
            words,
            stride_tokens_m,
            stride_tokens_d,
            D,
            BLOCK_M,
            BLOCK_D,
            STAGES,
        )


@triton.jit
def _add_chunks(
    sums_ptr,
    count_ptr,
    first,
    last,
    offs_d,
    D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some channels' sums over chunks first to last − 1, in fp64, and the number of rows in them."""
    total = tl.zeros([BLOCK_D], tl.float64)
    rows = tl.zeros([BLOCK_C], tl.int64)
    for chunk in range(first, last, BLOCK_C):
        offs_c = chunk + tl.arange(0, BLOCK_C).to(tl.int64)
        mask_c = offs_c < last
        sums = tl.load(
            sums_ptr + offs_c[:, None] * D + offs_d[None, :],
            mask=mask_c[:, None] & (offs_d < D)[None, :],
            other=0.0,
        )
        total += tl.sum(sums.to(tl.float64), axis=0)
        rows += tl.load(count_ptr + offs_c * 2, mask=mask_c, other=0)
    return total, tl.sum(rows, axis=0)


@triton.jit(do_not_specialize=["images", "samples"])
def _combine_kernel(
    # tensors
    cu_chunks_ptr,  # int64 [n + 1], chunks of each image
    cu_images_ptr,  # int64 [s + 1]
    cu_text_ptr,  # int64 [s + 1]
    cu_text_chunks_ptr,  # int64 [s + 1]
    direction_ptr,  # [chunks, d]
    total_ptr,  # [chunks, d]; None with center="none"
    count_ptr,  # int64 [chunks, 2]
    direction_sum_ptr,  # [n, d]
    nonzero_ptr,  # int64 [n]
    origin_ptr,  # [s, d]; None with center="none"
    mean_text_ptr,  # [s, d]; None without text
    # sizes
    images,
    samples,
    # block sizes
    D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    if segment < images:
        first = tl.load(cu_chunks_ptr + segment)
        last = tl.load(cu_chunks_ptr + segment + 1)
        total, present = _add_chunks(direction_ptr, count_ptr + 1, first, last, offs_d, D, BLOCK_C, BLOCK_D)
        tl.store(direction_sum_ptr + segment * D + offs_d, total.to(tl.float32), mask=mask_d)
        if tl.program_id(1) == 0:
            tl.store(nonzero_ptr + segment, present)
    elif segment < images + samples:
        if origin_ptr is not None:
            sample = segment - images
            first = tl.load(cu_chunks_ptr + tl.load(cu_images_ptr + sample))
            last = tl.load(cu_chunks_ptr + tl.load(cu_images_ptr + sample + 1))
            total, usable = _add_chunks(total_ptr, count_ptr, first, last, offs_d, D, BLOCK_C, BLOCK_D)
            mean = total / tl.maximum(usable, 1).to(tl.float64)
            tl.store(origin_ptr + sample * D + offs_d, mean.to(tl.float32), mask=mask_d)
    else:
        if mean_text_ptr is not None:
            sample = segment - images - samples
            first = tl.load(cu_text_chunks_ptr + sample)
            last = tl.load(cu_text_chunks_ptr + sample + 1)
            words = tl.load(cu_text_ptr + sample + 1) - tl.load(cu_text_ptr + sample)
            total, usable = _add_chunks(direction_ptr, count_ptr, first, last, offs_d, D, BLOCK_C, BLOCK_D)
            mean = total / tl.maximum(words, 1).to(tl.float64)
            tl.store(mean_text_ptr + sample * D + offs_d, mean.to(tl.float32), mask=mask_d)


@triton.jit
def _mean_distance(square, count):
    """Mean of 1 − u_i · u_j over the pairs of `count` unit vectors, from the square of their sum; fp64."""
    pairs = count * (count - 1)
    mean = 1 - (square - count) / tl.maximum(pairs, 1.0)
    return tl.where((pairs > 0) & (mean >= ZERO_DIVERSITY), tl.minimum(mean, 2.0), 0.0)


@triton.jit
def _measure_sample(
    sample,
    cu_images_ptr,
    cu_chunks_ptr,
    direction_ptr,
    count_ptr,
    direction_sum_ptr,
    nonzero_ptr,
    diversity_ptr,
    variation_ptr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """D_intra of a sample's images and its D_inter; adds up the images' chunks where they are given."""
    offs_d = tl.arange(0, BLOCK_D)
    towards = tl.zeros([BLOCK_D], tl.float64)
    directed = tl.full([], 0, tl.int64)
    for image in range(tl.load(cu_images_ptr + sample), tl.load(cu_images_ptr + sample + 1)):
        if direction_ptr is not None:
            first = tl.load(cu_chunks_ptr + image)
            last = tl.load(cu_chunks_ptr + image + 1)
            direction = _load_sum(direction_ptr, first, last, D, BLOCK_D)
            present = tl.full([], 0, tl.int64)
            for chunk in range(first, last):
                present += tl.load(count_ptr + chunk * 2 + 1)
            tl.store(direction_sum_ptr + image * D + offs_d, direction.to(tl.float32), mask=offs_d < D)
            tl.store(nonzero_ptr + image, present)
        else:
            direction = _load_sum(direction_sum_ptr, image, image + 1, D, BLOCK_D)
            present = tl.load(nonzero_ptr + image)
        count = present.to(tl.float64)
        square = tl.sum(direction * direction, axis=0)
        tl.store(diversity_ptr + image, _mean_distance(square, count).to(tl.float32))
        length = tl.sqrt(square)
        has_direction = length > count * ZERO_SUM
        towards += direction * inverse_where(has_direction, length)
        directed += has_direction.to(tl.int64)
    variation = _mean_distance(tl.sum(towards * towards, axis=0), directed.to(tl.float64)).to(tl.float32)
    tl.store(variation_ptr + sample, tl.where(directed > 1, variation, float("nan")))


@triton.jit
def _measure_chunk(
    first,
    last,
    tokens_ptr,
    norm_ptr,
    inverse_norm_ptr,
    alignment_ptr,
    origin,
    mean_text,
    words,
    stride_m,
    stride_d,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Inverse norms about the origin and, with text, alignments of rows first to last − 1."""
    for row in tl.range(first, last, BLOCK_M, num_stages=STAGES):
        offs_m = row + tl.arange(0, BLOCK_M).to(tl.int64)
        mask_m = offs_m < last
        norm = tl.load(norm_ptr + offs_m, mask=mask_m, other=0.0)
        usable = norm <= LARGEST_NORM
        x = load_rows(tokens_ptr, offs_m, mask_m, 0, stride_m, stride_d, D, BLOCK_D)
        x = x.to(tl.float32) - origin[None, :]
        centred = row_norm(x)
        inverse = inverse_where((norm >= ZERO_NORM) & (centred > norm * ZERO_SHARE), centred)
        tl.store(inverse_norm_ptr + offs_m, tl.where(usable, inverse, float("nan")), mask=mask_m)
        if mean_text is not None:
            cosine = tl.where(usable, tl.sum(x * mean_text[None, :], axis=1) * inverse, 0.0)
            tl.store(alignment_ptr + offs_m, tl.where(words > 0, cosine, float("nan")), mask=mask_m)


@triton.jit(do_not_specialize=["samples", "text_chunks"])
def _finish_kernel(
    # tensors
    tokens_ptr,  # [M, d]
    chunks_ptr,  # int64 [chunks, 3]
    cu_chunks_ptr,  # int64 [n + 1]
    cu_images_ptr,  # int64 [s + 1]
    cu_text_ptr,  # int64 [s + 1]
    direction_ptr,  # [chunks, d] if their sums are still to be made, else None
    count_ptr,  # int64 [chunks, 2]
    direction_sum_ptr,  # [n, d]
    nonzero_ptr,  # int64 [n]
    diversity_ptr,  # [n]
    variation_ptr,  # [s]
    norm_ptr,  # [M]
    origin_ptr,  # [s, d]; None with center="none"
    mean_text_ptr,  # [s, d]; None without text
    inverse_norm_ptr,  # [M]
    alignment_ptr,  # [M]
    # sizes
    samples,
    text_chunks,
    # strides
    stride_tokens_m,
    stride_tokens_d,
    # block sizes, tiles that are on their way
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    if program < samples:
        _measure_sample(
            program,
            cu_images_ptr,
            cu_chunks_ptr,
            direction_ptr,
            count_ptr,
            direction_sum_ptr,
            nonzero_ptr,
            diversity_ptr,
            variation_ptr,
            D,
            BLOCK_D,
        )
    else:
        if origin_ptr is not None:
            chunk = text_chunks + program - samples
            sample = tl.load(chunks_ptr + chunk * 3 + 2)
            mean_text = None
            words = 0
            if mean_text_ptr is not None:
                mean_text = _load_channels(mean_text_ptr + sample * D, D, BLOCK_D)
                words = tl.load(cu_text_ptr + sample + 1) - tl.load(cu_text_ptr + sample)
            _measure_chunk(
                tl.load(chunks_ptr + chunk * 3),
                tl.load(chunks_ptr + chunk * 3 + 1),
                tokens_ptr,
                norm_ptr,
                inverse_norm_ptr,
                alignment_ptr,
                _load_channels(origin_ptr + sample * D, D, BLOCK_D),
                mean_text,
                words,
                stride_tokens_m,
                stride_tokens_d,
                D,
                BLOCK_M,
                BLOCK_D,
                STAGES,
            )


def launch_config(d: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes, warps and stages of the kernels that hold whole rows: up to 32 elements a thread.

    With 64, d = 3584 takes 150 to 190 registers on sm_90, and one program fills a multiprocessor. The tiles
    that come next are on their way while one is added up: as many as fit the shared memory everywhere.
    """
    block_d = max(16, triton.next_power_of_2(d))
    num_warps = min(16, max(4, block_d // 512))
    block_m = max(1, min(64, 32 * 32 * num_warps // block_d))
    stages = 3 if block_m * block_d * dtype.itemsize <= 2**15 else 2
    sizes = {"BLOCK_M": block_m, "BLOCK_D": block_d, "STAGES": stages, "num_warps": num_warps}
    return {**sizes, **common.registers(128)}


def combine_config(d: int) -> dict[str, int]:
    """Block sizes and warps of `_combine_kernel`: a sample's many chunks take few steps."""
    block_d = min(64, max(16, triton.next_power_of_2(d)))
    return {"BLOCK_C": 64, "BLOCK_D": block_d, "num_warps": 4, "num_stages": 1}


def traffic(sizes: Sequence[int], d: int, dtype: torch.dtype, *, centred: bool) -> Traffic:
    """What all launches for images of these sizes have to do, the text left out."""
    tokens, chunks = sum(sizes), sum(triton.cdiv(size, CHUNK_M) for size in sizes)
    passes = 2 if centred else 1
    # Each chunk's sums, of x too about the mean, are written and read; 4 bytes a token are written a pass,
    # and the norms are read by the second.
    sums = 8 * chunks * passes * d + 4 * len(sizes) * d
    rows = tokens * (dtype.itemsize * d * passes + (12 if centred else 4))
    return Traffic(rows + sums, operations=6 * passes * tokens * d)


def statistics_launch(
    direction_sum: Tensor,
    nonzero: Tensor,
    diversity: Tensor,
    variation: Tensor,
    inverse_norm: Tensor,
    origin: Tensor | None,
    alignment: Tensor | None,
    *,
    tokens: Tensor,
    text: Tensor | None,
    chunks: Tensor,
    cu_chunks: Tensor,
    cu_images: Tensor,
    cu_text: Tensor | None,
    cu_text_chunks: Tensor | None,
    text_chunks: int,
    direction: Tensor,
    total: Tensor | None,
    count: Tensor,
    norm: Tensor | None,
    mean_text: Tensor | None,
) -> None:
    """All statistics into the outputs, which come first; the kernels' signatures say what each tensor is.

    Whether there is an origin says how they are centred; `total`, `norm` and `mean_text` are workspaces of
    that case alone.
    """
    d = tokens.shape[1]
    images, samples, token_chunks = len(diversity), len(variation), len(chunks) - text_chunks
    centred = origin is not None
    rows = launch_config(d, tokens.dtype)

    def sums(first_chunk: int, programs: int) -> None:
        _sums_kernel[(programs,)](
            tokens,
            text,
            chunks,
            cu_text,
            cu_text_chunks,
            direction,
            total,
            count,
            norm,
            None if centred else inverse_norm,
            None if centred else alignment,
            first_chunk,
            text_chunks,
            tokens.stride(0),
            tokens.stride(1),
            0 if text is None else text.stride(0),
            0 if text is None else text.stride(1),
            D=d,
            **rows,
            enable_fp_fusion=False,
        )

    early_text = alignment is not None and not centred
    if early_text:
        if text_chunks > 0:
            sums(0, text_chunks)
        sums(text_chunks, token_chunks)
    else:
        sums(0, len(chunks))
        columns = combine_config(d)
        segments = images + samples * (centred + (mean_text is not None))
        _combine_kernel[(segments, triton.cdiv(d, columns["BLOCK_D"]))](
            cu_chunks,
            cu_images,
            cu_text,
            cu_text_chunks,
            direction,
            total,
            count,
            direction_sum,
            nonzero,
            origin,
            mean_text,
            images,
            samples,
            D=d,
            **columns,
            enable_fp_fusion=False,
        )
    _finish_kernel[(samples + token_chunks * centred,)](
        tokens,
        chunks,
        cu_chunks,
        cu_images,
        cu_text,
        direction if early_text else None,
        count,
        direction_sum,
        nonzero,
        diversity,
        variation,
        norm,
        origin,
        mean_text,
        inverse_norm,
        alignment,
        samples,
        text_chunks,
        tokens.stride(0),
        tokens.stride(1),
        D=d,
        **rows,
        enable_fp_fusion=False,
    )
