"""Signals: how much of the target comes back when a few parts of each layer alone pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor

from neurograph.ablation.index import Components, neurons_of
from neurograph.ablation.intervals import interval
from neurograph.ablation.keep_neurons import KeepNeurons
from neurograph.ablation.replacements import Ablated
from neurograph.effects.contrast import FromMean, LayerSamples
from neurograph.effects.experiment import Experiment
from neurograph.errors import OptionError
from neurograph.model.basis import Basis, Directions, FoundBasis
from neurograph.model.clusters import Clusters, RandomFamilies
from neurograph.model.directions import Active, Attributed, Principal
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.basis_finder import MOST_OUTPUTS
from neurograph.preparation.options import SignalOptions, read_options
from neurograph.preparation.preparation import LayerStatistics
from neurograph.replay.run import Outcome
from neurograph.utils.checks import a_share
from neurograph.utils.progress import Progress

__all__ = ["ALL", "NONE", "Signals", "find_signals"]

ALL = "all layers"
"""In place of a layer's name: each of them passes so many parts on, all at once."""

NONE = "none"
"""What is called nothing at all that passes."""

_FOUND: Mapping[str, Callable[[int, int, Any], FoundBasis[Any]]]
_FOUND = {
    "active": Active,
    "principal": Principal,
    "neurons": Attributed,
    "families": Clusters,
}
_FAMILIES = 32  # of each layer
_LITTLE = 0.8  # of the target, for which families should be fewer than random ones
_RANDOM = 3  # tells this use of the seed from others


@dataclass(frozen=True, eq=False, repr=False)
class Signals:
    """How many signals each layer passes on to the target; by `Study.signals`.

    Attributes
    ----------
    table : DataFrame
        ``layer``, or ``all layers`` at once; ``parts``, what passes: ``active`` or ``principal``
        directions, the ``neurons`` of the largest attribution, ``families`` of 32 that do most,
        ``random`` directions, ``random neurons``, ``random families``, ``none``; ``count`` of them,
        of each layer, while all else that it says is the mean; ``share`` of the target that comes
        back, 1 less the mean square of its change over its variance, over the reference samples (it
        may be below 0); ``low`` and ``high``, where the share may be: of what is drawn over other
        draws, of what is found over other samples; ``found_on``, the share over the samples on
        which parts were found, NaN for what is drawn: by how much it is above ``share`` does not
        hold on others.
    target : str
        What the target is called; ``all outputs`` where their shares are added up, of the summed
        squares of changes and of their variances.
    confidence : float
        Level of the intervals.
    provenance : mapping
        Model hash, data fingerprint, options, versions, seed: how it was found. JSON-able.
    """

    table: pd.DataFrame
    target: str
    confidence: float = 0.95
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def needed(self, share: float = 0.95) -> pd.DataFrame:
        """How many parts of a layer bring back a share of the target.

        Returns
        -------
        DataFrame
            Indexed by layer, a column for each kind of parts: the fewest of those tried, NaN
            where none of them were enough.
        """
        a_share(share, "share")
        tried = self.table[self.table["parts"] != NONE]
        enough = tried[tried["share"] >= share]
        fewest = enough.groupby(["layer", "parts"])["count"].min().unstack()
        layers, kinds = (tried[name].unique() for name in ("layer", "parts"))
        return fewest.reindex(index=pd.Index(layers, name="layer"), columns=[*kinds])

    def __repr__(self) -> str:
        needed = self.needed()
        none = self.table[self.table["parts"] == NONE].set_index("layer")["share"]
        lines = [f"Signals: how many parts of a layer bring 95% of {self.target!r} back"]
        for layer in needed.index:
            most = self.table[self.table["layer"] == layer].groupby("parts")["count"].max()
            parts = [
                f"{n:.0f} {kind}" if n == n else f"more than {most.get(kind, 0)} {kind}"
                for kind, n in needed.loc[layer].items()
            ]
            lines.append(f"  {layer}: {', '.join(parts)} (none of it: {none[layer]:.0%})")
        return "\n".join([*lines, *self._doubts()])

    def _doubts(self) -> Iterator[str]:
        """Say where families gain nothing over random ones, and are less than single neurons."""
        needed = self.needed(_LITTLE)
        if not {"families", "random families", "neurons"} <= set(needed):
            return
        tried = self.table.groupby(["layer", "parts"])["count"].max()
        for layer, row in needed.iterrows():
            wide = layer != ALL and tried[layer, "families"] < tried[layer, "neurons"]
            if wide and not row["families"] < row["random families"]:
                yield (
                    f"  note: families of {layer!r} bring {_LITTLE:.0%} back no sooner than random "
                    "ones: look at directions, basis=Active(k)"
                )


