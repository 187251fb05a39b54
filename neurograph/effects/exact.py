"""Exact effects: every intervention is executed, through the model's own code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from neurograph.effects.effects import Effects, gathered, summarise
from neurograph.effects.experiment import Experiment, Moves
from neurograph.effects.routes import Route, Through, choose_route, probe_one, total_route
from neurograph.errors import ModelError
from neurograph.model.layers import Neuron

__all__ = [
    "by_size",
    "node_differences",
    "node_effects",
    "path_differences",
    "path_effects",
    "reader_effects",
    "total_effects",
]

_Measured = TypeVar("_Measured")


def node_effects(
    experiment: Experiment, writer: str, neurons: Sequence[int], through: Through
) -> Effects:
    """Effects of neurons on the target through chosen outputs of their readers.

    Only the outputs in `through` are computed from an input in which the neuron was moved;
    every other output keeps the background, and everything after the readers runs normally.
    """
    return _measure(experiment, writer, neurons, choose_route(experiment, writer, through))


def node_differences(
    experiment: Experiment, writer: str, neurons: Sequence[int], through: Through
) -> Tensor:
    """The same sample by sample: target(last level) − target(first), ``[neurons, samples]``."""
    route = choose_route(experiment, writer, through)

    def measured(some: Sequence[int]) -> Tensor:
        moves, block = experiment.moves(writer, some)
        targets = _targets(experiment, moves, route).double()
        return targets[block[:, 1]] - targets[block[:, 0]]

    parts, order = by_size(experiment, writer, neurons, measured)
    return torch.cat(parts)[order]


def total_effects(
    experiment: Experiment, writer: str, neurons: Sequence[int], *, levels: bool = False
) -> Effects:
    """Effects of neurons on the target through everything: what an ordinary ablation measures.

    With `levels` the response is at all levels of the contrast, else at its ends alone.
    """
    return _measure(experiment, writer, neurons, total_route(experiment, writer), levels)


def reader_effects(experiment: Experiment, moves: Moves, block: Tensor) -> Effects:
    """Effects of what already moves a layer's own outputs; `block` as for `summarise`."""
    targets = _targets(experiment, moves, total_route(experiment, moves.layer))
    effects = summarise(targets, block, coarse=experiment.coarse)
    _check_finite(effects, moves.layer)
    return effects


def path_effects(experiment: Experiment, paths: Sequence[Sequence[Neuron]]) -> Effects:
    """Effects of paths: the first neuron moves, the change travels along the path alone.

    At every step only the path's next neuron is computed from an input in which the one before
    it was moved; the last neuron reaches the target through glue alone.
    """
    effects = summarise(*_along_paths(experiment, paths), coarse=experiment.coarse)
    _check_finite(effects, paths[0][0].layer)
    return effects


def path_differences(experiment: Experiment, paths: Sequence[Sequence[Neuron]]) -> Tensor:
    """The same sample by sample: target(last level) − target(first), ``[paths, samples]``."""
    targets, block = _along_paths(experiment, paths)
    return targets[block[:, 1]].double() - targets[block[:, 0]].double()


def _along_paths(
    experiment: Experiment, paths: Sequence[Sequence[Neuron]]
) -> tuple[Tensor, Tensor]:
    """Targets ``[blocks, samples]``, and which block is each end of each path's first neuron."""
    routes: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, path in enumerate(paths):
        routes[tuple(n.layer for n in path)].append(position)
    device = experiment.levels(paths[0][0].layer).device
    parts, order = [], []
    for layers, positions in routes.items():
        steps = torch.tensor(
            [[experiment.units(n.layer).unit(n) for n in paths[i]] for i in positions],
            device=device,
        )
        parts.append(_path_targets(experiment, layers, steps))
        order += positions
    block = torch.arange(2 * len(paths), device=device).view(-1, 2)
    return torch.cat(parts), block[torch.tensor(order, device=device).argsort()]


def _path_targets(experiment: Experiment, layers: tuple[str, ...], steps: Tensor) -> Tensor:
    """Targets of paths along the same layers, two blocks a path; steps ``[paths, layers]``."""
    start = layers[0]
    ends = experiment.levels(start)[[0, -1]]
    first = ends[:, :, experiment.units(start).members(steps[:, 0])].movedim(2, 0).flatten(0, 1)
    indices = steps.repeat_interleave(2, dim=0)
    moves = Moves(start, indices[:, 0], first)
    plan = experiment.wiring.output([layers[-1]])
    hops = [experiment.wiring.direct(a, [b]) for a, b in pairwise(layers)]

    def pieces() -> Iterator[tuple[slice, slice, Tensor]]:
        for blocks, samples in experiment.chunks(len(moves), [plan, *hops]):
            some = moves.cut(blocks, samples)
            for depth, reader in enumerate(layers[1:], start=1):
                some = probe_one(experiment, some, reader, indices[blocks, depth], samples)
            rows = {some.layer: experiment.rows(some, samples)}
            outcome = experiment.replay.run(plan, rows, blocks=len(some), samples=samples)
            yield blocks, samples, experiment.targets(outcome, len(some), samples)

    return gathered(pieces(), len(moves), experiment.recording.size)


def _measure(
    experiment: Experiment,
    writer: str,
    neurons: Sequence[int],
    route: Route,
    levels: bool = False,
) -> Effects:
    """Run every move of the neurons along a route and read the target."""

    def measured(some: Sequence[int]) -> Effects:
        moves, block = experiment.moves(writer, some, levels=levels)
        return summarise(_targets(experiment, moves, route), block, coarse=experiment.coarse)

    parts, order = by_size(experiment, writer, neurons, measured)
    effects = Effects.joined(parts).at(order)
    _check_finite(effects, writer)
    return effects


def by_size(
    experiment: Experiment,
    writer: str,
    neurons: Sequence[int],
    measured: Callable[[Sequence[int]], _Measured],
) -> tuple[list[_Measured], Tensor]:
    """Measure neurons of about as many elements together: moves of all are as wide as the widest.

    Returns
    -------
    parts : list
        What was measured of each of the sets of neurons.
    order : Tensor of int64, [neurons]
        Where each neuron is among them, one after the other.
    """
    wanted, together = list(neurons), experiment.units(writer).alike(neurons)
    parts = [measured([wanted[i] for i in some.tolist()]) for some in together]
    return parts, torch.cat(together).argsort()


def _targets(experiment: Experiment, moves: Moves, route: Route) -> Tensor:
    """Targets of moves along a route, ``[blocks, samples]``."""

    def pieces() -> Iterator[tuple[slice, slice, Tensor]]:
        for blocks, samples in experiment.chunks(len(moves), route.plans, route.extra_bytes):
            some = moves.cut(blocks, samples)
            outcome = experiment.replay.run(
                route.plans[-1],
                route.given(some, samples),
                blocks=len(some),
                samples=samples,
                masks=route.masks,
            )
            yield blocks, samples, experiment.targets(outcome, len(some), samples)

    return gathered(pieces(), len(moves), experiment.recording.size)


def _check_finite(effects: Effects, layer: str) -> None:
    if not torch.isfinite(effects.effect).all():
        raise ModelError(
            f"effects of layer {layer!r} are NaN or infinite: the target overflows when its "
            "neurons move; choose a narrower contrast or a target without a logarithm of 0"
        )
