"""One offline HTML page of a comparison: both circuits on shared positions, and its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import pandas as pd

from neurograph.model.layers import Neuron
from neurograph.report.comparison_cards import (
    Layers,
    layer_cards,
    matched,
    measure_cards,
    transplant_cards,
)
from neurograph.report.document import VIS_NETWORK, Tab, assemble, tab_fields
from neurograph.report.placement import (
    Columns,
    Coordinates,
    Node,
    place,
    reduce_crossings,
    strength,
)

if TYPE_CHECKING:
    from neurograph.comparison.comparison import Comparison

__all__ = ["COMPARISON_TABS", "render_comparison"]

_SCRIPTS = (
    *(VIS_NETWORK, "kit.js", "edges.js", "labels.js", "graph.js", "search.js", "linked_tables.js"),
    *("tabs.js", "comparison.js"),
)
_EDGES_SHOWN = 5000  # strongest edges that travel with the page
_PATHS_SHOWN = 2000
_STATUS_ORDER = {"only_a": 0, "both": 1, "flipped": 2, "only_b": 3}  # from top to bottom
_EFFECTS = ("effect_a", "stderr_a", "effect_b", "stderr_b", "difference", "stderr")
_TIES_SHOWN = 50


def render_comparison(comparison: Comparison) -> str:
    """Draw a comparison as one HTML page that needs no network and no other file.

    Parameters
    ----------
    comparison : Comparison
        The two circuits, and what they share.

    Returns
    -------
    str
        The page; the same comparison always gives the same text. All neurons travel with it, of
        edges and paths the strongest thousands; it says how many are left out.
    """
    names = comparison.names
    fields = tab_fields(COMPARISON_TABS, comparison)
    return assemble(
        "comparison.html.j2",
        styles=("page.css", "linked_tables.css", "comparison.css"),
        scripts=_SCRIPTS,
        data=_payload(comparison)
        | {"layers": [{"a": card.a, "b": card.b} for card in fields["layers"]]},
        title=f"{names[0]} and {names[1]} compared",
        names=names,
        targets=list(dict.fromkeys((comparison.a.target, comparison.b.target))),
        matched=matched(comparison),
        tabs=COMPARISON_TABS,
        **fields,
    )


def _overview(comparison: Comparison) -> dict[str, Any]:
    ties = comparison.matching.ties()
    return {
        "notes": comparison.notes,
        "measures": measure_cards(comparison),
        "draws": max((len(drawn) for drawn in comparison.null.values()), default=0),
        "transplants": transplant_cards(comparison),
        "ties": list(ties.head(_TIES_SHOWN).itertuples(index=False)),
        "more_ties": max(0, len(ties) - _TIES_SHOWN),
    }


def _layers(comparison: Comparison) -> dict[str, Any]:
    return {"layers": layer_cards(comparison, list(_shared_columns(comparison).values()))}


COMPARISON_TABS = (
    Tab("overview", "Overview", "comparison_overview.html.j2", _overview),
    Tab("neurons", "Neurons", "linked_table.html.j2"),
    Tab("edges", "Edges", "linked_table.html.j2"),
    Tab("paths", "Paths", "linked_table.html.j2"),
    Tab("layers", "Layers", "comparison_layers.html.j2", _layers),
)
"""The tabs in their order: one is added here, with its template and its fields."""


def _payload(comparison: Comparison) -> dict[str, Any]:
    """Gather everything the scripts show, as values JSON can hold."""
    columns = _shared_columns(comparison)
    neurons, edges, paths = comparison.neurons(), comparison.edges(), comparison.paths()
    union = _Union.of(neurons, columns)
    shown = _strongest(edges, _EDGES_SHOWN)
    stored = _strongest(paths, _PATHS_SHOWN)
    net, bands, ids = _network(comparison, union, neurons, shown)
    tables = {"neurons": neurons, "edges": edges, "paths": paths}
    return {
        "names": comparison.names,
        "target": comparison.a.target,
        "columns": bands,
        "nodes": net.nodes,
        "edges": net.edges,
        "paths": [
            _effects(row) | {"row": place, "name": row["name"], "chain": _chain(union, ids, row)}
            for place, row in _rows(stored)
        ],
        "counts": {name: _counts(table) for name, table in tables.items()},
        "left_out": {"edges": len(edges) - len(shown), "paths": len(paths) - len(stored)},
        "provenance": [
            ["comparison", comparison.provenance],
            [comparison.names[0], comparison.a.provenance],
            [comparison.names[1], comparison.b.provenance],
        ],
    }


@dataclass(frozen=True)
class _Union:
    """The neurons of either circuit, a matched pair as one, in columns of layers.

    Attributes
    ----------
    columns : dict of str to list of tuple
        Keys of the neurons of each column: the column, 0 if a has it or 1, index and position.
        Columns are in order, empty ones left out.
    sides : dict of str to (layer of a or None, layers of b)
        What each column holds.
    here, there : dict of Neuron to tuple
        Keys by a's neuron and by b's.
    """

    columns: Columns
    sides: Mapping[str, Layers]
    here: Mapping[Neuron, Node]
    there: Mapping[Neuron, Node]

    @staticmethod
    def of(neurons: pd.DataFrame, sides: Mapping[str, Layers]) -> _Union:
        """Gather them from the table of neurons."""
        of_a = {a: column for column, (a, _) in sides.items() if a is not None}
        of_b = {b: column for column, (_, layers) in reversed([*sides.items()]) for b in layers}
        columns: Columns = {column: [] for column in sides}
        here: dict[Neuron, Node] = {}
        there: dict[Neuron, Node] = {}
        for a, b in zip(neurons["neuron_a"], neurons["neuron_b"], strict=True):
            column, neuron = (of_b[b.layer], b) if a is None else (of_a[a.layer], a)
            position = -1 if neuron.position is None else neuron.position
            key = (column, int(a is None), neuron.index, position)
            columns[column].append(key)
            if a is not None:
                here[a] = key
            if b is not None:
                there[b] = key
        return _Union({name: keys for name, keys in columns.items() if keys}, sides, here, there)

    def find(self, a: Neuron | None, b: Neuron | None) -> Node | None:
        """Key of a neuron that either circuit names; None where neither kept it."""
        key = None if a is None else self.here.get(a)
        return key if key is not None or b is None else self.there.get(b)


def _shared_columns(comparison: Comparison) -> dict[str, Layers]:
    """Columns of both models' layers: a's in order, layers of b alone behind what runs before."""
    a, b = comparison.a.layers, comparison.b.layers
    partners: dict[str, list[str]] = {layer: [] for layer in nx.topological_sort(a)}
    column_of: dict[str, str] = {}
    for match in comparison.matching.layers:
        partners[match.a].append(match.b)
        column_of.setdefault(match.b, f"a:{match.a}")
    columns: dict[str, Layers]
    columns = {f"a:{layer}": (layer, tuple(of_b)) for layer, of_b in partners.items()}
    order, last = list(columns), -1
    for layer in nx.topological_sort(b):
        if layer in column_of:
            last = max(last, order.index(column_of[layer]))
        else:
            last += 1
            order.insert(last, f"b:{layer}")
            columns[f"b:{layer}"] = (None, (layer,))
    return {column: columns[column] for column in order}


def _network(
    comparison: Comparison, union: _Union, neurons: pd.DataFrame, edges: pd.DataFrame
) -> tuple[Any, list[dict[str, Any]], dict[Node, str]]:
    """Fill a pyvis network with the neurons and the edges shown; its columns and the nodes' ids."""
    from pyvis.network import Network  # costs IPython: paid only when a page is drawn

    graph = nx.DiGraph()
    for place_, row in _rows(neurons):
        key = union.find(row["neuron_a"], row["neuron_b"])
        graph.add_node(key, row=place_, effect=_largest(row), **_neuron(comparison, row))
    for place_, row in _rows(edges):
        ends = [union.find(row[f"{end}_a"], row[f"{end}_b"]) for end in ("source", "target")]
        if None not in ends:
            graph.add_edge(*ends, row=place_, effect=_largest(row), shown=_effects(row))
    columns = union.columns
    reduce_crossings(graph, columns, lambda key: _STATUS_ORDER[graph.nodes[key]["shown"]["status"]])
    bands, places, radius = place(columns)
    net = Network(directed=True)
    ids = {key: str(i) for i, key in enumerate(key for keys in columns.values() for key in keys)}
    # Appending skips pyvis's per-item scans, which grow with the square of the graph.
    net.nodes += _nodes(graph, ids, places, radius)
    for (source, target), edge in sorted(
        ((ends, graph.edges[ends]) for ends in graph.edges), key=lambda item: item[1]["row"]
    ):
        ends_ = {"from": ids[source], "to": ids[target], "row": edge["row"]}
        net.edges.append(ends_ | edge["shown"])
    for band in bands:
        a, b = union.sides[band["layer"]]
        band |= {"a": a, "b": list(b)}
    return net, bands, ids


