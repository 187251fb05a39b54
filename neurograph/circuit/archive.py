"""Circuits as files: one zip of JSON and safetensors, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path as FilePath
from typing import Any, TypeVar

import networkx as nx
import numpy as np
import safetensors.numpy

from neurograph.circuit.circuit import Circuit, Path
from neurograph.effects.effect_table import CIRCUIT
from neurograph.effects.selection import sign_of
from neurograph.errors import CircuitFileError, OptionError
from neurograph.model.layers import Neuron
from neurograph.model.neuron_index import PLACE
from neurograph.utils.atomic import check_writable, write_atomically
from neurograph.utils.checks import is_path, shown

__all__ = [
    "FORMAT_VERSION",
    "check_format",
    "dump",
    "load",
    "pack",
    "parse",
    "read_file",
    "save",
    "to_json",
    "unpack",
]

Result = TypeVar("Result")

FORMAT = "neurograph circuit"
FORMAT_VERSION = 3
_MEMBERS = ("circuit.json", "scores.safetensors")
_LAYER: Mapping[str, type] = {"type": str, "neurons": int, "output": bool}
_NUMBERS = re.compile(
    rf"({CIRCUIT.effect}|{CIRCUIT.stderr}|transfer)$|^(count|mean|std|min|max|q[\d.]+)$"
)


def save(circuit: Circuit, path: str | FilePath) -> None:
    """Write a circuit; the same circuit always gives the same bytes."""
    path = check_writable(path)
    write_atomically(path, dump(circuit))


def dump(circuit: Circuit) -> bytes:
    """Write a circuit as what `save` puts into a file."""
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "target": circuit.target,
        "provenance": dict(circuit.provenance),
        "layers": [
            [list(item) for item in circuit.layers.nodes(data=True)],
            [list(edge) for edge in circuit.layers.edges],
        ],
        "neurons": [[list(n), data] for n, data in circuit.graph.nodes(data=True)],
        "edges": [[list(u), list(v), data] for u, v, data in circuit.graph.edges(data=True)],
        "paths": [
            [[list(n) for n in p.neurons], p.effect, p.stderr, p.measured]
            for p in circuit.strongest
        ],
    }
    scores = {
        json.dumps([layer, key]): np.ascontiguousarray(values)
        for layer, table in circuit.scores.items()
        for key, values in table.items()
    }
    contents = (to_json(document), safetensors.numpy.save(scores))
    return pack(dict(zip(_MEMBERS, contents, strict=True)))


def pack(members: Mapping[str, bytes]) -> bytes:
    """Write a zip; equal members always give equal bytes."""
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # no date of today
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
        return buffer.getvalue()


def unpack(content: bytes, names: Collection[str] | None = None) -> dict[str, bytes]:
    """Read what `pack` wrote: all of it, or these members alone."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in names or archive.namelist()}


def load(path: str | FilePath) -> Circuit:
    """Read a circuit that `Circuit.save` wrote.

    It holds no model: `Circuit.attach` gives it one to measure further paths with.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CircuitFileError
        The file is no circuit, is damaged, or was written by a newer version.
    """
    return read_file(path, "circuit", parse)


def parse(content: bytes) -> Circuit:
    """Read what `dump` wrote."""
    text, scores = unpack(content, _MEMBERS).values()
    document = json.loads(text)
    check_format(document, FORMAT, FORMAT_VERSION)
    circuit = _read(document, safetensors.numpy.load(scores))
    _check(circuit, document)
    return circuit


class VersionError(ValueError):
    """A file of another version; says which, and which is read."""


