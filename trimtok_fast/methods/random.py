"""Random choice, a control: a draw without replacement that hangs on the seed and the position alone."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtok_fast.methods.batch import Batch
from trimtok_fast.registry import register_method


@register_method("random")
def random(batch: Batch) -> Tensor:
    """The K positions of a sample with the lowest keys (METHOD §6).

    Position i has key `splitmix64(seed, i)`: batches, beams, ranks and devices draw alike, and a larger K
    keeps what a smaller one does.
    """
    longest = torch.arange(max(batch.samples.lengths), device=batch.tokens.device)
    keys = _splitmix64(batch.config.seed, longest)
    return torch.cat(
        [
            rows.start + keys[: rows.stop - rows.start].argsort()[:keep]
            for rows, keep in zip(batch.samples, batch.keep, strict=True)
        ]
    )


def _splitmix64(seed: int, index: Tensor) -> Tensor:
    """Outputs of SplitMix64 (Steele, Lea and Flood, 2014) from a seed on, int64: no two of them are equal."""
    state = seed + (index + 1) * _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in: int64 would bring in its sign."""
    return (value >> bits) & (2 ** (64 - bits) - 1)


def _signed(number: int) -> int:
    """The int64 with these 64 bits."""
    return number - 2**64 if number >= 2**63 else number
