"""The patch for Hugging Face's large multimodal models.

The way of the data: `hooks` sees a call, `images` finds its images, `selection` chooses, `trimming` (with
`masks`) hands the language model what is left, `cache` remembers what was left out. `families` says in what
the models differ, `patching` puts the hooks on and takes them off. Nothing here imports transformers.

What would go unpruned is an error: images whose features came by another way than the outer module's
getters, images on a KV cache that is not empty, a `forward` called past its hooks. So is what would go wrong:
a KV cache that an interrupted call left half-written, or that an unpatched model continues. What early
releases of transformers 5 get wrong themselves (README) stays as it is there, or is one of these errors.
"""

from trimtok_fast.hf.patching import PatchHandle, is_patched, patch, patched, unpatch
from trimtok_fast.hf.selection import Prefill

__all__ = ["PatchHandle", "Prefill", "is_patched", "patch", "patched", "unpatch"]
