"""Run a model for real and record what every layer returned, leaving the model as it was.

This is the only file that touches `Module.forward`: `replaced_forwards` lends modules a
stand-in for the length of a block, for recording here and for replaying in `replay.py`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.data import Batch, describe_shapes
from neurograph.errors import ModelError, NeurographError
from neurograph.layers import (
    INPUT_TYPE,
    Layer,
    channel_dim,
    find_owners,
    is_convolution,
    iter_tensors,
    main_tensor,
    refuse_unsupported,
    tree_map,
)

__all__ = [
    "Recording",
    "StopReplay",
    "call_model",
    "call_name",
    "capture",
    "input_tensors",
    "observe",
    "placed",
    "replaced_forwards",
    "undisturbed",
]

Forward = Callable[..., Any]


class StopReplay(Exception):
    """Raised inside a replay once everything asked for is known; caught by the replay."""


@dataclass(frozen=True)
class Recording:
    """One real run of the model: every layer's output for `size` samples.

    Attributes
    ----------
    layers : dict of str to Layer
        In the order they were called, the inputs first.
    outputs : dict of str to nested tensors
        What each layer returned (for an input: the input), `size` rows along dimension 0.
    batch : Batch
        The inputs and labels that were run.
    output : nested tensors
        What the model returned.
    size : int
        How many samples.
    """

    layers: Mapping[str, Layer]
    outputs: Mapping[str, Any]
    batch: Batch
    output: Any
    size: int

    def main(self, name: str) -> Tensor:
        """Return the tensor of a layer's output whose channels are its neurons."""
        tensor = main_tensor(self.outputs[name])
        if tensor is None:
            raise ModelError(f"layer {name!r} returns no floating-point tensor")
        return tensor


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients; restore modes, buffers and random state after.

    PyTorch's fused transformer kernels are off meanwhile: they take the layers' weights without
    calling the layers.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    fused = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for module, training in modes:
                module.training = training
            for buffer, before in buffers:
                if buffer.shape != before.shape or not torch.equal(buffer, before):
                    buffer.data.copy_(before)


@contextlib.contextmanager
def placed(model: nn.Module, device: torch.device | str | None) -> Iterator[None]:
    """Put a model on a device for the length of a block, if one is named."""
    parameter = next(model.parameters(), None)
    if device is None or parameter is None or parameter.device == torch.device(device):
        yield
        return
    before = parameter.device
    try:
        model.to(device)
        yield
    finally:
        model.to(before)


