"""The ranking of paths is that of a full enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurograph.circuit.paths import ranked_paths
from neurograph.model.layers import Neuron

# Products of these are exact, so equal estimates are equal bit for bit.
FACTORS = st.sampled_from([0.0, 0.25, -0.5, 0.5, 1.0, -1.0, 2.0, -2.0])


@st.composite
def graphs(draw: st.DrawFn) -> nx.DiGraph:
    """Small layered graphs with skips, several targets and targets that others read."""
    widths = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    graph = nx.DiGraph()
    columns = [[Neuron(f"l{k}", i) for i in range(width)] for k, width in enumerate(widths)]
    for neuron in itertools.chain(*columns):
        ends = neuron.layer == columns[-1][0].layer or draw(st.booleans())
        graph.add_node(neuron, target=ends, effect=draw(FACTORS))
        if ends and draw(st.booleans()):
            graph.nodes[neuron]["direct_effect"] = draw(FACTORS)
    for before, after in itertools.combinations(columns, 2):
        for writer, reader in itertools.product(before, after):
            if draw(st.booleans()):
                graph.add_edge(writer, reader, transfer=draw(FACTORS))
    return graph


def enumerated(graph: nx.DiGraph, sources: list[Neuron], sign: str | None) -> dict[Any, float]:
    """Every path from the sources to a target with its estimate, the slow, obvious way."""
    found = {}
    ends = [n for n, is_end in graph.nodes(data="target") if is_end]
    for source, end in itertools.product(sources, ends):
        if source == end:
            continue
        for path in nx.all_simple_paths(graph, source, end):
            last = graph.nodes[end]
            factors = [graph.edges[edge]["transfer"] for edge in itertools.pairwise(path)]
            value = math.prod(factors) * last.get("direct_effect", last["effect"])
            if value and (sign is None or (value > 0) == (sign == "positive")):
                found[tuple(path)] = value
    return found


@settings(max_examples=300, deadline=None, derandomize=True)
@given(graphs(), st.sampled_from([None, "positive", "negative"]), st.data())
def test_all_paths_come_once_and_the_strongest_first(
    graph: nx.DiGraph, sign: Any, data: st.DataObject
) -> None:
    sources = data.draw(st.lists(st.sampled_from(sorted(graph)), unique=True))
    ranked = list(ranked_paths(graph, sources, sign))
    assert len(ranked) == len(dict(ranked))
    assert dict(ranked) == enumerated(graph, sources, sign)
    strengths = [abs(estimate) for _, estimate in ranked]
    assert strengths == sorted(strengths, reverse=True)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(graphs())
def test_the_graph_is_left_as_it_was_and_asked_twice_says_the_same(graph: nx.DiGraph) -> None:
    before = repr([*graph.nodes(data=True), *graph.edges(data=True)])
    sources = [n for n in graph if n.layer == "l0"]
    assert list(ranked_paths(graph, sources)) == list(ranked_paths(graph, sources))
    assert repr([*graph.nodes(data=True), *graph.edges(data=True)]) == before


def test_sources_that_are_not_in_the_graph_begin_nothing() -> None:
    graph = nx.DiGraph()
    a, b = Neuron("a", 0), Neuron("b", 0)
    graph.add_node(a, target=False, effect=1.0)
    graph.add_node(b, target=True, effect=-2.0)
    graph.add_edge(a, b, transfer=3.0)
    assert list(ranked_paths(graph, [Neuron("zz", 1), a])) == [((a, b), -6.0)]
    assert list(ranked_paths(graph, [b])) == []
    assert list(ranked_paths(nx.DiGraph(), [a])) == []


def test_no_more_is_walked_than_asked_for() -> None:
    """Of 10^40 paths, the first hundred come in order, at once."""
    graph = nx.DiGraph()
    depth, width = 40, 10
    for step, index in itertools.product(range(depth), range(width)):
        graph.add_node(Neuron(f"l{step}", index), target=step == depth - 1, effect=1.0)
        for other in range(width if step else 0):
            ends = Neuron(f"l{step - 1}", other), Neuron(f"l{step}", index)
            graph.add_edge(*ends, transfer=(-1) ** (index + other) / (1 + index))
    sources = [n for n in graph if n.layer == "l0"]
    for sign, sense in (("positive", 1), ("negative", -1)):
        some = list(itertools.islice(ranked_paths(graph, sources, sign), 100))  # type: ignore[arg-type]
        strengths = [sense * estimate for _, estimate in some]
        assert strengths == sorted(strengths, reverse=True)
        assert strengths[0] == pytest.approx(1.0)
        assert strengths[-1] > 0
