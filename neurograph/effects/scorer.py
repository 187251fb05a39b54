"""What every scorer answers: effects of nodes, of whole neurons, and of edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from neurograph.effects.effects import Effects
from neurograph.effects.routes import Through

__all__ = ["Edges", "Scored", "Scorer", "ScorerName"]

ScorerName = Literal["auto", "exact", "hybrid", "gradient", "integrated"]
"""Ways to score: estimated and then measured, measured, or estimated in three ways."""


class Scored(NamedTuple):
    """Effects, and which of them were measured by intervention, ``[neurons]`` (None: all)."""

    effects: Effects
    measured: Tensor | None

    @staticmethod
    def estimated(effects: Effects) -> Scored:
        """Effects of which none was measured."""
        return Scored(effects, torch.zeros_like(effects.effect, dtype=torch.bool))


class Edges(NamedTuple):
    """Edges from some neurons of a writer to some outputs of a reader.

    `pairs` ``[edges, 2]`` are positions among those asked for, `transfer` ``[edges]`` how far each
    neuron moves the output, as a share of its own range (NaN where it was not asked for).
    """

    reader: str
    pairs: Tensor
    transfer: Tensor
    scored: Scored


class Scorer(Protocol):
    """One way to say what moving neurons does to the target."""

    def nodes(
        self, writer: str, through: Through, *, surely: Sequence[int] = (), alone: bool = False
    ) -> Scored:
        """Effects of all neurons of a layer through chosen outputs of its readers.

        `surely` are measured, whatever it takes, where anything is; with `alone` no others, where
        not all can be.
        """
        ...

    def totals(
        self,
        writer: str,
        neurons: Sequence[int],
        *,
        surely: Sequence[int] = (),
        alone: bool = False,
    ) -> Scored:
        """Effects of neurons through everything; `surely` are places among them, as above."""
        ...

    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,
    ) -> Iterator[Edges]:
        """Effects of the edges from neurons to outputs; those that move nothing may be left out."""
        ...
