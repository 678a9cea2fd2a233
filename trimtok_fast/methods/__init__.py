"""The relatives of TrimTokenator-LC (METHOD §6), one a file, composed of the ops; imported, they register."""

from trimtok_fast.methods import cdpruner, divprune, random, trimtokenator, uniform
from trimtok_fast.methods.batch import Batch

__all__ = ["Batch", "cdpruner", "divprune", "random", "trimtokenator", "uniform"]
