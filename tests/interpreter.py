"""Triton's interpreter, with a memory: what it works out anew at every operation, it works out once.

No result hangs on it, but most of the time of a small kernel does.
"""

import functools
import gc
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

#: The operations whose overflow is looked for.
_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
#: The release whose inner workings are known here; any other is left as slow as it is.
RELEASE = "3.7.1"


def remember() -> None:
    """Give the interpreter its memory, before the first kernel runs."""
    import triton

    if triton.__version__ != RELEASE:
        return
    _remember_the_language()
    _remember_types()
    _skip_what_changes_nothing()
    # All of that makes many objects that are gone at once, and few circles to look for.
    gc.set_threshold(200_000, 50, 50)


def _remember_the_language() -> None:
    """At every launch and call of a helper: look through `triton.language` and replace what is in it."""
    import triton
    from triton.language import core
    from triton.runtime import interpreter

    # At every operation: take the semantics out of its arguments, put in the interpreter's, look for them.
    def patch(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        operation = getattr(member, "__wrapped__", member)

        def interpreted(*arguments: Any, _semantic: Any = None, **named: Any) -> Any:
            return operation(*arguments, _semantic=interpreter.interpreter_semantic, **named)

        scope.set_attr(owner, name, interpreted)

    interpreter._patch_attr = patch
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": triton.language, "core": core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()


def _remember_types() -> None:
    from triton.language import core
    from triton.runtime import interpreter

    # At every operation: the table of numpy's types, then one entry; the name of each of Triton's.
    numpy_type = interpreter._get_np_dtype
    scalar_type, pointer = functools.cache(numpy_type), numpy_type(core.pointer_type(core.float32))
    interpreter._get_np_dtype = lambda type: pointer if type.scalar.is_ptr() else scalar_type(type.scalar)
    ir_of_scalar, equals = functools.cache(core.dtype.to_ir), core.dtype.__eq__
    core.dtype.to_ir = lambda self, builder: ir_of_scalar(self, builder)
    core.dtype.__eq__ = lambda self, other: self is other or equals(self, other)

    # For every type of a block: check its shape. For every tensor: wrap each of its numbers.
    make_block, unwrap = core.block_type.__init__, core._unwrap_if_constexpr

    @functools.cache
    def known_block(*shape: int) -> Any:
        block = core.block_type.__new__(core.block_type)
        make_block(block, core.float32, list(shape))
        block.of_other_elements = {}
        return block

    @functools.cache
    def known_shape(*shape: int) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(length) for length in shape]), core.constexpr(math.prod(shape))

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        block = known_block(*map(unwrap, shape))
        self.element_ty, self.shape, self.numel = element_ty, block.shape, block.numel
        self.of_other_elements = block.of_other_elements
        self.name = f"<{self.shape}, {element_ty}>"

    def with_element_ty(self: Any, element_ty: Any) -> Any:
        known = self.of_other_elements
        if element_ty.name not in known:
            known[element_ty.name] = core.block_type(element_ty, self.shape)
        return known[element_ty.name]

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known_shape(*type.shape.values) if type.is_block() else known_shape()

    core.block_type.__init__ = init_block
    core.block_type.with_element_ty = with_element_ty
    core.block_type.to_ir = lambda self, builder: self.with_element_ty(self.element_ty.to_ir(builder))
    core.tensor.__init__ = init_tensor


def _skip_what_changes_nothing() -> None:
    from triton.language import core, semantic

    # Equal types and shapes are one object here. Operands that have them need neither casts nor broadcasting.
    operations = semantic.TritonSemantic
    check, broadcast = operations.binary_op_type_checking_impl, operations.broadcast_impl_value

    def check_operands(self: Any, left: Any, right: Any, *allowed: Any, **further: Any) -> Any:
        alike = (
            isinstance(left, core.tensor)
            and isinstance(right, core.tensor)
            and left.dtype is right.dtype
            and left.shape is right.shape
        )
        if alike and not left.dtype.is_ptr() and not further.get("div_or_mod", allowed[3:4] == (True,)):
            return left, right
        return check(self, left, right, *allowed, **further)

    def broadcast_operands(self: Any, left: Any, right: Any) -> Any:
        return (left, right) if left.shape is right.shape else broadcast(self, left, right)

    operations.binary_op_type_checking_impl = check_operands
    operations.broadcast_impl_value = broadcast_operands

    # Sums of 32-bit integers, again in 64 bits, to see them overflow: by numpy, not by the operations' rules.
    def check_overflow(self: Any, left: Any, right: Any, operation: Any) -> None:
        one, other = left.handle.data, right.handle.data
        if one.dtype.itemsize < 8 and one.dtype != bool:
            exact = _EXACT[operation.__name__](one.astype(np.int64), other.astype(np.int64))
            limits = np.iinfo(one.dtype)
            message = f"{one.dtype} overflow detected for operation {operation.__name__}"
            assert exact.min() >= limits.min and exact.max() <= limits.max, message

    operations.binary_op_sanitize_overflow_impl = check_overflow
