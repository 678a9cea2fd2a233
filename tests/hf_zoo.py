"""Tiny random LMMs of every supported family, and prompts for them, built by hand.

No downloads and no processors: pixel values, grids and placeholder ids are made here as the family's
processor lays them out. Every prompt says for every position which image of the method it belongs to, so
that a patch's assignment can be checked against something that is not its own table.

A row of a batch is a tuple of items: `"i0"`, `"i1"`, … are pictures (the number picks a size, where the
family has several), `"v0"`, `"v1"` videos. Text stands before, behind and between some of them; the first
two are adjacent.
"""

from __future__ import annotations

import dataclasses
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
IMAGE, VIDEO, START, END, VIDEO_START, VIDEO_END, BREAK = range(100, 107)
INDICATORS = range(107, 112)
MARKS = range(112, 116)
VOCABULARY = 120
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
    attentions: tuple[str, ...] = ("eager", "sdpa")
    named: tuple[int, ...] = ()
    ragged: Rows = RAGGED
    bos: bool = True

    @property
    def special(self) -> tuple[int, ...]:
        """Ids that the config names, which are no text; to a model without a tokenizer other marks are."""
        return (PAD, BOS, EOS, IMAGE, *self.named)

    def build(self, attention: str | None = None) -> Any:
        """A fresh model of its own, in eval mode; the same weights every time."""
        attention = attention or self.attentions[-1]
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
        """The model's inputs, and the image of each position.

        Args:
            rows: the items of each row.
            padding_side: "left", "right", or "none": shorter rows get more text (pruned, they are longer).
            tail: text tokens that come last.
        """
        items = [[self.item(name) for name in row] for row in rows]
        made = [self._row(row, number, tail) for number, row in enumerate(items)]
        length = max(len(ids) for ids, _ in made)
        if padding_side == "none":
            spare = [length - len(ids) for ids, _ in made]
            made = [self._row(row, number, tail + spare[number]) for number, row in enumerate(items)]
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
def model_of(name: str, attention: str | None = None) -> Any:
    """A family's model, built once; tests leave it as they found it."""
    return {**FAMILIES, **VARIANTS}[name].build(attention)


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

GRIDS = ((1, 4, 6), (1, 6, 8), (1, 4, 4), (1, 8, 8), (1, 2, 2))
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


def _qwen_family(
    name: str, classes: tuple[str, str], config: Callable[[], dict[str, Any]], video: Any
) -> Family:
    return Family(
        name,
        classes,
        config,
        _qwen_picture,
        video,
        sequence=_qwen_sequence,
        named=(VIDEO, START, END),
        bos=False,
    )


def _qwen2_vl_config() -> dict[str, Any]:
    return _qwen_config({"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2})


def _qwen2_5_vl_config(**text: Any) -> dict[str, Any]:
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
    return _qwen_config({**vision, "window_size": 16, "fullatt_block_indexes": [1]}, **text)


def _qwen3_vl_config() -> dict[str, Any]:
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    }
    deepstack = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return _qwen_config({**vision, **deepstack}, rope, head_dim=8)


def _glm4v_config() -> dict[str, Any]:
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "image_size": 32}
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 0],
        "partial_rotary_factor": 0.5,
    }
    config = _qwen_config(vision, rope)
    for key in ("vision_start_token_id", "vision_end_token_id", "video_token_id"):
        del config[key]
    marks = {
        "image_start_token_id": START,
        "image_end_token_id": END,
        "video_start_token_id": VIDEO_START,
        "video_end_token_id": VIDEO_END,
    }
    return {**config, "video_token_id": VIDEO, **marks}


# LLaVA: pictures of one size, whose placeholders merge into one run where they are adjacent.


def _llava_picture(number: int) -> Item:
    ids, owner = _run(16)
    return Item(ids, owner, {"pixel_values": _pixels(1, 3, 16, 16, seed=number)})


def _llava_config() -> dict[str, Any]:
    return {
        "text_config": _text(model_type="llama"),
        "vision_config": _tower(model_type="clip_vision_model", projection_dim=16),
        "image_token_index": IMAGE,
    }


