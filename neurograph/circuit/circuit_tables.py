"""Tables of a circuit's neurons, features and edges, each effect beside the total one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from neurograph.circuit.paths import name_of
from neurograph.effects.selection import Sign
from neurograph.model.layers import INPUT_TYPE, Neuron

__all__ = [
    "edge_table",
    "feature_table",
    "neuron_table",
    "ranking_of",
    "scored_inputs",
    "strongest_features",
]

Scores = Mapping[str, Mapping[str, np.ndarray]]

_STRONGEST = 3  # features that a summary names
_PLACE = ("layer", "index", "position")
_THROUGH, _TOTAL = ("effect", "stderr", "sign"), ("total_effect", "total_stderr")


def neuron_table(graph: nx.DiGraph, sign: Sign | None, layer: str | None) -> pd.DataFrame:
    """Table of the kept neurons; see `Circuit.neurons`."""
    columns = ["name", *_THROUGH, *_TOTAL]
    rows = [
        (*_place(neuron), *(data[key] for key in columns))
        for neuron, data in graph.nodes(data=True)
        if layer in (None, neuron.layer) and sign in (None, data["sign"])
    ]
    return _finished(pd.DataFrame(rows, columns=[*_PLACE, *columns]))


def edge_table(graph: nx.DiGraph, sign: Sign | None) -> pd.DataFrame:
    """Table of the edges; see `Circuit.edges`."""
    rows = [
        (
            *(*_place(u), *_place(v)),
            *(data[key] for key in _THROUGH),
            *(graph.nodes[u][key] for key in _TOTAL),
        )
        for u, v, data in graph.edges(data=True)
        if sign in (None, data["sign"])
    ]
    places = [f"{end}_{key}" for end in ("source", "target") for key in _PLACE]
    return _finished(pd.DataFrame(rows, columns=[*places, *_THROUGH, *_TOTAL]))


def scored_inputs(layers: nx.DiGraph, scores: Scores) -> list[str]:
    """Inputs whose features have total effects."""
    kinds = layers.nodes(data="type")
    return [n for n, kind in kinds if kind == INPUT_TYPE and "total_effect" in scores.get(n, {})]


def feature_table(graph: nx.DiGraph, layers: nx.DiGraph, scores: Scores) -> pd.DataFrame:
    """Table of all input features by total effect; see `Circuit.features`."""
    rows = [
        row
        for layer in scored_inputs(layers, scores)
        for row in _totals(graph, layers, scores, layer)
    ]
    columns = [*_PLACE, "name", *_TOTAL, "measured", "kept"]
    return _finished(pd.DataFrame(rows, columns=columns), "total_effect")


def strongest_features(
    graph: nx.DiGraph, layers: nx.DiGraph, scores: Scores
) -> list[tuple[str, float, float]]:
    """Names of the features that do most in total, with that effect and its standard error."""
    if not scored_inputs(layers, scores):
        return []
    table = feature_table(graph, layers, scores).head(_STRONGEST)
    return list(zip(table["name"], table["total_effect"], table["total_stderr"], strict=True))


def _totals(
    graph: nx.DiGraph, layers: nx.DiGraph, scores: Scores, layer: str
) -> Iterator[tuple[Any, ...]]:
    names, table = layers.nodes[layer].get("names"), scores[layer]
    total, stderr = (table[key] for key in _TOTAL)
    known = table.get("total_measured", np.ones(total.shape, dtype=bool))
    for place in np.ndindex(total.shape):
        neuron = Neuron(layer, *place)
        name = names[place[0]] if names and len(place) == 1 else name_of(graph, neuron)
        numbers = float(total[place]), float(stderr[place]), bool(known[place])
        yield (*_place(neuron), name, *numbers, neuron in graph)


def ranking_of(scores: Scores) -> pd.Series:
    """Effects through the circuit of all neurons; see `Circuit.ranking`."""
    rows: list[tuple[Any, ...]] = []
    effects: list[float] = []
    for layer, table in scores.items():
        found = table["effect"]
        rows += [(layer, *(*place, None)[:2]) for place in np.ndindex(found.shape)]
        effects += found.flatten().tolist()
    index = pd.MultiIndex.from_frame(pd.DataFrame(rows, columns=[*_PLACE]))
    if index.get_level_values("position").isna().all():
        index = index.droplevel("position")
    series = pd.Series(effects, index, name="circuit")
    return series.sort_values(key=np.abs, ascending=False, kind="stable")


def _place(neuron: Neuron) -> tuple[str, int, int | None]:
    return neuron.layer, neuron.index, neuron.position


def _finished(table: pd.DataFrame, column: str = "effect") -> pd.DataFrame:
    """Strongest first, without the columns of positions where no neuron has one."""
    empty = [c for c in table if c.endswith("position") and table[c].isna().all()]
    order = (-table[column].abs()).argsort(kind="stable")
    return table.drop(columns=empty).iloc[order].reset_index(drop=True)
