"""Reservoir sampling: which rows of a stream a uniform sample keeps.

The problem of Vitter (1985, *ACM TOMS* 11), solved by keeping the rows with the smallest random
keys: Efraimidis & Spirakis (2006, *Inf. Process. Lett.* 97) with equal weights. Two such samples
merge exactly: pool them, keep the smallest keys. A row's key depends only on its position in the
data, so the sample does not depend on how the data was cut into batches, and no generator state has
to be stored.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

__all__ = ["RowChoice", "choose_next", "choose_rows", "no_keys"]

_BLOCK = 4096  # random keys are made this many at a time
_AHEAD = 16  # batches


class RowChoice(NamedTuple):
    """Rows that a sample keeps of those that arrive.

    Attributes
    ----------
    keys : Tensor of float64, [reservoir]
        Key of the row in each slot; infinite where there is none yet. Slots fill up in order.
        Samples share these tensors, so they are never written in place.
    moves : list of (slots, rows)
        Which of the new rows go to which slots, as slices or tensors of indices.
    """

    keys: Tensor
    moves: list[tuple[slice | Tensor, slice | Tensor]]


@functools.lru_cache(maxsize=8)
def no_keys(reservoir: int, device: torch.device) -> Tensor:
    """Keys of a sample without rows; one tensor for all of them, so that they share choices."""
    return torch.full((reservoir,), math.inf, dtype=torch.float64, device=device)


def choose_rows(keys: Tensor, count: int, new: NDArray[np.float64]) -> RowChoice:
    """Choose among rows with `new` keys, which arrive after `count` others.

    Examples
    --------
    >>> first = choose_rows(no_keys(2, torch.device("cpu")), 0, np.array([0.5, 0.3, 0.4]))
    >>> first.keys.tolist()
    [0.4, 0.3]
    >>> choose_rows(first.keys, 3, np.array([0.9, 0.2])).moves
    [(tensor([0]), tensor([1]))]
    """
    kept: NDArray[np.float64] = keys.cpu().numpy().copy()  # so few numbers are quicker in numpy
    moves: list[tuple[slice | Tensor, slice | Tensor]] = []
    size, first = len(kept), min(max(len(kept) - count, 0), len(new))
    if first:
        kept[count : count + first] = new[:first]
        moves.append((slice(count, count + first), slice(first)))
    if first < len(new):
        small = (new[first:] < kept.max()).nonzero()[0] + first
        losers = np.concatenate([kept, new[small]]).argpartition(size - 1)[size:]
        small[losers[losers >= size] - size] = -1
        slots, won = losers[losers < size], small[small >= 0]
        kept[slots] = new[won]
        if len(won):
            moves.append((_tensor(slots, keys.device), _tensor(won, keys.device)))
    return RowChoice(_tensor(kept, keys.device), moves) if moves else RowChoice(keys, moves)


def choose_next(keys: Tensor, count: int, total: int, seed: int, stream: int) -> RowChoice:
    """Choose among the next `total` rows of a stream, which has its own keys in each process."""
    shared = distributed.is_available() and distributed.is_initialized()
    rank = distributed.get_rank() if shared else 0
    small = len(keys) <= _BLOCK  # larger ones would take memory to remember
    return (_choose_for_all if small else _choose_next)(keys, count, total, seed, stream, rank)


@functools.lru_cache(maxsize=64)
def _choose_for_all(keys: Tensor, count: int, total: int, *source: int) -> RowChoice:
    """Choose once for all layers that see the same rows, and now and then for batches to come.

    Between two layers' updates the model runs, which drives this code out of the processor's
    cache: chosen one by one, batches cost several times as much.
    """
    choice = ahead = _choose_next(keys, count, total, *source)
    many = max(1, min(_AHEAD, _BLOCK // total))
    if count // total % many == 0:
        for start in range(count + total, count + many * total, total):
            ahead = _choose_for_all(ahead.keys, start, total, *source)
    return choice


def _choose_next(keys: Tensor, count: int, total: int, *source: int) -> RowChoice:
    first, skip = divmod(count, _BLOCK)
    last = first + (skip + total - 1) // _BLOCK
    blocks = [_block(*source, number) for number in range(first, last + 1)]
    new = blocks[0] if first == last else np.concatenate(blocks)
    return choose_rows(keys, count, new[skip : skip + total])


@functools.lru_cache(maxsize=32)
def _block(seed: int, *place: int) -> NDArray[np.float64]:
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place))
    return np.random.Generator(bits).random(_BLOCK)


def _tensor(numbers: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(numbers).to(device)
