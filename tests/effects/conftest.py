"""Moves of a chosen size, and every scorer on one experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neurograph.effects.budget import Budget, Schedule
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import TARGET, Through
from neurograph.effects.scorer import Scorer, as_method

MakeScorer = Callable[[str, Experiment], Scorer]


@pytest.fixture
def scorer_of() -> MakeScorer:
    """Make a scorer by name, with time for everything."""

    def make(name: str, experiment: Experiment) -> Scorer:
        phases = {"nodes": 1e9, "totals": 1e9, "edges": 1e9}
        return as_method(name).start(experiment, Schedule(Budget(seconds=1e9), 0.0, 0, phases))

    return make


@pytest.fixture
def some_outputs() -> Callable[[Experiment, str, int], Through]:
    """About half of the outputs of each reader, and the target where it reads the layer."""

    def choose(experiment: Experiment, layer: str, seed: int) -> Through:
        generator = np.random.default_rng(seed)
        through: dict[str, Any] = {}
        for reader in experiment.graph.successors(layer):
            count = len(experiment.units(reader))
            if count:
                through[reader] = sorted(generator.permutation(count)[: count // 2 + 1].tolist())
        return through | ({TARGET: None} if experiment.graph.nodes[layer]["output"] else {})

    return choose


@pytest.fixture
def set_moves() -> Callable[[Experiment, float], None]:
    """Let all neurons move from where they are by random amounts of a size."""

    def move(experiment: Experiment, step: float) -> None:
        def levels(layer: str) -> Tensor:
            still = experiment.recording.main(layer).flatten(1)
            noise = torch.randn(still.shape, generator=torch.Generator().manual_seed(3)).to(still)
            return torch.stack([still, still + step * noise])

        experiment.levels = levels  # type: ignore[assignment]
        experiment._moves.clear()

    return move
