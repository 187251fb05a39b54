"""Which neurons are meant: as users name them, and the layers that hold any worth silencing."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import networkx as nx

from neurograph.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.layers import INPUT_TYPE, Neuron
from neurograph.units import Groups

__all__ = ["Neurons", "groups_of", "hidden_layers", "read_neurons"]

Neurons = Iterable[Neuron | tuple[Any, ...]] | Mapping[str, Iterable[int]] | Circuit
"""Neurons as ``(layer, index)`` or ``(layer, index, position)``, as indices by layer, or those of
a circuit."""


def read_neurons(neurons: Neurons) -> dict[str, list[Neuron]]:
    """Read neurons as users name them, by layer.

    Of a circuit they are those of hidden layers: its inputs are features, and its last layers
    are what it explains.

    Raises
    ------
    OptionError
        Something else than neurons.

    Examples
    --------
    >>> read_neurons({"fc": range(2)})
    {'fc': [Neuron('fc', 0), Neuron('fc', 1)]}
    >>> read_neurons([("fc", 1), ("head", 0, 3)])
    {'fc': [Neuron('fc', 1)], 'head': [Neuron('head', 0, 3)]}
    """
    if isinstance(neurons, Circuit):
        _check_positions(neurons)
        hidden = hidden_layers(neurons.layers)
        neurons = [neuron for neuron in neurons.graph if neuron.layer in hidden]
    if not _is_several(neurons):
        raise _no_neuron(neurons)
    found: dict[str, list[Neuron]] = {}
    for neuron in _pairs(neurons) if isinstance(neurons, Mapping) else map(_neuron, neurons):
        found.setdefault(neuron.layer, []).append(neuron)
    return found


def _is_several(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _pairs(neurons: Mapping[str, Iterable[int]]) -> Iterable[Neuron]:
    for layer, indices in neurons.items():
        if not _is_several(indices):
            raise OptionError(f"neurons[{layer!r}]={indices!r}: pass a list of indices")
        yield from (_neuron((layer, index)) for index in indices)


def _neuron(value: Any) -> Neuron:
    try:
        layer, *numbers = value
        neuron = Neuron(layer, *map(operator.index, numbers))
    except (TypeError, ValueError):
        raise _no_neuron(value) from None
    if not isinstance(layer, str) or not numbers:
        raise _no_neuron(value)
    if min(numbers) < 0:
        raise OptionError(f"{neuron} has a negative number: count neurons from 0")
    return neuron


def _no_neuron(value: object) -> OptionError:
    return OptionError(
        f"{value!r} is no neuron: pass (layer, index) tuples, a mapping from layers to indices, or "
        "a Circuit"
    )


def groups_of(neurons: object) -> Mapping[str, Groups] | None:
    """Groups that the neurons of a circuit are, if it was searched with `groups=`."""
    if not isinstance(neurons, Circuit):
        return None
    return neurons.provenance.get("options", {}).get("groups") or None


def _check_positions(circuit: Circuit) -> None:
    positions = circuit.provenance.get("options", {}).get("positions", "all")
    if positions not in ("all", "each"):
        raise OptionError(
            f"the circuit's neurons are channels at one position ({positions!r}), which none of "
            "its neurons names: pass list(circuit.graph) to silence the channels everywhere, or "
            "(layer, index, position) tuples"
        )


def hidden_layers(graph: nx.DiGraph, *, inputs: bool = False) -> dict[str, int]:
    """Layers that others read, with their numbers of neurons; not what the output alone reads.

    Parameters
    ----------
    graph : networkx.DiGraph
        As from `layer_graph`.
    inputs : bool
        Include the model's inputs.
    """
    return {
        name: data["neurons"]
        for name, data in graph.nodes(data=True)
        if data["neurons"] and graph.out_degree(name) and (inputs or data["type"] != INPUT_TYPE)
    }
