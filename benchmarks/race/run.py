"""One entry of the plan, run and measured in this process."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from race.plan import CONTENDERS, Entry

__all__ = ["run_entry"]


def run_entry(entry: Entry, folder: Path) -> dict[str, Any]:
    """Run and measure it; what is not installed here is skipped by name, never stood in for."""
    contender = CONTENDERS[entry.contender]
    try:
        from race.measure import measure
        from race.tasks import few, load

        side = importlib.import_module(f"race.sides.{entry.contender.replace('-', '_')}")
    except ModuleNotFoundError as missing:
        return {"status": "skipped", "why": f"{entry.contender}: {missing.name} is not installed"}
    task = load(entry.task, folder)
    method = side.METHODS[entry.method]
    return measure(lambda: method(task), contender.package, lambda: method(few(task)))
