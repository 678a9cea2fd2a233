"""The five ops in plain torch, on any device, by METHOD §5: exact, at a fraction of the textbook's cost.

Works segment by segment, in shapes and by paths that depend on the segment alone, so that a batch gives each
sample the bits that it gets alone; tokens are copied to an aligned buffer first, because the bits of a BLAS
call may hang on alignment. On a GPU the loops read values back all along.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.backends import lockstep
from trimtok_fast.backends.directions import BLOCK_ROWS, Directions, compute_dtype, inverse_of, to_host
from trimtok_fast.backends.dpp import dpp
from trimtok_fast.backends.greedy import coverage, max_mean, max_min
from trimtok_fast.budgets import plan_of as plan_budgets  # noqa: F401
from trimtok_fast.segments import Segments
from trimtok_fast.statistics import TokenStatistics

#: Boundaries and budgets are taken on the host.
ON_HOST = True


def token_statistics(
    tokens: Tensor,
    images: Segments,
    samples: Segments,
    text: Tensor | None,
    cu_text: Segments | None,
    *,
    center: str,
) -> TokenStatistics:
    """METHOD §1 in one pass over the tokens, two with `center="sample"`; d-sized sums, no matrix."""
    dtype = compute_dtype(tokens)
    norm = tokens.new_empty(len(tokens), dtype=dtype)
    origin = tokens.new_empty(len(samples), tokens.shape[1], dtype=dtype) if center == "sample" else None
    about = norm if origin is None else torch.empty_like(norm)  # ‖x − origin‖
    dot = None if text is None else torch.full_like(norm, float("nan"))
    direction_sum = tokens.new_empty(len(images), tokens.shape[1], dtype=torch.float64)
    buffer = _block_buffer(tokens)

    for sample, span in enumerate(samples):
        mean_text = None
        if text is not None and cu_text is not None and cu_text.lengths[sample] > 0:
            mean_text = _mean_direction(text, cu_text[sample], dtype)
        own = [images[k] for k in range(span.start, span.stop)]
        total = tokens.new_zeros(tokens.shape[1], dtype=torch.float64)
        for image, segment in enumerate(own, start=span.start):
            sums = []
            for part, block in _blocks(tokens, segment, buffer):
                inverse = _usable_inverse(block, torch.linalg.vector_norm(block, dim=1, out=norm[part]))
                # Where a mean is wanted, the tokens' sum costs little beside the directions'.
                weights = (
                    inverse[None] if origin is None else torch.stack([inverse, torch.ones_like(inverse)])
                )
                sums.append(weights @ block)
                if origin is None and mean_text is not None and dot is not None:
                    dot[part] = block.mv(mean_text)
            direction_sum[image], *rest = torch.stack(sums).sum(0, dtype=torch.float64)
            total += sum(rest)
        if origin is None:
            continue
        usable = sum((norm[segment] <= constants.LARGEST_NORM).sum() for segment in own)
        origin[sample] = total / max(usable, 1)
        for segment in own:
            for part, block in _blocks(tokens, segment, buffer):
                torch.linalg.vector_norm(block.sub_(origin[sample]), dim=1, out=about[part])
                if mean_text is not None and dot is not None:
                    dot[part] = block.mv(mean_text)

    inverse_norm = inverse_of(norm, about)
    has_direction = (norm >= constants.ZERO_NORM) & (norm <= constants.LARGEST_NORM)
    nonzero = torch.stack([has_direction[image].sum() for image in images])
    square = torch.stack([total.square().sum() for total in direction_sum])
    return TokenStatistics(
        origin=origin,
        inverse_norm=inverse_norm,
        direction_sum=direction_sum.to(dtype),
        nonzero=nonzero,
        diversity=_mean_distance(square, nonzero).to(dtype),
        variation=torch.stack(
            [_variation(direction_sum[span], square[span], nonzero[span]) for span in samples]
        ).to(dtype),
        alignment=None
        if dot is None or cu_text is None
        else _alignment(dot, inverse_norm, samples.of(images), cu_text),
    )


def _block_buffer(tokens: Tensor) -> Tensor:
    return tokens.new_empty(BLOCK_ROWS, tokens.shape[1], dtype=compute_dtype(tokens))


def _blocks(tokens: Tensor, segment: slice, buffer: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The segment's rows in blocks, each a copy in the buffer that the caller may write to."""
    for start in range(segment.start, segment.stop, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, segment.stop))
        yield part, buffer[: part.stop - part.start].copy_(tokens[part])


def _usable_inverse(block: Tensor, norm: Tensor) -> Tensor:
    """1 / ‖x‖ of the block's rows, 0 for zero tokens; rows that are not finite are made zero tokens first.

    In the block too: a weight of 0 would not stop them.
    """
    low, high = (end.item() for end in norm.aminmax())
    if low >= constants.ZERO_NORM and high <= constants.LARGEST_NORM:  # no NaN passes
        return norm.reciprocal()
    block[~(norm <= constants.LARGEST_NORM)] = 0
    return inverse_of(norm, norm).nan_to_num_(nan=0)


def _mean_direction(text: Tensor, segment: slice, dtype: torch.dtype) -> Tensor:
    total = text.new_zeros(text.shape[1], dtype=torch.float64)
    for _, block in _blocks(text, segment, _block_buffer(text)):
        total += _usable_inverse(block, torch.linalg.vector_norm(block, dim=1)) @ block
    return (total / (segment.stop - segment.start)).to(dtype)


def _alignment(dot: Tensor, inverse_norm: Tensor, samples: Segments, cu_text: Segments) -> Tensor:
    """Cosines to the text; 0 where a token has no direction, NaN where a sample has no text."""
    alignment = torch.where(inverse_norm > 0, dot * inverse_norm, 0.0)
    for tokens, words in zip(samples, cu_text.lengths, strict=True):
        if words == 0:
            alignment[tokens] = float("nan")
    return alignment


