"""What runs change in a model, put back after each: no run sees what an earlier one left.

Everything reachable from a module is looked at when a block opens and when it closes. While it is
open, only what a run was seen to change is copied and put back, so that models without such state
pay nothing. Large tensors are copied at the moment when a run is about to write to them.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import operator
import random
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from neurograph.nested import iter_tensors

__all__ = ["Generators", "Kept", "keeping", "without_trace"]

_SMALL = 2**18  # bytes of a tensor that is copied in any case
_ROOM = 2**26  # bytes of all such copies
_MISSING = object()

Path = tuple[Any, ...]

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device})
_ATOMS = (type, range, slice, torch.Size, np.generic, np.dtype, types.ModuleType)
# Threads and files change these themselves, or they are not the model's.
_FOREIGN = frozenset(
    "neurograph lightning pytorch_lightning lightning_fabric logging threading _thread queue io "
    "_io weakref multiprocessing concurrent asyncio tensorboard matplotlib pandas tqdm rich".split()
)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_SHARED = (dict, list, set, collections.deque, bytearray, Tensor, np.ndarray, *_GENERATORS)


# -- how each kind of thing is kept ----------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """How a kind of thing is kept: what is read of it, and how that is written back."""

    read: Callable[[Any], list[Any]]
    write: Callable[[Any, list[Any]], None]
    plain: bool = False  # whether what is read compares by value


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


def _advance(thing: Any) -> None:
    """Let a generator go on, so that it draws other numbers than before."""
    if isinstance(thing, torch.Generator):
        torch.rand(999, generator=thing, device=thing.device)
    else:
        for _ in range(999):
            thing.random()


def _unequal(a: Any, b: Any) -> bool:
    """Whether parts of states differ, of which some are arrays."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() != b.keys() or any(_unequal(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return not np.array_equal(a, b)
    return bool(a != b)


_DICT = _Kind(list, _write_list)  # kept by `_KeptDict`
_LIST = _Kind(list, _write_list)
_BAG = _Kind(list, _write_bag)
_SLOTS = _Kind(_read_slots, _write_slots)
_CLASS = _Kind(_read_class, _write_class)
_ARRAY = _Kind(_read_array, _write_array, plain=True)
_GENERATOR = _Kind(_read_generator, _write_generator, plain=True)
_TENSOR = _Kind(list, _write_list)  # kept by `_KeptTensor`


class _KeptThing:
    """One thing that is no tensor, as it was."""

    def __init__(self, thing: Any, kind: _Kind) -> None:
        self.thing, self.kind = thing, kind
        self.saved = kind.read(thing)

    def changed(self) -> bool:
        now = self.kind.read(self.thing)
        if self.kind.plain:
            return any(map(_unequal, now, self.saved))
        return len(now) != len(self.saved) or not all(map(_identical, now, self.saved))

    def restore(self) -> None:
        self.kind.write(self.thing, self.saved)


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


