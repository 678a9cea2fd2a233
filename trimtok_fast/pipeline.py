"""`prune`: statistics, budgets, stage 1, stage 2, Pareto selection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from trimtok_fast.budgets import BudgetPlan, check_plan, plan_of
from trimtok_fast.config import PruneConfig, check_config
from trimtok_fast.errors import InvalidInputError
from trimtok_fast.ops import (
    choose_backend,
    exact,
    gather_tokens,
    greedy_select,
    pareto_front,
    token_statistics,
)
from trimtok_fast.segments import Boundaries, Segments, cumulative, parse_images
from trimtok_fast.statistics import TokenStatistics
from trimtok_fast.validation import check_text, check_tokens

#: Values of `PruneResult.stage`.
STAGE_1, STAGE_2, PARETO, KEPT = range(4)


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What stays, and why.

    Attributes:
        indices: int64 [K], rows of `tokens` that stay, ascending.
        cu_tokens: int64 [n + 1], the kept tokens' image boundaries.
        statistics: the `TokenStatistics` behind the budgets.
        plan: the `BudgetPlan`.
        distance: [K] δ, how far each kept token was from the pool when it went in (its gain with
            `pool_objective="coverage"`); anchors report the largest finite one of their sample.
        alignment: [K] cosine to the text, NaN in samples without text; `None` without any text.
        front: int64 [K] Pareto front, -1 for an anchor or in a sample without text; `None` without any text.
        stage: int8 [M], how far each token came: 0 dropped inside its image (stage 1), 1 dropped across
            images (stage 2's pool), 2 dropped by the Pareto selection (by the order of the pool, in a sample
            without text), 3 kept.
    """

    indices: Tensor
    cu_tokens: Tensor
    statistics: TokenStatistics
    plan: BudgetPlan
    distance: Tensor
    alignment: Tensor | None
    front: Tensor | None
    stage: Tensor

    def gather(self, tokens: Tensor) -> Tensor:
        """The kept rows of `tokens`, [K, d]; differentiable."""
        if len(check_tokens(tokens)) != len(self.stage):
            raise InvalidInputError(
                "tokens",
                f"the {len(self.stage)} tokens that were pruned",
                f"{len(tokens)} rows",
                "Pass the same tokens.",
            )
        return gather_tokens(tokens, self.indices)


def prune(
    tokens: Tensor,
    cu_tokens: Boundaries,
    cu_images: Boundaries | None = None,
    *,
    text: Tensor | None = None,
    cu_text: Boundaries | None = None,
    config: PruneConfig | None = None,
    plan: BudgetPlan | None = None,
    backend: str = "auto",
) -> PruneResult:
    """Choose the visual tokens that a language model should see.

    Args:
        tokens: fp32, fp16, bf16 or fp64 [M, d], after the projector; any strides; never modified.
        cu_tokens: image boundaries, int32 or int64 [n + 1] or a sequence of ints.
        cu_images: sample boundaries counting images, [s + 1]; `None` is one sample.
        text: the text tokens' input embeddings [t, d], or `None`.
        cu_text: text boundaries [s + 1]; a sample may have no text. Required with text and several samples.
        config: how much to keep and by which rules; `None` is `PruneConfig()`, a fifth.
        plan: budgets to use instead of `plan_budgets`' own.
        backend: `"auto"`, `"reference"`, `"torch"` or `"triton"`.

    Returns:
        `PruneResult`.

    Raises:
        InvalidInputError: shapes, boundaries, devices, names or a plan that do not fit; with
            `config.check_finite`, a token or text token with NaN, an infinity or a norm above 1e18.
        UnsupportedDtypeError: tensors, boundaries, a config or a plan of another type.
        BackendUnavailableError: a backend named that cannot run.

    Note:
        Every sample's result is bit for bit what it is alone, for one number of torch threads. The stages run
        under `torch.profiler.record_function` ranges named `trimtok::statistics`, `trimtok::budgets`,
        `trimtok::stage1`, `trimtok::stage2`, `trimtok::pareto`.

    Source:
        TrimTokenator-LC, arXiv 2512.22748: a re-implementation of the published outline; D_intra as
        published, the other formulas ours (METHOD).

    Example:
        >>> import torch
        >>> out = prune(torch.eye(8)[[0, 0, 0, 1, 2, 2, 3, 3]], [0, 4, 8], config=PruneConfig(keep_ratio=0.5))
        >>> out.indices.tolist()
        [0, 3, 4, 6]
    """
    tokens = check_tokens(tokens)
    images, samples = parse_images(cu_tokens, cu_images, len(tokens))
    config = check_config(config)
    check_text(text, cu_text, tokens, samples)
    choose_backend(backend, tokens)
    if plan is not None:
        check_plan(plan, images, samples, config, tokens.device)

    with exact(tokens):
        with record_function("trimtok::statistics"):
            statistics = token_statistics(
                tokens,
                images.offsets,
                samples.offsets,
                text=text,
                cu_text=cu_text,
                center=config.center,
                backend=backend,
            )
            if config.check_finite:
                _check_finite(statistics.inverse_norm, text)
        with record_function("trimtok::budgets"):
            plan = plan_of(statistics, images, samples, config) if plan is None else plan
        with record_function("trimtok::stage1"):
            survivors, anchors, cu_anchors = _stage_1(
                tokens, images, samples, statistics, plan, config, backend
            )
        with record_function("trimtok::stage2"):
            order, distance = _stage_2(
                tokens, survivors, anchors, cu_anchors, statistics, plan, config, backend
            )
        with record_function("trimtok::pareto"):
            kept, front = _select(order, distance, anchors, statistics.alignment, plan, backend)

    stage = torch.zeros(len(tokens), dtype=torch.int8, device=tokens.device)
    stage[survivors], stage[order], stage[order[kept]] = STAGE_2, PARETO, KEPT
    kept = kept[order[kept].argsort()]
    indices = order[kept]
    alignment = statistics.alignment
    return PruneResult(
        indices=indices,
        cu_tokens=torch.searchsorted(indices, images.tensor(tokens.device)),
        statistics=statistics,
        plan=plan,
        distance=distance[kept],
        alignment=None if alignment is None else alignment[indices],
        front=None if alignment is None else front[kept],
        stage=stage,
    )


