"""The cases: what is measured, on which tokens, against whom, and what must be right first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

import trimtok_fast as tt
from benchmarks import contenders
from benchmarks.harness import Case
from benchmarks.workloads import make_tokens
from trimtok_fast.certificate import TOLERANCE, certify

if TYPE_CHECKING:
    from trimtok_fast.kernels.common import Traffic


def assert_greedy(
    tokens: torch.Tensor, picks: torch.Tensor, objective: str, tolerance: float, seeds: int
) -> None:
    """The picks pass the certificate."""
    regret = certify(tokens, picks, objective=objective, seeds=seeds).regret
    assert regret <= tolerance, f"{objective}: a pick falls short by {regret:.2g} of the best"


def max_min(kind: str, count: int, width: int, budget: int, device: str) -> Case:
    """k-centre in one segment against farthest-point samplers, the full matrix, and the bare tall product."""
    tokens = make_tokens(kind, count, width).to(device)
    unit = torch.nn.functional.normalize(tokens, dim=1)
    some = unit[:budget].clone()

    def ours() -> torch.Tensor:
        return tt.greedy_select(tokens, [0, count], [budget], objective="max_min")[0]

    first = int(ours()[0])
    others = {
        "torch-quickfps": lambda: contenders.quickfps(tokens, budget, first),
        "torch-fps": lambda: contenders.torch_fps(tokens, budget, first),
        "matrix + running minimum": lambda: contenders.matrix_running_minimum(tokens, budget, first),
    }
    targets = dict(zip(others, (20, 10, 3) if count > 4096 else (1.5, 1.5, 1.5), strict=True))
    if count <= 4096:  # beyond, it takes minutes
        others["DivPrune's rule"] = lambda: contenders.divprune_rule(tokens, budget, first)
    others |= _on_cuda(
        tokens,
        lambda: tt.greedy_select(tokens, [0, count], [budget], objective="max_min", backend="torch")[0],
        {"matrix + running minimum, compiled": (contenders.matrix_running_minimum, (tokens, budget, first))},
    )

    def check() -> None:
        assert_greedy(tokens, ours(), "max_min", TOLERANCE[torch.float32], 0)
        for run in others.values():  # they sum squares in their own order: near ties may fall otherwise
            assert_greedy(tokens, run(), "max_min", 1e-4, 1)

    return Case(
        f"max_min, {kind}, {count} x {width}, {budget} picks",
        ours,
        {**others, "limit: the m x b x d product": lambda: unit @ some.T},
        check,
        at_least=targets,
        at_most={"limit: the m x b x d product": 1.5} if count > 4096 else {},
        traffic=lambda: _greedy_traffic(tokens, budget, "max_min"),
    )


def coverage(kind: str, count: int, width: int, budget: int, device: str) -> Case:
    """Facility location in one segment against apricot, and the bare square product."""
    tokens = make_tokens(kind, count, width).to(device)
    unit = torch.nn.functional.normalize(tokens, dim=1)

    def ours() -> torch.Tensor:
        return tt.greedy_select(tokens, [0, count], [budget])[0]

    def check() -> None:
        assert_greedy(tokens, ours(), "coverage", TOLERANCE[torch.float32], 0)
        assert_greedy(tokens, contenders.apricot_facility_location(tokens, budget), "coverage", 1e-4, 0)

    return Case(
        f"coverage, {kind}, {count} x {width}, {budget} picks",
        ours,
        {
            "apricot-select": lambda: contenders.apricot_facility_location(tokens, budget),
            "limit: the m x m x d product": lambda: unit @ unit.T,
            **_on_cuda(tokens, lambda: tt.greedy_select(tokens, [0, count], [budget], backend="torch")[0]),
        },
        check,
        at_least={"apricot-select": 3},
        at_most={"limit: the m x m x d product": 1.7},
        traffic=lambda: _greedy_traffic(tokens, budget, "coverage"),
    )


def divprune(kind: str, count: int, width: int, seeded: bool, device: str) -> Case:
    """DivPrune against a plain transcription of its rule, with the first pick to be found, or given."""
    tokens = make_tokens(kind, count, width).to(device)
    budget, config = round(0.2 * count), tt.PruneConfig(method="divprune")
    first = contenders.isolated_token(tokens)

    def given() -> torch.Tensor:
        return tt.greedy_select(tokens, [0, count], [budget], objective="max_min", seeds=[first])[0]

    def whole() -> torch.Tensor:
        return tt.prune(tokens, [0, count], config=config).indices

    def rule() -> torch.Tensor:
        seed = first if seeded else contenders.isolated_token(tokens)
        return contenders.divprune_rule(tokens, budget, seed)

    def check() -> None:
        assert_greedy(tokens, given(), "max_min", TOLERANCE[torch.float32], 1)
        assert set(whole().tolist()) == set(given().tolist()), "the seeds differ"

    return Case(
        f"divprune{', its seed given' if seeded else ''}, {kind}, {count} x {width}, {budget} picks",
        given if seeded else whole,
        {"DivPrune's rule": rule},
        check,
        at_least={"DivPrune's rule": 15 if seeded else 5},
    )


def trimtokenator(kind: str, count: int, width: int, device: str) -> Case:
    """TrimTokenator against its two steps with full matrices."""
    tokens = make_tokens(kind, count, width).to(device)
    text = make_tokens("noise", 64, width, seed=1).to(device)
    budget, config = round(0.2 * count), tt.PruneConfig(method="trimtokenator")

    def ours() -> torch.Tensor:
        return tt.prune(tokens, [0, count], text=text, config=config).indices

    def check() -> None:
        near = (tokens.double() - text.double().mean(0)).norm(dim=1).argsort()[: round(0.8 * count)]
        near = near.sort().values
        picks = tt.greedy_select(tokens, [0, len(near)], [budget], objective="max_mean", rows=near)[0]
        assert set(ours().tolist()) == set(picks.tolist())
        assert certify(tokens, picks, objective="max_mean", rows=near).regret <= TOLERANCE[torch.float32]

    return Case(
        f"trimtokenator, {kind}, {count} x {width}, {budget} picks",
        ours,
        {"full matrices": lambda: contenders.trimtokenator_rule(tokens, text, budget)},
        check,
        at_least={"full matrices": 1},
    )


def cdpruner(kind: str, count: int, width: int, device: str) -> Case:
    """The determinantal greedy against its published loop, with the relevances of one text."""
    tokens = make_tokens(kind, count, width).to(device)
    text = make_tokens("noise", 1, width, seed=3).to(device)
    cosine = torch.nn.functional.normalize(tokens) @ torch.nn.functional.normalize(text)[0]
    relevance = (cosine - cosine.min()) / (cosine.max() - cosine.min())
    budget = round(0.2 * count)

    def ours() -> torch.Tensor:
        return tt.dpp_select(tokens, [0, count], [budget], relevance=relevance)[0]

    def check() -> None:
        # Near ties may fall either way, and some of the last picks with them.
        theirs = contenders.dpp_loop(tokens, relevance, budget)
        assert len(set(ours().tolist()) & set(theirs.tolist())) >= 0.99 * budget

    return Case(
        f"cdpruner, {kind}, {count} x {width}, {budget} picks",
        ours,
        {"published loop": lambda: contenders.dpp_loop(tokens, relevance, budget)},
        check,
        at_least={"published loop": 1.2},
    )


def statistics(images: int, size: int, width: int, device: str) -> Case:
    """Diversity of every image against the pairwise matrix; a preallocated copy shows what one pass costs."""
    tokens = make_tokens("clusters", images * size, width, dtype=torch.bfloat16).to(device)
    boundaries = list(range(0, images * size + 1, size))
    buffer = torch.empty_like(tokens)

    def ours(center: str = "none") -> tt.TokenStatistics:
        return tt.token_statistics(tokens, boundaries, center=center)

    def check() -> None:
        exact = contenders.pairwise_diversity(tokens, images, torch.float64)
        torch.testing.assert_close(ours().diversity, exact.float(), rtol=1e-4, atol=1e-5)

    return Case(
        f"token_statistics, bf16, {images} x {size} x {width}, center='none'",
        ours,
        {
            "pairwise matrix, fp32": lambda: contenders.pairwise_diversity(tokens, images, torch.float32),
            "pairwise matrix, bf16": lambda: contenders.pairwise_diversity(tokens, images, torch.bfloat16),
            "the same with center='sample'": lambda: ours("sample"),
            "copy_ of the tokens": lambda: buffer.copy_(tokens),
            **_on_cuda(
                tokens,
                lambda: tt.token_statistics(tokens, boundaries, center="none", backend="torch"),
                {"pairwise, compiled": (contenders.pairwise_diversity, (tokens, images, torch.bfloat16))},
            ),
        },
        check,
        at_least={"pairwise matrix, fp32": 12, "pairwise matrix, bf16": 3},
        traffic=lambda: _statistics_traffic([size] * images, width),
        sixteen_bits=True,
    )


def _greedy_traffic(tokens: torch.Tensor, budget: int, objective: str) -> Traffic:
    """Of one segment whose similarities are stored."""
    from trimtok_fast.backends.triton_greedy import form_of
    from trimtok_fast.kernels import directions, greedy, similarity
    from trimtok_fast.kernels.common import Traffic

    sizes, form = [len(tokens)], form_of(tokens, objective)
    parts = (
        directions.traffic(sizes, tokens.shape[1], tokens.dtype),
        similarity.traffic(sizes, form.width, form.directions, form.matrix),
        greedy.traffic(sizes, [budget], objective, form.matrix),
    )
    return Traffic(*map(sum, zip(*parts, strict=True)))


def _statistics_traffic(sizes: list[int], width: int) -> Traffic:
    from trimtok_fast.kernels.statistics import traffic

    return traffic(sizes, width, torch.bfloat16, centred=False)


def _on_cuda(
    tokens: torch.Tensor,
    eager: Callable[[], object],
    compiled: dict[str, tuple[Callable[..., object], tuple[object, ...]]] | None = None,
) -> dict[str, Callable[[], object]]:
    """What is also measured where `backend="auto"` runs kernels: our own torch backend, compiled rivals."""
    if not tokens.is_cuda:
        return {}
    others = {"trimtok_fast, backend='torch'": eager}
    for name, (function, arguments) in (compiled or {}).items():
        others[name] = functools.partial(torch.compile(function), *arguments)
    return others


def all_cases(quick: bool, device: str) -> Iterator[Case]:
    """One after the other, so that only one input is in memory."""
    kinds = ("clusters",) if quick else ("photo-like", "clusters", "noise")
    scale = 4 if quick else 1
    for kind in kinds:
        yield max_min(kind, 8192 // scale, 1024, 1640 // scale, device)
        yield max_min(kind, 1024, 1024, 205, device)
        yield coverage(kind, 4096 // scale, 1024, 819 // scale, device)
        for seeded in (False, True):
            yield divprune(kind, 4096 // scale, 1024, seeded, device)
        yield trimtokenator(kind, 4096 // scale, 1024, device)
        yield cdpruner(kind, 2048 // scale, 1024, device)
    yield statistics(32 // scale, 576, 3584, device)
