"""Glue that treats every element alike, written down as the operations that really ran.

Between most neighbouring layers stands an activation and nothing else. Where that is so, what
one moved neuron does to its reader can be computed for that neuron alone. It is established by
watching the operations while the model runs, never by reading its code: a chain holds only
operations that PyTorch itself tags as pointwise, each with a single tensor operand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from neurograph.errors import ModelError
from neurograph.nested import iter_tensors
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording
from neurograph.replay.replay import Replay
from neurograph.sites import INPUT_SIDE

__all__ = ["Chain", "find_chains", "find_output_chain", "is_plain_linear"]

_ATEN = torch.ops.aten
_RENAMES = {_ATEN.detach.default, _ATEN.alias.default}
_RESHAPES = {_ATEN.view.default, _ATEN._unsafe_view.default}
_READS = {_ATEN._local_scalar_dense.default, _ATEN.equal.default}
_ROWS = slice(0, 2)


@dataclass(frozen=True)
class Chain:
    """Pointwise operations, applied one after the other.

    Attributes
    ----------
    steps : tuple of (operation, arguments, keyword arguments)
        Each operation takes the running tensor first, then these.
    """

    steps: tuple[tuple[Any, tuple[Any, ...], tuple[tuple[str, Any], ...]], ...] = ()

    def __str__(self) -> str:
        names = [getattr(op, "__name__", str(op)).split(".")[0] for op, _, _ in self.steps]
        return " → ".join(names) or "identity"

    def __call__(self, values: Tensor) -> Tensor:
        """Apply to values of any shape; the argument may be overwritten."""
        for op, args, kwargs in self.steps:
            values = op(values, *args, **dict(kwargs))
        return values

    def then(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Chain:
        """Return the chain with one more observed operation."""
        op = _in_place(func) or func
        return Chain((*self.steps, (op, args, tuple(kwargs.items()))))


def _in_place(func: Any) -> Any | None:
    """Find the in-place twin of an operation, which saves a copy of a large batch."""
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    packet = getattr(_ATEN, f"{name}_", None)
    return getattr(packet, func._overloadname, None) if packet is not None else None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow tensors through pointwise operations from the layers that returned them."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = recording.layers
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.found: dict[tuple[str, str], Chain] = {}
        self.data_dependent = False
        self.read = False  # whether a number was taken out of a tensor that moves
        self._moving: dict[int, Any] = {}  # memory that moved layers reach; held, so never reused

    def hear(self, event: str, name: str, value: Any) -> None:
        layer = self.layers.get(name)
        if event == "returned":
            if isinstance(value, Tensor) and layer is not None and layer.layout.plain:
                self.known[value] = (name, Chain())
            self._mark(tensor for tensor in iter_tensors(value) if tensor.is_floating_point())
        elif event == "arrived":
            args, kwargs = value
            if len(args) == 1 and not kwargs and args[0] in self.known:
                writer, chain = self.known[args[0]]
                self.found[writer, name] = chain

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        origin = self._origin(func, args, kwargs)
        moving = any(map(self._moves, iter_tensors((args, kwargs))))
        result = func(*args, **kwargs)
        if moving and func in _READS:
            self.read = True
        elif moving:
            self._mark(iter_tensors(result))
        if func._schema.is_mutable:
            self._forget_shared(args)
        if origin is not None and isinstance(result, Tensor) and self._is_like(result, origin[2]):
            writer, chain, _ = origin
            if func not in _RENAMES | _RESHAPES:
                chain = chain.then(func, args[1:], kwargs)
            self.known[result] = (writer, chain)
        return result

    def _mark(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._moving[storage.data_ptr()] = storage

    def _moves(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._moving

    def _origin(self, func: Any, args: Any, kwargs: Any) -> tuple[str, Chain, Any] | None:
        """Say where the operand comes from, if the operation is pointwise in it alone."""
        tensors = list(iter_tensors((args, kwargs)))
        if len(tensors) != 1 or not args or args[0] is not tensors[0]:
            return None
        pointwise = torch.Tag.pointwise in func.tags
        random = torch.Tag.nondeterministic_seeded in func.tags
        if (not pointwise and func not in _RENAMES | _RESHAPES) or random:
            return None
        if args[0] not in self.known:
            return None
        return (*self.known[args[0]], (args[0].shape, args[0].dtype))

    @staticmethod
    def _is_like(result: Tensor, operand: Any) -> bool:
        return bool((result.shape, result.dtype) == operand)

    def _forget_shared(self, args: Any) -> None:
        """Forget every tensor whose memory an in-place operation may have written."""
        written = {x.untyped_storage().data_ptr() for x in iter_tensors(args)}
        for tensor in list(self.known):
            if tensor.untyped_storage().data_ptr() in written:
                del self.known[tensor]


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes `x @ weight.T + bias` and nothing else."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) is nn.Linear and not hooked and not parametrize.is_parametrized(module)


def find_chains(
    replay: Replay, serves: Callable[[nn.Module], bool] = is_plain_linear
) -> dict[tuple[str, str], Chain]:
    """Chains from each layer to each layer of some kind that reads it and nothing else."""
    modules = dict(replay.model.named_modules())
    layers = replay.recording.layers
    watch = _Watch(replay.recording)
    with watch, contextlib.suppress(ModelError):
        watch.data_dependent = True  # unless few samples go the same way through the model
        replay.run(Plan(frozen=frozenset(layers)), listen=watch.hear, samples=_ROWS)
        watch.data_dependent = watch.read
    if watch.data_dependent:
        # A number taken out of a tensor is one for the whole batch: interventions cannot share.
        replay.one_by_one = True
        return {}
    return {
        (writer, reader): chain
        for (writer, reader), chain in watch.found.items()
        if not reader.endswith(INPUT_SIDE)
        and serves(modules[layers[reader].module])
        and layers[reader].layout.plain
    }


def find_output_chain(
    replay: Replay, read: Callable[[Any], Tensor]
) -> tuple[str, Chain] | tuple[None, None]:
    """Find the layer that a part of the model's output is made of by a chain, and that chain.

    `read` takes the part, a tensor, out of what the model returns. None where there is no such
    layer: several layers have a share, or something else than a chain stands between.
    """
    watch = _Watch(replay.recording)
    with watch, contextlib.suppress(ModelError):
        plan = Plan(frozen=frozenset(replay.recording.layers))
        output = read(replay.run(plan, listen=watch.hear, samples=_ROWS).output)
        if not watch.read and output in watch.known:
            found: tuple[str, Chain] = watch.known[output]
            return found
    return None, None
