"""Paths through a circuit's graph: what one is, which ones are asked for, the best first."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from neurograph.effects.selection import SENSE, SIGNS, Sign
from neurograph.errors import OptionError
from neurograph.model.layers import INPUT_TYPE, Neuron
from neurograph.model.neuron_names import Names, Place, Places, name_table, read_neuron, read_places
from neurograph.utils import checks
from neurograph.utils.checks import one_of, shown

__all__ = [
    "Path",
    "PathQuery",
    "check_sign",
    "format_effect",
    "kept_neuron",
    "name_of",
    "names_in",
    "ranked_paths",
]


def format_effect(effect: float, stderr: float) -> str:
    """Write an effect with its standard error.

    Examples
    --------
    >>> format_effect(0.41234, 0.0211)
    '+0.412 ± 0.021'
    >>> format_effect(-3.2, float("nan"))
    '-3.2'
    >>> format_effect(2.5e-30, 1e-31)
    '+2.5e-30 ± 1e-31'
    """
    if math.isnan(stderr):
        return f"{effect:+.3g}"
    # Two digits of the error, but never more than four of the effect: the rest is rounding.
    finest = max(stderr, abs(effect) / 1000)
    if finest and not 1e-8 < finest < 1e12:
        return f"{effect:+.4g} ± {stderr:.2g}"
    digits = max(0, 1 - math.floor(math.log10(finest))) if finest else 0
    return f"{effect:+.{digits}f} ± {stderr:.{digits}f}"


@dataclass(frozen=True)
class Path:
    """Neurons from the input to the target, each read by the next.

    Attributes
    ----------
    neurons : tuple of Neuron
    effect : float
        Effect of the first neuron's move on the target when the change travels along these
        neurons only, in units of the target.
    stderr : float
        Standard error of that mean over the reference samples; NaN where it is not measured or
        there was a single sample.
    measured : bool
        False where `effect` is an estimate from the path's edges.
    names : tuple of str
        What the neurons are called.
    """

    neurons: tuple[Neuron, ...]
    effect: float
    stderr: float
    measured: bool = True
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = self.names or tuple(map(str, self.neurons))
        mark = "" if self.measured else " (estimated)"
        return f"{' → '.join(names)} {format_effect(self.effect, self.stderr)}{mark}"


@dataclass(frozen=True)
class PathQuery:
    """Which paths are wanted; made by `read`, which checks it against a circuit.

    Attributes
    ----------
    sign : {"positive", "negative"} or None
    sources : frozenset of Neuron
        Where paths may begin.
    neurons, through : frozenset
        Neurons, and layers, that must lie on the path.
    layers : frozenset of str
        Layers a path must keep to.
    """

    sign: Sign | None
    sources: frozenset[Neuron]
    neurons: frozenset[Neuron]
    through: frozenset[str]
    layers: frozenset[str]

    @staticmethod
    def read(
        graph: nx.DiGraph,
        layers: nx.DiGraph,
        sign: Sign | None,
        source: Places | None,
        through: Places | None,
        only: Collection[str] | None,
    ) -> PathQuery:
        """Read a query as `Circuit.paths` takes it; OptionError naming what does not exist."""
        check_sign(sign)
        needed, needed_layers = _kept_places(through, "through", graph, layers)
        begin, begin_layers = _kept_places(source, "source", graph, layers)
        wanted = checks.names(only, "layers")
        if wanted == ():
            raise OptionError("layers=[] leaves no path: leave it out for every layer")
        for layer in wanted or ():
            if layer not in layers:
                raise OptionError(
                    f"layers={layer!r}: there is no such layer; the model has {', '.join(layers)}"
                )
        if source is None:
            begin = frozenset(n for n in graph if layers.nodes[n.layer]["type"] == INPUT_TYPE)
            begin = begin or frozenset(n for n in graph if graph.in_degree(n) == 0)
        begin |= {n for n in graph if n.layer in begin_layers}
        within = frozenset(layers if wanted is None else wanted)
        return PathQuery(sign, begin, needed, needed_layers, within)

    def accepts(self, path: Path) -> bool:
        """Whether a path is wanted."""
        sense = SENSE[self.sign] if self.sign else 0
        on_path = {n.layer for n in path.neurons}
        return (
            (sense == 0 or path.effect * sense > 0)
            and path.neurons[0] in self.sources
            and self.neurons.issubset(path.neurons)
            and self.through <= on_path <= self.layers
        )

    def candidates(self, graph: nx.DiGraph) -> Iterator[Path]:
        """Yield wanted paths by what their edges promise, unmeasured."""
        inside = graph.subgraph([n for n in graph if n.layer in self.layers])
        for neurons, estimate in ranked_paths(inside, self.sources, self.sign):
            names = tuple(name_of(graph, n) for n in neurons)
            path = Path(neurons, estimate, math.nan, False, names)
            if self.accepts(path):
                yield path


def check_sign(sign: str | None) -> None:
    """Raise OptionError for what is no sign."""
    one_of(sign, "sign", (None, *SIGNS))


def name_of(graph: nx.DiGraph, neuron: Neuron) -> str:
    """What a neuron is called: a feature, a class, or ``layer[index]``."""
    return str(graph.nodes[neuron]["name"]) if neuron in graph else str(neuron)


def kept_neuron(place: Place, option: str, graph: nx.DiGraph, layers: nx.DiGraph) -> Neuron:
    """Read a neuron of a circuit, by any of its names; OptionError if it was not kept."""
    neuron = read_neuron(place, option, layers, names_in(graph, layers))
    if neuron not in graph:
        if neuron.index >= layers.nodes[neuron.layer]["neurons"] and neuron.position is None:
            has = f"{neuron.layer!r} has {layers.nodes[neuron.layer]['neurons']} neurons"
            raise OptionError(f"{option}={shown(place)}: there is no {neuron}, {has}")
        raise OptionError(
            f"{option}={shown(place)}: the circuit did not keep {neuron}; circuit.neurons() lists "
            "what it kept, circuit.scores has effects of all"
        )
    return neuron


def names_in(graph: nx.DiGraph, layers: nx.DiGraph) -> Names:
    """What the neurons of a circuit are called, and the features that it did not keep."""
    features = (
        (str(name), Neuron(layer, index))
        for layer, names in layers.nodes(data="names")
        for index, name in enumerate(names or ())
    )
    kept = ((str(name), neuron) for neuron, name in graph.nodes(data="name"))
    return name_table(itertools.chain(features, kept))


def _kept_places(
    chosen: Places | None, option: str, graph: nx.DiGraph, layers: nx.DiGraph
) -> tuple[frozenset[Neuron], frozenset[str]]:
    """Read layers and kept neurons, one or several."""
    if chosen is None:
        return frozenset(), frozenset()
    found = read_places(chosen, option, layers, names_in(graph, layers))
    if not found:
        raise OptionError(f"{option}= is empty: name layers or neurons, or leave it out")
    neurons = [kept_neuron(one, option, graph, layers) for one in found if not isinstance(one, str)]
    return frozenset(neurons), frozenset(one for one in found if isinstance(one, str))


def ranked_paths(
    graph: nx.DiGraph, sources: Collection[Neuron], sign: Sign | None = None
) -> Iterator[tuple[tuple[Neuron, ...], float]]:
    """Yield paths from the sources to the target's neurons, the strongest estimate first.

    The estimate is the product of the edges' transfers and the last neuron's effect: how far each
    neuron moves the next, as a share of that one's own range, down to the target. It is the
    path's effect exactly where the model is linear, and a way to choose what to measure where it
    is not.

    Parameters
    ----------
    graph : networkx.DiGraph
        Acyclic; edges with ``transfer``, target neurons with ``target`` and ``effect``, or
        ``direct_effect`` where the target is not their only reader.
    sources : collection of Neuron
        Where paths may begin.
    sign : {"positive", "negative"}, optional
        Only paths whose estimate has this sign.

    Yields
    ------
    neurons : tuple of Neuron
    estimate : float

    Notes
    -----
    Best-first search with the exact best completion as the bound, so that paths come in order
    and no more of the graph is walked than they need (Hart, Nilsson & Raphael 1968).
    """
    wanted = (1, -1) if sign is None else (SENSE[sign],)
    best = _best_completions(graph)
    order = itertools.count()
    heap: list[tuple[float, int, tuple[Neuron, ...], float, bool]] = []

    def push(path: tuple[Neuron, ...], value: float, whole: bool = False) -> None:
        sense = 1 if value >= 0 else -1
        ahead = {1: 1.0, -1: 0.0} if whole else best[path[-1]]
        bound = max(abs(value) * ahead[s * sense] for s in wanted)
        if bound > 0:
            heapq.heappush(heap, (-bound, next(order), path, value, whole))

    for source in filter(graph.__contains__, sources):
        push((source,), 1.0)
    while heap:
        _, _, path, value, whole = heapq.heappop(heap)
        if whole:
            yield path, value
            continue
        last = graph.nodes[path[-1]]
        if last.get("target") and len(path) > 1:
            push(path, value * _effect_at_end(last), whole=True)
        for reader, edge in graph.adj[path[-1]].items():
            push((*path, reader), value * float(edge["transfer"]))


def _effect_at_end(data: Mapping[str, Any]) -> float:
    """Effect of a target neuron by itself: what others make of it are paths of their own."""
    return float(data["direct_effect"] if "direct_effect" in data else data["effect"])


def _best_completions(graph: nx.DiGraph) -> dict[Neuron, dict[int, float]]:
    """For each neuron, the largest product of transfers of either sign down to the target."""
    best: dict[Neuron, dict[int, float]] = {}
    for neuron in reversed(list(nx.topological_sort(graph))):
        ahead = {1: 0.0, -1: 0.0}
        data = graph.nodes[neuron]
        if data.get("target"):
            effect = _effect_at_end(data)
            ahead[1 if effect > 0 else -1] = abs(effect)
        for reader, edge in graph.adj[neuron].items():
            factor = float(edge["transfer"])
            for s in (1, -1):
                through = abs(factor) * best[reader][s * (1 if factor >= 0 else -1)]
                ahead[s] = max(ahead[s], through)
        best[neuron] = ahead
    return best
