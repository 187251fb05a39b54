"""Edges among kept neurons: what moves along each of them, and what that does to the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neurograph.scoring.exact import edge_effects, reader_effects
from neurograph.scoring.experiment import Effects, Experiment, Moves
from neurograph.scoring.routes import fits_narrow, probe_one

__all__ = ["Measured", "edges_from"]

_SHARE = 4  # of the memory budget, what moved outputs may take that wait to be run


class Measured(NamedTuple):
    """Edges from some neurons of a writer to some outputs of a reader.

    `pairs` ``[edges, 2]`` are positions among those asked for, `transfer` ``[edges]`` how far each
    neuron moves the output, as a share of its own range.
    """

    reader: str
    pairs: Tensor
    transfer: Tensor
    effects: Effects


def edges_from(
    experiment: Experiment,
    writer: str,
    neurons: Sequence[int],
    readers: Mapping[str, Sequence[int]],
) -> Iterator[Measured]:
    """Measure the edges from neurons of a layer to outputs of its readers.

    An edge is there if the neuron moves the output at all: its effect may still be zero, where
    what it does is cancelled further down.

    Transfers: the writer's neuron moves between its first and last level and only the reader is
    computed; the change of its output is projected on that output's own range (over positions,
    if it has several) and averaged over the reference samples. Shares multiply along a path, and
    so say where a path may lead even where it is cancelled further down.
    """
    near = {name: seen for name, seen in readers.items() if fits_narrow(experiment, writer, name)}
    for reader in near:
        yield from _narrow(experiment, writer, neurons, reader, near[reader])
    far = {name: seen for name, seen in readers.items() if name not in near}
    for some, group in _groups(experiment, len(neurons), far):
        moves, block = experiment.ends(writer, neurons[some])
        for reader, moved in _probed(experiment, moves, group).items():
            share = _shares(experiment, reader, group[reader], moved, block)
            pairs = _moving(experiment, reader, share)
            if len(pairs):
                i, j = pairs.T
                # Ends that several neurons share move an output only once.
                places = block[i] * len(group[reader]) + j[:, None]
                keys, index = torch.unique(places, return_inverse=True)
                outputs = torch.as_tensor(list(group[reader]), device=keys.device)
                arrived = Moves(reader, outputs[keys % len(outputs)], moved.flatten(0, 1)[keys])
                effects = reader_effects(experiment, arrived, index)
                pairs = pairs + pairs.new_tensor([some.start, 0])
                yield Measured(reader, pairs, share[i, j], effects)


def _narrow(
    experiment: Experiment, writer: str, neurons: Sequence[int], reader: str, outputs: Sequence[int]
) -> Iterator[Measured]:
    """Edges to a Linear reader behind pointwise glue: each pair is computed by itself."""
    moves, block = experiment.ends(writer, neurons)
    seen = torch.as_tensor(list(outputs), device=block.device)
    pairs = torch.cartesian_prod(torch.arange(len(moves), device=block.device), seen)
    size, width = experiment.recording.size, experiment.units(reader).members.shape[1]
    moved = moves.values.new_empty(len(pairs), size, width)
    plan = experiment.wiring.direct(writer, [reader])
    for some, samples in experiment.chunks(len(pairs), [plan]):
        which = pairs[some, 0]
        part = Moves(writer, moves.neurons[which], moves.values[which]).cut(slice(None), samples)
        hop = probe_one(experiment, part, reader, pairs[some, 1], samples)
        moved[some, samples] = hop.values
    share = _shares(experiment, reader, outputs, moved.view(len(moves), -1, size, width), block)
    moving = _moving(experiment, reader, share)
    for j in range(len(outputs)):
        mine = moving[moving[:, 1] == j]
        if len(mine):
            chosen = [neurons[i] for i in mine[:, 0].tolist()]
            effects = edge_effects(experiment, writer, chosen, reader, outputs[j])
            yield Measured(reader, mine, share[mine[:, 0], j], effects)


def _groups(
    experiment: Experiment, neurons: int, readers: Mapping[str, Sequence[int]]
) -> Iterator[tuple[slice, dict[str, Sequence[int]]]]:
    """Neurons, and readers whose outputs moved by them fit into memory together."""
    room = experiment.memory // _SHARE
    group: dict[str, Sequence[int]] = {}
    used = 0
    for name, outputs in readers.items():
        rows = experiment.recording.main(name)
        each = rows.element_size() * experiment.units(name).members.shape[1] * len(rows)
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


def _probed(
    experiment: Experiment, moves: Moves, readers: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """What each reader's outputs become as each of the moves happens alone.

    Returns
    -------
    dict of str to Tensor, [moves, outputs, samples, elements of an output]
    """
    recording, writer = experiment.recording, moves.layer
    seen = {name: experiment.units(name).members[list(o)] for name, o in readers.items()}
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
    """Transfers ``[neurons, outputs]`` of what `_probed` returns."""
    change = (moved[block[:, 1]] - moved[block[:, 0]]).double()
    members = experiment.units(reader).members[list(outputs)]
    own = experiment.levels(reader)[[0, -1]]
    span = (own[1] - own[0])[:, members].movedim(1, 0).double()
    length = span.square().sum(2).clamp_min(1e-300)
    return ((change * span).sum(3) / length).mean(2)


def _moving(experiment: Experiment, reader: str, share: Tensor) -> Tensor:
    """Pairs whose share is more than rounding, ``[pairs, 2]``."""
    eps = torch.finfo(experiment.recording.main(reader).dtype).eps
    return torch.nonzero(share.abs() > 4 * eps)
