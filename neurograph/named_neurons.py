"""Layers and neurons as users name them, one or several, found in a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from neurograph.errors import OptionError
from neurograph.layers import Neuron
from neurograph.study import Study

__all__ = ["NamedNeurons", "find_named"]

NamedNeurons = str | Neuron | Iterable[str | Neuron | tuple[Any, ...]]
"""A layer's name, which stands for all of its neurons, a neuron, or several of either."""


def find_named(study: Study, chosen: NamedNeurons, option: str) -> dict[str, list[int]]:
    """Find chosen neurons: layers in the order of the model, and the numbers of their neurons.

    Parameters
    ----------
    study : Study
    chosen : str, Neuron, or several of them
    option : str
        What the option is called, for errors.

    Raises
    ------
    OptionError
        There is no such layer or neuron, the layer has no neurons, or nothing was chosen.
    """
    asked = _several(chosen, option)
    if not asked:
        raise OptionError(f"{option}= is empty: name layers or neurons, or leave it out")
    found: dict[str, set[int]] = {}
    for one in asked:
        layer = one if isinstance(one, str) else one.layer
        if layer not in study.profiled:
            raise OptionError(
                f"{option}={one!r}: there is no layer {layer!r}; the model has "
                f"{', '.join(study.profiled)}"
            )
        if not study.experiment.recording.layers[layer].neurons:
            raise OptionError(
                f"layer {layer!r} has no neurons (its values are no floating-point numbers, or "
                f"the same for every sample): name other layers in {option}="
            )
        units = study.experiment.units(layer)
        numbers = range(len(units)) if isinstance(one, str) else [units.unit(one)]
        found.setdefault(layer, set()).update(numbers)
    return {layer: sorted(found[layer]) for layer in study.profiled if layer in found}


def _several(chosen: NamedNeurons, option: str) -> Sequence[str | Neuron]:
    if isinstance(chosen, str):
        return [chosen]
    try:
        items: tuple[Any, ...] = tuple(chosen)
        # A layer and a number are a neuron; several layers are names alone.
        if len(items) > 1 and isinstance(items[0], str) and not isinstance(items[1], str | tuple):
            return [Neuron(*items)]
        return [item if isinstance(item, str) else Neuron(*item) for item in items]
    except TypeError:
        raise OptionError(
            f"{option}={chosen!r}: pass names of layers, (layer, index) pairs, or several of them"
        ) from None
