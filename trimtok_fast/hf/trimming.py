"""What the language model is given instead: fewer tokens, at their original positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtok_fast.errors import UnsupportedModelError
from trimtok_fast.hf import masks
from trimtok_fast.hf.cache import Slots, unseal

IGNORED_LABEL = -100


def kept_columns(kept: Tensor, valid: Tensor) -> Tensor:
    """The original position of each token that stays, row by row: int64 [B, S], -1 where a row is padded.

    Padding goes to the side on which the batch has it (left without any); padding of the batch itself is left
    out as far as no row needs it.
    """
    stays = kept & valid
    counts = stays.sum(1, keepdim=True)
    width = int(counts.max())
    order = (~stays).long().argsort(dim=1, stable=True)[:, :width]
    slot = torch.arange(width, device=kept.device)
    if bool(valid[:, 0].all()) and not bool(valid[:, -1].all()):
        return torch.where(slot < counts, order, -1)
    slot = slot - (width - counts)
    return torch.where(slot >= 0, order.gather(1, slot.clamp(min=0)), -1)


def trim_prefill(kwargs: dict[str, Any], kept: Tensor, columns: Tensor, config: Any, drift: bool) -> None:
    """Replace what the language model is called with by its part at `columns`.

    Args:
        kwargs: the call's keyword arguments.
        kept: bool [B, T].
        columns: int64 [B, S] of `kept_columns`.
        config: the language model's.
        drift: whether windows may count kept tokens where they cannot count positions.
    """
    embeds, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
    width = embeds.shape[1]
    mask = kwargs.get("attention_mask")
    original = _original_masks(mask, embeds, None, width, config, drift)
    kwargs["attention_mask"] = _slot_masks(mask, original, columns, 0, columns, cache, config)
    batch = torch.arange(len(columns), device=embeds.device)[:, None]
    kwargs["inputs_embeds"] = embeds[batch, columns.clamp(min=0)]
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(width, device=embeds.device)[None]
    shape = (*positions.shape[:-2], *columns.shape)
    kwargs["position_ids"] = positions.expand(*shape[:-1], width).gather(
        -1, columns.clamp(min=0).expand(shape)
    )
    if kwargs.get("visual_pos_masks") is not None:
        visual = kwargs["visual_pos_masks"]
        kwargs["deepstack_visual_embeds"] = [
            features[kept[visual]] for features in kwargs["deepstack_visual_embeds"]
        ]
        kwargs["visual_pos_masks"] = visual.gather(1, columns.clamp(min=0)) & (columns >= 0)
    if kwargs.get("cache_position") is not None:
        kwargs["cache_position"] = torch.arange(columns.shape[1], device=embeds.device)


def resume(kwargs: dict[str, Any], config: Any, drift: bool) -> Slots:
    """Translate a call that continues a trimmed prompt; unseals the cache.

    Returns:
        The slots once the call's tokens are in.
    """
    embeds, cache = kwargs.get("inputs_embeds"), kwargs["past_key_values"]
    if embeds is None:  # a language model that is called with ids
        embeds = kwargs["input_ids"][..., None]
    count, slots = embeds.shape[1], cache.slots
    extended = slots.extended(count)
    mask = kwargs.get("attention_mask")
    original = _original_masks(mask, embeds, cache, extended.length, config, drift)
    unseal(cache)
    new = extended.columns[:, -count:]
    kwargs["attention_mask"] = _slot_masks(mask, original, new, slots.length, extended.columns, cache, config)
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(slots.length, extended.length, device=embeds.device)[None]
    kwargs["position_ids"] = positions[..., -count:]
    if kwargs.get("cache_position") is not None:
        start = slots.columns.shape[1]
        kwargs["cache_position"] = torch.arange(start, start + count, device=embeds.device)
    return extended


def trim_labels(labels: Tensor, columns: Tensor) -> Tensor:
    """The labels at `columns`; padding is ignored by the loss."""
    columns = columns.to(labels.device)
    return labels.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, IGNORED_LABEL)


def _original_masks(
    mask: Any, embeds: Tensor, cache: Any, length: int, config: Any, drift: bool
) -> Tensor | Mapping[str, Tensor | None] | None:
    """4-D masks over original positions; `None` where slots need no more than a padding mask."""
    masks.check_mask(mask)
    if isinstance(mask, Mapping) or (mask is not None and mask.ndim == 4):
        return mask
    window = masks.shortest_window(config)
    if window is None or length <= window:
        return None
    if "flash" in (config._attn_implementation or ""):
        if drift:
            return None
        raise UnsupportedModelError(
            "model",
            f"attention that takes a mask, so that windows of {window} tokens follow the original positions",
            f"{config._attn_implementation}, whose windows count the tokens that are left",
            'Load it with attn_implementation="sdpa", or accept wider windows with allow_window_drift=True.',
        )
    return masks.window_masks(mask, embeds, cache, config)


def _slot_masks(
    mask: Any,
    original: Tensor | Mapping[str, Tensor | None] | None,
    queries: Tensor,
    first: int,
    columns: Tensor,
    cache: Any,
    config: Any,
) -> Tensor | dict[str, Tensor | None] | None:
    """What the plain language model needs, given the slots of its queries and of its keys."""
    if original is None:
        return masks.padding_mask(mask, columns)

    def of_slots(part: Tensor | None, layer: int) -> Tensor | None:
        keys = masks.key_sizes(cache, queries.shape[1], layer)
        return masks.translate(part, queries, first, columns, keys)

    if isinstance(original, Tensor):
        return of_slots(original, 0)
    return {kind: of_slots(part, masks.layer_of(kind, config)) for kind, part in original.items()}
