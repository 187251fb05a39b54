"""Search a model for the circuit behind one target."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import torch
from torch import nn

from neurograph.audit.audit import take_slower
from neurograph.circuit.circuit import Circuit
from neurograph.circuit.paths import Path, PathQuery
from neurograph.discovery.agreement import check_agreement
from neurograph.discovery.frontier import Found, find_edges, find_neurons
from neurograph.discovery.to_circuit import assembled, audited
from neurograph.effects.auto import Auto
from neurograph.effects.budget import parse_budget
from neurograph.effects.contrast import (
    Background,
    Contrast,
    FromMean,
    FromZero,
    Quantiles,
    Resample,
)
from neurograph.effects.scorer import ScorerName
from neurograph.effects.scorers import choose_scorer
from neurograph.effects.selection import SIGNS, Keep, as_keep
from neurograph.errors import DataError, ModelError, OptionError, SearchInterrupted
from neurograph.model.layer_choice import Choice
from neurograph.model.layers import Neuron
from neurograph.model.neurons import Groups
from neurograph.model.positions import Positions
from neurograph.model.target import TargetFunction
from neurograph.study.study import Options, Study, prepare
from neurograph.utils.progress import Progress

__all__ = ["attach", "search"]

_PHASES = {"nodes": 0.7, "totals": 0.7, "edges": 0.9}  # of the budget; paths have the rest
_AUDIT, _AUDIT_SECONDS = 0.1, 2.0  # what the audit may take: a share of the search, or so long
_FIRST_PATHS = 8  # measured whatever they take: they tell what one does


def search(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None = None,
    *,
    profile: nx.DiGraph | None = None,
    layers: Choice | None = None,
    groups: Mapping[str, Groups] | None = None,
    positions: Positions = "all",
    contrast: str | tuple[float, ...] | Contrast = "quantiles",
    background: Background = "data",
    reference: int | Any = 32,
    keep: str | Keep = "quantile:0.95",
    scorer: ScorerName = "auto",
    budget: int | str = "60s",
    paths: int = 100,
    memory: int | str = "512MB",
    seed: int = 0,
    device: torch.device | str | None = None,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    tokenizer: Any = None,
    progress: bool | None = None,
) -> Circuit:
    """Find the neurons and paths that push one output up or down, each measured by intervention.

    From the target's layers backwards, every neuron is moved between two values, only the kept
    outputs of its readers may see it, and the change of the target is measured: once through those
    whose total effect raises the target and once through those that lower it, so that neither
    hides the other. The strongest of either sign through either are kept.

    Parameters
    ----------
    model : Module
        Any eager model; it is run in eval mode and left as it was. Nothing else may run it
        meanwhile, as its layers have stand-ins; searches in other threads wait.
    data : Tensor, ndarray, DataFrame, (X, y) pair, dict, Dataset, DataLoader or list of batches
        Several positional inputs are a tuple in a pair: ``((x1, x2), y)``.
    target : int, str, callable or None
        An output index, a class name, ``(output, batch) -> [batch]``, or None for a single output
        as it is (regression). With an index a single output is read as a binary logit: target 1 is
        the output, target 0 minus the output, which is said.
    profile : networkx.DiGraph, optional
        From `profile`; made from the data if not given.
    layers : str, type, predicate, or several of them, optional
        Which modules are layers; all else is glue. A pattern is compared with the last names of
        a module's path (``"o_proj"``, ``"layers.*.mlp"``), and means the module's input side
        with ``:input`` behind; a predicate takes ``(path, module)``. By default every module
        that owns parameters directly, but for normalisations.
    groups : mapping of str to groups, optional
        For layers that match a pattern, channels that move together as one neuron: ``"heads"``
        (of attention: where queries, keys or values come from, or on the input side of the
        projection behind them; their size is found in the module or its config), a number of
        equal groups, or lists of channels.
    positions : "all", "last", "each" or int
        Of layers with one axis of positions (tokens, time steps): whether a neuron is a channel
        at all of them, at the last or at a certain one alone, or each position has neurons
        ``(layer, channel, position)``. A mask among the inputs is honoured where moving what it
        calls padding leaves the target as it is, whichever way it is read: what is
        padding neither moves nor counts. Image maps always move whole.
    contrast : str, tuple or contrast
        Values a neuron moves between: ``"quantiles"`` (0.05 → 0.95 of its activations), a tuple
        of ascending quantiles, ``"pooled"`` (quantiles over all positions), ``"sweep"`` (all
        seven), ``"mean"`` or ``"zero"`` (→ its actual value in each sample), ``"resample"`` (its
        value elsewhere in another sample → its own), or a ``Counterfactual(data)``.
    background : {"data", "mean", "zero"}
        What everything else is meanwhile: real reference samples, means, or zero.
    reference : int or data
        How many samples are the background (drawn by `seed`), or the samples themselves.
    keep : str or rule
        Of each layer, of either sign, through the neurons that raise the target and through those
        that lower it: ``"quantile:0.95"`` (of the effects of that sign), ``"top:20"``,
        ``"share:0.8"`` (of their sum), or ``"above:0.1"`` (in units of the target).
    scorer : {"auto", "exact", "hybrid", "gradient", "integrated"}
        ``"exact"`` measures every neuron and edge by intervention. Three estimate: ``"gradient"``
        is linear from the move to the target (edge attribution patching), ``"hybrid"`` computes
        the readers and is linear behind them, ``"integrated"`` averages gradients while all
        neurons move at once. ``"auto"`` measures everything if the budget allows; if not
        it screens by gradients, measures what they promise most, and says how well they ranked.
    budget : int or str
        For ``"auto"``: a time, like ``"60s"`` or ``"5min"``, for the whole search; or how many
        neurons of each layer and sign are measured, which is the same on every machine. Only
        measured neurons are kept; a few, drawn at random, are measured beside them.
    paths : int
        How many paths of each sign are measured and stored.
    memory : int or str
        Bytes, or like ``"512MB"``, for the rows of interventions run at once.
    seed : int
        Makes the result reproducible bit for bit on one machine, where a time as `budget`
        suffices to measure everything.
    device : device, optional
        Where to run; the model is moved there and back. By default it stays where it is.
    feature_names, class_names : sequence of str, optional
        Names of the input's features and of the targets; a DataFrame's columns name features.
    tokenizer : optional
        With ``decode([id])``, or a function from a token's id to its name: names positions.
    progress : bool, optional
        Show progress; by default where a person watches.

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
    options = Options(
        layers=layers,
        groups=groups,
        positions=positions,
        contrast=contrast,
        background=background,
        reference=reference,
        keep=keep,
        scorer=scorer,
        budget=budget,
        paths=paths,
        memory=memory,
        seed=seed,
        device=device,
        feature_names=feature_names,
        class_names=class_names,
        tokenizer=tokenizer,
        progress=progress,
    )
    found, study, start = Found(), None, time.monotonic()
    try:
        study = prepare(model, data, target, options, profile)
        circuit = _searched(study, found, start)
        while told := take_slower(study.experiment, circuit.audited):
            found = Found()
            circuit = _slower(study, _searched(study, found, time.monotonic()), told)
        circuit.audited.check()
        return circuit
    except KeyboardInterrupt as stop:
        if study is None or not found.kept:
            raise SearchInterrupted(None) from stop
        raise SearchInterrupted(assembled(study, found, complete=False)) from stop


