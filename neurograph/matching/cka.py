"""How alike layers are as a whole: linear centred kernel alignment, from batches.

CKA (Kornblith, Norouzi, Lee & Hinton 2019, arXiv:1905.00414) compares which samples two layers find
alike: 1 where one layer is the other turned and scaled, 0 where they have nothing in common. It is
made of three values of HSIC, each a mean over batches of the unbiased estimate (Song, Smola,
Gretton, Bedo & Borgwardt 2012, *JMLR* 13; Nguyen, Raghu & Kornblith 2021, arXiv:2010.15327), so
that wide layers of few samples do not look alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurograph.activations.streaming import Arrived
from neurograph.effects.effects import ULPS

__all__ = ["LayerCKA", "gram", "unbiased_hsic"]

_AT_ONCE = 2**22  # numbers in double precision


class LayerCKA:
    """CKA of some layers of one model with some of another, ``[layers of a, layers of b]``.

    Examples
    --------
    >>> from neurograph.model.layers import Layer
    >>> layer = Layer("l", "l", "l", "Linear", (3,), 1, 3, 0)
    >>> x = Arrived(layer, torch.randn(20, 3), None, None)
    >>> cka = LayerCKA()
    >>> cka.add([x], [x])
    >>> cka.matrix().round(6).tolist()
    [[1.0]]
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, a: Sequence[Arrived], b: Sequence[Arrived]) -> None:
        """Add a batch: what the layers returned for the same samples, at least 4."""
        x, y = (torch.stack([gram(side).cpu() for side in sides]) for sides in (a, b))
        parts = (
            unbiased_hsic(x, y),
            torch.cat([unbiased_hsic(k[None], k[None])[0] for k in x]),
            torch.cat([unbiased_hsic(l[None], l[None])[0] for l in y]),  # noqa: E741
        )
        if self._sums is None:
            self._sums = parts
        else:
            for total, part in zip(self._sums, parts, strict=True):
                total += part

    def matrix(self) -> NDArray[np.float64]:
        """Estimate CKA from all batches; NaN where a layer does not vary, or too little to tell.

        As an estimate it may lie a little below 0 or above 1.
        """
        assert self._sums is not None, "nothing was added"
        cross, a, b = (total.numpy() for total in self._sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            norms = np.sqrt(np.where(a > 0, a, np.nan))[:, None] * np.sqrt(b.clip(min=0))[None]
            cka: NDArray[np.float64] = np.where(norms > 0, cross / norms, np.nan)
        return cka


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 - as the paper calls them
    """Hilbert-Schmidt independence criterion of samples, estimated without bias.

    Parameters
    ----------
    k : Tensor, [K, samples, samples]
        Gram matrices of at least 4 samples, with zeros on the diagonal.
    l : Tensor, [L, samples, samples]
        Others, of the same samples.

    Returns
    -------
    Tensor, [K, L]
        Of every k with every l: equation 5 of Song et al. (2012).
    """
    n = k.shape[-1]
    of_k, of_l = k.sum(-1), l.sum(-1)
    trace = k.flatten(1) @ l.flatten(1).T
    sums = of_k.sum(-1)[:, None] * of_l.sum(-1)[None]
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * of_k @ of_l.T / (n - 2)) / (n * (n - 3))


def gram(arrived: Arrived) -> Tensor:
    """Inner products of samples of a layer's elements, in float64, with zeros on the diagonal.

    Elements are taken less their mean over the samples. HSIC is the same without, but for rounding.
    """
    values = arrived.values.flatten(1)
    products = values.new_zeros(len(values), len(values), dtype=torch.float64)
    eps = torch.finfo(values.dtype).eps
    step = max(1, _AT_ONCE // len(values))
    for start in range(0, values.shape[1], step):
        some = values[:, start : start + step].double()
        mean = some.mean(0)
        some = some - mean
        spread = some.square().mean(0)
        some[:, spread <= (ULPS * eps * mean).square()] = 0  # does not vary but for rounding
        products.addmm_(some, some.T)
    return products.fill_diagonal_(0)
