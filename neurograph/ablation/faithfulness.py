"""Faithfulness of circuits of every size, read off rankings of neurons or edges."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn
from torchmetrics import Metric

from neurograph.ablation.completeness import Circuits
from neurograph.ablation.faithfulness_result import Faithfulness
from neurograph.ablation.index import Components, Flags, edges_of, neurons_of
from neurograph.ablation.measure import Ends, Measure, Point, measuring
from neurograph.ablation.rankings import (
    Ranking,
    inputs_of,
    kept_by,
    options_of_ranking,
    order_by,
    read_rankings,
    what,
)
from neurograph.ablation.replacements import Ablation, check_ablations
from neurograph.effects.contrast import Counterfactual
from neurograph.effects.experiment import Experiment
from neurograph.errors import OptionError
from neurograph.model.target import TargetFunction
from neurograph.replay.recording import Recording
from neurograph.study.options import (
    Option,
    StudyOptions,
    read_options,
    split_options,
    with_options,
)
from neurograph.study.study import Study
from neurograph.utils.checks import a_share, listed, shown, whole
from neurograph.utils.progress import Progress

__all__ = ["SIZES", "FaithfulnessOptions", "ask", "faithfulness"]

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the Mechanistic Interpretability Benchmark (Mueller et al. 2025, arXiv:2504.13151)."""

_RANDOM = 2  # tells this use of the seed from others


def _sizes(sizes: Any) -> tuple[float, ...]:
    shares = [a_share(share, "sizes", one=True) for share in listed(sizes, "sizes")]
    if not shares or not all(a < b for a, b in itertools.pairwise(shares)):
        raise OptionError(f"sizes={shown(tuple(shares))} must be ascending shares in (0, 1]")
    return tuple(map(float, shares))


class FaithfulnessOptions(TypedDict, total=False):
    """Options of faithfulness beside those of a study; `faithfulness` explains them."""

    sizes: Annotated[Sequence[float], Option(SIZES, check=_sizes)]
    ablations: Annotated[Sequence[Ablation], Option(("mean", "resample", "zero"))]
    draws: Annotated[int, Option(20, check=functools.partial(whole, option="draws", least=0))]
    confidence: Annotated[
        float, Option(0.95, check=functools.partial(a_share, option="confidence"))
    ]
    metric: Annotated[Metric | None, Option(None)]
    corrupt: Annotated[Any, Option(None)]


class _Options(StudyOptions, FaithfulnessOptions, total=False):
    pass


@with_options(FaithfulnessOptions, StudyOptions)
def faithfulness(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None,
    ranking: Any,
    **options: Unpack[_Options],
) -> Faithfulness:
    """Keep only the neurons or edges that a ranking puts first, and see what is left of a target.

    At each size the first components are kept and all others ablated, then the other way round.
    Random circuits of equal size are measured beside them.

    Parameters
    ----------
    model, data, target
        As for `Study`. A target that is about each sample's own answer, such as the logit of its
        label, tells most: of a fixed output, ablations to the mean and to other samples may leave
        the mean as it is.
    ranking : Series, Circuit, scores, or mapping of str to any of these
        Effects: of neurons, indexed by ``layer, index``, or of edges, indexed by ``source_layer,
        source_index, target_layer, target_index``; with ``position``, ``source_position`` and
        ``target_position`` where neurons have some. A circuit ranks all neurons that were scored,
        by the stronger effect of both signs, and what it kept is measured too. What is not ranked
        comes last. Several rankings, by name, are compared on the same neurons or edges.
    sizes : sequence of float
        Ascending shares, in (0, 1], of all neurons or edges; ``int(share × number)`` are kept.
    ablations : sequence of {"mean", "resample", "zero", "counterfactual"}
        What an ablated neuron is: its mean over the data, at each position where shapes are
        fixed; what it is in another reference sample, the same one for all neurons, at the same
        position; 0; what it is in the sample's twin.
    draws : int
        How many series of random circuits.
    confidence : float
        Level of the intervals.
    metric : torchmetrics.Metric, optional
        Measured beside the target, of the reference samples and their labels; see
        `masking_curves`.
    corrupt : data, optional
        Twins of all samples of the data, in the same order, for ``"counterfactual"``. By default
        those of the study's contrast, where it is a `Counterfactual`.
    **options
        Those of `Study`, but for `contrast` and `background`. By default ``layers``, ``groups``
        and ``positions`` are those of a circuit, and 128 samples are run, as `reference` says;
        the `seed` also chooses random circuits and other samples.

    Returns
    -------
    Faithfulness

    Raises
    ------
    OptionError
        Options that mean nothing, or a ranking of what the model has not.
    ModelError, DataError
        As for `search`; also no labels where there is a metric.

    Notes
    -----
    **Neurons** that can be ablated are those that another layer reads; the model's inputs are
    among them if a ranking holds some. A kept neuron is computed from what the ablated ones left
    of its inputs. **Edges** are all that lead from a neuron, or an input, to a neuron of a layer
    that reads it. A neuron is computed from an input in which the writers of its kept edges have
    the values of this run, and all other writers their ablated ones; the target sees the layers
    that it reads as they are in this run. In both, all that is no neuron that may move (padding,
    other positions) is left alone.

    With m the mean target over the reference samples, C a circuit, M the whole model and ∅
    nothing, faithfulness is f = (m(C) − m(∅)) / (m(M) − m(∅)).

    A neuron or edge costs nothing by itself, but each size of each order is a run of the model
    for each ablation. Edges take a run of each reader for every different set of writers that
    its neurons keep; linear layers and convolutions behind pointwise glue take one.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(4))
    ...     _ = model[1].weight.copy_(torch.tensor([[3.0, 1.0, 0.0, 0.0]]))
    >>> index = pd.MultiIndex.from_product([["0"], range(4)], names=["layer", "index"])
    >>> found = faithfulness(
    ...     model, torch.ones(10, 4), 1, pd.Series([3.0, 1.0, 0.0, 0.0], index, name="weights"),
    ...     sizes=(0.25, 0.5, 1), ablations=["zero"],
    ... )
    >>> kept = found.curves().query("order == 'signed' and direction == 'keep'")
    >>> kept[["share", "components", "value", "faithfulness"]].to_string(index=False).splitlines()
    [' share  components  value  faithfulness',
     '  0.25           1    3.0          0.75',
     '  0.50           2    4.0          1.00',
     '  1.00           4    4.0          1.00']
    """
    of_study, own = split_options(FaithfulnessOptions, options, "faithfulness")
    known = {} if of_study.get("profile") is not None else options_of_ranking(ranking)
    given = {"reference": 128, "contrast": "mean", **known, **of_study}
    return Study(model, data, target, **given).faithfulness(ranking, **own)


