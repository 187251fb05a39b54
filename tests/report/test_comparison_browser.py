"""The page of a comparison in a real browser: graph and tables show the same, and are linked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neurograph.report import comparison_page as module
from neurograph.report.comparison_page import render_comparison
from tests.report.compared import alike, comparison_of
from tests.report.pages import HOSTILE, drag_and_zoom, settle

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if shutil.which("chromium") is None:
    pytest.skip("no chromium on the PATH to open pages with", allow_module_level=True)

Make = Callable[..., Any]
Visit = Callable[..., Any]
STATUSES = ("only_a", "both", "flipped", "only_b")


@pytest.fixture
def found(make_circuit: Make) -> Any:
    return alike(comparison_of(make_circuit(), make_circuit(seed=2)))


def strength(table: pd.DataFrame) -> pd.Series:
    return table[["effect_a", "effect_b"]].abs().max(axis=1)


def visible(found: Any, edges: pd.Series, neurons: pd.Series) -> dict[str, int]:
    """Count what is shown: the edges chosen, the neurons chosen, and the ends of those edges."""
    kept, table = found.neurons(), found.edges()
    by_side = {s: {n: i for i, n in kept[f"neuron_{s}"].dropna().items()} for s in "ab"}
    shown = set(kept.index[neurons])
    for row in table[edges].to_dict("records"):
        for end in ("source", "target"):
            a, b = row[f"{end}_a"], row[f"{end}_b"]
            shown.add(by_side["a"].get(a, by_side["b"].get(b)))
    return {"nodes": len(shown), "edges": int(edges.sum())}


def some_neuron(found: Any, layer: str = "linear1", status: str = "only_a") -> Any:
    table = found.neurons(status)
    return next(n for n in table["neuron_a"] if n is not None and n.layer == layer)


def rows_of(page: Any, table: str) -> list[int]:
    """Row numbers that a table lists on all its pages."""
    listed: list[int] = []
    while True:
        listed += page.locator(f"#{table} tbody tr").evaluate_all(
            "rows => rows.map(row => Number(row.dataset.row))"
        )
        ahead = page.locator(f"#{table} [data-turn='1']")
        if not ahead.count() or ahead.is_disabled():
            return listed
        ahead.click()


def test_it_draws_silently_and_fetches_nothing(found: Any, visit: Visit) -> None:
    page, complaints, requests = visit(render_comparison(found))
    assert page.evaluate("neurograph.visible()") == {
        "nodes": len(found.neurons()), "edges": len(found.edges())
    }  # fmt: skip
    assert page.title() == "seed 0 and seed 1 compared"
    assert "input" in page.locator("#columns").inner_text()
    for status in STATUSES:
        assert page.locator(f"#count-{status}").inner_text() == str(len(found.neurons(status)))
    for tab in ("neurons", "edges", "paths", "layers", "overview"):
        page.locator(f"#tab-{tab}").click()
        assert page.locator(f"#panel-{tab}").is_visible()
        assert page.locator("[role=tabpanel]:visible").count() == 1
    page.locator("summary", has_text="How this was found").click()
    assert "HeartNet" in page.locator("#provenance").inner_text()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_each_status_can_be_put_away(found: Any, visit: Visit) -> None:
    page, _, _ = visit(render_comparison(found))
    neurons, edges = found.neurons(), found.edges()
    hidden: list[str] = []
    for status in STATUSES:
        page.locator(f"#show-{status}").click()
        hidden.append(status)
        assert page.locator(f"#show-{status}").get_attribute("aria-pressed") == "false"
        shown = [~table["status"].isin(hidden) for table in (edges, neurons)]
        assert page.evaluate("neurograph.visible()") == visible(found, *shown)
    assert page.evaluate("neurograph.visible()") == {"nodes": 0, "edges": 0}


def test_the_slider_hides_what_is_weak_or_changed_little(found: Any, visit: Visit) -> None:
    page, _, _ = visit(render_comparison(found))
    neurons, edges = found.neurons(), found.edges()
    page.evaluate("neurograph.setThreshold(0.1, 'strength')")
    shown = [strength(table) >= 0.1 for table in (edges, neurons)]
    assert page.evaluate("neurograph.visible()") == visible(found, *shown)
    assert f"{shown[0].sum()} of {len(edges)} edges" in page.locator("#counts").inner_text()
    page.evaluate("neurograph.setThreshold(0.1, 'change')")
    shown = [table["difference"].abs().fillna(strength(table)) >= 0.1 for table in (edges, neurons)]
    assert page.evaluate("neurograph.visible()") == visible(found, *shown)
    page.locator("#threshold").fill("0")
    assert page.evaluate("neurograph.visible().edges") == len(edges)
    page.locator("#threshold").fill("500")
    assert 0 < page.evaluate("neurograph.visible().edges") < len(edges)


def test_tables_list_what_the_comparison_has(found: Any, visit: Visit) -> None:
    page, _, _ = visit(render_comparison(found))
    for kind in ("neurons", "edges", "paths"):
        table = getattr(found, kind)()
        page.locator(f"#tab-{kind}").click()
        assert rows_of(page, kind) == list(range(len(table)))
        for status in STATUSES:
            page.locator(f"#{kind} [data-status={status}]").click()
            assert rows_of(page, kind) == table.index[table["status"] == status].tolist()
        page.locator(f"#{kind} [data-status=all]").click()
        page.locator(f"#{kind} [data-sort=a]").click()
        known = table["effect_a"].dropna().sort_values(ascending=False, kind="stable")
        assert rows_of(page, kind)[: len(known)] == known.index.tolist()
        page.locator(f"#{kind} [data-sort=a]").click()
        assert page.locator(f"#{kind} th[aria-sort=ascending]").count() == 1
        known = table["effect_a"].dropna().sort_values(kind="stable")
        assert rows_of(page, kind)[: len(known)] == known.index.tolist()
    page.locator("#tab-neurons").click()
    page.locator("#neurons [data-sort=change]").click()
    first, row = page.locator("#neurons tbody tr").first.inner_text(), found.neurons().loc[0]
    assert row["name"] in first
    assert re.findall(r"[+−]\d+\.\d+", first)[:1] == [f"{row['effect_a']:+.2f}".replace("-", "−")]


def test_a_click_in_the_graph_leads_the_tables(found: Any, visit: Visit) -> None:
    page, complaints, _ = visit(render_comparison(found))
    neuron = some_neuron(found)
    at = page.evaluate("n => neurograph.position('a', ...n)", list(neuron))
    page.mouse.click(at["x"], at["y"])
    chosen = page.evaluate("neurograph.selection()")
    table = found.neurons().set_index("neuron_a")
    assert (chosen["kind"], chosen["name"]) == ("neuron", table.at[neuron, "name"])
    page.locator("#tab-neurons").click()
    assert page.locator("#neurons tr.chosen").get_attribute("data-row") == str(chosen["row"])
    edges, paths = found.edges(), found.paths()
    page.locator("#tab-edges").click()
    touching = edges[(edges["source_a"] == neuron) | (edges["target_a"] == neuron)]
    assert rows_of(page, "edges") == touching.index.tolist()
    page.locator("#tab-paths").click()
    through = [row for row, path in paths["path_a"].items() if path and neuron in path]
    assert rows_of(page, "paths") == through
    assert str(table.at[neuron, "name"]) in page.locator("#neuron").inner_text()
    box = page.locator("#canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 4, box["y"] + box["height"] / 4)
    assert page.evaluate("neurograph.selection()") is None
    assert not page.locator("#neuron").is_visible()
    assert rows_of(page, "paths") == list(range(len(paths)))
    assert complaints == []


def test_a_row_leads_the_graph(found: Any, visit: Visit) -> None:
    page, _, _ = visit(render_comparison(found))
    for kind, one in (("neurons", "neuron"), ("edges", "edge"), ("paths", "path")):
        page.locator(f"#tab-{kind}").click()
        page.locator(f"#{kind} [data-sort=name]").click()
        row = page.locator(f"#{kind} tbody tr").nth(3)
        number = int(row.get_attribute("data-row"))
        row.click()
        chosen = page.evaluate("neurograph.selection()")
        assert (chosen["kind"], chosen["row"]) == (one, number)
        assert page.locator(f"#{kind} tr.chosen").get_attribute("data-row") == str(number)
        length = {"edge": 2, "path": 4}.get(one, chosen["nodes"])
        assert chosen["nodes"] == length
        page.locator(f"#{kind} tr.chosen").click()
        assert page.evaluate("neurograph.selection()") is None


def test_an_edge_can_be_clicked(found: Any, visit: Visit) -> None:
    page, _, _ = visit(render_comparison(found))
    edges = found.edges()
    last = edges["source_a"].map(lambda n: n is not None and n.layer == "linear2")
    row = edges[last & (edges["status"] == "only_a")].iloc[0]
    ends = [page.evaluate("n => neurograph.position('a', ...n)", list(row[k]))
            for k in ("source_a", "target_a")]  # fmt: skip
    page.evaluate("neurograph.setThreshold(0.0)")
    x, y = (float(np.mean([end[key] for end in ends])) for key in ("x", "y"))
    page.mouse.click(x, y)
    chosen = page.evaluate("neurograph.selection()")
    assert chosen["kind"] == "edge"
    page.locator("#tab-edges").click()
    assert page.locator("#edges tr.chosen").get_attribute("data-row") == str(chosen["row"])


def test_hovering_tells_both_effects_and_the_difference(found: Any, visit: Visit) -> None:
    page, _, _ = visit(render_comparison(found))
    row = found.neurons("flipped").iloc[0]
    at = page.evaluate("n => neurograph.position('b', ...n)", list(row["neuron_b"]))
    page.mouse.move(at["x"], at["y"])
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    text = tip.inner_text()
    assert all(word in text for word in ("seed 0", "seed 1", "difference", "sign flipped"))
    values = [float(x.replace("−", "-")) for x in re.findall(r"[+−]\d+\.\d+", text)]
    expected = [row["effect_a"], row["effect_b"], row["difference"]]
    assert values == pytest.approx(expected, rel=0.06)


def test_search_and_keys_lead_everywhere(found: Any, visit: Visit) -> None:
    page, complaints, _ = visit(render_comparison(found))
    page.keyboard.press("/")
    page.keyboard.type("linear2")
    assert page.locator("#hits li").count() == sum(
        "linear2" in {n.layer for n in pair if n is not None}
        for pair in zip(found.neurons()["neuron_a"], found.neurons()["neuron_b"], strict=True)
    )
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert "linear2" in page.evaluate("neurograph.selection().name")
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowLeft")
    assert "linear1" in page.evaluate("neurograph.selection().name")
    page.keyboard.press("Escape")
    assert page.evaluate("neurograph.selection()") is None
    page.locator("#tab-overview").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#panel-neurons").is_visible()
    page.locator("#neurons tbody tr").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.evaluate("neurograph.selection().row") == 1
    assert page.evaluate("document.activeElement.dataset.row") == "1"
    page.locator("#tab-layers").click()
    page.locator("#layer-table tbody tr").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#panel-neurons").is_visible()
    listed = found.neurons().loc[rows_of(page, "neurons")]
    assert {n.layer for n in listed["neuron_a"].dropna()} == {"linear1"}
    assert len(listed) == sum(c["layer"] == "a:linear1" for c in nodes_of(page))
    assert complaints == []


def nodes_of(page: Any) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = page.evaluate(
        "JSON.parse(document.getElementById('comparison-data').textContent).nodes"
    )
    return nodes


def test_hostile_names_stay_names(make_circuit: Make, visit: Visit) -> None:
    one, two = (replace(make_circuit(names={0: HOSTILE}, seed=s), target=HOSTILE) for s in (0, 2))
    both = comparison_of(one, two, names=(HOSTILE, f"{HOSTILE}<b>bold</b>" + "x" * 300))
    page, complaints, _ = visit(render_comparison(replace(both, notes=(HOSTILE,))))
    page.evaluate("neurograph.select('a', 'input', 0)")
    at = page.evaluate("neurograph.position('a', 'input', 0)")
    page.mouse.move(at["x"], at["y"])
    page.locator("#search").fill("</script>")
    for tab in ("neurons", "edges", "paths", "layers"):
        page.locator(f"#tab-{tab}").click()
    assert HOSTILE in page.locator("#neuron h2").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator("h1 b").count() == 0
    assert complaints == []


def test_what_is_left_out_is_told(
    found: Any, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EDGES_SHOWN", 10)
    page, _, _ = visit(render_comparison(found))
    left = len(found.edges()) - 10
    assert f"10 edges ({left} weaker left out)" in page.locator("#counts").inner_text()
    page.locator("#tab-edges").click()
    assert str(left) in page.locator("#edges .note").inner_text()
    assert str(len(found.edges())) in page.locator("#edges [data-status=all]").inner_text()


def test_many_edges_are_painted_from_a_bitmap(make_circuit: Make, visit: Visit) -> None:
    big = comparison_of(*(make_circuit((60, 90, 90, 1), density=0.15, seed=s) for s in (0, 1)))
    page, complaints, _ = visit(render_comparison(big), color_scheme="dark")
    drag_and_zoom(page)
    page.emulate_media(color_scheme="light")
    page.evaluate("n => neurograph.select('a', ...n)", list(some_neuron(big, "linear2", "both")))
    settle(page)
    assert page.locator("#neuron").is_visible()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_and_can_be_read(found: Any, visit: Visit, scheme: str) -> None:
    page, complaints, _ = visit(render_comparison(found), width=400, color_scheme=scheme)
    for tab in ("overview", "neurons", "edges", "paths", "layers"):
        page.locator(f"#tab-{tab}").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    names = [f"{status}{kind}" for status in STATUSES for kind in ("", "-soft", "-text")]
    colour = {
        name: np.array([int(value.lstrip("#")[k : k + 2], 16) for k in (0, 2, 4)]) / 255
        for name, value in page.evaluate(
            """names => names.map(name => [name, getComputedStyle(document.documentElement)
              .getPropertyValue("--" + name).trim()])""",
            [*names, "surface"],
        )
    }
    for status in STATUSES:
        assert contrast(colour[status], colour["surface"]) >= 3
        assert contrast(colour[f"{status}-text"], colour[f"{status}-soft"]) >= 4.5
    assert complaints == []


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """Contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: np.ndarray) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_empty_circuits_say_so(make_circuit: Make, visit: Visit) -> None:
    circuit = replace(make_circuit(), strongest=())
    circuit.graph.clear()
    page, complaints, _ = visit(render_comparison(comparison_of(circuit, circuit, draws=10)))
    assert "0 neurons in either circuit" in page.locator("#summary").inner_text()
    page.locator("#tab-neurons").click()
    assert "None." in page.locator("#neurons").inner_text()
    assert complaints == []
