"""Effects of several kinds as arrays: each value with its error, and whether it was measured.

What the numbers of a kind are called in attributes of nodes, in `Circuit.scores` and in files
stands here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from neurograph.effects.scorer import Scored

__all__ = [
    "CIRCUIT",
    "DIRECT",
    "THROUGH",
    "TOTAL",
    "EffectArrays",
    "EffectKind",
    "EffectTable",
    "columns_of",
]


@dataclass(frozen=True)
class EffectKind:
    """A kind of effect, and what its columns are called.

    Examples
    --------
    >>> TOTAL.effect, TOTAL.stderr, TOTAL.measured
    ('total_effect', 'total_stderr', 'total_measured')
    """

    prefix: str = ""

    @property
    def effect(self) -> str:
        """Column of the effects."""
        return f"{self.prefix}effect"

    @property
    def stderr(self) -> str:
        """Column of their standard errors."""
        return f"{self.prefix}stderr"

    @property
    def measured(self) -> str:
        """Column of whether they were measured by intervention; left out where all were."""
        return f"{self.prefix}measured"

    def read(self, columns: Mapping[str, np.ndarray]) -> EffectArrays:
        """Read the arrays of this kind; KeyError where there are none."""
        effect = columns[self.effect]
        known = columns.get(self.measured, np.ones(effect.shape, dtype=bool))
        return EffectArrays(effect, columns[self.stderr], known)

    def numbers(self, effect: float, stderr: float) -> dict[str, float]:
        """Name one effect and its standard error."""
        return {self.effect: effect, self.stderr: stderr}


CIRCUIT = EffectKind()
"""Through all that a circuit keeps of the readers."""

THROUGH = {sign: EffectKind(f"through_{sign}_") for sign in ("positive", "negative")}
"""Through what is kept of the readers and raises the target in total, or lowers it."""

TOTAL = EffectKind("total_")
"""Through everything."""

DIRECT = EffectKind("direct_")
"""On a target that reads the neuron, through glue alone."""


@dataclass(frozen=True, eq=False)
class EffectArrays:
    """Effects of one kind, in units of the target.

    Attributes
    ----------
    effect, stderr : ndarray of float64, [items] or [neurons, positions]
        Effects and their standard errors.
    measured : ndarray of bool, of the same shape
        Whether by intervention; others are estimates.
    """

    effect: NDArray[np.float64]
    stderr: NDArray[np.float64]
    measured: NDArray[np.bool_]

    @staticmethod
    def of(scored: Scored) -> EffectArrays:
        """What a scorer gave."""
        effects, measured = scored
        effect, stderr = (values.cpu().numpy() for values in (effects.effect, effects.stderr))
        known = np.ones(len(effect), bool) if measured is None else measured.cpu().numpy()
        return EffectArrays(effect, stderr, known)

    @staticmethod
    def none(count: int) -> EffectArrays:
        """Effects of so many items that are known to do nothing."""
        return EffectArrays(np.zeros(count), np.zeros(count), np.ones(count, dtype=bool))

    def __len__(self) -> int:
        return len(self.effect)

    def at(self, which: Any) -> EffectArrays:
        """Some of the effects, as NumPy indexes."""
        return EffectArrays(self.effect[which], self.stderr[which], self.measured[which])

    def reshaped(self, *shape: int) -> EffectArrays:
        """The same in another shape."""
        effect, stderr = self.effect.reshape(shape), self.stderr.reshape(shape)
        return EffectArrays(effect, stderr, self.measured.reshape(shape))

    @property
    def certain(self) -> NDArray[np.bool_]:
        """Which effects are farther from 0 than their standard error, or have none."""
        return np.abs(self.effect) > np.nan_to_num(self.stderr)


EffectTable = Mapping[EffectKind, EffectArrays]
"""Effects of the neurons of one layer, of every kind that is known."""


def columns_of(table: EffectTable) -> dict[str, np.ndarray]:
    """Columns by name, as `Circuit.scores` has them.

    Examples
    --------
    >>> columns_of({TOTAL: EffectArrays.none(2)})
    {'total_effect': array([0., 0.]), 'total_stderr': array([0., 0.])}
    """
    columns: dict[str, np.ndarray] = {}
    for kind, arrays in table.items():
        columns |= {kind.effect: arrays.effect, kind.stderr: arrays.stderr}
        if not arrays.measured.all():
            columns[kind.measured] = arrays.measured
    return columns
