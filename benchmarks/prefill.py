"""Prefill of a patched Hugging Face model: what pruning saves, and what hooks and selection cost."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

import trimtok_fast as tt
from benchmarks.harness import Case, timed

#: Ids of the prompt's marks: image, video, start and end of an image.
IMAGE, VIDEO, START, END = range(4)
KEEP = 0.2


def build_model(width: int, layers: int, vocabulary: int = 4096) -> Any:
    """A Qwen2.5-VL with random weights; its vision tower is small, as only its tokens matter here."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    head = 64
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": 11 * width // 4,
            "num_hidden_layers": layers,
            "num_attention_heads": width // head,
            "num_key_value_heads": max(1, width // head // 4),
            "vocab_size": vocabulary,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def build_prompt(images: int, side: int, text: int = 64) -> dict[str, torch.Tensor]:
    """Images of side² tokens each, then text; every image repeats patches, as pictures do."""
    generator = torch.Generator().manual_seed(0)
    ids, values = [], []
    for _ in range(images):
        ids += [START, *[IMAGE] * side**2, END]
        motifs = torch.randn(side, 3 * 2 * 14 * 14, generator=generator)
        choice = torch.randint(side, (4 * side**2,), generator=generator)
        values.append(motifs[choice] + 0.5 * torch.randn(4 * side**2, 3 * 2 * 14 * 14, generator=generator))
    ids += torch.randint(10, 4096, (text,), generator=generator).tolist()
    input_ids = torch.tensor([ids])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == IMAGE).int(),
        "pixel_values": torch.cat(values),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]] * images),
    }


def cases(quick: bool) -> Iterator[tuple[Case, Callable[[], list[str]]]]:
    """The prefill at a fifth of the tokens and at all of them, without the vision tower; and what to add."""
    model = build_model(256, 2) if quick else build_model(1024, 8)
    prompt = build_prompt(4, 8) if quick else build_prompt(16, 16)
    visual = int((prompt["input_ids"] == IMAGE).sum())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    vision = model.model.visual
    seen = {"pixel_values": prompt["pixel_values"].type(vision.dtype), "grid_thw": prompt["image_grid_thw"]}
    with torch.no_grad():
        tower = timed(lambda: vision(seen["pixel_values"], grid_thw=seen["grid_thw"]))
        tokens = vision(seen["pixel_values"], grid_thw=seen["grid_thw"])
    vision.forward = lambda *args, **kwargs: copy.copy(tokens)  # the same for all: the tower is timed apart
    shares: list[float] = []

    @torch.no_grad()
    def unpatched() -> torch.Tensor:
        return model(**prompt, logits_to_keep=1).logits

    @torch.no_grad()
    def patched(ratio: float) -> torch.Tensor:
        with tt.patched(model, tt.PruneConfig(keep_ratio=ratio)) as handle:
            logits = model(**prompt, logits_to_keep=1).logits
        shares.append(handle.stats.seconds)
        return logits

    def check_pruned() -> None:
        assert patched(KEEP).isfinite().all()
        with tt.patched(model, tt.PruneConfig(keep_ratio=KEEP)) as handle, torch.no_grad():
            model(**prompt, logits_to_keep=1)
        assert handle.last is not None
        assert handle.last.visual_after.tolist() == [round(KEEP * visual)]

    def check_whole() -> None:
        assert torch.equal(patched(1.0), unpatched())

    where = f"prefill, Qwen2.5-VL shape, {parameters / 1e6:.0f} M parameters, {visual:,} visual tokens"

    def selection() -> list[str]:
        seconds = statistics.median(shares[-5:])
        whole = statistics.median(timed(lambda: patched(KEEP)) for _ in range(3))
        plain = statistics.median(timed(unpatched) for _ in range(3))
        return [
            f"{where}, keep {KEEP:.0%}: the selection takes {seconds:.2f} s, {seconds / whole:.1%} of the"
            f" language model's prefill (target: at most 15 %); the vision tower takes {tower:.2f} s, so time"
            f" to first token falls from {plain + tower:.2f} s to {whole + tower:.2f} s"
        ]

    yield (
        Case(
            f"{where}, keep {KEEP:.0%}",
            lambda: patched(KEEP),
            {"unpatched": unpatched},
            check_pruned,
            at_least={"unpatched": 3},
        ),
        selection,
    )
    yield (
        Case(
            f"{where}, keep all",
            lambda: patched(1.0),
            {"unpatched": unpatched},
            check_whole,
            at_most={"unpatched": 1.02},
        ),
        list,
    )
