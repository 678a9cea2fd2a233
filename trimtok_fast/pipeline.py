"""`prune`: statistics, budgets, stage 1, stage 2, Pareto selection; or another method's picks."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.profiler import record_function

from trimtok_fast.budgets import (
    BudgetPlan,
    anchors_of,
    check_plan,
    kept_of,
    plan_of_one_stage,
    pools_at_most,
    survivors_at_most,
    text_seeds_of,
)
from trimtok_fast.config import PruneConfig, check_config
from trimtok_fast.errors import InvalidInputError
from trimtok_fast.library import gather_tokens
from trimtok_fast.methods import Batch
from trimtok_fast.ops import choose_backend, exact, rank, select
from trimtok_fast.registry import METHODS, TWO_STAGES
from trimtok_fast.segments import Boundaries, Segments, cumulative, integers_on, parse_images
from trimtok_fast.statistics import TokenStatistics
from trimtok_fast.validation import check_text, check_tokens, describe

#: Values of `PruneResult.stage`.
STAGE_1, STAGE_2, PARETO, KEPT = range(4)


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What stays, and why.

    Attributes:
        indices: int64 [K], rows of `tokens` that stay, ascending.
        cu_tokens: int64 [n + 1], the kept tokens' image boundaries.
        statistics: the `TokenStatistics` behind the budgets.
        plan: the `BudgetPlan`. A method of one stage has all tokens for survivors and what it keeps for pool.
        distance: [K] δ, how far each kept token was from the pool when it went in (its gain with
            another `pool_objective`); anchors report the largest finite one of their sample. Of another
            method, each token's value when it was picked, likewise; NaN where a method has none.
        alignment: [K] cosine to the text, NaN in samples without text; `None` without any text.
        front: int64 [K] Pareto front, -1 for an anchor, in a sample without text, or with a method without
            fronts; `None` without any text.
        stage: int8 [M], how far each token came: 0 dropped inside its image (stage 1), 1 dropped across
            images (stage 2's pool), 2 dropped by the Pareto selection (by the order of the pool, in a sample
            without text), 3 kept. A method of one stage drops in 1.
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
        plan: budgets to use instead of `plan_budgets`' own; a method of one stage goes by its `keep`.
        backend: `"auto"`, `"reference"`, `"torch"` or `"triton"`.

    Returns:
        `PruneResult`.

    Raises:
        InvalidInputError: shapes, boundaries, devices, names or a plan that do not fit; with
            `config.check_finite`, a token or text token with NaN, an infinity or a norm above 1e18, or a
            registered method that picks what it must not.
        UnsupportedDtypeError: tensors, boundaries, a config or a plan of another type.
        BackendUnavailableError: a backend named that cannot run.

    Note:
        Every sample's result is bit for bit what it is alone, for one number of torch threads. The stages run
        under `torch.profiler.record_function` ranges named `trimtok::statistics`, `trimtok::budgets`,
        `trimtok::stage1`, `trimtok::stage2`, `trimtok::pareto`; those of other methods are
        `trimtok::statistics` and `trimtok::select`.

    Source:
        TrimTokenator-LC, arXiv 2512.22748: a re-implementation of the published outline; D_intra as
        published, the other formulas ours (METHOD). The other methods: METHOD §6, and each one's docstring.

    Example:
        >>> import torch
        >>> out = prune(torch.eye(8)[[0, 0, 0, 1, 2, 2, 3, 3]], [0, 4, 8], config=PruneConfig(keep_ratio=0.5))
        >>> out.indices.tolist()
        [0, 3, 4, 6]
    """
    tokens = check_tokens(tokens)
    images, samples = parse_images(cu_tokens, cu_images, len(tokens))
    config = check_config(config)
    words, cu_words = check_text(text, cu_text, tokens, samples)
    texts = [False] * len(samples) if cu_words is None else [length > 0 for length in cu_words.lengths]
    run = choose_backend(backend, tokens)
    if plan is not None:
        check_plan(plan, images, samples, texts, config, tokens.device)
    if config.method != TWO_STAGES:
        kept = kept_of(images, samples, config) if plan is None else plan.keep.tolist()
        return _by_method(tokens, images, samples, words, cu_words, config, kept, backend)

    with exact(tokens):
        with record_function("trimtok::statistics"):
            statistics = run.token_statistics(tokens, images, samples, words, cu_words, center=config.center)
            finite = _FiniteCheck(statistics.inverse_norm, text) if config.check_finite else None
            if finite is not None and run.ON_HOST:
                finite.wait()
        with record_function("trimtok::budgets"):
            if plan is None:
                plan = run.plan_budgets(statistics, images, samples, config)
                kept = kept_of(images, samples, config)
                surviving = survivors_at_most(kept, images, samples, texts, config)
                pooled = pools_at_most(kept, surviving, texts, config)
            else:
                kept, surviving, pooled = (part.tolist() for part in (plan.keep, plan.survivors, plan.pool))
        with record_function("trimtok::stage1"):
            survivors, anchors, cu_anchors = _stage_1(
                run, tokens, images, samples, texts, statistics, plan, kept, sum(surviving), config
            )
        with record_function("trimtok::stage2"):
            cu_pool = pad(plan.pool.cumsum(0), (1, 0))
            sample = _owner(cu_pool, sum(pooled))
            order, distance = _stage_2(
                run, tokens, survivors, anchors, cu_anchors, statistics, plan, surviving, sample, config
            )
        with record_function("trimtok::pareto"):
            places, front = _select(
                run,
                order,
                distance,
                sample,
                cu_pool,
                cu_anchors,
                statistics.alignment,
                texts,
                cumulative(kept),
            )

    indices, by_row = order[places].sort()
    places = places[by_row]
    # One place more than there are tokens: there goes what the buffers' unused ends say.
    stage = torch.zeros(len(tokens) + 1, dtype=torch.int8, device=tokens.device)
    stage.scatter_(0, survivors, STAGE_2)
    stage.scatter_(0, order.masked_fill(order < 0, len(tokens)), PARETO)
    stage.scatter_(0, indices, KEPT)
    alignment = statistics.alignment
    result = PruneResult(
        indices=indices,
        cu_tokens=torch.searchsorted(indices, images.tensor(tokens.device)),
        statistics=statistics,
        plan=plan,
        distance=distance[places],
        alignment=None if alignment is None else alignment[indices],
        front=None if alignment is None else front[places],
        stage=stage[:-1],
    )
    if finite is not None and not run.ON_HOST:  # nothing is left to launch, and the device has long found out
        finite.wait()
    return result


