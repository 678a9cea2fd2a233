"""What the command line asks of every section."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.harness import TURN, Effort

Item = TypeVar("Item")


@dataclass(frozen=True)
class Options:
    """How much to measure.

    Attributes:
        quick: small shapes, one round of short turns, no targets.
        rounds: interleaved rounds of a case.
        patience: seconds that a contender may use in a case, and one of its runs may take.
        only: only the cases whose name contains this, commas aside.
    """

    quick: bool = False
    rounds: int = 7
    patience: float = 10
    only: str = ""

    def effort(self, rounds: int | None = None, patience: float | None = None) -> Effort:
        """As much as asked for, or as little as a section wants."""
        return Effort(
            min(self.rounds, rounds or self.rounds, 1 if self.quick else self.rounds),
            min(self.patience if patience is None else patience, 1 if self.quick else float("inf")),
            turn=TURN / 10 if self.quick else TURN,
        )

    def chosen(self, cases: Iterable[Item], name: Callable[[Item], str]) -> list[Item]:
        """The cases whose name contains `only`; where there is none, says which there are."""
        named = [(name(case), case) for case in cases]
        text = self.only.replace(",", "")
        found = [case for called, case in named if text in called.replace(",", "")]
        if not found:
            names = (called for called, _ in named)
            print(
                f"No case here has {self.only!r} in its name. There are:", *names, sep="\n  ", file=sys.stderr
            )
        return found
