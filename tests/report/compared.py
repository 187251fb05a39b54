"""Comparisons of made-up circuits, as many and as odd as a page must bear."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import networkx as nx
import pandas as pd

import neurograph as ng
from neurograph.circuit.circuit import Circuit
from neurograph.comparison.comparison import Comparison
from neurograph.matching.matching import LayerMatch, Matching

NAMES = ("seed 0", "seed 1")


def comparison_of(a: Circuit, b: Circuit, **options: Any) -> Comparison:
    """Compare two circuits without models, and fill in what models would tell."""
    options = {"names": NAMES, "draws": 100, "progress": False} | options
    found = ng.compare(a, b, **options)
    note = "errors are not paired: the circuits were searched on other samples"
    return replace(found, transplants=transplants(), notes=(*found.notes, note))


def alike(found: Comparison) -> Comparison:
    """Add what a matching by activations tells: similarities, ties, CKA."""

    def told(match: LayerMatch) -> LayerMatch:
        similarity = 1 - 0.5 * match.pairs[:, 0] / (1 + match.pairs[:, 0].max())
        tied = match.pairs[:, 0] < 2
        return replace(match, similarity=similarity, tied=tied, ties=(((0, 1), (0, 1)),), cka=0.83)

    matching = Matching("activation", tuple(map(told, found.matching.layers)))
    neurons = found.neurons()
    matched = neurons["neuron_a"].notna() & neurons["neuron_b"].notna()
    similarity = [0.9 - 0.001 * place for place in range(len(neurons))]
    neurons = neurons.assign(similarity=pd.Series(similarity).where(matched), tied=matched)
    layers = found.layers.assign(similarity=0.71, cka=0.83)
    return replace(found, matching=matching, layers=layers, _neurons=neurons)


def transplants() -> pd.DataFrame:
    """As `Comparison.transplants` has them."""
    columns = "into kept neurons value recovered recovered_low recovered_high error p_value"
    nan = math.nan
    rows = [
        ("b", "own", 19, 2.0, 0.91, nan, nan, 0.3, nan),
        ("b", "other", 17, 1.8, 0.83, nan, nan, 0.41, 0.048),
        ("b", "random", 17, 0.3, 0.12, 0.03, 0.25, 2.2, nan),
        ("a", "own", 17, 2.0, 1.04, nan, nan, 0.2, nan),
        ("a", "other", 19, -0.1, -0.06, nan, nan, 2.4, 0.62),
        ("a", "random", 19, 0.3, 0.09, -0.2, 0.3, 2.3, nan),
    ]
    return pd.DataFrame(rows, columns=columns.split()).assign(faithfulness=0.5)


def without_layer(circuit: Circuit, layer: str) -> Circuit:
    """Leave a layer out of a circuit and of its model, as another architecture would have none."""
    layers = circuit.layers.copy()
    for before, after in itertools.product(layers.pred[layer], layers.succ[layer]):
        layers.add_edge(before, after)
    layers.remove_node(layer)
    graph: nx.DiGraph = circuit.graph.copy()
    graph.remove_nodes_from([n for n in circuit.graph if n.layer == layer])
    kept = tuple(p for p in circuit.strongest if all(n in graph for n in p.neurons))
    return replace(circuit, graph=graph, layers=layers, strongest=kept)
