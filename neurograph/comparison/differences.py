"""Effects sample by sample in both models: how sure the differences between them are."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from neurograph.comparison.sides import Effects, Side
from neurograph.nested import iter_tensors
from neurograph.progress import Progress
from neurograph.replay.wiring import target_layers
from neurograph.scoring.exact import node_differences, path_differences
from neurograph.scoring.experiment import Experiment
from neurograph.scoring.routes import TARGET, Through
from neurograph.selection import Sign
from neurograph.study import Study

__all__ = ["Samples", "paired_stderr", "same_samples", "sample_effects"]

Edge = tuple[int, int]
Path = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Samples:
    """Effects in one model for each of its reference samples, by the numbers of a `Side`."""

    neurons: dict[int, Effects] = field(default_factory=dict)
    edges: dict[Edge, Effects] = field(default_factory=dict)
    paths: dict[Path, Effects] = field(default_factory=dict)


def sample_effects(
    side: Side,
    neurons: Iterable[int],
    edges: Iterable[Edge],
    paths: Iterable[Path],
    *,
    progress: bool | None,
) -> Samples:
    """Measure effects in the model of a circuit, sample by sample.

    Neurons are moved as the circuit's search moved them: through what it kept of their readers,
    for the sign in which their effect is stronger. Edges and paths that the model has not are left
    out.
    """
    study, found = side.circuit.study, Samples()
    study.check_unchanged()
    by_sign = _by_sign(side, neurons)
    by_output = _by_output(side, study, edges)
    total = len(by_sign) + len(by_output) + 1
    with (
        study.open() as experiment,
        Progress("measuring differences", progress, total=total, unit="steps") as bar,
    ):
        for (layer, sign), numbers in by_sign.items():
            through = _through(side, experiment, layer, sign)
            units = [number - side.spans[layer].start for number in numbers]
            moved = torch.zeros(len(units), experiment.recording.size)
            if through:
                moved = node_differences(experiment, layer, units, through)
            found.neurons.update(zip(numbers, _rows(moved), strict=True))
            bar.advance()
        for (writer, reader, output), numbers in by_output.items():
            units = [number - side.spans[writer].start for number in numbers]
            seen = {reader: [output - side.spans[reader].start]}
            moved = node_differences(experiment, writer, units, seen)
            ends = [(number, output) for number in numbers]
            found.edges.update(zip(ends, _rows(moved), strict=True))
            bar.advance()
        known = [path for path in paths if _exists(side, study, path)]
        if known:
            named = [[side.neuron(number) for number in path] for path in known]
            found.paths.update(zip(known, _rows(path_differences(experiment, named)), strict=True))
        bar.advance()
    return found


def _rows(moved: torch.Tensor) -> Iterator[Effects]:
    return iter(moved.double().cpu().numpy())


def _by_sign(side: Side, neurons: Iterable[int]) -> dict[tuple[str, Sign], list[int]]:
    """Neurons of each layer that are stronger in each sign's search."""
    groups: dict[tuple[str, Sign], list[int]] = defaultdict(list)
    for number in neurons:
        neuron = side.neuron(number)
        groups[neuron.layer, side.sign(number)].append(number)
    return groups


def _by_output(
    side: Side, study: Study, edges: Iterable[Edge]
) -> dict[tuple[str, str, int], list[int]]:
    """Sources of the edges into each output, from each layer; as many can be measured at once."""
    groups: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for source, output in edges:
        writer, reader = side.neuron(source).layer, side.neuron(output).layer
        if study.profiled.has_edge(writer, reader):
            groups[writer, reader, output].append(source)
    return groups


def _through(side: Side, experiment: Experiment, layer: str, sign: Sign) -> Through:
    """What sees a layer's neurons move in a circuit's search for a sign."""
    through: dict[str, Sequence[int] | None] = {}
    for reader in experiment.graph.successors(layer):
        start = side.spans[reader].start
        kept = [
            side.number(neuron) - start
            for neuron, data in side.circuit.graph.nodes(data=True)
            if neuron.layer == reader and f"{sign}_effect" in data
        ]
        if kept:
            through[reader] = sorted(kept)
    if layer in target_layers(experiment.graph):
        through[TARGET] = None
    return through


def _exists(side: Side, study: Study, path: Path) -> bool:
    layers = [side.neuron(number).layer for number in path]
    joined = all(study.profiled.has_edge(*edge) for edge in itertools.pairwise(layers))
    return joined and bool(study.profiled.nodes[layers[-1]]["output"])


def same_samples(a: Study, b: Study) -> bool:
    """Whether two studies have the same reference samples, in the same order."""
    one, other = (
        list(
            iter_tensors(
                (
                    study.experiment.recording.batch.args,
                    dict(study.experiment.recording.batch.kwargs),
                )
            )
        )
        for study in (a, b)
    )
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