def ask(study: Study, ranking: Any, options: Mapping[str, Any]) -> Faithfulness:
    """Measure how faithful circuits of a study are; see `faithfulness`."""
    own = read_options(FaithfulnessOptions, options, "faithfulness")
    corrupt, seed, confidence = own["corrupt"], study.options["seed"], own["confidence"]
    sizes, draws, metric = own["sizes"], own["draws"], own["metric"]
    paired = corrupt is not None or isinstance(study.contrast, Counterfactual)
    wanted = check_ablations(own["ablations"], twins=paired, given=corrupt is not None)
    rankings = read_rankings(ranking)
    contrast = study.options["contrast"] if corrupt is None else Counterfactual(corrupt)
    study = study.at(contrast=contrast, background="data", routed=False)
    components = _components(study.experiment, rankings)
    series = list(_series(rankings, components, sizes, draws, seed))
    with (
        measuring(study, components, wanted, metric, seed) as measure,
        Progress(
            "faithfulness", study.options["progress"], total=sum(map(len, series)), unit="circuits"
        ) as bar,
    ):
        ends = {ablation: measure.ends(ablation) for ablation in wanted}
        rows = list(_measured(measure, series, ends, bar))
    names = [*_COLUMNS, *(["metric"] if metric is not None else [])]
    asked = {"ablations": list(wanted), "sizes": list(sizes), "draws": draws}
    return Faithfulness(
        pd.DataFrame(rows, columns=[*_COLUMNS, "metric"])[names],
        _ends_table(ends, study.experiment.recording, confidence, metric is not None),
        components.of,
        len(components),
        study.target.name,
        None if metric is None else type(metric).__name__,
        sizes,
        confidence,
        study.provenance_with(asked, without=("contrast", "background")),
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


@dataclass(frozen=True, eq=False)
class _Series:
    """Nested circuits: the first of some numbers, at each share."""

    ranking: str
    order: str
    draw: int
    numbers: NDArray[np.int64]
    sizes: tuple[tuple[float, int], ...]

    def __len__(self) -> int:
        return 2 * len(self.sizes)

    def circuits(self) -> Iterator[tuple[tuple[Any, ...], Flags]]:
        """Circuits to keep alone, with what their rows of the table begin with."""
        for share, count in self.sizes:
            flags = np.zeros(len(self.numbers), dtype=bool)
            flags[self.numbers[:count]] = True
            for direction, kept in (("keep", flags), ("knock_out", ~flags)):
                yield (self.ranking, self.order, direction, share, count, self.draw), kept


def _series(
    rankings: Mapping[str, Ranking],
    components: Components,
    sizes: Sequence[float],
    draws: int,
    seed: int,
) -> Iterator[_Series]:
    total = len(components)
    counts = tuple((float(share), int(share * total)) for share in sizes)
    extra: dict[float, int] = {}
    for name, ranking in rankings.items():
        for order, numbers in order_by(ranking, components).items():
            yield _Series(name, order, 0, numbers, counts)
        kept = kept_by(ranking, components)
        if kept is not None:
            count = int(kept.sum())
            numbers = np.argsort(~kept, kind="stable")
            extra[count / total] = count
            yield _Series(name, "kept", 0, numbers, ((count / total, count),))
    also = tuple(pair for pair in extra.items() if pair not in counts)
    for draw in range(draws):
        numbers = np.random.default_rng([seed, _RANDOM, draw]).permutation(total)
        yield _Series("random", "random", draw, numbers, counts + also)


def _circuits(
    study: Study,
    components: Components,
    ablations: tuple[Ablation, ...],
    series: Sequence[_Series],
    seed: int,
) -> Circuits:
    ranked = [one for one in series if one.order != "random"]
    return Circuits(
        functools.partial(measuring, study, components, ablations, None, seed),
        {(one.ranking, one.order): one.numbers for one in ranked},
        {one.ranking: one.sizes[0][1] for one in ranked if one.order == "kept"},
        ablations,
    )


def _measured(
    measure: Measure, series: Sequence[_Series], ends: Mapping[Ablation, Ends], bar: Progress
) -> Iterator[tuple[Any, ...]]:
    """Rows of the table, by ablation within each circuit."""
    every = itertools.chain.from_iterable(one.circuits() for one in series)
    while some := list(itertools.islice(every, measure.at_once)):
        found = {name: measure([kept for _, kept in some], name) for name in ends}
        for i, ((ranking, order, *place), _) in enumerate(some):
            for name, points in found.items():
                yield ranking, order, name, *place, *_told(points[i], ends[name])
        bar.advance(len(some))


def _told(point: Point, ends: Ends) -> tuple[float, float, float, float]:
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