# LLaVA-NeXT and LLaVA-OneVision: a small copy, then tiles with a learned newline token at each row's end.
# A picture is ((height, width), tiles with the small copy, rows, columns); 12 x 12 pixels make 3 x 3 tokens.
# The last fills its 2 x 2 tiles in part, and the model cuts the columns of padding off.

ANYRES = (((24, 12), 3, 6, 3), ((12, 24), 3, 3, 6), ((24, 18), 5, 6, 4))


def _anyres_picture(number: int) -> Item:
    size, tiles, rows, columns = ANYRES[number % len(ANYRES)]
    ids, owner = _run(9 + rows * (columns + 1))
    padded = torch.zeros(1, 5, 3, 12, 12)
    padded[0, :tiles] = _pixels(tiles, 3, 12, 12, seed=number)
    return Item(ids, owner, {"pixel_values": padded, "image_sizes": torch.tensor([size])})


def _onevision_video(number: int) -> Item:
    """Frames of 2 x 2 pooled tokens, and one newline token after the last."""
    frames = 4
    owner = [frame for frame in range(frames) for _ in range(4)]
    values = _pixels(1, frames, 3, 12, 12, seed=50 + number)
    return Item([VIDEO] * (4 * frames + 1), [*owner, frames - 1], {"pixel_values_videos": values})


def _anyres_config(tower: str, **changes: Any) -> dict[str, Any]:
    extra = {"projection_dim": 16} if tower == "clip_vision_model" else {"vision_use_head": False}
    return {
        "vision_config": _tower(model_type=tower, image_size=12, **extra),
        "image_token_index": IMAGE,
        "image_grid_pinpoints": [[12, 24], [24, 12], [24, 24]],
        **changes,
    }


# Tiles: a picture is one run of placeholders (InternVL), or runs between marks (Aya Vision, Ovis2, Llama 4,
# Idefics3). The number of a picture picks how many tiles it has.

TILES = (1, 3, 5)


def _internvl_picture(number: int) -> Item:
    tiles = TILES[number % len(TILES)]
    ids, owner = _run(4 * tiles, IMAGE, [START], [END])
    return Item(ids, owner, {"pixel_values": _pixels(tiles, 3, 16, 16, seed=number)})


def _internvl_config() -> dict[str, Any]:
    vision = _tower(model_type="internvl_vision", image_size=[16, 16], patch_size=[4, 4])
    return {
        "text_config": _text(model_type="qwen2"),
        "vision_config": vision,
        "image_token_id": IMAGE,
        "image_seq_length": 4,
        "tie_word_embeddings": False,
    }


def _tiled(tiles: int, count: int, marks: Callable[[int], tuple[list[int], list[int]]]) -> Any:
    """ids and owner of `tiles` runs of `count` placeholders between their marks: one image."""
    ids: list[int] = []
    owner: list[int] = []
    for tile in range(tiles):
        before, after = marks(tile)
        ids += [*before, *[IMAGE] * count, *after]
        owner += [-1] * len(before) + [0] * count + [-1] * len(after)
    return ids, owner


def _aya_picture(number: int) -> Item:
    """Tiles, then the small copy. No id of a mark is in the config; the last closes every picture."""
    tiles = TILES[number % len(TILES)]

    def marks(tile: int) -> tuple[list[int], list[int]]:
        last = tile == tiles - 1
        name = [MARKS[0]] if last else [MARKS[1], TEXT.start + tile]
        return [START] * (tile == 0) + name, [END] * last

    ids, owner = _tiled(tiles, 4, marks)
    return Item(ids, owner, {"pixel_values": _pixels(tiles, 3, 16, 16, seed=number)})


def _aya_config() -> dict[str, Any]:
    layers = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
    return {
        "text_config": _text(model_type="cohere2", **layers),
        "vision_config": _tower(model_type="siglip_vision_model", vision_use_head=False),
        "image_token_index": IMAGE,
        "downsample_factor": 2,
    }


