"""What one method costs in a process of its own: processor time, and memory above the start."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import torch

__all__ = ["Outcome", "Work", "measure"]

REPEATS, BUDGET = 7, 6.0  # at most so many runs, and seconds of them


@dataclass
class Outcome:
    """What a method found.

    Attributes
    ----------
    scores : list
        ``[layer, index, score]`` of neurons, or ``[source layer, index, target layer, index,
        score]`` of edges, in the names of the plain model.
    count : int
        How many scores were computed, where the list does not hold them all.
    told : dict
        Whatever else the page says of it.
    """

    scores: list[list[Any]]
    count: int = 0
    told: dict[str, Any] = field(default_factory=dict)


Work = Callable[[], Outcome]


def processor_seconds() -> float:
    """Seconds that this process, all its threads and its ended children have computed."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def peak_bytes() -> int:
    """Most that was ever resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(make: Callable[[], Work], package: str) -> dict[str, Any]:
    """Set a method up and run it: once as it comes, then again, warm.

    The first run pays for what libraries put off until they are used, and is what memory is read
    from; the medians of the later ones are what the tables compare.
    """
    before, begun = peak_bytes(), time.perf_counter()
    start = processor_seconds()
    work = make()
    middle = processor_seconds()
    outcome = work()
    first = [middle - start, processor_seconds() - middle]
    peak = peak_bytes()
    setups: list[float] = []
    runs: list[float] = []
    while len(runs) < REPEATS and (not runs or sum(setups) + sum(runs) < BUDGET):
        if sum(first) > BUDGET:
            setups, runs = [first[0]], [first[1]]
            break
        start = processor_seconds()
        work = make()
        middle = processor_seconds()
        outcome = work()
        setups.append(middle - start)
        runs.append(processor_seconds() - middle)
    return asdict(outcome) | {
        "status": "measured",
        "count": outcome.count or len(outcome.scores),
        "first_seconds": first,
        "setup_seconds": statistics.median(setups),
        "seconds": statistics.median(runs),
        "repeats": len(runs),
        "wall_seconds": time.perf_counter() - begun,
        "peak_bytes": peak,
        "above_bytes": peak - before,
        "threads": torch.get_num_threads(),
        "versions": versions(package),
        "pid": os.getpid(),
    }


def versions(package: str) -> dict[str, str]:
    """Versions of what was measured."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        found[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
        found[package] = "not installed"
    return found
