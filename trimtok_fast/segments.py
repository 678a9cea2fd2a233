"""Ragged boundaries: checked once, used everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trimtok_fast.errors import InvalidInputError, UnsupportedDtypeError

Boundaries = Tensor | Sequence[int]
Table = TypeVar("Table")

INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Segments:
    """Consecutive stretches of rows: segment k is rows `offsets[k]` to `offsets[k + 1] - 1`."""

    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[slice]:
        return (slice(start, end) for start, end in pairwise(self.offsets))

    def __getitem__(self, index: int) -> slice:
        return slice(self.offsets[index], self.offsets[index + 1])

    @property
    def end(self) -> int:
        """Number of rows in all segments together."""
        return self.offsets[-1]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Number of rows of each segment."""
        return tuple(end - start for start, end in pairwise(self.offsets))

    def of(self, inner: Segments) -> Segments:
        """These segments of `inner` segments, as segments of its rows: samples of tokens, not of images."""
        return Segments(tuple(inner.offsets[offset] for offset in self.offsets))

    def tensor(self, device: torch.device) -> Tensor:
        """The boundaries, int64 [g + 1]; not to be written to."""
        return integers_on(device, self.offsets)

    def owner(self, device: torch.device) -> Tensor:
        """The segment that each row belongs to, int64 [rows]; not to be written to."""
        return _rows_on(device, self)[0]

    def place(self, device: torch.device) -> Tensor:
        """Where each row stands in its segment, int64 [rows]; not to be written to."""
        return _rows_on(device, self)[1]


#: What a CUDA graph may read for as long as it lives.
_captured: dict[int, object] = {}


def table_cache(maxsize: int) -> Callable[[Callable[..., Table]], Callable[..., Table]]:
    """An `lru_cache` for tables on a device: those that a CUDA graph captures stay, whatever comes after."""

    def decorate(make: Callable[..., Table]) -> Callable[..., Table]:
        cached = functools.lru_cache(maxsize)(make)

        @functools.wraps(make)
        def table(device: torch.device, *arguments: Any) -> Table:
            found = cached(device, *arguments)
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                _captured[id(found)] = found
            return found

        vars(table)["cache_clear"] = cached.cache_clear
        return table

    return decorate


@table_cache(maxsize=256)
def integers_on(device: torch.device, values: tuple[int, ...]) -> Tensor:
    """Numbers of the host as an int64 tensor on a device; not to be written to.

    Neither waits for the device: the copy starts from pinned memory, and the next call with the same numbers
    copies nothing, so that it can be captured in a CUDA graph.
    """
    with torch.inference_mode(False):
        return _moved(torch.tensor(values, dtype=torch.int64), device)


def _moved(numbers: Tensor, device: torch.device) -> Tensor:
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


@table_cache(maxsize=32)
def _rows_on(device: torch.device, segments: Segments) -> Tensor:
    """Owner and place of each row, int64 [2, rows], likewise; few are kept, as they are long."""
    with torch.inference_mode(False):
        owner = np.repeat(np.arange(len(segments), dtype=np.int64), segments.lengths)
        place = np.arange(segments.end) - np.array(segments.offsets, dtype=np.int64)[owner]
        return _moved(torch.from_numpy(np.stack([owner, place])), device)


def cumulative(counts: Sequence[int]) -> Segments:
    """The segments of the given lengths."""
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return Segments(tuple(offsets))


def parse_integers(argument: str, value: Boundaries, noun: str = "integers") -> list[int]:
    """A 1-D integer tensor or a sequence of ints as a list; a tensor on a GPU is read, which waits for it."""
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int32, torch.int64):
            raise UnsupportedDtypeError(
                argument, f"{noun} as int32 or int64", str(value.dtype), f"Call {argument}.to(torch.int64)."
            )
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            got = "a meta tensor" if value.is_meta else "a sparse or nested one"
            raise InvalidInputError(argument, f"{noun} in a dense tensor with values", got, "Pass a list.")
        if value.ndim != 1:
            raise InvalidInputError(
                argument, f"{noun} in one dimension", f"shape {list(value.shape)}", f"Flatten {argument}."
            )
        return value.tolist()
    if not _is_sequence(value):
        raise UnsupportedDtypeError(
            argument,
            f"{noun}: an int32 or int64 tensor, or a sequence of ints",
            type(value).__name__,
            "Pass a list.",
        )
    numbers = list(value)
    for position, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise UnsupportedDtypeError(
                argument,
                f"{noun} as ints",
                f"{number!r} ({type(number).__name__}) at position {position}",
                "Use whole numbers.",
            )
        if int(number) not in INT64:
            got = f"one that does not at position {position}"
            raise InvalidInputError(argument, f"{noun} that fit int64", got, "Count rows, from 0.")
    return [int(number) for number in numbers]


def _is_sequence(value: object) -> bool:
    """Whether it has a length and an order and can be read twice: a list, a tuple, a range, a numpy array."""
    if isinstance(value, str | bytes | bytearray | Mapping) or getattr(value, "ndim", 1) == 0:
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def parse_boundaries(
    argument: str, value: Boundaries, end: int | None, rows: str, segment: str, allow_empty: bool = False
) -> Segments:
    """Check boundaries and bring them to the host.

    Args:
        argument: the argument's name, for errors.
        value: int32 or int64 tensor [g + 1], or a sequence of ints.
        end: what the last boundary must be; `None` accepts any.
        rows: what the boundaries count, for errors ("tokens").
        segment: what lies between two of them, for errors ("image").
        allow_empty: whether a segment may hold nothing.

    Raises:
        InvalidInputError: not one segment at least, not starting at 0, not ending at `end`, decreasing, or a
            segment without rows.
        UnsupportedDtypeError: not integers.
    """
    offsets = parse_integers(argument, value, "boundaries")
    if len(offsets) < 2:
        raise InvalidInputError(
            argument,
            f"at least two boundaries (one {segment})",
            f"{len(offsets)} of them",
            f"Pass [0, {end if end is not None else f'number of {rows}'}] for a single {segment}.",
        )
    if offsets[0] != 0:
        raise InvalidInputError(argument, "boundaries that start at 0", f"{offsets[0]}", "Put a 0 in front.")
    for index, (start, stop) in enumerate(pairwise(offsets)):
        if stop < start:
            raise InvalidInputError(
                argument,
                "boundaries that do not decrease",
                f"{start} before {stop} at position {index}",
                "Pass the running total of the lengths, not the lengths.",
            )
        if stop == start and not allow_empty:
            raise InvalidInputError(
                argument,
                f"{rows} in every {segment}",
                f"an empty {segment} at position {index}",
                f"Leave the empty {segment} out of the boundaries.",
            )
    if end is not None and offsets[-1] != end:
        raise InvalidInputError(
            argument,
            f"boundaries that end at the number of {rows}, {end}",
            f"{offsets[-1]}",
            f"The last boundary counts all {rows}.",
        )
    return Segments(tuple(offsets))


def parse_images(
    cu_tokens: Boundaries, cu_images: Boundaries | None, token_count: int | None
) -> tuple[Segments, Segments]:
    """The images as segments of the tokens, the samples as segments of the images (`None`: one sample)."""
    images = parse_boundaries("cu_tokens", cu_tokens, token_count, "tokens", "image")
    if cu_images is None:
        return images, Segments((0, len(images)))
    return images, parse_boundaries("cu_images", cu_images, len(images), "images", "sample")
