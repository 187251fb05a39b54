"""A random order: what every ranking has to beat."""

from __future__ import annotations

import torch

from race.edges import edges
from race.measure import Outcome, Work
from race.tasks import Loaded

__all__ = ["METHODS"]


def random(task: Loaded) -> Work:
    def work() -> Outcome:
        generator = torch.Generator().manual_seed(0)
        if task.task.of == "edges":
            places = [list(edge) for edge in edges(task.model)]
        else:
            places = [
                [layer, i]
                for layer in task.task.layers
                for i in range(len(task.model.get_submodule(layer).weight))
            ]
        scores = torch.rand(len(places), generator=generator).tolist()
        return Outcome([[*place, score] for place, score in zip(places, scores, strict=True)])

    return work


METHODS = {"random": random}
