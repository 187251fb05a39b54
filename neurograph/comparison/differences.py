"""Differences of effects between two models, sample by sample, with their standard errors."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from neurograph.comparison.circuit_arrays import EffectArray, Side
from neurograph.comparison.pairs import Kind, Pairs, Union
from neurograph.effects.budget import Budget
from neurograph.effects.exact import node_differences, path_differences
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import TARGET, Through
from neurograph.preparation.base_study import BaseStudy
from neurograph.replay.wiring import target_layers
from neurograph.utils.progress import Progress

__all__ = ["Samples", "Step", "paired_stderr", "same_samples", "sample_effects", "steps_of"]

EdgeNumbers = tuple[int, int]
PathNumbers = tuple[int, ...]

_AT_ONCE = 32  # what one step measures: small enough to keep a time


@dataclass(frozen=True)
class Step:
    """A few things to measure at once, by their places among the pairs of their kind."""

    kind: Kind
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Samples:
    """Effects in one model for each of its reference samples, by the numbers of a `Side`.

    `left` counts what there was no time for.
    """

    neurons: dict[int, EffectArray] = field(default_factory=dict)
    edges: dict[EdgeNumbers, EffectArray] = field(default_factory=dict)
    paths: dict[PathNumbers, EffectArray] = field(default_factory=dict)
    left: int = 0


def steps_of(a: Side, b: Side, union: Union, budget: Budget) -> list[Step]:
    """Say what is measured, in which order: the same for both models.

    Neurons, then paths, then edges, of each the strongest first; what one run can measure
    together, neurons of a layer or edges into an output, stays together.
    """
    known = _strengths(a), _strengths(b)
    steps: list[Step] = []
    for kind in ("neurons", "paths", "edges"):
        pairs: Pairs = getattr(union, kind)
        strength = [
            max(known[0][kind].get(x, 0.0), known[1][kind].get(y, 0.0))
            for x, y in zip(pairs.a, pairs.b, strict=True)
        ]
        order = sorted(range(len(strength)), key=lambda place: -strength[place])
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for place in order[: budget.count]:
            groups[_together(kind, a, b, pairs.a[place], pairs.b[place])].append(place)
        cut = [
            tuple(group[start : start + _AT_ONCE])
            for group in groups.values()
            for start in range(0, len(group), _AT_ONCE)
        ]
        cut.sort(key=lambda places: -strength[places[0]])
        steps += [Step(kind, places) for places in cut]
    return steps


def _strengths(side: Side) -> dict[Kind, dict[Any, float]]:
    effect = np.abs(np.nan_to_num(side.effect))
    edges = map(tuple, side.edges.tolist())
    return {
        "neurons": dict(enumerate(effect.tolist())),
        "edges": dict(zip(edges, np.abs(side.edge_effect).tolist(), strict=True)),
        "paths": dict(zip(side.paths, np.abs(side.path_effect).tolist(), strict=True)),
    }


def _together(kind: Kind, a: Side, b: Side, here: Any, there: Any) -> Hashable:
    """Key of what can be measured in one run: by a, or by b where a has nothing such."""
    side, item = (a, here) if here is not None else (b, there)
    if kind == "paths":
        return None
    layer = side.neuron(item if kind == "neurons" else item[0]).layer
    return side is a, layer, None if kind == "neurons" else item[1]


def sample_effects(
    side: Side,
    union: Union,
    which: Literal[0, 1],
    steps: Sequence[Step],
    *,
    seconds: float | None,
    progress: bool | None,
) -> Samples:
    """Measure effects in the model of a circuit, sample by sample.

    Neurons are moved as the circuit's search moved them: through what it kept of their readers.
    Edges and paths that the model has not are left out, and so is what there is no time for.

    Parameters
    ----------
    side : Side
    union : Union
    which : {0, 1}
        Whether the side is a or b of the union.
    steps : sequence of Step
    seconds : float, optional
        After that no further step is begun.
    progress : bool, optional
    """
    study, samples = side.circuit.study, Samples()
    study.check_unchanged()
    until = math.inf if seconds is None else time.monotonic() + seconds
    with (
        study.open() as experiment,
        Progress("measuring differences", progress, total=len(steps), unit="steps") as bar,
    ):
        run = _Run(side, study, experiment, samples)
        for done, step in enumerate(steps):
            if time.monotonic() > until:
                return replace(samples, left=sum(len(step.places) for step in steps[done:]))
            pairs: Pairs = getattr(union, step.kind)
            items = [(pairs.a, pairs.b)[which][place] for place in step.places]
            getattr(run, step.kind)([item for item in items if item is not None])
            bar.advance()
    return samples


class _Run:
    """Measures in an open experiment."""

    def __init__(
        self, side: Side, study: BaseStudy, experiment: Experiment, samples: Samples
    ) -> None:
        self.side, self.study, self.experiment, self.samples = side, study, experiment, samples
        self._through = functools.cache(functools.partial(_through, side, experiment))

    def neurons(self, numbers: Iterable[int]) -> None:
        groups: dict[str, list[int]] = defaultdict(list)
        for number in numbers:
            groups[self.side.neuron(number).layer].append(number)
        for layer, some in groups.items():
            through = self._through(layer)
            units = [number - self.side.spans[layer].start for number in some]
            moved = torch.zeros(len(units), self.experiment.recording.size)
            if through:
                moved = node_differences(self.experiment, layer, units, through)
            self.samples.neurons.update(zip(some, _rows(moved), strict=True))

    def edges(self, edges: Iterable[EdgeNumbers]) -> None:
        groups: dict[tuple[str, str, int], list[EdgeNumbers]] = defaultdict(list)
        for source, output in edges:
            ends = self.side.neuron(source).layer, self.side.neuron(output).layer
            if self.study.layers.has_edge(*ends):
                groups[*ends, output].append((source, output))
        for (writer, reader, output), some in groups.items():
            units = [source - self.side.spans[writer].start for source, _ in some]
            seen = {reader: [output - self.side.spans[reader].start]}
            moved = node_differences(self.experiment, writer, units, seen)
            self.samples.edges.update(zip(some, _rows(moved), strict=True))

    def paths(self, paths: Iterable[PathNumbers]) -> None:
        known = [path for path in paths if _exists(self.side, self.study, path)]
        if known:
            named = [[self.side.neuron(number) for number in path] for path in known]
            moved = path_differences(self.experiment, named)
            self.samples.paths.update(zip(known, _rows(moved), strict=True))


def _rows(moved: torch.Tensor) -> Iterator[EffectArray]:
    return iter(moved.double().cpu().numpy())


def _through(side: Side, experiment: Experiment, layer: str) -> Through:
    """What sees a layer's neurons move in a circuit's search."""
    through: dict[str, Sequence[int] | None] = {}
    for reader in experiment.graph.successors(layer):
        start = side.spans[reader].start
        kept = [
            side.number(neuron) - start for neuron in side.circuit.graph if neuron.layer == reader
        ]
        if kept:
            through[reader] = sorted(kept)
    if layer in target_layers(experiment.graph):
        through[TARGET] = None
    return through


def _exists(side: Side, study: BaseStudy, path: PathNumbers) -> bool:
    layers = [side.neuron(number).layer for number in path]
    joined = all(study.layers.has_edge(*edge) for edge in itertools.pairwise(layers))
    return joined and bool(study.layers.nodes[layers[-1]]["output"])


def same_samples(a: BaseStudy, b: BaseStudy) -> bool:
    """Whether two studies have the same reference samples, in the same order."""
    one, other = (list(study.experiment.recording.batch.tensors()) for study in (a, b))
    return len(one) == len(other) and all(
        x.shape == y.shape and x.dtype == y.dtype and bool((x.cpu() == y.cpu()).all())
        for x, y in zip(one, other, strict=True)
    )


def paired_stderr(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Standard error of the mean difference of samples that belong together.

    Examples
    --------
    >>> paired_stderr(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0]))
    0.0
    """
    if len(one) < 2:
        return math.nan
    return float((other - one).std(ddof=1) / math.sqrt(len(one)))
