"""Cross-intervention: a model that keeps only what matches another model's circuit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from neurograph.comparison.null import chance
from neurograph.comparison.options import Options
from neurograph.comparison.sides import Numbers, Side
from neurograph.faithfulness.components import Components, Flags, neurons_of
from neurograph.faithfulness.measure import measuring
from neurograph.faithfulness.rankings import inputs_of
from neurograph.progress import Progress
from neurograph.study import Study, prepare

__all__ = ["TRANSPLANT_COLUMNS", "Plan", "no_transplants", "transplant", "transplant_plan"]

TRANSPLANT_COLUMNS = (
    *("into", "kept", "neurons", "value", "faithfulness"),
    *("faithfulness_low", "faithfulness_high", "error", "p_value", "told"),
)
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Plan:
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


def transplant_plan(
    components: Components, side: Side, kept: Numbers, draws: int, seed: int
) -> Plan:
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
    return Plan(flags[0], flags[1], tuple(random))


def transplant(
    side: Side,
    kept: Numbers,
    into: str,
    options: Options,
) -> pd.DataFrame:
    """Keep only some neurons of a circuit's model, and see what is left of its target.

    Returns
    -------
    DataFrame
        As `Comparison.transplants` tells.
    """
    study = _fresh(side.circuit.study, options)
    ablation = options.ablation
    layers = study.experiment.graph
    inputs = inputs_of(layers)
    components = neurons_of(
        study.experiment, inputs=any(neuron.layer in inputs for neuron in side.circuit.graph)
    )
    plan = transplant_plan(components, side, kept, options.transplants, options.seed)
    sets = [plan.own, plan.other, *plan.random]
    with (
        measuring(study, components, (ablation,), None, options.seed) as measure,
        Progress("transplanting", options.progress, total=len(sets), unit="circuits") as bar,
    ):
        ends, points = measure.ends(ablation), []
        for start in range(0, len(sets), measure.at_once):
            points += measure(sets[start : start + measure.at_once], ablation)
            bar.advance(len(points) - start)
    table = pd.DataFrame(
        {
            "neurons": [int(flags.sum()) for flags in sets],
            "value": [point.value for point in points],
            "faithfulness": [ends.faithfulness(point.value) for point in points],
            "error": [point.error for point in points],
        }
    )
    random = table.iloc[2:]
    low, high = (
        random["faithfulness"].quantile(_INTERVAL[0]),
        random["faithfulness"].quantile(_INTERVAL[1]),
    )
    # Small errors are good ones, so the sign turns.
    p_value = chance(-table["error"][1], -random["error"].to_numpy())
    rows = [
        (into, "own", *table.loc[0, _FOUND], np.nan, np.nan, table["error"][0], np.nan),
        (into, "other", *table.loc[1, _FOUND], np.nan, np.nan, table["error"][1], p_value),
    ]
    if len(random):
        means = random.mean()
        rows.append((into, "random", *means[_FOUND], low, high, means["error"], np.nan))
    found = pd.DataFrame(rows, columns=[*TRANSPLANT_COLUMNS[:-1]])
    told = ends.told(study.experiment.recording.size)
    return found.astype({"neurons": int}).assign(told=told)


_FOUND = ["neurons", "value", "faithfulness"]


def _fresh(study: Study, options: Options) -> Study:
    """Prepare the model anew, with reference samples of its own."""
    study.check_unchanged()
    asked = replace(
        study.options,
        contrast="mean",
        background="data",
        reference=options.reference,
        progress=options.progress,
    )
    data = study.data if options.data is None else options.data
    profiled = study.profiled if options.data is None else None
    return prepare(study.model, data, study.asked, asked, profiled)


def no_transplants() -> pd.DataFrame:
    """Give the table for models that are not there."""
    return pd.DataFrame(columns=[*TRANSPLANT_COLUMNS]).astype({"neurons": int, "told": bool})
