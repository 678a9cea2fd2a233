"""Paired bootstrap: how sure a difference between two methods on the same cases is."""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 2000
COVERED = 0.95

#: A numpy array.
Array = Any


def interval(first: Array, second: Array, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `first` − `second`, and the bounds of its 95 % interval.

    Percentile bootstrap (Efron, 1979) over cases: both methods are resampled together, so that what makes a
    case hard for both does not widen the interval.

    Args:
        first: a number a case, [n].
        second: another method's numbers for the same cases, [n].
        seed: of the resamples.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    cases = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[cases].mean(1), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(difference.mean()), float(low), float(high)
