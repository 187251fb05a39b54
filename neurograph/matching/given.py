"""Identity and given matchings: neurons matched as they are called, or as the user says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neurograph.circuit.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.matching.layers_of import size_of
from neurograph.matching.matching import LayerMatch, Matching
from neurograph.model.layers import Neuron

__all__ = ["by_mapping", "by_name"]


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
            sizes_of = [_size_text(sizes.get(layer)) for sizes in (one, other)]
            raise OptionError(
                f"the circuits are not of one architecture: of layer {layer!r} the first has "
                f"{sizes_of[0]}, the second {sizes_of[1]}; match='activation' compares different "
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
    pairs_of: dict[tuple[str, str], list[tuple[int, int]]] = {}
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
            pairs_of.setdefault((key, value), []).extend(pairs)
        else:
            (layer, i), (to, j) = _place(one, key), _place(other, value)
            pairs_of.setdefault((layer, to), []).append((i, j))
    for side, name in ((0, "first"), (1, "second")):
        seen: set[tuple[str, int]] = set()
        for layers, pairs in pairs_of.items():
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
            for layers, pairs in sorted(pairs_of.items(), key=lambda item: order[item[0][0]])
        ),
    )


def _sizes(circuit: Circuit) -> dict[str, tuple[int, int | None]]:
    """How many indices the neurons of each layer have, and how many positions."""
    return {layer: size_of(circuit, layer) for layer in circuit.layers}


def _size_text(size: tuple[int, int | None] | None) -> str:
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
