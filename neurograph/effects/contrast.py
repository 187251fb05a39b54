"""Contrast: the values between which a neuron moves. Background: what all else is meanwhile."""

from __future__ import annotations

import abc
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, Protocol

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from neurograph.activations.profile import QUANTILES
from neurograph.effects.counterfactual import Reference, record_counterfactuals
from neurograph.effects.resampling import Resampled, draw_donors
from neurograph.errors import OptionError
from neurograph.model.layers import Layer, channels_first
from neurograph.model.observe import input_tensors
from neurograph.replay.recording import Recording
from neurograph.utils.checks import shown

__all__ = [
    "SWEEP",
    "Ablation",
    "Background",
    "Contrast",
    "Counterfactual",
    "CounterfactualRows",
    "FromMean",
    "FromZero",
    "LayerSamples",
    "Quantiles",
    "Resample",
    "ToActual",
    "as_contrast",
    "by_rows",
    "with_background",
]

Background = Literal["data", "mean", "zero"]
Ablation = Literal["mean", "zero", "resample", "counterfactual"]
"""What a neuron is once it is ablated."""


class CounterfactualRows(Protocol):
    """Counterfactual rows of each layer, as a `Recording` of counterfactual samples has them."""

    def main(self, name: str, /) -> Tensor:
        """Return the rows of a layer, ``[samples, …]``."""
        ...


@dataclass(frozen=True, eq=False)
class LayerSamples:
    """What is known of a layer where values are chosen between which its neurons move.

    Attributes
    ----------
    layer : Layer
    statistics : mapping
        The layer's node of a profiled graph.
    actual : Recording
        The reference samples as they are.
    counterfactuals : optional
        What they move from, where that is counterfactual samples.
    """

    layer: Layer
    statistics: Mapping[str, Any]
    actual: Recording
    counterfactuals: CounterfactualRows | None = None

    @property
    def rows(self) -> Tensor:
        """The layer's rows in the reference samples."""
        return self.actual.main(self.layer.name)


class Contrast(abc.ABC):
    """Values between which neurons move: what they need, and what they are for a layer.

    Subclasses are frozen dataclasses. One that JSON can hold is read back by its fields.

    Attributes
    ----------
    needs_statistics : bool
        Whether values come from statistics of the neurons over the data.
    needs_counterfactuals : bool
        Whether values come from other samples, each the counterfactual of a reference sample.
    """

    needs_statistics: ClassVar[bool] = False
    needs_counterfactuals: ClassVar[bool] = False

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Levels of the quantiles that the statistics must have."""
        return ()

    def counterfactuals(self, reference: Reference) -> CounterfactualRows | None:
        """Find the counterfactual samples; None where there are none."""
        return None

    @abc.abstractmethod
    def levels_of(self, known: LayerSamples) -> Tensor:
        """Values between which a layer's neurons move.

        Parameters
        ----------
        known : LayerSamples

        Returns
        -------
        Tensor
            ``[levels, samples or 1, elements]``: for every element of a row, in the layer's units.
        """

    def as_json(self) -> dict[str, Any]:
        """Describe it as `as_contrast` reads it; a switch that is off is left out."""
        # Lists for tuples, so that it is equal to what is read back from a file.
        values = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        on = {key: value for key, value in values.items() if value is not False}
        return {"type": type(self).__name__, **on}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Contrast:
        """Read what `as_json` wrote."""
        values = {one.name: known.get(one.name, False) for one in fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class ToActual(Contrast):
    """A contrast that ends at a neuron's actual value in each sample."""

    def levels_of(self, known: LayerSamples) -> Tensor:
        """From the first value to the actual one, ``[2, samples, elements]``."""
        return torch.stack([self.first(known), known.rows.flatten(1)])

    @abc.abstractmethod
    def first(self, known: LayerSamples) -> Tensor:
        """Where neurons begin, ``[samples, elements]``."""


class FromCounterfactual(ToActual):
    """A contrast that begins at the values of counterfactual samples."""

    needs_counterfactuals = True

    def first(self, known: LayerSamples) -> Tensor:
        """Rows of the counterfactuals."""
        layer, rows = known.layer, known.rows
        if known.counterfactuals is None:
            raise OptionError(
                f"a {type(self).__name__} contrast needs its counterfactuals recorded"
            )
        counterfactual = known.counterfactuals.main(layer.name)
        if counterfactual.shape != rows.shape:
            raise OptionError(
                f"layer {layer.name!r} returns {tuple(rows.shape)} for the clean samples but "
                f"{tuple(counterfactual.shape)} for their counterfactuals: pairs must have the "
                "same shape"
            )
        return counterfactual.flatten(1)


