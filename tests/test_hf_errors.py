"""What the patch cannot do is an error that says so: never a full-length run in silence."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtok_fast as tt
from tests.hf_oracle import assert_close, compact, language_model, masked_run, run, trimmed
from tests.hf_zoo import (
    FAMILIES,
    FIVE,
    GENERATE,
    REFUSED,
    TEXT,
    TWO,
    Family,
    accepted,
    llama4_config,
    model_of,
    refused,
)
from tests.test_hf_restoration import trace

CONFIG = tt.PruneConfig(keep_ratio=0.4)
LLAVA = FAMILIES["llava"]
WINDOWED = ["gemma3", "aya_vision", "llama4"]


def prepared(family: Family = LLAVA, rows: Any = TWO) -> tuple[Any, dict[str, Tensor]]:
    model = model_of(family.name)
    return model, accepted(model, family.inputs(rows))


@pytest.mark.parametrize("name", REFUSED)
def test_models_without_visual_tokens_in_their_sequence_are_refused(name: str) -> None:
    model = refused(name)
    before = trace(model)
    with pytest.raises(tt.UnsupportedModelError) as error:
        tt.patch(model, CONFIG)
    assert name in str(error.value)
    assert all(family in str(error.value) for family in FAMILIES)
    assert trace(model) == before
    assert not tt.is_patched(model)
    assert tt.unpatch(model) is model


@pytest.mark.parametrize("model", ["llava", None, 3, nn.Linear(2, 2)], ids=["name", "none", "int", "linear"])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(tt.UnsupportedModelError), tt.patched(model, CONFIG):
        pass
    assert not tt.is_patched(model)


def test_a_compiled_model_is_refused() -> None:
    """Its hooks may be skipped."""
    model = LLAVA.build()
    with pytest.raises(tt.UnsupportedModelError, match="compiled"):
        tt.patch(torch.compile(model), CONFIG)
    language_model(model).compile()
    with pytest.raises(tt.UnsupportedModelError, match="compiled"):
        tt.patch(model, CONFIG)
    assert not tt.is_patched(model)


@pytest.mark.parametrize(
    "options, kind, match",
    [
        ({"query": "before_images"}, ValueError, "after_images"),
        ({"query": 3}, (ValueError, TypeError), "query"),
        ({"image_index": [0, 1]}, TypeError, "image_index"),
        ({"allow_window_drift": "yes"}, TypeError, "allow_window_drift"),
        ({"replace": 1}, TypeError, "replace"),
        ({"queri": "all"}, TypeError, "queri"),
        ({"config": 0.2}, TypeError, "config"),
        ({"config": {"keep_ratio": 0.2}}, TypeError, "config"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused(options: dict[str, Any], kind: Any, match: str) -> None:
    model, _ = prepared()
    before = trace(model)
    arguments = {"config": CONFIG, **options}
    for call in (lambda: tt.patch(model, **arguments), lambda: tt.patched(model, **arguments).__enter__()):
        with pytest.raises(kind, match=match):
            call()
        assert trace(model) == before


WRONG = {
    "nothing": lambda ids, visual: None,
    "a list": lambda ids, visual: visual.long().tolist(),
    "fewer positions": lambda ids, visual: visual[:, 1:],
    "one row": lambda ids, visual: visual[0],
    "another dimension": lambda ids, visual: visual.long()[None],
    "floats": lambda ids, visual: visual.float(),
}
WRONG_RULES = {
    **{f"query is {name}": ("query", rule) for name, rule in WRONG.items()},
    "query is numbers": ("query", lambda ids, visual: visual.long()),
    **{f"image_index is {name}": ("image_index", rule) for name, rule in WRONG.items()},
    "image_index is a mask": ("image_index", lambda ids, visual: visual),
    "image_index is negative": ("image_index", lambda ids, visual: visual.long() - 2),
}


@pytest.mark.parametrize("argument, rule", WRONG_RULES.values(), ids=WRONG_RULES)
def test_rules_that_return_something_else_are_refused(argument: str, rule: Any) -> None:
    model, inputs = prepared()
    with tt.patched(model, CONFIG, **{argument: rule}), pytest.raises(tt.InvalidInputError, match=argument):
        model(**inputs)


def test_errors_of_the_callers_rules_come_through() -> None:
    model, inputs = prepared()

    def broken(ids: Tensor, visual: Tensor) -> Tensor:
        raise LookupError("mine")

    with tt.patched(model, CONFIG, query=broken), pytest.raises(LookupError, match="mine"):
        model(**inputs)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("size", [1, 8])
def test_chunked_prefill_is_refused(name: str, size: int) -> None:
    """Also where each chunk has too few visual tokens to lose one. Keeping all changes no bit of it."""
    model, inputs = prepared(FAMILIES[name])
    with tt.patched(model, CONFIG), pytest.raises(tt.TrimTokError, match="prefill|placeholders"):
        model.generate(**inputs, **GENERATE, prefill_chunk_size=size)
    plain = model.generate(**inputs, **GENERATE, prefill_chunk_size=size)
    with tt.patched(model, tt.PruneConfig(keep_ratio=1.0)):
        assert torch.equal(model.generate(**inputs, **GENERATE, prefill_chunk_size=size), plain)


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "gemma3", "idefics3", "internvl"])
def test_placeholders_whose_images_nobody_saw_are_refused(name: str) -> None:
    """Features that came by another way would stay, all of them."""
    model, inputs = prepared(FAMILIES[name])
    words = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with tt.patched(model, CONFIG), pytest.raises(tt.InvalidInputError, match="placeholders of images"):
        model(**words)
    if FAMILIES[name].video:
        inputs = FAMILIES[name].inputs((("v0", "i0"),))
        inputs.pop("pixel_values_videos")
        with tt.patched(model, CONFIG), pytest.raises(tt.InvalidInputError, match="placeholders of videos"):
            model(**accepted(model, inputs))


def test_flex_attentions_block_masks_are_refused() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    model, inputs = prepared()
    length = inputs["input_ids"].shape[1]
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device="cpu")
    with tt.patched(model, CONFIG), pytest.raises(tt.TrimTokError, match="flex"):
        model(**{**inputs, "attention_mask": mask})


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "idefics3"])
def test_new_images_on_a_trimmed_cache_are_refused(name: str) -> None:
    """The cache stays good for words."""
    model, inputs = prepared(FAMILIES[name])
    ids = torch.tensor([[TEXT.start, TEXT.start + 1]])
    more = accepted(model, FAMILIES[name].inputs((("i1",),)))
    more.pop("attention_mask")
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(tt.PatchStateError, match="images"):
            model(**more, past_key_values=cache, use_cache=True)
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    assert_close(logits, masked_run(model, inputs, handle.last.kept, ids)[1])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_images_on_top_of_a_text_in_the_cache_are_refused(name: str) -> None:
    model, inputs = prepared(FAMILIES[name])
    text = torch.tensor([[TEXT.start, TEXT.start + 1]])
    inputs.pop("attention_mask")
    embeds = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    embeds.update({key: value for key, value in inputs.items() if key != "input_ids"})
    with tt.patched(model, CONFIG), torch.no_grad():
        cache = model(input_ids=text, use_cache=True).past_key_values
        with pytest.raises(tt.PatchStateError, match="images"):
            model(**inputs, past_key_values=cache, use_cache=True)
        if name != "qwen2_5_vl":  # it needs ids itself, to find its positions
            with pytest.raises(tt.PatchStateError, match="images"):
                model(**embeds, past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "smolvlm"])
def test_embeddings_without_ids_are_refused(name: str) -> None:
    """Nobody could say which of them are visual."""
    model, inputs = prepared(FAMILIES[name])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with tt.patched(model, CONFIG), pytest.raises(tt.InvalidInputError, match="input_ids"):
        model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_half_written_cache_is_refused(error: type[BaseException], layer: int) -> None:
    """A call that broke off left a token in some layers; an interrupt runs no hooks after it."""
    model, inputs = LLAVA.build(), LLAVA.inputs(TWO)
    ids = torch.tensor([[TEXT.start]])

    def fail(*_: Any) -> None:
        raise error

    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        hook = language_model(model).layers[layer].register_forward_pre_hook(fail)
        with pytest.raises(error):
            model(input_ids=ids, past_key_values=cache, use_cache=True)
        hook.remove()
        if (error, layer) == (ZeroDivisionError, 0):
            model(input_ids=ids, past_key_values=cache, use_cache=True)  # nothing was written
        else:
            for _ in range(2):
                with pytest.raises(tt.PatchStateError, match="half-written"):
                    model(input_ids=ids, past_key_values=cache, use_cache=True)
        assert handle.stats.prefills == 1
        model(**inputs)
    assert handle.stats.prefills == 2


def test_a_module_that_holds_several_models_is_refused() -> None:
    """The others would run unpruned."""
    pair = nn.ModuleDict({"student": LLAVA.build(), "teacher": FAMILIES["qwen2_vl"].build()})
    before = trace(pair)
    with pytest.raises(tt.UnsupportedModelError, match="2 of them"):
        tt.patch(pair, CONFIG)
    assert trace(pair) == before
    with tt.patched(pair["student"], CONFIG), tt.patched(pair["teacher"], CONFIG):
        assert tt.is_patched(pair["student"])
        assert tt.is_patched(pair["teacher"])


def test_a_trimmed_cache_is_not_continued_without_the_patch() -> None:
    """The unpatched model would attend with the wrong mask and positions."""
    model, inputs = prepared()
    ids = torch.tensor([[TEXT.start]])
    with tt.patched(model, CONFIG), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(tt.PatchStateError), torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        model(**inputs)
    assert_close(logits, masked_run(model, inputs, handle.last.kept, ids)[1])


def test_logits_of_the_last_positions_are_given_others_are_refused() -> None:
    model, inputs = prepared()
    with tt.patched(model, CONFIG), torch.no_grad():
        whole = model(**inputs).logits
        for count in (1, 4):
            last = model(**inputs, logits_to_keep=count).logits
            assert last.shape[1] == count
            assert torch.allclose(last, whole[:, -count:], atol=1e-5)
        with pytest.raises(tt.InvalidInputError, match="logits_to_keep"):
            model(**inputs, logits_to_keep=torch.tensor([0, 3]))


def test_budgets_below_one_token_an_image_are_refused() -> None:
    model, inputs = prepared(rows=FIVE)
    with tt.patched(model, tt.PruneConfig(keep_tokens=4)), pytest.raises(tt.InvalidInputError):
        model(**inputs)
    with tt.patched(model, tt.PruneConfig(keep_tokens=4, min_tokens_per_image=0)) as handle, torch.no_grad():
        model(**inputs)
    assert handle.last.visual_after.tolist() == [4]


def test_tokens_that_are_not_finite_are_refused() -> None:
    model, inputs = prepared()
    inputs["pixel_values"] = inputs["pixel_values"].clone()
    inputs["pixel_values"][0, 0, 0, 0] = torch.nan
    with tt.patched(model, CONFIG), pytest.raises(tt.InvalidInputError, match="finite"):
        model(**inputs)


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_that_take_no_mask_are_refused(name: str) -> None:
    """FlashAttention's windows count slots. It is only named here: the refusal comes before attention."""
    model = FAMILIES[name].build()
    inputs = accepted(model, FAMILIES[name].inputs(TWO))
    lm = language_model(model)

    class Reached(Exception):
        pass

    def reach(*_: Any) -> None:
        raise Reached

    with tt.patched(model, CONFIG):
        lm.config.get_text_config()._attn_implementation = "flash_attention_2"
        with pytest.raises(tt.TrimTokError, match="allow_window_drift"):
            model(**inputs)
    lm.config.get_text_config()._attn_implementation = "sdpa"
    with tt.patched(model, CONFIG, allow_window_drift=True):
        lm.config.get_text_config()._attn_implementation = "flash_attention_2"
        lm.register_forward_pre_hook(reach)
        with pytest.raises(Reached):
            model(**inputs)


