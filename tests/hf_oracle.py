"""What a pruned run must equal: the full-length run in which nobody attends to the dropped positions.

Nothing here knows the patch. Each attention layer of the language model is given its own mask back with the
columns of the dropped positions closed, so causal, sliding, chunked and bidirectional patterns stay the
model's, positions stay the original ones, and the cache stays at full length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: Largest difference allowed, as a share of the largest |logit|.
TOLERANCE = 2e-5


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The self-attention modules of the language model, the vision tower's left out."""
    return [
        module
        for name, module in model.named_modules()
        if name.endswith(".self_attn")
        and not {"vision_tower", "visual", "vision_model"} & set(name.split("."))
    ]


@contextlib.contextmanager
def hidden(model: nn.Module, kept: Tensor) -> Iterator[None]:
    """Inside, positions with `kept` (bool [B, T]) False are seen by nobody but themselves.

    They see themselves so that no row of a mask is empty: an empty one can be NaN.
    """

    def close(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        batch, queries = states.shape[:2]
        cache, mask = kwargs.get("past_key_values"), kwargs["attention_mask"]
        past = 0 if cache is None else int(cache.get_seq_length(module.layer_idx))
        if mask is None:
            mask = torch.ones(1, 1, queries, _stored(cache, module.layer_idx) + queries, dtype=torch.bool)
            mask = mask.tril(mask.shape[-1] - queries)
        keys, total = mask.shape[-1], past + queries
        rows = kept.repeat_interleave(batch // len(kept), 0)
        later = torch.ones(batch, max(0, total - kept.shape[1]), dtype=torch.bool)
        closed = ~torch.cat([rows, later], 1)[:, total - keys : total]
        own = torch.arange(queries)[:, None] + keys - queries == torch.arange(keys)
        closed = closed[:, None, None, :] & ~own
        if mask.dtype == torch.bool:
            kwargs["attention_mask"] = mask & ~closed
        else:
            kwargs["attention_mask"] = mask.masked_fill(closed, torch.finfo(mask.dtype).min)
        return args, kwargs

    handles = [layer.register_forward_pre_hook(close, with_kwargs=True) for layer in attention_layers(model)]
    assert handles, "no attention layer was found"
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stored(cache: Any, layer: int) -> int:
    """Keys that a dynamic cache still holds: fewer than it has seen where a window slides."""
    if cache is None or layer >= len(cache.layers) or not cache.layers[layer].is_initialized:
        return 0
    return int(cache.layers[layer].keys.shape[-2])


def run(model: Any, inputs: dict[str, Tensor], new_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Prefill and a decode loop that is fed `new_ids` [B, n]; logits [B, T, V] and [B, n, V].

    Positions count what the mask shows, as `generate()` counts them, so that padding on either side is the
    same to a row. Families with positions in several dimensions find those of the prefill themselves.
    """
    mask = inputs["attention_mask"]
    with torch.no_grad():
        start = prefill_positions(model, inputs)
        out = model(**inputs, **start, use_cache=True)
        prefill, steps = out.logits, []
        for ids in () if new_ids is None else new_ids.T[:, :, None]:
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=next_position(mask, None if start else model.model.rope_deltas),
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            steps.append(out.logits)
    return prefill, torch.cat(steps, 1) if steps else prefill[:, :0]


def prefill_positions(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What to give a prefill: nothing where the model counts in several dimensions."""
    if hasattr(getattr(model, "model", None), "rope_deltas"):
        return {}
    return {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def next_position(mask: Tensor, deltas: Tensor | None) -> Tensor:
    """Where the last token of each row stands, `deltas` behind by M-RoPE's count."""
    position = mask.sum(1, keepdim=True) - 1
    return position if deltas is None else (position + deltas).expand(3, -1, -1)


def masked_run(
    model: Any, inputs: dict[str, Tensor], kept: Tensor, new_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`run` at full length with the dropped positions hidden."""
    with hidden(model, kept):
        return run(model, inputs, new_ids)


def compact(logits: Tensor, kept: Tensor, mask: Tensor) -> list[Tensor]:
    """Each row's logits at its kept positions, from a full-length run."""
    return [logits[row][(kept & mask.bool())[row]] for row in range(len(logits))]


def trimmed(logits: Tensor, kept: Tensor, mask: Tensor) -> list[Tensor]:
    """Each row's logits at its kept positions, from a pruned run, padded as the batch is, or on the left."""
    counts = (kept & mask.bool()).sum(1).tolist()
    left = bool(mask[:, -1].all())
    return [
        logits[row, logits.shape[1] - count :] if left else logits[row, :count]
        for row, count in enumerate(counts)
    ]


def assert_close(actual: Tensor | list[Tensor], expected: Tensor | list[Tensor]) -> None:
    """Equal to `TOLERANCE` of the largest |logit|."""
    actual, expected = _flat(actual), _flat(expected)
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} logits, not {tuple(expected.shape)}"
    error = (actual - expected).abs().max().item() / expected.abs().max().item()
    assert error <= TOLERANCE, f"off by {error:.2e} of the largest logit"


def _flat(logits: Tensor | list[Tensor]) -> Tensor:
    return logits if isinstance(logits, Tensor) else torch.cat(logits)


def embeddings(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the unpatched language model is given: [B, T, d]."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(kwargs["inputs_embeds"])

    handle = language_model(model).register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return caught[0]


def language_model(model: nn.Module) -> nn.Module:
    """The module that is given the merged embeddings."""
    named = dict(model.named_modules())
    for name in ("model.language_model", "model.text_model", "language_model"):
        if name in named:
            return named[name]
    raise LookupError(type(model).__name__)
