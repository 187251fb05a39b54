"""What one method costs in a process of its own: processor time, and memory above the start."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["Outcome", "Work", "measure", "processor_seconds"]

REPEATS, BUDGET = 5, 3.0  # at most so many runs, begun while they have taken less


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
    preparing : float
        Seconds of the run that were set-up.
    facts : dict
        Whatever else the page says of it.
    """

    scores: list[list[Any]]
    count: int = 0
    preparing: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


Work = Callable[[], Outcome]


def processor_seconds() -> float:
    """Seconds that this process, all its threads and its ended children have computed."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def settle() -> None:
    """Hand back what is free, and forget the peak so far."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc hands freed memory back
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_bytes() -> tuple[int, int]:
    """Resident memory now, and at most.

    Linux tells both; its `ru_maxrss` would start from what the process was forked from. Elsewhere
    that is all there is, and the peak stands for both.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
        return now, peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak if sys.platform == "darwin" else 1024 * peak
    return peak, peak


def measure(
    make: Callable[[], Work], package: str, tried: Callable[[], Work] | None = None
) -> dict[str, Any]:
    """Set a method up and run it, up to some times.

    It is tried before on little, which pays for what libraries put off until they are used. Memory
    is that of the first run; the quickest run counts: what else this machine does only adds to it.
    """
    if tried is not None:
        _run(tried)
    begun = processor_seconds()  # imports and all
    settle()
    before, _ = resident_bytes()
    outcome, *first = _run(make)
    _, peak = resident_bytes()
    runs = [first]
    while len(runs) < REPEATS and sum(map(sum, runs)) < BUDGET:
        outcome, *again = _run(make)
        runs.append(again)
    setup, seconds = min(runs, key=sum)
    return asdict(outcome) | {
        "status": "measured",
        "count": outcome.count or len(outcome.scores),
        "trial_seconds": begun,
        "setup_seconds": setup,
        "seconds": seconds,
        "repeats": len(runs),
        "peak_bytes": peak,
        "above_bytes": peak - before,
        "threads": torch.get_num_threads(),
        "versions": versions(package),
    }


def _run(make: Callable[[], Work]) -> tuple[Outcome, float, float]:
    """What it finds, and seconds of setting up and of running."""
    start = processor_seconds()
    work = make()
    middle = processor_seconds()
    outcome = work()
    end = processor_seconds()
    return outcome, middle - start + outcome.preparing, end - middle - outcome.preparing


def versions(package: str) -> dict[str, str]:
    """Versions of what was measured."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        found[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
        found[package] = "not installed"
    return found
