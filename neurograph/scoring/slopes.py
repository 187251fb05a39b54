"""How the target answers to layers' outputs, to first order: at the background, or along a move.

A slope is the gradient of the target by the rows of a layer, ``[samples, elements]``. One for the
way to each end of the contrast: at the background both are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from neurograph.replay.observe import without_parameter_gradients
from neurograph.replay.plan import Plan
from neurograph.scoring.experiment import Experiment

__all__ = ["AlongMove", "AtBackground", "Slopes", "by_output", "pull_back"]

Ends = tuple[Tensor, Tensor]
"""Slopes on the way to the first and to the last level, ``[samples, elements]`` each."""


class Slopes(Protocol):
    """One way to say how the target answers to some outputs of a layer."""

    def __call__(self, reader: str, seen: Sequence[int] | None) -> Ends:
        """Slopes by the outputs in `seen` (None: all), 0 by all others and by what may not move."""
        ...


class AtBackground:
    """The gradient where nothing has moved.

    Where the background is a real run, one run forwards and backwards gives those of all layers;
    elsewhere each takes a run of what descends from it.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._known: dict[str, Tensor] = {}

    def __call__(self, reader: str, seen: Sequence[int] | None) -> Ends:
        """Slopes by some outputs of a layer: the same for both ends."""
        slope = self.whole(reader) * _mask(self.experiment, reader, seen)
        return slope, slope

    def whole(self, layer: str) -> Tensor:
        """Gradient of the target by all outputs of a layer, through everything."""
        if layer not in self._known:
            if self.experiment.real:
                self._known |= _everywhere(self.experiment)
            else:
                rows = self.experiment.recording.main(layer)
                self._known[layer] = _at(self.experiment, layer, rows)
        return self._known[layer]


class AlongMove:
    """The gradient averaged while a reader's outputs go where all its writers would move them.

    Integrated gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365) of the target by what
    the reader passes on, from the background to what it computes when all its writers are at one
    end of the contrast; the outputs that do not see the move stay. Averaged over equal steps by the
    midpoint rule; over samples, as everything is, only in the mean effect.

    Parameters
    ----------
    experiment : Experiment
    steps : int
        Runs forwards and backwards for each reader and end.
    """

    def __init__(self, experiment: Experiment, steps: int) -> None:
        self.experiment, self.steps = experiment, steps
        self._moved: dict[str, list[Tensor]] = {}
        self._known: dict[tuple[str, tuple[int, ...] | None], Ends] = {}

    def __call__(self, reader: str, seen: Sequence[int] | None) -> Ends:
        """Average slopes by some outputs of a layer, on the way to each end."""
        key = reader, None if seen is None else tuple(seen)
        if key not in self._known:
            mask = _mask(self.experiment, reader, seen)
            low, high = (self._average(reader, end, mask) for end in self._ends(reader))
            self._known[key] = (low * mask, high * mask)
        return self._known[key]

    def _average(self, reader: str, end: Tensor, mask: Tensor) -> Tensor:
        still = self.experiment.recording.main(reader)
        way = ((end - still).flatten(1) * mask).view_as(still)
        steps = self.steps if bool(way.any()) else 1
        slopes = [
            _at(self.experiment, reader, still + way * ((step + 0.5) / steps))
            for step in range(steps)
        ]
        return torch.stack(slopes).mean(dim=0)

    def _ends(self, reader: str) -> list[Tensor]:
        """What a reader computes when all its writers are at each end of the contrast."""
        if reader not in self._moved:
            experiment = self.experiment
            writers = [
                w
                for w in experiment.graph.predecessors(reader)
                if experiment.recording.layers[w].neurons
            ]
            plan = experiment.wiring.between(writers, [reader])
            self._moved[reader] = []
            for end in (0, -1):
                found = []
                for samples in experiment.sample_pieces():
                    rows = {w: experiment.end(w, end)[samples] for w in writers}
                    outcome = experiment.replay.run(plan, rows, samples=samples)
                    found.append(outcome.probed[reader])
                self._moved[reader].append(torch.cat(found))
        return self._moved[reader]


def pull_back(experiment: Experiment, writer: str, readers: Mapping[str, Tensor]) -> Tensor:
    """Pull slopes by readers' outputs back to a writer, ``[samples, elements]``.

    Through the glue between and the readers themselves, at the background; to first order, what
    the writer's rows do to the target by way of these readers.
    """
    plan = experiment.wiring.direct(writer, readers)
    main, found = experiment.recording.main(writer), []
    for samples in experiment.sample_pieces():
        with torch.enable_grad(), without_parameter_gradients(experiment.replay.model):
            rows = main[samples].clone().requires_grad_()
            # In-place glue may not write to a leaf.
            outcome = experiment.replay.run(plan, {writer: rows.clone()}, samples=samples)
            parts = [
                (probed.flatten(1) * readers[name][samples]).sum()
                for name, probed in outcome.probed.items()
            ]
            found.append(_gradient(torch.stack(parts).sum(), rows))
    return torch.cat(found).flatten(1)


def by_output(experiment: Experiment, writer: str) -> Tensor:
    """Gradient of the target by a layer through glue alone, ``[samples, elements]``."""
    rows = experiment.recording.main(writer)
    return _at(experiment, writer, rows, experiment.wiring.output(writer))


def _at(experiment: Experiment, layer: str, rows: Tensor, plan: Plan | None = None) -> Tensor:
    """Gradient of the target where a layer passes on these rows, ``[samples, elements]``."""
    plan = plan or experiment.wiring.suffix([layer])
    found = []
    for samples in experiment.sample_pieces():
        with torch.enable_grad(), without_parameter_gradients(experiment.replay.model):
            given = rows[samples].clone().requires_grad_()
            outcome = experiment.replay.run(plan, {layer: given.clone()}, samples=samples)
            total = experiment.targets(outcome, 1, samples).sum()
            found.append(_gradient(total, given))
    return torch.cat(found).flatten(1)


def _everywhere(experiment: Experiment) -> dict[str, Tensor]:
    """Gradients of the target by all layers, from one run forwards and backwards."""
    plan = experiment.wiring.everything()
    found: dict[str, list[Tensor]] = {name: [] for name in plan.nudged}
    for samples in experiment.sample_pieces():
        with torch.enable_grad(), without_parameter_gradients(experiment.replay.model):
            nudges = {
                name: torch.zeros_like(experiment.recording.main(name)[samples]).requires_grad_()
                for name in plan.nudged
            }
            outcome = experiment.replay.run(plan, nudges, samples=samples)
            total = experiment.targets(outcome, 1, samples).sum()
            if total.requires_grad:
                slopes = torch.autograd.grad(
                    total, list(nudges.values()), allow_unused=True, materialize_grads=True
                )
            else:
                slopes = tuple(map(torch.zeros_like, nudges.values()))
        for name, slope in zip(nudges, slopes, strict=True):
            found[name].append(slope.flatten(1))
    return {name: torch.cat(slopes) for name, slopes in found.items()}


def _gradient(total: Tensor, rows: Tensor) -> Tensor:
    """Gradient of a number by rows; 0 where it does not depend on them."""
    if not total.requires_grad:
        return torch.zeros_like(rows)
    (slope,) = torch.autograd.grad(total, rows, allow_unused=True, materialize_grads=True)
    return slope


def _mask(experiment: Experiment, layer: str, seen: Sequence[int] | None) -> Tensor:
    mask = experiment.mask(layer, seen)
    rows = experiment.recording.main(layer)
    return mask.flatten(1) if mask.dim() == rows.dim() else mask.flatten()[None]
