"""Circuits kept alone the slow, obvious way: hooks only, one run a layer, or an output of one.

Nothing here comes from the library: the layer graph, too, is that of the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from tests.case import SAMPLES, Case, as_data
from tests.reference import TARGET, Reference

MEMORY = 20_000
"""Small, so that work is cut into many pieces."""


class Slow:
    """One network with its neurons ablated to given values.

    Parameters
    ----------
    reference : Reference
    ablated : mapping
        Each site's ablated values, in the layout of the model.
    """

    def __init__(self, reference: Reference, ablated: Mapping[str, Tensor]) -> None:
        self.reference, self.ablated = reference, ablated
        self.names = [name for name in reference.sites if reference.neurons(name)]

    def readers(self, name: str) -> list[str]:
        return [n for n in self.names if n in self.reference.readers(name) - {TARGET}]

    def hidden(self) -> list[str]:
        """Sites that others read, without the inputs."""
        found = [n for n in self.names if self.reference.readers(n) - {TARGET}]
        return [n for n in found if n not in self.reference.inputs]

    def with_neurons(self, kept: Mapping[str, np.ndarray]) -> Tensor:
        """Target with all but the kept neurons of some sites ablated, layer after layer."""
        reference = self.reference
        forced: dict[str, Tensor] = {}
        for name in reference.sites:
            if name in kept:
                computed = reference.run(forced).computed[name]
                off = np.flatnonzero(~kept[name]).tolist()
                forced[name] = reference.mixed(name, off, self.ablated[name], computed)
        return reference.target(reference.run(forced).output)

    def with_edges(self, kept: Mapping[tuple[str, str], np.ndarray]) -> Tensor:
        """Target with all but the kept edges ablated, one run for each output of each site."""
        reference = self.reference
        values = {name: reference.background[name] for name in self.names}
        for reader in [name for name in self.names if name not in reference.inputs]:
            writers = [name for name in self.names if reader in self.readers(name)]
            mine = reference.background[reader]
            for output in range(reference.neurons(reader) if writers else 0):
                seen = {
                    writer: reference.mixed(
                        writer,
                        np.flatnonzero(~kept[writer, reader][:, output]).tolist(),
                        self.ablated[writer],
                        values[writer],
                    )
                    for writer in writers
                }
                computed = reference.run(reference.frozen(seen)).computed[reader]
                mine = reference.mixed(reader, [output], computed, mine)
            values[reader] = mine
        last = {n: values[n] for n in self.names if TARGET in reference.readers(n)}
        return reference.target(self._end(last))

    def _end(self, last: Mapping[str, Tensor]) -> Any:
        return self.reference.run(self.reference.frozen(last)).output


def slow(case: Case) -> Slow:
    """Ablate to the first of a case's two levels."""
    reference = case.reference
    ablated = {
        name: levels[:, 0].movedim(0, reference.sites[name].channel)
        for name, levels in reference.levels.items()
    }
    return Slow(reference, ablated)


def options(case: Case, ablation: str) -> dict[str, Any]:
    """What makes the public function see the same samples, neurons and ablation."""
    found = {"reference": SAMPLES, "memory": MEMORY, "progress": False, "ablations": [ablation]}
    if ablation == "counterfactual":
        found["corrupt"] = as_data(case.corrupt)
    return found | dict(case.network.options)


def place(case: Case, layer: str, unit: int) -> tuple[Any, ...]:
    """How the library calls a neuron: with its position, where each has one."""
    return (*case.study.experiment.units(layer).neuron(unit), None)[:3]


def drawn(places: list[tuple[Any, ...]], columns: list[str], seed: int) -> pd.Series:
    """Effects of both signs at random, in an order at random."""
    generator = np.random.default_rng(seed)
    index = pd.MultiIndex.from_frame(pd.DataFrame(places, columns=columns))
    effects = pd.Series(generator.standard_normal(len(places)), index, name="drawn")
    return effects.sample(frac=1, random_state=seed)


def in_order(ranking: pd.Series, places: list[tuple[Any, ...]]) -> np.ndarray:
    """Effects of some places, whatever the order of the ranking."""
    known = {tuple(None if x != x else x for x in key): i for i, key in enumerate(ranking.index)}
    return ranking.to_numpy()[[known[key] for key in places]]


def row(draws: pd.DataFrame, order: str, direction: str, share: float) -> pd.Series:
    """The one row of a circuit that is not random."""
    table = draws.query("order == @order and direction == @direction and share == @share")
    assert len(table) == 1
    return table.iloc[0]
