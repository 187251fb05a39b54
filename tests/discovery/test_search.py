"""The search as a whole: planted circuits, options, reproducibility, interruption."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import neurograph as ng
from neurograph.errors import DataError, ModelError, OptionError, SearchInterrupted
from neurograph.model.layers import Neuron
from neurograph.questions.study import Study
from tests import zoo

quick = settings(max_examples=25, suppress_health_check=list(HealthCheck))


@dataclass
class Planted:
    """A dense ReLU network in which only known chains of neurons reach the output."""

    model: nn.Module
    X: Tensor
    paths: dict[tuple[Neuron, ...], float]

    @property
    def neurons(self) -> set[Neuron]:
        return {n for path in self.paths for n in path}

    @property
    def edges(self) -> set[tuple[Neuron, Neuron]]:
        return {pair for path in self.paths for pair in itertools.pairwise(path)}


def plant(signs: list[list[int]], distractors: int, seed: int) -> Planted:
    """Chains of the given signs of weights, each through one neuron a layer, among distractors.

    All pre-activations stay positive, so ReLU is linear and a path's effect is the 0.05-0.95
    range of its feature times the product of its weights. Distractors are wired into by
    everything and vary, but nothing behind them counts: their way out has weight 0.
    """
    generator = np.random.default_rng(seed)
    width, depth = len(signs) + distractors, len(signs[0]) - 1
    X = torch.from_numpy(generator.uniform(0, 1, (200, width)))
    layers, places = [], [generator.permutation(width)[: len(signs)] for _ in range(depth + 1)]
    strength, highest = np.ones(len(signs)), np.ones(len(signs))
    for i in range(depth):
        layer = nn.Linear(width, width, dtype=torch.float64)
        weight, bias = generator.uniform(0.1, 1, (width, width)), generator.uniform(0, 0.2, width)
        on_path = np.zeros((width, width), dtype=bool)
        on_path[places[i + 1]] = True
        weight[on_path] = 0  # chain neurons hear nothing but their chain
        for c, sign in enumerate(signs):
            w = sign[i] * generator.uniform(0.5, 2)
            weight[places[i + 1][c], places[i][c]] = w
            bias[places[i + 1][c]] += max(0, -w) * highest[c]
            highest[c] = abs(w) * highest[c] + 0.2
            strength[c] *= w
        layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        layers += [layer, nn.ReLU()]
    head = nn.Linear(width, 1, dtype=torch.float64)
    out = np.zeros((1, width))
    for c, sign in enumerate(signs):
        out[0, places[depth][c]] = w = sign[-1] * generator.uniform(0.5, 2)
        strength[c] *= w
    head.weight.data, head.bias.data = torch.from_numpy(out), torch.zeros(1, dtype=torch.float64)
    names = ["input", *(str(2 * i) for i in range(depth))]
    low, high = np.quantile(X.numpy(), [0.05, 0.95], axis=0)
    paths = {}
    for c in range(len(signs)):
        chain = [Neuron(name, int(places[i][c])) for i, name in enumerate(names)]
        feature = places[0][c]
        paths[(*chain, Neuron(str(2 * depth), 0))] = strength[c] * (high - low)[feature]
    return Planted(nn.Sequential(*layers, head), X, paths)


def check_planted(signs: list[list[int]], distractors: int, seed: int) -> None:
    planted = plant(signs, distractors, seed)
    circuit = ng.search(planted.model, planted.X, 1, keep="share:1", progress=False)
    assert set(circuit.graph) == planted.neurons
    # Kept inputs may also feed distractors, but no edge leads from one chain into another.
    assert set(circuit.graph.edges) == planted.edges
    for sign, sense in (("positive", 1), ("negative", -1)):
        wanted = {p: e for p, e in planted.paths.items() if e * sense > 0}
        found = list(circuit.paths(10, sign=sign))
        assert [p.neurons for p in found] == sorted(wanted, key=lambda p: -abs(wanted[p]))
        for path in found:
            assert path.measured
            assert path.effect == pytest.approx(wanted[path.neurons], rel=1e-9)
    for chain, sign in zip(planted.paths, signs, strict=True):
        for place, neuron in enumerate(chain):
            data, sense = circuit.graph.nodes[neuron], math.prod(sign[place:])
            assert data["sign"] == ("positive" if sense > 0 else "negative")
            assert data["effect"] * sense > 0
            assert data["effect"] == pytest.approx(data["total_effect"], rel=1e-9)
    assert not any("total" in note for note in circuit.notes)


def chains(last: Sequence[int]) -> st.SearchStrategy[list[list[int]]]:
    """Signs of the weights of some chains of one depth; those into the output among `last`."""
    sign = st.sampled_from([1, -1])
    return st.integers(1, 3).flatmap(
        lambda depth: st.lists(
            st.tuples(st.lists(sign, min_size=depth, max_size=depth), st.sampled_from(last)).map(
                lambda drawn: [*drawn[0], drawn[1]]
            ),
            min_size=1,
            max_size=5,
        )
    )


@quick
@given(chains([1, -1]), st.integers(0, 6), st.integers(0, 10_000))
def test_planted_circuit_is_recovered_whole(
    signs: list[list[int]], distractors: int, seed: int
) -> None:
    """Up through up, down through up, up through down, down through down."""
    check_planted(signs, distractors, seed)


@pytest.mark.parametrize("last", [1, -1])
@quick
@given(st.data())
def test_planted_circuit_under_a_last_layer_of_one_sign(last: int, data: st.DataObject) -> None:
    check_planted(
        data.draw(chains([last])), data.draw(st.integers(0, 6)), data.draw(st.integers(0, 99))
    )


def relu_net(first: list, second: list, head: list) -> nn.Module:
    """A bias-free ReLU network with these weights, in float64."""
    matrices = [torch.tensor(w, dtype=torch.float64) for w in (first, second, [head])]
    modules: list[nn.Module] = []
    for weight in matrices:
        linear = nn.Linear(*weight.T.shape, bias=False, dtype=torch.float64)
        linear.weight.data = weight
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def test_paths_that_cancel_in_the_total_are_both_found() -> None:
    """Feature 0 pushes up along one chain and down by as much along another."""
    eye = [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]
    model = relu_net([[1.0, 0], [1, 0], [0, 1]], eye, [2.0, -2, 0.5])
    X = torch.rand(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    circuit = ng.search(model, X, 1, keep="share:1", progress=False)
    up = ("input", 0), ("0", 0), ("2", 0), ("4", 0)
    down = ("input", 0), ("0", 1), ("2", 1), ("4", 0)
    weak = ("input", 1), ("0", 2), ("2", 2), ("4", 0)
    assert [p.neurons for p in circuit.paths(5, sign="positive")] == [up, weak]
    assert [p.neurons for p in circuit.paths(5, sign="negative")] == [down]
    feature = circuit.graph.nodes["input", 0]
    assert (feature["sign"], feature["effect"]) == ("zero", 0)
    assert feature["total_effect"] == pytest.approx(0, abs=1e-12)
    raising, lowering = (feature[f"through_{sign}_effect"] for sign in ("positive", "negative"))
    assert raising == pytest.approx(-lowering, rel=1e-9)
    assert raising > 1


def test_a_neuron_whose_readers_cancel_is_kept_and_what_feeds_it_is_not() -> None:
    """A hidden neuron is scored through either part; what feeds it has no effect at all."""
    model = relu_net([[1.0, 0], [0, 1]], [[1.0, 0], [1, 0], [0, 1]], [2.0, -2, 0.5])
    X = torch.rand(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    circuit = ng.search(model, X, 1, keep="share:1", progress=False)
    shared = circuit.graph.nodes["0", 0]
    assert shared["total_effect"] == shared["effect"] == 0
    raising, lowering = (shared[f"through_{sign}_effect"] for sign in ("positive", "negative"))
    assert raising == pytest.approx(-lowering, rel=1e-9)
    through = [p.neurons for p in circuit.paths(9, source="0")]
    assert (("0", 0), ("2", 0), ("4", 0)) in through
    assert (("0", 0), ("2", 1), ("4", 0)) in through
    assert ("input", 0) not in circuit.graph


def test_target_zero_of_a_single_output_is_minus_target_one() -> None:
    sample = zoo.mlp((3, 5, 4, 1), "tanh", False, 3, torch.float64)
    X = sample.data(60, 0)
    one, zero = (ng.search(sample.model, X, t, progress=False) for t in (1, 0))
    for layer in ("input", "layers.0", "layers.1"):
        for kind in ("", "total_"):
            np.testing.assert_array_equal(
                one.scores[layer][f"{kind}effect"], -zero.scores[layer][f"{kind}effect"]
            )
    assert [p.neurons for p in one.paths(5, sign="positive")] == [
        p.neurons for p in zero.paths(5, sign="negative")
    ]


def test_callable_target_gets_the_output_and_its_batch() -> None:
    sample = zoo.mlp((3, 5, 2), "tanh", False, 3, torch.float64)
    X, y = sample.data(60, 0), torch.arange(60) % 2

    def own_logit(output: Tensor, batch: object) -> Tensor:
        labels = batch.labels  # type: ignore[attr-defined]
        assert len(labels) == len(output)
        return output.gather(1, labels[:, None])[:, 0]

    circuit = ng.search(sample.model, (X, y), own_logit, reference=60, keep="share:1")
    assert circuit.target == "own_logit"
    ends = {n for n, d in circuit.graph.nodes(data=True) if d["target"]}
    assert ends == {("layers.1", 0), ("layers.1", 1)}
    # Output 1 is seen by the samples of class 1 only, half of them.
    low, high = np.quantile(_outputs(sample.model, X)[:, 1], [0.05, 0.95])
    assert circuit.graph.nodes["layers.1", 1]["effect"] == pytest.approx((high - low) / 2)


def _outputs(model: nn.Module, X: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(X).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_makes_results_equal_bit_for_bit(dtype: torch.dtype) -> None:
    sample = zoo.branched_cnn(3, 2, 5, dtype)
    X = sample.data(40, 0)
    state = torch.get_rng_state()
    one = ng.search(sample.model, X, 1, reference=8, seed=7, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    two = ng.search(sample.model, X, 1, reference=8, seed=7, progress=False)
    assert dict(one.graph.nodes(data=True)) == dict(two.graph.nodes(data=True))
    assert list(one.graph.edges(data=True)) == list(two.graph.edges(data=True))
    assert one.strongest == two.strongest
    other = ng.search(sample.model, X, 1, reference=8, seed=8, progress=False)
    assert other.provenance["data"]["reference"] != one.provenance["data"]["reference"]


@pytest.mark.parametrize("memory", [3_000, 100_000, "64MB"])
def test_memory_budget_does_not_change_the_numbers(memory: int | str) -> None:
    sample = zoo.residual_mlp(4, 1, 2, torch.float64)
    X = sample.data(80, 1)
    profiled = ng.profile(sample.model, X)
    small = ng.search(sample.model, X, 1, profile=profiled, memory=memory, progress=False)
    large = ng.search(sample.model, X, 1, profile=profiled, memory="1GB", progress=False)
    assert set(small.graph) == set(large.graph)
    for layer, table in large.scores.items():
        for key, values in table.items():
            np.testing.assert_allclose(small.scores[layer][key], values, rtol=1e-9, atol=1e-12)


def test_the_strongest_of_either_sign_through_either_part_are_kept() -> None:
    sample = zoo.mlp((4, 12, 10, 1), "tanh", False, 0, torch.float64)
    circuit = ng.search(sample.model, sample.data(100, 0), 1, keep="top:2", progress=False)
    for layer in ("layers.0", "layers.1"):
        ways = [f"through_{sign}_effect" for sign in ("positive", "negative")]
        scores = [circuit.scores[layer][way] for way in ways if way in circuit.scores[layer]]
        assert len(scores) == (2 if layer == "layers.0" else 1)  # the output is one neuron
        best = {
            int(i)
            for effects in scores
            for sense in (1, -1)
            for i in np.argsort(-sense * effects)[:2]
        }
        assert set(circuit.neurons(layer=layer)["index"]) == best
    assert circuit.graph.nodes["layers.2", 0]["sign"] == "positive"


def test_constant_neurons_have_no_effect_and_are_not_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 2.0
    X = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    circuit = ng.search(model, X, 1, keep="share:1", progress=False)
    assert circuit.scores["0"]["effect"][1] == circuit.scores["0"]["total_effect"][1] == 0
    assert ("0", 1) not in circuit.graph


def test_a_profile_can_be_made_once_and_used_again() -> None:
    sample = zoo.mlp((3, 5, 2), "relu", False, 1, torch.float64)
    X = sample.data(50, 0)
    profiled = ng.profile(sample.model, X)
    given_one = ng.search(sample.model, X, 0, profile=profiled, progress=False)
    made_one = ng.search(sample.model, X, 0, progress=False)
    assert given_one.strongest == made_one.strongest
    with pytest.raises(OptionError, match="layer_graph"):
        ng.search(sample.model, X, 0, profile=ng.layer_graph(sample.model, X))
    other = zoo.mlp((3, 6, 2), "relu", False, 1, torch.float64)
    with pytest.raises(OptionError, match="made of another model"):
        ng.search(other.model, X, 0, profile=profiled)


def test_a_model_that_was_trained_on_is_not_measured_with_old_outputs() -> None:
    sample = zoo.mlp((3, 5, 1), "relu", False, 1, torch.float64)
    X = sample.data(50, 0)
    circuit = ng.search(sample.model, X, 1, progress=False)
    (again,) = circuit.measure(circuit.strongest[:1])
    assert again.effect == pytest.approx(circuit.strongest[0].effect, rel=1e-9)
    with torch.no_grad():
        sample.model.layers[0].weight += 0.1
    with pytest.raises(ModelError, match="weights have changed since"):
        circuit.measure(circuit.strongest[:1])
    with pytest.raises(ModelError, match="not the model of the circuit"):
        circuit.attach(sample.model, X)


def test_explicit_reference_samples() -> None:
    sample = zoo.mlp((3, 5, 1), "relu", False, 1, torch.float64)
    X = sample.data(50, 0)
    circuit = ng.search(sample.model, X, 1, reference=X[:1], progress=False)
    assert all(math.isnan(stderr) for stderr in circuit.neurons(layer="layers.0")["stderr"])
    assert circuit.provenance["options"]["reference"] == "given"


class Failing(nn.Module):
    """Raises in the middle of the work: after some calls of its forward."""

    def __init__(self, error: BaseException, after: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 1)
        self.error, self.after = error, after
        self.calls = itertools.count(1)  # no state of the model, which runs would not keep

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)) * 1.0
        if next(self.calls) > self.after:
            raise self.error
        return self.second(h) + h[:, :1]


def state_of(model: nn.Module) -> tuple[object, ...]:
    modules = list(model.modules())
    return (
        [m.__dict__.get("forward") for m in modules],
        [m.training for m in modules],
        [dict(m._forward_hooks) for m in modules],
        [dict(m._forward_pre_hooks) for m in modules],
        [b.clone() for b in model.buffers()],
        [p.requires_grad for p in model.parameters()],
    )


@pytest.mark.parametrize("after", [0, 1, 3, 8, 12])
def test_model_that_raises_is_restored_and_its_error_kept(after: int) -> None:
    model = Failing(RuntimeError("the cat sat on the cable"), after).train()
    before = state_of(model)
    with pytest.raises(ModelError, match="the cat sat on the cable") as caught:
        ng.search(model, torch.rand(20, 3), 1, progress=False)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert state_of(model) == before


def calls_before_the_search() -> int:
    """How often profiling and recording run the model."""
    model = Failing(KeyboardInterrupt(), 10**9)
    study = Study(model, torch.rand(20, 3), 1, progress=False)
    _ = study.statistics, study.experiment
    return next(model.calls) - 1


@pytest.mark.parametrize("offset", [None, -10, -4, -1, 18, 24, 30])
def test_interrupt_keeps_what_was_found(offset: int | None) -> None:
    first = calls_before_the_search()
    after = 0 if offset is None else first + offset
    model = Failing(KeyboardInterrupt(), after).train()
    before = state_of(model)
    with pytest.raises(SearchInterrupted) as caught:
        ng.search(model, torch.rand(20, 3), 1, progress=False)
    assert state_of(model) == before
    circuit = caught.value.result
    assert (circuit is None) == (after < first)
    if circuit is not None:
        assert isinstance(circuit, ng.Circuit)
        assert not circuit.provenance["complete"]
        assert "incomplete" in repr(circuit)
        assert len(circuit.graph) > 0


def test_train_mode_is_searched_in_eval_and_restored() -> None:
    class Dropped(nn.Sequential):
        pass

    model = Dropped(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1)
    ).train()
    model[2].eval()
    X = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    running = model[1].running_mean.clone()
    circuit = ng.search(model, X, 1, keep="top:8", progress=False)
    assert [m.training for m in model] == [True, True, False, True, True]
    assert torch.equal(model[1].running_mean, running)
    model.eval()
    again = ng.search(model, X, 1, keep="top:8", progress=False)
    assert again.strongest == circuit.strongest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 3}, r"target 3 is out of range.*0…1"),
        ({"target": -1}, "target -1 is negative"),
        ({"target": "yes"}, "target='yes' is a name: pass class_names="),
        ({"contrast": "median"}, "contrast='median'"),
        ({"contrast": (0.9, 0.1)}, "ascending"),
        ({"background": "noise"}, "background='noise'"),
        ({"keep": "best"}, "keep='best'"),
        ({"keep": "top:0"}, "top=0 must be 1 or more"),
        ({"reference": 0}, "reference=0"),
        ({"memory": "lots"}, "memory='lots'"),
        ({"paths": -1}, "paths=-1"),
        ({"feature_names": ["a"]}, "1 names for 3 input features"),
        ({"class_names": ["a", "b", "c"]}, "3 names for 2 targets"),
        ({"target": lambda output, batch: output}, "one number a sample"),
    ],
)
def test_bad_options_are_told_by_name(options: dict, message: str) -> None:
    sample = zoo.mlp((3, 4, 1), "tanh", False, 0, torch.float32)
    target = options.pop("target", 1)
    with pytest.raises(OptionError, match=message):
        ng.search(sample.model, sample.data(20, 0), target, progress=False, **options)


def test_sizes_that_do_not_fit_are_told() -> None:
    sample = zoo.mlp((3, 4, 1), "tanh", False, 0, torch.float32)
    with pytest.raises(ModelError, match=r"inputs of shape \(\d+, 5\)"):
        ng.search(sample.model, torch.rand(10, 5), 1, progress=False)
    pair = ng.Counterfactual(torch.rand(5, 3))
    with pytest.raises(DataError, match="has 5 samples, not 50"):
        ng.search(sample.model, torch.rand(50, 3), 1, contrast=pair, progress=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named(value: float) -> None:
    sample = zoo.mlp((3, 4, 4, 1), "tanh", False, 0, torch.float32)
    X = sample.data(20, 0)
    X[13, 1] = value
    with pytest.raises(DataError, match=r"batch 0 at position \[13, 1\]"):
        ng.search(sample.model, X, 1, progress=False)
    with torch.no_grad():
        sample.model.layers[1].bias[2] = value
    with pytest.raises(ModelError, match=r"weights 'layers.1.bias'"):
        ng.search(sample.model, sample.data(20, 0), 1, progress=False)


def test_activations_and_effects_that_overflow_are_named() -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.exp(1e6 * self.first(x).abs()))

    with pytest.raises(ModelError, match="layer 'second' returns NaN or infinity"):
        ng.search(Overflow(), torch.rand(9, 2) + 1, 1, progress=False)

    sample = zoo.mlp((3, 4, 1), "tanh", False, 0, torch.float32)
    with pytest.raises(
        ModelError, match=r"'<lambda>' is NaN or infinite .* for reference sample 0"
    ):
        ng.search(
            sample.model,
            sample.data(20, 0),
            lambda output, batch: torch.log(output[:, 0] - output[:, 0]),
            progress=False,
        )
