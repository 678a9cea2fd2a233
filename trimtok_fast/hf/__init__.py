"""The patch for Hugging Face's large multimodal models.

The way of the data: `hooks` sees a call, `images` finds its images, `selection` chooses, `trimming` (with
`masks`) hands the language model what is left, `cache` remembers what was left out. `families` says in what
the models differ, `patching` puts the hooks on and takes them off. Nothing here imports transformers.
"""

from trimtok_fast.hf.patching import PatchHandle, is_patched, patch, patched, unpatch
from trimtok_fast.hf.selection import Prefill

__all__ = ["PatchHandle", "Prefill", "is_patched", "patch", "patched", "unpatch"]
