"""TrimTokenator (arXiv 2509.00320), the predecessor: relevance to the text first, then diversity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtok_fast.backends.directions import BLOCK_ROWS, compute_dtype
from trimtok_fast.budgets import SHARE_TOLERANCE
from trimtok_fast.methods.batch import Batch
from trimtok_fast.registry import register_method
from trimtok_fast.segments import cumulative
from trimtok_fast.statistics import LARGEST_NORM

#: Share of the tokens that the first step keeps.
RELEVANT = 0.8


@register_method("trimtokenator", center="none")
def trimtokenator(batch: Batch) -> tuple[Tensor, Tensor]:
    """The max(0.8 m, K) tokens with the largest −mean_j ‖x_i − t_j‖², then the max-mean greedy among them.

    As published: the two steps, raw vectors in the first, directions about 0 in the second. Ours: the first
    is taken as −‖x_i − t̄‖ with the mean text token t̄, which ranks alike, since mean_j ‖x − t_j‖² =
    ‖x − t̄‖² + const; 0.8 m is rounded half up; a sample without text skips it; the greedy starts from the
    most typical token (METHOD §3); ties go to the lowest row.
    """
    rows = [
        span.start + _relevant(batch.tokens[span], batch.words(sample), keep)
        for sample, (span, keep) in enumerate(zip(batch.samples, batch.keep, strict=True))
    ]
    return batch.greedy("max_mean", rows=torch.cat(rows), cu_rows=cumulative([len(own) for own in rows]))


def _relevant(tokens: Tensor, text: Tensor | None, keep: int) -> Tensor:
    """Positions of the tokens that the first step keeps, ascending."""
    if text is None:
        return torch.arange(len(tokens), device=tokens.device)
    count = max(math.floor(RELEVANT * len(tokens) + 0.5 + SHARE_TOLERANCE), keep)
    return distance_to_text(tokens, text).argsort(stable=True)[:count].sort().values


def distance_to_text(tokens: Tensor, text: Tensor) -> Tensor:
    """‖x − t̄‖ [m]; infinite for a token that is not finite. A text token that is not counts as zero."""
    dtype = compute_dtype(tokens)
    words = text.double()
    words = torch.where((words.norm(dim=1) <= LARGEST_NORM)[:, None], words, 0)
    mean = words.mean(0).to(dtype)
    distance = torch.cat(
        [
            torch.linalg.vector_norm(part.contiguous().to(dtype) - mean, dim=1)
            for part in tokens.split(BLOCK_ROWS)
        ]
    )
    return distance.nan_to_num(nan=torch.inf)