def _ovis2_picture(number: int) -> Item:
    """The small copy, then tiles; the marks' ids are the config's visual indicators."""
    start, grid, column, row, end = INDICATORS
    tiles = TILES[number % len(TILES)]

    def marks(tile: int) -> tuple[list[int], list[int]]:
        after = grid if tile == 0 else row if tile % 2 == 0 else column
        return [start] * (tile == 0), [after] * (tile == 0 or tile < tiles - 1) + [end] * (tile == tiles - 1)

    ids, owner = _tiled(tiles, 4, marks)
    return Item(ids, owner, {"pixel_values": _pixels(tiles, 3, 16, 16, seed=number)})


def _ovis2_config() -> dict[str, Any]:
    vision = _tower(vocab_size=24, hidden_stride=2, num_visual_indicator_tokens=5)
    return {
        "text_config": _text(model_type="qwen2"),
        "vision_config": vision,
        "image_token_id": IMAGE,
        "visual_indicator_token_ids": list(INDICATORS),
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "tie_word_embeddings": False,
    }


def _llama4_picture(number: int) -> Item:
    """Tiles, then the small copy; begin and end of a picture are in the config."""
    tiles = TILES[number % len(TILES)]

    def marks(tile: int) -> tuple[list[int], list[int]]:
        last = tile == tiles - 1
        name = [MARKS[0]] if last else []
        return [START] * (tile == 0) + name, [END] if last else [MARKS[1 + tile % 2]]

    ids, owner = _tiled(tiles, 4, marks)
    return Item(ids, owner, {"pixel_values": _pixels(tiles, 3, 16, 16, seed=number)})


def llama4_config(**changes: Any) -> dict[str, Any]:
    vision = _tower(
        vision_output_dim=16,
        projector_input_dim=16,
        projector_output_dim=16,
        pixel_shuffle_ratio=0.5,
        intermediate_size=64,
    )
    text = _text(
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        no_rope_layers=[1, 0],
        attention_chunk_size=24,
        **changes,
    )
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": IMAGE,
        "boi_token_index": START,
        "eoi_token_index": END,
        "pad_token_id": PAD,
    }


def _idefics3_picture(number: int) -> Item:
    """Rows of two tiles, then the small copy. One mark opens every tile and closes the picture."""
    tiles = TILES[number % len(TILES)]

    def marks(tile: int) -> tuple[list[int], list[int]]:
        last, newline = tile == tiles - 1, [TEXT.start]
        if last:
            return newline * (tiles > 1) + [START, MARKS[0]], [START]
        return [START, MARKS[1 + tile % 2]], newline * (tile % 2)

    ids, owner = _tiled(tiles, 4, marks)
    return Item(ids, owner, {"pixel_values": _pixels(1, tiles, 3, 16, 16, seed=number)})


def _idefics3_collate(rows: list[list[Item]], length: int) -> dict[str, Tensor]:
    """[B, tiles of the fullest row, 3, H, W], empty places all zero."""
    values = [torch.cat([item.tensors["pixel_values"][0] for item in row]) if row else None for row in rows]
    most = max(len(value) for value in values if value is not None)
    out = torch.zeros(len(rows), most, 3, 16, 16)
    for row, value in enumerate(values):
        if value is not None:
            out[row, : len(value)] = value
    return {"pixel_values": out}


def _idefics3_config() -> dict[str, Any]:
    return {
        "text_config": _text(model_type="llama"),
        "vision_config": _tower(),
        "image_token_id": IMAGE,
        "scale_factor": 2,
    }


# Gemma: bidirectional attention among a picture's tokens (Gemma 3) or all over the prompt (PaliGemma).


def _gemma3_picture(number: int) -> Item:
    ids, owner = _run(16, IMAGE, [TEXT.start, START], [END, TEXT.start])
    return Item(ids, owner, {"pixel_values": _pixels(1, 3, 32, 32, seed=number)})


