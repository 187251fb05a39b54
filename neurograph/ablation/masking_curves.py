"""Masking curves: a metric while important, unimportant or random neurons are ablated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from neurograph.ablation.chosen_neurons import Neurons, read_neurons
from neurograph.ablation.importance import by_effect
from neurograph.ablation.index import Flags
from neurograph.ablation.intervals import interval, means_over_draws
from neurograph.ablation.mask import How, Masker
from neurograph.ablation.metric import Predict, Score
from neurograph.ablation.nested_sets import NestedSets, draw_sets
from neurograph.ablation.rankings import read_rankings
from neurograph.circuit.circuit import Circuit
from neurograph.errors import DataError, OptionError
from neurograph.model.layers import Neuron
from neurograph.model.neurons import Groups
from neurograph.model.observe import undisturbed
from neurograph.utils.checks import a_share, is_number, listed, shown, whole
from neurograph.utils.memory import parse_memory
from neurograph.utils.progress import Progress

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["GROUPS", "MaskingCurves", "masking_curves"]

Group = Literal["important", "unimportant", "random"]
GROUPS: tuple[Group, Group, Group] = ("important", "unimportant", "random")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

_BATCH = 1024
_KEYS = ["ranking", "group", "share"]


@dataclass(frozen=True, eq=False, repr=False)
class MaskingCurves:
    """A metric with ever more neurons ablated; made by `masking_curves`.

    Attributes
    ----------
    draws : DataFrame
        One row for each masked run over the data: ``ranking``, ``group`` (``important``,
        ``unimportant``, ``random``), ``share`` of the important neurons, ``neurons`` ablated,
        ``draw``, ``value`` of the metric.
    baseline : float
        The metric of the model as it is.
    metric : str
        What the metric is called.
    higher_is_better : bool
        Of the metric, as it says itself; if it does not say, it is taken to be so.
    how : str
        What ablating means, see `mask_neurons`.
    important : mapping of str to int
        How many neurons each ranking calls important.
    confidence : float
        Level of the intervals.
    """

    draws: pd.DataFrame
    baseline: float
    metric: str
    higher_is_better: bool
    how: str
    important: Mapping[str, int]
    confidence: float = 0.95

    def __repr__(self) -> str:
        lines = [
            f"  by {ranking}: {row.important:.3g} for important neurons, {row.unimportant:.3g} for "
            f"as many others, {row.random:.3g} at random"
            for ranking, row in self.damage().iterrows()
        ]
        head = f"Masking curves (how={self.how!r}): {self.metric} {self.baseline:.4g} as it is"
        return "\n".join([f"{head}, and by how much ablation makes it worse", *lines])

    def summary(self) -> pd.DataFrame:
        """Means over the draws, with Student's t confidence intervals.

        Returns
        -------
        DataFrame
            Columns ``ranking, group, share, neurons, mean, low, high``. An interval says where
            the mean over all possible draws may be. It knows nothing of the chance that lies in
            the samples, in training, or in the ranking itself. It is NaN for a single draw.
        """
        names = {"value": "mean", "value_low": "low", "value_high": "high"}
        table = means_over_draws(self.draws, [*_KEYS, "neurons"], ["value"], self.confidence)
        return table.drop(columns="draws").rename(columns=names)

    def damage(self) -> pd.DataFrame:
        """How much ablating costs, a number for each ranking: the area above its curves.

        Damage is how far the metric falls below the baseline (rises above, where lower is
        better), averaged over the shares. A ranking is as good as it tells neurons that matter
        from others: by the ``difference`` of the damage of important and unimportant neurons.

        Returns
        -------
        DataFrame
            Indexed by ranking, the best first: ``important``, ``unimportant``, ``random``,
            ``difference`` (important − unimportant), ``low`` and ``high``, Student's t confidence
            interval of the difference over the draws, as in `summary`.
        """
        sense = 1 if self.higher_is_better else -1
        rows = {}
        for ranking, table in self.draws.groupby("ranking", sort=False):
            by_draw = table.pivot_table("value", "draw", "group", aggfunc="mean", observed=True)
            damage = sense * (self.baseline - by_draw)
            means = [float(damage[group].mean()) for group in GROUPS]
            gaps = (damage["important"] - damage["unimportant"]).to_numpy()
            rows[ranking] = [*means, *interval(gaps, self.confidence)]
        columns = [*GROUPS, "difference", "low", "high"]
        found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        found.index.name = "ranking"
        return found.sort_values("difference", ascending=False, kind="stable")


def masking_curves(
    model: nn.Module,
    data: Any,
    metric: Metric,
    importance: Any,
    *,
    important: float | Neurons = 0.5,
    shares: Sequence[float] = SHARES,
    draws: int = 10,
    how: How = "zero",
    groups: Mapping[str, Groups] | None = None,
    predictions: Predict | None = None,
    class_names: Sequence[str] | None = None,
    confidence: float = 0.95,
    memory: int | str = "512MB",
    seed: int = 0,
    progress: bool | None = None,
) -> MaskingCurves:
    """Ablate important, unimportant and random neurons, and see what becomes of a metric.

    For each share, so many of the important neurons are drawn at random and ablated, and as many
    of the unimportant and of all: if the ranking is worth anything, the first costs most. Within a
    draw, larger sets hold the smaller ones.

    Parameters
    ----------
    model : Module
        Run in eval mode; it is left as it was, whatever happens.
    data : (X, y) pair, dict, Dataset, DataLoader or list of batches
        As for `search`, with labels; kept in memory.
    metric : torchmetrics.Metric
        Any whose value is one number; a copy of it is used. It is updated with predictions and
        labels.
    importance : Series, Circuit, scores, or mapping of str to any of these
        One number a neuron, the larger the more important, indexed by layer and index, as from
        `neurograph.ablation.importance`; of a circuit or scores the sizes of effects in hidden
        layers. Several rankings, by name, are compared on the same neurons; the random ones are
        the same for all.
    important : float or neurons
        Which neurons are important: this share of all, those of most importance (ties in the
        order of the Series); or these, as for `mask_neurons`. Of a circuit, those that the
        ranking knows.
    shares : sequence of float
        Shares of the number of important neurons, in (0, 1].
    draws : int
        How many sets of neurons of each group and share.
    how : {"zero", "mean", "resample"}
        As for `mask_neurons`.
    groups : mapping of str to groups, optional
        As for `search`, where the ranking's neurons are groups.
    predictions : callable, optional
        From the model's output to what the metric takes. By default its logits: of a model with a
        single one and labels 0 and 1 their sigmoid, ``[samples]``, else as they are.
    class_names : sequence of str, optional
        Where labels are words: these in the order of the model's outputs.
    confidence : float
        Level of the intervals.
    memory : int or str
        Bounds the samples run at once.
    seed : int
        Chooses the neurons, and the samples of ``"resample"``.
    progress : bool, optional
        Show progress; by default where a person watches.

    Returns
    -------
    MaskingCurves

    Raises
    ------
    OptionError
        Options that mean nothing, unknown neurons, a metric that is none or does not fit, or a
        single output whose values could be probabilities as well as logits.
    DataError
        No data, or no labels.
    ModelError
        As for `profile`.

    Notes
    -----
    Where fewer neurons are unimportant than are to be ablated, all of them are: ``neurons`` says
    how many.

    Examples
    --------
    >>> import torch
    >>> from torchmetrics.classification import BinaryAccuracy
    >>> from neurograph import score
    >>> model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(4))
    ...     _ = model[1].weight.copy_(torch.tensor([[3.0, 3.0, 0.0, 0.0]]))
    >>> X = torch.tensor([[-1.0, -1, -1, -1], [1, 1, 1, 1]]).repeat(10, 1) + torch.rand(20, 4) / 2
    >>> y = torch.tensor([0, 1]).repeat(10)
    >>> slopes = score(model, X, 1, scorer="gradient", contrast="zero")
    >>> found = masking_curves(model, (X, y), BinaryAccuracy(), slopes, shares=[1.0], draws=2)
    >>> found.summary()[["group", "neurons", "mean"]].iloc[:2].to_string(index=False).splitlines()
    ['      group  neurons  mean',
     '  important        2   0.5',
     'unimportant        2   1.0']
    """
    _check(shares, draws, confidence, seed)
    if data is None:
        raise DataError("data is None: pass the labelled samples that the metric is of")
    rankings = _rankings(importance)
    index = next(iter(rankings.values())).index
    neurons = [Neuron(str(layer), int(number)) for layer, number in index]
    known = read_neurons(neurons)
    chosen = {name: _important(series, important) for name, series in rankings.items()}
    masker = Masker(model, known, how, data=data, groups=groups, seed=seed, progress=progress)
    masker.check(known)
    at_once = max(1, min(_BATCH, parse_memory(memory) // masker.row_bytes))
    rows = []
    sets = list(_sets(chosen, len(neurons), shares, draws, seed))
    values: dict[tuple[bytes, int], float] = {}
    with (
        undisturbed(model),
        Progress("masking", progress, total=sum(map(len, sets)), unit="runs") as bar,
    ):
        score = Score(model, data, metric, predictions, at_once, class_names)
        baseline = score()
        for one in sets:
            donors = one.draw if how == "resample" else 0
            for share, count, flags in one:
                key = flags.tobytes(), donors
                if key not in values:
                    ablated = read_neurons([neurons[i] for i in np.flatnonzero(flags)])
                    with masker.masked(ablated, seed + donors):
                        values[key] = score()
                rows.append((one.ranking, one.order, share, count, one.draw, values[key]))
                bar.advance()
    return MaskingCurves(
        pd.DataFrame(rows, columns=[*_KEYS, "neurons", "draw", "value"]),
        baseline,
        type(metric).__name__,
        metric.higher_is_better is not False,
        how,
        {name: int(flags.sum()) for name, flags in chosen.items()},
        confidence,
    )


def _sets(
    chosen: Mapping[str, Flags], total: int, shares: Sequence[float], draws: int, seed: int
) -> Iterator[NestedSets]:
    """Draw the neurons of every group; random ones are the same for all rankings."""
    for ranking, flags in chosen.items():
        members = (np.flatnonzero(flags), np.flatnonzero(~flags), np.arange(total))
        for number, (group, some) in enumerate(zip(GROUPS, members, strict=True)):
            counts = (min(round(share * int(flags.sum())), len(some)) for share in shares)
            sizes = tuple(zip(map(float, shares), counts, strict=True))
            yield from draw_sets(
                ranking, group, some, sizes, total, draws=draws, seed=[seed, number]
            )


def _check(shares: Sequence[float], draws: int, confidence: float, seed: int) -> None:
    if not [a_share(share, "shares", one=True) for share in listed(shares, "shares")]:
        raise OptionError("shares= is empty: pass one or more numbers in (0, 1]")
    if len(set(shares)) < len(shares):
        raise OptionError(f"shares={shown(shares)}: pass each once")
    whole(draws, "draws", least=1)
    a_share(confidence, "confidence")
    whole(seed, "seed", least=0)


def _rankings(importance: Any) -> dict[str, pd.Series]:
    """Read rankings by name, each in the order of the first."""
    several = isinstance(importance, Mapping)
    one = importance if several else {"": importance}
    by_size = {n: by_effect(v) if hasattr(v, "ranking") else v for n, v in one.items()}
    read = read_rankings(by_size if several else by_size[""], "importance")
    found: dict[str, pd.Series] = {}
    for name, ranking in read.items():
        series = ranking.effects
        if tuple(series.index.names) != ("layer", "index"):
            raise OptionError(
                f"importance {name!r} is of {tuple(series.index.names)}: pass one number a neuron, "
                "indexed by layer and index"
            )
        if len(series) < 2:
            raise OptionError(f"importance {name!r} has {len(series)} neurons: compare two or more")
        first = next(iter(found.values()), series).index
        odd = first.symmetric_difference(series.index)
        if len(odd):
            raise OptionError(
                f"importance: {name!r} and {next(iter(found))!r} are not of the same neurons; "
                f"only one of them has {Neuron(*odd[0])}: drop what they do not share"
            )
        found[name] = series.reindex(first)
    return found


def _important(series: pd.Series, important: Any) -> Flags:
    """Mark which neurons of a ranking are important."""
    flags = np.zeros(len(series), dtype=bool)
    if is_number(important):
        count = min(max(round(a_share(important, "important") * len(series)), 1), len(series) - 1)
        flags[np.argsort(-series.to_numpy(), kind="stable")[:count]] = True
        return flags
    places = {key: place for place, key in enumerate(series.index)}
    for neuron in itertools.chain.from_iterable(read_neurons(important, "important").values()):
        if neuron in places:
            flags[places[neuron]] = True
        elif not isinstance(important, Circuit):
            raise OptionError(f"important has {neuron}, of which importance says nothing")
    if flags.all() or not flags.any():
        raise OptionError(
            f"important are {'all' if flags.all() else 'none'} of the neurons that importance is "
            "of: there is nothing to compare"
        )
    return flags
