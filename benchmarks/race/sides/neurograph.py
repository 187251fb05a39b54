"""This library: `score`, one call for everything."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import neurograph as ng
from race.edges import GROUPS, LAYERS, READERS
from race.measure import Outcome, Work, processor_seconds
from race.tasks import Loaded, margin

__all__ = ["METHODS", "options", "target"]

NEURON = ["layer", "index"]
EDGE = ["source_layer", "source_index", "target_layer", "target_index"]


def target(output: Tensor, batch: Any) -> Tensor:
    """The task's margin, of labelled samples."""
    return margin(output, torch.as_tensor(batch.labels))


def options(task: Loaded) -> dict[str, Any]:
    """Which layers and groups a task means, and what its neurons move from."""
    given: dict[str, Any] = {"layers": list(task.task.layers), "progress": False}
    if task.task.of == "edges":
        given |= {"layers": LAYERS, "groups": GROUPS}
    contrast = "mean" if task.corrupt is None else ng.Counterfactual(task.corrupt)
    return given | {"contrast": contrast, "reference": (task.clean, task.labels)}


@contextlib.contextmanager
def _preparing() -> Iterator[list[float]]:
    """Seconds that `score` takes until its experiment stands: profile, recordings, layer graph."""
    module = sys.modules["neurograph.discovery.scores"]
    prepare, seconds = module.prepare, [0.0]  # type: ignore[attr-defined]

    def timed(*given: Any, **options: Any) -> Any:
        start = processor_seconds()
        study = prepare(*given, **options)
        seconds[0] += processor_seconds() - start
        return study

    module.prepare = timed  # type: ignore[attr-defined]
    try:
        yield seconds
    finally:
        module.prepare = prepare  # type: ignore[attr-defined]


def _score(of: str, scorer: str, **changed: Any) -> Callable[[Loaded], Work]:
    def method(task: Loaded) -> Work:
        def work() -> Outcome:
            with _preparing() as seconds:
                scores = ng.score(
                    task.model,
                    task.every,
                    target,
                    of=of,  # type: ignore[arg-type]
                    scorer=scorer,  # type: ignore[arg-type]
                    **(options(task) | changed),
                )
            columns = [*(NEURON if of == "neurons" else EDGE), "effect"]
            rows = scores.table[columns].to_numpy().tolist()
            told = {"measured": int(scores.table["measured"].sum()), "all": len(rows)}
            if task.task.of == "edges":  # what a head's own parts do is no edge between writers
                rows = [row for row in rows if row[0].rsplit(".", 1)[-1] not in READERS]
            elif of == "neurons":  # the features are scored too
                rows = [row for row in rows if row[0] in task.task.layers]
            return Outcome(rows, preparing=seconds[0], told=told)

        return work

    return method


def _by(scorer: str) -> Callable[[Loaded], Work]:
    return lambda task: _score(task.task.of, scorer)(task)


METHODS = {name: _by(name) for name in ("auto", "exact", "hybrid", "gradient", "integrated")}
METHODS["input_edges"] = _score("edges", "exact", layers=["linear1"])