@contextlib.contextmanager
def replaced_forwards(
    modules: Mapping[str, nn.Module], stand_in: Callable[[str, Forward], Forward]
) -> Iterator[None]:
    """Give each module a stand-in for `forward` and take it away again, whatever happens."""
    before = {name: module.__dict__.get("forward") for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.__dict__["forward"] = stand_in(name, module.forward)
        yield
    finally:
        for name, module in modules.items():
            earlier = before[name]
            if earlier is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = earlier


def call_model(model: nn.Module, batch: Batch) -> Any:
    """Run the model on a batch; what it raises is told with the shapes it was given."""
    try:
        return model(*batch.args, **batch.kwargs)
    except (StopReplay, NeurographError):
        raise
    except Exception as error:
        raise ModelError(
            f"the model raised {type(error).__name__} on inputs of shape "
            f"{describe_shapes(batch)}: {error}"
        ) from error


def _clone(value: Any) -> Any:
    """Copy nested tensors, so that in-place glue cannot reach what is remembered."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value)


def input_tensors(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Name the model's input tensors: `input` if there is one, else `input.ARGUMENT`."""
    names = list(inspect.signature(model.forward).parameters)
    named = [(names[i] if i < len(names) else str(i), arg) for i, arg in enumerate(batch.args)]
    found: list[tuple[str, Tensor]] = []
    for name, value in [*named, *batch.kwargs.items()]:
        tensors = [t for t in iter_tensors(value) if t.dim() > 0]
        suffixes = [""] if len(tensors) == 1 else [f".{i}" for i in range(len(tensors))]
        found += [(name + suffix, t) for suffix, t in zip(suffixes, tensors, strict=True)]
    if len(found) == 1:
        return {"input": found[0][1]}
    return {f"input.{name}": tensor for name, tensor in found}


def observe(
    model: nn.Module, batch: Batch, visit: Callable[[str, str, Any, Any], None]
) -> tuple[Any, frozenset[str]]:
    """Run the model for real and show every layer call to `visit`.

    `visit(name, module, arguments, output)` is called after each call of a module that owns
    parameters and called no other owner inside.

    Returns
    -------
    output : nested tensors
        The model's own.
    containers : frozenset of str
        Modules that own parameters but called other owners inside: not layers.
    """
    containers: set[str] = set()
    calls: Counter[str] = Counter()
    running: list[str] = []

    def stand_in(path: str, forward: Forward) -> Forward:
        def observed(*args: Any, **kwargs: Any) -> Any:
            containers.update(running)
            running.append(path)
            try:
                output = forward(*args, **kwargs)
            finally:
                running.pop()
            if path not in containers:
                visit(call_name(path, calls), path, (args, kwargs), output)
            return output

        return observed

    with replaced_forwards(find_owners(model), stand_in):
        output = call_model(model, batch)
    return output, frozenset(containers)


def call_name(path: str, calls: Counter[str]) -> str:
    """Count a call of a module and name it: `cell`, then `cell#1` and so on."""
    calls[path] += 1
    name = path or "model"
    return name if calls[path] == 1 else f"{name}#{calls[path] - 1}"


def _describe(name: str, path: str, module: nn.Module, output: Any) -> Layer:
    tensor = main_tensor(output)
    neurons, dim = 0, 0
    shape: tuple[int, ...] = ()
    if tensor is not None and tensor.dim() > 1:
        dim = channel_dim(module, tensor)
        neurons, shape = int(tensor.shape[dim]), tuple(tensor.shape[1:])
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    return Layer(name, path, type(module).__name__, shape, dim, neurons, parameters)


def _describe_input(name: str, tensor: Tensor, convolved: set[tuple[int, ...]]) -> Layer:
    """Neurons of an input: channels where a convolution takes it as it is, else features."""
    shape = tuple(tensor.shape[1:])
    dim = 1 if shape in convolved else tensor.dim() - 1
    neurons = int(tensor.shape[dim]) if dim > 0 and tensor.is_floating_point() else 0
    return Layer(name, "", INPUT_TYPE, shape, dim, neurons, 0)


def capture(model: nn.Module, batch: Batch) -> Recording:
    """Run the model on a batch and record what every layer returned.

    Raises
    ------
    ModelError
        The model is of a kind that cannot be replayed, raised, or has no layers.
    """
    refuse_unsupported(model)
    modules = dict(model.named_modules())
    layers: dict[str, Layer] = {}
    outputs: dict[str, Any] = {}
    convolved: set[tuple[int, ...]] = set()

    def visit(name: str, path: str, arguments: Any, output: Any) -> None:
        layers[name] = _describe(name, path, modules[path], output)
        outputs[name] = _clone(output)
        if is_convolution(modules[path]):
            convolved.update(tuple(t.shape[1:]) for t in iter_tensors(arguments))

    with undisturbed(model):
        inputs = {k: v.clone() for k, v in input_tensors(model, batch).items()}
        output, containers = observe(model, batch.map(torch.clone), visit)
        output = _clone(output)
    layers = {n: layer for n, layer in layers.items() if layer.module not in containers}
    if not layers:
        raise ModelError("the model called no module that owns parameters: nothing to search")
    described = {n: _describe_input(n, t, convolved) for n, t in inputs.items()}
    recorded = inputs | {n: outputs[n] for n in layers}
    return Recording(described | layers, recorded, batch, output, batch.size)
