"""The textbook: METHOD written out with loops and full matrices in fp64, to check the fast backends against.

Never optimised. A segment of m tokens costs an m × m matrix in fp64 and, for `coverage`, m² work per pick.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.budgets import plan_of as plan_budgets  # noqa: F401
from trimtok_fast.segments import Segments
from trimtok_fast.statistics import TokenStatistics

#: Boundaries and budgets are taken on the host.
ON_HOST = True
#: Coverage gains are compared in units of this, so that ties which are exact in the maths are exact here.
GAIN_UNIT = 2.0**-36


def token_statistics(
    tokens: Tensor,
    images: Segments,
    samples: Segments,
    text: Tensor | None,
    cu_text: Segments | None,
    *,
    center: str,
) -> TokenStatistics:
    """METHOD §1 by its definitions: pairwise means over full matrices."""
    out_dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    x, unusable = usable(tokens)
    unit = [directions_about(x[image], None, inverse_norm_about(x[image], None)) for image in images]
    present = [u[u.norm(dim=1) > 0] for u in unit]
    variation, origins, inverse_norms, alignments = [], [], [], []
    for sample, span in enumerate(samples):
        sums = [u.sum(0) for u in present[span] if u.sum(0).norm() > constants.ZERO_SUM * len(u)]
        variation.append(mean_pairwise_distance([s / s.norm() for s in sums], fallback=float("nan")))

        rows = samples.of(images)[sample]
        own = x[rows][~unusable[rows]]
        mean = own.sum(0) / max(len(own), 1)
        # Rounded as it will be stored: the norms below are about the point that is handed on.
        origin = mean.to(out_dtype).double() if center == "sample" else None
        inverse = inverse_norm_about(x[rows], origin)
        origins.append(mean)
        inverse_norms.append(inverse)

        if text is None or cu_text is None or cu_text.lengths[sample] == 0:
            alignments.append(torch.full_like(inverse, float("nan")))
        else:
            words, _ = usable(text[cu_text[sample]])
            mean_text = directions_about(words, None, inverse_norm_about(words, None)).mean(0)
            alignments.append(directions_about(x[rows], origin, inverse) @ mean_text)

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=out_dtype, device=tokens.device)

    return TokenStatistics(
        origin=torch.stack(origins).to(out_dtype) if center == "sample" else None,
        inverse_norm=torch.cat(inverse_norms).masked_fill(unusable, float("nan")).to(out_dtype),
        direction_sum=torch.stack([u.sum(0) for u in unit]).to(out_dtype),
        nonzero=torch.tensor([len(u) for u in present], dtype=torch.int64, device=tokens.device),
        diversity=column([mean_pairwise_distance(list(u), fallback=0.0) for u in present]),
        variation=column(variation),
        alignment=None if text is None else torch.cat(alignments).to(out_dtype),
    )


def usable(x: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens in fp64, with zeros for those that are not finite or too long; and which those are."""
    wide = x.double()
    unusable = ~(wide.norm(dim=1) <= constants.LARGEST_NORM)
    return wide.masked_fill(unusable[:, None], 0), unusable


def inverse_norm_about(x: Tensor, origin: Tensor | None) -> Tensor:
    """1 / ‖x − origin‖ [m]; 0 where a token has no direction."""
    norm = x.norm(dim=1)
    centered = norm if origin is None else (x - origin).norm(dim=1)
    nothing = (norm < constants.ZERO_NORM) | (centered <= constants.ZERO_SHARE * norm)
    return (1 / centered).masked_fill(nothing, 0)


def directions_about(x: Tensor, origin: Tensor | None, inverse_norm: Tensor) -> Tensor:
    """û [m, d]."""
    return (x if origin is None else x - origin) * inverse_norm[:, None]


def mean_pairwise_distance(unit: list[Tensor], fallback: float) -> float:
    """Mean of 1 − u_i · u_j over all pairs i ≠ j, in [0, 2], 0 below 1e-5; the fallback without a pair."""
    count = len(unit)
    if count < 2:
        return fallback
    distance = 1 - torch.stack(unit) @ torch.stack(unit).T
    distance.fill_diagonal_(0)
    mean = float(distance.sum()) / (count * (count - 1))
    return 0.0 if mean < constants.ZERO_DIVERSITY else min(mean, 2.0)


def greedy_select(
    tokens: Tensor,
    segments: Segments,
    budgets: list[int],
    *,
    objective: str,
    seeds: Tensor,
    cu_seeds: Segments,
    origin: Tensor | None,
    inverse_norm: Tensor | None,
    rows: Tensor | None,
    candidates: int,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor]:
    """METHOD §3's loops as they stand there, segment by segment."""
    del candidates, workspace_bytes
    greedy = {"coverage": _coverage, "max_min": _max_min, "max_mean": _max_mean}[objective]
    picks, gains = [], []
    for index, (segment, budget) in enumerate(zip(segments, budgets, strict=True)):
        span = torch.arange(segment.start, segment.stop, device=tokens.device)
        own = span if rows is None else rows[span].sort().values
        x, _ = usable(tokens[own])
        center = None if origin is None else origin[index].double()
        given = None if inverse_norm is None else inverse_norm[own].double().nan_to_num(nan=0.0)
        inverse = inverse_norm_about(x, center) if given is None else given
        unit = directions_about(x, center, inverse)
        start = [int((own == seed).nonzero()) for seed in seeds[cu_seeds[index]]]
        order, gain = greedy(unit, unit.norm(dim=1) > 0, budget, start)
        picks.append(own[torch.tensor(order, dtype=torch.int64, device=own.device)])
        gains += gain
    return torch.cat(picks), torch.tensor(gains, dtype=torch.float32, device=tokens.device)


