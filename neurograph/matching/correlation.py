"""How alike single neurons of two layers are, from sums over batches.

For channels that is Pearson's correlation. For groups of channels (heads, blocks) it is the root of
the RV coefficient (Robert & Escoufier 1976, *Applied Statistics* 25), which for groups of one
channel is the correlation's absolute value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurograph.activations.streaming import Arrived
from neurograph.effects.effects import ULPS
from neurograph.model.neurons import Channels

__all__ = ["Correlation"]

_AT_ONCE = 2**22  # numbers in double precision
_TINY = 1e-300


class Correlation:
    """Correlations of the neurons of one layer with those of another.

    Sums are of products of deviations from the mean so far (Chan, Golub & LeVeque 1983, *The
    American Statistician* 37), in float64: a small spread on a large mean survives.

    Parameters
    ----------
    groups_a, groups_b : sequence of sequence of int, optional
        Channels of each neuron; None where every channel is one.

    Examples
    --------
    >>> from neurograph.model.layers import Layer
    >>> layer = Layer("l", "l", "l", "Linear", (2,), 1, 2, 0)
    >>> x = torch.tensor([[1.0, 4.0], [2.0, 3.0], [3.0, 0.0], [4.0, 2.0]])
    >>> correlation = Correlation()
    >>> correlation.add(Arrived(layer, x, None, None), Arrived(layer, x, None, None))
    >>> correlation.matrix().round(2).tolist()
    [[1.0, -0.68], [-0.68, 1.0]]
    """

    def __init__(self, groups_a: Channels | None = None, groups_b: Channels | None = None) -> None:
        self._groups = groups_a, groups_b
        self._count = 0
        self._sides: tuple[_Side, _Side] | None = None
        self._products = torch.empty(0)

    def add(self, a: Arrived, b: Arrived) -> None:
        """Add a batch of both layers.

        Where their positions are the same, all that both attend count; else the means over them,
        one a sample.
        """
        for x, y in _rows(a, b):
            self._add(x, y.to(x.device))

    def _add(self, x: Tensor, y: Tensor) -> None:
        if not len(x):
            return
        if self._sides is None:
            self._sides = _Side.empty(x, self._groups[0]), _Side.empty(y, self._groups[1])
            self._products = x.new_zeros(x.shape[1], y.shape[1])
        weight = math.sqrt(self._count * len(x) / (self._count + len(x)))
        share = len(x) / (self._count + len(x))
        here, there = self._sides
        p, q = here.deviations(x, weight, share), there.deviations(y, weight, share)
        self._products.addmm_(p.T, q)
        self._count += len(x)

    def matrix(self, eps_a: float = 0.0, eps_b: float = 0.0) -> NDArray[np.float64]:
        """Return ``[neurons of a, neurons of b]``; the sums are spent.

        NaN for neurons that vary by no more than rounding: 4 units in the last place, of which
        `eps_a` and `eps_b` say how large they are for numbers at 1. Of single channels in -1..1,
        else in 0..1.
        """
        assert self._sides is not None, "nothing was added"
        (here, there), products = self._sides, self._products
        still = here.still(eps_a, self._count), there.still(eps_b, self._count)
        self._sides, self._products = None, torch.empty(0)
        if here.groups is None and there.groups is None:
            _scale(products, here.squares.sqrt(), there.squares.sqrt())
            products.clamp_(-1, 1)
        else:
            products = _between_groups(products, here, there)
            still = here.grouped(still[0]), there.grouped(still[1])
        products[still[0]] = math.nan
        products[:, still[1]] = math.nan
        result: NDArray[np.float64] = products.cpu().numpy()
        return result


@dataclass(eq=False)
class _Side:
    """Sums over the rows of one of two layers.

    Attributes
    ----------
    mean, squares : Tensor, [channels]
        Of what was added: mean, and sum of squared deviations from it.
    groups : Tensor, [neurons, channels], or None
        1 where a channel belongs to a neuron; None where every channel is one.
    products : Tensor, [channels, channels], or None
        Sums of products of deviations, where groups need them.
    """

    mean: Tensor
    squares: Tensor
    groups: Tensor | None
    products: Tensor | None

    @staticmethod
    def empty(rows: Tensor, channels: Channels | None) -> _Side:
        zeros, width = rows.new_zeros(rows.shape[1]), rows.shape[1]
        if channels is None:
            return _Side(zeros, zeros.clone(), None, None)
        groups = rows.new_zeros(len(channels), width)
        for neuron, members in enumerate(channels):
            groups[neuron, list(members)] = 1
        products = rows.new_zeros(width, width)
        return _Side(zeros, zeros.clone(), groups, products)

    def deviations(self, rows: Tensor, weight: float, share: float) -> Tensor:
        """Add rows; return their deviations from their own mean, and how far that one is off.

        The last row makes a product of deviations from the mean of all that were added.
        """
        centre = rows.mean(0)
        gap = centre - self.mean
        centred = rows.new_empty(len(rows) + 1, rows.shape[1])
        torch.sub(rows, centre, out=centred[:-1])
        torch.mul(gap, weight, out=centred[-1])
        self.mean += share * gap
        self.squares += centred.square().sum(0)
        if self.products is not None:
            self.products.addmm_(centred.T, centred)
        return centred

    def still(self, eps: float, count: int) -> Tensor:
        """Which channels do not vary, ``[channels]``."""
        return self.squares <= count * (ULPS * eps * self.mean).square()

    def grouped(self, still: Tensor) -> Tensor:
        """Which neurons hold only channels that do not vary."""
        return still if self.groups is None else self.groups @ (~still).to(self.groups) == 0

    @property
    def norms(self) -> Tensor:
        """Frobenius norm of the products within each neuron, ``[neurons]``."""
        if self.groups is None or self.products is None:
            return self.squares
        within = (self.groups @ self.products.square()) * self.groups
        return within.sum(1).sqrt()

    def alone(self) -> tuple[Tensor, Tensor]:
        """Neurons of one channel, and these channels."""
        if self.groups is None:
            every = torch.arange(len(self.squares), device=self.squares.device)
            return every, every
        neurons = (self.groups.sum(1) == 1).nonzero()[:, 0]
        return neurons, self.groups[neurons].argmax(1)


def _between_groups(products: Tensor, a: _Side, b: _Side) -> Tensor:
    """Root of the RV coefficient of each neuron of a and b, signed where both are one channel."""
    (ones, i), (others, j) = a.alone(), b.alone()
    signs = products[i][:, j].sign()
    similarity = products.square_()
    similarity = similarity if a.groups is None else a.groups @ similarity
    similarity = similarity if b.groups is None else similarity @ b.groups.T
    similarity = _scale(similarity, a.norms, b.norms).sqrt_().clamp_(max=1)
    similarity[ones[:, None], others[None]] *= signs
    return similarity


def _scale(products: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Divide by the norms of both sides, in place; what has none is marked by the caller."""
    return products.div_(a.clamp(min=_TINY)[:, None]).div_(b.clamp(min=_TINY)[None])


def _rows(a: Arrived, b: Arrived) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of both layers that belong together, some samples at a time, in float64."""
    together = a.values.shape[2:] == b.values.shape[2:]
    if together:
        masks = [x.attended for x in (a, b) if x.attended is not None]
        mask = None if not masks else torch.stack([m.to(masks[0].device) for m in masks]).all(0)
        a, b = replace(a, attended=mask), replace(b, attended=mask)
    step = max(1, _AT_ONCE // max(a.values[0].numel(), b.values[0].numel()))
    for start in range(0, len(a.values), step):
        x, y = (_some(side, slice(start, start + step)) for side in (a, b))
        if together:
            yield x.at_positions(), y.at_positions()
        else:
            yield x.sample_means(), y.sample_means()


def _some(arrived: Arrived, samples: slice) -> Arrived:
    values = arrived.values[samples].double()
    mask = arrived.attended
    mask = None if mask is None else mask[samples].to(values.device)
    return replace(arrived, values=values, attended=mask)
