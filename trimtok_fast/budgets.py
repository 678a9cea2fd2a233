"""Budgets: how many tokens every sample keeps, and how many each image hands to stage 2 (METHOD §2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trimtok_fast.config import PruneConfig, check_config
from trimtok_fast.errors import InvalidInputError, UnsupportedDtypeError
from trimtok_fast.segments import Boundaries, Segments, integers_on, parse_images
from trimtok_fast.statistics import ZERO_DIVERSITY, TokenStatistics

#: Shares that differ by less than this are equal: rounding must not decide who gets the odd token.
SHARE_TOLERANCE = 1e-9
#: The share of the pruning (in logarithms) that an adaptive split leaves to stage 1 at least.
LEAST_WEIGHT = 0.5
#: Where the tokens of two images are farther apart than those of one by this share, nothing is left for stage
#: 2 to do without text.
DIFFERENT = 1 / 3


@dataclass(frozen=True, eq=False)
class BudgetPlan:
    """Exact token counts of s samples with n images, all int64.

    Attributes:
        keep: [s] B, the tokens that stay.
        survivors: [s] B_1, the tokens that stage 1 leaves, B ≤ B_1.
        pool: [s] P, the candidates of stage 2's selection, B ≤ P ≤ B_1; B without text.
        image_budgets: [n] b_k, the tokens that each image keeps in stage 1; Σ b_k = B_1 in each sample.
    """

    keep: Tensor
    survivors: Tensor
    pool: Tensor
    image_budgets: Tensor


def kept_counts(
    cu_tokens: Boundaries, cu_images: Boundaries | None = None, *, config: PruneConfig | None = None
) -> list[int]:
    """Number of tokens that each sample will keep, from shapes alone, before anything runs.

    Args:
        cu_tokens: image boundaries, int32 or int64 [n + 1] or a sequence of ints.
        cu_images: sample boundaries counting images, [s + 1]; `None` is one sample.
        config: how much to keep; `None` is `PruneConfig()`.

    Returns:
        B of each sample: the ratio's share, rounded half up, at least `min_tokens_per_image` of every image
            (and one at all), or `keep_tokens`, at most the sample.

    Raises:
        InvalidInputError: wrong boundaries, or `keep_tokens` below the floor of a sample.
        UnsupportedDtypeError: boundaries that are not integers, or not a config.

    Source:
        METHOD §2, B; the rounding and the floor are ours.

    Example:
        >>> kept_counts([0, 100, 200, 300], [0, 2, 3], config=PruneConfig(keep_ratio=0.1))
        [20, 10]
    """
    config = check_config(config)
    images, samples = parse_images(cu_tokens, cu_images, None)
    return kept_of(images, samples, config)


def kept_of(images: Segments, samples: Segments, config: PruneConfig) -> list[int]:
    """`kept_counts` of checked boundaries."""
    return [_kept(images.lengths[span], config, sample) for sample, span in enumerate(samples)]


def _kept(lengths: tuple[int, ...], config: PruneConfig, sample: int) -> int:
    size = sum(lengths)
    floor = sum(min(config.min_tokens_per_image, length) for length in lengths)
    if config.keep_tokens is None:
        ratio = config.keep_ratio or 0.0  # never None here: PruneConfig sets one of the two
        return min(max(math.floor(ratio * size + 0.5 + SHARE_TOLERANCE), 1, floor), size)
    kept = min(config.keep_tokens, size)
    if kept < floor:
        raise InvalidInputError(
            "keep_tokens",
            f"at least {floor} for the {len(lengths)} images of sample {sample}",
            f"{config.keep_tokens}",
            "Raise keep_tokens, or lower min_tokens_per_image.",
        )
    return kept


def plan_of_one_stage(
    kept: list[int], images: Segments, samples: Segments, device: torch.device
) -> BudgetPlan:
    """The plan of a method without stages: all tokens are there at first, and the pool is what is kept."""
    return BudgetPlan(
        keep=integers_on(device, tuple(kept)).clone(),
        survivors=integers_on(device, samples.of(images).lengths).clone(),
        pool=integers_on(device, tuple(kept)).clone(),
        image_budgets=integers_on(device, images.lengths).clone(),
    )


def survivors_at_most(
    kept: list[int], images: Segments, samples: Segments, texts: Sequence[bool], config: PruneConfig
) -> list[int]:
    """An upper bound of each sample's B_1, from shapes alone: where stage 1 prunes the least it may."""
    least = LEAST_WEIGHT if config.stage_split == "adaptive" else float(config.stage_split)
    bounds = []
    for sample, span in enumerate(samples):
        lengths = images.lengths[span]
        size, floors = sum(lengths), floors_of(lengths, kept[sample], texts[sample], config)
        # One more, in case the device's power is rounded up.
        bound = math.floor(size * (kept[sample] / size) ** least + 0.5 + SHARE_TOLERANCE) + 1
        bounds.append(min(max(bound, kept[sample], sum(floors)), size))
    return bounds


