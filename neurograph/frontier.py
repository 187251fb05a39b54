"""The backward search: from the target's layers to the inputs, one frontier for each sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from neurograph.layers import Neuron
from neurograph.replay.wiring import target_layers
from neurograph.scoring.effects import Effects
from neurograph.scoring.exact import node_effects
from neurograph.scoring.experiment import Experiment
from neurograph.scoring.routes import TARGET, Through
from neurograph.scoring.scorer import BOTH, Scored, Scorer
from neurograph.scoring.screening import Screening
from neurograph.selection import SENSE, SIGNS, Above, Keep, Sign, TopK, select

__all__ = ["Edge", "Found", "Measured", "find_edges", "find_neurons", "find_totals"]

Measured = tuple[float, float]
"""An effect and its standard error."""


class Edge(NamedTuple):
    """An edge: `measured` says whether by intervention, `sign` whose search kept its ends."""

    effect: float
    stderr: float
    measured: bool
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
    estimated_totals : neurons whose total effect was not measured
    direct : effects of kept neurons on a target that reads them, through glue alone
    edges : effects of edges among kept neurons
    screening : what was screened and verified in each step, where the scorer does so
    """

    kept: dict[Sign, dict[str, dict[int, Measured]]] = field(
        default_factory=lambda: {sign: {} for sign in SIGNS}
    )
    starts: set[str] = field(default_factory=set)
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    totals: dict[Neuron, Measured] = field(default_factory=dict)
    estimated_totals: set[Neuron] = field(default_factory=set)
    direct: dict[Neuron, Measured] = field(default_factory=dict)
    edges: dict[tuple[Neuron, Neuron], Edge] = field(default_factory=dict)
    screening: dict[str, Screening] = field(default_factory=dict)

    def indices(self, sign: Sign, layer: str) -> list[int]:
        """Numbers of the kept neurons of a layer, strongest first."""
        return list(self.kept[sign].get(layer, ()))


def find_neurons(experiment: Experiment, scorer: Scorer, keep: Keep, found: Found) -> Iterator[str]:
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
        known: list[tuple[Through, Scored]] = []
        if layer in ends and all(set(t) == {TARGET} for t in through.values()):
            found.starts.add(layer)
        for sign in SIGNS:
            if through[sign]:
                scores = next((s for t, s in known if t == through[sign]), None)
                if scores is None:
                    shared = through["positive"] == through["negative"]
                    senses = BOTH if shared else (SENSE[sign],)
                    scores = scorer.nodes(layer, through[sign], senses)
                    known.append((through[sign], scores))
                _keep(found, sign, layer, scores, keep)
        yield layer


def _through(
    experiment: Experiment, found: Found, sign: Sign, layer: str, is_end: bool
) -> dict[str, Sequence[int] | None]:
    readers = experiment.graph.successors(layer)
    through: dict[str, Sequence[int] | None] = {
        reader: found.indices(sign, reader) for reader in readers if found.kept[sign].get(reader)
    }
    return through | ({TARGET: None} if is_end else {})


def _keep(found: Found, sign: Sign, layer: str, scores: Scored, keep: Keep) -> None:
    effects, measured = scores
    told = found.scores.setdefault(layer, {})
    told[sign] = effects.effect.cpu().numpy()
    told[f"{sign}_stderr"] = effects.stderr.cpu().numpy()
    if measured is not None:
        told[f"{sign}_measured"] = measured.cpu().numpy()
    signs = SIGNS if layer in found.starts else (sign,)
    chosen = [i for s in signs for i in _select(scores, s, keep)]
    values = _pairs(effects)
    if chosen:
        found.kept[sign][layer] = {i: values[i] for i in chosen}


def _select(scores: Scored, sign: Sign, keep: Keep) -> list[int]:
    """Choose by the rule; of a layer that was measured in part as many, but only measured ones.

    Estimates may be too large, and must not take the place of what was measured.
    """
    effect, stderr, measured = scores.effects.effect, scores.effects.stderr, scores.measured
    if measured is None or not measured.any():
        return select(effect, stderr, sign, keep)
    known = torch.where(measured, effect, 0.0)
    if isinstance(keep, Above):
        return select(known, stderr, sign, keep)
    count = len(select(effect, stderr, sign, keep))
    return select(known, stderr, sign, TopK(count)) if count else []


def _pairs(effects: Effects) -> list[Measured]:
    return list(zip(effects.effect.tolist(), effects.stderr.tolist(), strict=True))


def find_totals(experiment: Experiment, scorer: Scorer, found: Found) -> Iterator[str]:
    """Score each kept neuron's effect through everything; yields finished layers.

    Where the target reads a layer and others do too, what it sees by itself is measured besides.
    """
    ends = set(target_layers(experiment.graph))
    for layer in experiment.graph:
        kept = sorted({i for sign in SIGNS for i in found.indices(sign, layer)})
        neurons = [experiment.units(layer).neuron(unit) for unit in kept]
        if kept:
            scored = scorer.totals(layer, kept)
            found.totals |= zip(neurons, _pairs(scored.effects), strict=True)
            if scored.measured is not None:
                told = zip(neurons, scored.measured.tolist(), strict=True)
                found.estimated_totals |= {neuron for neuron, measured in told if not measured}
        if kept and layer in ends and experiment.graph.out_degree(layer):
            effects = node_effects(experiment, layer, kept, {TARGET: None})
            found.direct |= zip(neurons, _pairs(effects), strict=True)
        yield layer


def find_edges(experiment: Experiment, scorer: Scorer, found: Found) -> Iterator[str]:
    """Score the edges among the kept neurons of each sign; yields finished writers."""
    for writer in experiment.graph:
        for sign in SIGNS:
            sources = found.indices(sign, writer)
            readers = {
                reader: outputs
                for reader in experiment.graph.successors(writer)
                if (outputs := found.indices(sign, reader))
            }
            if not sources or not readers:
                continue
            start = experiment.units(writer)
            for edges in scorer.edges(writer, sources, readers):
                end, outputs = experiment.units(edges.reader), readers[edges.reader]
                measured = edges.scored.measured
                table = zip(
                    edges.pairs.tolist(),
                    _pairs(edges.scored.effects),
                    [True] * len(edges.pairs) if measured is None else measured.tolist(),
                    edges.transfer.tolist(),
                    strict=True,
                )
                for (i, j), (effect, stderr), was, transfer in table:
                    edge = start.neuron(sources[i]), end.neuron(outputs[j])
                    found.edges[edge] = Edge(effect, stderr, was, transfer, sign)
        yield writer
