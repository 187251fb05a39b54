"""Neurons and their numbers within a layer, and tables of where neurons are."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from neurograph.model.layers import Neuron

__all__ = ["PLACE", "drop_empty_positions", "neuron_at", "number_of", "place_index", "place_of"]

PLACE = ("layer", "index", "position")
"""What says where a neuron is, in tables and attributes; no position where it spans all."""


def number_of(neuron: Neuron, positions: int | None) -> int:
    """Number a neuron within its layer, which has neurons at so many positions each (None: at all).

    Examples
    --------
    >>> number_of(Neuron("l", 2, 1), positions=3), number_of(Neuron("l", 2), None)
    (7, 2)
    """
    return neuron.index * (positions or 1) + (neuron.position or 0)


def neuron_at(layer: str, number: int, positions: int | None) -> Neuron:
    """Name the neuron with a number; the inverse of `number_of`.

    Examples
    --------
    >>> neuron_at("l", 7, positions=3), neuron_at("l", 2, None)
    (Neuron('l', 2, 1), Neuron('l', 2))
    """
    if positions is None:
        return Neuron(layer, number)
    return Neuron(layer, *divmod(number, positions))


def place_of(neuron: Neuron) -> tuple[str, int, int | None]:
    """What `PLACE` names, of one neuron."""
    return neuron.layer, neuron.index, neuron.position


def place_index(neurons: Iterable[Neuron]) -> pd.MultiIndex:
    """Index of neurons by layer, index and, where there are any, positions."""
    table = pd.DataFrame(map(place_of, neurons), columns=[*PLACE])
    return pd.MultiIndex.from_frame(drop_empty_positions(table))


def drop_empty_positions(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out columns of positions (``position``, ``source_position``, …) that hold none."""
    empty = [c for c in table if str(c).endswith(PLACE[-1]) and table[c].isna().all()]
    return table.drop(columns=empty)
