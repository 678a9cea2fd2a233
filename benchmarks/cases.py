"""The ops and methods as cases: ours, what a user would pick instead, what bounds it, and what is right.

`work` and `needs` are of the parts that grow: multiply-adds, and the matrices that are held at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import trimtok_fast as tt
from benchmarks import checks, contenders, floors
from benchmarks.harness import OURS, Case, Contender
from benchmarks.workloads import make_tokens
from trimtok_fast.certificate import TOLERANCE

QUICKFPS, FPS, RUNNING, RESCAN = "torch-quickfps", "torch-fps", "matrix + running minimum", "DivPrune's rule"
APRICOT, PAIRWISE, PAIRWISE_16 = "apricot-select", "pairwise matrix, fp32", "pairwise matrix, bf16"
LOOP, FULL, NSGA, INDEX = "published loop", "full matrices", "NSGA-II's sorting", "index_select"
TALL, SQUARE, COPY = (
    "limit: the m x b x d product",
    "limit: the m x m x d product",
    "limit: copy_ of the tokens",
)
OWN_TORCH, COMPILED = "trimtok_fast, backend='torch'", "torch.compile of "


def _shape(tokens: Tensor, budget: int | None = None, images: int = 1) -> str:
    count, width = tokens.shape
    size = f"{images} x {count // images:,} x {width:,}" if images > 1 else f"{count:,} x {width:,}"
    return size if budget is None else f"{size}, {budget:,} picks"


def _only_on_cuda(tokens: Tensor, others: Callable[[], dict[str, Contender]]) -> dict[str, Contender]:
    """What is also measured where `backend="auto"` runs kernels: our own torch backend, compiled rivals."""
    return others() if tokens.is_cuda else {}


def max_min(tokens: Tensor, budget: int, rescan: bool = True) -> Case:
    """k-centre in one segment: farthest-point samplers, the full matrix, and the bare tall product."""
    count, width = tokens.shape
    unit = normalize(tokens)
    some = unit[:budget].clone()

    def ours(backend: str = "auto") -> Tensor:
        return tt.greedy_select(tokens, [0, count], [budget], objective="max_min", backend=backend)[0]

    # Samplers would draw the first pick at random. It is the most typical token.
    first = int((unit @ unit.sum(0)).argmax())
    product, matrix = count * count * width, 8 * count * count

    def check(name: str, picks: Tensor) -> None:
        checks.assert_picks(picks, range(count), budget)
        if name == OURS:
            checks.assert_max_min(tokens, picks, TOLERANCE[tokens.dtype])
        else:
            checks.assert_max_min(tokens, picks, checks.RIVALS, seeds=1)

    others = {
        QUICKFPS: Contender(lambda: contenders.quickfps(tokens, budget, first), work=count * budget * width),
        FPS: Contender(lambda: contenders.torch_fps(tokens, budget, first), work=count * budget * width),
        RUNNING: Contender(
            lambda: contenders.matrix_running_minimum(tokens, budget, first), work=product, needs=matrix
        ),
    }
    if rescan:
        others[RESCAN] = Contender(
            lambda: contenders.divprune_rule(tokens, budget, first),
            work=product + count * budget * budget / 2,
            needs=matrix,
        )
    others |= _only_on_cuda(
        tokens,
        lambda: {
            COMPILED + RUNNING: Contender(
                lambda: contenders.matrix_running_minimum(tokens, budget, first, compiled=True),
                work=product,
                needs=matrix,
            ),
            OWN_TORCH: Contender(lambda: ours("torch")),
        },
    )
    return Case(
        f"max_min, {_shape(tokens, budget)}",
        {OURS: Contender(ours), **others, TALL: Contender(lambda: unit @ some.T, limit=True)},
        check,
        traffic=lambda: floors.greedy(tokens, [count], [budget], "max_min"),
    )


def coverage(tokens: Tensor, budget: int) -> Case:
    """Facility location in one segment: apricot, and the bare square product."""
    count, width = tokens.shape
    unit, product = normalize(tokens), count * count * width

    def ours(backend: str = "auto") -> Tensor:
        return tt.greedy_select(tokens, [0, count], [budget], backend=backend)[0]

    def check(name: str, picks: Tensor) -> None:
        checks.assert_picks(picks, range(count), budget)
        checks.assert_coverage(tokens, picks, TOLERANCE[tokens.dtype] if name == OURS else checks.RIVALS)

    return Case(
        f"coverage, {_shape(tokens, budget)}",
        {
            OURS: Contender(ours),
            APRICOT: Contender(
                lambda: contenders.apricot_facility_location(tokens, budget),
                work=product,
                needs=24 * count * count,
            ),
            **_only_on_cuda(tokens, lambda: {OWN_TORCH: Contender(lambda: ours("torch"))}),
            SQUARE: Contender(lambda: unit @ unit.T, limit=True, work=product, needs=4 * count * count),
        },
        check,
        traffic=lambda: floors.greedy(tokens, [count], [budget], "coverage"),
    )


def divprune(tokens: Tensor, budget: int, seeded: bool) -> Case:
    """DivPrune: a plain transcription of its rule, with the first pick to be found, or given."""
    count, width = tokens.shape
    config, first = tt.PruneConfig(method="divprune", keep_tokens=budget), contenders.isolated_token(tokens)

    def given() -> Tensor:
        return tt.greedy_select(tokens, [0, count], [budget], objective="max_min", seeds=[first])[0]

    def whole() -> Tensor:
        return tt.prune(tokens, [0, count], config=config).indices

    def rule() -> Tensor:
        seed = first if seeded else contenders.isolated_token(tokens)
        return contenders.divprune_rule(tokens, budget, seed)

    def check(name: str, picks: Tensor) -> None:
        checks.assert_picks(picks, range(count), budget)
        if name == OURS and not seeded:  # `prune` gives no order: the ordered picks are judged in its stead
            picks, rows = given(), picks
            assert torch.equal(picks.sort().values, rows), "prune differs from its op"
        assert picks[0] == first, "another first pick"
        checks.assert_max_min(tokens, picks, TOLERANCE[tokens.dtype] if name == OURS else checks.RIVALS, 1)

    work = (1 + (not seeded)) * count * count * width + count * budget * budget / 2
    return Case(
        f"divprune{', its seed given' if seeded else ''}, {_shape(tokens, budget)}",
        {
            OURS: Contender(given if seeded else whole),
            RESCAN: Contender(rule, work=work, needs=8 * count * count),
        },
        check,
    )


def trimtokenator(tokens: Tensor, budget: int) -> Case:
    """TrimTokenator: its two steps with full matrices."""
    count, width = tokens.shape
    text = make_tokens("noise", 64, width, seed=1).to(tokens)
    config = tt.PruneConfig(method="trimtokenator", keep_tokens=budget)

    def check(name: str, picks: Tensor) -> None:
        near = (tokens.double() - text.double().mean(0)).norm(dim=1).argsort()[: round(0.8 * count)]
        near = near.sort().values
        checks.assert_picks(picks, near, budget)
        if name == OURS:
            rows = picks
            picks = tt.greedy_select(tokens, [0, len(near)], [budget], objective="max_mean", rows=near)[0]
            assert torch.equal(picks.sort().values, rows), "prune differs from its op"
        checks.assert_max_mean(
            tokens, picks, near, TOLERANCE[tokens.dtype] if name == OURS else checks.RIVALS
        )

    return Case(
        f"trimtokenator, {_shape(tokens, budget)}",
        {
            OURS: Contender(lambda: tt.prune(tokens, [0, count], text=text, config=config).indices),
            FULL: Contender(lambda: contenders.trimtokenator_rule(tokens, text, budget)),
        },
        check,
    )


def dpp(tokens: Tensor, budget: int) -> Case:
    """The determinantal greedy: its loop as published, with the relevances of one text."""
    count, width = tokens.shape
    text = make_tokens("noise", 1, width, seed=3).to(tokens)
    cosine = normalize(tokens) @ normalize(text)[0]
    relevance = (cosine - cosine.min()) / (cosine.max() - cosine.min())

    def ours(backend: str = "auto") -> Tensor:
        return tt.dpp_select(tokens, [0, count], [budget], relevance=relevance, backend=backend)[0]

    def check(name: str, picks: Tensor) -> None:
        checks.assert_picks(picks, range(count), budget)
        tolerance = TOLERANCE[tokens.dtype] if name == OURS else checks.RIVALS
        checks.assert_determinant(tokens, relevance, picks, tolerance)

    return Case(
        f"dpp (cdpruner), {_shape(tokens, budget)}",
        {
            OURS: Contender(ours),
            LOOP: Contender(
                lambda: contenders.dpp_loop(tokens, relevance, budget),
                work=count * count * width + count * budget * budget / 2,
                needs=12 * count * count,
            ),
            **_only_on_cuda(tokens, lambda: {OWN_TORCH: Contender(lambda: ours("torch"))}),
        },
        check,
    )


def statistics(tokens: Tensor, images: int) -> Case:
    """Diversity of every image: the pairwise matrix; a preallocated copy shows what one pass costs."""
    count, width = tokens.shape
    size = count // images
    boundaries, buffer = list(range(0, count + 1, size)), torch.empty_like(tokens)

    def ours(center: str = "none", backend: str = "auto") -> tt.TokenStatistics:
        return tt.token_statistics(tokens, boundaries, center=center, backend=backend)

    def pairwise(dtype: torch.dtype, compiled: bool = False) -> Contender:
        run = torch.compile(contenders.pairwise_diversity) if compiled else contenders.pairwise_diversity
        return Contender(
            lambda: run(tokens, images, dtype),
            work=images * size * size * width,
            needs=images * size * size * dtype.itemsize,
        )

    def check(name: str, result: Any) -> None:
        ends = [0, images - 1]
        some = torch.cat([tokens[boundaries[image] : boundaries[image + 1]] for image in ends])
        exact = contenders.pairwise_diversity(some, 2, torch.float64).float()
        found = result.diversity[ends] if isinstance(result, tt.TokenStatistics) else result[ends]
        coarse = name == PAIRWISE_16 or name == COMPILED + PAIRWISE_16
        torch.testing.assert_close(found, exact, rtol=1e-2 if coarse else 1e-4, atol=1e-2 if coarse else 1e-5)

    sixteen = tokens.dtype == torch.bfloat16
    return Case(
        f"token_statistics, {'bf16' if sixteen else 'fp32'}, {_shape(tokens, images=images)}",
        {
            OURS: Contender(ours),
            "the same with center='sample'": Contender(lambda: ours("sample")),
            PAIRWISE: pairwise(torch.float32),
            **({PAIRWISE_16: pairwise(torch.bfloat16)} if sixteen else {}),
            **_only_on_cuda(
                tokens,
                lambda: {
                    COMPILED + PAIRWISE: pairwise(torch.float32, compiled=True),
                    **({COMPILED + PAIRWISE_16: pairwise(torch.bfloat16, compiled=True)} if sixteen else {}),
                    OWN_TORCH: Contender(lambda: ours(backend="torch")),
                },
            ),
            COPY: Contender(lambda: buffer.copy_(tokens), limit=True),
        },
        check,
        traffic=lambda: floors.statistics(tokens, [size] * images),
        sixteen_bits=sixteen,
    )


def pareto(count: int, device: str) -> Case:
    """Fronts of points at random: non-dominated sorting with everybody against everybody."""
    generator = torch.Generator().manual_seed(0)
    diversity, alignment = torch.rand(2, count, generator=generator).to(device)

    def ours(backend: str = "auto") -> Tensor:
        return tt.pareto_front(diversity, alignment, [0, count], backend=backend)

    return Case(
        f"pareto_front, {count:,} points",
        {
            OURS: Contender(ours),
            NSGA: Contender(
                lambda: contenders.pareto_by_matrix(diversity, alignment), work=count**2, needs=12 * count**2
            ),
            **_only_on_cuda(diversity, lambda: {OWN_TORCH: Contender(lambda: ours("torch"))}),
        },
        lambda name, front: checks.assert_fronts(diversity, alignment, front),
        traffic=lambda: floors.pareto(count),
    )


def gather(tokens: Tensor, budget: int) -> Case:
    """Rows at random, ascending: torch's own."""
    count, width = tokens.shape
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(count, generator=generator)[:budget].sort().values.to(tokens.device)

    def check(name: str, found: Tensor) -> None:
        assert torch.equal(found, tokens[rows]), "other rows"

    return Case(
        f"gather_tokens, {_shape(tokens)}, {budget:,} rows",
        {
            OURS: Contender(lambda: tt.gather_tokens(tokens, rows)),
            INDEX: Contender(lambda: tokens.index_select(0, rows)),
        },
        check,
        traffic=lambda: floors.gather(tokens, budget),
        sixteen_bits=tokens.dtype != torch.float32,
    )


