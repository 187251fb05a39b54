"""Differentiability of models: where gradients pass, and where they do not though changes do.

A forward may run without gradients, detach a part of the way, round, or compare: then estimates
by gradients leave out what interventions find.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn
from torch.utils import checkpoint as checkpoints

from neurograph.effects.exact import node_effects, total_effects
from neurograph.effects.exact_scorer import ExactScorer
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import Through
from neurograph.effects.scorer import Edges, Scored, Scorer
from neurograph.errors import ModelError
from neurograph.model.observe import without_parameter_gradients
from neurograph.replay.plan import Plan
from neurograph.replay.wiring import perturbed, target_layers

__all__ = ["Checked", "blind_layers", "differentiable", "find_blocked"]

_ROWS = slice(0, 2)
_FEW = 8  # neurons measured where all estimates are 0


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Follow gradients by activations, not by weights, for the length of a block.

    Checkpoints are off meanwhile: on the way back they run parts of the model again, as they are
    without any intervention.
    """
    with torch.enable_grad(), without_parameter_gradients(model), _without_checkpoints():
        yield


@contextlib.contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Let `torch.utils.checkpoint.checkpoint` just call what it is given."""

    class Called:
        @staticmethod
        def apply(function: Any, _preserve: bool, *args: Any) -> Any:
            return function(*args)

    def passed(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        yield

    stand_ins = {
        "CheckpointFunction": Called,
        "_checkpoint_without_reentrant_generator": passed,
    }
    before = {name: getattr(checkpoints, name) for name in stand_ins if hasattr(checkpoints, name)}
    try:
        for name in before:
            setattr(checkpoints, name, stand_ins[name])
        yield
    finally:
        for name, value in before.items():
            setattr(checkpoints, name, value)


def find_blocked(experiment: Experiment) -> list[tuple[str, str]]:
    """Edges of the layer graph along which changes reach the target but gradients do not.

    The target has the empty name. All edges, where autograd refuses to run the model at all.
    """
    graph, layers = experiment.graph, experiment.recording.layers
    ends = target_layers(graph)
    matter = set(ends).union(*(nx.ancestors(graph, name) for name in ends))
    moving = frozenset(n for n in matter if layers[n].neurons and not layers[n].routed)
    edges = [(w, r) for w, r in graph.edges if w in moving and r in matter]
    edges += [(name, "") for name in ends if name in moving]
    try:
        passing = _passing(experiment, moving, frozenset(r for _, r in edges if r))
    except (ModelError, RuntimeError):
        return edges
    blocked = [edge for edge in edges if edge not in passing]
    # A target may leave parts of the output alone.
    return [(w, r) for w, r in blocked if r or _moves_target(experiment, w)]


def _moves_target(experiment: Experiment, writer: str) -> bool:
    """Whether the target sees a layer through glue alone."""
    recording, left_out = experiment.recording, experiment.wiring.left_out
    live = frozenset(n for n in left_out if not recording.layers[n].is_input)
    plan = Plan(given=frozenset({writer}), open=live, frozen=frozenset(recording.layers) - live)
    plan = replace(plan, frozen=plan.frozen - plan.given)
    everyone = slice(0, recording.size)
    seen = [
        experiment.targets(experiment.replay.run(plan, {writer: rows}), 1, everyone)
        for rows in (recording.main(writer).clone(), *perturbed(recording, writer))
    ]
    return any(not torch.equal(moved, seen[0]) for moved in seen[1:])


def blind_layers(experiment: Experiment, blocked: Sequence[tuple[str, str]]) -> frozenset[str]:
    """Layers some of whose ways to the target are blocked."""
    starts = {writer for writer, _ in blocked}
    return frozenset(starts.union(*(nx.ancestors(experiment.graph, name) for name in starts)))


def _passing(
    experiment: Experiment, moving: frozenset[str], readers: frozenset[str]
) -> set[tuple[str, str]]:
    """Edges along which gradients pass, from two runs in which every layer is frozen."""
    wiring, recording = experiment.wiring, experiment.recording
    samples = slice(None) if experiment.replay.one_by_one else _ROWS
    # Inputs cannot be open, and need not be: a run gives them.
    live = frozenset(n for n in wiring.left_out if not recording.layers[n].is_input)
    rest = frozenset(recording.layers) - live
    found: set[tuple[str, str]] = set()
    for probed in (readers, frozenset[str]()):
        plan = Plan(open=live, frozen=rest, probed=probed, nudged=moving)
        with differentiable(experiment.replay.model):
            nudges = {
                name: torch.zeros_like(recording.main(name)[samples]).requires_grad_()
                for name in moving
            }
            outcome = experiment.replay.run(plan, nudges, samples=samples)
            seen = {name: outcome.probed[name].sum() for name in probed}
            if not probed:
                seen = {"": experiment.targets(outcome, 1, samples).sum()}
            names = {id(leaf): name for name, leaf in nudges.items()}
            found |= {(w, r) for r, value in seen.items() for w in _leaves(value, names)}
    return found


def _leaves(value: Tensor, names: Mapping[int, str]) -> set[str]:
    """Names of the leaves that a tensor's gradient reaches."""
    found, known = set(), set()
    front = [value.grad_fn]
    while front:
        node = front.pop()
        if node is None or node in known:
            continue
        known.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in names:
            found.add(names[id(leaf)])
        front += [following for following, _ in node.next_functions]
    return found


