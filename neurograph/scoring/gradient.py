"""First-order effects: how the target's gradient predicts what moves would do.

Edge attribution patching (Syed, Rager & Conmy 2023, arXiv:2310.10348), from masked outputs of the
readers: one run forwards and backwards for each reader and writer, however many neurons there are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neurograph.replay.observe import without_parameter_gradients
from neurograph.replay.plan import Plan
from neurograph.scoring.experiment import Effects, Experiment
from neurograph.scoring.routes import TARGET, Through

__all__ = ["Gradients"]


class Gradients:
    """Estimates of node effects in one experiment; remembers the gradients of the readers."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._readers: dict[str, Tensor] = {}

    def node_effects(self, writer: str, through: Through) -> Effects:
        """Estimate the effects of all neurons of a layer through chosen outputs of its readers.

        The same as `neurograph.scoring.exact.node_effects` to first order in the move: the
        gradient at the background, times the way from the first value to the last.
        """
        experiment = self.experiment
        slope = torch.zeros_like(experiment.recording.main(writer).flatten(1))
        readers = {name: self._weights(name, seen) for name, seen in through.items() if name}
        if readers:
            plan = experiment.wiring.direct(writer, readers)
            slope += self._slope(writer, plan, readers)
        if TARGET in through:
            slope += self._slope(writer, experiment.wiring.output(writer), None)
        levels = experiment.levels(writer)
        change = slope * (levels[-1] - levels[0])
        units = experiment.units(writer)
        effects = (change[:, units.members] * units.once).sum(2).T.double()
        samples = effects.shape[1]
        spread = effects.std(dim=1, correction=1) if samples > 1 else effects[:, 0] * math.nan
        mean = effects.mean(dim=1)
        return Effects(mean, spread / math.sqrt(samples), mean[:, None] * math.nan)

    def _weights(self, reader: str, outputs: object) -> Tensor:
        """Gradient of the target by a reader's outputs, where they see the move."""
        if reader not in self._readers:
            plan = self.experiment.wiring.suffix([reader])
            self._readers[reader] = self._slope(reader, plan, None)
        known = self._readers[reader].view_as(self.experiment.recording.main(reader))
        return known * self.experiment.mask(reader, outputs)  # type: ignore[arg-type]

    def _slope(self, layer: str, plan: Plan, readers: dict[str, Tensor] | None) -> Tensor:
        """Gradient by a layer's rows, ``[samples, elements]``: of the target, or of its readers.

        `readers` says how much each of their outputs counts.
        """
        experiment, found = self.experiment, []
        main = experiment.recording.main(layer)
        for samples in experiment.sample_pieces():
            with torch.enable_grad(), without_parameter_gradients(experiment.replay.model):
                rows = main[samples].clone().requires_grad_()
                # In-place glue may not write to a leaf.
                outcome = experiment.replay.run(plan, {layer: rows.clone()}, samples=samples)
                if readers is None:
                    total = experiment.targets(outcome, 1, samples).sum()
                else:
                    parts = outcome.probed.items()
                    total = torch.stack([(t * readers[n][samples]).sum() for n, t in parts]).sum()
                if total.requires_grad:
                    (gradient,) = torch.autograd.grad(total, rows, allow_unused=True)
                else:
                    gradient = None
            found.append(torch.zeros_like(rows) if gradient is None else gradient)
        return torch.cat(found).flatten(1)
