"""What our kernels must move and do for a case, as their modules state it: floors for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from trimtok_fast.config import PruneConfig

if TYPE_CHECKING:
    from trimtok_fast.kernels.common import Traffic


def greedy(tokens: Tensor, sizes: Sequence[int], budgets: Sequence[int], objective: str) -> Traffic:
    """Of segments of one size, in the form that `backend="triton"` chooses for it."""
    from trimtok_fast.backends.triton_greedy import form_of, largest_stored
    from trimtok_fast.kernels import directions, recomputed, rounds, similarity
    from trimtok_fast.kernels import greedy as kernel
    from trimtok_fast.kernels.common import Traffic

    config, width, dtype = PruneConfig(), tokens.shape[1], tokens.dtype
    form = form_of(tokens, objective)
    if largest_stored(form, objective, max(sizes), config.workspace_bytes) < max(sizes):
        if objective == "max_min":
            stored = rounds.stores(sum(sizes), width, dtype, config.workspace_bytes)
            return rounds.traffic(sizes, budgets, width, dtype, config.candidates, stored=stored)
        return recomputed.traffic(sizes, budgets, width, dtype, objective)
    parts = (
        directions.traffic(sizes, width, dtype),
        similarity.traffic(sizes, form.width, form.directions, form.matrix),
        kernel.traffic(sizes, budgets, objective, form.matrix),
    )
    return Traffic(*map(sum, zip(*parts, strict=True)))


def statistics(tokens: Tensor, sizes: Sequence[int]) -> Traffic:
    """Of `token_statistics` about 0."""
    from trimtok_fast.kernels.statistics import traffic

    return traffic(sizes, tokens.shape[1], tokens.dtype, centred=False)


def pareto(count: int) -> Traffic:
    """Of `pareto_front`, its sorting left out."""
    from trimtok_fast.kernels.pareto import traffic

    return traffic(count)


def gather(tokens: Tensor, rows: int) -> Traffic:
    """Of `gather_tokens`."""
    from trimtok_fast.kernels.gather import traffic

    return traffic(rows, tokens.shape[1], tokens.dtype)
