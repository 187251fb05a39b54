"""Targets and metrics of ablated runs: those with only some neurons or edges kept."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from neurograph.ablation.index import Components, Flags
from neurograph.ablation.keep_edges import KeepEdges
from neurograph.ablation.keep_neurons import KeepNeurons
from neurograph.ablation.metric import Score, refuse_guessed
from neurograph.ablation.replacements import Ablated, ablated_values
from neurograph.effects.contrast import Ablation
from neurograph.effects.effects import rounding
from neurograph.effects.experiment import Experiment
from neurograph.errors import ModelError, OptionError
from neurograph.preparation.base_study import BaseStudy
from neurograph.replay.recording import Recording
from neurograph.replay.run import Outcome

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Ends", "Measure", "Point", "Runs", "measuring"]

Runs = Callable[[Flags, Ablated], Iterator[tuple[slice, slice, Any]]]
"""From sets ``[sets, components]`` to what the model returned for some of them and some samples."""


@dataclass(frozen=True)
class Point:
    """Mean target, and a metric, with one set kept.

    Attributes
    ----------
    value : float
        Mean target over the reference samples.
    error : float
        Root mean square over these of how far the target is from that of the whole model.
    metric : float
        NaN where there is none.
    """

    value: float
    error: float
    metric: float = math.nan


@dataclass(frozen=True)
class Ends:
    """Both ends of faithfulness: the whole model, and everything ablated.

    Attributes
    ----------
    full, empty : Point
    stderr : float
        Standard error of the mean difference of the two targets.
    same : bool
        Whether that difference is no more than rounding could make: no share of it means anything.
    """

    full: Point
    empty: Point
    stderr: float
    same: bool

    def significant(self, samples: int, confidence: float = 0.95) -> bool:
        """Whether the difference is not 0, by Student's t over so many samples."""
        gap = abs(self.full.value - self.empty.value)
        reach = scipy.special.stdtrit(max(samples - 1, 1), (1 + confidence) / 2) * self.stderr
        return not self.same and bool(gap > reach)

    def faithfulness(self, value: float) -> float:
        """Where a mean target lies between everything ablated, 0, and the whole model, 1."""
        if self.same:
            return math.nan
        return (value - self.empty.value) / (self.full.value - self.empty.value)


