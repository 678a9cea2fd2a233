"""The study as markdown and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: Metrics of which more is better.
LARGER = ("same answer", "needle", "evidence", "best 20")
LEGEND = (
    "In brackets: what the method's number is above the default's, with the 95 % interval of a paired"
    " bootstrap (2,000 resamples). **Bold** is better than the default and *italic* worse, where the interval"
    " does not hold 0."
)


def tables(results: dict[str, Any]) -> str:
    """Markdown of everything that `measure` returns."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: dict[str, Any]) -> Iterator[str]:
    yield "# Quality on real tokens"
    yield ""
    yield (
        f"{results['pictures']} photographs, {results['tokens']:,} tokens × 1,280 of EfficientNet-lite0;"
        f" {results['seconds']:.0f} s."
    )
    yield "A CNN's tokens: they say nothing about the accuracy of a multimodal model."
    yield ""
    yield LEGEND
    plain = ("KL", "same answer", "mean distance", "largest distance")
    yield from section("Without text", results["without text"], plain)
    for space, shares in results["spaces"].items():
        title = f"Without text, {space}; measured on the tokens as they were"
        yield from section(title, shares, plain)
    asked = ("needle", "evidence", "best 20", "KL")
    title = f"Needle test: {results['queries']} queries, each the answer to one photograph"
    yield from section(title, results["with text"], asked)
    crops = results["crops"]
    title = f"Needle test: {crops['crops']} crops as {crops['crops']} images, {crops['queries']} queries"
    yield from section(title, crops["shares"], asked)
    yield ""
    yield "## Two views of a scene, without text"
    yield ""
    headings = (
        "of the first",
        "of the second",
        "second dropped",
        "its distance to the first",
        "mean distance",
    )
    yield f"| kept | method | {' | '.join(headings)} |"
    yield "|---|---|" + "---|" * len(headings)
    for share, methods in results["stereo"].items():
        for method, row in methods.items():
            cells = [f"{row['first kept']}", f"{row['second kept']}", f"{row['second dropped']:.0%}"]
            cells += [f"{row['apart']:.3f}", f"{row['mean distance']:.3f}"]
            yield f"| {float(share):.0%} | {method} | {' | '.join(cells)} |"


def section(title: str, shares: dict[str, Any], metrics: Sequence[str]) -> Iterator[str]:
    """One table: a line for each budget and method."""
    yield ""
    yield f"## {title}"
    yield ""
    yield f"| kept | method | {' | '.join(metrics)} |"
    yield "|---|---|" + "---|" * len(metrics)
    for share, methods in shares.items():
        for method, row in methods.items():
            cells = [_cell(metric, row[metric]) for metric in metrics]
            yield f"| {float(share):.0%} | {method} | {' | '.join(cells)} |"


def _cell(metric: str, value: float | dict[str, Any]) -> str:
    if not isinstance(value, dict):
        return f"{value:.3f}"
    mean = f"{value['mean']:.3f}"
    if "difference" not in value:
        return mean
    difference, low, high = value["difference"]
    if low > 0 or high < 0:
        mark = "**" if (difference > 0) == (metric in LARGER) else "*"
        mean = f"{mark}{mean}{mark}"
    return f"{mean} ({difference:+.3f} [{low:+.3f}, {high:+.3f}])"


def plot(results: dict[str, Any], path: Path) -> None:
    """KL and mean distance without text, evidence and recall with text, by the share that is kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("without text", "KL", "classifier's KL, no text"),
        ("without text", "mean distance", "mean distance to the nearest kept, no text"),
        ("with text", "needle", "needles found"),
        ("with text", "KL", "classifier's KL, with text"),
    )
    figure, grid = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axes, (part, metric, title) in zip(grid.flat, panels, strict=True):
        shares = sorted(results[part], key=float)
        for method in results[part][shares[0]]:
            values = [results[part][share][method][metric]["mean"] for share in shares]
            ours = method == next(iter(results[part][shares[0]]))
            axes.plot(
                [100 * float(share) for share in shares],
                values,
                marker="o",
                markersize=4,
                linewidth=2.4 if ours else 1.2,
                label=method,
                zorder=3 if ours else 2,
            )
        axes.set_xscale("log")
        axes.set_xticks([100 * float(share) for share in shares], [f"{float(s):.0%}" for s in shares])
        axes.minorticks_off()
        if metric == "KL":
            axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("tokens kept", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    grid.flat[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
