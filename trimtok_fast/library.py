"""The five ops as torch knows them: opaque under `torch.compile`, plain functions elsewhere.

The body of an op is the function in `ops`, checks included, so that compiled code raises the same errors when
it runs. In eager mode the function is called as it is: the boundary of an op costs more than a small kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from trimtok_fast import ops
from trimtok_fast.backends.directions import compute_dtype
from trimtok_fast.backends.torch import gather_gradient
from trimtok_fast.segments import Boundaries
from trimtok_fast.statistics import TokenStatistics

P = ParamSpec("P")
R = TypeVar("R")


def _when_compiling(eager: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function that calls the decorated one under `torch.compile` and `eager` elsewhere."""

    def decorate(traced: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(eager)
        def either(*args: P.args, **kwargs: P.kwargs) -> R:
            return (traced if torch.compiler.is_compiling() else eager)(*args, **kwargs)

        return either

    return decorate


def _integers(value: Boundaries, device: torch.device | None = None) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64, device=device)


def _optional_integers(value: Boundaries | None, device: torch.device | None = None) -> Tensor | None:
    return None if value is None else _integers(value, device)


_STATISTICS = (
    "(Tensor tokens, Tensor cu_tokens, Tensor? cu_images, Tensor? text, Tensor? cu_text, str center,"
    " str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("trimtok_fast::token_statistics", mutates_args=(), schema=_STATISTICS)
def _statistics_op(
    tokens: Tensor,
    cu_tokens: Tensor,
    cu_images: Tensor | None,
    text: Tensor | None,
    cu_text: Tensor | None,
    center: str,
    backend: str,
) -> tuple[Tensor, ...]:
    """The fields of `TokenStatistics`, an empty tensor for `None`."""
    out = ops.token_statistics(
        tokens, cu_tokens, cu_images, text=text, cu_text=cu_text, center=center, backend=backend
    )
    return tuple(tokens.new_empty(0) if value is None else value for value in vars(out).values())


@_statistics_op.register_fake
def _(
    tokens: Tensor,
    cu_tokens: Tensor,
    cu_images: Tensor | None,
    text: Tensor | None,
    cu_text: Tensor | None,
    center: str,
    backend: str,
) -> tuple[Tensor, ...]:
    rows, d = tokens.shape
    images = len(cu_tokens) - 1
    samples = 1 if cu_images is None else len(cu_images) - 1
    dtype = compute_dtype(tokens)
    return (
        tokens.new_empty(samples, d, dtype=dtype) if center == "sample" else tokens.new_empty(0),
        tokens.new_empty(rows, dtype=dtype),
        tokens.new_empty(images, d, dtype=dtype),
        tokens.new_empty(images, dtype=torch.int64),
        tokens.new_empty(images, dtype=dtype),
        tokens.new_empty(samples, dtype=dtype),
        tokens.new_empty(0) if text is None else tokens.new_empty(rows, dtype=dtype),
    )


@_when_compiling(ops.token_statistics)
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
    """Of the op's tensors."""
    origin, inverse_norm, direction_sum, nonzero, diversity, variation, alignment = _statistics_op(
        tokens.detach(),
        _integers(cu_tokens),
        _optional_integers(cu_images),
        None if text is None else text.detach(),
        _optional_integers(cu_text),
        center,
        backend,
    )
    return TokenStatistics(
        origin=None if center == "none" else origin,
        inverse_norm=inverse_norm,
        direction_sum=direction_sum,
        nonzero=nonzero,
        diversity=diversity,
        variation=variation,
        alignment=None if text is None else alignment,
    )


_SELECT = (
    "(Tensor tokens, Tensor cu_segments, Tensor budgets, str objective, Tensor? seeds, Tensor? cu_seeds,"
    " Tensor? origin, Tensor? inverse_norm, Tensor? rows, SymInt? total, int candidates, int workspace_bytes,"
    " str backend) -> (Tensor, Tensor)"
)


@torch.library.custom_op("trimtok_fast::greedy_select", mutates_args=(), schema=_SELECT)
def _select_op(
    tokens: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    objective: str,
    seeds: Tensor | None,
    cu_seeds: Tensor | None,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor | None,
    total: int | None,
    candidates: int,
    workspace_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return ops.greedy_select(
        tokens,
        cu_segments,
        budgets,
        objective=objective,
        seeds=seeds,
        cu_seeds=cu_seeds,
        origin=origin,
        inverse_norm=inverse_norm,
        rows=rows,
        total=total,
        candidates=candidates,
        workspace_bytes=workspace_bytes,
        backend=backend,
    )


@_select_op.register_fake
def _(tokens: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    total = arguments[8]
    if total is None:  # only the values of the budgets tell
        total = torch.library.get_ctx().new_dynamic_size()
    return tokens.new_empty(total, dtype=torch.int64), tokens.new_empty(total, dtype=torch.float32)


@_when_compiling(ops.greedy_select)
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
    """Of known size where the budgets are on the host, or `total` is given."""
    if total is None and not isinstance(budgets, Tensor):
        total = sum(budgets)
    return _select_op(
        tokens.detach(),
        _integers(cu_segments),
        _integers(budgets),
        objective,
        _optional_integers(seeds, tokens.device),
        _optional_integers(cu_seeds),
        None if origin is None else origin.detach(),
        None if inverse_norm is None else inverse_norm.detach(),
        rows,
        total,
        candidates,
        workspace_bytes,
        backend,
    )


_DPP = (
    "(Tensor tokens, Tensor cu_segments, Tensor budgets, Tensor? relevance, Tensor? inverse_norm,"
    " SymInt? total, int candidates, str backend) -> (Tensor, Tensor)"
)


@torch.library.custom_op("trimtok_fast::dpp_select", mutates_args=(), schema=_DPP)
def _dpp_op(
    tokens: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    relevance: Tensor | None,
    inverse_norm: Tensor | None,
    total: int | None,
    candidates: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return ops.dpp_select(
        tokens,
        cu_segments,
        budgets,
        relevance=relevance,
        inverse_norm=inverse_norm,
        candidates=candidates,
        backend=backend,
    )


@_dpp_op.register_fake
def _(tokens: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    total = arguments[4]
    if total is None:  # only the values of the budgets tell
        total = torch.library.get_ctx().new_dynamic_size()
    return tokens.new_empty(total, dtype=torch.int64), tokens.new_empty(total, dtype=torch.float32)


@_when_compiling(ops.dpp_select)
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
    """Of known size where the budgets are on the host."""
    return _dpp_op(
        tokens.detach(),
        _integers(cu_segments),
        _integers(budgets),
        None if relevance is None else relevance.detach(),
        None if inverse_norm is None else inverse_norm.detach(),
        None if isinstance(budgets, Tensor) else sum(budgets),
        candidates,
        backend,
    )


@torch.library.custom_op(
    "trimtok_fast::pareto_front",
    mutates_args=(),
    schema="(Tensor diversity, Tensor alignment, Tensor cu_segments, str backend) -> Tensor",
)
def _pareto_op(diversity: Tensor, alignment: Tensor, cu_segments: Tensor, backend: str) -> Tensor:
    return ops.pareto_front(diversity, alignment, cu_segments, backend=backend)


@_pareto_op.register_fake
def _(diversity: Tensor, alignment: Tensor, cu_segments: Tensor, backend: str) -> Tensor:
    return diversity.new_empty(len(diversity), dtype=torch.int64)


@_when_compiling(ops.pareto_front)
def pareto_front(
    diversity: Tensor, alignment: Tensor, cu_segments: Boundaries, *, backend: str = "auto"
) -> Tensor:
    """Ranks have no gradient."""
    return _pareto_op(diversity.detach(), alignment.detach(), _integers(cu_segments), backend)


@torch.library.custom_op(
    "trimtok_fast::gather_tokens",
    mutates_args=(),
    schema="(Tensor tokens, Tensor indices, str backend) -> Tensor",
)
def _gather_op(tokens: Tensor, indices: Tensor, backend: str) -> Tensor:
    return ops.gather_tokens(tokens, indices, backend=backend)


@_gather_op.register_fake
def _(tokens: Tensor, indices: Tensor, backend: str) -> Tensor:
    return tokens.new_empty(len(indices), tokens.shape[1])


def _remember_indices(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.rows = inputs[0].shape[0]
    ctx.save_for_backward(inputs[1])


def _put_gradient_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return gather_gradient(grad, ctx.saved_tensors[0], ctx.rows), None, None


_gather_op.register_autograd(_put_gradient_back, setup_context=_remember_indices)


@_when_compiling(ops.gather_tokens)
def gather_tokens(tokens: Tensor, indices: Tensor, *, backend: str = "auto") -> Tensor:
    """Differentiable as in eager mode."""
    return _gather_op(tokens, indices, backend)
