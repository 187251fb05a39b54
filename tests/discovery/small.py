"""Small networks whose paths can all be measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.discovery.strongest_paths import read_sources
from neurograph.effects.exact import path_effects
from neurograph.model.layers import Neuron
from neurograph.questions.study import Study
from tests import zoo

Paths = dict[tuple[Neuron, ...], float]


class Residual(nn.Module):
    """Two blocks that add to what they read; no norm."""

    def __init__(self, features: int, width: int, outputs: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(features, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(zoo.plain([width, width, width], nn.GELU) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(torch.relu(h))


def trained(model: nn.Module, X: Tensor, y: Tensor, steps: int = 150) -> nn.Module:
    """Fit a classifier for a while, all of the data at once."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimiser.step()
    return model


def opened(model: nn.Module, X: Tensor, target: Any = 0, **options: Any) -> Study:
    return Study(model, X, target, progress=False, **options)


def enumerated(study: Study, sources: Mapping[str, Sequence[int]] | None = None) -> Paths:
    """Every path with its effect, measured one by one; the study must be open."""
    experiment = study.experiment
    begin = read_sources(study, None) if sources is None else sources
    paths = [
        tuple(experiment.units(n).neuron(i) for n, i in zip(names, numbers, strict=True))
        for names in _routes(study, begin)
        for numbers in itertools.product(
            begin[names[0]], *(range(len(experiment.units(n))) for n in names[1:])
        )
    ]
    effects = path_effects(experiment, paths).effect.tolist()
    return dict(zip(paths, effects, strict=True))


def _routes(study: Study, begin: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    graph, layers = study.layers, study.experiment.recording.layers

    def onward(name: str) -> Iterator[tuple[str, ...]]:
        if graph.nodes[name]["output"]:
            yield (name,)
        for reader in graph.successors(name):
            if layers[reader].neurons:
                yield from ((name, *rest) for rest in onward(reader))

    for name in begin:
        yield from onward(name)


def strongest(paths: Paths, k: int, sense: int = 0) -> list[tuple[Neuron, ...]]:
    """The k strongest of all paths; those without effect are none."""
    kept = {p: abs(e) for p, e in paths.items() if (e * sense > 0 if sense else e != 0)}
    return sorted(kept, key=lambda path: -kept[path])[:k]
