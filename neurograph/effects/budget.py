"""Budgets for verifying: a time, shared out by how much each step costs, or a number."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from neurograph.errors import OptionError
from neurograph.utils.checks import is_number, shown, whole

__all__ = ["Allowance", "Budget", "Schedule", "parse_budget"]

_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """Either a time in seconds, or how many of each layer and sign are measured."""

    seconds: float | None = None
    count: int | None = None


def parse_budget(budget: int | str) -> Budget:
    """Read a budget as users write it.

    Examples
    --------
    >>> parse_budget("60s"), parse_budget("1.5min")
    (Budget(seconds=60.0, count=None), Budget(seconds=90.0, count=None))
    >>> parse_budget(16)
    Budget(seconds=None, count=16)
    """
    if is_number(budget):
        return Budget(count=whole(budget, "budget", least=1))
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s|min|h)\s*", str(budget))
    seconds = float(match.group(1)) * _UNITS[match.group(2)] if match else 0.0
    if seconds <= 0 or not isinstance(budget, str):
        raise OptionError(
            f"budget={shown(budget)}: write a time, like '60s' or '5min', or a number of neurons "
            "of each layer and sign to measure"
        )
    return Budget(seconds=seconds)


@dataclass(frozen=True)
class Schedule:
    """What verifying may take, and when: for scorers that choose what to measure.

    Attributes
    ----------
    budget : Budget
    start : float
        When the time began, as `time.monotonic` has it.
    seed : int
        Chooses what is measured at random.
    phases : mapping of str to float
        Until which share of the time there are ``nodes``, ``totals`` and ``edges``; those of one
        share come by turns.
    """

    budget: Budget
    start: float
    seed: int
    phases: Mapping[str, float]


class Allowance:
    """Time until a moment, shared out among pieces of work by what they cost.

    Parameters
    ----------
    until : float
        The moment, as `time.monotonic` has it.
    cost : float
        Of all the work there will be, in any unit.
    """

    def __init__(self, until: float, cost: float) -> None:
        self.until, self.left = until, cost

    def share(self, cost: float) -> float:
        """Seconds for the next piece of work, of what is left; what it saves goes to the others.

        A small piece has a fiftieth of what is left: loading code can take that.
        """
        part = max(0.02, min(1.0, cost / max(self.left, 1e-9)))
        seconds = max(0.0, self.until - time.monotonic()) * part
        self.left -= cost
        return seconds
