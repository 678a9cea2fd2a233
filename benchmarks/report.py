"""Numbers as people read them, in markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines) + "\n"
    )


def bullets(lines: Sequence[str]) -> str:
    """A markdown list."""
    return "".join(f"- {line}\n" for line in lines)


def duration(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    for unit, name in ((1, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{digits(seconds / unit)} {name}"
    return f"{digits(seconds / 1e-6)} µs"


def size(count: float | None) -> str:
    """Bytes in MiB; a dash where nothing is known."""
    return "–" if count is None else f"{digits(count / 2**20)} MiB"


def digits(value: float) -> str:
    """Three significant digits, without an exponent up to a million."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def verdict(met: bool | None) -> str:
    """Whether a target is met: losses stand out."""
    return "" if met is None else ("yes" if met else "**no**")
