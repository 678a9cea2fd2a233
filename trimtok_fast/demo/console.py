"""The demo's tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from trimtok_fast.demo import OURS
from trimtok_fast.demo.facts import comparison_columns, headline, picture_facts, sample_facts, step_seconds
from trimtok_fast.demo.run import DemoResult

#: No table is wider than this, however wide the terminal.
LINE = 88


def print_result(console: Console, result: DemoResult, files: list[Path]) -> None:
    """Print what was kept, why, how long it took, how it compares, and where the drawings are."""
    console.width = min(console.width, LINE)
    for part in _parts(result):
        console.print(part)
        console.print()
    for file in files:
        console.print(Text.assemble(("wrote ", "dim"), str(file)), soft_wrap=True)


def _parts(result: DemoResult) -> Iterator[RenderableType]:
    yield Text.assemble(
        (f"{result.budget:,} of {result.total:,} visual tokens kept", "bold"),
        f" ({result.budget / result.total:.1%}): {headline(result)}",
    )
    yield _picture_table(result)
    yield _sample_table(result)
    yield _time_table(result)
    yield _comparison_table(result)


def _picture_table(result: DemoResult) -> Table:
    ours = result.options.method == OURS
    notes = "D_intra: mean cosine distance between the tokens of a picture"
    notes += "\nbudget: the tokens that stage 1 leaves of it" if ours else ""
    table = _table("Pictures", caption=notes)
    table.add_column("picture", ratio=1, no_wrap=True)
    for heading in ("before", "D_intra", *(["budget"] if ours else []), "kept"):
        table.add_column(heading, justify="right")
    table.add_column("", width=16, no_wrap=True)
    for row in picture_facts(result):
        budget = [str(row.budget)] if ours else []
        bar = "█" * max(1 if row.kept else 0, round(16 * row.kept / row.before))
        table.add_row(
            row.name, str(row.before), f"{row.diversity:.3f}", *budget, str(row.kept), Text(bar, "cyan")
        )
    return table


def _sample_table(result: DemoResult) -> Table:
    facts = sample_facts(result)
    variation = "undefined" if math.isnan(facts.variation) else f"{facts.variation:.3f}"
    table = _table("The sample under TrimTokenator-LC", headings=False)
    table.add_column("", style="dim")
    table.add_column("", justify="right")
    table.add_column("", ratio=1, style="dim")
    table.add_row("D_intra", f"{facts.diversity:.3f}", "diversity inside the pictures, their mean")
    table.add_row("D_inter", variation, "variation between the pictures")
    table.add_row("stage split w", f"{facts.split:.3f}", "stage 1's share of the pruning")
    table.add_row(
        "survivors", f"{facts.survivors:,}", f"left of {facts.total:,} by stage 1, inside each picture"
    )
    left = "all of them" if facts.pool == facts.survivors else "left by stage 2's diversity filter"
    table.add_row("pool", f"{facts.pool:,}", left)
    table.add_row("kept", f"{facts.kept:,}", _selection_note(facts.fronts))
    return table


def _selection_note(fronts: int) -> str:
    if not fronts:
        return "the first of the pool: no query, no fronts"
    return f"left by the Pareto selection, in {fronts} fronts"


def _time_table(result: DemoResult) -> Table:
    total = result.seconds["prune"]
    table = _table("Time", headings=False)
    table.add_column("", style="dim")
    table.add_column("", justify="right")
    table.add_column("", ratio=1, no_wrap=True)
    for name, seconds in step_seconds(result):
        bar = "█" * round(20 * seconds / total)
        table.add_row(name, f"{1000 * seconds:,.1f} ms", Text(bar, "cyan"))
    table.add_row("prune as a whole", f"{1000 * total:,.1f} ms", Text(f"on {result.device}", "dim"))
    table.add_row(
        "the network's tokens", f"{1000 * result.seconds['tokens']:,.1f} ms", Text("not pruning", "dim")
    )
    return table


def _comparison_table(result: DemoResult) -> Table:
    columns = comparison_columns(result)
    notes = "\n".join(f"{column.short}: {column.meaning}" for column in columns)
    notes += "\nThe classifier reads a mean, and an even sample estimates a mean best."
    table = _table(f"Comparison, {result.budget:,} tokens each", caption=notes)
    table.add_column("method", ratio=1)
    for column in columns:
        table.add_column(column.short, justify="right")
    for row, selection in enumerate(result.selections.values()):
        cells = [Text(column.cells[row], "bold green" if column.best[row] else "") for column in columns]
        table.add_row(selection.title, *cells)
    return table


def _table(title: str, caption: str | None = None, headings: bool = True) -> Table:
    return Table(
        title=title,
        caption=caption,
        show_header=headings,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        expand=True,
        padding=(0, 1),
    )
