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

from neurograph.errors import ModelError, NeurographError, OptionError
from neurograph.model.batch import Batch, describe_shapes
from neurograph.model.layer_choice import INPUT_SIDE, Sites
from neurograph.model.state import ALONE, Generators, KeptModel, keeping, without_trace
from neurograph.utils.checks import shown
from neurograph.utils.nested import flatten, iter_tensors, leaf_names, main_index, tree_map

__all__ = [
    "Forward",
    "Inside",
    "Observed",
    "StopReplay",
    "Visit",
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

Inside = Callable[["Observed"], contextlib.AbstractContextManager[Any]]
"""Makes a context to run in from what is being observed."""


class StopReplay(Exception):
    """Raised inside a replay once everything asked for is known; caught by the replay."""


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, shared: bool = False) -> Iterator[KeptModel]:
    """Run in eval mode without gradients; leave the model, and what is global, as they were.

    PyTorch's fused transformer kernels are off meanwhile: they take the layers' weights without
    calling the layers. So are the caches of text generation, which a model would return. Other
    threads that search wait.

    Parameters
    ----------
    model : Module
    shared : bool
        Whether such blocks inside this one leave it to this one to put back what runs change but
        were not seen to change; what they were seen to is put back after each.

    Yields
    ------
    KeptModel
        What is kept of the model.
    """
    with ALONE, _same_settings(), torch.no_grad(), keeping(model, shared=shared) as kept:
        torch.backends.mha.set_fastpath_enabled(False)
        with kept.guarded():  # some models merge weights when they go to eval mode
            try:
                model.eval()
            except NotImplementedError as error:
                raise ModelError(
                    "the model cannot be put in eval mode, as what torch.export makes cannot: pass "
                    "it as it was before"
                ) from error
        for module in model.modules():
            config = module.__dict__.get("config")
            if config is not None and getattr(config, "use_cache", False):
                config.use_cache = False
        yield kept


@contextlib.contextmanager
def _same_settings() -> Iterator[None]:
    """Restore PyTorch's settings and the state of the global random generators."""
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    fused, dtype = torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    generators = Generators()
    try:
        yield
    finally:
        generators.restore()
        torch.set_default_dtype(dtype)
        torch.backends.mha.set_fastpath_enabled(fused)
        for name, value in flags.items():
            if getattr(cudnn, name) != value:
                setattr(cudnn, name, value)


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
        if torch.device(device).type == "meta":
            raise OptionError("device='meta' holds no values: name one that computes, as 'cpu'")
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
    """Run the model on a copy of a batch; errors say what shapes that has.

    A copy, as models may write to what they are given. Inside `undisturbed`, what the run changes
    in the model is put back.
    """
    try:
        with without_trace(model):
            args, kwargs = tree_map(_copy, (batch.args, dict(batch.kwargs)))
            return model(*args, **kwargs)
    except (StopReplay, NeurographError):
        raise
    except Exception as error:
        reason, hint = str(error), ""
        if "does not require grad" in reason:
            hint = " (forward takes gradients of layers, which have none while they are held)"
        if type(error).__module__.startswith("torch._dynamo"):
            reason = reason.strip().splitlines()[0]
            hint = (
                " (forward compiles a part of itself, by torch.cond, scan or flex_attention: write "
                "it eagerly, as effects are measured by running what it is made of)"
            )
        raise ModelError(
            f"the model raised {type(error).__name__} on inputs of shape "
            f"{describe_shapes(batch)}: {reason}{hint}"
        ) from error


def not_replayed(error: ModelError) -> ModelError:
    """Say of what a model raised that it runs by itself."""
    return ModelError(
        "the model runs by itself but not where layers are given their outputs instead of being "
        f"run ({' '.join(str(error).split())}): does a module read what a layer leaves on itself "
        "or in a global? Pass it on by return, or choose a module around both in layers="
    )


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def input_tensors(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Name the model's input tensors: `input` if there is one, else `input.ARGUMENT`.

    Where a module of the model is called so, they are `model:input` and `model:input.ARGUMENT`.
    """
    names = list(inspect.signature(model.forward).parameters)
    named = [(names[i] if i < len(names) else str(i), arg) for i, arg in enumerate(batch.args)]
    found: list[tuple[str, Tensor]] = []
    for name, value in [*named, *batch.kwargs.items()]:
        leaves = zip(leaf_names(value), flatten(value)[0], strict=True)
        tensors = [(key, t) for key, t in leaves if isinstance(t, Tensor) and t.dim() > 0]
        alone = len(tensors) == 1
        found += [(name if alone else f"{name}.{key}", t) for key, t in tensors]
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
    inside: Inside | None = None,
    *,
    routed: bool = False,
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
    routed : bool
        Whether modules that run on some rows only are shown, too.
    """
    seen = Observed()
    calls: Counter[str] = Counter()
    outputs = sites.outputs | (sites.routed if routed else frozenset())

    def stand_in(path: str, forward: Forward) -> Forward:
        def observed(*args: Any, **kwargs: Any) -> Any:
            call = call_name(path, calls)
            _check_plain(call, (args, kwargs))
            if path in sites.inputs:
                arriving = main_argument((args, kwargs))
                if arriving is not None:
                    visit(call + INPUT_SIDE, path, ((arriving,), {}), arriving)
            if path not in outputs:
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


def _check_plain(call: str, arguments: Any) -> None:
    """ModelError where a layer runs inside a transform, whose tensors hold no numbers to record."""
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, iter_tensors(arguments))):
        raise ModelError(
            f"layer {call!r} is called inside a transform of torch.func (vmap, grad, jvp), where "
            "its numbers can be neither seen nor changed: call it on the whole batch outside the "
            "transform, or leave it out by layers="
        )
