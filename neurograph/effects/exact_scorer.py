"""Exact scorer: every intervention is executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from neurograph.effects.budget import Schedule
from neurograph.effects.edges import probe_edges
from neurograph.effects.exact import node_effects, total_effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import Through
from neurograph.effects.scorer import Edges, Method, Scored, Scorer

__all__ = ["Exact", "ExactScorer"]


@dataclass(frozen=True)
class Exact(Method):
    """Measure every neuron and edge by intervention."""

    estimates = False

    def start(self, experiment: Experiment, schedule: Schedule) -> Scorer:
        """Make the scorer for one experiment."""
        return ExactScorer(experiment)


class ExactScorer(Scorer):
    """Every intervention is executed."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def nodes(self, writer: str, through: Through) -> Scored:
        """Effects of all neurons of a layer through chosen outputs of its readers."""
        neurons = range(len(self.experiment.units(writer)))
        return Scored(node_effects(self.experiment, writer, neurons, through), None)

    def totals(self, writer: str, neurons: Sequence[int]) -> Scored:
        """Effects of neurons through everything."""
        return Scored(total_effects(self.experiment, writer, neurons), None)

    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,  # they are measured in any case
    ) -> Iterator[Edges]:
        """Effects of the edges that move anything.

        An edge is there if the neuron moves the output at all: its effect may still be zero, where
        what it does is cancelled further down.
        """
        for probe in probe_edges(self.experiment, writer, neurons, readers):
            every = torch.arange(len(probe.pairs), device=probe.pairs.device)
            scored = Scored(probe.measure(every), None)
            yield Edges(probe.reader, probe.pairs, probe.transfer, scored)
