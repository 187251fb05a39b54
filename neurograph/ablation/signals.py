"""Signals: how much of the target comes back when a few directions of a layer alone pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor

from neurograph.ablation.chosen_neurons import hidden_layers
from neurograph.ablation.intervals import interval
from neurograph.ablation.replacements import ablated_values
from neurograph.effects.experiment import Experiment
from neurograph.errors import OptionError
from neurograph.model.basis import Directions
from neurograph.model.directions import Active, Principal
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.options import SignalOptions, read_options
from neurograph.replay.run import Outcome
from neurograph.utils.checks import a_share
from neurograph.utils.progress import Progress

__all__ = ["Signals", "find_signals"]

_KINDS = {"active": Active, "principal": Principal}
_RANDOM = 3  # tells this use of the seed from others


@dataclass(frozen=True, eq=False, repr=False)
class Signals:
    """How many signals each layer passes on to the target; by `Study.signals`.

    Attributes
    ----------
    table : DataFrame
        ``layer``; ``directions`` (``active``, ``principal``, ``random``); ``count`` of them that
        pass while all else the layer says is the mean; ``share`` of the target that comes back, 1
        less the mean square of its change over its variance, over the reference samples (it may
        be below 0); ``low`` and ``high``, where the share may be: of random directions over other
        draws, of others over other samples.
    target : str
        What the target is called.
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
        """How many directions bring back a share of the target, layer by layer.

        Returns
        -------
        DataFrame
            Indexed by layer, a column for each kind of directions: the fewest of those tried, NaN
            where none of them were enough.
        """
        a_share(share, "share")
        enough = self.table[self.table["share"] >= share]
        fewest = enough.groupby(["layer", "directions"])["count"].min().unstack()
        layers, kinds = (self.table[name].unique() for name in ("layer", "directions"))
        return fewest.reindex(index=pd.Index(layers, name="layer"), columns=[*kinds])

    def __repr__(self) -> str:
        first = self.table[self.table["count"] == self.table["count"].min()]
        lines = []
        for layer, rows in first.groupby("layer", sort=False):
            parts = [f"{row.share:.1%} by {row.directions}" for row in rows.itertuples()]
            count = int(rows["count"].iloc[0])
            lines.append(f"  {layer}, {count} direction{'s' * (count > 1)}: {', '.join(parts)}")
        head = f"Signals: the share of {self.target!r} that comes back when few directions pass"
        return "\n".join([head, *lines])


def find_signals(study: BaseStudy, options: Mapping[str, Any]) -> Signals:
    """Measure how many signals layers of a study pass on; see `Study.signals`."""
    own = read_options(SignalOptions, options, "signals")
    if study.options["basis"]:
        raise OptionError("signals are those of channels: ask a study without basis=")
    counts, confidence = own["counts"], own["confidence"]
    study = study.at(background="data", routed=False)
    layers = list(hidden_layers(study.layers))
    if not layers:
        raise OptionError("the model has no hidden layers: only the output reads what there is")
    mean = ablated_values(study, "mean", study.options["seed"])
    found = {layer: _directions(study, layer, own) for layer in layers}
    rows = []
    with (
        study.open() as experiment,
        Progress("signals", study.options["progress"], total=len(layers), unit="layers") as bar,
    ):
        for layer in layers:
            bar.describe(f"signals of {layer}")
            for kind, draws in found[layer].items():
                shares = [_shares(experiment, layer, d, counts, mean(layer)) for d in draws]
                size = experiment.recording.size
                rows += [(layer, kind, *row) for row in _summed(shares, counts, confidence, size)]
            bar.advance()
    columns = ["layer", "directions", "count", "share", "low", "high"]
    return Signals(
        pd.DataFrame(rows, columns=columns),
        study.target.name,
        confidence,
        study.provenance_with({**own, "counts": list(counts)}, without=("contrast", "background")),
    )


def _directions(
    study: BaseStudy, layer: str, own: Mapping[str, Any]
) -> dict[str, list[Directions]]:
    """Directions of each kind, as many as there are, up to the most that are tried."""
    width = study.experiment.recording.layers[layer].neurons
    most = min(max(own["counts"]), width)
    found: dict[str, list[Directions]] = {}
    for name, kind in _KINDS.items():
        with contextlib.suppress(OptionError):  # there are none
            wanted = kind(most, own["samples"])
            found[name] = [study.find_directions(layer, wanted, fewer=True)]
    seed = [study.options["seed"], _RANDOM]
    found["random"] = [
        Directions(np.linalg.qr(np.random.default_rng([*seed, i]).normal(size=(width, most)))[0].T)
        for i in range(own["draws"])
    ]
    return found


def _shares(
    experiment: Experiment, layer: str, basis: Directions, counts: Sequence[int], mean: Tensor
) -> dict[int, tuple[float, float]]:
    """Share that comes back by so many directions, and its standard error over the samples."""
    recording = experiment.recording
    still, dim = recording.main(layer), recording.layers[layer].channel_dim
    both = still, mean.expand(len(still), -1).reshape(still.shape)
    whole, away = (basis.coordinates(x.movedim(dim, -1)) for x in both)
    moving = experiment.moving(layer)
    may = None if moving is None else moving.view(still.shape)
    known = [count for count in counts if count <= len(basis.writing)]
    plan = experiment.wiring.suffix([layer])
    everyone = slice(0, recording.size)
    full = experiment.targets(Outcome(recording.output), 1, everyone)[0].double()
    found = full.new_empty(len(known), len(full))
    for blocks, samples in experiment.chunks(len(known), [plan]):
        rows = []
        for count in known[blocks]:
            passed = torch.cat([whole[samples, ..., :count], away[samples, ..., count:]], -1)
            kept = basis.from_coordinates(passed).movedim(-1, dim)
            rows.append(kept if may is None else torch.where(may[samples], kept, still[samples]))
        given = {layer: torch.cat(rows)}
        outcome = experiment.replay.run(plan, given, blocks=len(rows), samples=samples)
        found[blocks, samples] = experiment.targets(outcome, len(rows), samples).double()
    errors, spread = (found - full).square(), (full - full.mean()).square()
    return {count: _share(e, spread) for count, e in zip(known, errors, strict=True)}


def _share(errors: Tensor, spread: Tensor) -> tuple[float, float]:
    """1 less the ratio of two means over samples, and its standard error to first order."""
    size, whole = len(errors), float(spread.mean())
    if not whole or size < 2:
        return math.nan, math.nan
    ratio = float(errors.mean()) / whole
    stderr = float((errors - ratio * spread).std()) / (whole * math.sqrt(size))
    return 1 - ratio, stderr


def _summed(
    draws: Sequence[Mapping[int, tuple[float, float]]],
    counts: Sequence[int],
    confidence: float,
    samples: int,
) -> Iterator[tuple[int, float, float, float]]:
    """Count, share and interval: over draws where there are several, else over the samples."""
    for count in (count for count in counts if count in draws[0]):
        if len(draws) > 1:
            yield count, *interval(np.array([draw[count][0] for draw in draws]), confidence)
            continue
        share, stderr = draws[0][count]
        reach = float(scipy.special.stdtrit(max(samples - 1, 1), (1 + confidence) / 2)) * stderr
        yield count, share, share - reach, share + reach
