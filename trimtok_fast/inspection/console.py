"""The inspection for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from trimtok_fast.inspection.compilation import Resources
from trimtok_fast.inspection.devices import DATA_SHEETS
from trimtok_fast.inspection.run import Inspection, Variant

#: No table is wider than this, however wide the terminal.
LINE = 108


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Print a table a target, the floors, and what breaks a budget."""
    console.width = min(console.width, LINE) if console.is_terminal else LINE
    for part in _parts(inspection):
        console.print(part)
        console.print()


def _parts(inspection: Inspection) -> Iterator[RenderableType]:
    yield Text.assemble(
        (str(inspection.workload), "bold"), f", compiled by triton {inspection.triton}; nothing was run"
    )
    for target, variants in groupby(inspection.variants, key=lambda variant: variant.target):
        yield _target_table(target, list(variants))
    yield _floor_table(inspection)
    broken = inspection.broken
    if broken:
        yield Text("\n".join(["broken budgets", *(f"  {line}" for line in broken)]), "red")
    else:
        yield Text("all budgets are kept: spills, shared memory, matrix instructions, 128-bit loads", "green")


def _target_table(target: str, variants: list[Variant]) -> Table:
    table = _table(
        target,
        "The worst of a kernel's variants. matrix: matrix instructions in the code; rows: the share of the\n"
        "tokens' bits loaded 128 at a time; occupancy: an estimate, from registers, shared memory, warps.",
    )
    for heading in (
        "kernel",
        "variants",
        "warps",
        "registers",
        "spills",
        "shared",
        "matrix",
        "rows",
        "occupancy",
    ):
        table.add_column(heading, justify="left" if heading == "kernel" else "right", no_wrap=True)
    for kernel, forms in groupby(sorted(variants, key=_place), key=_place):
        every = list(forms)
        taken = [form.resources for form in every]
        table.add_row(
            kernel,
            str(len(every)),
            _span([one.num_warps for one in taken]),
            str(max(one.registers for one in taken)),
            str(max(one.spills for one in taken)),
            f"{max(one.shared_bytes for one in taken):,}",
            _span([one.matrix_instructions for one in taken]),
            _row_load(taken),
            f"{min(form.occupancy for form in every):.0%}",
            style="red" if any(form.broken for form in every) else None,
        )
    return table


def _place(variant: Variant) -> str:
    return variant.place


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def _row_load(variants: list[Resources]) -> str:
    """The least share of rows that is loaded 128 bits at a time; nothing where no rows are."""
    shares = [one.wide_rows for one in variants if one.wide_rows is not None]
    return f"{min(shares):.0%}" if shares else ""


def _floor_table(inspection: Inspection) -> Table:
    sources = "; ".join(f"{sheet.name}: {sheet.source}" for sheet in DATA_SHEETS)
    table = _table(
        "Floors",
        "The least that the data sheets' peak rates allow, in microseconds: never a time that was measured.\n"
        "GFMA: 10⁹ multiply-adds on matrix units.\n"
        f"{sources}.",
    )
    for heading in ("step", "kernel", "MB", "GFMA", *(sheet.name for sheet in DATA_SHEETS)):
        table.add_column(heading, justify="left" if heading in ("step", "kernel") else "right", no_wrap=True)
    for floor in inspection.floors:
        table.add_row(
            floor.step,
            floor.module,
            f"{floor.traffic.bytes_moved / 1e6:,.1f}",
            f"{floor.traffic.products / 1e9:,.1f}",
            *(f"{floor.seconds[sheet.name] * 1e6:,.1f}" for sheet in DATA_SHEETS),
        )
    return table


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        padding=(0, 1),
    )