def read_file(path: str | FilePath, kind: str, read: Callable[[bytes], Result]) -> Result:
    """Read a file of one of our formats; errors as `load` documents them for circuits."""
    if not is_path(path):
        raise OptionError(f"path={shown(path)} is no path of a file")
    path = FilePath(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file {str(path)!r}")
    content = path.read_bytes()
    try:
        return read(content)
    except VersionError as error:
        raise CircuitFileError(
            f"{str(path)!r} has format version {error}: read it with the neurograph that wrote it, "
            "or search again"
        ) from error
    except Exception as error:
        # Damage shows as any error of zipfile, zlib, struct, json, safetensors or of our own.
        if other := _other_kind(content, kind):
            raise CircuitFileError(f"{str(path)!r} holds {other}") from error
        reason = " ".join(str(error).split())
        raise CircuitFileError(
            f"{str(path)!r} is no {kind} file, or a damaged one ({reason}): save it again"
        ) from error


_READERS = {
    "circuit": "a circuit, which neurograph.load reads",
    "comparison": "a comparison, which Comparison.load reads",
    "comparisons": "comparisons, which Comparisons.load reads",
}


def _other_kind(content: bytes, wanted: str) -> str | None:
    """Say what else than wanted a file holds, if it is one of ours."""
    with contextlib.suppress(Exception):  # damaged, see above
        held = {name.removesuffix(".json") for name in unpack(content)}
        return next((text for kind, text in _READERS.items() if kind in held - {wanted}), None)
    return None


def check_format(document: Mapping[str, Any], name: str, version: int) -> None:
    """Check that a document is of a format and version."""
    if document["format"] != name:
        raise ValueError(f"format {document['format']!r}")
    if not isinstance(document["version"], int):
        raise ValueError(f"version {document['version']!r}")
    if document["version"] != version:
        raise VersionError(f"{document['version']}, and this neurograph reads {version}")


def _read(document: dict[str, Any], arrays: dict[str, np.ndarray]) -> Circuit:
    graph = nx.DiGraph(target=document["target"])
    for neuron, data in document["neurons"]:
        graph.add_node(Neuron(*neuron), **_none_to_nan(data))
    for writer, reader, data in document["edges"]:
        graph.add_edge(Neuron(*writer), Neuron(*reader), **_none_to_nan(data))
    layers = nx.DiGraph()
    nodes, edges = document["layers"]
    layers.add_nodes_from((name, data) for name, data in nodes)
    layers.add_edges_from(edges)
    paths = []
    for listed, effect, stderr, measured in document["paths"]:
        neurons = tuple(Neuron(*n) for n in listed)
        names = tuple(str(graph.nodes[n]["name"]) for n in neurons)
        numbers = _none_to_nan({"effect": effect, "stderr": stderr})
        paths.append(Path(neurons, **numbers, measured=bool(measured), names=names))
    scores: dict[str, dict[str, np.ndarray]] = {}
    for key, values in arrays.items():
        layer, kind = json.loads(key)
        scores.setdefault(layer, {})[kind] = values
    provenance = document["provenance"]
    return Circuit(graph, layers, document["target"], tuple(paths), scores, provenance)


def _check(circuit: Circuit, document: Mapping[str, Any]) -> None:
    """ValueError where parts of a circuit are missing or contradict each other."""
    if not isinstance(document["target"], str) or not isinstance(document["provenance"], dict):
        raise ValueError("its target is no name, or its provenance no dict")
    if len(document["edges"]) != circuit.graph.number_of_edges():
        raise ValueError("an edge stands twice")
    if len(document["neurons"]) != len(circuit.graph):
        raise ValueError("a neuron stands twice")
    for part in ("model", "data", "target", "options"):
        if not isinstance(document["provenance"].get(part, {}), dict):
            raise ValueError(f"its provenance does not say what its {part} was")
    json.dumps(document, allow_nan=False)  # else it could not be saved again
    if not nx.is_directed_acyclic_graph(circuit.layers):
        raise ValueError("its layers read each other in a circle")
    notes = circuit.provenance.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError("its notes are no sentences")
    for name, data in circuit.layers.nodes(data=True):
        whole = all(isinstance(data.get(key), kind) for key, kind in _LAYER.items())
        if not isinstance(name, str) or not whole:
            raise ValueError(f"layer {name!r} lacks some of {', '.join(_LAYER)}")
    for name, table in circuit.scores.items():
        data = circuit.layers.nodes[name]
        positions = [data["positions"]] if "positions" in data else []
        shape = (data["neurons"] // math.prod(positions), *positions)
        if not {CIRCUIT.effect, CIRCUIT.stderr} <= table.keys() or {
            x.shape for x in table.values()
        } != {shape}:
            raise ValueError(f"the scores of layer {name!r} are not of its neurons")
    for neuron, data in circuit.graph.nodes(data=True):
        _check_numbers(data, str(neuron))
        named = tuple(data[key] for key in PLACE if key in data)
        if neuron.layer not in circuit.scores or named != neuron:
            raise ValueError(f"neuron {neuron} is in no layer with scores, or named as another")
        if not isinstance(data.get("name"), str):
            raise ValueError(f"neuron {neuron} has no name")
        for key, values in circuit.scores[neuron.layer].items():
            if key in data and not np.array_equal(values[neuron[1:]], data[key], equal_nan=True):
                raise ValueError(f"{key} of neuron {neuron} is not that of its layer's scores")
    for u, v, data in circuit.graph.edges(data=True):
        _check_numbers(data, f"{u} → {v}")
        if not circuit.layers.has_edge(u.layer, v.layer):
            raise ValueError(f"the edge {u} → {v} is between layers that do not read each other")
    for listed, path in zip(document["paths"], circuit.strongest, strict=True):
        where = " → ".join(path.names)
        _check_numbers(vars(path) | {"measured": listed[3]}, where)
        steps = itertools.pairwise(n.layer for n in path.neurons)
        if not path.neurons or not all(circuit.layers.has_edge(*step) for step in steps):
            raise ValueError(f"the path {where} leads where no layer reads another")
    str(circuit)  # reads what its provenance tells


def _check_numbers(data: Mapping[str, Any], where: str) -> None:
    """ValueError for an effect that is no number, or called by another sign than its own."""
    numbers = [value for key, value in data.items() if _NUMBERS.search(key)]
    if not all(type(x) is bool for key, x in data.items() if key.endswith(CIRCUIT.measured)):
        raise ValueError(f"it is not known whether the effects of {where} were measured")
    if not {CIRCUIT.effect, CIRCUIT.stderr} <= data.keys() or not all(
        type(x) in (int, float) and not math.isinf(x) for x in numbers
    ):
        raise ValueError(f"the effects of {where} are no numbers")
    if data[CIRCUIT.stderr] < 0:
        raise ValueError(f"the standard error of {where} is below 0")
    if data.get("sign", sign_of(data["effect"])) != sign_of(data["effect"]):
        raise ValueError(f"the effect of {where} is not {data['sign']}")


def to_json(document: Any) -> bytes:
    """Write strict JSON; NaN becomes null."""
    text = json.dumps(_nan_to_none(document), ensure_ascii=False, allow_nan=False)
    return text.encode()


def _nan_to_none(value: Any) -> Any:
    """JSON has no NaN: an unknown number is null."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _none_to_nan(data: dict[str, Any]) -> dict[str, Any]:
    return {key: float("nan") if value is None else value for key, value in data.items()}
