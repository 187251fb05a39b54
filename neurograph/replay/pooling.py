"""Whether a model takes something of all samples together and gives it to each, by its operations.

Company that makes no difference in the data may make one once something moves: a gate that opens
for all samples as soon as one of them passes a threshold. No comparison of numbers finds that for
sure, so the operations of one run are watched, whatever their values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from neurograph.errors import ModelError
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording
from neurograph.replay.replay import Replay
from neurograph.replay.trace import takes_shape_alone
from neurograph.utils.nested import iter_tensors

__all__ = ["pools_samples"]

_PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
_NUMBERS = 4  # of samples, to be sure
# What these give along a dimension, each of its places has from others.
_ALONG = {
    f"aten::{name}"
    for name in (
        "cumsum cumprod cummax cummin logcumsumexp sort argsort topk msort flip roll "
        "_softmax _log_softmax"
    ).split()
}


def pools_samples(replay: Replay) -> bool:
    """Whether something made of several samples reaches what the model makes of each.

    One sample is run so many times in a batch as no other dimension of the model can be divided
    by: that tells where samples lie in every tensor. What has no such dimension though it was
    made of what has one is *pooled*; where that meets samples again, they influence each other.
    Whole numbers are left out: counts and offsets say where things lie.

    Parameters
    ----------
    replay : Replay
        Open.
    """
    layers = replay.recording.layers
    inputs = frozenset(name for name, layer in layers.items() if layer.is_input)
    plan = Plan(live=frozenset(layers) - inputs, frozen=inputs)

    def found(count: int) -> bool:
        watch = _Pools(count)
        with watch, contextlib.suppress(ModelError):
            replay.run(plan, blocks=count, samples=slice(0, 1), listen=watch.hear)
        return watch.found

    # By other numbers too: glue may have dimensions, as of padded maps, that the first divide.
    return all(map(found, _counts(replay.recording)))


def _counts(recording: Recording) -> list[int]:
    """Some numbers of samples that divide no dimension of a row of any recorded tensor."""
    sizes = {size for call in recording.calls.values() for size in _sizes(call.leaves)}
    return [*(p for p in _PRIMES if all(size % p for size in sizes)), *_PRIMES[-1:]][:_NUMBERS]


def _sizes(leaves: Iterable[Any]) -> Iterable[int]:
    return (size for leaf in leaves if isinstance(leaf, Tensor) for size in leaf.shape[1:] if size)


class _Pools(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow what layers return, and what is made of all samples of it together."""

    def __init__(self, count: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = count
        self.found = False
        self._moving: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._pooled: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def hear(self, event: str, _name: str, value: Any) -> None:
        if event == "returned":
            for tensor in iter_tensors(value):
                if tensor.is_floating_point():
                    self._moving[tensor] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found or takes_shape_alone(func):
            return result
        given = list(iter_tensors((args, kwargs or {})))
        moving = [tensor for tensor in given if tensor in self._moving]
        pooled = any(tensor in self._pooled for tensor in moving)
        several = max(map(self._batched, moving), default=0)
        self.found |= bool(moving) and self._along(func, args, kwargs or {})
        for made in iter_tensors(result) if moving else ():
            if not (made.is_floating_point() or made.dtype == torch.bool):
                continue
            self._moving[made] = True
            batched = self._batched(made)
            self.found |= (pooled and batched > 0) or batched > max(1, several)
            if not batched and (pooled or several):
                self._pooled[made] = True
        return result

    def _along(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether an operation orders or adds up along samples."""
        if func._schema.name not in _ALONG:
            return False
        named = {a.name: x for a, x in zip(func._schema.arguments, args, strict=False)} | kwargs
        dims: Any = named.get("dims", named.get("dim", -1))
        tensor = args[0]
        places = [dims] if isinstance(dims, int) else list(dims)
        return any(tensor.dim() and tensor.shape[d] % self.count == 0 for d in places)

    def _batched(self, tensor: Tensor) -> int:
        """How many dimensions hold samples."""
        return sum(size > 0 and size % self.count == 0 for size in tensor.shape)