def find_signals(study: BaseStudy, options: Mapping[str, Any]) -> Signals:
    """Measure how many signals layers of a study pass on; see `Study.signals`."""
    own = read_options(SignalOptions, options, "signals")
    if study.options["basis"] or study.options["groups"]:
        raise OptionError("signals are those of channels: ask a study without basis= or groups=")
    study = study.at(background="data", routed=False)
    layers = [name for (name,) in neurons_of(study.experiment, inputs=False).sizes]
    if not layers:
        raise OptionError("the model has no hidden layers: only the output reads what there is")
    if own["of"] == "outputs":
        study.experiment.of_outputs(MOST_OUTPUTS)  # raises where there are too many
    counts, kinds, statistics = own["counts"], own["parts"], study.statistics
    scopes = {layer: [layer] for layer in layers} | ({ALL: layers} if len(layers) > 1 else {})
    shares: dict[tuple[str, str], list[_Shares]] = {}
    found_on: dict[tuple[str, str], _Shares] = {}
    draws = [(kind, i) for kind in kinds for i in range(1 if kind in _FOUND else own["draws"])]
    with Progress("signals", study.options["progress"], total=len(draws), unit="kinds") as bar:
        for kind, draw in draws:
            bar.describe(f"signals: {kind}")
            bases = dict(_bases(study, layers, kind, draw, own))
            for scope, measured in _measured(study, bases, scopes, own, statistics):
                shares[scope, NONE] = [{0: measured[0]}]
                some = {count: share for count, share in measured.items() if count}
                shares.setdefault((scope, kind), []).append(some)
            if kind in _FOUND:
                there = study.where_found(own["samples"])
                for scope, measured in _measured(there, bases, scopes, own, statistics):
                    found_on[scope, kind] = measured
            bar.advance()
    size = study.experiment.recording.size
    rows = [
        (scope, kind, *row, found_on.get((scope, kind), {}).get(row[0], _NOTHING)[0])
        for scope in scopes
        for kind in (NONE, *kinds)
        for row in _summed(shares.get((scope, kind), []), own["confidence"], size)
    ]
    columns = ["layer", "parts", "count", "share", "low", "high", "found_on"]
    return Signals(
        pd.DataFrame(rows, columns=columns),
        study.target.name if own["of"] == "target" else "all outputs",
        own["confidence"],
        study.provenance_with(
            {**own, "counts": list(counts), "parts": list(kinds)},
            without=("contrast", "background"),
        ),
    )


def _bases(
    study: BaseStudy, layers: Sequence[str], kind: str, draw: int, own: Mapping[str, Any]
) -> Iterator[tuple[str, Basis]]:
    """Parts of a kind of each layer that has any: as many as there are, up to the most tried."""
    for number, layer in enumerate(layers):
        width = study.experiment.recording.layers[layer].neurons
        most = min(_FAMILIES if "families" in kind else max(own["counts"]), width)
        generator = np.random.default_rng([study.options["seed"], _RANDOM, draw, number])
        if kind in _FOUND:
            with contextlib.suppress(OptionError):  # there are none
                wanted = _FOUND[kind](most, own["samples"], own["of"])
                yield layer, study.find_basis(layer, wanted, fewer=True)
        elif kind == "random families":
            drawn = RandomFamilies(most, own["samples"], own["of"], seed=draw)
            with contextlib.suppress(OptionError):
                yield layer, study.find_basis(layer, drawn, fewer=True)
        elif kind == "random":
            yield layer, Directions(np.linalg.qr(generator.normal(size=(width, most)))[0].T)
        else:
            yield layer, Directions(np.eye(width)[generator.permutation(width)[:most]])


