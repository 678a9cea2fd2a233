"""Which positions are visual, and where each image begins.

Each rule looks at what the row itself holds, never at the flat number of an image: beams and repeated rows
shuffle those. A frame group of a video counts as an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trimtok_fast.errors import InvalidInputError
from trimtok_fast.hf.families import Family
from trimtok_fast.validation import describe

MODALITIES = ("image", "video")

#: Tokens of each entry that a feature getter returned, by modality ("image", "video"), in the batch's order.
Entries = Mapping[str, list[int]]


def visual_positions(ids: Tensor, entries: Entries, config: Any) -> Tensor:
    """Where features of the given modalities were put: bool [B, T]."""
    visual = torch.zeros_like(ids, dtype=torch.bool)
    for modality in entries:
        visual |= ids == placeholder(config, modality)
    return visual


def placeholder(config: Any, modality: str) -> int:
    """The id that stands for a token of this modality (InternVL puts a video's into the image's)."""
    found = getattr(config, f"{modality}_token_id", None)
    return config.image_token_id if found is None else found


def check_placeholders(ids: Tensor, entries: Entries, config: Any) -> None:
    """Raise where features may have been put that nobody saw: they would stay, all of them, in silence."""
    seen = {placeholder(config, modality) for modality in entries}
    for modality in MODALITIES:
        token = placeholder(config, modality)
        if token not in seen and bool((ids == token).any()):
            raise InvalidInputError(
                "input_ids",
                f"placeholders of {modality}s ({token}) in the call that encodes the {modality}s",
                f"placeholders, and no call of get_{modality}_features",
                "Pass the pixels with the ids. Early releases of transformers 5 lose them on some ways.",
            )


def image_starts(
    family: Family, ids: Tensor, visual: Tensor, positions: Tensor | None, entries: Entries, config: Any
) -> Tensor:
    """The visual positions at which an image begins: bool [B, T]."""
    runs = _run_starts(visual)
    if family.images == "grid" and positions is not None and positions.ndim == 3:
        return runs | _frame_starts(visual, positions[-2:])
    if family.images == "entries":
        return _entry_starts(ids, visual, runs, entries, config)
    if family.images in ("closed", "opened", "tiled"):
        return _joined(family.images, ids, visual, runs, config)
    return runs


def _run_starts(visual: Tensor) -> Tensor:
    starts = visual.clone()
    starts[:, 1:] &= ~visual[:, :-1]
    return starts


def _frame_starts(visual: Tensor, positions: Tensor) -> Tensor:
    """M-RoPE counts a frame's rows and columns from the same corner again: (h, w) does not increase there."""
    height, width = positions.diff(dim=-1)
    starts = torch.zeros_like(visual)
    starts[:, 1:] = visual[:, 1:] & visual[:, :-1] & ((height < 0) | ((height == 0) & (width <= 0)))
    return starts


def _entry_starts(ids: Tensor, visual: Tensor, runs: Tensor, entries: Entries, config: Any) -> Tensor:
    """Features are scattered entry by entry over the batch's placeholders; a row always begins an image."""
    starts = runs & (visual.cumsum(1) == 1)
    for modality, lengths in entries.items():
        where = (visual & (ids == placeholder(config, modality))).flatten().nonzero().squeeze(1)
        if modality == "video":
            # Older transformers close a video outside the getter.
            closed = len(where) == sum(lengths) + len(lengths)
            lengths = [length for entry in lengths for length in _frames(entry + closed, config)]
        begin = torch.tensor([0, *lengths[:-1]], device=ids.device).cumsum(0)
        if sum(lengths) == len(where):
            starts.view(-1)[where[begin]] = True
        else:  # what the getter returned is not in the order of the placeholders: runs are what is left
            starts |= runs & (ids == placeholder(config, modality))
    return starts


def _frames(length: int, config: Any) -> list[int]:
    """A LLaVA-OneVision video: the pooled grid of each frame, and one token that closes the last."""
    side = -(-(config.vision_config.image_size // config.vision_config.patch_size) // 2)
    frames = max((length - 1) // side**2, 1)
    return [side**2] * (frames - 1) + [length - side**2 * (frames - 1)]


def _joined(rule: str, ids: Tensor, visual: Tensor, runs: Tensor, config: Any) -> Tensor:
    """Tiles of an image are runs of their own, with marks between: keep the starts that begin an image."""
    starts = runs.clone()
    ends = visual & ~torch.cat([visual[:, 1:], torch.zeros_like(visual[:, :1])], dim=1)
    for row in range(len(ids)):
        first, last = runs[row].nonzero().squeeze(1).tolist(), ends[row].nonzero().squeeze(1).tolist()
        if len(first) < 2:
            continue
        tokens = ids[row].tolist()
        closing = tokens[last[-1] + 1] if last[-1] + 1 < len(tokens) else None
        for (_, begin), (end, _) in zip(pairwise(first), pairwise(last), strict=True):
            gap = tokens[end + 1 : begin]
            if rule == "closed":  # the mark after the row's last tile closes every image
                apart = closing is None or gap[0] == closing
            elif rule == "opened":  # a mark before the first tile opens every image
                apart = config.visual_indicator_token_ids[0] in gap
            else:  # one mark opens each tile and closes the image: twice in the gap, it stands between images
                apart = len(gap) > 2 and gap[0] == gap[-2]
            starts[row, begin] = apart
    return starts


def numbered(starts: Tensor, visual: Tensor) -> Tensor:
    """The image of each position, counted from 0 in its row: int64 [B, T], -1 where there is none."""
    return torch.where(visual, starts.cumsum(1) - 1, -1)


def check_numbers(numbers: object, visual: Tensor) -> Tensor:
    """What `image_index` returned: integers [B, T], not negative at a visual position."""
    wanted = f"a callable that returns int32 or int64 {list(visual.shape)}, from 0 at each visual token"
    remedy = "Number the images of each row; what stands at other positions is not read."
    if (
        not isinstance(numbers, Tensor)
        or numbers.shape != visual.shape
        or numbers.dtype not in (torch.int32, torch.int64)
    ):
        raise InvalidInputError("image_index", wanted, describe(numbers), remedy)
    numbers = numbers.to(visual.device, torch.int64)
    if bool((numbers[visual] < 0).any()):
        raise InvalidInputError("image_index", wanted, "a negative number at a visual token", remedy)
    return numbers
