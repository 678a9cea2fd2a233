"""Greedy selection by the Triton kernels: workspace, groups of segments, launches. Nothing is read back.

Segments whose directions and similarities fit the workspace are done over stored similarities, as many at a
time as fit. Which path a segment takes, and by which launches, depends on its own size alone: a batch gives
every segment the bits that it gets alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from trimtok_fast.kernels import common, directions, greedy, recomputed, similarity

#: Slots of one launch: what CUDA allows in the second dimension of a grid.
MOST_SLOTS = 65_535
#: Tokens above which `max_min` goes in rounds, whatever fits the workspace: they are faster than one program
#: that streams a matrix (measured on an H100).
ROUNDS_ABOVE = 4096


class Form(NamedTuple):
    """What the similarities of some tokens are stored as for an objective."""

    directions: torch.dtype
    matrix: torch.dtype
    #: What stands for 1 in column sums, and in coverage's matrix.
    unit: float
    #: Columns of a direction, in whole blocks.
    width: int


def form_of(tokens: Tensor, objective: str) -> Form:
    """Whole numbers for coverage, so that gains are exact; as many digits as the tokens are worth."""
    stored = directions.directions_dtype(tokens.dtype)
    block_d = directions.launch_config(stored).block_d
    width = triton.cdiv(tokens.shape[1], block_d) * block_d
    if objective != "coverage":
        return Form(stored, torch.float32, 2.0**22, width)
    if stored == torch.float16:
        return Form(stored, torch.int16, 2.0**14, width)
    return Form(stored, torch.int32, 2.0**22, width)


class Workspace(NamedTuple):
    """Slots for the segments of a group, every one as large as the largest needs."""

    directions: Tensor
    scale: Tensor
    matrix: Tensor
    partial: Tensor
    state: Tensor
    moved: Tensor | None
    best: Tensor | None


def slot_rows_of(size: int, form: Form) -> int:
    """Rows of the slot of a segment: whole tiles."""
    block_m = directions.launch_config(form.directions).block_m
    return triton.cdiv(size, block_m) * block_m


def slot_bytes(size: int, form: Form) -> int:
    """What a segment's slot takes."""
    rows = slot_rows_of(size, form)
    tiles = rows // directions.launch_config(form.directions).block_m
    # scale 4 bytes, partial sums 4 a tile, the list of moved tokens 12, state 8, best 4
    each = rows * form.matrix.itemsize + form.width * form.directions.itemsize + 4 * tiles + 28
    return rows * each


def largest_stored(form: Form, objective: str, bound: int, workspace_bytes: int) -> int:
    """The size of the largest segment, up to `bound`, that is done over stored similarities; 0 if none is.

    Its slot fits the workspace, and with `max_min` it is no larger than ROUNDS_ABOVE.
    """
    return _largest_that_fits(
        form, min(bound, ROUNDS_ABOVE) if objective == "max_min" else bound, workspace_bytes
    )


