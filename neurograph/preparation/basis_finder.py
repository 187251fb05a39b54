"""Finding bases of layers: from their rows, and the target's gradients by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from neurograph.effects.contrast import FromZero
from neurograph.effects.experiment import Experiment
from neurograph.effects.slopes import AtBackground
from neurograph.errors import OptionError
from neurograph.model.basis import B, FoundBasis
from neurograph.replay.recording import Recording

__all__ = ["MOST_OUTPUTS", "BasisFinder"]

MOST_OUTPUTS = 100
"""Of a model, of which gradients are taken one by one."""

_MOST_ROWS = 2**14  # of samples and positions
_RECORDINGS = 4  # of all samples: as they are, gradients by all layers, and while these are taken
_COPIES = 6  # of rows in float64, while directions are found


class Plain(Protocol):
    """A preparation, as far as it is needed."""

    def experiment(self, contrast: Any, background: Any, *, routed: bool) -> Experiment:
        """Experiment on its samples."""
        ...


P = TypeVar("P", bound=Plain)


class BasisFinder(Generic[P]):
    """Finds bases on samples of its own: what is found must hold on the reference samples.

    Parameters
    ----------
    plain : callable
        From a number of samples, and of samples to leave out that the seed draws first, to a
        preparation on so many, with channels for neurons.
    actual : Recording
        Of the reference samples.
    samples : int
        How many the data have.
    drawn : int
        How many of these the reference samples are; 0 where they were given.
    memory : int
        Bytes that a recording may take: fewer samples are taken where that has no room.
    seed : int
        Chooses rows, where samples have more positions than are needed.

    Attributes
    ----------
    notes : list of str
        Where other samples were used than asked for.
    """

    def __init__(
        self,
        plain: Callable[[int, int], P],
        actual: Recording,
        samples: int,
        drawn: int,
        memory: int,
        seed: int,
    ) -> None:
        self._plain, self._seed = plain, seed
        self._known, self._drawn = samples, drawn
        self._memory = memory
        self._room = max(2, memory // (_RECORDINGS * max(1, actual.row_bytes)))
        self._fixed = actual.size if actual.fixed else None
        self._preparations: dict[int, P] = {}
        self._points: dict[int, AtBackground] = {}
        self.notes: list[str] = []

    def __call__(self, layer: str, wanted: FoundBasis[B], *, fewer: bool = False) -> B:
        """Find directions, or families, of a layer; OptionError, which names it, if too few."""
        point = self._point(wanted.samples)
        with point.experiment as experiment:
            dim = experiment.recording.layers[layer].channel_dim
            recorded, moving = point.rows(layer), experiment.moving(layer)
            shape = recorded.shape
            rows = _by_channel(recorded, dim)
            counts = None if moving is None else _by_channel(moving.view(shape), dim).any(1)
            # One output after another, and of none but this layer: all would take too much memory.
            outputs = wanted.of == "outputs"
            alike = experiment.of_outputs(MOST_OUTPUTS) if outputs else [experiment]
            chosen = self._chosen(layer, rows, counts, len(alike))
            slopes = [
                _by_channel(
                    (AtBackground(one) if outputs else point).slope(layer).view(shape), dim
                ).detach()[chosen]
                for one in alike
            ]
        some = rows[chosen].repeat(len(slopes), 1), torch.cat(slopes)
        if not all(x.isfinite().all() for x in some):
            raise OptionError(
                f"basis of layer {layer!r}: gradients of the target by it are NaN or infinite on "
                "some samples"
            )
        try:
            return wanted.find(*(x.double().cpu() for x in some), fewer=fewer)
        except OptionError as error:
            raise OptionError(f"basis of layer {layer!r}: {error}") from None

    def _chosen(self, layer: str, rows: Tensor, counts: Tensor | None, outputs: int) -> Tensor:
        """Number the rows that are looked at: not padding, and no more than there is room for."""
        known = torch.arange(len(rows), device=rows.device)
        known = known if counts is None else known[counts]
        room = max(2, self._memory // (_COPIES * 8 * rows.shape[1] * outputs))
        if len(known) <= min(room, _MOST_ROWS):
            return known
        if room < _MOST_ROWS:
            self.notes.append(
                f"directions of {layer!r} were found on {room:,} of {len(known):,} rows: memory= "
                "has room for no more"
            )
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randperm(len(known), generator=generator)[: min(room, _MOST_ROWS)]
        return known[drawn.to(known.device)]

    def _point(self, samples: int) -> AtBackground:
        """Where gradients of the target are taken."""
        if samples not in self._points:
            experiment = self.preparation(samples).experiment(FromZero(), "data", routed=False)
            self._points[samples] = AtBackground(experiment)
        return self._points[samples]

    def preparation(self, samples: int) -> P:
        """The samples on which directions are found: so many, or as many as there are.

        They are others than the reference samples where at least as many are left.
        """
        if samples not in self._preparations:
            count, beyond = self._fixed or min(samples, self._room), self._drawn
            if count < min(samples, self._known):
                self.notes.append(
                    f"directions were found on {count} samples, not {samples}: memory= has room "
                    "for no more"
                )
            if self._known - beyond < min(count, beyond):
                self.notes.append(
                    f"directions were found on samples among which the {beyond} reference samples "
                    f"are, as the data have {self._known}: what is measured on these is no proof "
                    "that they hold on others (a smaller reference= leaves some)"
                )
                beyond = 0
            count = min(count, self._known - beyond)
            self._preparations[samples] = self._plain(count, beyond)
        return self._preparations[samples]


def _by_channel(rows: Tensor, dim: int) -> Tensor:
    """Every position of every sample as a row, ``[rows, channels]``."""
    return rows.movedim(dim, -1).flatten(0, -2)
