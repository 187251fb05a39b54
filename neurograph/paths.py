"""The best paths of a circuit's graph, lazily, ranked by what its edges promise."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator

import networkx as nx

from neurograph.layers import Neuron
from neurograph.selection import Sign

__all__ = ["ranked_paths"]

_SIGN = {"positive": 1, "negative": -1}


def ranked_paths(
    graph: nx.DiGraph, sources: Collection[Neuron], sign: Sign | None = None
) -> Iterator[tuple[tuple[Neuron, ...], float]]:
    """Yield paths from the sources to the target's neurons, the strongest estimate first.

    The estimate takes the first edge's effect and, at every neuron on the way, the share of that
    neuron's total effect which runs through the next edge:
    ``e(0,1) · e(1,2)/E(1) · e(2,3)/E(2) …``. It is the path's effect exactly where the model is
    linear, and a way to choose what to measure where it is not.

    Parameters
    ----------
    graph : networkx.DiGraph
        Acyclic; edges with ``effect``, nodes with ``total_effect`` and ``target``.
    sources : collection of Neuron
        Where paths may begin.
    sign : {"positive", "negative"}, optional
        Only paths whose estimate has this sign.

    Yields
    ------
    neurons : tuple of Neuron
    estimate : float

    Notes
    -----
    Best-first search with the exact best completion as the bound, so that paths come in order
    and no more of the graph is walked than they need (Hart, Nilsson & Raphael 1968).
    """
    wanted = (1, -1) if sign is None else (_SIGN[sign],)
    best = _best_completions(graph)
    order = itertools.count()
    heap: list[tuple[float, int, tuple[Neuron, ...], float]] = []

    def push(path: tuple[Neuron, ...], value: float) -> None:
        ahead = best[path[-1]]
        bound = max(abs(value) * ahead[s * (1 if value >= 0 else -1)] for s in wanted)
        if bound > 0:
            heapq.heappush(heap, (-bound, next(order), path, value))

    for source in filter(graph.__contains__, sources):
        for reader, effect in graph.adj[source].items():
            push((source, reader), float(effect["effect"]))
    while heap:
        _, _, path, value = heapq.heappop(heap)
        last = path[-1]
        if graph.nodes[last].get("target"):
            yield path, value
            continue
        for reader in graph.successors(last):
            push((*path, reader), value * _share(graph, last, reader))


def _share(graph: nx.DiGraph, writer: Neuron, reader: Neuron) -> float:
    """Share of a neuron's total effect that runs through one edge."""
    effect = float(graph.edges[writer, reader]["effect"])
    total = float(graph.nodes[writer].get("total_effect", 0.0))
    return effect / total if total else 0.0


def _best_completions(graph: nx.DiGraph) -> dict[Neuron, dict[int, float]]:
    """For each neuron, the largest product of shares of either sign from it to the target."""
    best: dict[Neuron, dict[int, float]] = {}
    for neuron in reversed(list(nx.topological_sort(graph))):
        ahead = {1: 0.0, -1: 0.0}
        if graph.nodes[neuron].get("target"):
            ahead[1] = 1.0
        for reader in graph.successors(neuron):
            factor = _share(graph, neuron, reader)
            for s in (1, -1):
                through = abs(factor) * best[reader][s * (1 if factor >= 0 else -1)]
                ahead[s] = max(ahead[s], through)
        best[neuron] = ahead
    return best
