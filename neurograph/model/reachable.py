"""What can be reached from a model and changed by a run, and how each kind of it is kept."""

from __future__ import annotations

import collections
import functools
import operator
import random
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "GENERATORS",
    "ROOM",
    "AttributePath",
    "Kept",
    "KeptGenerator",
    "KeptTensor",
    "Reached",
    "reachable",
]

ROOM = 2**26  # bytes of all copies that are made in any case
_MISSING = object()

AttributePath = tuple[Any, ...]

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device})
_ATOMS = (type, range, slice, torch.Size, np.generic, np.dtype, types.ModuleType)
# Threads and files change these themselves, or they are not the model's.
_FOREIGN = frozenset(
    "neurograph lightning pytorch_lightning lightning_fabric logging threading _thread queue io "
    "_io weakref multiprocessing concurrent asyncio tensorboard matplotlib pandas tqdm rich".split()
)
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_SHARED = (dict, list, set, collections.deque, bytearray, Tensor, np.ndarray, *GENERATORS)


# -- how each kind of thing is kept ----------------------------------------------------------------


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return all(map(operator.is_, a, b))
    return a is b


def _write_list(thing: Any, items: list[Any]) -> None:
    thing[:] = items


def _write_bag(thing: Any, items: list[Any]) -> None:
    thing.clear()
    getattr(thing, "extend" if isinstance(thing, collections.deque) else "update")(items)


def _read_slots(thing: Any) -> list[Any]:
    names = (vars(cls).get("__slots__", ()) for cls in type(thing).__mro__)
    every = [name for n in names for name in ((n,) if isinstance(n, str) else n)]
    known = [name for name in every if name not in ("__dict__", "__weakref__")]
    return [(name, getattr(thing, name, _MISSING)) for name in known]


def _write_slots(thing: Any, items: list[Any]) -> None:
    for name, value in items:
        if value is not _MISSING:
            object.__setattr__(thing, name, value)
        elif hasattr(thing, name):
            object.__delattr__(thing, name)


def _read_class(cls: type) -> list[Any]:
    return [(k, v) for k, v in vars(cls).items() if not (k.startswith("__") or k == "_abc_impl")]


def _write_class(cls: type, items: list[Any]) -> None:
    before = dict(items)
    for name in [name for name, _ in _read_class(cls) if name not in before]:
        delattr(cls, name)
    for name, value in items:
        if vars(cls).get(name, _MISSING) is not value:
            setattr(cls, name, value)


def _read_array(array: np.ndarray) -> list[Any]:
    return [array.shape, array.tobytes()]


def _write_array(array: np.ndarray, saved: list[Any]) -> None:
    array[...] = np.frombuffer(saved[1], array.dtype).reshape(saved[0])


def _read_generator(thing: Any) -> list[Any]:
    if isinstance(thing, torch.Generator):
        return [bytes(thing.get_state().numpy())]
    if isinstance(thing, random.Random):
        return [thing.getstate()]
    if isinstance(thing, np.random.RandomState):
        return list(thing.get_state(legacy=True))
    return [thing.bit_generator.state]


def _write_generator(thing: Any, saved: list[Any]) -> None:
    if isinstance(thing, torch.Generator):
        thing.set_state(torch.frombuffer(bytearray(saved[0]), dtype=torch.uint8))
    elif isinstance(thing, random.Random):
        thing.setstate(saved[0])
    elif isinstance(thing, np.random.RandomState):
        thing.set_state(tuple(saved))
    else:
        thing.bit_generator.state = saved[0]


def _unequal(a: Any, b: Any) -> bool:
    """Whether parts of states differ, of which some are arrays."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() != b.keys() or any(_unequal(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return not np.array_equal(a, b)
    return bool(a != b)


class KeptThing:
    """One thing as it was, by what is read of it, and how that is written back.

    What is read is the same if it is the same objects; if `plain`, if the values are equal.
    """

    def __init__(
        self,
        read: Callable[[Any], list[Any]],
        write: Callable[[Any, list[Any]], None],
        thing: Any,
        *,
        plain: bool = False,
    ) -> None:
        self.thing, self.saved = thing, read(thing)
        self._read, self._write, self._plain = read, write, plain

    def changed(self) -> bool:
        now = self._read(self.thing)
        if self._plain:
            return any(map(_unequal, now, self.saved))
        return len(now) != len(self.saved) or not all(map(_identical, now, self.saved))

    def restore(self) -> None:
        self._write(self.thing, self.saved)


class _KeptDict:
    """A dict as it was, compared quickly: there are many in every module.

    By the methods of dicts, not by those of its own class, which may compute or refuse.
    """

    def __init__(self, thing: dict[Any, Any]) -> None:
        ordered = isinstance(thing, collections.OrderedDict)
        self.thing, self.own = thing, collections.OrderedDict if ordered else dict
        self.keys, self.values = list(self.own.keys(thing)), list(self.own.values(thing))

    def changed(self) -> bool:
        if len(self.thing) != len(self.keys):
            return True
        kept = all(map(operator.is_, self.own.values(self.thing), self.values))
        return not (kept and all(map(operator.is_, self.own.keys(self.thing), self.keys)))

    def restore(self) -> None:
        self.own.clear(self.thing)
        for key, value in zip(self.keys, self.values, strict=True):
            self.own.__setitem__(self.thing, key, value)


class KeptTensor:
    """A tensor as it was; its numbers only once `copy` was called."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.alias = tensor.detach()  # holds the storage, should the tensor get another
        self.content: Tensor | None = None
        self.where, self.needs, self.grad = _where(tensor), tensor.requires_grad, _grad(tensor)

    @property
    def size(self) -> int:
        """Bytes of a copy."""
        alias = self.alias
        count = alias.numel() if alias.layout == torch.strided else alias._nnz()
        return count * alias.element_size()

    def copy(self) -> None:
        """Copy the numbers, unless that was done or there are none in memory."""
        if self.content is None and not self.alias.is_meta:
            self.content = self.alias.clone()

    def changed(self) -> bool:
        """Whether anything of it is otherwise now, of the numbers only if they were copied."""
        tensor = self.tensor
        if tensor.requires_grad != self.needs or _grad(tensor) is not self.grad:
            return True
        return _where(tensor) != self.where or not self._same_content()

    @property
    def _written(self) -> Tensor:
        """Where runs write to: operators give sparse tensors new numbers, aliases do not follow."""
        return self.tensor.detach() if self.alias.layout != torch.strided else self.alias

    def _same_content(self) -> bool:
        return self.content is None or torch.equal(_bytes(self._written), _bytes(self.content))

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back, without a trace for autograd."""
        tensor = self.tensor
        if self.content is not None and not self._same_content():
            into = self.tensor if self.alias.layout != torch.strided else self.alias.data
            into.copy_(self.content)
        if _where(tensor) != self.where:
            tensor.data = self.alias
        if tensor.is_leaf:
            if tensor.requires_grad != self.needs:
                tensor.requires_grad_(self.needs)
            tensor.grad = self.grad


def _grad(tensor: Tensor) -> Tensor | None:
    return tensor.grad if tensor.is_leaf else None


def _where(tensor: Tensor) -> Any:
    """Where a tensor's numbers lie; None for tensors that are not plain numbers in memory."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return None
    try:
        return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
    except RuntimeError:
        return None


