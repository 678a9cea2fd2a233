"""Checks of tensor arguments, shared by all ops and all backends."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtok_fast.errors import InvalidInputError, UnsupportedDtypeError
from trimtok_fast.segments import Boundaries, Segments, parse_boundaries

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def describe(value: object) -> str:
    """What was got, in a few words."""
    if isinstance(value, Tensor):
        dtype, layout = (str(name).removeprefix("torch.") for name in (value.dtype, value.layout))
        kind = dtype if layout == "strided" else f"{dtype} {layout}"
        shape = "of nested shape" if value.is_nested else list(value.shape)
        return f"{kind} {shape} on {value.device}"
    return type(value).__name__


def check_floats(argument: str, value: object, shape: str, ndim: int) -> Tensor:
    """The tensor, detached, if it holds floats in `ndim` dimensions."""
    wanted = f"a float32, float16, bfloat16 or float64 tensor {shape}"
    if not isinstance(value, Tensor):
        raise UnsupportedDtypeError(argument, wanted, describe(value), "Pass a torch tensor.")
    if value.dtype not in FLOATS:
        how = "dequantize" if value.is_quantized else "float"
        remedy = f"Call {argument}.{how}()." if not value.is_complex() else "Pass real numbers."
        raise UnsupportedDtypeError(argument, wanted, describe(value), remedy)
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        remedy = "Load it onto a device." if value.is_meta else f"Pass {argument} as one dense tensor."
        raise InvalidInputError(argument, "a dense tensor with data", describe(value), remedy)
    if value.ndim != ndim:
        raise InvalidInputError(argument, wanted, describe(value), f"Reshape {argument} to {shape}.")
    return value.detach()


def check_tokens(value: object) -> Tensor:
    """`tokens` [M, d]: floats, at least one channel."""
    tokens = check_floats("tokens", value, "[M, d]", 2)
    if tokens.shape[1] == 0:
        raise InvalidInputError("tokens", "[M, d] with d of 1 or more", describe(tokens), "Pass embeddings.")
    return tokens


def check_like(argument: str, value: object, shape: tuple[int, ...], tokens: Tensor, names: str) -> Tensor:
    """A float tensor of the given shape on the tokens' device."""
    tensor = check_floats(argument, value, names, len(shape))
    if tensor.shape != shape:
        raise InvalidInputError(
            argument,
            f"{names} = {list(shape)}",
            describe(tensor),
            "Pass what belongs to these tokens and boundaries.",
        )
    return check_device(argument, tensor, tokens)


def check_device(argument: str, value: Tensor, tokens: Tensor) -> Tensor:
    """The tensor, if it is where the tokens are."""
    if value.device != tokens.device:
        raise InvalidInputError(
            argument,
            f"a tensor on {tokens.device}",
            f"one on {value.device}",
            f"Call {argument}.to({str(tokens.device)!r}).",
        )
    return value


def check_text(
    text: object, cu_text: Boundaries | None, tokens: Tensor, samples: Segments
) -> tuple[Tensor | None, Segments | None]:
    """The text tokens [t, d] and their samples; neither where there is no text."""
    if text is None:
        if cu_text is not None:
            raise InvalidInputError(
                "cu_text", "no boundaries without text", "boundaries", "Pass text as well."
            )
        return None, None
    words = check_device("text", check_floats("text", text, "[t, d]", 2), tokens)
    if words.shape[1] != tokens.shape[1]:
        raise InvalidInputError(
            "text",
            f"text tokens as wide as `tokens`, {tokens.shape[1]}",
            f"width {words.shape[1]}",
            "Pass the language model's input embeddings of the text.",
        )
    if cu_text is None:
        if len(samples) > 1:
            raise InvalidInputError(
                "cu_text", f"boundaries of {len(samples)} samples' text", "None", "Say which text is whose."
            )
        return words, Segments((0, len(words)))
    return words, check_text_boundaries(cu_text, len(words), len(samples))


def check_text_boundaries(cu_text: Boundaries, words: int, samples: int) -> Segments:
    """`cu_text` [s + 1]; a sample may have no text."""
    segments = parse_boundaries("cu_text", cu_text, words, "text tokens", "sample", allow_empty=True)
    if len(segments) != samples:
        raise InvalidInputError(
            "cu_text",
            f"{samples + 1} boundaries, one stretch a sample",
            f"{len(segments) + 1}",
            "Repeat the boundary of a sample without text.",
        )
    return segments


def check_rows(argument: str, value: object, count: int, tokens: Tensor) -> Tensor:
    """Row numbers: int32 or int64 [N] on the tokens' device, each in [0, count); reads them."""
    wanted = f"int64 row numbers in [0, {count})"
    if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
        raise UnsupportedDtypeError(argument, wanted, describe(value), "Pass an int64 tensor.")
    if value.ndim != 1:
        raise InvalidInputError(
            argument, wanted + " in one dimension", describe(value), f"Flatten {argument}."
        )
    check_device(argument, value, tokens)
    if value.layout != torch.strided:
        raise InvalidInputError(argument, wanted + " in a dense tensor", describe(value), "Call .to_dense().")
    # Read together: on a GPU every reading waits for the device.
    low, high = torch.stack(value.aminmax()).tolist() if len(value) else (0, -1)
    if low < 0 or high >= count:
        raise InvalidInputError(argument, wanted, f"{low} to {high}", "Count rows of `tokens`, from 0.")
    return value.long().contiguous()  # torch.searchsorted warns of strided ones


def check_distinct(argument: str, rows: Tensor, segments: Segments, names: str) -> None:
    """Raise if a row stands twice in one segment."""
    owner = segments.owner(rows.device)
    order = rows.argsort(stable=True)
    order = order[owner[order].argsort(stable=True)]
    rows, owner = rows[order], owner[order]
    twice = (rows[1:] == rows[:-1]) & (owner[1:] == owner[:-1])
    if bool(twice.any()):
        at = int(twice.nonzero()[0])
        raise InvalidInputError(
            argument,
            f"each row once in a {names}",
            f"row {int(rows[at])} twice in {names} {int(owner[at])}",
            "Drop the copy.",
        )
