"""The public function: what it finds and says, with which options, and how it ends early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import neurograph
from neurograph.discovery import strongest_paths as module
from neurograph.discovery.strongest_paths import StrongestPaths
from neurograph.errors import OptionError, SearchInterrupted
from neurograph.model.layers import Neuron
from neurograph.questions.functions import strongest_paths
from tests import zoo
from tests.discovery.small import enumerated, opened, strongest


def search(model: nn.Module, X: Tensor, target: Any = 0, k: int = 100, **o: Any) -> StrongestPaths:
    return strongest_paths(model, X, target, k, progress=False, **{"reference": 8, **o})


def neurons(found: StrongestPaths) -> list[tuple[Neuron, ...]]:
    return [path.neurons for path in found.paths]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """First passes as narrow as can be."""
    monkeypatch.setattr(module, "_WIDTH", 1)


@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus, nn.Softsign]),
    st.integers(0, 1000),
    st.integers(1, 8),
    st.sampled_from([None, "positive", "negative"]),
    st.sampled_from([2, "60s"]),
)
def test_certain_is_the_truth(
    widths: list[int], activation: type[nn.Module], seed: int, k: int, sign: Any, budget: int | str
) -> None:
    torch.manual_seed(seed)
    model, X = zoo.plain([*widths, 2], activation).double(), torch.randn(30, widths[0]).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WIDTH", 1)
        found = search(model, X, 0, k, sign=sign, budget=budget)
    study = opened(model, X, 0, reference=8)
    with study.open():
        truth = enumerated(study)
    sense = {None: 0, "positive": 1, "negative": -1}[sign]
    wanted = [truth[path] for path in strongest(truth, k, sense)]
    effects = [path.effect for path in found.paths]
    assert effects == pytest.approx([truth[path.neurons] for path in found.paths], rel=1e-9)
    assert [abs(e) for e in effects] == sorted(map(abs, effects), reverse=True)
    assert found.total == len(truth)
    if found.certain:
        # Up to ties: paths that begin at neurons of equal weight have equal effects.
        assert list(map(abs, effects)) == pytest.approx(list(map(abs, wanted)), rel=1e-9)
    else:
        assert budget == 2 or activation is nn.Softsign


@pytest.mark.usefixtures("few")
def test_of_a_billion_paths_the_strongest_are_certain() -> None:
    """One route is planted that outdoes all others together."""
    torch.manual_seed(0)
    model = zoo.plain([32, 64, 64, 64, 64, 3]).double()
    layers = [part for part in model if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(0.5)
        for layer, (i, j) in zip(layers, [(3, 5), (5, 7), (7, 9), (9, 11), (11, 2)], strict=True):
            layer.weight[j, i] = 3.0
            layer.bias[j] += 20 if j != 2 else 0  # open at every sample
    found = search(model, torch.randn(60, 32).double(), 2, 1)
    assert found.total == 32 * 64**4 * 3
    assert found.certain
    assert found.measured < found.total / 1e6
    assert [n.index for n in found.paths[0].neurons] == [3, 5, 7, 9, 11, 2]
    assert abs(found.paths[0].effect) >= found.bound


def test_a_path_may_lower_what_pushes_down() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, 0.0], [0.0, -1.0]]))
        model[0].bias.fill_(2.0)
        model[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
    X = torch.rand(50, 2)
    found = search(model, X, 1)
    lowering = (Neuron("input", 1), Neuron("0", 1), Neuron("2", 0))
    assert found.paths[0].neurons == lowering
    assert found.paths[0].effect > 0
    circuit = neurograph.search(model, X, 1, keep="top:2", progress=False)
    assert next(circuit.paths(1, sign="positive")).neurons == lowering
    assert neurons(search(model, X, 1, sign="positive"))[0] == lowering
    assert all(path.effect < 0 for path in search(model, X, 1, sign="negative").paths)


def test_effects_are_those_that_a_circuit_measures() -> None:
    torch.manual_seed(0)
    model, X = zoo.plain([4, 6, 5, 2], nn.GELU), torch.randn(60, 4)
    circuit = neurograph.search(model, X, 0, keep="top:6", progress=False)
    found = search(model, X, k=20, reference=32)
    for path, known in zip(found.paths, circuit.measure(neurons(found)), strict=True):
        assert path.names == known.names
        assert (path.effect, path.stderr) == pytest.approx((known.effect, known.stderr), rel=1e-4)


def test_sources_are_layers_or_neurons() -> None:
    torch.manual_seed(0)
    model, X = zoo.plain([4, 6, 5, 2]), torch.randn(30, 4)
    every = search(model, X, k=1000)
    assert {path.neurons[0].layer for path in every.paths} == {"input"}
    middle = search(model, X, k=1000, sources="2")
    assert middle.total == 10
    assert {path.neurons[0].layer for path in middle.paths} == {"2"}
    some = search(model, X, k=1000, sources=["2", Neuron("input", 1), ("0", 3)])
    assert some.total == 10 + 60 + 10
    assert search(model, X, k=1000, sources=("input", 1)).total == 60
    own = [path for path in every.paths if path.neurons[0].index == 1]
    assert neurons(search(model, X, k=1000, sources=Neuron("input", 1))) == [
        path.neurons for path in own
    ]
    last = search(model, X, k=10, sources="4")
    assert neurons(last) == [(Neuron("4", 0),)]
    assert last.total == 2


def test_paths_may_be_of_any_length() -> None:
    sample = zoo.residual_mlp(3, 1, 0, torch.float64)
    found = search(sample.model, sample.data(30, 1), 1, 1000)
    assert {path.neurons[-1].layer for path in found.paths} == {"head", "skip"}
    assert {len(path.neurons) for path in found.paths} == {2, 3, 5}
    assert found.certain
    assert found.bound == 0
    assert found.measured == found.total


class Tokens(nn.Module):
    """Its inputs are ids, so that paths begin at the layers that read them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(3, 4)
        self.mix, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids) + self.places(torch.arange(3) + 0 * ids)
        return self.head(torch.tanh(self.mix(h)).mean(1))


