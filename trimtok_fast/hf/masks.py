"""Attention masks over the slots that are left, in which windows follow the original positions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtok_fast.errors import UnsupportedModelError

#: A mask for all layers, or one for each attention type of the config.
Masks = Tensor | Mapping[str, Tensor | None]


def parse(mask: Any) -> tuple[Tensor | None, Masks | None]:
    """What is padding (2-D, `None` if nothing is), or masks that say more (4-D).

    Raises:
        UnsupportedModelError: neither tensors of these dimensions nor a mapping of them by attention type.
    """
    parts = list(mask.values()) if isinstance(mask, Mapping) else [mask]
    for part in parts:
        if part is not None and not (isinstance(part, Tensor) and part.ndim in (2, 4)):
            raise UnsupportedModelError(
                "attention_mask",
                "a 2-D or 4-D tensor, or 4-D tensors by attention type",
                f"{part.ndim} dimensions"
                if isinstance(part, Tensor)
                else f"{type(part).__name__}, as flex attention makes them",
                'Load the model with attn_implementation="sdpa" or "eager".',
            )
    if any(part is not None and part.ndim == 4 for part in parts):
        return None, mask
    return next((part for part in parts if part is not None), None), None


def padding_mask(mask: Tensor | None, columns: Tensor) -> Tensor:
    """Which slots are seen at all: int64 [B, S].

    Never `None`: without a mask and without a cache, transformers takes gaps in the positions for boundaries
    between packed sequences.

    Args:
        mask: [B, K] over original positions, or `None`.
        columns: int64 [B, S], the original position in each slot, -1 for padding.
    """
    if mask is None:
        return (columns >= 0).long()
    width = mask.shape[1]
    mask = mask.to(columns.device, torch.int64).expand(len(columns), -1)
    return mask.gather(1, columns.clamp(0, width - 1)) * ((columns >= 0) & (columns < width))


def slot_masks(
    original: Masks, queries: Tensor, first: int, columns: Tensor, cache: Any, config: Any
) -> Masks | None:
    """4-D masks over original positions as masks over slots.

    Args:
        original: what the model made, [B, H, Q, K] each; `None` in a mapping is causal.
        queries: int64 [B, S], the original positions that ask.
        first: the original position of the masks' first row.
        columns: int64 [B, S'], the original position in each slot, -1 for padding.
        cache: the plain KV cache before the call, or `None`.
        config: the language model's.
    """

    def taken(mask: Tensor | None, layer: int) -> Tensor | None:
        length, start = key_sizes(cache, queries.shape[1], layer)
        keys = columns[:, start : start + length]
        if mask is None:
            if not bool((keys < 0).any()):
                return None
            part = _causal(queries, keys)
        else:
            part = _gather(mask, queries - first, keys)
        return _padded(part, keys, length)

    if isinstance(original, Tensor):
        return taken(original, 0)
    kinds = getattr(config, "layer_types", None) or []
    return {kind: taken(mask, kinds.index(kind) if kind in kinds else 0) for kind, mask in original.items()}


def window_masks(
    padding: Tensor | None, queries: Tensor, columns: Tensor, cache: Any, config: Any, dtype: torch.dtype
) -> Masks:
    """The masks of a model whose layers see windows, by the original positions in its slots.

    Args:
        padding: [B, K] over original positions, or `None`.
        queries: see `slot_masks`.
        columns: see `slot_masks`.
        cache: see `slot_masks`.
        config: see `slot_masks`.
        dtype: of the scores, to which eager attention adds its mask.
    """
    seen = padding_mask(padding, columns).bool()
    unpadded = None if padding is None else (padding.cumsum(1) == 0).sum(1)[:, None].to(columns.device)

    def made(kind: str, layer: int) -> Tensor:
        length, start = key_sizes(cache, queries.shape[1], layer)
        keys = columns[:, start : start + length]
        mask = _causal(queries, keys) & seen[:, None, None, start : start + length]
        if "sliding" in kind:
            mask &= keys[:, None, None, :] > queries[:, None, :, None] - config.sliding_window
        elif "chunked" in kind:
            shift = 0 if unpadded is None else unpadded
            chunk = config.attention_chunk_size
            mask &= ((keys - shift) // chunk)[:, None, None, :] == ((queries - shift) // chunk)[
                :, None, :, None
            ]
        if config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return _padded(mask, keys, length)

    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return made("sliding" if getattr(config, "sliding_window", None) else "chunked", 0)
    return {kind: made(kind, kinds.index(kind)) for kind in dict.fromkeys(kinds)}


def shortest_window(config: Any) -> int | None:
    """The fewest positions that some layer sees, `None` if all see everything."""
    kinds = getattr(config, "layer_types", None)
    windows = {
        "sliding": getattr(config, "sliding_window", None),
        "chunked": getattr(config, "attention_chunk_size", None),
    }
    return min(
        (
            size
            for name, size in windows.items()
            if size and (kinds is None or any(name in kind for kind in kinds))
        ),
        default=None,
    )


def key_sizes(cache: Any, queries: int, layer: int) -> tuple[int, int]:
    """How many keys a layer will see when `queries` tokens come, and the slot of the first."""
    if cache is None:
        return queries, 0
    if "query_length" in inspect.signature(cache.get_mask_sizes).parameters:
        return cache.get_mask_sizes(queries, layer)
    past = int(cache.get_seq_length(layer))
    return cache.get_mask_sizes(torch.arange(past, past + queries), layer)


def _causal(queries: Tensor, keys: Tensor) -> Tensor:
    return keys[:, None, None, :] <= queries[:, None, :, None]


def _gather(mask: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    batch = torch.arange(len(keys), device=mask.device)[:, None, None]
    rows, keys = rows.to(mask.device).clamp(min=0), keys.to(mask.device).clamp(min=0)
    mask = mask.expand(len(keys), -1, -1, -1).transpose(0, 1)
    return mask[:, batch, rows[:, :, None], keys[:, None, :]].transpose(0, 1)


def _padded(mask: Tensor, keys: Tensor, length: int) -> Tensor:
    """The mask with its padding hidden, and as wide as the layer's keys."""
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    mask = mask.masked_fill((keys < 0).to(mask.device)[:, None, None, :], hidden)
    return torch.nn.functional.pad(mask, (0, length - mask.shape[-1]), value=hidden)
