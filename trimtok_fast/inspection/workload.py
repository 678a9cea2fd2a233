"""A workload by its shapes, and the launches that pruning it takes. No tensor of it has values."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from trimtok_fast.backends import triton as backend
from trimtok_fast.backends.triton_greedy import form_of
from trimtok_fast.budgets import anchors_of, kept_counts, survivors_at_most, text_seeds_of
from trimtok_fast.config import PruneConfig
from trimtok_fast.inspection import DTYPES
from trimtok_fast.kernels import (
    budgets,
    directions,
    dpp,
    gather,
    greedy,
    pareto,
    recomputed,
    rounds,
    similarity,
    statistics,
)
from trimtok_fast.kernels.common import Traffic
from trimtok_fast.segments import Segments
from trimtok_fast.statistics import TokenStatistics

#: The steps of `prune`.
PRUNE = ("statistics", "budgets", "stage 1", "stage 2", "pareto", "gather")
#: The steps that `traffic` knows. The others are there to be compiled too.
KNOWN = (*PRUNE, "cdpruner")


@dataclass(frozen=True)
class Workload:
    """One sample of many images.

    Attributes:
        images: number of images.
        tokens: visual tokens of each image.
        dim: channels of a token.
        dtype: of the tokens, a key of `DTYPES`.
        keep: share of the tokens that stays.
        words: text tokens.
    """

    images: int = 32
    tokens: int = 576
    dim: int = 3584
    dtype: str = "bf16"
    keep: float = 0.2
    words: int = 64

    def __str__(self) -> str:
        return f"{self.images} images x {self.tokens} tokens x {self.dim}, {self.dtype}, keep {self.keep:.0%}"

    @property
    def total(self) -> int:
        """Number of tokens."""
        return self.images * self.tokens

    @property
    def kept(self) -> int:
        """Number of tokens that stay."""
        return kept_counts(self._images().offsets, config=self._config())[0]

    @property
    def survivors(self) -> int:
        """Tokens of an image that stage 1 leaves, if images are alike in diversity (METHOD §2, with text)."""
        return round(self.tokens * (self.kept / self.total) ** 0.5)

    @property
    def pool(self) -> int:
        """Candidates that stage 2 leaves of them."""
        return self.kept + round(self._config().pool_fraction * (self.images * self.survivors - self.kept))

    @property
    def anchors(self) -> int:
        """Tokens of an image that stage 2 cannot drop."""
        return anchors_of(self._images().lengths, self.kept, True, self._config())[0]

    @property
    def rows(self) -> int:
        """Room for survivors in stage 2's buffer: a GPU keeps their number to itself."""
        images = self._images()
        one = Segments((0, self.images))
        most = survivors_at_most([self.kept], images, one, [True], self._config())[0]
        return max(most, self.images * self.survivors)  # rounded image by image, they may come to more

    def _config(self) -> PruneConfig:
        return PruneConfig(keep_ratio=self.keep)

    def _images(self) -> Segments:
        return Segments(tuple(accumulate([self.tokens] * self.images, initial=0)))

    def steps(self) -> dict[str, Callable[[], object]]:
        """What launches each step's kernels, as `prune` does on a GPU; no token's value is read."""
        dtype, config, images = DTYPES[self.dtype], self._config(), self._images()
        samples = Segments((0, self.images))
        tokens, text = (
            torch.empty(self.total, self.dim, dtype=dtype),
            torch.empty(self.words, self.dim, dtype=dtype),
        )
        inverse_norm = torch.empty(self.total)
        first_rows = torch.arange(self.images) * self.tokens
        text_seeds = text_seeds_of(images.lengths, self.kept, True)[0]
        survivors = (first_rows[:, None] + torch.arange(self.survivors)).flatten()
        rows = torch.cat([survivors, survivors.new_full((self.rows - len(survivors),), self.total)])
        rank, anchors = torch.arange(float(self.pool)), self.images * self.anchors

        def measure(center: str) -> object:
            return backend.token_statistics(
                tokens, images, samples, text, Segments((0, self.words)), center=center
            )

        def plan() -> object:
            one_each = torch.empty(self.images)
            found = TokenStatistics(
                origin=torch.empty(1, self.dim),
                inverse_norm=inverse_norm,
                direction_sum=torch.empty(self.images, self.dim),
                nonzero=one_each.long(),
                diversity=one_each,
                variation=torch.empty(1),
                alignment=inverse_norm,
            )
            return backend.plan_budgets(found, images, samples, config)

        def select(
            objective: str,
            segments: Segments | Tensor,
            budgets: list[int],
            at_most: tuple[int, ...],
            total: int,
            seeds: Tensor,
            rows: Tensor | None = None,
            workspace_bytes: int = config.workspace_bytes,
        ) -> object:
            return backend.greedy_select(
                tokens,
                segments,
                torch.tensor(budgets),
                at_most=at_most,
                total=total,
                objective=objective,
                seeds=seeds,
                cu_seeds=Segments(tuple(len(seeds) * k // len(budgets) for k in range(len(budgets) + 1))),
                origin=torch.empty(len(budgets), self.dim),
                inverse_norm=inverse_norm,
                rows=rows,
                candidates=config.candidates,
                workspace_bytes=workspace_bytes,
            )

        def each_image(objective: str) -> object:
            budgets = [self.survivors] * self.images
            seeds = (first_rows[:, None] + torch.arange(text_seeds)).flatten()
            return select(objective, images, budgets, images.lengths, self.total, seeds)

        def across_images() -> object:
            cu_survivors = torch.tensor([0, len(survivors)])
            seeds = (first_rows[:, None] + torch.arange(self.anchors)).flatten()
            return select("max_min", cu_survivors, [self.pool], (self.rows,), self.pool, seeds, rows)

        def every_form(objective: str) -> None:
            fused, small = greedy.launch_config().fused, greedy.launch_config().small
            for size in (fused, fused + 1, small + 1):
                one(objective, size, config.workspace_bytes)
            one(objective, fused, 0)

        def one(objective: str, size: int, workspace_bytes: int) -> None:
            segment, seeds = Segments((0, size)), first_rows[:0]
            select(objective, segment, [1], (size,), 1, seeds, workspace_bytes=workspace_bytes)

        return {
            "statistics": lambda: measure("sample"),
            "budgets": plan,
            "stage 1": lambda: each_image(config.image_objective),
            "stage 2": across_images,
            "pareto": lambda: backend.pareto_front(rank, -rank, torch.tensor([0, self.pool - anchors])),
            "gather": lambda: backend.gather_tokens(tokens, survivors[: self.kept]),
            "statistics, uncentred": lambda: measure("none"),
            "cdpruner": lambda: backend.dpp_select(
                tokens,
                Segments((0, self.total)),
                [1],
                relevance=inverse_norm,
                inverse_norm=inverse_norm,
                candidates=1,
            ),
            "coverage of any size": lambda: every_form("coverage"),
            "max_min of any size": lambda: every_form("max_min"),
            "max_mean of any size": lambda: every_form("max_mean"),
        }

    def traffic(self, step: str, modules: Collection[str]) -> dict[str, Traffic]:
        """What each module's kernels move and do in a step of `KNOWN` that launches these modules."""
        dtype, config = DTYPES[self.dtype], self._config()
        if step == "statistics":
            return {step: statistics.traffic(self._images().lengths, self.dim, dtype, centred=True)}
        if step == "budgets":
            return {step: budgets.traffic(self.images, samples=1)}
        if step == "pareto":
            return {step: pareto.traffic(self.pool - self.images * self.anchors)}
        if step == "gather":
            return {step: gather.traffic(self.kept, self.dim, dtype)}
        if step == "cdpruner":
            return {"dpp": dpp.traffic((self.total,), (self.kept,), self.dim, dtype)}
        if step == "stage 1":
            sizes, picks = self._images().lengths, (self.survivors,) * self.images
            objective = config.image_objective
        else:
            sizes, picks, objective = (self.images * self.survivors,), (self.pool,), config.pool_objective
        if "absorb" in modules:
            stored = rounds.stores(self.rows, self.dim, dtype, config.workspace_bytes)
            return {"rounds": rounds.traffic(sizes, picks, self.dim, dtype, config.candidates, stored=stored)}
        if "recomputed" in modules:
            return {"recomputed": recomputed.traffic(sizes, picks, self.dim, dtype, objective)}
        form = form_of(torch.empty(0, self.dim, dtype=dtype), objective)
        parts = {
            "directions": directions.traffic(sizes, self.dim, dtype),
            "similarity": similarity.traffic(sizes, form.width, form.directions, form.matrix),
            "greedy": greedy.traffic(sizes, picks, objective, form.matrix),
        }
        if "similarity" in modules:
            return parts
        return {"greedy": Traffic(*map(sum, zip(*parts.values(), strict=True)))}