def _searched(study: Study, found: Found, start: float) -> Circuit:
    """Search, measure the strongest paths, and have some of all that computed again by hooks."""
    _fill(study, found, start)
    bare = assembled(study, found, complete=True)
    whole = replace(bare, strongest=_strongest(study, bare, start))
    audit = audited(study, whole, seconds=max(_AUDIT_SECONDS, _AUDIT * (time.monotonic() - start)))
    return replace(whole, provenance={**whole.provenance, "audit": audit.as_json()})


def _slower(study: Study, circuit: Circuit, note: str) -> Circuit:
    """Note that a circuit was measured without a shortcut, as what attaches it must be."""
    told = {"notes": [note, *circuit.notes], "narrow": study.experiment.narrow}
    told["one_by_one"] = study.experiment.replay.one_by_one
    return replace(circuit, provenance={**circuit.provenance, **told})


def attach(circuit: Circuit, model: nn.Module, data: Any, **given: Any) -> Circuit:
    """Give a circuit the model and data it was found with; see `Circuit.attach`."""
    known = circuit.provenance
    told = dict(known["options"])
    kind = known["target"].get("kind", "callable" if known["target"]["index"] is None else "index")
    if kind == "callable" and "target" not in given:
        raise OptionError("the circuit's target is a callable, which no file holds: pass target=")
    if told["contrast"]["type"] == "Counterfactual" and "contrast" not in given:
        raise OptionError("the circuit's contrast is a Counterfactual: pass contrast= again")
    if told["reference"] == "given" and "reference" not in given:
        raise OptionError("the circuit's reference samples were given: pass reference= again")
    if told.pop("profile") == "given" and "profile" not in given:
        raise OptionError("the circuit was found with a profile of its own: pass profile= again")
    unknown = given.keys() - {"target"} - vars(Options()).keys()
    if unknown:
        raise OptionError(f"{min(unknown)}= is no option of a search: leave it out")
    target = given.pop("target", known["target"]["index"])
    profiled = given.pop("profile", None)
    if "contrast" not in given:
        told["contrast"] = _read_contrast(told["contrast"])
    told["keep"] = as_keep("top:1")  # nothing is selected again
    study = prepare(model, data, target, Options(**{**told, **given}), profiled)
    for part, key, error in (("model", "hash", ModelError), ("data", "fingerprint", DataError)):
        if study.provenance[part][key] != known[part][key]:
            raise error(
                f"this is not the {part} of the circuit ({key} {study.provenance[part][key][:12]}… "
                f"instead of {known[part][key][:12]}…)"
            )
    study.experiment.narrow = known.get("narrow", True)
    study.experiment.replay.one_by_one |= known.get("one_by_one", False)
    attached = replace(circuit, _study=study)
    check_agreement(circuit, attached, study)
    return attached