@dataclass(frozen=True)
class Quantiles(Contrast):
    """A neuron moves through quantiles of its own activations over the data.

    Levels ascend; the effect is between the first and the last of them. Each position has
    quantiles of its own, so that what differs between positions alone does not move. `pooled`
    takes all positions together, those of the reference samples.
    """

    levels: tuple[float, ...] = (0.05, 0.95)
    pooled: bool = False

    needs_statistics = True

    def __post_init__(self) -> None:
        try:
            levels = tuple(float(level) for level in self.levels)
        except (TypeError, ValueError):
            levels = ()
        ascending = all(a < b for a, b in itertools.pairwise(levels))
        if len(levels) < 2 or not ascending or not all(0 <= level <= 1 for level in levels):
            raise OptionError(
                f"contrast levels {shown(self.levels)} must be two or more ascending quantiles in "
                "[0, 1]"
            )
        object.__setattr__(self, "levels", levels)

    @property
    def quantiles(self) -> tuple[float, ...]:
        """The levels."""
        return self.levels

    def levels_of(self, known: LayerSamples) -> Tensor:
        """Quantiles, ``[levels, 1, elements]``."""
        layer, rows = known.layer, known.rows
        table = _quantiles(self.levels, layer, known.statistics)
        if self.pooled and table.dim() == rows.dim():  # else the profile has pooled them
            table = _pooled(self.levels, channels_first(rows, layer.channel_dim))
        return _at_positions(table, layer, rows)[:, None]


@dataclass(frozen=True)
class FromMean(ToActual):
    """A neuron moves from its mean over the data to its actual value in each sample."""

    needs_statistics = True

    def first(self, known: LayerSamples) -> Tensor:
        """Means, the same in all samples."""
        rows = known.rows
        mean = _at_positions(known.statistics["mean"].to(rows)[None], known.layer, rows)
        return mean.expand(len(rows), -1)


@dataclass(frozen=True)
class FromZero(ToActual):
    """A neuron moves from zero to its actual value in each sample."""

    def first(self, known: LayerSamples) -> Tensor:
        """Zeros."""
        return torch.zeros_like(known.rows.flatten(1))


@dataclass(frozen=True, eq=False)
class Counterfactual(FromCounterfactual):
    """A neuron moves from its value in the counterfactual of each sample to its actual value.

    `data` holds one counterfactual for each sample of the search's data, in the same order and
    of the same shape.
    """

    data: Any

    def counterfactuals(self, reference: Reference) -> CounterfactualRows:
        """The counterfactuals as the model runs them."""
        return record_counterfactuals(self.data, reference)

    def as_json(self) -> dict[str, Any]:
        """Name it alone: it holds data."""
        return {"type": type(self).__name__}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Contrast:
        """OptionError: its data must be given again."""
        raise OptionError("the circuit's contrast is a Counterfactual: pass contrast= again")


@dataclass(frozen=True)
class Resample(FromCounterfactual):
    """A neuron moves from its value in another reference sample to its actual value in each.

    In sequences it is the value at a random position of that sample, since what says where
    something stands is the same in all samples; without `positions`, at the same one: the plain
    resample ablation. What arrives is kept plausible. All channels of a layer come from the same
    place. And constants stay: a position where the layer has the same values in all samples (that
    of a BOS token, say) neither changes nor serves others, unless every position is so (position
    embeddings).

    Of a plain logit, effects average out over the samples, since a value is as likely to come as
    to go. Choose a target for which each sample's own values are the best: the logit of its own
    label, or minus the squared distance to what the model returned.

    Notes
    -----
    Samples and positions are drawn by the search's `seed`. Resampling (Chan et al. 2022, *Causal
    scrubbing*) gives a neuron values that it has, and breaks nothing by itself; zeros and means
    may be values that it never has.
    """

    positions: bool = True

    def counterfactuals(self, reference: Reference) -> CounterfactualRows:
        """Other reference samples, and other positions of them."""
        actual, seed = reference.actual, reference.seed
        inputs = input_tensors(reference.model, actual.batch)
        donors = draw_donors(actual.size, seed)
        return Resampled(actual, inputs, donors, seed if self.positions else None)


SWEEP = Quantiles(QUANTILES)
_NAMED: dict[str, Contrast] = {
    "quantiles": Quantiles(),
    "sweep": SWEEP,
    "pooled": Quantiles(pooled=True),
    "mean": FromMean(),
    "zero": FromZero(),
    "resample": Resample(),
}


