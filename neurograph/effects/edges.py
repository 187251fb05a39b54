"""Edges: what moves along each of them, and what that does to the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from neurograph.effects.effects import ULPS, Effects, estimate
from neurograph.effects.exact import reader_effects
from neurograph.effects.experiment import Experiment, Moves
from neurograph.effects.linear_edges import LinearEdges
from neurograph.effects.routes import fits_narrow, probe_one

__all__ = ["Probe", "probe_edges", "probe_outputs"]

_SHARE = 4  # of the memory budget, what moved outputs may take that wait to be run


class Probe(Protocol):
    """Edges whose moves have been computed, up to the outputs of one reader.

    Attributes
    ----------
    reader : str
    pairs : Tensor of int64, [edges, 2]
        Neuron and output of each edge that moves anything, as positions among those asked for.
    transfer : Tensor of float64, [edges]
    """

    reader: str
    pairs: Tensor
    transfer: Tensor

    def measure(self, which: Tensor) -> Effects:
        """Exact effects of some of the edges."""
        ...

    def estimate(self, slope: Tensor) -> Effects:
        """Effects of all edges, linear behind the reader: by its slope, ``[samples, elements]``."""
        ...


def probe_edges(
    experiment: Experiment,
    writer: str,
    neurons: Sequence[int],
    readers: Mapping[str, Sequence[int]],
) -> Iterator[Probe]:
    """Move neurons of a layer, and see what becomes of outputs of its readers.

    Transfers: the writer's neuron moves between its first and last level and only the reader is
    computed; the change of its output is projected on that output's own range (over positions,
    if it has several) and averaged over the reference samples. Shares multiply along a path, and
    so say where a path may lead even where it is cancelled further down.
    """
    near = {name: seen for name, seen in readers.items() if fits_narrow(experiment, writer, name)}
    for reader, outputs in near.items():
        beside: Probe = _Near(experiment, writer, neurons, reader, outputs)
        if len(beside.pairs):
            yield beside
    far = {name: list(seen) for name, seen in readers.items() if name not in near}
    for alike in experiment.units(writer).alike(neurons):
        for narrow in _by_size(experiment, far):
            seen = {name: [far[name][i] for i in some.tolist()] for name, some in narrow.items()}
            for some, group in _groups(experiment, len(alike), seen):
                moves, block = experiment.moves(writer, [neurons[i] for i in alike[some].tolist()])
                for reader, moved in probe_outputs(experiment, moves, group).items():
                    places = alike[some], narrow[reader]
                    probe: Probe = _Far(experiment, reader, group[reader], moved, block, places)
                    if len(probe.pairs):
                        yield probe


def _by_size(
    experiment: Experiment, readers: Mapping[str, Sequence[int]]
) -> Iterator[dict[str, Tensor]]:
    """Part outputs of readers, as places, into those of about as many elements each."""
    parts = {name: experiment.units(name).alike(outputs) for name, outputs in readers.items()}
    for number in range(max(map(len, parts.values()), default=0)):
        yield {name: found[number] for name, found in parts.items() if number < len(found)}


class _Near:
    """Edges to a Linear reader behind pointwise glue: products of matrices."""

    def __init__(
        self,
        experiment: Experiment,
        writer: str,
        neurons: Sequence[int],
        reader: str,
        outputs: Sequence[int],
    ) -> None:
        self.experiment, self.writer, self.reader = experiment, writer, reader
        self.neurons, self.outputs = list(neurons), list(outputs)
        self.linear = LinearEdges(experiment, writer, reader)
        self.change = self.linear.change()
        share = self.linear.transfers(self.change, self.neurons, self.outputs)
        largest = self.linear.largest(self.change, self.neurons, self.outputs)
        self.pairs = _moving(experiment, reader, outputs, largest)
        self.transfer = share[self.pairs[:, 0], self.pairs[:, 1]]

    def measure(self, which: Tensor) -> Effects:
        """One run of what descends from the reader for each different output."""
        rows = self.experiment.recording.main(self.reader)
        width = self.experiment.units(self.reader).widest(self.outputs)
        each = 2 * rows.element_size() * len(rows) * width
        step = max(1, self.experiment.memory // _SHARE // each)
        pieces = (which[start : start + step] for start in range(0, len(which), step))
        return Effects.joined([self._measure(self.pairs[some]) for some in pieces])

    def _measure(self, pairs: Tensor) -> Effects:
        first, rest = torch.unique(pairs[:, 0], return_inverse=True)
        neurons = [self.neurons[i] for i in first.tolist()]
        moves, block = self.experiment.moves(self.writer, neurons)
        outputs = torch.as_tensor(self.outputs, device=pairs.device)
        keys, index = _different(block[rest], pairs[:, 1], len(outputs))
        source = keys // len(outputs)
        some = Moves(self.writer, moves.neurons[source], moves.values[source])
        seen = outputs[keys % len(outputs)]
        arrived = probe_one(self.experiment, some, self.reader, seen, slice(None))
        return reader_effects(self.experiment, arrived, index)

    def estimate(self, slope: Tensor) -> Effects:
        """Weight times change times slope."""
        table = self.linear.effects([(self.change, slope)], self.neurons, self.outputs)
        return table.at(self.pairs[:, 0] * len(self.outputs) + self.pairs[:, 1])


class _Far:
    """Edges to any reader: its moved outputs, ``[moves, outputs, samples, elements]``."""

    def __init__(
        self,
        experiment: Experiment,
        reader: str,
        outputs: Sequence[int],
        moved: Tensor,
        block: Tensor,
        places: tuple[Tensor, Tensor],
    ) -> None:
        self.experiment, self.reader, self.outputs = experiment, reader, list(outputs)
        self.moved, self.block = moved, block
        share = _shares(experiment, reader, outputs, moved, block)
        largest = (moved[block[:, 1]] - moved[block[:, 0]]).abs().amax(dim=(2, 3))
        self._pairs = _moving(experiment, reader, outputs, largest)
        self.transfer = share[self._pairs[:, 0], self._pairs[:, 1]]
        self.pairs = torch.stack([at[i] for at, i in zip(places, self._pairs.T, strict=True)], 1)

    def measure(self, which: Tensor) -> Effects:
        """One run of what descends from the reader for each different output."""
        i, j = self._pairs[which].T
        keys, index = _different(self.block[i], j, len(self.outputs))
        outputs = torch.as_tensor(self.outputs, device=keys.device)
        moved = self.moved.flatten(0, 1)[keys]
        arrived = Moves(self.reader, outputs[keys % len(outputs)], moved)
        return reader_effects(self.experiment, arrived, index)

    def estimate(self, slope: Tensor) -> Effects:
        """Change of the output times slope."""
        units = self.experiment.units(self.reader)
        members, once = units.members(self.outputs), units.once(self.outputs)
        weight = slope[:, members].movedim(1, 0) * once[:, None]  # [outputs, samples, elements]
        still = self.experiment.recording.main(self.reader).flatten(1)[:, members].movedim(1, 0)
        answers = ((self.moved - still) * weight).sum(dim=3).double()
        i, j = self._pairs.T
        low, high = (answers[self.block[i, end], j] for end in (0, 1))
        return estimate(high - low)


def _different(block: Tensor, output: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Different pairs of a block and an output: ends that several neurons share move it only once.

    Returns their keys, block × outputs + output, and for each edge and end the place of its own.
    """
    keys, index = torch.unique(block * outputs + output[:, None], return_inverse=True)
    return keys, index