@pytest.mark.parametrize("spare", [0, 1, 3], ids=["prefill", "first-step", "third-step"])
def test_queries_that_are_scaled_by_their_slot_are_refused(spare: int) -> None:
    """Llama 4 scales queries from position `floor_scale - 1` on, and counts slots there, not positions."""
    llama4 = FAMILIES["llama4"]
    length = llama4.inputs(TWO)["input_ids"].shape[1]
    scaled = dataclasses.replace(llama4, config=lambda: llama4_config(floor_scale=length + spare))
    model, new_ids = scaled.build(), torch.full((1, 4), TEXT.start)
    inputs = accepted(model, scaled.inputs(TWO))
    with tt.patched(model, CONFIG) as handle:
        with pytest.raises(tt.UnsupportedModelError, match="attn_temperature_tuning"):
            run(model, inputs, new_ids[:, :spare])
        if spare:
            pruned = run(model, inputs, new_ids[:, : spare - 1])
    if spare:
        mask = inputs["attention_mask"]
        masked = masked_run(model, inputs, handle.last.kept, new_ids[:, : spare - 1])
        assert_close(trimmed(pruned[0], handle.last.kept, mask), compact(masked[0], handle.last.kept, mask))
        if spare > 1:
            assert_close(pruned[1], masked[1])
    with tt.patched(model, CONFIG, allow_window_drift=True):
        run(model, inputs, new_ids)


@pytest.mark.parametrize("drop", ["pixels", "placeholder"])
def test_the_models_own_errors_come_through(drop: str) -> None:
    """Too few or too many placeholders stay transformers' error, and the next call is right."""
    model, inputs = prepared()
    bad = dict(inputs)
    if drop == "pixels":
        bad["pixel_values"] = inputs["pixel_values"][:1]
    else:
        bad["input_ids"] = inputs["input_ids"].clone()
        bad["input_ids"][0, 8] = TEXT.start
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        logits = model(**inputs).logits
        with pytest.raises(ValueError, match="do not match") as error:
            model(**bad)
        assert not isinstance(error.value, tt.TrimTokError)
        assert torch.equal(model(**inputs).logits, logits)
    assert handle.stats.prefills == 2
