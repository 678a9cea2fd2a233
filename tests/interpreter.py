"""Triton's interpreter, with a memory: what it works out anew at every operation, it works out once.

No result hangs on it, but half of the time of a small kernel does.
"""

import functools
import gc
import math
from types import SimpleNamespace
from typing import Any

#: The release whose inner workings are known here; any other is left as slow as it is.
RELEASE = "3.7.1"


def remember() -> None:
    """Give the interpreter its memory, before the first kernel runs."""
    import triton
    from triton.language import core
    from triton.runtime import interpreter

    if triton.__version__ != RELEASE:
        return

    # At every launch and call of a helper: look through `triton.language` and replace what is in it.
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": triton.language, "core": core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()

    # At every operation: the table of numpy's types, then one entry.
    numpy_type = interpreter._get_np_dtype
    scalar_type, pointer = functools.cache(numpy_type), numpy_type(core.pointer_type(core.float32))
    interpreter._get_np_dtype = lambda type: pointer if type.scalar.is_ptr() else scalar_type(type.scalar)

    # For every type of a block: check its shape. For every tensor: wrap each of its numbers.
    make_block, unwrap = core.block_type.__init__, core._unwrap_if_constexpr

    @functools.cache
    def known_block(*shape: int) -> Any:
        block = core.block_type.__new__(core.block_type)
        make_block(block, core.float32, list(shape))
        return block

    @functools.cache
    def known_shape(*shape: int) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(length) for length in shape]), core.constexpr(math.prod(shape))

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        block = known_block(*map(unwrap, shape))
        self.element_ty, self.shape, self.numel = element_ty, block.shape, block.numel
        self.name = f"<{self.shape}, {element_ty}>"

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known_shape(*type.shape.values) if type.is_block() else known_shape()

    core.block_type.__init__ = init_block
    core.tensor.__init__ = init_tensor

    # All of that makes many objects that are gone at once, and few circles to look for.
    gc.set_threshold(200_000, 50, 50)
