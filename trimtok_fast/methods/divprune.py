"""DivPrune (CVPR 2025, arXiv 2503.02175): the tokens that lie farthest apart, over a whole sample at once."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.backends.directions import compute_dtype
from trimtok_fast.methods.batch import Batch
from trimtok_fast.registry import register_method

#: Rows and columns of a tile of similarities: what is held at a time.
BLOCK = 1024


@register_method("divprune", center="none")
def divprune(batch: Batch) -> tuple[Tensor, Tensor]:
    """Max-min: argmax_i min_{s picked} (1 − u_i · u_s), from the token farthest from its nearest other.

    Written from the paper alone. As published: one set, no text, no images, directions about 0. Ours: K is
    METHOD §2's B (the paper rounds r N), so that all methods keep the same number; ties go to the lowest row;
    the seed's pass and the greedy (METHOD §5) hold no matrix.
    """
    inverse_norm = batch.statistics.inverse_norm
    seeds = [
        rows.start + distance_to_nearest_other(batch.tokens[rows], inverse_norm[rows]).argmax()
        for rows in batch.samples
    ]
    return batch.greedy("max_min", seeds=torch.stack(seeds))


def distance_to_nearest_other(tokens: Tensor, inverse_norm: Tensor) -> Tensor:
    """How far each token is from the nearest other: 1 − the largest u_i · u_j over j ≠ i, [m].

    A token without a direction is at 0 and nobody's nearest; one that has no other is at infinity.

    Note:
        One pass over the tiles on and above the diagonal; each serves its rows and its columns.
    """
    nearest = inverse_norm.new_full((len(tokens),), -torch.inf, dtype=compute_dtype(tokens))
    present = inverse_norm > 0
    starts = range(0, len(tokens), BLOCK)
    for row in starts:
        rows = slice(row, row + BLOCK)
        unit = _directions(tokens[rows], inverse_norm[rows])
        for column in range(row, len(tokens), BLOCK):
            columns = slice(column, column + BLOCK)
            if column == row:
                cosine = unit @ unit.T
                cosine.fill_diagonal_(-torch.inf)
            else:
                cosine = unit @ _directions(tokens[columns], inverse_norm[columns]).T
                nearest[columns] = nearest[columns].maximum(
                    cosine.masked_fill(~present[rows, None], -torch.inf).amax(0)
                )
            cosine.masked_fill_(~present[columns], -torch.inf)
            nearest[rows] = nearest[rows].maximum(cosine.amax(1))
    distance = 1 - nearest
    return torch.where(present & (distance >= constants.ZERO_DISTANCE), distance, 0.0)


def _directions(tokens: Tensor, inverse_norm: Tensor) -> Tensor:
    """û of some rows, in a buffer of its own: the bits of a product may hang on alignment."""
    present = (inverse_norm > 0)[:, None]
    x = torch.where(present, tokens.contiguous().to(inverse_norm.dtype), 0)
    return x.mul_(torch.where(present, inverse_norm[:, None], 0))
