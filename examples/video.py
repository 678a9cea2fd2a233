"""A video and an image: every frame group of the video counts as an image of the method."""

import tiny

import trimtok_fast as tt

model = tiny.model()
inputs = tiny.prompt([(6, 8, 8), (1, 8, 8)])  # (frames, height, width) in patches

config = tt.PruneConfig(keep_ratio=0.25, min_tokens_per_image=2)  # no frame goes unseen
with tt.patched(model, config) as handle:
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)

*frames, image = handle.last.results[0].cu_tokens.diff().tolist()
print(f"{int(handle.last.visual_before)} -> {int(handle.last.visual_after)} visual tokens")
print(f"frame groups keep {frames}, the image keeps {image}")
print(ids[0, inputs["input_ids"].shape[1] :].tolist())
