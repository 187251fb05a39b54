"""Heuristic scores and upper bounds: what completions of a path promise, and the most they can do.

Seen from each layer, backwards from the target. A *promise* ranks prefixes of paths, and nothing
else: it is first-order, from slopes of the glue at the background. A *limit* is certain: no path
that goes on from a neuron can do more to the target than its limit times the neuron's change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
import torch
from torch import Tensor

from neurograph.discovery.lipschitz import stretch
from neurograph.effects.edges import probe_outputs
from neurograph.effects.experiment import Experiment, Moves
from neurograph.effects.routes import fits_narrow
from neurograph.effects.slopes import AtBackground, by_output
from neurograph.replay.elementwise import Chain, find_output_chain
from neurograph.replay.wiring import target_layers

__all__ = [
    "Ending",
    "Outlook",
    "find_ending",
    "look_ahead",
    "parts_of",
    "pieces",
    "probe_ends",
    "times",
]

_NUDGE = 0.1  # of a neuron's range, to measure slopes by
_SHARE = 4  # of the memory budget, what may wait at once


class Ending(NamedTuple):
    """A layer that the target is one column of, behind pointwise glue alone."""

    layer: str
    column: int
    chain: Chain
    sign: int


class Way(NamedTuple):
    """One kind of completion, as its heuristic score takes it.

    `slopes` ``[samples × elements, neurons]``, one for each part of the neurons, are what the glue
    ahead makes of a change, None where that differs too much between completions; `gain`
    ``[neurons]`` is what becomes of it then.
    """

    slopes: list[Tensor] | None
    gain: Tensor


@dataclass(frozen=True, eq=False)
class Outlook:
    """Heuristic scores and upper bounds of changes of one layer's neurons.

    Attributes
    ----------
    ways : list of Way
    limit : Tensor of float64, [neurons]
        The most that a completion can do to the target, for a mean absolute change of 1.
    parts : list of Tensor of int64
        Neurons of about as many elements, whose changes are tables together.
    """

    ways: list[Way]
    limit: Tensor
    parts: list[Tensor]

    @property
    def gain(self) -> Tensor:
        """What the best completions promise for a mean absolute change of 1, ``[neurons]``."""
        order = torch.cat(self.parts).argsort()
        each = [
            g if s is None else torch.cat([part.abs().mean(0) for part in s])[order] * g
            for s, g in self.ways
        ]
        return torch.stack(each).amax(0)

    def promise(self, change: Tensor, part: int) -> Tensor:
        """What completions promise for changes of each neuron of a part.

        Parameters
        ----------
        change : Tensor, [prefixes, neurons, samples × elements]
        part : int

        Returns
        -------
        Tensor, [prefixes, neurons]
        """
        each = [
            gain[self.parts[part]]
            * (change.abs().mean(2) if slopes is None else (change * slopes[part].T).mean(2).abs())
            for slopes, gain in self.ways
        ]
        return torch.stack(each).amax(0)

    def promise_scaled(self, change: Tensor, weight: Tensor) -> Tensor:
        """The same where each prefix changes all neurons alike, but for a factor.

        Parameters
        ----------
        change : Tensor, [prefixes, samples × elements]
        weight : Tensor, [prefixes, neurons]

        Returns
        -------
        Tensor, [prefixes, neurons]
        """
        each = [
            gain * change.abs().mean(1)[:, None]
            if slopes is None
            else gain * (change @ slopes[0]).abs() / len(slopes[0])
            for slopes, gain in self.ways
        ]
        return torch.stack(each).amax(0) * weight.abs()


def times(a: Tensor, b: Tensor) -> Tensor:
    """Multiply numbers of which some are infinite: what is not there stays nothing."""
    return torch.nan_to_num(a * b, nan=0.0, posinf=torch.inf)


def find_ending(experiment: Experiment) -> Ending | None:
    """Find the layer that the target is a column of, if it is one behind a chain."""
    target, replay = experiment.target, experiment.replay
    if target.index is None or replay.one_by_one:
        return None
    layer, chain = find_output_chain(replay, target.logits)
    if layer is None or chain is None or layer not in experiment.graph:
        return None
    units = experiment.units(layer)
    flat = len(experiment.recording.layers[layer].shape) == 1
    if not flat or not units.plain or experiment.moving(layer) is not None:
        return None
    return Ending(layer, target.index, chain, target.sign)


def look_ahead(
    experiment: Experiment, graph: nx.DiGraph, ending: Ending | None
) -> dict[str, Outlook]:
    """Outlook of each layer of a graph in which every layer has a way to the target."""
    found: dict[str, Outlook] = {}
    for layer in reversed(list(graph)):
        ways: list[Way] = []
        size = len(experiment.units(layer))
        limit = torch.zeros(size, dtype=torch.float64, device=_device(experiment, layer))
        if layer in target_layers(experiment.graph):
            ways.append(_to_target(experiment, layer, ending))
            limit = _limit_at_end(layer, ending, limit)
        for reader in graph.successors(layer):
            known = found[reader]
            if fits_narrow(experiment, layer, reader):
                ways.append(_narrow(experiment, layer, reader, known))
                weight = experiment.linear(reader).weight.abs().double()
                most = times(weight, known.limit[:, None]).amax(0)
                constant = most.new_tensor(stretch(experiment.chains[layer, reader]))
                limit = torch.maximum(limit, times(constant, most))
            else:
                ways.append(Way(None, _direct_gain(experiment, layer, reader, known)))
                limit = torch.where(known.limit.amax() > 0, torch.inf, limit)
        found[layer] = Outlook(ways, limit, parts_of(experiment, layer))
    return found


def parts_of(experiment: Experiment, layer: str) -> list[Tensor]:
    """Part a layer's neurons into those of about as many elements each."""
    units = experiment.units(layer)
    return units.alike(range(len(units)))


