"""Response curves: the target against a neuron's quantile, all else at real samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neurograph.audit.audit import audit_effects
from neurograph.audit.result import Claim
from neurograph.effects.contrast import Quantiles
from neurograph.effects.effects import Effects, rounding
from neurograph.effects.exact import total_effects
from neurograph.effects.experiment import Experiment
from neurograph.errors import OptionError
from neurograph.model.neuron_index import place_index
from neurograph.model.neuron_names import Places
from neurograph.model.observe import placed
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.named_neurons import find_named
from neurograph.preparation.options import ResponseOptions, read_options
from neurograph.utils.checks import one_of
from neurograph.utils.progress import Progress

__all__ = ["SHAPES", "ResponseCurves", "find_responses"]

Shape = Literal["rising", "falling", "flat", "bent"]
SHAPES: tuple[Shape, ...] = ("rising", "falling", "flat", "bent")


@dataclass(frozen=True, eq=False, repr=False)
class ResponseCurves:
    """Mean targets while neurons move through their quantiles; made by `response_curves`.

    Attributes
    ----------
    target : str
        What the target is called.
    levels : tuple of float
        The quantiles of the sweep, ascending.
    table : DataFrame
        A row for each neuron and level: ``layer``, ``index``, ``name``, ``level``, ``value`` (the
        neuron's activation at that level, in the layer's units; the mean over the elements that
        move where they are several) and ``target`` (mean over the reference samples, in the
        target's units); ``position`` behind ``index`` where positions have neurons of their own.
    provenance : mapping
        Model hash, data fingerprint, options, versions, seed: how it was found. JSON-able.
    """

    target: str
    levels: tuple[float, ...]
    table: pd.DataFrame
    provenance: Mapping[str, Any]
    _summary: pd.DataFrame

    def summary(self, shape: Shape | None = None) -> pd.DataFrame:
        """Table of one row a neuron, the one that varies the target most first.

        Parameters
        ----------
        shape : {"rising", "falling", "flat", "bent"}, optional
            Only curves of this shape.

        Returns
        -------
        DataFrame
            ``layer``, ``index``, ``name``; ``low``, ``high``, the interval that the mean target
            covers over the sweep, and its width ``variation``; ``effect`` with its ``stderr``,
            last level less first; ``shape``; and ``bend``, how far a curve goes back against its
            main direction, 0 where it is monotone. Differences that rounding could make are none.

        Raises
        ------
        OptionError
            There is no such shape.
        """
        one_of(shape, "shape", (None, *SHAPES))
        wanted = self._summary if shape is None else self._summary[self._summary["shape"] == shape]
        return wanted.reset_index(drop=True)

    def __repr__(self) -> str:
        counts = self._summary["shape"].value_counts()
        shapes = ", ".join(f"{counts[shape]} {shape}" for shape in SHAPES if shape in counts)
        return f"Response curves of {self.target!r} at {len(self.levels)} levels, neurons: {shapes}"


def find_responses(study: BaseStudy, options: Mapping[str, Any]) -> ResponseCurves:
    """Measure the response curves of a study; see `response_curves`."""
    own = read_options(ResponseOptions, options, "response_curves")
    study = study.at(contrast=Quantiles(own["levels"]))
    device, progress = study.options["device"], study.options["progress"]
    chosen = _chosen(study, own["neurons"])
    tables, summaries, claims = [], [], list[Claim]()
    with (
        study.open() as experiment,
        Progress("response curves", progress, total=len(chosen), unit="layers") as bar,
    ):
        for layer, units in chosen.items():
            bar.describe(f"response curves of {layer}")
            effects = total_effects(experiment, layer, units, levels=True)
            names = _names(study, layer, units)
            values = _values(experiment, layer, units)
            tables.append(_long(names, own["levels"], values, effects.response))
            dtype = experiment.recording.main(layer).dtype  # that of the targets
            summaries.append(_summarised(names, effects, dtype))
            claims += _claims(experiment, layer, units, effects)
            bar.advance()
    with placed(study.model, device):
        audit_effects(study.experiment, claims).check()
    summary = pd.concat(summaries, ignore_index=True)
    order = summary["variation"].sort_values(ascending=False, kind="stable").index
    return ResponseCurves(
        study.target.name,
        own["levels"],
        pd.concat(tables, ignore_index=True),
        study.provenance_with({"levels": list(own["levels"])}, without=("contrast",)),
        summary.loc[order].reset_index(drop=True),
    )


def _claims(
    experiment: Experiment, layer: str, units: Sequence[int], effects: Effects
) -> list[Claim]:
    """The strongest and the weakest effect of a layer, to be computed again by hooks alone."""
    order = effects.effect.abs().argsort(descending=True).tolist()
    known, effect, stderr = experiment.units(layer), effects.effect, effects.stderr
    return [
        Claim("total", (known.neuron(units[i]),), float(effect[i]), float(stderr[i]))
        for i in dict.fromkeys(order[:1] + order[-1:])
    ]


def _chosen(study: BaseStudy, neurons: Places | None) -> dict[str, list[int]]:
    """Layers in the order of the model, and the numbers of the chosen neurons of each."""
    return find_named(study, _default(study) if neurons is None else neurons, "neurons")


def _default(study: BaseStudy) -> list[str]:
    recorded = study.experiment.recording.layers
    moving = [name for name in study.layers if recorded[name].neurons]
    inputs = [name for name in moving if recorded[name].is_input]
    rest = [name for name in moving if not recorded[name].is_input]
    if study.options["layers"] is None and not inputs:
        raise OptionError(
            "the model's inputs are no floating-point numbers, so none of them can move: name "
            f"layers or neurons in neurons=, of {', '.join(rest)}"
        )
    return inputs if study.options["layers"] is None else rest


def _names(study: BaseStudy, layer: str, units: Sequence[int]) -> pd.DataFrame:
    """Which neurons these are, a row for each."""
    known, tokens = study.experiment.units(layer), study.tokens(layer)
    neurons = [known.neuron(unit) for unit in units]
    table = place_index(neurons).to_frame(index=False)
    table["name"] = [study.name(neuron, tokens) for neuron in neurons]
    return table


def _values(experiment: Experiment, layer: str, units: Sequence[int]) -> Tensor:
    """Activations of neurons at each level, ``[neurons, levels]``: means of what may move."""
    known = experiment.units(layer)
    moving, levels = experiment.moving(layer), experiment.levels(layer).double()
    weights = torch.ones_like(levels[0]) if moving is None else moving.to(levels)
    values = torch.stack([known.sums(level * weights, units).sum(0) for level in levels], dim=1)
    return values / known.sums(weights, units).sum(0)[:, None]


def _long(
    names: pd.DataFrame, levels: Sequence[float], values: Tensor, response: Tensor
) -> pd.DataFrame:
    """One row for each neuron and level; values and response ``[neurons, levels]``."""
    table = names.loc[names.index.repeat(len(levels))].reset_index(drop=True)
    table["level"] = np.tile(levels, len(names))
    table["value"] = values.flatten().cpu().numpy()
    table["target"] = response.flatten().cpu().numpy()
    return table


def _summarised(names: pd.DataFrame, effects: Effects, dtype: torch.dtype) -> pd.DataFrame:
    """One row for each neuron, of targets that were computed in a dtype."""
    response = effects.response
    least = rounding(response, dtype)

    def above_rounding(differences: Tensor) -> Tensor:
        return torch.where(differences <= least, 0.0, differences)

    low, high = response.aminmax(dim=1)
    # The largest climb and the largest drop anywhere along the sweep: steps that rounding hides
    # one by one can still add up.
    rise = above_rounding((response - response.cummin(dim=1).values).amax(dim=1))
    fall = above_rounding((response.cummax(dim=1).values - response).amax(dim=1))
    shapes = [SHAPES[2], SHAPES[0], SHAPES[1], SHAPES[3]]  # by which of the two there are
    which = (rise > 0).int() + 2 * (fall > 0).int()
    columns = {"low": low, "high": high, "variation": above_rounding(high - low)}
    columns |= {"effect": effects.effect, "stderr": effects.stderr}
    table = names.assign(**{key: column.cpu().numpy() for key, column in columns.items()})
    table["shape"] = [shapes[i] for i in which.tolist()]
    table["bend"] = torch.minimum(rise, fall).cpu().numpy()
    return table
