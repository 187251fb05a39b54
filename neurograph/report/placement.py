"""Where the neurons of a graph lie on a page: a column for each layer, few edges crossing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import networkx as nx

__all__ = ["Columns", "Coordinates", "Node", "place", "reduce_crossings", "strength"]

_SWEEPS = 6  # passes over the columns; crossings hardly fall after the fourth
_LANE = 26.0  # distance between two lanes of one crowded column
_SINGLE_LANE = 36  # neurons that still fit below each other in one lane

Node = tuple[Any, ...]
Columns = dict[str, list[Node]]
Coordinates = dict[Node, tuple[float, float]]


def reduce_crossings(graph: nx.DiGraph, columns: Columns, rank: Callable[[Node], int]) -> None:
    """Sort every column in place by the weighted mean height of its neighbours.

    Nodes of a lower `rank` stay above those of a higher one; only the order within a rank is free.
    """
    height: dict[Node, float] = {}

    def settle(nodes: list[Node]) -> None:
        height.update({n: (i + 0.5) / len(nodes) for i, n in enumerate(nodes)})

    for nodes in columns.values():
        nodes.sort(key=lambda n: (rank(n), -strength(graph.nodes[n]), n[1:]))
        settle(nodes)
    for sweep in range(_SWEEPS):
        beside = graph.pred if sweep % 2 == 0 else graph.succ
        for nodes in list(columns.values())[:: 1 if sweep % 2 == 0 else -1]:
            means = {}
            for n in nodes:
                weights = {m: strength(e) + 1e-12 for m, e in beside[n].items()}
                pull = sum(weights[m] * height[m] for m in weights)
                means[n] = pull / sum(weights.values()) if weights else height[n]
            nodes.sort(key=lambda n: (rank(n), means[n], n[1:]))
            settle(nodes)


def place(columns: Columns) -> tuple[list[dict[str, Any]], Coordinates, float]:
    """Give every node its place; crowded columns are folded into several lanes.

    Returns
    -------
    bands : list of dict
        Of each column ``layer``, ``kept``, how many nodes it has, and where it begins and ends,
        ``left`` and ``right``.
    places : dict
        x and y of each node.
    radius : float
        Of the largest node.
    """
    shapes = {}
    for layer, nodes in columns.items():
        lanes = 1 if (kept := len(nodes)) <= _SINGLE_LANE else round(math.sqrt(kept) / 3.4)
        rows = math.ceil(kept / lanes)
        shapes[layer] = (lanes, rows, min(58.0, max(24.0, 760.0 / rows)))
    height = max((rows * pitch for _, rows, pitch in shapes.values()), default=1.0)
    breadth = sum(lanes * _LANE for lanes, _, _ in shapes.values())
    fair = (1.25 * height - breadth) / max(1, len(shapes) - 1)  # makes it as wide as a screen
    gap = min(300.0, max(150.0 if len(shapes) < 10 else 90.0, fair))
    stretch = min(4.0, max(1.0, (breadth + gap * (len(shapes) - 1)) / (1.5 * height)))
    radius = 0.42 * stretch * min((pitch for _, _, pitch in shapes.values()), default=24.0)
    bands, places, left = [], {}, 0.0
    for layer, (lanes, rows, pitch) in shapes.items():
        for i, node in enumerate(columns[layer]):
            row, lane = divmod(i, lanes)  # odd lanes sit lower: edges pass between neighbours
            y = (row + lane % 2 / 2 - (rows - 1) / 2) * pitch * stretch
            places[node] = (round(left + (lane + 0.5) * _LANE, 2), round(y, 2))
        right = left + lanes * _LANE
        bands.append({"layer": layer, "kept": len(columns[layer]), "left": left, "right": right})
        left = right + gap
    return bands, places, min(radius, 16.0 * max(1.0, 0.6 * stretch))


def strength(attributes: Mapping[str, Any]) -> float:
    """Magnitude of an effect, 0 where there is none."""
    effect = attributes.get("effect")
    return abs(float(effect)) if effect is not None and math.isfinite(effect) else 0.0
