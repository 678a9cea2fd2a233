"""One style for all plots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Ours, a rival that is faster, what is no contender.
OURS, LOSS, MUTED = "#1f6fb2", "#d1701f", "#a9b0b7"
#: Whatever else there is, in order; told apart by those who see colours otherwise, too.
COLOURS = ("#d1701f", "#2f9e74", "#b3478f", "#8a6d1d", "#5b5bd6", "#7a7f85")

STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7ea",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.titleweight": "bold",
}


@contextmanager
def saved(path: Path, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, written to `path` at the end of the block."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(rows, columns, layout="constrained", **options)
        yield figure, axes
        figure.savefig(path, dpi=140)
        pyplot.close(figure)


def plain_numbers(axis: Any) -> None:
    """0.5, 20 and 1,000 on a logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
