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

from neurograph.scoring.effects import Effects
from neurograph.scoring.experiment import Experiment

__all__ = ["LinearEdges"]

Ends = tuple[Tensor, Tensor]


class LinearEdges:
    """Edges from a layer to a plain Linear reader behind a chain; see `fits_narrow`.

    Parameters
    ----------
    experiment : Experiment
    writer, reader : str
    """

    def __init__(self, experiment: Experiment, writer: str, reader: str) -> None:
        self.experiment, self.writer, self.reader = experiment, writer, reader
        self.weight = experiment.linear(reader).weight.detach()

    def changes(self) -> Ends:
        """How far each neuron moves the reader's input, at each end of the contrast."""
        chain = self.experiment.chains[self.writer, self.reader]
        still = self.experiment.arriving(self.writer, self.reader)
        low, high = (
            chain(self.experiment.end(self.writer, end).clone()) - still for end in (0, -1)
        )
        return self._places(low), self._places(high)

    def derivatives(self) -> Ends:
        """The same to first order: the derivative of the glue times the move."""
        chain = self.experiment.chains[self.writer, self.reader]
        rows = self.experiment.recording.main(self.writer)
        with torch.enable_grad():
            leaf = rows.clone().requires_grad_()
            after = chain(leaf.clone())
            (slope,) = torch.autograd.grad(after.sum(), leaf)
        low, high = (slope * (self.experiment.end(self.writer, end) - rows) for end in (0, -1))
        return self._places(low), self._places(high)

    def through(self, changes: Ends, slopes: Ends) -> Tensor:
        """Differences of the target by way of the reader, ``[neurons, samples]``.

        `slopes` are ``[samples, elements]`` of the reader, 0 where it does not see the move.
        """
        low, high = (
            change * (self._places(slope.view_as(self._rows)) @ self.weight)
            for change, slope in zip(changes, slopes, strict=True)
        )
        return (high - low).sum(dim=1).T

    def effects(
        self, changes: Ends, slopes: Ends, neurons: Sequence[int], outputs: Sequence[int]
    ) -> Effects:
        """Effects of edges, ``[neurons × outputs]``, where all is linear behind the reader."""
        moved = [change[..., list(neurons)].double() for change in changes]
        answer = [self._places(s.view_as(self._rows))[..., list(outputs)].double() for s in slopes]
        weight = self.weight[list(outputs)][:, list(neurons)].T.double()
        total, squares = torch.zeros_like(weight), torch.zeros_like(weight)
        samples = len(moved[0])
        for sample in range(samples):
            low, high = (m[sample].T @ a[sample] for m, a in zip(moved, answer, strict=True))
            difference = (high - low) * weight
            total += difference
            squares += difference.square()
        mean = total.flatten() / samples
        variance = (squares.flatten() - samples * mean.square()).clamp_min(0)
        unknown = torch.full_like(mean, math.nan)
        stderr = (variance / (samples * (samples - 1))).sqrt() if samples > 1 else unknown
        return Effects(mean, stderr, unknown[:, None])

    def transfers(self, changes: Ends, neurons: Sequence[int], outputs: Sequence[int]) -> Tensor:
        """How far neurons move outputs, as shares of their own ranges, ``[neurons, outputs]``."""
        low, high = changes
        moved = (high - low)[..., list(neurons)].double().flatten(0, 1)
        own = self.experiment.levels(self.reader)[[0, -1]]
        span = (own[1] - own[0]).double().expand(len(low), -1).reshape(self._rows.shape)
        span = self._places(span)[..., list(outputs)]
        share = span / span.square().sum(dim=1, keepdim=True).clamp_min(1e-300)
        weight = self.weight[list(outputs)][:, list(neurons)].T.double()
        return moved.T @ share.flatten(0, 1) / len(low) * weight

    @property
    def _rows(self) -> Tensor:
        return self.experiment.recording.main(self.reader)

    @staticmethod
    def _places(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), -1, rows.shape[-1])
