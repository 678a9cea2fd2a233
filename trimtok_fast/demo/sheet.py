"""`kept.png`: a sheet of all pictures, kept patches clear, dropped ones in the shade of their stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trimtok_fast.demo.classifier import GRID_SIDE, TOKENS_PER_PICTURE
from trimtok_fast.demo.overlay import KEPT, Stage, overlay
from trimtok_fast.demo.pictures import Picture

WIDTH = 1800
MARGIN = 48
GAP = 18
HEADER = 150
CAPTION = 40
#: Rows of pictures are made as high as fills the sheet's width, near this.
ROW_HEIGHT = 196
#: Very wide and very high pictures are drawn less so; what the network saw was a square in any case.
ASPECTS = (0.6, 2.4)
PAPER, INK, MUTED, LINE = (252, 252, 250), (24, 28, 38), (112, 117, 128), (255, 255, 255, 190)


@dataclass(frozen=True)
class Tile:
    """Where picture number `index` goes on the sheet."""

    index: int
    left: int
    top: int
    width: int
    height: int


def draw_sheet(
    pictures: Sequence[Picture], stages: np.ndarray, legend: Sequence[Stage], title: str, subtitle: str
) -> Image.Image:
    """Draw the contact sheet.

    Args:
        pictures: n pictures.
        stages: int8 [n, 196], `PruneResult.stage` of each picture's tokens.
        legend: the stages that the method has.
        title: the sheet's first line.
        subtitle: its second line.
    """
    tiles, height = arrange([picture.image.width / picture.image.height for picture in pictures])
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(sheet, "RGBA")
    draw.text((MARGIN, 40), title, INK, ImageFont.load_default(34))
    draw.text((MARGIN, 88), subtitle, MUTED, ImageFont.load_default(20))
    _draw_legend(draw, legend, stages)
    for tile in tiles:
        picture, stage = pictures[tile.index], stages[tile.index]
        resized = picture.image.resize((tile.width, tile.height), Image.Resampling.LANCZOS)
        shade = overlay(stage).resize(resized.size, Image.Resampling.NEAREST)
        resized.paste(shade, mask=shade.getchannel("A"))
        sheet.paste(resized, (tile.left, tile.top))
        _outline_kept(draw, tile, stage)
        _draw_caption(draw, tile, picture.name, int((stage == KEPT).sum()))
    return sheet


def arrange(aspects: Sequence[float]) -> tuple[list[Tile], int]:
    """Lay pictures out in rows that fill the sheet's width; returns the tiles and the sheet's height."""
    inner = WIDTH - 2 * MARGIN
    tiles: list[Tile] = []
    top = HEADER
    for row in _break_rows([min(max(aspect, ASPECTS[0]), ASPECTS[1]) for aspect in aspects]):
        filled = (inner - GAP * (len(row) - 1)) / sum(aspect for _, aspect in row)
        height = min(filled, 1.25 * ROW_HEIGHT)  # one picture alone is not blown up to the sheet's width
        left = float(MARGIN)
        for index, aspect in row:
            tiles.append(Tile(index, round(left), top, round(aspect * height), round(height)))
            left += aspect * height + GAP
        top += round(height) + CAPTION
    return tiles, top + MARGIN - GAP


def _break_rows(aspects: Sequence[float]) -> list[list[tuple[int, float]]]:
    """Split the pictures into rows of about the same total width."""
    inner = WIDTH - 2 * MARGIN
    total = sum(aspect * ROW_HEIGHT + GAP for aspect in aspects)
    share = total / max(1, round(total / inner))
    rows: list[list[tuple[int, float]]] = [[]]
    used = 0.0
    for index, aspect in enumerate(aspects):
        width = aspect * ROW_HEIGHT + GAP
        if rows[-1] and used + width / 2 > share * len(rows):
            rows.append([])
        rows[-1].append((index, aspect))
        used += width
    return rows


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Sequence[Stage], stages: np.ndarray) -> None:
    font = ImageFont.load_default(18)
    entries = [("kept", None, KEPT), *((stage.name, stage.colour, stage.code) for stage in legend)]
    right = WIDTH - MARGIN
    for row, (name, colour, code) in enumerate(entries):
        top = 30 + 26 * row
        count = f"{int((stages == code).sum()):,}"
        draw.rectangle((right - 18, top + 3, right, top + 19), colour, MUTED if colour is None else colour)
        draw.text((right - 30, top), count, INK, font, anchor="ra")
        draw.text((right - 100, top), name, MUTED, font, anchor="ra")


def _outline_kept(draw: ImageDraw.ImageDraw, tile: Tile, stage: np.ndarray) -> None:
    # Neighbours share their line, so edges are rounded the same way from both sides.
    columns = [round(tile.left + step * tile.width / GRID_SIDE) for step in range(GRID_SIDE + 1)]
    rows = [round(tile.top + step * tile.height / GRID_SIDE) for step in range(GRID_SIDE + 1)]
    columns[-1] -= 1
    rows[-1] -= 1
    for token in np.flatnonzero(stage == KEPT).tolist():
        row, column = divmod(token, GRID_SIDE)
        draw.rectangle((columns[column], rows[row], columns[column + 1], rows[row + 1]), outline=LINE)


def _draw_caption(draw: ImageDraw.ImageDraw, tile: Tile, name: str, kept: int) -> None:
    font = ImageFont.load_default(16)
    count = f"{kept} / {TOKENS_PER_PICTURE}"
    space = tile.width - font.getlength(count) - 8
    if font.getlength(name) > space:
        while name and font.getlength(name + "…") > space:
            name = name[:-1]
        name += "…"
    top = tile.top + tile.height + 5
    draw.text((tile.left, top), name, INK, font)
    draw.text((tile.left + tile.width, top), count, MUTED, font, anchor="ra")
