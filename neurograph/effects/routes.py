"""Intervention routes: how moved neurons reach the outputs that may see them, in four ways.

A route turns a piece of moves into rows for the layers that a replay is given; the replay does
the rest. `choose_route` decides once for a writer and what sees it, by the layer graph alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import networkx as nx
import torch
from torch import Tensor

from neurograph.effects.experiment import Experiment, Moves
from neurograph.replay.plan import Plan
from neurograph.replay.wiring import target_layers

__all__ = ["TARGET", "Route", "Through", "choose_route", "total_route"]

TARGET = ""
"""The target as a reader: it sees what reaches the model's output through glue alone."""

Through = Mapping[str, Sequence[int] | None]
"""For each reader that sees the move, which of its outputs do (None: all of them)."""

_NARROW_ELEMENTS = 2**19  # two megabytes of float32: what a core's second cache holds


class Route(Protocol):
    """One way for moves to reach the model's output.

    Attributes
    ----------
    plans : sequence of Plan
        Of the replays that it takes; the last one ends in the output.
    masks : dict of str to bool Tensor
        For its mixed layers.
    extra_bytes : int
        What the route itself takes for one row, besides the replay.
    """

    plans: Sequence[Plan]
    masks: Mapping[str, Tensor]
    extra_bytes: int

    def given(self, moves: Moves, samples: slice) -> dict[str, Tensor]:
        """Rows for the layers that the last plan is given."""
        ...


def choose_route(experiment: Experiment, writer: str, through: Through) -> Route:
    """Pick the cheapest route that is exact for a writer seen by some outputs of its readers."""
    graph = experiment.wiring.reach
    readers = [name for name in through if name != TARGET]
    if not readers:
        return _Whole(experiment, experiment.wiring.output([writer]))
    if TARGET in through or not _independent(graph, readers):
        return _Worlds(experiment, writer, through)
    if len(readers) == 1 and fits_narrow(experiment, writer, readers[0]):
        return _Narrow(experiment, writer, readers[0], through[readers[0]])
    return _Direct(experiment, writer, through)


def total_route(experiment: Experiment, writer: str) -> Route:
    """Route on which everything sees the move: an ordinary ablation."""
    reach = experiment.wiring.reach
    readers = list(reach.successors(writer))
    alone = len(readers) == 1 and not reach.nodes[writer]["output"]
    if alone and fits_narrow(experiment, writer, readers[0]):
        return _Narrow(experiment, writer, readers[0], None)
    return _Whole(experiment, experiment.wiring.suffix([writer]))


def _independent(graph: nx.DiGraph, readers: Sequence[str]) -> bool:
    """Whether no reader descends from another."""
    below = set().union(*(nx.descendants(graph, reader) for reader in readers))
    return below.isdisjoint(readers)


def fits_narrow(experiment: Experiment, writer: str, reader: str) -> bool:
    """Whether the narrow route is exact for a writer and its only seeing reader."""
    return (
        (writer, reader) in experiment.chains
        and _channels_last(experiment, writer)
        and experiment.units(writer).plain
        and experiment.units(reader).plain
        and experiment.moving(reader) is None
    )


class _Whole:
    """The moved layer itself is given."""

    masks: Mapping[str, Tensor] = {}
    extra_bytes = 0

    def __init__(self, experiment: Experiment, plan: Plan) -> None:
        self.experiment = experiment
        self.plans: Sequence[Plan] = [plan]

    def given(self, moves: Moves, samples: slice) -> dict[str, Tensor]:
        return {moves.layer: self.experiment.rows(moves, samples)}


class _Worlds(_Whole):
    """The moved layer is given, in a second world that only masked outputs see."""

    def __init__(self, experiment: Experiment, writer: str, through: Through) -> None:
        readers = [name for name in through if name != TARGET]
        plan = experiment.wiring.worlds(writer, readers, output_moved=TARGET in through)
        super().__init__(experiment, plan)
        self.masks = {name: experiment.mask(name, through[name]) for name in readers}


