"""Pruning of a beam: the most promising prefixes of a layer stay, the rest is bounded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Candidates", "Room"]

_SPARE = 1 + 1e-5  # limits are rounded, too


class Candidates(NamedTuple):
    """Prefixes that may be kept.

    Attributes
    ----------
    promise, limit : Tensor, [candidates]
        What their completions promise to do to the target, and the most they can.
    neurons : Tensor of int64, [candidates]
        Where they end.
    parents : Tensor of int64, [candidates, 2]
        What they go on from: a layer's number, and one of its prefixes.
    values : Tensor, [candidates, 2, samples, elements of a neuron], or None
        What that neuron becomes; None where it is computed for those kept only.
    """

    promise: Tensor
    limit: Tensor
    neurons: Tensor
    parents: Tensor
    values: Tensor | None

    def __len__(self) -> int:
        return len(self.neurons)

    def take(self, chosen: Tensor) -> Candidates:
        """Return some of them."""
        values = None if self.values is None else self.values[chosen]
        return Candidates(
            self.promise[chosen],
            self.limit[chosen],
            self.neurons[chosen],
            self.parents[chosen],
            values,
        )


class Room:
    """Beam of one layer: keep so many candidates, and none that cannot exceed a floor.

    Attributes
    ----------
    bound : float
        The largest limit of those not kept.
    short : bool
        Whether some had to go for want of room.
    """

    def __init__(self, width: int, floor: float) -> None:
        self.width, self.floor = width, floor
        self.bound, self.short = 0.0, False
        self._kept: list[Candidates] = []

    def choose(self, promise: Tensor, limit: Tensor) -> Tensor:
        """Which of some candidates are worth keeping, as far as they alone can say."""
        alive = limit * _SPARE > self.floor
        self._lose(limit[~alive])
        chosen = alive.nonzero()[:, 0]
        if len(chosen) <= self.width:
            return chosen
        self.short = True
        kept = torch.zeros_like(alive)
        kept[chosen[promise[chosen].topk(self.width).indices]] = True
        self._lose(limit[alive & ~kept])
        return kept.nonzero()[:, 0]

    def add(self, candidates: Candidates) -> None:
        """Take candidates in; those that promise least go where there are too many."""
        if len(candidates):
            self._kept.append(candidates)
        if sum(map(len, self._kept)) > 2 * self.width:
            self._reduce()

    def kept(self) -> list[Candidates]:
        """Return those that stay, in the order they came."""
        self._reduce()
        return self._kept

    def _reduce(self) -> None:
        sizes = list(map(len, self._kept))
        if sum(sizes) <= self.width:
            return
        promise = torch.cat([c.promise for c in self._kept])
        limit = torch.cat([c.limit for c in self._kept])
        chosen = torch.zeros_like(limit, dtype=torch.bool)
        chosen[self.choose(promise, limit)] = True
        parts = zip(self._kept, torch.split(chosen, sizes), strict=True)
        self._kept = [c.take(some) for c, some in parts if some.any()]

    def _lose(self, limits: Tensor) -> None:
        if len(limits):
            self.bound = max(self.bound, float(limits.max()) * _SPARE)
