"""Causal shift: how ablating neurons changes the distributions of all later ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from torch import nn

from neurograph.ablation.chosen_neurons import Neurons, features_of, groups_of, read_neurons
from neurograph.ablation.mask import How, Masker
from neurograph.activations.profile import wired
from neurograph.activations.two_samples import Ranks, effect_sizes, kruskal, moments
from neurograph.activations.values import Collector
from neurograph.data.labels import Label
from neurograph.data.source import Source
from neurograph.errors import DataError, OptionError
from neurograph.model.layer_choice import Choice, refuse_unsupported
from neurograph.model.layers import Neuron
from neurograph.model.observe import placed
from neurograph.utils import checks

if TYPE_CHECKING:
    from neurograph.circuit.circuit import Circuit

__all__ = ["CausalShift", "causal_shift"]

_SHOWN = 5  # neurons that are named
_MARKED = ("wasserstein_std", "mean_before", "mean_after")


@dataclass(frozen=True, eq=False, repr=False)
class CausalShift:
    """How ablating some neurons moves the activations of all that come after them.

    Attributes
    ----------
    neurons : tuple of Neuron
        Which were ablated.
    how : str
        What they were replaced by, see `mask_neurons`.
    table : DataFrame
        One row for each later neuron; columns as `causal_shift` says.
    layers : networkx.DiGraph
        The layer graph; each later layer has ``median_wasserstein`` and ``most_wasserstein``, over
        its neurons, in standard deviations, and ``most_shifted``, the index of the neuron that
        moved most. Layers with ablated neurons have ``ablated``, how many of their neurons.
    """

    neurons: tuple[Neuron, ...]
    how: str
    table: pd.DataFrame
    layers: nx.DiGraph

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.neurons[:_SHOWN]))
        more = f" and {len(self.neurons) - _SHOWN} more" if len(self.neurons) > _SHOWN else ""
        lines = [
            f"  {layer}: median {data['median_wasserstein']:.3g} standard deviations, most "
            f"{data['most_wasserstein']:.3g} ({Neuron(layer, data['most_shifted'])})"
            for layer, data in self.layers.nodes(data=True)
            if "most_shifted" in data
        ]
        head = f"Shift of later activations with {shown}{more} ablated (how={self.how!r})"
        return "\n".join([head, *lines])

    def mark(self, circuit: Circuit) -> Circuit:
        """Return the circuit with the shift on its graph, and so on its page.

        Kept neurons that come later get ``wasserstein_std``, ``mean_before`` and ``mean_after``;
        those that were ablated get ``ablated``: how.
        """
        graph = circuit.graph.copy()
        columns = [self.table[name].tolist() for name in ("layer", "index", *_MARKED)]
        for layer, index, *values in zip(*columns, strict=True):
            if (layer, index) in graph:
                graph.nodes[layer, index].update(zip(_MARKED, values, strict=True))
        for neuron in self.neurons:
            if neuron in graph:
                graph.nodes[neuron]["ablated"] = self.how
        return replace(circuit, graph=graph)


def causal_shift(
    model: nn.Module,
    data: Any,
    neurons: Neurons,
    *,
    how: How = "mean",
    labels: Any = None,
    layers: Choice | None = None,
    samples: int = 5000,
    memory: int | str = "512MB",
    seed: int = 0,
    device: torch.device | str | None = None,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool | None = None,
) -> CausalShift:
    """Ablate neurons, and compare the activations of all later neurons before and after.

    Parameters
    ----------
    model, data, device, progress
        As for `search`.
    neurons : neurons, mapping of layer to indices, or Circuit
        What is ablated together, as for `mask_neurons`.
    how : {"mean", "resample", "zero"}
        What they are replaced by, see `mask_neurons`.
    labels : bool or one class for each sample, optional
        Also tell how well the classes separate before and after: True reads the labels in the
        data.
    layers : str, type, predicate, or several of them, optional
        Which modules are layers, as for `search`.
    samples : int
        At most so many samples (of each class) are kept and compared.
    memory : int or str
        Bytes for kept activations and the work on them: the data are run as often as that needs.
    seed : int
        Chooses the kept samples, and those that replace the neurons.
    feature_names, class_names : sequence of str, optional
        As for `separation`.

    Returns
    -------
    CausalShift
        Its table has one row for each neuron of the layers that depend on the ablated ones, but for
        the ablated neurons themselves: ``layer, index, name``; ``mean_before, mean_after,
        mean_shift, std_before, std_after`` and ``wasserstein``, the Wasserstein-1 distance of the
        two distributions, in the layer's units; ``wasserstein_std``, the same in standard
        deviations before (NaN for what did not vary); ``change``, the mean of what single samples
        changed by, whichever way. With two classes ``auc_before, auc_after, cohens_d_before,
        cohens_d_after`` as in `separation`, with more ``kruskal_h_before, kruskal_h_after``. Each
        sample counts with its mean over positions.

    Raises
    ------
    OptionError
        Unusable options or neurons, or neurons on which no other depends.
    DataError, ModelError
        As for `separation`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    ...     _ = model[1].weight.copy_(torch.tensor([[1.0, 3.0]])), model[1].bias.zero_()
    >>> X = torch.linspace(0, 1, 5)[:, None].expand(5, 2)
    >>> table = causal_shift(model, X, [("0", 1)], how="zero").table
    >>> table[["layer", "index", "mean_before", "mean_after"]].to_string(index=False).splitlines()
    ['layer  index  mean_before  mean_after',
     '    1      0          2.0         0.5']
    """
    refuse_unsupported(model)
    source = Source(data, model)
    features = checks.names(feature_names, "feature_names") or source.feature_names
    chosen = read_neurons(neurons, names=features_of(model, features))
    if source.shuffled:
        raise DataError(
            "samples before and after are compared one by one, but the DataLoader shuffles them: "
            "make one with shuffle=False"
        )
    with placed(model, device):
        graph = wired(model, Source(data, model), layers)[0]
        later = _later(graph, list(chosen))
    if labels is None or labels is False:
        labels, class_names = False, None
    collect = Collector(model, data, labels, layers, samples, seed, device, class_names, progress)
    names = collect.feature_names(feature_names)
    masker = Masker(model, chosen, how, data=data, groups=groups_of(neurons), seed=seed)
    tables = []
    for parts in collect.passes(memory, later):
        before = dict(collect(parts))
        with masker.masked(chosen, seed):
            after = dict(collect(parts))
        tables += [
            _table(name, part.start, before[name], after[name], names.get(name))
            for name, part in parts.items()
        ]
    table = pd.concat(tables, ignore_index=True)
    ablated = {(n.layer, n.index) for each in chosen.values() for n in each}
    own = [pair in ablated for pair in zip(table["layer"], table["index"], strict=True)]
    table = table[~np.array(own)].reset_index(drop=True)
    every = tuple(neuron for each in chosen.values() for neuron in each)
    return CausalShift(every, how, table, _on_layers(graph, table, chosen))


def _later(graph: nx.DiGraph, layers: Iterable[str]) -> list[str]:
    """Layers with neurons that depend on some layers, in the order they run."""
    found: set[str] = set()
    for layer in layers:
        if layer not in graph:
            raise OptionError(
                f"neurons: the model has no layer {layer!r}; there are {', '.join(map(str, graph))}"
            )
        found |= nx.descendants(graph, layer)
    later = [name for name in graph if name in found and graph.nodes[name]["neurons"]]
    if not later:
        raise OptionError(
            f"no other layer depends on {', '.join(layers)}: nothing can shift, choose neurons of "
            "an earlier one"
        )
    return later


def _table(
    layer: str,
    first: int,
    before: Mapping[Label, np.ndarray],
    after: Mapping[Label, np.ndarray],
    names: Sequence[str] | None,
) -> pd.DataFrame:
    a, b = (np.concatenate([part.T for part in x.values()], axis=1) for x in (before, after))
    a, b = a.astype(np.float64), b.astype(np.float64)
    (mean, std), (mean_after, std_after) = moments(a), moments(b)
    index = range(first, first + len(a))
    columns: dict[str, Any] = {"layer": layer, "index": index}
    columns["name"] = [names[i] if names else str(Neuron(layer, i)) for i in index]
    columns |= {"mean_before": mean, "mean_after": mean_after, "mean_shift": mean_after - mean}
    columns |= {"std_before": std, "std_after": std_after}
    distance = np.abs(np.sort(a, axis=1) - np.sort(b, axis=1)).mean(1)  # as many in both
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(std > 0, distance / std, np.nan)
    columns |= {"wasserstein": distance, "wasserstein_std": scaled}
    columns["change"] = np.abs(a - b).mean(1)
    separation = {"before": _classes_apart(before), "after": _classes_apart(after)}
    for name in separation["before"]:
        columns |= {f"{name}_{when}": values[name] for when, values in separation.items()}
    return pd.DataFrame(columns)


def _classes_apart(values: Mapping[Label, np.ndarray]) -> dict[str, np.ndarray]:
    """How well classes separate; nothing if there is one alone."""
    if len(values) < 2:
        return {}
    if len(values) > 2:
        return {"kruskal_h": kruskal(list(values.values()))[0]}
    rest, own = (np.ascontiguousarray(x.T, dtype=np.float64) for x in values.values())
    return effect_sizes(Ranks.of(own, rest), moments(own), moments(rest))


def _on_layers(
    graph: nx.DiGraph, table: pd.DataFrame, ablated: Mapping[str, Sequence[Neuron]]
) -> nx.DiGraph:
    marked = graph.copy()
    for layer, rows in table.groupby("layer"):
        shift = rows["wasserstein_std"]
        marked.nodes[layer]["median_wasserstein"] = float(shift.median())
        if shift.notna().any():
            marked.nodes[layer]["most_wasserstein"] = float(shift.max())
            marked.nodes[layer]["most_shifted"] = int(rows.loc[shift.idxmax(), "index"])
    for layer, neurons in ablated.items():
        marked.nodes[layer]["ablated"] = len(neurons)
    return marked
