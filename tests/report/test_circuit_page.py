"""The page as text: what is in it, what must never be, and how it reaches the disk."""

from __future__ import annotations

import base64
import math
import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neurograph
from neurograph.errors import OptionError
from neurograph.report.circuit_page import render_circuit
from tests.report.pages import HOSTILE, assert_asks_for_nothing, data_of

Make = Callable[..., Any]


def test_page_holds_the_whole_circuit(make_circuit: Make) -> None:
    circuit = make_circuit()
    data = data_of(render_circuit(circuit))
    assert {(n["layer"], n["index"]) for n in data["nodes"]} == set(circuit.graph.nodes)
    ends = {n["id"]: (n["layer"], n["index"]) for n in data["nodes"]}
    edges = {(ends[e["from"]], ends[e["to"]]): e["effect"] for e in data["edges"]}
    assert edges == pytest.approx(
        {(u, v): effect for u, v, effect in circuit.graph.edges(data="effect")}, rel=1e-6
    )
    assert [c["layer"] for c in data["columns"]] == ["input", "linear1", "linear2", "linear3"]
    assert data["columns"][1]["kept"] == 6
    assert data["columns"][1]["neurons"] == 64
    for sign in ("positive", "negative"):
        shown = [tuple(ends[i] for i in path["neurons"]) for path in data["paths"][sign]]
        assert shown == [path.neurons for path in circuit.paths(20, sign=sign)]


def test_columns_run_left_to_right_with_positives_above_negatives(make_circuit: Make) -> None:
    data = data_of(render_circuit(make_circuit((30, 20, 120, 1))))
    places = {(n["x"], n["y"]) for n in data["nodes"]}
    assert len(places) == len(data["nodes"])
    for before, after in zip(data["columns"], data["columns"][1:], strict=False):
        assert before["right"] < after["left"]
    by_id = {n["id"]: n for n in data["nodes"]}
    assert all(by_id[e["from"]]["x"] < by_id[e["to"]]["x"] for e in data["edges"])
    first = [n for n in data["nodes"] if n["layer"] == "input"]
    lowest = max(n["y"] for n in first if n["sign"] == "positive")
    assert lowest < min(n["y"] for n in first if n["sign"] == "negative")


def test_layers_without_kept_neurons_have_no_column(make_circuit: Make) -> None:
    circuit = make_circuit()
    circuit.layers.add_node("unused", type="Linear", shape="[8]", parameters=9, neurons=8)
    circuit.layers.add_edge("input", "unused")
    assert "unused" not in [c["layer"] for c in data_of(render_circuit(circuit))["columns"]]


@pytest.mark.parametrize("name", [HOSTILE, "<!--<script>", "{{ 7 * 7 }}", "a\u2028b\u2029c"])
def test_names_are_data_and_never_markup(make_circuit: Make, name: str) -> None:
    circuit = replace(make_circuit(names={0: name}), target=name, provenance={name: name})
    page = render_circuit(circuit)
    data = data_of(page)
    assert name in [n["label"] for n in data["nodes"]]
    assert data["target"] == name
    assert data["provenance"] == {name: name}
    if "<" in name:
        assert name not in page
    assert "\u2028" not in page.split("circuit-data")[1].split("</script>")[0]
    assert page.count("</script>") == page.count("<script") - data_scripts_in_code(page)


def data_scripts_in_code(page: str) -> int:
    """Count openings of a script that are text inside a script, where they mean nothing."""
    return sum(code.count("<script") for code in re.findall(r"<script>(.*?)</script>", page, re.S))


def test_page_asks_for_nothing_outside(make_circuit: Make) -> None:
    assert_asks_for_nothing(render_circuit(make_circuit()))


def test_what_is_not_finite_becomes_null(make_circuit: Make) -> None:
    circuit = make_circuit()
    neuron = next(iter(circuit.graph))
    circuit.graph.nodes[neuron].update(effect=math.nan, stderr=math.inf, q50=-math.inf)
    data = data_of(render_circuit(circuit))
    shown = next(n for n in data["nodes"] if (n["layer"], n["index"]) == neuron)
    assert (shown["effect"], shown["stderr"], shown["q50"]) == (None, None, None)
    assert data["provenance"]["tau"] is None


