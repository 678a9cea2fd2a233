"""CDPruner (NeurIPS 2025, arXiv 2506.10967): diversity given the text, by a determinantal process."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtok_fast.methods.batch import Batch
from trimtok_fast.ops import choose_backend
from trimtok_fast.registry import register_method


@register_method("cdpruner", center="none")
def cdpruner(batch: Batch) -> tuple[Tensor, Tensor]:
    """The greedy MAP of a DPP with kernel r_i (u_i · u_j) r_j, r the relevance to the text, from 0 to 1.

    As published: the kernel, its greedy by `dpp_select`, one set without images, directions about 0. Ours:
    relevance is METHOD §1's alignment, min–max normalised over the sample's tokens that have a direction; it
    is 1 for all where that is constant or the sample has no text, which leaves diversity alone; K is METHOD
    §2's B; a token has value ‖·‖², what was left of it when it was picked.
    """
    statistics = batch.statistics
    relevance = (statistics.inverse_norm > 0).to(statistics.inverse_norm.dtype)
    if statistics.alignment is not None:
        relevance = torch.cat(
            [
                _normalised(statistics.alignment[rows], statistics.inverse_norm[rows] > 0)
                for rows in batch.samples
            ]
        )
    picks: tuple[Tensor, Tensor] = choose_backend(batch.backend, batch.tokens).dpp_select(
        batch.tokens,
        batch.samples,
        list(batch.keep),
        relevance=relevance,
        inverse_norm=statistics.inverse_norm,
        candidates=batch.config.candidates,
    )
    return picks


def _normalised(alignment: Tensor, present: Tensor) -> Tensor:
    """Min–max over the tokens with a direction, 1 if that is constant or there is no text; 0 for others."""
    low = torch.where(present, alignment, torch.inf).amin()
    high = torch.where(present, alignment, -torch.inf).amax()
    share = ((alignment - low) / (high - low)).clamp(0, 1)
    # NaN, without text, fails the comparison
    return torch.where(present, torch.where(high > low, share, 1.0), 0.0)
