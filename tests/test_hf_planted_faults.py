"""Faults planted in the patch: each changes a snippet of its real code, and the suite's checks see it."""

from __future__ import annotations

from functools import partial

import pytest

from tests import (
    test_hf_calls,
    test_hf_errors,
    test_hf_generation,
    test_hf_laws,
    test_hf_patch,
    test_hf_restoration,
)
from tests import test_hf_selection as selections
from tests.hf_zoo import FAMILIES, FIVE, TWO, VARIANTS
from tests.test_planted_faults import passes, plant
from trimtok_fast.errors import TrimTokError
from trimtok_fast.hf import cache, hooks, images, masks, patching, selection, trimming


def law(name, rows=None, side="left", attention="sdpa"):
    """Dropping is masking, for one family."""
    family = {**FAMILIES, **VARIANTS}[name]
    return partial(test_hf_laws.test_dropping_is_masking, family, rows or family.ragged, side, attention)


def kept(name, rows=None, side="left"):
    """What is kept is what `prune` keeps, for one family."""
    family = FAMILIES[name]
    return partial(selections.test_the_kept_tokens_are_those_of_prune, family, rows or family.ragged, side)


def loop(name, masked=True):
    """A decode loop without positions."""
    return partial(test_hf_generation.test_a_hand_written_decode_loop, FAMILIES[name], masked)


VIDEOS = (("v0",), ("i0", "v1"), ("i2",))
BARE = partial(test_hf_calls.test_without_mask_and_cache, FAMILIES["llava"], "sdpa")
GREEDY = partial(test_hf_generation.test_greedy, FAMILIES["gemma3"], TWO, "left")
LOSS = partial(test_hf_generation.test_the_loss_and_the_gradient_to_the_pixels, FAMILIES["qwen2_vl"], "left")
REORDER = partial(
    test_hf_generation.test_what_a_cache_holds_follows_its_rows, "llava", "reorder_cache", [2, 0, 1]
)
CROP = partial(test_hf_generation.test_a_cropped_cache_forgets_what_was_cropped, "llava", True)
QUERY = partial(selections.test_the_query_is_the_text_it_names, "llava")
ALONE = partial(test_hf_calls.test_the_language_model_by_itself_is_left_alone, "llava")

