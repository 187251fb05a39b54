"""Gradients predict effects to first order, and a screened search keeps only what it measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.scoring.exact import node_effects
from neurograph.scoring.experiment import Experiment
from neurograph.scoring.gradient import Gradient
from neurograph.scoring.routes import TARGET, Through
from neurograph.study import Options, prepare
from tests import zoo
from tests.case import as_data

SAMPLES = 4


def some_outputs(experiment: Experiment, layer: str, seed: int) -> Through:
    """About half of the outputs of each reader, and the target where it reads the layer."""
    generator = np.random.default_rng(seed)
    through: dict[str, Any] = {}
    for reader in experiment.graph.successors(layer):
        count = len(experiment.units(reader))
        if count:
            through[reader] = sorted(generator.permutation(count)[: count // 2 + 1].tolist())
    return through | ({TARGET: None} if experiment.graph.nodes[layer]["output"] else {})


class AffineNet(nn.Module):
    """Skips, shared readers and a direct way to the output, but nothing that bends."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.head, self.skip = nn.Linear(4, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h = h + self.down(self.up(h))
        return self.head(h) + self.skip(x)


@pytest.mark.parametrize("contrast", ["quantiles", "mean", "zero"])
@pytest.mark.parametrize("background", ["data", "mean", "zero"])
def test_gradients_are_exact_where_the_model_is_affine(contrast: str, background: Any) -> None:
    model = zoo.settle(AffineNet(), 0)
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = Options(
        contrast=contrast, background=background, reference=SAMPLES, memory=20_000, progress=False
    )
    with prepare(model, x, 1, options, None).open() as experiment:
        gradients = Gradient(experiment)
        for layer in experiment.graph:
            through = some_outputs(experiment, layer, 1)
            exact = node_effects(experiment, layer, range(len(experiment.units(layer))), through)
            found = gradients.nodes(layer, through).effects
            torch.testing.assert_close(found.effect, exact.effect, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found.stderr, exact.stderr, rtol=1e-9, atol=1e-12)


def errors(experiment: Experiment, layer: str, step: float) -> Tensor:
    """How far gradients miss the exact effects of a move of this size."""
    still = experiment.recording.main(layer).flatten(1)
    noise = torch.randn(still.shape, generator=torch.Generator().manual_seed(3)).to(still)
    levels = torch.stack([still, still + step * noise])
    experiment.levels = lambda _: levels  # type: ignore[assignment]
    experiment._moves.clear()
    through = some_outputs(experiment, layer, 2)
    neurons = range(len(experiment.units(layer)))
    exact = node_effects(experiment, layer, neurons, through).effect
    return (Gradient(experiment).nodes(layer, through).effects.effect - exact).abs()


SMOOTH = ["vit", "lstm", "lstm_cell", "convnext", "attention_weights", "gpt2", "gpt2_heads"]


@pytest.mark.parametrize("name", SMOOTH)
def test_errors_of_gradients_shrink_quadratically(name: str) -> None:
    network = zoo.NETWORKS[name](0)
    options = Options(reference=SAMPLES, progress=False, **network.options)
    study = prepare(network.model, as_data(network.inputs(8, 1)), network.target, options, None)
    checked = 0
    with study.open() as experiment:
        layers = [n for n in experiment.graph if experiment.recording.layers[n].neurons]
        for layer in layers[:: max(1, len(layers) // 6)]:
            if not some_outputs(experiment, layer, 2):
                continue
            far, near = errors(experiment, layer, 2e-3), errors(experiment, layer, 1e-3)
            curved = far > 1e-10  # below that it is rounding
            ratio = far[curved] / near[curved]
            # Half the step leaves a quarter of the error, less where second orders cancel.
            assert (ratio > 3.5).all(), (layer, ratio)
            checked += len(ratio)
    assert checked > 5


def test_a_channel_that_stands_twice_in_a_padded_group_counts_once() -> None:
    model = zoo.settle(AffineNet(), 0)
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = Options(groups={"enter": [[0, 1, 2], [3]]}, reference=SAMPLES, progress=False)
    with prepare(model, x, 1, options, None).open() as experiment:
        through = {"up": None, "head": None}
        found = Gradient(experiment).nodes("enter", through).effects
        exact = node_effects(experiment, "enter", [0, 1], through)
    torch.testing.assert_close(found.effect, exact.effect, rtol=1e-9, atol=1e-12)


# -- searches that screen --------------------------------------------------------------------------


def test_a_screened_search_measures_what_it_keeps() -> None:
    sample = zoo.mlp((6, 40, 30, 1), "tanh", False, 0, torch.float64)
    x = sample.data(60, 0)
    circuit = ng.search(sample.model, x, 1, keep="top:3", budget=8, progress=False)
    told = circuit.provenance["screening"]["nodes"]
    assert told["measured"] < told["scored"] * 0.7
    profiled = prepare(sample.model, x, 1, Options(progress=False), None)
    with profiled.open() as experiment:
        for sign in ("positive", "negative"):
            measured = circuit.scores["layers.1"][f"{sign}_measured"]
            kept = circuit.neurons(sign=sign, layer="layers.1")
            assert len(kept) == 3
            assert measured[kept["index"]].all()
            assert 8 <= measured.sum() <= 24  # eight of each sign, and some at random
            seen = {"layers.2": circuit.neurons(sign=sign, layer="layers.2")["index"].tolist()}
            exact = node_effects(experiment, "layers.1", kept["index"].tolist(), seen)
            np.testing.assert_allclose(kept["effect"], exact.effect.numpy(), rtol=1e-9)
            # What it could not have missed: the strongest of all, measured one by one.
            every = node_effects(experiment, "layers.1", range(30), seen).effect
            best = int((every if sign == "positive" else -every).argmax())
            assert best in set(kept["index"])


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
        values, measured = scores[sign], scores[f"{sign}_measured"]
        kept = screened.neurons(sign=sign, layer="0")
        sense = 1 if sign == "positive" else -1
        overrated += (values[~measured] * sense).max() > (kept["effect"] * sense).min()
        assert measured[kept["index"]].all()
        wanted = exact.scores["0"][sign][kept["index"]]
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
