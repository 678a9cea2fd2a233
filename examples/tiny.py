"""A tiny Qwen2.5-VL with random weights and prompts for it, so that every example runs without a download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VOCABULARY, IMAGE, VIDEO, START, END, PAD = 200, 190, 191, 192, 193, 194
PATCH = 14


def model() -> Any:
    """Two layers of 32 channels over a vision tower as small."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": PAD,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "patch_size": PATCH,
    }
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def prompt(*rows: list[tuple[int, int, int]], question: int = 6) -> dict[str, Tensor]:
    """What a processor would return: each row shows things of (frames, height, width) patches, then asks.

    A thing of one frame is an image, of more a video.
    """
    ids = [
        [token for size in row for token in (START, *_placeholders(size), END)]
        + list(range(10, 10 + question))
        for row in rows
    ]
    width = max(map(len, ids))
    input_ids = torch.tensor([[PAD] * (width - len(row)) + row for row in ids])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD).long(),
        "mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int(),
    }
    images = [size for row in rows for size in row if size[0] == 1]
    videos = [size for row in rows for size in row if size[0] > 1]
    for name, pixels, sizes in (
        ("image", "pixel_values", images),
        ("video", "pixel_values_videos", videos),
    ):
        if sizes:
            inputs[f"{name}_grid_thw"] = torch.tensor(sizes)
            patches = sum(frames * height * width for frames, height, width in sizes)
            inputs[pixels] = torch.randn(
                patches, 3 * 2 * PATCH**2, generator=torch.Generator().manual_seed(1)
            )
    return inputs


def _placeholders(size: tuple[int, int, int]) -> list[int]:
    frames, height, width = size
    return [IMAGE if frames == 1 else VIDEO] * (frames * height * width // 4)
