"""captum: attributions of a layer's neurons, by hooks, summed over positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import (
    LayerConductance,
    LayerFeatureAblation,
    LayerGradientXActivation,
    NeuronConductance,
)
from torch import Tensor

from race.measure import Outcome, Work
from race.tasks import Loaded, margin

__all__ = ["METHODS"]

AT_ONCE = 16  # perturbations in one batch, the fastest of 1, 4, 16 and 64 here
NEURONS = 32


def _explained(task: Loaded) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, labels: margin(task.model(x), labels)


def _baseline(task: Loaded) -> Tensor:
    """What an input is compared with: its twin, or the mean of all."""
    return task.every.mean(0, keepdim=True) if task.corrupt is None else task.corrupt


def _outcome(task: Loaded, found: dict[str, Tensor], **facts: Any) -> Outcome:
    """Scores of neurons: means over the samples of attributions summed over positions."""
    scores = []
    for layer, attributions in found.items():
        each = attributions.flatten(2).sum(2) if attributions.dim() > 2 else attributions
        scores += [[layer, i, s] for i, s in enumerate(each.double().mean(0).tolist())]
    return Outcome(scores, facts=facts)


def _by_layer(task: Loaded, attribute: Callable[[str], Tensor]) -> Work:
    def work() -> Outcome:
        found = {layer: attribute(layer).detach() for layer in task.task.layers}
        return _outcome(task, found)

    return work


def gradient(task: Loaded) -> Work:
    explained = _explained(task)

    def attribute(layer: str) -> Tensor:
        method = LayerGradientXActivation(explained, task.model.get_submodule(layer))
        return method.attribute(task.clean, additional_forward_args=(task.labels,))

    return _by_layer(task, attribute)


def conductance(task: Loaded) -> Work:
    explained, baseline = _explained(task), _baseline(task)

    def attribute(layer: str) -> Tensor:
        method = LayerConductance(explained, task.model.get_submodule(layer))
        return method.attribute(
            task.clean, baselines=baseline, additional_forward_args=(task.labels,)
        )

    return _by_layer(task, attribute)


def ablation(task: Loaded) -> Work:
    explained = _explained(task)

    def recorded(module: torch.nn.Module, inputs: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = module.register_forward_hook(lambda _m, _i, output: kept.append(output))
        with torch.no_grad():
            task.model(inputs)
        hook.remove()
        return kept[0]

    def attribute(layer: str) -> Tensor:
        module = task.model.get_submodule(layer)
        other = recorded(module, task.every if task.corrupt is None else task.corrupt)
        if task.corrupt is None:
            other = other.mean(0, keepdim=True)
        channels = torch.arange(other.shape[1]).view(1, -1, *[1] * (other.dim() - 2))
        found = LayerFeatureAblation(explained, module).attribute(
            task.clean,
            layer_baselines=other,
            additional_forward_args=(task.labels,),
            layer_mask=channels.expand(1, *other.shape[1:]),
            perturbations_per_eval=AT_ONCE,
        )
        # a channel's number stands at each of its positions
        return found if found.dim() == 2 else found.flatten(2)[:, :, 0]

    return _by_layer(task, attribute)


def neuron_conductance(task: Loaded) -> Work:
    """What each feature does through each of some neurons of the first layer."""
    method = NeuronConductance(_explained(task), task.model.get_submodule("linear1"))
    baseline = _baseline(task)

    def work() -> Outcome:
        scores: list[list[Any]] = []
        for neuron in range(NEURONS):
            found = method.attribute(
                task.clean, neuron, baselines=baseline, additional_forward_args=(task.labels,)
            )
            mean = found.detach().double().mean(0).tolist()
            scores += [["input", i, "linear1", neuron, s] for i, s in enumerate(mean)]
        return Outcome(scores)

    return work


METHODS = {
    "ablation": ablation,
    "conductance": conductance,
    "gradient": gradient,
    "neuron_conductance": neuron_conductance,
}
