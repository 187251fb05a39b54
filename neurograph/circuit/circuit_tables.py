"""Tables of a circuit's neurons, features and edges, each effect beside the total one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from neurograph.circuit.paths import name_of
from neurograph.effects.effect_table import CIRCUIT, TOTAL
from neurograph.effects.selection import Sign
from neurograph.model.layers import INPUT_TYPE, Neuron
from neurograph.model.neuron_index import PLACE, drop_empty_positions, place_index, place_of

__all__ = [
    "edge_table",
    "feature_table",
    "neuron_table",
    "ranking_of",
    "scored_inputs",
    "strongest_features",
]

ScoreColumns = Mapping[str, Mapping[str, np.ndarray]]

_STRONGEST = 3  # features that a summary names
_THROUGH, _TOTAL = (CIRCUIT.effect, CIRCUIT.stderr, "sign"), (TOTAL.effect, TOTAL.stderr)


def neuron_table(graph: nx.DiGraph, sign: Sign | None, layer: str | None) -> pd.DataFrame:
    """Table of the kept neurons; see `Circuit.neurons`."""
    columns = ["name", *_THROUGH, *_TOTAL]
    rows = [
        (*place_of(neuron), *(data[key] for key in columns))
        for neuron, data in graph.nodes(data=True)
        if layer in (None, neuron.layer) and sign in (None, data["sign"])
    ]
    return _finished(pd.DataFrame(rows, columns=[*PLACE, *columns]))


def edge_table(graph: nx.DiGraph, sign: Sign | None) -> pd.DataFrame:
    """Table of the edges; see `Circuit.edges`."""
    rows = [
        (
            *(*place_of(u), *place_of(v)),
            *(data[key] for key in _THROUGH),
            *(graph.nodes[u][key] for key in _TOTAL),
        )
        for u, v, data in graph.edges(data=True)
        if sign in (None, data["sign"])
    ]
    places = [f"{end}_{key}" for end in ("source", "target") for key in PLACE]
    return _finished(pd.DataFrame(rows, columns=[*places, *_THROUGH, *_TOTAL]))


def scored_inputs(layers: nx.DiGraph, scores: ScoreColumns) -> list[str]:
    """Inputs whose features have total effects."""
    kinds = layers.nodes(data="type")
    return [n for n, kind in kinds if kind == INPUT_TYPE and TOTAL.effect in scores.get(n, {})]


def feature_table(graph: nx.DiGraph, layers: nx.DiGraph, scores: ScoreColumns) -> pd.DataFrame:
    """Table of all input features by total effect; see `Circuit.features`."""
    rows = [
        row
        for layer in scored_inputs(layers, scores)
        for row in _totals(graph, layers, scores, layer)
    ]
    columns = [*PLACE, "name", *_TOTAL, CIRCUIT.measured, "kept"]
    return _finished(pd.DataFrame(rows, columns=columns), TOTAL.effect)


def strongest_features(
    graph: nx.DiGraph, layers: nx.DiGraph, scores: ScoreColumns
) -> list[tuple[str, float, float, bool]]:
    """Name, total effect, its standard error, whether measured, of the strongest features."""
    if not scored_inputs(layers, scores):
        return []
    table = feature_table(graph, layers, scores).head(_STRONGEST)
    return list(
        zip(*(table[column] for column in ("name", *_TOTAL, CIRCUIT.measured)), strict=True)
    )


def _totals(
    graph: nx.DiGraph, layers: nx.DiGraph, scores: ScoreColumns, layer: str
) -> Iterator[tuple[Any, ...]]:
    names, total = layers.nodes[layer].get("names"), TOTAL.read(scores[layer])
    for place in np.ndindex(total.effect.shape):
        neuron = Neuron(layer, *place)
        name = names[place[0]] if names and len(place) == 1 else name_of(graph, neuron)
        one = total.at(place)
        numbers = float(one.effect), float(one.stderr), bool(one.measured)
        yield (*place_of(neuron), name, *numbers, neuron in graph)


def ranking_of(scores: ScoreColumns) -> pd.Series:
    """Effects through the circuit of all neurons; see `Circuit.ranking`."""
    effects = {layer: CIRCUIT.read(table).effect for layer, table in scores.items()}
    neurons = (Neuron(n, *place) for n, e in effects.items() for place in np.ndindex(e.shape))
    values = np.concatenate([effect.flatten() for effect in effects.values()])
    series = pd.Series(values, place_index(neurons), name="circuit")
    return series.sort_values(key=np.abs, ascending=False, kind="stable")


def _finished(table: pd.DataFrame, column: str = CIRCUIT.effect) -> pd.DataFrame:
    """Strongest first, without the columns of positions where no neuron has one."""
    order = (-table[column].abs()).argsort(kind="stable")
    return drop_empty_positions(table).iloc[order].reset_index(drop=True)
