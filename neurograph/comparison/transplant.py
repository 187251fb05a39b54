"""Cross-intervention: a model that keeps only what matches another model's circuit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neurograph.ablation.index import Components, Flags, neurons_of
from neurograph.ablation.measure import Ends, Point, measuring
from neurograph.ablation.rankings import inputs_of
from neurograph.comparison.circuit_arrays import Numbers, Side
from neurograph.comparison.compare_options import CompareOptions
from neurograph.comparison.null import chance
from neurograph.preparation.base_study import BaseStudy
from neurograph.utils.progress import Progress

__all__ = [
    "TRANSPLANT_COLUMNS",
    "TransplantSets",
    "no_transplants",
    "transplant",
    "transplant_sets",
]

TRANSPLANT_COLUMNS = (
    *("into", "kept", "neurons", "recovered", "recovered_low", "recovered_high", "p_value"),
    *("error", "value", "faithfulness"),
)
_KINDS = {"neurons": int, "recovered_low": float, "recovered_high": float, "p_value": float}
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class TransplantSets:
    """Sets of one model's neurons to keep alone, each ``[neurons]`` of its components.

    Attributes
    ----------
    own, other : ndarray of bool
        Its own circuit; the neurons that match the other circuit's.
    random : tuple of ndarray of bool
        As many as `other` in each layer.
    """

    own: Flags
    other: Flags
    random: tuple[Flags, ...]


def transplant_sets(
    components: Components, side: Side, kept: Numbers, draws: int, seed: int
) -> TransplantSets:
    """Say which sets are kept.

    Parameters
    ----------
    components : Components
        Of the model of `side`.
    side : Side
        Of the circuit whose model is run.
    kept : ndarray of int64
        Numbers of its neurons that match the other circuit's.
    draws, seed : int
        Random sets.
    """
    both = np.zeros((2, len(side)), dtype=bool)
    both[0], both[1, kept] = side.kept, True
    flags = np.zeros((2, len(components)), dtype=bool)
    places = {layer: start for (layer,), start in components.starts().items()}
    for layer, start in places.items():
        span = side.spans[layer]
        flags[:, start : start + span.stop - span.start] = both[:, span.start : span.stop]
    generator = np.random.default_rng(seed)
    random = [
        np.concatenate([generator.permutation(part) for _, part in components.parts(flags[1])])
        for _ in range(draws)
    ]
    return TransplantSets(flags[0], flags[1], tuple(random))


def transplant(
    side: Side,
    kept: Numbers,
    into: str,
    options: CompareOptions,
) -> pd.DataFrame:
    """Keep only some neurons of a circuit's model, and see what is left of its target.

    Returns
    -------
    DataFrame
        As `Comparison.transplants` has it.
    """
    study = _fresh(side.circuit.study, options)
    ablation = options.ablation
    layers = study.experiment.graph
    inputs = inputs_of(layers)
    components = neurons_of(
        study.experiment, inputs=any(neuron.layer in inputs for neuron in side.circuit.graph)
    )
    drawn = transplant_sets(components, side, kept, options.transplants, options.seed)
    sets = [drawn.own, drawn.other, *drawn.random]
    with (
        measuring(study, components, (ablation,), None, options.seed) as measure,
        Progress("transplanting", options.progress, total=len(sets), unit="circuits") as bar,
    ):
        ends, points = measure.ends(ablation), []
        for start in range(0, len(sets), measure.at_once):
            points += measure(sets[start : start + measure.at_once], ablation)
            bar.advance(len(points) - start)
    return _table(into, sets, points, ends)


def _table(into: str, sets: Sequence[Flags], points: Sequence[Point], ends: Ends) -> pd.DataFrame:
    """Rows of a model's own circuit, of the other's, and of all random sets together."""
    nothing = ends.empty.error
    table = pd.DataFrame(
        {
            "neurons": [int(flags.sum()) for flags in sets],
            "value": [point.value for point in points],
            "faithfulness": [ends.faithfulness(point.value) for point in points],
            "error": [point.error for point in points],
        }
    )
    table["recovered"] = 1 - (table["error"] / nothing) ** 2 if nothing else np.nan
    random = table.iloc[2:]
    rows = table.iloc[:2].assign(kept=["own", "other"])
    # Small errors are good ones, so the sign turns.
    rows["p_value"] = [np.nan, chance(-table.at[1, "error"], -random["error"].to_numpy())]
    if len(random):
        ends_of = {
            f"recovered_{end}": random["recovered"].quantile(level)
            for end, level in zip(("low", "high"), _INTERVAL, strict=True)
        }
        drawn = pd.DataFrame([{**random.mean(), **ends_of, "kept": "random"}])
        rows = pd.concat([rows, drawn], ignore_index=True)
    rows = rows.assign(into=into).reindex(columns=list(TRANSPLANT_COLUMNS))
    return rows.astype(_KINDS)


def _fresh(study: BaseStudy, options: CompareOptions) -> BaseStudy:
    """Prepare the model anew, with reference samples of its own."""
    study.check_unchanged()
    known = options.data is None and not study.options["basis"]
    asked = {
        **study.options,
        "contrast": "mean",
        "background": "data",
        "reference": options.reference,
        "progress": options.progress,
        "profile": study.profile if known else None,
    }
    data = study.data if options.data is None else options.data
    return BaseStudy(study.model, data, study.asked, **asked).at(routed=False)


def no_transplants() -> pd.DataFrame:
    """Give the table for models that are not there."""
    return pd.DataFrame(columns=[*TRANSPLANT_COLUMNS]).astype(_KINDS)
