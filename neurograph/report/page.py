"""One offline HTML page of a circuit: its data, its layout and the file it is written to."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from neurograph.atomic import check_writable, write_atomically
from neurograph.report.faithfulness import card
from neurograph.selection import SIGNS

if TYPE_CHECKING:
    from neurograph.circuit import Circuit
    from neurograph.faithfulness.result import Faithfulness

_TEMPLATES = Path(__file__).parent / "templates"
_PATHS_SHOWN = 20  # strongest paths of each sign that travel with the page
_SWEEPS = 6  # passes over the columns; crossings hardly fall after the fourth
_LANE = 26.0  # distance between two lanes of one crowded column
_SINGLE_LANE = 36  # neurons that still fit below each other in one lane
_SIGN_ORDER = {"positive": 0, "both": 1, "negative": 2}
_SHOWN = (
    "position token target effect stderr total_effect total_stderr mean std min max count "
    "q0 q5 q25 q50 q75 q95 q100 cut wasserstein_std mean_before mean_after"
).split()

Neuron = tuple[Any, ...]
Columns = dict[str, list[Neuron]]
Places = dict[Neuron, tuple[float, float]]


def render(circuit: Circuit, faithfulness: Faithfulness | None = None) -> str:
    """Draw a circuit as one HTML page that needs no network and no other file.

    Parameters
    ----------
    circuit : Circuit
        The circuit to show.
    faithfulness : Faithfulness, optional
        How much of the target it carries, to show beside it.

    Returns
    -------
    str
        The page; the same circuit always gives the same text.
    """
    scripts = [_vis_network(), (_TEMPLATES / "circuit.js").read_text(encoding="utf-8")]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in scripts]
    data = _payload(circuit)
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True)
    return environment.get_template("circuit.html.j2").render(
        title=data["title"],
        target=data["target"],
        card=None if faithfulness is None else card(faithfulness),
        # The page's policy names its scripts by hash: browsers run and fetch nothing else.
        script_hashes=["sha256-" + digest.decode() for digest in digests],
        scripts=[Markup(script) for script in scripts],
        style=Markup((_TEMPLATES / "circuit.css").read_text(encoding="utf-8")),
        data=Markup(_json_for_html(data)),
    )


def write_page(
    circuit: Circuit, path: str | os.PathLike[str], faithfulness: Faithfulness | None = None
) -> None:
    """Write the page of a circuit to a file, whole or not at all.

    Parameters
    ----------
    circuit : Circuit
        The circuit to show.
    path : str or os.PathLike
        File to write; one that exists is replaced.
    faithfulness : Faithfulness, optional
        As for `render`.

    Raises
    ------
    OptionError
        If `path` is a folder, or lies in one that does not exist or cannot be written to.
    """
    path = check_writable(Path(path))
    write_atomically(path, render(circuit, faithfulness).encode())


def _payload(circuit: Circuit) -> Any:
    """Gather everything the page shows, as values JSON can hold."""
    graph, layers = circuit.graph, circuit.layers.nodes
    columns = _columns(graph, circuit.layers)
    _reduce_crossings(graph, columns)
    bands, places, radius = _place(columns)
    ids = {neuron: str(i) for i, neuron in enumerate(n for ns in columns.values() for n in ns)}
    net = _network(graph, ids, places, radius)
    for band in bands:
        band.update({key: layers.get(band["layer"], {}).get(key) for key in ("type", "neurons")})
    unattached = circuit.detach()  # a page is quick, and the same for a circuit and its file
    paths: dict[str, list[dict[str, Any]]] = {sign: [] for sign in SIGNS}
    for sign in SIGNS:
        for path in unattached.paths(_PATHS_SHOWN, sign=sign):
            row = {key: getattr(path, key) for key in ("effect", "stderr", "measured")}
            paths[sign].append(row | {"neurons": [ids[neuron] for neuron in path.neurons]})
    data: dict[str, Any] = {"title": f"Circuit of {circuit.target}", "target": circuit.target}
    data |= {"columns": bands, "paths": paths}
    data |= {"nodes": net.nodes, "edges": net.edges, "provenance": circuit.provenance}
    return _clean(data)


def _network(graph: Any, ids: dict[Neuron, str], places: Places, radius: float) -> Any:
    """Fill a pyvis network with the circuit's neurons and edges."""
    from pyvis.network import Network  # costs IPython: paid only when a page is drawn

    net = Network(directed=True)
    inner = (_size(a) for _, a in graph.nodes(data=True) if not a.get("target"))
    largest = max(inner, default=0.0) or 1.0  # the output itself would dwarf the rest
    # Appending skips pyvis's per-item scans, which grow with the square of the graph.
    for neuron, node_id in ids.items():
        attributes = graph.nodes[neuron]
        (layer, index), (x, y) = neuron[:2], places[neuron]
        share = math.sqrt(min(1.0, _size(attributes) / largest))
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
    names = {"estimated": "measured", "total_estimated": "total_measured"}
    return {name: True for name, key in names.items() if not attributes.get(key, True)}