def test_without_number_inputs_paths_begin_at_the_first_layers() -> None:
    torch.manual_seed(0)
    model, X = Tokens(), torch.randint(7, (40, 3))
    found = search(model, X, k=1000)
    assert found.total == 2 * 4 * 5 * 2
    # Places are the same in every sample: they do not move.
    assert {path.neurons[0].layer for path in found.paths} == {"words"}
    each = search(model, X, k=1000, positions="each")
    assert all(neuron.position is not None for path in each.paths for neuron in path.neurons[:2])
    assert each.total == 2 * (4 * 3) * (5 * 3) * 2
    study = opened(model, X, 0, reference=8, positions="each")
    with study.open():
        truth = enumerated(study)
    assert {p.neurons: p.effect for p in each.paths} == pytest.approx(
        {path: truth[path] for path in strongest(truth, 1000)}, rel=1e-4, abs=1e-7
    )


def test_the_target_may_be_a_function_and_the_contrast_any() -> None:
    torch.manual_seed(0)
    model, X = zoo.plain([3, 4, 2]).double(), torch.randn(30, 3).double()

    def spread(output: Tensor, _batch: Any) -> Tensor:
        return output[:, 0] - output[:, 1].exp()

    for contrast in ("sweep", "mean", "zero"):
        found = search(model, X, spread, 5, contrast=contrast)
        study = opened(model, X, spread, contrast=contrast, reference=8)
        with study.open():
            truth = enumerated(study)
        assert found.target == "spread"
        assert found.certain
        assert [p.effect for p in found.paths] == pytest.approx(
            [truth[path] for path in strongest(truth, 5)], rel=1e-9
        )


@pytest.mark.usefixtures("few")
def test_a_spent_budget_says_what_is_not_certain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(zoo.plain([6, 8, 8]), nn.LayerNorm(8), zoo.plain([8, 8, 2]))
    X = torch.randn(40, 6)
    early, late = search(model, X, k=3, budget="1ms"), search(model, X, k=3)
    assert not early.certain
    assert early.bound == float("inf")
    assert len(early) == 3
    assert late.certain
    assert late.bound <= abs(late.paths[-1].effect)
    assert "certainly" in repr(late)
    assert f"of {early.measured} measured" in repr(early)


def test_the_result_is_a_table_and_says_how_it_was_found() -> None:
    torch.manual_seed(0)
    model, X = zoo.plain([3, 4, 2]), torch.randn(30, 3)
    found = search(model, X, k=4, feature_names=["a", "b", "c"], class_names=["no", "yes"])
    table = found.to_frame()
    assert list(table.columns) == ["path", "effect", "stderr", "neurons"]
    assert table["path"][0] == " → ".join(found.paths[0].names)
    assert table["path"][0][0] in "abc"
    assert table["path"][0].endswith("no")
    options = found.provenance["options"]
    assert options["k"] == 4
    assert options["sources"] == {"input": [0, 1, 2]}
    assert not {"keep", "screen", "paths"} & options.keys()
    json.dumps(found.provenance)
    again = search(model, X, k=4, feature_names=["a", "b", "c"], class_names=["no", "yes"])
    pd_equal = table.equals(again.to_frame())
    assert pd_equal
    assert found.bound == again.bound


def interrupting(after: int) -> Iterator[None]:
    for _ in range(after):
        yield
    raise KeyboardInterrupt


@pytest.mark.usefixtures("few")
def test_an_interrupted_search_brings_what_it_has() -> None:
    torch.manual_seed(0)
    model, X = zoo.plain([4, 6, 6, 2]), torch.randn(30, 4)
    forward = model[0].forward

    def stopped(after: int) -> SearchInterrupted:
        calls = interrupting(after)

        def target(output: Tensor, _batch: Any) -> Tensor:
            next(calls)
            return output[:, 0].clone()

        with pytest.raises(SearchInterrupted) as raised:
            search(model, X, target, 3)
        return raised.value

    assert stopped(0).result is None
    found = next(
        stop.result for after in range(1, 50) if (stop := stopped(after)).result is not None
    )
    assert isinstance(found, StrongestPaths)
    assert len(found) == 3
    assert not found.certain
    assert model[0].forward == forward


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": True}, "k=True"),
        ({"sign": "up"}, "sign='up'"),
        ({"budget": "soon"}, "budget='soon'"),
        ({"budget": -1}, "budget=-1"),
        ({"sources": "nowhere"}, "sources='nowhere': there is no layer or neuron"),
        ({"sources": ("0", 99)}, "no neuron 0[99]"),
        ({"sources": []}, "sources= is empty"),
        ({"sources": 3}, "sources=3"),
    ],
)
def test_options_that_mean_nothing_are_named(options: dict[str, Any], message: str) -> None:
    model, X = zoo.plain([3, 4, 2]), torch.randn(30, 3)
    with pytest.raises(OptionError) as raised:
        search(model, X, 0, **options)
    assert message in str(raised.value)
