"""Comparisons as files: one zip of circuits, JSON and safetensors, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy

from neurograph.circuit import archive
from neurograph.circuit.circuit import Circuit
from neurograph.comparison.comparison import Comparison
from neurograph.comparison.comparison_tables import column_of
from neurograph.comparison.comparisons import Comparisons
from neurograph.matching.matching import LayerMatch, Matching
from neurograph.model.layers import Neuron
from neurograph.utils.atomic import check_writable, write_atomically

__all__ = ["load", "load_many", "save", "save_many"]

_ONE, _MANY, _VERSION = "neurograph comparison", "neurograph comparisons", 1
_TABLES = ("layers", "transplants", "_neurons", "_edges", "_paths")
_NEURONS = {f"{what}_{side}" for what in ("neuron", "source", "target") for side in "ab"}
_PATHS = {"path_a", "path_b"}


def save(comparison: Comparison, path: str | FilePath) -> None:
    """Write a comparison; the same one always gives the same bytes."""
    members = {f"{x}.circuit": archive.dump(getattr(comparison, x)) for x in "ab"}
    document = {"format": _ONE, "version": _VERSION, "comparison": _document(comparison)}
    members["comparison.json"] = archive.to_json(document)
    members["arrays.safetensors"] = safetensors.numpy.save(_arrays(comparison))
    write_atomically(check_writable(path), archive.pack(members))


def load(path: str | FilePath) -> Comparison:
    """Read what `save` wrote."""

    def read(content: bytes) -> Comparison:
        members = archive.unpack(content)
        document = json.loads(members["comparison.json"])
        archive.check_format(document, _ONE, _VERSION)
        a, b = (archive.parse(members[f"{x}.circuit"]) for x in "ab")
        arrays = safetensors.numpy.load(members["arrays.safetensors"])
        return _read(document["comparison"], arrays, a, b)

    return archive.read_file(path, "comparison", read)


def save_many(comparisons: Comparisons, path: str | FilePath) -> None:
    """Write a matrix of comparisons, each circuit once."""
    circuits = comparisons.circuits()
    members = {f"{i}.circuit": archive.dump(c) for i, c in enumerate(circuits.values())}
    document = {
        "format": _MANY,
        "version": _VERSION,
        "rows": comparisons.rows,
        "columns": comparisons.columns,
        "circuits": list(circuits),
        "cells": [[*pair, _document(cell)] for pair, cell in comparisons.cells.items()],
    }
    members["comparisons.json"] = archive.to_json(document)
    for i, cell in enumerate(comparisons.cells.values()):
        members[f"{i}.safetensors"] = safetensors.numpy.save(_arrays(cell))
    write_atomically(check_writable(path), archive.pack(members))


def load_many(path: str | FilePath) -> Comparisons:
    """Read what `save_many` wrote."""

    def read(content: bytes) -> Comparisons:
        members = archive.unpack(content)
        document = json.loads(members["comparisons.json"])
        archive.check_format(document, _MANY, _VERSION)
        circuits = {
            name: archive.parse(members[f"{i}.circuit"])
            for i, name in enumerate(document["circuits"])
        }
        cells = {}
        for i, (row, column, told) in enumerate(document["cells"]):
            arrays = safetensors.numpy.load(members[f"{i}.safetensors"])
            cells[row, column] = _read(told, arrays, circuits[row], circuits[column])
        return Comparisons(tuple(document["rows"]), tuple(document["columns"]), cells)

    return archive.read_file(path, "comparisons", read)


# -- what is not an array --------------------------------------------------------------------------


def _document(comparison: Comparison) -> dict[str, Any]:
    return {
        "names": comparison.names,
        "matching": {
            "kind": comparison.matching.kind,
            "layers": [[m.a, m.b, m.ties, m.cka] for m in comparison.matching.layers],
        },
        "measures": _table(comparison.measures.reset_index()),
        "tables": {name: _table(getattr(comparison, name)) for name in _TABLES},
        "notes": comparison.notes,
        "provenance": dict(comparison.provenance),
    }


def _arrays(comparison: Comparison) -> dict[str, np.ndarray]:
    arrays = {f"null/{name}": values for name, values in comparison.null.items()}
    for i, match in enumerate(comparison.matching.layers):
        arrays |= {f"{key}/{i}": getattr(match, key) for key in ("pairs", "similarity", "tied")}
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def _read(
    told: Mapping[str, Any], arrays: Mapping[str, np.ndarray], a: Circuit, b: Circuit
) -> Comparison:
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
        for i, (one, other, ties, cka) in enumerate(told["matching"]["layers"])
    ]
    return Comparison(
        a=a,
        b=b,
        names=tuple(told["names"]),
        matching=Matching(told["matching"]["kind"], tuple(layers)),
        measures=_untable(told["measures"]).set_index("measure"),
        null={
            name.removeprefix("null/"): values
            for name, values in arrays.items()
            if name.startswith("null/")
        },
        notes=tuple(told["notes"]),
        provenance=told["provenance"],
        **{name: _untable(table) for name, table in told["tables"].items()},
    )


def _table(table: pd.DataFrame) -> list[list[Any]]:
    """Columns with their names and dtypes; neurons as lists."""
    return [[name, str(table[name].dtype), table[name].tolist()] for name in table]


def _untable(columns: list[list[Any]]) -> pd.DataFrame:
    found: dict[str, Any] = {}
    for name, dtype, values in columns:
        if name in _NEURONS or name in _PATHS:
            read = _path if name in _PATHS else _neuron
            found[name] = column_of([None if value is None else read(value) for value in values])
        elif dtype.startswith("float"):
            numbers = [float("nan") if value is None else value for value in values]
            found[name] = pd.Series(numbers, dtype=dtype)
        else:
            found[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(found)


def _neuron(value: list[Any]) -> Neuron:
    return Neuron(*value)


def _path(value: list[list[Any]]) -> tuple[Neuron, ...]:
    return tuple(Neuron(*neuron) for neuron in value)