def pools_at_most(
    kept: list[int], survivors: list[int], texts: Sequence[bool], config: PruneConfig
) -> list[int]:
    """An upper bound of each sample's P, given one of its B_1."""
    return [
        count + (math.floor(config.pool_fraction * (bound - count) + 0.5) if has_text else 0)
        for count, bound, has_text in zip(kept, survivors, texts, strict=True)
    ]


def anchors_of(lengths: Sequence[int], kept: int, has_text: bool, config: PruneConfig) -> list[int]:
    """c_k of one sample: the tokens of each image that stage 2 cannot drop; never more than `kept` in all."""
    floors = [min(config.min_tokens_per_image, length) for length in lengths]
    if not has_text:
        return floors
    floor = sum(floors)
    share = (1 - config.text_share) * (kept - floor) / max(sum(lengths) - floor, 1)
    return [
        low + math.floor(share * (length - low) + SHARE_TOLERANCE)
        for low, length in zip(floors, lengths, strict=True)
    ]


def text_seeds_of(lengths: Sequence[int], kept: int, has_text: bool) -> list[int]:
    """e_k of one sample: the tokens of each image that survive stage 1 for what they say to the text."""
    return [kept * length // sum(lengths) if has_text else 0 for length in lengths]


def floors_of(lengths: Sequence[int], kept: int, has_text: bool, config: PruneConfig) -> list[int]:
    """What stage 1 leaves of each image of one sample at least, from shapes alone."""
    return [
        min(anchors + seeds, length)
        for anchors, seeds, length in zip(
            anchors_of(lengths, kept, has_text, config),
            text_seeds_of(lengths, kept, has_text),
            lengths,
            strict=True,
        )
    ]


def plan_budgets(
    statistics: TokenStatistics,
    cu_tokens: Boundaries,
    cu_images: Boundaries | None = None,
    *,
    config: PruneConfig | None = None,
) -> BudgetPlan:
    """Split each sample's budget between the stages and among its images.

    The more the images differ, for the diversity they have, the more stage 1 prunes; images that resemble
    each other leave half of the pruning to stage 2, and so does a sample with text. Image budgets follow
    `nonzero * diversity` by water-filling between each image's floor and its size, then by largest remainder,
    ties to the lower image.

    Args:
        statistics: from `token_statistics` of the same tokens, with the text where there is one.
        cu_tokens: image boundaries, int32 or int64 [n + 1] or a sequence of ints.
        cu_images: sample boundaries counting images, [s + 1]; `None` is one sample.
        config: how much to keep; `None` is `PruneConfig()`.

    Returns:
        The plan, int64 on the statistics' device. Totals are exact.

    Raises:
        InvalidInputError: boundaries that do not fit the statistics, or `keep_tokens` below a sample's floor.
        UnsupportedDtypeError: boundaries that are not integers, not statistics, or not a config.

    Note:
        These are the budgets of the two stages; a `config.method` of one stage goes by `kept_counts` alone.
        Computed in fp64. With boundaries given on the host nothing waits for a GPU.

    Source:
        METHOD §2: that diversity and variation guide the budgets is the paper's, the formulas are ours.

    Example:
        >>> import torch, trimtok_fast as tt
        >>> statistics = tt.token_statistics(torch.eye(8), [0, 4, 8])
        >>> plan_budgets(statistics, [0, 4, 8], config=PruneConfig(keep_tokens=4)).image_budgets.tolist()
        [3, 3]
    """
    config = check_config(config)
    if not isinstance(statistics, TokenStatistics):
        raise UnsupportedDtypeError(
            "statistics", "TokenStatistics", type(statistics).__name__, "Call token_statistics first."
        )
    images, samples = parse_images(cu_tokens, cu_images, len(statistics.inverse_norm))
    for name, count in (("diversity", len(images)), ("nonzero", len(images)), ("variation", len(samples))):
        value = getattr(statistics, name)
        if not isinstance(value, Tensor) or value.shape != (count,):
            raise InvalidInputError(
                f"statistics.{name}",
                f"a tensor [{count}]: {len(images)} images in {len(samples)} samples",
                f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__,
                "Pass the boundaries that the statistics were made with.",
            )
    from trimtok_fast.ops import choose_backend  # which stands on this module

    plan: BudgetPlan = choose_backend("auto", statistics.diversity).plan_budgets(
        statistics, images, samples, config
    )
    return plan


def plan_of(
    statistics: TokenStatistics, images: Segments, samples: Segments, config: PruneConfig
) -> BudgetPlan:
    """`plan_budgets` of checked input, in torch."""
    device = statistics.diversity.device
    kept = kept_of(images, samples, config)
    first_rows = samples.of(images).tensor(device)[:-1]
    # The alignment of a sample without text is NaN.
    texts = (
        torch.zeros(len(samples), dtype=torch.bool, device=device)
        if statistics.alignment is None
        else ~statistics.alignment[first_rows].isnan()
    )
    # Sample by sample, so that each sample's numbers come from the same operations as if it were alone.
    parts = [
        _plan_sample(
            images.lengths[span],
            kept[sample],
            texts[sample],
            _significant(statistics.diversity[span].double()),
            statistics.nonzero[span].double(),
            statistics.variation[sample].double(),
            config,
        )
        for sample, span in enumerate(samples)
    ]
    survivors, pools, budgets = zip(*parts, strict=True)
    return BudgetPlan(
        keep=integers_on(device, tuple(kept)).clone(),
        survivors=torch.stack(survivors),
        pool=torch.stack(pools),
        image_budgets=torch.cat(budgets),
    )


def _significant(diversity: Tensor) -> Tensor:
    """0 for what may be rounding; half the threshold, as a value at the threshold may be rounded down."""
    return torch.where(diversity > ZERO_DIVERSITY / 2, diversity, 0.0)


def _plan_sample(
    sizes: tuple[int, ...],
    kept: int,
    has_text: Tensor,
    diversity: Tensor,
    nonzero: Tensor,
    variation: Tensor,
    config: PruneConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """B_1, P and b_k of one sample; everything stays on the device."""
    device = diversity.device
    lengths = integers_on(device, sizes).double()
    floors = torch.where(
        has_text,
        integers_on(device, tuple(floors_of(sizes, kept, True, config))),
        integers_on(device, tuple(floors_of(sizes, kept, False, config))),
    ).double()
    size = lengths.sum()
    weight = stage_weight(diversity.mean(), variation, has_text, config)
    survivors = (size * (kept / size) ** weight + 0.5 + SHARE_TOLERANCE).floor()
    survivors = survivors.clamp(min=kept).maximum(floors.sum()).minimum(size)
    pool = kept + torch.where(has_text, (config.pool_fraction * (survivors - kept) + 0.5).floor(), 0)
    budgets = _largest_remainder(
        _water_fill(nonzero * diversity, floors, lengths, survivors), lengths, survivors
    )
    return survivors.long(), pool.long(), budgets


def stage_weight(diversity: Tensor, variation: Tensor, has_text: Tensor, config: PruneConfig) -> Tensor:
    """w, the share of the pruning (in logarithms) that stage 1 does; scalars on one device."""
    if config.stage_split != "adaptive":
        return torch.full_like(diversity, float(config.stage_split))
    # How much farther apart the tokens of two images are than those of one, as a share of the latter.
    farther = (variation * (1 - diversity)).clamp(min=0) / diversity
    # NaN (variation undefined, or 0 / 0): there is nothing to choose between images.
    differ = (farther / DIFFERENT).nan_to_num(nan=1.0).clamp(max=1)
    return torch.where(has_text, LEAST_WEIGHT, LEAST_WEIGHT + (1 - LEAST_WEIGHT) * differ)


def _water_fill(weight: Tensor, floor: Tensor, cap: Tensor, total: Tensor) -> Tensor:
    """clamp(λ · weight, floor, cap) for the λ at which the sum is `total`; fp64 [n].

    When every image with a positive weight is full, the others share the rest by their size.
    """
    positive = weight > 0
    saturated = torch.where(positive, cap, floor).sum() <= total
    weight = torch.where(saturated & ~positive, cap, weight)
    floor = torch.where(saturated & positive, cap, floor)

    # The sum is piecewise linear in λ: image k's part rises by weight_k from floor_k / weight_k to cap_k /
    # weight_k.
    rising = weight > 0
    scale = torch.where(rising, weight, 1.0)
    turns = torch.cat([torch.where(rising, floor, 0.0) / scale, torch.where(rising, cap, 0.0) / scale])
    turns, order = turns.sort(stable=True)
    slope = torch.cat([weight, -weight])[order].cumsum(0)
    step = turns.diff(append=turns[-1:])
    reached = floor.sum() + torch.cat([step.new_zeros(1), (slope * step).cumsum(0)[:-1]])
    last = ((reached <= total).sum(0, keepdim=True) - 1).clamp(min=0)  # [1]: a scalar index is read back
    level = turns[last] + torch.where(slope[last] > 0, (total - reached[last]) / slope[last], 0.0)
    share = (level * weight).clamp(floor, cap)
    # The running sums lose digits where weights lie far apart: solve again for those between floor and cap.
    free = (share > floor) & (share < cap)
    room = total - torch.where(free, 0.0, share).sum()
    level = room / torch.where(free, weight, 0.0).sum().clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.where(free, level * weight, share).clamp(floor, cap)


def _largest_remainder(share: Tensor, cap: Tensor, total: Tensor) -> Tensor:
    """Whole numbers with the given total, at most one above ⌊share⌋ and never above `cap`; int64 [n]."""
    whole = (share + SHARE_TOLERANCE).floor().minimum(cap)
    # Rounded, so that equal remainders tie; one at its cap comes last and is never reached.
    remainder = ((share - whole) / SHARE_TOLERANCE).round()
    remainder = torch.where(whole < cap, remainder, -torch.inf)
    rank = remainder.argsort(descending=True, stable=True).argsort()
    return (whole + (rank < total - whole.sum())).long()


def check_plan(
    plan: BudgetPlan,
    images: Segments,
    samples: Segments,
    texts: Sequence[bool],
    config: PruneConfig,
    device: torch.device,
) -> None:
    """Raise unless a plan that a caller brought fits the images, the floors and itself; reads its values."""
    if not isinstance(plan, BudgetPlan):
        raise UnsupportedDtypeError(
            "plan", "a BudgetPlan", type(plan).__name__, "Build one with plan_budgets."
        )
    expected = {
        "keep": len(samples),
        "survivors": len(samples),
        "pool": len(samples),
        "image_budgets": len(images),
    }
    for field in fields(plan):
        value = getattr(plan, field.name)
        wanted = f"int64 [{expected[field.name]}] on {device}"
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise UnsupportedDtypeError(f"plan.{field.name}", wanted, got, "Call .to(torch.int64).")
        if value.shape != (expected[field.name],) or value.device != device:
            got = f"shape {list(value.shape)} on {value.device}"
            raise InvalidInputError(
                f"plan.{field.name}", wanted, got, "Plan with the same images and samples."
            )
    keep, survivors, pool, budgets = (getattr(plan, field.name).tolist() for field in fields(plan))
    for sample, span in enumerate(samples):
        lengths = images.lengths[span]
        floor = max(1, sum(min(config.min_tokens_per_image, length) for length in lengths))
        if not floor <= keep[sample] <= pool[sample] <= survivors[sample]:
            raise InvalidInputError(
                "plan",
                f"{floor} <= keep <= pool <= survivors for sample {sample}",
                f"keep {keep[sample]}, pool {pool[sample]}, survivors {survivors[sample]}",
                "Change the plan.",
            )
        for offset, floor in enumerate(floors_of(lengths, keep[sample], texts[sample], config)):
            image, length = span.start + offset, lengths[offset]
            if not floor <= budgets[image] <= length:
                raise InvalidInputError(
                    "plan.image_budgets",
                    f"{floor} to {length} for image {image}",
                    str(budgets[image]),
                    "Change the plan, or make it from statistics with the same text.",
                )
        if sum(budgets[span]) != survivors[sample]:
            raise InvalidInputError(
                "plan.image_budgets",
                f"a sum of {survivors[sample]} (plan.survivors) in sample {sample}",
                str(sum(budgets[span])),
                "Change one of the two.",
            )
