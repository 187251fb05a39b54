"""How important neurons are, by different criteria: what they do, what they tell, or by chance.

Every criterion is a Series of one number a neuron, the larger the more important, indexed by
``layer`` and ``index``. By default it is of the hidden layers: those between the inputs and what
only the output reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from neurograph.ablation.chosen_neurons import hidden_layers
from neurograph.activations.profile import check_weights
from neurograph.circuit.circuit import Circuit
from neurograph.data.source import Batch, Source
from neurograph.effects.exact import total_effects
from neurograph.errors import OptionError
from neurograph.model.hooks import find_place, passing
from neurograph.model.layer_choice import INPUT_SIDE, Choice, refuse_unsupported
from neurograph.model.layers import Layer
from neurograph.model.neurons import Groups, find_groups
from neurograph.model.observe import call_model, undisturbed, without_parameter_gradients
from neurograph.model.target import Target, TargetFunction, check_rows, resolve_target
from neurograph.preparation.base_study import BaseStudy
from neurograph.replay.wiring import wire
from neurograph.utils.checks import shown, whole
from neurograph.utils.memory import parse_memory
from neurograph.utils.progress import Progress

__all__ = ["at_random", "by_circuit", "by_gradient", "by_separation", "by_total_effect"]

_BATCH = 256


def by_circuit(circuit: Circuit, *, inputs: bool = False) -> pd.Series:
    """Importance by the effects that a search measured, of all neurons, kept or not.

    A neuron's absolute effect through the circuit; 0 where that does not reach it. Where each
    position has neurons of its own, the largest of a channel's.

    Parameters
    ----------
    circuit : Circuit
        With `groups`, an index is that of a group.
    inputs : bool
        Include the model's inputs.

    Returns
    -------
    Series
        Named ``circuit``, in units of the target.
    """
    if not isinstance(circuit, Circuit):
        raise OptionError(f"circuit={shown(circuit)} is no Circuit: pass what search() returned")
    each = circuit.provenance.get("options", {}).get("positions") == "each"
    found: dict[str, np.ndarray] = {}
    for layer, neurons in hidden_layers(circuit.layers, inputs=inputs).items():
        if layer in circuit.scores:
            found[layer] = _over_positions(np.nan_to_num(np.abs(circuit.effects_of(layer))))
        elif not each:  # of a layer without scores only the number of neurons is known
            found[layer] = np.zeros(neurons)
    return _series("circuit", found)


def by_total_effect(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None = None,
    *,
    inputs: bool = False,
    **options: Any,
) -> pd.Series:
    """Importance by the absolute effect on the target through everything: ordinary ablation.

    Parameters
    ----------
    model, data, target
        As for `search`.
    inputs : bool
        Include the model's inputs.
    **options
        Of `search`: ``contrast``, ``background``, ``reference``, ``layers``, ``groups``,
        ``profile``, ``memory``, ``seed``, ….

    Returns
    -------
    Series
        Named ``total effect``, in units of the target.

    Raises
    ------
    ModelError, DataError, OptionError
        As for `search`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    ...     _ = model[1].weight.copy_(torch.tensor([[3.0, -1.0]]))
    >>> X = torch.linspace(0, 1, 101)[:, None].expand(101, 2)
    >>> by_total_effect(model, X, target=1).round(3).to_dict()
    {('0', 0): 2.7, ('0', 1): 0.9}
    """
    study = BaseStudy(model, data, target, **options).at(routed=False)
    found: dict[str, np.ndarray] = {}
    with study.open() as experiment:
        layers = hidden_layers(experiment.graph, inputs=inputs)
        with Progress(
            "measuring", study.options["progress"], total=len(layers), unit="layers"
        ) as bar:
            for layer in layers:
                units = experiment.units(layer)
                effects = total_effects(experiment, layer, range(len(units))).effect
                sizes = effects.abs().cpu().numpy()
                found[layer] = _over_positions(sizes.reshape(-1, units.positions or 1))
                bar.advance()
    return _series("total effect", found)


def by_gradient(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None = None,
    *,
    layers: Choice | None = None,
    groups: Mapping[str, Groups] | None = None,
    inputs: bool = False,
    memory: int | str = "512MB",
    progress: bool | None = None,
) -> pd.Series:
    """Importance by gradient times activation: what zeroing would do, to first order.

    For each neuron the gradient of the target times its activation, summed over its positions,
    averaged over all samples; of that the absolute value.

    Parameters
    ----------
    model, data, target, layers, groups
        As for `search`. The model is run in eval mode.
    inputs : bool
        Include the model's inputs.
    memory : int or str
        Bounds the samples run at once, where the data do not come in batches.
    progress : bool, optional
        Show progress; by default where a person watches.

    Returns
    -------
    Series
        Named ``gradient``, in units of the target.

    Raises
    ------
    ModelError, DataError, OptionError
        As for `search`.

    Notes
    -----
    Shrikumar et al. 2016 (arXiv:1605.01713) multiply gradients by inputs; of hidden layers this is
    layer gradient × activation. Effects of opposite signs in different samples cancel, as they do
    in a mean effect.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    ...     _ = model[1].weight.copy_(torch.tensor([[3.0, -1.0]]))
    >>> by_gradient(model, torch.tensor([[1.0, 4.0], [2.0, 2.0]]), target=1).to_dict()
    {('0', 0): 4.5, ('0', 1): 3.0}
    """
    refuse_unsupported(model)
    check_weights(model)
    room = parse_memory(memory)
    wiring, recording = wire(model, data, layers)
    graph = wiring.layers
    searched = {name: recording.layers[name] for name in graph}
    hidden = hidden_layers(graph, inputs=inputs)
    chosen = {name: searched[name] for name in hidden if not searched[name].routed}
    by_group = find_groups({} if groups is None else groups, searched, model)
    # A backward pass needs about all that was computed, and as much again.
    rows = max(1, min(_BATCH, room // (2 * recording.row_bytes)))
    sums = _gradient_sums(model, Source(data, model, batch_size=rows), target, chosen, progress)
    for name in by_group.keys() & sums.keys():
        channels = by_group[name][1]
        sums[name] = torch.stack([sums[name][sorted(set(group))].sum() for group in channels])
    return _series("gradient", {name: sums[name].abs().cpu().numpy() for name in chosen})


def _gradient_sums(
    model: nn.Module,
    source: Source,
    target: int | str | TargetFunction | None,
    layers: Mapping[str, Layer],
    progress: bool | None,
) -> dict[str, Tensor]:
    """Mean over the samples of gradient × activation of each channel of layers, ``[channels]``."""
    places = [find_place(name, model) for name in layers]
    kept: dict[str, Tensor] = {}
    resolved: Target | None = None

    def keep(name: str, tensor: Tensor) -> Tensor:
        # A copy, as a layer may compute one of its outputs from another. Above the first of them
        # nothing needs gradients, so nothing is cut off.
        kept[name] = tensor.clone() if tensor.requires_grad else tensor.detach().requires_grad_()
        return kept[name].clone()  # in-place glue may not write to a leaf, nor to what is kept

    def differentiated(batch: Batch) -> list[Tensor]:
        nonlocal resolved
        kept.clear()
        with (
            torch.enable_grad(),
            without_parameter_gradients(model),
            passing(model, places, keep),
        ):
            output = call_model(model, batch)
            if resolved is None:
                resolved = resolve_target(target, output, None, size=batch.size)
                check_rows(resolved, output, batch)
            return _gradients(resolved(output, lambda: batch).sum(), list(kept.values()))

    sums: dict[str, Tensor] = {}
    samples = 0
    with undisturbed(model), Progress("differentiating", progress, unit="samples") as bar:
        for batch in source:
            slopes = differentiated(batch)
            for (name, values), slope in zip(kept.items(), slopes, strict=True):
                product = (values.detach() * slope).double()
                rows = layers[name].layout.fitted(product, batch.size).rows(product)
                channels = _channel_sums(layers[name], rows)
                sums[name] = sums[name] + channels if name in sums else channels
            samples += batch.size
            bar.advance(batch.size)
    missed = [name for name in layers if name not in sums]
    if missed:
        raise OptionError(f"layer {missed[0]!r} was not called on the rest of the data")
    return {name: total / samples for name, total in sums.items()}


def _gradients(total: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Gradients of a number by tensors; 0 by those that it does not depend on."""
    if not total.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    return list(torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True))


