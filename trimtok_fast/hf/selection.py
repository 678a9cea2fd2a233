"""From merged embeddings to the positions that stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from trimtok_fast.budgets import BudgetPlan, kept_counts
from trimtok_fast.config import PruneConfig
from trimtok_fast.errors import InvalidInputError
from trimtok_fast.hf.families import Family
from trimtok_fast.hf.images import Entries, check_numbers, image_starts, numbered, visual_positions
from trimtok_fast.pipeline import PruneResult, prune
from trimtok_fast.statistics import TokenStatistics

#: `(input_ids [B, T], visual [B, T]) -> [B, T]`, what `query` and `image_index` may be.
PositionRule = Callable[[Tensor, Tensor], Tensor]

QUERIES = ("after_images", "all", "none")


@dataclass(frozen=True)
class Settings:
    """What the caller of `patch` asked for."""

    config: PruneConfig
    query: str | PositionRule = "after_images"
    image_index: PositionRule | None = None
    allow_window_drift: bool = False


@dataclass(frozen=True)
class Prompt:
    """A prefill with images, at the door of the language model.

    Attributes:
        ids: [B, T].
        embeds: [B, T, d], the features in place.
        valid: bool [B, T], False in padding.
        positions: [B, T] or [3 or 4, B, T] or `None`.
        entries: tokens of each entry of the feature getters.
    """

    ids: Tensor
    embeds: Tensor
    valid: Tensor
    positions: Tensor | None
    entries: Entries


@dataclass(frozen=True)
class Prefill:
    """What the last prefill with images came to.

    Attributes:
        kept: bool [B, T] over the original positions, False only where a visual token was dropped.
        results: a `PruneResult` a row, its indices counting the row's visual tokens, image by image; `None`
            for a row without images, and everywhere when all tokens stay.
        visual_before: int64 [B], on the host.
        visual_after: int64 [B], on the host.
        seconds: spent selecting, as the host sees it.
    """

    kept: Tensor
    results: list[PruneResult | None]
    visual_before: Tensor
    visual_after: Tensor
    seconds: float


def select(
    prompt: Prompt, family: Family, model_config: Any, settings: Settings, group: Any = None
) -> Prefill | None:
    """Choose what stays; `None` without a visual token.

    Args:
        prompt: what the language model was going to see.
        family: how the model lays out its images.
        model_config: the outer module's config, for placeholders and special ids.
        settings: the caller's.
        group: the process group over which the model is sharded: its first rank decides.
    """
    start = perf_counter()
    ids, width = prompt.ids, prompt.ids.shape[1]
    placed = visual_positions(ids, prompt.entries, model_config)
    visual = placed & prompt.valid
    before = visual.sum(1).cpu()
    if not before.any():
        return None
    if settings.config.keep_ratio == 1 and settings.image_index is None:  # nothing to choose, nor to check
        nothing: list[PruneResult | None] = [None] * len(ids)
        return Prefill(torch.ones_like(visual), nothing, before, before.clone(), perf_counter() - start)
    if settings.image_index is None:
        starts = image_starts(family, ids, placed, prompt.positions, prompt.entries, model_config)
        numbers = numbered(starts, placed)
    else:
        numbers = check_numbers(settings.image_index(ids, placed), placed)
    where = visual.flatten().nonzero().squeeze(1)
    owner = numbers.flatten()[where]
    if settings.image_index is not None:
        order = owner.argsort(stable=True)
        order = order[(where[order] // width).argsort(stable=True)]
        where, owner = where[order], owner[order]
    images, lengths = torch.stack([where // width, owner]).unique_consecutive(dim=1, return_counts=True)
    rows = [row for row, count in enumerate(before.tolist()) if count]
    images_of = torch.bincount(images[0], minlength=len(ids)).tolist()
    cu_tokens = _offsets(lengths.tolist())
    cu_images = _offsets([images_of[row] for row in rows])

    after = before.clone()
    counts = kept_counts(cu_tokens, cu_images, config=settings.config)
    after[rows] = torch.tensor(counts)
    kept = torch.ones_like(visual)
    results: list[PruneResult | None] = [None] * len(ids)
    if not torch.equal(after, before):
        flat = prompt.embeds.detach().flatten(0, 1)
        text, cu_text = _text(flat, prompt, placed, rows, settings.query, model_config)
        result = prune(flat[where], cu_tokens, cu_images, text=text, cu_text=cu_text, config=settings.config)
        result = _agreed(result, cu_tokens, group)
        kept.view(-1)[where] = False
        kept.view(-1)[where[result.indices]] = True
        for row, part in zip(rows, split(result, cu_tokens, cu_images), strict=True):
            results[row] = part
    return Prefill(kept, results, before, after, perf_counter() - start)


def _offsets(lengths: list[int]) -> list[int]:
    return [0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()]


def _text(
    flat: Tensor,
    prompt: Prompt,
    visual: Tensor,
    rows: list[int],
    query: str | PositionRule,
    model_config: Any,
) -> tuple[Tensor | None, list[int] | None]:
    """The embeddings of what each row with images asks, and their boundaries."""
    if query == "none":
        return None, None
    ids = prompt.ids
    if callable(query):
        asked = _check_query(query(ids, visual), visual)
    else:
        asked = ~torch.isin(ids, torch.tensor(special_ids(model_config), device=ids.device))
        if query == "after_images":
            words = asked & ~visual & prompt.valid
            follows = visual.flip(1).cumsum(1).flip(1) == 0
            after = words & follows
            asked = torch.where(after.any(1, keepdim=True), after, words)
    asked = asked & ~visual & prompt.valid
    asked = asked[rows]
    where = asked.nonzero()
    row = torch.tensor(rows, device=ids.device)[where[:, 0]]
    return flat[row * ids.shape[1] + where[:, 1]], _offsets(asked.sum(1).tolist())


def _check_query(mask: object, visual: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.shape != visual.shape or mask.dtype != torch.bool:
        raise InvalidInputError(
            "query",
            f"a callable that returns a bool mask {list(visual.shape)} of the question's tokens",
            f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__,
            "Visual tokens and padding are taken out of the mask in any case.",
        )
    return mask.to(visual.device)


def special_ids(config: Any) -> list[int]:
    """Ids that the config names: begin, end, padding, placeholders. The model has no tokenizer to ask."""
    found: set[int] = set()
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if name.endswith(("_token_id", "_token_ids", "_token_index")):
                values = value if isinstance(value, list | tuple) else [value]
                found.update(token for token in values if isinstance(token, int))
    return sorted(found)


def _agreed(result: PruneResult, cu_tokens: list[int], group: Any) -> PruneResult:
    """The first rank's choice on every rank: bits may differ between them, counts do not."""
    if group is None:
        return result
    indices = result.indices.contiguous()
    torch.distributed.broadcast(indices, group=group, group_src=0)
    boundaries = torch.tensor(cu_tokens, device=indices.device)
    return replace(result, indices=indices, cu_tokens=torch.searchsorted(indices, boundaries))


