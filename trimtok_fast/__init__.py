"""trimtok_fast: training-free pruning of visual tokens for multimodal models, with fused Triton kernels.

A re-implementation of the published outline of TrimTokenator-LC (arXiv 2512.22748); D_intra as published, the
other formulas ours.
"""

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

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "BudgetPlan",
    "InvalidInputError",
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
    "kept_counts",
    "pareto_front",
    "plan_budgets",
    "prune",
    "register_method",
    "token_statistics",
]
