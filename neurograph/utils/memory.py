"""Memory budgets: how users write them, and what running a model takes."""

from __future__ import annotations

import re
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from neurograph.errors import OptionError
from neurograph.utils.checks import is_number, shown
from neurograph.utils.nested import iter_tensors, storages

__all__ = ["PeakMeter", "parse_memory"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_memory(memory: int | str) -> int:
    """Bytes of a budget given as a number or like ``"512MB"``.

    Examples
    --------
    >>> parse_memory("1.5GB"), parse_memory(4096)
    (1500000000, 4096)
    """
    text = str(memory) if isinstance(memory, str) or is_number(memory) else ""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMG]?i?B?)\s*", text, re.IGNORECASE)
    unit = match and match.group(2).upper()
    try:
        size = float(match.group(1)) * _UNITS[unit or ""] if match else 0
        size = int(size) if unit or size == int(size) else 0  # 1.5 is no number of bytes
    except (KeyError, OverflowError, ValueError):
        size = 0
    if size <= 0:
        raise OptionError(
            f"memory={shown(memory)} is no size: write bytes, or like '512MB' or '2GB'"
        )
    return size


class PeakMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors made inside the block that were alive at once, at most.

    What operators take for themselves while they run is not seen.

    Examples
    --------
    >>> import torch
    >>> with PeakMeter() as meter:
    ...     total = sum(float((torch.ones(1000) + i).sum()) for i in range(10))
    >>> 8000 <= meter.peak < 9000
    True
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self._users: dict[int, int] = {}  # tensors that share each block of memory

    def lap(self) -> int:
        """Return the peak since the last lap."""
        peak, self.peak = self.peak, self.alive
        return peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and count what it returns in memory of its own."""
        kwargs = kwargs or {}
        before = {storage.data_ptr() for storage in storages((args, kwargs))}
        result = func(*args, **kwargs)
        for made in iter_tensors(result):
            for storage in storages(made):
                self._count(made, storage, before)
        return result

    def _count(self, made: Tensor, storage: torch.UntypedStorage, before: set[int]) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._users:
            if place in before:
                return  # a view of what was there before the block
            self._users[place] = 0
            self.alive += size
            self.peak = max(self.peak, self.alive)
        self._users[place] += 1
        weakref.finalize(made, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self.alive -= size
