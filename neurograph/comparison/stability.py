"""Stability across circuits: neurons, edges or paths that several have, with their effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurograph.circuit.circuit import Circuit
from neurograph.comparison.comparison import Comparison
from neurograph.comparison.pairs import Kind
from neurograph.errors import OptionError
from neurograph.matching.layers_of import is_end
from neurograph.matching.matching import Matching
from neurograph.model.layers import Neuron

__all__ = ["stable"]

Item = tuple[Neuron, ...]


def stable(
    names: Sequence[str], cells: Mapping[tuple[str, str], Comparison], of: Kind
) -> pd.DataFrame:
    """Table as `Comparisons.stable` gives it."""
    first = names[0]
    missing = [name for name in names[1:] if (first, name) not in cells]
    if missing:
        raise OptionError(f"{missing[0]!r} was not compared with {first!r}: compare all again")
    effects: dict[tuple[str, Item], dict[str, float]] = {}
    called: dict[tuple[str, Item], str] = {}
    for name in names:
        cell = cells[first, name] if name != first else next(iter(cells.values()))
        circuit = cell.a if name == first else cell.b
        for item, effect in _items(circuit, of):
            mine = item if name == first else _in_first(cell.matching, item)
            # What has no partner in the first circuit's model goes by whose it is.
            key = (first, mine) if mine is not None else (name, item)
            effects.setdefault(key, {})[name] = effect
            called.setdefault(key, _name(circuit, item, "" if mine else name))
    rows = [
        (called[key], key[1][0].layer, *_summed(own, len(names)), *map(own.get, names))
        for key, own in effects.items()
    ]
    circuits = [f"effect_{name}" for name in names]
    columns = ["name", "layer", "circuits", "share", "positive", "effect", "std", *circuits]
    table = pd.DataFrame(rows, columns=columns)
    table[circuits] = table[circuits].astype(float)
    strength = table["effect"].abs()
    order = table.assign(strength=strength).sort_values(
        ["circuits", "strength", "name"], ascending=[False, False, True], kind="stable"
    )
    return order.drop(columns="strength").reset_index(drop=True)


def _items(circuit: Circuit, of: Kind) -> list[tuple[Item, float]]:
    if of == "neurons":
        # Outputs that the target alone reads are in every circuit: the target names them.
        nodes = circuit.graph.nodes(data="effect")
        return [((n,), effect) for n, effect in nodes if not is_end(circuit.layers, n.layer)]
    if of == "edges":
        return [((u, v), data["effect"]) for u, v, data in circuit.graph.edges(data=True)]
    return [(path.neurons, path.effect) for path in circuit.strongest]


def _in_first(matching: Matching, item: Item) -> Item | None:
    partners = [matching.to_a(neuron) for neuron in item]
    known = tuple(neuron for neuron in partners if neuron is not None)
    return known if len(known) == len(item) else None


def _name(circuit: Circuit, item: Item, whose: str) -> str:
    name = " → ".join(circuit.name(neuron) for neuron in item)
    return f"{name} ({whose})" if whose else name


def _summed(effects: Mapping[str, float], circuits: int) -> tuple[Any, ...]:
    values = np.array(list(effects.values()))
    spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    positive = int((values > 0).sum())
    return len(values), len(values) / circuits, positive, float(values.mean()), spread
