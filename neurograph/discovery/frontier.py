"""Backward search: from the target's layers to the inputs, one frontier in two parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from neurograph.effects.effect_table import (
    CIRCUIT,
    THROUGH,
    TOTAL,
    EffectArrays,
    EffectKind,
    EffectTable,
)
from neurograph.effects.effects import Effects
from neurograph.effects.exact import node_effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import TARGET, Through
from neurograph.effects.scorer import Scored, Scorer
from neurograph.effects.screening import Screening
from neurograph.effects.selection import SIGNS, Above, Keep, Sign, TopK, select
from neurograph.model.layers import Neuron
from neurograph.replay.wiring import target_layers

__all__ = ["LayerEdges", "Measured", "SearchState", "find_edges", "find_neurons"]

Measured = tuple[float, float]
"""An effect and its standard error."""


_MOST_EDGES = 100_000  # in a circuit: as many as a graph can be queried and drawn with


@dataclass(frozen=True, eq=False)
class LayerEdges:
    """Edges from one layer's neurons to another's, as arrays ``[edges]``.

    `pairs` ``[edges, 2]`` are numbers of neurons.
    """

    writer: str
    reader: str
    pairs: np.ndarray
    effects: EffectArrays
    transfer: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def at(self, which: np.ndarray) -> LayerEdges:
        """Return some of the edges."""
        pairs, effects, transfer = self.pairs[which], self.effects.at(which), self.transfer[which]
        return replace(self, pairs=pairs, effects=effects, transfer=transfer)


@dataclass
class SearchState:
    """What a search has kept so far; it grows, so that an interrupted search keeps its part.

    Attributes
    ----------
    kept : layer to numbers of its kept neurons, the strongest of each ranking first
    ends : layers that nothing but the target reads
    scores : layer to the effects of all its neurons
    direct : effects of kept neurons on a target that reads them, through glue alone
    edges : those among kept neurons, pair of layers by pair of layers
    edges_left : how many weaker edges are not among them, since there were too many
    screening : what was screened and verified in each step, where the scorer does so
    """

    kept: dict[str, list[int]] = field(default_factory=dict)
    ends: set[str] = field(default_factory=set)
    scores: dict[str, EffectTable] = field(default_factory=dict)
    direct: dict[Neuron, Measured] = field(default_factory=dict)
    edges: list[LayerEdges] = field(default_factory=list)
    edges_left: int = 0
    screening: dict[str, Screening] = field(default_factory=dict)

    def part(self, layer: str, sign: Sign | None) -> list[int]:
        """Kept neurons of a layer whose total effect has a sign (0 counts as positive), or all."""
        kept = sorted(self.kept.get(layer, ()))
        if sign is None or not kept:
            return kept
        raises = self.scores[layer][TOTAL].effect >= 0
        return [i for i in kept if raises[i] == (sign == "positive")]

    def add_edges(self, edges: LayerEdges) -> None:
        """Take in edges, and let go of the weakest where there are too many."""
        self.edges.append(edges)
        count = sum(map(len, self.edges))
        if count > 2 * _MOST_EDGES:
            self.cut_edges()

    def cut_edges(self) -> None:
        """Keep no more of the strongest edges than a circuit may hold."""
        strength = np.concatenate([np.abs(e.effects.effect) for e in self.edges] or [np.zeros(0)])
        if len(strength) <= _MOST_EDGES:
            return
        chosen = np.zeros(len(strength), dtype=bool)
        chosen[np.argsort(-np.nan_to_num(strength), kind="stable")[:_MOST_EDGES]] = True
        ends = np.cumsum([len(e) for e in self.edges])[:-1]
        parts = np.split(chosen, ends)
        self.edges = [e.at(part) for e, part in zip(self.edges, parts, strict=True)]
        self.edges_left += len(strength) - _MOST_EDGES


def find_neurons(
    experiment: Experiment, scorer: Scorer, keep: Keep, state: SearchState
) -> Iterator[str]:
    """Score every layer's neurons through the frontier of its readers; yields finished layers.

    Readers come in reverse topological order. The frontier is what was kept of them, in two parts
    by the sign of the total effects, since what a neuron does through one part may cancel what it
    does through the other; the target itself belongs to the part that raises it. A neuron is kept
    if it is among the strongest of either sign through either part. Its effect is that through
    both parts at once.
    """
    ends = set(target_layers(experiment.graph))
    for layer in reversed(list(experiment.graph)):
        if experiment.recording.layers[layer].neurons:
            _score_layer(experiment, scorer, keep, state, layer, layer in ends)
        yield layer


def _score_layer(
    experiment: Experiment, scorer: Scorer, keep: Keep, state: SearchState, layer: str, is_end: bool
) -> None:
    is_last = is_end and not experiment.graph.out_degree(layer)  # there the target sees everything
    parts = {sign: _through(experiment, state, layer, sign, is_end) for sign in SIGNS}
    ways = {sign: scorer.nodes(layer, through) for sign, through in parts.items() if through}
    rankings = ((scored, sign) for scored in ways.values() for sign in SIGNS)
    chosen = list(
        dict.fromkeys(i for ranking in rankings for i in _select(*ranking, keep, sure=is_last))
    )
    if is_last and not chosen:  # effects that cancel over the samples are none, but they move it
        spreads = ways["positive"].effects.stderr.nan_to_num()
        chosen = spreads.nonzero().flatten().tolist()
    neurons = len(experiment.units(layer))
    table: dict[EffectKind, EffectArrays] = {}
    if len(ways) == len(parts):
        whole = _through(experiment, state, layer, None, is_end)
        scored = scorer.measuring(chosen, alone=True).nodes(layer, whole)
        table[CIRCUIT] = EffectArrays.of(scored)
    elif ways:
        table[CIRCUIT] = EffectArrays.of(*ways.values())
    else:  # what nothing kept reads does nothing through the circuit
        table[CIRCUIT] = EffectArrays.none(neurons)
    table |= {THROUGH[sign]: EffectArrays.of(scored) for sign, scored in ways.items()}
    state.ends |= {layer} if is_last else set()
    if is_last:
        table[TOTAL] = table[THROUGH["positive"]]
    else:  # of inputs all are asked for, of other layers only the kept ones, where not all fit
        alone = not experiment.recording.layers[layer].is_input
        scored = scorer.measuring(chosen, alone=alone).totals(layer, range(neurons))
        table[TOTAL] = EffectArrays.of(scored)
    if chosen and is_end and not is_last:
        effects = node_effects(experiment, layer, chosen, {TARGET: None})
        named = map(experiment.units(layer).neuron, chosen)
        state.direct |= zip(named, _pairs(effects), strict=True)
    state.scores[layer] = table
    if chosen:
        state.kept[layer] = chosen


def _through(
    experiment: Experiment, state: SearchState, layer: str, sign: Sign | None, is_end: bool
) -> Through:
    """One part of what sees a layer's neurons move, or both."""
    readers = experiment.graph.successors(layer)
    through: dict[str, Sequence[int] | None] = {
        reader: part for reader in readers if (part := state.part(reader, sign))
    }
    return through | ({TARGET: None} if is_end and sign != "negative" else {})


