"""The backward search: from the target's layers to the inputs, one frontier for each sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from neurograph.layers import Neuron
from neurograph.scoring.exact import edge_effects, node_effects, total_effects, transfers
from neurograph.scoring.experiment import Effects, Experiment
from neurograph.scoring.routes import TARGET, Through
from neurograph.selection import SIGNS, Keep, Sign, select
from neurograph.wiring import target_layers

__all__ = ["Edge", "Found", "Measured", "find_edges", "find_neurons", "find_totals"]

Measured = tuple[float, float]
"""An effect and its standard error."""


class Edge(NamedTuple):
    """An edge's effect, its standard error, its transfer, and the search that kept its ends."""

    effect: float
    stderr: float
    transfer: float
    sign: Sign


@dataclass
class Found:
    """What a search has found so far; it grows, so that an interrupted search keeps its part.

    Attributes
    ----------
    kept : for each sign, layer to number of the neuron to effect through the frontier
    starts : layers that only the target reads: where both signs begin
    scores : layer to arrays of the effects of all its neurons
    totals : effects of kept neurons through everything
    direct : effects of kept neurons on a target that reads them, through glue alone
    edges : effects of edges among kept neurons
    """

    kept: dict[Sign, dict[str, dict[int, Measured]]] = field(
        default_factory=lambda: {sign: {} for sign in SIGNS}
    )
    starts: set[str] = field(default_factory=set)
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    totals: dict[Neuron, Measured] = field(default_factory=dict)
    direct: dict[Neuron, Measured] = field(default_factory=dict)
    edges: dict[tuple[Neuron, Neuron], Edge] = field(default_factory=dict)

    def indices(self, sign: Sign, layer: str) -> list[int]:
        """Numbers of the kept neurons of a layer, strongest first."""
        return list(self.kept[sign].get(layer, ()))


def find_neurons(experiment: Experiment, keep: Keep, found: Found) -> Iterator[str]:
    """Score every layer's neurons through the frontiers of its readers; yields finished layers.

    Readers come in reverse topological order. A writer with several readers is seen by the kept
    outputs of all of them at once. A layer that nothing but the target reads starts both signs:
    its neurons of either sign belong to both frontiers. From there on the signs never meet.
    """
    ends = set(target_layers(experiment.graph))
    for layer in reversed(list(experiment.graph)):
        if not experiment.recording.layers[layer].neurons:
            continue
        through = {sign: _through(experiment, found, sign, layer, layer in ends) for sign in SIGNS}
        known: list[tuple[Through, Effects]] = []
        if layer in ends and all(set(t) == {TARGET} for t in through.values()):
            found.starts.add(layer)
        for sign in SIGNS:
            if through[sign]:
                effects = next((e for t, e in known if t == through[sign]), None)
                if effects is None:
                    neurons = range(len(experiment.units(layer)))
                    effects = node_effects(experiment, layer, neurons, through[sign])
                    known.append((through[sign], effects))
                _keep(found, sign, layer, effects, keep)
        yield layer


def _through(
    experiment: Experiment, found: Found, sign: Sign, layer: str, is_end: bool
) -> dict[str, Sequence[int] | None]:
    readers = experiment.graph.successors(layer)
    through: dict[str, Sequence[int] | None] = {
        reader: found.indices(sign, reader) for reader in readers if found.kept[sign].get(reader)
    }
    return through | ({TARGET: None} if is_end else {})


def _keep(found: Found, sign: Sign, layer: str, effects: Effects, keep: Keep) -> None:
    scores = found.scores.setdefault(layer, {})
    scores[sign] = effects.effect.cpu().numpy()
    scores[f"{sign}_stderr"] = effects.stderr.cpu().numpy()
    signs = SIGNS if layer in found.starts else (sign,)
    chosen = [i for s in signs for i in select(effects.effect, effects.stderr, s, keep)]
    values = _pairs(effects)
    if chosen:
        found.kept[sign][layer] = {i: values[i] for i in chosen}


def _pairs(effects: Effects) -> list[Measured]:
    return list(zip(effects.effect.tolist(), effects.stderr.tolist(), strict=True))


def find_totals(experiment: Experiment, found: Found) -> Iterator[str]:
    """Measure each kept neuron's effect through everything; yields finished layers.

    Where the target reads a layer and others do too, what it sees by itself is measured besides.
    """
    ends = set(target_layers(experiment.graph))
    for layer in experiment.graph:
        kept = sorted({i for sign in SIGNS for i in found.indices(sign, layer)})
        neurons = [experiment.units(layer).neuron(unit) for unit in kept]
        if kept:
            effects = total_effects(experiment, layer, kept)
            found.totals |= zip(neurons, _pairs(effects), strict=True)
        if kept and layer in ends and experiment.graph.out_degree(layer):
            effects = node_effects(experiment, layer, kept, {TARGET: None})
            found.direct |= zip(neurons, _pairs(effects), strict=True)
        yield layer


def find_edges(experiment: Experiment, found: Found) -> Iterator[str]:
    """Measure the edges among the kept neurons of each sign; yields finished readers.

    An edge is there if the writer's neuron moves the reader's at all: its effect may still be
    zero, where what it does is cancelled further down.
    """
    for reader in experiment.graph:
        for writer in experiment.graph.predecessors(reader):
            for sign in SIGNS:
                _find_edges_between(experiment, found, sign, writer, reader)
        yield reader


def _find_edges_between(
    experiment: Experiment, found: Found, sign: Sign, writer: str, reader: str
) -> None:
    sources, outputs = found.indices(sign, writer), found.indices(sign, reader)
    if not sources or not outputs:
        return
    shares = transfers(experiment, writer, sources, reader, outputs)
    eps = torch.finfo(experiment.recording.main(reader).dtype).eps
    for j, output in enumerate(outputs):
        moving = [i for i in range(len(sources)) if abs(float(shares[i, j])) > 4 * eps]
        if not moving:
            continue
        chosen = [sources[i] for i in moving]
        measured = edge_effects(experiment, writer, chosen, reader, output)
        for i, (effect, stderr) in zip(moving, _pairs(measured), strict=True):
            start, end = experiment.units(writer), experiment.units(reader)
            edge = start.neuron(sources[i]), end.neuron(output)
            found.edges[edge] = Edge(effect, stderr, float(shares[i, j]), sign)
