"""Nested sets of components: what an experiment on rankings measures, as data to print and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurograph.ablation.index import Flags

__all__ = ["NestedSets", "draw_sets"]


@dataclass(frozen=True, eq=False)
class NestedSets:
    """The first of some components, ever more of them.

    Attributes
    ----------
    ranking, order : str
        Which ranking they are of; which way, or which group of it.
    draw : int
        Which of several that were drawn at random.
    numbers : ndarray of int
        Components, the first to be taken first.
    sizes : tuple of (float, int)
        Shares, and how many components each is.
    total : int
        How many components there are to choose from.
    """

    ranking: str
    order: str
    draw: int
    numbers: NDArray[np.int64]
    sizes: tuple[tuple[float, int], ...]
    total: int

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[float, int, Flags]]:
        """Share, number of components, and which these are, marked among all."""
        for share, count in self.sizes:
            flags = np.zeros(self.total, dtype=bool)
            flags[self.numbers[:count]] = True
            yield share, count, flags


def draw_sets(
    ranking: str,
    order: str,
    members: NDArray[np.int64],
    sizes: tuple[tuple[float, int], ...],
    total: int,
    *,
    draws: int,
    seed: Sequence[int],
) -> Iterator[NestedSets]:
    """Draw nested sets of some components; each draw by a generator of its own."""
    for draw in range(draws):
        numbers = np.random.default_rng([*seed, draw]).permutation(members)
        yield NestedSets(ranking, order, draw, numbers, sizes, total)
