"""What must not change a comparison does not; what changed is told, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import neurograph as ng
from neurograph.comparison.overlap import MEASURES
from neurograph.errors import CircuitFileError, ModelError, OptionError
from tests.comparison.handmade import circuit, inputs, network, rescaled, shuffled

X = inputs(5)


def search(model: nn.Module, target: Any = 1, **options: Any) -> ng.Circuit:
    return ng.search(model, X, target, **{"keep": "quantile:0.7", "paths": 20, **options})


def test_a_circuit_beside_itself_is_perfect() -> None:
    found = search(network(5, 16, 12, 2))
    told = ng.compare(found, found, draws=200)
    assert told.measures["value"].to_numpy() == pytest.approx(np.ones(len(MEASURES)))
    assert told.p_value == 1 / 201
    for table in (told.neurons(), told.edges(), told.paths()):
        assert (table["status"] == "both").all()
        assert (table["difference"] == 0).all()
        assert (table["stderr"] == 0).all()
    assert told.layers["cka"].to_numpy() == pytest.approx(np.ones(4))
    kept = told.transplants.query("kept != 'random'").groupby("into")
    assert (kept["value"].nunique() == 1).all()


@pytest.mark.parametrize("twin", ["shuffled", "rescaled", "both"])
def test_the_same_function_in_other_weights_is_the_same_circuit(twin: str) -> None:
    model = network(5, 16, 12, 2)
    other = model if twin == "rescaled" else shuffled(model)[0]
    other = other if twin == "shuffled" else rescaled(other)
    told = ng.compare(search(model), search(other), match="activation", draws=50)
    assert told.measures["value"].to_numpy() == pytest.approx(np.ones(len(MEASURES)))
    assert told.neurons()["difference"].to_numpy() == pytest.approx(0, abs=1e-9)
    assert told.edges()["difference"].to_numpy() == pytest.approx(0, abs=1e-9)
    if twin != "rescaled":
        assert ng.compare(search(model), search(other), draws=0).neuron_jaccard < 0.5
    else:
        assert ng.compare(search(model), search(other), draws=0).neuron_jaccard == 1.0


def test_channels_of_a_convolution_and_its_normalisation_are_recognised() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 3),
    ).double()
    other, order = copy.deepcopy(model), torch.randperm(8)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[3].weight.copy_(model[3].weight[:, order])
    images = torch.randn(40, 1, 8, 8).double()
    circuits = [ng.search(m, images, 1, keep="top:2", reference=8) for m in (model, other)]
    told = ng.compare(*circuits, match="activation", draws=50, reference=16)
    assert told.neuron_jaccard == 1.0
    assert told.measures.at["edge_jaccard", "value"] == 1.0


def test_it_does_not_matter_which_circuit_is_named_first() -> None:
    a, b = search(network(5, 16, 12, 2)), search(network(5, 9, 14, 2, seed=1))
    here, there = (
        ng.compare(*pair, match="activation", names=names, draws=60)
        for pair, names in (((a, b), ("a", "b")), ((b, a), ("b", "a")))
    )
    pd.testing.assert_frame_equal(here.measures, there.measures)
    for name in MEASURES:
        assert (here.null[name] == there.null[name]).all()
    back = there.flipped()
    for table in ("neurons", "edges", "paths"):
        # Pairs are called what the first circuit calls them.
        one, other = (getattr(side, table)().drop(columns="name") for side in (here, back))
        order = [name for name in one if name.startswith(("neuron", "source", "target", "path"))]
        one, other = (
            t.sort_values(order, key=lambda column: column.map(str), ignore_index=True)
            for t in (one, other)
        )
        pd.testing.assert_frame_equal(one, other)
    pd.testing.assert_frame_equal(here.layers, back.layers)
    assert here.names == back.names
    order = ["into", "kept"]
    pd.testing.assert_frame_equal(
        here.transplants.sort_values(order, ignore_index=True),
        back.transplants.sort_values(order, ignore_index=True),
    )
    only = set(here.neurons("only_a")["neuron_a"])
    assert only == set(there.neurons("only_b")["neuron_b"])


def test_a_duplicated_neuron_is_a_tie() -> None:
    model = network(5, 6, 2)
    with torch.no_grad():  # two that act alike, and are read differently
        model[0].weight[4] = model[0].weight[1]
        model[0].bias[4] = model[0].bias[1]
    told = ng.compare(search(model), search(shuffled(model)[0]), match="activation", draws=10)
    ties = told.matching.ties()
    assert [len(i) for i in ties["indices_a"]] == [2]
    assert set(ties["indices_a"][0]) == {1, 4}
    assert any("act alike" in note for note in told.notes)
    table = told.matching.pairs()
    assert set(table[table["tied"]]["index_a"]) == {1, 4}


def test_a_mapping_says_who_corresponds() -> None:
    model = network(5, 6, 2)
    other, orders = shuffled(model)
    mapping = {("0", i): ("0", j) for j, i in enumerate(orders["0"])}
    a, b = search(model), search(other)
    told = ng.compare(a, b, match={**mapping, "input": "input", "2": "2"}, draws=10)
    assert told.neuron_jaccard == 1.0
    assert told.matching.to_b(ng.Neuron("0", orders["0"][3])) == ("0", 3)
    alone = ng.compare(a, b, match=mapping, draws=10)
    unmatched = alone.neurons()[alone.neurons()["neuron_b"].isna()]
    assert {n.layer for n in unmatched["neuron_a"]} == {"input", "2"}


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ({"0": "nowhere"}, "no layer 'nowhere'"),
        ({"0": "2"}, "layer '0' has 6 neurons, '2' 2"),
        ({("0", 6): ("0", 0)}, "layer '0' has no neuron 6"),
        ({("0", 1): ("0", 0), ("0", 2): ("0", 0)}, "of the second circuit stands twice"),
        ({3: ("0", 0)}, "3 is neither a layer's name nor a neuron"),
    ],
)
def test_mappings_that_are_none_are_refused(mapping: Any, told: str) -> None:
    found = search(network(5, 6, 2))
    with pytest.raises(OptionError, match=told):
        ng.compare(found, found, match=mapping)


def test_other_targets_and_data_are_compared_on_request_only() -> None:
    model = network(5, 8, 2)
    a, other = search(model), search(model, 0)
    with pytest.raises(OptionError, match=r"across=\('target',\)"):
        ng.compare(a, other)
    told = ng.compare(a, other, across=("target",), draws=20)
    assert any(note.startswith("targets differ") for note in told.notes)
    elsewhere = ng.search(model, X[:150], 1, keep="quantile:0.7")
    with pytest.raises(OptionError, match=r"across=\('data',\)"):
        ng.compare(a, elsewhere)
    told = ng.compare(a, elsewhere, across=["data"], draws=20)
    assert any(note.startswith("data differ") for note in told.notes)
    with pytest.raises(OptionError, match="pass data="):
        ng.compare(a, elsewhere, across=["data"], match="activation")
    assert ng.compare(a, elsewhere, across=["data"], match="activation", data=X, draws=5)


def test_other_options_are_told() -> None:
    model = network(5, 8, 2)
    told = ng.compare(search(model), search(model, keep="top:2"), draws=10)
    assert [note.split()[0] for note in told.notes] == ["keep="]


def test_the_first_difference_of_architectures_is_named() -> None:
    a, b = search(network(5, 8, 2)), search(network(5, 9, 2))
    with pytest.raises(OptionError, match="of layer '0' the first has 8 neurons, the second 9"):
        ng.compare(a, b)
    assert ng.compare(a, b, match="activation", draws=10).matching.pairs()["layer_a"].nunique() == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"match": "names"}, "match='names'"),
        ({"align": "width"}, "align='width'"),
        ({"across": "target"}, "across='target'"),
        ({"across": ["model"]}, "across="),
        ({"draws": -1}, "draws=-1"),
        ({"samples": 2}, "samples=2"),
        ({"least": 1.0}, "least=1.0"),
        ({"ablation": "noise"}, "noise"),
        ({"names": ("a", "a")}, "names="),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_options_that_mean_nothing_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        ng.compare(circuit({}), circuit({}), **options)


def test_without_models_nothing_is_measured_and_errors_add_up() -> None:
    a, b = (search(network(5, 8, 2, seed=s)).detach() for s in (0, 1))
    told = ng.compare(a, b, draws=20)
    assert told.transplants.empty
    assert told.layers["cka"].isna().all()
    table = told.neurons("both")
    added = np.hypot(table["stderr_a"], table["stderr_b"])
    assert table["stderr"].to_numpy() == pytest.approx(added.to_numpy())
    assert any("independent samples" in note for note in told.notes)
    with pytest.raises(OptionError, match="attach"):
        ng.compare(a, b, match="activation")


def test_weights_that_changed_since_the_search_are_refused() -> None:
    model = network(5, 8, 2)
    a, b = search(model), search(network(5, 8, 2, seed=1))
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(ModelError, match="changed since it was prepared"):
        ng.compare(a, b)


def test_a_flipped_sign_is_told_as_such() -> None:
    model = network(5, 8, 2)
    other = copy.deepcopy(model)
    circuit_of = search(model, keep="quantile:0")
    index = next(n.index for n in circuit_of.graph if n.layer == "0")
    with torch.no_grad():
        other[2].weight[1, index] *= -1
    told = ng.compare(circuit_of, search(other, keep="quantile:0"), draws=10)
    assert ("0", index) in set(told.neurons("flipped")["neuron_a"])
    row = told.neurons("flipped").set_index("neuron_a").loc[[ng.Neuron("0", index)]].iloc[0]
    assert row["effect_a"] * row["effect_b"] < 0


def test_a_file_holds_all_of_a_comparison(tmp_path: Path) -> None:
    a, b = search(network(5, 8, 2)), search(network(5, 9, 2, seed=1))
    told = ng.compare(a, b, match="activation", draws=20)
    told.save(tmp_path / "x.comparison")
    read = ng.Comparison.load(tmp_path / "x.comparison")
    for table in ("neurons", "edges", "paths"):
        pd.testing.assert_frame_equal(getattr(read, table)(), getattr(told, table)())
    pd.testing.assert_frame_equal(read.measures, told.measures)
    pd.testing.assert_frame_equal(read.layers, told.layers)
    pd.testing.assert_frame_equal(read.transplants, told.transplants)
    pd.testing.assert_frame_equal(read.matching.pairs(), told.matching.pairs())
    assert repr(read) == repr(told)
    told.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "x.comparison").read_bytes()
    a.save(tmp_path / "a.circuit")
    with pytest.raises(CircuitFileError, match="holds a circuit, which"):
        ng.Comparison.load(tmp_path / "a.circuit")
    with pytest.raises(CircuitFileError, match="holds a comparison, which"):
        ng.load(tmp_path / "x.comparison")


def test_an_unknown_status_is_told() -> None:
    told = ng.compare(circuit({}), circuit({}), draws=0)
    with pytest.raises(OptionError, match="status='new'"):
        told.neurons("new")  # type: ignore[arg-type]