class _Direct:
    """Readers are computed from the moved layer alone, masked, and given."""

    masks: Mapping[str, Tensor] = {}
    extra_bytes = 0

    def __init__(self, experiment: Experiment, writer: str, through: Through) -> None:
        self.experiment = experiment
        wiring = experiment.wiring
        self.plans: Sequence[Plan] = [wiring.direct(writer, through), wiring.suffix(through)]
        self.seen = {name: experiment.mask(name, outputs) for name, outputs in through.items()}

    def given(self, moves: Moves, samples: slice) -> dict[str, Tensor]:
        recording = self.experiment.recording
        rows = {moves.layer: self.experiment.rows(moves, samples)}
        replay = self.experiment.replay
        probed = replay.run(self.plans[0], rows, blocks=len(moves), samples=samples).probed
        masked = {}
        for name, moved in probed.items():
            still = recording.main(name)[samples]
            blocks = moved.reshape(len(moves), *still.shape)
            mask = self.seen[name]
            mask = mask[samples] if mask.dim() == still.dim() else mask
            masked[name] = torch.where(mask, blocks, still).flatten(0, 1)
        return masked


class _Narrow:
    """Only the outputs that may see the move are computed, one input each.

    For a Linear reader behind pointwise glue: what one moved neuron adds to an output is its
    weight times its change. If the layers behind are of that kind too, they are computed from
    the changed outputs alone, and given; else the reader is.
    """

    masks: Mapping[str, Tensor] = {}

    def __init__(
        self, experiment: Experiment, writer: str, reader: str, outputs: Sequence[int] | None
    ) -> None:
        self.experiment, self.writer, self.reader = experiment, writer, reader
        device = experiment.recording.main(reader).device
        width = experiment.recording.layers[reader].neurons
        chosen = range(width) if outputs is None else sorted(outputs)
        self.outputs = torch.as_tensor(chosen, device=device)
        every = outputs is None  # then weights are used as they are: copies can be large
        weight = experiment.linear(reader).weight
        self.weight = weight if every else weight[self.outputs]
        self.next = {}
        for name in _readers_behind(experiment, reader):
            after = experiment.linear(name).weight
            self.next[name] = after.T if every else after[:, self.outputs].T.contiguous()
        self.plans: Sequence[Plan] = [experiment.wiring.suffix(self.next or [reader])]
        given = [experiment.recording.main(name) for name in self.next or [reader]]
        seen = given[0][:1].nbytes // given[0].shape[-1] * len(self.outputs)
        self.extra_bytes = seen + sum(t[:1].nbytes for t in given)
        self._prepared: tuple[slice, _Prepared] | None = None

    def given(self, moves: Moves, samples: slice) -> dict[str, Tensor]:
        known = self._prepare(samples)
        shape = self.experiment.recording.main(self.reader)[samples].shape[:-1]
        chain = self.experiment.chains[self.writer, self.reader]
        values = moves.values.view(*moves.values.shape[:2], *shape[1:])
        after = chain(values.to(self.weight).clone())
        places = known.inputs.shape[1]
        widths = {name: weight.shape[1] for name, weight in self.next.items()}
        if not widths:
            widths = {self.reader: self.experiment.recording.layers[self.reader].neurons}
        rows = {name: after.new_empty(len(moves), places, n) for name, n in widths.items()}
        weight = self.weight[:, moves.neurons, None]
        step = max(1, _NARROW_ELEMENTS // (places * len(self.outputs)))
        for start in range(0, len(moves), step):
            some = slice(start, start + step)
            moved = after[some].expand(-1, *shape).reshape(-1, places)
            change = moved - known.inputs[moves.neurons[some]]
            self._fill(rows, some, change, weight[:, some], known)
        return {name: t.view(-1, *shape[1:], widths[name]) for name, t in rows.items()}

    def _fill(
        self,
        rows: dict[str, Tensor],
        some: slice,
        change: Tensor,
        weight: Tensor,
        known: _Prepared,
    ) -> None:
        """Compute some blocks: seen outputs ``[outputs, blocks, places]``, then what they feed."""
        seen = torch.addcmul(known.still[:, None], weight, change[None])
        if not self.next:
            out = rows[self.reader][some]
            if len(self.outputs) == out.shape[2]:
                out[:] = seen.permute(1, 2, 0)
            else:
                out[:] = known.rest[self.reader]
                out[..., self.outputs] = seen.permute(1, 2, 0)
            return
        for i, (name, after) in enumerate(self.next.items()):
            chain = self.experiment.chains[self.reader, name]
            last = i == len(self.next) - 1
            active = chain(seen if last else seen.clone()).flatten(1)
            out = rows[name][some]
            torch.mm(active.T, after, out=out.view(-1, out.shape[2]))
            out += known.rest[name]

    def _prepare(self, samples: slice) -> _Prepared:
        """Compute what all blocks share: the same for every call with the same samples."""
        if self._prepared is None or self._prepared[0] != samples:
            self._prepared = (samples, _Prepared(self, samples))
        return self._prepared[1]


class _Prepared:
    """What a narrow route's blocks share; places are samples × positions.

    `inputs` ``[writer's neurons, places]`` after glue; `still` ``[seen outputs, places]``, which
    the reader computes from them; and for each layer that is given, `rest` ``[places, outputs]``:
    what it computes from the reader's unseen outputs, which keep their background values.
    """

    def __init__(self, route: _Narrow, samples: slice) -> None:
        experiment, edge = route.experiment, (route.writer, route.reader)

        def flat(values: Tensor) -> Tensor:
            return values[samples].flatten(0, -2)

        self.inputs = flat(experiment.arriving(*edge)).T.contiguous()
        self.still = flat(experiment.computed(*edge))[:, route.outputs].T.contiguous()
        self.rest = {}
        for name, weight in route.next.items():
            seen = flat(experiment.arriving(route.reader, name))[:, route.outputs]
            self.rest[name] = flat(experiment.computed(route.reader, name)) - seen @ weight
        if not route.next:
            self.rest = {route.reader: flat(experiment.recording.main(route.reader))}


def _channels_last(experiment: Experiment, name: str) -> bool:
    layer = experiment.recording.layers[name]
    return layer.channel_dim == len(layer.shape)


def _readers_behind(experiment: Experiment, reader: str) -> list[str]:
    """Layers that can be computed from some outputs of a reader alone; none if not all can."""
    graph = experiment.wiring.reach
    behind = list(graph.successors(reader))
    exact = (
        reader not in target_layers(graph)
        and _channels_last(experiment, reader)
        and all((reader, name) in experiment.chains for name in behind)
        and _independent(graph, behind)
    )
    return behind if exact else []


def probe_one(
    experiment: Experiment, moves: Moves, reader: str, outputs: Tensor, samples: slice
) -> Moves:
    """Move along one edge a block: the reader's output as if only the writer's neuron moved.

    Returns
    -------
    Moves
        Of `reader`: block b moves its neuron ``outputs[b]``.
    """
    members = experiment.units(reader).members(outputs)
    still = experiment.recording.main(reader)[samples].flatten(1)
    if fits_narrow(experiment, moves.layer, reader):
        edge = moves.layer, reader
        sources = experiment.units(moves.layer).members(moves.neurons)
        before = experiment.arriving(*edge)[samples].flatten(1)[:, sources].movedim(1, 0)
        computed = experiment.computed(*edge)[samples].flatten(1)[:, members].movedim(1, 0)
        change = experiment.chains[edge](moves.values.to(before).clone()) - before
        weight = experiment.linear(reader).weight[outputs, moves.neurons]
        return Moves(reader, outputs, computed + change * weight[:, None, None])
    plan = experiment.wiring.direct(moves.layer, [reader])
    rows = {moves.layer: experiment.rows(moves, samples)}
    outcome = experiment.replay.run(plan, rows, blocks=len(moves), samples=samples)
    seen = outcome.probed[reader].reshape(len(moves), len(still), -1)
    values = seen.gather(2, members[:, None].expand(-1, len(still), -1))
    moving = experiment.moving(reader)
    if moving is not None:
        may = moving[samples][:, members].movedim(1, 0)
        values = torch.where(may, values, still[:, members].movedim(1, 0))
    return Moves(reader, outputs, values)
