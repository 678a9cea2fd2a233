"""Attention masks in original positions, translated to the slots that are left."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtok_fast.errors import UnsupportedModelError


def padding_mask(mask: Tensor | None, columns: Tensor) -> Tensor:
    """The 2-D mask of the slots: int64 [B, S], 0 in padding; never `None`.

    Without a mask and without a cache, transformers takes gaps in the positions for boundaries between packed
    sequences.
    """
    slots = columns >= 0
    if mask is None:
        return slots.long()
    width = int(mask.shape[1])
    inside = slots & (columns < width)
    return (
        mask.to(columns.device).expand(len(columns), -1).gather(1, columns.clamp(0, width - 1)).long()
        * inside
    )


def translate(
    mask: Tensor | None, queries: Tensor, first: int, columns: Tensor, keys: tuple[int, int]
) -> Tensor | None:
    """A 4-D mask over original positions as one over slots.

    Args:
        mask: [B, H, Q, K], bool (True is seen) or added to the scores; `None` is causal.
        queries: int64 [B, S], the original positions that ask.
        first: the original position of `mask`'s first row.
        columns: int64 [B, S'], the original position in each slot, -1 for padding.
        keys: how many keys the layer has, and the slot of the first.
    """
    length, offset = keys
    columns = columns[:, offset : offset + length]
    if mask is None:
        if not bool((columns < 0).any()):
            return None
        taken = columns[:, None, None, :] <= queries[:, None, :, None]
    else:
        columns, queries = columns.to(mask.device), queries.to(mask.device)
        rows = (queries - first).clamp(min=0)
        batch = torch.arange(len(columns), device=mask.device)[:, None, None]
        mask = mask.expand(len(columns), -1, -1, -1).transpose(0, 1)
        taken = mask[:, batch, rows[:, :, None], columns.clamp(min=0)[:, None, :]].transpose(0, 1)
    hidden = False if taken.dtype == torch.bool else torch.finfo(taken.dtype).min
    taken = taken.masked_fill((columns < 0)[:, None, None, :], hidden)
    return torch.nn.functional.pad(taken, (0, length - taken.shape[-1]), value=hidden)


def key_sizes(cache: Any, queries: int, layer: int) -> tuple[int, int]:
    """How many keys a layer will have when `queries` tokens come, and the slot of the first."""
    if cache is None:
        return queries, 0
    if "query_length" in inspect.signature(cache.get_mask_sizes).parameters:
        return cache.get_mask_sizes(queries, layer)
    past = int(cache.get_seq_length(layer))
    return cache.get_mask_sizes(torch.arange(past, past + queries), layer)


def window_masks(mask: Tensor | None, embeds: Tensor, cache: Any, config: Any) -> Any:
    """The masks that transformers makes for a model with windows, over original positions.

    Args:
        mask: the 2-D mask over original positions, or `None`.
        embeds: [B, Q, d], the call's tokens.
        cache: a trimmed KV cache, or `None` in a prefill.
        config: the language model's.
    """
    from transformers.masking_utils import create_masks_for_generate

    wanted = inspect.signature(create_masks_for_generate).parameters
    shape = embeds[..., :0]
    arguments = {
        "config": config,
        "attention_mask": mask,
        "past_key_values": cache,
        "position_ids": None,
        "inputs_embeds": shape,
        "input_embeds": shape,
    }
    past = 0 if cache is None else cache.get_seq_length()
    arguments["cache_position"] = torch.arange(past, past + embeds.shape[1], device=embeds.device)
    return create_masks_for_generate(**{name: arguments[name] for name in wanted if name in arguments})


def layer_of(kind: str, config: Any) -> int:
    """The first layer of this attention type."""
    kinds = getattr(config, "layer_types", None) or [kind]
    return kinds.index(kind) if kind in kinds else 0


def shortest_window(config: Any) -> int | None:
    """The fewest tokens that some layer attends to, `None` if all attend to everything."""
    kinds = getattr(config, "layer_types", None)
    sliding, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    if kinds is not None:
        sliding = sliding if any("sliding" in kind for kind in kinds) else None
        chunk = chunk if any("chunked" in kind for kind in kinds) else None
    windows = [window for window in (sliding, chunk) if window]
    return min(windows, default=None)


def check_mask(mask: Any) -> None:
    """Raise on what is neither a mask nor masks by attention type."""
    for part in mask.values() if isinstance(mask, Mapping) else [mask]:
        if part is not None and not (isinstance(part, Tensor) and part.ndim in (2, 4)):
            raise UnsupportedModelError(
                "attention_mask",
                "a 2-D or 4-D tensor, or 4-D tensors by attention type",
                f"{type(part).__name__}, as flex attention makes them"
                if not isinstance(part, Tensor)
                else f"{part.ndim} dimensions",
                'Load the model with attn_implementation="sdpa" or "eager".',
            )
