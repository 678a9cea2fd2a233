"""Ask one question about several images.

python examples/several_images.py                                     a tiny random model
python examples/several_images.py Qwen/Qwen2.5-VL-7B-Instruct *.jpg    a real one
"""

import sys

import trimtok_fast as tt


def load(name: str, paths: list[str]):
    """A real model and its inputs."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(name)
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", attn_implementation="sdpa")
    content = [{"type": "image", "image": Image.open(path)} for path in paths]
    content.append({"type": "text", "text": "What do these images have in common?"})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return model, inputs, processor


if len(sys.argv) > 1:
    model, inputs, processor = load(sys.argv[1], sys.argv[2:])
else:
    import tiny

    model, inputs, processor = tiny.model(), tiny.prompt([(1, 16, 16), (1, 8, 12), (1, 16, 8)]), None

with tt.patched(model, tt.PruneConfig(keep_ratio=0.2)) as handle:
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)

answer = ids[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0] if processor else answer[0].tolist())
print(f"{int(handle.last.visual_before)} visual tokens, {int(handle.last.visual_after)} kept")
for image, budget in enumerate(handle.last.results[0].cu_tokens.diff().tolist()):
    print(f"image {image}: {budget} tokens")
