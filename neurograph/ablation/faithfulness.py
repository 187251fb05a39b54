"""Faithfulness of circuits of every size, read off rankings of neurons or edges."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurograph.ablation.completeness import Circuits, count_of
from neurograph.ablation.faithfulness_result import Faithfulness
from neurograph.ablation.index import Components, edges_of, neurons_of
from neurograph.ablation.measure import Ends, Measure, Point, measuring
from neurograph.ablation.nested_sets import NestedSets, draw_sets
from neurograph.ablation.rankings import (
    Ranking,
    inputs_of,
    kept_by,
    order_by,
    read_rankings,
    targets_of,
    what,
)
from neurograph.ablation.replacements import check_ablations
from neurograph.effects.contrast import Ablation, Counterfactual
from neurograph.effects.experiment import Experiment
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.options import FaithfulnessOptions, read_options
from neurograph.replay.recording import Recording
from neurograph.utils.progress import Progress

__all__ = ["find_faithfulness"]

_RANDOM = 2  # tells this use of the seed from others


def find_faithfulness(study: BaseStudy, ranking: Any, options: Mapping[str, Any]) -> Faithfulness:
    """Measure how faithful circuits of a study are; see `faithfulness`."""
    own = read_options(FaithfulnessOptions, options, "faithfulness")
    corrupt, seed, confidence = own["corrupt"], study.options["seed"], own["confidence"]
    sizes, draws, metric = own["sizes"], own["draws"], own["metric"]
    paired = corrupt is not None or isinstance(study.contrast, Counterfactual)
    wanted = check_ablations(own["ablations"], counterfactuals=paired, given=corrupt is not None)
    rankings = read_rankings(ranking)
    contrast = study.options["contrast"] if corrupt is None else Counterfactual(corrupt)
    study = study.at(contrast=contrast, background="data", routed=False)
    components = _components(study.experiment, rankings)
    series = list(_series(rankings, components, sizes, draws, seed))
    with (
        measuring(study, components, wanted, metric, seed) as measure,
        Progress(
            "faithfulness",
            study.options["progress"],
            total=2 * sum(map(len, series)),
            unit="circuits",
        ) as bar,
    ):
        ends = {ablation: measure.ends(ablation) for ablation in wanted}
        rows = list(_measured(measure, series, ends, bar))
    names = [*_COLUMNS, *(["metric"] if metric is not None else [])]
    others = [name for name, target in targets_of(ranking).items() if target != study.target.name]
    provenance = study.provenance_with(
        {"ablations": list(wanted), "sizes": list(sizes), "draws": draws},
        without=("contrast", "background"),
    )
    provenance["notes"] += [
        f"the ranking {name!r} is of effects on another target than {study.target.name!r}"
        for name in others
    ]
    return Faithfulness(
        pd.DataFrame(rows, columns=[*_COLUMNS, "metric"])[names],
        _ends_table(ends, study.experiment.recording, confidence, metric is not None),
        components.of,
        len(components),
        study.target.name,
        None if metric is None else type(metric).__name__,
        sizes,
        confidence,
        provenance,
        _circuits(study, components, wanted, series, seed),
    )


_COLUMNS = [
    *("ranking", "order", "ablation", "direction", "share", "components", "draw"),
    *("value", "faithfulness", "error"),
]


def _components(experiment: Experiment, rankings: Mapping[str, Ranking]) -> Components:
    if what(rankings) == "edges":
        return edges_of(experiment)
    inputs = inputs_of(experiment.graph)
    return neurons_of(experiment, inputs=any(r.has_inputs(inputs) for r in rankings.values()))


# -- which circuits --------------------------------------------------------------------------------


def _series(
    rankings: Mapping[str, Ranking],
    components: Components,
    sizes: Sequence[float],
    draws: int,
    seed: int,
) -> Iterator[NestedSets]:
    total = len(components)
    counts = tuple((float(share), count_of(share, total)) for share in sizes)
    extra: dict[float, int] = {}
    for name, ranking in rankings.items():
        for order, numbers in order_by(ranking, components).items():
            yield NestedSets(name, order, 0, numbers, counts, total)
        kept = kept_by(ranking, components)
        if kept is not None:
            count = int(kept.sum())
            numbers = np.argsort(~kept, kind="stable")
            extra[count / total] = count
            yield NestedSets(name, "kept", 0, numbers, ((count / total, count),), total)
    also = tuple(pair for pair in extra.items() if pair not in counts)
    every = np.arange(total)
    yield from draw_sets(
        "random", "random", every, counts + also, total, draws=draws, seed=[seed, _RANDOM]
    )


def _circuits(
    study: BaseStudy,
    components: Components,
    ablations: tuple[Ablation, ...],
    series: Sequence[NestedSets],
    seed: int,
) -> Circuits:
    ranked = [one for one in series if one.order != "random"]

    def ask(question: Callable[[Measure], pd.DataFrame]) -> pd.DataFrame:
        def answer() -> pd.DataFrame:
            with measuring(study, components, ablations, None, seed) as measure:
                return question(measure)

        return study.answer(answer)

    return Circuits(
        ask,
        {(one.ranking, one.order): one.numbers for one in ranked},
        {one.ranking: one.sizes[0][1] for one in ranked if one.order == "kept"},
        ablations,
    )


def _measured(
    measure: Measure, series: Sequence[NestedSets], ends: Mapping[Ablation, Ends], bar: Progress
) -> Iterator[tuple[Any, ...]]:
    """Rows of the table, by ablation within each circuit."""
    every = (
        (one, (direction, share, count, one.draw), kept)
        for one in series
        for share, count, inside in one
        for direction, kept in (("keep", inside), ("knock_out", ~inside))
    )
    while some := list(itertools.islice(every, measure.at_once)):
        found = {name: measure([kept for _, _, kept in some], name) for name in ends}
        for i, (one, place, _) in enumerate(some):
            for name, points in found.items():
                yield one.ranking, one.order, name, *place, *_columns(points[i], ends[name])
        bar.advance(len(some))


def _columns(point: Point, ends: Ends) -> tuple[float, float, float, float]:
    return point.value, ends.faithfulness(point.value), point.error, point.metric


def _ends_table(
    ends: Mapping[Ablation, Ends], recording: Recording, confidence: float, metric: bool
) -> pd.DataFrame:
    rows = []
    for name, two in ends.items():
        gap = two.full.value - two.empty.value
        significant = two.significant(recording.size, confidence)
        rows.append((name, two.full.value, two.empty.value, gap, two.stderr, significant))
    columns = ["ablation", "full", "empty", "difference", "stderr", "significant"]
    table = pd.DataFrame(rows, columns=columns)
    if metric:
        table["full_metric"] = [two.full.metric for two in ends.values()]
        table["empty_metric"] = [two.empty.metric for two in ends.values()]
    return table
