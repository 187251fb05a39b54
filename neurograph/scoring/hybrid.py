"""Readers computed exactly, all behind them to first order.

How far a moved neuron moves each output of its readers is executed; what that does to the target
is the output's slope times its change. With slopes at the background this is the hybrid scorer;
with slopes averaged along the readers' own moves it is integrated gradients from there on, as in
EAP-IG (Hanna, Pezzelle & Belinkov 2024, arXiv:2403.17806).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from neurograph.scoring.edges import probe_edges
from neurograph.scoring.effects import estimate
from neurograph.scoring.exact import node_differences
from neurograph.scoring.experiment import Experiment
from neurograph.scoring.linear_readers import LinearEdges
from neurograph.scoring.routes import TARGET, Through, fits_narrow
from neurograph.scoring.scorer import Edges, Scored
from neurograph.scoring.slopes import Slopes

__all__ = ["Hybrid"]


class Hybrid:
    """Estimates that are linear behind the readers.

    Parameters
    ----------
    experiment : Experiment
    slopes : Slopes
        How the target answers to the readers' outputs.
    """

    def __init__(self, experiment: Experiment, slopes: Slopes) -> None:
        self.experiment, self.slopes = experiment, slopes

    def nodes(self, writer: str, through: Through, signs: int = 2) -> Scored:
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
        transfers: bool = True,
    ) -> Iterator[Edges]:
        """Effects of the edges that move anything."""
        for probe in probe_edges(self.experiment, writer, neurons, readers):
            effects = probe.estimate(self.slopes)
            yield Edges(probe.reader, probe.pairs, probe.transfer, Scored.estimated(effects))

    def _through(self, writer: str, neurons: Sequence[int], through: Through) -> Scored:
        experiment, chosen = self.experiment, list(neurons)
        shape = len(chosen), experiment.recording.size
        device = experiment.recording.main(writer).device
        differences = torch.zeros(shape, dtype=torch.float64, device=device)
        far: dict[str, tuple[Tensor, Tensor]] = {}
        for name, seen in through.items():
            if name == TARGET:
                differences += node_differences(experiment, writer, chosen, {TARGET: None})
                continue
            slopes = self.slopes(name, seen)
            if fits_narrow(experiment, writer, name):
                linear = LinearEdges(experiment, writer, name)
                differences += linear.through(linear.changes(), slopes)[chosen]
            else:
                far[name] = slopes
        if far:
            differences += self._far(writer, chosen, far)
        return Scored.estimated(estimate(differences))

    def _far(
        self, writer: str, neurons: Sequence[int], slopes: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Differences by way of readers that are replayed, ``[neurons, samples]``."""
        experiment = self.experiment
        moves, block = experiment.ends(writer, neurons)
        plan = experiment.wiring.direct(writer, slopes)
        shape = 2, len(moves), experiment.recording.size
        answers = torch.zeros(shape, dtype=torch.float64, device=block.device)
        for blocks, samples in experiment.chunks(len(moves), [plan]):
            some = moves.cut(blocks, samples)
            rows = {writer: experiment.rows(some, samples)}
            outcome = experiment.replay.run(plan, rows, blocks=len(some), samples=samples)
            for name, probed in outcome.probed.items():
                still = experiment.recording.main(name)[samples].flatten(1)
                change = probed.reshape(len(some), *still.shape) - still
                for end, slope in enumerate(slopes[name]):
                    answers[end, blocks, samples] += (change * slope[samples]).sum(dim=2)
        low, high = answers[0][block[:, 0]], answers[1][block[:, 1]]
        idle = (block[:, 0] == block[:, 1])[:, None]  # both ends are the same move
        return torch.where(idle, 0.0, high - low)
