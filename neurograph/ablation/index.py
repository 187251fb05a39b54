"""Components of circuits: the neurons of a model, or its edges, counted through."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.ablation.chosen_neurons import hidden_layers
from neurograph.effects.experiment import Experiment
from neurograph.errors import OptionError
from neurograph.model.layers import Neuron
from neurograph.model.neuron_index import PLACE, drop_empty_positions
from neurograph.model.neurons import Units

__all__ = ["Components", "Flags", "Of", "edges_of", "neurons_of"]

Of = Literal["neurons", "edges"]
Flags = NDArray[np.bool_]
"""For each component, whether it is in a set."""

_ENDS = ("source_", "target_")


@dataclass(frozen=True, eq=False)
class Components:
    """All neurons, or all edges, that a circuit may keep, in a fixed order.

    Attributes
    ----------
    of : {"neurons", "edges"}
    units : mapping of str to Units
        The neurons of each layer.
    sizes : mapping of tuple of str to tuple of int
        How many there are of each part: ``(layer,)`` has so many neurons, ``(writer, reader)``
        has the edges from so many neurons to so many.
    glue : frozenset of str
        Modules that run on some rows only: their neurons are always kept.
    """

    of: Of
    units: Mapping[str, Units]
    sizes: Mapping[tuple[str, ...], tuple[int, ...]]
    glue: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return sum(map(math.prod, self.sizes.values()))

    @property
    def columns(self) -> tuple[str, ...]:
        """What the levels of a ranking's index are called, with positions."""
        if self.of == "neurons":
            return PLACE
        return tuple(end + name for end in _ENDS for name in PLACE)

    def starts(self) -> dict[tuple[str, ...], int]:
        """Number of the first component of each part."""
        found, start = {}, 0
        for part, size in self.sizes.items():
            found[part] = start
            start += math.prod(size)
        return found

    def parts(self, flags: Flags) -> Iterator[tuple[tuple[str, ...], Flags]]:
        """Cut flags ``[…, components]`` into those of each part, ``[…, *its size]``."""
        for part, start in self.starts().items():
            size = self.sizes[part]
            some = flags[..., start : start + math.prod(size)]
            yield part, some.reshape(*flags.shape[:-1], *size)

    def places(self, numbers: NDArray[np.int64]) -> pd.DataFrame:
        """Say which components some numbers are: layers, indices, and positions where there are."""
        rows = [self._place(int(number)) for number in numbers]
        return drop_empty_positions(pd.DataFrame(rows, columns=list(self.columns)))

    def _place(self, number: int) -> tuple[Any, ...]:
        for part, size in self.sizes.items():
            if number < math.prod(size):
                ends = np.unravel_index(number, size)
                found = [self.units[n].neuron(int(u)) for n, u in zip(part, ends, strict=True)]
                return tuple(x for n in found for x in (n.layer, n.index, n.position))
            number -= math.prod(size)
        raise IndexError(number)

    def numbers(self, index: pd.MultiIndex) -> NDArray[np.int64]:
        """Number each component of a ranking's index; -1 where it is none of these.

        Raises
        ------
        OptionError
            A layer, neuron or edge that the model has not.
        """
        table = index.to_frame(index=False)
        ends = ("",) if self.of == "neurons" else _ENDS
        layers = [f"{end}layer" for end in ends]
        found = np.full(len(table), -1)
        starts = self.starts()
        for key, rows in table.groupby(layers, sort=False).indices.items():
            names = tuple(map(str, key if isinstance(key, tuple) else (key,)))
            if not self.glue.isdisjoint(names):
                continue
            self._check(names)
            units = [
                self._units(name, table.iloc[rows], end)
                for name, end in zip(names, ends, strict=True)
            ]
            if names in starts:
                found[rows] = starts[names] + np.ravel_multi_index(units, self.sizes[names])
        return found

    def _check(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.units:
                known = ", ".join(self.units)
                raise OptionError(f"the ranking has layer {name!r}; those with neurons are {known}")
        if len(names) > 1 and names not in self.sizes:
            raise OptionError(
                f"the ranking has edges from {names[0]!r} to {names[1]!r}, which does not read it"
            )

    def _units(self, layer: str, table: pd.DataFrame, end: str) -> NDArray[np.int64]:
        """Number the neurons of a layer among its own."""
        units = self.units[layer]
        index = table[f"{end}index"].to_numpy(dtype=np.int64)
        place = table.get(f"{end}position")
        position = np.full(len(table), np.nan)
        if place is not None:
            position = place.to_numpy(dtype=float, na_value=np.nan)
        each = units.positions
        wrong = (index < 0) | (np.isnan(position) != (each is None))
        numbers: NDArray[np.int64] = index
        if each is not None:
            numbers = index * each + np.nan_to_num(position).astype(np.int64)
        if each is not None:
            wrong |= (position < 0) | (position >= each)
        wrong |= numbers >= len(units)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            at = None if np.isnan(position[first]) else int(position[first])
            raise OptionError(
                f"the ranking has {Neuron(layer, int(index[first]), at)}, but of layer {layer!r} "
                f"there are {len(units)} neurons"
                + ("" if each is None else f" at {each} positions")
                + ": rank with the same layers=, groups= and positions="
            )
        return numbers


def neurons_of(experiment: Experiment, *, inputs: bool) -> Components:
    """Neurons that can be kept or not: hidden ones and, if asked for, the model's inputs.

    The neurons that the output alone reads always stay.
    """
    units = _units(experiment)
    hidden = hidden_layers(experiment.graph, inputs=inputs)
    sizes: dict[tuple[str, ...], tuple[int, ...]]
    sizes = {(n,): (len(units[n]),) for n in units if n in hidden}
    return Components("neurons", units, sizes, experiment.recording.sites.routed)


def edges_of(experiment: Experiment) -> Components:
    """Edges between neurons, those of the model's inputs included."""
    units = _units(experiment)
    edges: dict[tuple[str, ...], tuple[int, ...]] = {
        (writer, reader): (len(units[writer]), len(units[reader]))
        for reader in units
        for writer in experiment.graph.predecessors(reader)
        if writer in units
    }
    return Components("edges", units, edges, experiment.recording.sites.routed)


def _units(experiment: Experiment) -> dict[str, Units]:
    """Neurons of all layers, in the order that the layers run."""
    neurons = experiment.graph.nodes(data="neurons")
    return {name: experiment.units(name) for name, count in neurons if count}
