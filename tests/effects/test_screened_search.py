"""A screened search keeps only what it measured, and says how far to trust the screen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import neurograph as ng
from neurograph.effects.exact import node_effects
from neurograph.questions.study import Study
from tests import zoo

SAMPLES = 4


def test_a_screened_search_measures_what_it_keeps() -> None:
    sample = zoo.mlp((6, 40, 30, 1), "tanh", False, 0, torch.float64)
    x = sample.data(60, 0)
    circuit = ng.search(sample.model, x, 1, keep="top:3", budget=8, progress=False)
    told = circuit.provenance["screening"]["nodes"]
    assert told["measured"] < told["scored"] * 0.7
    study = Study(sample.model, x, 1, progress=False)
    measured = circuit.scores["layers.1"]["measured"]
    kept = circuit.neurons(layer="layers.1")
    assert measured[kept["index"]].all()
    assert 8 <= measured.sum() <= 24  # eight of each sign, and some at random
    with study.open() as experiment:
        for sign, sense in (("positive", 1), ("negative", -1)):
            assert len(circuit.neurons(sign=sign, layer="layers.1")) == 3
            # What it could not have missed: the strongest of all, measured one by one.
            every = node_effects(experiment, "layers.1", range(30), {"layers.2": [0]}).effect
            assert int((sense * every).argmax()) in set(kept["index"])
        exact = node_effects(experiment, "layers.1", kept["index"].tolist(), {"layers.2": [0]})
        np.testing.assert_allclose(kept["effect"], exact.effect.numpy(), rtol=1e-9)
        first = circuit.neurons(layer="layers.0")
        assert first["total_effect"].notna().all()
        seen = {"layers.1": sorted(kept["index"])}
        exact = node_effects(experiment, "layers.0", first["index"].tolist(), seen)
        np.testing.assert_allclose(first["effect"], exact.effect.numpy(), rtol=1e-9)


@pytest.mark.parametrize("keep", ["top:3", "quantile:0.7", "share:0.3", "above:0.02"])
def test_estimates_do_not_take_the_place_of_what_was_measured(keep: str) -> None:
    """Where activations saturate, gradients promise more than there is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Hardtanh(-0.5, 0.5), nn.Linear(40, 1)).double()
    model[0].weight.data *= 3
    x = torch.randn(60, 6, dtype=torch.float64)
    exact = ng.search(model, x, 1, keep=keep, progress=False)
    screened = ng.search(model, x, 1, keep=keep, budget=4, progress=False)
    overrated = 0
    for sign in ("positive", "negative"):
        scores = screened.scores["0"]
        values, measured = scores["effect"], scores["measured"]
        kept = screened.neurons(sign=sign, layer="0")
        sense = 1 if sign == "positive" else -1
        overrated += (values[~measured] * sense).max() > (kept["effect"] * sense).min()
        assert measured[kept["index"]].all()
        wanted = exact.scores["0"]["effect"][kept["index"]]
        np.testing.assert_allclose(kept["effect"], wanted, rtol=1e-9)
        assert len(kept) >= min(3, len(exact.neurons(sign=sign, layer="0")))
        if keep.startswith("above"):
            assert (kept["effect"] * sense >= 0.02).all()
    assert overrated


def test_screening_more_than_there_are_is_the_exact_search() -> None:
    sample = zoo.residual_mlp(5, 2, 0, torch.float64)
    x = sample.data(40, 0)
    exact = ng.search(sample.model, x, 1, keep="top:2", progress=False)
    screened = ng.search(sample.model, x, 1, keep="top:2", budget=50, progress=False)
    assert screened.strongest == exact.strongest
    assert dict(screened.graph.nodes(data=True)) == dict(exact.graph.nodes(data=True))
    told = screened.provenance["screening"]["nodes"]
    assert told["measured"] == told["scored"]
    assert told["recall"] == 1
    assert exact.provenance["screening"] == screened.provenance["screening"]


@pytest.mark.parametrize("budget", [0, -1, "60", "0s", "soon", 1.5, True])
def test_a_budget_that_means_nothing_is_told(budget: Any) -> None:
    sample = zoo.mlp((2, 3, 1), "relu", False, 0, torch.float64)
    with pytest.raises(ng.NeurographError, match=f"budget={budget!r}"):
        ng.search(sample.model, sample.data(9, 0), 1, budget=budget, progress=False)
