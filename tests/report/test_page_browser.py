"""The page in a real browser: it draws, answers the pointer and the keys, and fetches nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import neurograph
from neurograph.report.circuit_page import render_circuit
from tests.report.pages import HOSTILE, drag_and_zoom, settle

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if shutil.which("chromium") is None:
    pytest.skip("no chromium on the PATH to open pages with", allow_module_level=True)

Make = Callable[..., Any]


class Opened(NamedTuple):
    """An open page and all it complained of or asked for."""

    page: Any
    circuit: Any
    complaints: list[str]
    requests: list[str]


@pytest.fixture
def opened(visit: Callable[[str], Any]) -> Callable[[Any], Opened]:
    def open_page(circuit: Any) -> Opened:
        page, complaints, requests = visit(render_circuit(circuit))
        return Opened(page, circuit, complaints, requests)

    return open_page


def hidden_neuron(circuit: Any, layer: str = "linear1") -> Any:
    return next(n for n in circuit.graph if n.layer == layer)


def ink(page: Any) -> int:
    """Count canvas pixels that are clearly coloured: edges and neurons that are not faded."""
    count: int = page.evaluate(
        """() => {
          const canvas = document.querySelector("#canvas canvas");
          const copy = document.createElement("canvas");
          [copy.width, copy.height] = [canvas.width, canvas.height];
          const context = copy.getContext("2d", { willReadFrequently: true });
          context.drawImage(canvas, 0, 0);
          const { data } = context.getImageData(0, 0, copy.width, copy.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4) {
            const high = Math.max(data[i], data[i + 1], data[i + 2]);
            const low = Math.min(data[i], data[i + 1], data[i + 2]);
            if (data[i + 3] > 0 && high - low > 70) count += 1;
          }
          return count;
        }"""
    )
    return count


def test_it_draws_silently_and_fetches_nothing(
    opened: Callable[[Any], Opened], make_circuit: Make
) -> None:
    page, circuit, complaints, requests = opened(make_circuit())
    nodes, edges = len(circuit.graph), circuit.graph.number_of_edges()
    assert page.evaluate("neurograph.visible()") == {"nodes": nodes, "edges": edges}
    assert ink(page) > 2000
    assert page.title() == "Circuit of disease"
    assert "input" in page.locator("#columns").inner_text()
    assert page.locator("#paths tbody tr").count() >= 2
    page.locator("summary", has_text="How this circuit was found").click()
    assert "HeartNet" in page.locator("#provenance").inner_text()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_it_names_the_features_that_do_most_in_total(visit: Callable[[str], Any]) -> None:
    torch.manual_seed(0)
    model, X = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.rand(60, 4)
    circuit = neurograph.search(model, X, 1, feature_names=["a", "b", HOSTILE, "d"], progress=False)
    page, complaints, _ = visit(render_circuit(circuit))
    told = page.locator("#summary").inner_text()
    first = circuit.features().head(3)["name"]
    places = [told.index(name) for name in first]
    assert told.startswith("Features that do most to output[1] in total: ")
    assert places == sorted(places)
    assert complaints == []


def test_a_click_selects_a_neuron_and_fades_the_rest(
    opened: Callable[[Any], Opened], make_circuit: Make
) -> None:
    page, circuit, complaints, _ = opened(make_circuit())
    neuron = hidden_neuron(circuit)
    before = ink(page)
    at = page.evaluate("n => neurograph.position(...n)", list(neuron))
    page.mouse.click(at["x"], at["y"])
    settle(page)
    chosen = page.evaluate("neurograph.selection()")
    assert (chosen["layer"], chosen["index"]) == neuron
    assert 0 < chosen["edges"] < circuit.graph.number_of_edges()
    assert ink(page) < before
    panel = page.locator("#neuron")
    assert f"linear1[{neuron.index}]" in panel.inner_text()
    assert re.search(r"[+−]\d+\.\d+( ± \d+\.\d+)?", panel.inner_text())
    assert f"linear1[{neuron.index}]" in page.locator("#live").inner_text()
    box = page.locator("#canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 4, box["y"] + box["height"] / 4)
    assert page.evaluate("neurograph.selection()") is None
    assert not panel.is_visible()
    assert complaints == []


def test_hovering_tells_the_statistics(opened: Callable[[Any], Opened], make_circuit: Make) -> None:
    page, circuit, _, _ = opened(make_circuit())
    neuron = hidden_neuron(circuit)
    at = page.evaluate("n => neurograph.position(...n)", list(neuron))
    page.mouse.move(at["x"], at["y"])
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    assert all(word in tip.inner_text() for word in ("linear1", "total effect", "mean ± std"))
    assert tip.locator("svg.strip").count() == 1


def test_the_slider_hides_edges_then_neurons(
    opened: Callable[[Any], Opened], make_circuit: Make
) -> None:
    page, circuit, _, _ = opened(make_circuit())
    everything = page.evaluate("neurograph.visible()")
    page.locator("#threshold").fill("400")
    fewer = page.evaluate("neurograph.visible()")
    assert fewer["edges"] < everything["edges"]
    page.evaluate("neurograph.setThreshold(0.2)")
    graph = circuit.graph
    edges = [(u, v) for u, v, e in graph.edges(data="effect") if abs(e) >= 0.2]
    kept = {n for n, e in graph.nodes(data="effect") if abs(e) >= 0.2}
    kept |= {n for edge in edges for n in edge}
    assert page.evaluate("neurograph.visible()") == {"nodes": len(kept), "edges": len(edges)}
    assert f"{len(edges)} of {graph.number_of_edges()}" in page.locator("#counts").inner_text()
    page.evaluate("neurograph.setThreshold(0)")
    assert page.evaluate("neurograph.visible()") == everything


def test_each_sign_can_be_put_away(opened: Callable[[Any], Opened], make_circuit: Make) -> None:
    page, circuit, _, _ = opened(make_circuit())
    page.locator("#show-negative").click()
    sign = circuit.graph.nodes(data="sign")
    open_nodes = {n for n, s in sign if s != "negative"}
    edges = [
        (u, v)
        for u, v, s in circuit.graph.edges(data="sign")
        if s == "positive" and u in open_nodes and v in open_nodes
    ]
    assert page.evaluate("neurograph.visible()") == {"nodes": len(open_nodes), "edges": len(edges)}
    page.locator("#show-positive").click()
    assert page.evaluate("neurograph.visible()") == {"nodes": 0, "edges": 0}
    assert page.locator("#show-positive").get_attribute("aria-pressed") == "false"


def test_search_and_keys_lead_to_neurons(
    opened: Callable[[Any], Opened], make_circuit: Make
) -> None:
    page, circuit, complaints, _ = opened(make_circuit())
    page.keyboard.press("/")
    page.keyboard.type("st_slope")
    assert page.locator("#hits li").count() == 2
    second = page.locator("#hits li .name").nth(1).inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.evaluate("neurograph.selection().name") in second
    page.locator("#search").fill("no such neuron")
    assert "No neuron" in page.locator("#hits").inner_text()
    page.locator("#search").fill("linear2")
    assert page.locator("#hits li").count() == len(
        [n for n in circuit.graph if n.layer == "linear2"]
    )
    page.keyboard.press("Enter")
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("neurograph.selection().layer") == "linear1"
    page.keyboard.press("Escape")
    assert page.evaluate("neurograph.selection()") is None
    assert complaints == []


def test_a_row_lights_up_its_path(opened: Callable[[Any], Opened], make_circuit: Make) -> None:
    page, circuit, _, _ = opened(make_circuit())
    row = page.locator("#paths tbody tr").first
    strongest = next(circuit.paths(1, sign="positive"))
    assert ("✓ measured" in row.inner_text()) == strongest.measured
    row.locator("button").focus()
    page.keyboard.press("Enter")
    chosen = page.evaluate("neurograph.selection()")
    assert [(n["layer"], n["index"]) for n in chosen["path"]] == list(strongest.neurons)
    assert page.locator("#paths tr.chosen").count() == 1


def test_hostile_names_stay_names(opened: Callable[[Any], Opened], make_circuit: Make) -> None:
    circuit = replace(
        make_circuit(names={0: HOSTILE, 1: "x" * 300}),
        target=f"{HOSTILE}<b>bold</b>",
        provenance={HOSTILE: [HOSTILE, {"deep": HOSTILE}]},
    )
    page, _, complaints, _ = opened(circuit)
    page.evaluate("neurograph.select('input', 0)")
    at = page.evaluate("neurograph.position('input', 0)")
    page.mouse.move(at["x"], at["y"])
    page.locator("#search").fill("</script>")
    settle(page)
    assert HOSTILE in page.locator("#neuron h2").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator("h1 b").count() == 0
    assert complaints == []


def test_it_works_inside_a_sandboxed_frame(browser: Any, make_circuit: Make) -> None:
    page = browser.new_page()
    page.set_content('<iframe sandbox="allow-scripts" width="900" height="700"></iframe>')
    page.evaluate(
        "text => { document.querySelector('iframe').srcdoc = text }", render_circuit(make_circuit())
    )
    frame = page.locator("iframe").element_handle().content_frame()
    frame.wait_for_function("window.neurograph && window.neurograph.ready")
    assert frame.evaluate("neurograph.visible().nodes") == 19
    page.close()


def test_dark_and_crowded(visit: Callable[..., Any], make_circuit: Make) -> None:
    circuit = make_circuit((60, 90, 90, 1), density=0.15)
    assert circuit.graph.number_of_edges() > 1200  # enough to be painted from a bitmap
    page, complaints, _ = visit(render_circuit(circuit), color_scheme="dark")
    assert ink(page) > 2000
    drag_and_zoom(page)
    page.emulate_media(color_scheme="light")
    page.evaluate("n => neurograph.select(...n)", list(hidden_neuron(circuit, "linear2")))
    settle(page)
    assert ink(page) > 500
    assert complaints == []


def test_an_empty_circuit_says_so(opened: Callable[[Any], Opened], make_circuit: Make) -> None:
    circuit = replace(make_circuit(), strongest=())
    circuit.graph.clear()
    page, _, complaints, _ = opened(circuit)
    assert "no neuron" in page.locator("#subtitle").inner_text()
    assert complaints == []


def test_exemplars_are_shown_as_pictures_tokens_and_features(visit: Callable[[str], Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 1))
    circuit = neurograph.search(model, torch.rand(9, 1, 6, 6), progress=False)
    page, complaints, _ = visit(render_circuit(circuit, None, 1))
    assert page.evaluate("window.neurograph.select('0', 0)")
    assert page.locator(".exemplars canvas").count() == 3  # highest, between, lowest
    assert page.locator(".exemplars .outline").count() == 3
    model = nn.Sequential(nn.Embedding(5, 4), nn.LSTM(4, 3, batch_first=True))
    names = neurograph.Study(
        model,
        torch.randint(5, (9, 4)),
        lambda output, _: output[0][:, -1, 0],
        tokenizer=lambda i: f"{HOSTILE}{i}",
        progress=False,
    )
    page, more, requests = visit(render_circuit(names.search(), None, 1))
    assert page.evaluate("window.neurograph.select('1', 0)")
    assert HOSTILE in page.locator(".exemplars mark").first.inner_text()
    assert not [*complaints, *more]
    assert all(request.startswith("file:") for request in requests)
