"""Comparisons as files: one zip of circuits, JSON and safetensors, written whole or not at all.

What is written and read are the fields of `Comparison`, by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy

from neurograph.circuit import archive
from neurograph.circuit.circuit import Circuit
from neurograph.comparison.comparison_tables import column_of
from neurograph.matching.matching import LayerMatch, Matching
from neurograph.model.layers import Neuron
from neurograph.utils.atomic import check_writable, write_atomically

__all__ = ["load_comparison", "load_comparisons", "save_comparison", "save_comparisons"]

Fields = Mapping[str, Any]
Pair = tuple[str, str]
Matrix = tuple[tuple[str, ...], tuple[str, ...], dict[Pair, dict[str, Any]]]

_ONE, _MANY, _VERSION = "neurograph comparison", "neurograph comparisons", 1
_TABLES = ("layers", "transplants", "_neurons", "_edges", "_paths")
_NEURONS = {f"{what}_{side}" for what in ("neuron", "source", "target") for side in "ab"}
_PATHS = {"path_a", "path_b"}


def save_comparison(fields: Fields, path: str | FilePath) -> None:
    """Write a comparison; the same one always gives the same bytes."""
    members = {f"{x}.circuit": archive.dump(fields[x]) for x in "ab"}
    document = {"format": _ONE, "version": _VERSION, "comparison": _document(fields)}
    members["comparison.json"] = archive.to_json(document)
    members["arrays.safetensors"] = safetensors.numpy.save(_arrays(fields))
    write_atomically(check_writable(path), archive.pack(members))


def load_comparison(path: str | FilePath) -> dict[str, Any]:
    """Read what `save_comparison` wrote."""

    def read(content: bytes) -> dict[str, Any]:
        members = archive.unpack(content)
        document = json.loads(members["comparison.json"])
        archive.check_format(document, _ONE, _VERSION)
        a, b = (archive.parse(members[f"{x}.circuit"]) for x in "ab")
        arrays = safetensors.numpy.load(members["arrays.safetensors"])
        return _read(document["comparison"], arrays, a, b)

    return archive.read_file(path, "comparison", read)


def save_comparisons(
    rows: Sequence[str],
    columns: Sequence[str],
    circuits: Mapping[str, Circuit],
    cells: Mapping[Pair, Fields],
    path: str | FilePath,
) -> None:
    """Write a matrix of comparisons, each circuit once."""
    members = {f"{i}.circuit": archive.dump(c) for i, c in enumerate(circuits.values())}
    document = {
        "format": _MANY,
        "version": _VERSION,
        "rows": rows,
        "columns": columns,
        "circuits": list(circuits),
        "cells": [[*pair, _document(fields)] for pair, fields in cells.items()],
    }
    members["comparisons.json"] = archive.to_json(document)
    for i, fields in enumerate(cells.values()):
        members[f"{i}.safetensors"] = safetensors.numpy.save(_arrays(fields))
    write_atomically(check_writable(path), archive.pack(members))


def load_comparisons(path: str | FilePath) -> Matrix:
    """Read what `save_comparisons` wrote: rows, columns and cells."""

    def read(content: bytes) -> Matrix:
        members = archive.unpack(content)
        document = json.loads(members["comparisons.json"])
        archive.check_format(document, _MANY, _VERSION)
        circuits = {
            name: archive.parse(members[f"{i}.circuit"])
            for i, name in enumerate(document["circuits"])
        }
        cells = {}
        for i, (row, column, cell) in enumerate(document["cells"]):
            arrays = safetensors.numpy.load(members[f"{i}.safetensors"])
            cells[row, column] = _read(cell, arrays, circuits[row], circuits[column])
        return tuple(document["rows"]), tuple(document["columns"]), cells

    return archive.read_file(path, "comparisons", read)


# -- what is not an array --------------------------------------------------------------------------


def _document(fields: Fields) -> dict[str, Any]:
    matching = fields["matching"]
    return {
        "names": fields["names"],
        "matching": {
            "kind": matching.kind,
            "layers": [[m.a, m.b, m.ties, m.cka] for m in matching.layers],
        },
        "measures": _table(fields["measures"].reset_index()),
        "tables": {name: _table(fields[name]) for name in _TABLES},
        "notes": fields["notes"],
        "provenance": dict(fields["provenance"]),
    }


def _arrays(fields: Fields) -> dict[str, np.ndarray]:
    arrays = {f"null/{name}": values for name, values in fields["null"].items()}
    for i, match in enumerate(fields["matching"].layers):
        arrays |= {f"{key}/{i}": getattr(match, key) for key in ("pairs", "similarity", "tied")}
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def _read(
    document: Mapping[str, Any], arrays: Mapping[str, np.ndarray], a: Circuit, b: Circuit
) -> dict[str, Any]:
    layers = [
        LayerMatch(
            one,
            other,
            arrays[f"pairs/{i}"],
            arrays[f"similarity/{i}"],
            arrays[f"tied/{i}"],
            tuple((tuple(here), tuple(there)) for here, there in ties),
            float("nan") if cka is None else cka,
        )
        for i, (one, other, ties, cka) in enumerate(document["matching"]["layers"])
    ]
    return {
        "a": a,
        "b": b,
        "names": tuple(document["names"]),
        "matching": Matching(document["matching"]["kind"], tuple(layers)),
        "measures": _untable(document["measures"]).set_index("measure"),
        "null": {
            name.removeprefix("null/"): values
            for name, values in arrays.items()
            if name.startswith("null/")
        },
        "notes": tuple(document["notes"]),
        "provenance": document["provenance"],
        **{name: _untable(document["tables"][name]) for name in _TABLES},
    }


def _table(table: pd.DataFrame) -> list[list[Any]]:
    """Columns with their names and dtypes; neurons as lists."""
    return [[name, str(table[name].dtype), table[name].tolist()] for name in table]


def _untable(columns: list[list[Any]]) -> pd.DataFrame:
    table: dict[str, Any] = {}
    for name, dtype, values in columns:
        if name in _NEURONS or name in _PATHS:
            read = _path if name in _PATHS else _neuron
            table[name] = column_of([None if value is None else read(value) for value in values])
        elif dtype.startswith("float"):
            numbers = [float("nan") if value is None else value for value in values]
            table[name] = pd.Series(numbers, dtype=dtype)
        else:
            table[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(table)


def _neuron(value: list[Any]) -> Neuron:
    return Neuron(*value)


def _path(value: list[list[Any]]) -> tuple[Neuron, ...]:
    return tuple(Neuron(*neuron) for neuron in value)
