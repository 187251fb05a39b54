"""The audit confirms what the library measures, and finds what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.audit.audit import audit_effects, choose_claims
from neurograph.audit.result import Audit, Claim
from neurograph.effects.exact import node_effects, path_effects, total_effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import TARGET
from neurograph.errors import ModelError, OptionError
from neurograph.model.layers import Neuron
from neurograph.preparation.preparation import Preparation
from neurograph.questions.study import Study
from neurograph.replay.wiring import Wiring
from tests import zoo
from tests.case import as_data

NAMES = sorted(zoo.NETWORKS)


def claims_of(experiment: Experiment, seed: int, layers: int) -> list[Claim]:
    """What the library measures, of each kind, on a few layers drawn at random."""
    graph, generator = experiment.graph, np.random.default_rng(seed)
    movable = [n for n in graph if experiment.recording.layers[n].neurons]
    ends = [n for n in movable if graph.nodes[n]["output"]]
    claims: list[Claim] = []

    def add(kind: str, neurons: Sequence[Neuron], effects: Any, through: Any = None) -> None:
        effect, stderr = float(effects.effect[0]), float(effects.stderr[0])
        claims.append(Claim(kind, tuple(neurons), effect, stderr, through))

    def some(layer: str) -> int:
        return int(generator.integers(len(experiment.units(layer))))

    for writer in generator.permutation(movable)[:layers].tolist():
        unit = some(writer)
        neuron = experiment.units(writer).neuron(unit)
        add("total", [neuron], total_effects(experiment, writer, [unit]))
        readers = [name for name in graph.successors(writer) if name in movable]
        through: dict[str, Any] = {name: sorted({some(name), some(name)}) for name in readers}
        through |= {TARGET: None} if writer in ends else {}
        if through:
            effects = node_effects(experiment, writer, [unit], through)
            add("node", [neuron], effects, through)
        for reader in generator.permutation(readers)[:1].tolist():
            output = some(reader)
            effects = node_effects(experiment, writer, [unit], {reader: [output]})
            ends_of = [neuron, experiment.units(reader).neuron(output)]
            add("edge", ends_of, effects, {reader: [output]})
        path, at = [neuron], writer
        while at not in ends and (step := [n for n in graph.successors(at) if n in movable]):
            at = str(generator.choice(step))
            path.append(experiment.units(at).neuron(some(at)))
        if at in ends:
            add("path", path, path_effects(experiment, [path]))
    return claims


def study_of(model: nn.Module, data: Any, target: Any, **options: Any) -> Study:
    study = Study(model, data, target, progress=False, **options)
    _ = study.experiment  # all that is found before anything is measured
    return study


def network_study(name: str, **options: Any) -> Study:
    network = zoo.NETWORKS[name](0)
    chosen = {"reference": 4, **network.options, **options}
    return study_of(network.model, as_data(network.inputs(23, 1)), network.target, **chosen)


def audited(study: Study, seed: int = 0, layers: int = 9) -> Audit:
    """Audit of what the library measures of a study."""
    with study.open() as experiment:
        claims = claims_of(experiment, seed, layers)
    return audit_effects(study.experiment, claims)


# -- what is right ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_network_passes(name: str) -> None:
    audit = audited(network_study(name), layers=2)
    assert audit.agrees, str(audit)
    assert audit.largest < 1e-12
    assert not audit.unseen
    assert audit.counts["total"] == 2
    assert audit.counts["node"] >= 1


@pytest.mark.parametrize("background", ["mean", "zero"])
@pytest.mark.parametrize("name", ["resnet", "gpt2_heads", "lstm_states", "shared"])
def test_other_backgrounds_pass(name: str, background: str) -> None:
    audit = audited(network_study(name, background=background), layers=3)
    assert audit.agrees, str(audit)
    assert audit.largest < 1e-12


class Perceptron(nn.Module):
    """Three layers, of which a test can spoil what stands between the last two."""

    noise = 0.0
    calls = 0
    mixing = 0.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 6)
        self.last, self.beside = nn.Linear(6, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        later = torch.tanh(self.second(hidden))
        if self.noise:
            later = later + self.noise * torch.randn(later.shape, dtype=later.dtype)
        if self.calls:
            self.calls += 1
            later = later * self.calls
        later = later + self.mixing * later.flip(0)
        return self.last(later) + self.beside(hidden)


def doubled(linear: Any) -> nn.Linear:
    """A layer that multiplies by twice the weights."""
    other = nn.Linear(*reversed(linear.weight.shape)).to(linear.weight)
    other.load_state_dict({"weight": 2 * linear.weight, "bias": linear.bias})
    return other


@pytest.fixture
def data() -> Tensor:
    return torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_float32_and_coarser_types_pass(data: Tensor) -> None:
    single = study_of(Perceptron(), data.float(), 1)
    audit = audited(single)
    assert audit.agrees, str(audit)
    assert 0 < audit.largest < 1e-5
    coarse = study_of(Perceptron().bfloat16(), data.bfloat16(), 1)
    audit = audited(coarse)
    assert audit.agrees, str(audit)


def test_effects_of_hooks_that_users_have_are_effects_of_the_model(data: Tensor) -> None:
    model = Perceptron().double()
    model.second.register_forward_hook(lambda _m, _a, output: 2 * output)
    model.second.register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    audit = audited(study_of(model, data, 1))
    assert audit.agrees, str(audit)
    assert audit.largest < 1e-12


# -- what is wrong ---------------------------------------------------------------------------------


def test_wrong_weights_of_the_narrow_route_are_found(
    data: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(Perceptron().double(), data, 1)
    own = Experiment.linear

    def wrong(self: Experiment, layer: str) -> Any:
        linear = own(self, layer)
        return doubled(linear) if layer == "second" else linear

    monkeypatch.setattr(Experiment, "linear", wrong)
    audit = audited(study)
    assert not audit.agrees
    assert {wrong.reason for wrong in audit.disagreements} == {
        "the narrow route's product of weights of layer 'second'"
    }
    with pytest.raises(ModelError, match="'second'"):
        audit.check()


@pytest.mark.parametrize(("writer", "reader"), [("first", "beside"), ("second", "last")])
def test_an_edge_that_the_wiring_lacks_is_found(data: Tensor, writer: str, reader: str) -> None:
    study = study_of(Perceptron().double(), data, 1)
    study.layers.remove_edge(writer, reader)
    audit = audited(study)
    assert not audit.agrees
    told = f"layer {reader!r} reads {writer!r}, which the layer graph does not know"
    assert {wrong.reason for wrong in audit.disagreements} == {told}


def test_an_output_that_the_wiring_lacks_is_found(data: Tensor) -> None:
    study = study_of(Perceptron().double(), data, 1)
    study.layers.nodes["beside"]["output"] = False
    audit = audited(study)
    assert "the output holds 'beside'" in audit.disagreements[0].reason


@pytest.mark.parametrize(("what", "value"), [("noise", 1.0), ("calls", 1)])
def test_a_forward_that_does_not_repeat_itself_is_found(
    data: Tensor, what: str, value: float
) -> None:
    model = Perceptron().double()
    study = study_of(model, data, 1)
    with study.asking():  # a question that has begun
        setattr(model, what, value)
        audit = audited(study)
    assert not audit.agrees
    told = "the forward does not repeat itself: layer 'last' differs"
    assert {wrong.reason for wrong in audit.disagreements} == {told}


def test_interventions_that_influence_each_other_are_found(
    data: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Perceptron().double()
    model.mixing = 0.5
    study = study_of(model, data, 1)
    assert audited(study).agrees  # replay notices, and runs them one by one
    monkeypatch.setattr("neurograph.replay.replay._close", lambda _a, _b: True)
    monkeypatch.setattr(
        "neurograph.replay.replay.Replay._check", lambda _self, _job, plans: plans[0]
    )
    monkeypatch.setattr("neurograph.effects.experiment.pools_samples", lambda _replay: False)
    study = study_of(model, data, 1)
    study.experiment.replay.one_by_one = False
    audit = audited(study)
    assert {wrong.reason for wrong in audit.disagreements} == {
        "interventions that share a batch influence each other"
    }


def test_a_standard_error_that_is_wrong_is_found(data: Tensor) -> None:
    study = study_of(Perceptron().double(), data, 1)
    with study.open() as experiment:
        effects = total_effects(experiment, "first", [3])
    effect, stderr = float(effects.effect[0]), float(effects.stderr[0])
    told = audit_effects(
        study.experiment, [Claim("total", (Neuron("first", 3),), effect, 2 * stderr)]
    )
    (wrong,) = told.disagreements
    assert (wrong.layer, wrong.claimed) == ("first", 2 * stderr)
    assert wrong.found == pytest.approx(stderr)


# -- what is told ----------------------------------------------------------------------------------


def test_an_audit_is_told_in_a_sentence_and_survives_json(data: Tensor) -> None:
    study = study_of(Perceptron().double(), data, 1)
    audit = audited(study)
    assert str(audit).startswith(
        f"audit passed: {sum(audit.counts.values())} effects computed again"
    )
    assert Audit.from_json(json.loads(json.dumps(audit.as_json()))) == audit
    wrong = audit_effects(study.experiment, [Claim("total", (Neuron("first", 3),), 99.0)])
    assert "audit failed at layer 'first': 1 of 1 effects" in str(wrong)
    assert Audit.from_json(json.loads(json.dumps(wrong.as_json()))) == wrong


def test_modules_run_without_being_called_are_told(data: Tensor) -> None:
    class Sideways(Perceptron):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second.forward(torch.relu(self.first(x))))

    audit = audited(study_of(Sideways().double(), data, 1))
    assert audit.agrees
    assert audit.unseen == ("second",)
    assert "second" not in audit.layers
    assert str(audit).endswith("hooks see nothing of second")


@pytest.mark.parametrize("seed", range(4))
def test_the_strongest_the_weakest_and_others_of_each_layer_are_chosen(seed: int) -> None:
    effects = [0.1, -3.0, 0.0, 2.0, 0.5, math.nan, 1.0, 1.0]
    layers = ["a", "a", "a", "b", "b", "b", "c", "c"]
    chosen = choose_claims(layers, effects, seed=seed, most=9)
    assert sorted(chosen) == [0, 1, 2, 3, 4, 6, 7]
    assert chosen[0] == 1
    assert {layers[i] for i in chosen[:4]} == {"a", "b", "c"}
    assert choose_claims(layers, effects, seed=seed, most=2) == chosen[:2]
    assert choose_claims([], [], seed=seed, most=5) == []


# -- results that carry their audit ----------------------------------------------------------------


def searched(data: Tensor, model: nn.Module | None = None, **options: Any) -> ng.Circuit:
    model = Perceptron().double() if model is None else model
    return ng.search(model, data, 1, progress=False, keep="top:2", **options)


def test_a_search_ends_with_its_audit(data: Tensor, tmp_path: Any) -> None:
    circuit = searched(data)
    audit = circuit.audited
    assert audit.agrees
    assert set(audit.layers) == {"input", "first", "second", "last", "beside"}
    assert set(audit.counts) == {"node", "edge", "total", "path"}
    assert f"  {audit}" in str(circuit).splitlines()
    circuit.save(tmp_path / "x.circuit")
    assert ng.load(tmp_path / "x.circuit").audited == audit
    circuit.to_html(tmp_path / "x.html")
    assert str(audit) in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize("name", ["resnet", "gpt2_each", "lstm_states"])
def test_circuits_and_scores_of_networks_pass(name: str) -> None:
    network = zoo.NETWORKS[name](0)
    data, options = as_data(network.inputs(23, 1)), {**network.options, "reference": 4}
    circuit = ng.search(network.model, data, network.target, progress=False, **options)
    told = circuit.audit(16)
    assert told.agrees, str(told)
    assert set(told.layers) == set(circuit.scores)
    for of in ("neurons", "edges"):
        scores = ng.score(network.model, data, network.target, of=of, progress=False, **options)
        audit = scores.audit(12)
        assert audit.agrees, str(audit)
        assert sum(audit.counts.values()) >= 12


def test_estimates_are_not_audited_but_told(data: Tensor) -> None:
    scores = ng.score(Perceptron().double(), data, 1, scorer="gradient", progress=False)
    audit = scores.audit()
    assert not audit.counts
    assert audit.estimates == len(scores.table)
    assert str(audit) == "audit: no effect was computed again; 23 estimates were not audited"


def test_a_search_on_a_layer_graph_that_lacks_an_edge_is_refused(
    data: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(preparation: Preparation, *, routed: bool) -> Wiring:
        wiring = known(preparation, routed=routed)
        if wiring.layers.has_edge("first", "beside"):
            wiring.layers.remove_edge("first", "beside")
        return wiring

    known = Preparation.wiring
    monkeypatch.setattr(Preparation, "wiring", lacking)
    with pytest.raises(ModelError, match="'beside' reads 'first', which the layer graph does not"):
        searched(data)
    with pytest.raises(ModelError, match="'beside' reads 'first', which the layer graph does not"):
        ng.score(Perceptron().double(), data, 1, progress=False)


def test_a_search_takes_the_slower_route_where_a_shortcut_is_wrong(
    data: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = searched(data)
    own = Experiment.linear
    monkeypatch.setattr(Experiment, "linear", lambda self, layer: doubled(own(self, layer)))
    circuit = searched(data)
    assert circuit.audited.agrees
    assert "a shortcut gave wrong effects at layer" in circuit.notes[0]
    assert set(circuit.graph) == set(right.graph)
    for neuron, values in right.graph.nodes(data=True):
        for key in ("effect", "total_effect"):
            assert circuit.graph.nodes[neuron][key] == pytest.approx(values[key], rel=1e-9)
    assert circuit.audit().agrees  # measuring again goes the same way
    attached = circuit.detach().attach(circuit.study.model, data)
    path = circuit.strongest[0]
    assert attached.measure([path])[0].effect == pytest.approx(path.effect, rel=1e-9)


def test_a_part_of_a_circuit_is_audited_without_what_its_neurons_do_together(data: Tensor) -> None:
    circuit = searched(data)
    part = circuit.subgraph(list(circuit.graph)[:4])
    audit = part.audit()
    assert audit.agrees
    assert "node" not in audit.counts
    assert audit.counts["total"] >= 5


@pytest.mark.parametrize("effects", [0, -1, 1.5, "3", True])
def test_what_is_no_number_of_effects_is_refused(data: Tensor, effects: Any) -> None:
    scores = ng.score(Perceptron().double(), data, 1, progress=False)
    for result in (searched(data), scores):
        with pytest.raises(OptionError, match="effects="):
            result.audit(effects)


def test_a_circuit_without_its_model_keeps_its_audit_but_makes_no_other(data: Tensor) -> None:
    circuit = searched(data).detach()
    assert circuit.audited.agrees
    with pytest.raises(OptionError, match="attach"):
        circuit.audit()
