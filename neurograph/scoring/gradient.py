"""First-order effects: how the target's gradient predicts what moves would do.

Edge attribution patching (Syed, Rager & Conmy 2023, arXiv:2310.10348), from masked outputs of the
readers: gradients at the background, linear all the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from neurograph.replay.observe import without_parameter_gradients
from neurograph.scoring.edges import probe_edges
from neurograph.scoring.effects import Effects, estimate
from neurograph.scoring.experiment import Experiment
from neurograph.scoring.linear_readers import LinearEdges
from neurograph.scoring.routes import TARGET, Through, fits_narrow
from neurograph.scoring.scorer import Edges, Scored
from neurograph.scoring.slopes import AtBackground, by_output, pull_back

__all__ = ["Gradient"]


class Gradient:
    """Estimates to first order in the move; remembers gradients within one experiment."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.slopes = AtBackground(experiment)
        self._tables: dict[tuple[str, tuple[int, ...]], dict[str, Effects]] = {}

    def nodes(self, writer: str, through: Through, signs: int = 2) -> Scored:
        """Gradient through the readers' outputs in `through`, times the move."""
        experiment = self.experiment
        differences = torch.zeros(
            (len(experiment.units(writer)), experiment.recording.size), dtype=torch.float64
        ).to(experiment.recording.main(writer).device)
        far: dict[str, Tensor] = {}
        for name, seen in through.items():
            if name == TARGET:
                differences += self._moved(writer, by_output(experiment, writer))
                continue
            slopes = self.slopes(name, seen)
            if fits_narrow(experiment, writer, name):
                linear = LinearEdges(experiment, writer, name)
                differences += linear.through(linear.derivatives(), slopes)
            else:
                far[name] = slopes[0]
        if far:
            differences += self._moved(writer, pull_back(experiment, writer, far))
        return Scored.estimated(estimate(differences))

    def totals(self, writer: str, neurons: Sequence[int]) -> Scored:
        """Gradient through everything, times the move."""
        moved = self._moved(writer, self.slopes.whole(writer))
        return Scored.estimated(estimate(moved[list(neurons)]))

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

    def _table(
        self, writer: str, neurons: Sequence[int], reader: str, outputs: Sequence[int]
    ) -> Effects:
        """Effects of all edges from the neurons to the outputs, ``[neurons × outputs]``."""
        if fits_narrow(self.experiment, writer, reader):
            linear = LinearEdges(self.experiment, writer, reader)
            slopes = self.slopes(reader, outputs)
            return linear.effects(linear.derivatives(), slopes, neurons, outputs)
        key = reader, tuple(outputs)
        if key not in self._tables:
            self._tables[key] = self._pulled(reader, outputs)
        found = self._tables[key][writer]
        rows = torch.as_tensor(list(neurons), device=found.effect.device)
        places = rows[:, None] * len(outputs) + torch.arange(len(outputs), device=rows.device)
        return found.at(places.flatten())

    def _pulled(self, reader: str, outputs: Sequence[int]) -> dict[str, Effects]:
        """Pull the slope of each output back to all writers of a reader at once."""
        experiment = self.experiment
        units = experiment.units(reader)
        slope = self.slopes(reader, outputs)[0]
        writers = [
            name
            for name in experiment.graph.predecessors(reader)
            if experiment.recording.layers[name].neurons
        ]
        plan = experiment.wiring.between(writers, [reader])
        found: dict[str, list[Tensor]] = {name: [] for name in writers}
        for samples in experiment.sample_pieces():
            with torch.enable_grad(), without_parameter_gradients(experiment.replay.model):
                rows = {
                    name: experiment.recording.main(name)[samples].clone().requires_grad_()
                    for name in writers
                }
                # In-place glue may not write to a leaf.
                given = {name: tensor.clone() for name, tensor in rows.items()}
                probed = experiment.replay.run(plan, given, samples=samples).probed[reader]
                answers = (probed.flatten(1) * slope[samples]).sum(dim=0)
                totals = [answers[torch.unique(units.members[o])].sum() for o in outputs]
            pieces: dict[str, list[Tensor]] = {name: [] for name in writers}
            for total in totals:
                for name, gradient in _gradients(total, rows).items():
                    pieces[name].append(self._moved(name, gradient.flatten(1), samples))
            for name, moved in pieces.items():
                found[name].append(torch.stack(moved, dim=1))
        return {name: estimate(torch.cat(m, dim=2).flatten(0, 1)) for name, m in found.items()}

    def _moved(self, layer: str, slope: Tensor, samples: slice = slice(None)) -> Tensor:
        """What each neuron's move adds to the target along a slope, ``[neurons, samples]``."""
        levels, units = self.experiment.levels(layer), self.experiment.units(layer)
        span = levels[-1] - levels[0]
        change = slope * (span[samples] if len(span) > 1 else span)
        if len(units) == 1:
            return (change[:, units.members[0]] * units.once[0]).sum(1)[None].double()
        return (change[:, units.members] * units.once).sum(2).T.double()


def _gradients(total: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a number by several rows; 0 by those that it does not depend on."""
    if not total.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in rows.items()}
    slopes = torch.autograd.grad(
        total, list(rows.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(rows, slopes, strict=True))
