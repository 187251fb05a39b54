"""Attribution scores of all neurons or all edges of a model, by any scorer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import networkx as nx
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from neurograph.audit.audit import take_slower
from neurograph.audit.result import Audit
from neurograph.discovery.claims import audit_result
from neurograph.effects.budget import Schedule, parse_budget
from neurograph.effects.effect_table import EffectArrays
from neurograph.effects.experiment import Experiment
from neurograph.effects.scorer import Scored, Scorer, as_method, method_text
from neurograph.effects.screening import Screening
from neurograph.errors import OptionError, SearchInterrupted
from neurograph.model.neurons import Units
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.options import ScoreOptions, read_options
from neurograph.utils.checks import one_of
from neurograph.utils.progress import Progress

__all__ = ["Scores", "find_scores"]

_NUMBERS = ["effect", "stderr", "rms", "measured"]
_AUDIT, _AUDIT_SECONDS = 0.1, 1.0  # what the audit may take: a share of the time, or so long
_PHASES = {"neurons": "totals", "edges": "edges"}


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Effects of all neurons, or all edges, on one target; made by `score`.

    Attributes
    ----------
    table : DataFrame
        Strongest first: ``effect`` (in units of the target), ``stderr`` (standard error of that
        mean over the reference samples), ``rms`` (root mean square of the samples' own differences,
        which do not cancel) and ``measured``, whether by intervention; of neurons
        ``layer`` and ``index``, of edges ``source_layer``, ``source_index``, ``target_layer`` and
        ``target_index``; with ``position`` behind each index where positions have neurons of
        their own. Edges that the budget left no time for have NaN, and are not in rankings.
    target : str
        What the target is called.
    screening : Screening or None
        What ``scorer="auto"`` screened and measured, and how well the screen ranks.
    provenance : mapping
        Model hash, data fingerprint, options, versions, seed: how they were found. JSON-able.
    """

    table: pd.DataFrame
    target: str
    screening: Screening | None
    provenance: Mapping[str, Any]
    _study: Any = field(default=None, repr=False)

    def ranking(self, by: Literal["effect", "rms"] = "effect") -> pd.Series:
        """Effects, indexed by the columns that say whose they are; strongest first.

        Parameters
        ----------
        by : {"effect", "rms"}
            Mean effects, or how much each sample's target moves whichever way. A resampling
            contrast moves single targets up as often as down: there `rms` tells more.

        Raises
        ------
        OptionError
            There is no such column.
        """
        one_of(by, "by", ("effect", "rms"))
        places = [c for c in self.table if c not in _NUMBERS]
        values = self.table.set_index(places)[by].dropna()
        return values.sort_values(ascending=False, kind="stable") if by == "rms" else values

    @property
    def layers(self) -> nx.DiGraph:
        """The layer graph of the model that was scored.

        Raises
        ------
        OptionError
            These scores hold no model.
        """
        if self._study is None:
            raise OptionError("these scores hold no model: make them by score()")
        return self._study.layers

    def audit(self, effects: int = 40) -> Audit:
        """Compute some effects again by forward hooks alone; see `Circuit.audit`.

        Parameters
        ----------
        effects : int
            How many: the strongest, the weakest and others at random, at least one of each layer.

        Raises
        ------
        OptionError
            `effects` is less than 1.
        ModelError
            The model's weights have changed since.
        """
        if self._study is None:
            raise OptionError("these scores hold no model to audit with: make them by score()")
        audit: Audit = self._study.audit(effects, of=self)
        return audit

    @property
    def audited(self) -> Audit:
        """The audit that scoring ended with; an empty one where all are estimates."""
        saved = self.provenance.get("audit")
        return Audit() if saved is None else Audit.from_json(saved)

    def __repr__(self) -> str:
        kind = "edges" if "source_layer" in self.table else "neurons"
        scorer = method_text(self.provenance["options"]["scorer"])
        text = f"Scores of {len(self.table):,} {kind} for {self.target!r} by {scorer}"
        text = text if self.screening is None else f"{text}: {self.screening}"
        missed = int(self.table["effect"].isna().sum())
        text = f"{text}; no time was left for {missed:,}" if missed else text
        notes = [f"note: {note}" for note in self.provenance.get("notes", ())]
        checked = [str(self.audited)] if "audit" in self.provenance else []
        return "\n  ".join([text, *notes, *checked])


