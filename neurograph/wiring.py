"""Who reads whom: the causal layer graph, and the replay plans that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.capture import Recording, capture
from neurograph.data import Source
from neurograph.layers import iter_tensors
from neurograph.replay import Plan, Replay

__all__ = [
    "direct_plan",
    "layer_graph",
    "output_plan",
    "read_graph",
    "suffix_plan",
    "target_layers",
    "worlds_plan",
]

_EXAMPLE_ROWS = 4


def layer_graph(model: nn.Module, example: Any) -> nx.DiGraph:
    """Graph of a model's layers, an edge wherever one reads another through glue alone.

    The edges are causal, not parsed: every layer is frozen to its recorded output, one is
    perturbed, and the layers whose input moves read it.

    Parameters
    ----------
    model : Module
        Any eager model; it is run in eval mode and left as it was.
    example : Tensor, pair, dict, Dataset or DataLoader
        Data as for `search`; the first few samples are used.

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
    batch = next(iter(Source(example, model)))
    few = batch.map(lambda leaf: leaf[:_EXAMPLE_ROWS])
    with Replay(model, capture(model, few)) as replay:
        return read_graph(replay)


def read_graph(replay: Replay) -> nx.DiGraph:
    """Build the layer graph of an open replay; two glue-only runs a layer."""
    recording = replay.recording
    graph = nx.DiGraph()
    for name, layer in recording.layers.items():
        graph.add_node(
            name,
            type=layer.type,
            shape="×".join(map(str, layer.shape)),
            neurons=layer.neurons,
            parameters=layer.parameters,
            output=False,
        )
    everyone = frozenset(recording.layers)
    baseline = _Arrivals()
    baseline.end(replay.run(Plan(frozen=everyone), listen=baseline.hear).output)
    for writer in recording.layers:
        plan = Plan(given=frozenset({writer}), frozen=everyone - {writer})
        moved: set[str] = set()
        for rows in _perturbed(recording, writer):
            arrivals = _Arrivals(baseline)
            arrivals.end(replay.run(plan, {writer: rows}, listen=arrivals.hear).output)
            moved.update(arrivals.moved)
        graph.add_edges_from((writer, reader) for reader in recording.layers if reader in moved)
        graph.nodes[writer]["output"] = "" in moved
    return graph


class _Arrivals:
    """What arrives at every layer (and, under the empty name, leaves the model) in one run."""

    def __init__(self, baseline: _Arrivals | None = None) -> None:
        self.tensors: dict[str, list[Tensor]] = {}
        self.moved: list[str] = []
        self._baseline = baseline

    def hear(self, event: str, name: str, value: Any) -> None:
        if event != "arrived":
            return
        tensors = list(iter_tensors(value))
        if self._baseline is None:
            self.tensors[name] = [t.clone() for t in tensors]
        elif _differ(tensors, self._baseline.tensors.get(name, [])):
            self.moved.append(name)

    def end(self, output: Any) -> None:
        self.hear("arrived", "", output)


def _differ(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) != len(others) or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )


def _perturbed(recording: Recording, name: str) -> tuple[Tensor, Tensor]:
    """A layer's output, changed everywhere and by much, up where the other is down.

    What one change does not get through a ReLU, or any other glue that rises, the other does.
    """
    generator = torch.Generator().manual_seed(0)
    value = recording.outputs[name]
    tensor = value if isinstance(value, Tensor) else recording.main(name)
    if tensor.is_floating_point():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        scale = tensor.abs().max() + 1 if tensor.numel() else 1.0
        change = scale * noise.to(tensor)
        return tensor + change, tensor - change
    # Ids and masks must stay among the values that occur.
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    shuffled = tensor.flatten()[order].view_as(tensor)
    return shuffled, tensor.roll(1, dims=-1)


def target_layers(graph: nx.DiGraph) -> list[str]:
    """Layers that reach the model's output through glue alone."""
    return [name for name, is_output in graph.nodes(data="output") if is_output]


def direct_plan(graph: nx.DiGraph, writer: str, readers: Iterable[str]) -> Plan:
    """Plan that moves a writer and probes readers: their outputs as if it alone had moved."""
    probed = frozenset(readers)
    return _with_frozen(graph, Plan(given=frozenset({writer}), probed=probed), output=False)


def suffix_plan(graph: nx.DiGraph, given: Iterable[str]) -> Plan:
    """Plan that supplies some layers and computes what descends from them, to the output."""
    supplied = frozenset(given)
    return _with_frozen(graph, Plan(given=supplied, live=_live(graph, supplied)), output=True)


def output_plan(graph: nx.DiGraph, writer: str) -> Plan:
    """Plan that shows a moved layer to the model's output through glue alone."""
    return _with_frozen(graph, Plan(given=frozenset({writer})), output=True)


def worlds_plan(
    graph: nx.DiGraph, writer: str, readers: Iterable[str], *, output_moved: bool
) -> Plan:
    """Plan that shows a moved writer to masked outputs of several readers at once.

    Needed where one reader descends from another, or where the target sees the writer besides:
    what all others see must have the readers' changes but not the writer's own. A reader that
    descends from another is live too: its outputs that may not see the writer see that one.
    """
    mixed = frozenset(readers)
    below = set().union(*(nx.descendants(graph, name) for name in mixed))
    plan = Plan(
        given=frozenset({writer}),
        live=_live(graph, mixed) | (mixed & below),
        mixed=mixed,
        worlds=True,
        output_moved=output_moved,
    )
    return _with_frozen(graph, plan, output=True)


def _live(graph: nx.DiGraph, changed: frozenset[str]) -> frozenset[str]:
    """Descendants of the changed layers that matter to the model's output."""
    below = set().union(*(nx.descendants(graph, name) for name in changed)) - changed
    ends = target_layers(graph)
    above = set(ends).union(*(nx.ancestors(graph, name) for name in ends))
    return frozenset(below & above)


def _with_frozen(graph: nx.DiGraph, plan: Plan, *, output: bool) -> Plan:
    """Freeze each layer that glue joins with rows of interventions; the rest stays idle."""
    busy = set(plan.busy)
    groups = [(name, list(graph.predecessors(name))) for name in graph]
    if output:
        groups.append(("", target_layers(graph)))
    needy = plan.live | plan.probed | plan.mixed | {""}
    grown = True
    while grown:
        before = len(busy)
        for name, writers in groups:
            if name in needy or not busy.isdisjoint(writers):
                busy.update(writers)
        grown = len(busy) > before
    frozen = frozenset(busy) - plan.busy
    return replace(plan, frozen=frozen)
