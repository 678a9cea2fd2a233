"""trimtok_fast: training-free pruning of visual tokens for multimodal models, with fused Triton kernels.

A re-implementation of the published outline of TrimTokenator-LC (arXiv 2512.22748); D_intra as published, the
other formulas ours.
"""

from typing import TYPE_CHECKING, Any

from trimtok_fast.budgets import BudgetPlan, kept_counts, plan_budgets
from trimtok_fast.config import PruneConfig
from trimtok_fast.errors import (
    BackendUnavailableError,
    InvalidInputError,
    PatchStateError,
    TrimTokError,
    UnsupportedDtypeError,
    UnsupportedModelError,
)
from trimtok_fast.library import dpp_select, gather_tokens, greedy_select, pareto_front, token_statistics
from trimtok_fast.pipeline import PruneResult, prune
from trimtok_fast.registry import register_method
from trimtok_fast.statistics import TokenStatistics

if TYPE_CHECKING:
    from trimtok_fast.hf import PatchHandle, is_patched, patch, patched, unpatch

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "BudgetPlan",
    "InvalidInputError",
    "PatchHandle",
    "PatchStateError",
    "PruneConfig",
    "PruneResult",
    "TokenStatistics",
    "TrimTokError",
    "UnsupportedDtypeError",
    "UnsupportedModelError",
    "dpp_select",
    "gather_tokens",
    "greedy_select",
    "is_patched",
    "kept_counts",
    "pareto_front",
    "patch",
    "patched",
    "plan_budgets",
    "prune",
    "register_method",
    "token_statistics",
    "unpatch",
]

_PATCH = ("PatchHandle", "is_patched", "patch", "patched", "unpatch")


def __getattr__(name: str) -> Any:
    """The patch is loaded when it is asked for."""
    if name in _PATCH:
        from trimtok_fast import hf

        return getattr(hf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PATCH})
