"""Uniform stride, a control: every (m / K)-th token of a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtok_fast.methods.batch import Batch
from trimtok_fast.registry import register_method


@register_method("uniform")
def uniform(batch: Batch) -> Tensor:
    """Positions ⌊i m / K⌋ for i = 0 … K − 1: evenly over the sample, from its first token on (METHOD §6)."""
    device = batch.tokens.device
    return torch.cat(
        [
            rows.start + torch.arange(keep, device=device) * (rows.stop - rows.start) // keep
            for rows, keep in zip(batch.samples, batch.keep, strict=True)
        ]
    )
