"""Scores of everything are those of the scorers, in one table."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.discovery.scores import Scores
from neurograph.effects.exact import total_effects
from neurograph.errors import SearchInterrupted
from neurograph.questions.study import Study
from tests import zoo
from tests.case import as_data, edge_effects

SCORERS = ["auto", "exact", "hybrid", "gradient", "integrated"]


@pytest.mark.parametrize(
    "sample",
    [
        zoo.branched_cnn(3, 2, 0, torch.float64),
        zoo.mlp((3, 6, 5, 2), "gelu", False, 0, torch.float64),
        zoo.attention(4, 2, 0, torch.float64),
    ],
    ids=["cnn", "mlp", "attention"],
)
def test_every_edge_has_the_effect_that_it_has_alone(sample: zoo.Sample) -> None:
    x = sample.data(20, 0)
    found = ng.score(sample.model, x, 1, of="edges", reference=4, progress=False)
    ranking = found.ranking()
    with Study(sample.model, x, 1, reference=4, progress=False).open() as e:
        pairs = [(w, r) for w, r in e.graph.edges if e.recording.layers[w].neurons]
        count = 0
        for writer, reader in pairs:
            neurons = range(len(e.units(writer)))
            for output in range(len(e.units(reader))):
                wanted = edge_effects(e, writer, neurons, reader, output).effect
                got = [ranking[writer, i, reader, output] for i in neurons]
                np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)
                count += len(got)
    assert count == len(found.table)
    strength = found.table["effect"].abs().to_numpy()
    assert (strength[:-1] >= strength[1:]).all()
    assert found.table["measured"].all()


def test_the_root_mean_square_is_of_the_samples_own_differences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    found = ng.score(model, x, 1, contrast="zero", reference=x, scorer="exact", progress=False)
    table = found.table.set_index(["layer", "index"])
    with torch.no_grad():
        for neuron in range(3):
            hidden = model[0](x)
            zeroed = hidden.clone()
            zeroed[:, neuron] = 0
            difference = (model[2](model[1](hidden)) - model[2](model[1](zeroed)))[:, 0]
            row = table.loc[("0", neuron)]
            assert row["effect"] == pytest.approx(float(difference.mean()))
            assert row["rms"] == pytest.approx(float(difference.square().mean().sqrt()))
    ranked = found.ranking("rms")
    assert ranked.is_monotonic_decreasing
    with pytest.raises(ng.NeurographError, match="by='size'"):
        found.ranking("size")  # type: ignore[arg-type]


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("name", ["gpt2_heads", "gpt2_each", "lstm_cell", "resnet"])
def test_total_effects_of_all_neurons(name: str, scorer: Any) -> None:
    network = zoo.NETWORKS[name](0)
    data = as_data(network.inputs(8, 1))
    options = {"reference": 3, "progress": False, **network.options}
    found = ng.score(network.model, data, network.target, scorer=scorer, **options)
    ranking = found.ranking().sort_index()
    study = Study(network.model, data, network.target, **options)
    rows = 0
    with study.open() as experiment:
        for layer in experiment.graph:
            units = experiment.units(layer) if experiment.recording.layers[layer].neurons else ()
            rows += len(units)
            for unit in range(len(units))[:2] if scorer in ("auto", "exact") else ():
                neuron = units.neuron(unit)
                wanted = total_effects(experiment, layer, [unit]).effect
                place = (
                    neuron
                    if "position" not in ranking.index.names
                    else (layer, neuron.index, neuron.position)
                )
                got = np.atleast_1d(ranking.loc[tuple(place)])
                assert float(got[0]) == pytest.approx(float(wanted), rel=1e-6, abs=1e-9)
    assert rows == len(found.table)
    assert found.table["measured"].all() == (scorer in ("auto", "exact"))
    assert np.isfinite(found.table["effect"]).all()


def test_a_budget_measures_what_promises_most() -> None:
    sample = zoo.mlp((6, 40, 30, 1), "tanh", False, 0, torch.float64)
    x = sample.data(60, 0)
    some = ng.score(sample.model, x, 1, of="edges", budget=4, progress=False)
    every = ng.score(sample.model, x, 1, of="edges", scorer="exact", progress=False).ranking()
    assert some.screening is not None
    assert some.screening.scored == len(some.table) == len(every)
    assert some.screening.measured == some.table["measured"].sum() < len(every) / 4
    assert "estimated recall" in repr(some)
    measured = some.table[some.table["measured"]]
    for row in measured.head(20).itertuples(index=False):
        place = (row.source_layer, row.source_index, row.target_layer, row.target_index)
        assert row.effect == pytest.approx(every[place], rel=1e-6)


def test_what_there_was_no_time_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock runs out while readers are computed: later edges have no effect at all."""
    now = iter(range(10**9))
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    sample = zoo.branched_cnn(40, 2, 0, torch.float64)
    found = ng.score(sample.model, sample.data(20, 0), 1, of="edges", budget="3s", progress=False)
    missed = found.table["effect"].isna()
    assert 0 < missed.sum() < len(found.table)
    assert not found.table.loc[missed, "measured"].any()
    assert len(found.ranking()) == (~missed).sum() == found.screening.scored
    assert f"no time was left for {missed.sum():,}" in repr(found)


