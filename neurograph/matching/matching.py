"""A matching: which neuron of one circuit's model is which of another's."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.model.layers import Neuron

__all__ = ["LayerMatch", "Matching"]


@dataclass(frozen=True, eq=False)
class LayerMatch:
    """Neurons of one layer of each model that correspond.

    Attributes
    ----------
    a, b : str
        The layers.
    pairs : ndarray of int64, [pairs, 2]
        Indices of neurons in `a` and in `b`, each at most once. Neurons of single positions
        correspond where their indices do and the position is the same.
    similarity : ndarray of float64, [pairs]
        How alike the activations of a pair are, in 0..1; NaN where that decided nothing.
    tied : ndarray of bool, [pairs]
        Whether another neuron would have done as well, so that chance chose between them.
    ties : tuple of (indices in a, indices in b)
        Neurons that could be exchanged with each other.
    cka : float
        How alike the layers' activations are: linear centred kernel alignment, in 0..1; NaN where
        it was not computed.
    """

    a: str
    b: str
    pairs: NDArray[np.int64]
    similarity: NDArray[np.float64]
    tied: NDArray[np.bool_]
    ties: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    cka: float = float("nan")

    @staticmethod
    def plain(a: str, b: str, pairs: Iterable[Sequence[int]]) -> LayerMatch:
        """Pairs that were given, rather than found among activations."""
        table = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
        table = table[np.argsort(table[:, 0], kind="stable")]
        return LayerMatch(a, b, table, np.full(len(table), np.nan), np.zeros(len(table), bool))

    def flipped(self) -> LayerMatch:
        """The same, seen from the other model."""
        order = np.argsort(self.pairs[:, 1], kind="stable")
        pairs = self.pairs[order][:, ::-1]
        ties = tuple((there, here) for here, there in self.ties)
        return LayerMatch(
            self.b, self.a, pairs, self.similarity[order], self.tied[order], ties, self.cka
        )


@dataclass(frozen=True, eq=False)
class Matching:
    """Which neuron of model a is which of model b.

    Attributes
    ----------
    kind : str
        ``identity``, ``activation`` or ``mapping``.
    layers : tuple of LayerMatch
        In the order of a's layers. What is not in them is unmatched.
    """

    kind: str
    layers: tuple[LayerMatch, ...]

    @functools.cached_property
    def _there(self) -> dict[tuple[str, int], tuple[str, int]]:
        return {(m.a, i): (m.b, j) for m in self.layers for i, j in m.pairs.tolist()}

    @functools.cached_property
    def _back(self) -> dict[tuple[str, int], tuple[str, int]]:
        return {b: a for a, b in self._there.items()}

    def to_b(self, neuron: Neuron) -> Neuron | None:
        """Find b's neuron for one of a's; None where it has none."""
        return _moved(self._there, neuron)

    def to_a(self, neuron: Neuron) -> Neuron | None:
        """Find a's neuron for one of b's; None where it has none."""
        return _moved(self._back, neuron)

    def flipped(self) -> Matching:
        """The same, seen from the other model."""
        return Matching(self.kind, tuple(match.flipped() for match in self.layers))

    def pairs(self) -> pd.DataFrame:
        """Table of the pairs: ``layer_a, index_a, layer_b, index_b, similarity, tied``."""
        columns = ["layer_a", "index_a", "layer_b", "index_b", "similarity", "tied"]
        return pd.DataFrame(
            [
                (m.a, i, m.b, j, similarity, tied)
                for m in self.layers
                for (i, j), similarity, tied in zip(
                    m.pairs.tolist(), m.similarity.tolist(), m.tied.tolist(), strict=True
                )
            ],
            columns=columns,
        )

    def ties(self) -> pd.DataFrame:
        """Table of neurons that chance chose between.

        Returns
        -------
        DataFrame
            ``layer_a, indices_a, layer_b, indices_b``: any of these neurons of a could be any of
            those of b.
        """
        rows = [(m.a, here, m.b, there) for m in self.layers for here, there in m.ties]
        return pd.DataFrame(rows, columns=["layer_a", "indices_a", "layer_b", "indices_b"])

    def __repr__(self) -> str:
        pairs = sum(len(match.pairs) for match in self.layers)
        ties = sum(len(match.ties) for match in self.layers)
        text = f"Matching by {self.kind}: {pairs:,} neurons in {len(self.layers)} layers"
        return f"{text}, {ties:,} ties" if ties else text


def _moved(table: Mapping[tuple[str, int], tuple[str, int]], neuron: Neuron) -> Neuron | None:
    partner = table.get((neuron.layer, neuron.index))
    return None if partner is None else Neuron(*partner, neuron.position)
