"""Counterfactuals of the reference samples: samples paired with them, run by the same model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from neurograph.data.source import Source, check_same_columns, concatenate
from neurograph.errors import DataError
from neurograph.replay.recording import Recording, recapture

__all__ = ["Reference", "record_counterfactuals"]


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference samples and where they are from: all that their counterfactuals are found by.

    Attributes
    ----------
    model : Module
    source : Source
        The data.
    actual : Recording
        The reference samples as the model runs them.
    positions : tuple of int
        Which samples of the data they are, or of those that were given as references.
    count : int
        How many those are from which they come.
    seed : int
        Chooses whatever is drawn.
    """

    model: nn.Module
    source: Source
    actual: Recording
    positions: tuple[int, ...]
    count: int
    seed: int


def record_counterfactuals(data: Any, reference: Reference) -> Recording:
    """Record the counterfactuals of the reference samples.

    Raises
    ------
    DataError
        The data are shuffled, or do not hold a counterfactual of the same shape for each sample.
    """
    counterfactuals = Source(data, reference.model)
    if reference.source.shuffled or counterfactuals.shuffled:
        raise DataError(
            "contrast=Counterfactual(data): a loader that shuffles or draws gives no sample its "
            "counterfactual: pass data and counterfactuals in one order (shuffle=False)"
        )
    check_same_columns(reference.source, counterfactuals, "contrast=Counterfactual(data)")
    try:
        everything = concatenate(list(counterfactuals))
    except DataError as error:
        raise DataError(f"contrast=Counterfactual(data): {error}") from error
    if everything.size != reference.count:
        raise DataError(
            f"the counterfactual data has {everything.size} samples, not {reference.count}: give "
            "each sample of the data its counterfactual, in the same order (of the reference "
            "samples, where reference= holds them)"
        )
    batch = everything.map(lambda leaf: leaf[list(reference.positions)])
    for clean, counterfactual in zip(
        reference.actual.batch.tensors(), batch.tensors(), strict=True
    ):
        if clean.shape != counterfactual.shape:
            raise DataError(
                f"a clean input has shape {tuple(clean.shape)} but its counterfactual "
                f"{tuple(counterfactual.shape)}: pairs must have the same shape"
            )
    return recapture(reference.model, batch, reference.actual)