_BY_TYPE: dict[str, type[Contrast]] = {
    kind.__name__: kind for kind in (Counterfactual, *map(type, _NAMED.values()))
}


def as_contrast(contrast: str | tuple[float, ...] | Contrast | Mapping[str, Any]) -> Contrast:
    """Read a contrast as users write it, or as `Contrast.as_json` does.

    Examples
    --------
    >>> as_contrast("quantiles")
    Quantiles(levels=(0.05, 0.95), pooled=False)
    >>> as_contrast((0.25, 0.75))
    Quantiles(levels=(0.25, 0.75), pooled=False)
    >>> as_contrast("mean")
    FromMean()
    >>> as_contrast({"type": "Resample", "positions": True})
    Resample(positions=True)
    """
    if isinstance(contrast, Contrast):
        own: Any = type(contrast)
        if not is_dataclass(own) or own.__hash__ is None:
            raise OptionError(
                f"contrast={shown(contrast)}: make {type(contrast).__name__} a dataclass with "
                "frozen=True, so that equal ones are known as equal and can be saved"
            )
        return contrast
    if isinstance(contrast, str) and contrast in _NAMED:
        return _NAMED[contrast]
    if isinstance(contrast, Mapping) and contrast.get("type") in _BY_TYPE:
        return _BY_TYPE[contrast["type"]].from_json(contrast)
    if isinstance(contrast, (tuple, list)):
        return Quantiles(tuple(contrast))
    raise OptionError(
        f"contrast={shown(contrast)} is none of {', '.join(_NAMED)}, a tuple of quantiles, or a "
        "Counterfactual(data)"
    )


def _quantiles(levels: tuple[float, ...], layer: Layer, statistics: Mapping[str, Any]) -> Tensor:
    known = list(statistics["levels"])
    missing = [level for level in levels if level not in known]
    if missing:
        raise OptionError(
            f"the profile of layer {layer.name!r} has the quantiles {known}, not {missing[0]}: "
            f"profile with levels={levels}"
        )
    table: Tensor = statistics["quantiles"][[known.index(level) for level in levels]]
    return table


def _pooled(levels: tuple[float, ...], values: Tensor) -> Tensor:
    """Quantiles over samples and positions of values ``[samples, neurons, *positions]``."""
    together = values.movedim(1, 0).flatten(1).double().cpu().numpy()
    return torch.from_numpy(np.quantile(together, levels, axis=1)).to(values)


def by_rows(table: Tensor, layer: Layer) -> Tensor:
    """Put statistics of a layer, ``[levels, neurons, *positions]``, in the order of its rows.

    Returns
    -------
    Tensor, [levels, *shape]
        Of size 1 at positions where these are pooled: then the table is ``[levels, neurons]``.
    """
    if table.dim() == 2:
        table = table.view(*table.shape, *[1] * (len(layer.shape) - 1))
    return table.movedim(1, layer.channel_dim)


def _at_positions(table: Tensor, layer: Layer, rows: Tensor) -> Tensor:
    """Give statistics, pooled or not, the shape of a layer's rows: ``[levels, elements]``."""
    found = by_rows(table, layer)
    if table.dim() == rows.dim() and found.shape[1:] != rows.shape[1:]:
        raise OptionError(
            f"statistics have shape {tuple(found.shape[1:])} for activations of shape "
            f"{tuple(rows.shape[1:])}: profile the model on data of this shape"
        )
    return found.expand(len(table), *rows.shape[1:]).flatten(1)


def with_background(actual: Recording, background: Background, graph: nx.DiGraph) -> Recording:
    """Return the recording with every layer's output set to the background.

    `data` leaves the reference samples as they are. `mean` sets each neuron to its mean over the
    data, `zero` to 0, so that all a reader sees besides the moved neuron is what glue makes of
    that (0 again after ReLU, tanh or GELU). What is no neuron, token ids for one, stays; what runs
    on some rows only is computed from what arrives.
    """
    if background == "data":
        return actual
    if background not in ("mean", "zero"):
        raise OptionError(f"background={background!r} is none of 'data', 'mean', 'zero'")
    contrast = FromMean() if background == "mean" else FromZero()
    rows: dict[str, Tensor] = {}
    for name in graph:
        layer = actual.layers[name]
        if not layer.neurons or layer.routed:
            continue
        values = contrast.first(LayerSamples(layer, graph.nodes[name], actual))
        rows[name] = values.reshape(actual.main(name).shape)
    return actual.with_rows(rows)