def _by_method(
    tokens: Tensor,
    images: Segments,
    samples: Segments,
    text: Tensor | None,
    cu_text: Segments | None,
    config: PruneConfig,
    kept: list[int],
    backend: str,
) -> PruneResult:
    """`prune` by a method of one stage."""
    method = METHODS[config.method]
    run, device = choose_backend(backend, tokens), tokens.device
    spans = samples.of(images)
    with exact(tokens):
        with record_function("trimtok::statistics"):
            statistics = run.token_statistics(
                tokens, images, samples, text, cu_text, center=method.center or config.center
            )
            if config.check_finite:
                _FiniteCheck(statistics.inverse_norm, text).wait()
        batch = Batch(tokens, images, spans, tuple(kept), text, cu_text, statistics, config, backend)
        with record_function("trimtok::select"):
            picks = method.select(batch)
            rows, value = picks if isinstance(picks, tuple) else (picks, None)
            _check_picks(config.method, rows, value, spans, kept, config.check_finite)
        if value is None:
            distance = torch.full((len(rows),), torch.nan, device=device)
        else:
            distance = _finite(value, cumulative(kept).owner(device), len(kept))

    indices, by_row = rows.sort()
    stage = torch.full((len(tokens),), STAGE_2, dtype=torch.int8, device=device)
    alignment = statistics.alignment
    return PruneResult(
        indices=indices,
        cu_tokens=torch.searchsorted(indices, images.tensor(device)),
        statistics=statistics,
        plan=plan_of_one_stage(kept, images, samples, device),
        distance=distance[by_row],
        alignment=None if alignment is None else alignment[indices],
        front=None if alignment is None else torch.full_like(indices, -1),
        stage=stage.index_fill_(0, indices, KEPT),
    )


def _check_picks(
    method: str, rows: Tensor, value: Tensor | None, spans: Segments, kept: list[int], read: bool
) -> None:
    """Raise unless a method's picks are what `prune` promises; their values are read only if asked for."""
    wanted = (
        f"{sum(kept)} rows of the tokens from method {method!r}, each once, {kept} of the samples in turn"
    )
    remedy = "Mend the method."
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.shape != (sum(kept),):
        raise InvalidInputError("method", wanted, describe(rows), remedy)
    if value is not None and value.shape != rows.shape:
        raise InvalidInputError("method", f"{len(rows)} values", describe(value), remedy)
    if not read:
        return
    place = torch.searchsorted(spans.tensor(rows.device), rows, right=True) - 1
    twice = rows.sort().values.diff() == 0
    if bool(twice.any()) or not torch.equal(place, cumulative(kept).owner(rows.device)):
        raise InvalidInputError("method", wanted, "others", remedy)