def test_what_is_interrupted_keeps_the_layers_done(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = zoo.mlp((3, 5, 4, 1), "relu", False, 0, torch.float64)
    calls, stop_at = 0, 10**9

    def target(output: Tensor, _batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > stop_at:
            raise KeyboardInterrupt
        return output[:, 0]

    def stopped(*_args: Any, **_options: Any) -> None:
        nonlocal stop_at
        stop_at = calls - 1
        raise KeyboardInterrupt

    x = sample.data(20, 0)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["neurograph.discovery.scores"], "audit_result", stopped)
        with pytest.raises(SearchInterrupted) as stop:
            ng.score(sample.model, x, target, scorer="exact", progress=False)
    assert isinstance(stop.value.result, Scores)
    assert len(stop.value.result.table) == 13  # all there is, before it was audited
    calls = 0
    with pytest.raises(SearchInterrupted) as stop:
        ng.score(sample.model, x, target, scorer="exact", progress=False)
    part = stop.value.result
    assert isinstance(part, Scores)
    assert set(part.table["layer"]) == {"input", "layers.0"} or len(part.table) < 13
    assert not any("forward" in vars(module) for module in sample.model.modules())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"of": "paths"}, "of='paths'"),
        ({"scorer": "best"}, "scorer='best'"),
        ({"budget": "long"}, "budget='long'"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], told: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(ng.NeurographError, match=told):
        ng.score(model, torch.randn(5, 2), 1, **options)


def test_a_model_whose_layers_read_nothing_has_no_edges() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x - x)

    with pytest.raises(ng.NeurographError, match="of='edges': on these data no layer reads"):
        ng.score(Deaf(), torch.rand(8, 2), 1, of="edges", progress=False)


class Behind(nn.Linear):
    """A layer that does not count as a plain Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", [nn.Linear, Behind])
def test_an_edge_is_measured_though_its_reader_has_no_range_of_its_own(
    kind: type[nn.Linear],
) -> None:
    """Two neurons that cancel leave their reader as it is; either alone moves it."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), kind(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[1].weight.fill_(3.0)
    X = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    edges = ng.score(model, X, None, of="edges", scorer="exact", progress=False).ranking()
    found = edges.xs("1", level="target_layer").to_dict()
    assert found == pytest.approx({("0", 0, 0): 2.7, ("0", 1, 0): 2.7})


def test_an_edge_is_measured_though_what_it_does_to_samples_cancels() -> None:
    """The output moves up in one sample and down in the other."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.out = Behind(1, 1, bias=False), Behind(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            sign = torch.where(x[:, 1:] > 0, 1.0, -1.0).to(x)
            out: Tensor = self.out(self.value(x[:, :1]) * sign)
            return out

    model = Gated().double()
    with torch.no_grad():
        model.value.weight.fill_(1.0), model.out.weight.fill_(1.0)
    X = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, -1.0], [1.0, -1.0]]).double()
    options = {"reference": X[[1, 3]], "contrast": (0, 1), "progress": False}
    target = lambda output, _batch: output[:, 0].abs() + output[:, 0]  # noqa: E731
    edges = ng.score(model, X, target, of="edges", scorer="exact", **options).ranking()
    # From 0 to 1: |1| + 1 in the first sample, |−1| − 1 in the second.
    assert edges.loc[("value", 0, "out", 0)] == pytest.approx(1.0)
