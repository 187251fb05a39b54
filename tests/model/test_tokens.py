"""A circuit of heads and tokens: its names, tables, file, page, and the model again."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neurograph as ng
from neurograph.errors import DataError, OptionError
from neurograph.report.circuit_page import render_circuit
from tests import zoo

WORDS = ["the", " cat", " sat", " on", " a", " mat", " <b>x</b>", " ran", " in", " it", " is", "."]
TARGET = ng.logit_difference(2, 5)


def word(token: int) -> str:
    return WORDS[token % len(WORDS)]


@functools.cache
def found() -> tuple[zoo.Network, dict[str, Any], ng.Circuit]:
    network = zoo.NETWORKS["gpt2_heads"](0)
    given = {
        **network.options,
        "positions": "each",
        "contrast": ng.Counterfactual(network.inputs(8, 2)["input_ids"]),
        "reference": 8,
        "keep": "top:4",
        "progress": False,
    }
    ids = network.inputs(8, 1)["input_ids"]
    return network, given, ng.search(network.model, ids, TARGET, tokenizer=word, **given)


def test_neurons_have_positions_and_tokens() -> None:
    network, _, circuit = found()
    ids = network.inputs(8, 1)["input_ids"]
    assert len(circuit.graph) > 4
    for neuron, data in circuit.graph.nodes(data=True):
        assert neuron == (neuron.layer, neuron.index, neuron.position)
        assert data["position"] == neuron.position
        tokens = dict.fromkeys(word(token) for token in ids[:, neuron.position].tolist())
        assert data["token"].startswith("|".join(list(tokens)[:3]))
        kind = f" head {neuron.index} " if ".attn." in neuron.layer else f"[{neuron.index}] "
        assert f"{neuron.layer}{kind}@{neuron.position}" in data["name"]
    table = circuit.neurons()
    assert list(table)[:4] == ["layer", "index", "position", "name"]
    assert {"source_position", "target_position"} <= set(circuit.edges())
    shape = circuit.scores["transformer.h.1.attn.c_proj:input"]["effect"].shape
    assert shape == (2, 3)  # heads, positions
    assert circuit.layers.nodes["transformer.h.1.attn.c_proj:input"]["neurons"] == 6


def test_what_comes_last_can_only_be_read_from_the_last_position() -> None:
    _, _, circuit = found()
    last = [n for n, d in circuit.graph.nodes(data=True) if d["target"] and ".h.1." in n.layer]
    assert last
    assert {n.position for n in last} == {2}


def test_the_file_and_the_page_are_the_circuit(tmp_path: Path) -> None:
    _, _, circuit = found()
    circuit.save(tmp_path / "x.circuit")
    loaded = ng.load(tmp_path / "x.circuit")
    assert dict(loaded.graph.nodes(data=True)) == dict(circuit.graph.nodes(data=True))
    assert set(loaded.graph.edges) == set(circuit.graph.edges)
    assert [p.neurons for p in loaded.strongest] == [p.neurons for p in circuit.strongest]
    page = render_circuit(loaded)
    assert page == render_circuit(circuit)
    assert "<b>x</b>" not in page
    data = json.loads(page.split('type="application/json"')[1].split(">", 1)[1].split("<")[0])
    assert {node["position"] for node in data["nodes"]} <= {0, 1, 2}


def test_a_loaded_circuit_measures_again_with_its_model(tmp_path: Path) -> None:
    network, given, circuit = found()
    circuit.save(tmp_path / "x.circuit")
    attached = ng.load(tmp_path / "x.circuit").attach(
        network.model, network.inputs(8, 1)["input_ids"], target=TARGET, contrast=given["contrast"]
    )
    path = circuit.strongest[0]
    (again,) = attached.measure([path.neurons])
    assert again.effect == pytest.approx(path.effect, rel=1e-9)
    with pytest.raises(OptionError, match="no neuron"):
        attached.measure([[ng.Neuron(*path.neurons[0][:2]), *path.neurons[1:]]])


def test_pairs_come_as_labels() -> None:
    network, given, circuit = found()
    ids = network.inputs(8, 1)["input_ids"]
    labels = torch.tensor([[2, 5]]).expand(8, 2)
    same = ng.search(network.model, ({"input_ids": ids}, labels), ng.logit_difference(), **given)
    assert set(same.graph) == set(circuit.graph)
    for neuron in same.graph:
        a, b = same.graph.nodes[neuron], circuit.graph.nodes[neuron]
        np.testing.assert_allclose(a["total_effect"], b["total_effect"], rtol=1e-9)


def test_twins_of_another_length_are_told() -> None:
    network, given, _ = found()
    ids = network.inputs(8, 1)["input_ids"]
    longer = torch.cat([ids, ids[:, :1]], dim=1)
    with pytest.raises(DataError, match=r"clean input has shape \(8, 3\).*\(8, 4\)"):
        ng.search(network.model, ids, TARGET, **{**given, "contrast": ng.Counterfactual(longer)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": {"lm_heads": 2}}, "lm_heads.*matches no layer"),
        ({"groups": {"c_attn": 5}}, "12 channels.*cannot be divided"),
        ({"positions": 7}, "positions=7 is outside the 3 positions"),
        ({"positions": "first"}, "positions='first'"),
        ({"layers": ["q_proj"]}, "q_proj.*matches no module"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], words: str) -> None:
    network, given, _ = found()
    ids = network.inputs(8, 1)["input_ids"]
    with pytest.raises(OptionError, match=words):
        ng.search(network.model, ids, TARGET, **{**given, **options})
