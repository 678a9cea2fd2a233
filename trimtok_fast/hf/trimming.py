"""What the language model is given instead: fewer tokens, at their original positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtok_fast.errors import UnsupportedModelError
from trimtok_fast.hf import masks
from trimtok_fast.hf.cache import Slots, half_written, unseal

IGNORED_LABEL = -100


def kept_slots(kept: Tensor, valid: Tensor) -> Slots:
    """The tokens that stay, row by row; the batch's own padding stays as far as a row needs it.

    Args:
        kept: bool [B, T].
        valid: bool [B, T], False in padding.
    """
    stays = kept & valid
    counts = stays.sum(1, keepdim=True)
    width = int(counts.max())
    columns = (~stays).long().argsort(dim=1, stable=True)[:, :width]
    slot = torch.arange(width, device=kept.device)
    right = bool(valid[:, 0].all()) and not bool(valid[:, -1].all())
    if not right:
        slot = slot - (width - counts)
        columns = columns.gather(1, slot.clamp(min=0))
    columns = torch.where((slot >= 0) & (slot < counts), columns, -1)
    return Slots(columns, kept.shape[1], right)


def trim_prefill(kwargs: dict[str, Any], kept: Tensor, slots: Slots, config: Any, drift: bool) -> None:
    """Replace what the language model is called with by the part of it that `slots` names.

    Args:
        kwargs: the call's keyword arguments.
        kept: bool [B, T].
        slots: of `kept_slots`.
        config: the language model's.
        drift: whether attention may count kept tokens where it cannot count positions.
    """
    embeds, columns = kwargs["inputs_embeds"], slots.columns
    at = columns.clamp(min=0)
    _replace_mask(kwargs, columns, 0, slots, config, drift)
    kwargs["inputs_embeds"] = embeds[torch.arange(len(at), device=at.device)[:, None], at]
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(slots.length, device=embeds.device)[None]
    shape = (*positions.shape[:-2], *at.shape)
    kwargs["position_ids"] = positions.expand(*shape[:-1], -1).gather(-1, at.expand(shape))
    if kwargs.get("visual_pos_masks") is not None:
        visual = kwargs["visual_pos_masks"]
        kwargs["visual_pos_masks"] = visual.gather(1, at) & (columns >= 0)
        features = kwargs["deepstack_visual_embeds"]
        kwargs["deepstack_visual_embeds"] = [layer[kept[visual]] for layer in features]
    if kwargs.get("cache_position") is not None:
        kwargs["cache_position"] = torch.arange(columns.shape[1], device=embeds.device)
    if len(columns) == 1 and "flash" in (config._attn_implementation or ""):
        kwargs.update(_one_sequence(columns))


def resume(kwargs: dict[str, Any], config: Any, drift: bool) -> Slots:
    """Translate a call that continues a trimmed prompt, and unseal its cache.

    Returns:
        The slots once the call's tokens are in.
    """
    embeds, cache = kwargs["inputs_embeds"], kwargs["past_key_values"]
    count, start = embeds.shape[1], cache.slots.length
    _check_windows(cache, config, drift)
    past = unseal(cache)
    if int(cache.get_seq_length()) != past.columns.shape[1]:
        raise half_written()
    slots = past.extended(count)
    _replace_mask(kwargs, slots.columns[:, -count:], start, slots, config, drift)
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(start, slots.length, device=embeds.device)[None]
    kwargs["position_ids"] = positions[..., -count:]
    if kwargs.get("cache_position") is not None:
        kwargs["cache_position"] = torch.arange(count, device=embeds.device) + past.columns.shape[1]
    return slots


def _one_sequence(columns: Tensor) -> dict[str, Any]:
    """Tells FlashAttention that one row is one sequence: it takes gaps in the positions for packed ones."""
    width = columns.shape[1]
    bounds = torch.tensor([0, width], dtype=torch.int32, device=columns.device)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": width, "max_length_k": width}


def trim_labels(labels: Tensor, columns: Tensor) -> Tensor:
    """The labels at `columns`; padding neither has one nor foretells one."""
    columns = columns.to(labels.device)
    padding = columns < 0
    padding[:, 1:] |= padding[:, :-1].clone()
    return labels.gather(1, columns.clamp(min=0)).masked_fill(padding, IGNORED_LABEL)


def _replace_mask(
    kwargs: dict[str, Any], queries: Tensor, first: int, slots: Slots, config: Any, drift: bool
) -> None:
    """Give the plain language model the mask of its slots.

    Args:
        kwargs: the call's; the mask in it speaks of original positions.
        queries: int64 [B, S], the original positions of the call's tokens.
        first: the first of them before any was dropped.
        slots: with the call's tokens.
        config: see `trim_prefill`.
        drift: see `trim_prefill`.
    """
    cache, columns = kwargs.get("past_key_values"), slots.columns
    padding, original = masks.parse(kwargs.get("attention_mask"))
    counts = _counts_tokens(config, slots.length, drift)
    if original is not None:
        mask: Any = masks.slot_masks(original, queries, first, columns, cache, config)
    elif counts:
        dtype = kwargs["inputs_embeds"].dtype
        mask = masks.window_masks(padding, queries, columns, cache, config, dtype)
    else:
        mask = masks.padding_mask(padding, columns)
    kwargs["attention_mask"] = mask


def _counts_tokens(config: Any, length: int, drift: bool) -> bool:
    """Whether the language model, left alone, would count slots where it should count positions."""
    tuned = getattr(config, "attn_temperature_tuning", False) and length >= config.floor_scale
    window = masks.shortest_window(config)
    windowed = window is not None and length > window
    masked = config._attn_implementation in ("eager", "sdpa")
    if drift or not (tuned or (windowed and not masked)):
        return windowed and masked
    raise UnsupportedModelError(
        "model",
        "attention that follows the original positions",
        f"queries scaled by their slot beyond {config.floor_scale} tokens (attn_temperature_tuning)"
        if tuned
        else f"{config._attn_implementation}, whose windows of {window} count the tokens that are left",
        'Load the model with attn_implementation="sdpa" if windows are the reason, or accept the difference '
        "with allow_window_drift=True.",
    )


def _check_windows(cache: Any, config: Any, drift: bool) -> None:
    """Raise where a sliding KV cache has let go of a token to keep padding to its right."""
    slots, window = cache.slots, masks.shortest_window(config)
    if drift or not slots.right or window is None or True not in getattr(cache, "is_sliding", []):
        return
    gone = slots.columns[:, : max(slots.columns.shape[1] - window + 1, 0)]
    if bool((gone > slots.length - window).any()):
        raise UnsupportedModelError(
            "attention_mask",
            "padding on the left where a KV cache with windows is continued",
            "padding on the right, for which the cache gave up tokens inside the window",
            'Set padding_side="left", or accept narrower windows with allow_window_drift=True.',
        )
