"""Linear readers behind pointwise glue: all their edges at once, as products of matrices.

What one moved neuron adds to an output of such a reader is its weight times how far it moves the
reader's input. So transfers, and effects that are linear behind the reader, need no replay.
Arrays are ``[samples, places, channels]``; places are the positions of a sequence, or one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neurograph.effects.effects import Effects
from neurograph.effects.experiment import Experiment

__all__ = ["LinearEdges"]


class LinearEdges:
    """Edges from a layer to a plain Linear reader behind a chain; see `fits_narrow`.

    Parameters
    ----------
    experiment : Experiment
    writer, reader : str
    """

    def __init__(self, experiment: Experiment, writer: str, reader: str) -> None:
        self.experiment, self.writer, self.reader = experiment, writer, reader
        self.weight = experiment.linear(reader).weight

    def change(self) -> Tensor:
        """How far each neuron's move moves the reader's input."""
        chain = self.experiment.chains[self.writer, self.reader]
        low, high = (chain(self.experiment.end(self.writer, end).clone()) for end in (0, -1))
        return self._places(high - low)

    def derivative(self, rows: Tensor, span: Tensor) -> Tensor:
        """The same to first order: the derivative of the glue at some rows, times the move."""
        chain = self.experiment.chains[self.writer, self.reader]
        with torch.enable_grad():
            leaf = rows.clone().requires_grad_()
            (slope,) = torch.autograd.grad(chain(leaf.clone()).sum(), leaf)
        return self._places((slope.flatten(1) * span).view_as(rows))

    def through(self, change: Tensor, slope: Tensor) -> Tensor:
        """Differences of the target by way of the reader, ``[neurons, samples]``.

        `slope` is ``[samples, elements]`` of the reader, 0 where it does not see the move.
        """
        answer = self._places(slope.view_as(self._rows)) @ self.weight
        return (change * answer).sum(dim=1).T

    def effects(
        self, terms: Sequence[tuple[Tensor, Tensor]], neurons: Sequence[int], outputs: Sequence[int]
    ) -> Effects:
        """Effects of edges, ``[neurons × outputs]``, where all is linear behind the reader.

        `terms` are changes with slopes; what they give is added.
        """
        pairs = [
            (
                change[..., list(neurons)].double(),
                self._places(slope.view_as(self._rows))[..., list(outputs)].double(),
            )
            for change, slope in terms
        ]
        weight = self.weight[list(outputs)][:, list(neurons)].T.double()
        total, squares = torch.zeros_like(weight), torch.zeros_like(weight)
        samples = len(self._rows)
        for sample in range(samples):
            difference = sum(
                (change[sample].T @ slope[sample] for change, slope in pairs),
                start=torch.zeros_like(weight),
            )
            difference *= weight
            total += difference
            squares += difference.square()
        mean = total.flatten() / samples
        variance = (squares.flatten() - samples * mean.square()).clamp_min(0)
        unknown = torch.full_like(mean, math.nan)
        stderr = (variance / (samples * (samples - 1))).sqrt() if samples > 1 else unknown
        return Effects(mean, stderr, unknown[:, None])

    def transfers(self, change: Tensor, neurons: Sequence[int], outputs: Sequence[int]) -> Tensor:
        """How far neurons move outputs, as shares of their own ranges, ``[neurons, outputs]``."""
        moved = change[..., list(neurons)].double().flatten(0, 1)
        own = self.experiment.levels(self.reader)[[0, -1]]
        span = (own[1] - own[0]).double().expand(len(change), -1).reshape(self._rows.shape)
        span = self._places(span)[..., list(outputs)]
        share = span / span.square().sum(dim=1, keepdim=True).clamp_min(1e-300)
        weight = self.weight[list(outputs)][:, list(neurons)].T.double()
        return moved.T @ share.flatten(0, 1) / len(change) * weight

    def largest(self, change: Tensor, neurons: Sequence[int], outputs: Sequence[int]) -> Tensor:
        """How far neurons move outputs at most, in any sample, ``[neurons, outputs]``."""
        moved = change[..., list(neurons)].abs().amax(dim=(0, 1))
        return moved[:, None] * self.weight[list(outputs)][:, list(neurons)].T.abs()

    @property
    def _rows(self) -> Tensor:
        return self.experiment.recording.main(self.reader)

    @staticmethod
    def _places(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), -1, rows.shape[-1])
