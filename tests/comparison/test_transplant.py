"""A model that keeps another's circuit does what a plain run with the rest ablated does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from tests.comparison.handmade import inputs, network, shuffled

X = inputs(4, 60)


def kept_alone(model: nn.Sequential, kept: set[tuple[str, int]], means: bool) -> Tensor:
    """Targets with all hidden neurons and features ablated that are not in a set."""
    with torch.no_grad():
        x = X
        for place in range(-1, len(model) - 1):
            layer = "input" if place < 0 else str(place)
            x = x if place < 0 else model[place](x)
            if place < 0 or isinstance(model[place], nn.Linear):
                clean = X if place < 0 else model[: place + 1](X)
                off = [i for i in range(x.shape[1]) if (layer, i) not in kept]
                x = x.clone()
                x[:, off] = clean.mean(dim=0)[off] if means else 0.0
        answer: Tensor = model[-1](x)[:, 1]
    return answer


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_what_is_left_is_what_a_plain_run_gives(ablation: str) -> None:
    models = [network(4, 8, 6, 2, seed=seed) for seed in (0, 1)]
    circuits = [ng.search(m, X, 1, keep="quantile:0.6") for m in models]
    told = ng.compare(*circuits, draws=0, ablation=ablation, reference=60, transplants=10)
    table = told.transplants.set_index(["into", "kept"])
    kept = [{tuple(n) for n in c.graph if n.layer != "4"} for c in circuits]
    for into, model, own, other in (("a", models[0], *kept), ("b", models[1], *kept[::-1])):
        whole = {(layer, i) for layer in ("input", "0", "2") for i in range(8)}
        full, empty = (kept_alone(model, some, ablation == "mean") for some in (whole, set()))
        for name, keep in (("own", own), ("other", other)):
            left = kept_alone(model, keep, ablation == "mean")
            row = table.loc[(into, name)]
            assert row["neurons"] == len(keep)
            assert row["value"] == pytest.approx(float(left.mean()), abs=1e-9)
            share = float((left.mean() - empty.mean()) / (full.mean() - empty.mean()))
            assert row["faithfulness"] == pytest.approx(share, abs=1e-6)
            error = float((left - full).square().mean().sqrt())
            assert row["error"] == pytest.approx(error, abs=1e-9)
            nothing = float((empty - full).square().mean())
            assert row["recovered"] == pytest.approx(1 - error**2 / nothing, abs=1e-6)


def test_a_twin_computes_it_with_the_same_parts() -> None:
    model = network(4, 8, 6, 2)
    a, b = (ng.search(m, X, 1, keep="quantile:0.6") for m in (model, shuffled(model)[0]))
    table = ng.compare(a, b, match="activation", draws=0).transplants.set_index(["into", "kept"])
    for into in "ab":
        own, other = table.loc[(into, "own")], table.loc[(into, "other")]
        assert other["value"] == pytest.approx(own["value"], abs=1e-9)
        assert other["neurons"] == own["neurons"]


def test_random_sets_have_as_many_neurons_of_each_layer_and_a_chance() -> None:
    model = network(4, 20, 2)
    circuit = ng.search(model, X, 1, keep="top:3")
    other = ng.search(network(4, 20, 2, seed=5), X, 1, keep="top:3")
    told = ng.compare(circuit, other, draws=0, transplants=15)
    table = told.transplants.set_index(["into", "kept"])
    for into in "ab":
        random = table.loc[(into, "random")]
        assert random["neurons"] == table.loc[(into, "other"), "neurons"]
        assert random["recovered_low"] <= random["recovered"] <= random["recovered_high"]
        p_value = table.loc[(into, "other"), "p_value"]
        assert p_value * 16 == pytest.approx(round(p_value * 16))
        assert 1 / 16 <= p_value <= 1


def test_only_matched_neurons_are_kept() -> None:
    a = ng.search(network(4, 12, 2), X, 1, keep="top:3")
    b = ng.search(network(4, 5, 2, seed=1), X, 1, keep="top:3")
    told = ng.compare(a, b, match="activation", draws=0)
    there = [told.matching.to_b(n) for n in a.graph if n.layer != "2"]
    table = told.transplants.set_index(["into", "kept"])
    assert table.loc[("b", "other"), "neurons"] == sum(n is not None for n in there)


def test_a_model_alone_gets_the_other_circuit() -> None:
    model = network(4, 8, 2)
    a = ng.search(model, X, 1, keep="top:3")
    b = ng.search(copy.deepcopy(model), X, 1, keep="top:2").detach()
    told = ng.compare(a, b, draws=0, transplants=3)
    assert set(told.transplants["into"]) == {"a"}
