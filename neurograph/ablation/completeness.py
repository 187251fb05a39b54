"""Completeness and minimality of a circuit: what it lacks, and which parts it could do without."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.ablation.index import Flags
from neurograph.ablation.measure import Measure
from neurograph.effects.contrast import Ablation
from neurograph.errors import OptionError
from neurograph.utils import checks
from neurograph.utils.checks import a_share, one_of, shown

__all__ = ["Circuits", "Size", "count_of", "incompleteness", "minimality"]

Size = float | str
"""How much of a ranking a circuit is: a share, or ``"kept"`` for what a circuit kept."""


def count_of(share: float, total: int) -> int:
    """How many components a share is, rounded down; but for the last bits of the share.

    Examples
    --------
    >>> count_of(15 / 22, 22), count_of(0.5, 3)
    (15, 1)
    """
    return math.floor(share * total * (1 + 1e-9))


@dataclass(frozen=True, eq=False)
class Circuits:
    """Circuits of any size, and what measures them again.

    Attributes
    ----------
    ask : callable
        Answers a question that is asked of a `Measure`.
    numbers : mapping of (ranking, order) to ndarray of int
        Components, the strongest first; of the order `kept`, first what was kept.
    kept : mapping of str to int
        How many a ranking kept, where it is a circuit.
    ablations : tuple of str
    """

    ask: Callable[[Callable[[Measure], pd.DataFrame]], pd.DataFrame]
    numbers: Mapping[tuple[str, str], NDArray[np.int64]]
    kept: Mapping[str, int]
    ablations: tuple[Ablation, ...]

    def circuit(self, size: Size, ranking: str | None, order: str) -> Flags:
        """Mark the components of one circuit; OptionError where there is none such."""
        one_of(ranking, "ranking", (None, *dict.fromkeys(name for name, _ in self.numbers)))
        one_of(order, "order", dict.fromkeys(order for _, order in self.numbers))
        name = next(iter(self.numbers))[0] if ranking is None else ranking
        as_kept = isinstance(size, str) and size == "kept"
        key = (name, "kept" if as_kept else order)
        if key not in self.numbers:
            known = ", ".join(f"{n!r} {o}" for n, o in self.numbers)
            raise OptionError(
                f"size={shown(size)}, order={order!r}: there is no such circuit of {name!r}; there "
                f"are {known}"
            )
        numbers = self.numbers[key]
        if as_kept:
            count = self.kept[name]
        else:
            try:
                count = count_of(a_share(size, "size", zero=True, one=True), len(numbers))
            except OptionError:
                raise OptionError(
                    f"size={shown(size)} is neither a share in [0, 1] nor 'kept'"
                ) from None
        flags = np.zeros(len(numbers), dtype=bool)
        flags[numbers[:count]] = True
        return flags

    def ablation(self, ablation: str | None) -> Ablation:
        """Read which ablation is meant: the first by default."""
        one_of(ablation, "ablation", (None, *self.ablations))
        known: dict[str | None, Ablation] = {name: name for name in self.ablations}
        return known.get(ablation, self.ablations[0])


def incompleteness(
    measure: Measure, circuit: Flags, ablation: Ablation, draws: int, seed: int
) -> pd.DataFrame:
    """Ablate random parts of a circuit in it, and in the model; see `Faithfulness`."""
    checks.whole(draws, "draws", least=1)
    checks.whole(seed, "seed", least=0)
    ends = measure.ends(ablation)
    rows = []
    for draw in range(draws):
        random = np.random.default_rng([seed, draw]).random(len(circuit))
        part = circuit & (random < 0.5)
        inside, whole = measure([circuit & ~part, ~part], ablation)
        gap = abs(inside.value - whole.value)
        share = abs(ends.faithfulness(inside.value) - ends.faithfulness(whole.value))
        rows.append((draw, int(part.sum()), inside.value, whole.value, gap, share))
    names = ["draw", "removed", "circuit", "model", "incompleteness", "share"]
    return pd.DataFrame(rows, columns=names)


def minimality(
    measure: Measure, circuit: Flags, ablation: Ablation, most: int, seed: int
) -> pd.DataFrame:
    """Remove parts of a circuit one at a time, and add others; see `Faithfulness`."""
    checks.whole(most, "most", least=1)
    checks.whole(seed, "seed", least=0)
    generator = np.random.default_rng(seed)
    tables = []
    for inside in (True, False):
        numbers = np.flatnonzero(circuit == inside)
        if len(numbers) > most:
            numbers = np.sort(generator.choice(numbers, most, replace=False))
        changed = np.empty(len(numbers))
        for start in range(0, len(numbers), measure.at_once):
            some = numbers[start : start + measure.at_once]
            sets = [circuit, *(_flipped(circuit, number) for number in some)]
            whole, *others = (point.value for point in measure(sets, ablation))
            sense = 1 if inside else -1
            changed[start : start + len(some)] = sense * (whole - np.array(others))
        table: Any = measure.components.places(numbers)
        tables.append(table.assign(inside=inside, change=changed))
    tables = [table.loc[(-table["change"].abs()).argsort(kind="stable")] for table in tables]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def _flipped(flags: Flags, number: int) -> Flags:
    changed = flags.copy()
    changed[number] = not changed[number]
    return changed