def _read_contrast(told: dict[str, Any]) -> Contrast:
    if told["type"] == "Quantiles":
        return Quantiles(tuple(told["levels"]), told.get("pooled", False))
    if told["type"] == "Resample":
        return Resample(told.get("positions", False))
    return FromMean() if told["type"] == "FromMean" else FromZero()


def _fill(study: Study, found: Found, start: float) -> None:
    """Run the search's steps; `found` keeps what is done if one is interrupted."""
    options, layers = study.options, len(study.profiled)
    keep = as_keep(options.keep)
    with (
        study.open() as experiment,
        Progress("searching", options.progress, total=2 * layers, unit="steps") as bar,
    ):
        scorer = choose_scorer(
            options.scorer,
            experiment,
            budget=parse_budget(options.budget),
            start=start,
            seed=options.seed,
            phases=_PHASES,
        )
        try:
            for step, layer in itertools.chain(
                _named("neurons of", find_neurons(experiment, scorer, keep, found)),
                _named("edges into", find_edges(experiment, scorer, found)),
            ):
                bar.describe(f"{step} {layer}")
                bar.advance()
        finally:
            if isinstance(scorer, Auto):
                found.screening = scorer.report()


def _named(step: str, layers: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((step, layer) for layer in layers)


def _strongest(study: Study, circuit: Circuit, start: float) -> tuple[Path, ...]:
    """Measure the most promising paths of each sign, the strongest first.

    Those that the budget leaves no time for are not among them: queries rank these by estimates.
    """
    budget = parse_budget(study.options.budget)
    timed = study.options.scorer == "auto" and budget.seconds is not None
    until = start + (budget.seconds or 0.0) if timed else math.inf
    ranked: list[list[tuple[Neuron, ...]]] = []
    for sign in SIGNS:
        query = PathQuery.read(circuit.graph, circuit.layers, sign, None, None, None)
        best = itertools.islice(query.candidates(circuit.graph), study.options.paths)
        ranked.append([path.neurons for path in best])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    candidates = list(dict.fromkeys(path for path in turns if path is not None))
    measured: list[Path] = []
    some = _FIRST_PATHS if timed else len(candidates)
    while candidates and (not measured or time.monotonic() < until):
        begun = time.monotonic()
        measured += circuit.measure(candidates[:some])
        candidates = candidates[some:]
        if timed:  # the same pieces on every machine, while there is time
            each = (time.monotonic() - begun) / some
            fitting = max(_FIRST_PATHS, int((until - time.monotonic()) / each))
            some = min(4 * some, fitting)
    return tuple(sorted(measured, key=lambda path: -abs(path.effect)))