def split(result: PruneResult, cu_tokens: list[int], cu_images: list[int]) -> list[PruneResult]:
    """One result a sample, its indices and boundaries counted from the sample's first token."""
    parts = []
    cu_kept = result.cu_tokens.tolist()
    for sample, (first, last) in enumerate(pairwise(cu_images)):
        start, stop = cu_tokens[first], cu_tokens[last]
        images, rows = slice(first, last), slice(start, stop)
        low = cu_kept[first]
        kept = slice(low, cu_kept[last])
        one = slice(sample, sample + 1)
        statistics, plan = result.statistics, result.plan
        parts.append(
            PruneResult(
                indices=result.indices[kept] - start,
                cu_tokens=result.cu_tokens[first : last + 1] - low,
                statistics=TokenStatistics(
                    origin=None if statistics.origin is None else statistics.origin[one],
                    inverse_norm=statistics.inverse_norm[rows],
                    direction_sum=statistics.direction_sum[images],
                    nonzero=statistics.nonzero[images],
                    diversity=statistics.diversity[images],
                    variation=statistics.variation[one],
                    alignment=None if statistics.alignment is None else statistics.alignment[rows],
                ),
                plan=BudgetPlan(
                    keep=plan.keep[one],
                    survivors=plan.survivors[one],
                    pool=plan.pool[one],
                    image_budgets=plan.image_budgets[images],
                ),
                distance=result.distance[kept],
                alignment=None if result.alignment is None else result.alignment[kept],
                front=None if result.front is None else result.front[kept],
                stage=result.stage[rows],
            )
        )
    return parts
