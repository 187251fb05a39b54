"""This library: `score`, after the profile that a user makes once of a model and its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import neurograph as ng
from race.edges import GROUPS, LAYERS, READERS
from race.measure import Outcome, Work
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


def data(task: Loaded) -> Any:
    """What the profile is of: all samples."""
    labels = task.labels[:1].expand(len(task.every), 2)
    return (task.every, labels if task.corrupt is None else task.labels)


def _score(of: str, scorer: str, **changed: Any) -> Callable[[Loaded], Work]:
    def method(task: Loaded) -> Work:
        given = options(task) | changed
        profile = ng.profile(task.model, data(task), layers=given["layers"], progress=False)

        def work() -> Outcome:
            scores = ng.score(
                task.model, data(task), target, of=of, scorer=scorer, profile=profile, **given
            )
            columns = [*(NEURON if of == "neurons" else EDGE), "effect"]
            rows = scores.table[columns].values.tolist()
            told = {"measured": int(scores.table["measured"].sum()), "all": len(rows)}
            if task.task.of == "edges":  # what a head's own parts do is no edge between writers
                rows = [row for row in rows if row[0].rsplit(".", 1)[-1] not in READERS]
            elif of == "neurons":  # the features are scored too
                rows = [row for row in rows if row[0] in task.task.layers]
            return Outcome(rows, told=told)

        return work

    return method


METHODS: dict[str, Callable[[Loaded], Work]] = {
    scorer: lambda task, scorer=scorer: _score(task.task.of, scorer)(task)  # type: ignore[misc]
    for scorer in ("auto", "exact", "hybrid", "gradient", "integrated")
}
METHODS["input_edges"] = _score("edges", "exact", layers=["linear1"])