def _device(experiment: Experiment, layer: str) -> torch.device:
    return experiment.recording.main(layer).device


def _limit_at_end(layer: str, ending: Ending | None, limit: Tensor) -> Tensor:
    """Without an ending nothing is known; with one, the target sees nothing else."""
    if ending is None:
        return torch.full_like(limit, torch.inf)
    if ending.layer == layer:
        limit[ending.column] = stretch(ending.chain)
    return limit


def _to_target(experiment: Experiment, layer: str, ending: Ending | None) -> Way:
    """What the target makes of a change by itself: its gradient through glue alone."""
    units = experiment.units(layer)
    if ending is not None and ending.layer == layer:
        rows = experiment.recording.main(layer).flatten(1)
        slope = torch.zeros_like(rows)
        slope[:, ending.column] = _slope(experiment, layer, ending.chain)[:, ending.column]
    else:
        slope = by_output(experiment, AtBackground(experiment), layer)
    each = [
        _by_neuron(slope[:, units.members(part)] * units.once(part) * units.widest(part))
        for part in parts_of(experiment, layer)
    ]
    return Way(each, slope.new_ones(len(units)))


def _narrow(experiment: Experiment, layer: str, reader: str, known: Outlook) -> Way:
    slope = _slope(experiment, layer, experiment.chains[layer, reader])
    weight = experiment.linear(reader).weight.abs()
    gain = (weight * known.gain[:, None]).amax(0)
    return Way([_by_neuron(slope[:, experiment.units(layer).members()])], gain)


def _by_neuron(values: Tensor) -> Tensor:
    """From ``[samples, neurons, elements]`` to ``[samples × elements, neurons]``."""
    return values.transpose(1, 2).flatten(0, 1).contiguous()


def _slope(experiment: Experiment, layer: str, chain: Chain) -> Tensor:
    """Slope of a chain at the background, ``[samples, elements of a row]``, by a small nudge."""
    rows = experiment.recording.main(layer)
    step = _nudge(experiment, layer).view(rows.shape[1:])
    up, down = chain(rows + step), chain(rows - step)
    return ((up - down) / (2 * step)).flatten(1)


def _nudge(experiment: Experiment, layer: str) -> Tensor:
    """How far to nudge each element, ``[elements of a row]``; not 0, so that all can be asked."""
    levels, rows = experiment.levels(layer), experiment.recording.main(layer).flatten(1)
    span = (levels[-1] - levels[0]).abs().mean(0)
    least = 1e-3 * (rows.abs().mean(0) + 1e-3)
    return torch.maximum(_NUDGE * span, least)


def _direct_gain(experiment: Experiment, layer: str, reader: str, known: Outlook) -> Tensor:
    """What readers make of a nudge of each neuron, and their best completions of that."""
    units = experiment.units(layer)
    rows, step = experiment.recording.main(layer).flatten(1), _nudge(experiment, layer)
    found = rows.new_zeros(len(units))
    for part in parts_of(experiment, layer):
        for some in pieces(experiment, len(part), reader):
            neurons = part[some]
            members = units.members(neurons, units.widest(part))
            still, by = rows[:, members].movedim(1, 0), step[members][:, None]
            ends = neurons, torch.stack([still - by, still + by], dim=1)
            size = 2 * by.mean(2)
            for outputs in parts_of(experiment, reader):
                moved = probe_ends(experiment, layer, *ends, reader, outputs)
                change = (moved[:, 1] - moved[:, 0]).flatten(2).abs().mean(2)
                gained = (change / size * known.gain[outputs]).amax(1)
                found[neurons] = torch.maximum(found[neurons], gained)
    return found


def probe_ends(
    experiment: Experiment,
    layer: str,
    neurons: Tensor,
    values: Tensor,
    reader: str,
    outputs: Tensor,
) -> Tensor:
    """Some outputs of a reader at both ends of moves ``[moves, 2, samples or 1, elements]``.

    Returns
    -------
    Tensor, [moves, 2, outputs, samples, elements of an output]
    """
    moves = Moves(layer, neurons.repeat_interleave(2), values.flatten(0, 1))
    moved = probe_outputs(experiment, moves, {reader: outputs.tolist()})[reader]
    return moved.view(-1, 2, *moved.shape[1:])


def pieces(experiment: Experiment, moves: int, reader: str) -> Iterator[slice]:
    """Cut moves so that what they make of outputs of a reader, part by part, fits into memory."""
    rows, units = experiment.recording.main(reader), experiment.units(reader)
    most = max(len(part) * units.widest(part) for part in parts_of(experiment, reader))
    each = 2 * rows.element_size() * most * len(rows)
    step = max(1, experiment.memory // (_SHARE * each))
    for start in range(0, moves, step):
        yield slice(start, min(start + step, moves))
