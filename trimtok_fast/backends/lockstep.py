"""Facility location of many small segments at once: one call into numpy serves them all.

A pick in a small segment is less work than the calls that make it, so the segments of a group pick together,
step by step. Similarities are each segment's own and whole numbers: company changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from trimtok_fast.backends.directions import BLOCK_ROWS, Array, Directions, to_host
from trimtok_fast.backends.greedy import coverage_similarities, whole_numbers

#: In larger segments `greedy.coverage`, which makes few gains exact, is faster.
LARGEST = 512
#: A group's similarities, padded to its largest segment, stay in a CPU's cache.
GROUP_BYTES = 16 * 2**20
#: The gain of a token that is not to be picked: below any other, with room to fall.
NEVER = np.iinfo(np.int64).min // 2


def groups(
    sizes: Mapping[int, int], width: int, dtype: torch.dtype, workspace_bytes: int
) -> Iterator[list[int]]:
    """Which of the segments go together: small ones, of like size, within the workspace."""

    def nbytes(count: int, size: int) -> int:
        # the table of similarities, a segment's own matrix and its directions
        return (count * size + size + width) * size * dtype.itemsize

    group: list[int] = []
    for index in sorted(sizes, key=lambda index: -sizes[index]):
        if sizes[index] > LARGEST or nbytes(1, sizes[index]) > workspace_bytes:
            continue
        largest = sizes[group[0]] if group else 0
        if nbytes(len(group) + 1, largest) > min(GROUP_BYTES + nbytes(0, largest), workspace_bytes):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def coverage(
    load: Callable[[int], Directions],
    group: Sequence[int],
    sizes: Mapping[int, int],
    budgets: Sequence[int],
    seeds: Mapping[int, list[int]],
    dtype: torch.dtype,
    workspace_bytes: int,
) -> dict[int, tuple[list[int], list[float]]]:
    """Picks and gains of the segments of one group, those of `greedy.coverage`; `load` makes directions."""
    group = sorted(group, key=lambda index: -budgets[index])  # those still at work come first
    wanted = np.array([budgets[index] for index in group])
    count, width, steps = len(group), max(sizes[index] for index in group), wanted[0]
    kind, scale = whole_numbers(dtype)
    table, best = (np.zeros(shape, f"i{kind.itemsize}") for shape in ((count, width, width), (count, width)))
    gain = np.full((count, width), NEVER)
    for place, index in enumerate(group):
        matrix = to_host(coverage_similarities(load(index), workspace_bytes)[slice(None)])
        table[place, : len(matrix), : len(matrix)] = matrix
        gain[place, : len(matrix)] = matrix.sum(0, dtype=np.int64)
    given = np.full((count, steps), -1)
    for place, index in enumerate(group):
        given[place, : len(seeds[index])] = seeds[index]

    table = table.reshape(-1, width)
    picks, gains = np.empty((count, steps), np.int64), np.empty((count, steps))
    for step in range(steps):
        at_work = np.count_nonzero(wanted > step)
        places, seed = np.arange(at_work), given[:at_work, step]
        pick = np.where(seed >= 0, seed, gain[:at_work].argmax(1))
        picks[:at_work, step] = pick
        gains[:at_work, step] = np.where(seed >= 0, np.inf, gain[places, pick] / scale)
        _hand_over(table, gain, best[:at_work], table[places * width + pick])
        gain[places, pick] = NEVER
    return {
        index: (picks[place, : wanted[place]].tolist(), gains[place, : wanted[place]].tolist())
        for place, index in enumerate(group)
    }


def _hand_over(table: Array, gain: Array, best: Array, row: Array) -> None:
    """Raise every `best` to its segment's `row`, and take what is lost by it out of the gains."""
    width = best.shape[1]
    moved = (row > best).ravel().nonzero()[0]
    for start in range(0, len(moved), BLOCK_ROWS):
        some = moved[start : start + BLOCK_ROWS]
        old, new = best.ravel()[some, None], row.ravel()[some, None]
        # max(0, s − old) − max(0, s − new) = clamp(s, old, new) − old
        lost = table[some]
        np.maximum(lost, old, out=lost)
        np.minimum(lost, new, out=lost)
        lost -= old
        segment = some // width
        starts = np.flatnonzero(np.diff(segment, prepend=-1))
        gain[segment[starts]] -= np.add.reduceat(lost, starts)
    best.reshape(-1)[moved] = row.ravel()[moved]
