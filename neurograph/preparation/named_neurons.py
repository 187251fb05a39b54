"""Layers and neurons as users name them, one or several, found in a study."""

from __future__ import annotations

from neurograph.errors import OptionError
from neurograph.model.neuron_names import Names, Places, name_table, read_places
from neurograph.preparation.base_study import BaseStudy

__all__ = ["find_named"]


def find_named(study: BaseStudy, chosen: Places, option: str) -> dict[str, list[int]]:
    """Find chosen neurons: layers in the order of the model, and the numbers of their neurons.

    Parameters
    ----------
    study : BaseStudy
    chosen : str, Neuron, or several of them
        A layer's name stands for all of its neurons.
    option : str
        What the option is called, for errors.

    Raises
    ------
    OptionError
        There is no such layer or neuron, the layer has no neurons, or nothing was chosen.
    """
    asked = read_places(chosen, option, list(study.layers), _names(study))
    if not asked:
        raise OptionError(f"{option}= is empty: name layers or neurons, or leave it out")
    found: dict[str, set[int]] = {}
    for one in asked:
        layer = one if isinstance(one, str) else one.layer
        if not study.experiment.recording.layers[layer].neurons:
            raise OptionError(
                f"{option}={str(one)!r}: layer {layer!r} has no neurons (its values are no "
                "floating-point numbers, or the same for every sample): name other layers"
            )
        units = study.experiment.units(layer)
        try:
            numbers = range(len(units)) if isinstance(one, str) else [units.unit(one)]
        except OptionError as error:
            raise OptionError(f"{option}: {error}") from None
        found.setdefault(layer, set()).update(numbers)
    return {layer: sorted(found[layer]) for layer in study.layers if layer in found}


def _names(study: BaseStudy) -> Names:
    """Neurons that have names of their own: features, the target, and those of a basis."""
    graph, layers = study.layers, study.experiment.recording.layers
    ends = [n for n in graph if layers[n].is_input or graph.nodes[n]["output"] or layers[n].basis]
    neurons = (
        study.experiment.units(name).neuron(unit)
        for name in ends
        if layers[name].neurons
        for unit in range(len(study.experiment.units(name)))
    )
    return name_table((study.name(neuron), neuron) for neuron in neurons)