def _finite(value: Tensor, sample: Tensor, samples: int) -> Tensor:
    """Infinite values, those of first picks, as the largest finite one of their sample; 0 without any."""
    finite = value.masked_fill(~value.isfinite(), 0)
    largest = finite.new_zeros(samples).scatter_reduce(0, sample, finite, "amax")
    return torch.where(value.isinf(), largest[sample], value)


#: Of an argument of `prune`: what its rows are, and where they come from.
_MEANT = {"tokens": ("tokens", "projector's output"), "text": ("text tokens", "embeddings")}


class _FiniteCheck:
    """Has the device look for tokens that are not finite; whoever waits for that waits for nothing later."""

    def __init__(self, inverse_norm: Tensor, text: Tensor | None) -> None:
        self._wrong = {"tokens": inverse_norm.isnan()}
        if text is not None:
            norms = torch.linalg.vector_norm(text.detach(), dim=1, dtype=torch.float64)
            self._wrong["text"] = ~(norms <= 1e18)
        found = torch.stack([wrong.any() for wrong in self._wrong.values()])
        self._found = found.to("cpu", non_blocking=found.is_cuda)
        self._known = torch.cuda.current_stream(found.device).record_event() if found.is_cuda else None

    def wait(self) -> None:
        """Raise if there are any."""
        if self._known is not None:
            self._known.synchronize()
        for (argument, wrong), found in zip(self._wrong.items(), self._found.tolist(), strict=True):
            if found:
                meant, source = _MEANT[argument]
                raise InvalidInputError(
                    argument,
                    f"finite {meant} of norm up to 1e18",
                    f"{int(wrong.sum())} that are not, the first in row {int(wrong.nonzero()[0])}",
                    f"Mend the {source}; check_finite=False skips this check.",
                )


# What each stage hands on lies in a buffer whose size the host knows. How much of it is used only the device
# knows, and nothing below reads that back: on a GPU the stages follow each other without waiting.


def _stage_1(
    run: ModuleType,
    tokens: Tensor,
    images: Segments,
    samples: Segments,
    texts: list[bool],
    statistics: TokenStatistics,
    plan: BudgetPlan,
    kept: list[int],
    total: int,
    config: PruneConfig,
) -> tuple[Tensor, Tensor, Segments]:
    """The tokens of each image that speak most for the text, and those that represent the rest of it best.

    Returns:
        The survivors [total], ascending, M beyond the last; the anchors; the anchors' samples.
    """
    device = tokens.device
    seeds, anchors = [], []
    for sample, span in enumerate(samples):
        lengths = images.lengths[span]
        seeds += text_seeds_of(lengths, kept[sample], texts[sample])
        anchors += anchors_of(lengths, kept[sample], texts[sample], config)
    picks, _ = select(
        run,
        tokens,
        images,
        plan.image_budgets,
        at_most=images.lengths,
        total=total,
        objective=config.image_objective,
        seeds=_most_aligned(statistics.alignment, images, cumulative(seeds), device),
        cu_seeds=cumulative(seeds),
        origin=None if statistics.origin is None else statistics.origin[samples.owner(device)],
        inverse_norm=statistics.inverse_norm,
        rows=None,
        candidates=config.candidates,
        workspace_bytes=config.workspace_bytes,
    )
    # The first picks that are no seeds; where the image is too small for both, its last ones.
    skipped = tuple(
        min(seed, length - anchor)
        for seed, anchor, length in zip(seeds, anchors, images.lengths, strict=True)
    )
    first_pick = plan.image_budgets.cumsum(0) - plan.image_budgets + integers_on(device, skipped)
    cu_anchors = cumulative(anchors)
    survivors = picks.masked_fill(picks < 0, len(tokens)).sort().values
    return survivors, picks[_places(first_pick, cu_anchors)], samples.of(cu_anchors)


