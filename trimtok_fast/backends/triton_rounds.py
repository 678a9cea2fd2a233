"""Max-min selection in rounds on a GPU: what `kernels/rounds.py` reads and writes, allocated.

Nothing here reads a device value on the host: the whole selection can be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from trimtok_fast.kernels import common, rounds
from trimtok_fast.kernels.rounds_common import BLOCK_M, CANDIDATES, GROUP, KEEP, STATE


def select_in_rounds(
    tokens: Tensor,
    cu_segments: Tensor,
    budgets: Tensor,
    *,
    bound: int,
    total: int,
    seeds: Tensor,
    cu_seeds: Tensor,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor | None,
    candidates: int,
    workspace_bytes: int,
    above: int = 0,
) -> tuple[Tensor, Tensor]:
    """`greedy_select` with `objective="max_min"`, without a matrix (METHOD §5).

    Args:
        tokens: fp32, fp16 or bf16 [M, d], any strides.
        cu_segments: int64 [g + 1], on the tokens' device like all tensors here.
        budgets: int64 [g].
        bound: an upper bound of a segment's rows.
        total: an upper bound of the sum of the budgets.
        seeds: int64, rows of `tokens`, grouped by segment.
        cu_seeds: int64 [g + 1].
        origin: [g, d], or `None` for 0.
        inverse_norm: [M], or `None` to compute it.
        rows: int64 [N], distinct in each segment, in any order; entries past the last boundary are not
            looked at. `None` for all rows.
        candidates: how many a round has, 128 at most.
        workspace_bytes: bound on what is stored of directions. Those of all rows if they fit, which saves
            making them again in every round, and changes no bit; else those of the candidates.
        above: segments of so many rows at most are left alone, and their picks -1.

    Returns:
        int64 [total] rows of `tokens` in the order of the picks, and fp32 [total] gains; what the budgets
        leave over is -1 and NaN.

    Note:
        The number of launches hangs on `total`, `bound`, the number of seeds and `candidates` alone. Ordinary
        tokens are done before the planned rounds are, and each round left over costs two launches that find
        nothing to do. Tokens laid out to let a round accept one pick at a time outlast the plan: then one
        program a segment reads all its tokens for every pick that is left.
    """
    device, width = tokens.device, tokens.shape[1]
    segments = len(budgets)
    picks = torch.full((total,), -1, dtype=torch.int64, device=device)
    gain = torch.full((total,), float("nan"), dtype=torch.float32, device=device)
    size = len(tokens) if rows is None else len(rows)
    if total == 0 or size == 0:
        return picks, gain
    keys = _keys(torch.arange(size, device=device) if rows is None else rows, cu_segments, len(tokens))
    if rows is not None:
        keys = keys.sort().values
    ordered = keys - _owner(cu_segments, size) * len(tokens)
    block_m, slots = BLOCK_M.value, CANDIDATES.value
    cu_tiles = _running_total((cu_segments.diff() + (block_m - 1)) // block_m)
    tiles = rounds.tile_count(size, segments, bound)
    limit = min(candidates, slots)
    empty = partial(_empty, device)
    dtype, input_precision = product_type(tokens)
    stored = rounds.stores(size, width, dtype, workspace_bytes)
    rounds.rounds_launch(
        picks,
        gain,
        tokens=tokens,
        # In 16 bits it would change in what order a product is summed, where directions are not stored.
        origin=None if origin is None else origin.float(),
        inverse_norm=inverse_norm,
        rows=ordered,
        cu_segments=cu_segments,
        budgets=torch.where(cu_segments.diff() > above, budgets, 0),
        cu_budgets=_running_total(budgets),
        seeds=torch.searchsorted(keys, _keys(seeds, cu_seeds, len(tokens))),
        cu_seeds=cu_seeds,
        cu_tiles=cu_tiles,
        tile_segment=_owner(cu_tiles, tiles),
        inverse=empty(size),
        scale=empty(size),
        value=empty(size),
        part=empty(tiles, width),
        total=empty(segments, width),
        typical=empty(tiles, dtype=torch.int64),
        best=empty(tiles, block_m // GROUP.value, KEEP.value, dtype=torch.int64),
        state=empty(segments, STATE.value, dtype=torch.int64),
        scratch=empty(segments, slots, dtype=torch.int32),
        candidates=empty(segments, slots, dtype=torch.int32),
        candidate_scale=empty(segments, slots),
        apart=empty(segments, slots, slots),
        columns=empty(*((1, size) if stored else (segments, slots)), width, dtype=dtype),
        stored=stored,
        column_scale=empty(segments, slots),
        slots=empty(segments, slots, dtype=torch.int32),
        limit=limit,
        rounds=rounds.planned_rounds(total, bound, len(seeds), limit),
        input_precision=input_precision,
    )
    return torch.where(picks < 0, -1, ordered[picks.clamp(min=0)]), gain


def _empty(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def product_type(tokens: Tensor) -> tuple[torch.dtype, str]:
    """What û is rounded to for the products, and how fp32 is multiplied."""
    platform = common.platform()
    if platform == "interpreter" and tokens.dtype == torch.bfloat16:  # its products of bf16 are wrong
        return torch.float32, "ieee"
    return tokens.dtype, "tf32x3" if platform == "cuda" else "ieee"


def _owner(offsets: Tensor, count: int) -> Tensor:
    """The segment that each of `count` entries belongs to; the number of segments past the last boundary."""
    return torch.searchsorted(offsets[1:], torch.arange(count, device=offsets.device), right=True)


def _keys(rows: Tensor, offsets: Tensor, count: int) -> Tensor:
    """Numbers in the order of segments, then of rows; what is past the last boundary comes after all."""
    return _owner(offsets, len(rows)) * count + rows.clamp(min=0)


def _running_total(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
