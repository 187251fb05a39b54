"""Search a model for the circuit behind one target."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import networkx as nx

from neurograph.audit.audit import take_slower
from neurograph.circuit.circuit import Circuit
from neurograph.circuit.paths import Path, PathQuery, name_of
from neurograph.discovery.claims import audit_result
from neurograph.discovery.frontier import SearchState, find_edges, find_neurons
from neurograph.discovery.to_circuit import circuit_graph, to_circuit
from neurograph.effects.budget import Schedule, parse_budget
from neurograph.effects.scorer import as_method
from neurograph.effects.selection import SIGNS, as_keep
from neurograph.errors import SearchInterrupted
from neurograph.model.layers import Neuron
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.options import SearchOptions, read_options
from neurograph.utils.progress import Progress

__all__ = ["find_circuit"]

_PHASES = {"nodes": 0.7, "totals": 0.7, "edges": 0.9}  # of the budget; paths have the rest
_AUDIT, _AUDIT_SECONDS = 0.1, 2.0  # what the audit may take: a share of the search, or so long
_FIRST_PATHS = 8  # measured whatever they take: they tell what one does


def find_circuit(study: BaseStudy, options: Mapping[str, Any]) -> Circuit:
    """Search a study for a circuit; see `search`."""
    own = read_options(SearchOptions, options, "search")
    progress, start = SearchState(), time.monotonic()
    try:
        circuit = _searched(study, own, progress, start)
        while note := take_slower(study.experiment, circuit.audited):
            study.add_note(note)
            progress = SearchState()
            circuit = _searched(study, own, progress, time.monotonic())
        circuit.audited.check()
        return circuit
    except KeyboardInterrupt as stop:
        if not progress.kept:
            raise SearchInterrupted(None) from stop
        graph, provenance = circuit_graph(study, progress), _provenance(study, own, complete=False)
        raise SearchInterrupted(to_circuit(study, progress, graph, (), provenance)) from stop


def _provenance(study: BaseStudy, own: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    keep = as_keep(own["keep"])
    described = {**own, "keep": {"type": type(keep).__name__, **asdict(keep)}}
    described["scorer"] = as_method(own["scorer"]).as_json()
    return {**study.provenance_with(described), "complete": complete}


def _searched(
    study: BaseStudy, own: Mapping[str, Any], state: SearchState, start: float
) -> Circuit:
    """Search, measure the strongest paths, and have some of all that computed again by hooks."""
    _ = study.statistics  # of the circuit's neurons: a pass over the data, before anything moves
    _fill(study, own, state, start)
    graph = circuit_graph(study, state)
    paths = _strongest(study, own, graph, start)
    provenance = _provenance(study, own, complete=True)
    circuit = to_circuit(study, state, graph, paths, provenance)
    seconds = max(_AUDIT_SECONDS, _AUDIT * (time.monotonic() - start))
    audit = audit_result(study, circuit, seconds=seconds)
    return replace(circuit, provenance={**circuit.provenance, "audit": audit.as_json()})


def _fill(study: BaseStudy, own: Mapping[str, Any], state: SearchState, start: float) -> None:
    """Run the search's steps; `state` keeps what is done if one is interrupted."""
    keep = as_keep(own["keep"])
    with (
        study.open() as experiment,
        Progress(
            "searching", study.options["progress"], total=2 * len(study.layers), unit="steps"
        ) as bar,
    ):
        budget = parse_budget(own["budget"])
        schedule = Schedule(budget, start, study.options["seed"], _PHASES)
        scorer = as_method(own["scorer"]).start(experiment, schedule)
        try:
            for step, layer in itertools.chain(
                _named("neurons of", find_neurons(experiment, scorer, keep, state)),
                _named("edges into", find_edges(experiment, scorer, state)),
            ):
                bar.describe(f"{step} {layer}")
                bar.advance()
        finally:
            state.screening = scorer.report()


def _named(step: str, layers: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((step, layer) for layer in layers)


def _strongest(
    study: BaseStudy, own: Mapping[str, Any], graph: nx.DiGraph, start: float
) -> tuple[Path, ...]:
    """Measure the most promising paths of each sign, the strongest first.

    Those that the budget leaves no time for are not among them: queries rank these by estimates.
    """
    budget = parse_budget(own["budget"])
    timed = as_method(own["scorer"]).takes_budget and budget.seconds is not None
    until = start + (budget.seconds or 0.0) if timed else math.inf
    ranked: list[list[tuple[Neuron, ...]]] = []
    for sign in SIGNS:
        query = PathQuery.read(graph, study.layers, sign, None, None, None)
        best = itertools.islice(query.candidates(graph), own["paths"])
        ranked.append([path.neurons for path in best])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    candidates = list(dict.fromkeys(path for path in turns if path is not None))
    measured: list[Path] = []
    some = _FIRST_PATHS if timed else len(candidates)
    while candidates and (not measured or time.monotonic() < until):
        begun = time.monotonic()
        effects = study.measure_paths(candidates[:some])
        measured += [
            Path(neurons, *effect, True, tuple(name_of(graph, n) for n in neurons))
            for neurons, effect in zip(candidates, effects, strict=False)
        ]
        candidates = candidates[some:]
        if timed:  # the same pieces on every machine, while there is time
            each = (time.monotonic() - begun) / some
            fitting = max(_FIRST_PATHS, int((until - time.monotonic()) / each))
            some = min(4 * some, fitting)
    return tuple(sorted(measured, key=lambda path: -abs(path.effect)))
