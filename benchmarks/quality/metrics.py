"""What is measured of a selection: numbers by picture or by query, so that they can be resampled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from trimtok_fast.demo.comparison import NEEDLES, distance_to_kept

Boundaries = Sequence[int]


def pooled(tokens: Tensor, kept: Tensor, boundaries: Boundaries) -> Tensor:
    """Mean kept token of each picture, [n, d]; zeros for a picture without any.

    What the classifier reads: EfficientNet's head averages the last feature map (arXiv 1905.11946).
    """
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    mask[kept] = True
    return torch.stack(
        [
            tokens[start:end][mask[start:end]].sum(0) / mask[start:end].sum().clamp(min=1)
            for start, end in pairwise(boundaries)
        ]
    )


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Kullback–Leibler divergence Σ p log(p / q) of the answers q after from those before, p; [n].

    Args:
        before: log-probabilities [n, classes].
        after: the same, from the kept tokens.
    """
    return (before.exp() * (before - after)).sum(-1)


def same_answer(before: Tensor, after: Tensor) -> Tensor:
    """1 where the likeliest class stays the same (top-1 agreement), [n]."""
    return (before.argmax(-1) == after.argmax(-1)).float()


def nearest_kept(tokens: Tensor, kept: Tensor, boundaries: Boundaries) -> tuple[Tensor, float]:
    """Cosine distance to the nearest kept token of any picture: mean of each picture, [n]; largest of all.

    The covering error and radius of k-centre and facility location, about 0; zero tokens are left out.
    """
    distance = distance_to_kept(tokens, kept)
    means = [distance[start:end].nanmean() for start, end in pairwise(boundaries)]
    return torch.stack(means), float(distance[~distance.isnan()].max())


def found(after: Tensor, picture: int, label: int) -> float:
    """The needle test: 1 if the picture that answers the query is still answered so from what is kept of it.

    Args:
        after: log-probabilities [n, classes] from the kept tokens, chosen with the class as the query.
        picture: the one picture that the classifier answered with this class before.
        label: the class.
    """
    return float(after[picture].argmax() == label)


def evidence(before: Tensor, after: Tensor, picture: int, label: int) -> float:
    """Share of the queried class's probability that is left in the picture that answers it, at most 1."""
    return float((after[picture, label] - before[picture, label]).exp().clamp(max=1))


def recall(votes: Tensor, kept: Tensor, count: int = NEEDLES) -> float:
    """Share of the `count` tokens that vote most for a class, x · w, that are kept.

    Reported and not judged by: it is the objective of whoever keeps the largest votes.
    """
    best = votes.topk(min(count, len(votes))).indices
    return float(torch.isin(best, kept).float().mean())


def apart(tokens: Tensor, kept: Tensor, boundary: int) -> float:
    """Mean distance of what is kept of the second view to the nearest kept token of the first.

    Low where the second view repeats the first. NaN where one of them keeps nothing.

    Args:
        tokens: two views, [M, d].
        kept: rows that stay.
        boundary: the second view's first row.
    """
    first, second = kept[kept < boundary], kept[kept >= boundary]
    if len(first) == 0 or len(second) == 0:
        return float("nan")
    rows = torch.cat([tokens[second], tokens[first]])
    return float(distance_to_kept(rows, torch.arange(len(second), len(rows)))[: len(second)].nanmean())
