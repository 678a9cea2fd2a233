"""What the demo writes: `report.html`, one page with everything inlined, and `kept.png`."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

import trimtok_fast
from trimtok_fast.demo import OURS
from trimtok_fast.demo.classifier import GRID_SIDE
from trimtok_fast.demo.facts import (
    comparison_columns,
    headline,
    legend,
    picture_facts,
    sample_facts,
    step_seconds,
)
from trimtok_fast.demo.overlay import KEPT, STAGES
from trimtok_fast.demo.run import DemoResult, Selection
from trimtok_fast.demo.sheet import draw_sheet

#: Pictures on the page have this many pixels on their longer side.
PAGE_PICTURE_SIDE = 480
#: The scatter's size in its own units, and the space for its axes.
PLOT_WIDTH, PLOT_HEIGHT, PLOT_LEFT, PLOT_BOTTOM = 640, 360, 46, 34


def write_report(result: DemoResult, folder: Path) -> list[Path]:
    """Write `report.html` and `kept.png` into a folder that exists; returns their paths."""
    page, sheet = folder / "report.html", folder / "kept.png"
    page.write_text(render_page(result), encoding="utf-8")
    draw_sheet(
        result.pictures,
        result.shown.stage.numpy(),
        legend(result, result.options.method),
        title=f"{result.budget:,} of {result.total:,} tokens kept ({result.budget / result.total:.1%})",
        subtitle=headline(result),
    ).save(sheet, optimize=True)
    return [page, sheet]


def render_page(result: DemoResult) -> str:
    """The page as one string that needs no other file and no network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trimtok_fast", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    environment.filters["share"] = "{:.1%}".format
    environment.filters["milliseconds"] = lambda seconds: f"{1000 * seconds:,.1f} ms"
    return environment.get_template("report.html").render(
        version=trimtok_fast.__version__,
        result=result,
        options=result.options,
        shown_is_ours=result.options.method == OURS,
        facts=sample_facts(result),
        stages=STAGES,
        grid=GRID_SIDE,
        views=[_view(result, selection) for selection in result.selections.values()],
        gallery=_gallery(result),
        pictures=picture_facts(result),
        columns=comparison_columns(result),
        steps=step_seconds(result),
        plot=_plot(result),
    )


def _view(result: DemoResult, selection: Selection) -> dict[str, Any]:
    """One method in the gallery's switch, with its legend."""
    stage = selection.stage
    entries = [
        {"name": entry.name, "colour": entry.css, "count": int((stage == entry.code).sum())}
        for entry in legend(result, selection.method)
    ]
    return {"method": selection.method, "title": selection.title, "legend": entries}


def _gallery(result: DemoResult) -> list[dict[str, Any]]:
    """The pictures, inlined once, with the outlines of each method's patches in units of a patch."""
    gallery = []
    codes = [*(stage.code for stage in STAGES), KEPT]
    for index, picture in enumerate(result.pictures):
        small = picture.image.copy()
        small.thumbnail((PAGE_PICTURE_SIDE, PAGE_PICTURE_SIDE), Image.Resampling.LANCZOS)
        shades = [
            {
                "method": selection.method,
                "paths": [(code, _outline(selection.stage[index] == code)) for code in codes],
                "kept": selection.kept[index],
            }
            for selection in result.selections.values()
        ]
        aspect = min(max(small.width / small.height, 0.5), 2.6)
        source = _data_uri(small, "webp", quality=80, method=4)
        gallery.append({"name": picture.name, "source": source, "aspect": aspect, "shades": shades})
    return gallery


def _outline(mask: Tensor) -> str:
    """An SVG path around the patches of [196] that are true, each on its own."""
    patches = (divmod(token, GRID_SIDE) for token in mask.nonzero().flatten().tolist())
    return "".join(f"M{column} {row}h1v1h-1z" for row, column in patches)


def _plot(result: DemoResult) -> dict[str, Any] | None:
    """The kept tokens by distance and alignment, in the plot's own units; nothing without a query."""
    pruned = result.pruned
    if pruned.alignment is None or pruned.front is None:
        return None
    ranked = pruned.front >= 0
    if not bool(ranked.any()):
        return None
    across, up = pruned.distance[ranked].tolist(), pruned.alignment[ranked].tolist()
    fronts = pruned.front[ranked].tolist()
    x_ticks, y_ticks = _ticks(across), _ticks(up)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        above = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (
            round(PLOT_LEFT + right * (PLOT_WIDTH - PLOT_LEFT - 8), 1),
            round((1 - above) * (PLOT_HEIGHT - PLOT_BOTTOM - 8) + 8, 1),
        )

    last = max(1, max(fronts))
    points = [
        (*place(x, y), round(100 * front / last), front)
        for x, y, front in zip(across, up, fronts, strict=True)
    ]
    return {
        "points": points,
        "anchors": int((~ranked).sum()),
        "width": PLOT_WIDTH,
        "height": PLOT_HEIGHT,
        "left": PLOT_LEFT,
        "bottom": PLOT_HEIGHT - PLOT_BOTTOM,
        "x_ticks": [(place(tick, y_ticks[0])[0], f"{tick:g}") for tick in x_ticks],
        "y_ticks": [(place(x_ticks[0], tick)[1], f"{tick:g}") for tick in y_ticks],
    }


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, four to eight of them, that reach around all values."""
    low, high = min(values), max(values)
    spread = max(high - low, 1e-3)
    step = 10 ** math.floor(math.log10(spread / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (factor * step) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 6) for index in range(first, max(last, first + 1) + 1)]


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
