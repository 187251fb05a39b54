"""Neurons kept alone, against plain hooks, one layer at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.ablation.chosen_neurons import hidden_layers
from neurograph.ablation.mask import mask_neurons
from neurograph.data.source import Batch
from tests import zoo
from tests.ablation.networks import F64, SMALL
from tests.ablation.slow import drawn, in_order, options, place, row, slow
from tests.case import Case, as_data
from tests.zoo.network import Network

ZOO = ("resnet_half", "lstm_states", "lstm", "gpt2_each", "bert_last", "swin")


def check(network: Network, ablation: str, *, inputs: bool = False, seed: int = 0) -> None:
    case = Case(network, ablation, "data")
    truth = slow(case)
    layers = truth.hidden() + (list(truth.reference.inputs) if inputs else [])
    layers = [name for name in truth.names if name in layers]
    units = [(name, unit) for name in layers for unit in range(truth.reference.neurons(name))]
    names = ["layer", "index", "position"]
    ranking = drawn([place(case, *unit) for unit in units], names, seed)
    found = ng.faithfulness(
        network.model, as_data(case.data), network.target, ranking,
        sizes=(0.3, 0.7, 1), draws=1, **options(case, ablation),
    )  # fmt: skip
    assert found.components == len(units)
    effects = in_order(ranking, [place(case, *unit) for unit in units])
    for order, strength in (("signed", effects), ("absolute", np.abs(effects))):
        strongest = np.argsort(-strength)
        for share in (0.3, 0.7, 1):
            flags = np.zeros(len(units), dtype=bool)
            flags[strongest[: int(share * len(units) + 1e-6)]] = True
            for direction, on in (("keep", flags), ("knock_out", ~flags)):
                kept = {
                    name: np.array([f for f, (n, _) in zip(on, units, strict=True) if n == name])
                    for name in layers
                }
                wanted = float(truth.with_neurons(kept).mean())
                got = row(found.draws, order, direction, share)
                assert got["value"] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("ablation", ["mean", "zero", "counterfactual"])
@pytest.mark.parametrize("name", SMALL)
def test_equals_hooks(name: str, ablation: str) -> None:
    check(SMALL[name](), ablation)


@pytest.mark.parametrize("name", ZOO)
def test_equals_hooks_on_every_kind_of_architecture(name: str) -> None:
    ablation = "counterfactual" if name == "bert_last" else "zero"
    check(zoo.NETWORKS[name](0), ablation)


@pytest.mark.parametrize("name", sorted(zoo.WHOLE))
def test_equals_hooks_that_silence_the_rest(name: str) -> None:
    """Several circuits in one batch, against one run of the model for each."""
    network = zoo.WHOLE[name](0)
    arguments = network.inputs(4, 1)
    data = as_data(arguments)
    graph = ng.layer_graph(network.model, data)
    hidden = hidden_layers(graph)
    places = [(layer, i, None) for layer, count in hidden.items() for i in range(count)]
    ranking = drawn(places, ["layer", "index", "position"], 0)
    found = ng.faithfulness(
        network.model, data, network.target, ranking,
        sizes=(0.3, 0.7), ablations=["zero"], draws=1, reference=data, progress=False,
    )  # fmt: skip
    strongest = ranking.sort_values(ascending=False, kind="stable").index
    for share in (0.3, 0.7):
        cut = [(layer, int(i)) for layer, i, _ in strongest[int(share * len(places) + 1e-6) :]]
        with torch.no_grad(), mask_neurons(network.model, cut, data=data):
            output = network.model(**arguments)
        wanted = float(network.target(output, Batch((), arguments)).mean())
        got = row(found.draws, "signed", "keep", share)
        assert got["value"] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_infinite_values_that_are_ablated_leave_no_trace() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(1 / self.one(x)).clamp(-9, 9))

    torch.manual_seed(0)
    model, X = Model().double(), torch.rand(3, 2, dtype=F64) + 1
    index = pd.MultiIndex.from_tuples([("one", 0), ("one", 1), ("two", 0), ("two", 1)])
    ranking = pd.Series([2.0, 1.0, 0.0, 3.0], index.set_names(["layer", "index"]))
    found = ng.faithfulness(
        model, X, 1, ranking, sizes=(0.5, 1), ablations=["zero"], draws=2, reference=X
    )
    with torch.no_grad():
        h = model.one(X)
        h[:, 1] = 0  # infinite behind the glue, and so is neuron 0 of the next layer, or NaN
        h = model.two(1 / h)
        h[:, 0] = 0
        wanted = model.head(h.clamp(-9, 9)).mean().item()
    got = row(found.draws, "signed", "keep", 0.5)
    assert got["value"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_inputs_are_ablated_where_they_are_ranked(name: str) -> None:
    check(SMALL[name](), "zero", inputs=True)


@pytest.mark.parametrize("name", ["residual mlp", "cnn"])
def test_other_samples_stand_in(name: str) -> None:
    check(SMALL[name](), "resample")


def test_everything_is_the_model_and_nothing_is_all_ablated() -> None:
    network = SMALL["cnn"]()
    case = Case(network, "mean", "data")
    truth = slow(case)
    layer = truth.hidden()[0]
    ranking = drawn([(layer, 0), (layer, 1)], ["layer", "index"], 0)
    found = ng.faithfulness(
        network.model, as_data(case.data), network.target, ranking, **options(case, "mean")
    )
    nothing = {n: np.zeros(truth.reference.neurons(n), dtype=bool) for n in truth.hidden()}
    (ends,) = found.ends.itertuples()
    reference = truth.reference
    assert ends.full == pytest.approx(float(reference.target(reference.run({}).output).mean()))
    assert ends.empty == pytest.approx(float(truth.with_neurons(nothing).mean()), rel=1e-9)
    at_one = found.draws.query("share == 1")
    np.testing.assert_allclose(at_one.query("direction == 'keep'")["faithfulness"], 1, rtol=1e-9)
    np.testing.assert_allclose(at_one.query("direction != 'keep'")["faithfulness"], 0, atol=1e-9)
    np.testing.assert_allclose(at_one.query("direction == 'keep'")["error"], 0, atol=1e-9)


def test_resampled_neurons_come_from_one_other_sample() -> None:
    """Of two reference samples, the other one is known."""
    sample = zoo.mlp((3, 5, 4, 2), "tanh", False, 0, F64)
    X, layers = sample.data(2, 1), [("layers.0", 5), ("layers.1", 4)]
    ranking = drawn([(n, i) for n, k in layers for i in range(k)], ["layer", "index"], 3)

    def target(output: Tensor, batch: object) -> Tensor:
        return output[:, 0] * batch.args[0][:, 0]

    found = ng.faithfulness(
        sample.model, X, target, ranking, sizes=(0.4,), ablations=["resample"], draws=0
    )
    kept = set(ranking.sort_values(ascending=False).index[: int(0.4 * 9)])
    h, own = X, {"layers.0": None, "layers.1": None}
    for i, (name, width) in enumerate(layers):
        own[name] = sample.model.layers[i](X if i == 0 else own["layers.0"].tanh())
        computed = sample.model.layers[i](h)
        on = torch.tensor([(name, j) in kept for j in range(width)])
        h = torch.where(on, computed, own[name].flip(0)).tanh()
    wanted = (sample.model.layers[2](h)[:, 0] * X[:, 0]).mean().item()
    got = row(found.draws, "signed", "keep", 0.4)
    assert got["value"] == pytest.approx(wanted, rel=1e-9)


class Meets(nn.Module):
    """Glue that mixes the samples of a batch: circuits cannot share one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(h - h.mean(0))


def test_circuits_do_not_share_a_batch_that_mixes_samples() -> None:
    torch.manual_seed(0)
    model, X = Meets().double(), torch.randn(6, 3, dtype=F64)
    ranking = drawn([("a", i) for i in range(4)], ["layer", "index"], 0)

    def target(output: Tensor, batch: object) -> Tensor:
        return output[:, 0] * batch.args[0][:, 0]

    found = ng.faithfulness(model, X, target, ranking, sizes=(0.5,), ablations=["zero"], draws=3)
    best = ranking.nlargest(2).index.get_level_values("index").tolist()
    with torch.no_grad():
        h = model.a(X)
        h[:, [i for i in range(4) if i not in best]] = 0
        h = h.tanh()
        wanted = (model.b(h - h.mean(0))[:, 0] * X[:, 0]).mean().item()
    assert row(found.draws, "signed", "keep", 0.5)["value"] == pytest.approx(wanted, rel=1e-9)
