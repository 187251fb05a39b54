"""The best paths of a circuit's graph, lazily, ranked by what its edges promise."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator
from typing import NamedTuple

import networkx as nx

from neurograph.layers import Neuron
from neurograph.selection import Sign

__all__ = ["ranked_paths"]

_SIGN = {"positive": 1, "negative": -1}


def ranked_paths(
    graph: nx.DiGraph, sources: Collection[Neuron], sign: Sign | None = None
) -> Iterator[tuple[tuple[Neuron, ...], float]]:
    """Yield paths from the sources to the target's neurons, the strongest estimate first.

    The estimate is the product of the edges' transfers and the last neuron's effect: how far each
    neuron moves the next, as a share of that one's own range, down to the target. It is the
    path's effect exactly where the model is linear, and a way to choose what to measure where it
    is not.

    Parameters
    ----------
    graph : networkx.DiGraph
        Acyclic; edges with ``transfer``, target neurons with ``target`` and ``effect``.
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
    heap: list[tuple[float, int, tuple[Neuron, ...], float, bool]] = []

    def push(path: tuple[Neuron, ...], value: float, whole: bool = False) -> None:
        sense = 1 if value >= 0 else -1
        ahead = {1: 1.0, -1: 0.0} if whole else best[path[-1]]
        bound = max(abs(value) * ahead[s * sense] for s in wanted)
        if bound > 0:
            heapq.heappush(heap, (-bound, next(order), path, value, whole))

    for source in filter(graph.__contains__, sources):
        push((source,), 1.0)
    while heap:
        _, _, path, value, whole = heapq.heappop(heap)
        if whole:
            yield path, value
            continue
        last = graph.nodes[path[-1]]
        if last.get("target") and len(path) > 1:
            push(path, value * float(last["effect"]), whole=True)
        for reader, edge in graph.adj[path[-1]].items():
            push((*path, reader), value * float(edge["transfer"]))


def _best_completions(graph: nx.DiGraph) -> dict[Neuron, dict[int, float]]:
    """For each neuron, the largest product of transfers of either sign down to the target."""
    best: dict[Neuron, dict[int, float]] = {}
    for neuron in reversed(list(nx.topological_sort(graph))):
        ahead = {1: 0.0, -1: 0.0}
        data = graph.nodes[neuron]
        if data.get("target"):
            ahead[1 if data["effect"] > 0 else -1] = abs(data["effect"])
        for reader, edge in graph.adj[neuron].items():
            factor = float(edge["transfer"])
            for s in (1, -1):
                through = abs(factor) * best[reader][s * (1 if factor >= 0 else -1)]
                ahead[s] = max(ahead[s], through)
        best[neuron] = ahead
    return best
