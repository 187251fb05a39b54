"""Neurons silenced by their own weights: rows of a module set to zero, and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neurograph.errors import OptionError
from neurograph.model.hooks import Place, passing
from neurograph.model.module_types import is_convolution

__all__ = ["check_weights_serve", "zeroed"]

_INSTEAD = "use how='zero', which replaces outputs"


@contextlib.contextmanager
def zeroed(
    model: nn.Module, channels: Mapping[str, Sequence[int]], places: Mapping[str, Place]
) -> Iterator[None]:
    """Set the weights and biases of some channels to zero for the length of a block.

    Parameters
    ----------
    model : Module
    channels : mapping of str to sequence of int
        Output channels, by layer.
    places : mapping of str to Place
        Of the layers.

    Raises
    ------
    OptionError
        When a module is called that serves a call which no layer names.
    """
    named: dict[str, dict[str, list[int]]] = {}
    for layer, chosen in channels.items():
        place = places[layer]
        named.setdefault(place.path or "", {})[place.call] = sorted(set(chosen))
    watched = []
    for path, calls in named.items():
        wanted, *others = calls.values()
        if any(other != wanted for other in others):
            raise OptionError(
                f"the calls {', '.join(calls)} share their weights, but are to lose different "
                f"neurons: {_INSTEAD}"
            )
        name = path or "model"
        every = (name if number == 0 else f"{name}#{number}" for number in count())
        unnamed = next(call for call in every if call not in calls)
        watched.append(Place(unnamed, path, unnamed))

    def refuse(layer: str, _tensor: Tensor) -> Tensor:
        raise OptionError(
            f"the model calls {layer.partition('#')[0]!r} several times with the same weights, and "
            f"{layer!r} is not among the layers to silence: name each call, or {_INSTEAD}"
        )

    modules = dict(model.named_modules())
    with contextlib.ExitStack() as stack:
        for path, calls in named.items():
            chosen = next(iter(calls.values()))
            if chosen:
                _zero(modules[path], torch.tensor(chosen), stack)
        stack.enter_context(passing(model, watched, refuse))
        yield


def _zero(module: Any, channels: Tensor, stack: contextlib.ExitStack) -> None:
    for tensor, key in _parts(module, channels.to(module.weight.device)):
        with torch.no_grad():
            before = tensor[key].clone()
            stack.callback(_put, tensor, key, before)
            tensor[key] = 0


@torch.no_grad()
def _put(tensor: Tensor, key: Any, values: Tensor) -> None:
    tensor[key] = values.to(tensor)


def _parts(module: Any, channels: Tensor) -> Iterator[tuple[Tensor, Any]]:
    """Parameters of a module, and what of them makes some output channels."""
    weight, bias = module.weight, module.bias
    if getattr(module, "transposed", False):
        inside, outside = weight.shape[0] // module.groups, weight.shape[1]
        by_group = weight.unflatten(0, (module.groups, inside))
        yield by_group, (channels // outside, slice(None), channels % outside)
    else:
        yield weight, channels
    if bias is not None:
        yield bias, channels


def check_weights_serve(model: nn.Module, places: Mapping[str, Place]) -> None:
    """Raise OptionError for layers whose neurons no weights of their own make."""
    modules = dict(model.named_modules())
    users: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter.untyped_storage().data_ptr(), set()).add(path)
    for layer, place in places.items():
        if place.path is None or place.side or place.part is not None:
            raise OptionError(
                f"how='weights': {layer!r} is not the main output of a module, so no weights are "
                f"its own: {_INSTEAD}"
            )
        module = modules[place.path]
        kind = type(module).__name__
        if not isinstance(module, nn.Linear) and not is_convolution(module):
            raise OptionError(
                f"how='weights': layer {layer!r} is a {kind}, not a Linear or a convolution, whose "
                f"rows are neurons: {_INSTEAD}"
            )
        if parametrize.is_parametrized(module) or "weight" not in module._parameters:
            raise OptionError(
                f"how='weights': the weights of layer {layer!r} are computed from others by a "
                f"parametrisation: {_INSTEAD}"
            )
        for parameter in module.parameters(recurse=False):
            others = users[parameter.untyped_storage().data_ptr()] - {place.path}
            if others:
                raise OptionError(
                    f"how='weights': layer {layer!r} shares its weights with {min(others)!r}, "
                    f"which would lose them too: {_INSTEAD}"
                )
