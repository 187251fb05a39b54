"""Who reads whom: the causal layer graph, and the replay plans that follow from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.data.source import Batch, Source
from neurograph.errors import DataError, ModelError
from neurograph.model.layer_choice import Choice, find_sites, refuse_unsupported
from neurograph.model.layers import INPUT_TYPE
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording, capture, capture_few
from neurograph.replay.replay import Replay
from neurograph.replay.trace import Foreign, trace
from neurograph.utils.nested import iter_tensors

__all__ = [
    "Wiring",
    "confirm_wiring",
    "layer_graph",
    "perturbed",
    "read_wiring",
    "target_layers",
    "wire",
    "without_layers",
]

_TRACED = 8  # reference samples whose operations are followed


def layer_graph(model: nn.Module, example: Any, *, layers: Choice | None = None) -> nx.DiGraph:
    """Graph of a model's layers, an edge wherever one reads another through glue alone.

    The edges are causal, not parsed: every layer is frozen to its recorded output, one is
    perturbed, and the layers whose input moves read it.

    Parameters
    ----------
    model : Module
        Any eager model; it is run in eval mode and left as it was.
    example : Tensor, pair, dict, Dataset or DataLoader
        Data as for `search`; a few samples are used, drawn from all of it.
    layers : str, type, predicate, or several of them, optional
        Which modules are layers, as for `search`.

    Returns
    -------
    networkx.DiGraph
        Nodes are layer names in the order they are called. Node attributes: ``type`` (class
        name), ``shape`` (of one sample's output, like ``"16×8×8"``), ``neurons``,
        ``parameters``, and ``output``, whether the layer reaches the model's output through
        glue alone.

    Raises
    ------
    ModelError
        The model cannot be replayed, or raised.
    DataError
        The example holds no usable batch.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> graph = layer_graph(model, torch.rand(2, 3))
    >>> list(graph.edges)
    [('input', '0'), ('0', '2')]
    >>> graph.nodes["0"]["shape"], graph.nodes["2"]["output"]
    ('4', True)
    """
    refuse_unsupported(model)
    try:
        return wire(model, Source(example, model), layers)[0].layers
    except DataError as error:
        raise DataError(f"example= cannot be used: {error}") from error


@dataclass(frozen=True, eq=False)
class Wiring:
    """The layer graph, whole and as it is searched.

    Attributes
    ----------
    layers : networkx.DiGraph
        Of the layers that are searched: an edge wherever one reads another through glue and
        through layers left out.
    whole : networkx.DiGraph
        Of all recorded layers; the same graph where none was left out.
    possible : networkx.DiGraph
        Like the whole one, with an edge also where a layer has a share in what another reads but
        does not move it: a gate is closed, say. Plans go by this graph, since what moves may open
        it.
    """

    layers: nx.DiGraph
    whole: nx.DiGraph
    possible: nx.DiGraph

    @staticmethod
    def of(graph: nx.DiGraph) -> Wiring:
        """Wiring of a graph of layers, which holds the others where they differ."""
        whole = graph.graph.get("whole", graph)
        return Wiring(graph, whole, graph.graph.get("possible", whole))

    @functools.cached_property
    def left_out(self) -> frozenset[str]:
        """Layers that are glue, as far as effects are concerned."""
        return frozenset(self.whole) - frozenset(self.layers)

    @functools.cached_property
    def reach(self) -> nx.DiGraph:
        """What the searched layers may do to each other and to the output."""
        if self.possible is self.whole:
            return self.layers
        return _seen_through(self.possible, self.left_out)

    # -- plans -----------------------------------------------------------------------------------

    def direct(self, writer: str, readers: Iterable[str]) -> Plan:
        """Plan that moves a writer and probes readers: as if it alone had moved."""
        return self.between([writer], readers)

    def between(self, writers: Iterable[str], readers: Iterable[str]) -> Plan:
        """Plan that supplies some layers and probes others: what they make of these alone."""
        given, probed = frozenset(writers), frozenset(readers)
        plan = Plan(given=given, probed=probed)
        return self._completed(plan, given, ends=probed)

    def suffix(self, given: Iterable[str]) -> Plan:
        """Plan that supplies some layers and computes what descends from them, to the output."""
        supplied = frozenset(given)
        live = self._live(supplied)
        return self._completed(Plan(given=supplied, live=live), [*supplied, *live])

    def everything(self) -> Plan:
        """Plan that computes every layer and adds rows to what each searched one passes on."""
        layers = self.whole.nodes
        inputs = frozenset(name for name in layers if layers[name]["type"] == INPUT_TYPE)
        moving = frozenset(name for name in self.layers if self.layers.nodes[name]["neurons"])
        routed = frozenset(name for name in layers if self.layers.nodes.get(name, {}).get("routed"))
        return Plan(live=frozenset(layers) - inputs, frozen=inputs, nudged=moving - routed)

    def output(self, writers: Sequence[str]) -> Plan:
        """Plan that shows moved layers to the model's output through glue alone."""
        return self._completed(Plan(given=frozenset(writers)), writers)

    def worlds(self, writer: str, readers: Iterable[str], *, output_moved: bool) -> Plan:
        """Plan that shows a moved writer to masked outputs of several readers at once.

        Needed where one reader descends from another, or where the target sees the writer
        besides: what all others see must have the readers' changes but not the writer's own. A
        reader that descends from another is live too: its outputs that may not see the writer
        see that one.
        """
        mixed = frozenset(readers)
        below = set().union(*(nx.descendants(self.reach, name) for name in mixed))
        plan = Plan(
            given=frozenset({writer}),
            live=self._live(mixed) | (mixed & below),
            mixed=mixed,
            worlds=True,
            output_moved=output_moved,
        )
        return self._completed(plan, [writer, *mixed, *plan.live])

    def _live(self, changed: frozenset[str]) -> frozenset[str]:
        """Searched descendants of the changed layers that matter to the model's output."""
        below = set().union(*(nx.descendants(self.reach, name) for name in changed)) - changed
        ends = target_layers(self.reach)
        above = set(ends).union(*(nx.ancestors(self.reach, name) for name in ends))
        return frozenset(below & above)

    def _completed(
        self, plan: Plan, changed: Iterable[str], ends: frozenset[str] | None = None
    ) -> Plan:
        """Open what was left out between the changed layers and the ends; freeze what joins them.

        Parameters
        ----------
        plan : Plan
        changed : iterable of str
            Layers that pass on other rows than recorded.
        ends : frozenset of str, optional
            Where a run ends; the model's output by default.
        """
        if not self.left_out:
            return self._frozen(plan, output=ends is None)
        last = self.left_out.intersection(target_layers(self.possible)) if ends is None else ends
        needed = self._reached([*last, *plan.live, *plan.mixed], forward=False) | last
        opened = self._reached(changed, forward=True) & needed
        return self._frozen(replace(plan, open=opened), output=ends is None)

    def _reached(self, starts: Iterable[str], *, forward: bool) -> frozenset[str]:
        """Layers left out that can be reached through such layers alone."""
        left_out, found = self.left_out, set()
        step = self.possible.succ if forward else self.possible.pred
        front = list(starts)
        while front:
            for name in step[front.pop()]:
                if name in left_out and name not in found:
                    found.add(name)
                    front.append(name)
        return frozenset(found)

    def _frozen(self, plan: Plan, *, output: bool) -> Plan:
        """Freeze each layer that glue joins with rows of interventions; the rest stays idle."""
        busy = set(plan.busy)
        groups = [(name, list(self.possible.predecessors(name))) for name in self.possible]
        if output:
            groups.append(("", target_layers(self.possible)))
        needy = plan.live | plan.open | plan.probed | plan.mixed | {""}
        grown = True
        while grown:
            before = len(busy)
            for name, writers in groups:
                if name in needy or not busy.isdisjoint(writers):
                    busy.update(writers)
            grown = len(busy) > before
        return replace(plan, frozen=frozenset(busy) - plan.busy)


def target_layers(graph: nx.DiGraph) -> list[str]:
    """Layers that reach the model's output through glue alone."""
    return [name for name, is_output in graph.nodes(data="output") if is_output]


# -- reading it off a model ------------------------------------------------------------------------


def wire(
    model: nn.Module, source: Iterable[Batch], layers: Choice | None
) -> tuple[Wiring, Recording]:
    """Record a few samples of the data and find who reads whom in them."""
    recording = capture_few(model, source, find_sites(model, layers))
    while True:
        with Replay(model, recording) as replay:
            wiring = read_wiring(replay)
        if replay.recording is recording:
            return wiring, recording
        # What it turned out that values choose rows for can be layers of that kind.
        recording = capture(model, recording.batch, replay.recording.sites)


def read_wiring(replay: Replay) -> Wiring:
    """Find who reads whom in an open replay; a glue-only run for each layer.

    What has a share in a layer's input but does not move it there is kept as possible. A layer that
    turns out to run on other rows, or not to run, when another moves is glue from then on: the
    replay's recording leaves it out.
    """
    while routed := (hearing := _Hearing(replay)).find():
        replay.recording = replay.recording.without(routed)
    recording = replay.recording
    whole = nx.DiGraph()
    for name, layer in recording.layers.items():
        whole.add_node(
            name,
            type=layer.type,
            shape="×".join(map(str, layer.shape)),
            neurons=layer.neurons,
            parameters=layer.parameters,
            output=False,
            **({"routed": True} if layer.routed else {}),
        )
    for writer in recording.layers:
        _join(whole, recording, writer, hearing.heard[writer])
    possible = _possible(whole, replay, slice(None))
    _drop_unread(whole, possible, recording)
    return _wiring(whole, possible, recording)


def without_layers(wiring: Wiring, recording: Recording, *, routed: bool = True) -> Wiring:
    """Wiring that sees through the layers of modules that are glue in a recording.

    So it does through all that run on some rows only, if those are not wanted.
    """
    nodes, layers = wiring.possible.nodes, recording.layers
    gone = {
        name
        for name in wiring.possible
        if _module_of(name) in recording.sites.routed
        and not (routed and "routed" in nodes[name] and name in layers and layers[name].routed)
    }
    if not gone:
        return wiring
    whole, possible = (_seen_through(graph, gone) for graph in (wiring.whole, wiring.possible))
    return _wiring(whole, possible, recording, wiring.layers)


def _module_of(layer: str) -> str:
    """Path of the module of a layer's name: ``cell#1:0`` is of ``cell``."""
    return layer.split(":")[0].split("#")[0]


def confirm_wiring(replay: Replay, wiring: Wiring) -> Wiring:
    """Look again, in other samples, for what was possible but did not move, and for what is new.

    The wiring itself where that finds nothing.
    """
    recording = replay.recording
    few = slice(None) if replay.one_by_one else slice(0, _TRACED)
    possible = _possible(wiring.possible, replay, few)
    whole, hearing = wiring.whole.copy(), _Hearing(replay)
    for writer in whole:
        open_ends = possible.nodes[writer]["output"] and not whole.nodes[writer]["output"]
        if open_ends or set(possible.successors(writer)) - set(whole.successors(writer)):
            _join(whole, recording, writer, hearing.moved(writer))
    if _same_edges(whole, wiring.whole) and _same_edges(possible, wiring.possible):
        return wiring
    return _wiring(whole, possible, recording, wiring.layers)


def _join(whole: nx.DiGraph, recording: Recording, writer: str, moved: set[str]) -> None:
    """Add the edges from a layer to the calls at which something else arrives when it moves."""
    for reader, layer in recording.layers.items():
        if layer.call in moved and reader in whole:
            whole.add_edge(writer, reader)
    whole.nodes[writer]["output"] |= "" in moved


def _possible(known: nx.DiGraph, replay: Replay, samples: slice) -> nx.DiGraph:
    """A graph of layers with an edge wherever one has a share in what another reads."""
    graph, layers = known.copy(), replay.recording.layers
    shares = trace(replay, samples)
    for reader, layer in layers.items():
        writers = shares.get(layer.call, frozenset()) if reader in graph else ()
        graph.add_edges_from((writer, reader) for writer in writers if writer in graph)
    for writer in shares.get("", ()):
        if writer in graph:
            graph.nodes[writer]["output"] = True
    return graph


def _same_edges(one: nx.DiGraph, other: nx.DiGraph) -> bool:
    same = one.edges == other.edges and len(one) == len(other)
    return same and set(target_layers(one)) == set(target_layers(other))


def _drop_unread(whole: nx.DiGraph, possible: nx.DiGraph, recording: Recording) -> None:
    """Forget further tensors of a call that nothing reads: last states, attention weights."""
    for layers in recording.by_call.values():
        for layer in layers[1:]:
            if not possible.out_degree(layer.name) and not possible.nodes[layer.name]["output"]:
                whole.remove_node(layer.name)
                possible.remove_node(layer.name)


def _wiring(
    whole: nx.DiGraph,
    possible: nx.DiGraph,
    recording: Recording,
    like: nx.DiGraph | None = None,
) -> Wiring:
    """Put a wiring together; what `like` knows of the layers is taken over."""
    left_out = [name for name in whole if not recording.is_searched(name)]
    layers = _seen_through(whole, left_out) if left_out else whole
    layers.graph.pop("possible", None)
    if like is not None:
        layers.graph.update({k: v for k, v in like.graph.items() if k not in ("whole", "possible")})
        for name in layers:
            known = {k: v for k, v in like.nodes[name].items() if k != "output"}
            layers.nodes[name].update(known)
    if left_out:
        layers.graph["whole"] = whole
    if not _same_edges(whole, possible):
        layers.graph["possible"] = possible
    return Wiring.of(layers)


def _seen_through(whole: nx.DiGraph, left_out: Iterable[str]) -> nx.DiGraph:
    """Graph of the searched layers: those left out are seen through."""
    graph = whole.copy()
    for name in left_out:
        for writer in list(graph.predecessors(name)):
            graph.add_edges_from((writer, reader) for reader in graph.successors(name))
            graph.nodes[writer]["output"] |= graph.nodes[name]["output"]
        graph.remove_node(name)
    return graph


class _Hearing:
    """Who hears of it when a layer moves and all others are frozen."""

    def __init__(self, replay: Replay) -> None:
        self.replay, self.recording = replay, replay.recording
        self.foreign = Foreign(replay.model)
        self._everyone = frozenset(replay.recording.layers)
        self._still = functools.cache(self._baseline)  # few models need that of two blocks
        self.heard: dict[str, set[str]] = {}
        self.reshaped: set[str] = set()  # calls at which another shape arrived, the last time

    def find(self) -> frozenset[str]:
        """Listen to every layer, up to one that changes how many rows others get: their modules."""
        calls = self.recording.by_call
        for writer, layer in self.recording.layers.items():
            self.heard[writer] = self.moved(writer)
            if layer.neurons and self.reshaped:
                found = {calls[call][0].module for call in self.reshaped if call in calls}
                if found - {""}:
                    return frozenset(found - {""})
        return frozenset()

    def moved(self, writer: str) -> set[str]:
        """Calls at which something else arrives; the output has the empty name."""
        plan = Plan(given=frozenset({writer}), frozen=self._everyone - {writer})
        both = perturbed(self.recording, writer)
        own = self.recording.layers[writer]
        varies = own.layout.varies and not own.routed and not self.recording.fixed
        found: set[str] = set()
        self.reshaped = set()
        for changes in [both] if varies else [[change] for change in both]:
            heard = self._arrivals(plan, changes, self._still(len(changes)))
            found |= heard.moved
            self.reshaped |= heard.reshaped
        return found

    def _baseline(self, blocks: int) -> _Arrivals:
        return self._arrivals(Plan(frozen=self._everyone), [torch.empty(0)] * blocks, None)

    def _arrivals(self, plan: Plan, changes: list[Tensor], still: _Arrivals | None) -> _Arrivals:
        heard = _Arrivals(self._foreign, still)
        given = {name: torch.cat(changes) for name in plan.given}
        try:
            run = self.replay.run(plan, given, blocks=len(changes), listen=heard.hear)
        except ModelError:
            if not heard.reshaped:
                raise
            return heard  # rows that are frozen do not fit where others are asked for
        heard.end(run.output)
        return heard

    def _foreign(self, call: str) -> list[Tensor]:
        layers = self.recording.by_call.get(call, ())
        return self.foreign.of(layers[0].module) if layers and layers[0].module else []


class _Arrivals:
    """What arrives at every call (and, under the empty name, leaves the model) in one run."""

    def __init__(
        self, foreign: Callable[[str], list[Tensor]], baseline: _Arrivals | None = None
    ) -> None:
        self.tensors: dict[str, list[Tensor]] = {}
        self.moved: set[str] = set()
        self.reshaped: set[str] = set()
        self._foreign, self._baseline = foreign, baseline

    def hear(self, event: str, name: str, value: Any) -> None:
        if event != "arrived":
            return
        tensors = [*iter_tensors(value), *self._foreign(name)]
        if self._baseline is None:
            self.tensors[name] = [t.clone() for t in tensors]
            return
        still = self._baseline.tensors.get(name, [])
        if [t.shape for t in tensors] != [t.shape for t in still]:
            self.reshaped.add(name)
        if _differ(tensors, still):
            self.moved.add(name)

    def end(self, output: Any) -> None:
        self.hear("arrived", "", output)


def _differ(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) != len(others) or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )


def perturbed(recording: Recording, name: str) -> list[Tensor]:
    """A layer's rows, changed everywhere and by much, up where the other is down.

    What one change does not get through a ReLU, or any other glue that rises, the other does.
    """
    generator = torch.Generator().manual_seed(0)
    tensor = recording.main(name)
    tensor = tensor.nan_to_num() if recording.layers[name].routed else tensor
    if tensor.is_floating_point():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        scale = tensor.abs().max() + 1 if tensor.numel() else 1.0
        change = scale * noise.to(tensor)
        return [tensor + change, tensor - change]
    # Ids and masks must stay among the values that occur.
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    shuffled = tensor.flatten()[order].view_as(tensor)
    return [shuffled, tensor.roll(1, dims=-1)]
