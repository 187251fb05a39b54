"""Run a model as it is and watch its layers, leaving it as it was found.

This is the only file that touches `Module.forward`: `replaced_forwards` lends modules a
stand-in for the length of a block, for watching here and for replaying in `replay.py`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.checks import shown
from neurograph.data import Batch, describe_shapes
from neurograph.errors import ModelError, NeurographError, OptionError
from neurograph.layers import main_index
from neurograph.nested import flatten, iter_tensors
from neurograph.sites import INPUT_SIDE, Sites

__all__ = [
    "Forward",
    "Observed",
    "StopReplay",
    "call_model",
    "call_name",
    "input_name",
    "input_tensors",
    "main_argument",
    "observe",
    "placed",
    "replaced_forwards",
    "undisturbed",
    "without_parameter_gradients",
]

Forward = Callable[..., Any]

Visit = Callable[[str, str, Any, Any], None]
"""``visit(call, path, arguments, output)``, after each call of a recorded module."""


class StopReplay(Exception):
    """Raised inside a replay once everything asked for is known; caught by the replay."""


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients; restore modes, buffers and random state after.

    PyTorch's fused transformer kernels are off meanwhile: they take the layers' weights without
    calling the layers. So are the caches of text generation, which a model would return.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    fused = torch.backends.mha.get_fastpath_enabled()
    caching = [
        config
        for config in {id(c): c for c in map(_config_of, model.modules()) if c is not None}.values()
        if getattr(config, "use_cache", False)
    ]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            for config in caching:
                config.use_cache = False
            yield
        finally:
            for config in caching:
                config.use_cache = True
            torch.backends.mha.set_fastpath_enabled(fused)
            for module, training in modes:
                module.training = training
            for buffer, before in buffers:
                if buffer.shape != before.shape or not torch.equal(buffer, before):
                    buffer.data.copy_(before)


def _config_of(module: nn.Module) -> Any:
    return module.__dict__.get("config")


@contextlib.contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """Keep autograd from remembering what the gradients of weights would need."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        # cuDNN's recurrent kernels have no backward pass in eval mode.
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def placed(model: nn.Module, device: torch.device | str | None) -> Iterator[None]:
    """Put a model on a device for the length of a block, if one is named."""
    parameter = next(model.parameters(), None)
    if device is not None:
        try:
            torch.empty(0, device=device)
        except Exception as error:  # each backend has its own
            reason = " ".join(str(error).split())[:80]
            raise OptionError(f"device={shown(device)} cannot be used: {reason}") from error
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


def input_tensors(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Name the model's input tensors: `input` if there is one, else `input.ARGUMENT`.

    Where a module of the model is called so, they are `model:input` and `model:input.ARGUMENT`.
    """
    names = list(inspect.signature(model.forward).parameters)
    named = [(names[i] if i < len(names) else str(i), arg) for i, arg in enumerate(batch.args)]
    found: list[tuple[str, Tensor]] = []
    for name, value in [*named, *batch.kwargs.items()]:
        tensors = [t for t in iter_tensors(value) if t.dim() > 0]
        suffixes = [""] if len(tensors) == 1 else [f".{i}" for i in range(len(tensors))]
        found += [(name + suffix, t) for suffix, t in zip(suffixes, tensors, strict=True)]
    first = input_name(model)
    if len(found) == 1:
        return {first: found[0][1]}
    return {f"{first}.{name}": tensor for name, tensor in found}


def input_name(model: nn.Module) -> str:
    """What the model's input is called: `input`, or `model:input` where a module has that name."""
    return f"model{INPUT_SIDE}" if "input" in dict(model.named_children()) else "input"


def call_name(path: str, calls: Counter[str]) -> str:
    """Count a call of a module and name it: `cell`, then `cell#1` and so on."""
    calls[path] += 1
    name = path or "model"
    return name if calls[path] == 1 else f"{name}#{calls[path] - 1}"


def main_argument(arguments: Any) -> Tensor | None:
    """First floating-point tensor that a module is called with: its input side."""
    leaves, _ = flatten(arguments)
    index = main_index(leaves)
    return None if index is None else leaves[index]


@dataclass
class Observed:
    """What one real run showed besides its visits.

    Attributes
    ----------
    output : nested tensors
        The model's own.
    containers : set of str
        Recorded modules that called other recorded modules inside: not layers.
    running : list of str
        Recorded modules being called at the moment, the innermost last.
    """

    output: Any = None
    containers: set[str] = field(default_factory=set)
    running: list[str] = field(default_factory=list)


def observe(
    model: nn.Module,
    batch: Batch,
    sites: Sites,
    visit: Visit,
    inside: Callable[[Observed], contextlib.AbstractContextManager[Any]] | None = None,
) -> Observed:
    """Run the model for real and show every call of a recorded module to `visit`.

    Parameters
    ----------
    model : Module
    batch : Batch
    sites : Sites
        Which modules are recorded, on which side.
    visit : callable
        Called before a module runs for its input side, with the tensor that arrives, and after
        it ran for its output, unless it is a container.
    inside : callable, optional
        Makes a context to run in from what is being observed.
    """
    seen = Observed()
    calls: Counter[str] = Counter()

    def stand_in(path: str, forward: Forward) -> Forward:
        def observed(*args: Any, **kwargs: Any) -> Any:
            call = call_name(path, calls)
            if path in sites.inputs:
                arriving = main_argument((args, kwargs))
                if arriving is not None:
                    visit(call + INPUT_SIDE, path, ((arriving,), {}), arriving)
            if path not in sites.outputs:
                return forward(*args, **kwargs)
            seen.containers.update(seen.running)
            seen.running.append(path)
            try:
                output = forward(*args, **kwargs)
            finally:
                seen.running.pop()
            if path not in seen.containers:
                visit(call, path, (args, kwargs), output)
            return output

        return observed

    modules = dict(model.named_modules())
    recorded = {path: modules[path] for path in sites.paths}
    watching = contextlib.nullcontext() if inside is None else inside(seen)
    with replaced_forwards(recorded, stand_in), watching:
        seen.output = call_model(model, batch)
    return seen
