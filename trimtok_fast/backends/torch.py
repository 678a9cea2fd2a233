"""METHOD §5 in plain torch, on any device: the textbook's picks without the textbook's cost.

Works segment by segment, in shapes and by paths that depend on the segment alone, so that a batch gives each sample
the bits that it gets alone. Tokens are copied block by block into an fp32 buffer (fp64 for fp64 tokens) before any
arithmetic: the bits of a BLAS call may hang on alignment. On a GPU the loops read values back; nothing here is free
of syncs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.segments import Segments
from trimtok_fast.statistics import TokenStatistics

#: Rows in a block: fp32 sums of more rows lose digits that D_intra needs, and more bytes fall out of the cache.
BLOCK_ROWS = 256
#: max_min looks at this many times `candidates` tokens for each round's candidates.
WORKING_SET = 8
#: Rows of the working set that are brought up to date by one product.
REFRESH_ROWS = 128


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
    dtype = _compute_dtype(tokens)
    count, width = tokens.shape
    inverse_norm = tokens.new_empty(count, dtype=dtype)
    alignment = None if text is None else tokens.new_full((count,), float("nan"), dtype=dtype)
    direction_sum = tokens.new_zeros(len(images), width, dtype=torch.float64)
    nonzero = tokens.new_zeros(len(images), dtype=torch.int64)
    origin = tokens.new_empty(len(samples), width, dtype=dtype) if center == "sample" else None

    for sample, span in enumerate(samples):
        mean_text = None
        if text is not None and cu_text is not None and cu_text.lengths[sample] > 0:
            mean_text = _mean_direction(text, cu_text[sample], dtype)
        own = [images[k] for k in range(span.start, span.stop)]
        total = tokens.new_zeros(width, dtype=torch.float64)
        for image, segment in enumerate(own, start=span.start):
            for part, block in _blocks(tokens, segment):
                inverse = _inverse_norms(block)
                direction_sum[image] += block.T.mv(inverse)
                nonzero[image] += (inverse > 0).sum()
                if origin is None:
                    inverse_norm[part] = inverse
                    if mean_text is not None and alignment is not None:
                        alignment[part] = block.mv(mean_text) * inverse
                else:
                    total += block.sum(0)
        if origin is None:
            continue
        origin[sample] = total / sum(images.lengths[span])
        for segment in own:
            for part, block in _blocks(tokens, segment):
                inverse = inverse_norm[part] = _inverse_norms(block, origin[sample])
                if mean_text is not None and alignment is not None:
                    alignment[part] = block.mv(mean_text) * inverse

    return TokenStatistics(
        origin=origin,
        inverse_norm=inverse_norm,
        direction_sum=direction_sum.to(dtype),
        nonzero=nonzero,
        diversity=torch.stack(
            [_mean_distance(total, present) for total, present in zip(direction_sum, nonzero, strict=True)]
        ).to(dtype),
        variation=torch.stack([_variation(direction_sum[span], nonzero[span]) for span in samples]).to(dtype),
        alignment=alignment,
    )


def _compute_dtype(tokens: Tensor) -> torch.dtype:
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def _blocks(tokens: Tensor, segment: slice) -> Iterator[tuple[slice, Tensor]]:
    """The segment's rows in blocks, each a copy that the caller may write to."""
    buffer = tokens.new_empty(BLOCK_ROWS, tokens.shape[1], dtype=_compute_dtype(tokens))
    for start in range(segment.start, segment.stop, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, segment.stop))
        yield part, buffer[: part.stop - part.start].copy_(tokens[part])


def _inverse_norms(block: Tensor, origin: Tensor | None = None) -> Tensor:
    """1 / ‖x − origin‖ of a block's rows, 0 without a direction, NaN if not finite; the block becomes x − origin."""
    norm = torch.linalg.vector_norm(block, dim=1)
    centered = norm if origin is None else torch.linalg.vector_norm(block.sub_(origin), dim=1)
    nothing = (norm < constants.ZERO_NORM) | (centered <= constants.ZERO_SHARE * norm)
    inverse = centered.reciprocal().masked_fill_(nothing, 0)
    return inverse.masked_fill_(~(norm <= constants.LARGEST_NORM), float("nan"))


def _mean_direction(text: Tensor, segment: slice, dtype: torch.dtype) -> Tensor:
    total = text.new_zeros(text.shape[1], dtype=torch.float64)
    for _, block in _blocks(text, segment):
        total += block.T.mv(_inverse_norms(block))
    return (total / (segment.stop - segment.start)).to(dtype)


