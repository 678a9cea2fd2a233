"""`Batch`: what a method selects from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trimtok_fast.config import Objective, PruneConfig
from trimtok_fast.ops import choose_backend, no_seeds, select
from trimtok_fast.segments import Segments, cumulative
from trimtok_fast.statistics import TokenStatistics


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples to prune, checked; not to be written to.

    Attributes:
        tokens: floats [M, d], detached.
        images: the rows of each image, as slices.
        samples: the rows of each sample, as slices.
        keep: tokens to keep of each sample, [s].
        text: floats [t, d], or `None`.
        cu_text: the rows of each sample's text, as slices, which may be empty; `None` without any text.
        statistics: `TokenStatistics`, about 0 where the method says so.
        config: the `PruneConfig`.
        backend: the name that `prune` was called with, for ops.
    """

    tokens: Tensor
    images: Segments
    samples: Segments
    keep: tuple[int, ...]
    text: Tensor | None
    cu_text: Segments | None
    statistics: TokenStatistics
    config: PruneConfig
    backend: str

    def words(self, sample: int) -> Tensor | None:
        """A sample's text tokens [t, d]; `None` where it has none."""
        if self.text is None or self.cu_text is None or self.cu_text.lengths[sample] == 0:
            return None
        return self.text[self.cu_text[sample]]

    def greedy(
        self,
        objective: Objective,
        *,
        seeds: Tensor | None = None,
        rows: Tensor | None = None,
        cu_rows: Segments | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`greedy_select` of what every sample keeps, about the statistics' origin; reads nothing back.

        Args:
            objective: `"coverage"`, `"max_min"` or `"max_mean"`.
            seeds: int64 [s], the first pick of each sample; `None` leaves it to the objective.
            rows: int64 [N], the rows to pick from, one sample after the other; `None` is all of them.
            cu_rows: the stretch of `rows` that is each sample's.
        """
        segments = self.samples if cu_rows is None else cu_rows
        first, cu_seeds = no_seeds(self.tokens, len(segments))
        return select(
            choose_backend(self.backend, self.tokens),
            self.tokens,
            segments,
            list(self.keep),
            at_most=segments.lengths,
            total=sum(self.keep),
            objective=objective,
            seeds=first if seeds is None else seeds,
            cu_seeds=cu_seeds if seeds is None else cumulative([1] * len(segments)),
            origin=self.statistics.origin,
            inverse_norm=self.statistics.inverse_norm,
            rows=rows,
            candidates=self.config.candidates,
            workspace_bytes=self.config.workspace_bytes,
        )
