"""The original loop: the whole model, hooked, once for every neuron and quantile."""

from __future__ import annotations

from typing import Any

from neurograph.effects.contrast import SWEEP
from neurograph.questions.study import Study
from notebook_loop import loop_effects
from race.measure import Outcome, Work
from race.tasks import Loaded

__all__ = ["METHODS"]


def loop(task: Loaded) -> Work:
    """Effects of all neurons through all that their readers compute, of 7 quantiles."""
    signs = 2.0 * task.labels[:, 0] - 1
    study = Study(task.model, task.every, 1, contrast=SWEEP, reference=task.clean, progress=False)
    readers = dict(zip(task.task.layers, (*task.task.layers[1:], "linear3"), strict=True))

    def work() -> Outcome:
        scores: list[list[Any]] = []
        for writer, reader in readers.items():
            width = len(task.model.get_submodule(writer).weight)
            seen = range(len(task.model.get_submodule(reader).weight))
            effects, _ = loop_effects(study, reader, writer, range(width), seen)
            scores += [[writer, i, s] for i, s in enumerate(effects.tolist())]
        return Outcome(scores, facts={"signed_for": float(signs.mean())})

    return work


METHODS = {"loop": loop}
