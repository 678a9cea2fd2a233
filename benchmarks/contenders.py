"""What a user would pick instead, each as fast as its own authors make it.

All take the same tokens as our op does, so whoever works on directions normalises first. The farthest-point
samplers are told the first pick, which they would otherwise draw at random.
"""

from __future__ import annotations

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
    mask = torch.ones(1, len(unit), dtype=torch.bool, device=unit.device)
    start = torch.tensor([first], device=unit.device)
    return farthest_point_sampling(unit[None], mask, count, start_idx=start, assume_finite=True)[0]


def matrix_running_minimum(tokens: Tensor, count: int, first: int) -> Tensor:
    """The whole distance matrix, then one row per pick folded into a running minimum."""
    unit = normalize(tokens)
    distance = 1 - unit @ unit.T
    nearest = torch.full((len(unit),), torch.inf, device=unit.device)
    picks = torch.empty(count, dtype=torch.int64, device=unit.device)
    picks[0] = first
    for step in range(1, count):
        torch.minimum(nearest, distance[picks[step - 1]], out=nearest)
        picks[step] = nearest.argmax()
    return picks


def divprune_rule(tokens: Tensor, count: int, first: int) -> Tensor:
    """DivPrune's rule, as its paper states it: the matrix, and all selected rows again for every pick."""
    unit = normalize(tokens)
    distance = 1 - unit @ unit.T
    picks = torch.empty(count, dtype=torch.int64, device=unit.device)
    picks[0] = first
    for step in range(1, count):
        nearest = distance[picks[:step]].amin(0)
        nearest[picks[:step]] = -1
        picks[step] = nearest.argmax()
    return picks


def apricot_facility_location(tokens: Tensor, count: int) -> Tensor:
    """Apricot's facility location on the clamped cosine matrix, by its lazy greedy."""
    from apricot import FacilityLocationSelection

    unit = normalize(tokens)
    similarity = (unit @ unit.T).clamp_(min=0).double().numpy()
    selector = FacilityLocationSelection(count, metric="precomputed", optimizer="lazy")
    selector.fit(similarity)
    return torch.from_numpy(selector.ranking.astype("int64"))


def pairwise_diversity(tokens: Tensor, images: int, dtype: torch.dtype) -> Tensor:
    """D_intra of images of one size, as one would write it: a batched matrix of cosines, and its mean."""
    unit = normalize(tokens.to(dtype)).view(images, -1, tokens.shape[1])
    size = unit.shape[1]
    total = torch.bmm(unit, unit.transpose(1, 2)).sum((1, 2), dtype=torch.float32)
    return 1 - (total - size) / (size * (size - 1))