class _KeptTensor:
    """A tensor as it was; of a large one the content only once `copy` was called."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.alias = tensor.detach()  # holds the storage, should the tensor get another
        self.content: Tensor | None = None
        self.where, self.needs, self.grad = _where(tensor), tensor.requires_grad, _grad(tensor)

    def copy(self) -> None:
        if self.content is None and self.where is not None:
            self.content = self.alias.clone()

    def changed(self) -> bool:
        tensor = self.tensor
        if tensor.requires_grad != self.needs or _grad(tensor) is not self.grad:
            return True
        return _where(tensor) != self.where or not self._same_content()

    def _same_content(self) -> bool:
        return self.content is None or torch.equal(_bytes(self.alias), _bytes(self.content))

    @torch.no_grad()
    def restore(self) -> None:
        tensor = self.tensor
        if not self._same_content() and self.content is not None:
            self.alias.data.copy_(self.content)
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
    return tensor.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)


# The methods of these modules are those of one generator each.
_PYTHON_GENERATORS: tuple[Any, ...] = (
    random.getstate.__self__,  # type: ignore[attr-defined]
    np.random.get_state.__self__,  # type: ignore[attr-defined]  # noqa: NPY002
)


def _torch_generators() -> list[torch.Generator]:
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *cuda]


class Generators:
    """The states of the global random generators: PyTorch's, Python's and NumPy's."""

    def __init__(self) -> None:
        self._torch = [_KeptThing(g, _GENERATOR) for g in _torch_generators()]
        self._python = [_KeptThing(g, _GENERATOR) for g in _PYTHON_GENERATORS]

    def torch_moved(self) -> bool:
        """Whether any of PyTorch's is in another state now."""
        return any(kept.changed() for kept in self._torch)

    def python_moved(self) -> list[bool]:
        """Whether Python's is in another state now, and whether NumPy's is."""
        return [kept.changed() for kept in self._python]

    def restore(self, *, python: bool = True) -> None:
        """Put PyTorch's back, and Python's and NumPy's besides unless told otherwise."""
        for kept in [*self._torch, *(self._python if python else ())]:
            kept.restore()


# -- what is reachable -----------------------------------------------------------------------------

_Place = tuple[Path, _Kind, Any]


def _reachable(model: nn.Module) -> list[_Place]:
    """Everything a run could change that can be reached from a module, with the way to it."""
    places: list[_Place] = []
    seen: dict[int, Any] = {}
    stack: list[tuple[Path, Any]] = [((), model)]
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


_Looked = tuple[list[tuple[_Kind, Any]], Iterable[tuple[Any, Any]]]


def _look(thing: Any) -> _Looked:
    """How a thing is kept, and what can be reached from it."""
    if isinstance(thing, nn.Module):
        return _look_inside(thing)
    if isinstance(thing, dict):
        return [(_DICT, thing), *_attributes(thing)], list(dict.items(thing))
    if isinstance(thing, Tensor):
        return [(_TENSOR, thing), *_attributes(thing)], ()
    if isinstance(thing, (list, tuple, collections.deque)):
        kind = _LIST if isinstance(thing, list) else _BAG
        return [] if isinstance(thing, tuple) else [(kind, thing)], enumerate(thing)
    if isinstance(thing, (set, bytearray)):
        return [(_BAG if isinstance(thing, set) else _LIST, thing)], ()
    if isinstance(thing, np.ndarray):
        fits = thing.flags.writeable and not thing.dtype.hasobject and thing.nbytes <= _ROOM
        return [(_ARRAY, thing)] if fits else [], ()
    if isinstance(thing, _GENERATORS):
        return [(_GENERATOR, thing), *_attributes(thing)], ()
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


def _attributes(thing: Any) -> list[tuple[_Kind, Any]]:
    own = getattr(thing, "__dict__", None)
    return [(_DICT, own)] if isinstance(own, dict) and (own or isinstance(thing, nn.Module)) else []


def _is_foreign(thing: Any) -> bool:
    module = str(getattr(thing, "__module__", ""))
    return module.partition(".")[0] in _FOREIGN or module.startswith("torch.utils.data")


# -- one model, kept -------------------------------------------------------------------------------