def _mean_distance(direction_sum: Tensor, count: Tensor) -> Tensor:
    """Mean of 1 − u_i · u_j over the pairs i ≠ j of `count` unit vectors, from their sum alone."""
    pairs = count * (count - 1)
    mean = 1 - (direction_sum.square().sum() - count) / pairs.clamp(min=1)
    return torch.where((pairs > 0) & (mean >= constants.ZERO_DIVERSITY), mean.clamp(max=2), 0.0)


def _variation(direction_sum: Tensor, nonzero: Tensor) -> Tensor:
    """D_inter of one sample; NaN with fewer than two images that have a direction."""
    length = torch.stack([torch.linalg.vector_norm(total) for total in direction_sum])
    directed = length > constants.ZERO_SUM * nonzero
    inverse = torch.where(directed, length.reciprocal(), 0.0)
    count = directed.sum()
    return torch.where(count > 1, _mean_distance(inverse @ direction_sum, count), float("nan"))


class _Directions:
    """û of one segment: made at the load from the tokens, (x − origin) · inverse_norm, never stored as a whole."""

    def __init__(self, tokens: Tensor, rows: Tensor, origin: Tensor | None, inverse_norm: Tensor | None) -> None:
        self.tokens = tokens
        self.rows = rows
        self.dtype = _compute_dtype(tokens)
        self.origin = None if origin is None else origin.to(self.dtype)
        if inverse_norm is None:
            parts = [_inverse_norms(self._load(part), self.origin) for part in self.parts()]
            self.inverse_norm = torch.cat(parts) if parts else tokens.new_empty(0, dtype=self.dtype)
        else:
            self.inverse_norm = inverse_norm.index_select(0, rows).to(self.dtype)
        self.present = self.inverse_norm > 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """û of some rows, [k, d]: a copy."""
        block = self._load(index)
        if self.origin is not None:
            block.sub_(self.origin)
        return block.mul_(self.inverse_norm[index, None])

    def parts(self) -> Iterator[slice]:
        """The segment in blocks."""
        return (slice(i, min(i + BLOCK_ROWS, len(self))) for i in range(0, len(self), BLOCK_ROWS))

    def _load(self, index: Tensor | slice) -> Tensor:
        return self.tokens.index_select(0, self.rows[index]).to(self.dtype)


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
    """Every segment's greedy, one after the other."""
    device = tokens.device
    picks, gains = [], []
    for index, (segment, budget) in enumerate(zip(segments, budgets, strict=True)):
        own = torch.arange(segment.start, segment.stop, device=device)
        if rows is not None:
            own = rows[own].sort().values
        directions = _Directions(tokens, own, None if origin is None else origin[index], inverse_norm)
        start = torch.searchsorted(own, seeds[cu_seeds[index]]).tolist()
        if objective == "coverage":
            order, gain = _coverage(directions, budget, start, workspace_bytes)
        elif objective == "max_min":
            order, gain = _max_min(directions, budget, start, candidates)
        else:
            order, gain = _max_mean(directions, budget, start, workspace_bytes)
        picks.append(own[torch.tensor(order, dtype=torch.int64, device=device)])
        gains += gain
    return torch.cat(picks), torch.tensor(gains, dtype=torch.float32, device=device)


class _Similarities:
    """One segment's cosines by row: stored where they fit the workspace, computed again at each use otherwise.

    `finish` maps a block of cosines to what is wanted of them; its dtype is the matrix's.
    """

    def __init__(
        self, directions: _Directions, finish: Callable[[Tensor], Tensor], dtype: torch.dtype, workspace_bytes: int
    ) -> None:
        self.directions, self.finish, self.dtype = directions, finish, dtype
        size, width = len(directions), directions.tokens.shape[1]
        needed = size * (size * dtype.itemsize + width * directions.dtype.itemsize)
        self.matrix = self._fill(size) if needed <= workspace_bytes else None

    def _fill(self, size: int) -> Tensor:
        """Tiles above the diagonal only, mirrored: half the work, and symmetric to the bit."""
        unit = self.directions[slice(0, size)]
        matrix = unit.new_empty(size, size, dtype=self.dtype)
        for part in self.directions.parts():
            tile = self.finish(unit[part] @ unit[part.start :].T)
            corner = tile[:, : part.stop - part.start]
            corner.copy_(corner.triu() + corner.triu(1).T)
            matrix[part, part.start :] = tile
            matrix[part.stop :, part] = tile[:, part.stop - part.start :].T
        return matrix

    def __getitem__(self, index: Tensor) -> Tensor:
        """Some rows, [k, m]: a copy."""
        if self.matrix is not None:
            return self.matrix.index_select(0, index)
        unit = self.directions[index]
        return torch.cat([self.finish(unit @ self.directions[part].T) for part in self.directions.parts()], dim=1)