# The function, the check that must fail, and its faults: what each says, a snippet, what takes its place.
FAULTS = {
    (trimming.trim_prefill, law("llava")): [
        ("positions renumbered", ".gather(-1, at.expand(shape))", "[..., : at.shape[1]]"),
        (
            "first tokens instead",
            "[torch.arange(len(at), device=at.device)[:, None], at]",
            "[:, : at.shape[1]]",
        ),
    ],
    (trimming.trim_prefill, law("qwen3_vl")): [
        ("deepstack of the first tokens", "layer[kept[visual]]", "layer[: int(kept[visual].sum())]"),
    ],
    (trimming.kept_slots, law("llava", side="right")): [
        ("padding on the other side", "    if not right:", "    if right:"),
    ],
    (trimming.resume, loop("llava")): [
        ("one position on", "arange(start, slots", "arange(start + 1, 1 + slots")
    ],
    (trimming.resume, loop("qwen2_5_vl")): [
        ("positions of the mask's start", "positions[..., -count:]", "positions[..., :count]"),
    ],
    (trimming.trim_labels, LOSS): [
        ("labels by slot", "labels.gather(1, columns.clamp(min=0))", "labels[:, : columns.shape[1]]"),
        ("padding foretells", "padding[:, 1:] |= padding[:, :-1].clone()", "pass"),
    ],
    (masks.padding_mask, BARE): [("no mask", "return (columns >= 0).long()", "return None")],
    (masks.padding_mask, law("llava", side="none")): [
        ("padding seen", " * ((columns >= 0) & (columns < width))", ""),
    ],
    (masks.padding_mask, law("llava", side="right")): [
        ("mask by slot", "mask.gather(1, columns.clamp(0, width - 1))", "mask[:, -columns.shape[1] :]"),
    ],
    (masks.window_masks, law("mistral3-window")): [
        ("windows one wider", "- config.sliding_window", "- config.sliding_window - 1"),
        ("windows of slots", "keys[:, None, None, :] > queries", "keys[:, None, None, :] >= 0 * queries"),
    ],
    (masks.window_masks, law("llama4")): [
        ("chunks with padding", "shift = 0 if unpadded is None else unpadded", "shift = 0"),
    ],
    (masks.slot_masks, GREEDY): [
        ("rows of the mask's start", "queries - first", "0 * queries"),
        ("all keys of a short cache", "columns[:, start : start + length]", "columns[:, :length]"),
    ],
    (cache.Slots.extended, law("gemma3")): [
        (
            "positions of slots",
            "(self.length, self.length +",
            "(self.columns.shape[1], self.columns.shape[1] +",
        )
    ],
    (cache.Slots.of_rows, REORDER): [
        ("rows stay", "self.columns[rows.to(self.columns.device)]", "self.columns")
    ],
    (cache.Slots.shortened, CROP): [("length stays", "self.length - count", "self.length")],
    (images.image_starts, kept("qwen2_vl", VIDEOS)): [
        ("a video is one image", "runs | _frame_starts", "runs | 0 * _frame_starts")
    ],
    (images._entry_starts, kept("llava", FIVE)): [
        ("runs for images", "starts.view(-1)[where[begin]] = True", "starts |= runs")
    ],
    (images._frames, kept("llava_onevision", VIDEOS)): [
        ("a video is one image", "max((length - 1) // side**2, 1)", "1")
    ],
    (images._joined, kept("aya_vision", FIVE)): [("tiles for images", "gap[0] == closing", "True")],
    (images._joined, kept("ovis2", FIVE)): [
        ("any mark opens", "config.visual_indicator_token_ids[0] in gap", "True")
    ],
    (images._joined, kept("idefics3", FIVE)): [
        ("tiles for images", "apart = len(gap) > 2 and gap[0] == gap[-2]", "apart = True")
    ],
    (selection._text, kept("llava")): [
        ("text before too", 'if query == "after_images":', "if False:"),
        ("rows mixed", "torch.tensor(rows, device=ids.device)[where[:, 0]]", "where[:, 0]"),
    ],
    (selection._text, partial(QUERY, "none", 6)): [
        ("asked all the same", 'if query == "none":', "if False:")
    ],
    (selection._text, partial(QUERY, "after_images", 0)): [
        ("nothing asked", "torch.where(after.any(1, keepdim=True), after, words)", "after")
    ],
    (selection._text, kept("qwen2_vl")): [
        ("special ids asked", "~torch.isin(ids,", "torch.ones_like(ids, dtype=torch.bool) | torch.isin(ids,"),
    ],
    (selection.select, kept("llava")): [
        ("tokens of the first row", "flat[where]", "flat[where % width]"),
        ("results of other rows", "zip(rows, split(", "zip(rows[::-1], split("),
    ],
    (hooks.Hooks.before_head, LOSS): [("the caller's labels", "labels.detach()", "labels")],
    (hooks.Hooks.after_outer, ALONE): [("the call is not forgotten", "self._now.call = None", "pass")],
    (hooks.Hooks._check_first, partial(test_hf_errors.test_chunked_prefill_is_refused, "llava", 1)): [
        ("a chunk that keeps all by chance", "_length(cache) and not everything", "False"),
    ],
    (hooks.Hooks._check_passed_over, test_hf_patch.test_a_forward_that_is_called_past_its_hooks): [
        ("an unpruned run in silence", "if self._now.ahead", "if False"),
    ],
    (
        images.check_placeholders,
        partial(test_hf_errors.test_placeholders_whose_images_nobody_saw_are_refused, "llava_onevision"),
    ): [
        ("nobody looks", "bool((ids == token).any())", "False"),
        ("videos are forgotten", "for modality in MODALITIES", "for modality in MODALITIES[:1]"),
    ],
    (hooks.Hooks.after_language_model, test_hf_restoration.test_a_failing_decode_step_can_be_repeated): [
        ("what failed stays open", "seal(cache, call.before)", "pass"),
    ],
    (
        patching.PatchHandle.unpatch,
        partial(test_hf_restoration.test_nothing_is_left_behind, FAMILIES["llava"]),
    ): [
        ("one hook stays", "while self._undo:", "while len(self._undo) > 1:"),
    ],
    (patching._watch, test_hf_restoration.test_other_peoples_hooks_and_overrides_stay): [
        ("an override is lost", "if own is None", "if True"),
    ],
}


@pytest.mark.parametrize(
    ("function", "old", "new", "check"),
    [
        pytest.param(function, old, new, check, id=f"{function.__module__[13:]}.{function.__name__}: {name}")
        for (function, check), faults in FAULTS.items()
        for name, old, new in faults
    ],
)
def test_a_planted_fault_is_caught(function, old, new, check, monkeypatch):
    assert passes(check)
    plant(monkeypatch, function, old, new)
    with pytest.raises((AssertionError, pytest.fail.Exception, TrimTokError)):
        check()
