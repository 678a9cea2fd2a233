"""The ops and the budgets on Triton kernels: allocates what they need and launches them. Waits for nothing.

Boundaries that are known on the host size the launches; those of `greedy_select` and `pareto_front`
may be on the device, unread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from trimtok_fast.backends.torch import gather_gradient
from trimtok_fast.backends.triton_greedy import form_of, largest_stored, select_stored
from trimtok_fast.backends.triton_rounds import select_in_rounds
from trimtok_fast.budgets import BudgetPlan, floors_of, kept_of
from trimtok_fast.config import PruneConfig
from trimtok_fast.kernels.budgets import budgets_launch
from trimtok_fast.kernels.dpp import dpp_launch, tile_count
from trimtok_fast.kernels.gather import _gather_kernel, gather_launch
from trimtok_fast.kernels.pareto import pareto_launch
from trimtok_fast.kernels.statistics import CHUNK_M, MAX_WIDTH, statistics_launch
from trimtok_fast.segments import Segments, cumulative, integers_on, table_cache
from trimtok_fast.statistics import TokenStatistics

#: Boundaries and budgets may stay on the device.
ON_HOST = False
#: Kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET was 1 when triton was imported.
INTERPRETED = not isinstance(_gather_kernel, triton.JITFunction)

__all__ = [
    "INTERPRETED",
    "MAX_WIDTH",
    "ON_HOST",
    "dpp_select",
    "gather_tokens",
    "greedy_select",
    "pareto_front",
    "plan_budgets",
    "token_statistics",
]


def token_statistics(
    tokens: Tensor,
    images: Segments,
    samples: Segments,
    text: Tensor | None,
    cu_text: Segments | None,
    *,
    center: str,
) -> TokenStatistics:
    """METHOD §1 in three launches."""
    count, d = tokens.shape
    centred = center == "sample"
    chunks, cu_chunks, cu_text_chunks, text_chunks = _chunk_tables(tokens.device, images, samples, cu_text)

    def floats(*shape: int) -> Tensor:
        return tokens.new_empty(shape, dtype=torch.float32)

    def integers(*shape: int) -> Tensor:
        return tokens.new_empty(shape, dtype=torch.int64)

    out = TokenStatistics(
        origin=floats(len(samples), d) if centred else None,
        inverse_norm=floats(count),
        direction_sum=floats(len(images), d),
        nonzero=integers(len(images)),
        diversity=floats(len(images)),
        variation=floats(len(samples)),
        alignment=None if text is None else floats(count),
    )
    with torch.cuda.device_of(tokens):
        statistics_launch(
            **vars(out),
            tokens=tokens,
            text=text,
            chunks=chunks,
            cu_chunks=cu_chunks,
            cu_images=samples.tensor(tokens.device),
            cu_text=None if cu_text is None else cu_text.tensor(tokens.device),
            cu_text_chunks=cu_text_chunks,
            text_chunks=text_chunks,
            direction=floats(len(chunks), d),
            total=floats(len(chunks), d) if centred else None,
            count=integers(len(chunks), 2),
            norm=floats(count) if centred else None,
            mean_text=floats(len(samples), d) if centred and text is not None else None,
        )
    return out


def plan_budgets(
    statistics: TokenStatistics, images: Segments, samples: Segments, config: PruneConfig
) -> BudgetPlan:
    """METHOD §2, all samples in one launch."""
    device, kept = statistics.diversity.device, kept_of(images, samples, config)
    floors = tuple(
        floor
        for has_text in (False, True)
        for sample, span in enumerate(samples)
        for floor in floors_of(images.lengths[span], kept[sample], has_text, config)
    )
    plan = BudgetPlan(
        keep=integers_on(device, tuple(kept)).clone(),
        survivors=torch.empty(len(samples), dtype=torch.int64, device=device),
        pool=torch.empty(len(samples), dtype=torch.int64, device=device),
        image_budgets=torch.empty(len(images), dtype=torch.int64, device=device),
    )
    alignment = statistics.alignment
    with torch.cuda.device_of(statistics.diversity):
        budgets_launch(
            plan.image_budgets,
            plan.survivors,
            plan.pool,
            diversity=statistics.diversity.contiguous(),
            nonzero=statistics.nonzero.contiguous(),
            variation=statistics.variation.contiguous(),
            alignment=None if alignment is None else alignment.contiguous(),
            lengths=integers_on(device, images.lengths),
            floors=integers_on(device, floors),
            kept=plan.keep,
            cu_images=samples.tensor(device),
            first_rows=integers_on(device, samples.of(images).offsets[:-1]),
            split=None if config.stage_split == "adaptive" else float(config.stage_split),
            pool_fraction=config.pool_fraction,
        )
    return plan


@table_cache(maxsize=256)
def _chunk_tables(
    device: torch.device, images: Segments, samples: Segments, cu_text: Segments | None
) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """The chunks of text, then those of images; where each image's begin, and each text's; how many are text.

    Kept for the next call with the same shapes: on the host they take longer than the kernels on a GPU.
    """
    chunks, cu_chunks = _chunks(images, np.repeat(np.arange(len(samples)), samples.lengths))
    text_chunks, cu_text_chunks = np.empty((0, 3), np.int64), None
    if cu_text is not None:
        text_chunks, cu_text_chunks = _chunks(cu_text, np.arange(len(samples)))

    def on_device(table: np.ndarray) -> Tensor:
        return integers_on(device, tuple(table.ravel().tolist())).view(table.shape)

    return (
        on_device(np.concatenate([text_chunks, chunks])),
        on_device(cu_chunks + len(text_chunks)),
        None if cu_text_chunks is None else on_device(cu_text_chunks),
        len(text_chunks),
    )


def _chunks(segments: Segments, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most CHUNK_M within each segment: (first, end, sample) of each chunk; chunk boundaries."""
    offsets = np.array(segments.offsets)
    counts = -(-np.diff(offsets) // CHUNK_M)
    cu_chunks = np.concatenate([[0], counts.cumsum()])
    owner = np.repeat(np.arange(len(segments)), counts)
    first = offsets[owner] + (np.arange(len(owner)) - cu_chunks[owner]) * CHUNK_M
    end = np.minimum(first + CHUNK_M, offsets[owner + 1])
    return np.stack([first, end, sample[owner]], axis=1), cu_chunks


def greedy_select(
    tokens: Tensor,
    segments: Segments | Tensor,
    budgets: list[int] | Tensor,
    *,
    at_most: tuple[int, ...],
    total: int,
    objective: str,
    seeds: Tensor,
    cu_seeds: Segments,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor | None,
    candidates: int,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Every segment's greedy, many at a time: over stored similarities where they fit the workspace.

    A segment of more tokens (with `max_min` of more than 4,096 in any case) goes by `max_min` in rounds, by
    the other objectives with similarities that are computed at each use. Each segment's own size decides, on
    the device: a batch equals its segments alone.
    """
    device = tokens.device
    exact = isinstance(segments, Segments)
    cu_segments = segments.tensor(device) if isinstance(segments, Segments) else segments
    budgets = budgets if isinstance(budgets, Tensor) else integers_on(device, tuple(budgets))
    bound = max(at_most, default=0)
    shared: dict[str, Any] = {
        "bound": bound,
        "total": total,
        "seeds": seeds,
        "cu_seeds": cu_seeds.tensor(device),
        "origin": origin,
        "inverse_norm": inverse_norm,
        "rows": rows,
    }
    with torch.cuda.device_of(tokens):
        indices, gain = select_stored(
            tokens,
            cu_segments,
            budgets,
            lengths=at_most if exact else None,
            objective=objective,
            workspace_bytes=workspace_bytes,
            **shared,
        )
        stored = largest_stored(form_of(tokens, objective), objective, bound, workspace_bytes)
        if objective == "max_min" and bound > stored:
            picks, distance = select_in_rounds(
                tokens,
                cu_segments,
                budgets,
                candidates=candidates,
                workspace_bytes=workspace_bytes,
                above=stored,
                **shared,
            )
            large = picks >= 0
            indices, gain = torch.where(large, picks, indices), torch.where(large, distance, gain)
    return indices, gain


def dpp_select(
    tokens: Tensor,
    segments: Segments,
    budgets: list[int],
    *,
    relevance: Tensor | None,
    inverse_norm: Tensor | None,
    candidates: int,
) -> tuple[Tensor, Tensor]:
    """All segments' greedy at once, a launch a pick; `candidates` are for backends that go in rounds."""
    device, count = tokens.device, len(tokens)
    indices = tokens.new_empty(sum(budgets), dtype=torch.int64)
    gain = tokens.new_empty(sum(budgets), dtype=torch.float32)
    if len(indices) == 0:
        return indices, gain
    if inverse_norm is None:
        one = Segments((0, count)), Segments((0, 1))
        inverse_norm = token_statistics(tokens, *one, None, None, center="none").inverse_norm
    present = inverse_norm > 0
    weight = torch.ones_like(gain[:1]).expand(count) if relevance is None else relevance.float()
    weight = torch.where(weight > 0, weight, 0)
    # Ties go to the larger r, then to the lowest row.
    rows = weight.argsort(descending=True, stable=True)
    rows = rows[segments.owner(device)[rows].argsort(stable=True)]
    tiles = cumulative([tile_count(size) for size in segments.lengths])
    factors = cumulative([m * b for m, b in zip(segments.lengths, budgets, strict=True)])
    with torch.cuda.device_of(tokens):
        dpp_launch(
            indices,
            gain,
            left=tokens.new_empty(count, dtype=torch.float32),
            factor=tokens.new_empty(factors.end, dtype=torch.float32),
            best=tokens.new_empty(2, tiles.end, dtype=torch.int64),
            tokens=tokens,
            rows=rows,
            scale=torch.where(present, weight * inverse_norm.float(), 0)[rows],
            whole=torch.where(present, weight.square(), 0)[rows],
            cu_segments=segments.tensor(device),
            budgets=integers_on(device, tuple(budgets)),
            first_pick=cumulative(budgets).tensor(device),
            first_tile=tiles.tensor(device),
            first_factor=factors.tensor(device),
            largest_size=max(segments.lengths),
            largest_budget=max(budgets),
        )
    return indices, gain


def pareto_front(diversity: Tensor, alignment: Tensor, segments: Segments | Tensor) -> Tensor:
    """Sorted by segment, diversity and alignment, then ranked by one program a segment.

    Boundaries may be an int64 tensor on the device; what lies beyond the last gets front -1.
    """
    boundaries = segments if isinstance(segments, Tensor) else segments.tensor(diversity.device)
    position = torch.arange(len(diversity), device=diversity.device)
    owner = torch.searchsorted(boundaries[1:].contiguous(), position, right=True)
    # Adding 0 makes a 0 of -0: sorting by bits would put the two apart.
    keys = torch.stack([alignment, diversity])
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32)) + 0
    order = keys[0].argsort(descending=True, stable=True)
    order = order[keys[1][order].argsort(descending=True, stable=True)]
    order = order[owner[order].argsort(stable=True)]
    keys = keys[:, order]
    # Segment after segment as before: the owners are in their order, though what they own has moved.
    differs = (keys[:, 1:] != keys[:, :-1]).any(0) | (owner[1:] != owner[:-1])
    first = pad(differs, (1, 0), value=True)
    ranks = torch.full_like(order, -1, dtype=torch.int32)
    with torch.cuda.device_of(diversity):
        pareto_launch(
            ranks,
            alignment=keys[0],
            leads=first.to(torch.int8),
            cu_segments=boundaries,
            top=torch.empty_like(keys[0]),
        )
    leader = torch.where(first, position, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, ranks[leader].long())


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows by index; differentiable in the tokens."""
    return _Gather.apply(tokens, indices)


class _Gather(torch.autograd.Function):
    """What autograd has to know; `library` tells it again for compiled code."""

    @staticmethod
    def forward(tokens: Tensor, indices: Tensor) -> Tensor:
        out = tokens.new_empty(len(indices), tokens.shape[1])
        if len(indices) > 0:
            with torch.cuda.device_of(tokens):
                gather_launch(out, tokens=tokens, indices=indices)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.rows = len(inputs[0])
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return gather_gradient(grad, indices, ctx.rows), None
