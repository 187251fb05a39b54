"""Class separation: significance tests, effect sizes and divergences of every neuron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from torch import nn

from neurograph.activations.two_samples import SHAPIRO_MOST, compare_two, kruskal
from neurograph.activations.values import Collector
from neurograph.data.labels import Label
from neurograph.model.layer_choice import Choice
from neurograph.model.layers import Neuron
from neurograph.utils.checks import a_share

__all__ = ["separation"]

_FEWEST = 3  # samples a class: Shapiro and Wilk's test needs as many
_AT_ONCE = 2**20  # values compared at once: what caches hold


def separation(
    model: nn.Module,
    data: Any,
    labels: Any = None,
    *,
    layers: Choice | None = None,
    alpha: float = 0.05,
    samples: int = 5000,
    memory: int | str = "512MB",
    seed: int = 0,
    device: torch.device | str | None = None,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Test at every neuron whether its activations tell the classes apart.

    With two classes each neuron has one row, the later class against the earlier; with more, one
    for each class against all others. A neuron is a channel; where it has positions, each sample
    counts with the mean over them.

    Parameters
    ----------
    model : Module
        Any eager model; it is run in eval mode and left as it was.
    data : Tensor, ndarray, DataFrame, (X, y) pair, dict, Dataset, DataLoader or list of batches
        As for `search`.
    labels : one class for each sample, optional
        Integers or strings in the order of the data; by default the labels in the data.
    layers : str, type, predicate, or several of them, optional
        Which modules are layers, as for `search`; the model's inputs are tested too.
    alpha : float
        Level of the choice of test, of shapes, and of ``separates``.
    samples : int
        At most so many of each class, drawn at random, are kept and tested.
    memory : int or str
        Bytes for kept activations and the work on them: the data are run as often as that needs.
    seed : int
        Chooses the kept samples.
    device, progress
        As for `search`.
    feature_names, class_names : sequence of str, optional
        Names of the input's features, and of the classes in ascending order.

    Returns
    -------
    DataFrame
        ``layer, index, name``; ``class`` and ``rest``, what is compared with what; ``n, n_rest``,
        samples tested; ``mean, mean_rest, std, std_rest`` in the layer's units;
        ``shapiro_p, shapiro_p_rest`` and ``normal``, whether both are at least alpha;
        ``test`` (``welch`` where both look normal, else ``mann-whitney``; ``constant``, with
        p = 1, where the neuron never varies), ``statistic``, ``p``, ``q`` (Benjamini & Hochberg
        1995, over all rows), ``separates`` (q below alpha); ``cohens_d`` (difference of means over
        the pooled standard deviation; infinite where two constants differ), ``auc`` (U / n₁n₂:
        how likely a sample of the class lies above one of the rest); ``kl, kl_rest, js`` in nats,
        from histograms (see `divergences`); ``shape_p``, Kolmogorov and Smirnov's test of what is
        left once mean and spread are taken out, and, where it is at least alpha,
        ``mean_shift`` and ``variance_ratio``, else NaN; with several classes also
        ``kruskal_h, kruskal_p, kruskal_q``, the same in all rows of a neuron.

        Rows come in the order of the layers. ``attrs["counts"]`` says how many samples of each
        class the data hold, ``attrs["shapiro_samples"]`` of how many at most Shapiro and Wilk's
        test was made (5,000).

    Raises
    ------
    DataError
        No labels, one class only, fewer than 3 samples of a class, labels of another length than
        the data, or NaN in either.
    ModelError
        The model cannot be run, or has NaN in weights or activations.
    OptionError
        Unusable options.

    Notes
    -----
    The choice of the test by another test makes p-values slightly too small at the margin, and
    shape_p slightly too large, because mean and spread are taken from the same samples.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    >>> X = torch.linspace(0, 1, 60)[:, None] * torch.tensor([[1.0, 0.0]])
    >>> table = separation(model, X, X[:, 0] > 0.5, layers="0")
    >>> table[["layer", "index", "test", "auc", "separates"]].to_string(index=False).splitlines()
    ['layer  index         test  auc  separates',
     'input      0        welch  1.0       True',
     'input      1     constant  0.5      False',
     '    0      0        welch  1.0       True',
     '    0      1     constant  0.5      False']
    """
    a_share(alpha, "alpha")
    asked = True if labels is None else labels
    collect = Collector(model, data, asked, layers, samples, seed, device, class_names, progress)
    collect.batches.require(classes=2, samples=_FEWEST)
    names = collect.feature_names(feature_names)
    tables = [
        _table(name, parts[name].start + start, columns, names.get(name))
        for parts in collect.passes(memory)
        for name, values in collect(parts)
        for start, columns in _compared(values, collect.counts, alpha)
    ]
    table = pd.concat(tables, ignore_index=True)
    _correct(table, alpha)
    table.attrs = {"counts": collect.counts, "shapiro_samples": SHAPIRO_MOST}
    return table


def _compared(
    values: Mapping[Label, np.ndarray], counts: Mapping[Label, int], alpha: float
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Compare the classes at some neurons at a time.

    Yields which is the first of them, and the columns of each comparison.
    """
    samples, neurons = sum(map(len, values.values())), next(iter(values.values())).shape[1]
    step = max(1, _AT_ONCE // samples)
    for start in range(0, neurons, step):
        some = {label: each[:, start : start + step] for label, each in values.items()}
        yield start, list(_comparisons(some, counts, alpha))


def _comparisons(
    values: Mapping[Label, np.ndarray], counts: Mapping[Label, int], alpha: float
) -> Iterator[dict[str, Any]]:
    classes = list(values)
    if len(classes) == 2:
        first, second = classes
        yield _one(second, first, values[second], values[first], alpha)
        return
    h, p = kruskal(list(values.values()))
    for label in classes:
        rest = _rest([c for c in classes if c != label], values, counts)
        columns = _one(label, "rest", values[label], rest, alpha)
        yield columns | {"kruskal_h": h, "kruskal_p": p}


def _one(label: Label, rest: Label, a: np.ndarray, b: np.ndarray, alpha: float) -> dict[str, Any]:
    sizes = {"class": label, "rest": rest, "n": len(a), "n_rest": len(b)}
    return sizes | compare_two(a, b, alpha)


def _rest(
    classes: Sequence[Label], values: Mapping[Label, np.ndarray], counts: Mapping[Label, int]
) -> np.ndarray:
    """Samples of several classes in their true proportions: all were kept, or equal shares are."""
    share = min(len(values[label]) / counts[label] for label in classes)
    return np.concatenate([values[c][: max(1, round(share * counts[c]))] for c in classes])


def _table(
    layer: str, first: int, comparisons: list[dict[str, Any]], names: Sequence[str] | None
) -> pd.DataFrame:
    parts = []
    for columns in comparisons:
        index = range(first, first + len(columns["p"]))
        called = [names[i] if names else str(Neuron(layer, i)) for i in index]
        parts.append(pd.DataFrame({"layer": layer, "index": index, "name": called, **columns}))
    return pd.concat(parts).sort_values("index", kind="stable")  # classes side by side


def _correct(table: pd.DataFrame, alpha: float) -> None:
    """Add p-values corrected for the number of tests (false discovery rate)."""
    q = scipy.stats.false_discovery_control(table["p"])
    place = list(table).index("p") + 1
    table.insert(place, "q", q)
    table.insert(place + 1, "separates", q < alpha)
    if "kruskal_p" in table:
        once = ~table.duplicated(["layer", "index"])
        corrected = scipy.stats.false_discovery_control(table.loc[once, "kruskal_p"])
        table["kruskal_q"] = np.repeat(corrected, table["class"].nunique())