def _chain(union: _Union, ids: Mapping[Node, str], row: Mapping[str, Any]) -> list[int | None]:
    """Places of a path's neurons among the nodes; None for what neither circuit kept."""
    a, b = row["path_a"], row["path_b"]
    length = len(a if a is not None else b)
    pairs = zip(a or (None,) * length, b or (None,) * length, strict=True)
    keys = [union.find(*pair) for pair in pairs]
    return [None if key is None else int(ids[key]) for key in keys]


def _nodes(
    graph: nx.DiGraph, ids: Mapping[Node, str], places: Coordinates, radius: float
) -> list[dict[str, Any]]:
    inner = (strength(node) for _, node in graph.nodes(data=True) if not node["shown"]["target"])
    largest = max(inner, default=0.0) or 1.0  # the output itself would dwarf the rest
    nodes = []
    for key, node_id in ids.items():
        node, (x, y) = graph.nodes[key], places[key]
        share = math.sqrt(min(1.0, strength(node) / largest))
        drawn = {"id": node_id, "layer": key[0], "x": x, "y": y, "shape": "custom"}
        drawn |= {"size": 4.0 + (radius - 4.0) * share, "row": node["row"]}
        nodes.append(drawn | node["shown"])
    return nodes


def _neuron(comparison: Comparison, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of one neuron, or pair."""
    shown = _effects(row) | {"similarity": row["similarity"], "tied": bool(row["tied"])}
    shown["counted"] = bool(row["counted"])
    graphs = comparison.a.graph, comparison.b.graph
    pair = [row["neuron_a"], row["neuron_b"]]
    kept = [graph.nodes.get(n, {}) for graph, n in zip(graphs, pair, strict=True)]
    shown["target"] = any(node.get("target", False) for node in kept)
    shown |= {key: None if n is None else [*n] for key, n in zip("ab", pair, strict=True)}
    own = [node["name"] for node in kept if "name" in node]
    shown["label"] = own[0] if own else row["name"]
    if len(set(own)) == 2:
        shown["label_b"] = own[1]
    return {"shown": shown}


def _effects(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"status": row["status"]} | {key: float(row[key]) for key in _EFFECTS}


def _largest(row: Mapping[str, Any]) -> float:
    """The larger magnitude of the two effects, of those known."""
    known = [abs(row[key]) for key in ("effect_a", "effect_b") if not math.isnan(row[key])]
    return max(known, default=0.0)


def _strongest(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Rows strongest in either circuit, in the table's order; a change is at most twice that."""
    if len(table) <= count:
        return table
    largest = table[["effect_a", "effect_b"]].abs().max(axis=1).fillna(0.0)
    chosen = largest.sort_values(ascending=False, kind="stable").index[:count]
    return table.loc[sorted(chosen)]


def _rows(table: pd.DataFrame) -> list[tuple[int, dict[str, Any]]]:
    """Rows with their places in the whole table."""
    return list(zip(table.index.tolist(), table.to_dict("records"), strict=True))


def _counts(table: pd.DataFrame) -> dict[str, int]:
    counted: Sequence[str] = table["status"].tolist()
    return {status: counted.count(status) for status in _STATUS_ORDER}
