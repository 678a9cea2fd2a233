"""What every test needs before the package is imported."""

import os
from types import SimpleNamespace

# The kernels run in Triton's interpreter: there may be no GPU. It is read when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")


def patch_the_language_once() -> None:
    """Take out of the interpreter what it does anew, with one result, at every launch and call of a helper.

    That is to look through `triton.language` and replace what is in it: half the time of a small kernel.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):
        return  # another release: as slow as it is
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()


if os.environ["TRITON_INTERPRET"] == "1":
    patch_the_language_once()
