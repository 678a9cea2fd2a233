"""Ways to call a patched model that change its arguments, not what it means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import trimtok_fast as tt
from tests.hf_oracle import assert_close, compact, hidden, language_model, masked_run, run, trimmed
from tests.hf_zoo import FAMILIES, ONE, TEXT, TWO, Family, accepted, model_of
from tests.test_hf_laws import test_dropping_is_masking as law

CONFIG = tt.PruneConfig(keep_ratio=0.4)
A_FEW = pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
NEW_IDS = torch.randint(TEXT.start, TEXT.stop, (1, 3), generator=torch.Generator().manual_seed(4))


def prepared(family: Family, rows: Any = TWO) -> tuple[Any, dict[str, Tensor]]:
    model = model_of(family.name)
    return model, accepted(model, family.inputs(rows))


@EVERY_FAMILY
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_without_mask_and_cache(family: Family, attention: str) -> None:
    """transformers takes gaps in the positions for packed sequences there."""
    model = model_of(family.name, attention)
    inputs = accepted(model, family.inputs(TWO))
    mask = inputs.pop("attention_mask")
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        pruned = model(**inputs, use_cache=False).logits
    kept = handle.last.kept
    with hidden(model, kept), torch.no_grad():
        masked = model(**inputs, use_cache=False).logits
    assert_close(trimmed(pruned, kept, mask), compact(masked, kept, mask))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "kimi_k25"])
def test_pictures_of_one_token(name: str) -> None:
    """Such a picture is kept whole, beside others that are not; alone there is nothing to select."""
    model, inputs = prepared(FAMILIES[name], (("i4",), ("i4", "i4")))
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        model(**inputs)
    assert handle.last.visual_after.tolist() == handle.last.visual_before.tolist() == [1, 2]
    assert handle.last.results == [None, None]
    law(FAMILIES[name], (("i4", "i1", "i4"), (), ("i1",)), "left", "sdpa")


class Int8(torch.nn.Module):
    """A linear layer with whole numbers for weights, as quantising libraries put them in."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        return torch.nn.functional.linear(rows, self.weight * self.scale, self.bias)


def quantised(model: Any) -> None:
    for parent in list(language_model(model).modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, Int8(child))


def offloaded(model: Any) -> None:
    """Each module has another forward of its own, and weights for its call alone, as accelerate does it."""
    for module in model.modules():
        stored = {name: weight.data for name, weight in module._parameters.items() if weight is not None}

        def forward(
            *args: Any, own: Any = module.forward, module: Any = module, stored: Any = stored, **kw: Any
        ):
            for name, weight in stored.items():
                module._parameters[name].data = weight
            try:
                return own(*args, **kw)
            finally:
                for name, weight in stored.items():
                    module._parameters[name].data = torch.full_like(weight, torch.nan)

        module.forward = forward


@A_FEW
@pytest.mark.parametrize("prepare", [quantised, offloaded])
def test_modules_that_other_libraries_changed(name: str, prepare: Any) -> None:
    family = FAMILIES[name]
    model, inputs = family.build(), accepted(model_of(name), family.inputs(TWO))
    plain = run(model, inputs, NEW_IDS)
    prepare(model)
    with tt.patched(model, CONFIG) as handle:
        prefill, decode = run(model, inputs, NEW_IDS)
    kept, mask = handle.last.kept, inputs["attention_mask"]
    full, expected = masked_run(model, inputs, kept, NEW_IDS)
    assert_close(trimmed(prefill, kept, mask), compact(full, kept, mask))
    assert_close(decode, expected)
    assert torch.equal(run(model, inputs, NEW_IDS)[0], plain[0]) == (prepare is offloaded)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "mistral3"])
def test_in_bfloat16(name: str) -> None:
    """Keeping all changes no bit; dropping is masking to the precision of the type."""
    family = FAMILIES[name]
    model = family.build().to(torch.bfloat16)
    inputs = accepted(model, family.inputs(TWO))
    inputs = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    plain = run(model, inputs, NEW_IDS)
    with tt.patched(model, tt.PruneConfig(keep_ratio=1.0)):
        assert all(
            torch.equal(one, other) for one, other in zip(run(model, inputs, NEW_IDS), plain, strict=True)
        )
    with tt.patched(model, CONFIG) as handle:
        _, pruned = run(model, inputs, NEW_IDS)
    _, masked = masked_run(model, inputs, handle.last.kept, NEW_IDS)
    assert pruned.dtype == torch.bfloat16
    assert (pruned - masked).abs().max() <= 0.05 * masked.abs().max()


@A_FEW
def test_with_tuples_for_outputs(name: str) -> None:
    """The cache is found in them."""
    model, inputs = prepared(FAMILIES[name])
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        logits, cache, *_ = model(**inputs, use_cache=True, return_dict=False)
        step = model(input_ids=NEW_IDS, past_key_values=cache, use_cache=True, return_dict=False)[0]
        assert torch.equal(model(**inputs).logits, logits)
    assert_close(step, masked_run(model, inputs, handle.last.kept, NEW_IDS)[1])


@A_FEW
def test_with_positional_arguments(name: str) -> None:
    model, inputs = prepared(FAMILIES[name])
    with tt.patched(model, CONFIG), torch.no_grad():
        named = model(**inputs).logits
        ids = inputs.pop("input_ids")
        assert torch.equal(model(ids, **inputs).logits, named)


