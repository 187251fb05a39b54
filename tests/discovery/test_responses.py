"""Response curves against closed forms, and against the hooks-only reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from tests import zoo
from tests.case import SAMPLES, Case, as_data

SWEEP = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


def linear(weights: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    """A layer with weights written by hand, ``[outputs, inputs]``."""
    table = torch.tensor(weights, dtype=torch.float64)
    layer = nn.Linear(table.shape[1], table.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(table)
        layer.bias.copy_(torch.tensor(bias or [0.0] * len(table), dtype=torch.float64))
    return layer


def absolute() -> nn.Module:
    """|x|, of two ReLUs."""
    return nn.Sequential(linear([[1], [-1]]), nn.ReLU(), linear([[1, 1]]))


class Product(nn.Module):
    """The first feature times the second."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = linear([[1, 0]]), linear([[0, 1]])

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) * self.right(x)


def normal(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def curves_of(model: nn.Module, data: Any, target: Any = 1, **options: Any) -> ng.ResponseCurves:
    return ng.response_curves(model, data, target, progress=False, **options)


def curve(curves: ng.ResponseCurves, layer: str, index: int) -> pd.DataFrame:
    table = curves.table
    return table[(table["layer"] == layer) & (table["index"] == index)]


def of_neuron(curves: ng.ResponseCurves, index: int) -> pd.Series:
    summary = curves.summary()
    return summary[summary["index"] == index].iloc[0]


def test_a_linear_model_has_straight_curves() -> None:
    X = normal(200, 3)
    curves = curves_of(nn.Sequential(linear([[2, -1, 0]], [5])), X, reference=8)
    few = X[curves.provenance["data"]["reference"]].numpy()
    table = np.quantile(X.numpy(), SWEEP, axis=0)
    for index, weight in enumerate((2.0, -1.0, 0.0)):
        found = curve(curves, "input", index)
        np.testing.assert_allclose(found["level"], SWEEP)
        np.testing.assert_allclose(found["value"], table[:, index], rtol=1e-12)
        rest = (few @ [2, -1, 0] + 5 - weight * few[:, index]).mean()
        np.testing.assert_allclose(found["target"], weight * table[:, index] + rest, rtol=1e-12)
        told = of_neuron(curves, index)
        spread = table[-1, index] - table[0, index]
        assert told["effect"] == pytest.approx(weight * spread)
        assert told["variation"] == pytest.approx(abs(weight) * spread)
        assert told["stderr"] == pytest.approx(0, abs=1e-12)
        assert (told["low"], told["high"]) == (found["target"].min(), found["target"].max())
    shapes = curves.summary().set_index("index")["shape"]
    assert shapes.to_dict() == {0: "rising", 1: "falling", 2: "flat"}
    assert of_neuron(curves, 2)["variation"] == 0
    assert curves.summary()["variation"].is_monotonic_decreasing


def test_an_absolute_value_is_bent() -> None:
    X = torch.linspace(-1, 3, 401, dtype=torch.float64)[:, None]
    curves = curves_of(absolute(), X, reference=5)
    values = np.quantile(X.numpy(), SWEEP)
    np.testing.assert_allclose(curves.table["target"], np.abs(values), atol=1e-12)
    (told,) = curves.summary("bent").to_dict("records")
    assert told["effect"] == pytest.approx(2)
    # The sweep has a level at 0, where the curve has its least value.
    assert (told["low"], told["high"]) == pytest.approx((0, 3), abs=1e-12)
    assert told["bend"] == pytest.approx(1)


def test_hidden_neurons_move_alone() -> None:
    X = torch.linspace(-1, 3, 401, dtype=torch.float64)[:, None]
    model = absolute()
    curves = curves_of(model, X, neurons="0", reference=X)
    before = np.quantile(X.numpy(), SWEEP)
    other = X.clamp(max=0).abs().mean().item()  # what the second ReLU passes meanwhile
    np.testing.assert_allclose(curve(curves, "0", 0)["target"], np.maximum(before, 0) + other)
    assert of_neuron(curves, 0)["shape"] == "rising"
    assert of_neuron(curves, 1)["bend"] == 0


def test_a_product_scales_the_curve_by_the_other_factor() -> None:
    X = normal(100, 2) + torch.tensor([0.0, 3.0])
    curves = curves_of(Product(), X, reference=10)
    few = X[curves.provenance["data"]["reference"]].numpy()
    table = np.quantile(X.numpy(), SWEEP, axis=0)
    np.testing.assert_allclose(
        curve(curves, "input", 0)["target"], table[:, 0] * few[:, 1].mean(), rtol=1e-12
    )
    told = of_neuron(curves, 0)
    spread = table[-1, 0] - table[0, 0]
    assert told["stderr"] == pytest.approx(spread * few[:, 1].std(ddof=1) / 10**0.5)


@pytest.mark.parametrize("name", ["resnet", "bert_last", "gpt2_each", "llama_heads"])
def test_curves_equal_the_hooks_only_reference(name: str) -> None:
    network = zoo.NETWORKS[name](0)
    case = Case(network, "sweep", "data")
    moving = [layer for layer in case.study.layers if case.neurons(layer)]
    layers = moving[1:3] + moving[-2:-1]
    curves = curves_of(
        network.model,
        as_data(case.data),
        network.target,
        neurons=layers,
        reference=SAMPLES,
        **network.options,
    )
    reference = case.reference
    assert set(curves.table["layer"]) == set(layers)
    for layer in layers:
        found = curves.table[curves.table["layer"] == layer]
        count = reference.neurons(layer)
        assert len(found) == count * len(SWEEP)
        # As the reference numbers neurons: channel by channel, position by position.
        got = found[["target", "value"]].to_numpy().reshape(count, len(SWEEP), 2)
        for index in {0, 1, count // 2, count - 1} & set(range(count)):
            values = reference.values(layer, index)
            targets = [reference.total(layer, index, v).mean().item() for v in values]
            np.testing.assert_allclose(got[index, :, 0], targets, rtol=1e-9, atol=1e-9)
            _, where = reference.unit(layer, index)
            moved = [v if where is None else v.expand_as(where)[where] for v in values]
            np.testing.assert_allclose(
                got[index, :, 1], [v.mean().item() for v in moved], rtol=1e-9, atol=1e-12
            )


def test_positions_and_tokens_are_named() -> None:
    network = zoo.NETWORKS["gpt2_each"](0)
    data = as_data(network.inputs(12, 0))
    layer = "transformer.h.0.attn.c_attn"
    curves = curves_of(
        network.model,
        data,
        network.target,
        neurons=[(layer, 2, 1)],
        positions="each",
        reference=1,
        tokenizer=lambda token: f"<{token}>",
    )
    (row,) = curves.summary().to_dict("records")
    assert (row["index"], row["position"]) == (2, 1)
    token = next(iter(network.inputs(12, 0).values()))[curves.provenance["data"]["reference"], 1]
    assert row["name"] == f"{layer}[2] @1 '<{token.item()}>'"
    assert list(curves.table)[:4] == ["layer", "index", "position", "name"]
    assert np.isnan(row["stderr"])


def test_defaults_are_the_inputs_or_what_layers_chooses() -> None:
    sample = zoo.mlp((3, 4, 5, 2), "tanh", False, 0, torch.float64)
    X = sample.data(30, 0)
    assert set(curves_of(sample.model, X).table["layer"]) == {"input"}
    chosen = curves_of(sample.model, X, layers="layers.1")
    assert set(chosen.table["layer"]) == {"layers.1"}
    assert len(chosen.table) == 5 * len(SWEEP)
    whole = curves_of(sample.model, X, neurons="layers.1")
    np.testing.assert_allclose(chosen.table["target"], whole.table["target"], rtol=1e-12)


def test_neurons_are_layers_neurons_or_a_circuit() -> None:
    sample = zoo.mlp((3, 4, 2), "tanh", False, 0, torch.float64)
    X = sample.data(30, 0)

    def chosen(neurons: Any) -> list[tuple[str, int]]:
        table = curves_of(sample.model, X, neurons=neurons).table
        return list(dict.fromkeys(zip(table["layer"], table["index"], strict=True)))

    assert chosen(("layers.0", 3)) == [("layers.0", 3)]
    assert chosen([("layers.0", 3), ng.Neuron("input", 1), ("layers.0", 3)]) == [
        ("input", 1),
        ("layers.0", 3),
    ]
    assert chosen(["layers.1", ("input", 2)]) == [("input", 2), ("layers.1", 0), ("layers.1", 1)]
    circuit = ng.search(sample.model, X, 1, keep="top:1", progress=False)
    assert set(chosen(circuit.graph)) == set(circuit.graph)


def test_names_are_those_of_a_circuit() -> None:
    names = {"feature_names": ["age", "dose", "weight"], "class_names": ["well", "ill"]}
    sample = zoo.mlp((3, 4, 2), "tanh", False, 0, torch.float64)
    X = sample.data(30, 0)
    curves = curves_of(sample.model, X, neurons=["input", "layers.1"], **names)
    told = list(dict.fromkeys(curves.table["name"]))
    assert told == ["age", "dose", "weight", "layers.1[0]", "ill"]
    assert curves.target == "ill"
    assert repr(curves).startswith("Response curves of 'ill' at 7 levels, neurons: ")


def test_what_rounding_makes_is_no_shape() -> None:
    """In float32, adding and taking away what is far larger leaves steps of rounding alone."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(1, 1)
            nn.init.ones_(self.first.weight)

        def forward(self, x: Tensor) -> Tensor:
            wave = torch.sin(1000 * self.first(x)) * torch.finfo(x.dtype).eps
            return 1 + wave

    X = torch.linspace(-1, 1, 201)[:, None]
    (row,) = curves_of(Noisy(), X).summary().to_dict("records")
    assert row["low"] < row["high"]
    assert (row["shape"], row["variation"], row["bend"], row["effect"]) == ("flat", 0, 0, 0)


def test_the_same_seed_gives_the_same_curves() -> None:
    sample = zoo.branched_cnn(3, 1, 0, torch.float32)
    X = sample.data(50, 0)
    first, again = (curves_of(sample.model, X, seed=3, reference=6) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, again.table, check_exact=True)
    pd.testing.assert_frame_equal(first.summary(), again.summary(), check_exact=True)
    assert first.provenance == again.provenance
    other = curves_of(sample.model, X, seed=4, reference=6)
    assert other.provenance["data"]["reference"] != first.provenance["data"]["reference"]


def test_a_small_memory_budget_changes_nothing() -> None:
    sample = zoo.mlp((3, 6, 1), "tanh", False, 0, torch.float64)
    X = sample.data(40, 0)
    whole, parts = (
        curves_of(sample.model, X, neurons="layers.0", memory=memory) for memory in ("1GB", "10KB")
    )
    np.testing.assert_allclose(whole.table["target"], parts.table["target"], rtol=1e-12)


def test_a_given_profile_and_levels() -> None:
    sample = zoo.mlp((3, 4, 1), "relu", False, 0, torch.float64)
    X = sample.data(40, 0)
    levels = (0.1, 0.5, 0.9)
    curves = curves_of(
        sample.model, X, levels=levels, profile=ng.profile(sample.model, X, levels=levels)
    )
    assert curves.levels == levels
    np.testing.assert_allclose(
        curve(curves, "input", 2)["value"], np.quantile(X[:, 2].numpy(), levels)
    )
    assert curves.provenance["options"]["levels"] == list(levels)
    assert "keep" not in curves.provenance["options"]
    with pytest.raises(ng.NeurographError, match="profile with levels="):
        curves_of(sample.model, X, levels=levels, profile=ng.profile(sample.model, X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": ("layers.0", 4)}, r"the model has no neuron layers.0\[4\]"),
        ({"neurons": ("layers.0", 0, 1)}, r"the model has no neuron layers.0\[0\]@1"),
        (
            {"neurons": "layers.9"},
            "neurons='layers.9': there is no layer or neuron 'layers.9'; near it are",
        ),
        ({"neurons": []}, "neurons= is empty"),
        ({"neurons": 5}, "neurons=5: pass a list of names of layers"),
        ({"levels": (0.5,)}, r"levels=\(0.5,\) must be two or more ascending quantiles"),
        ({"levels": (0.9, 0.1)}, "ascending"),
        ({"levels": "sweep"}, "levels='sweep'"),
        ({"levels": (0, 2)}, r"in \[0, 1\]"),
        ({"target": 7}, "target 7 is out of range"),
        ({"reference": 0}, "reference=0"),
    ],
)
def test_errors_name_the_option(options: dict[str, Any], message: str) -> None:
    sample = zoo.mlp((3, 4, 2), "tanh", False, 0, torch.float64)
    with pytest.raises(ng.NeurographError, match=message):
        curves_of(sample.model, sample.data(20, 0), **options)


def test_inputs_that_cannot_move_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1))
    ids = torch.arange(20).view(10, 2) % 5
    with pytest.raises(ng.NeurographError, match="name layers or neurons in neurons=, of 0, 2"):
        curves_of(model, ids)
    with pytest.raises(ng.NeurographError, match="layer 'input' has no neurons"):
        curves_of(model, ids, neurons="input")


def test_an_unknown_shape_is_refused() -> None:
    curves = curves_of(absolute(), torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None])
    with pytest.raises(ng.NeurographError, match="shape='straight' is none of 'rising'"):
        curves.summary("straight")  # type: ignore[arg-type]