def _coverage(
    directions: _Directions, budget: int, seeds: list[int], workspace_bytes: int
) -> tuple[list[int], list[float]]:
    """Facility location with exact gains: at each pick, only the tokens that change hands are looked at.

    Similarities are whole multiples of a unit. Sums of them do not depend on the order, running gains do not drift,
    and ties that are exact in the maths are exact here. BLOCK_ROWS similarities, at most 1 each, fit their dtype.
    """
    dtype, unit = (torch.int64, 2.0**40) if directions.dtype == torch.float64 else (torch.int32, 2.0**22)

    def finish(cosine: Tensor) -> Tensor:
        cosine = cosine.clamp_(min=0).masked_fill_(cosine > 1 - constants.ZERO_DISTANCE, 1)
        return cosine.mul_(unit).add_(0.5).to(dtype)

    similarities = _Similarities(directions, finish, dtype, workspace_bytes)
    every = torch.arange(len(directions), device=directions.rows.device)
    best = torch.zeros_like(every, dtype=dtype)
    gain = torch.zeros_like(every)
    for part in directions.parts():
        gain += similarities[every[part]].sum(0, dtype=dtype)

    picks, gains = [], []
    for step in range(budget):
        pick = seeds[step] if step < len(seeds) else int(gain.argmax())
        picks.append(pick)
        gains.append(float("inf") if step < len(seeds) else float(gain[pick]) / unit)
        row = similarities[every[pick : pick + 1]][0]
        for moved in (row > best).nonzero().squeeze(1).split(BLOCK_ROWS):
            old, new = best[moved], row[moved]
            # max(0, s − old) − max(0, s − new) = clamp(s, old, new) − old
            covered = similarities[moved].maximum(old[:, None]).minimum(new[:, None])
            gain -= covered.sum(0, dtype=dtype) - old.sum(dtype=dtype)
            best[moved] = new
        gain[pick] = -1  # gains only fall: it stays below every other
    return picks, gains


def _opening(directions: _Directions, budget: int, seeds: list[int]) -> list[int]:
    """The seeds, then the most typical tokens until one of the picks has a direction."""
    picks = list(seeds)
    if len(picks) == budget or bool(directions.present[picks].any()):
        return picks
    parts = list(directions.parts())
    total = torch.stack([directions[part].sum(0) for part in parts]).double().sum(0).to(directions.dtype)
    typical = torch.cat([directions[part].mv(total) for part in parts])
    typical[picks] = -torch.inf
    while len(picks) < budget:
        pick = int(typical.argmax())
        picks.append(pick)
        if directions.present[pick]:
            break
        typical[pick] = -torch.inf
    return picks


def _max_mean(
    directions: _Directions, budget: int, seeds: list[int], workspace_bytes: int
) -> tuple[list[int], list[float]]:
    """One stored row per pick, added to the running sum of the cosines to all picks."""
    picks = _opening(directions, budget, seeds)
    gains = [float("inf")] * len(picks)
    if len(picks) == budget:
        return picks, gains
    similarities = _Similarities(directions, lambda cosine: cosine, directions.dtype, workspace_bytes)
    centres = [pick for pick in picks if directions.present[pick]]
    total = torch.zeros(len(directions), dtype=torch.float64, device=directions.rows.device)
    for part in torch.tensor(centres, device=total.device).split(BLOCK_ROWS):
        total += similarities[part].sum(0, dtype=torch.float64)
    count = len(centres)
    taken = torch.zeros_like(directions.present)
    taken[picks] = True
    while len(picks) < budget:
        value = torch.where(directions.present, 1 - total / count, 0.0).masked_fill_(taken, -torch.inf)
        pick = int(value.argmax())
        picks.append(pick)
        gains.append(float(value[pick]))
        taken[pick] = True
        if directions.present[pick]:
            total += similarities[torch.tensor([pick], device=total.device)][0]
            count += 1
    return picks, gains


def _distance(cosine: Tensor) -> Tensor:
    distance = 1 - cosine
    return distance.masked_fill_(distance < constants.ZERO_DISTANCE, 0)