def _groups(
    experiment: Experiment, neurons: int, readers: Mapping[str, Sequence[int]]
) -> Iterator[tuple[slice, dict[str, Sequence[int]]]]:
    """Neurons, and readers whose outputs moved by them fit into memory together."""
    room = experiment.memory // _SHARE
    group: dict[str, Sequence[int]] = {}
    used = 0
    for name, outputs in readers.items():
        rows = experiment.recording.main(name)
        each = rows.element_size() * experiment.units(name).widest(list(outputs)) * len(rows)
        size = 2 * len(outputs) * each  # of one neuron: it has two ends
        if group and neurons * (used + size) > room:
            yield from _pieces(neurons, room // used, group)
            group, used = {}, 0
        group[name] = outputs
        used += size
    if group:
        yield from _pieces(neurons, room // used, group)


def _pieces(
    neurons: int, at_once: int, group: dict[str, Sequence[int]]
) -> Iterator[tuple[slice, dict[str, Sequence[int]]]]:
    step = max(1, at_once)
    for start in range(0, neurons, step):
        yield slice(start, start + step), group


def probe_outputs(
    experiment: Experiment, moves: Moves, readers: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """What each reader's outputs become as each of the moves happens alone.

    Returns
    -------
    dict of str to Tensor, [moves, outputs, samples, elements of an output]
    """
    recording, writer = experiment.recording, moves.layer
    seen = {name: experiment.units(name).members(list(o)) for name, o in readers.items()}
    found = {
        name: recording.main(name).new_empty(len(moves), len(m), recording.size, m.shape[1])
        for name, m in seen.items()
    }
    plan = experiment.wiring.direct(writer, readers)
    for blocks, samples in experiment.chunks(len(moves), [plan]):
        some = moves.cut(blocks, samples)
        rows = {writer: experiment.rows(some, samples)}
        outcome = experiment.replay.run(plan, rows, blocks=len(some), samples=samples)
        for name, probed in outcome.probed.items():
            flat = probed.reshape(len(some), -1, probed[0].numel())
            found[name][blocks, :, samples] = flat[:, :, seen[name]].movedim(2, 1)
    for name, moved in found.items():
        moving = experiment.moving(name)
        if moving is not None:
            still = recording.main(name).flatten(1)[:, seen[name]].movedim(1, 0)
            may = moving[:, seen[name]].movedim(1, 0)
            found[name] = torch.where(may, moved, still)
    return found


def _shares(
    experiment: Experiment, reader: str, outputs: Sequence[int], moved: Tensor, block: Tensor
) -> Tensor:
    """Transfers ``[neurons, outputs]`` of what `probe_outputs` returns."""
    change = (moved[block[:, 1]] - moved[block[:, 0]]).double()
    units, wanted = experiment.units(reader), list(outputs)
    own = experiment.levels(reader)[[0, -1]]
    span = (own[1] - own[0])[:, units.members(wanted)].movedim(1, 0).double()
    span = span * units.once(wanted)[:, None]
    length = span.square().sum(2).clamp_min(1e-300)
    return ((change * span).sum(3) / length).mean(2)


def _moving(experiment: Experiment, reader: str, outputs: Sequence[int], largest: Tensor) -> Tensor:
    """Pairs of which some sample's output moves by more than rounding, ``[pairs, 2]``.

    Not by their transfers: these are means, in which moves of several samples may cancel, and 0
    where the output has no range of its own.
    """
    rows, members = experiment.recording.main(reader), experiment.units(reader).members
    own = experiment.levels(reader)[[0, -1]]
    sizes = torch.cat([rows.flatten(1), own[1] - own[0]]).abs().amax(dim=0)
    rounding = ULPS * torch.finfo(rows.dtype).eps * sizes[members(list(outputs))].amax(dim=1)
    return torch.nonzero(largest > rounding)