def test_what_was_estimated_is_marked(make_circuit: Make) -> None:
    circuit = make_circuit()
    neuron, edge = list(circuit.graph)[3], next(iter(circuit.graph.edges))
    circuit.graph.nodes[neuron]["measured"] = False
    circuit.graph.nodes[list(circuit.graph)[4]]["total_measured"] = False
    circuit.graph.edges[edge]["measured"] = False
    data = data_of(render_circuit(circuit))
    marked = [(n["layer"], n["index"]) for n in data["nodes"] if n.get("estimated")]
    assert marked == [neuron]
    totals = [(n["layer"], n["index"]) for n in data["nodes"] if n.get("total_estimated")]
    assert totals == [list(circuit.graph)[4]]
    ends = {n["id"]: (n["layer"], n["index"]) for n in data["nodes"]}
    assert [(ends[e["from"]], ends[e["to"]]) for e in data["edges"] if e.get("estimated")] == [edge]


def test_sparse_attributes_and_foreign_values_are_fine(make_circuit: Make) -> None:
    odd = {"seed": np.int64(3), "cut": np.float32(0.5), 1: (Path("x"), {"b", "a"})}
    circuit = replace(make_circuit(), provenance=odd)
    neuron = next(iter(circuit.graph))
    del circuit.graph.nodes[neuron]["name"]
    for key in ("mean", "q5", "q95", "total_effect"):
        del circuit.graph.nodes[neuron][key]
    data = data_of(render_circuit(circuit))
    shown = next(n for n in data["nodes"] if (n["layer"], n["index"]) == neuron)
    assert shown["label"] == f"{neuron.layer}[{neuron.index}]"
    assert data["provenance"] == {"seed": 3, "cut": 0.5, "1": ["x", ["a", "b"]]}


def test_an_empty_circuit_has_a_page(make_circuit: Make) -> None:
    circuit = replace(make_circuit(), strongest=())
    circuit.graph.clear()
    assert data_of(render_circuit(circuit))["nodes"] == []


def test_same_circuit_same_page(make_circuit: Make) -> None:
    assert render_circuit(make_circuit()) == render_circuit(make_circuit())
    assert render_circuit(make_circuit()) != render_circuit(make_circuit(seed=1))


def test_rendering_leaves_the_circuit_alone(make_circuit: Make) -> None:
    circuit, untouched = make_circuit(), make_circuit()
    render_circuit(circuit)
    assert list(circuit.graph.nodes) == list(untouched.graph.nodes)
    assert repr(dict(circuit.graph.nodes)) == repr(dict(untouched.graph.nodes))
    assert repr(circuit.graph.adj) == repr(untouched.graph.adj)


def test_to_html_replaces_the_file_whole(make_circuit: Make, tmp_path: Path) -> None:
    path = tmp_path / "circuit.html"
    path.write_text("old")
    circuit = make_circuit(names={0: "Größe=≥5"})
    circuit.to_html(str(path))
    assert path.read_bytes() == render_circuit(circuit).encode("utf-8")
    assert os.listdir(tmp_path) == ["circuit.html"]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR


