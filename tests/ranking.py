"""How well effects tell what is in a circuit from what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

import neurograph as ng
from tests.planted import Planted
from tests.rasp import OPTIONS, Place, Program, likeness

Edge = tuple[Place, Place]


def auroc(effects: Mapping[Any, float], truth: Mapping[Any, bool]) -> float:
    """Probability that something true is stronger than something false; ties count half."""
    which = np.array(list(truth.values()))
    ranks = rankdata([abs(effects[place]) for place in truth])
    true, false = int(which.sum()), int((~which).sum())
    return float((ranks[which].sum() - true * (true + 1) / 2) / (true * false))


def by_edge(ranking: pd.Series) -> dict[Edge, float]:
    """Effects of edges between neurons that have no positions of their own."""
    return {((a, i), (b, j)): effect for (a, i, b, j), effect in ranking.items()}


def program_edges(
    program: Program, target: Any = likeness, by: Any = "effect", **options: Any
) -> dict[Edge, float]:
    """Effects of a program's candidate edges; 0 where nothing leads from one to the other."""
    told = {"scorer": "exact", "progress": False, **OPTIONS, **options}
    scores = ng.score(program.model, program.data, target, of="edges", **told)
    found = by_edge(scores.ranking(by))
    return {edge: found.get(edge, 0.0) for edge in program.edges}


def planted_aurocs(network: Planted, **options: Any) -> tuple[float, float]:
    """How well neurons and edges of a planted circuit are ranked."""
    given = {"progress": False, **options}
    neurons = ng.score(network.model, network.X, 1, **given).ranking()
    edges = ng.score(network.model, network.X, 1, of="edges", **given).ranking()
    return auroc(neurons, network.neurons), auroc(by_edge(edges), network.edges)
