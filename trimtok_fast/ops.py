"""The five ops: validate, choose a backend, run. Everything else is composed of them."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from trimtok_fast.backends import reference
from trimtok_fast.backends import torch as torch_backend
from trimtok_fast.config import CENTERS, OBJECTIVES, check_integer, check_name
from trimtok_fast.errors import (
    BackendUnavailableError,
    InvalidInputError,
    TrimTokError,
    UnsupportedDtypeError,
)
from trimtok_fast.segments import (
    Boundaries,
    Segments,
    cumulative,
    parse_boundaries,
    parse_images,
    parse_integers,
)
from trimtok_fast.statistics import TokenStatistics
from trimtok_fast.validation import (
    check_device,
    check_distinct,
    check_floats,
    check_like,
    check_rows,
    check_text,
    check_tokens,
)

BACKENDS = ("auto", "reference", "torch", "triton")


def choose_backend(name: str, tokens: Tensor) -> ModuleType:
    """The module that runs the ops on these tokens (or on the values to be ranked).

    Raises:
        InvalidInputError: an unknown name.
        UnsupportedDtypeError: `"triton"` for fp64 tokens.
        BackendUnavailableError: `"triton"` where it cannot run.
    """
    check_name("backend", name, BACKENDS)
    if name == "reference":
        return reference
    if name == "torch" or (name == "auto" and not tokens.is_cuda):
        return torch_backend
    obstacle = _triton_obstacle(tokens)
    if obstacle is None:
        return importlib.import_module("trimtok_fast.backends.triton")
    if name == "triton":
        raise obstacle
    _warn_once(f"backend='auto' runs on 'torch'. {obstacle}")
    return torch_backend


def _triton_obstacle(tokens: Tensor) -> TrimTokError | None:
    """Why the kernels cannot take these tokens."""
    if importlib.util.find_spec("triton") is None:
        return BackendUnavailableError(
            "backend",
            "a backend that can run here",
            "'triton', which is not installed",
            "Install trimtok_fast[triton], or use 'torch'.",
        )
    triton = importlib.import_module("trimtok_fast.backends.triton")
    if not tokens.is_cuda and not triton.INTERPRETED:
        return BackendUnavailableError(
            "backend",
            f"a backend that runs on {tokens.device}",
            "'triton', which needs a GPU",
            "Move the tensors to one, use 'torch', or set TRITON_INTERPRET=1 to debug.",
        )
    if tokens.ndim == 2 and tokens.dtype == torch.float64:
        return UnsupportedDtypeError(
            "tokens", "float32, float16 or bfloat16 for 'triton'", "float64", "Use 'torch' or 'reference'."
        )
    if tokens.ndim == 2 and tokens.shape[1] > triton.MAX_WIDTH:
        return BackendUnavailableError(
            "backend",
            f"a backend for tokens of width {tokens.shape[1]}",
            f"'triton', which goes up to {triton.MAX_WIDTH}",
            "Use 'torch'.",
        )
    return None


@contextlib.contextmanager
def exact(tokens: Tensor) -> Iterator[None]:
    """Selection needs no gradients, and its sums must not be lowered to 16 bits by a caller's autocast."""
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
        yield


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def token_statistics(
    tokens: Tensor,
    cu_tokens: Boundaries,
    cu_images: Boundaries | None = None,
    *,
    text: Tensor | None = None,
    cu_text: Boundaries | None = None,
    center: str = "sample",
    backend: str = "auto",
) -> TokenStatistics:
    """How diverse each image is, how much the images differ, and how each token lies to the text.

    Args:
        tokens: fp32, fp16, bf16 or fp64 [M, d], any strides.
        cu_tokens: image boundaries, int32 or int64 [n + 1] or a sequence of ints.
        cu_images: sample boundaries counting images, [s + 1]; `None` is one sample.
        text: the text tokens' input embeddings [t, d], or `None`.
        cu_text: text boundaries [s + 1]; a sample may have no text. Required with text and several samples.
        center: `"sample"` takes directions about each sample's mean token, `"none"` about 0.
        backend: `"auto"`, `"reference"`, `"torch"` or `"triton"`.

    Returns:
        `TokenStatistics`.

    Raises:
        InvalidInputError: shapes, boundaries, devices or names that do not fit.
        UnsupportedDtypeError: tensors or boundaries of another type.
        BackendUnavailableError: a backend named that cannot run.

    Note:
        Reads the tokens once, twice with `center="sample"`; no matrix. Sums accumulate in fp32 over blocks
        and in fp64 across them. A token with a NaN, an infinity or a norm above 1e18 counts as a zero token
        and has `inverse_norm` NaN.

    Source:
        METHOD §1. D_intra as published (arXiv 2512.22748), in its closed form; D_inter and the alignment are
        ours.

    Example:
        >>> import torch
        >>> token_statistics(torch.eye(4), [0, 2, 4]).diversity.tolist()
        [1.0, 1.0]
    """
    tokens = check_tokens(tokens)
    images, samples = parse_images(cu_tokens, cu_images, len(tokens))
    words, word_segments = check_text(text, cu_text, tokens, samples)
    check_name("center", center, CENTERS)
    run = choose_backend(backend, tokens)
    with exact(tokens):
        return run.token_statistics(tokens, images, samples, words, word_segments, center=center)


