"""Who reads whom: the causal layer graph, and the replay plans that follow from it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.errors import DataError
from neurograph.layers import INPUT_TYPE
from neurograph.nested import iter_tensors
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording, capture_few
from neurograph.replay.replay import Replay
from neurograph.sites import Choice, find_sites, refuse_unsupported

__all__ = ["Wiring", "layer_graph", "read_wiring", "target_layers"]


def layer_graph(model: nn.Module, example: Any, *, layers: Choice | None = None) -> nx.DiGraph:
    """Graph of a model's layers, an edge wherever one reads another through glue alone.

    The edges are causal, not parsed: every layer is frozen to its recorded output, one is
    perturbed, and the layers whose input moves read it.

    Parameters
    ----------
    model : Module
        Any eager model; it is run in eval mode and left as it was.
    example : Tensor, pair, dict, Dataset or DataLoader
        Data as for `search`; the first few samples are used.
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
        few = capture_few(model, example, find_sites(model, layers))
    except DataError as error:
        raise DataError(f"example= cannot be used: {error}") from error
    with Replay(model, few) as replay:
        return read_wiring(replay).layers


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
    """

    layers: nx.DiGraph
    whole: nx.DiGraph

    @staticmethod
    def of(graph: nx.DiGraph) -> Wiring:
        """Wiring of a profiled graph, which holds the whole one where layers were left out."""
        return Wiring(graph, graph.graph.get("whole", graph))

    @functools.cached_property
    def left_out(self) -> frozenset[str]:
        """Layers that are glue, as far as effects are concerned."""
        return frozenset(self.whole) - frozenset(self.layers)

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
        nudged = frozenset(name for name in self.layers if self.layers.nodes[name]["neurons"])
        return Plan(live=frozenset(layers) - inputs, frozen=inputs, nudged=nudged)

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
        below = set().union(*(nx.descendants(self.layers, name) for name in mixed))
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
        below = set().union(*(nx.descendants(self.layers, name) for name in changed)) - changed
        ends = target_layers(self.layers)
        above = set(ends).union(*(nx.ancestors(self.layers, name) for name in ends))
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
        last = self.left_out.intersection(target_layers(self.whole)) if ends is None else ends
        needed = self._reached([*last, *plan.live, *plan.mixed], forward=False) | last
        opened = self._reached(changed, forward=True) & needed
        return self._frozen(replace(plan, open=opened), output=ends is None)

    def _reached(self, starts: Iterable[str], *, forward: bool) -> frozenset[str]:
        """Layers left out that can be reached through such layers alone."""
        left_out, found = self.left_out, set()
        step = self.whole.succ if forward else self.whole.pred
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
        groups = [(name, list(self.whole.predecessors(name))) for name in self.whole]
        if output:
            groups.append(("", target_layers(self.whole)))
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


def read_wiring(replay: Replay) -> Wiring:
    """Find who reads whom in an open replay; a glue-only run for each layer."""
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
        )
    everyone = frozenset(recording.layers)

    def arrivals(plan: Plan, changes: list[Tensor], still: _Arrivals | None) -> _Arrivals:
        heard, given = _Arrivals(still), {name: torch.cat(changes) for name in plan.given}
        run = replay.run(plan, given, blocks=len(changes), listen=heard.hear)
        heard.end(run.output)
        return heard

    @functools.cache  # few models need that of two blocks, and it takes memory
    def baseline(blocks: int) -> _Arrivals:
        return arrivals(Plan(frozen=everyone), [torch.empty(0)] * blocks, None)

    for writer, written in recording.layers.items():
        plan = Plan(given=frozenset({writer}), frozen=everyone - {writer})
        both = _perturbed(recording, writer)
        together = [both] if written.layout.varies else [[change] for change in both]
        moved: set[str] = set()
        for changes in together:
            moved |= arrivals(plan, changes, baseline(len(changes))).moved
        for reader, layer in recording.layers.items():
            if layer.call in moved:
                whole.add_edge(writer, reader)
        whole.nodes[writer]["output"] = "" in moved
    _drop_unread(whole, recording)
    return Wiring(_searched(whole, recording), whole)


def _drop_unread(whole: nx.DiGraph, recording: Recording) -> None:
    """Forget further tensors of a call that nothing reads: last states, attention weights."""
    for layers in recording.by_call.values():
        for layer in layers[1:]:
            if not whole.out_degree(layer.name) and not whole.nodes[layer.name]["output"]:
                whole.remove_node(layer.name)


def _searched(whole: nx.DiGraph, recording: Recording) -> nx.DiGraph:
    """Graph of the searched layers: those left out are seen through."""
    left_out = [name for name in whole if not recording.is_searched(name)]
    if not left_out:
        return whole
    graph = whole.copy()
    graph.graph["whole"] = whole
    for name in left_out:
        for writer in list(graph.predecessors(name)):
            graph.add_edges_from((writer, reader) for reader in graph.successors(name))
            graph.nodes[writer]["output"] |= graph.nodes[name]["output"]
        graph.remove_node(name)
    return graph


class _Arrivals:
    """What arrives at every call (and, under the empty name, leaves the model) in one run."""

    def __init__(self, baseline: _Arrivals | None = None) -> None:
        self.tensors: dict[str, list[Tensor]] = {}
        self.moved: set[str] = set()
        self._baseline = baseline

    def hear(self, event: str, name: str, value: Any) -> None:
        if event != "arrived":
            return
        tensors = list(iter_tensors(value))
        if self._baseline is None:
            self.tensors[name] = [t.clone() for t in tensors]
        elif _differ(tensors, self._baseline.tensors.get(name, [])):
            self.moved.add(name)

    def end(self, output: Any) -> None:
        self.hear("arrived", "", output)


def _differ(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) != len(others) or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )


def _perturbed(recording: Recording, name: str) -> list[Tensor]:
    """A layer's rows, changed everywhere and by much, up where the other is down.

    What one change does not get through a ReLU, or any other glue that rises, the other does.
    """
    generator = torch.Generator().manual_seed(0)
    tensor = recording.main(name)
    if tensor.is_floating_point():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        scale = tensor.abs().max() + 1 if tensor.numel() else 1.0
        change = scale * noise.to(tensor)
        return [tensor + change, tensor - change]
    # Ids and masks must stay among the values that occur.
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    shuffled = tensor.flatten()[order].view_as(tensor)
    return [shuffled, tensor.roll(1, dims=-1)]
