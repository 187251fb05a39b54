"""What runs change in a model, put back after each: no run sees what an earlier one left.

Everything reachable from a module is looked at when a block opens and when it closes. While it is
open, only what a run was seen to change is copied and put back, so that models without such state
pay nothing. Large tensors are copied at the moment when a run is about to write to them.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import random
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from neurograph.model.reachable import (
    GENERATORS,
    ROOM,
    AttributePath,
    Kept,
    KeptGenerator,
    KeptTensor,
    Reached,
    reachable,
)
from neurograph.utils.nested import iter_tensors

__all__ = ["ALONE", "Generators", "KeptModel", "drawn_alike", "keeping", "without_trace"]

_SMALL = 2**18  # bytes of a tensor that is copied in any case


# -- random generators -----------------------------------------------------------------------------

# The methods of these modules are those of one generator each.
_PYTHON_GENERATORS: tuple[Any, ...] = (
    random.getstate.__self__,  # type: ignore[attr-defined]
    np.random.get_state.__self__,  # type: ignore[attr-defined]
)


def _torch_generators() -> list[torch.Generator]:
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return [torch.default_generator, *cuda]


class Generators:
    """The states of the global random generators: PyTorch's, Python's and NumPy's.

    Parameters
    ----------
    *own : torch.Generator
        Others of PyTorch's that are kept with them.
    """

    def __init__(self, *own: torch.Generator) -> None:
        self._torch = [KeptGenerator(g) for g in (*_torch_generators(), *own)]
        self._python = [KeptGenerator(g) for g in _PYTHON_GENERATORS]

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


def drawn_alike(
    items: Iterable[Any], start: Generators, own: Sequence[torch.Generator] = ()
) -> Iterator[Any]:
    """Yield items that are made with random numbers from `start` on.

    What is done between the items has its own, so that it neither changes what comes nor finds the
    generators elsewhere afterwards.
    """
    state, iterator = start, None
    while True:
        with ALONE:
            outside = Generators(*own)
            state.restore()
            try:
                iterator = iter(items) if iterator is None else iterator
                item = next(iterator)
            except StopIteration:
                return
            finally:
                state = Generators(*own)
                outside.restore()
        yield item


def _advance(thing: Any) -> None:
    """Let a generator go on, so that it draws other numbers than before."""
    if isinstance(thing, torch.Generator):
        torch.rand(999, generator=thing, device=thing.device)
    else:
        for _ in range(999):
            thing.random()


# -- one model, kept -------------------------------------------------------------------------------


class KeptModel:
    """A model for the length of a block: as it was before, and what runs change in it.

    Attributes
    ----------
    changing : set of tuple
        Ways to what a run was seen to change.
    shared : bool
        Whether blocks inside this one need not keep the model as well.
    watched : bool
        Whether a run was watched; before, nobody knows what runs change.
    """

    def __init__(self, model: nn.Module, *, shared: bool = False) -> None:
        self.shared, self.watched = shared, False
        self.changing = _CHANGING.setdefault(model, set())
        self._places = reachable(model)
        self._before = self._snapshot()

    def _snapshot(self, some: Iterable[Reached] | None = None) -> list[tuple[AttributePath, Kept]]:
        """Keep everything, large tensors but for their content, or some places whole."""
        room, found = ROOM, list[tuple[AttributePath, Kept]]()
        for path, keep, thing in self._places if some is None else some:
            kept = keep(thing)
            if isinstance(kept, KeptTensor) and (
                some is not None or path in self.changing or kept.size <= min(_SMALL, room)
            ):
                kept.copy()
                room -= kept.size
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
            self.watched = True
            self.__dict__.pop("_hot", None)

    @functools.cached_property
    def _hot(self) -> list[Reached]:
        return [place for place in self._places if place[0] in self.changing]

    @property
    def generators(self) -> list[Any]:
        """Generators of random numbers in the model that runs draw from."""
        return [thing for _, _, thing in self._hot if isinstance(thing, GENERATORS)]

    @contextlib.contextmanager
    def other_draws(self) -> Iterator[None]:
        """Let all generators draw other numbers than they would; put back the model's own."""
        before = [KeptGenerator(thing) for thing in self.generators]
        try:
            for generator in (*self.generators, *_torch_generators(), *_PYTHON_GENERATORS):
                _advance(generator)
            with _Redraw():  # type: ignore[no-untyped-call]
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


def _restore(before: list[tuple[AttributePath, Kept]]) -> set[AttributePath]:
    """Put back what changed; return the ways to it."""
    changed = [(path, kept) for path, kept in before if kept.changed()]
    for _, kept in changed:
        kept.restore()
    return {path for path, _ in changed}


_CHANGING: weakref.WeakKeyDictionary[nn.Module, set[AttributePath]] = weakref.WeakKeyDictionary()
_OPEN: weakref.WeakKeyDictionary[nn.Module, KeptModel] = weakref.WeakKeyDictionary()


ALONE = threading.RLock()
"""Keeps other threads of ours away while layers have stand-ins, or global settings are others."""


@contextlib.contextmanager
def keeping(model: nn.Module, *, shared: bool = False) -> Iterator[KeptModel]:
    """Leave everything that can be reached from a model as it was, whatever happens inside.

    With `shared`, blocks inside this one leave that to it once a run was watched: looking at
    everything takes longer than a run of a small model.
    """
    outer = _OPEN.get(model)
    if outer is not None and outer.shared and outer.watched:
        yield outer
        return
    kept = _OPEN[model] = KeptModel(model, shared=shared)
    try:
        yield kept
    finally:
        _OPEN.pop(model)
        if outer is not None:
            _OPEN[model] = outer
            outer.watched |= kept.watched
        kept.restore()


def without_trace(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Let a run start from where the one before it did; free where runs change nothing."""
    kept = _OPEN.get(model)
    return contextlib.nullcontext() if not (kept and kept.changing) else kept.without_trace()


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copy tensors before an operator writes to them, and see whether any draws.

    Attributes
    ----------
    drew : bool
        Whether an operator ran that draws random numbers.
    """

    def __init__(self, before: list[tuple[AttributePath, Kept]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False
        self._large: dict[int, list[KeptTensor]] = collections.defaultdict(list)
        for _, kept in before:
            if isinstance(kept, KeptTensor) and kept.content is None and kept.where is not None:
                self._large[kept.alias.untyped_storage().data_ptr()].append(kept)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Attention is tagged for its dropout; where that draws, the generator's state shows it.
        if "scaled_dot_product" not in func.name():
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
