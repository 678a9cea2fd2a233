"""Compile a Triton kernel ahead of time, specialised exactly as a launch with these arguments would do it.

The specialisation (pointers and integers divisible by 16, integers equal to 1, 32 or 64 bits) is not
re-implemented: Triton's own binder is called with stand-ins for the arguments. Under TRITON_INTERPRET=1 the
triton module of this process cannot compile (tl.sum and friends are interpreted functions there), so a child
process without that variable does it; it stays alive and serves later requests.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import PtxsimError

NUMPY_TO_TRITON = {
    "float32": "fp32",
    "float64": "fp64",
    "float16": "fp16",
    "bfloat16": "bf16",
    "bool": "int1",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class CompiledCode:
    """What the compiler made: asm holds 'ptx' and 'cubin', or 'amdgcn' and 'hsaco'."""

    name: str
    target: str
    num_warps: int
    num_stages: int
    shared_bytes: int
    asm: dict[str, Any]
    signature: dict[str, str]  # argument -> type; "constexpr" for the compiled-in ones
    constants: dict[str, Any]  # compiled-in arguments, also the integers that equal 1
    attributes: dict[str, list]  # argument -> e.g. [["tt.divisibility", 16]]
    defaults: dict[str, Any] = field(default_factory=dict)
    global_scratch: int = 0

    @property
    def ptx(self) -> str:
        if "ptx" not in self.asm:
            raise PtxsimError(
                f"{self.name} was compiled for {self.target}: it has no PTX and cannot be executed here"
            )
        return self.asm["ptx"]


@dataclass(frozen=True)
class TensorArgument:
    """All that the compiler looks at in a tensor."""

    dtype: str
    aligned: bool
    nbytes: int = 0


@dataclass(frozen=True)
class Reference:
    """A jit function or a Triton dtype, by name: what can be sent to the child process."""

    kind: str
    name: str
    module: str = ""
    file: str = ""


@dataclass
class Request:
    kernel: Reference
    positional: list
    named: dict[str, Any]
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    assembled: bool = True


class StandIn:
    """Looks like a tensor to Triton's binder."""

    def __init__(self, argument: TensorArgument) -> None:
        import triton.language as tl

        self.dtype = tl.dtype(argument.dtype)
        self.argument = argument

    def data_ptr(self) -> int:
        return 256 if self.argument.aligned else 257

    def untyped_storage(self) -> StandIn:
        return self

    def size(self) -> int:
        return self.argument.nbytes


def describe_argument(value: Any) -> Any:
    """Replace an argument by what the compiler sees of it."""
    if isinstance(value, np.ndarray):
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        offset = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return TensorArgument(NUMPY_TO_TRITON[value.dtype.name], offset % 16 == 0, base.nbytes)
    if hasattr(value, "data_ptr"):
        offset = value.storage_offset() * value.element_size()
        name = str(value.dtype).removeprefix("torch.")
        if name not in NUMPY_TO_TRITON:
            raise TypeError(f"tensors of dtype {value.dtype} are not supported")
        return TensorArgument(NUMPY_TO_TRITON[name], offset % 16 == 0, value.untyped_storage().nbytes())
    if isinstance(value, np.generic):
        return value.item()
    return describe_constant(value)


