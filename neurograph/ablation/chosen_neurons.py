"""Neurons to ablate, as users name them, and the layers that hold any worth ablating."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import networkx as nx
from torch import nn

from neurograph.circuit.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.model.layers import INPUT_TYPE, Neuron
from neurograph.model.neuron_names import Names, Place, name_table, read_neuron
from neurograph.model.neurons import Groups
from neurograph.model.observe import input_name
from neurograph.utils.checks import listed, shown

__all__ = ["Neurons", "features_of", "groups_of", "hidden_layers", "read_neurons"]

Neurons = Iterable[Place] | Mapping[str, Iterable[int]] | Circuit
"""Neurons as ``(layer, index)`` or ``(layer, index, position)``, as indices by layer, or those of
a circuit."""


def read_neurons(
    neurons: Neurons, option: str = "neurons", names: Names | None = None
) -> dict[str, list[Neuron]]:
    """Read neurons as users name them, by layer.

    Of a circuit they are those of hidden layers: its inputs are features, and its last layers
    are what it explains.

    Parameters
    ----------
    neurons : Neurons
    option : str
        What the argument is called, for errors.
    names : mapping of str to Neuron, optional
        What neurons are called besides, as `features_of` has them.

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
    >>> read_neurons(["fc[1]", "fc:2"])
    {'fc': [Neuron('fc', 1), Neuron('fc', 2)]}
    """
    if isinstance(neurons, Circuit):
        _check_whose(neurons)
        hidden = hidden_layers(neurons.layers)
        neurons = [neuron for neuron in neurons.graph if neuron.layer in hidden]
    found: dict[str, list[Neuron]] = {}
    several = _pairs(neurons, option) if isinstance(neurons, Mapping) else neurons
    for place in _listed(several, option):
        neuron = read_neuron(place, option, names=names)
        found.setdefault(neuron.layer, []).append(neuron)
    return found


def features_of(model: nn.Module, names: Sequence[str] | None) -> Names:
    """Input neurons by the names of their features."""
    first = input_name(model)
    return name_table((str(name), Neuron(first, i)) for i, name in enumerate(names or ()))


def _listed(places: Any, option: str) -> list[Any]:
    try:
        return listed(places, option)
    except OptionError:
        raise OptionError(
            f"{option}={shown(places)}: pass a list of (layer, index) tuples, a mapping from "
            "layers to indices, or a Circuit"
        ) from None


def _pairs(neurons: Mapping[str, Iterable[int]], option: str) -> list[tuple[str, int]]:
    return [
        (layer, index)
        for layer, indices in neurons.items()
        for index in listed(indices, f"{option}[{layer!r}]", "indices")
    ]


def groups_of(neurons: object) -> Mapping[str, Groups] | None:
    """Groups that the neurons of a circuit are, if it was searched with `groups=`."""
    if not isinstance(neurons, Circuit):
        return None
    return neurons.provenance.get("options", {}).get("groups") or None


def _check_whose(circuit: Circuit) -> None:
    """OptionError for a circuit whose neurons say not by themselves which channels they are."""
    options = circuit.provenance.get("options", {})
    positions = options.get("positions", "all")
    if options.get("basis"):
        raise OptionError(
            f"the circuit's neurons in {', '.join(map(repr, options['basis']))} are of a basis, "
            "not channels: ask circuit.study.faithfulness(circuit) what is left without them"
        )
    if positions not in ("all", "each"):
        raise OptionError(
            f"the circuit's neurons are channels at one position ({positions!r}), which none of "
            "its neurons names: pass list(circuit.graph) to ablate the channels everywhere, or "
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
