"""The demo's work: tokens of pictures, one pruning with its times, and the comparison at the same budget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from rich.progress import Progress
from torch import Tensor

from trimtok_fast.budgets import kept_counts
from trimtok_fast.config import PruneConfig
from trimtok_fast.demo import (
    CDPRUNER,
    DEFAULT_QUERY,
    DIVPRUNE,
    OURS,
    RANDOM,
    TRIMTOKENATOR,
    UNIFORM,
    WITHOUT_QUERY,
    comparison,
)
from trimtok_fast.demo.classifier import TOKENS_PER_PICTURE, Classifier, class_names, find_class
from trimtok_fast.demo.overlay import KEPT
from trimtok_fast.demo.pictures import Picture
from trimtok_fast.ops import choose_backend
from trimtok_fast.pipeline import PruneResult, prune

#: Everything that is compared, with its name for people.
TITLES = {
    OURS: "TrimTokenator-LC",
    WITHOUT_QUERY: "TrimTokenator-LC, no query",
    TRIMTOKENATOR: "TrimTokenator",
    DIVPRUNE: "DivPrune's rule",
    CDPRUNER: "CDPruner",
    RANDOM: "Random",
    UNIFORM: "Uniform stride",
}
#: The ranges that `prune` marks for the profiler, in its order, with their names for people.
STEPS = {
    "statistics": "statistics",
    "budgets": "budgets",
    "stage1": "stage 1, inside each image",
    "stage2": "stage 2, across the images",
    "pareto": "Pareto selection",
}


@dataclass(frozen=True)
class Options:
    """How to run the demo.

    Attributes:
        query: an ImageNet class by name, or `None` to prune without text.
        config: how much to keep.
        method: the method that is shown first.
        backend: of `prune`.
        seed: of the random selection.
    """

    query: str | None = DEFAULT_QUERY
    config: PruneConfig = field(default_factory=PruneConfig)
    method: str = OURS
    backend: str = "auto"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Selection:
    """What one method keeps.

    Attributes:
        method: its name in `TITLES`.
        stage: int8 [n, 196] as in `PruneResult.stage`; a method of one stage drops everything in stage 0.
        score: what it loses.
    """

    method: str
    stage: Tensor
    score: comparison.Score

    @property
    def title(self) -> str:
        """The method's name for people."""
        return TITLES[self.method]

    @property
    def kept(self) -> list[int]:
        """How many tokens each picture keeps."""
        return (self.stage == KEPT).sum(1).tolist()


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Everything that the demo prints and draws.

    Attributes:
        pictures: the n pictures, one sample.
        options: how the demo was run; `query` is the class's proper name.
        pruned: what `prune` returned.
        selections: by method, in `TITLES`' order; `WITHOUT_QUERY` only where there is a query.
        seconds: time of each of `STEPS`, of "prune" as a whole, and of "tokens", the network's passes.
        device: where `prune` ran.
    """

    pictures: Sequence[Picture]
    options: Options
    pruned: PruneResult
    selections: dict[str, Selection]
    seconds: dict[str, float]
    device: str

    @property
    def total(self) -> int:
        """Tokens of all pictures."""
        return len(self.pictures) * TOKENS_PER_PICTURE

    @property
    def budget(self) -> int:
        """Tokens that every method keeps."""
        return len(self.pruned.indices)

    @property
    def shown(self) -> Selection:
        """The selection of the method that is shown first."""
        return self.selections[self.options.method]


def run_demo(pictures: Sequence[Picture], options: Options, progress: Progress) -> DemoResult:
    """Turn pictures into tokens, prune them, and compare.

    Args:
        pictures: one sample's images, in order.
        options: what to do.
        progress: is advanced along the way.

    Raises:
        InvalidInputError: the query is no class, or fewer tokens are to be kept than each image must keep.
        BackendUnavailableError: the backend cannot run here.
    """
    label = None if options.query is None else find_class(options.query)
    if label is not None:
        options = replace(options, query=class_names()[label])
    boundaries = [index * TOKENS_PER_PICTURE for index in range(len(pictures) + 1)]
    kept_counts(boundaries, config=options.config)  # an impossible one is refused before any work
    device = "cuda" if torch.cuda.is_available() and options.backend != "reference" else "cpu"
    choose_backend(options.backend, torch.empty(0, device=device))  # and so is a backend that cannot run
    classifier = Classifier()
    started = time.perf_counter()
    waiting = progress.track(pictures, description="reading tokens")
    tokens = torch.cat([classifier.tokens(picture.image) for picture in waiting])
    token_seconds = time.perf_counter() - started

    sample = _Sample(tokens.to(device), boundaries, options)
    text = None if label is None else classifier.query(label).to(device)
    task = progress.add_task("pruning", total=None)
    pruned, seconds = _timed(lambda: sample.prune(text), device)
    progress.update(task, total=1, completed=1)

    selections = {}
    methods = [method for method in TITLES if label is not None or method != WITHOUT_QUERY]
    for method in progress.track(methods, description="comparing"):
        stage = pruned.stage.cpu() if method == OURS else sample.stage(text, method)
        indices = (stage == KEPT).nonzero().squeeze(1)
        score = comparison.score(tokens, indices, classifier, label)
        selections[method] = Selection(method, stage.view(-1, TOKENS_PER_PICTURE), score)
    return DemoResult(pictures, options, pruned, selections, seconds | {"tokens": token_seconds}, device)


@dataclass(frozen=True, eq=False)
class _Sample:
    """The tokens on the device that prunes them, with what every method needs."""

    tokens: Tensor
    boundaries: list[int]
    options: Options

    def prune(self, text: Tensor | None, method: str = OURS) -> PruneResult:
        config = replace(self.options.config, method=method, seed=self.options.seed)
        return prune(self.tokens, self.boundaries, text=text, config=config, backend=self.options.backend)

    def stage(self, text: Tensor | None, method: str) -> Tensor:
        """`PruneResult.stage` of a method other than ours, int8 [M] on the CPU; the others drop in 0."""
        if method == WITHOUT_QUERY:
            return self.prune(None).stage.cpu()
        return torch.where(self.prune(text, method).stage == KEPT, KEPT, 0).to(torch.int8).cpu()


def _timed(run: Callable[[], PruneResult], device: str) -> tuple[PruneResult, dict[str, float]]:
    """Run once, with the seconds of each of `STEPS` and of the whole."""
    # Otherwise the profiler writes two lines of its own to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        run()  # kernels are compiled and loaded once
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        started = time.perf_counter()
        pruned = run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = {"prune": time.perf_counter() - started}
    for event in profiler.key_averages():
        step = event.key.removeprefix("trimtok::")
        if step in STEPS:
            seconds[step] = max(event.cpu_time_total, event.device_time_total) / 1e6
    return pruned, seconds
