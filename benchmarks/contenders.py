"""What a user would pick instead, each as fast as its own authors make it.

All take the same tokens as our op does, so whoever works on directions normalises first. The farthest-point
samplers are told the first pick, which they would otherwise draw at random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


def quickfps(tokens: Tensor, count: int, first: int) -> Tensor:
    """`torch-quickfps` on unit vectors: farthest points by Euclidean distance are farthest by cosine."""
    import torch_quickfps

    return torch_quickfps.sample_idx(normalize(tokens), count, start_idx=first)


def torch_fps(tokens: Tensor, count: int, first: int) -> Tensor:
    """`torch-fps` on unit vectors; its C++ on a CPU, its Triton kernel on CUDA."""
    from torch_fps import farthest_point_sampling

    unit = normalize(tokens)
    if unit.is_cuda and unit.shape[1] > 128:
        raise NotImplementedError("its Triton kernel unrolls the channels: compiling so many takes minutes")
    mask = torch.ones(1, len(unit), dtype=torch.bool, device=unit.device)
    start = torch.tensor([first], device=unit.device)
    return farthest_point_sampling(unit[None], mask, count, start_idx=start, assume_finite=True)[0]


def matrix_running_minimum(tokens: Tensor, count: int, first: int, compiled: bool = False) -> Tensor:
    """The whole distance matrix, then one row per pick folded into a running minimum."""
    matrix, step = (_distances, _lower) if not compiled else (_compiled(_distances), _compiled(_lower))
    distance = matrix(tokens)
    nearest = torch.full((len(tokens),), torch.inf, device=tokens.device)
    pick = torch.tensor([first], device=tokens.device)
    picks = [pick]
    for _ in range(1, count):
        nearest, pick = step(nearest, distance, pick)
        picks.append(pick)
    return torch.cat(picks)


def _distances(tokens: Tensor) -> Tensor:
    unit = normalize(tokens)
    return 1 - unit @ unit.T


def _lower(nearest: Tensor, distance: Tensor, pick: Tensor) -> tuple[Tensor, Tensor]:
    nearest = nearest.minimum(distance.index_select(0, pick)[0])
    return nearest, nearest.argmax(0, keepdim=True)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def divprune_rule(tokens: Tensor, count: int, first: int) -> Tensor:
    """DivPrune's rule, as its paper states it: the matrix, and all selected rows again for every pick."""
    distance = _distances(tokens)
    picks = torch.empty(count, dtype=torch.int64, device=tokens.device)
    picks[0] = first
    for step in range(1, count):
        nearest = distance[picks[:step]].amin(0)
        nearest[picks[:step]] = -1
        picks[step] = nearest.argmax()
    return picks


def isolated_token(tokens: Tensor) -> int:
    """DivPrune's first pick, from the whole matrix: the largest distance to the nearest other."""
    distance = _distances(tokens)
    return int(distance.fill_diagonal_(torch.inf).amin(1).argmax())


def max_mean_matrix(tokens: Tensor, count: int) -> Tensor:
    """The whole matrix of distances, then one row per pick added to a running sum."""
    unit = normalize(tokens)
    distance = 1 - unit @ unit.T
    total = torch.zeros(len(unit), device=unit.device)
    picks = torch.empty(count, dtype=torch.int64, device=unit.device)
    picks[0] = (unit @ unit.sum(0)).argmax()
    for step in range(1, count):
        total += distance[picks[step - 1]]
        total[picks[step - 1]] = -torch.inf
        picks[step] = total.argmax()
    return picks


def trimtokenator_rule(tokens: Tensor, text: Tensor, count: int) -> Tensor:
    """TrimTokenator's two steps: all distances to the text, then max-mean over a whole matrix."""
    near = torch.cdist(tokens, text).square().mean(1).argsort()[: max(int(0.8 * len(tokens) + 0.5), count)]
    near = near.sort().values
    return near[max_mean_matrix(tokens[near], count)]


def dpp_loop(tokens: Tensor, relevance: Tensor, count: int) -> Tensor:
    """The fast greedy MAP loop as published: the whole kernel, and a product with all earlier rows a pick."""
    unit = normalize(tokens)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    rows = torch.zeros(count, len(unit), device=unit.device)
    left = kernel.diagonal().clone()
    picks = torch.empty(count, dtype=torch.int64, device=unit.device)
    for step in range(count):
        pick = left.argmax()
        picks[step] = pick
        rows[step] = (kernel[pick] - rows[:step, pick] @ rows[:step]) / left[pick].sqrt()
        left -= rows[step].square()
        left[pick] = -torch.inf
    return picks


def apricot_facility_location(tokens: Tensor, count: int) -> Tensor:
    """Apricot's facility location on the clamped cosine matrix, by its lazy greedy, compiled anew."""
    from apricot import FacilityLocationSelection

    unit, threads = normalize(tokens), torch.get_num_threads()
    similarity = (unit @ unit.T).clamp_(min=0).double().cpu().numpy()
    selector = FacilityLocationSelection(count, metric="precomputed", optimizer="lazy")
    selector.fit(similarity)
    torch.set_num_threads(threads)  # numba changes it
    return torch.from_numpy(selector.ranking.astype("int64")).to(tokens.device)


def pairwise_diversity(tokens: Tensor, images: int, dtype: torch.dtype) -> Tensor:
    """D_intra of images of one size, as one would write it: a batched matrix of cosines, and its mean."""
    unit = normalize(tokens.to(dtype)).view(images, -1, tokens.shape[1])
    size = unit.shape[1]
    total = torch.bmm(unit, unit.transpose(1, 2)).sum((1, 2), dtype=torch.float32)
    return 1 - (total - size) / (size * (size - 1))


def pareto_by_matrix(diversity: Tensor, alignment: Tensor) -> Tensor:
    """Non-dominated sorting as in NSGA-II: who dominates whom, then front after front by counting down."""
    gap, other = diversity[:, None] - diversity, alignment[:, None] - alignment
    dominates = (gap >= 0) & (other >= 0) & ((gap > 0) | (other > 0))
    count = dominates.sum(0, dtype=torch.int32)
    rank, front = torch.zeros_like(count, dtype=torch.int64), 0
    while bool((count >= 0).any()):
        free = count == 0
        rank[free] = front
        count -= dominates[free].sum(0, dtype=torch.int32)
        count[free] = -1
        front += 1
    return rank