@functools.lru_cache(maxsize=256)
def _largest_that_fits(form: Form, bound: int, workspace_bytes: int) -> int:
    low, high = 0, bound
    while low < high:
        middle = (low + high + 1) // 2
        if slot_bytes(middle, form) <= workspace_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def groups(
    lengths: tuple[int, ...], form: Form, stored: int, workspace_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """Consecutive segments whose slots fit the workspace together: the first, the end, the largest size."""
    first, largest = 0, 0
    for index, length in enumerate(lengths):
        if length > stored:
            length = 0
        wider = max(largest, length)
        slots = index + 1 - first
        if slots > MOST_SLOTS or slots * slot_bytes(wider, form) > workspace_bytes:
            yield first, index, largest
            first, wider = index, length
        largest = wider
    yield first, len(lengths), largest


def allocate(tokens: Tensor, slots: int, size: int, form: Form, objective: str) -> Workspace:
    """The workspace of one group."""
    rows = slot_rows_of(size, form)
    tiles = rows // directions.launch_config(form.directions).block_m
    coverage = objective == "coverage"

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(slots, *shape, dtype=dtype, device=tokens.device)

    return Workspace(
        directions=empty(rows, form.width, dtype=form.directions),
        scale=empty(rows, dtype=torch.float32),
        matrix=empty(rows, rows, dtype=form.matrix),
        partial=empty(tiles, rows, dtype=torch.int32),
        state=empty(rows, dtype=torch.int64 if coverage else torch.float32),
        moved=empty(3, rows, dtype=torch.int32) if coverage else None,
        best=empty(rows, dtype=torch.int32) if coverage else None,
    )


def input_precision(tokens: Tensor) -> str:
    """How fp32 directions are multiplied: in three parts on NVIDIA's matrix units, as they are elsewhere."""
    return "tf32x3" if common.platform() == "cuda" and tokens.dtype == torch.float32 else "ieee"


def select_stored(
    tokens: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    *,
    lengths: tuple[int, ...] | None,
    bound: int,
    total: int,
    objective: str,
    seeds: Tensor,
    cu_seeds: Tensor,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor | None,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Every segment's greedy, many at a time.

    Args:
        tokens: fp32, fp16 or bf16 [M, d], any strides.
        cu_segments: int64 [g + 1] on the tokens' device.
        budgets: int64 [g] on the tokens' device.
        lengths: sizes of the segments, where the host knows them.
        bound: an upper bound of every segment's size.
        total: an upper bound of the sum of the budgets.
        objective: `"coverage"`, `"max_min"` or `"max_mean"`.
        seeds: int64 rows of `tokens`, grouped by `cu_seeds`.
        cu_seeds: int64 [g + 1] on the tokens' device.
        origin: fp32 [g, d] or `None`.
        inverse_norm: fp32 [M] or `None`.
        rows: int64 [N] or `None`; in any order within a segment, what lies past `cu_segments[-1]` is unused.
        workspace_bytes: bound on what is stored of directions and similarities at a time.

    Returns:
        Indices int64 [total] in the order of the picks, segment by segment, -1 where the budgets leave
        something over; gains fp32 [total], NaN there.

    Note:
        Reads no value of a tensor on the host.
    """
    device = tokens.device
    indices = torch.full((total,), -1, dtype=torch.int64, device=device)
    gain = torch.full((total,), float("nan"), dtype=torch.float32, device=device)
    ordered, places = _sort_rows(rows, cu_segments, seeds, cu_seeds, len(tokens))
    form = form_of(tokens, objective)
    bound = bound if lengths is None else max(lengths, default=0)
    stored = largest_stored(form, objective, bound, workspace_bytes)
    common: dict[str, Any] = dict(
        tokens=tokens,
        cu_segments=cu_segments,
        origin=origin,
        inverse_norm=inverse_norm,
        rows=ordered,
        input_precision=input_precision(tokens),
    )
    greedily: dict[str, Any] = dict(
        budgets=budgets,
        offsets=budgets.cumsum(0) - budgets,
        seeds=places,
        cu_seeds=cu_seeds,
        objective=objective,
        unit=form.unit,
    )
    known = lengths if lengths is not None else (min(bound, stored),) * len(budgets)
    for first, end, size in groups(known, form, stored, workspace_bytes):
        if size == 0:
            continue
        sizes = range(1, size + 1) if lengths is None else [n for n in lengths[first:end] if 0 < n <= stored]
        _over_stored(indices, gain, first, end - first, size, sizes, form, common, greedily)
    if bound > stored and objective != "max_min":
        large = range(len(budgets)) if lengths is None else [k for k, n in enumerate(lengths) if n > stored]
        for k in large:
            size = bound if lengths is None else lengths[k]
            _recomputed(indices, gain, k, size, stored, min(total, size), form, common, greedily)
    return indices, gain


def _over_stored(
    indices: Tensor,
    gain: Tensor,
    first: int,
    slots: int,
    size: int,
    sizes: Iterable[int],
    form: Form,
    common: dict[str, Any],
    greedily: dict[str, Any],
) -> None:
    """One group: similarities and picks, by the launches that its sizes need."""
    work = allocate(common["tokens"], slots, size, form, greedily["objective"])
    fused, middle = greedy.launch_config().fused, greedy.launch_config().small
    one_launch = {"directions", "scale", "matrix", "partial", "moved"}
    if any(n <= fused for n in sizes):
        slot = {name: getattr(work, name) for name in one_launch}
        greedy.fused_launch(indices, gain, **slot, first=first, **common, **greedily)
    if any(n > fused for n in sizes):
        group = dict(first=first, above=fused, cu_segments=common["cu_segments"])
        precision = common["input_precision"]
        directions.directions_launch(work.directions, work.scale, **{**common, **group})
        similarity.similarity_launch(
            work.matrix,
            work.partial,
            directions=work.directions,
            scale=work.scale,
            unit=form.unit,
            coverage=greedily["objective"] == "coverage",
            input_precision=precision,
            **group,
        )
        for small in (True, False):
            if any(n > fused and (n <= middle) == small for n in sizes):
                greedy.staged_launch(
                    indices, gain, **work._asdict(), rows=common["rows"], small=small, **group, **greedily
                )


def _recomputed(
    indices: Tensor,
    gain: Tensor,
    segment: int,
    size: int,
    above: int,
    steps: int,
    form: Form,
    common: dict[str, Any],
    greedily: dict[str, Any],
) -> None:
    """One segment that does not fit, with nothing stored that is longer than it."""
    rows, coverage, device = slot_rows_of(size, form), greedily["objective"] == "coverage", indices.device
    recomputed.recomputed_launch(
        indices,
        gain,
        token=torch.empty(1, rows, dtype=torch.int64, device=device),
        inverse=torch.empty(1, rows, dtype=torch.float32, device=device),
        scale=torch.empty(1, rows, dtype=torch.float32, device=device),
        state=torch.empty(1, rows, dtype=torch.int64 if coverage else torch.float32, device=device),
        best=torch.empty(1, rows, dtype=torch.int32, device=device) if coverage else None,
        moved=torch.empty(1, 3, rows, dtype=torch.int32, device=device) if coverage else None,
        last=torch.zeros(1, 2, dtype=torch.int32, device=device),
        count=torch.zeros(1, 2, dtype=torch.float32, device=device),
        first=segment,
        above=above,
        steps=steps,
        dtype=form.directions,
        **common,
        **greedily,
    )


def _sort_rows(
    rows: Tensor | None, cu_segments: Tensor, seeds: Tensor, cu_seeds: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The rows ascending within each segment, so that ties go to the lowest; the seeds' places in theirs."""
    seeded = torch.searchsorted(cu_seeds[1:], torch.arange(len(seeds), device=seeds.device), right=True)
    if rows is None:
        # All rows, written out: kernels with rows and without would be two.
        return torch.arange(count, device=seeds.device), seeds - cu_segments[seeded]
    owner = torch.searchsorted(cu_segments[1:], torch.arange(len(rows), device=rows.device), right=True)
    # One number a row sorts by segment first; rows that are not used belong to a segment after the last.
    keys = (owner * count + rows.clamp(min=0)).sort().values
    return keys % max(count, 1), torch.searchsorted(keys, seeded * count + seeds) - cu_segments[seeded]
