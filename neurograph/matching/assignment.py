"""Optimal assignment of neurons by similarity, and where chance chose among equals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "Assignment", "assign"]

TOLERANCE = 1e-6
"""How much similarity two neurons may lose by exchanging partners and still count as tied.

The same neuron computed twice in float32 differs by some 1e-7 of its size, which moves correlations
by less; two samples of data move them by more than a thousand times as much.
"""

_AT_ONCE = 2**21  # exchanges

Indices = NDArray[np.int64]
Tie = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Assignment:
    """Pairs of rows and columns; as `LayerMatch` has them."""

    pairs: Indices
    similarity: NDArray[np.float64]
    tied: NDArray[np.bool_]
    ties: tuple[Tie, ...]


def assign(
    similarity: NDArray[np.float64], *, least: float = 0.0, overwrite: bool = False
) -> Assignment:
    """Pair rows with columns, each at most once, so that the sum of similarities is greatest.

    Parameters
    ----------
    similarity : ndarray of float64, [rows, columns]
        NaN in the whole row or column of what has none.
    least : float
        Only pairs above it are made; the sum is of what they have beyond it.
    overwrite : bool
        Whether `similarity` is lost: a copy of 10,000 by 10,000 takes 800 MB.

    Returns
    -------
    Assignment
        In the order of rows. Pairs are tied where exchanging partners, among themselves or with
        what is unmatched, loses no more than 1e-6; what can be reached by such exchanges is one
        group.

    Examples
    --------
    >>> result = assign(np.array([[0.9, 0.8, 0.1], [0.8, 0.2, 0.1]]))
    >>> result.pairs.tolist(), result.ties
    ([[0, 1], [1, 0]], ())
    >>> assign(np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])).ties
    (((0, 1), (0,)),)
    """
    cost = np.fmax(similarity, least, out=similarity if overwrite else None)  # NaN is least
    np.negative(cost, out=cost)
    i, j = scipy.optimize.linear_sum_assignment(cost)
    made = cost[i, j] < -least
    i, j = i[made], j[made]
    ties = _exchangeable(cost, i, j, least)
    return Assignment(
        np.stack([i, j], axis=1),
        -cost[i, j],
        np.isin(i, [row for rows, _ in ties for row in rows]),
        ties,
    )


def _exchangeable(
    cost: NDArray[np.float64], i: Indices, j: Indices, least: float
) -> tuple[Tie, ...]:
    """Groups of rows and columns that can be exchanged with each other, in ascending order."""
    rows, columns = cost.shape
    nodes = np.arange(rows + columns)  # columns are numbered behind the rows
    group = nodes.copy()
    group[rows + j] = i
    for some, others in _exchanges(cost, i, j, least):
        if len(some):  # joined at once, as there may be as many as the matrix has entries
            ends = np.concatenate([nodes, some]), np.concatenate([group, others])
            made = np.ones(len(ends[0]), bool)
            graph = scipy.sparse.coo_array((made, ends), shape=(len(nodes),) * 2)
            _, joined = scipy.sparse.csgraph.connected_components(graph, directed=False)
            group = _named_by_first(joined)
    large = np.flatnonzero(np.bincount(group, minlength=len(nodes)) > 2)
    groups = [np.flatnonzero(group == name) for name in large]
    return tuple(
        (tuple(g[g < rows].tolist()), tuple((g[g >= rows] - rows).tolist())) for g in groups
    )


def _named_by_first(labels: Indices) -> Indices:
    """Name each group by its first member."""
    return np.unique(labels, return_index=True)[1][labels].astype(np.int64)


def _exchanges(
    cost: NDArray[np.float64], i: Indices, j: Indices, least: float
) -> Iterator[tuple[Indices, Indices]]:
    """Yield nodes, see `_exchangeable`, that could change places, some rows at a time.

    Two pairs by their rows, a pair and an unmatched row by its column and that row, a pair and an
    unmatched column by its row and that column.
    """
    rows, columns = cost.shape
    free_rows = np.setdiff1d(np.arange(rows), i)
    free_columns = np.setdiff1d(np.arange(columns), j)
    own = cost[i, j]
    step = max(1, _AT_ONCE // max(columns, 1))
    for start in range(0, len(i), step):
        here, limit = cost[i[start : start + step]], own[start : start + step, None]
        # Of two that lose little together one loses little alone.
        k, l = (here[:, j] <= limit + TOLERANCE / 2).nonzero()  # noqa: E741
        k += start
        loss = cost[i[k], j[l]] + cost[i[l], j[k]] - own[k] - own[l]
        tied = (loss <= TOLERANCE) & (k != l)
        yield i[k[tied]], i[l[tied]]
        there = here[:, free_columns]
        k, l = ((there <= limit + TOLERANCE) & (there < -least)).nonzero()  # noqa: E741
        yield i[start + k], rows + free_columns[l]
    for start in range(0, len(free_rows), step):
        these = free_rows[start : start + step]
        there = cost[these][:, j]
        k, l = ((there <= own + TOLERANCE) & (there < -least)).nonzero()  # noqa: E741
        yield these[k], rows + j[l]
