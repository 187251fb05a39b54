"""Resampling: which other sample, and which position of it, a layer's values are taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.layers import Layer
from neurograph.model.positions import attended
from neurograph.replay.recording import Recording

__all__ = ["Resampled", "draw_donors"]

_CONSTANT = 1e-3  # of a channel's range: what varies by less over the samples is a constant


def draw_donors(size: int, seed: int) -> Tensor:
    """Draw for each sample another one: all stand in one random circle and take from the next.

    Returns
    -------
    Tensor of int64, [size]

    Raises
    ------
    OptionError
        There is only one sample.

    Examples
    --------
    >>> draw_donors(4, seed=0).tolist()
    [1, 3, 0, 2]
    """
    if size < 2:
        raise OptionError(
            f"contrast='resample' takes values from other reference samples, and there is {size}: "
            "pass reference=2 or more"
        )
    circle = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty_like(circle)
    donors[circle] = circle.roll(-1)
    return donors


@dataclass(frozen=True, eq=False)
class Resampled:
    """Reference samples whose values come from elsewhere; see `effects.contrast.Resample`.

    Parameters
    ----------
    actual : Recording
    inputs : mapping of str to Tensor
        The model's inputs by name, among which attention masks are looked for.
    donors : Tensor of int64, [samples]
        From which sample each takes its values.
    seed : int or None
        Draws the positions; None leaves every value at its position.
    """

    actual: Recording
    inputs: Mapping[str, Tensor]
    donors: Tensor
    seed: int | None

    def main(self, name: str) -> Tensor:
        """Return rows of a layer as `Recording.main` does, taken from elsewhere."""
        layer, rows = self.actual.layers[name], self.actual.main(name)
        donors = self.donors.to(rows.device)
        if not layer.is_sequence:
            return rows[donors]
        values = rows.movedim(layer.channel_dim, -1)  # [samples, positions, channels]
        real = self._real(layer, values)
        if self.seed is None:
            may = real
            places = torch.arange(real.shape[1], device=rows.device).expand_as(real)
        else:
            may = real & ~_constant(values, real)
            places = _drawn(may[donors], self.seed)
        moves = may & may[donors].gather(1, places)
        taken = torch.where(moves[..., None], values[donors[:, None], places], values)
        return taken.movedim(-1, layer.channel_dim)

    def _real(self, layer: Layer, values: Tensor) -> Tensor:
        """Which positions of which samples are no padding, ``[samples, positions]``."""
        mask = attended(self.inputs, layer)
        if mask is None:
            return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return mask.to(values.device).expand(values.shape[:2])


def _constant(values: Tensor, real: Tensor) -> Tensor:
    """Find positions where all samples agree; none if they do so at every position.

    Parameters
    ----------
    values : Tensor, [samples, positions, channels]
    real : Tensor of bool, [samples, positions]
        What is no padding. A position that only one sample has tells nothing.

    Returns
    -------
    Tensor of bool, [positions]
    """
    high = values.masked_fill(~real[..., None], -torch.inf).amax(0)
    low = values.masked_fill(~real[..., None], torch.inf).amin(0)
    same = (high - low <= _CONSTANT * (high.amax(0) - low.amin(0))).all(1)
    shared = real.sum(0) > 1
    return same & shared & ~(same | ~shared).all()


def _drawn(sources: Tensor, seed: int) -> Tensor:
    """Draw a source for every position of each sample, ``[samples, positions]``; 0 if none is."""
    chances = torch.rand(sources.shape, generator=torch.Generator().manual_seed(seed))
    # Sources first, in their order; layers of one length that have the same ones draw the same.
    order = (~sources).long().argsort(dim=1, stable=True)
    return order.gather(1, (chances.to(order.device) * sources.sum(1, keepdim=True)).long())