def _max_min(
    directions: _Directions, budget: int, seeds: list[int], candidates: int
) -> tuple[list[int], list[float]]:
    """k-centre in rounds, without a matrix: METHOD §5, and lazily.

    A token's value, its distance to the picks, only falls. So a value that lacks the latest picks is a bound, and it
    is enough to bring those tokens up to date that could still win: the working set, the largest values. The best of
    them are the round's candidates; picks among these stand while they beat the largest value outside. Tokens that
    are never near the top never meet most of the picks, which saves a half or more of the tall products.
    """
    picks = _opening(directions, budget, seeds)
    gains = [float("inf")] * len(picks)
    if len(picks) == budget:
        return picks, gains
    device = directions.rows.device
    value = torch.where(directions.present, torch.inf, 0.0).to(directions.dtype)
    met = torch.zeros_like(directions.rows)  # how many centres each value knows of
    first = torch.tensor([pick for pick in picks if directions.present[pick]], dtype=torch.int64, device=device)
    centres = directions.tokens.new_empty(budget, directions.tokens.shape[1], dtype=directions.dtype)
    count = len(first)
    centres[:count] = directions[first]

    def refresh(index: Tensor) -> None:
        """Bring values up to date, those that lack the most picks together."""
        order = index[met[index].argsort(stable=True)]
        for part in order.split(REFRESH_ROWS):
            known = int(met[part[0]])
            if known < count:
                nearest = _distance((directions[part] @ centres[known:count].T).amax(1))
                # fmin: a token that is not a number never lowers anything
                value[part] = value[part].fmin(nearest)
        met[index] = count

    refresh(torch.arange(len(directions), device=device))
    value[picks] = -1
    while len(picks) < budget:
        working, outside = _largest(value, WORKING_SET * candidates)
        refresh(working)
        working = working[value[working] >= outside[0]]
        if len(working) == 0:
            continue
        chosen, beaten = _largest(value[working], candidates)
        contenders = working[chosen]
        if beaten[1] >= 0:
            outside = max(outside, (beaten[0], int(working[beaten[1]])), key=lambda bound: (bound[0], -bound[1]))
        unit, present = directions[contenders], directions.present[contenders]
        # a zero token that is picked changes no other value
        apart = _distance(unit @ unit.T).masked_fill_(~present[:, None], torch.inf)
        new, distances = _contest(apart, value[contenders], contenders, outside, budget - len(picks))
        accepted = [int(contenders[i]) for i in new]
        picks += accepted
        gains += distances
        value[accepted] = -1
        joining = [i for i in new if present[i]]
        centres[count : count + len(joining)] = unit[joining]
        count += len(joining)
    return picks, gains


def _largest(value: Tensor, count: int) -> tuple[Tensor, tuple[float, int]]:
    """Where the `count` largest values stand, ascending, ties to the lowest; and the largest of the rest."""
    if count >= len(value):
        return torch.arange(len(value), device=value.device), (-torch.inf, -1)
    threshold = value.topk(count).values[-1]
    above = (value > threshold).nonzero().squeeze(1)
    level = (value == threshold).nonzero().squeeze(1)[: count - len(above)]
    chosen = torch.cat([above, level]).sort().values
    rest = value.index_fill(0, chosen, -torch.inf)
    best = int(rest.argmax())
    return chosen, (float(rest[best]), best)


def _contest(
    distance: Tensor, value: Tensor, contenders: Tensor, outside: tuple[float, int], budget: int
) -> tuple[list[int], list[float]]:
    """The textbook greedy among the contenders, while the best beats what stands outside."""
    # On the host: a pick is three operations on some hundred numbers, less than one launch.
    apart, left, rows = distance.cpu().numpy(), value.cpu().numpy().copy(), contenders.cpu().numpy()
    bound, bound_row = outside
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < budget:
        best = int(left.argmax())
        if left[best] < bound or (left[best] == bound and rows[best] > bound_row):
            break
        picks.append(best)
        gains.append(float(left[best]))
        np.fmin(left, apart[best], out=left)
        left[best] = -1
    return picks, gains


def pareto_front(diversity: Tensor, alignment: Tensor, segments: Segments) -> Tensor:
    """Non-dominated ranks in O(N log N), on the host.

    In descending order of (diversity, alignment) only earlier tokens can dominate a token, and they do if their
    alignment is at least its own. So it joins the first front whose best alignment so far is lower.
    """
    first, second = diversity.double().cpu().numpy(), alignment.double().cpu().numpy()
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
