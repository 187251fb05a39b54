"""Activations by class: one number a sample of every neuron, for a sample of the data."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from neurograph.activations.profile import check_weights
from neurograph.activations.statistics import ActivationStatistics
from neurograph.activations.streaming import Arrived, parts_that_fit, stream
from neurograph.data.labels import Label, Labelled
from neurograph.data.source import Source
from neurograph.errors import ModelError, OptionError
from neurograph.model.layer_choice import Choice, find_sites, refuse_unsupported
from neurograph.model.layers import Layer
from neurograph.model.observe import placed
from neurograph.replay.padding import find_padding
from neurograph.replay.recording import Recording, capture_few
from neurograph.utils import checks
from neurograph.utils.checks import whole
from neurograph.utils.memory import parse_memory

__all__ = ["ClassValues", "Collector", "class_values"]

_BATCH = 256
_COPIES = 16  # what comparing values takes beside them


@dataclass(frozen=True, eq=False)
class ClassValues:
    """Activations of neurons by class, one number for each neuron and kept sample.

    Where a layer has positions (maps, sequences), the number is the mean over those that hold
    something, so that samples stay the independent units that tests take them for.

    Attributes
    ----------
    values : mapping of str to mapping of label to ndarray
        For each layer and class ``[samples, neurons]``, in the layer's units and dtype. Samples
        are in random order, the same in every layer.
    counts : mapping of label to int
        How many samples of each class the data hold; no more than asked for are kept.
    names : mapping of str to tuple of str
        What a layer's neurons are called, where they have names: the input's features.
    """

    values: Mapping[str, Mapping[Label, np.ndarray]]
    counts: Mapping[Label, int]
    names: Mapping[str, tuple[str, ...]]


def class_values(
    model: nn.Module,
    data: Any,
    labels: Any = None,
    *,
    layers: Choice | None = None,
    samples: int = 5000,
    seed: int = 0,
    device: torch.device | str | None = None,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool | None = None,
) -> ClassValues:
    """Collect the activations of every neuron by class.

    Parameters
    ----------
    model, data, layers, device, progress
        As for `profile`.
    labels : one class for each sample, optional
        In the order of the data; by default what the data hold.
    samples : int
        How many samples of each class are kept at most, drawn at random.
    seed : int
        Chooses them.
    feature_names, class_names : sequence of str, optional
        Names of the input's features, and of the classes in ascending order.

    Raises
    ------
    DataError, ModelError, OptionError
        As for `profile`, and where labels are missing or do not fit the data.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> X = torch.rand(50, 2)
    >>> found = class_values(model, X, X[:, 0] > 0.5, layers="0")
    >>> sorted(found.values), [part.shape[1] for part in found.values["0"].values()]
    (['0', 'input'], [3, 3])
    >>> sum(found.counts.values())
    50
    """
    asked = True if labels is None else labels
    collect = Collector(model, data, asked, layers, samples, seed, device, class_names, progress)
    found = {name: parts for part in collect.passes(sys.maxsize) for name, parts in collect(part)}
    names = collect.feature_names(feature_names)
    return ClassValues(found, collect.counts, names)


class Collector:
    """Collects class values pass by pass; labels as for `Labelled`, else as for `class_values`."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        labels: Any,
        layers: Choice | None,
        samples: int,
        seed: int,
        device: torch.device | str | None,
        class_names: Sequence[str] | None,
        progress: bool | None,
    ) -> None:
        refuse_unsupported(model)
        samples = whole(samples, "samples", least=1)
        seed = whole(seed, "seed", least=0)
        class_names = checks.names(class_names, "class_names")
        check_weights(model)
        self.model, self.samples, self.seed, self.device = model, samples, seed, device
        self.progress = progress
        with placed(model, device):
            source = Source(data, model, batch_size=_BATCH, class_names=class_names)
            self._columns = source.feature_names
            self.batches = Labelled(source, labels, class_names)
            few = capture_few(model, Source(data, model), find_sites(model, layers))
            self.recording: Recording = find_padding(model, source, few).on(few)
        self.counts = dict(zip(self.batches.classes, self.batches.counts, strict=True))

    @property
    def layers(self) -> dict[str, Layer]:
        """Layers that have neurons in every sample and were not left out."""
        return {
            name: layer
            for name, layer in self.recording.layers.items()
            if layer.neurons and not layer.routed and self.recording.is_searched(name)
        }

    def feature_names(self, given: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
        """Name the features of the one input that has neurons; OptionError if they do not fit."""
        names = self._columns if given is None else checks.different_names(given, "feature_names")
        inputs = [layer for layer in self.layers.values() if layer.is_input]
        if names is None:
            return {}
        if len(inputs) != 1 or len(names) != inputs[0].neurons:
            sizes = ", ".join(str(layer.neurons) for layer in inputs)
            raise OptionError(
                f"feature_names has {len(names)} names for inputs of {sizes or 0} features"
            )
        return {inputs[0].name: tuple(map(str, names))}

    def passes(
        self, memory: int | str, names: Collection[str] | None = None
    ) -> Iterator[dict[str, slice]]:
        """Cut the neurons of the named layers into parts that can be kept and compared at once."""
        rows = sum(min(count, self.samples) for count in self.counts.values())
        sizes = {
            name: (layer.neurons, rows * self.recording.main(name).element_size())
            for name, layer in self.layers.items()
            if names is None or name in names
        }
        for parts, _ in parts_that_fit(sizes, parse_memory(memory) // _COPIES):
            yield parts

    def __call__(self, parts: Mapping[str, slice]) -> Iterator[tuple[str, dict[Label, np.ndarray]]]:
        """Run the data once; yields each layer's values of the neurons in `parts`, by class."""
        metrics = {
            name: [self._metric(name, part, number) for number in range(len(self.counts))]
            for name, part in parts.items()
        }

        def receive(arrived: Arrived) -> bool:
            part = arrived.of_channels(parts[arrived.layer.name])
            for number, metric in enumerate(metrics[arrived.layer.name]):
                metric.update(part.of_class(number).sample_means())
            return True

        with placed(self.model, self.device):
            stream(
                self.model,
                self.batches,
                self.recording,
                parts,
                receive,
                title="collecting activations",
                progress=self.progress,
            )
        for name, found in metrics.items():
            yield name, {c: self._taken(name, m) for c, m in zip(self.counts, found, strict=True)}

    def _metric(self, name: str, part: slice, number: int) -> ActivationStatistics:
        example = self.recording.main(name)
        wide = example.dtype == torch.float64
        metric = ActivationStatistics(
            (part.stop - part.start,),
            reservoir=min(self.samples, self.batches.counts[number]),
            seed=self.seed,
            stream=number,
            dtype=torch.float64 if wide else torch.float32,
        )
        return metric.to(example.device)

    def _taken(self, name: str, metric: ActivationStatistics) -> np.ndarray:
        values: np.ndarray = metric.sample.cpu().numpy()
        metric.reset()
        if not np.isfinite(values).all():
            neuron = int(np.flatnonzero(~np.isfinite(values).all(axis=0))[0])
            raise ModelError(
                f"neuron {neuron} of layer {name!r} has NaN or infinity on this data: look for an "
                "overflow there or above it"
            )
        return values
