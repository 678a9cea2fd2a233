"""METHOD §5 in plain torch, on any device: the textbook's picks without the textbook's cost.

Works segment by segment, in shapes and by paths that depend on the segment alone, so that a batch gives each sample
the bits that it gets alone. Tokens are copied block by block into an fp32 buffer (fp64 for fp64 tokens) before any
arithmetic: the bits of a BLAS call may hang on alignment. On a GPU the loops read values back; nothing here is free
of syncs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtok_fast import statistics as constants
from trimtok_fast.segments import Segments
from trimtok_fast.statistics import TokenStatistics

#: Rows in a block: fp32 sums of more rows lose digits that D_intra needs, and more bytes fall out of the cache.
BLOCK_ROWS = 256
#: max_min brings this many times a round's candidates up to date.
WORKING_SET = 4


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
    buffer = _block_buffer(tokens)

    for sample, span in enumerate(samples):
        mean_text = None
        if text is not None and cu_text is not None and cu_text.lengths[sample] > 0:
            mean_text = _mean_direction(text, cu_text[sample], dtype)
        own = [images[k] for k in range(span.start, span.stop)]
        total = tokens.new_zeros(width, dtype=torch.float64)
        for image, segment in enumerate(own, start=span.start):
            for part, block in _blocks(tokens, segment, buffer):
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
            for part, block in _blocks(tokens, segment, buffer):
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


def _block_buffer(tokens: Tensor) -> Tensor:
    return tokens.new_empty(BLOCK_ROWS, tokens.shape[1], dtype=_compute_dtype(tokens))


def _blocks(tokens: Tensor, segment: slice, buffer: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The segment's rows in blocks, each a copy in the buffer that the caller may write to."""
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
    for _, block in _blocks(text, segment, _block_buffer(text)):
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
    """û of one segment, (x − origin) · inverse_norm: stored where it fits the workspace, else made at each load."""

    def __init__(
        self,
        tokens: Tensor,
        rows: Tensor,
        origin: Tensor | None,
        inverse_norm: Tensor | None,
        workspace_bytes: int,
    ) -> None:
        self.tokens = tokens
        self.rows = rows
        self.dtype = _compute_dtype(tokens)
        self.origin = None if origin is None else origin.to(self.dtype)
        self.nbytes = len(rows) * tokens.shape[1] * self.dtype.itemsize
        self.stored: Tensor | None = None
        if self.nbytes <= workspace_bytes:
            self.stored = tokens.new_empty(len(rows), tokens.shape[1], dtype=self.dtype)
        self.inverse_norm = tokens.new_empty(len(rows), dtype=self.dtype)
        for part in self.parts():
            if inverse_norm is not None:
                self.inverse_norm[part] = inverse_norm.index_select(0, rows[part])
            if self.stored is None and inverse_norm is not None:
                continue
            block = self._load(part)
            if inverse_norm is None:
                self.inverse_norm[part] = _inverse_norms(block, self.origin)
            elif self.origin is not None:
                block.sub_(self.origin)
            if self.stored is not None:
                torch.mul(block, self.inverse_norm[part, None], out=self.stored[part])
        self.present = _host(self.inverse_norm > 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """û of some rows, [k, d]; not to be written to."""
        if self.stored is None:
            return self._make(index)
        return self.stored[index] if isinstance(index, slice) else self.stored.index_select(0, index)

    def parts(self, rows: int = BLOCK_ROWS) -> Iterator[slice]:
        """The segment in blocks."""
        return (slice(start, min(start + rows, len(self))) for start in range(0, len(self), rows))

    def _make(self, index: Tensor | slice) -> Tensor:
        block = self._load(index)
        if self.origin is not None:
            block.sub_(self.origin)
        return block.mul_(self.inverse_norm[index, None])

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
        about = None if origin is None else origin[index]
        directions = _Directions(tokens, own, about, inverse_norm, workspace_bytes)
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
    """One segment's cosines, by row: stored where they fit the workspace, else computed at each use.

    `finish` changes a block of them, times `scale`, in place to what is wanted; storing converts it to `dtype`.
    """

    def __init__(
        self,
        directions: _Directions,
        workspace_bytes: int,
        dtype: torch.dtype,
        scale: float = 1.0,
        finish: Callable[[Tensor], object] = lambda cosine: None,
    ) -> None:
        self.directions, self.dtype, self.scale, self.finish = directions, dtype, scale, finish
        size = len(directions)
        fits = size * size * dtype.itemsize + directions.nbytes <= workspace_bytes
        self.matrix = self._fill(directions.rows.new_empty(size, size, dtype=dtype)) if fits else None

    def _fill(self, matrix: Tensor) -> Tensor:
        """Tiles on and below the diagonal only, mirrored: half the work, and symmetric to the bit."""
        size = len(matrix)
        buffer = matrix.new_empty(size * BLOCK_ROWS, dtype=self.directions.dtype)
        for part in self.directions.parts():
            height, width = size - part.start, part.stop - part.start
            tile = buffer[: height * width].view(height, width)
            torch.mm(self.directions[slice(part.start, size)], (self.directions[part] * self.scale).T, out=tile)
            self.finish(tile)
            square = tile[:width]
            matrix[part, part] = square.tril() + square.tril(-1).T
            matrix[part.stop :, part] = tile[width:]
            matrix[part, part.stop :] = tile[width:].T
        return matrix

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Some rows, [k, m]; a copy for an index, not to be written to for a slice."""
        if self.matrix is not None:
            return self.matrix[index] if isinstance(index, slice) else self.matrix.index_select(0, index)
        unit = self.directions[index]
        rows = unit.new_empty(len(unit), len(self.directions), dtype=self.dtype)
        for part in self.directions.parts():
            tile = unit @ (self.directions[part] * self.scale).T
            self.finish(tile)
            rows[:, part] = tile
        return rows


# The loops below keep what is as long as a segment on the host, in numpy: a pick is a dozen operations on such
# vectors, each shorter than a launch. What is as large as a block of similarities stays on the tokens' device.


def _host(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()


def _coverage(
    directions: _Directions, budget: int, seeds: list[int], workspace_bytes: int
) -> tuple[list[int], list[float]]:
    """Facility location with exact gains: at each pick, only the tokens that change hands are looked at.

    Similarities are whole numbers, `one` for 1: sums of them do not depend on the order, running gains do not drift,
    and ties that are exact in the maths are exact here. BLOCK_ROWS of them, summed, fit their dtype.
    """
    dtype, scale = (torch.int64, 2.0**40) if directions.dtype == torch.float64 else (torch.int32, 2.0**22)
    one = int(scale * (1 - constants.ZERO_DISTANCE))  # and so are all duplicates
    similarities = _Similarities(
        directions, workspace_bytes, dtype, scale, lambda cosine: cosine.clamp_(0, one).add_(0.5)
    )
    gain = np.zeros(len(directions), dtype=np.int64)
    best = _host(directions.rows.new_zeros(len(directions), dtype=dtype))
    for part in directions.parts():
        gain += _host(similarities[part].sum(0, dtype=dtype))

    picks: list[int] = []
    gains: list[float] = []
    for step in range(budget):
        pick = seeds[step] if step < len(seeds) else int(gain.argmax())
        picks.append(pick)
        gains.append(float("inf") if step < len(seeds) else int(gain[pick]) / one)
        row = _host(similarities[slice(pick, pick + 1)].view(-1))
        moving = np.flatnonzero(row > best)
        for start in range(0, len(moving), BLOCK_ROWS):
            moved = moving[start : start + BLOCK_ROWS]
            old, new = best[moved], row[moved]
            # max(0, s − old) − max(0, s − new) = clamp(s, old, new) − old
            block = similarities[_like(moved, directions)]
            torch.maximum(block, _like(old, directions).unsqueeze(1), out=block)
            torch.minimum(block, _like(new, directions).unsqueeze(1), out=block)
            gain -= _host(block.sum(0, dtype=dtype)) - old.sum(dtype=np.int64)
            best[moved] = new
        gain[pick] = -1  # gains only fall: it stays below every other
    return picks, gains


def _like(array: Any, directions: _Directions) -> Tensor:
    return torch.from_numpy(array).to(directions.rows.device)


def _opening(directions: _Directions, budget: int, seeds: list[int]) -> list[int]:
    """The seeds, then the most typical tokens until one of the picks has a direction."""
    picks = list(seeds)
    if len(picks) == budget or directions.present[picks].any():
        return picks
    total = sum(directions[part].sum(0).double() for part in directions.parts())
    typical = np.concatenate(
        [_host(directions[part].mv(torch.as_tensor(total).to(directions.dtype))) for part in directions.parts()]
    )
    typical[picks] = -np.inf
    while len(picks) < budget:
        picks.append(int(typical.argmax()))
        if directions.present[picks[-1]]:
            break
        typical[picks[-1]] = -np.inf
    return picks


def _max_mean(
    directions: _Directions, budget: int, seeds: list[int], workspace_bytes: int
) -> tuple[list[int], list[float]]:
    """One stored row per pick, added to the running sum of the cosines to all picks."""
    picks = _opening(directions, budget, seeds)
    gains = [float("inf")] * len(picks)
    if len(picks) == budget:
        return picks, gains
    similarities = _Similarities(directions, workspace_bytes, directions.dtype)
    total, count = np.zeros(len(directions)), 0
    pending = [pick for pick in picks if directions.present[pick]]
    while len(picks) < budget:
        for pick in pending:
            total += _host(similarities[slice(pick, pick + 1)].view(-1))
            count += 1
        value = np.where(directions.present, 1 - total / count, 0.0)
        value[picks] = -np.inf
        pick = int(value.argmax())
        picks.append(pick)
        gains.append(float(value[pick]))
        pending = [pick] if directions.present[pick] else []
    return picks, gains


def _distance(cosine: Any) -> Any:
    distance = 1 - cosine
    distance[distance < constants.ZERO_DISTANCE] = 0
    return distance


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
    present = directions.present
    first = directions[torch.tensor([p for p in picks if present[p]], device=directions.rows.device)]
    # As columns: a product with rows on the left and columns on the right is the fastest that BLAS has.
    centres = first.new_empty(first.shape[1], budget)
    count = len(first)
    centres[:, :count] = first.T
    value = np.where(present, np.inf, 0.0).astype(_host(directions.inverse_norm[:0]).dtype)
    met = np.zeros(len(value), dtype=np.int64)  # how many of the centres each value knows of

    def refresh(part: Any, unit: Tensor) -> None:
        known = int(met[part].min())
        if known < count:
            nearest = _distance(_host((unit @ centres[:, known:count]).amax(1)))
            value[part] = np.fmin(value[part], nearest)  # fmin: what is not a number never lowers anything
            met[part] = count

    for block in directions.parts(WORKING_SET * BLOCK_ROWS):
        refresh(block, directions[block])
    value[picks] = -1
    # A large segment gets more candidates: fewer rounds, each with larger products, which a CPU likes.
    candidates = max(candidates, len(value) // 32)
    while len(picks) < budget:
        working, outside = _largest(value, WORKING_SET * candidates)
        if len(working) == len(value):
            refresh(slice(0, len(value)), directions[slice(0, len(value))])
        else:  # those that lack the most picks together
            order = working[met[working].argsort(kind="stable")]
            for start in range(0, len(order), BLOCK_ROWS):
                part = order[start : start + BLOCK_ROWS]
                if met[part[0]] < count:
                    refresh(part, directions[_like(part, directions)])
        working = working[value[working] >= outside[0]]
        if len(working) == 0:
            continue
        chosen, beaten = _largest(value[working], candidates)
        contenders = working[chosen]
        if beaten[1] >= 0:
            outside = max(outside, (beaten[0], int(working[beaten[1]])), key=lambda bound: (bound[0], -bound[1]))
        unit = directions[_like(contenders, directions)]
        apart = _distance(_host(unit @ unit.T))
        apart[~present[contenders]] = np.inf  # a zero token that is picked changes no other value
        won, distances = _contest(apart, value[contenders], contenders, outside, budget - len(picks))
        accepted = contenders[won]
        picks += accepted.tolist()
        gains += distances
        value[accepted] = -1
        joining = unit[_like(won[present[accepted]], directions)]
        centres[:, count : count + len(joining)] = joining.T
        count += len(joining)
    return picks, gains


def _largest(value: Any, count: int) -> tuple[Any, tuple[float, int]]:
    """Where the `count` largest values stand, ascending, ties to the lowest; and the largest of the rest."""
    if count >= len(value):
        return np.arange(len(value)), (-np.inf, -1)
    threshold = np.partition(value, len(value) - count)[len(value) - count]
    above = np.flatnonzero(value > threshold)
    level = np.flatnonzero(value == threshold)
    chosen = np.sort(np.concatenate([above, level[: count - len(above)]]))
    if len(above) + len(level) > count:
        return chosen, (float(threshold), int(level[count - len(above)]))
    rest = np.where(value < threshold, value, -np.inf)
    return chosen, (float(rest.max()), int(rest.argmax()))


def _contest(
    apart: Any, value: Any, contenders: Any, outside: tuple[float, int], budget: int
) -> tuple[Any, list[float]]:
    """The textbook greedy among the contenders, while the best beats what stands outside."""
    bound, bound_row = outside
    won: list[int] = []
    gains: list[float] = []
    while len(won) < budget:
        best = int(value.argmax())
        if value[best] < bound or (value[best] == bound and contenders[best] > bound_row):
            break
        won.append(best)
        gains.append(float(value[best]))
        np.fmin(value, apart[best], out=value)
        value[best] = -1
    return np.array(won, dtype=np.int64), gains


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