def _select(scores: Scored, sign: Sign, keep: Keep, *, sure: bool) -> list[int]:
    """Choose by the rule; of a layer that was measured in part as many, but only measured ones.

    Estimates may be too large, and must not take the place of what was measured. Of what the
    target itself is, an effect is `sure` however it varies: all that comes before goes through it.
    """
    effect, stderr, measured = scores.effects.effect, scores.effects.stderr, scores.measured
    stderr = torch.zeros_like(stderr) if sure else stderr
    if measured is None or not measured.any():
        return select(effect, stderr, sign, keep)
    known = torch.where(measured, effect, 0.0)
    if isinstance(keep, Above):
        return select(known, stderr, sign, keep)
    count = len(select(effect, stderr, sign, keep))
    return select(known, stderr, sign, TopK(count)) if count else []


def _pairs(effects: Effects) -> list[Measured]:
    return list(zip(effects.effect.tolist(), effects.stderr.tolist(), strict=True))


def find_edges(experiment: Experiment, scorer: Scorer, state: SearchState) -> Iterator[str]:
    """Score the edges among the kept neurons; yields finished writers."""
    for writer in experiment.graph:
        sources = state.part(writer, None)
        readers = {
            reader: outputs
            for reader in experiment.graph.successors(writer)
            if (outputs := state.part(reader, None))
        }
        if sources and readers:
            _score_edges(scorer, state, writer, sources, readers)
        yield writer
    state.cut_edges()


def _score_edges(
    scorer: Scorer,
    state: SearchState,
    writer: str,
    sources: Sequence[int],
    readers: Mapping[str, Sequence[int]],
) -> None:
    for edges in scorer.edges(writer, sources, readers):
        i, j = edges.pairs.cpu().numpy().T
        numbers = np.array(sources)[i], np.array(readers[edges.reader])[j]
        pairs, effects = np.stack(numbers, axis=1), EffectArrays.of(edges.scored)
        transfer = edges.transfer.cpu().numpy()
        state.add_edges(LayerEdges(writer, edges.reader, pairs, effects, transfer))
