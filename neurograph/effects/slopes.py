"""Gradients of the target: at the background, and on the way of a joint move.

A point knows what each layer passes on there, how far its neurons still have to move, and the
gradient of the target by its rows: all ``[samples, elements]`` once flattened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from neurograph.effects.differentiable import differentiable
from neurograph.effects.experiment import Experiment
from neurograph.replay.plan import Plan

__all__ = [
    "AtBackground",
    "Blend",
    "SlopePoint",
    "along",
    "by_output",
    "gradients",
    "pull_back",
    "seen_slope",
]


class SlopePoint(Protocol):
    """A point where gradients are taken.

    Attributes
    ----------
    weight : float
        Of what is found there, in the sum over points.
    """

    weight: float

    def rows(self, layer: str) -> Tensor:
        """Rows that a layer passes on."""
        ...

    def differing(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """Rows of those layers that pass on others than recorded."""
        ...

    def span(self, layer: str) -> Tensor:
        """How far each element moves, ``[samples or 1, elements]``."""
        ...

    def slope(self, layer: str) -> Tensor:
        """Gradient of the target by the layer's rows, through everything."""
        ...


class AtBackground:
    """Where nothing has moved: neurons go from their first level to their last.

    Where the background is a real run, one run forwards and backwards gives the gradients by all
    layers; elsewhere each takes a run of what descends from it.
    """

    weight = 1.0

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._known: dict[str, Tensor] = {}

    def rows(self, layer: str) -> Tensor:
        """Recorded rows."""
        return self.experiment.recording.main(layer)

    def differing(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """None."""
        return {}

    def span(self, layer: str) -> Tensor:
        """From the first level to the last."""
        levels = self.experiment.levels(layer)
        return levels[-1] - levels[0]

    def slope(self, layer: str) -> Tensor:
        """Gradient by a layer's rows, through everything."""
        if layer not in self._known:
            if self.experiment.real:
                self._known |= _everywhere(self.experiment, {}, {})[0]
            else:
                plan = self.experiment.wiring.suffix([layer])
                self._known[layer] = _at(self.experiment, layer, self.rows(layer), {}, plan)
        return self._known[layer]


class Blend:
    """A share of the way on which all neurons of all layers go to one end of the contrast at once.

    Each layer computes from what arrives and passes its neurons on that share of the way from
    there to their levels: one run, forwards and backwards.

    Parameters
    ----------
    experiment : Experiment
    end : {0, -1}
        Which level.
    share : float
        In (0, 1).
    weight : float
    """

    def __init__(self, experiment: Experiment, end: int, share: float, weight: float) -> None:
        self.experiment, self.end, self.share, self.weight = experiment, end, share, weight
        self._gradients: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}

    def rows(self, layer: str) -> Tensor:
        """What the layer passes on there."""
        self._run()
        return self._rows[layer]

    def differing(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """All that have neurons."""
        self._run()
        return {name: self._rows[name] for name in layers if name in self._rows}

    def span(self, layer: str) -> Tensor:
        """From the background to the level."""
        return self.experiment.end(layer, self.end).flatten(1) - self._still(layer).flatten(1)

    def slope(self, layer: str) -> Tensor:
        """Gradient by a layer's rows, through everything."""
        self._run()
        return self._gradients[layer]

    def _still(self, layer: str) -> Tensor:
        return self.experiment.recording.main(layer)

    def _moving(self, layer: str) -> Tensor:
        """1 for the elements of neurons that may move, ``[samples or 1, *shape]``."""
        mask = self.experiment.mask(layer, range(len(self.experiment.units(layer))))
        return (mask if mask.dim() == self._still(layer).dim() else mask[None]).to(
            self._still(layer)
        )

    def _run(self) -> None:
        if self._rows:
            return
        layers = self.experiment.wiring.everything().nudged
        moving = {name: self.share * self._moving(name) for name in layers}
        added = {name: m * self.experiment.end(name, self.end) for name, m in moving.items()}
        kept = {name: (1 - m).expand_as(added[name]) for name, m in moving.items()}
        self._gradients, self._rows = _everywhere(self.experiment, added, kept)


def along(experiment: Experiment, steps: int) -> list[SlopePoint]:
    """Points of the joint moves to both ends of the contrast, by the midpoint rule.

    Gradients averaged there, times the moves, are integrated gradients (Sundararajan, Taly & Yan
    2017, arXiv:1703.01365). What EAP-IG (Hanna, Pezzelle & Belinkov 2024, arXiv:2403.17806) moves
    is the model's input; here all layers go, since neurons may move to levels that no input gives.
    """
    layers = experiment.wiring.everything().nudged
    points: list[SlopePoint] = []
    for end, sense in ((0, -1.0), (-1, 1.0)):
        pairs = ((experiment.end(name, end), experiment.recording.main(name)) for name in layers)
        if any(not torch.equal(*pair) for pair in pairs):
            points += [
                Blend(experiment, end, (step + 0.5) / steps, sense / steps) for step in range(steps)
            ]
    return points


def pull_back(
    experiment: Experiment, point: SlopePoint, writer: str, readers: Mapping[str, Tensor]
) -> Tensor:
    """Pull slopes by readers' outputs back to a writer, ``[samples, elements]``.

    Through the glue between and the readers themselves; to first order, what the writer's rows do
    to the target by way of these readers.
    """
    graph = experiment.wiring.reach
    beside = {name for reader in readers for name in graph.predecessors(reader)} - {writer}
    others = point.differing(sorted(beside))
    plan = experiment.wiring.between([writer, *others], readers)
    found = []
    for samples in experiment.sample_pieces():
        with differentiable(experiment.replay.model):
            rows = point.rows(writer)[samples].clone().requires_grad_()
            # In-place glue may not write to a leaf, nor to what is needed again.
            given = {name: tensor[samples].clone() for name, tensor in others.items()}
            given[writer] = rows.clone()
            outcome = experiment.replay.run(plan, given, samples=samples)
            parts = [
                (probed.flatten(1) * readers[name][samples]).sum()
                for name, probed in outcome.probed.items()
            ]
            found += gradients(torch.stack(parts).sum(), [rows])
    return torch.cat(found).flatten(1)


def seen_slope(
    experiment: Experiment, point: SlopePoint, reader: str, seen: Sequence[int] | None
) -> Tensor:
    """Gradient by a layer's rows; 0 by outputs that do not see the move (None: all do)."""
    slope = point.slope(reader).view_as(experiment.recording.main(reader))
    return (slope * experiment.mask(reader, seen)).flatten(1)


def by_output(experiment: Experiment, point: SlopePoint, writer: str) -> Tensor:
    """Gradient of the target by a layer through glue alone, ``[samples, elements]``."""
    graph = experiment.wiring.reach
    ends = [name for name in graph if graph.nodes[name]["output"] and name != writer]
    others = point.differing(ends)
    plan = experiment.wiring.output([writer, *others])
    return _at(experiment, writer, point.rows(writer), others, plan)


def _at(
    experiment: Experiment, layer: str, rows: Tensor, others: Mapping[str, Tensor], plan: Plan
) -> Tensor:
    """Gradient of the target where a layer passes on these rows, ``[samples, elements]``."""
    found = []
    for samples in experiment.sample_pieces():
        with differentiable(experiment.replay.model):
            leaf = rows[samples].clone().requires_grad_()
            given = {name: tensor[samples].clone() for name, tensor in others.items()}
            outcome = experiment.replay.run(plan, {**given, layer: leaf.clone()}, samples=samples)
            found += gradients(experiment.targets(outcome, 1, samples).sum(), [leaf])
    return torch.cat(found).flatten(1)


def _everywhere(
    experiment: Experiment, added: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the target by what all layers pass on, and that, from one run and its reverse.

    `added` rows go on top of the share that is `kept` of what layers compute; by default nothing
    is added and all is kept.
    """
    plan = experiment.wiring.everything()
    slopes: dict[str, list[Tensor]] = {name: [] for name in plan.nudged}
    passed: dict[str, list[Tensor]] = {name: [] for name in plan.nudged}
    for samples in experiment.sample_pieces():
        with differentiable(experiment.replay.model):
            nudges = {}
            for name in slopes:
                some = experiment.recording.main(name)[samples]
                rows = added[name][samples] if name in added else torch.zeros_like(some)
                nudges[name] = rows.clone().requires_grad_()
            shares = {name: share[samples] for name, share in kept.items()}
            outcome = experiment.replay.run(plan, nudges, samples=samples, shares=shares)
            total = experiment.targets(outcome, 1, samples).sum()
            found = gradients(total, list(nudges.values()))
        for name, slope in zip(nudges, found, strict=True):
            slopes[name].append(slope.flatten(1))
            passed[name].append(outcome.passed[name].detach())
    return _joined(slopes), _joined(passed)


def _joined(pieces: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(tensors) for name, tensors in pieces.items()}


def gradients(total: Tensor, leaves: Sequence[Tensor], *, again: bool = False) -> list[Tensor]:
    """Gradients of a number by tensors; 0 by those it does not depend on.

    With `again` the graph is kept, for other numbers of the same run.
    """
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(
        torch.autograd.grad(
            total, leaves, retain_graph=again, allow_unused=True, materialize_grads=True
        )
    )
