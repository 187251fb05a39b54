"""Criteria of importance, against closed forms, finite differences, and what a search says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neurograph as ng
from neurograph.ablation.importance import at_random, by_effect, by_separation
from neurograph.activations.separation import separation
from neurograph.data.source import Source
from neurograph.errors import DataError, ModelError, OptionError
from tests import zoo
from tests.case import as_data
from tests.reference import Reference

NETWORKS = (
    "resnet lstm lstm_states lstm_cell encoder_time_first attention_weights shared constants swin "
    "tuple_output parametrised layer_called_input"
).split()


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)
    return nn.Sequential(*layers).double()


def linear(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 1)).double()


def by_gradient(
    model: nn.Module, data: Any, target: Any, *, inputs: bool = False, **options: Any
) -> pd.Series:
    """Gradient × activation over all of the data."""
    count = sum(batch.size for batch in Source(data, model))
    options = {"scorer": "gradient", "contrast": "zero", "reference": count, **options}
    return by_effect(ng.score(model, data, target, progress=False, **options), inputs=inputs)


def by_total_effect(
    model: nn.Module, data: Any, target: Any, *, inputs: bool = False, **options: Any
) -> pd.Series:
    """Ordinary ablation."""
    found = ng.score(model, data, target, scorer="exact", progress=False, **options)
    return by_effect(found, inputs=inputs)


def check_shape(series: pd.Series, name: str) -> None:
    assert series.name == name
    assert list(series.index.names) == ["layer", "index"]
    assert series.index.is_unique
    assert series.dtype == float
    assert (series >= 0).all()


# -- gradient × activation -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_finite_differences(name: str) -> None:
    """Gradient times activation is the slope of the target as a channel is scaled from 1."""
    network = zoo.WHOLE[name](0)
    arguments = network.inputs(7, 0)
    reference = Reference(network, arguments)
    found = by_gradient(network.model, as_data(arguments), network.target, inputs=True)
    check_shape(found, "effect")
    read = {site for site in network.sites if reference.readers(site) - {""}}
    floating = {site for site in read if reference.neurons(site)}
    assert set(found.index.unique("layer")) == floating
    step = 1e-6
    for site in floating:
        dim, values = network.sites[site].channel, reference.background[site]
        for index in range(reference.neurons(site)):
            ends = []
            for factor in (1 - step, 1 + step):
                scaled = values.clone()
                scaled.movedim(dim, 0)[index] *= factor
                ends.append(reference.target(reference.run({site: scaled}).output).mean())
            slope = float(ends[1] - ends[0]) / (2 * step)
            assert found[site, index] == pytest.approx(abs(slope), rel=1e-4, abs=1e-8), site


def test_gradients_of_a_linear_network_in_closed_form() -> None:
    model, X = linear(), torch.randn(50, 4, dtype=torch.float64)
    with torch.no_grad():
        first, second = model[0](X).mean(0), model[:2](X).mean(0)
        back = model[2].weight[0]
        wanted = torch.cat([(back @ model[1].weight) * first, back * second]).abs()
    np.testing.assert_allclose(by_gradient(model, X, 1), wanted, rtol=1e-12)
    np.testing.assert_allclose(by_gradient(model, X, 0), wanted, rtol=1e-12)


def test_gradients_equal_autograd_by_hand() -> None:
    model, X = plain(), torch.randn(9, 4, dtype=torch.float64)
    one = model[0](X).detach().requires_grad_()
    two = model[2](one.tanh())
    two.retain_grad()
    model[4](two.tanh())[:, 1].sum().backward()
    wanted = {"0": (one * one.grad).mean(0).abs(), "2": (two * two.grad).mean(0).abs()}
    for data in (X, [X[:2], X[2:]], DataLoader(TensorDataset(X, torch.zeros(9)), 4)):
        found = by_gradient(model, data, 1)
        for layer, values in wanted.items():
            np.testing.assert_allclose(found[layer], values.detach(), rtol=1e-10)


def test_gradients_past_glue_that_writes_in_place() -> None:
    networks = [zoo.mlp((3, 6, 5, 2), "relu", flag, 0, torch.float64) for flag in (True, False)]
    networks[1].model.activation = lambda x: torch.relu(x * 0.7 + 0.1)
    X = networks[0].data(8, 0)
    one, other = (by_gradient(sample.model, X, 0) for sample in networks)
    pd.testing.assert_series_equal(one, other)


def test_gradients_leave_the_model_as_it_was() -> None:
    model = plain().train()
    model[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    by_gradient(model, torch.randn(5, 4, dtype=torch.float64), 1)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False] + 5 * [True]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_gradients_of_groups_and_chosen_layers() -> None:
    sample = zoo.attention(4, 2, 0, torch.float64)
    X = sample.data(6, 0)
    found = by_gradient(sample.model, X, 0, layers=["q", "o:input", "head"])
    assert list(found.index.unique("layer")) == ["q", "o:input"]
    grouped = by_gradient(
        sample.model, X, 0, layers=["q", "o:input", "head"], groups={"o:input": [[0, 3], [1, 2]]}
    )
    assert grouped["o:input"].shape == (2,)
    signed = by_gradient(sample.model, X, lambda out, _: out[:, 0], layers=["o:input", "head"])
    pd.testing.assert_series_equal(signed["o:input"], found["o:input"])
    # Contributions of opposite signs cancel, so a group's is at most their sum.
    assert grouped["o:input", 0] <= found["o:input", 0] + found["o:input", 3] + 1e-12


def test_a_target_that_nothing_moves() -> None:
    found = by_gradient(
        plain(), torch.randn(5, 4, dtype=torch.float64), lambda out, batch: torch.ones(len(out))
    )
    assert (found == 0).all()


# -- effects ---------------------------------------------------------------------------------------


def test_total_effects_of_a_linear_network_in_closed_form() -> None:
    model, X = linear(), torch.randn(60, 4, dtype=torch.float64)
    with torch.no_grad():
        slopes = [(model[2].weight @ model[1].weight)[0], model[2].weight[0]]
        values = [model[0](X), model[:2](X)]
        wanted = [
            slope.numpy() * np.diff(np.quantile(v.numpy(), [0.1, 0.9], axis=0), axis=0)[0]
            for slope, v in zip(slopes, values, strict=True)
        ]
    found = by_total_effect(model, X, 1, contrast=(0.1, 0.9))
    check_shape(found, "effect")
    np.testing.assert_allclose(found, np.abs(np.concatenate(wanted)), rtol=1e-9)


def test_total_effects_are_those_of_a_search() -> None:
    sample = zoo.residual_mlp(5, 2, 0, torch.float64)
    X = sample.data(40, 0)
    options: dict[str, Any] = {"contrast": "mean", "reference": 9, "seed": 4}
    circuit = ng.search(sample.model, X, 1, keep="top:9", paths=0, **options)
    found = by_total_effect(sample.model, X, 1, inputs=True, **options)
    # What only the output reads is what is explained.
    assert list(found.index.unique("layer")) == ["input", "enter", "up", "down"]
    for (layer, index), value in found.items():
        if (layer, index) in circuit.graph:
            effect = circuit.graph.nodes[layer, index]["total_effect"]
            assert value == pytest.approx(abs(effect), rel=1e-12)
    profiled = ng.profile(sample.model, X)
    again = by_total_effect(sample.model, X, 1, inputs=True, profile=profiled, **options)
    pd.testing.assert_series_equal(found, again)


def test_groups_and_positions() -> None:
    sample = zoo.attention(4, 2, 0, torch.float64)
    X = sample.data(12, 0)
    grouped = by_total_effect(sample.model, X, 0, groups={"q": 2})
    assert grouped["q"].shape == (2,)
    options: dict[str, Any] = {"positions": "each", "reference": 5}
    found = by_total_effect(sample.model, X, 0, **options)
    circuit = ng.search(sample.model, X, 0, keep="top:100", paths=0, **options)
    by_channel: dict[tuple[str, int], float] = {}
    for neuron, data in circuit.graph.nodes(data=True):
        key = (neuron.layer, neuron.index)
        by_channel[key] = max(by_channel.get(key, 0.0), abs(data["total_effect"]))
    for key in found.index:
        assert found[key] >= by_channel.get(key, 0.0) - 1e-12
    assert found["up", 0] == pytest.approx(by_channel["up", 0])
    scores = by_effect(circuit)
    assert list(scores.index) == list(found.index)


def test_circuit_ranks_by_effects_through_it() -> None:
    sample = zoo.residual_mlp(5, 2, 0, torch.float64)
    circuit = ng.search(sample.model, sample.data(40, 0), 1, keep="top:2", paths=0)
    found = by_effect(circuit)
    check_shape(found, "circuit")
    assert list(found.index.unique("layer")) == ["enter", "up", "down"]
    for layer in ("enter", "up", "down"):
        scores = circuit.scores[layer]
        for index in range(circuit.layers.nodes[layer]["neurons"]):
            assert found[layer, index] == abs(scores["effect"][index])
    assert by_effect(circuit, inputs=True).index[0] == ("input", 0)


def test_circuit_without_scores_of_a_layer_or_a_neuron() -> None:
    sample = zoo.residual_mlp(5, 2, 0, torch.float64)
    circuit = ng.search(sample.model, sample.data(40, 0), 1, keep="top:2", paths=0)
    scores = {name: dict(table) for name, table in circuit.scores.items()}
    del scores["up"]
    scores["enter"]["effect"] = np.array([np.nan, -3.0, 1.0, 0.0, 2.0])
    found = by_effect(ng.Circuit(circuit.graph, circuit.layers, "t", scores=scores))
    assert found["enter"].tolist() == [0.0, 3.0, 1.0, 0.0, 2.0]
    assert found["up"].tolist() == [0.0] * 6


def test_layers_that_the_output_reads_beside_others_are_hidden() -> None:
    network = zoo.WHOLE["tuple_output"](0)
    X = as_data(network.inputs(20, 0))
    found = by_total_effect(network.model, X, lambda out, _: out[1][1][:, 0] + out[0][:, 1])
    assert list(found.index.unique("layer")) == ["one", "two"]


# -- separation and chance -------------------------------------------------------------------------


def test_separation_is_the_distance_of_auc_from_chance() -> None:
    model, X = plain(), torch.randn(60, 4, dtype=torch.float64)
    labels = (X[:, 0] + 0.5 * torch.randn(60)) > 0
    found = by_separation(separation(model, X, labels)).drop("4", level="layer")
    check_shape(found, "separation")
    assert list(found.index) == list(by_gradient(model, X, 1).index)
    with torch.no_grad():
        values = torch.cat([model[0](X), model[:3](X)], dim=1)
    one, other = values[labels], values[~labels]
    auc = (one[:, None] > other[None]).double().mean((0, 1))
    np.testing.assert_allclose(found, (auc - 0.5).abs(), atol=1e-12)


def test_separation_of_several_classes_is_the_best() -> None:
    model, X = plain(), torch.randn(90, 4, dtype=torch.float64)
    labels = (X[:, 0] > 0.5).long() + (X[:, 0] > -0.5).long()
    found = by_separation(separation(model, X, labels), inputs=True)
    values = X[:, 0]
    best = 0.0
    for label in range(3):
        one, other = values[labels == label], values[labels != label]
        best = max(best, abs(float((one[:, None] > other[None]).double().mean()) - 0.5))
    assert found["input", 0] == pytest.approx(best)
    assert found.index.is_unique


def test_separation_knows_inputs_from_layers_of_their_name() -> None:
    network = zoo.WHOLE["layer_called_input"](0)
    X = as_data(network.inputs(30, 0))
    table = separation(network.model, X, X[:, 0] > 0)
    assert set(by_separation(table).index.unique("layer")) == {"input", "head"}
    named = zoo.WHOLE["named_output"](0)
    data = as_data(named.inputs(30, 0))
    table = separation(named.model, data, data["left"][:, 0] > 0)
    assert set(by_separation(table).index.unique("layer")) == {"table", "signal", "head"}
    assert "input.left" in set(by_separation(table, inputs=True).index.unique("layer"))


def test_chance_is_reproducible() -> None:
    index = by_gradient(plain(), torch.randn(3, 4, dtype=torch.float64), 1).index
    one = at_random(index, 3)
    check_shape(one, "random")
    assert one.index is index
    assert one.between(0, 1).all()
    assert one.is_unique
    pd.testing.assert_series_equal(one, at_random(index, 3))
    assert not one.equals(at_random(index, 4))


# -- what cannot be done ---------------------------------------------------------------------------


def test_bad_requests() -> None:
    model, X = plain(), torch.randn(5, 4, dtype=torch.float64)
    for function in (by_gradient, by_total_effect):
        with pytest.raises(OptionError, match="target 7 is out of range"):
            function(model, X, 7)
        with pytest.raises(DataError, match="no samples"):
            function(model, X[:0], 1)
        with pytest.raises(OptionError, match="memory="):
            function(model, X, 1, memory="much")
        with pytest.raises(OptionError, match="no hidden layers"):
            function(nn.Linear(4, 2).double(), X, 1)
        broken = plain()
        with torch.no_grad():
            broken[0].weight[0, 0] = torch.nan
        with pytest.raises(ModelError, match=r"'0\.weight' hold NaN"):
            function(broken, X, 1)
    with pytest.raises(OptionError, match="must return one number a sample"):
        by_gradient(model, X, lambda out, _: out)
    with pytest.raises(OptionError, match="no column 'auc'"):
        by_separation(pd.DataFrame({"layer": ["a"], "index": [0]}))
    with pytest.raises(OptionError, match="no column 'layer'"):
        by_separation(None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no neurons of hidden layers"):
        by_separation(pd.DataFrame({"layer": ["input"], "index": [0], "auc": [0.7]}))