class Measure:
    """Measures sets of neurons or edges in an open experiment; equal ones only once.

    Parameters
    ----------
    experiment : Experiment
        Open.
    components : Components
    runs : callable
        Runs the model with sets of them kept.
    at_once : int
        How many sets `runs` gets at a time.
    ablated : mapping
        By ablation, what the others are meanwhile.
    score : Score, optional
        Of the reference samples.
    """

    def __init__(
        self,
        experiment: Experiment,
        components: Components,
        runs: Runs,
        at_once: int,
        ablated: Mapping[Ablation, Ablated],
        score: Score | None,
    ) -> None:
        self.experiment, self.components = experiment, components
        self.at_once, self._runs, self._ablated, self._score = at_once, runs, ablated, score
        everyone = slice(0, experiment.recording.size)
        self._labels = None if score is None else score.batches[0].labels
        output = experiment.recording.output
        self._whole = experiment.targets(Outcome(output), 1, everyone).double()
        predicted = [] if score is None else [self._predicted(output, 1)]
        self._full = self._points(self._whole, predicted)[0]
        self._known: dict[tuple[Ablation, bytes], Point] = {}
        self._ends: dict[Ablation, Ends] = {}

    def ends(self, ablation: Ablation) -> Ends:
        """Measure the two trivial circuits: everything, and nothing."""
        if ablation not in self._ends:
            nothing = np.zeros((1, len(self.components)), dtype=bool)
            targets, predicted = self._targets(nothing, ablation)
            gap = (self._whole - targets)[0]
            stderr = float(gap.std() / math.sqrt(len(gap))) if len(gap) > 1 else math.nan
            means = torch.stack([self._whole.mean(), targets.mean()])
            least = rounding(means, self._dtype)
            self._ends[ablation] = Ends(
                self._full,
                self._points(targets, predicted)[0],
                stderr,
                bool((means[0] - means[1]).abs() <= least),
            )
        return self._ends[ablation]

    def __call__(self, kept: Sequence[Flags], ablation: Ablation) -> list[Point]:
        """Measure sets; each ``[components]``."""
        keys = [(ablation, _digest(flags)) for flags in kept]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._known}
        order = list(new.values())
        for start in range(0, len(order), self.at_once):
            some = order[start : start + self.at_once]
            targets, predicted = self._targets(np.stack([kept[i] for i in some]), ablation)
            points = self._points(targets, predicted)
            self._known |= {keys[i]: point for i, point in zip(some, points, strict=True)}
        return [self._known[key] for key in keys]

    @property
    def _dtype(self) -> torch.dtype:
        recording = self.experiment.recording
        floats = (recording.main(name) for name in recording.layers)
        return next(t.dtype for t in floats if t.is_floating_point())

    def _targets(self, kept: Flags, ablation: Ablation) -> tuple[Tensor, list[Tensor]]:
        """Targets ``[sets, samples]``, and predictions, ``[samples, …]`` of each set."""
        targets = self._whole.new_empty(len(kept), self._whole.shape[1])
        predicted: list[list[Tensor]] = [[] for _ in kept]
        for sets, samples, output in self._runs(kept, self._ablated[ablation]):
            count = sets.stop - sets.start
            found = self.experiment.targets(Outcome(output), count, samples)
            targets[sets, samples] = found.double()
            if self._score is not None:
                pieces = self._predicted(output, count).chunk(count)
                for parts, piece in zip(predicted[sets], pieces, strict=True):
                    parts.append(piece)
        if not torch.isfinite(targets).all():
            raise ModelError(
                f"targets are NaN or infinite with neurons ablated to {ablation!r}: choose another "
                "of ablations=, or a target without a logarithm of 0"
            )
        return targets, [torch.cat(parts) for parts in predicted if parts]

    def _predicted(self, output: Any, sets: int) -> Tensor:
        assert self._score is not None
        predictions = self._score.read(output)
        if not isinstance(predictions, Tensor) or len(predictions) % sets:
            raise OptionError(
                f"metric= needs predictions with a row for each sample, but the model's are "
                f"{type(predictions).__name__}"
            )
        return predictions

    def _points(self, targets: Tensor, predicted: list[Tensor]) -> list[Point]:
        means = targets.mean(dim=1).tolist()
        errors = (targets - self._whole).square().mean(dim=1).sqrt().tolist()
        metrics = [math.nan] * len(means)
        if self._score is not None and self._labels is not None:
            metrics = [self._score.of([(rows, self._labels)]) for rows in predicted]
        return [Point(*row) for row in zip(means, errors, metrics, strict=True)]


def _digest(flags: Flags) -> bytes:
    return hashlib.blake2b(np.packbits(flags).tobytes(), digest_size=16).digest()


@contextlib.contextmanager
def measuring(
    study: BaseStudy,
    components: Components,
    ablations: Sequence[Ablation],
    metric: Metric | None,
    seed: int,
) -> Iterator[Measure]:
    """Open a study to measure circuits in it."""
    if metric is not None:
        refuse_guessed(study.source)
    if "mean" in ablations:
        _ = study.statistics  # a pass over the data, while no stand-ins are in the model
    with study.open() as experiment:
        ablated = {name: ablated_values(study, name, seed) for name in ablations}
        score = None if metric is None else _score_of(study.model, experiment.recording, metric)
        runs: KeepNeurons | KeepEdges
        if components.of == "neurons":
            runs = KeepNeurons(experiment, components)
        else:
            runs = KeepEdges(experiment, components)
        yield Measure(experiment, components, runs, runs.at_once, ablated, score)


def _score_of(model: nn.Module, recording: Recording, metric: Metric) -> Score:
    """Score the reference samples."""
    batch = recording.batch
    inputs = dict(batch.kwargs) if batch.kwargs else batch.args
    return Score(model, [(inputs, batch.labels)], metric, None, recording.size)
