"""Ablated values: zero, the neuron's mean, another sample's value, the counterfactual's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import get_args

from torch import Tensor

from neurograph.effects.contrast import Ablation, FromMean, FromZero, LayerSamples
from neurograph.effects.resampling import Resampled, draw_donors
from neurograph.errors import OptionError
from neurograph.model.observe import input_tensors
from neurograph.preparation.base_study import BaseStudy
from neurograph.utils.checks import listed, one_of

__all__ = ["Ablated", "ablated_values", "check_ablations"]

Ablated = Callable[[str], Tensor]
"""From a layer's name to the values of its elements once ablated, ``[samples, elements]``."""


def check_ablations(
    ablations: Sequence[str], *, counterfactuals: bool, given: bool
) -> tuple[Ablation, ...]:
    """Read `ablations=`; OptionError for what is none, twice, or lacks its data."""
    ablations = listed(ablations, "ablations", "one or more, like ['mean', 'zero']")
    known: dict[str, Ablation] = {name: name for name in get_args(Ablation)}
    for name in ablations:
        one_of(name, "ablations", known)
    if not ablations or len(set(ablations)) < len(ablations):
        raise OptionError(
            f"ablations={ablations!r}: pass one or more, like ('mean', 'zero'), each once"
        )
    asked = "counterfactual" in ablations
    if (asked and not counterfactuals) or (given and not asked):
        raise OptionError(
            "ablations='counterfactual' and corrupt= belong together: pass corrupt=, a "
            "counterfactual of each sample of the data in the same order, or neither"
        )
    return tuple(known[name] for name in ablations)


def ablated_values(study: BaseStudy, ablation: Ablation, seed: int) -> Ablated:
    """Values of ablated neurons for the reference samples.

    Parameters
    ----------
    study : BaseStudy
        With the data as background; of a `Counterfactual` contrast for ``"counterfactual"``.
    ablation : str
    seed : int
        Chooses, for `resample`, which other reference sample stands in for each: the same one
        in all layers.
    """
    experiment = study.experiment
    recording = experiment.recording
    others = _others(study, seed) if ablation == "resample" else None

    @functools.cache
    def values(layer: str) -> Tensor:
        rows = recording.main(layer)
        if ablation == "counterfactual":
            return experiment.levels(layer)[0].to(rows)
        if others is not None:
            return others.main(layer).flatten(1)
        contrast = FromMean() if ablation == "mean" else FromZero()
        statistics = study.statistics[layer]
        return contrast.first(LayerSamples(recording.layers[layer], statistics, recording)).to(rows)

    return values


def _others(study: BaseStudy, seed: int) -> Resampled:
    """Give each sample the values of another one, at the same positions."""
    recording = study.experiment.recording
    if recording.size < 2:
        raise OptionError(
            "ablations='resample' takes values from other reference samples, but there is one: "
            "pass reference=2 or more, or other ablations="
        )
    inputs = input_tensors(study.model, recording.batch)
    return Resampled(recording, inputs, draw_donors(recording.size, seed), None)
