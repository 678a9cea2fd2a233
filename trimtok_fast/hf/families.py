"""The families of models, and in what they differ.

Every family scatters image features into `inputs_embeds` at the placeholder ids and then calls its language
model with keywords. What differs: which module does that, what the language model is called there, and which
placeholder belongs to which image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from trimtok_fast.errors import UnsupportedModelError


@dataclass(frozen=True)
class Family:
    """How one family lays out its visual tokens.

    Attributes:
        name: as in `transformers.models`.
        images: the rule (in `images.py`) that finds where images begin: "runs", "grid", "entries", "closed",
            "opened", "tiled".
        language_model: the outer module's attribute that holds the language model.
    """

    name: str
    images: str
    language_model: str = "language_model"


#: By the class name of the outer module: the one that scatters the features and calls the language model.
FAMILIES = {
    "AyaVisionModel": Family("aya_vision", "closed"),
    "Gemma3Model": Family("gemma3", "runs"),
    "Glm4vModel": Family("glm4v", "grid"),
    "Idefics3Model": Family("idefics3", "tiled", "text_model"),
    "InternVLModel": Family("internvl", "runs"),
    "Kimi_K25Model": Family("kimi_k25", "runs"),
    "Llama4ForConditionalGeneration": Family("llama4", "closed"),
    "LlavaModel": Family("llava", "entries"),
    "LlavaNextModel": Family("llava_next", "entries"),
    "LlavaOnevisionModel": Family("llava_onevision", "entries"),
    "Mistral3Model": Family("mistral3", "entries"),
    "Ovis2Model": Family("ovis2", "opened"),
    "PaliGemmaModel": Family("paligemma", "entries"),
    "Qwen2VLModel": Family("qwen2_vl", "grid"),
    "Qwen2_5_VLModel": Family("qwen2_5_vl", "grid"),
    "Qwen3VLModel": Family("qwen3_vl", "grid"),
    "SmolVLMModel": Family("smolvlm", "tiled", "text_model"),
}


@dataclass(frozen=True)
class Place:
    """Where a model is hooked.

    Attributes:
        family: its family.
        head: the module that computes logits and loss: the outer module's parent, or the outer module itself.
        outer: the module that sees ids and images and calls the language model.
        language_model: the module that is given fewer tokens.
    """

    family: Family
    head: nn.Module
    outer: nn.Module
    language_model: nn.Module


def find_place(model: object, any_family: bool = False) -> Place:
    """Where to hook the model.

    Args:
        model: a model of a known family, its headless module, or a wrapper around either.
        any_family: take a module that is built like the known ones, whatever its name. Which token belongs to
            which image has to be told then.

    Raises:
        UnsupportedModelError: neither, or several.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            "model", "a torch module", type(model).__name__, "Pass the model, not its name or its pipeline."
        )
    places = list(_places(model, any_family))
    if len(places) == 1:
        return places[0]
    if places:
        raise UnsupportedModelError(
            "model",
            "one multimodal model",
            f"{type(model).__name__}, which holds {len(places)} of them",
            "Patch each by itself.",
        )
    supported = ", ".join(sorted(family.name for family in FAMILIES.values()))
    raise UnsupportedModelError(
        "model",
        f"a model whose visual tokens stand in the sequence ({supported})",
        f"{type(model).__name__}, which attends across to its images, has none, or is not known",
        "Use a supported family, or pass image_index for a model of your own that is built like them.",
    )


def _places(model: nn.Module, any_family: bool) -> Iterator[Place]:
    for name, module in model.named_modules():
        family = _family(module)
        if family is None and any_family:
            family = _lookalike(module)
        if family is not None and hasattr(module, family.language_model):
            whole = not name or hasattr(type(module), "generate")  # it computes logits and loss itself
            head = module if whole else model.get_submodule(name.rpartition(".")[0])
            yield Place(family, head, module, getattr(module, family.language_model))


def _family(module: nn.Module) -> Family | None:
    """By the name of its class or of one that it derives from: some libraries derive one for each model."""
    found = (FAMILIES.get(kind.__name__) for kind in type(module).__mro__)
    return next((family for family in found if family is not None), None)


def _lookalike(module: Any) -> Family | None:
    config = getattr(module, "config", None)
    if hasattr(type(module), "get_image_features") and hasattr(config, "image_token_id"):
        for attribute in ("language_model", "text_model"):
            if isinstance(module._modules.get(attribute), nn.Module):
                return Family(type(module).__name__, "runs", attribute)
    return None
