"""Gradient attribution: effects linear all the way to the target, at one point or several.

At the background alone this is edge attribution patching (Syed, Rager & Conmy 2023,
arXiv:2310.10348), which equals exact effects to first order. At points along a joint move it is
integrated gradients; see `neurograph.effects.slopes.along`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neurograph.effects.budget import Schedule
from neurograph.effects.differentiable import Checked, differentiable
from neurograph.effects.edges import probe_edges
from neurograph.effects.effects import Effects, estimate
from neurograph.effects.experiment import Experiment
from neurograph.effects.linear_edges import LinearEdges
from neurograph.effects.routes import TARGET, Through, fits_narrow
from neurograph.effects.scorer import Edges, Method, Scored, Scorer
from neurograph.effects.slopes import (
    AtBackground,
    SlopePoint,
    along,
    by_output,
    gradients,
    pull_back,
    seen_slope,
)
from neurograph.utils.checks import whole

__all__ = ["Gradient", "GradientScorer", "Integrated"]

_FEW = 16  # neurons of a layer whose sums a matrix product gives faster than gathering


@dataclass(frozen=True)
class Gradient(Method):
    """Estimate by gradients at the background: edge attribution patching."""

    def start(self, experiment: Experiment, schedule: Schedule) -> Scorer:
        """Make the scorer for one experiment."""
        scorer = GradientScorer(experiment, [AtBackground(experiment)])
        return Checked(experiment, scorer, self.name)


@dataclass(frozen=True)
class Integrated(Method):
    """Estimate by gradients averaged while all neurons move at once: integrated gradients.

    Parameters
    ----------
    steps : int
        At how many points of each move; 5 is what EAP-IG takes.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole(self.steps, "scorer: steps", least=1))

    def start(self, experiment: Experiment, schedule: Schedule) -> Scorer:
        """Make the scorer for one experiment."""
        scorer = GradientScorer(experiment, along(experiment, self.steps))
        return Checked(experiment, scorer, self.name)