class Checked(Scorer):
    """A scorer that estimates by gradients, and refuses where those say nothing.

    What runs on some rows only, which gradients do not see, is measured.

    Parameters
    ----------
    experiment : Experiment
    scorer : Scorer
    name : str
        As users call it.
    inputs : bool
        Whether gradients must pass from the model's inputs to their readers, too.

    Raises
    ------
    ModelError
        When first asked, for a model some of whose layers no gradients pass; and for a layer of
        which all estimates are 0 though moving its neurons has effects.
    """

    def __init__(
        self, experiment: Experiment, scorer: Scorer, name: str, *, inputs: bool = True
    ) -> None:
        self.experiment, self.scorer, self.name, self.inputs = experiment, scorer, name, inputs
        self._exact = ExactScorer(experiment)
        self._passes = functools.cache(self._check)

    def _check(self) -> None:
        blocked = self.experiment.blocked(find_blocked)
        if not self.inputs:
            blocked = [edge for edge in blocked if self.experiment.graph.in_degree(edge[0])]
        if blocked:
            writer, reader = blocked[0]
            to = f"layer {reader!r}" if reader else "the target"
            raise ModelError(
                f"no gradient passes from layer {writer!r} to {to}, which it moves (no_grad, "
                f"detach, numbers made whole?): scorer={self.name!r} would miss that, use "
                "scorer='exact' or 'auto'"
            )

    def nodes(self, writer: str, through: Through) -> Scored:
        """Effects of all neurons of a layer through chosen outputs of its readers."""
        if self._is_routed(writer):
            return self._exact.nodes(writer, through)
        self._passes()
        scored = self.scorer.nodes(writer, through)
        if self._is_flat(scored):
            some = range(len(self.experiment.units(writer)))[:_FEW]
            self._refuse_if(node_effects(self.experiment, writer, some, through).effect, writer)
        return scored

    def totals(self, writer: str, neurons: Sequence[int]) -> Scored:
        """Effects of neurons through everything."""
        if self._is_routed(writer):
            return self._exact.totals(writer, neurons)
        self._passes()
        scored = self.scorer.totals(writer, neurons)
        if self._is_flat(scored):
            some = list(neurons)[:_FEW]
            self._refuse_if(total_effects(self.experiment, writer, some).effect, writer)
        return scored

    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,
    ) -> Iterator[Edges]:
        """Effects of edges."""
        if self._is_routed(writer):
            yield from self._exact.edges(writer, neurons, readers, transfers=transfers)
            return
        self._passes()
        for edges in self.scorer.edges(writer, neurons, readers, transfers=transfers):
            if self._is_flat(edges.scored):
                seen = readers[edges.reader]
                for i, j in edges.pairs[:_FEW].tolist():
                    through = {edges.reader: [seen[j]]}
                    measured = node_effects(self.experiment, writer, [neurons[i]], through)
                    self._refuse_if(measured.effect, edges.reader)
            yield edges

    def _is_routed(self, layer: str) -> bool:
        return self.experiment.recording.layers[layer].routed

    @staticmethod
    def _is_flat(scored: Scored) -> bool:
        return len(scored.effects) > 0 and not scored.effects.effect.any()

    def _refuse_if(self, measured: Tensor, layer: str) -> None:
        if measured.any():
            raise ModelError(
                f"every gradient by layer {layer!r} is 0 though moving its neurons moves the "
                f"target (steps, rounding, saturation?): scorer={self.name!r} is blind there, use "
                "scorer='exact' or 'auto'"
            )