def _most_aligned(
    alignment: Tensor | None, images: Segments, counts: Segments, device: torch.device
) -> Tensor:
    """The rows of each image that are most aligned with the text, ties to the lowest."""
    if alignment is None:
        return torch.empty(0, dtype=torch.int64, device=device)
    ranking = alignment.argsort(descending=True, stable=True)
    if len(images) > 1:
        ranking = ranking[images.owner(device)[ranking].argsort(stable=True)]
    return ranking[_places(images.tensor(device)[:-1], counts)]


def _stage_2(
    run: ModuleType,
    tokens: Tensor,
    survivors: Tensor,
    anchors: Tensor,
    cu_anchors: Segments,
    statistics: TokenStatistics,
    plan: BudgetPlan,
    surviving: list[int],
    sample: Tensor,
    config: PruneConfig,
) -> tuple[Tensor, Tensor]:
    """The candidate pool across images; `sample` says whose each place of it is.

    Returns:
        Rows in the order in which they went in, -1 beyond the last, and δ; both as long as `sample`.
    """
    order, distance = select(
        run,
        tokens,
        pad(plan.survivors.cumsum(0), (1, 0)),
        plan.pool,
        at_most=tuple(surviving),
        total=len(sample),
        objective=config.pool_objective,
        seeds=anchors,
        cu_seeds=cu_anchors,
        origin=statistics.origin,
        inverse_norm=statistics.inverse_norm,
        rows=survivors,
        candidates=config.candidates,
        workspace_bytes=config.workspace_bytes,
    )
    samples = len(plan.pool)
    return order, _finite(distance, sample.clamp(max=samples - 1), samples)


def _select(
    run: ModuleType,
    order: Tensor,
    distance: Tensor,
    sample: Tensor,
    cu_pool: Tensor,
    cu_anchors: Segments,
    alignment: Tensor | None,
    texts: list[bool],
    kept: Segments,
) -> tuple[Tensor, Tensor]:
    """Places in `order` of the tokens that stay, sample by sample; and the front (or -1) at every place."""
    device, total = order.device, len(order)
    place = torch.arange(total, device=device)
    front, score = torch.full_like(order, -1), place.double()
    if alignment is not None:
        # Ranked are the pools behind their anchors, of samples with text.
        behind = integers_on(device, cu_anchors.lengths)
        has_text = integers_on(device, tuple(map(int, texts)))
        cu_ranked = pad(((cu_pool.diff() - behind) * has_text).cumsum(0), (1, 0))
        number = torch.arange(total - cu_anchors.end, device=device)
        used = number < cu_ranked[-1:]
        owner = _owner(cu_ranked, len(number)).clamp(max=len(texts) - 1)
        at = torch.where(used, (cu_pool[:-1] + behind - cu_ranked[:-1])[owner] + number, 0)
        delta = torch.where(used, distance[at], 0)
        cosine = torch.where(used, alignment[order[at].clamp(min=0)], 0)
        ranks = rank(run, delta, cosine, cu_ranked)
        group = torch.where(used, cu_ranked[owner] + ranks, len(number))
        sums = _normalised(torch.stack([delta.double(), cosine.double()]), group).sum(0)
        at = torch.where(used, at, total)
        front = pad(front, (0, 1)).scatter(0, at, ranks)[:-1]
        score = pad(score, (0, 1)).scatter(0, at, -sums)[:-1]
    # Smaller goes first. Anchors lead everywhere; without text the order of the pool decides.
    ranking = order.argsort(stable=True)
    for key in (score, sample * (total + 1) + front):
        ranking = ranking[key[ranking].argsort(stable=True)]
    return ranking[_places(cu_pool[:-1], kept)], front


def _owner(boundaries: Tensor, length: int) -> Tensor:
    """The stretch that each place of a buffer is in; past the last boundary, the number of stretches."""
    return torch.searchsorted(
        boundaries[1:].contiguous(), torch.arange(length, device=boundaries.device), right=True
    )


def _places(starts: Tensor, counts: Segments) -> Tensor:
    """The first few places of each stretch, one stretch after the other."""
    return starts[counts.owner(starts.device)] + counts.place(starts.device)


def _normalised(value: Tensor, group: Tensor) -> Tensor:
    """Min–max of each row of fp64 [k, N] over each group; 0 where it is constant. Groups go up to N."""
    group = group.expand_as(value)
    ends = value.new_zeros(len(value), value.shape[1] + 1)
    low, high = (
        ends.scatter_reduce(1, group, value, end, include_self=False).gather(1, group)
        for end in ("amin", "amax")
    )
    return torch.where(high > low, (value - low) / (high - low).clamp(min=torch.finfo(value.dtype).tiny), 0.0)