def prune(tokens: Tensor, images: int, share: float) -> Case:
    """The default method with text: simpler rules that keep as many, over the whole prompt at once."""
    count, width = tokens.shape
    size = count // images
    boundaries, text = list(range(0, count + 1, size)), make_tokens("noise", 16, width, seed=1).to(tokens)
    config = tt.PruneConfig(keep_ratio=share)
    budget = tt.kept_counts(boundaries, config=config)[0]

    def ours(backend: str = "auto") -> tt.PruneResult:
        return tt.prune(tokens, boundaries, text=text, config=config, backend=backend)

    def check(name: str, result: Any) -> None:
        if isinstance(result, tt.PruneResult):
            whole, backend = tokens.is_cuda or count <= 2**14, "torch" if name == OWN_TORCH else "auto"
            checks.assert_pruned(tokens, boundaries, text, config, result, whole, backend)
        else:
            checks.assert_picks(result, range(count), budget)
            checks.assert_max_min(tokens, result, checks.RIVALS, seeds=1)

    product, matrix, wide = count * count * width, 8 * count * count, Tensor.float  # bf16 is too coarse
    return Case(
        f"prune, {_shape(tokens, images=images)}, keep {share:.0%}",
        {
            OURS: Contender(ours),
            RUNNING: Contender(
                lambda: contenders.matrix_running_minimum(wide(tokens), budget, 0),
                work=product,
                needs=matrix,
            ),
            RESCAN: Contender(
                lambda: contenders.divprune_rule(
                    wide(tokens), budget, contenders.isolated_token(wide(tokens))
                ),
                work=2 * product + count * budget * budget / 2,
                needs=matrix,
            ),
            **_only_on_cuda(tokens, lambda: {OWN_TORCH: Contender(lambda: ours("torch"))}),
        },
        check,
    )