def find_scores(study: BaseStudy, options: Mapping[str, Any]) -> Scores:
    """Score the neurons, or the edges, of a study; see `score`."""
    own = read_options(ScoreOptions, options, "score")
    method = as_method(own["scorer"])
    of, start = own["of"], time.monotonic()
    chosen: Scorer | None = None
    pieces: list[_Piece] = []

    def scores() -> Scores:
        table = _joined(pieces, of, study.experiment.recording.size)
        screening = chosen.report().get(_PHASES[of]) if chosen else None
        if screening is not None:
            screening = replace(
                screening,
                scored=int(table["effect"].notna().sum()),
                measured=int(table["measured"].sum()),
            )
        provenance = study.provenance_with({**own, "scorer": method.as_json()})
        return Scores(table, study.target.name, screening, provenance, study)

    def run() -> Scores:
        nonlocal chosen
        pieces.clear()
        with study.open() as experiment:
            begun = time.monotonic() if chosen else start
            phases = {_PHASES[of]: 1.0}
            schedule = Schedule(parse_budget(own["budget"]), begun, study.options["seed"], phases)
            chosen = method.start(experiment, schedule)
            layers = _scored_layers(study, of)
            with Progress(
                f"scoring {of}", study.options["progress"], total=len(layers), unit="layers"
            ) as bar:
                for layer in layers:
                    bar.describe(f"scoring {of} of {layer}")
                    pieces.extend(_pieces(experiment, chosen, layer, of))
                    bar.advance()
        result = scores()
        if not result.table["measured"].any():
            return result
        seconds = max(_AUDIT_SECONDS, _AUDIT * (time.monotonic() - start))
        audit = audit_result(study, result.table, seconds=seconds)
        return replace(result, provenance={**result.provenance, "audit": audit.as_json()})

    try:
        if not _scored_layers(study, of):
            raise OptionError(
                f"of={of!r}: on these data no layer reads another: nothing is to score"
            )
        result = run()
        while note := take_slower(study.experiment, result.audited):
            study.add_note(note)
            result = run()
        result.audited.check()
        return result
    except KeyboardInterrupt as stop:
        raise SearchInterrupted(scores() if pieces else None) from stop


def _scored_layers(study: BaseStudy, of: str) -> list[str]:
    graph, layers = study.layers, study.experiment.recording.layers
    read = [name for name in graph if of == "neurons" or graph.out_degree(name)]
    return [name for name in read if layers[name].neurons]


@dataclass(frozen=True, eq=False)
class _Piece:
    """Scores of some neurons, or of some edges, by their numbers."""

    ends: tuple[tuple[Units, NDArray[np.int64]], ...]
    effects: EffectArrays

    @staticmethod
    def of(ends: Sequence[tuple[Units, torch.Tensor]], scored: Scored | None) -> _Piece:
        """Scores of what scorers gave; without any, effects of 0 that were measured."""
        numbers = tuple((units, chosen.cpu().numpy()) for units, chosen in ends)
        if scored is None:
            return _Piece(numbers, EffectArrays.none(len(numbers[0][1])))
        return _Piece(numbers, EffectArrays.of(scored))


def _pieces(experiment: Experiment, scorer: Scorer, layer: str, of: str) -> Iterator[_Piece]:
    """Scores of the neurons of a layer, or of the edges from them to each reader."""
    units = experiment.units(layer)
    every = range(len(units))
    if of == "neurons":
        yield _Piece.of([(units, torch.arange(len(units)))], scorer.totals(layer, every))
        return
    readers = {
        name: range(len(experiment.units(name)))
        for name in experiment.graph.successors(layer)
        if experiment.recording.layers[name].neurons
    }
    seen = {
        name: torch.zeros(len(units), len(outputs), dtype=torch.bool)
        for name, outputs in readers.items()
    }
    for edges in scorer.edges(layer, every, readers, transfers=False):
        i, j = edges.pairs.cpu().T
        seen[edges.reader][i, j] = True
        yield _Piece.of([(units, i), (experiment.units(edges.reader), j)], edges.scored)
    for reader, moved in seen.items():
        i, j = (~moved).nonzero().T  # these move nothing, which was measured
        if len(i):
            yield _Piece.of([(units, i), (experiment.units(reader), j)], None)


def _joined(pieces: Sequence[_Piece], of: str, samples: int) -> pd.DataFrame:
    """One table, strongest first, the places in front."""
    if not pieces:
        raise OptionError(f"there are no {of} to score: no layer has neurons, or is read by one")
    columns: dict[str, Any] = {}
    lengths = [len(piece.effects) for piece in pieces]
    for end, prefix in enumerate([""] if of == "neurons" else ["source_", "target_"]):
        units, numbers = zip(*(piece.ends[end] for piece in pieces), strict=True)
        names = np.array([one.layer for one in units], dtype=object)
        places = np.repeat([one.positions or 1 for one in units], lengths)
        whole = np.concatenate(numbers)
        columns[f"{prefix}layer"] = np.repeat(names, lengths)
        columns[f"{prefix}index"] = whole // places
        if any(one.positions is not None for one in units):
            single = np.repeat([one.positions is None for one in units], lengths)
            columns[f"{prefix}position"] = pd.array(whole % places, dtype="Int64")
            columns[f"{prefix}position"][single] = pd.NA
    effect = np.concatenate([piece.effects.effect for piece in pieces])
    stderr = np.concatenate([piece.effects.stderr for piece in pieces])
    # Mean square = square of the mean + variance, and the error is its root by n − 1.
    rms = np.sqrt(effect**2 + np.nan_to_num(stderr) ** 2 * (samples - 1))
    measured = np.concatenate([piece.effects.measured for piece in pieces])
    columns |= {"effect": effect, "stderr": stderr, "rms": rms, "measured": measured}
    strongest = np.argsort(-np.abs(effect), kind="stable")
    return pd.DataFrame(columns).take(strongest).reset_index(drop=True)