def test_a_failed_write_keeps_the_old_file(
    make_circuit: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk is full")

    path = tmp_path / "circuit.html"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk is full"):
        make_circuit().to_html(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["circuit.html"]


def test_paths_that_cannot_be_written_are_named(
    make_circuit: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit = make_circuit()
    circuit.graph.clear()  # refused before any work is done
    with pytest.raises(OptionError, match=r"absent.*make it"):
        circuit.to_html(tmp_path / "absent" / "page.html")
    with pytest.raises(OptionError, match=re.escape(str(tmp_path))):
        circuit.to_html(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(OptionError, match=r"not writable: choose another"):
        circuit.to_html(tmp_path / "page.html")


def test_a_page_of_thousands_is_cut_and_says_so(make_circuit: Make) -> None:
    circuit = make_circuit((20, 1500, 700, 1), density=0.02)
    assert len(circuit.graph) > 2_200
    assert circuit.graph.number_of_edges() > 20_000
    page = render_circuit(circuit)
    data = data_of(page)
    assert (len(data["nodes"]), len(data["edges"])) == (2_000, 10_000)
    assert len(page) < 6_000_000
    (note,) = [note for note in data["notes"] if note.startswith("this page draws")]
    edges = circuit.graph.number_of_edges()
    assert f"2,000 of {len(circuit.graph):,} neurons and 10,000 of {edges:,} edges" in note
    ids = {n["id"]: (n["layer"], n["index"]) for n in data["nodes"]}
    pairs = {(ids[e["from"]], ids[e["to"]]) for e in data["edges"]}
    for sign in ("positive", "negative"):
        for path in circuit.paths(20, sign=sign):
            assert set(pairwise(map(tuple, path.neurons))) <= pairs
    strength = {n: abs(d["effect"]) for n, d in circuit.graph.nodes(data=True)}
    hidden = [strength[n] for n in circuit.graph if n not in set(ids.values())]
    assert max(hidden) <= sorted(strength.values())[-1_900]


def images(size: int) -> neurograph.Study:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    data = torch.rand(20, 1, size, size)
    model(data)
    labels = [HOSTILE if i % 2 else "well" for i in range(20)]
    return neurograph.Study(model, (data, labels), 1, progress=False)


@pytest.mark.parametrize("size", [8, 90])
def test_exemplars_are_small_pictures_outlined_where_maps_peak(size: int) -> None:
    circuit = images(size).search()
    page = render_circuit(circuit, None, 2)
    data, found = data_of(page), circuit.study.exemplars(neurons=circuit.graph, count=2)
    assert_asks_for_nothing(page)
    samples = {one["sample"] for node in data["nodes"] for one in node["exemplars"]}
    assert samples == set(found.table["sample"]) == set(map(int, data["pictures"]))
    for node in data["nodes"]:
        own = found.of((node["layer"], node["index"]))
        assert [one["value"] for one in node["exemplars"]] == pytest.approx(own["value"].tolist())
        assert {one["label"] for one in node["exemplars"]} <= {"well", HOSTILE}
        for one, place in zip(node["exemplars"], own["place"], strict=True):
            if node["layer"] == "0":
                left, top, width, _ = one["outline"]
                assert (round(top / width), round(left / width)) == place
    for sample, picture in data["pictures"].items():
        pixels = np.frombuffer(base64.b64decode(picture["pixels"]), np.uint8)
        assert len(pixels) == picture["width"] * picture["height"] == min(size, 64) ** 2
        if size == 8:
            image = circuit.study.data[0][int(sample), 0].numpy()
            scaled = (image - image.min()) / (image.max() - image.min()) * 255
            np.testing.assert_allclose(pixels.reshape(8, 8), scaled, atol=0.51)
    assert any("samples of the data, as exemplars" in note for note in data["notes"])


def test_no_samples_of_the_data_where_none_are_asked_for_or_at_hand(tmp_path: Path) -> None:
    circuit = images(8).search()
    for one, count in ((circuit, 0), (circuit.detach(), 3)):
        one.to_html(tmp_path / "page.html", exemplars=count)
        data = data_of((tmp_path / "page.html").read_text("utf-8"))
        assert "pictures" not in data
        assert not any("exemplars" in node for node in data["nodes"])
    shuffled = DataLoader(TensorDataset(torch.rand(9, 3)), shuffle=True)
    circuit = neurograph.search(nn.Linear(3, 1), shuffled, progress=False)
    circuit.to_html(tmp_path / "page.html")
    notes = data_of((tmp_path / "page.html").read_text("utf-8"))["notes"]
    assert any(note.startswith("no exemplars are shown: samples of a DataLoader") for note in notes)
    with pytest.raises(OptionError, match="exemplars=-1"):
        circuit.to_html(tmp_path / "page.html", exemplars=-1)
