"""This library: a study, scored."""

from __future__ import annotations

from collections.abc import Callable
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


def _score(of: str, scorer: str, **changed: Any) -> Callable[[Loaded], Work]:
    def method(task: Loaded) -> Work:
        def work() -> Outcome:
            start = processor_seconds()
            study = ng.Study(task.model, task.every, target, **(options(task) | changed))
            _ = study.experiment  # recordings, layer graph, and statistics where they are needed
            seconds = processor_seconds() - start
            scores = study.score(of=of, scorer=scorer)  # type: ignore[typeddict-item]
            columns = [*(NEURON if of == "neurons" else EDGE), "effect"]
            rows = scores.table[columns].to_numpy().tolist()
            facts = {"measured": int(scores.table["measured"].sum()), "all": len(rows)}
            if task.task.of == "edges":  # what a head's own parts do is no edge between writers
                rows = [row for row in rows if row[0].rsplit(".", 1)[-1] not in READERS]
            elif of == "neurons":  # the features are scored too
                rows = [row for row in rows if row[0] in task.task.layers]
            return Outcome(rows, preparing=seconds, facts=facts)

        return work

    return method


def _by(scorer: str) -> Callable[[Loaded], Work]:
    return lambda task: _score(task.task.of, scorer)(task)


METHODS = {name: _by(name) for name in ("auto", "exact", "hybrid", "gradient", "integrated")}
METHODS["input_edges"] = _score("edges", "exact", layers=["linear1"])
