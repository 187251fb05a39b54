"""Search a model for the circuit behind one target."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, TypedDict, Unpack

import networkx as nx
from torch import nn

from neurograph.audit.audit import take_slower
from neurograph.circuit.circuit import Circuit
from neurograph.circuit.paths import Path, PathQuery, name_of
from neurograph.discovery.claims import audit_result
from neurograph.discovery.frontier import Found, find_edges, find_neurons
from neurograph.discovery.to_circuit import circuit_graph, to_circuit
from neurograph.effects.budget import Schedule, parse_budget
from neurograph.effects.scorer import as_method
from neurograph.effects.selection import SIGNS, Keep, as_keep
from neurograph.errors import SearchInterrupted
from neurograph.model.layers import Neuron
from neurograph.model.target import TargetFunction
from neurograph.study.options import (
    BudgetOption,
    Option,
    ScorerOption,
    StudyOptions,
    checked_by,
    read_options,
    split_options,
    with_options,
)
from neurograph.study.study import Study
from neurograph.utils.checks import whole
from neurograph.utils.progress import Progress

__all__ = ["SearchOptions", "ask", "search"]

_PHASES = {"nodes": 0.7, "totals": 0.7, "edges": 0.9}  # of the budget; paths have the rest
_AUDIT, _AUDIT_SECONDS = 0.1, 2.0  # what the audit may take: a share of the search, or so long
_FIRST_PATHS = 8  # measured whatever they take: they tell what one does


class SearchOptions(TypedDict, total=False):
    """Options of a search beside those of its study; `search` explains them."""

    keep: Annotated[
        str | Keep,
        Option(
            "quantile:0.95",
            "Kept of each layer and sign: quantile:0.95, top:20, share:0.8 or above:0.1.",
            checked_by(as_keep),
        ),
    ]
    scorer: ScorerOption
    budget: BudgetOption
    paths: Annotated[
        int,
        Option(
            100,
            "Paths of each sign to measure and store.",
            functools.partial(whole, option="paths", least=0),
        ),
    ]


class _Options(StudyOptions, SearchOptions, total=False):
    pass


@with_options(SearchOptions, StudyOptions)
def search(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None = None,
    **options: Unpack[_Options],
) -> Circuit:
    """Find the neurons and paths that push one output up or down, each measured by intervention.

    From the target's layers backwards, every neuron is moved between two values, only the kept
    outputs of its readers may see it, and the change of the target is measured: once through those
    whose total effect raises the target and once through those that lower it, so that neither
    hides the other. The strongest of either sign through either are kept.

    Parameters
    ----------
    model, data, target
        As for `Study`.
    keep : str or rule
        Of each layer, of either sign, through the neurons that raise the target and through those
        that lower it: ``"quantile:0.95"`` (of the effects of that sign), ``"top:20"``,
        ``"share:0.8"`` (of their sum), or ``"above:0.1"`` (in units of the target).
    scorer : str or Method
        ``"exact"`` measures every neuron and edge by intervention. Three estimate: ``"gradient"``
        is linear from the move to the target (edge attribution patching), ``"hybrid"`` computes
        the readers and is linear behind them, ``"integrated"`` averages gradients while all
        neurons move at once. ``"auto"`` measures everything if the budget allows; if not
        it screens by gradients, measures what they promise most, and says how well they ranked.
        One with settings is an object: ``Integrated(steps=8)`` of `neurograph.effects.gradient`.
    budget : int or str
        For ``"auto"``: a time, like ``"60s"`` or ``"5min"``, for the whole search; or how many
        neurons of each layer and sign are measured, which is the same on every machine. Only
        measured neurons are kept; a few, drawn at random, are measured beside them.
    paths : int
        How many paths of each sign are measured and stored.
    **options
        Those of `Study`: ``profile``, ``layers``, ``groups``, ``positions``, ``contrast``,
        ``background``, ``reference``, ``memory``, ``seed``, ``device``, ``feature_names``,
        ``class_names``, ``tokenizer``, ``progress``. By a `seed`, the result is the same bit for
        bit on one machine, where a time as `budget` suffices to measure everything.

    Returns
    -------
    Circuit
        Effects are means over the reference samples of target(last value) − target(first
        value), with standard errors, in units of the target.

    Raises
    ------
    ModelError
        The model cannot be replayed, raised, or has NaN in weights or activations.
    DataError, OptionError
        Unusable data or options; the message names what and says what to do.
    SearchInterrupted
        On Ctrl-C, a KeyboardInterrupt whose ``found`` is what was found until then.

    Notes
    -----
    At the end some of the effects are computed again by forward hooks alone on the plain model,
    at least one of each layer. If they differ by more than rounding, slower routes are tried, and
    where none gives what hooks give, a ModelError names the layer and the likely reason.

    Effects through chosen outputs are path patching (Wang et al. 2023, arXiv:2211.00593;
    Goldowsky-Dill et al. 2023, arXiv:2304.05969) with an output mask.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    ...     _ = model[2].weight.copy_(torch.tensor([[3.0, -1.0]])), model[2].bias.zero_()
    >>> X = torch.linspace(0, 1, 101)[:, None].expand(101, 2)
    >>> circuit = search(model, X, target=1, feature_names=["up", "down"])
    >>> print(next(circuit.paths(1, sign="positive")))
    up → 0[0] → output +2.7000 ± 0.0000
    """
    of_study, own = split_options(SearchOptions, options, "search")
    return Study(model, data, target, **of_study).search(**own)


def ask(study: Study, options: Mapping[str, Any]) -> Circuit:
    """Search a study for a circuit; see `search`."""
    own = read_options(SearchOptions, options, "search")
    progress, start = Found(), time.monotonic()
    try:
        circuit = _searched(study, own, progress, start)
        while note := take_slower(study.experiment, circuit.audited):
            study.add_note(note)
            progress = Found()
            circuit = _searched(study, own, progress, time.monotonic())
        circuit.audited.check()
        return circuit
    except KeyboardInterrupt as stop:
        if not progress.kept:
            raise SearchInterrupted(None) from stop
        graph, provenance = circuit_graph(study, progress), _provenance(study, own, complete=False)
        raise SearchInterrupted(to_circuit(study, progress, graph, (), provenance)) from stop


def _provenance(study: Study, own: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    keep = as_keep(own["keep"])
    described = {**own, "keep": {"type": type(keep).__name__, **asdict(keep)}}
    described["scorer"] = as_method(own["scorer"]).as_json()
    return {**study.provenance_with(described), "complete": complete}


def _searched(study: Study, own: Mapping[str, Any], found: Found, start: float) -> Circuit:
    """Search, measure the strongest paths, and have some of all that computed again by hooks."""
    _ = study.statistics  # of the circuit's neurons: a pass over the data, before anything moves
    _fill(study, own, found, start)
    graph = circuit_graph(study, found)
    paths = _strongest(study, own, graph, start)
    provenance = _provenance(study, own, complete=True)
    circuit = to_circuit(study, found, graph, paths, provenance)
    seconds = max(_AUDIT_SECONDS, _AUDIT * (time.monotonic() - start))
    audit = audit_result(study, circuit, seconds=seconds)
    return replace(circuit, provenance={**circuit.provenance, "audit": audit.as_json()})


def _fill(study: Study, own: Mapping[str, Any], found: Found, start: float) -> None:
    """Run the search's steps; `found` keeps what is done if one is interrupted."""
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
                _named("neurons of", find_neurons(experiment, scorer, keep, found)),
                _named("edges into", find_edges(experiment, scorer, found)),
            ):
                bar.describe(f"{step} {layer}")
                bar.advance()
        finally:
            found.screening = scorer.report()


def _named(step: str, layers: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((step, layer) for layer in layers)


def _strongest(
    study: Study, own: Mapping[str, Any], graph: nx.DiGraph, start: float
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