def _columns(graph: Any, layers: Any) -> Columns:
    """Kept neurons of each layer that has any, layers in topological order."""
    columns: Columns = {layer: [] for layer in nx.topological_sort(layers)}
    for neuron in sorted(graph.nodes):
        columns.setdefault(neuron[0], []).append(neuron)
    return {layer: neurons for layer, neurons in columns.items() if neurons}


def _reduce_crossings(graph: Any, columns: Columns) -> None:
    """Sort every column in place by the weighted mean height of its neighbours.

    Positive neurons stay above negative ones, so only the order within a sign is free.
    """
    height: dict[Neuron, float] = {}

    def settle(neurons: list[Neuron]) -> None:
        height.update({n: (i + 0.5) / len(neurons) for i, n in enumerate(neurons)})

    def rank(neuron: Neuron) -> int:
        return _SIGN_ORDER[_sign(graph.nodes[neuron])]

    for neurons in columns.values():
        neurons.sort(key=lambda n: (rank(n), -_size(graph.nodes[n]), n[1:]))
        settle(neurons)
    for sweep in range(_SWEEPS):
        beside = graph.pred if sweep % 2 == 0 else graph.succ
        for neurons in list(columns.values())[:: 1 if sweep % 2 == 0 else -1]:
            means = {}
            for n in neurons:
                weights = {m: _size(e) + 1e-12 for m, e in beside[n].items()}
                pull = sum(weights[m] * height[m] for m in weights)
                means[n] = pull / sum(weights.values()) if weights else height[n]
            neurons.sort(key=lambda n: (rank(n), means[n], n[1:]))
            settle(neurons)


def _place(columns: Columns) -> tuple[list[dict[str, Any]], Places, float]:
    """Give every neuron its place; crowded columns are folded into several lanes."""
    shapes = {}
    for layer, neurons in columns.items():
        lanes = 1 if (kept := len(neurons)) <= _SINGLE_LANE else round(math.sqrt(kept) / 3.4)
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
        for i, neuron in enumerate(columns[layer]):
            row, lane = divmod(i, lanes)  # odd lanes sit lower: edges pass between neighbours
            y = (row + lane % 2 / 2 - (rows - 1) / 2) * pitch * stretch
            places[neuron] = (round(left + (lane + 0.5) * _LANE, 2), round(y, 2))
        right = left + lanes * _LANE
        bands.append({"layer": layer, "kept": len(columns[layer]), "left": left, "right": right})
        left = right + gap
    return bands, places, min(radius, 16.0 * max(1.0, 0.6 * stretch))


def _sign(attributes: Mapping[str, Any]) -> str:
    """Sign as stored, else that of the effect."""
    implied = "negative" if (attributes.get("effect") or 0.0) < 0 else "positive"
    return str(attributes.get("sign") or implied)


def _size(attributes: Mapping[str, Any]) -> float:
    """Magnitude of an effect, 0 where there is none."""
    effect = attributes.get("effect")
    return abs(float(effect)) if effect is not None and math.isfinite(effect) else 0.0


def _clean(value: Any) -> Any:
    """Turn a value into what strict JSON can hold; what is not finite becomes null."""
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        value = value.tolist()
    if isinstance(value, float):  # a float32 holds no more than seven digits
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):  # a set has no order of its own to keep
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value if value is None or isinstance(value, (bool, int)) else str(value)


def _json_for_html(data: Any) -> str:
    """Write JSON that no HTML parser can mistake for markup."""
    escapes = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&"}  # the rest is ASCII already
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(escapes)


def _vis_network() -> str:
    """Source of the vis-network library that pyvis carries."""
    import pyvis

    found = sorted(Path(pyvis.__file__).parent.glob("lib/vis-*/vis-network.min.js"))
    if found:
        return found[-1].read_text(encoding="utf-8")
    raise FileNotFoundError(f"{pyvis.__file__} has no vis-network.min.js: reinstall pyvis")
