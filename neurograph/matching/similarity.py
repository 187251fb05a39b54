"""How alike layers of two models are on the same samples, and how alike their neurons."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from neurograph.activations.streaming import parts_that_fit
from neurograph.matching.cka import LayerCKA
from neurograph.matching.correlation import Correlation
from neurograph.matching.paired import TwoModels
from neurograph.model.neurons import channels_of
from neurograph.preparation.base_study import BaseStudy

__all__ = ["LayerPair", "LayerSimilarity", "layer_cka", "measure_pairs"]

LayerPair = tuple[str, str]
"""A layer of a and one of b."""


class LayerSimilarity(NamedTuple):
    """A pair of layers: CKA, and ``[neurons of a, neurons of b]`` similarities where asked for."""

    layers: LayerPair
    cka: float
    similarity: NDArray[np.float64] | None


def layer_cka(models: TwoModels, a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
    """CKA of all pairs of layers, ``[layers of a, layers of b]``; see cka.py."""
    cka = LayerCKA()
    for here, there in models.run(a, b, "comparing layers"):
        cka.add([here[name] for name in a], [there[name] for name in b])
    return cka.matrix()


def measure_pairs(
    models: TwoModels, pairs: Sequence[LayerPair], with_neurons: Collection[LayerPair]
) -> Iterator[LayerSimilarity]:
    """CKA of the given pairs of layers; and how alike their neurons are, for some of the pairs.

    Similarities of neurons are yielded pair by pair, as many pairs at a time being summed up as the
    memory budget allows. One pair is taken whatever it needs.
    """
    whole = models.fits(*_sides(pairs))
    sizes = {str(i): (1, _bytes(models, *p, p in with_neurons)) for i, p in enumerate(pairs)}
    # Where all activations are kept, pairs can be had one by one without running the models again.
    for part, _ in parts_that_fit(sizes, 1 if whole else models.room):
        chosen = [pairs[int(key)] for key in part]
        sums = [_Sums(models, pair, pair in with_neurons) for pair in chosen]
        needed = pairs if whole else chosen
        for here, there in models.run(*_sides(needed), "comparing activations"):
            for each in sums:
                each.cka.add([here[each.layers[0]]], [there[each.layers[1]]])
                if each.neurons is not None:
                    each.neurons.add(here[each.layers[0]], there[each.layers[1]])
        while sums:  # so that what a pair took is free once the next is asked for
            yield sums.pop(0).measured(models)


def _sides(pairs: Sequence[LayerPair]) -> tuple[set[str], set[str]]:
    return {a for a, _ in pairs}, {b for _, b in pairs}


class _Sums:
    """What is summed up of one pair of layers."""

    def __init__(self, models: TwoModels, layers: LayerPair, with_neurons: bool) -> None:
        self.layers, self.cka = layers, LayerCKA()
        self.neurons: Correlation | None = None
        if with_neurons:
            studies = zip((models.a, models.b), layers, strict=True)
            self.neurons = Correlation(*(_channels(study, name) for study, name in studies))

    def measured(self, models: TwoModels) -> LayerSimilarity:
        similarity = None
        if self.neurons is not None:
            similarity = self.neurons.matrix(
                _eps(models.a, self.layers[0]), _eps(models.b, self.layers[1])
            )
        return LayerSimilarity(self.layers, float(self.cka.matrix().item()), similarity)


def _channels(study: BaseStudy, layer: str) -> Sequence[Sequence[int]] | None:
    experiment = study.experiment
    return channels_of(experiment.units(layer), experiment.recording.layers[layer])


def _eps(study: BaseStudy, layer: str) -> float:
    return torch.finfo(study.experiment.recording.main(layer).dtype).eps


def _bytes(models: TwoModels, a: str, b: str, with_neurons: bool) -> int:
    """How much the sums of a pair of layers take."""
    if not with_neurons:
        return 1
    sides = (models.a, a), (models.b, b)
    widths = [study.experiment.recording.layers[name].neurons for study, name in sides]
    grouped = [_channels(study, name) is not None for study, name in sides]
    within = sum(width**2 for width, on in zip(widths, grouped, strict=True) if on)
    return 8 * (widths[0] * widths[1] + within)
