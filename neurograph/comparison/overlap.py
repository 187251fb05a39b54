"""How much two circuits have in common: one number for each way to say it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from neurograph.circuit.circuit import Circuit
from neurograph.comparison.circuit_arrays import Effects, Numbers, Side, partners, share, side_of
from neurograph.matching.given import by_name

__all__ = ["MEASURES", "Overlap", "Overlaps", "overlap_by_name"]


@dataclass(frozen=True)
class Overlap:
    """How alike two circuits are, neuron by neuron, edge by edge, path by path.

    Neurons of layers that the target alone reads do not count: the target names them, no search
    finds them. A weight is the size of an effect as a share of the sum over its circuit, so that
    targets on different scales can be compared.

    Attributes
    ----------
    neuron_jaccard, edge_jaccard, path_jaccard : float
        Of the neurons, edges, or measured paths that either circuit has, the share that both have
        (the Jaccard index), in 0..1; 1 where neither has any.
    neuron_weighted_jaccard, edge_weighted_jaccard : float
        The sum of the smaller weights over the sum of the larger ones (Ruzicka's index), in 0..1;
        what pushes one target up and the other down has nothing in common.
    spearman : float
        Spearman's rank correlation, in -1..1, of the effects of all pairs of which either circuit
        kept a neuron. What was not scored has no effect. NaN with fewer than two pairs, or where
        all effects of one circuit are equal.
    sign_agreement : float
        Of these pairs, the share whose effects have one sign, in 0..1; those with an effect of
        exactly 0 left out. NaN where there are none.
    """

    neuron_jaccard: float
    neuron_weighted_jaccard: float
    edge_jaccard: float
    edge_weighted_jaccard: float
    path_jaccard: float
    spearman: float
    sign_agreement: float


MEASURES = tuple(Overlap.__dataclass_fields__)


def overlap_by_name(a: Circuit, b: Circuit) -> Overlap:
    """Measure two circuits of one architecture, whose neurons correspond by name.

    Raises
    ------
    OptionError
        Their architectures differ.
    """
    one, other = side_of(a), side_of(b)
    return Overlaps(one, other)(partners(one, other, by_name(a, b)))


class Overlaps:
    """Measures two circuits under any matching of their neurons, fast enough for thousands.

    Parameters
    ----------
    a, b : Side
    """

    def __init__(self, a: Side, b: Side) -> None:
        self.a, self.b = a, b
        self._kept = np.flatnonzero(b.counted)
        self._neurons = _Weights(*(np.where(s.counted, s.effect, 0.0) for s in (a, b)))
        self._effects = tuple(np.nan_to_num(s.effect) for s in (a, b))
        self._edges = _Weights(a.edge_effect, b.edge_effect)
        self._paths = frozenset(a.paths)

    def __call__(self, partner: Numbers) -> Overlap:
        """Measure; `partner` as `partners` gives it."""
        both = self.common(partner)
        edges = self._common_edges(partner)
        shared = sum(path in self._paths for path in self._translated(partner))
        spearman, agreement = self._union(partner)
        return Overlap(
            _jaccard(len(both), self._count[0], len(self._kept)),
            self._neurons.overlap(partner[both], both),
            _jaccard(len(edges[0]), len(self.a.edges), len(self.b.edges)),
            self._edges.overlap(*edges),
            _jaccard(shared, len(self._paths), len(self.b.paths)),
            spearman,
            agreement,
        )

    def common(self, partner: Numbers) -> Numbers:
        """Numbers of b's counted neurons whose partners a has kept too."""
        there = partner[self._kept]
        return self._kept[(there >= 0) & self.a.counted[there]]

    @functools.cached_property
    def _count(self) -> tuple[int, int]:
        return int(self.a.counted.sum()), len(self._kept)

    def _common_edges(self, partner: Numbers) -> tuple[Numbers, Numbers]:
        """Places of the edges that both have, among a's and among b's."""
        ends = partner[self.b.edges]
        here = np.flatnonzero((ends >= 0).all(axis=1) & self.a.kept[ends].all(axis=1))
        if not len(self.a.edges):
            return here[:0], here[:0]
        wanted = ends[here, 0] * len(self.a) + ends[here, 1]
        keys, order = self._edge_keys
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        found = keys[place] == wanted
        return order[place[found]], here[found]

    @functools.cached_property
    def _edge_keys(self) -> tuple[Numbers, Numbers]:
        keys = self.a.edges[:, 0] * len(self.a) + self.a.edges[:, 1]
        order = np.argsort(keys)
        return keys[order], order

    def _translated(self, partner: Numbers) -> list[tuple[int, ...]]:
        """Write the paths of b in numbers of a."""
        flat = partner[self._flat_paths].tolist()
        return [tuple(flat[start:stop]) for start, stop in self._path_ends]

    @functools.cached_property
    def _flat_paths(self) -> Numbers:
        return np.array([n for path in self.b.paths for n in path], dtype=np.int64)

    @functools.cached_property
    def _path_ends(self) -> list[tuple[int, int]]:
        stops = np.cumsum([len(path) for path in self.b.paths]).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True)) if stops else []

    def _union(self, partner: Numbers) -> tuple[float, float]:
        """Rank correlation and sign agreement of the pairs of which either circuit kept one."""
        there = np.maximum(partner, 0)
        either = (partner >= 0) & (self.a.counted[there] | self.b.counted)
        one, other = self._effects[0][there[either]], self._effects[1][either]
        product = one * other
        told = int(np.count_nonzero(product))
        same = int((product > 0).sum())
        return _spearman(one, other), same / told if told else math.nan


def _jaccard(common: int, one: int, other: int) -> float:
    either = one + other - common
    return common / either if either else 1.0


class _Weights:
    """Ruzicka's index of two sets of effects, each as shares of its own sum."""

    def __init__(self, one: Effects, other: Effects) -> None:
        self._one, self._other = share(one), share(other)
        # Exact sums: the order of the neurons must not show.
        self._sum = sum(math.fsum(np.abs(weights)) for weights in (self._one, self._other))

    def overlap(self, here: Numbers, there: Numbers) -> float:
        """Index, where these of the one correspond to those of the other."""
        a, b = self._one[here], self._other[there]
        common = math.fsum(np.minimum(np.abs(a), np.abs(b))[a * b > 0])
        either = self._sum - common
        return common / either if either else 1.0


def _spearman(one: Effects, other: Effects) -> float:
    if len(one) < 2:
        return math.nan
    ranks: list[NDArray[np.float64]] = [rankdata(values) for values in (one, other)]
    first, second = (r - r.mean() for r in ranks)
    size = math.sqrt(float(first @ first) * float(second @ second))
    # Equal effects must give exactly 1, which rounding would not.
    return math.nan if not size else max(-1.0, min(1.0, float(first @ second) / size))
