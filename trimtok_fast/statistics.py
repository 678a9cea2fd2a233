"""`TokenStatistics`: what one or two streaming passes over the tokens say about them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

#: A token of a smaller norm is a zero token: it has no direction (METHOD, shapes).
ZERO_NORM = 1e-18
#: A token of a larger norm is an error of `prune`, as NaN and infinities are: its square would overflow fp32.
LARGEST_NORM = 1e18
#: A token this close to the origin, relative to its own norm, has no direction about it: only rounding is
#: left.
ZERO_SHARE = 1e-5
#: Diversity and variation below this are 0: budgets must not hang on rounding.
ZERO_DIVERSITY = 1e-5
#: A direction sum shorter than this share of its tokens' number has no direction.
ZERO_SUM = 1e-6
#: Two directions closer than this are duplicates.
ZERO_DISTANCE = 1e-6
#: What is left of a token outside the span of the picks is rounding below this share of its own r²,
SPENT_SHARE = 1e-5
#: and nothing below this share of the largest r² of its segment (METHOD §6, CDPruner).
SPENT = 1e-9


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """Statistics of s samples, n images and M tokens (METHOD §1).

    Attributes:
        origin: [s, d] the point that each sample's directions are taken about (its mean token), or `None` for
            0.
        inverse_norm: [M] 1 / ‖x − origin‖; 0 where a token has no direction, NaN where it is not finite or
            its norm is above 1e18.
        direction_sum: [n, d] sum of x / ‖x‖ over each image.
        nonzero: int64 [n] tokens of each image whose norm is not 0.
        diversity: [n] D_intra of each image, in [0, 2], as published.
        variation: [s] D_inter of each sample, in [0, 2]; NaN with fewer than two images that have a
            direction. Ours.
        alignment: [M] cosine between the token's direction and the mean text direction, NaN in samples
            without text; `None` without any text. Ours.

    All floats are fp32, or fp64 for fp64 tokens, on the tokens' device.
    """

    origin: Tensor | None
    inverse_norm: Tensor
    direction_sum: Tensor
    nonzero: Tensor
    diversity: Tensor
    variation: Tensor
    alignment: Tensor | None
