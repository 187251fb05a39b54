"""Contrasts and backgrounds: the values neurons move between, the rows they move in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.effects.contrast import (
    Counterfactual,
    LayerSamples,
    Quantiles,
    Resample,
    as_contrast,
)
from neurograph.effects.effects import summarise
from neurograph.effects.experiment import Moves
from neurograph.errors import OptionError
from neurograph.questions.study import Study
from tests import zoo


def levels(sample: zoo.Sample, X: Tensor, layer: str, contrast: object) -> Tensor:
    options = {"contrast": contrast, "reference": 5, "progress": False}  # type: ignore[arg-type]
    study = Study(sample.model, X, 0, **options)
    return study.experiment.levels(layer)


def test_quantiles_are_per_position_where_shapes_are_fixed() -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float64)
    X = sample.data(30, 0)
    got = levels(sample, X, "stem", (0.25, 0.75))
    with torch.no_grad():
        maps = sample.model.stem(X).numpy()
    wanted = np.quantile(maps, [0.25, 0.75], axis=0)
    assert got.shape == (2, 1, 3 * 5 * 5)
    np.testing.assert_allclose(got[:, 0].numpy(), wanted.reshape(2, -1), rtol=1e-12)


class AnyLength(nn.Module):
    """Mean over a sequence of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.token(x)).mean(1))


def test_quantiles_are_pooled_where_shapes_vary() -> None:
    model = AnyLength().double()
    generator = torch.Generator().manual_seed(0)
    data = [
        torch.randn(4, length, 2, generator=generator, dtype=torch.float64) for length in (3, 5, 2)
    ]
    graph = ng.profile(model, data, levels=(0.05, 0.5, 0.95))
    pooled = torch.cat([x.flatten(0, 1) for x in data])
    with torch.no_grad():
        values = model.token(pooled).numpy()
    node = graph.nodes["token"]
    assert node["count"] == len(pooled)
    np.testing.assert_allclose(node["mean"].numpy(), values.mean(0), rtol=1e-12)
    wanted = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
    np.testing.assert_allclose(node["quantiles"].numpy(), wanted, rtol=1e-12)
    assert graph.nodes["head"]["count"] == 12
    circuit = ng.search(model, data, 1, reference=data[0], progress=False)
    moved = circuit.graph.nodes["token", int(circuit.neurons(layer="token")["index"][0])]
    assert moved["effect"] != 0


def test_from_mean_and_from_zero_end_at_the_actual_value() -> None:
    sample = zoo.mlp((3, 4, 2), "tanh", False, 0, torch.float64)
    X = sample.data(30, 0)
    options = {"contrast": "mean", "reference": 5, "progress": False}
    study = Study(sample.model, X, 0, **options)
    actual = study.experiment.recording.main("layers.0")
    got = study.experiment.levels("layers.0")
    torch.testing.assert_close(got[1], actual)
    with torch.no_grad():
        mean = sample.model.layers[0](X).mean(0)
    torch.testing.assert_close(got[0], mean.expand(5, 4), rtol=1e-12, atol=1e-12)
    zero = levels(sample, X, "layers.0", "zero")
    assert torch.equal(zero[0], torch.zeros(5, 4, dtype=torch.float64))


def test_a_profile_without_the_wanted_quantile_is_told() -> None:
    sample = zoo.mlp((3, 4, 2), "tanh", False, 0, torch.float64)
    X = sample.data(30, 0)
    profiled = ng.profile(sample.model, X, levels=(0.05, 0.95))
    with pytest.raises(OptionError, match=r"quantiles \[0.05, 0.95\], not 0.1"):
        ng.search(sample.model, X, 0, profile=profiled, contrast=(0.1, 0.9), progress=False)


@pytest.mark.parametrize("contrast", ["quantiles", "sweep", "mean", "zero", (0.1, 0.5, 0.9)])
def test_contrasts_are_read_once(contrast: str | tuple[float, ...]) -> None:
    read = as_contrast(contrast)
    assert as_contrast(read) is read
    if isinstance(contrast, tuple):
        assert read == Quantiles(contrast)


def test_equal_neighbouring_levels_are_one_block() -> None:
    table = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 2.0, 2.0, 0.0]])  # [neurons, levels]
    still = torch.full((2, 3, 1), 9.0)
    moves, block = Moves.between("layer", table[..., None, None], torch.tensor([0, 1]), still)
    assert block.tolist() == [[0, 0, 1, 1], [2, 3, 3, 4]]
    assert moves.neurons.tolist() == [0, 0, 1, 1, 1]
    assert moves.values.flatten().tolist() == [0, 1, 1, 2, 0]


def test_moves_to_the_background_are_one_block() -> None:
    still = torch.tensor([[[3.0], [4.0]], [[5.0], [6.0]]])  # [neurons, samples, elements]
    values = torch.stack([torch.zeros(2, 2, 1), still, still], dim=1)
    moves, block = Moves.between("layer", values, torch.tensor([7, 8]), still)
    assert block.tolist() == [[1, 0, 0], [2, 0, 0]]
    assert moves.neurons.tolist() == [7, 7, 8]
    assert torch.equal(moves.values[0], still[0])
    assert not moves.values[1:].any()


def test_effects_are_means_with_standard_errors() -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(6, 9))  # three neurons at two levels, nine samples
    effects = summarise(torch.from_numpy(targets), torch.arange(6).view(3, 2))
    difference = targets[1::2] - targets[::2]
    np.testing.assert_allclose(effects.effect, difference.mean(1), rtol=1e-12)
    np.testing.assert_allclose(effects.stderr, difference.std(1, ddof=1) / 3, rtol=1e-12)
    np.testing.assert_allclose(effects.response, targets.reshape(3, 2, 9).mean(2), rtol=1e-12)


def test_an_effect_of_rounding_size_is_zero() -> None:
    targets = torch.full((4, 3), 100.0)
    targets[1] += 1e-5  # one unit in the last place of float32 here
    targets[3] += 1e-3
    effects = summarise(targets, torch.tensor([[0, 1], [2, 3]]))
    assert effects.effect[0] == 0
    assert effects.effect[1] == pytest.approx(1e-3, rel=0.02)


def test_pooled_statistics_spread_over_positions() -> None:
    model = AnyLength().double()
    X = torch.rand(6, 4, 2, dtype=torch.float64)
    study = Study(model, X, 1, reference=2, progress=False)
    layer = study.experiment.recording.layers["token"]
    node = dict(study.statistics["token"])
    node["quantiles"] = node["quantiles"].mean(-1)  # as if pooled: [levels, neurons]
    actual = study.experiment.recording
    got = Quantiles().levels_of(LayerSamples(layer, node, actual))
    by_channel = got.view(2, 1, *layer.shape).movedim(layer.channel_dim + 1, 2)
    assert by_channel.shape == (2, 1, 3, 4)
    assert torch.equal(by_channel[..., 0], by_channel[..., 3])


@pytest.mark.parametrize(
    "contrast",
    ["quantiles", "sweep", "pooled", "mean", "zero", "resample", (0.1, 0.5), Resample(False)],
)
def test_contrasts_are_read_back_as_they_are_written(contrast: Any) -> None:
    read = as_contrast(contrast)
    written = json.loads(json.dumps(read.as_json()))
    assert as_contrast(written) == read
    assert False not in written.values()  # as files had it before there was a switch


def test_counterfactual_data_are_in_no_file() -> None:
    written = Counterfactual(torch.ones(3, 2)).as_json()
    assert written == {"type": "Counterfactual"}
    with pytest.raises(OptionError, match="pass contrast= again"):
        as_contrast(written)