def _check_finite(inverse_norm: Tensor, text: Tensor | None) -> None:
    wrong = inverse_norm.isnan()
    if bool(wrong.any()):
        raise InvalidInputError(
            "tokens",
            "finite tokens of norm up to 1e18",
            f"{int(wrong.sum())} that are not, the first in row {int(wrong.nonzero()[0])}",
            "Mend the projector's output; check_finite=False skips this check.",
        )
    if text is not None:
        norms = torch.linalg.vector_norm(text.detach(), dim=1, dtype=torch.float64)
        wrong = ~(norms <= 1e18)
        if bool(wrong.any()):
            raise InvalidInputError(
                "text",
                "finite text tokens of norm up to 1e18",
                f"{int(wrong.sum())} that are not, the first in row {int(wrong.nonzero()[0])}",
                "Mend the embeddings; check_finite=False skips this check.",
            )


def _stage_1(
    tokens: Tensor,
    images: Segments,
    samples: Segments,
    statistics: TokenStatistics,
    plan: BudgetPlan,
    config: PruneConfig,
    backend: str,
) -> tuple[Tensor, Tensor, Segments]:
    """The most representative tokens of each image: survivors, ascending; anchors; the anchors' samples."""
    origin = statistics.origin
    picks, _ = greedy_select(
        tokens,
        images.offsets,
        plan.image_budgets,
        objective=config.image_objective,
        origin=None if origin is None else origin[samples.owner(tokens.device)],
        inverse_norm=statistics.inverse_norm,
        candidates=config.candidates,
        workspace_bytes=config.workspace_bytes,
        backend=backend,
    )
    floors = [min(config.min_tokens_per_image, length) for length in images.lengths]
    start = (plan.image_budgets.cumsum(0) - plan.image_budgets).repeat_interleave(plan.image_budgets)
    position = torch.arange(len(picks), device=picks.device) - start
    anchors = picks[position < config.min_tokens_per_image]
    return picks.sort().values, anchors, cumulative([sum(floors[span]) for span in samples])


def _stage_2(
    tokens: Tensor,
    survivors: Tensor,
    anchors: Tensor,
    cu_anchors: Segments,
    statistics: TokenStatistics,
    plan: BudgetPlan,
    config: PruneConfig,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The candidate pool across images: rows in the order in which they went in, and δ."""
    order, distance = greedy_select(
        tokens,
        torch.cat([plan.survivors.new_zeros(1), plan.survivors.cumsum(0)]),
        plan.pool,
        objective=config.pool_objective,
        seeds=anchors,
        cu_seeds=cu_anchors.offsets,
        origin=statistics.origin,
        inverse_norm=statistics.inverse_norm,
        rows=survivors,
        candidates=config.candidates,
        workspace_bytes=config.workspace_bytes,
        backend=backend,
    )
    sample = torch.arange(len(plan.pool), device=order.device).repeat_interleave(plan.pool)
    largest = torch.zeros(len(plan.pool), dtype=distance.dtype, device=order.device).scatter_reduce(
        0, sample, distance.masked_fill(distance.isinf(), 0), "amax"
    )
    return order, torch.where(distance.isinf(), largest[sample], distance)


def _select(
    order: Tensor, distance: Tensor, anchors: Tensor, alignment: Tensor | None, plan: BudgetPlan, backend: str
) -> tuple[Tensor, Tensor]:
    """Positions in `order` of the tokens that stay, B of each sample; every position's front (or -1)."""
    count = len(plan.pool)
    sample = torch.arange(count, device=order.device).repeat_interleave(plan.pool)
    position = torch.arange(len(order), device=order.device)
    front = torch.full_like(order, -1)
    # Smaller goes first. Anchors lead everywhere; without text the order of the pool decides.
    keys = [order, position.double(), front]
    if alignment is not None:
        ranked = (~alignment[order].isnan() & ~torch.isin(order, anchors)).nonzero().squeeze(1)
        sizes = torch.zeros(count, dtype=torch.int64, device=order.device).index_add(
            0, sample[ranked], torch.ones_like(ranked)
        )
        front[ranked] = pareto_front(
            distance[ranked],
            alignment[order[ranked]],
            torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
            backend=backend,
        )
        group = sample[ranked] * len(order) + front[ranked]
        keys[1][ranked] = -(
            _normalised(distance[ranked], group) + _normalised(alignment[order[ranked]], group)
        )
    rank = position
    for key in (*keys, sample):
        rank = rank[key[rank].argsort(stable=True)]
    start = (plan.pool.cumsum(0) - plan.pool)[sample]
    return rank[position - start < plan.keep[sample]], front


def _normalised(value: Tensor, group: Tensor) -> Tensor:
    """Min–max over each group, in fp64; 0 where the group is constant."""
    groups, inverse = group.unique(return_inverse=True)
    low = value.new_zeros(len(groups), dtype=torch.float64).scatter_reduce(
        0, inverse, value.double(), "amin", include_self=False
    )
    high = torch.zeros_like(low).scatter_reduce(0, inverse, value.double(), "amax", include_self=False)
    spread = (high - low)[inverse]
    return torch.where(
        spread > 0, (value.double() - low[inverse]) / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0
    )
