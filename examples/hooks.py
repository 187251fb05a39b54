"""Interventions with PyTorch's own hooks, to check what neurograph says by other means.

Layers are named as neurograph names them: ``path``, ``path#1`` for the second call of a module
in one run, and ``path:input`` or ``path#1:input`` for its input side.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

import neurograph as ng

__all__ = [
    "Neurons",
    "ablated",
    "against_chance",
    "check",
    "kept_neurons",
    "mean_and_range",
    "record",
    "strongest",
]

Neurons = Mapping[str, Sequence[int]]
"""Which neurons of which layers."""


@contextmanager
def _edited(model: nn.Module, layer: str, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass a layer's values through `edit` in every run of the model."""
    path, _, side = layer.partition(":")
    path, _, number = path.partition("#")
    module, calls = model.get_submodule(path), 0

    def begin(_module: nn.Module, _arguments: Any) -> None:
        nonlocal calls
        calls = 0

    def is_meant() -> bool:
        nonlocal calls
        calls += 1
        return calls == int(number or 0) + 1

    def on_input(_module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        return (edit(arguments[0]), *arguments[1:]) if is_meant() else None

    def on_output(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        if not is_meant():
            return None
        several = isinstance(output, tuple)  # an LSTM returns its last state beside its output
        return (edit(output[0]), *output[1:]) if several else edit(output)

    handles = [model.register_forward_pre_hook(begin)]
    if side:
        handles.append(module.register_forward_pre_hook(on_input))
    else:
        handles.append(module.register_forward_hook(on_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record(model: nn.Module, layers: Iterable[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Values of some layers while `run()` runs the model once."""
    found: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[Tensor], Tensor]:
        return lambda value: found.setdefault(layer, value)

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_edited(model, layer, keep(layer)))
        run()
    return found


def one(_layer: str) -> int:
    """How many channels a neuron has, where they are not taken in groups."""
    return 1


@contextmanager
def ablated(
    model: nn.Module,
    neurons: Neurons,
    values: Mapping[str, Tensor],
    *,
    dim: int = -1,
    size: Callable[[str], int] = one,
) -> Iterator[None]:
    """Set neurons, `size(layer)` channels along `dim` each, to the values given for their layers.

    A layer's values have the shape of what it returns in the runs inside the block, or one that
    broadcasts to it.
    """

    def replacing(layer: str) -> Callable[[Tensor], Tensor]:
        width = size(layer)
        chosen = [n * width + channel for n in neurons[layer] for channel in range(width)]

        def edit(value: Tensor) -> Tensor:
            changed, other = value.clone(), values[layer].expand_as(value)
            changed.movedim(dim, 0)[chosen] = other.movedim(dim, 0)[chosen]
            return changed

        return edit

    with ExitStack() as stack:
        for layer in neurons:
            stack.enter_context(_edited(model, layer, replacing(layer)))
        yield


def strongest(circuit: ng.Circuit, layer: str) -> ng.Neuron:
    """Neuron that does most for the target, all in all, of layers whose names fit a pattern."""
    effects = {
        neuron: abs(node["total_effect"])
        for neuron, node in circuit.graph.nodes(data=True)
        if fnmatchcase(neuron.layer, layer)
    }
    return max(effects, key=effects.__getitem__)


@torch.no_grad()
def check(
    circuit: ng.Circuit,
    model: nn.Module,
    neuron: ng.Neuron,
    score: Callable[[], Tensor],
    values: Mapping[str, Tensor],
    *,
    dim: int = -1,
    size: Callable[[str], int] = one,
) -> None:
    """Print a neuron's effect through everything, from the circuit and by hooks alone.

    `score()` runs the model on the reference samples and gives the target of each; `values` are
    what the neuron moves from.
    """
    total = circuit.graph.nodes[neuron]["total_effect"]
    actual = score()
    with ablated(model, {neuron.layer: [neuron.index]}, values, dim=dim, size=size):
        by_hooks = (actual - score()).mean().item()
    print(f"{circuit.name(neuron)} adds {total:+.4f} all in all; by hooks alone {by_hooks:+.4f}")


def kept_neurons(circuit: ng.Circuit, sign: str) -> dict[str, list[int]]:
    """Neurons of the model's layers, its inputs aside, that a circuit kept for one sign."""
    table = circuit.neurons(sign=sign)
    inside = table[~table["layer"].str.startswith("input")]
    return {layer: sorted(rows["index"].unique()) for layer, rows in inside.groupby("layer")}


@torch.no_grad()
def against_chance(
    measure: Callable[[Neurons], float],
    kept: Neurons,
    widths: Mapping[str, int],
    *,
    repeats: int = 20,
) -> tuple[float, list[float]]:
    """Measure some neurons, and random ones: as many, of the same layers, none of them kept.

    `widths` says how many neurons each layer has to choose from.
    """
    generator = random.Random(0)

    def others(layer: str) -> list[int]:
        pool = sorted(set(range(widths[layer])).difference(kept[layer]))
        return sorted(generator.sample(pool, min(len(kept[layer]), len(pool))))

    chance = [measure({layer: others(layer) for layer in kept}) for _ in range(repeats)]
    return measure(kept), chance


def mean_and_range(values: Sequence[float], form: str) -> str:
    """Tell values like ``0.5 (0.1 to 0.9)``, each in the format `form`."""
    return f"{fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