def _mean_distance(square: Tensor, count: Tensor) -> Tensor:
    """Mean of 1 − u_i · u_j over the pairs i ≠ j of `count` unit vectors, from ‖their sum‖² alone."""
    pairs = count * (count - 1)
    mean = 1 - (square - count) / pairs.clamp(min=1)
    return torch.where((pairs > 0) & (mean >= constants.ZERO_DIVERSITY), mean.clamp(max=2), 0.0)


def _variation(direction_sum: Tensor, square: Tensor, nonzero: Tensor) -> Tensor:
    """D_inter of one sample; NaN with fewer than two images that have a direction."""
    length = square.sqrt()
    directed = length > constants.ZERO_SUM * nonzero
    inverse = torch.where(directed, length.reciprocal(), 0.0)
    count = directed.sum()
    total = (inverse @ direction_sum).square().sum()
    return torch.where(count > 1, _mean_distance(total, count), float("nan"))


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
    """Every segment's greedy: small ones together if the objective is coverage, the others by themselves."""
    device = tokens.device
    own: dict[int, Tensor] = {}
    for index, (segment, budget) in enumerate(zip(segments, budgets, strict=True)):
        if budget > 0:
            own[index] = torch.arange(segment.start, segment.stop, device=device)
            if rows is not None:
                own[index] = rows[own[index]].sort().values
    start = {index: torch.searchsorted(own[index], seeds[cu_seeds[index]]).tolist() for index in own}

    def load(index: int) -> Directions:
        about = None if origin is None else origin[index]
        return Directions(tokens, own[index], about, inverse_norm, workspace_bytes)

    found: dict[int, tuple[list[int], list[float]]] = {}
    if objective == "coverage":
        sizes = {index: len(of) for index, of in own.items()}
        dtype = compute_dtype(tokens)
        for group in lockstep.groups(sizes, tokens.shape[1], dtype, workspace_bytes):
            found |= lockstep.coverage(load, group, sizes, budgets, start, dtype, workspace_bytes)
    for index in own.keys() - found.keys():
        directions, given, budget = load(index), start[index], budgets[index]
        if objective == "coverage":
            found[index] = coverage(directions, budget, given, workspace_bytes)
        elif objective == "max_min":
            found[index] = max_min(directions, budget, given, candidates, workspace_bytes)
        else:
            found[index] = max_mean(directions, budget, given, workspace_bytes)

    picks, gains = [tokens.new_empty(0, dtype=torch.int64)], []
    for index in own:
        order, gain = found[index]
        picks.append(own[index][torch.tensor(order, dtype=torch.int64, device=device)])
        gains += gain
    return torch.cat(picks), torch.tensor(gains, dtype=torch.float32, device=device)


def dpp_select(
    tokens: Tensor,
    segments: Segments,
    budgets: list[int],
    *,
    relevance: Tensor | None,
    inverse_norm: Tensor | None,
    candidates: int,
) -> tuple[Tensor, Tensor]:
    """Every segment's greedy, one after the other."""
    device = tokens.device
    picks, gains = [tokens.new_empty(0, dtype=torch.int64)], []
    for segment, budget in zip(segments, budgets, strict=True):
        if budget == 0:
            continue
        own = torch.arange(segment.start, segment.stop, device=device)
        weight = torch.ones(len(own), dtype=compute_dtype(tokens), device=device)
        if relevance is not None:
            weight = torch.where(relevance[segment] > 0, relevance[segment], 0).to(weight.dtype)
            # ties go to the larger r, then to the lowest row
            weight, by_weight = weight.sort(descending=True, stable=True)
            own = own[by_weight]
        vectors = Directions(tokens, own, None, inverse_norm, 0)
        vectors.inverse_norm = vectors.inverse_norm * weight
        order, gain = dpp(vectors, weight, budget, candidates)
        picks.append(own[torch.tensor(order, dtype=torch.int64, device=device)])
        gains += gain
    return torch.cat(picks), torch.tensor(gains, dtype=torch.float32, device=device)


def pareto_front(diversity: Tensor, alignment: Tensor, segments: Segments) -> Tensor:
    """Non-dominated ranks in O(N log N), on the host.

    In descending order of (diversity, alignment) only earlier tokens can dominate a token, and they do if
    their alignment is at least its own. So it joins the first front whose best alignment so far is lower.
    """
    first, second = to_host(diversity.double()), to_host(alignment.double())
    ranks = np.zeros(segments.end, dtype=np.int64)
    for segment in segments:
        x, y = first[segment], second[segment]
        tops: list[float] = []  # of each front, negated: ascending, for bisect
        previous, front = None, 0
        for i in np.lexsort((-y, -x)).tolist():
            point = (x[i], y[i])
            if point != previous:  # equal tokens share a front
                front = bisect_right(tops, -y[i])
                tops[front : front + 1] = [-y[i]]
                previous = point
            ranks[segment.start + i] = front
    return torch.from_numpy(ranks).to(diversity.device)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows by index."""
    return tokens.index_select(0, indices)


def gather_gradient(grad: Tensor, indices: Tensor, rows: int) -> Tensor:
    """The gradient of the tokens, from that of the gathered rows.

    `index_put` adds up the rows of a repeated index in a fixed order; `index_add` does not on a GPU.
    """
    total = grad.new_zeros(rows, grad.shape[1], dtype=compute_dtype(grad))
    return total.index_put((indices.long(),), grad.to(total.dtype), accumulate=True).to(grad.dtype)
