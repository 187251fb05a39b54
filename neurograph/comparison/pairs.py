"""Union of two circuits: neurons, edges and paths, each with what it is in the other model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from neurograph.comparison.circuit_arrays import Numbers, Side, inverse

__all__ = ["Kind", "Pairs", "Union", "union_of"]

Kind = Literal["neurons", "edges", "paths"]
"""What circuits are compared in."""

_Item = TypeVar("_Item", bound=Hashable)


@dataclass(frozen=True)
class Pairs:
    """What either circuit has: what it is in each model, None where it is nothing there."""

    a: tuple[Any, ...]
    b: tuple[Any, ...]

    def known(self, side: int) -> list[Any]:
        """Those that exist in one of the models."""
        return [item for item in (self.a, self.b)[side] if item is not None]


@dataclass(frozen=True)
class Union:
    """All that either circuit has: neurons kept, edges, measured paths stored."""

    neurons: Pairs
    edges: Pairs
    paths: Pairs


def _joined(
    here: Sequence[_Item],
    there: Sequence[_Item],
    to_b: Callable[[_Item], _Item | None],
    to_a: Callable[[_Item], _Item | None],
) -> Pairs:
    """Pair a's items with what they are in b, then add those that b alone has."""
    seen = set(here)
    alone = [(to_a(item), item) for item in there]
    pairs: list[tuple[_Item | None, _Item | None]] = [(item, to_b(item)) for item in here]
    pairs += [(mine, item) for mine, item in alone if mine is None or mine not in seen]
    return Pairs(*zip(*pairs, strict=True)) if pairs else Pairs((), ())


class _Translation:
    """Numbers of one model as those of the other; None where there are none."""

    def __init__(self, to: Numbers) -> None:
        self._to = to

    def one(self, number: int) -> int | None:
        partner = int(self._to[number])
        return partner if partner >= 0 else None

    def several(self, numbers: tuple[int, ...]) -> tuple[int, ...] | None:
        partners = tuple(self._to[list(numbers)].tolist())
        return partners if min(partners) >= 0 else None


def union_of(a: Side, b: Side, partner: Numbers) -> Union:
    """Pair all that either circuit has; `partner` as `partners` gives it."""
    to_b, to_a = _Translation(inverse(partner, len(a))), _Translation(partner)
    kept = [np.flatnonzero(side.kept).tolist() for side in (a, b)]
    edges = [[tuple(edge) for edge in side.edges.tolist()] for side in (a, b)]
    return Union(
        _joined(kept[0], kept[1], to_b.one, to_a.one),
        _joined(edges[0], edges[1], to_b.several, to_a.several),
        _joined(a.paths, b.paths, to_b.several, to_a.several),
    )
