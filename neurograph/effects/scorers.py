"""The scorers by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

import torch

from neurograph.effects.auto import Auto
from neurograph.effects.budget import Budget
from neurograph.effects.differentiable import Checked
from neurograph.effects.edges import probe_edges
from neurograph.effects.exact import node_effects, total_effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.gradient import Gradient
from neurograph.effects.hybrid import Hybrid
from neurograph.effects.routes import Through
from neurograph.effects.scorer import Edges, Scored, Scorer, ScorerName
from neurograph.effects.slopes import Background, along
from neurograph.utils.checks import one_of

__all__ = ["Exact", "check_scorer", "choose_scorer"]

_STEPS = 5  # of a move, where gradients are averaged: as many as EAP-IG takes


class Exact:
    """Every intervention is executed."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def nodes(
        self, writer: str, through: Through, *, surely: Sequence[int] = (), alone: bool = False
    ) -> Scored:
        """Effects of all neurons of a layer through chosen outputs of its readers."""
        neurons = range(len(self.experiment.units(writer)))
        return Scored(node_effects(self.experiment, writer, neurons, through), None)

    def totals(
        self,
        writer: str,
        neurons: Sequence[int],
        *,
        surely: Sequence[int] = (),
        alone: bool = False,
    ) -> Scored:
        """Effects of neurons through everything."""
        return Scored(total_effects(self.experiment, writer, neurons), None)

    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,
    ) -> Iterator[Edges]:
        """Effects of the edges that move anything.

        An edge is there if the neuron moves the output at all: its effect may still be zero, where
        what it does is cancelled further down.
        """
        for probe in probe_edges(self.experiment, writer, neurons, readers):
            every = torch.arange(len(probe.pairs), device=probe.pairs.device)
            scored = Scored(probe.measure(every), None)
            yield Edges(probe.reader, probe.pairs, probe.transfer, scored)


def check_scorer(scorer: str) -> None:
    """Raise OptionError for a scorer that there is not."""
    one_of(scorer, "scorer", get_args(ScorerName))


def choose_scorer(
    scorer: ScorerName,
    experiment: Experiment,
    *,
    budget: Budget,
    start: float,
    seed: int,
    phases: Mapping[str, float],
) -> Scorer:
    """Make the scorer of that name; the rest is for `Auto`.

    ModelError where one that estimates by gradients would be blind; see `Checked`.
    """
    check_scorer(scorer)
    if scorer == "exact":
        return Exact(experiment)
    if scorer == "auto":
        return Auto(experiment, budget, start, seed, phases)
    estimating: Scorer = Hybrid(experiment)
    if scorer == "gradient":
        estimating = Gradient(experiment, [Background(experiment)])
    elif scorer == "integrated":
        estimating = Gradient(experiment, along(experiment, _STEPS))
    return _ByLayer(experiment, Checked(experiment, estimating, scorer))


class _ByLayer:
    """What runs on some rows only, which gradients do not see, is measured, all else estimated."""

    def __init__(self, experiment: Experiment, estimating: Scorer) -> None:
        self.experiment, self.estimating = experiment, estimating

    def _of(self, writer: str) -> Scorer:
        routed = self.experiment.recording.layers[writer].routed
        return Exact(self.experiment) if routed else self.estimating

    def nodes(
        self, writer: str, through: Through, *, surely: Sequence[int] = (), alone: bool = False
    ) -> Scored:
        """Effects of all neurons of a layer through chosen outputs of its readers."""
        return self._of(writer).nodes(writer, through, surely=surely, alone=alone)

    def totals(
        self,
        writer: str,
        neurons: Sequence[int],
        *,
        surely: Sequence[int] = (),
        alone: bool = False,
    ) -> Scored:
        """Effects of neurons through everything."""
        return self._of(writer).totals(writer, neurons, surely=surely, alone=alone)

    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,
    ) -> Iterator[Edges]:
        """Effects of edges."""
        return self._of(writer).edges(writer, neurons, readers, transfers=transfers)
