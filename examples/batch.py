"""A padded batch: two images, no image, one image. Each row is pruned as if it were alone."""

import tiny

import trimtok_fast as tt

model = tiny.model()
inputs = tiny.prompt([(1, 8, 8), (1, 16, 8)], [], [(1, 12, 12)])

handle = tt.patch(model, tt.PruneConfig(keep_tokens=8))  # at most 8 visual tokens a row
ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
tt.unpatch(model)

for row, (before, after) in enumerate(zip(handle.last.visual_before, handle.last.visual_after, strict=True)):
    kept = handle.last.kept[row].nonzero().squeeze(1).tolist()
    print(f"row {row}: {before} -> {after} visual tokens, positions {kept}")
    print(f"       {ids[row, inputs['input_ids'].shape[1] :].tolist()}")
