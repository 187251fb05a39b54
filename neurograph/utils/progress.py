"""Progress bars where a person watches, nothing elsewhere."""

from __future__ import annotations

import os
import sys

import rich.progress

__all__ = ["Progress"]


class Progress:
    """One bar for one step of the work; a context manager that does nothing where unseen.

    Parameters
    ----------
    step : str
        What is being done, as the bar says it.
    shown : bool, optional
        True or False to decide; by default a bar appears on a terminal, not in CI.
    total : int, optional
        How much there is to do, if that is known.
    unit : str
        What is counted.
    """

    def __init__(
        self, step: str, shown: bool | None = None, *, total: int | None = None, unit: str = ""
    ) -> None:
        watched = sys.stderr.isatty() and not os.environ.get("CI")
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.completed:,.0f} " + unit),
            rich.progress.TimeElapsedColumn(),
            console=rich.console.Console(stderr=True),
            disable=not (watched if shown is None else shown),
            transient=True,
        )
        self._task = self._bar.add_task(step, total=total)

    def advance(self, amount: int = 1) -> None:
        """Count work as done."""
        self._bar.advance(self._task, amount)

    def describe(self, step: str) -> None:
        """Say what is being done now."""
        self._bar.update(self._task, description=step)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
