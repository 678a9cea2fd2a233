"""The methods that `PruneConfig(method=…)` can name, and how to add one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from trimtok_fast.errors import InvalidInputError, UnsupportedDtypeError

if TYPE_CHECKING:
    from trimtok_fast.methods.batch import Batch

#: What a method picks, rows of the tokens, and, if it has any, the value that each had when it was picked.
Picks = Tensor | tuple[Tensor, Tensor]
Select = Callable[["Batch"], Picks]

#: The two stages of `prune` itself, which no function replaces.
TWO_STAGES = "trimtokenator-lc"


@dataclass(frozen=True)
class Method:
    """A method of one stage, by its function.

    Attributes:
        select: picks from a `Batch`.
        center: what directions are taken about, whatever the config says; `None` leaves it to the config.
    """

    select: Select
    center: Literal["sample", "none"] | None


#: All methods but `TWO_STAGES`, by name.
METHODS: dict[str, Method] = {}


def method_names() -> tuple[str, ...]:
    """Every name that `PruneConfig(method=…)` takes."""
    return (TWO_STAGES, *METHODS)


def register_method(
    name: str, *, center: Literal["sample", "none"] | None = None
) -> Callable[[Select], Select]:
    """Add a method of one's own, which `prune` and the patch then know by its name.

    `prune` checks the input, takes the statistics, counts what every sample keeps and builds the result; the
    method is a function that picks. What it picks is checked, unless `config.check_finite` is off.

    Args:
        name: what `PruneConfig(method=…)` shall call it.
        center: `"none"` takes directions (in `Batch.statistics` and `Batch.greedy`) about 0, `"sample"` about
            each sample's mean, `None` as `PruneConfig.center` says.

    Returns:
        A decorator of a function that takes a `Batch` and returns the rows of its tokens that stay, int64
        [Σ keep], sample by sample, in any order within a sample; or a pair of them and of their values,
        floats [Σ keep]. It gives back the function.

    Raises:
        InvalidInputError: a name that is empty, or taken by a function defined elsewhere: the same definition
            may run again.
        UnsupportedDtypeError: a name that is not a string, or not a function.

    Note:
        A batch must give each sample the picks that it gets alone: work sample by sample, or by ops that do.

    Example:
        >>> import torch, trimtok_fast as tt
        >>> @tt.register_method("longest")
        ... def longest(batch):
        ...     norms = batch.tokens.float().norm(dim=1)
        ...     return torch.cat(
        ...         [
        ...             norms[rows].topk(keep).indices + rows.start
        ...             for rows, keep in zip(batch.samples, batch.keep)
        ...         ]
        ...     )
        >>> config = tt.PruneConfig(method="longest", keep_tokens=2)
        >>> tt.prune(torch.arange(8.0).view(8, 1), [0, 3, 8], config=config).indices.tolist()
        [6, 7]
    """
    if not isinstance(name, str):
        raise UnsupportedDtypeError("name", "a string", type(name).__name__, "Name the method.")
    if not name:
        raise InvalidInputError("name", "a name", "an empty one", "Name the method.")
    if center not in ("sample", "none", None):
        raise InvalidInputError("center", "'sample', 'none' or None", repr(center), "Use one of the three.")

    def register(select: Select) -> Select:
        if not callable(select):
            raise UnsupportedDtypeError(
                "select", "a function of a Batch", type(select).__name__, "Decorate a function."
            )
        if name == TWO_STAGES or (name in METHODS and not _same_place(METHODS[name].select, select)):
            raise InvalidInputError(
                "name", "a name of its own", repr(name), f"Taken are {', '.join(method_names())}."
            )
        METHODS[name] = Method(select, center)
        return select

    return register


def _same_place(one: Select, other: Select) -> bool:
    """Whether two functions come from one definition, run twice: a cell of a notebook, a reloaded module."""
    return [getattr(one, key, None) for key in ("__module__", "__qualname__")] == [
        getattr(other, key, other) for key in ("__module__", "__qualname__")
    ]
