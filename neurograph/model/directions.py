"""Directions that are found from data: those in which a layer varies, and those a target reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.basis import SMALLEST, Directions, FoundDirections

__all__ = ["Active", "Attributed", "Principal"]


@dataclass(frozen=True)
class Principal(FoundDirections):
    """Principal components: directions in which a layer's values vary most.

    Examples
    --------
    >>> rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.1, -0.1]], dtype=torch.float64)
    >>> Principal(1).find(rows, torch.zeros(3, 2)).writing
    tensor([[0.7071, 0.7071]], dtype=torch.float64)
    """

    def find(self, rows: Tensor, slopes: Tensor, *, fewer: bool = False) -> Directions:
        """Find them; the largest entry of each is positive."""
        vectors = self._first(rows - rows.mean(0), "in which the values vary", fewer=fewer)
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        return Directions(vectors * largest.sign())


@dataclass(frozen=True)
class Active(FoundDirections):
    """Active directions: those along which the layer, as far as it varies, moves the target most.

    With Σ the covariance of the layer's values and g the target's gradients by them, they are the
    strongest eigenvectors u of E[Σ^½ g gᵀ Σ^½]: an active subspace (Constantine 2015, *Active
    Subspaces*) of the whitened values. A coordinate is read by Σ^-½ u, and has variance 1; moving
    it moves the layer by Σ^½ u, which is how the layer moves with it in the data. The target rises
    along each, on the whole.

    Examples
    --------
    >>> rows = torch.tensor([[2.0, 1.0], [-2.0, 1.0], [2.0, -1.0], [-2.0, -1.0]])
    >>> slopes = torch.tensor([[0.0, 3.0]]).expand(4, 2)
    >>> Active(1).find(rows.double(), slopes.double()).writing  # the second alone is read
    tensor([[0., 1.]], dtype=torch.float64)
    """

    def find(self, rows: Tensor, slopes: Tensor, *, fewer: bool = False) -> Directions:
        """Find them; of few samples in many channels, within what these span."""
        centred = (rows - rows.mean(0)) / math.sqrt(len(rows))
        _, sizes, span = torch.linalg.svd(centred, full_matrices=False)
        varied = sizes > SMALLEST * sizes[0].clamp_min(torch.finfo(sizes.dtype).tiny)
        sizes, span = sizes[varied], span[varied]
        found = self._first((slopes @ span.T) * sizes, "that move the target", fewer=fewer)
        rises = (slopes @ ((found * sizes) @ span).T).sum(0)
        found = torch.where(rises[:, None] < 0, -found, found)
        return Directions((found * sizes) @ span, (found / sizes) @ span)


@dataclass(frozen=True)
class Attributed(FoundDirections):
    """The channels of the largest attributions, as directions: what they are compared with.

    An attribution is the mean square, over rows, of gradient times distance from the mean.

    Examples
    --------
    >>> rows = torch.tensor([[2.0, 1.0], [-2.0, -1.0]], dtype=torch.float64)
    >>> Attributed(1).find(rows, torch.tensor([[1.0, 3.0], [1.0, 3.0]]).double()).writing
    tensor([[0., 1.]], dtype=torch.float64)
    """

    def find(self, rows: Tensor, slopes: Tensor, *, fewer: bool = False) -> Directions:
        """Find them; OptionError where the layer has fewer channels."""
        sizes = ((rows - rows.mean(0)) * slopes).square().mean(0)
        if len(sizes) < self.count and not fewer:
            raise OptionError(f"there are {len(sizes)} channels, fewer than count={self.count}")
        first = sizes.argsort(descending=True, stable=True)[: self.count]
        vectors = torch.eye(len(sizes), dtype=torch.float64)[first]
        return Directions(vectors, vectors)
