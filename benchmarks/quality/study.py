"""The study: all methods at all budgets, without and with text, among crops, on two views of a scene."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import trimtok_fast as tt
from benchmarks.quality import metrics
from benchmarks.quality.bootstrap import interval
from benchmarks.quality.tokens import (
    CROP_SIDE,
    SPACES,
    Pictures,
    crops,
    photographs,
    pictures_of,
    stereo,
)
from trimtok_fast.demo.classifier import INPUT_SIDE, Classifier

OURS = "trimtokenator-lc"
METHODS = (OURS, "trimtokenator", "divprune", "cdpruner", "random", "uniform")
WITH_TEXT = (OURS, "trimtokenator", "cdpruner")
SHARES = (0.5, 0.2, 0.1, 0.05)
#: Budgets at which tokens as projectors make them and crops are measured.
LOW_SHARES = (0.2, 0.1, 0.05)
QUERIES = 12
NEEDLE_CROPS, CROP_QUERIES = 200, 6

#: Values of one metric by case: they are resampled together.
Cases = dict[str, list[float]]


@dataclass(frozen=True)
class Scores:
    """What one method comes to.

    Attributes:
        cases: metrics with a number a case.
        single: metrics with one number in all.
    """

    cases: Cases
    single: dict[str, float] = field(default_factory=dict)


def measure(quick: bool = False, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the study.

    Args:
        quick: half of the photographs, fewer budgets and queries, for a look.
        progress: called with a line on what begins.

    Returns:
        Numbers only, ready for JSON: part → budget → method → metric → its mean, and the difference from the
        default method with its 95 % interval.
    """
    started = time.perf_counter()
    classifier = Classifier()
    progress("tokens of the photographs")
    photos = pictures_of(classifier, photographs(quick), INPUT_SIDE, lambda: None)
    shares = (0.2, 0.05) if quick else SHARES
    low_shares = (0.1,) if quick else LOW_SHARES
    result: dict[str, Any] = {"quick": quick, "pictures": len(photos.names), "tokens": len(photos.tokens)}
    progress("without text")
    result["without text"] = _by_share(shares, METHODS, lambda *key: without_text(classifier, photos, *key))
    result["spaces"] = {}
    for name, change in SPACES.items():
        progress(name)
        seen = change(photos.tokens)
        result["spaces"][name] = _by_share(
            low_shares, METHODS, lambda *key, seen=seen: without_text(classifier, photos, *key, seen=seen)
        )
    queries = spread(photos.needles(), 4 if quick else QUERIES)
    result["queries"] = len(queries)
    progress(f"with text, {len(queries)} queries")
    result["with text"] = _by_share(
        shares, METHODS, lambda *key: with_text(classifier, photos, *key, queries=queries)
    )
    count = NEEDLE_CROPS // (4 if quick else 1)
    progress(f"{count} crops")
    many = pictures_of(classifier, crops(count), CROP_SIDE, lambda: None)
    queries = spread(many.needles(), 3 if quick else CROP_QUERIES)
    result["crops"] = {"crops": count, "queries": len(queries)}
    result["crops"]["shares"] = _by_share(
        low_shares[-2:], METHODS, lambda *key: with_text(classifier, many, *key, queries=queries)
    )
    progress("two views of a scene")
    views = pictures_of(classifier, stereo(), INPUT_SIDE, lambda: None)
    result["stereo"] = {
        str(share): {method: two_views(views, method, share) for method in METHODS} for share in LOW_SHARES
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def selected(
    pictures: Pictures, config: tt.PruneConfig, text: Tensor | None = None, seen: Tensor | None = None
) -> Tensor:
    """The rows that `prune` keeps; `seen` is what it sees in place of the tokens."""
    tokens = pictures.tokens if seen is None else seen
    return tt.prune(tokens, pictures.boundaries, text=text, config=config).indices


def without_text(
    classifier: Classifier, pictures: Pictures, method: str, share: float, seen: Tensor | None = None
) -> Scores:
    """Scores of a method without any text."""
    return scores(
        classifier, pictures, selected(pictures, tt.PruneConfig(keep_ratio=share, method=method), seen=seen)
    )


def scores(classifier: Classifier, pictures: Pictures, kept: Tensor) -> Scores:
    """What a selection loses, picture by picture."""
    after = classifier.log_probabilities(metrics.pooled(pictures.tokens, kept, pictures.boundaries))
    mean, largest = metrics.nearest_kept(pictures.tokens, kept, pictures.boundaries)
    return Scores(
        {
            "KL": metrics.divergence(pictures.answers, after).tolist(),
            "same answer": metrics.same_answer(pictures.answers, after).tolist(),
            "mean distance": mean.tolist(),
        },
        {"largest distance": largest},
    )


def with_text(
    classifier: Classifier,
    pictures: Pictures,
    method: str,
    share: float,
    queries: Sequence[tuple[int, int]],
    **options: Any,
) -> Scores:
    """Scores of a method by query: a class that one picture is answered with, as the text."""
    cases: Cases = {"needle": [], "evidence": [], "best 20": [], "KL": []}
    config = tt.PruneConfig(keep_ratio=share, method=method, **options)
    kept = None if method in WITH_TEXT else selected(pictures, config)
    for picture, label in queries:
        text = classifier.query(label)
        rows = selected(pictures, config, text) if kept is None else kept
        after = classifier.log_probabilities(metrics.pooled(pictures.tokens, rows, pictures.boundaries))
        cases["needle"].append(metrics.found(after, picture, label))
        cases["evidence"].append(metrics.evidence(pictures.answers, after, picture, label))
        cases["best 20"].append(metrics.recall(pictures.tokens @ text[0], rows))
        cases["KL"].append(float(metrics.divergence(pictures.answers, after).mean()))
    return Scores(cases)


def two_views(views: Pictures, method: str, share: float) -> dict[str, float]:
    """What is kept of either view of one scene, and how far the second's tokens are from the first's."""
    kept = selected(views, tt.PruneConfig(keep_ratio=share, method=method))
    boundary = views.boundaries[1]
    second = int((kept >= boundary).sum())
    return {
        "first kept": len(kept) - second,
        "second kept": second,
        "second dropped": 1 - second / (views.boundaries[2] - boundary),
        "apart": metrics.apart(views.tokens, kept, boundary),
        "mean distance": float(metrics.nearest_kept(views.tokens, kept, views.boundaries)[0].mean()),
    }


def compared(by_method: dict[str, Scores], base: str) -> dict[str, dict[str, Any]]:
    """Means of every metric, with the paired difference from `base` and its interval."""
    result: dict[str, dict[str, Any]] = {}
    for method, score in by_method.items():
        result[method] = dict(score.single)
        for metric, values in score.cases.items():
            entry: dict[str, Any] = {"mean": sum(values) / len(values)}
            if method != base:
                entry["difference"] = interval(values, by_method[base].cases[metric])
            result[method][metric] = entry
    return result


def _by_share(
    shares: Sequence[float], methods: Sequence[str], run: Callable[[str, float], Scores]
) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        str(share): compared({method: run(method, share) for method in methods}, OURS) for share in shares
    }


def spread(items: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """At most `count` of the items, evenly."""
    return [items[index * len(items) // count] for index in range(count)] if len(items) > count else items
