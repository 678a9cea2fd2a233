"""A workload by its shapes, and the ops that pruning it takes. No tensor of it has values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from trimtok_fast import ops
from trimtok_fast.budgets import kept_counts
from trimtok_fast.config import PruneConfig
from trimtok_fast.inspection import DTYPES
from trimtok_fast.kernels.common import Traffic


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
        return kept_counts(self._boundaries(self.tokens), config=PruneConfig(keep_ratio=self.keep))[0]

    @property
    def survivors(self) -> int:
        """Tokens of an image that stage 1 leaves, if diversity and variation are alike (METHOD §2)."""
        return round(self.tokens * (self.kept / self.total) ** 0.5)

    @property
    def pool(self) -> int:
        """Candidates that stage 2 leaves."""
        return self.kept + (self.images * self.survivors - self.kept) // 2

    def _boundaries(self, size: int) -> list[int]:
        return list(accumulate([size] * self.images, initial=0))

    def traffic(self) -> Iterator[tuple[str, str, Traffic]]:
        """What each kernel moves and does in each step, by the models that stand beside the kernels."""
        return iter(())

    def ops(self) -> dict[str, Callable[[], object]]:
        """What `prune` calls for it, by the name of the step; none of the calls reads a token's value."""
        cu_tokens, whole = self._boundaries(self.tokens), [0, self.total]
        tokens = torch.empty(self.total, self.dim, dtype=DTYPES[self.dtype])
        text = torch.empty(self.words, self.dim, dtype=DTYPES[self.dtype])
        origin, inverse_norm = torch.empty(self.images, self.dim), torch.empty(self.total)

        def select(objective: str, cu_segments: list[int], budget: int, **options: Tensor) -> object:
            segments = len(cu_segments) - 1
            return ops.greedy_select(
                tokens,
                cu_segments,
                [budget] * segments,
                objective=objective,
                origin=origin[:segments],
                inverse_norm=inverse_norm,
                backend="triton",
                **options,
            )

        firsts = torch.arange(self.images) * self.tokens
        survivors = (firsts[:, None] + torch.arange(self.survivors)).flatten()
        ranks = torch.arange(float(self.pool - self.images))
        return {
            "statistics": lambda: ops.token_statistics(
                tokens, cu_tokens, text=text, cu_text=[0, self.words], backend="triton"
            ),
            "stage 1": lambda: select("coverage", cu_tokens, self.survivors),
            "stage 2": lambda: select(
                "max_min", [0, len(survivors)], self.pool, rows=survivors, seeds=firsts
            ),
            "pareto": lambda: ops.pareto_front(ranks, -ranks, [0, len(ranks)], backend="triton"),
            "gather": lambda: ops.gather_tokens(tokens, survivors[: self.kept], backend="triton"),
            "statistics, uncentred": lambda: ops.token_statistics(
                tokens, cu_tokens, text=text, cu_text=[0, self.words], center="none", backend="triton"
            ),
            "max_mean in each image": lambda: select("max_mean", cu_tokens, self.survivors),
            "max_min over all tokens": lambda: select("max_min", whole, self.kept),
        }


@contextmanager
def kernels_on_the_host() -> Iterator[None]:
    """Inside, the ops hand tensors on the CPU to the Triton backend: for launches that are not run."""
    obstacle = ops._triton_obstacle
    ops._triton_obstacle = lambda tokens: None
    try:
        yield
    finally:
        ops._triton_obstacle = obstacle
