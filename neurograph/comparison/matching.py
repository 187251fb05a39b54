"""Which neuron of one circuit's model is which of another's; by name, or as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.layers import INPUT_TYPE, Neuron

__all__ = ["LayerMatch", "Matching", "by_mapping", "by_name", "is_end", "is_given"]


@dataclass(frozen=True, eq=False)
class LayerMatch:
    """Neurons of one layer of each model that correspond.

    Attributes
    ----------
    a, b : str
        The layers.
    pairs : ndarray of int64, [pairs, 2]
        Indices of neurons in `a` and in `b`, each at most once. Neurons of single positions
        correspond where their indices do and the position is the same.
    similarity : ndarray of float64, [pairs]
        How alike the activations of a pair are, in 0..1; NaN where that decided nothing.
    tied : ndarray of bool, [pairs]
        Whether another neuron would have done as well, so that chance chose between them.
    ties : tuple of (indices in a, indices in b)
        Neurons that could be exchanged with each other.
    cka : float
        How alike the layers' activations are: linear centred kernel alignment, in 0..1; NaN where
        it was not computed.
    """

    a: str
    b: str
    pairs: NDArray[np.int64]
    similarity: NDArray[np.float64]
    tied: NDArray[np.bool_]
    ties: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    cka: float = float("nan")

    @staticmethod
    def plain(a: str, b: str, pairs: Iterable[Sequence[int]]) -> LayerMatch:
        """Pairs that were given, rather than found among activations."""
        table = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
        table = table[np.argsort(table[:, 0], kind="stable")]
        return LayerMatch(a, b, table, np.full(len(table), np.nan), np.zeros(len(table), bool))

    def flipped(self) -> LayerMatch:
        """The same, seen from the other model."""
        order = np.argsort(self.pairs[:, 1], kind="stable")
        pairs = self.pairs[order][:, ::-1]
        ties = tuple((there, here) for here, there in self.ties)
        return LayerMatch(
            self.b, self.a, pairs, self.similarity[order], self.tied[order], ties, self.cka
        )


@dataclass(frozen=True, eq=False)
class Matching:
    """Which neuron of model a is which of model b.

    Attributes
    ----------
    kind : str
        ``identity``, ``activation`` or ``mapping``.
    layers : tuple of LayerMatch
        In the order of a's layers. What is not in them is unmatched.
    """

    kind: str
    layers: tuple[LayerMatch, ...]
    _there: Mapping[tuple[str, int], tuple[str, int]] = field(init=False, repr=False)
    _back: Mapping[tuple[str, int], tuple[str, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        there = {(m.a, i): (m.b, j) for m in self.layers for i, j in m.pairs.tolist()}
        object.__setattr__(self, "_there", there)
        object.__setattr__(self, "_back", {b: a for a, b in there.items()})

    def to_b(self, neuron: Neuron) -> Neuron | None:
        """Find b's neuron for one of a's; None where it has none."""
        return _moved(self._there, neuron)

    def to_a(self, neuron: Neuron) -> Neuron | None:
        """Find a's neuron for one of b's; None where it has none."""
        return _moved(self._back, neuron)

    def flipped(self) -> Matching:
        """The same, seen from the other model."""
        return Matching(self.kind, tuple(match.flipped() for match in self.layers))

    def pairs(self) -> pd.DataFrame:
        """Table of the pairs: ``layer_a, index_a, layer_b, index_b, similarity, tied``."""
        columns = ["layer_a", "index_a", "layer_b", "index_b", "similarity", "tied"]
        return pd.DataFrame(
            [
                (m.a, i, m.b, j, similarity, tied)
                for m in self.layers
                for (i, j), similarity, tied in zip(
                    m.pairs.tolist(), m.similarity.tolist(), m.tied.tolist(), strict=True
                )
            ],
            columns=columns,
        )

    def ties(self) -> pd.DataFrame:
        """Table of neurons that chance chose between.

        Returns
        -------
        DataFrame
            ``layer_a, indices_a, layer_b, indices_b``: any of these neurons of a could be any of
            those of b.
        """
        rows = [(m.a, here, m.b, there) for m in self.layers for here, there in m.ties]
        return pd.DataFrame(rows, columns=["layer_a", "indices_a", "layer_b", "indices_b"])

    def __repr__(self) -> str:
        pairs = sum(len(match.pairs) for match in self.layers)
        ties = sum(len(match.ties) for match in self.layers)
        told = f"Matching by {self.kind}: {pairs:,} neurons in {len(self.layers)} layers"
        return f"{told}, {ties:,} ties" if ties else told


def _moved(table: Mapping[tuple[str, int], tuple[str, int]], neuron: Neuron) -> Neuron | None:
    found = table.get((neuron.layer, neuron.index))
    return None if found is None else Neuron(*found, neuron.position)


def is_given(layers: nx.DiGraph, layer: str) -> bool:
    """Whether task and data say what a layer's neurons are: features and outputs.

    Those of two models for one task correspond by index, whatever their weights.
    """
    return bool(layers.nodes[layer]["type"] == INPUT_TYPE) or is_end(layers, layer)


def is_end(layers: nx.DiGraph, layer: str) -> bool:
    """Whether the target alone reads a layer: its neurons are named with the target, not found."""
    return bool(layers.nodes[layer]["output"]) and not layers.out_degree(layer)


def by_name(a: Circuit, b: Circuit) -> Matching:
    """Match neurons of equal name, of two circuits of one architecture.

    Raises
    ------
    OptionError
        Layers, or how many neurons these have, differ; the message names the first.
    """
    one, other = _sizes(a), _sizes(b)
    for layer in {**one, **other}:
        if layer not in one or layer not in other or one[layer] != other[layer]:
            told = [_told(sizes.get(layer)) for sizes in (one, other)]
            raise OptionError(
                f"the circuits are not of one architecture: of layer {layer!r} the first has "
                f"{told[0]}, the second {told[1]}; match='activation' compares different "
                "architectures, and layers= and groups= must be the same in both searches"
            )
    if list(a.layers.edges) != list(b.layers.edges):
        edge = next(iter(set(a.layers.edges) ^ set(b.layers.edges)), None)
        if edge is not None:
            raise OptionError(
                f"the circuits are not of one architecture: only in one of them {edge[1]!r} reads "
                f"{edge[0]!r}; match='activation' compares different architectures"
            )
    return Matching(
        "identity",
        tuple(
            LayerMatch.plain(layer, layer, zip(range(size), range(size), strict=True))
            for layer, (size, _) in one.items()
            if size
        ),
    )


def by_mapping(a: Circuit, b: Circuit, mapping: Mapping[Any, Any]) -> Matching:
    """Match as a mapping says: neurons to neurons, or layers to layers of equal size.

    Neurons are ``(layer, index)``; those of single positions go along with their index.

    Raises
    ------
    OptionError
        A layer or neuron that its circuit's model has not, one that stands twice, layers of
        different sizes, or keys of neither kind.
    """
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    one, other = _sizes(a), _sizes(b)
    for key, value in mapping.items():
        if isinstance(key, str) and isinstance(value, str):
            sizes = [_known(s, layer)[0] for s, layer in ((one, key), (other, value))]
            if sizes[0] != sizes[1]:
                raise OptionError(
                    f"match: layer {key!r} has {sizes[0]} neurons, {value!r} {sizes[1]}: map "
                    "neurons to neurons"
                )
            pairs = [(i, i) for i in range(sizes[0])]
            found.setdefault((key, value), []).extend(pairs)
        else:
            (layer, i), (to, j) = _place(one, key), _place(other, value)
            found.setdefault((layer, to), []).append((i, j))
    for side, name in ((0, "first"), (1, "second")):
        seen: set[tuple[str, int]] = set()
        for layers, pairs in found.items():
            for pair in pairs:
                place = layers[side], pair[side]
                if place in seen:
                    raise OptionError(f"match: {Neuron(*place)} of the {name} circuit stands twice")
                seen.add(place)
    order = {name: i for i, name in enumerate(one)}
    return Matching(
        "mapping",
        tuple(
            LayerMatch.plain(*layers, pairs)
            for layers, pairs in sorted(found.items(), key=lambda item: order[item[0][0]])
        ),
    )


def _sizes(circuit: Circuit) -> dict[str, tuple[int, int | None]]:
    """How many indices the neurons of each layer have, and how many positions."""
    return {layer: size_of(circuit, layer) for layer in circuit.layers}


def size_of(circuit: Circuit, layer: str) -> tuple[int, int | None]:
    """How many neurons a layer has, and at how many positions each where these are single."""
    node = circuit.layers.nodes[layer]
    positions: int | None = node.get("positions")
    return int(node["neurons"] or 0) // (positions or 1), positions


def _told(size: tuple[int, int | None] | None) -> str:
    if size is None:
        return "no such layer"
    return f"{size[0]} neurons" + ("" if size[1] is None else f" at {size[1]} positions each")


def _known(sizes: Mapping[str, tuple[int, int | None]], layer: str) -> tuple[int, int | None]:
    if layer not in sizes:
        raise OptionError(f"match: there is no layer {layer!r}; there are {', '.join(sizes)}")
    return sizes[layer]


def _place(sizes: Mapping[str, tuple[int, int | None]], given: Any) -> tuple[str, int]:
    if not isinstance(given, tuple) or len(given) < 2 or any(x is not None for x in given[2:]):
        raise OptionError(
            f"match: {given!r} is neither a layer's name nor a neuron (layer, index); positions "
            "go along with the index"
        )
    layer, index = str(given[0]), int(given[1])
    size = _known(sizes, layer)[0]
    if not 0 <= index < size:
        raise OptionError(f"match: layer {layer!r} has no neuron {index}: it has {size}")
    return layer, index


def layers_with_neurons(circuit: Circuit) -> Iterator[str]:
    """Yield the layers that have neurons, in the order they run."""
    return (layer for layer in circuit.layers if circuit.layers.nodes[layer]["neurons"])
