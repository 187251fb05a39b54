"""Beam search over a model: prefixes of paths grow layer by layer, the most promising are kept.

Every step of a prefix is measured, as `path_effects` measures it. What is not kept is bounded: a
pass says how strong the strongest path can be that it did not measure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import networkx as nx
import torch
from torch import Tensor

from neurograph.discovery.bounds import (
    Ending,
    Outlook,
    find_ending,
    look_ahead,
    pieces,
    probe_ends,
    times,
)
from neurograph.discovery.pruning import Candidates, Room
from neurograph.effects.effects import Effects, gathered, summarise
from neurograph.effects.experiment import Experiment, Moves
from neurograph.effects.routes import fits_narrow
from neurograph.model.layers import Neuron
from neurograph.replay.wiring import target_layers

__all__ = ["Beam", "Pass", "Strength"]

Strength = tuple[float, float]
"""A measured effect and its standard error."""

_SHARE = 8  # of the memory budget, what the prefixes of one layer may take
_TABLES = 8  # of one number for each prefix and neuron, while they are chosen


class Prefixes(NamedTuple):
    """Prefixes: beginnings of paths, which end at neurons of one layer.

    Attributes
    ----------
    neurons : Tensor of int64, [prefixes]
        Where they end.
    values : Tensor, [prefixes, 2, samples, elements of a neuron]
        What that neuron becomes as the first one moves to either end of its contrast.
    parents : Tensor of int64, [prefixes, 2]
        The layer they come from, by its number among the layers, and which of its prefixes they
        go on from; -1 where they begin here.
    """

    neurons: Tensor
    values: Tensor
    parents: Tensor


class Pass(NamedTuple):
    """The result of one pass of a beam search.

    Attributes
    ----------
    best : dict
        The strongest paths and their effects, the strongest first.
    measured : int
        How many paths were.
    bound : float
        No path that was not measured is stronger.
    wider : bool
        Whether a wider beam would measure more.
    """

    best: dict[tuple[Neuron, ...], Strength]
    measured: int
    bound: float
    wider: bool


class Beam:
    """Passes over one experiment; what they share is computed once.

    Parameters
    ----------
    experiment : Experiment
        Open.
    sources : mapping of str to sequence of int
        Where paths begin.
    k : int
        How many of the strongest are wanted.
    sense : {1, -1, 0}
        Only paths whose effect has this sign; 0 for either.
    check : callable, optional
        Called between steps; may raise to end a pass.
    """

    def __init__(
        self,
        experiment: Experiment,
        sources: Mapping[str, Sequence[int]],
        k: int,
        sense: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.experiment, self.k, self.sense, self.check = experiment, k, sense, check
        self.graph = _on_the_way(experiment, sources)
        self.layers = list(self.graph)
        self.sources = {name: seen for name, seen in sources.items() if name in self.graph}
        self.ends = [name for name in target_layers(experiment.graph) if name in self.graph]

    @functools.cached_property
    def ending(self) -> Ending | None:
        """The layer that the target is a column of, if it is one behind a chain."""
        return find_ending(self.experiment)

    @functools.cached_property
    def outlook(self) -> dict[str, Outlook]:
        """What may come of changes of each layer's neurons."""
        return look_ahead(self.experiment, self.graph, self.ending)

    @functools.cached_property
    def total(self) -> int:
        """How many paths there are."""
        count: dict[str, int] = {}
        for layer in self.layers:
            before = sum(count[writer] for writer in self.graph.predecessors(layer))
            here = len(self.sources.get(layer, ()))
            count[layer] = before * len(self.experiment.units(layer)) + here
        return sum(count[layer] for layer in self.ends)

    def run(self, width: int, floor: float = 0.0) -> Pass:
        """Grow prefixes, at most `width` at each layer, none that cannot exceed `floor`."""
        done: dict[str, Prefixes] = {}
        best: dict[tuple[Neuron, ...], Strength] = {}
        measured, bound, wider = 0, 0.0, False
        for layer in self.layers:
            most = self._most(layer)
            room = Room(min(width, most), floor)
            for candidates in self._extensions(layer, done, room):
                room.add(candidates)
            done[layer] = self._completed(layer, room, done)
            bound, wider = max(bound, room.bound), wider or (room.short and width < most)
            if layer in self.ends:
                measured += self._finish(layer, done, best)
            for writer in self.graph.predecessors(layer):
                if all(name in done for name in self.graph.successors(writer)):
                    done[writer] = done[writer]._replace(values=done[writer].values[:0])
        best = dict(sorted(best.items(), key=lambda item: -abs(item[1][0]))[: self.k])
        return Pass(best, measured, bound, wider)

    def _most(self, layer: str) -> int:
        """How many prefixes of a layer fit into memory."""
        rows, units = self.experiment.recording.main(layer), self.experiment.units(layer)
        each = 2 * len(rows) * units.widest() * rows.element_size()
        return max(1, self.experiment.memory // (_SHARE * each))

    # -- growing ---------------------------------------------------------------------------------

    def _extensions(
        self, layer: str, done: Mapping[str, Prefixes], room: Room
    ) -> Iterator[Candidates]:
        """All ways to come to a layer that are worth keeping."""
        if layer in self.sources:
            yield from self._starting(layer, room)
        for writer in self.graph.predecessors(layer):
            if len(done[writer].neurons):
                narrow = fits_narrow(self.experiment, writer, layer)
                extend = self._along_chain if narrow else self._by_replay
                yield from extend(writer, layer, done[writer], room)

    def _starting(self, layer: str, room: Room) -> Iterator[Candidates]:
        """Paths that begin at a layer: its neurons at both ends of their contrast."""
        experiment, outlook = self.experiment, self.outlook[layer]
        units, ends = experiment.units(layer), experiment.levels(layer)[[0, -1]]
        sources = torch.as_tensor(list(self.sources[layer]), device=ends.device)
        for number, part in enumerate(outlook.parts):
            values = ends[:, :, units.members(part)].movedim(2, 0)
            values = values.expand(-1, 2, experiment.recording.size, -1)
            change = (values[:, 1] - values[:, 0]).flatten(1)
            places = torch.searchsorted(part, sources[torch.isin(sources, part)])
            promise = outlook.promise(change[None], number)[0, places]
            limit = times(change.abs().mean(1), outlook.limit[part].to(change))[places]
            some = room.choose(promise, limit)
            places, parents = places[some], torch.full((len(some), 2), -1, device=ends.device)
            moved = _as_wide(values[places], units.widest())
            yield Candidates(promise[some], limit[some], part[places], parents, moved)

    def _along_chain(
        self, writer: str, reader: str, prefixes: Prefixes, room: Room
    ) -> Iterator[Candidates]:
        """All extensions to a Linear reader behind a chain; those kept get values later."""
        outlook, weight = self.outlook[reader], self.experiment.linear(reader).weight.T
        reach = times(weight.abs(), outlook.limit.to(weight))
        step = max(1, self.experiment.memory // (_SHARE * _TABLES * weight[0].nbytes))
        for start in range(0, len(prefixes.neurons), step):
            self.check()
            some = slice(start, start + step)
            neurons = prefixes.neurons[some]
            arriving = self._arriving(writer, reader, neurons, prefixes.values[some])
            change = (arriving[:, 1] - arriving[:, 0]).flatten(1)
            promise = outlook.promise_scaled(change, weight[neurons])
            limit = times(change.abs().mean(1)[:, None], reach[neurons])
            every = outlook.parts[0]
            yield self._chosen(reader, every, writer, start, promise, limit, None, room)

    def _by_replay(
        self, writer: str, reader: str, prefixes: Prefixes, room: Room
    ) -> Iterator[Candidates]:
        """All extensions to a reader behind any other glue: each prefix is run once for all."""
        outlook = self.outlook[reader]
        for some in pieces(self.experiment, len(prefixes.neurons), reader):
            ends = prefixes.neurons[some], prefixes.values[some]
            for number, part in enumerate(outlook.parts):
                self.check()
                moved = probe_ends(self.experiment, writer, *ends, reader, part)
                change = (moved[:, 1] - moved[:, 0]).flatten(2)
                limit = times(change.abs().mean(2), outlook.limit[part].to(change))
                promise = outlook.promise(change, number)
                yield self._chosen(reader, part, writer, some.start, promise, limit, moved, room)

    def _chosen(
        self,
        reader: str,
        part: Tensor,
        writer: str,
        start: int,
        promise: Tensor,
        limit: Tensor,
        moved: Tensor | None,
        room: Room,
    ) -> Candidates:
        """Choose from a table ``[prefixes, part]``; moved ``[prefixes, 2, part, …]``."""
        some = room.choose(promise.flatten(), limit.flatten())
        rows, neurons = some // promise.shape[1], some % promise.shape[1]
        parents = torch.stack([torch.full_like(rows, self.layers.index(writer)), rows + start], 1)
        values, widest = None, self.experiment.units(reader).widest()
        if moved is not None:
            values = _as_wide(moved[rows, :, neurons], widest)
        chosen = promise[rows, neurons], limit[rows, neurons]
        return Candidates(*chosen, part[neurons], parents, values)

    def _arriving(self, writer: str, reader: str, neurons: Tensor, values: Tensor) -> Tensor:
        """What moves of a writer's neurons change in what arrives behind a chain."""
        experiment, edge = self.experiment, (writer, reader)
        members = experiment.units(writer).members(neurons)
        before = experiment.arriving(*edge).flatten(1)[:, members].movedim(1, 0)
        after: Tensor = experiment.chains[edge](values.to(before).clone())
        return after - before[:, None]

    def _completed(self, layer: str, room: Room, done: Mapping[str, Prefixes]) -> Prefixes:
        """Measure those kept that have no values yet."""
        rows, units = self.experiment.recording.main(layer), self.experiment.units(layer)
        kept = room.kept()
        values = [self._values(layer, c, done) if c.values is None else c.values for c in kept]
        if not kept:
            nothing = torch.zeros(0, dtype=torch.int64, device=rows.device)
            none = rows.new_zeros(0, 2, len(rows), units.widest())
            return Prefixes(nothing, none, nothing.view(0, 2))
        neurons, parents = [c.neurons for c in kept], [c.parents for c in kept]
        return Prefixes(torch.cat(neurons), torch.cat(values), torch.cat(parents))

    def _values(self, layer: str, some: Candidates, done: Mapping[str, Prefixes]) -> Tensor:
        """What neurons behind a chain become, all of whose prefixes come from one layer."""
        writer, parents = self.layers[int(some.parents[0, 0])], some.parents[:, 1]
        unique, which = torch.unique(parents, return_inverse=True)
        sources = done[writer].neurons[unique]
        change = self._arriving(writer, layer, sources, done[writer].values[unique])[which]
        weight = self.experiment.linear(layer).weight[some.neurons, sources[which]]
        members = self.experiment.units(layer).members(some.neurons)
        still = self.experiment.computed(writer, layer).flatten(1)[:, members].movedim(1, 0)
        return torch.addcmul(still[:, None], change, weight[:, None, None, None])

    # -- finishing -------------------------------------------------------------------------------

    def _finish(
        self,
        layer: str,
        done: Mapping[str, Prefixes],
        best: dict[tuple[Neuron, ...], Strength],
    ) -> int:
        """Measure the paths that end at a layer and remember the strongest; how many there are."""
        prefixes = done[layer]
        if not len(prefixes.neurons):
            return 0
        effects = self._effects(layer, prefixes)
        strength = effects.effect.abs() if not self.sense else effects.effect * self.sense
        for i in strength.topk(min(self.k, len(strength))).indices.tolist():
            if strength[i] > 0:
                path = self._path(layer, i, done)
                best[path] = float(effects.effect[i]), float(effects.stderr[i])
        return len(strength)

    def _effects(self, layer: str, prefixes: Prefixes) -> Effects:
        experiment, ending = self.experiment, self.ending
        block = torch.arange(2 * len(prefixes.neurons), device=prefixes.neurons.device).view(-1, 2)
        if ending is not None and ending.layer == layer:
            # No other neuron of the layer has a promise, so none was kept.
            targets = ending.sign * ending.chain(prefixes.values[..., 0].flatten(0, 1))
            return summarise(targets, block, coarse=experiment.coarse)
        plan = experiment.wiring.output([layer])
        neurons = prefixes.neurons.repeat_interleave(2)
        moves = Moves(layer, neurons, prefixes.values.flatten(0, 1))

        def measured() -> Iterator[tuple[slice, slice, Tensor]]:
            for blocks, samples in experiment.chunks(len(moves), [plan]):
                self.check()
                some = moves.cut(blocks, samples)
                rows = {layer: experiment.rows(some, samples)}
                outcome = experiment.replay.run(plan, rows, blocks=len(some), samples=samples)
                yield blocks, samples, experiment.targets(outcome, len(some), samples)

        targets = gathered(measured(), len(moves), experiment.recording.size)
        return summarise(targets, block, coarse=experiment.coarse)

    def _path(self, layer: str, index: int, done: Mapping[str, Prefixes]) -> tuple[Neuron, ...]:
        """Follow a prefix back to where it begins."""
        path = []
        while True:
            prefixes = done[layer]
            path.append(self.experiment.units(layer).neuron(int(prefixes.neurons[index])))
            number, index = prefixes.parents[index].tolist()
            if number < 0:
                return tuple(reversed(path))
            layer = self.layers[number]


def _as_wide(values: Tensor, width: int) -> Tensor:
    """Values of members ``[…, elements]``, the last of them repeated; see `Units.members`."""
    more = values[..., -1:].expand(*values.shape[:-1], width - values.shape[-1])
    return torch.cat([values, more], -1) if more.shape[-1] else values


def _on_the_way(experiment: Experiment, sources: Mapping[str, Sequence[int]]) -> nx.DiGraph:
    """Graph of the layers with neurons that lie between some layers and the target."""
    moving = [n for n in experiment.graph if experiment.recording.layers[n].neurons]
    graph = nx.DiGraph(experiment.graph.subgraph(moving).edges)
    graph.add_nodes_from(moving)
    ends = set(target_layers(experiment.graph)) & set(moving)
    below = set(sources).union(*(nx.descendants(graph, name) for name in sources))
    above = ends.union(*(nx.ancestors(graph, name) for name in ends))
    found = nx.DiGraph()
    found.add_nodes_from(name for name in moving if name in below & above)
    found.add_edges_from((a, b) for a, b in graph.edges if a in found and b in found)
    return found