def describe_constant(value: Any) -> Any:
    """Make a constexpr value picklable."""
    kind = type(value).__name__
    if kind == "constexpr":
        return describe_constant(value.value)
    if kind == "dtype" and type(value).__module__.startswith("triton"):
        return Reference("dtype", value.name)
    if kind in ("JITFunction", "InterpretedFunction"):
        return reference_to(value)
    if isinstance(value, tuple):
        return tuple(describe_constant(v) for v in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a kernel argument of type {type(value).__name__} is not supported")


def reference_to(kernel: Any) -> Reference:
    function = getattr(kernel, "fn", kernel)
    if type(kernel).__name__ not in ("JITFunction", "InterpretedFunction"):
        raise TypeError(
            f"expected a triton.jit function, got {type(kernel).__name__}; of an autotuned kernel pass "
            "the function itself (.fn) and name every constexpr"
        )
    return Reference(
        "kernel", function.__qualname__, function.__module__, inspect.getsourcefile(function) or ""
    )


def can_compile_here() -> bool:
    """False under TRITON_INTERPRET=1, whether it was set before or after triton was imported."""
    import triton
    import triton.language as tl

    return isinstance(tl.max, triton.JITFunction) and not triton.knobs.runtime.interpret


def compile_for(
    jit_kernel: Any,
    *args: Any,
    target: str = "sm_80",
    num_warps: int = 4,
    num_stages: int = 2,
    assembled: bool = True,
    **kwargs: Any,
) -> CompiledCode:
    """Compile a kernel for "sm_75" ... "sm_120" or "gfx942" ..., as a launch with these arguments would.

    Keyword arguments that the kernel does not declare are compiler options (maxnreg, enable_fp_fusion, ...).
    Without `assembled` PTX is the end of it, which is all that is executed, and a fifth of the time is saved.
    """
    names = list(inspect.signature(getattr(jit_kernel, "fn", jit_kernel)).parameters)
    named = {k: describe_argument(v) for k, v in kwargs.items() if k in names}
    options = {k: v for k, v in kwargs.items() if k not in names}
    options.update(num_warps=num_warps, num_stages=num_stages)
    reference = reference_to(jit_kernel)
    request = Request(reference, [describe_argument(a) for a in args], named, target, options, assembled)
    key = repr(
        (request.positional, sorted(named.items()), target, sorted(options.items()), reference, assembled)
    )
    if key not in _compiled:
        if can_compile_here() and type(jit_kernel).__name__ == "JITFunction":
            _compiled[key] = compile_request(request, jit_kernel)
        else:
            _compiled[key] = _child().compile(request)
    return _compiled[key]


_compiled: dict[str, CompiledCode] = {}


def gpu_target(target: str):
    from triton.backends.compiler import GPUTarget

    if target.startswith("sm_"):
        return GPUTarget("cuda", int(target[3:].rstrip("a")), 32)
    if target.startswith("gfx"):
        return GPUTarget("hip", target, 64 if target.startswith("gfx9") else 32)
    raise ValueError(f"target must look like sm_80 or gfx942, got {target!r}")


def specialization_of(kernel: Any, *args: Any, target: str = "sm_80", **kwargs: Any) -> str:
    """What tells a launch's compiled code from another's of the same kernel; compiles nothing.

    Tensors may be fake ones. Not under TRITON_INTERPRET=1.
    """
    names = list(kernel.signature.parameters)
    named = {k: describe_argument(v) for k, v in kwargs.items() if k in names}
    options = {k: v for k, v in kwargs.items() if k not in names}
    request = Request(reference_to(kernel), [describe_argument(a) for a in args], named, target, options)
    _, _, specialization, _ = bind(request, kernel)
    return f"{specialization} {sorted(options.items())}"


def bind(request: Request, kernel: Any) -> tuple[Any, Any, Any, Any]:
    """The backend, and what Triton's own binder makes of the arguments."""
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(gpu_target(request.target))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {**{k: restore(v) for k, v in request.named.items()}, **request.options}
    return backend, *binder(*[restore(a) for a in request.positional], **keywords)


def compile_request(request: Request, kernel: Any) -> CompiledCode:
    """Bind, specialise and compile, with the functions that a launch uses."""
    import triton
    from triton.compiler import ASTSource

    target = gpu_target(request.target)
    backend, bound, specialization, _ = bind(request, kernel)
    keywords = {**{k: restore(v) for k, v in request.named.items()}, **request.options}
    if any(isinstance(value, tuple) for value in bound.values()):
        raise TypeError("tuple arguments are not supported")
    options, signature, constants, attributes = kernel._pack_args(
        backend, dict(keywords), bound, specialization, {}
    )
    with triton.knobs.runtime.scope():
        if not request.assembled:
            triton.knobs.runtime.add_stages_inspection_hook = without_assembler
        code = triton.compile(
            ASTSource(kernel, signature, constants, attributes), target=target, options=options.__dict__
        )
    metadata = code.metadata
    names = kernel.arg_names
    return CompiledCode(
        name=metadata.name,
        target=request.target,
        num_warps=metadata.num_warps,
        num_stages=metadata.num_stages,
        shared_bytes=metadata.shared,
        asm={k: code.asm[k] for k in ("ptx", "cubin", "amdgcn", "hsaco") if code.asm.get(k)},
        signature=dict(signature),
        constants={names[path[0]]: describe_constant(value) for path, value in constants.items()},
        attributes={names[path[0]]: value for path, value in attributes.items()},
        defaults={
            name: describe_constant(p.default)
            for name, p in kernel.signature.parameters.items()
            if p.default is not inspect.Parameter.empty
        },
        global_scratch=getattr(metadata, "global_scratch_size", 0) or 0,
    )


def without_assembler(backend: Any = None, stages: Any = None, *_: Any) -> tuple[str, str]:
    """Triton's hook on its stages: leaves ptxas out. Also the key in its cache of code that is made so."""
    if stages is not None and "cubin" in stages:
        stages["cubin"] = lambda ptx, metadata: b""
    return "without assembler", "without assembler"


def restore(value: Any) -> Any:
    """The inverse of describe_argument, as far as the compiler can tell."""
    if isinstance(value, TensorArgument):
        return StandIn(value)
    if isinstance(value, tuple):
        return tuple(restore(v) for v in value)
    if isinstance(value, Reference):
        if value.kind == "dtype":
            import triton.language as tl

            return tl.dtype(value.name)
        return load_kernel(value)
    return value


# --- the child process ----------------------------------------------------------------------------


def load_kernel(reference: Reference) -> Any:
    """Import a kernel by module and name; by file if its module was a script."""
    if "<locals>" in reference.name:
        raise TypeError(
            f"{reference.name} is defined inside a function: under TRITON_INTERPRET=1 only kernels at "
            "the top of a module can be compiled"
        )
    try:
        if reference.module == "__main__":
            raise ImportError
        module = importlib.import_module(reference.module)
        if Path(getattr(module, "__file__", "") or "").resolve() != Path(reference.file).resolve():
            raise ImportError
    except ImportError:
        name = f"_ptxsim_{Path(reference.file).stem}_{abs(hash(reference.file))}"
        module = sys.modules.get(name)
        if module is None:
            spec = importlib.util.spec_from_file_location(name, reference.file)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
    found = module
    for part in reference.name.split("."):
        found = getattr(found, part)
    if type(found).__name__ != "JITFunction":
        raise TypeError(
            f"{reference.module}.{reference.name} is a {type(found).__name__} in the compiling process: "
            "does importing it set TRITON_INTERPRET?"
        )
    return found


class Child:
    """A Python process that compiles, with TRITON_INTERPRET removed from its environment."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        start = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.process.kill)

    def compile(self, request: Request) -> CompiledCode:
        pickle.dump((list(sys.path), request), self.process.stdin)
        self.process.stdin.flush()
        try:
            result = pickle.load(self.process.stdout)
        except EOFError:
            raise PtxsimError(
                f"the compiling process died with code {self.process.wait()} on "
                f"{request.kernel.name} for {request.target}"
            ) from None
        if isinstance(result, CompiledCode):
            return result
        raise PtxsimError(f"{request.kernel.name} does not compile for {request.target}:\n{result}")


_children: list[Child] = []


def _child() -> Child:
    if not _children or _children[0].process.poll() is not None:
        _children[:] = [Child()]
    return _children[0]


def serve() -> None:
    """The child's loop: requests on stdin, results on what was stdout; prints go to stderr."""
    import triton

    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    triton.knobs.runtime.interpret = False  # even if a kernel's module sets TRITON_INTERPRET when imported
    while True:
        try:
            path, request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        sys.path[:] = path
        try:
            result = compile_request(request, load_kernel(request.kernel))
        except BaseException:  # whatever it is, the parent reports it
            result = traceback.format_exc()
        pickle.dump(result, replies)
        replies.flush()
