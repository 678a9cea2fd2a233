"""`PruneConfig`: everything that decides what is kept, in one frozen, checked object."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal

from trimtok_fast.errors import InvalidInputError, UnsupportedDtypeError
from trimtok_fast.registry import TWO_STAGES, method_names

Objective = Literal["coverage", "max_min", "max_mean"]
OBJECTIVES: tuple[Objective, ...] = ("coverage", "max_min", "max_mean")
CENTERS = ("sample", "none")
DEFAULT_KEEP_RATIO = 0.2


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """How much to keep, and by which rules.

    Args:
        keep_ratio: share of each sample's tokens to keep, in (0, 1]; 0.2 if neither this nor `keep_tokens` is
            given.
        keep_tokens: number of tokens to keep per sample, instead of a ratio; a sample with fewer keeps them
            all.
        min_tokens_per_image: tokens that every image keeps at least (all of a smaller image); 0 allows images
            to vanish, which leaves placeholders with nothing behind them.
        center: `"sample"` takes every direction about the sample's mean token, `"none"` about 0.
        pool_fraction: where the candidates of the Pareto selection lie between the kept tokens (0) and all
            survivors of stage 1 (1); a sample without text has no selection and no other candidates than
            what it keeps.
        stage_split: how much of the pruning stage 1 does: `"adaptive"` weighs the images' variation against
            their diversity, a number w in [0, 1] fixes it (0: stage 2 does all of it, 1: stage 1 does all of
            it).
        text_share: share of the kept tokens that the text has a say in; the others represent their images.
        image_objective: greedy objective of stage 1.
        pool_objective: greedy objective of stage 2's pool.
        candidates: candidates in a round of `max_min` and `cdpruner` (of `max_min`, kernels take 128 at most,
            a CPU more in large segments); speed alone depends on it, not the result.
        workspace_bytes: bound on the directions and similarities that are stored at a time; larger segments
            go block by block and compute them again.
        check_finite: refuse NaN, infinities and norms above 1e18, which count as zero tokens otherwise.
        method: who chooses: `"trimtokenator-lc"`, `"trimtokenator"`, `"divprune"`, `"cdpruner"`, `"random"`,
            `"uniform"`, or one of your own (`register_method`). The others have one stage and are what their
            papers say: they know neither pools nor objectives, take directions about 0, and
            `min_tokens_per_image` raises what they keep in all but fills no image up.
        seed: of `"random"`.

    Raises:
        InvalidInputError: a value is outside its range, or both `keep_ratio` and `keep_tokens` are given.
        UnsupportedDtypeError: a value has the wrong type.

    Source:
        METHOD §2–§4, §6; the defaults are ours.

    Example:
        >>> PruneConfig(keep_tokens=512).keep_ratio is None
        True
    """

    keep_ratio: float | None = None
    keep_tokens: int | None = None
    min_tokens_per_image: int = 1
    center: Literal["sample", "none"] = "sample"
    pool_fraction: float = 1.0
    stage_split: Literal["adaptive"] | float = "adaptive"
    text_share: float = 0.5
    image_objective: Objective = "coverage"
    pool_objective: Objective = "max_min"
    candidates: int = 128
    workspace_bytes: int = 512 * 2**20
    check_finite: bool = True
    method: str = TWO_STAGES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and self.keep_tokens is not None:
            raise InvalidInputError(
                "keep_ratio",
                "either keep_ratio or keep_tokens",
                "both",
                "Give one of the two; to replace one by the other, set it to None.",
            )
        if self.keep_tokens is not None:
            self._set("keep_tokens", check_integer("keep_tokens", self.keep_tokens, minimum=1))
        elif self.keep_ratio is None:
            self._set("keep_ratio", DEFAULT_KEEP_RATIO)
        else:
            self._set("keep_ratio", _check_share("keep_ratio", self.keep_ratio, zero_allowed=False))
        floor = check_integer("min_tokens_per_image", self.min_tokens_per_image, minimum=0)
        self._set("min_tokens_per_image", floor)
        check_name("center", self.center, CENTERS)
        self._set("pool_fraction", _check_share("pool_fraction", self.pool_fraction))
        if isinstance(self.stage_split, str):
            check_name("stage_split", self.stage_split, ("adaptive",), also="a number in [0, 1]")
        else:
            self._set("stage_split", _check_share("stage_split", self.stage_split))
        self._set("text_share", _check_share("text_share", self.text_share))
        check_name("image_objective", self.image_objective, OBJECTIVES)
        check_name("pool_objective", self.pool_objective, OBJECTIVES)
        self._set("candidates", check_integer("candidates", self.candidates, minimum=1))
        self._set("workspace_bytes", check_integer("workspace_bytes", self.workspace_bytes, minimum=0))
        check_flag("check_finite", self.check_finite)
        check_name("method", self.method, method_names())
        self._set("seed", check_integer("seed", self.seed, minimum=0))

    def _set(self, name: str, value: float | int) -> None:
        # Plain numbers: numpy's overflow in their width, fractions fail beside tensors, JSON knows neither.
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON; `from_dict` takes it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruneConfig:
        """Build a config from `to_dict`'s output, or from any subset of its keys.

        Raises:
            InvalidInputError: a key is not a field of `PruneConfig`, or a value is outside its range.
            UnsupportedDtypeError: not a mapping, or a value has the wrong type.
        """
        if not isinstance(values, Mapping):
            got = type(values).__name__
            raise UnsupportedDtypeError("values", "a mapping", got, "Pass to_dict()'s output.")
        fields = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in fields:
                close = difflib.get_close_matches(str(key), fields, n=1)
                raise InvalidInputError(
                    str(key),
                    f"one of {', '.join(fields)}",
                    "an unknown key",
                    f"Did you mean {close[0]!r}?" if close else "Remove the key.",
                )
        return cls(**values)


def check_config(config: PruneConfig | None) -> PruneConfig:
    """The config itself, or the defaults for `None`; anything else is an error."""
    if config is None:
        return PruneConfig()
    if not isinstance(config, PruneConfig):
        raise UnsupportedDtypeError(
            "config", "a PruneConfig", type(config).__name__, "Build one: PruneConfig(keep_ratio=0.2)."
        )
    return config


def check_name(argument: str, value: object, names: tuple[str, ...], also: str = "") -> None:
    """Raise unless `value` is one of `names`."""
    if not isinstance(value, str) or value not in names:
        close = difflib.get_close_matches(str(value), names, n=1)
        wanted = " or ".join([*(repr(name) for name in names), *([also] if also else [])])
        remedy = f"Did you mean {close[0]!r}?" if close else "Use one of the names."
        raise InvalidInputError(argument, wanted, repr(value), remedy)


def check_integer(argument: str, value: object, minimum: int) -> int:
    """The value as a plain int, if it is an integer of at least `minimum` that fits int64."""
    wanted = f"an integer of at least {minimum}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UnsupportedDtypeError(argument, wanted, f"{value!r} ({type(value).__name__})", "Pass an int.")
    if value < minimum:
        raise InvalidInputError(argument, wanted, repr(value), f"Raise it to {minimum} or more.")
    number = int(value)
    if number >= 2**63:
        raise InvalidInputError(argument, f"{wanted}, below 2**63", "a larger one", "Lower it.")
    return number


def check_flag(argument: str, value: object) -> None:
    """Raise unless `value` is a bool."""
    if not isinstance(value, bool):
        raise UnsupportedDtypeError(
            argument, "True or False", f"{value!r} ({type(value).__name__})", "Pass a bool."
        )


def _check_share(argument: str, value: object, zero_allowed: bool = True) -> float:
    wanted = "a number in [0, 1]" if zero_allowed else "a number in (0, 1]"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UnsupportedDtypeError(argument, wanted, f"{value!r} ({type(value).__name__})", "Pass a float.")
    try:
        number = float(value)
    except OverflowError:  # an int beyond 1e308
        number = math.inf
    if not 0 <= number <= 1 or (number == 0 and not zero_allowed):  # NaN fails every comparison
        remedy = (
            "A count of tokens goes into keep_tokens."
            if argument == "keep_ratio"
            else "Choose a value inside."
        )
        raise InvalidInputError(argument, wanted, repr(value), remedy)
    return number