_Shares = Mapping[int, tuple[float, float]]
"""By how many parts pass, the share that comes back, and its standard error over the samples."""

_NOTHING = math.nan, math.nan


def _measured(
    study: BaseStudy,
    bases: Mapping[str, Basis],
    scopes: Mapping[str, Sequence[str]],
    own: Mapping[str, Any],
    statistics: LayerStatistics,
) -> Iterator[tuple[str, _Shares]]:
    """By scope, what comes back when first parts of its layers alone pass."""
    plain = study.experiment.recording
    means = {
        name: FromMean().first(LayerSamples(plain.layers[name], statistics[name], plain))
        for name in bases
    }
    with study.within(bases) as view, view.open() as experiment:

        def ablated(layer: str) -> Tensor:
            rows = means[layer].view(-1, *plain.layers[layer].shape)
            return experiment.recording.layers[layer].coordinates(rows).flatten(1)

        for scope, layers in scopes.items():
            if bases.keys() >= set(layers):
                yield scope, _shares(experiment, layers, own["counts"], own["of"], ablated)


def _shares(
    experiment: Experiment, layers: Sequence[str], counts: Sequence[int], of: str, ablated: Ablated
) -> _Shares:
    units = {layer: experiment.units(layer) for layer in layers}
    numbers = {n: np.arange(len(own)) // (own.positions or 1) for n, own in units.items()}
    parts = {n: int(own[-1]) + (not units[n].has_remainder) for n, own in numbers.items()}
    most = max(parts.values())
    counts = sorted({0, *(count for count in counts if count <= most), min(most, max(counts))})
    kept = [[own < min(count, parts[n]) for n, own in numbers.items()] for count in counts]
    components = Components("neurons", units, {(n,): (len(own),) for n, own in units.items()})
    everyone = slice(0, experiment.recording.size)
    read = experiment.of_outputs(MOST_OUTPUTS) if of == "outputs" else [experiment]

    def targets(output: Any, sets: int, samples: slice) -> Tensor:  # [sets, samples, targets]
        each = [one.targets(Outcome(output), sets, samples) for one in read]
        return torch.stack(each, -1).double()

    whole = targets(experiment.recording.output, 1, everyone)[0]
    found = whole.new_empty(len(counts), *whole.shape)
    flags = np.array([np.concatenate(one) for one in kept])
    for sets, samples, output in KeepNeurons(experiment, components)(flags, ablated):
        found[sets, samples] = targets(output, sets.stop - sets.start, samples)
    errors, spread = (x.square().sum(-1) for x in (found - whole, whole - whole.mean(0)))
    return {count: _share(e, spread) for count, e in zip(counts, errors, strict=True)}


def _share(errors: Tensor, spread: Tensor) -> tuple[float, float]:
    """1 less the ratio of two means over samples, and its standard error to first order."""
    size, whole = len(errors), float(spread.mean())
    if not whole or size < 2:
        return _NOTHING
    ratio = float(errors.mean()) / whole
    stderr = float((errors - ratio * spread).std()) / (whole * math.sqrt(size))
    return 1 - ratio, stderr


def _summed(
    draws: Sequence[_Shares], confidence: float, samples: int
) -> Iterator[tuple[int, float, float, float]]:
    """Count, share and interval: over draws where there are several, else over the samples."""
    for count in draws[0] if draws else ():
        if len(draws) > 1:
            yield count, *interval(np.array([draw[count][0] for draw in draws]), confidence)
            continue
        share, stderr = draws[0][count]
        reach = float(scipy.special.stdtrit(max(samples - 1, 1), (1 + confidence) / 2)) * stderr
        yield count, share, share - reach, share + reach
