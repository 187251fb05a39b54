"""How well measured effects tell what is in a circuit from what is not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from scipy.stats import rankdata

from neurograph.scoring.edges import edges_from
from neurograph.study import Options, prepare
from tests.rasp import OPTIONS, Place, Program, likeness


def auroc(strength: Mapping[Any, float], truth: Mapping[Any, bool]) -> float:
    """Probability that something true is stronger than something false; ties count half."""
    places: list[Hashable] = list(truth)
    which = np.array([truth[place] for place in places])
    ranks = rankdata([abs(strength[place]) for place in places])
    true, false = int(which.sum()), int((~which).sum())
    return float((ranks[which].sum() - true * (true + 1) / 2) / (true * false))


def measured_edges(program: Program, **options: Any) -> dict[tuple[Place, Place], float]:
    """Measured effects of a program's candidate edges."""
    told = {"reference": 32, "progress": False, **OPTIONS, **options}
    study = prepare(program.model, program.data, likeness, Options(**told), None)
    found = dict.fromkeys(program.edges, 0.0)
    with study.open() as experiment:
        for writer in dict.fromkeys(source[0] for source, _ in program.edges):
            neurons = range(len(experiment.units(writer)))
            readers = {
                name: range(len(experiment.units(name)))
                for name in experiment.graph.successors(writer)
                if any(source[0] == writer and place[0] == name for source, place in found)
            }
            for edges in edges_from(experiment, writer, neurons, readers):
                effects = edges.effects.effect.tolist()
                for (i, j), effect in zip(edges.pairs.tolist(), effects, strict=True):
                    found[(writer, neurons[i]), (edges.reader, readers[edges.reader][j])] = effect
    return {edge: found[edge] for edge in program.edges}
