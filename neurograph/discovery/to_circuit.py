"""Circuit from the state of a search: its graph and its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from neurograph.circuit.circuit import Circuit
from neurograph.circuit.paths import Path
from neurograph.discovery.composition import composition, in_words
from neurograph.discovery.frontier import LayerEdges, SearchState
from neurograph.discovery.notes import search_notes
from neurograph.effects.effect_table import (
    CIRCUIT,
    DIRECT,
    THROUGH,
    TOTAL,
    EffectKind,
    EffectTable,
    columns_of,
)
from neurograph.effects.selection import sign_of
from neurograph.model.layers import INPUT_TYPE, Neuron, channels_first
from neurograph.preparation.base_study import BaseStudy

__all__ = ["circuit_graph", "to_circuit"]

_BRANCHES = (
    "forward takes numbers out of tensors (as `if x.mean() > 0` does), each for the whole batch: "
    "where a move decides otherwise, all reference samples go another way together, and of what "
    "passes some readers by, the moved and the unmoved samples may decide at once"
)
_STATISTICS = ("mean", "std", "min", "max")
_PLAIN = ("type", "shape", "neurons", "parameters", "output")


def circuit_graph(study: BaseStudy, state: SearchState) -> nx.DiGraph:
    """Graph of the kept neurons and the edges among them, as `Circuit.graph` documents it."""
    graph = nx.DiGraph(target=study.target.name)
    for layer in study.layers:
        kept = state.part(layer, None)
        if not kept:
            continue
        units = study.experiment.units(layer)
        tokens, statistics = study.tokens(layer), _statistics(study, layer, kept)
        based = study.experiment.recording.layers[layer].basis is not None
        indices = dict.fromkeys(units.neuron(unit).index for unit in kept)
        made = composition(study, layer, indices) if based else None
        for unit, numbers in zip(kept, statistics, strict=True):
            neuron = units.neuron(unit)
            effects = _effects(study, state, neuron, unit)
            graph.add_node(neuron, **_names(study, neuron, tokens), **effects, **numbers)
            if made is not None and (words := in_words(made, neuron.index)):
                graph.nodes[neuron]["made_of"] = words
    for edges in state.edges:
        graph.add_edges_from(_edges(study, edges))
    return graph


def to_circuit(
    study: BaseStudy,
    state: SearchState,
    graph: nx.DiGraph,
    paths: tuple[Path, ...],
    provenance: Mapping[str, Any],
) -> Circuit:
    """Put a circuit together: its graph, measured paths, scores of all neurons, and provenance."""
    layers = nx.DiGraph()
    for name, data in study.layers.nodes(data=True):
        layers.add_node(name, **{key: data[key] for key in _PLAIN})
        if data["neurons"]:
            units = study.experiment.units(name)
            layers.nodes[name]["neurons"] = len(units)
            if study.experiment.recording.layers[name].basis is not None:
                layers.nodes[name]["kind"] = units.kind
            if units.positions is not None:
                layers.nodes[name]["positions"] = units.positions
    layers.add_edges_from(study.layers.edges)
    names = study.feature_names
    if names is not None:
        (only,) = (n for n in layers if layers.nodes[n]["type"] == INPUT_TYPE and n in state.scores)
        layers.nodes[only]["names"] = list(names)
    whole = {**provenance, "notes": [*provenance["notes"], *_notes(study, state)]}
    screening = {phase: asdict(s) for phase, s in state.screening.items() if s.scored}
    if screening:
        whole["screening"] = screening
    scores = {name: _by_position(study, name, table) for name, table in state.scores.items()}
    return Circuit(graph, layers, study.target.name, paths, scores, whole, study)


def _edges(study: BaseStudy, edges: LayerEdges) -> Iterator[tuple[Neuron, Neuron, dict[str, Any]]]:
    start, end = study.experiment.units(edges.writer), study.experiment.units(edges.reader)
    effects = edges.effects
    columns = {
        CIRCUIT.effect: effects.effect,
        CIRCUIT.stderr: effects.stderr,
        CIRCUIT.measured: effects.measured,
        "transfer": edges.transfer,
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    for (i, j), numbers in zip(edges.pairs.tolist(), values, strict=True):
        attributes = dict(zip(columns, numbers, strict=True))
        attributes["sign"] = sign_of(attributes[CIRCUIT.effect])
        yield start.neuron(i), end.neuron(j), attributes


def _notes(study: BaseStudy, state: SearchState) -> list[str]:
    def name(layer: str, unit: int) -> str:
        return study.name(study.experiment.units(layer).neuron(unit), study.tokens(layer))

    branches = [_BRANCHES] if study.experiment.replay.branches else []
    return [*branches, *search_notes(state, study.target.name, name)]


def _by_position(study: BaseStudy, layer: str, table: EffectTable) -> dict[str, np.ndarray]:
    """Scores as ``[neurons, positions]`` where each position has neurons of its own."""
    positions = study.experiment.units(layer).positions
    if positions is not None:
        table = {kind: effects.reshaped(-1, positions) for kind, effects in table.items()}
    return columns_of(table)


def _names(study: BaseStudy, neuron: Neuron, tokens: Sequence[str] | None) -> dict[str, Any]:
    """Attributes that say which neuron this is."""
    named: dict[str, Any] = {"layer": neuron.layer, "index": neuron.index}
    if neuron.position is not None:
        named["position"] = neuron.position
        if tokens:
            named["token"] = tokens[neuron.position]
    return {"name": study.name(neuron, tokens), **named}


def _effects(study: BaseStudy, state: SearchState, neuron: Neuron, unit: int) -> dict[str, Any]:
    """Attributes that say what a neuron does."""
    table = state.scores[neuron.layer]

    def numbers(kind: EffectKind) -> dict[str, Any]:
        one = table[kind].at(unit)
        return kind.numbers(float(one.effect), float(one.stderr))

    def measured(kind: EffectKind) -> dict[str, bool]:
        return {kind.measured: bool(table[kind].measured[unit])}

    attributes = numbers(CIRCUIT) | measured(CIRCUIT)
    attributes["sign"] = sign_of(attributes[CIRCUIT.effect])
    attributes |= numbers(TOTAL) | measured(TOTAL)
    attributes["target"] = bool(study.layers.nodes[neuron.layer]["output"])
    if neuron in state.direct:
        attributes |= DIRECT.numbers(*state.direct[neuron])
    for kind in THROUGH.values():
        if kind in table:
            attributes |= numbers(kind)
    return attributes


def _statistics(study: BaseStudy, layer: str, units: Sequence[int]) -> list[dict[str, Any]]:
    """Statistics of neurons as plain numbers; means over what moves together."""
    node, recorded = study.statistics[layer], study.experiment.recording.layers[layer]
    shape = channels_first(torch.empty(1, *recorded.shape, device="meta"), recorded.channel_dim)
    known = study.experiment.units(layer)
    sizes = known.sizes[list(units)]

    def means(values: Tensor) -> list[float]:
        pooled = values.dim() == 1
        values = values.view(-1, *[1] * (shape.dim() - 2)) if pooled else values
        flat = values.expand(shape.shape[1:]).movedim(0, recorded.channel_dim - 1).flatten()
        means: list[float] = (known.sums(flat[None].double(), units)[0] / sizes).tolist()
        return means

    columns = {key: means(node[key]) for key in _STATISTICS}
    for level, values in zip(node["levels"], node["quantiles"], strict=True):
        columns[f"q{100 * level:g}"] = means(values)
    count = int(node["count"])
    return [
        {"count": count, **{key: values[i] for key, values in columns.items()}}
        for i in range(len(units))
    ]
