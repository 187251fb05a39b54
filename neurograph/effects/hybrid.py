"""Hybrid attribution: readers computed exactly, all behind them to first order.

How far a moved neuron moves each output of its readers is executed; what that does to the target
is the output's slope at the background times its change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neurograph.effects.budget import Schedule
from neurograph.effects.differentiable import Checked
from neurograph.effects.edges import probe_edges
from neurograph.effects.effects import estimate
from neurograph.effects.exact import by_size, node_differences
from neurograph.effects.experiment import Experiment
from neurograph.effects.linear_edges import LinearEdges
from neurograph.effects.routes import TARGET, Through, fits_narrow
from neurograph.effects.scorer import Edges, Method, Scored, Scorer
from neurograph.effects.slopes import AtBackground, seen_slope

__all__ = ["Hybrid", "HybridScorer"]


@dataclass(frozen=True)
class Hybrid(Method):
    """Compute the readers, and estimate by gradients what they do to the target."""

    def start(self, experiment: Experiment, schedule: Schedule) -> Scorer:
        """Make the scorer for one experiment."""
        # What a model's inputs do to their readers is executed: no gradient need pass there.
        return Checked(experiment, HybridScorer(experiment), self.name, inputs=False)


class HybridScorer(Scorer):
    """Estimates that are linear behind the readers.

    Parameters
    ----------
    experiment : Experiment
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.point = experiment, AtBackground(experiment)

    def nodes(self, writer: str, through: Through) -> Scored:
        """Effects of all neurons of a layer through the readers' outputs in `through`."""
        return self._through(writer, range(len(self.experiment.units(writer))), through)

    def totals(self, writer: str, neurons: Sequence[int]) -> Scored:
        """Effects of neurons through all outputs of all readers, and glue."""
        graph, layers = self.experiment.graph, self.experiment.recording.layers
        through: dict[str, Sequence[int] | None] = {
            reader: None for reader in graph.successors(writer) if layers[reader].neurons
        }
        if graph.nodes[writer]["output"]:
            through[TARGET] = None
        return self._through(writer, neurons, through)

    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,  # they are computed in any case
    ) -> Iterator[Edges]:
        """Effects of the edges that move anything."""
        for probe in probe_edges(self.experiment, writer, neurons, readers):
            effects = probe.estimate(self.point.slope(probe.reader))
            yield Edges(probe.reader, probe.pairs, probe.transfer, Scored.estimated(effects))

    def _through(self, writer: str, neurons: Sequence[int], through: Through) -> Scored:
        experiment, chosen = self.experiment, list(neurons)
        shape = len(chosen), experiment.recording.size
        device = experiment.recording.main(writer).device
        differences = torch.zeros(shape, dtype=torch.float64, device=device)
        far: dict[str, Tensor] = {}
        for name, seen in through.items():
            if name == TARGET:
                differences += node_differences(experiment, writer, chosen, {TARGET: None})
                continue
            slope = seen_slope(experiment, self.point, name, seen)
            if fits_narrow(experiment, writer, name):
                linear = LinearEdges(experiment, writer, name)
                differences += linear.through(linear.change(), slope)[chosen]
            else:
                far[name] = slope
        if far:
            differences += self._far(writer, chosen, far)
        return Scored.estimated(estimate(differences))

    def _far(self, writer: str, neurons: Sequence[int], slopes: Mapping[str, Tensor]) -> Tensor:
        """Differences by way of readers that are replayed, ``[neurons, samples]``."""
        experiment = self.experiment
        parts, order = by_size(
            experiment, writer, neurons, lambda some: self._alike(writer, some, slopes)
        )
        return torch.cat(parts)[order]

    def _alike(self, writer: str, neurons: Sequence[int], slopes: Mapping[str, Tensor]) -> Tensor:
        experiment = self.experiment
        moves, block = experiment.moves(writer, neurons)
        plan = experiment.wiring.direct(writer, slopes)
        shape = len(moves), experiment.recording.size
        answers = torch.zeros(shape, dtype=torch.float64, device=block.device)
        for blocks, samples in experiment.chunks(len(moves), [plan]):
            some = moves.cut(blocks, samples)
            rows = {writer: experiment.rows(some, samples)}
            outcome = experiment.replay.run(plan, rows, blocks=len(some), samples=samples)
            for name, probed in outcome.probed.items():
                still = experiment.recording.main(name)[samples].flatten(1)
                change = probed.reshape(len(some), *still.shape) - still
                answers[blocks, samples] += (change * slopes[name][samples]).sum(dim=2)
        return answers[block[:, 1]] - answers[block[:, 0]]
