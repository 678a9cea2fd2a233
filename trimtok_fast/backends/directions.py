"""The directions of one segment's tokens, and their cosines: what every greedy objective is made of.

Tokens are copied into fp32 (fp64 for fp64 tokens) before any arithmetic, and the origin is subtracted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtok_fast import statistics as constants

#: A numpy array, whose dtype follows the tokens'.
Array = Any
#: Rows in a block: fp32 sums of more lose digits that D_intra needs, and more bytes fall out of the cache.
BLOCK_ROWS = 256
#: Tokens normalised at a time where they stay: the small operations on norms take as long for any number.
LOADED_ROWS = 1024


def compute_dtype(tokens: Tensor) -> torch.dtype:
    """What sums and products of these tokens are made in."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def inverse_of(norm: Tensor, about: Tensor) -> Tensor:
    """1 / ‖x − origin‖, given ‖x‖ and ‖x − origin‖; 0 without a direction, NaN where x is not finite."""
    nothing = (norm < constants.ZERO_NORM) | (about <= constants.ZERO_SHARE * norm)
    inverse = about.reciprocal().masked_fill_(nothing, 0)
    return inverse.masked_fill_(~(norm <= constants.LARGEST_NORM), float("nan"))


class Directions:
    """û of one segment, (x − origin) · inverse_norm: stored if it fits the workspace, else made when read.

    Attributes:
        present: which tokens have a direction.
        first: where the first token that equals each stands; a token without a direction equals none.
            Duplicates must tie, but BLAS rounds a row of a product by where it stands, and not alike on all
            processors: ties are not left to products.
        copies: which tokens equal an earlier one.
    """

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
        self.dtype = compute_dtype(tokens)
        self.origin = None if origin is None else origin.to(self.dtype)
        self.nbytes = len(rows) * tokens.shape[1] * self.dtype.itemsize
        fits = self.nbytes <= workspace_bytes
        self.stored = tokens.new_empty(len(rows), tokens.shape[1], dtype=self.dtype) if fits else None
        if inverse_norm is None:
            self.inverse_norm = tokens.new_empty(len(rows), dtype=self.dtype)
        else:
            self.inverse_norm = inverse_norm.index_select(0, rows).to(self.dtype)
        for part in self.parts(LOADED_ROWS if fits else BLOCK_ROWS) if fits or inverse_norm is None else ():
            block = self.load(part, None if self.stored is None else self.stored[part])
            norm = torch.linalg.vector_norm(block, dim=1) if inverse_norm is None else None
            self._center(block)
            if norm is not None:
                about = norm if origin is None else torch.linalg.vector_norm(block, dim=1)
                self.inverse_norm[part] = inverse_of(norm, about)
            if fits:
                self._scale(block, self.inverse_norm[part])
        self.present = to_host(self.inverse_norm > 0)
        self.first = self._first()
        self.copies = self.first < np.arange(len(self))

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

    def _first(self) -> Array:
        first = np.arange(len(self))
        # Equal tokens have equal keys, and most others do not: few tokens need a closer look.
        inverse_norm = to_host(self.inverse_norm)
        key = inverse_norm + to_host(self.tokens[:, 0].index_select(0, self.rows).double())
        order = key.argsort(kind="stable")
        leads = np.append(True, key[order[1:]] != key[order[:-1]])
        first[order] = order[leads][leads.cumsum() - 1]
        suspects = np.flatnonzero(first < np.arange(len(self)))
        others: dict[bytes, int] = {}
        for start in range(0, len(suspects), BLOCK_ROWS):
            some = suspects[start : start + BLOCK_ROWS]
            tokens, lead = self.load(to_device(some, self)), first[some]
            equal = to_host((tokens == self.load(to_device(lead, self))).all(1))
            equal &= (inverse_norm[some] == inverse_norm[lead]) & self.present[some]
            unlike = to_host(tokens + 0)[~equal]  # −0 is 0
            for place, token in zip(some[~equal].tolist(), unlike, strict=True):
                bits = token.tobytes() + inverse_norm[place].tobytes()
                known = others.setdefault(blake2b(bits, digest_size=16).digest(), place)
                first[place] = known if self.present[known] else place
        return first

    def _make(self, index: Tensor | slice) -> Tensor:
        return self._scale(self._center(self.load(index)), self.inverse_norm[index])

    def load(self, index: Tensor | slice, out: Tensor | None = None) -> Tensor:
        """Copies of some tokens, [k, d]: x, neither centred nor scaled."""
        rows = self.rows[index]
        if out is None:
            return self.tokens.index_select(0, rows).to(self.dtype)
        if self.tokens.dtype == self.dtype:
            return torch.index_select(self.tokens, 0, rows, out=out)
        return out.copy_(self.tokens.index_select(0, rows))

    def _center(self, block: Tensor) -> Tensor:
        return block if self.origin is None else block.sub_(self.origin)

    def _scale(self, block: Tensor, inverse_norm: Tensor) -> Tensor:
        block.mul_(inverse_norm[:, None])
        # what is not a number would spread to every token: it counts as a zero token
        unusable = inverse_norm.isnan()
        return block.masked_fill_(unusable[:, None], 0) if bool(unusable.any()) else block


