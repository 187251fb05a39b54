"""The page of a comparison as text: what is in it, where it lies, and what must never be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neurograph.errors import OptionError
from neurograph.matching.matching import Matching
from neurograph.report import comparison_page as module
from neurograph.report.comparison_cards import layer_cards, measure_cards, transplant_cards
from neurograph.report.comparison_page import render_comparison
from neurograph.report.document import Tab
from tests.report.compared import alike, comparison_of, transplants, without_layer
from tests.report.pages import HOSTILE, assert_asks_for_nothing, data_of, markup_of, words_of

Make = Callable[..., Any]
KINDS = ("neurons", "edges", "paths")


@pytest.fixture
def found(make_circuit: Make) -> Any:
    return alike(comparison_of(make_circuit(), make_circuit(seed=2)))


def nan_to_none(value: float) -> float | None:
    return None if math.isnan(value) else pytest.approx(value, rel=1e-6)


def test_page_holds_every_neuron_edge_and_path_once(found: Any) -> None:
    data = data_of(render_comparison(found))
    for kind in KINDS:
        table, items = getattr(found, kind)(), data[kind if kind != "neurons" else "nodes"]
        assert sorted(item["row"] for item in items) == list(range(len(table)))
        for item in items:
            row = table.loc[item["row"]]
            assert item["status"] == row["status"]
            for key in ("effect_a", "stderr_a", "effect_b", "stderr_b", "difference", "stderr"):
                assert item[key] == nan_to_none(row[key])
        assert data["counts"][kind] == {
            status: int((table["status"] == status).sum())
            for status in ("only_a", "both", "flipped", "only_b")
        }
    for node in data["nodes"]:
        row = found.neurons().loc[node["row"]]
        for side in "ab":
            neuron = row[f"neuron_{side}"]
            assert node[side] == (None if neuron is None else list(neuron))
    names = [node["label"] for node in data["nodes"]]
    for edge in data["edges"]:
        ends = " → ".join(names[int(edge[end])] for end in ("from", "to"))
        assert ends == found.edges().loc[edge["row"], "name"]
    for path in data["paths"]:
        assert " → ".join(names[i] for i in path["chain"]) == path["name"]


def test_a_matched_pair_is_one_node_and_both_circuits_share_columns(found: Any) -> None:
    data = data_of(render_comparison(found))
    assert [(c["a"], c["b"]) for c in data["columns"]] == [
        (layer, [layer]) for layer in ("input", "linear1", "linear2", "linear3")
    ]
    assert len({(n["x"], n["y"]) for n in data["nodes"]}) == len(data["nodes"])
    bands = {c["layer"]: (c["left"], c["right"]) for c in data["columns"]}
    assert all(bands[n["layer"]][0] < n["x"] < bands[n["layer"]][1] for n in data["nodes"])
    hidden = [n for n in data["nodes"] if n["layer"] == "a:linear1"]
    order = [n["status"] for n in sorted(hidden, key=lambda n: n["y"])]
    assert order == sorted(order, key=["only_a", "both", "flipped", "only_b"].index)


def test_layers_of_one_model_alone_stand_between_their_neighbours(make_circuit: Make) -> None:
    deep = make_circuit((8, 6, 7, 5, 1), seed=3)
    shallow = without_layer(make_circuit((8, 6, 7, 5, 1)), "linear2")
    match = {"input": "input", "linear1": "linear1", "linear4": "linear4"}
    page = render_comparison(comparison_of(shallow, deep, match=match))
    columns = [(c["a"], c["b"]) for c in data_of(page)["columns"]]
    shared = [("input", ["input"]), ("linear1", ["linear1"])]
    ends = [("linear3", []), ("linear4", ["linear4"])]
    alone = [(None, ["linear2"]), (None, ["linear3"])]  # of one name with a's, but no partner
    assert columns == [*shared, *alone, *ends]
    listed = [(row["a"], row["b"]) for row in data_of(page)["layers"]]
    assert listed == [(a, b[0] if b else None) for a, b in columns]


def test_a_pair_has_the_names_of_both_circuits(make_circuit: Make) -> None:
    one, two = make_circuit(names={0: "Age"}), make_circuit(names={0: "age in years"}, seed=2)
    for first, second in ((one, two), (two, one)):
        found = comparison_of(first, second)
        nodes = data_of(render_comparison(found))["nodes"]
        shown = next(node for node in nodes if node["a"] == ["input", 0])
        names = [circuit.name(("input", 0)) for circuit in (first, second)]
        assert [shown["label"], shown["label_b"]] == names


def test_the_weakest_edges_are_left_out_and_counted(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EDGES_SHOWN", 12)
    data, edges = data_of(render_comparison(found)), found.edges()
    assert data["left_out"] == {"edges": len(edges) - 12, "paths": 0}
    assert sum(data["counts"]["edges"].values()) == len(edges)
    strongest = edges[["effect_a", "effect_b"]].abs().max(axis=1).nlargest(12)
    assert [edge["row"] for edge in data["edges"]] == sorted(strongest.index)


def test_each_measure_stands_beside_its_null(found: Any) -> None:
    for card in measure_cards(found):
        row = found.measures.loc[card.name]
        assert card.value == f"{row['value']:.2f}".replace("-", "−").replace("nan", "–")
        if card.mark is None:
            continue
        drawn = found.null[card.name]
        drawn = drawn[np.isfinite(drawn)]
        heights = np.array([float(x) for x in re.findall(r"v-([\d.]+)h", card.bars)])
        # From the tallest bar: heights are rounded, which a short bar's own would magnify.
        tallest = round(len(drawn) * heights.max() / heights.sum())
        counts = heights / heights.max() * tallest
        assert counts == pytest.approx(np.round(counts), abs=0.25)
        assert np.round(counts).sum() == len(drawn)
        assert card.band is not None
        inside = card.band[0] <= card.mark <= card.band[1]
        assert inside == (row["null_low"] <= row["value"] <= row["null_high"])
    text = words_of(render_comparison(found))
    assert "permuted within their layers, 100 times" in text
    assert all(f" {name} " in text for name in found.measures.index)


def test_without_draws_there_is_no_null(make_circuit: Make) -> None:
    bare = comparison_of(make_circuit(), make_circuit(seed=2), draws=0)
    page = render_comparison(bare)
    assert "No permutations were drawn" in words_of(page)
    assert not re.search(r'<path class="bars"', page)


def test_transplants_are_told_in_words(found: Any) -> None:
    first, second = transplant_cards(found)
    assert first.sentence == (
        "seed 0 keeps only the neurons that match the circuit of seed 1: −6 % of its target is "
        "left; with its own circuit 104 %; with as many random neurons 9 % [−20 %, 30 %]."
    )
    assert second.sentence.startswith("seed 1 keeps only the neurons that match the circuit of ")
    assert "83 % of its target" in second.sentence
    assert second.p == "p = 0.048"
    assert all(card.sentence in words_of(render_comparison(found)) for card in (first, second))
    alone = replace(found, transplants=transplants().iloc[:0])
    assert "Do they compute it" not in words_of(render_comparison(alone))


def test_layers_are_a_table_with_shares(found: Any) -> None:
    cards = layer_cards(found, [(layer, (layer,)) for layer in reversed(found.layers["layer_a"])])
    assert [card.a for card in cards] == list(reversed(found.layers["layer_a"]))
    row = found.layers.set_index("layer_a").loc["linear1"]
    card = next(card for card in cards if card.a == "linear1")
    assert card.kept == (row["kept_a"], row["kept_b"])
    assert card.common == row["common"]
    assert card.shares[0][1] == f"{100 * row['share_a']:.0f} %"


def test_notes_ties_and_how_neurons_were_matched_are_told(found: Any) -> None:
    text = words_of(render_comparison(found))
    assert all(note in text for note in found.notes)
    assert "matched by how alike their activations are" in text
    assert "4 ties, where chance chose" in text
    assert "linear1 0, 1" in text


@pytest.mark.parametrize("name", [HOSTILE, "<!--<script>", "{{ 7 * 7 }}", "a\u2028b\u2029c"])
def test_names_are_data_and_never_markup(make_circuit: Make, name: str) -> None:
    one, two = (replace(make_circuit(names={0: name}, seed=s), target=name) for s in (0, 2))
    found = comparison_of(one, two, names=(name, f"{name} b"))
    found = replace(found, notes=(name,), provenance={name: name})
    page = render_comparison(found)
    data = data_of(page)
    assert name in [node["label"] for node in data["nodes"]]
    assert data["names"] == [name, f"{name} b"]
    assert data["provenance"][0] == ["comparison", {name: name}]
    if "<" in name:
        assert name not in page
    code = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert page.count("</script>") == page.count("<script") - sum(c.count("<script") for c in code)


def test_an_added_tab_has_a_button_and_its_panel(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = Tab("again", "Once more", "comparison_layers.html.j2", lambda _: {"layers": ()})
    first = replace(module.COMPARISON_TABS[0], label="First")
    monkeypatch.setattr(module, "COMPARISON_TABS", (first, added))
    markup = markup_of(render_comparison(found))
    assert re.findall(r'id="tab-(\w+)"', markup) == ["overview", "again"]
    assert re.findall(r'id="panel-(\w+)"', markup) == ["overview", "again"]
    assert "Once more" in markup
    assert markup.index('id="panel-again"') < markup.index('id="layer-table"')


def test_page_asks_for_nothing_outside(found: Any) -> None:
    assert_asks_for_nothing(render_comparison(found))


def test_same_comparison_same_page(make_circuit: Make) -> None:
    pages = [
        render_comparison(comparison_of(make_circuit(), make_circuit(seed=seed)))
        for seed in (2, 2, 3)
    ]
    assert pages[0] == pages[1] != pages[2]


def test_empty_circuits_have_a_page(make_circuit: Make) -> None:
    circuit = replace(make_circuit(), strongest=())
    circuit.graph.clear()
    data = data_of(render_comparison(comparison_of(circuit, circuit, draws=10)))
    assert data["nodes"] == data["edges"] == data["paths"] == []


def test_a_path_may_run_over_neurons_that_no_circuit_kept(make_circuit: Make) -> None:
    one, two = make_circuit(), make_circuit(seed=2)
    path = one.strongest[0]
    one.graph.remove_node(path.neurons[1])
    strongest = tuple(p for p in one.strongest if set(p.neurons) <= set(one.graph))
    found = comparison_of(replace(one, strongest=strongest), two)
    row = {"path_a": path.neurons, "path_b": None, "name": "odd", "status": "only_a"}
    found = replace(found, _paths=pd.concat([found.paths(), pd.DataFrame([row])]).reset_index())
    unmatched = replace(found, matching=Matching("mapping", found.matching.layers))
    shown = next(p for p in data_of(render_comparison(unmatched))["paths"] if p["name"] == "odd")
    assert [i is None for i in shown["chain"]] == [
        False,
        path.neurons[1] not in two.graph,
        False,
        False,
    ]


def test_to_html_replaces_the_file_whole(found: Any, tmp_path: Path) -> None:
    path = tmp_path / "diff.html"
    path.write_text("old")
    found.to_html(path)
    assert path.read_bytes() == render_comparison(found).encode("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["diff.html"]
    with pytest.raises(OptionError, match=r"absent.*make it"):
        found.to_html(tmp_path / "absent" / "page.html")
