"""The result of a search: a graph of neurons to query, and all that says how it was found."""

from __future__ import annotations

import html
import itertools
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal

import networkx as nx
import numpy as np
import pandas as pd

from neurograph.audit.result import Audit
from neurograph.circuit.circuit_tables import (
    edge_table,
    feature_table,
    neuron_table,
    ranking_of,
    scored_inputs,
    strongest_features,
)
from neurograph.circuit.paths import (
    Path,
    PathQuery,
    check_sign,
    format_effect,
    kept_neuron,
    name_of,
    names_in,
)
from neurograph.effects.screening import Screening
from neurograph.effects.selection import SIGNS, Sign
from neurograph.errors import OptionError
from neurograph.model.layers import Neuron
from neurograph.model.neuron_names import Place, Places, read_neuron
from neurograph.utils.checks import listed, one_of, shown, whole

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Circuit", "Path", "format_effect"]

_STEPS = {"nodes": "effects of neurons", "totals": "total effects", "edges": "effects of edges"}
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|&#5[567]\d{3};")
_CANDIDATES = 4  # paths measured for each one asked for, as estimates rank only roughly


@dataclass(frozen=True, eq=False)
class Circuit:
    """Neurons and edges that a search kept for one target.

    Made by `search` or `load`, not by hand.

    Attributes
    ----------
    graph : networkx.DiGraph
        Nodes are `Neuron(layer, index)`, or `Neuron(layer, index, position)` where each position
        has neurons of its own, which equal plain tuples: ``graph.nodes["linear1", 37]``.
        Node attributes, all plain scalars: ``name``, ``layer``, ``index``, with positions
        ``position`` and, with a tokenizer, ``token``; ``effect`` and ``stderr`` through the
        circuit, that is through all neurons kept of its readers at once, ``sign`` of that
        (``positive``, ``negative`` or ``zero``), and ``measured``, whether by intervention or
        estimated; ``through_positive_effect``, ``through_negative_effect`` and their ``_stderr``
        through those of them alone whose total effect raises the target, or lowers it;
        ``total_effect``, ``total_stderr``, ``total_measured`` through everything;
        ``target``, whether the target reads it directly, and where it is not the only reader
        ``direct_effect`` and ``direct_stderr`` of that; ``count``, ``mean``, ``std``, ``min``,
        ``max`` and quantiles ``q5``, ``q50``, … of its activations. Edges have ``effect``,
        ``stderr``, ``measured``, ``sign`` and ``transfer``, how far the neuron moves its reader as
        a share of the reader's own range. Effects are in units of the target.
    layers : networkx.DiGraph
        The layer graph, as from `layer_graph`.
    target : str
        What the target is called.
    strongest : tuple of Path
        Measured paths, the strongest of each sign.
    scores : mapping of str to mapping of str to ndarray
        For each layer, the effects of *all* its neurons, kept or not, named as the attributes of
        nodes: arrays of float64, ``[neurons]`` or ``[neurons, positions]``. Where some are
        estimates, ``measured``, ``total_measured``, … say which were measured.
    provenance : mapping
        Model hash, data fingerprint, options, versions, seed: how it was found. JSON-able. Under
        ``notes``, what a reader must know besides the numbers; see `notes`.
    """

    graph: nx.DiGraph
    layers: nx.DiGraph
    target: str
    strongest: tuple[Path, ...] = ()
    scores: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _study: Any = field(default=None, repr=False)

    # -- queries ---------------------------------------------------------------------------------

    def paths(
        self,
        k: int = 10,
        *,
        sign: Sign | None = None,
        source: Places | None = None,
        through: Places | None = None,
        layers: Collection[str] | None = None,
    ) -> Iterator[Path]:
        """Give the k strongest paths of kept neurons to the target lazily, strongest first.

        Which ones are measured is decided by what their edges promise, so that among many paths of
        kept neurons stronger ones may be missing: search with more ``paths=``. Those of the whole
        model may be stronger still: `neurograph.strongest_paths` finds them, and says whether it
        is certain.

        Parameters
        ----------
        k : int
            How many.
        sign : {"positive", "negative"}, optional
            Only paths whose effect has this sign.
        source : layer, neuron or several of them, optional
            Where they begin; the model's inputs by default. A neuron is ``(layer, index)``, or a
            name as it is printed: ``"linear1[37]"``, a feature's, the target's.
        through : layer, neuron or several of them, optional
            What must lie on the path.
        layers : collection of str, optional
            Only paths that keep to these layers.

        Returns
        -------
        iterator of Path
            Measured ones first. Those the search did not measure are measured now if the
            circuit has its model (see `attach`); else they follow with ``measured=False``,
            ranked by their edges.

        Raises
        ------
        OptionError
            A negative number; an unknown layer, neuron or sign.
        """
        k = whole(k, "k", least=0)
        query = PathQuery.read(self.graph, self.layers, sign, source, through, layers)
        return self._best(query, k)

    def _best(self, query: PathQuery, k: int) -> Iterator[Path]:
        stored = [path for path in self.strongest if query.accepts(path)]
        if len(stored) >= k:
            yield from stored[:k]
            return
        seen = {path.neurons for path in stored}
        fresh = (path for path in query.candidates(self.graph) if path.neurons not in seen)
        if self._study is None:
            yield from itertools.islice(itertools.chain(stored, fresh), k)
            return
        batch = list(itertools.islice(fresh, _CANDIDATES * (k - len(stored))))
        found = [path for path in self.measure(batch) if query.accepts(path)]
        yield from sorted(stored + found, key=lambda p: -abs(p.effect))[:k]

    def measure(self, paths: Iterable[Path | Sequence[Place]]) -> list[Path]:
        """Measure paths by intervention on the attached model.

        Raises
        ------
        OptionError
            The circuit has no model: call `attach` first. Or something is no path: a list of
            neurons of which each is of a layer that reads the one before.
        """
        study = self.study
        several = listed(paths, "paths", "paths")
        chosen = [p.neurons if isinstance(p, Path) else self._path(p) for p in several]
        effects = study.measure_paths(chosen) if chosen else []
        return [
            Path(neurons, effect, stderr, True, tuple(map(self.name, neurons)))
            for neurons, (effect, stderr) in zip(chosen, effects, strict=True)
        ]

    def neurons(self, *, sign: Sign | None = None, layer: str | None = None) -> pd.DataFrame:
        """Table of the kept neurons, strongest first.

        Parameters
        ----------
        sign : {"positive", "negative"}, optional
            Only neurons whose effect through the circuit has this sign.
        layer : str, optional
            Only those of this layer.

        Returns
        -------
        DataFrame
            Columns ``layer, index, name, effect, stderr, sign, total_effect, total_stderr``, and
            ``position`` behind ``index`` where positions have neurons of their own. ``effect`` is
            through the circuit, and ``sign`` is of that; ``total_effect`` through everything, as
            by an ordinary ablation.
        """
        check_sign(sign)
        if layer is not None:
            self._check_layer(layer)
        return neuron_table(self.graph, sign, layer)

    def features(self) -> pd.DataFrame:
        """Table of all input features by total effect: which matter most, and which way.

        A feature's total effect is how far the target moves, on average over the reference
        samples, when that feature alone goes from the first value of the contrast to the last and
        everything behind it runs: no circuit limits it, and features that were not kept are there
        too.

        Returns
        -------
        DataFrame
            Columns ``layer, index, name, total_effect, total_stderr, measured, kept``, and
            ``position`` where positions have neurons of their own.

        Raises
        ------
        OptionError
            The model's inputs have no neurons (token ids), or they were not scored.

        Examples
        --------
        >>> import torch
        >>> from torch import nn
        >>> import neurograph as ng
        >>> model = nn.Linear(2, 1)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[2.0, -3.0]]))
        >>> X = torch.linspace(0, 1, 101)[:, None].expand(101, 2)
        >>> circuit = ng.search(model, X, 1, feature_names=["dose", "age"], progress=False)
        >>> circuit.features()[["name", "total_effect"]].round(2).values.tolist()
        [['age', -2.7], ['dose', 1.8]]
        """
        if not scored_inputs(self.layers, self.scores):
            raise OptionError(
                "the circuit has no effects of input features: the model's inputs are no "
                "floating-point numbers, or the search did not reach them"
            )
        return feature_table(self.graph, self.layers, self.scores)

    def edges(self, *, sign: Sign | None = None) -> pd.DataFrame:
        """Table of the edges, strongest first; `sign` is that of an edge's own effect.

        Returns
        -------
        DataFrame
            Columns ``source_layer, source_index, target_layer, target_index, effect, stderr,
            sign, total_effect, total_stderr``, and ``source_position``, ``target_position`` where
            there are any. ``effect`` is through this edge alone, ``total_effect`` that of its
            source through everything.
        """
        check_sign(sign)
        return edge_table(self.graph, sign)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know besides the numbers.

        Where the search ended early, what it left out, where the effect through the circuit and the
        total effect have different signs, and what was assumed of model and data.
        """
        return tuple(self.provenance.get("notes", ()))

    def effects_of(self, layer: str, what: Literal["effect", "stderr"] = "effect") -> np.ndarray:
        """Effects through the circuit, or their standard errors, of all neurons of a layer.

        Returns
        -------
        ndarray of float64, [neurons] or [neurons, positions]
            In units of the target; of neurons that were not kept, too.

        Raises
        ------
        OptionError
            There is no such layer, or no effects of its neurons.
        """
        self._check_layer(layer)
        one_of(what, "what", ("effect", "stderr"))
        if layer not in self.scores:
            raise OptionError(f"layer={layer!r}: the circuit has no effects of its neurons")
        return self.scores[layer][what]

    def ranking(self) -> pd.Series:
        """Effects through the circuit of all neurons, kept or not, the strongest first.

        Returns
        -------
        Series
            In units of the target, indexed by ``layer, index`` and, where positions have neurons of
            their own, ``position``.

        Raises
        ------
        OptionError
            The circuit has no scores.
        """
        if not self.scores:
            raise OptionError("the circuit has no scores of all neurons: pass a ranking of them")
        return ranking_of(self.scores)

    def subgraph(self, neurons: Iterable[Place]) -> Circuit:
        """Circuit of some of the neurons, with the edges and measured paths among them."""
        places = listed(neurons, "neurons", "neurons")
        chosen = {kept_neuron(one, "neurons", self.graph, self.layers) for one in places}
        inside = tuple(p for p in self.strongest if chosen.issuperset(p.neurons))
        graph, provenance = self.graph.subgraph(chosen).copy(), {**self.provenance, "part": True}
        return replace(self, graph=graph, strongest=inside, provenance=provenance)

    def explain(self, neuron: Place, k: int = 3, *, exemplars: int = 0) -> str:
        """Describe one neuron in words: its statistics, effects, edges and strongest paths.

        Of one that was scored but not kept, its total effect and that through the circuit.

        Parameters
        ----------
        neuron : str, Neuron or tuple
            ``(layer, index)``, or a name as it is printed: ``"linear1[37]"``, a feature's.
        k : int
            How many edges and paths.
        exemplars : int
            How many samples of the data in which it is highest, and lowest; a pass over the data
            of the circuit's study.
        """
        from neurograph.circuit.explanation import explain

        count = whole(exemplars, "exemplars", least=0)
        chosen = self._neuron(neuron, "neuron")
        if chosen not in self.graph and not self._is_scored(chosen):
            kept_neuron(neuron, "neuron", self.graph, self.layers)  # says what there is instead
        words = explain(self, chosen, whole(k, "k", least=0))
        if count:
            found = self.study.exemplars(neurons=[chosen], count=count)
            words = "\n".join([words, *found.in_words(chosen)])
        return words

    def name(self, neuron: Place) -> str:
        """What a neuron is called: a feature, a class, or ``layer[index]``."""
        return name_of(self.graph, self._neuron(neuron, "neuron"))

    def _neuron(self, place: Place, option: str) -> Neuron:
        """Read a neuron, kept or not, by any of its names."""
        if isinstance(place, Neuron) and place in self.graph:
            return place
        return read_neuron(place, option, self.layers, names_in(self.graph, self.layers))

    def _is_scored(self, neuron: Neuron) -> bool:
        shape = self.scores.get(neuron.layer, {}).get("effect", np.empty(0)).shape
        place = neuron[1:]
        return len(shape) == len(place) and all(map(operator.lt, place, shape))

    def _path(self, places: Sequence[Place]) -> tuple[Neuron, ...]:
        """Read a path; OptionError where it hops between layers that do not read each other."""
        path = tuple(
            self._neuron(place, "paths")
            for place in listed(places, "paths", "paths, which are lists of neurons")
        )
        if not path:
            raise OptionError("paths has an empty path: name its neurons")
        for one, other in itertools.pairwise(path):
            if not self.layers.has_edge(one.layer, other.layer):
                raise OptionError(
                    f"paths: layer {other.layer!r} does not read layer {one.layer!r}, so no path "
                    f"leads from {one} to {other}"
                )
        return path

    def _check_layer(self, layer: object) -> None:
        if not isinstance(layer, str) or layer not in self.layers:
            raise OptionError(
                f"layer={shown(layer)}: there is no such layer; the model has "
                f"{', '.join(self.layers)}"
            )

    # -- the model again -------------------------------------------------------------------------

    def attach(self, model: nn.Module, data: Any, **options: Any) -> Circuit:
        """Return the circuit with a model to measure further paths on.

        Parameters
        ----------
        model, data
            Those of the search, checked by hash and fingerprint.
        **options
            Options of `search` that no file can hold, where they were used: a callable `target`,
            a `Counterfactual` contrast, reference samples, a profile.

        Raises
        ------
        ModelError, DataError
            They are not those of the search.
        """
        from neurograph.questions.attach import attach

        return attach(self, model, data, **options)

    def audit(self, effects: int = 40) -> Audit:
        """Compute effects again by forward hooks alone, on the attached model.

        Nothing of how the search measured is used: a module is called as the model calls it, and
        hooks replace what it returns. The strongest of each kind (of neurons through the circuit
        and in total, of edges and paths), the weakest and others at random are compared, on all
        reference samples, of neurons that were not kept, too.

        Parameters
        ----------
        effects : int
            About how many; at least one of each layer.

        Returns
        -------
        Audit
            How many were compared, the largest difference, on which layers; and what differs by
            more than rounding, with the likely reason: ``audit.agrees``, ``audit.check()``.

        Raises
        ------
        OptionError
            The circuit has no model (call `attach` first), or `effects` is less than 1.
        """
        audit: Audit = self.study.audit(effects, of=self)
        return audit

    @property
    def audited(self) -> Audit:
        """The audit that the search ended with; an empty one where there was none."""
        saved = self.provenance.get("audit")
        return Audit() if saved is None else Audit.from_json(saved)

    def detach(self) -> Circuit:
        """Return the circuit without its model, as `load` would: nothing new is measured."""
        return replace(self, _study=None)

    @property
    def is_attached(self) -> bool:
        """Whether the circuit has its model: see `attach`."""
        return self._study is not None

    @property
    def study(self) -> Any:
        """The `neurograph.Study` it was found in; OptionError where there is none."""
        if self._study is None:
            raise OptionError(
                "this circuit holds no model to measure with: circuit.attach(model, data)"
            )
        return self._study

    # -- out of here -----------------------------------------------------------------------------

    def save(self, path: str | FilePath) -> None:
        """Write the circuit to one file (JSON and safetensors, no pickle); see `load`."""
        from neurograph.circuit.archive import save

        save(self, path)

    def to_html(
        self, path: str | FilePath, *, faithfulness: Any = None, exemplars: int = 3
    ) -> None:
        """Write one offline HTML page to explore.

        Parameters
        ----------
        path : str or Path
        faithfulness : Faithfulness, optional
            How faithful circuits are, to show beside it.
        exemplars : int
            Of each neuron, how many samples of the data to show in which it is highest, and
            lowest; 0 leaves them out. They are found by the circuit's study: a circuit without one,
            from a file, shows none.

        Raises
        ------
        OptionError
            The faithfulness is of another target or model than the circuit.
        """
        from neurograph.report.circuit_page import render_circuit
        from neurograph.report.document import write_page

        write_page(path, lambda: render_circuit(self, faithfulness, exemplars))

    def to_graphml(self, path: str | FilePath) -> None:
        """Write the graph as GraphML, for Gephi, Cytoscape or yEd.

        Control characters in names, which XML cannot hold, become U+FFFD.
        """
        from neurograph.utils.atomic import write_atomically

        text = "\n".join(nx.generate_graphml(nx.relabel_nodes(self.graph, str)))
        write_atomically(path, _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text).encode())

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        signs = [data["sign"] for _, data in self.graph.nodes(data=True)]
        kept = ", ".join(f"{signs.count(s)} {s}" for s in SIGNS)
        head = (
            f"Circuit of {self.target!r}: {len(self.graph)} neurons ({kept}) in "
            f"{len({n.layer for n in self.graph})} layers, {self.graph.number_of_edges()} edges"
        )
        if not self.provenance.get("complete", True):
            head += ", incomplete"
        strongest = strongest_features(self.graph, self.layers, self.scores)
        features = [
            f"{name} {format_effect(*effects)}{'' if measured else ' (estimated)'}"
            for name, *effects, measured in strongest
        ]
        return "\n".join(
            [
                head,
                *(f"  {line}" for line in self.screened()),
                *([f"  features by total effect: {', '.join(features)}"] if features else []),
                *(f"  note: {line}" for line in self.notes),
                *(f"  {path}" for s in SIGNS for path in self._top(s, 3)),
                *([f"  {self.audited}"] if "audit" in self.provenance else []),
            ]
        )

    def screened(self) -> list[str]:
        """Say of each step of the search how much of it was measured, where that was not all.

        With how well the estimates rank (Spearman's correlation, of a few measured at random), and
        which share of the strongest was measured, estimated from these few.
        """
        screenings = {
            _STEPS[step]: Screening(**numbers)
            for step, numbers in self.provenance.get("screening", {}).items()
        }
        return [f"{step}: {s}" for step, s in screenings.items() if s.measured < s.scored]

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
