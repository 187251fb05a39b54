"""One offline HTML page of a circuit: its data, its layout and the file it is written to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx

from neurograph.circuit.circuit_tables import strongest_features
from neurograph.effects.effect_table import CIRCUIT, THROUGH, TOTAL
from neurograph.effects.selection import SIGNS
from neurograph.errors import OptionError
from neurograph.report.document import VIS_NETWORK, assemble
from neurograph.report.exemplar_cards import add_exemplars
from neurograph.report.faithfulness_card import faithfulness_card
from neurograph.report.placement import (
    Columns,
    Coordinates,
    Node,
    place,
    reduce_crossings,
    strength,
)
from neurograph.utils.checks import shown, whole

if TYPE_CHECKING:
    from neurograph.ablation.faithfulness_result import Faithfulness
    from neurograph.circuit.circuit import Circuit

_SCRIPTS = (VIS_NETWORK, "kit.js", "edges.js", "labels.js", "graph.js", "search.js", "circuit.js")
_PATHS_SHOWN = 20  # strongest paths of each sign that travel with the page
_MOST_NEURONS, _MOST_EDGES = 2_000, 10_000  # what a browser draws and moves at once
_SIGN_ORDER = {"positive": 0, "zero": 1, "negative": 2}
_SHOWN = [
    *"position token target made_of".split(),
    *(column for kind in (CIRCUIT, TOTAL) for column in (kind.effect, kind.stderr)),
    *"mean std min max count".split(),
    *(column for kind in THROUGH.values() for column in (kind.effect, kind.stderr)),
    *"q0 q5 q25 q50 q75 q95 q100 ablated wasserstein_std mean_before mean_after".split(),
]


def render_circuit(
    circuit: Circuit, faithfulness: Faithfulness | None = None, exemplars: int = 0
) -> str:
    """Draw a circuit as one HTML page that needs no network and no other file.

    Parameters
    ----------
    circuit : Circuit
        The circuit to show.
    faithfulness : Faithfulness, optional
        How much of the target it carries, to show beside it.
    exemplars : int
        How many samples to show in which a neuron is highest, and lowest; none where the circuit
        has no study.

    Returns
    -------
    str
        The page; the same circuit always gives the same text.
    """
    if faithfulness is not None:
        _check_same(circuit, faithfulness)
    data = _payload(circuit)
    exemplars = whole(exemplars, "exemplars", least=0)
    if exemplars and circuit.is_attached:
        add_exemplars(data, circuit.study, exemplars)
    return assemble(
        "circuit.html.j2",
        styles=("page.css", "circuit.css"),
        scripts=_SCRIPTS,
        data=data,
        title=data["title"],
        target=data["target"],
        card=None if faithfulness is None else faithfulness_card(faithfulness),
    )


def _check_same(circuit: Circuit, faithfulness: Faithfulness) -> None:
    """OptionError where two results are of other targets or models, or one is none."""
    if not hasattr(faithfulness, "provenance"):
        raise OptionError(f"faithfulness={shown(faithfulness)}: pass what faithfulness() returned")
    models = [r.provenance.get("model", {}).get("hash") for r in (circuit, faithfulness)]
    if faithfulness.target != circuit.target or (None not in models and models[0] != models[1]):
        what = "model" if faithfulness.target == circuit.target else "target"
        raise OptionError(
            f"faithfulness= is of another {what} than the circuit ({faithfulness.target!r} beside "
            f"{circuit.target!r}): measure it of this one"
        )


def _payload(circuit: Circuit) -> Any:
    """Gather everything the page shows, as values JSON can hold."""
    unattached = circuit.detach()  # a page is quick, and the same for a circuit and its file
    listed = {sign: [*unattached.paths(_PATHS_SHOWN, sign=sign)] for sign in SIGNS}
    graph = _shown(circuit.graph, [path.neurons for own in listed.values() for path in own])
    notes, layers = [*circuit.notes, *_cut(circuit.graph, graph)], circuit.layers.nodes
    columns = _columns(graph, circuit.layers)
    reduce_crossings(graph, columns, lambda neuron: _SIGN_ORDER[_sign(graph.nodes[neuron])])
    bands, places, radius = place(columns)
    ids = {neuron: str(i) for i, neuron in enumerate(n for ns in columns.values() for n in ns)}
    net = _network(graph, ids, places, radius)
    for band in bands:
        band.update(
            {key: layers.get(band["layer"], {}).get(key) for key in ("type", "neurons", "kind")}
        )
    paths: dict[str, list[dict[str, Any]]] = {sign: [] for sign in SIGNS}
    for sign, own in listed.items():
        for path in own:
            row = {key: getattr(path, key) for key in ("effect", "stderr", "measured")}
            paths[sign].append(row | {"neurons": [ids[neuron] for neuron in path.neurons]})
    data: dict[str, Any] = {"title": f"Circuit of {circuit.target}", "target": circuit.target}
    data |= {"columns": bands, "paths": paths}
    data |= {"nodes": net.nodes, "edges": net.edges, "notes": notes}
    data["features"] = [
        {"name": name, "effect": effect, "stderr": stderr, "estimated": not measured}
        for name, effect, stderr, measured in strongest_features(
            circuit.graph, circuit.layers, circuit.scores
        )
    ]
    data["audit"] = str(circuit.audited) if "audit" in circuit.provenance else ""
    elsewhere = ("notes", "audit")
    data["provenance"] = {k: v for k, v in circuit.provenance.items() if k not in elsewhere}
    return data


def _shown(graph: nx.DiGraph, paths: Sequence[Sequence[Node]]) -> nx.DiGraph:
    """Cut a graph to the strongest neurons and edges, beside those of the paths that are listed."""

    def chosen(items: Iterable[Any], always: set[Any], most: int) -> list[Any]:
        ordered = sorted(items, key=lambda item: (item[0] not in always, -strength(item[1])))
        return [item for item, _ in ordered[:most]]

    if len(graph) > _MOST_NEURONS:
        on_paths = {neuron for path in paths for neuron in path}
        ends = {neuron for neuron, is_end in graph.nodes(data="target") if is_end}
        graph = graph.subgraph(chosen(graph.nodes(data=True), on_paths | ends, _MOST_NEURONS))
    if graph.number_of_edges() > _MOST_EDGES:
        hops = {hop for path in paths for hop in itertools.pairwise(path)}
        every = (((u, v), data) for u, v, data in graph.edges(data=True))
        kept = nx.DiGraph()
        kept.add_nodes_from(graph.nodes(data=True))
        kept.add_edges_from((*e, graph.edges[e]) for e in chosen(every, hops, _MOST_EDGES))
        return kept
    return graph


def _cut(whole: nx.DiGraph, shown: nx.DiGraph) -> list[str]:
    """Say what a page leaves out."""
    counts = len(shown), len(whole), shown.number_of_edges(), whole.number_of_edges()
    if counts[0] == counts[1] and counts[2] == counts[3]:
        return []
    return [
        "this page draws the strongest {:,} of {:,} neurons and {:,} of {:,} edges: the circuit's "
        "file and tables hold all".format(*counts)
    ]


def _network(graph: Any, ids: dict[Node, str], places: Coordinates, radius: float) -> Any:
    """Fill a pyvis network with the circuit's neurons and edges."""
    from pyvis.network import Network  # costs IPython: paid only when a page is drawn

    net = Network(directed=True)
    inner = (strength(a) for _, a in graph.nodes(data=True) if not a.get("target"))
    largest = max(inner, default=0.0) or 1.0  # the output itself would dwarf the rest
    # Appending skips pyvis's per-item scans, which grow with the square of the graph.
    for neuron, node_id in ids.items():
        attributes = graph.nodes[neuron]
        (layer, index), (x, y) = neuron[:2], places[neuron]
        share = math.sqrt(min(1.0, strength(attributes) / largest))
        node: dict[str, Any] = {"id": node_id, "layer": layer, "index": index, "x": x, "y": y}
        node |= {"label": str(attributes.get("name", f"{layer}[{index}]")), "shape": "custom"}
        node |= {"size": 3.5 + (radius - 3.5) * share, "sign": _sign(attributes)}
        node |= {key: attributes[key] for key in _SHOWN if key in attributes}
        node |= _estimated(attributes)
        net.nodes.append(node)
        for reader in sorted(graph.succ[neuron], key=lambda n: int(ids[n])):
            edge = graph.edges[neuron, reader]
            ends = {"from": node_id, "to": ids[reader], "sign": _sign(edge)}
            ends |= {key: edge.get(key) for key in ("effect", "stderr")}
            net.edges.append(ends | _estimated(edge))
    return net


def _estimated(attributes: Any) -> dict[str, bool]:
    """Mark what was not measured by intervention."""
    names = {"estimated": CIRCUIT.measured, "total_estimated": TOTAL.measured}
    return {name: True for name, key in names.items() if not attributes.get(key, True)}


def _columns(graph: Any, layers: Any) -> Columns:
    """Kept neurons of each layer that has any, layers in topological order."""
    columns: Columns = {layer: [] for layer in nx.topological_sort(layers)}
    for neuron in sorted(graph.nodes):
        columns.setdefault(neuron[0], []).append(neuron)
    return {layer: neurons for layer, neurons in columns.items() if neurons}


def _sign(attributes: Mapping[str, Any]) -> str:
    """Sign as stored, else that of the effect."""
    implied = "negative" if (attributes.get("effect") or 0.0) < 0 else "positive"
    return str(attributes.get("sign") or implied)
