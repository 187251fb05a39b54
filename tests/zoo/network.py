"""What a test network is: a model, its data, a target, and where its layers' outputs are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Unit = tuple[int | list[int], Tensor | None]
"""Channels of one neuron, and where it may move: bools that fit a channel's values, or None."""


@dataclass(frozen=True)
class Site:
    """Where one layer's values are: a tensor among what a call returned, and its layout.

    Attributes
    ----------
    call : str
        The module's path, with `#1` for the second call; for an input of the model, its name.
    leaf : int
        Which of the pytree leaves of the call's output.
    batch : int or None
        Dimension along which samples lie; None where the tensor is the same for every sample.
    many : int
        Neighbouring rows that a sample has along that dimension.
    channel : int
        Dimension along which neurons lie.
    moves : bool
        Whether it has neurons: not where all samples must have the same.
    """

    call: str
    leaf: int = 0
    batch: int | None = 0
    many: int = 1
    channel: int = -1
    moves: bool = True


@dataclass(frozen=True)
class Network:
    """A model with all that an exact check of it needs.

    Attributes
    ----------
    name : str
    model : Module
        In eval mode, float64 unless the test asked for another type.
    inputs : callable
        From rows and a seed to the keyword arguments of `forward`, rows first.
    target : callable
        From the model's output (and a batch, which is ignored) to one number a sample.
    sites : dict of str to Site
        Every layer in the order called, the model's inputs first.
    options : dict
        Options of the library with which these are its layers and neurons.
    units : callable, optional
        From each site's values, and the network, to the neurons of sites where they are not the
        channels one by one.
    """

    name: str
    model: nn.Module
    inputs: Callable[[int, int], dict[str, Any]]
    target: Callable[[Any, Any], Tensor]
    sites: dict[str, Site]
    options: Mapping[str, Any] = field(default_factory=dict)
    units: Callable[[Mapping[str, Tensor], Network], dict[str, list[Unit]]] | None = None

    def input_names(self, arguments: dict[str, Any]) -> dict[str, str]:
        """Name the model's inputs: from site to keyword argument."""
        paths = [path for path, _ in self.model.named_modules()]
        taken = any(path == "input" or path.startswith("input.") for path in paths)
        prefix = "model:input" if taken else "input"
        if len(arguments) == 1:
            return {prefix: next(iter(arguments))}
        return {f"{prefix}.{argument}": argument for argument in arguments}


def maps(*calls: str) -> dict[str, Site]:
    """Sites of feature maps: channels come second."""
    return {call: Site(call, channel=1) for call in calls}


def vectors(*calls: str, batch: int | None = 0, many: int = 1) -> dict[str, Site]:
    """Sites whose channels come last."""
    return {call: Site(call, batch=batch, many=many) for call in calls}


def under(prefix: str, names: str) -> list[str]:
    """Paths of some modules of one parent."""
    return [f"{prefix}.{name}" for name in names.split()]


def normal(*shape: int) -> Callable[[int, int], dict[str, Any]]:
    """Inputs for a model with one float argument, `x`."""

    def inputs(rows: int, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {"x": torch.randn(rows, *shape, generator=generator, dtype=torch.float64)}

    return inputs


def ids(count: int, vocabulary: int, *names: str) -> Callable[[int, int], dict[str, Any]]:
    """Inputs for a model that takes token ids."""

    def inputs(rows: int, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randint(vocabulary, (rows, count), generator=generator) for name in names
        }

    return inputs


def column(index: int) -> Callable[[Any, Any], Tensor]:
    """Target: one column of a model's only output."""
    return lambda output, _batch: output[:, index]
