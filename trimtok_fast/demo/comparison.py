"""What is lost by keeping some tokens only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtok_fast.demo.classifier import TOKENS_PER_PICTURE, Classifier

#: How many of the tokens that speak most for the queried class are looked for among the kept ones.
NEEDLES = 20
#: Rows of a similarity matrix that are held at a time.
BLOCK = 1024


@dataclass(frozen=True)
class Score:
    """What is lost by keeping some tokens only.

    Attributes:
        mean_distance: mean over all tokens of the cosine distance to the nearest kept one.
        largest_distance: the largest of these distances.
        divergence: Kullback–Leibler divergence of the classifier's answers before and after, their mean.
        same_answer: pictures whose likeliest class stays the same.
        recall: share of the `NEEDLES` best tokens of the queried class that stay; `None` without a query.
        emptied: pictures that lost all of their tokens.
    """

    mean_distance: float
    largest_distance: float
    divergence: float
    same_answer: int
    recall: float | None
    emptied: int


def score(tokens: Tensor, kept: Tensor, classifier: Classifier, label: int | None = None) -> Score:
    """Score kept tokens against all of them, about 0: no method's own geometry decides.

    Args:
        tokens: fp32 [M, 1280], 196 rows a picture.
        kept: int64 [K] rows of `tokens`.
        classifier: reads the mean of a picture's tokens; of a picture without any, it reads zeros.
        label: number of the queried class.
    """
    mask = torch.zeros(len(tokens))
    mask[kept] = 1
    mask = mask.view(-1, TOKENS_PER_PICTURE, 1)
    by_picture = tokens.view(-1, TOKENS_PER_PICTURE, tokens.shape[1])
    before = classifier.log_probabilities(by_picture.mean(1))
    after = classifier.log_probabilities((by_picture * mask).sum(1) / mask.sum(1).clamp(min=1))
    distance = distance_to_kept(tokens, kept)
    distance = distance[~distance.isnan()]
    recall = None
    if label is not None:
        votes = tokens @ classifier.query(label)[0]
        needles = votes.topk(min(NEEDLES, len(tokens))).indices
        recall = mask.flatten()[needles].mean().item()
    return Score(
        mean_distance=distance.mean().item(),
        largest_distance=distance.max().item(),
        divergence=(before.exp() * (before - after)).sum(-1).mean().item(),
        same_answer=int((before.argmax(-1) == after.argmax(-1)).sum()),
        recall=recall,
        emptied=int((mask.sum(1) == 0).sum()),
    )


def distance_to_kept(tokens: Tensor, kept: Tensor) -> Tensor:
    """Cosine distance of every token to the nearest kept one, [M]; NaN for a zero token, which has none."""
    unit = torch.nn.functional.normalize(tokens, dim=1)
    nearest = torch.cat([(rows @ unit[kept].T).amax(1) for rows in unit.split(BLOCK)])
    return (1 - nearest).clamp(min=0).masked_fill(~unit.any(1), torch.nan)
