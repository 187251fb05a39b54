"""Linear layers and convolutions behind pointwise glue: kept edges as a mask on their weights.

What such a reader computes is a sum over its writer's channels. With a the writer's ablated values
and φ the glue, an output that sees x of some channels and a of the others is
``(W ∘ mask) (φ(x) − φ(a)) + W φ(a) + b``: one run, whatever each output keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograph.effects.experiment import Experiment
from neurograph.model.layers import Layer
from neurograph.replay.elementwise import Chain, Computes, as_product, find_chains

__all__ = ["LinearReader", "find_linear_readers"]

_CONVOLUTIONS: dict[type, Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


@dataclass(frozen=True, eq=False)
class LinearReader:
    """A reader whose neurons are sums over one writer's channels, each channel by itself.

    Attributes
    ----------
    writer, reader : str
    module : Module
        A Linear or a convolution.
    chain : Chain
        The glue between them.
    layers : pair of Layer
        Of the writer and the reader.
    """

    writer: str
    reader: str
    module: Any
    chain: Chain
    layers: tuple[Layer, Layer]

    def mask(self, kept: Tensor, writers: Tensor, readers: Tensor) -> Tensor:
        """Which weights count.

        Parameters
        ----------
        kept : Tensor of bool, [writer's neurons, reader's neurons]
        writers, readers : Tensor of int
            The neuron of each element of a row of the writer, and of the reader; -1 for none.

        Returns
        -------
        Tensor of bool, [reader's channels, writer's channels]
            A channel of the writer that is no neuron's counts always.
        """
        source = _by_channel(writers, self.layers[0])
        end = _by_channel(readers, self.layers[1])
        return (kept[source.clamp_min(0)][:, end.clamp_min(0)] | (source < 0)[:, None]).T

    def __call__(self, values: Tensor, ablated: Tensor, mask: Tensor) -> Tensor:
        """Compute the reader; values and ablated values of the writer ``[samples, elements]``."""
        shape = (-1, *self.layers[0].shape)
        seen, still = (
            self.chain(values.view(shape).clone()),
            self.chain(ablated.view(shape).clone()),
        )
        weight, bias = self.module.weight, self.module.bias
        result = _multiplied(self.module, still, weight, bias)
        masked = weight * self._fitted(mask)
        return result + _multiplied(self.module, seen - still, masked, None)

    def _fitted(self, mask: Tensor) -> Tensor:
        """Give a mask of channels the shape of the weights."""
        if isinstance(self.module, nn.Linear):
            return mask
        outputs, inside = self.module.weight.shape[:2]
        group = torch.arange(outputs, device=mask.device) * self.module.groups // outputs
        inputs = group[:, None] * inside + torch.arange(inside, device=mask.device)
        return mask.gather(1, inputs).view(outputs, inside, *[1] * len(self.module.kernel_size))


def find_linear_readers(
    experiment: Experiment, writers: Mapping[str, Sequence[str]]
) -> dict[str, LinearReader]:
    """Readers that one run serves, by name.

    Parameters
    ----------
    experiment : Experiment
        Open.
    writers : mapping of str to sequence of str
        Of each reader.
    """
    model, layers = experiment.replay.model, experiment.recording.layers
    found = {}
    for (writer, reader), chain in find_chains(experiment.replay, _sums).items():
        ends = layers[writer], layers[reader]
        module = model.get_submodule(ends[1].module)
        by_map = not isinstance(module, nn.Linear)
        fits = all(
            layer.channel_dim == (1 if by_map else len(layer.shape))
            and experiment.units(layer.name).positions is None
            for layer in ends
        )
        if fits and list(writers.get(reader, ())) == [writer]:
            found[reader] = LinearReader(writer, reader, module, chain, ends)
    return found


def _sums(module: Any) -> Computes | None:
    """What a module should compute that sums over its input channels with its weights."""
    if isinstance(module, nn.Linear):
        return as_product(module)
    if any(isinstance(module, kind) for kind in _CONVOLUTIONS):
        return lambda inputs: _multiplied(module, inputs, module.weight, module.bias)
    return None


def _multiplied(module: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a Linear or a convolution computes with these weights."""
    if isinstance(module, nn.Linear):
        return F.linear(inputs, weight, bias)
    convolve = next(f for kind, f in _CONVOLUTIONS.items() if isinstance(module, kind))
    found: Tensor = convolve(
        inputs, weight, bias, module.stride, module.padding, module.dilation, module.groups
    )
    return found


def _by_channel(owner: Tensor, layer: Layer) -> Tensor:
    """Neuron of each channel, by those of the elements."""
    return (
        owner.view(layer.shape).movedim(layer.channel_dim - 1, 0).reshape(layer.neurons, -1)[:, 0]
    )
