"""Finding bases of layers: from their rows, and the target's gradients by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neurograph.effects.experiment import Experiment
from neurograph.effects.slopes import AtBackground
from neurograph.errors import OptionError
from neurograph.model.basis import B, FoundBasis
from neurograph.replay.recording import Recording

__all__ = ["DirectionFinder"]

_MOST_ROWS = 2**14  # of samples and positions


class DirectionFinder:
    """Finds directions on samples of its own: what is found must hold on the reference samples.

    Parameters
    ----------
    plain : callable
        From a number of samples to an experiment on so many, with channels for neurons, and how
        many the data have.
    actual : Recording
        Of the reference samples.
    memory : int
        Bytes that a recording may take: fewer samples are taken where that has no room.
    seed : int
        Chooses rows, where samples have more positions than are needed.

    Attributes
    ----------
    notes : list of str
        Where fewer samples were used than asked for.
    """

    def __init__(
        self,
        plain: Callable[[int], tuple[Experiment, int]],
        actual: Recording,
        memory: int,
        seed: int,
    ) -> None:
        self._plain, self._seed = plain, seed
        self._room = max(2, memory // max(1, actual.row_bytes))
        self._fixed = actual.size if actual.fixed else None
        self._points: dict[int, AtBackground] = {}
        self.notes: list[str] = []

    def __call__(self, layer: str, wanted: FoundBasis[B], *, fewer: bool = False) -> B:
        """Find directions, or families, of a layer; OptionError, which names it, if too few."""
        point = self._point(wanted.samples)
        with point.experiment as experiment:
            dim = experiment.recording.layers[layer].channel_dim
            rows, slopes = point.rows(layer), point.slope(layer)
            moving = experiment.moving(layer)
        some = [_by_channel(x.detach().reshape(rows.shape), dim) for x in (rows, slopes)]
        if moving is not None:  # what is padding says nothing
            counts = _by_channel(moving.view(rows.shape), dim).any(1)
            some = [x[counts] for x in some]
        if len(some[0]) > _MOST_ROWS:
            generator = torch.Generator().manual_seed(self._seed)
            chosen = torch.randperm(len(some[0]), generator=generator)[:_MOST_ROWS]
            some = [x[chosen.to(x.device)] for x in some]
        if not all(x.isfinite().all() for x in some):
            raise OptionError(
                f"basis of layer {layer!r}: gradients of the target by it are NaN or infinite on "
                "some samples"
            )
        try:
            return wanted.find(*(x.double().cpu() for x in some), fewer=fewer)
        except OptionError as error:
            raise OptionError(f"basis of layer {layer!r}: {error}") from None

    def _point(self, samples: int) -> AtBackground:
        """Where gradients are taken on so many samples, or as many as there is room for."""
        if samples not in self._points:
            count = self._fixed or min(samples, self._room)
            experiment, known = self._plain(count)
            self._points[samples] = AtBackground(experiment)
            if count < min(samples, known):
                self.notes.append(
                    f"directions were found on {count} samples, not {samples}: memory= has room "
                    "for no more"
                )
        return self._points[samples]


def _by_channel(rows: Tensor, dim: int) -> Tensor:
    """Every position of every sample as a row, ``[rows, channels]``."""
    return rows.movedim(dim, -1).flatten(0, -2)
