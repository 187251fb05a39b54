"""Forward hooks: what passes through layers while a model runs, seen and changed."""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.errors import DataError, OptionError
from neurograph.model.batch import Batch
from neurograph.model.layer_choice import INPUT_SIDE
from neurograph.model.observe import call_name, input_name, input_tensors
from neurograph.utils.nested import flatten, leaf_names, main_index

__all__ = ["HookLog", "HookPoint", "find_hook_point", "passing", "unknown_layer"]

Change = Callable[[str, Tensor], Tensor]
"""``change(layer, tensor)`` gives what passes on; it must leave the tensor itself as it is."""


@dataclass(frozen=True)
class HookPoint:
    """Where a layer's tensor can be caught.

    Attributes
    ----------
    layer : str
        The layer's name.
    path : str or None
        The module's; None for an input of the model.
    call : str
        The call it belongs to, as `call_name` counts them.
    part : str or None
        Keys of the tensor among those that the call returns; None for the first.
    side : bool
        Whether it is what arrives at the call.
    """

    layer: str
    path: str | None
    call: str
    part: str | None = None
    side: bool = False


@dataclass
class HookLog:
    """What hooks have met so far.

    Attributes
    ----------
    met : set of str
        Layers that something passed through.
    runs : int
        How often the model was called.
    size : int or None
        Samples of the model's present batch; None where only parts of the model were run.
    """

    met: set[str] = field(default_factory=set)
    runs: int = 0
    size: int | None = None


def find_hook_point(layer: str, model: nn.Module) -> HookPoint:
    """Find where a layer's tensor can be caught, by the layer's name alone.

    Raises
    ------
    OptionError
        The model has no such module.

    Examples
    --------
    >>> find_hook_point("1#2:input", nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    HookPoint(layer='1#2:input', path='1', call='1#2', part=None, side=True)
    """
    modules = dict(model.named_modules())
    first = input_name(model)
    if layer == first or layer.startswith(f"{first}."):
        return HookPoint(layer, None, layer)
    call, _, part = layer.partition(":")
    name, _, number = call.partition("#")
    # The model itself is called so where no module has taken the name.
    path = "" if name == "model" and name not in modules else name
    if not name or path not in modules or (number and not number.isdecimal()):
        raise unknown_layer(layer, modules)
    side = f":{part}" == INPUT_SIDE
    return HookPoint(layer, path, call, None if side else part or None, side)


def unknown_layer(layer: object, known: Iterable[str]) -> OptionError:
    """Say that there is no such layer, and which names are near."""
    names = [name for name in known if name]
    near = difflib.get_close_matches(str(layer), names, n=3, cutoff=0.3) or names[:3]
    return OptionError(f"neurons: the model has no layer {layer!r}; near it are {', '.join(near)}")


@contextlib.contextmanager
def passing(model: nn.Module, places: Iterable[HookPoint], change: Change) -> Iterator[HookLog]:
    """Let `change` see and replace what passes through layers, for the length of a block.

    Calls are counted from each call of the model. PyTorch's fused transformer kernels are off
    meanwhile: they take the layers' weights without calling the layers.

    Parameters
    ----------
    model : Module
    places : iterable of HookPoint
    change : callable
        From a layer's name and its tensor, as the model laid it out, to what passes on.
    """
    hooks = _Hooks(model, list(places), change)
    fused = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(model.register_forward_pre_hook(hooks.start, with_kwargs=True).remove)
        modules = dict(model.named_modules())
        for path in dict.fromkeys(p.path for p in hooks.places if p.path is not None):
            module = modules[path]
            before = module.register_forward_pre_hook(hooks.before(path), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(hooks.after(path)).remove)
        stack.callback(model.register_forward_hook(hooks.end).remove)
        yield hooks.log


class _Hooks:
    """The hooks of one block, and the calls they have counted."""

    def __init__(self, model: nn.Module, places: list[HookPoint], change: Change) -> None:
        self.model, self.places, self.change = model, places, change
        self.log = HookLog()
        self.inputs = {place.layer for place in places if place.path is None}
        self.by_call: dict[tuple[str, bool], list[HookPoint]] = defaultdict(list)
        for place in places:
            self.by_call[place.call, place.side].append(place)
        self._counts: Counter[str] = Counter()
        self._running: dict[str, str] = {}

    def start(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Count from the start, and change the model's inputs."""
        self._counts.clear()
        self.log.runs += 1
        batch = Batch(args, kwargs)
        try:
            self.log.size = batch.size
        except DataError:
            self.log.size = None
        if not self.inputs:
            return None
        names = iter(input_tensors(self.model, batch))

        def changed(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.dim():
                return leaf
            name = next(names)
            return self._pass(name, leaf) if name in self.inputs else leaf

        return _each_argument(args, kwargs, changed)

    def end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Count from the start again: a checkpointed module is called once more afterwards."""
        self._counts.clear()

    def before(self, path: str) -> Callable[..., Any]:
        """Make the pre-hook that counts calls of a module and changes what arrives."""

        def arriving(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            call = self._running[path] = call_name(path, self._counts)
            places = list(self.by_call.get((call, True), ()))

            def changed(leaf: Any) -> Any:
                if places and isinstance(leaf, Tensor) and leaf.is_floating_point():
                    return self._pass(places.pop().layer, leaf)
                return leaf

            return _each_argument(args, kwargs, changed) if places else None

        return arriving

    def after(self, path: str) -> Callable[..., Any]:
        """Make the hook that changes what a module returned."""

        def returned(_module: nn.Module, _args: Any, output: Any) -> Any:
            places = self.by_call.get((self._running[path], False))
            if not places:
                return None
            leaves, rebuild = flatten(output)
            for place in places:
                index = _leaf(place, output, leaves)
                leaves[index] = self._pass(place.layer, leaves[index])
            return rebuild(leaves)

        return returned

    def _pass(self, layer: str, tensor: Tensor) -> Tensor:
        self.log.met.add(layer)
        return self.change(layer, tensor)


def _leaf(place: HookPoint, output: Any, leaves: list[Any]) -> int:
    """Which leaf of what a call returned a place means."""
    names = leaf_names(output)
    if place.part is None:
        index = main_index(leaves)
    else:
        index = names.index(place.part) if place.part in names else None
    if index is None or main_index([leaves[index]]) is None:
        raise unknown_layer(place.layer, [f"{place.call}:{name}" for name in names])
    return index


def _each_argument(args: Any, kwargs: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a function to the leaves of all arguments.

    Those in which nothing changes are passed on as they are: a cache that the model writes to
    must stay the same object.
    """

    def argument(value: Any) -> Any:
        leaves, rebuild = flatten(value)
        new = [change(leaf) for leaf in leaves]
        same = all(a is b for a, b in zip(new, leaves, strict=True))
        return value if same else rebuild(new)

    return tuple(map(argument, args)), {name: argument(value) for name, value in kwargs.items()}