def greedy_select(
    tokens: Tensor,
    cu_segments: Boundaries,
    budgets: Tensor | Sequence[int],
    *,
    objective: str = "coverage",
    seeds: Tensor | Sequence[int] | None = None,
    cu_seeds: Boundaries | None = None,
    origin: Tensor | None = None,
    inverse_norm: Tensor | None = None,
    rows: Tensor | None = None,
    total: int | None = None,
    candidates: int = 128,
    workspace_bytes: int = 512 * 2**20,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pick tokens greedily in every segment: the most representative, or the most spread-out.

    Args:
        tokens: fp32, fp16, bf16 or fp64 [M, d], any strides.
        cu_segments: segment boundaries, int32 or int64 [g + 1] or a sequence of ints. They count rows of
            `tokens`, or entries of `rows`. A segment may be empty.
        budgets: picks of each segment, [g], seeds included.
        objective: `"coverage"` (facility location), `"max_min"` (k-centre) or `"max_mean"`.
        seeds: rows of `tokens` that are picked first, grouped by segment.
        cu_seeds: seed boundaries [g + 1]; may be left out with one segment.
        origin: [g, d], the point that each segment's directions are taken about; `None` is 0.
        inverse_norm: [M], 1 / ‖x − origin‖ of every token and 0 for tokens without a direction, as
            `token_statistics` gives it; `None` computes it.
        rows: int64 [N], the rows of `tokens` that the segments run over, each once a segment; `None` is all
            of them.
        total: an upper bound of the sum of the budgets; sizes the output. With it, `"triton"` does not read
            budgets that are on the device, and does not check their values.
        candidates: candidates in a round of `max_min`; it decides speed alone.
        workspace_bytes: bound on the directions and similarities that are stored at a time; a larger segment
            goes block by block and computes them again.
        backend: `"auto"`, `"reference"`, `"torch"` or `"triton"`.

    Returns:
        Indices int64 [Σ budgets], rows of `tokens` in the order of the picks, segment by segment, and gains
        fp32 [Σ budgets], each pick's value when it was made: +inf for seeds and for the seedless first pick
        of `max_min` and `max_mean`. With `total`, both have that length; what is left over is -1 and NaN.

    Raises:
        InvalidInputError: shapes, boundaries, devices or names that do not fit; a budget above its segment or
            below its seeds; seeds out of range, twice, or of another segment.
        UnsupportedDtypeError: tensors or boundaries of another type.
        BackendUnavailableError: a backend named that cannot run.

    Note:
        Ties go to the lowest row. A token without a direction gains nothing and changes nothing. Accumulates
        in fp32 (fp64 for fp64 tokens), coverage gains in fixed point. The same segment gives the same bits
        alone and in a batch, for one number of torch threads. The torch backend reads values back from a GPU
        all along.

    Source:
        METHOD §3 (the objectives; their choice is ours) and §5 (exact greedy, fast).

    Example:
        >>> import torch
        >>> greedy_select(torch.eye(3)[[0, 0, 1, 2]], [0, 4], [2])[0].tolist()
        [0, 2]
    """
    tokens = check_tokens(tokens)
    count = len(tokens)
    if rows is not None:
        rows = check_rows("rows", rows, count, tokens)
        count = len(rows)
    segments = parse_boundaries(
        "cu_segments", cu_segments, count, "tokens" if rows is None else "rows", "segment", allow_empty=True
    )
    if rows is not None:
        check_distinct("rows", rows, segments, "segment")
    check_name("objective", objective, OBJECTIVES)
    run = choose_backend(backend, tokens)
    if total is not None:
        total = check_integer("total", total, minimum=0)
    counts: list[int] | Tensor
    if (
        total is not None
        and isinstance(budgets, Tensor)
        and budgets.device == tokens.device
        and not run.ON_HOST
    ):
        counts, size = _check_unread_budgets(budgets, segments, tokens), total
    else:
        counts = _check_budgets(budgets, segments, total)
        size = sum(counts) if total is None else total
    seeds, seed_segments = _check_seeds(seeds, cu_seeds, segments, counts, rows, tokens)
    if origin is not None:
        origin = check_like("origin", origin, (len(segments), tokens.shape[1]), tokens, "[g, d]")
    if inverse_norm is not None:
        inverse_norm = check_like("inverse_norm", inverse_norm, (len(tokens),), tokens, "[M]")
    candidates = check_integer("candidates", candidates, minimum=1)
    workspace_bytes = check_integer("workspace_bytes", workspace_bytes, minimum=0)
    with exact(tokens):
        return select(
            run,
            tokens,
            segments,
            counts,
            at_most=segments.lengths,
            total=size,
            objective=objective,
            seeds=seeds,
            cu_seeds=seed_segments,
            origin=origin,
            inverse_norm=inverse_norm,
            rows=rows,
            candidates=candidates,
            workspace_bytes=workspace_bytes,
        )


def select(
    run: ModuleType,
    tokens: Tensor,
    segments: Segments | Tensor,
    budgets: list[int] | Tensor,
    *,
    at_most: tuple[int, ...],
    total: int,
    **arguments: Any,
) -> tuple[Tensor, Tensor]:
    """`greedy_select` of checked input, on a backend; -1 and NaN past the sum of the budgets.

    Boundaries and budgets on the device are read here for the backends that need them on the host. The others
    go by `at_most`, an upper bound of each segment's size, and `total`, one of the sum of the budgets.
    """
    if not run.ON_HOST:
        return run.greedy_select(tokens, segments, budgets, at_most=at_most, total=total, **arguments)
    if isinstance(segments, Tensor):
        segments = Segments(tuple(segments.tolist()))
    if isinstance(budgets, Tensor):
        budgets = budgets.tolist()
    indices, gain = run.greedy_select(tokens, segments, budgets, **arguments)
    left = total - len(indices)
    return pad(indices, (0, left), value=-1), pad(gain, (0, left), value=float("nan"))


def rank(run: ModuleType, diversity: Tensor, alignment: Tensor, segments: Segments | Tensor) -> Tensor:
    """`pareto_front` of checked input, on a backend; -1 past the last boundary."""
    if not run.ON_HOST:
        return run.pareto_front(diversity, alignment, segments)
    if isinstance(segments, Tensor):
        segments = Segments(tuple(segments.tolist()))
    front = run.pareto_front(diversity[: segments.end], alignment[: segments.end], segments)
    return pad(front, (0, len(diversity) - segments.end), value=-1)


def _check_budgets(budgets: Tensor | Sequence[int], segments: Segments, total: int | None) -> list[int]:
    counts = parse_integers("budgets", budgets, "budgets")
    if len(counts) != len(segments):
        raise InvalidInputError(
            "budgets", f"{len(segments)} budgets, one a segment", f"{len(counts)}", "Match cu_segments."
        )
    for index, (budget, length) in enumerate(zip(counts, segments.lengths, strict=True)):
        if not 0 <= budget <= length:
            raise InvalidInputError(
                "budgets",
                f"0 to {length}, the size of segment {index}",
                f"{budget}",
                "Lower it, or enlarge the segment.",
            )
    if total is not None and total < sum(counts):
        raise InvalidInputError(
            "total",
            f"at least the sum of the budgets, {sum(counts)}",
            f"{total}",
            "Raise it or leave it out.",
        )
    return counts


def _check_unread_budgets(budgets: Tensor, segments: Segments, tokens: Tensor) -> Tensor:
    """Budgets that stay on the device: their values are the caller's word."""
    wanted = f"int64 [{len(segments)}], one a segment"
    if budgets.dtype not in (torch.int32, torch.int64):
        raise UnsupportedDtypeError("budgets", wanted, str(budgets.dtype), "Call budgets.to(torch.int64).")
    if budgets.shape != (len(segments),):
        raise InvalidInputError("budgets", wanted, f"shape {list(budgets.shape)}", "Match cu_segments.")
    return check_device("budgets", budgets, tokens).long()


def no_seeds(tokens: Tensor, segments: int) -> tuple[Tensor, Segments]:
    """Seeds and their boundaries where there are none."""
    return torch.empty(0, dtype=torch.int64, device=tokens.device), Segments((0,) * (segments + 1))


def _check_seeds(
    seeds: Tensor | Sequence[int] | None,
    cu_seeds: Boundaries | None,
    segments: Segments,
    budgets: list[int] | Tensor,
    rows: Tensor | None,
    tokens: Tensor,
) -> tuple[Tensor, Segments]:
    if seeds is None:
        if cu_seeds is not None:
            raise InvalidInputError(
                "cu_seeds", "no boundaries without seeds", "boundaries", "Pass seeds as well."
            )
        return no_seeds(tokens, len(segments))
    if not isinstance(seeds, Tensor):
        seeds = torch.tensor(
            parse_integers("seeds", seeds, "row numbers"), dtype=torch.int64, device=tokens.device
        )
    seeds = check_rows("seeds", seeds, len(tokens), tokens)
    if cu_seeds is None:
        if len(segments) > 1:
            raise InvalidInputError(
                "cu_seeds",
                f"boundaries of {len(segments)} segments' seeds",
                "None",
                "Say which seeds are whose.",
            )
        groups = cumulative([len(seeds)])
    else:
        groups = parse_boundaries("cu_seeds", cu_seeds, len(seeds), "seeds", "segment", allow_empty=True)
        if len(groups) != len(segments):
            raise InvalidInputError(
                "cu_seeds",
                f"{len(segments) + 1} boundaries, one stretch a segment",
                f"{len(groups) + 1}",
                "Match cu_segments.",
            )
    limits = segments.lengths if isinstance(budgets, Tensor) else budgets
    for index, (number, budget) in enumerate(zip(groups.lengths, limits, strict=True)):
        if number > budget:
            raise InvalidInputError(
                "seeds",
                f"at most {budget} in segment {index}: they count in its budget",
                f"{number}",
                "Raise the budget.",
            )
    check_distinct("seeds", seeds, groups, "segment")
    for index, (group, segment) in enumerate(zip(groups, segments, strict=True)):
        own = seeds[group]
        inside = (
            (own >= segment.start) & (own < segment.stop) if rows is None else torch.isin(own, rows[segment])
        )
        if not bool(inside.all()):
            raise InvalidInputError(
                "seeds",
                f"rows of segment {index} in its stretch",
                f"row {int(own[~inside][0])}, which is not in it",
                "Group the seeds by segment with cu_seeds.",
            )
    return seeds, groups


def dpp_select(
    tokens: Tensor,
    cu_segments: Boundaries,
    budgets: Tensor | Sequence[int],
    *,
    relevance: Tensor | None = None,
    inverse_norm: Tensor | None = None,
    candidates: int = 128,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pick tokens greedily by the determinant of the kernel r_i (û_i · û_j) r_j, in every segment.

    The greedy MAP of a determinantal point process: each pick is the token of which most is left, once the
    part of r_i û_i in the span of the picks is taken out.

    Args:
        tokens: fp32, fp16, bf16 or fp64 [M, d], any strides.
        cu_segments: segment boundaries, int32 or int64 [g + 1] or a sequence of ints. A segment may be empty.
        budgets: picks of each segment, [g].
        relevance: floats [M], r of each token; what is negative or not a number counts as 0. `None` is 1.
        inverse_norm: [M], 1 / ‖x‖ of every token and 0 for tokens without a direction, as `token_statistics`
            gives it with `center="none"`; `None` computes it.
        candidates: candidates in a round; it decides speed alone.
        backend: `"auto"`, `"reference"`, `"torch"` or `"triton"`.

    Returns:
        Indices int64 [Σ budgets], rows of `tokens` in the order of the picks, segment by segment, and ‖·‖² of
        what was left of each when it was picked, fp32 [Σ budgets]: 0 from where nothing was.

    Raises:
        InvalidInputError: shapes, boundaries, devices or names that do not fit; a budget above its segment.
        UnsupportedDtypeError: tensors or boundaries of another type.
        BackendUnavailableError: a backend named that cannot run.

    Note:
        Ties go to the larger r, then to the lowest row; so do tokens of which nothing is left. What is below
        1e-5 of a token's own r², or 1e-9 of its segment's largest, counts as nothing. A token without a
        direction has nothing. No kernel matrix: the memory is that of the Cholesky factor's rows, m × budget.
        Accumulates in fp32 (fp64 for fp64 tokens). The same segment gives the same bits alone and in a batch,
        for one number of torch threads. The torch backend reads values back from a GPU all along.

    Source:
        Fast greedy MAP inference: Chen, Zhang and Zhou, NeurIPS 2018, arXiv 1709.05135, algorithm 1; the
        kernel: CDPruner, arXiv 2506.10967. The order of what is left over is ours (METHOD §6).

    Example:
        >>> import torch
        >>> dpp_select(torch.eye(3)[[0, 0, 1, 2]], [0, 4], [3], relevance=torch.tensor([0.4, 0.5, 1, 0.1]))[
        ...     0
        ... ].tolist()
        [2, 1, 3]
    """
    tokens = check_tokens(tokens)
    segments = parse_boundaries(
        "cu_segments", cu_segments, len(tokens), "tokens", "segment", allow_empty=True
    )
    counts = _check_budgets(budgets, segments, None)
    if relevance is not None:
        relevance = check_like("relevance", relevance, (len(tokens),), tokens, "[M]")
    if inverse_norm is not None:
        inverse_norm = check_like("inverse_norm", inverse_norm, (len(tokens),), tokens, "[M]")
    candidates = check_integer("candidates", candidates, minimum=1)
    run = choose_backend(backend, tokens)
    with exact(tokens):
        return run.dpp_select(
            tokens, segments, counts, relevance=relevance, inverse_norm=inverse_norm, candidates=candidates
        )


def pareto_front(
    diversity: Tensor, alignment: Tensor, cu_segments: Boundaries, *, backend: str = "auto"
) -> Tensor:
    """Non-dominated rank of every token within its segment, both values to be large.

    Args:
        diversity: floats [N].
        alignment: floats [N].
        cu_segments: segment boundaries, int32 or int64 [g + 1] or a sequence of ints; a segment may be empty.
        backend: `"auto"`, `"reference"`, `"torch"` or `"triton"`.

    Returns:
        int64 [N]: 0 where no token of the segment dominates, 1 where only tokens of front 0 do, and so on. A
            token dominates another when it is at least as good in both and better in one; equal tokens share
            a front.

    Raises:
        InvalidInputError: shapes, boundaries or devices that do not fit, or a NaN.
        UnsupportedDtypeError: tensors or boundaries of another type.
        BackendUnavailableError: a backend named that cannot run.

    Source:
        METHOD §4; non-dominated sorting as in NSGA-II. The paper's Pareto selection, on objectives of ours.

    Example:
        >>> import torch
        >>> pareto_front(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 0.0]), [0, 3]).tolist()
        [0, 0, 1]
    """
    diversity = check_floats("diversity", diversity, "[N]", 1)
    alignment = check_like("alignment", alignment, tuple(diversity.shape), diversity, "[N]")
    segments = parse_boundaries(
        "cu_segments", cu_segments, len(diversity), "tokens", "segment", allow_empty=True
    )
    for argument, value in (("diversity", diversity), ("alignment", alignment)):
        missing = value.isnan()
        if bool(missing.any()):
            raise InvalidInputError(
                argument,
                "numbers",
                f"NaN at position {int(missing.nonzero()[0])}",
                "Rank tokens with both values only.",
            )
    run = choose_backend(backend, diversity)
    with exact(diversity):
        return rank(run, diversity, alignment, segments)


def gather_tokens(tokens: Tensor, indices: Tensor, *, backend: str = "auto") -> Tensor:
    """Rows of `tokens` by index, differentiable in `tokens`.

    Args:
        tokens: fp32, fp16, bf16 or fp64 [M, d], any strides.
        indices: int32 or int64 [K], in [0, M), in any order, repeats allowed.
        backend: `"auto"`, `"reference"`, `"torch"` or `"triton"`.

    Returns:
        [K, d] of the tokens' dtype, contiguous.

    Raises:
        InvalidInputError: shapes, devices or indices that do not fit.
        UnsupportedDtypeError: tensors of another type.
        BackendUnavailableError: a backend named that cannot run.

    Example:
        >>> import torch
        >>> gather_tokens(torch.eye(3), torch.tensor([2])).tolist()
        [[0.0, 0.0, 1.0]]
    """
    check_tokens(tokens)
    indices = check_rows("indices", indices, len(tokens), tokens)
    if indices.is_inference() and not torch.is_inference_mode_enabled():
        indices = indices.clone()  # autograd keeps them, and refuses what inference mode made
    return choose_backend(backend, tokens).gather_tokens(tokens, indices)