def _bytes(tensor: Tensor) -> Tensor:
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return tensor.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)


Kept = KeptThing | _KeptDict | KeptTensor

_LIST = functools.partial(KeptThing, list, _write_list)
_BAG = functools.partial(KeptThing, list, _write_bag)
_SLOTS = functools.partial(KeptThing, _read_slots, _write_slots)
_CLASS = functools.partial(KeptThing, _read_class, _write_class)
_ARRAY = functools.partial(KeptThing, _read_array, _write_array, plain=True)
KeptGenerator = functools.partial(KeptThing, _read_generator, _write_generator, plain=True)


# -- what is reachable -----------------------------------------------------------------------------

Reached = tuple[AttributePath, Callable[[Any], Kept], Any]


def reachable(model: nn.Module) -> list[Reached]:
    """Everything a run could change that can be reached from a module, with the way to it."""
    places: list[Reached] = []
    seen: dict[int, Any] = {}
    stack: list[tuple[AttributePath, Any]] = [((), model)]
    while stack:
        path, thing = stack.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        kinds, children = _look(thing)
        if path and str(path[-1]).startswith("_") and "_hooks" in str(path[-1]):
            children = ()  # what hooks gather is their owner's
        places += [(path, kind, part) for kind, part in kinds]
        stack += [((*path, k), x) for k, x in children if type(x) not in _PLAIN]
    return places


_Looked = tuple[list[tuple[Callable[[Any], Kept], Any]], Iterable[tuple[Any, Any]]]


def _look(thing: Any) -> _Looked:
    """How a thing is kept, and what can be reached from it."""
    if isinstance(thing, nn.Module):
        return _look_inside(thing)
    if isinstance(thing, dict):
        return [(_KeptDict, thing), *_attributes(thing)], list(dict.items(thing))
    if isinstance(thing, Tensor):
        return [(KeptTensor, thing), *_attributes(thing)], ()
    if isinstance(thing, (list, tuple, collections.deque)):
        kind = _LIST if isinstance(thing, list) else _BAG
        return [] if isinstance(thing, tuple) else [(kind, thing)], enumerate(thing)
    if isinstance(thing, (set, bytearray)):
        return [(_BAG if isinstance(thing, set) else _LIST, thing)], ()
    if isinstance(thing, np.ndarray):
        fits = thing.flags.writeable and not thing.dtype.hasobject and thing.nbytes <= ROOM
        return [(_ARRAY, thing)] if fits else [], ()
    if isinstance(thing, GENERATORS):
        return [(KeptGenerator, thing), *_attributes(thing)], ()
    if isinstance(thing, types.FunctionType):
        return [], ()  # what it keeps in a closure is its own
    if isinstance(thing, types.MethodType):
        return [], [("self", thing.__self__), ("function", thing.__func__)]
    if isinstance(thing, functools.partial):
        return [], enumerate((thing.func, thing.args, thing.keywords))
    return _look_inside(thing)


def _look_inside(thing: Any) -> _Looked:
    """An object of a class of its own: attributes, slots, and what its classes share."""
    if isinstance(thing, _ATOMS) or (_is_foreign(type(thing)) and not isinstance(thing, nn.Module)):
        return [], ()
    kinds, children = _attributes(thing), list(getattr(thing, "__dict__", {}).items())
    slots = _read_slots(thing)
    if slots:
        kinds.append((_SLOTS, thing))
        children += slots
    if isinstance(thing, nn.Module):
        for cls in type(thing).__mro__[: type(thing).__mro__.index(nn.Module)]:
            if not cls.__module__.startswith("torch."):
                kinds.append((_CLASS, cls))
                children += [(k, v) for k, v in _read_class(cls) if isinstance(v, _SHARED)]
    return kinds, children


def _attributes(thing: Any) -> list[tuple[Callable[[Any], Kept], Any]]:
    own = getattr(thing, "__dict__", None)
    return (
        [(_KeptDict, own)]
        if isinstance(own, dict) and (own or isinstance(thing, nn.Module))
        else []
    )


def _is_foreign(thing: Any) -> bool:
    module = str(getattr(thing, "__module__", ""))
    return module.partition(".")[0] in _FOREIGN or module.startswith("torch.utils.data")