class Similarities:
    """One segment's cosines, by row: stored where they fit the workspace, else computed at each use.

    `finish` changes a block of them, times `scale`, in place to what is wanted; storing converts it to
    `dtype`.
    """

    def __init__(
        self,
        directions: Directions,
        workspace_bytes: int,
        dtype: torch.dtype,
        scale: float = 1.0,
        finish: Callable[[Tensor], object] = lambda cosine: None,
    ) -> None:
        self.directions, self.dtype, self.scale, self.finish = directions, dtype, scale, finish
        self.first = to_device(directions.first, directions) if directions.copies.any() else None
        fits = self.nbytes(directions, dtype) <= workspace_bytes
        self.matrix = self._fill(self._empty(len(directions))) if fits else None
        # numpy's view of it: made once, as a pick takes less time than the making of a view or two
        self.table = to_host(self.matrix) if self.matrix is not None and self.matrix.is_cpu else None

    @staticmethod
    def nbytes(directions: Directions, dtype: torch.dtype) -> int:
        """What storing them takes, the directions included."""
        return len(directions) ** 2 * dtype.itemsize + directions.nbytes

    def _empty(self, size: int) -> Tensor:
        like = self.directions.rows
        if like.is_cpu:  # numpy asks for huge pages, torch does not: half the time of the first touch
            return torch.from_numpy(
                np.empty((size, size), to_host(like.new_empty(0, dtype=self.dtype)).dtype)
            )
        return like.new_empty(size, size, dtype=self.dtype)

    def _fill(self, matrix: Tensor) -> Tensor:
        """Tiles on and below the diagonal only, mirrored: half the work, and symmetric to the bit."""
        size = len(matrix)
        buffer = torch.empty(size * BLOCK_ROWS, dtype=self.directions.dtype, device=matrix.device)
        for part in self.directions.parts():
            height, width = size - part.start, part.stop - part.start
            tile = buffer[: height * width].view(height, width)
            torch.mm(
                self.directions[slice(part.start, size)], (self.directions[part] * self.scale).T, out=tile
            )
            self.finish(tile)
            square = tile[:width]
            matrix[part, part] = square.tril() + square.tril(-1).T
            matrix[part.stop :, part] = tile[width:]
            matrix[part, part.stop :] = tile[width:].T
        if self.first is not None:
            for part in self.directions.parts():
                matrix[part] = matrix[part].index_select(1, self.first)
            for some in to_device(self.directions.copies.nonzero()[0], self.directions).split(BLOCK_ROWS):
                matrix[some] = matrix[self.first[some]]
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
        return rows if self.first is None else rows.index_select(1, self.first)

    def row(self, index: int) -> Array:
        """One row, on the host; not to be written to."""
        if self.table is not None:
            return self.table[index]
        return to_host(self[slice(index, index + 1)].view(-1))

    def entries(self, row: int, columns: Array) -> Array:
        """Some similarities of one row, on the host."""
        if self.table is not None:
            return self.table[row, columns]
        at = to_device(columns, self.directions)
        if self.matrix is not None:
            return to_host(self.matrix[row].index_select(0, at))
        tile = self.directions[at] @ (self.directions[slice(row, row + 1)] * self.scale).T
        self.finish(tile)
        return to_host(tile.view(-1).to(self.dtype))


def to_host(tensor: Tensor) -> Array:
    """The tensor as a numpy array; no copy on a CPU."""
    return tensor.cpu().numpy()


def to_device(array: Array, directions: Directions) -> Tensor:
    """The array as a tensor where the tokens are; no copy on a CPU."""
    return torch.from_numpy(array).to(directions.rows.device)
