"""Tiny random LMMs of every supported family, and prompts for them, built by hand.

No downloads and no processors: pixel values, grids and placeholder ids are made here as the family's
processor lays them out. Every prompt says for every position which image of the method it belongs to, so
that a patch's assignment can be checked against something that is not its own table.

A row of a batch is a tuple of items: `"i0"`, `"i1"`, … are pictures (the number picks a size, where the
family has several), `"v0"`, `"v1"` videos. Text stands before, behind and between some of them; the first
two are adjacent.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

PAD, BOS, EOS = 0, 1, 2
TEXT = range(10, 100)
IMAGE, VIDEO, START, END, VIDEO_START, VIDEO_END, BREAK, ROW = range(100, 108)
VOCABULARY = 112
SPECIAL = (PAD, BOS, EOS, *range(100, VOCABULARY))

#: What every greedy generation of the tests asks for: a fixed length, and no placeholder among the new ids.
GENERATE: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "suppress_tokens": list(SPECIAL),
}

Rows = Sequence[Sequence[str]]
ONE, TWO, FIVE = (("i0",),), (("i1", "i0"),), (("i0", "i1", "i2", "i0", "i1"),)
RAGGED = (("i0", "i1", "i2"), (), ("i1",))
FULL_RAGGED = (("i0", "i1", "i2"), ("i2", "i0"), ("i1",))


@dataclass(frozen=True)
class Item:
    """A picture or a video as it stands in a prompt.

    Args:
        ids: its token ids, with what the processor writes around the placeholders.
        owner: for each id, which image of the item it belongs to (frame groups of a video), -1 for none.
        tensors: what the model needs of it, by the names of its forward; collated along the first dimension.
    """

    ids: list[int]
    owner: list[int]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One architecture: how to build it, and how a picture looks in its prompts."""

    name: str
    classes: tuple[str, str]
    config: Callable[[], dict[str, Any]]
    picture: Callable[[int], Item]
    video: Callable[[int], Item] | None = None
    collate: Callable[[list[list[Item]], int], dict[str, Tensor]] | None = None
    sequence: Callable[[Tensor], dict[str, Tensor]] = field(default=lambda ids: {})
    ragged: Rows = RAGGED
    window: bool = False
    bos: bool = True

    def build(self, attention: str = "sdpa") -> Any:
        """A fresh model of its own, in eval mode; the same weights every time."""
        config_name, model_name = self.classes
        config = getattr(transformers, config_name)(**self.config())
        config._attn_implementation = attention
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, model_name)._from_config(config, attn_implementation=attention)
            _randomise(model)
        for key, value in {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}.items():
            setattr(model.generation_config, key, value)
        return model.eval()

    def inputs(self, rows: Rows = ONE, padding_side: str = "left", tail: int = 6) -> dict[str, Tensor]:
        """What `model(**inputs)` and `model.generate(**inputs)` take."""
        return self.prompt(rows, padding_side, tail)[0]

    def owner(self, rows: Rows = ONE, padding_side: str = "left", tail: int = 6) -> Tensor:
        """int64 [B, T]: the image of each position, counted from 0 in every row; -1 for text and padding."""
        return self.prompt(rows, padding_side, tail)[1]

    def prompt(
        self, rows: Rows = ONE, padding_side: str = "left", tail: int = 6
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, and the image of each position; `tail` text tokens come last."""
        items = [[self.item(name) for name in row] for row in rows]
        made = [self._row(row, number, tail) for number, row in enumerate(items)]
        length = max(len(ids) for ids, _ in made)
        ids = torch.full((len(rows), length), PAD)
        owner, mask = torch.full_like(ids, -1), torch.zeros_like(ids)
        for number, (row_ids, row_owner) in enumerate(made):
            span = slice(length - len(row_ids), None) if padding_side == "left" else slice(len(row_ids))
            ids[number, span], owner[number, span] = torch.tensor(row_ids), torch.tensor(row_owner)
            mask[number, span] = 1
        collate = self.collate or _concatenate
        tensors = collate(items, length) if any(items) else {}
        return {"input_ids": ids, "attention_mask": mask, **tensors, **self.sequence(ids)}, owner

    def item(self, name: str) -> Item:
        """The item that a row's entry names."""
        make = self.picture if name[0] == "i" else self.video
        assert make is not None, f"{self.name} has no videos"
        return make(int(name[1:]))

    def _row(self, items: list[Item], seed: int, tail: int) -> tuple[list[int], list[int]]:
        generator = torch.Generator().manual_seed(100 * seed + len(items))

        def text(count: int) -> list[int]:
            return torch.randint(TEXT.start, TEXT.stop, (count,), generator=generator).tolist()

        ids = ([BOS] if self.bos else []) + text(3 + seed)
        owner = [-1] * len(ids)
        images = 0
        for number, item in enumerate(items):
            between = text(2) if number > 1 else []
            ids += between + item.ids
            owner += [-1] * len(between) + [images + entry if entry >= 0 else -1 for entry in item.owner]
            images = max([images - 1, *owner]) + 1
        closing = text(tail)
        return ids + closing, owner + [-1] * len(closing)


@functools.cache
def model_of(name: str, attention: str = "sdpa") -> Any:
    """A family's model, built once; tests leave it as they found it."""
    return FAMILIES[name].build(attention)


def special_ids(family: Family) -> tuple[int, ...]:
    """Ids that are no text: padding, begin and end, placeholders and what stands around them."""
    return SPECIAL


def _randomise(model: Any) -> None:
    """Weights large enough that every position matters: the library's own leave attention nearly uniform."""
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed_tokens" in name or "position" in name:
                parameter.normal_()
            else:
                parameter.normal_(std=1.4 / parameter[0].numel() ** 0.5)


def _pixels(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _concatenate(rows: list[list[Item]], length: int) -> dict[str, Tensor]:
    gathered: dict[str, list[Tensor]] = {}
    for item in (item for row in rows for item in row):
        for key, value in item.tensors.items():
            gathered.setdefault(key, []).append(value)
    return {key: torch.cat(values) for key, values in gathered.items()}


def _run(count: int, token: int = IMAGE, before: Sequence[int] = (), after: Sequence[int] = ()) -> Any:
    """ids and owner of one image whose placeholders follow one another."""
    ids = [*before, *[token] * count, *after]
    return ids, [-1] * len(before) + [0] * count + [-1] * len(after)


def _text(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **changes,
    }


def _tower(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        **changes,
    }


# Qwen-VL: grids of patches of any size, merged 2 x 2; positions in three dimensions.

GRIDS = ((1, 4, 6), (1, 6, 8), (1, 4, 4), (1, 8, 8))
VIDEO_GRIDS = ((2, 4, 6), (3, 4, 4))


def _qwen_picture(number: int, patch: int = 4, start: int = START, end: int = END) -> Item:
    grid = GRIDS[number % len(GRIDS)]
    patches = grid[1] * grid[2]
    ids, owner = _run(patches // 4, IMAGE, [start], [end])
    values = _pixels(patches, 3 * 2 * patch * patch, seed=number)
    return Item(ids, owner, {"pixel_values": values, "image_grid_thw": torch.tensor([grid])})


def _qwen_video(number: int, patch: int = 4) -> Item:
    time, height, width = VIDEO_GRIDS[number % len(VIDEO_GRIDS)]
    frame = height * width // 4
    ids = [START, *[VIDEO] * (time * frame), END]
    owner = [-1, *[group for group in range(time) for _ in range(frame)], -1]
    values = _pixels(time * height * width, 3 * 2 * patch * patch, seed=50 + number)
    return Item(
        ids,
        owner,
        {"pixel_values_videos": values, "video_grid_thw": torch.tensor([[time, height, width]])},
    )


def _qwen3_video(number: int) -> Item:
    """Each frame group has a time stamp (text) and start and end marks of its own."""
    whole = _qwen_video(number)
    time, height, width = whole.tensors["video_grid_thw"][0].tolist()
    ids, owner = [], []
    for group in range(time):
        stamp = [TEXT.start + group, TEXT.start + 20 + group]
        ids += [*stamp, START, *[VIDEO] * (height * width // 4), END]
        owner += [-1] * 3 + [group] * (height * width // 4) + [-1]
    return Item(ids, owner, whole.tensors)


def _qwen_sequence(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def _qwen_config(vision: dict[str, Any], rope: dict[str, Any] | None = None, **text: Any) -> dict[str, Any]:
    rope = rope or {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return {
        "text_config": _text(rope_parameters=rope, **text),
        "vision_config": {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, **vision},
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


# LLaVA: pictures of one size, whose placeholders merge into one run where they are adjacent.


def _llava_picture(number: int) -> Item:
    ids, owner = _run(16)
    return Item(ids, owner, {"pixel_values": _pixels(1, 3, 16, 16, seed=number)})


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "llava",
            ("LlavaConfig", "LlavaForConditionalGeneration"),
            lambda: {
                "text_config": _text(model_type="llama"),
                "vision_config": _tower(model_type="clip_vision_model", projection_dim=16),
                "image_token_index": IMAGE,
            },
            _llava_picture,
        ),
        Family(
            "qwen2_vl",
            ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration"),
            lambda: _qwen_config({"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}),
            _qwen_picture,
            _qwen_video,
            sequence=_qwen_sequence,
            bos=False,
        ),
        Family(
            "qwen2_5_vl",
            ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
            lambda: _qwen_config(
                {
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "out_hidden_size": 32,
                    "window_size": 16,
                    "fullatt_block_indexes": [1],
                }
            ),
            _qwen_picture,
            _qwen_video,
            sequence=_qwen_sequence,
            bos=False,
        ),
        Family(
            "qwen3_vl",
            ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
            lambda: _qwen_config(
                {
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "out_hidden_size": 32,
                    "num_position_embeddings": 64,
                    "deepstack_visual_indexes": [0, 1],
                },
                {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                },
                head_dim=8,
            ),
            _qwen_picture,
            _qwen3_video,
            sequence=_qwen_sequence,
            bos=False,
        ),
    )
}


def accepted(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that this release of transformers knows."""
    known = inspect.signature(model.forward).parameters
    return {key: value for key, value in inputs.items() if key in known}