def _gemma3_config() -> dict[str, Any]:
    text = _text(
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"],
    )
    return {
        "text_config": text,
        "vision_config": _tower(model_type="siglip_vision_model", image_size=32, vision_use_head=False),
        "image_token_index": IMAGE,
        "boi_token_index": START,
        "eoi_token_index": END,
        "mm_tokens_per_image": 16,
        "tie_word_embeddings": False,
    }


def _paligemma_config(text: str = "gemma", **changes: Any) -> dict[str, Any]:
    return {
        "text_config": _text(model_type=text, head_dim=8, **changes),
        "vision_config": _tower(model_type="siglip_vision_model", vision_use_head=False),
        "image_token_index": IMAGE,
        "vocab_size": VOCABULARY,
        "projection_dim": 32,
        "hidden_size": 32,
        "tie_word_embeddings": False,
    }


# Mistral 3: rows of placeholders with a break between; Kimi: grids of patches, merged 2 x 2, one frame.

SIZES = ((8, 16), (16, 24), (24, 16))


def _mistral3_picture(number: int) -> Item:
    height, width = SIZES[number % len(SIZES)]
    ids: list[int] = []
    for _ in range(height // 4):
        ids += [*[IMAGE] * (width // 4), BREAK]
    ids[-1] = END
    values = torch.zeros(1, 3, 24, 24)
    values[0, :, :height, :width] = _pixels(3, height, width, seed=number)
    owner = [0 if token == IMAGE else -1 for token in ids]
    return Item(ids, owner, {"pixel_values": values, "image_sizes": torch.tensor([[height, width]])})


def _mistral3_config(**text: Any) -> dict[str, Any]:
    return {
        "text_config": _text(model_type="mistral", head_dim=8, **{"sliding_window": None, **text}),
        "vision_config": _tower(model_type="pixtral", patch_size=2, image_size=24, head_dim=8),
        "image_token_index": IMAGE,
        "spatial_merge_size": 2,
        "tie_word_embeddings": False,
    }


def _kimi_picture(number: int) -> Item:
    grid = GRIDS[number % len(GRIDS)]
    ids, owner = _run(grid[1] * grid[2] // 4, IMAGE, [START], [END])
    values = _pixels(grid[1] * grid[2], 3, 4, 4, seed=number)
    return Item(ids, owner, {"pixel_values": values, "image_grid_thw": torch.tensor([grid])})


def _kimi_config() -> dict[str, Any]:
    text = _text(
        model_type="deepseek_v3",
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        num_key_value_heads=4,
    )
    vision = _tower(pos_emb_height=8, pos_emb_width=8)
    del vision["image_size"]
    return {
        "text_config": text,
        "vision_config": vision,
        "projection_hidden_size": 16,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "tie_word_embeddings": False,
    }


_EVERY_FAMILY = (
    Family("llava", ("LlavaConfig", "LlavaForConditionalGeneration"), _llava_config, _llava_picture),
    Family(
        "llava_next",
        ("LlavaNextConfig", "LlavaNextForConditionalGeneration"),
        lambda: _anyres_config("clip_vision_model", text_config=_text(model_type="llama")),
        _anyres_picture,
    ),
    Family(
        "llava_onevision",
        ("LlavaOnevisionConfig", "LlavaOnevisionForConditionalGeneration"),
        lambda: _anyres_config(
            "siglip_vision_model", text_config=_text(model_type="qwen2"), video_token_index=VIDEO
        ),
        _anyres_picture,
        _onevision_video,
        named=(VIDEO,),
    ),
    Family(
        "internvl",
        ("InternVLConfig", "InternVLForConditionalGeneration"),
        _internvl_config,
        _internvl_picture,
    ),
    _qwen_family(
        "qwen2_vl", ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration"), _qwen2_vl_config, _qwen_video
    ),
    _qwen_family(
        "qwen2_5_vl",
        ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
        _qwen2_5_vl_config,
        _qwen_video,
    ),
    _qwen_family(
        "qwen3_vl", ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"), _qwen3_vl_config, _qwen3_video
    ),
    _qwen_family("glm4v", ("Glm4vConfig", "Glm4vForConditionalGeneration"), _glm4v_config, None),
    Family(
        "gemma3",
        ("Gemma3Config", "Gemma3ForConditionalGeneration"),
        _gemma3_config,
        _gemma3_picture,
        sequence=lambda ids: {"token_type_ids": (ids == IMAGE).long()},
        named=(START, END),
    ),
    Family(
        "idefics3",
        ("Idefics3Config", "Idefics3ForConditionalGeneration"),
        _idefics3_config,
        _idefics3_picture,
        collate=_idefics3_collate,
    ),
    Family(
        "smolvlm",
        ("SmolVLMConfig", "SmolVLMForConditionalGeneration"),
        _idefics3_config,
        _idefics3_picture,
        collate=_idefics3_collate,
    ),
    Family(
        "mistral3",
        ("Mistral3Config", "Mistral3ForConditionalGeneration"),
        _mistral3_config,
        _mistral3_picture,
    ),
    Family("aya_vision", ("AyaVisionConfig", "AyaVisionForConditionalGeneration"), _aya_config, _aya_picture),
    Family(
        "paligemma",
        ("PaliGemmaConfig", "PaliGemmaForConditionalGeneration"),
        _paligemma_config,
        _llava_picture,
        sequence=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
    ),
    Family(
        "ovis2",
        ("Ovis2Config", "Ovis2ForConditionalGeneration"),
        _ovis2_config,
        _ovis2_picture,
        named=tuple(INDICATORS),
    ),
    Family(
        "llama4",
        ("Llama4Config", "Llama4ForConditionalGeneration"),
        llama4_config,
        _llama4_picture,
        named=(START, END),
    ),
    Family(
        "kimi_k25",
        ("Kimi_K25Config", "Kimi_K25ForConditionalGeneration"),
        _kimi_config,
        _kimi_picture,
        named=(VIDEO, START, END),
    ),
)

#: The families that the installed release of transformers has.
FAMILIES = {family.name: family for family in _EVERY_FAMILY if hasattr(transformers, family.classes[1])}

_EVERY_VARIANT: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral3-window": ("mistral3", {"config": lambda: _mistral3_config(sliding_window=12)}),
    "qwen2_5_vl-window": (
        "qwen2_5_vl",
        {
            "config": lambda: _qwen2_5_vl_config(
                use_sliding_window=True, sliding_window=12, max_window_layers=1
            )
        },
    ),
    "paligemma-window": (
        "paligemma",
        {"config": lambda: _paligemma_config("gemma2", sliding_window=12), "attentions": ("eager",)},
    ),
}
#: Options of a family that change what its attention sees.
VARIANTS = {
    name: dataclasses.replace(FAMILIES[family], name=name, **changes)
    for name, (family, changes) in _EVERY_VARIANT.items()
    if family in FAMILIES
}


def accepted(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that this release of transformers knows."""
    known = inspect.signature(model.forward).parameters
    return {key: value for key, value in inputs.items() if key in known}


def _mllama_config() -> dict[str, Any]:
    vision = _tower(attention_heads=2, num_global_layers=1, vision_output_dim=32)
    del vision["num_attention_heads"]
    return {
        "text_config": _text(
            cross_attention_layers=[1], rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
        ),
        "vision_config": {**vision, "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
        "image_token_index": IMAGE,
    }


def _t5_config() -> dict[str, Any]:
    return {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY}


#: Models without visual tokens in their sequence: cross-attention, encoder-decoder, text alone, images alone.
REFUSED: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "MllamaForConditionalGeneration": ("MllamaConfig", _mllama_config),
    "T5ForConditionalGeneration": ("T5Config", _t5_config),
    "LlamaForCausalLM": ("LlamaConfig", _text),
    "CLIPVisionModel": ("CLIPVisionConfig", _tower),
}


def refused(name: str) -> Any:
    """A model of `REFUSED`."""
    config_name, config = REFUSED[name]
    return getattr(transformers, name)._from_config(getattr(transformers, config_name)(**config()))
