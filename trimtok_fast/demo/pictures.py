"""The demo's pictures: the 28 that scikit-image and scikit-learn carry, or a folder of the user's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trimtok_fast.errors import InvalidInputError, TrimTokError

#: The pictures inside scikit-image's wheel; everything else of its gallery would be downloaded.
SKIMAGE_PICTURES = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "chessboard_GRAY.png"),
    *("chessboard_RGB.png", "clock_motion.png", "coffee.png", "coins.png", "color.png", "grass.png"),
    *("gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "logo.png", "microaneurysms.png"),
    *("moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png", "phantom.png", "retina.jpg"),
    *("rocket.jpg", "text.png"),
)
SKLEARN_PICTURES = ("china.jpg", "flower.jpg")
SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
#: Pictures are kept at this size at most: twice what the network looks at, and hundreds fit into memory.
LONGEST_SIDE = 896


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with the name that tables and captions give it.

    Attributes:
        name: what to call it.
        image: RGB, transparency laid over white, at most `LONGEST_SIDE` pixels on its longer side.
    """

    name: str
    image: Image.Image


def bundled_pictures() -> list[Picture]:
    """The 28 pictures inside the wheels of scikit-image and scikit-learn.

    Raises:
        TrimTokError: one of the two packages, or one of the pictures, is not there.
    """
    skimage, sklearn = _package_folder("skimage", "scikit-image"), _package_folder("sklearn", "scikit-learn")
    files = [skimage / "data" / name for name in SKIMAGE_PICTURES]
    files += [sklearn / "datasets" / "images" / name for name in SKLEARN_PICTURES]
    for file in files:
        if not file.is_file():
            remedy = "Install scikit-image and scikit-learn again, or give your own pictures with --images."
            raise TrimTokError("demo", "the pictures of scikit-image and scikit-learn", f"no {file}", remedy)
    return [Picture(file.stem.replace("_", " "), open_picture(file)) for file in files]


def pictures_in(folder: Path, skipped: Callable[[str], None]) -> list[Picture]:
    """The pictures of a folder, by name; its sub-folders are left alone.

    Args:
        folder: where to look.
        skipped: called with one line for every picture that cannot be read.

    Raises:
        InvalidInputError: there is no such folder, or no picture in it that can be read.
    """
    if not folder.is_dir():
        got = f"the file {folder}" if folder.exists() else f"{folder}, which does not exist"
        raise InvalidInputError("--images", "a folder of pictures", got, "Check the path.")
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    pictures = []
    for file in files:
        try:
            pictures.append(Picture(file.name, open_picture(file)))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # Pillow's decoders raise any of these on a broken file.
            reason = "no picture" if isinstance(error, UnidentifiedImageError) else str(error)
            skipped(f"{file.name} is skipped: {reason}")
    if not pictures:
        got = f"{len(files)} files, none of which can be read" if files else f"none in {folder}"
        wanted = f"pictures ({', '.join(SUFFIXES)})"
        raise InvalidInputError("--images", wanted, got, "Choose another folder.")
    return pictures


def open_picture(file: Path) -> Image.Image:
    """Read a picture as a viewer would show it: upright, in RGB, over white, no larger than needed."""
    with Image.open(file) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):
            # Pillow would clip 16 bits to 8, and leave a white picture.
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return image


def _package_folder(module: str, package: str) -> Path:
    # Finding a package does not import it: scikit-learn's import alone takes a second.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        remedy = "Install it: pip install 'trimtok_fast[demo]'."
        raise TrimTokError("demo", f"the package {package}", "none installed", remedy)
    return Path(spec.submodule_search_locations[0])