def _channel_sums(layer: Layer, rows: Tensor) -> Tensor:
    behind = len(layer.shape) - layer.channel_dim
    return rows.movedim(-1 - behind, 0).flatten(1).sum(1)


def by_separation(table: pd.DataFrame, *, inputs: bool = False) -> pd.Series:
    """Importance by how well a neuron tells classes apart: the distance of its AUC from chance.

    Parameters
    ----------
    table : DataFrame
        From `separation`; of a neuron with several rows, one a class, the largest counts.
    inputs : bool
        Include the model's inputs.

    Returns
    -------
    Series
        Named ``separation``: how far the AUC is from ½, from 0 to ½. It is of all layers of the
        table, which does not say whether only the output reads one: leave that out by
        ``.drop("fc", level="layer")``.

    Raises
    ------
    OptionError
        It is no such table, or holds no neurons.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": "fc", "index": [0, 1, 1], "auc": [0.5, 0.6, 0.1]})
    >>> by_separation(table).to_dict()
    {('fc', 0): 0.0, ('fc', 1): 0.4}
    """
    columns = ("layer", "index", "auc")
    missing = [c for c in columns if not isinstance(table, pd.DataFrame) or c not in table]
    if missing:
        raise OptionError(f"table has no column {missing[0]!r}: pass what separation() returned")
    if not inputs:
        table = table[~_of_inputs(table["layer"])]
    values = (table["auc"] - 0.5).abs().groupby([table["layer"], table["index"]], sort=False).max()
    if values.empty:
        raise OptionError("table holds no neurons of hidden layers")
    return values.rename("separation")


def _of_inputs(layers: pd.Series) -> pd.Series:
    """Which names are those of the model's inputs; a module may have taken theirs."""
    first = f"model{INPUT_SIDE}" if layers.str.startswith(f"model{INPUT_SIDE}").any() else "input"
    return (layers == first) | layers.str.startswith(f"{first}.")


def at_random(index: pd.MultiIndex, seed: int = 0) -> pd.Series:
    """Importance by chance: what every other criterion is to be compared with.

    Parameters
    ----------
    index : MultiIndex
        Of another criterion.
    seed : int

    Returns
    -------
    Series
        Named ``random``, uniform in [0, 1).
    """
    if not isinstance(index, pd.Index):
        raise OptionError(f"index={shown(index)}: pass the index of another criterion")
    generator = np.random.default_rng(whole(seed, "seed", least=0))
    return pd.Series(generator.random(len(index)), index, name="random")


def _over_positions(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 1 else values.max(axis=1)


def _series(name: str, by_layer: Mapping[str, np.ndarray]) -> pd.Series:
    if not by_layer:
        raise OptionError(
            "the model has no hidden layers: every layer is an input, or only the output reads it"
        )
    pairs = [(layer, i) for layer, values in by_layer.items() for i in range(len(values))]
    index = pd.MultiIndex.from_tuples(pairs, names=["layer", "index"])
    return pd.Series(np.concatenate(list(by_layer.values())).astype(float), index, name=name)
