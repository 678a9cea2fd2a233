"""How a dropped token looks: one colour for each stage that can drop it, the same in every drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from trimtok_fast.demo.classifier import GRID_SIDE

#: The value of `PruneResult.stage` for a token that stays.
KEPT = 3


@dataclass(frozen=True)
class Stage:
    """A stage that drops tokens, and its shade.

    Attributes:
        code: its value in `PruneResult.stage`.
        name: what the legend calls it.
        colour: red, green and blue.
        opacity: of the shade over the picture, in [0, 1].
    """

    code: int
    name: str
    colour: tuple[int, int, int]
    opacity: float

    @property
    def css(self) -> str:
        """The colour as CSS writes it, without the opacity."""
        return "#{:02x}{:02x}{:02x}".format(*self.colour)


STAGES = (
    Stage(0, "dropped inside its image (stage 1)", (14, 18, 30), 0.76),
    Stage(1, "dropped by the diversity filter (stage 2)", (8, 74, 96), 0.76),
    Stage(2, "dropped by the Pareto selection (stage 2)", (92, 32, 110), 0.74),
)
#: A method of one stage has one shade.
SINGLE_STAGE = (Stage(0, "dropped", STAGES[0].colour, STAGES[0].opacity),)


def overlay(stages: np.ndarray) -> Image.Image:
    """A picture's shade, one RGBA pixel a token: clear where it stays; [196] stages row by row."""
    pixels = np.zeros((GRID_SIDE, GRID_SIDE, 4), dtype=np.uint8)
    grid = stages.reshape(GRID_SIDE, GRID_SIDE)
    for stage in STAGES:
        pixels[grid == stage.code] = (*stage.colour, round(255 * stage.opacity))
    return Image.fromarray(pixels)