def along(unit: Tensor, vector: Tensor) -> Tensor:
    """u_i · v [m]. Duplicates must tie, but a product of matrices rounds a row by where it stands."""
    return (unit * vector).sum(1)


def cosines_of(unit: Tensor) -> Tensor:
    """û_i · û_j [m, m], symmetric to the bit."""
    cosine = unit.new_empty(len(unit), len(unit))
    for place, row in enumerate(unit):
        cosine[place] = along(unit, row)
    return cosine


def similarity_of(cosine: Tensor) -> Tensor:
    """sim⁺ of cosines: 1 between duplicates, and of a token that has a direction with itself."""
    similarity = cosine.clamp(0, 1)
    similarity[1 - similarity < constants.ZERO_DISTANCE] = 1
    return similarity


def distance_of(cosine: Tensor) -> Tensor:
    """max(0, 1 − û_i · û_j) of cosines, and 0 between duplicates."""
    distance = (1 - cosine).clamp(min=0)
    distance[distance < constants.ZERO_DISTANCE] = 0
    return distance


def _coverage(unit: Tensor, present: Tensor, budget: int, seeds: list[int]) -> tuple[list[int], list[float]]:
    similarity = (similarity_of(cosines_of(unit)) / GAIN_UNIT).round().long()
    best = torch.zeros(len(unit), dtype=torch.int64, device=unit.device)
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < budget:
        gain = (similarity - best[:, None]).clamp(min=0).sum(0)
        gain[picks] = -1
        pick = seeds[len(picks)] if len(picks) < len(seeds) else int(gain.argmax())
        gains.append(float("inf") if len(picks) < len(seeds) else float(gain[pick]) * GAIN_UNIT)
        picks.append(pick)
        best = best.maximum(similarity[:, pick])
    return picks, gains


def _max_min(unit: Tensor, present: Tensor, budget: int, seeds: list[int]) -> tuple[list[int], list[float]]:
    distance, has_direction = distance_of(cosines_of(unit)), present.tolist()
    picks, gains = _opening(unit, present, budget, seeds)
    while len(picks) < budget:
        centres = [pick for pick in picks if has_direction[pick]]
        value = torch.where(present, distance[:, centres].min(dim=1).values, 0)
        value[picks] = -1
        picks.append(int(value.argmax()))
        gains.append(float(value[picks[-1]]))
    return picks, gains


def _max_mean(unit: Tensor, present: Tensor, budget: int, seeds: list[int]) -> tuple[list[int], list[float]]:
    picks, gains = _opening(unit, present, budget, seeds)
    has_direction = present.tolist()
    while len(picks) < budget:
        mean = unit[[pick for pick in picks if has_direction[pick]]].mean(0)
        value = torch.where(present, 1 - along(unit, mean), 0)
        value[picks] = -float("inf")
        picks.append(int(value.argmax()))
        gains.append(float(value[picks[-1]]))
    return picks, gains


def _opening(unit: Tensor, present: Tensor, budget: int, seeds: list[int]) -> tuple[list[int], list[float]]:
    """The seeds, then the most typical tokens until one of the picks has a direction."""
    picks = list(seeds)
    typical = along(unit, unit.sum(0))
    while len(picks) < budget and not present[picks].any():
        typical[picks] = -float("inf")
        picks.append(int(typical.argmax()))
    return picks, [float("inf")] * len(picks)


def dpp_select(
    tokens: Tensor,
    segments: Segments,
    budgets: list[int],
    *,
    relevance: Tensor | None,
    inverse_norm: Tensor | None,
    candidates: int,
) -> tuple[Tensor, Tensor]:
    """METHOD §6: what is left of r_i û_i without its part in the span of the picks, pick by pick."""
    del candidates
    picks, gains = [], []
    for segment, budget in zip(segments, budgets, strict=True):
        x, _ = usable(tokens[segment])
        given = None if inverse_norm is None else inverse_norm[segment].double().nan_to_num(nan=0.0)
        unit = directions_about(x, None, inverse_norm_about(x, None) if given is None else given)
        weight = unit.new_ones(len(x)) if relevance is None else relevance[segment].double()
        weight = torch.where(weight > 0, weight, 0)  # NaN is not
        # ties go to the larger r, then to the lowest row
        order = weight.argsort(descending=True, stable=True)
        left = (unit * weight[:, None])[order]
        whole = torch.where(unit.norm(dim=1) > 0, weight.square(), 0)[order]
        largest = max(whole.tolist(), default=0.0)
        spent = (whole * constants.SPENT_SHARE).clamp(min=constants.SPENT * largest)
        value = whole
        own: list[int] = []
        while len(own) < budget:
            value = torch.where(value > spent, value, 0)
            value[own] = -1
            own.append(int(value.argmax()))
            gains.append(float(value[own[-1]]))
            if gains[-1] > 0:
                new = left[own[-1]] / left[own[-1]].norm()
                part = along(left, new)
                left, value = left - part[:, None] * new, value - part.square()
        picks.append(order[own] + segment.start)
    return torch.cat(picks), torch.tensor(gains, dtype=torch.float32, device=tokens.device)


def pareto_front(diversity: Tensor, alignment: Tensor, segments: Segments) -> Tensor:
    """Peel the non-dominated tokens off, front by front."""
    ranks = torch.zeros(segments.end, dtype=torch.int64, device=diversity.device)
    for segment in segments:
        left = list(range(segment.start, segment.stop))
        points = [(float(diversity[i]), float(alignment[i])) for i in left]
        point = dict(zip(left, points, strict=True))
        front = 0
        while left:
            best = [i for i in left if not any(dominates(point[j], point[i]) for j in left)]
            ranks[best] = front
            left = [i for i in left if i not in set(best)]
            front += 1
    return ranks


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """At least as good in both, better in one."""
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows by index."""
    return tokens[indices]
