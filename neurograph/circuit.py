"""The result of a search: a graph of neurons to query, with everything that says how it was found."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pandas as pd

from neurograph.errors import OptionError
from neurograph.layers import Neuron
from neurograph.paths import ranked_paths
from neurograph.selection import SIGNS, Sign

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Circuit", "Path", "format_effect"]

Measure = Callable[[Sequence[tuple[Neuron, ...]]], list[tuple[float, float]]]
"""From paths to their measured (effect, standard error)."""

_CANDIDATES = 4  # paths measured for each one asked for, as estimates rank only roughly


def format_effect(effect: float, stderr: float) -> str:
    """Write an effect with its standard error.

    Examples
    --------
    >>> format_effect(0.41234, 0.0211)
    '+0.412 ± 0.021'
    >>> format_effect(-3.2, float("nan"))
    '-3.2'
    """
    if math.isnan(stderr):
        return f"{effect:+.3g}"
    # Two digits of the error, but never more than four of the effect: the rest is rounding.
    finest = max(stderr, abs(effect) / 1000)
    digits = max(0, min(9, 1 - math.floor(math.log10(finest)))) if finest else 0
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


@dataclass(frozen=True, eq=False)
class Circuit:
    """Neurons and edges that a search kept for one target.

    Made by `search` or `load`, not by hand.

    Attributes
    ----------
    graph : networkx.DiGraph
        Nodes are `Neuron(layer, index)`, which equal plain tuples: ``graph.nodes["linear1", 37]``.
        Node attributes, all plain scalars: ``name``, ``layer``, ``index``; ``effect``, ``stderr``
        and ``sign`` (``positive``, ``negative`` or ``both``) through the part of the circuit
        behind the neuron; ``positive_effect``, ``negative_effect`` and their ``_stderr`` where
        the search of that sign kept it; ``total_effect``, ``total_stderr`` through everything;
        ``target``, whether the target reads it directly, and where it is not the only reader
        ``direct_effect`` and ``direct_stderr`` of that; ``count``, ``mean``, ``std``, ``min``,
        ``max`` and quantiles ``q5``, ``q50``, … of its activations. Edges have ``effect``,
        ``stderr``, ``sign`` and ``transfer``, how far the neuron moves its reader as a share of
        the reader's own range. Effects are in units of the target.
    layers : networkx.DiGraph
        The layer graph, as from `layer_graph`.
    target : str
        What the target is called.
    strongest : tuple of Path
        Measured paths, the strongest of each sign.
    scores : mapping of str to mapping of str to ndarray
        For each layer, the effects of *all* its neurons, kept or not: arrays ``positive``,
        ``positive_stderr``, ``negative``, ``negative_stderr``, float64, ``[neurons]``.
    provenance : mapping
        Model hash, data fingerprint, options, versions, seed: how it was found. JSON-able.
    """

    graph: nx.DiGraph
    layers: nx.DiGraph
    target: str
    strongest: tuple[Path, ...] = ()
    scores: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _measure: Measure | None = field(default=None, repr=False)

    # -- queries ---------------------------------------------------------------------------------

    def paths(
        self,
        k: int = 10,
        *,
        sign: Sign | None = None,
        source: str | Neuron | None = None,
        through: str | Neuron | Iterable[Neuron] | None = None,
        layers: Collection[str] | None = None,
    ) -> Iterator[Path]:
        """Yield the k strongest paths to the target, strongest first.

        Parameters
        ----------
        k : int
            How many.
        sign : {"positive", "negative"}, optional
            Only paths whose effect has this sign.
        source : str or Neuron, optional
            The layer or neuron they begin at; the model's inputs by default.
        through : str, Neuron or several Neurons, optional
            A layer or neurons that must lie on the path.
        layers : collection of str, optional
            Only paths that keep to these layers.

        Yields
        ------
        Path
            Measured ones first. Those the search did not measure are measured now if the
            circuit has its model (see `attach`); else they follow with ``measured=False``,
            ranked by their edges.

        Raises
        ------
        OptionError
            An unknown layer, neuron or sign.
        """
        keep = self._filter(sign, source, through, layers)
        stored = [path for path in self.strongest if keep(path)]
        if len(stored) >= k:
            yield from stored[:k]
            return
        seen = {path.neurons for path in stored}
        fresh = (p for p in self.candidates(sign, source, layers) if p.neurons not in seen)
        if self._measure is None:
            yield from stored
            yield from itertools.islice(filter(keep, fresh), k - len(stored))
            return
        wanted = _CANDIDATES * (k - len(stored))
        loose = self._filter(None, source, through, layers)
        batch = list(itertools.islice(filter(loose, fresh), wanted))
        found = [path for path in self.measure(batch) if keep(path)]
        yield from sorted(stored + found, key=lambda p: -abs(p.effect))[:k]

    def measure(self, paths: Iterable[Path | Sequence[Neuron]]) -> list[Path]:
        """Measure paths by intervention on the attached model.

        Raises
        ------
        OptionError
            The circuit has no model: call `attach` first.
        """
        if self._measure is None:
            raise OptionError(
                "this circuit holds no model to measure with: circuit.attach(model, data)"
            )
        chosen = [
            tuple(Neuron(*n) for n in (p.neurons if isinstance(p, Path) else p)) for p in paths
        ]
        effects = self._measure(chosen) if chosen else []
        return [
            Path(neurons, effect, stderr, True, tuple(map(self.name, neurons)))
            for neurons, (effect, stderr) in zip(chosen, effects, strict=True)
        ]

    def neurons(self, *, sign: Sign | None = None, layer: str | None = None) -> pd.DataFrame:
        """Table of the kept neurons, strongest first.

        With a sign, effects are those of that sign's search.

        Returns
        -------
        DataFrame
            Columns ``layer, index, name, effect, stderr, sign``.
        """
        _check_sign(sign)
        signs = (*SIGNS, "both") if sign is None else (sign, "both")
        rows = []
        for neuron, data in self.graph.nodes(data=True):
            if layer not in (None, neuron.layer) or data["sign"] not in signs:
                continue
            key = f"{sign}_" if sign else ""
            effect, stderr = data[f"{key}effect"], data[f"{key}stderr"]
            rows.append((*neuron, data["name"], effect, stderr, sign or data["sign"]))
        columns = ["layer", "index", "name", "effect", "stderr", "sign"]
        return _by_strength(pd.DataFrame(rows, columns=columns))

    def edges(self, *, sign: Sign | None = None) -> pd.DataFrame:
        """Table of the edges, strongest first; `sign` is that of an edge's own effect.

        Returns
        -------
        DataFrame
            Columns ``source_layer, source_index, target_layer, target_index, effect, stderr,
            sign``.
        """
        _check_sign(sign)
        rows = [
            (*u, *v, data["effect"], data["stderr"], data["sign"])
            for u, v, data in self.graph.edges(data=True)
            if sign in (None, data["sign"])
        ]
        columns = ["source_layer", "source_index", "target_layer", "target_index"]
        return _by_strength(pd.DataFrame(rows, columns=[*columns, "effect", "stderr", "sign"]))

    def subgraph(self, neurons: Iterable[Neuron | tuple[str, int]]) -> Circuit:
        """Circuit of some of the neurons, with the edges and measured paths among them."""
        chosen = {Neuron(*n) for n in neurons}
        for neuron in chosen:
            self._check_neuron(neuron)
        inside = tuple(p for p in self.strongest if chosen.issuperset(p.neurons))
        return replace(self, graph=self.graph.subgraph(chosen).copy(), strongest=inside)

    def explain(self, neuron: Neuron | tuple[str, int], k: int = 3) -> str:
        """Describe one neuron in words: its statistics, effects, edges and strongest paths."""
        neuron = Neuron(*neuron)
        self._check_neuron(neuron)
        data = self.graph.nodes[neuron]
        lines = [f"{data['name']} ({neuron}), {data['sign']}"]
        lines.append(
            f"  effect on {self.target}: {format_effect(data['effect'], data['stderr'])} through "
            f"the circuit, {format_effect(data['total_effect'], data['total_stderr'])} in all"
        )
        if "mean" in data:
            lines.append(
                f"  activation: mean {data['mean']:.3g}, std {data['std']:.3g}, "
                f"from {data['min']:.3g} to {data['max']:.3g} over {data['count']} values"
            )
        for title, edges in (
            ("reads", [(u, d) for u, _, d in self.graph.in_edges(neuron, data=True)]),
            ("is read by", [(v, d) for _, v, d in self.graph.out_edges(neuron, data=True)]),
        ):
            edges.sort(key=lambda e: -abs(e[1]["effect"]))
            told = [
                f"{self.name(n)} {format_effect(d['effect'], d['stderr'])}" for n, d in edges[:k]
            ]
            if told:
                more = f" and {len(edges) - k} more" if len(edges) > k else ""
                lines.append(f"  {title}: {', '.join(told)}{more}")
        lines += [f"  path: {path}" for path in self.paths(k, through=neuron)]
        return "\n".join(lines)

    def name(self, neuron: Neuron | tuple[str, int]) -> str:
        """What a neuron is called: a feature, a class, or ``layer[index]``."""
        neuron = Neuron(*neuron)
        return str(self.graph.nodes[neuron]["name"]) if neuron in self.graph else str(neuron)

    # -- the model again -------------------------------------------------------------------------

    def attach(self, model: nn.Module, data: Any, **options: Any) -> Circuit:
        """Return the circuit with a model to measure further paths on.

        Parameters
        ----------
        model, data
            Those of the search; told by hash and fingerprint.
        **options
            Options of `search` that no file can hold, where they were used: a callable `target`,
            a `Counterfactual` contrast.

        Raises
        ------
        ModelError, DataError
            They are not those of the search.
        """
        from neurograph.search import attach

        return attach(self, model, data, **options)

    # -- out of here -----------------------------------------------------------------------------

    def save(self, path: str | FilePath) -> None:
        """Write the circuit to one file (JSON and safetensors, no pickle); see `load`."""
        from neurograph.archive import save

        save(self, path)

    def to_html(self, path: str | FilePath) -> None:
        """Write one offline HTML page to explore."""
        from neurograph.report.page import write_page

        write_page(self, path)

    def to_graphml(self, path: str | FilePath) -> None:
        """Write the graph as GraphML, for Gephi, Cytoscape or yEd."""
        from neurograph.archive import write_atomically

        text = "\n".join(nx.generate_graphml(nx.relabel_nodes(self.graph, str)))
        write_atomically(path, text.encode())

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        signs = [data["sign"] for _, data in self.graph.nodes(data=True)]
        kept = ", ".join(f"{signs.count(s) + signs.count('both')} {s}" for s in SIGNS)
        head = (
            f"Circuit of {self.target!r}: {len(self.graph)} neurons ({kept}) in "
            f"{len({n.layer for n in self.graph})} layers, {self.graph.number_of_edges()} edges"
        )
        if not self.provenance.get("complete", True):
            head += ", incomplete"
        return "\n".join([head, *(f"  {path}" for s in SIGNS for path in self._top(s, 3))])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(' → '.join(p.names))}</td>"
            f"<td style='text-align:right'>{format_effect(p.effect, p.stderr)}</td></tr>"
            for s in SIGNS
            for p in self._top(s, 5)
        )
        head = html.escape(repr(self).splitlines()[0])
        return f"<p>{head}</p><table><tr><th>path</th><th>effect</th></tr>{rows}</table>"

    def _top(self, sign: Sign, k: int) -> list[Path]:
        sense = 1 if sign == "positive" else -1
        return [p for p in self.strongest if p.effect * sense > 0][:k]

    # -- how paths are chosen --------------------------------------------------------------------

    def candidates(
        self,
        sign: Sign | None = None,
        source: str | Neuron | None = None,
        layers: Collection[str] | None = None,
    ) -> Iterator[Path]:
        """Yield paths by what their edges promise, unmeasured; see `ranked_paths`."""
        graph = self.graph
        if layers is not None:
            graph = graph.subgraph([n for n in graph if n.layer in layers])
        sources = [n for n in graph if self._starts(n, source)]
        for neurons, estimate in ranked_paths(graph, sources, sign):
            names = tuple(map(self.name, neurons))
            yield Path(neurons, estimate, float("nan"), False, names)

    def _starts(self, neuron: Neuron, source: str | Neuron | None) -> bool:
        if source is None:
            inputs = any(self.layers.nodes[n.layer]["type"] == "Input" for n in self.graph)
            if inputs:
                return bool(self.layers.nodes[neuron.layer]["type"] == "Input")
            return self.graph.in_degree(neuron) == 0
        return neuron.layer == source if isinstance(source, str) else neuron == Neuron(*source)

    def _filter(
        self,
        sign: Sign | None,
        source: str | Neuron | None,
        through: str | Neuron | Iterable[Neuron] | None,
        layers: Collection[str] | None,
    ) -> Callable[[Path], bool]:
        _check_sign(sign)
        needed, needed_layers = self._needed(through)
        if isinstance(source, str):
            needed_layers = {*needed_layers, source}
        elif source is not None:
            self._check_neuron(Neuron(*source))
        for layer in {*needed_layers, *(layers or ())}:
            if layer not in self.layers:
                known = ", ".join(self.layers)
                raise OptionError(f"there is no layer {layer!r}; the model has {known}")
        sense = {None: 0, "positive": 1, "negative": -1}[sign]

        def keep(path: Path) -> bool:
            on_path = {n.layer for n in path.neurons}
            return (
                (sense == 0 or path.effect * sense > 0)
                and self._starts(path.neurons[0], source)
                and needed.issubset(path.neurons)
                and needed_layers <= on_path
                and (layers is None or on_path <= set(layers))
            )

        return keep

    def _needed(
        self, through: str | Neuron | Iterable[Neuron] | None
    ) -> tuple[set[Neuron], set[str]]:
        if through is None:
            return set(), set()
        if isinstance(through, str):
            return set(), {through}
        one = isinstance(through, Neuron) or (
            isinstance(through, tuple) and len(through) == 2 and isinstance(through[0], str)
        )
        neurons = {Neuron(*n) for n in ([through] if one else through)}  # type: ignore[misc]
        for neuron in neurons:
            self._check_neuron(neuron)
        return neurons, set()

    def _check_neuron(self, neuron: Neuron) -> None:
        if neuron not in self.graph:
            raise OptionError(
                f"the circuit did not keep {neuron}; circuit.neurons() lists what it kept"
            )


def _check_sign(sign: str | None) -> None:
    if sign not in (None, *SIGNS):
        raise OptionError(f"sign={sign!r} is neither 'positive' nor 'negative'")


def _by_strength(table: pd.DataFrame) -> pd.DataFrame:
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)
