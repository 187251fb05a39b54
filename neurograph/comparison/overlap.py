"""Overlap measures: how much two circuits have in common, and what each measures."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from neurograph.circuit.circuit import Circuit
from neurograph.comparison.circuit_arrays import (
    EffectArray,
    Numbers,
    Side,
    partners,
    share,
    side_of,
)
from neurograph.matching.given import by_name

__all__ = ["MEASURES", "Common", "OverlapMeasure", "Overlaps", "Shared", "overlap_by_name"]


@dataclass(frozen=True, eq=False)
class Common:
    """Neurons, edges or paths of two circuits, and which of them both have.

    A weight is the size of an effect as a share of the sum over its circuit, so that targets on
    different scales can be compared.

    Attributes
    ----------
    counts : (int, int)
        How many each circuit has.
    weights : (ndarray, ndarray)
        Effects of each as shares of the sum of their sizes.
    total : float
        Sum of the sizes of all these shares.
    a, b : ndarray of int64, [both]
        Places in `weights` of those that both have.
    """

    counts: tuple[int, int]
    weights: tuple[EffectArray, EffectArray]
    total: float
    a: Numbers
    b: Numbers

    def jaccard(self) -> float:
        """Jaccard index, in 0..1: of those that either has, the share both have; 1 if none do."""
        either = sum(self.counts) - len(self.a)
        return len(self.a) / either if either else 1.0

    def ruzicka(self) -> float:
        """Weighted Jaccard index (Ruzicka's), in 0..1: the smaller weights over the larger ones.

        What pushes one target up and the other down has nothing in common.
        """
        a, b = self.weights[0][self.a], self.weights[1][self.b]
        common = math.fsum(np.minimum(np.abs(a), np.abs(b))[a * b > 0])
        either = self.total - common
        return common / either if either else 1.0


@dataclass(frozen=True, eq=False)
class Shared:
    """What two circuits share under one matching of their neurons.

    Neurons of layers that the target alone reads do not count: the target names them, no search
    finds them.

    Attributes
    ----------
    neurons, edges, paths : Common
    effects : (ndarray, ndarray), [pairs]
        In a and in b, of all pairs of which either circuit kept a neuron. What was not scored has
        no effect.
    """

    neurons: Common
    edges: Common
    paths: Common
    effects: tuple[EffectArray, EffectArray]


@dataclass(frozen=True)
class OverlapMeasure:
    """A measure of how alike two circuits are: the more alike, the larger.

    Attributes
    ----------
    value : callable(Shared) -> float
        NaN where there is nothing to measure. Called for every draw of the null.
    title, meaning : str
        What a page calls it, and what it says it is.
    """

    value: Callable[[Shared], float]
    title: str
    meaning: str


def _spearman(shared: Shared) -> float:
    """Spearman's rank correlation of effects; NaN for fewer than two, or if all are equal."""
    if len(shared.effects[0]) < 2:
        return math.nan
    ranks: list[NDArray[np.float64]] = [scipy.stats.rankdata(values) for values in shared.effects]
    first, second = (r - r.mean() for r in ranks)
    size = math.sqrt(float(first @ first) * float(second @ second))
    # Equal effects must give exactly 1, which rounding would not.
    return math.nan if not size else max(-1.0, min(1.0, float(first @ second) / size))


def _sign_agreement(shared: Shared) -> float:
    """Share of effects of one sign; those of exactly 0 left out, NaN if none are left."""
    product = shared.effects[0] * shared.effects[1]
    signed = int(np.count_nonzero(product))
    return int((product > 0).sum()) / signed if signed else math.nan


MEASURES: Mapping[str, OverlapMeasure] = {
    "neuron_jaccard": OverlapMeasure(
        lambda shared: shared.neurons.jaccard(),
        "Neurons in common",
        "of those that either kept, the share both kept",
    ),
    "neuron_weighted_jaccard": OverlapMeasure(
        lambda shared: shared.neurons.ruzicka(),
        "Neurons by effect",
        "the same, each weighted by its effects",
    ),
    "edge_jaccard": OverlapMeasure(
        lambda shared: shared.edges.jaccard(),
        "Edges in common",
        "of those that either has, the share both have",
    ),
    "edge_weighted_jaccard": OverlapMeasure(
        lambda shared: shared.edges.ruzicka(),
        "Edges by effect",
        "the same, each weighted by its effects",
    ),
    "path_jaccard": OverlapMeasure(
        lambda shared: shared.paths.jaccard(),
        "Paths in common",
        "of the measured paths of either, the share of both",
    ),
    "spearman": OverlapMeasure(
        _spearman, "Order of effects", "rank correlation of the neurons' effects"
    ),
    "sign_agreement": OverlapMeasure(
        _sign_agreement, "Same sign", "of these neurons, the share of one sign in both"
    ),
}
"""All measures by name, in the order of tables and pages: one is added here and nowhere else."""


def overlap_by_name(a: Circuit, b: Circuit) -> dict[str, float]:
    """OverlapMeasure two circuits of one architecture, whose neurons correspond by name.

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
        self._effects = tuple(np.nan_to_num(s.effect) for s in (a, b))
        keys = a.edges[:, 0] * len(a) + a.edges[:, 1]
        self._edge_order = np.argsort(keys)
        self._edge_keys = keys[self._edge_order]
        self._path_places = {path: place for place, path in enumerate(a.paths)}
        self._flat_paths = np.array([n for path in b.paths for n in path], dtype=np.int64)
        stops = np.cumsum([len(path) for path in b.paths]).tolist()
        self._path_ends = list(itertools.pairwise([0, *stops]))
        counted = (np.where(s.counted, s.effect, 0.0) for s in (a, b))
        kept = int(a.counted.sum()), len(self._kept)
        self._neurons = _common(kept, *counted)
        self._edges = _common((len(a.edges), len(b.edges)), a.edge_effect, b.edge_effect)
        paths = len(self._path_places), len(b.paths)
        self._paths = _common(paths, a.path_effect, b.path_effect)

    def __call__(self, partner: Numbers) -> dict[str, float]:
        """All measures by name; `partner` as `partners` gives it."""
        shared = self.shared(partner)
        return {name: measure.value(shared) for name, measure in MEASURES.items()}

    def shared(self, partner: Numbers) -> Shared:
        """What both have; `partner` as `partners` gives it."""
        there = partner[self._kept]
        both = self._kept[(there >= 0) & self.a.counted[there]]
        return Shared(
            self._neurons(partner[both], both),
            self._edges(*self._common_edges(partner)),
            self._paths(*self._common_paths(partner)),
            self._union_effects(partner),
        )

    def _common_edges(self, partner: Numbers) -> tuple[Numbers, Numbers]:
        """Places of the edges that both have, among a's and among b's."""
        ends = partner[self.b.edges]
        here = np.flatnonzero((ends >= 0).all(axis=1) & self.a.kept[ends].all(axis=1))
        if not len(self.a.edges):
            return here[:0], here[:0]
        wanted = ends[here, 0] * len(self.a) + ends[here, 1]
        place = np.searchsorted(self._edge_keys, wanted).clip(max=len(self.a.edges) - 1)
        is_there = self._edge_keys[place] == wanted
        return self._edge_order[place[is_there]], here[is_there]

    def _common_paths(self, partner: Numbers) -> tuple[Numbers, Numbers]:
        """Places of the paths that both have, among a's and among b's."""
        flat = partner[self._flat_paths].tolist()
        places = [self._path_places.get(tuple(flat[i:j]), -1) for i, j in self._path_ends]
        of_a = np.array(places, dtype=np.int64)
        of_b = np.flatnonzero(of_a >= 0)
        return of_a[of_b], of_b

    def _union_effects(self, partner: Numbers) -> tuple[EffectArray, EffectArray]:
        """Effects in both of the pairs of which either circuit kept one."""
        there = np.maximum(partner, 0)
        either = (partner >= 0) & (self.a.counted[there] | self.b.counted)
        return self._effects[0][there[either]], self._effects[1][either]


def _common(
    counts: tuple[int, int], one: EffectArray, other: EffectArray
) -> Callable[[Numbers, Numbers], Common]:
    """Prepare a `Common` of all that two circuits have: what both have is still to be said."""
    weights = share(one), share(other)
    # Exact sums: the order of the neurons must not show.
    total = sum(math.fsum(np.abs(each)) for each in weights)
    return functools.partial(Common, counts, weights, total)
