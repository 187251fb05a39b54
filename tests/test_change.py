"""Two circuits of one network are compared neuron by neuron, as one would by hand."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import neurograph as ng
from neurograph.change import Change, circuit_change
from neurograph.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.layers import Neuron


def circuit(
    kept: dict[Neuron, float],
    edges: list[tuple[Neuron, Neuron]],
    scores: dict[str, dict[str, list[float]]],
    sizes: dict[str, int] | None = None,
) -> Circuit:
    graph, layers = nx.DiGraph(), nx.DiGraph()
    for neuron, effect in kept.items():
        graph.add_node(neuron, effect=effect)
    graph.add_edges_from(edges)
    for name, count in (sizes or {"a": 3, "b": 2}).items():
        layers.add_node(name, neurons=count)
    arrays = {name: {k: np.array(v) for k, v in table.items()} for name, table in scores.items()}
    return Circuit(graph, layers, "up", (), arrays)


A, B, C, D, E = (Neuron(*n) for n in (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)))


def test_shares_ranks_and_signs_are_those_worked_out_by_hand() -> None:
    before = circuit(
        {A: 1.0, B: -2.0, D: 3.0},
        [(A, D), (B, D)],
        {"a": {"positive": [1, 0.5, 0], "negative": [0.1, -2, 0]}, "b": {"positive": [3, 1]}},
    )
    after = circuit(
        {A: -1.0, B: -1.0, C: 1.0, D: 1.0, E: 2.0},
        [(A, D), (C, E)],
        {"a": {"positive": [0, -0.5, 4], "negative": [-1, -1, 0]}, "b": {"positive": [1, 2]}},
    )
    found = circuit_change(before, after)
    # Stronger of both searches: 1, -2, 0, 3, 1 before and -1, -1, 4, 1, 2 after.
    ranks = [pd.Series(v).rank() for v in ([1, -2, 0, 3, 1], [-1, -1, 4, 1, 2])]
    assert found.effect_spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found.neuron_jaccard == 3 / 5
    assert found.edge_jaccard == 1 / 3
    assert found.sign_agreement == 2 / 3


def test_a_circuit_has_not_changed_from_itself_and_turns_with_its_target() -> None:
    torch.manual_seed(0)
    model, X = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)), torch.rand(40, 3)
    up, down = (ng.search(model, X, target) for target in (1, 0))
    assert circuit_change(up, up) == Change(1.0, 1.0, pytest.approx(1.0), 1.0)
    assert circuit_change(up, down) == Change(1.0, 1.0, pytest.approx(-1.0), 0.0)


def test_nothing_kept_twice_is_no_change_and_has_no_signs() -> None:
    flat = circuit({}, [], {"a": {"positive": [0, 0, 0]}})
    found = circuit_change(flat, flat)
    assert (found.neuron_jaccard, found.edge_jaccard) == (1.0, 1.0)
    assert math.isnan(found.effect_spearman)
    assert math.isnan(found.sign_agreement)


def test_only_layers_that_both_searches_reached_are_ranked() -> None:
    table = {"positive": [1.0, 2.0, 3.0]}
    before = circuit({}, [], {"a": table})
    after = circuit({}, [], {"a": table, "b": {"positive": [5.0, -5.0]}})
    assert circuit_change(before, after).effect_spearman == 1.0
    assert math.isnan(circuit_change(before, circuit({}, [], {})).effect_spearman)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"a": 4, "b": 2}, "of 'a' the first has 3 neurons, the second 4 neurons"),
        ({"a": 3}, "of 'b' the first has 2 neurons, the second no such layer"),
        ({"a": 3, "b": 2, "c": 1}, "of 'c' the first has no such layer, the second 1 neurons"),
    ],
)
def test_other_architectures_are_told(sizes: dict[str, int], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        circuit_change(circuit({}, [], {}), circuit({}, [], {}, sizes))


def test_other_lengths_of_sequences_are_told() -> None:
    one = circuit({}, [], {"a": {"positive": [[1, 2], [3, 4], [5, 6]]}})  # type: ignore[list-item]
    other = circuit({}, [], {"a": {"positive": [[1], [3], [5]]}})  # type: ignore[list-item]
    with pytest.raises(OptionError, match=r"\(3, 2\) and \(3, 1\) neurons and positions at 'a'"):
        circuit_change(one, other)
