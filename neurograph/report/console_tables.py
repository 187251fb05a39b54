"""Tables for the terminal; every string in them is shown as it is, never as markup."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neurograph.effects.effect_table import CIRCUIT, TOTAL

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

    from neurograph.circuit.circuit import Circuit
    from neurograph.circuit.paths import Path

__all__ = [
    "LAYER_COLUMNS",
    "PATH_COLUMNS",
    "effects_table",
    "facts_table",
    "frame_rows",
    "frame_table",
    "layer_rows",
    "layer_table",
    "path_row",
    "path_table",
    "plain",
    "show",
    "show_rows",
    "strongest",
]

PATH_COLUMNS = tuple("path neurons effect stderr measured".split())
LAYER_COLUMNS = tuple("layer type shape neurons parameters reads read_by output".split())

_WIDE = 10_000
_COLOURS = {True: "blue", False: "red"}


def plain(text: object) -> str:
    r"""Write control characters as escapes, so that no name can drive the terminal.

    Examples
    --------
    >>> plain("Age")
    'Age'
    >>> print(plain("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def show(table: Table) -> None:
    """Print a table to standard output; whole, however wide, where no terminal limits it."""
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    console.print(table)


def strongest(circuit: Circuit, count: int) -> Iterator[Path]:
    """Yield the strongest positive paths, then the strongest negative ones."""
    from neurograph.effects.selection import SIGNS

    for sign in SIGNS:
        yield from islice(circuit.paths(count, sign=sign), count)


def path_table(paths: Iterable[Path]) -> Table:
    """Table of paths with their effects, blue where positive and red where negative."""
    from neurograph.circuit.paths import format_effect

    table = Table(box=None, pad_edge=False)
    table.add_column("path", overflow="fold")
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("")
    for path in paths:
        names = path.names or tuple(map(str, path.neurons))
        effect = Text(format_effect(path.effect, path.stderr), _COLOURS[path.effect > 0])
        mark = "" if path.measured else "estimated"
        table.add_row(_text(" → ".join(names)), effect, mark)
    return table


def layer_rows(graph: nx.DiGraph) -> list[dict[str, Any]]:
    """List the layers of a layer graph, with who reads whom, as plain values."""
    return [
        {
            "layer": name,
            "type": data["type"],
            "shape": data["shape"],
            "neurons": data["neurons"],
            "parameters": data["parameters"],
            "reads": list(graph.predecessors(name)),
            "read_by": list(graph.successors(name)),
            "output": data["output"],
        }
        for name, data in graph.nodes(data=True)
    ]


def layer_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Table of what `layer_rows` lists."""
    table = Table(box=None, pad_edge=False)
    for title in ("layer", "type", "shape"):
        table.add_column(title, overflow="fold")
    for title in ("neurons", "parameters"):
        table.add_column(title, justify="right")
    for title in ("reads", "read by"):
        table.add_column(title, overflow="fold")
    for row in rows:
        readers = [*row["read_by"], *(["(output)"] if row["output"] else [])]
        table.add_row(
            *(_text(row[key]) for key in ("layer", "type", "shape")),
            *(f"{row[key]:,}" for key in ("neurons", "parameters")),
            _text(", ".join(row["reads"])),
            _text(", ".join(readers)),
        )
    return table


def facts_table(circuit: Circuit) -> Table:
    """Table of what a circuit is and how it was found."""
    known = circuit.provenance
    kept = dict.fromkeys(circuit.layers, 0)
    for neuron in circuit.graph:
        kept[neuron.layer] += 1
    facts: dict[str, object] = {
        "target": circuit.target,
        "neurons": ", ".join(f"{layer} {count}" for layer, count in kept.items() if count),
        "edges": circuit.graph.number_of_edges(),
        "model": "{class}, hash {hash:.12}".format(**known["model"]),
        "data": "{samples} samples, fingerprint {fingerprint:.12}".format(**known["data"]),
    }
    facts |= {key: value for key, value in known["options"].items() if isinstance(value, str | int)}
    for key in ("contrast", "keep"):
        fields = known["options"][key].items()
        facts[key] = " ".join(name if value is True else str(value) for name, value in fields)
    facts |= dict(line.split(": ", 1) for line in circuit.screened())
    facts |= {f"note {number}": note for number, note in enumerate(circuit.notes, start=1)}
    if "audit" in known:
        facts["audit"] = str(circuit.audited).removeprefix("audit: ")
    facts["versions"] = ", ".join(f"{name} {value}" for name, value in known["versions"].items())
    facts["complete"] = "yes" if known["complete"] else "no, interrupted"
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        table.add_row(Text(name, "bold"), _text(value))
    return table


def effects_table(frame: pd.DataFrame) -> Table:
    """Table of neurons, each effect with its standard error: through the circuit, and in total."""
    from neurograph.circuit.paths import format_effect

    titles = {CIRCUIT: "effect through the circuit", TOTAL: "total effect"}
    kinds = [kind for kind in titles if kind.effect in frame]
    table = Table(box=None, pad_edge=False)
    for title in ("neuron", "layer"):
        table.add_column(title, overflow="fold")
    for kind in kinds:
        table.add_column(titles[kind], justify="right", no_wrap=True)
    table.add_column("")
    for row in frame.to_dict("records"):
        cells = [
            Text(format_effect(row[k.effect], row[k.stderr]), _COLOURS[row[k.effect] > 0])
            for k in kinds
        ]
        disagrees = len(kinds) > 1 and row[CIRCUIT.effect] * row[TOTAL.effect] < 0
        is_measured = row.get(CIRCUIT.measured, True)
        mark = "signs disagree" if disagrees else "" if is_measured else "estimated"
        table.add_row(_text(row["name"]), _text(row["layer"]), *cells, mark)
    return table


def frame_table(frame: pd.DataFrame) -> Table:
    """Table of a DataFrame, numbers with three digits behind the point."""
    from pandas.api.types import is_numeric_dtype

    table = Table(box=None, pad_edge=False)
    for name in frame:
        is_number = is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if is_number else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_text(f"{x:.3f}" if isinstance(x, float) else x) for x in row))
    return table


def frame_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a DataFrame as plain values, None where a number is unknown."""
    return [
        {str(name): None if value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def path_row(path: Path) -> dict[str, Any]:
    """Write a path as plain values; a neuron as LAYER:N, or as LAYER[N]@POSITION if it has one."""
    return {
        "path": " → ".join(path.names),
        "neurons": [f"{n.layer}:{n.index}" if n.position is None else str(n) for n in path.neurons],
        "effect": path.effect,
        "stderr": None if math.isnan(path.stderr) else path.stderr,
        "measured": path.measured,
    }


def show_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], kind: str) -> None:
    """Print rows to standard output as ``"json"`` or ``"csv"``, where lists are words in a cell."""
    if kind == "json":
        sys.stdout.write(json.dumps(list(rows), indent=2, allow_nan=False) + "\n")
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row[column] for column in columns)
        writer.writerow(" ".join(cell) if isinstance(cell, list) else cell for cell in cells)


def _text(value: object) -> Text:
    return Text(plain(value))
