"""Forward hooks for one call of a model: they keep what layers compute, and pass values on."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.model.layer_choice import INPUT_SIDE
from neurograph.model.layers import Layer
from neurograph.model.observe import call_name
from neurograph.utils.nested import flatten, iter_tensors, main_index

__all__ = ["Calls", "hooks"]


class Calls:
    """One call of a model under hooks.

    Parameters
    ----------
    forced : mapping of str to Tensor
        What these layers pass on, whatever they compute.
    read : collection of str
        Layers whose own result is kept, in `computed`.
    arrived : dict, optional
        Filled with the tensors that each call of a layer was given.
    """

    def __init__(
        self,
        forced: Mapping[str, Tensor],
        read: Collection[str],
        arrived: dict[str, list[Tensor]] | None,
    ) -> None:
        self.forced, self.read, self.arrived = forced, read, arrived
        self.wanted: dict[str, list[Layer]] = defaultdict(list)
        self.computed: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._running: dict[str, list[str]] = defaultdict(list)

    def passed(self, name: str, value: Tensor) -> Tensor:
        """Keep what a layer computed, and say what it passes on."""
        if name in self.read:
            self.computed[name] = value.clone()
        return self.forced[name].clone() if name in self.forced else value

    def _put(self, name: str, value: Tensor) -> Tensor:
        """Set what is forced of a layer that runs on some rows only, on whatever rows these are."""
        still = value.new_full(value.shape[-1:], torch.nan)  # what stays as computed
        row = self.passed(name, still).view(-1, len(still))[0]
        return torch.where(row.isnan(), value, row)

    def enter(self, path: str, args: Any, kwargs: Any) -> Any:
        """See what a module is given, and say what it is called with."""
        call = call_name(path, self._counts)
        self._running[path].append(call)
        arguments = args, kwargs
        if call + INPUT_SIDE in self.wanted:
            leaves, rebuild = flatten(arguments)
            main = main_index(leaves)
            if main is not None:
                arriving = leaves[main]
                if self.arrived is not None:
                    self.arrived[call + INPUT_SIDE] = [arriving.clone()]
                (layer,) = self.wanted[call + INPUT_SIDE]
                passed = self.passed(layer.name, arriving)
                arguments = rebuild([passed if leaf is arriving else leaf for leaf in leaves])
        if self.arrived is not None:
            self.arrived[call] = [t.clone() for t in iter_tensors(arguments)]
        return arguments

    def leave(self, path: str, output: Any) -> Any:
        """See what a module returned, and say what it passes on."""
        call = self._running[path].pop()
        own = self.wanted.get(path, ())
        call = path if any(layer.routed for layer in own) else call
        if call not in self.wanted:
            return output
        leaves, rebuild = flatten(output)
        for layer in self.wanted[call]:
            if layer.routed:
                main = main_index(leaves) or 0
                leaves[main] = self._put(layer.name, leaves[main])
            elif layer.leaf < len(leaves) and isinstance(leaves[layer.leaf], Tensor):
                leaves[layer.leaf] = self.passed(layer.name, leaves[layer.leaf])
        return rebuild(leaves)


@contextlib.contextmanager
def hooks(modules: Mapping[str, nn.Module], calls: Calls) -> Iterator[None]:
    """Hook modules for the length of a block: first behind them, last in front of them.

    So hooks of the user's own stand where they stand in the model: around its layers.
    """

    def before(path: str, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        return calls.enter(path, args, kwargs)

    def after(path: str, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        return calls.leave(path, output)

    with contextlib.ExitStack() as stack:
        for path, module in modules.items():
            enter, leave = functools.partial(before, path), functools.partial(after, path)
            hook = module.register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(hook.remove)
            hook = module.register_forward_hook(leave, with_kwargs=True, prepend=True)
            stack.callback(hook.remove)
        yield
