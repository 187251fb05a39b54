"""Which layers what arrives at each layer is made of, by the operations that ran.

A superset of who reads whom: a layer that is multiplied by 0 where it was looked at, or left out by
a mask, has a share in the result all the same, and a move elsewhere may open the way for it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from neurograph.errors import ModelError
from neurograph.replay.elementwise import Reads
from neurograph.replay.plan import Plan
from neurograph.replay.replay import Replay
from neurograph.utils.nested import flatten, iter_tensors, storages

__all__ = ["Foreign", "takes_shape_alone", "trace"]

_NOBODY: frozenset[str] = frozenset()
_SHAPED = {"empty_strided", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros"}


def takes_shape_alone(func: Any) -> bool:
    """Whether what an operation returns holds nothing of its tensor but the shape."""
    name = func._schema.name.removeprefix("aten::")
    return name in _SHAPED or name.endswith("_like")


class Foreign:
    """The tensors that modules hold as weights and buffers while they run, where others than usual.

    Weights that a forward swaps arrive at a layer like its arguments do.

    Parameters
    ----------
    model : Module
        As it is when nothing runs.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._usual = {path: _places(module) for path, module in self._modules.items()}

    def of(self, path: str) -> list[torch.Tensor]:
        """Weights and buffers of a module, and of those inside it, that are not its usual ones."""
        module = self._modules.get(path)
        if module is None:
            return []
        usual, tensors = self._usual[path], _tensors(module)
        return [t for name, t in tensors.items() if _place(t) != usual.get(name)]


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _places(module: nn.Module) -> dict[str, Any]:
    return {name: _place(tensor) for name, tensor in _tensors(module).items()}


def _place(tensor: torch.Tensor) -> Any:
    return [storage.data_ptr() for storage in storages(tensor)]


def trace(replay: Replay, samples: slice = slice(None)) -> dict[str, frozenset[str]]:
    """Layers that have a share in what arrives at each call, with the rest frozen.

    Parameters
    ----------
    replay : Replay
        Open.
    samples : slice
        Which of the recorded samples are run.

    Returns
    -------
    dict of str to frozenset of str
        By call; what leaves the model has the empty name. Empty if the model cannot be run so.
    """
    shares = _Shares(replay)
    with shares, Reads(shares.taken), contextlib.suppress(ModelError):
        plan = Plan(frozen=frozenset(replay.recording.layers))
        output = replay.run(plan, samples=samples, listen=shares.hear).output
        shares.hear("arrived", "", output)
        return dict(shares.arrived)
    return {}


class _Shares(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow every layer through all operations, by the memory that its values get into."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = replay.recording
        self.foreign = Foreign(replay.model)
        self.arrived: dict[str, frozenset[str]] = defaultdict(frozenset)
        self._shares: dict[int, frozenset[str]] = {}
        self._held: dict[int, Any] = {}  # so that no memory is used twice
        self._chosen: frozenset[str] = _NOBODY  # layers that decided what is run
        self._moving = {name for name, layer in self.recording.layers.items() if layer.neurons}

    def hear(self, event: str, name: str, value: Any) -> None:
        if event == "returned":
            leaves, _ = flatten(value)
            for layer in self.recording.by_call.get(name, ()):
                self._give(leaves[layer.leaf], frozenset({layer.name}))
            return
        layers = self.recording.by_call.get(name, ())
        foreign = self.foreign.of(layers[0].module) if layers and layers[0].module else []
        self.arrived[name] |= self._of((value, foreign)) | self._chosen

    def taken(self, arguments: Any) -> None:
        """Note that values of tensors left for Python: what they decide cannot be followed."""
        self._chosen |= self._of(arguments) & self._moving

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        shares = self._of((args, kwargs))
        result = func(*args, **kwargs)
        if takes_shape_alone(func):
            shares = _NOBODY
        if torch.Tag.data_dependent_output in func.tags or self._sized(func, args):
            self._chosen |= shares & self._moving
        if func._schema.is_mutable:
            named = zip(func._schema.arguments, args, strict=False)
            written = [x for a, x in named if a.alias_info is not None and a.alias_info.is_write]
            written += [
                kwargs[a.name]
                for a in func._schema.arguments
                if a.name in kwargs and a.alias_info is not None and a.alias_info.is_write
            ]
            self._give(written, shares)
        self._give(result, shares)
        return result

    @staticmethod
    def _sized(func: Any, args: tuple[Any, ...]) -> bool:
        """Whether an operation returns as many elements as values say."""
        if torch.Tag.dynamic_output_shape not in func.tags:
            return False
        indexed = func._schema.name.startswith("aten::index")
        return not indexed or any(
            t.dtype in (torch.bool, torch.uint8) for t in iter_tensors(list(args[1:]))
        )

    def _of(self, tree: Any) -> frozenset[str]:
        found = [self._shares.get(storage._cdata, _NOBODY) for storage in storages(tree)]
        return frozenset().union(*found)

    def _give(self, tree: Any, shares: frozenset[str]) -> None:
        if not shares:
            return
        for storage in storages(tree):
            self._held[storage._cdata] = storage
            self._shares[storage._cdata] = self._shares.get(storage._cdata, _NOBODY) | shares