@A_FEW
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_with_a_cache_of_the_callers_own(name: str, kind: str) -> None:
    """It may be used for another prompt once it is reset."""
    model = model_of(name)
    config = model.config.get_text_config()
    static = kind == "static"
    cache = transformers.StaticCache(config, 200) if static else transformers.DynamicCache(config=config)
    for rows in (TWO, ONE) if static else (TWO,):
        _, inputs = prepared(FAMILIES[name], rows)
        with tt.patched(model, CONFIG) as handle, torch.no_grad():
            model(**inputs, past_key_values=cache, use_cache=True)
            step = model(input_ids=NEW_IDS, past_key_values=cache, use_cache=True).logits
        assert_close(step, masked_run(model, inputs, handle.last.kept, NEW_IDS)[1])
        if static:
            cache.reset()


@A_FEW
def test_with_gradient_checkpointing(name: str) -> None:
    """The language model runs twice, and the tokens are chosen once."""
    family = FAMILIES[name]
    model = family.build().train()
    inputs = accepted(model, family.inputs(TWO))
    labels = torch.where(inputs["input_ids"] < TEXT.stop, inputs["input_ids"], -100)
    pixels = inputs["pixel_values"].requires_grad_()
    gradients = []
    with tt.patched(model, CONFIG) as handle:
        for enable in (False, True):
            if enable:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            loss = model(**inputs, labels=labels).loss
            gradients.append(torch.autograd.grad(loss, pixels)[0])
    assert handle.stats.prefills == 2
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


@A_FEW
def test_under_autocast(name: str) -> None:
    """The selection is not lowered by it, and runs."""
    model, inputs = prepared(FAMILIES[name])
    with tt.patched(model, CONFIG) as handle, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(**inputs).logits
    assert logits.shape[1] == int(handle.last.kept.sum())


@A_FEW
def test_hidden_states_and_attentions_are_as_long_as_what_is_kept(name: str) -> None:
    model = model_of(name, "eager")
    inputs = accepted(model, FAMILIES[name].inputs(TWO))
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    count = int(handle.last.kept.sum())
    assert {states.shape[1] for states in out.hidden_states} == {count}
    assert {scores.shape[-2:] for scores in out.attentions} == {(count, count)}


@A_FEW
def test_the_language_model_by_itself_is_left_alone(name: str) -> None:
    """Also after a call with images."""
    model, inputs = prepared(FAMILIES[name])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad():
        plain = language_model(model)(inputs_embeds=embeds).last_hidden_state
        with tt.patched(model, CONFIG):
            model(**inputs)
            assert torch.equal(language_model(model)(inputs_embeds=embeds).last_hidden_state, plain)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mistral3", "internvl"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_with_a_mask_of_the_callers_own(name: str, kind: str) -> None:
    """A 4-D mask over the original positions: here each third token is hidden from those far behind it."""
    model, inputs = prepared(FAMILIES[name])
    length = inputs["input_ids"].shape[1]
    position = torch.arange(length)
    apart = position[:, None] - position
    seen = (apart >= 0) & ((position % 3 > 0) | (apart < 4))
    own = seen[None, None] if kind == "bool" else torch.zeros(1, 1, length, length).masked_fill(~seen, -1e30)
    start = {key: value for key, value in inputs.items() if key != "attention_mask"}
    if hasattr(model.model, "rope_deltas"):  # the model reads a 2-D mask there to count positions
        start["position_ids"] = position.expand(3, 1, -1)
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        pruned = model(**start, attention_mask=own).logits
    kept = handle.last.kept
    with hidden(model, kept), torch.no_grad():
        masked = model(**start, attention_mask=own).logits
    assert_close(
        trimmed(pruned, kept, inputs["attention_mask"]), compact(masked, kept, inputs["attention_mask"])
    )


@A_FEW
def test_in_inference_mode(name: str) -> None:
    model, inputs = prepared(FAMILIES[name])
    labels = torch.where(inputs["input_ids"] < TEXT.stop, inputs["input_ids"], -100)
    with tt.patched(model, CONFIG), torch.no_grad():
        plain = model(**inputs, labels=labels)
    with tt.patched(model, CONFIG), torch.inference_mode():
        made_here = {key: value.clone() for key, value in inputs.items()}
        for given in (inputs, made_here):
            out = model(**given, labels=labels.clone())
            assert torch.equal(out.logits, plain.logits)
            assert out.loss == plain.loss


@A_FEW
def test_the_loss_counts_the_items_that_a_trainer_counts(name: str) -> None:
    model, inputs = prepared(FAMILIES[name])
    labels = torch.where(inputs["input_ids"] < TEXT.stop, inputs["input_ids"], -100)
    with torch.no_grad():
        accepts = (
            model(**inputs, labels=labels, num_items_in_batch=7).loss != model(**inputs, labels=labels).loss
        )
    with tt.patched(model, CONFIG), torch.no_grad():
        mean = model(**inputs, labels=labels).loss
        count = int((labels[:, 1:] >= 0).sum())
        counted = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(7)).loss
    assert counted.item() == pytest.approx(mean.item() * count / 7 if accepts else mean.item(), rel=1e-5)