class Kept:
    """A model for the length of a block: as it was before, and what runs change in it.

    Attributes
    ----------
    changing : set of tuple
        Ways to what a run was seen to change.
    """

    def __init__(self, model: nn.Module) -> None:
        self.changing = _CHANGING.setdefault(model, set())
        self._places = _reachable(model)
        self._before = self._snapshot()

    def _snapshot(self, some: Iterable[_Place] | None = None) -> list[tuple[Path, Any]]:
        """Keep everything, large tensors but for their content, or some places whole."""
        room, found = _ROOM, list[tuple[Path, Any]]()
        for path, kind, thing in self._places if some is None else some:
            if kind is _DICT:
                found.append((path, _KeptDict(thing)))
                continue
            if kind is not _TENSOR:
                found.append((path, _KeptThing(thing, kind)))
                continue
            kept = _KeptTensor(thing)
            if some is not None or path in self.changing or thing.nbytes <= min(_SMALL, room):
                kept.copy()
                room -= thing.nbytes
            found.append((path, kept))
        return found

    def restore(self) -> None:
        """Put everything back as it was before the block."""
        _restore(self._before)

    def guarded(self) -> contextlib.AbstractContextManager[Any]:
        """Copy large tensors that what runs inside writes to, before it does."""
        return _Guard(self._before)

    @contextlib.contextmanager
    def learning(self) -> Iterator[_Guard]:
        """Watch a run for all that it changes, and put it back."""
        before = self._snapshot()
        guard = _Guard(before)
        try:
            with guard:
                yield guard
        finally:
            self.changing |= _restore(before)
            self.__dict__.pop("_hot", None)

    @functools.cached_property
    def _hot(self) -> list[_Place]:
        return [place for place in self._places if place[0] in self.changing]

    @property
    def generators(self) -> list[Any]:
        """Generators of random numbers in the model that runs draw from."""
        return [thing for _, kind, thing in self._hot if kind is _GENERATOR]

    @contextlib.contextmanager
    def other_draws(self) -> Iterator[None]:
        """Let all generators draw other numbers than they would; put back the model's own."""
        before = [_KeptThing(thing, _GENERATOR) for thing in self.generators]
        try:
            for generator in (*self.generators, *_torch_generators(), *_PYTHON_GENERATORS):
                _advance(generator)
            with _Redraw():
                yield
        finally:
            for kept in before:
                kept.restore()

    @contextlib.contextmanager
    def without_trace(self) -> Iterator[None]:
        """Put back what the block changes of what runs are known to change."""
        before = self._snapshot(self._hot)
        try:
            yield
        finally:
            _restore(before)


def _restore(before: list[tuple[Path, Any]]) -> set[Path]:
    """Put back what changed; return the ways to it."""
    changed = [(path, kept) for path, kept in before if kept.changed()]
    for _, kept in changed:
        kept.restore()
    return {path for path, _ in changed}


_CHANGING: weakref.WeakKeyDictionary[nn.Module, set[Path]] = weakref.WeakKeyDictionary()
_OPEN: weakref.WeakKeyDictionary[nn.Module, Kept] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def keeping(model: nn.Module) -> Iterator[Kept]:
    """Leave everything that can be reached from a model as it was, whatever happens inside."""
    outer = _OPEN.get(model)
    kept = _OPEN[model] = Kept(model)
    try:
        yield kept
    finally:
        _OPEN.pop(model)
        if outer is not None:
            _OPEN[model] = outer
        kept.restore()


def without_trace(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Let a run start from where the one before it did; costs nothing where none changes a thing."""
    kept = _OPEN.get(model)
    return contextlib.nullcontext() if not (kept and kept.changing) else kept.without_trace()


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copy tensors before an operator writes to them, and see whether any draws.

    Attributes
    ----------
    drew : bool
        Whether an operator ran that draws random numbers.
    """

    def __init__(self, before: list[tuple[Path, Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False
        self._large: dict[int, list[_KeptTensor]] = collections.defaultdict(list)
        for _, kept in before:
            if isinstance(kept, _KeptTensor) and kept.content is None and kept.where is not None:
                self._large[kept.alias.untyped_storage().data_ptr()].append(kept)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.drew |= torch.Tag.nondeterministic_seeded in func.tags
        if self._large and func._schema.is_mutable:
            for tensor in iter_tensors((args, kwargs or {})):
                if tensor.layout == torch.strided:
                    for kept in self._large.pop(tensor.untyped_storage().data_ptr(), ()):
                        kept.copy()
        return func(*args, **(kwargs or {}))


class _Redraw(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Let every operator that draws do so twice: other numbers, whatever the seed."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
