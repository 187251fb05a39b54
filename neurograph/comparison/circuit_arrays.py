"""Circuits as arrays: the neurons of all layers numbered through, with effects, edges and paths."""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neurograph.circuit.circuit import Circuit
from neurograph.matching.layers_of import is_end, size_of
from neurograph.matching.matching import Matching
from neurograph.model.layers import Neuron
from neurograph.model.neuron_index import neuron_at, number_of

__all__ = ["EffectArray", "Numbers", "Side", "inverse", "partners", "share", "side_of"]

Numbers = NDArray[np.int64]
EffectArray = NDArray[np.float64]


class Span(NamedTuple):
    """The numbers of a layer's neurons: first, how many indices, at how many positions."""

    start: int
    indices: int
    positions: int | None

    @property
    def stop(self) -> int:
        """The first number that is not of this layer."""
        return self.start + self.indices * (self.positions or 1)

    def number(self, neuron: Neuron) -> int:
        """Number a neuron of this layer."""
        return self.start + number_of(neuron, self.positions)


Spans = Mapping[str, Span]


@dataclass(frozen=True, eq=False)
class Side:
    """One circuit as arrays.

    Attributes
    ----------
    circuit : Circuit
    spans : mapping of str to Span
        Numbers of the neurons of each layer, kept or not.
    effect, stderr : ndarray of float64, [neurons]
        Of kept neurons as the circuit has them, of others those of their scores; 0 where
        nothing kept reads the layer.
    kept : ndarray of bool, [neurons]
    counted : ndarray of bool, [neurons]
        The kept neurons that a search could have kept or not: all but those of layers that the
        target alone reads.
    edges : ndarray of int64, [edges, 2]
    edge_effect, edge_stderr : ndarray of float64, [edges]
    paths : tuple of tuple of int
    path_effect : ndarray of float64, [paths]
    """

    circuit: Circuit
    spans: Spans
    effect: EffectArray
    stderr: EffectArray
    kept: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    edges: Numbers
    edge_effect: EffectArray
    edge_stderr: EffectArray
    paths: tuple[tuple[int, ...], ...]
    path_effect: EffectArray

    def __len__(self) -> int:
        return len(self.effect)

    def number(self, neuron: Neuron) -> int:
        """Number a neuron."""
        return self.spans[neuron.layer].number(neuron)

    def neuron(self, number: int) -> Neuron:
        """Name the neuron with a number."""
        layer, span = self._owners[bisect.bisect_right(self._starts, number) - 1]
        return neuron_at(layer, number - span.start, span.positions)

    @functools.cached_property
    def _owners(self) -> list[tuple[str, Span]]:
        return [(layer, span) for layer, span in self.spans.items() if span.indices]

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [span.start for _, span in self._owners]

    def is_end(self, number: int) -> bool:
        """Whether the target alone reads a neuron's layer."""
        return is_end(self.circuit.layers, self.neuron(number).layer)

    def free(self) -> Iterator[Span]:
        """Yield the layers that have neurons, but for those that the target alone reads."""
        return (s for name, s in self._owners if not is_end(self.circuit.layers, name))

    def key(self) -> bytes:
        """Digest of what is compared: tells circuits apart, whichever is named first."""
        digest = hashlib.sha256(repr(list(self.spans.items())).encode())
        for values in (self.kept, self.effect, self.edges, self.edge_effect, self.path_effect):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.digest()


def side_of(circuit: Circuit) -> Side:
    """Turn a circuit into arrays."""
    spans, start = {}, 0
    for layer in circuit.layers:
        spans[layer] = Span(start, *size_of(circuit, layer))
        start = spans[layer].stop
    # What nothing kept reads was not scored: through the circuit it does nothing. Only an
    # interrupted search leaves effects unknown.
    unscored = 0.0 if circuit.provenance.get("complete", True) else np.nan
    effect, stderr = np.full(start, unscored), np.full(start, unscored)
    for layer in circuit.scores:
        part = slice(spans[layer].start, spans[layer].stop)
        effect[part] = circuit.effects_of(layer).flatten()
        stderr[part] = circuit.effects_of(layer, "stderr").flatten()
    kept, counted = np.zeros(start, dtype=bool), np.zeros(start, dtype=bool)
    numbers = {neuron: spans[neuron.layer].number(neuron) for neuron in circuit.graph}
    for neuron, data in circuit.graph.nodes(data=True):
        number = numbers[neuron]
        effect[number], stderr[number] = data["effect"], data["stderr"]
        kept[number], counted[number] = True, not is_end(circuit.layers, neuron.layer)
    edges = list(circuit.graph.edges(data=True))
    return Side(
        circuit,
        spans,
        effect,
        stderr,
        kept,
        counted,
        np.array([(numbers[u], numbers[v]) for u, v, _ in edges], np.int64).reshape(-1, 2),
        np.array([data["effect"] for *_, data in edges], dtype=float),
        np.array([data["stderr"] for *_, data in edges], dtype=float),
        tuple(tuple(numbers[n] for n in path.neurons) for path in circuit.strongest),
        np.array([path.effect for path in circuit.strongest], dtype=float),
    )


def partners(a: Side, b: Side, matching: Matching) -> Numbers:
    """For each of b's neurons the number of a's that it corresponds to, or -1."""
    partner = np.full(len(b), -1)
    for match in matching.layers:
        one, other = a.spans[match.a], b.spans[match.b]
        if one.positions != other.positions or not len(match.pairs):
            continue
        places = np.arange(one.positions or 1)
        here = one.start + match.pairs[:, :1] * len(places) + places
        there = other.start + match.pairs[:, 1:] * len(places) + places
        partner[there] = here
    return partner


def inverse(partner: Numbers, size: int) -> Numbers:
    """The same from the other side: for each of a's neurons, so many, the number of b's, or -1."""
    of_b = np.full(size, -1)
    matched = np.flatnonzero(partner >= 0)
    of_b[partner[matched]] = matched
    return of_b


def share(effect: EffectArray) -> EffectArray:
    """Effects as shares of the sum of all sizes; 0 where all are."""
    total = math.fsum(np.abs(effect))
    return effect / total if total else np.zeros_like(effect)
