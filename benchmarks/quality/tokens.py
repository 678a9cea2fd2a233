"""Real tokens: photographs, crops of them, near-copies, and the same as projectors make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from PIL import Image
from torch import Tensor

from trimtok_fast.demo.classifier import Classifier
from trimtok_fast.demo.pictures import bundled_pictures

#: Pixels on each side of a crop as the network sees it: 7 × 7 tokens.
CROP_SIDE = 224
#: Channels that are scaled, and by how much.
SCALED_SHARE, SCALE = 0.01, 30.0
#: Frames of a clip and the pixels by which the view moves between two of them.
FRAMES, STEP = 8, (6, 4)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures as one sample.

    Attributes:
        names: of the n pictures.
        tokens: fp32 [M, 1280], what the classifier reads and distances are measured in.
        boundaries: of the pictures, [n + 1].
        answers: the classifier's log-probabilities [n, 1000] from all tokens.
    """

    names: list[str]
    tokens: Tensor
    boundaries: list[int]
    answers: Tensor

    def needles(self, likely: float = 0.01) -> list[tuple[int, int]]:
        """Picture and class of every answer that no other picture shares, ten times chance at least."""
        best, labels = self.answers.exp().max(-1)
        return [
            (picture, label)
            for picture, label in enumerate(labels.tolist())
            if best[picture] >= likely and int((labels == label).sum()) == 1
        ]


def pictures_of(
    classifier: Classifier, images: list[tuple[str, Image.Image]], side: int, step: Callable[[], None]
) -> Pictures:
    """Tokens and answers of images; `step` is called after each."""
    parts = []
    for _, image in images:
        parts.append(classifier.tokens(image, side))
        step()
    tokens = torch.cat(parts)
    answers = classifier.log_probabilities(torch.stack([part.mean(0) for part in parts]))
    return Pictures([name for name, _ in images], tokens, [0, *accumulate(map(len, parts))], answers)


def photographs(quick: bool) -> list[tuple[str, Image.Image]]:
    """The 28 photographs of the demo; every second of them where it must be quick."""
    return [(picture.name, picture.image) for picture in bundled_pictures()][:: 2 if quick else 1]


def crops(count: int, seed: int = 0) -> list[tuple[str, Image.Image]]:
    """Square crops of the photographs, the same number of each, of a third to all of the shorter side."""
    generator = torch.Generator().manual_seed(seed)
    pictures, made = bundled_pictures(), []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        width, height = picture.image.size
        size, left, top = torch.rand(3, generator=generator).tolist()
        side = round(min(width, height) * (1 + 2 * size) / 3)
        corner = (round(left * (width - side)), round(top * (height - side)))
        box = (*corner, corner[0] + side, corner[1] + side)
        made.append((f"{picture.name} {number // len(pictures)}", picture.image.crop(box)))
    return made


def stereo() -> list[tuple[str, Image.Image]]:
    """Two views of one scene."""
    return [
        (picture.name, picture.image)
        for picture in bundled_pictures()
        if picture.name.startswith("motorcycle")
    ]


def clips() -> list[tuple[str, Image.Image]]:
    """Two clips of a view that moves over a photograph: frames that repeat one another."""
    pictures = {picture.name: picture.image for picture in bundled_pictures()}
    made = []
    for name in ("astronaut", "china"):
        side = int(0.8 * min(pictures[name].size))
        for frame in range(FRAMES):
            left, top = frame * STEP[0], frame * STEP[1]
            made.append((f"{name} {frame}", pictures[name].crop((left, top, left + side, top + side))))
    return made


def with_constant(tokens: Tensor, times: float, seed: int = 0) -> Tensor:
    """The tokens with one vector of `times` their mean norm added to each of them."""
    direction = torch.randn(tokens.shape[1], generator=torch.Generator().manual_seed(seed))
    return tokens + times * tokens.norm(dim=1).mean() * direction / direction.norm()


def with_scaled_channels(tokens: Tensor, seed: int = 0) -> Tensor:
    """The tokens with one channel in a hundred scaled by 30."""
    width = tokens.shape[1]
    channels = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    scale = torch.ones(width)
    scale[channels[: max(1, round(SCALED_SHARE * width))]] = SCALE
    return tokens * scale


#: What projectors do to tokens; a selection sees these, and is measured on the tokens as they were.
SPACES: dict[str, Callable[[Tensor], Tensor]] = {
    "a constant vector of the mean norm": lambda tokens: with_constant(tokens, 1),
    "a constant vector of 3 × the mean norm": lambda tokens: with_constant(tokens, 3),
    "one channel in a hundred × 30": with_scaled_channels,
}
