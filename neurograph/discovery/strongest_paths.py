"""The k strongest paths of a whole model by measured effect, and whether that is certain."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from neurograph.audit.audit import audit_effects
from neurograph.audit.result import Claim
from neurograph.circuit.paths import Path
from neurograph.discovery.beam import Beam, Pass, Strength
from neurograph.effects.budget import Budget, parse_budget
from neurograph.errors import OptionError, SearchInterrupted
from neurograph.model.layers import Neuron
from neurograph.model.neuron_names import Places
from neurograph.model.observe import placed
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.named_neurons import find_named
from neurograph.preparation.options import PathOptions, read_options
from neurograph.utils.checks import whole
from neurograph.utils.progress import Progress

__all__ = ["StrongestPaths", "find_strongest_paths"]


_WIDTH = 1024  # prefixes kept at each layer in the first pass
_WIDER = 4  # times as many in each further one
_AUDITED = 4  # of the paths, the strongest


@dataclass(frozen=True, eq=False, repr=False)
class StrongestPaths:
    """The strongest paths of a model; made by `strongest_paths`.

    Attributes
    ----------
    paths : tuple of Path
        Measured, the strongest first. A path of effect 0 is none of them.
    certain : bool
        Whether no other path of the model is stronger than the weakest of these.
    total : int
        How many paths the model has from the sources to the target.
    measured : int
        How many of them were measured, end to end.
    bound : float
        No path that was not measured has an effect larger than this, either way, in the target's
        units; inf where nothing is known.
    target : str
        What the target is called.
    provenance : mapping
        Model hash, data fingerprint, options, versions, seed: how they were found. JSON-able.
    """

    paths: tuple[Path, ...]
    certain: bool
    total: int
    measured: int
    bound: float
    target: str
    provenance: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """Table of one row a path, the strongest first.

        Returns
        -------
        DataFrame
            ``path`` (names joined by arrows), ``effect``, ``stderr`` and ``neurons``.
        """
        columns = ["path", "effect", "stderr", "neurons"]
        rows = [(" → ".join(p.names), p.effect, p.stderr, p.neurons) for p in self.paths]
        return pd.DataFrame(rows, columns=columns)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        count = len(self.paths)
        head = f"The {count} strongest of {self.total:,} paths to {self.target!r}, certainly"
        if not self.certain:
            head = (
                f"{count} strong paths of {self.total:,} to {self.target!r}: the strongest of "
                f"{self.measured:,} measured (more budget= or memory= finds more)"
            )
        return "\n".join([head, *(f"  {path}" for path in self.paths[:3])])


def find_strongest_paths(study: BaseStudy, k: int, options: Mapping[str, Any]) -> StrongestPaths:
    """Find the strongest paths of a study; see `strongest_paths`."""
    k, own = whole(k, "k", least=1), read_options(PathOptions, options, "strongest_paths")
    sense = {"positive": 1, "negative": -1, None: 0}[own["sign"]]
    study, merged, beam = study.at(routed=False), _Merged(k), None
    try:
        begin = read_sources(study, own["sources"])
        asked = {**own, "k": k, "sources": begin}
        with study.open() as experiment:
            beam = Beam(experiment, begin, k, sense)
            if not beam.total:
                raise OptionError(f"no path leads from {', '.join(begin)} to the target")
            _widen(beam, merged, parse_budget(own["budget"]), study.options["progress"])
        result = _result(study, beam, merged, asked)
        with placed(study.model, study.options["device"]):
            claims = [Claim("path", p.neurons, p.effect, p.stderr) for p in result.paths[:_AUDITED]]
            audit_effects(study.experiment, claims).check()
        return result
    except KeyboardInterrupt as stop:
        if beam is None or not merged.passes:
            raise SearchInterrupted(None) from stop
        raise SearchInterrupted(_result(study, beam, merged, asked)) from stop


class _Merged:
    """The strongest paths and the bound of all passes until now."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.best: dict[tuple[Neuron, ...], Strength] = {}
        self.passes, self.measured, self.bound = 0, 0, math.inf

    @property
    def weakest(self) -> float:
        """The k-th strongest effect; 0 where there are fewer paths."""
        return min((abs(e) for e, _ in self.best.values()), default=0.0) if self.full else 0.0

    @property
    def full(self) -> bool:
        return len(self.best) == self.k

    @property
    def certain(self) -> bool:
        return self.bound <= self.weakest

    def add(self, one: Pass) -> None:
        every = sorted((self.best | one.best).items(), key=lambda item: -abs(item[1][0]))
        self.best = dict(every[: self.k])
        self.passes += 1
        self.measured = max(self.measured, one.measured)
        self.bound = min(self.bound, one.bound)


class _Spent(Exception):
    """Raised where the budget is spent."""


def _widen(beam: Beam, merged: _Merged, budget: Budget, progress: bool | None) -> None:
    """Pass after pass, each wider, until nothing is left to find or no time."""
    until = math.inf if budget.seconds is None else time.monotonic() + budget.seconds
    # A second pass as wide knows what can be left out, and so may be certain.
    widths = _widths(2 * merged.k) if budget.count is None else iter([budget.count] * 2)

    def check() -> None:
        if merged.passes and time.monotonic() > until:
            raise _Spent

    beam.check = check
    with (
        contextlib.suppress(_Spent),
        Progress("searching paths", progress, unit="passes") as bar,
    ):
        for width in widths:
            bar.describe(f"searching paths, {width:,} at each layer")
            one = beam.run(width, merged.weakest)
            merged.add(one)
            bar.advance()
            if merged.certain or not one.wider:
                break
            check()


def _widths(least: int) -> Iterator[int]:
    """How wide one pass is after the other."""
    return (max(_WIDTH, least) * _WIDER**step for step in itertools.count())


def _result(study: BaseStudy, beam: Beam, merged: _Merged, asked: dict[str, Any]) -> StrongestPaths:
    tokens = {name: study.tokens(name) for name in beam.layers}
    paths = tuple(
        Path(neurons, *strength, True, tuple(study.name(n, tokens[n.layer]) for n in neurons))
        for neurons, strength in merged.best.items()
    )
    return StrongestPaths(
        paths,
        merged.certain,
        beam.total,
        merged.measured,
        merged.bound,
        study.target.name,
        study.provenance_with(asked),
    )


def read_sources(study: BaseStudy, sources: Places | None) -> dict[str, list[int]]:
    """Read where paths begin: layers, and the numbers of their neurons.

    Raises
    ------
    OptionError
        There is no such layer or neuron, or the layer has no neurons.
    """
    layers, graph = study.experiment.recording.layers, study.layers
    moving = [name for name in graph if layers[name].neurons]
    if sources is None:
        inputs = [name for name in moving if layers[name].is_input]
        first = [name for name in moving if not set(moving) & set(graph.predecessors(name))]
        return {name: list(range(len(study.experiment.units(name)))) for name in inputs or first}
    return find_named(study, sources, "sources")
