"""The state of a trimmed prompt, kept with its KV cache.

After a prefill that dropped tokens the cache holds fewer slots than the prompt had positions. Outside the
language model such a cache speaks of original positions: `get_seq_length()` is the length of the untrimmed
prompt, so that `generate()`, the outer model's position ids and its masks stay what they would have been.
Inside the language model it is the plain cache again, and what arrives from outside is translated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache as memoised
from typing import Any

import torch
from torch import Tensor

from trimtok_fast.errors import PatchStateError


@dataclass(frozen=True)
class Slots:
    """What the slots of a KV cache hold.

    Attributes:
        columns: int64 [B, S], the original position in each slot, -1 for padding.
        length: how many original positions were seen.
        right: whether padding stands to the right of a row's tokens.
    """

    columns: Tensor
    length: int
    right: bool = False

    def extended(self, count: int) -> Slots:
        """These slots, and `count` new positions in each row."""
        new = torch.arange(self.length, self.length + count, device=self.columns.device)
        columns = torch.cat([self.columns, new.expand(len(self.columns), -1)], dim=1)
        return replace(self, columns=columns, length=self.length + count)

    def shortened(self, count: int) -> Slots:
        """These slots without the last `count`."""
        columns = self.columns[:, : self.columns.shape[1] - count]
        return replace(self, columns=columns, length=self.length - count)

    def of_rows(self, rows: Tensor) -> Slots:
        """The slots of the given rows."""
        return replace(self, columns=self.columns[rows.to(self.columns.device)])


class TrimmedCache:
    """Mixin that `seal` puts in front of a cache's own class."""

    slots: Slots

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Original positions seen, in every layer."""
        return self.slots.length

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query: int | Tensor, *_: Any, **__: Any) -> tuple[int, int]:
        """Length and offset of a mask over all original positions and `query` new ones."""
        return self.slots.length + (query if isinstance(query, int) else len(query)), 0

    def update(self, *_: Any, **__: Any) -> Any:
        """Refuse tokens that come past the hooks."""
        raise PatchStateError(
            "past_key_values",
            "the patched model that trimmed this KV cache",
            "a model that is not patched (any more)",
            "Continue inside `patched(...)`, or start from an empty cache.",
        )

    def crop(self, count: int) -> None:
        """Remove the last `-count` positions; a positive `count` is the original length that stays."""
        removed = max(self.slots.length - count, 0) if count > 0 else -count
        removed = min(removed, self.slots.columns.shape[1])
        if removed or count <= 0:
            super().crop(-removed)  # type: ignore[misc]
        self.slots = self.slots.shortened(removed)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.slots = self.slots.of_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self.slots = self.slots.of_rows(torch.arange(len(self.slots.columns)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.slots = self.slots.of_rows(indices)

    def reset(self) -> None:
        """Forget everything: an empty cache is a plain one."""
        unseal(self)
        del self.slots
        self.reset()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        return _restore, (type(self).__mro__[2],), self.__dict__.copy()


@memoised
def _trimmed(plain: type) -> type:
    return type(f"Trimmed{plain.__name__}", (TrimmedCache, plain), {"__module__": __name__})


def _restore(plain: type) -> Any:
    return object.__new__(_trimmed(plain))


def seal(cache: Any, slots: Slots) -> None:
    """Make the cache speak of original positions."""
    cache.slots = slots
    cache.__class__ = _trimmed(type(cache))  # type: ignore[arg-type]  # mypy: a class is not hashable


def unseal(cache: Any) -> Slots:
    """Make it the plain cache again, as the language model needs it; `slots` stays until it is sealed."""
    cache.__class__ = type(cache).__mro__[2]
    return cache.slots


def half_written() -> PatchStateError:
    """The error for a KV cache of a call that did not come to its end."""
    return PatchStateError(
        "past_key_values",
        "a KV cache that every layer wrote the same tokens to",
        "one that a failed or interrupted call left half-written",
        "Start again from an empty cache.",
    )
