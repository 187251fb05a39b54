"""What a circuit says of the layers of its model: sizes, inputs, outputs."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx

from neurograph.circuit.circuit import Circuit
from neurograph.model.layers import INPUT_TYPE

__all__ = ["is_end", "is_given", "layers_with_neurons", "size_of"]


def is_given(layers: nx.DiGraph, layer: str) -> bool:
    """Whether task and data say what a layer's neurons are: features and outputs.

    Those of two models for one task correspond by index, whatever their weights.
    """
    return bool(layers.nodes[layer]["type"] == INPUT_TYPE) or is_end(layers, layer)


def is_end(layers: nx.DiGraph, layer: str) -> bool:
    """Whether the target alone reads a layer: the target names its neurons, no search does."""
    return bool(layers.nodes[layer]["output"]) and not layers.out_degree(layer)


def size_of(circuit: Circuit, layer: str) -> tuple[int, int | None]:
    """How many neurons a layer has, and at how many positions each where these are single."""
    node = circuit.layers.nodes[layer]
    positions: int | None = node.get("positions")
    return int(node["neurons"] or 0) // (positions or 1), positions


def layers_with_neurons(circuit: Circuit) -> Iterator[str]:
    """Yield the layers that have neurons in every sample, in the order they run."""
    routed = circuit.provenance.get("model", {}).get("routed", ())
    nodes = circuit.layers.nodes
    return (name for name in circuit.layers if nodes[name]["neurons"] and name not in routed)