class GradientScorer(Scorer):
    """Estimates from gradients at some points; remembers them within one experiment.

    Parameters
    ----------
    experiment : Experiment
    points : sequence of SlopePoint
        What they give is weighted and added.
    """

    def __init__(self, experiment: Experiment, points: Sequence[SlopePoint]) -> None:
        self.experiment, self.points = experiment, points
        self._tables: dict[tuple[str, tuple[int, ...]], dict[str, Effects]] = {}
        self._sums: dict[str, Tensor] = {}

    def nodes(self, writer: str, through: Through) -> Scored:
        """Gradient through the readers' outputs in `through`, times the move."""
        parts = [point.weight * self._nodes(point, writer, through) for point in self.points]
        return Scored.estimated(estimate(self._added(writer, parts)))

    def totals(self, writer: str, neurons: Sequence[int]) -> Scored:
        """Gradient through everything, times the move."""
        parts = [p.weight * self._moved(p, writer, p.slope(writer)) for p in self.points]
        return Scored.estimated(estimate(self._added(writer, parts)[list(neurons)]))

    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,
    ) -> Iterator[Edges]:
        """Gradient of each output by the neurons, times the move and the output's slope."""
        if transfers:
            for probe in probe_edges(self.experiment, writer, neurons, readers):
                outputs = readers[probe.reader]
                table = self._table(writer, neurons, probe.reader, outputs)
                effects = table.at(probe.pairs[:, 0] * len(outputs) + probe.pairs[:, 1])
                yield Edges(probe.reader, probe.pairs, probe.transfer, Scored.estimated(effects))
            return
        for reader, outputs in readers.items():
            effects = self._table(writer, neurons, reader, outputs)
            pairs = torch.cartesian_prod(torch.arange(len(neurons)), torch.arange(len(outputs)))
            unknown = torch.full_like(effects.effect, torch.nan)
            pairs = pairs.view(-1, 2).to(effects.effect.device)
            yield Edges(reader, pairs, unknown, Scored.estimated(effects))

    # -- nodes -----------------------------------------------------------------------------------

    def _nodes(self, point: SlopePoint, writer: str, through: Through) -> Tensor:
        parts, far = [], dict[str, Tensor]()
        for name, seen in through.items():
            if name == TARGET:
                slope = by_output(self.experiment, point, writer)
                parts.append(self._moved(point, writer, slope))
            elif fits_narrow(self.experiment, writer, name):
                linear = LinearEdges(self.experiment, writer, name)
                change = linear.derivative(point.rows(writer), point.span(writer))
                parts.append(
                    linear.through(change, seen_slope(self.experiment, point, name, seen)).double()
                )
            else:
                far[name] = seen_slope(self.experiment, point, name, seen)
        if far:
            slope = pull_back(self.experiment, point, writer, far)
            parts.append(self._moved(point, writer, slope))
        return self._added(writer, parts)

    def _added(self, writer: str, parts: Sequence[Tensor]) -> Tensor:
        """Sum of differences ``[neurons, samples]``, 0 if there are none."""
        rows = self.experiment.recording.main(writer)
        shape = len(self.experiment.units(writer)), len(rows)
        none = torch.zeros(shape, dtype=torch.float64, device=rows.device)
        return sum(parts, start=none)

    # -- edges -----------------------------------------------------------------------------------

    def _table(
        self, writer: str, neurons: Sequence[int], reader: str, outputs: Sequence[int]
    ) -> Effects:
        """Effects of all edges from the neurons to the outputs, ``[neurons × outputs]``."""
        if fits_narrow(self.experiment, writer, reader):
            linear = LinearEdges(self.experiment, writer, reader)
            terms = [
                (
                    linear.derivative(point.rows(writer), point.span(writer)),
                    point.weight * seen_slope(self.experiment, point, reader, outputs),
                )
                for point in self.points
            ]
            return linear.effects(terms, neurons, outputs)
        key = reader, tuple(outputs)
        if key not in self._tables:
            self._tables[key] = self._pulled(reader, outputs)
        found = self._tables[key][writer]
        rows = torch.as_tensor(list(neurons), device=found.effect.device)
        places = rows[:, None] * len(outputs) + torch.arange(len(outputs), device=rows.device)
        return found.at(places.flatten())

    def _pulled(self, reader: str, outputs: Sequence[int]) -> dict[str, Effects]:
        """Pull the slope of each output back to all writers of a reader at once."""
        layers = self.experiment.recording.layers
        before = self.experiment.graph.predecessors(reader)
        writers = [w for w in before if layers[w].neurons and not layers[w].routed]
        whole: dict[str, Tensor] = {}
        for point in self.points:
            pieces: dict[str, list[Tensor]] = {name: [] for name in writers}
            for samples in self.experiment.sample_pieces():
                for name, moved in self._pulled_at(point, reader, outputs, writers, samples):
                    pieces[name].append(moved)
            for name, parts in pieces.items():
                moved = point.weight * torch.cat(parts, dim=2)
                whole[name] = whole[name] + moved if name in whole else moved
        return {name: estimate(moved.flatten(0, 1)) for name, moved in whole.items()}

    def _pulled_at(
        self,
        point: SlopePoint,
        reader: str,
        outputs: Sequence[int],
        writers: Sequence[str],
        samples: slice,
    ) -> Iterator[tuple[str, Tensor]]:
        """Differences ``[neurons, outputs, samples]`` of each writer, at one point."""
        experiment, units = self.experiment, self.experiment.units(reader)
        plan = experiment.wiring.between(writers, [reader])
        slope = seen_slope(self.experiment, point, reader, outputs)[samples]
        with differentiable(experiment.replay.model):
            leaves = [point.rows(name)[samples].clone().requires_grad_() for name in writers]
            # In-place glue may not write to a leaf.
            given = {name: leaf.clone() for name, leaf in zip(writers, leaves, strict=True)}
            probed = experiment.replay.run(plan, given, samples=samples).probed[reader]
            answers = (probed.flatten(1) * slope).sum(dim=0)
            totals = [answers[torch.unique(units.members(o))].sum() for o in outputs]
        moved: list[list[Tensor]] = [[] for _ in writers]
        for total in totals:
            for i, gradient in enumerate(gradients(total, leaves, again=True)):
                moved[i].append(self._moved(point, writers[i], gradient.flatten(1), samples))
        for name, parts in zip(writers, moved, strict=True):
            yield name, torch.stack(parts, dim=1)

    def _moved(
        self, point: SlopePoint, layer: str, slope: Tensor, samples: slice = slice(None)
    ) -> Tensor:
        """What each neuron's move adds to the target along a slope, ``[neurons, samples]``."""
        units, span = self.experiment.units(layer), point.span(layer)
        change = slope * (span[samples] if len(span) > 1 else span)
        if len(units) > _FEW:
            return units.sums(change).T.double()
        if layer not in self._sums:
            marks = change.new_zeros(len(units), change.shape[1])
            self._sums[layer] = marks.scatter_(1, units.members(), 1.0)
        return (self._sums[layer] @ change.T).double()
