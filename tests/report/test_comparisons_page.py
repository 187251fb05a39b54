"""The page of many comparisons, as text and in a browser: the matrix, its pairs, what is stable."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neurograph as ng
from neurograph.errors import OptionError
from neurograph.report import comparisons_page as module
from neurograph.report.comparisons_page import render_comparisons
from tests.report.pages import HOSTILE, assert_asks_for_nothing, data_of

Make = Callable[..., Any]
Visit = Callable[..., Any]
NAMES = ("seed 0", "seed 1", "twin")

in_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no chromium on the PATH to open pages with"
)


@pytest.fixture
def found(make_circuit: Make) -> Any:
    circuits = [make_circuit(), make_circuit(seed=1), make_circuit()]
    return ng.compare(dict(zip(NAMES, circuits, strict=True)), draws=200)


def test_page_holds_every_measure_of_every_pair(found: Any) -> None:
    data = data_of(render_comparisons(found))
    assert data["rows"] == data["columns"] == list(NAMES)
    for name in found["seed 0", "twin"].measures.index:
        for column, values in data["numbers"][name].items():
            table = found.measure(name, column=column).to_numpy()
            shown = np.array([[math.nan if x is None else x for x in row] for row in values])
            np.testing.assert_allclose(shown, table, rtol=1e-6)
    for pair in data["pairs"]:
        status = found[NAMES[pair["row"]], NAMES[pair["column"]]].neurons()["status"]
        assert pair["counts"] == [
            int((status == s).sum()) for s in ("only_a", "both", "flipped", "only_b")
        ]


def test_what_is_stable_travels_whole_or_is_counted(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(render_comparisons(found))["stable"]
    for kind in ("neurons", "edges", "paths"):
        table = found.stable(kind)
        assert data[kind]["circuits"] == list(NAMES)
        assert [row["name"] for row in data[kind]["rows"]] == table["name"].tolist()
        shown = [
            [math.nan if x is None else x for x in row["effects"]] for row in data[kind]["rows"]
        ]
        np.testing.assert_allclose(
            shown, table[[f"effect_{name}" for name in NAMES]].to_numpy(), rtol=1e-6
        )
    monkeypatch.setattr(module, "_STABLE_SHOWN", 5)
    few = data_of(render_comparisons(found))["stable"]["edges"]
    assert (len(few["rows"]), few["all"]) == (5, len(found.stable("edges")))


def test_notes_of_all_pairs_are_told_once(found: Any) -> None:
    page = render_comparisons(found)
    shared = set.intersection(*(set(cell.notes) for cell in found.cells.values()))
    listed = re.findall(r"<li>(.*?)</li>", page)
    assert set(listed) - shared <= {"Some pairs have notes of their own, shown with them."}
    told = {note for pair in data_of(page)["pairs"] for note in pair["notes"]}
    assert told | shared == {note for cell in found.cells.values() for note in cell.notes}
    assert not told & shared


def test_rows_and_columns_may_differ_and_pairs_be_missing(found: Any, make_circuit: Make) -> None:
    beside = ng.compare([make_circuit()], {"x": make_circuit(seed=1)}, draws=0)
    data = data_of(render_comparisons(beside))
    assert (data["rows"], data["columns"], data["stable"]) == (["0"], ["x"], {})
    first = ("seed 0", "seed 1")
    part = replace(found, cells={first: found.cells[first]})  # as an interruption leaves it
    assert data_of(render_comparisons(part))["stable"] == {}
    assert data_of(render_comparisons(replace(found, cells={})))["pairs"] == []


def test_same_comparisons_same_page_in_one_file(found: Any, tmp_path: Path) -> None:
    found.to_html(tmp_path / "many.html")
    page = render_comparisons(found)
    assert (tmp_path / "many.html").read_text(encoding="utf-8") == page
    assert_asks_for_nothing(page)
    with pytest.raises(OptionError, match=r"absent.*make it"):
        found.to_html(tmp_path / "absent" / "page.html")


@in_browser
def test_the_matrix_shows_each_measure(found: Any, visit: Visit) -> None:
    page, complaints, requests = visit(render_comparisons(found))
    for measure in ("neuron_jaccard", "spearman"):
        page.locator("#measure").select_option(measure)
        values = found.measure(measure).to_numpy()
        p = found.measure(measure, column="p_value").to_numpy()
        for i, j in np.ndindex(values.shape):
            cell = page.locator(f"#heat [data-at='{i},{j}']")
            if i == j:
                assert cell.inner_text() == ""
                continue
            lines = cell.inner_text().split()
            assert lines[0] == f"{values[i, j]:.2f}".replace("-", "−")
            assert lines[1:] == (["••"] if p[i, j] < 0.01 else ["•"] if p[i, j] < 0.05 else [])
    assert found.measure().loc["seed 0", "twin"] == 1
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@in_browser
def test_a_cell_tells_its_pair_by_pointer_and_keys(found: Any, visit: Visit) -> None:
    page, complaints, _ = visit(render_comparisons(found))
    page.locator("#heat [data-at='0,1']").click()
    panel = page.locator("#pair")
    assert panel.locator("h2").inner_text() == "seed 0 and seed 1"
    counts = {s: len(found["seed 0", "seed 1"].neurons(s)) for s in ("only_a", "only_b")}
    assert f"{counts['only_a']} only in seed 0, {counts['only_b']} only in seed 1" in (
        panel.inner_text()
    )
    row = found["seed 0", "seed 1"].measures.loc["spearman"]
    line = panel.locator("tr", has_text="Order of effects").inner_text().replace("−", "-")
    numbers = [float(x) for x in re.findall(r"-?\d+\.\d+", line)]
    expected = [row[key] for key in ("value", "null_mean", "null_low", "null_high", "p_value")]
    assert numbers == pytest.approx(expected, abs=0.006)
    page.locator("#heat [data-at='0,1']").focus()
    page.keyboard.press("ArrowDown")  # over seed 1 beside itself
    assert page.evaluate("neurograph.selection()") == [2, 1]
    assert page.evaluate("document.activeElement.dataset.at") == "2,1"
    assert panel.locator("h2").inner_text() == "twin and seed 1"
    turned = {s: len(found["twin", "seed 1"].neurons(s)) for s in ("only_a", "only_b")}
    assert f"{turned['only_a']} only in twin, {turned['only_b']} only in seed 1" in (
        panel.inner_text()
    )
    page.locator("#tab-pairs").click()
    assert "seed 1 and twin" in page.locator("#panel-pairs tr.chosen").inner_text()
    page.locator("#panel-pairs tbody tr").first.click()
    assert page.evaluate("neurograph.selection()") == [0, 1]
    assert complaints == []


@in_browser
def test_what_is_stable_can_be_narrowed(found: Any, visit: Visit) -> None:
    page, complaints, _ = visit(render_comparisons(found))
    table = found.stable()
    page.locator("#layer").select_option("linear1")
    listed = page.locator("#panel-neurons tbody tr td:first-child").all_inner_texts()
    assert listed == table.loc[table["layer"] == "linear1", "name"].tolist()
    page.locator("#layer").select_option("")
    page.locator("#named").fill("sT_slope")
    listed = page.locator("#panel-neurons tbody tr td:first-child").all_inner_texts()
    assert listed == table.loc[table["name"].str.contains("ST_Slope"), "name"].tolist()
    page.locator("#tab-edges").click()
    edges = found.stable("edges")
    listed = page.locator("#panel-edges tbody tr td:first-child").all_inner_texts()
    assert listed == edges.loc[edges["name"].str.contains("ST_Slope"), "name"].tolist()[:40]
    first = edges[edges["name"].str.contains("ST_Slope")].iloc[0]
    bars = page.locator("#panel-edges tbody tr").first.locator("svg")
    assert bars.locator("rect").count() == first["circuits"]
    assert bars.locator("rect.positive").count() == first["positive"]
    assert complaints == []


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_names_stay_names_on_a_telephone(
    make_circuit: Make, visit: Visit, scheme: str
) -> None:
    circuits = {
        name: replace(make_circuit(names={0: HOSTILE}, seed=seed), target=HOSTILE)
        for seed, name in enumerate((HOSTILE, f"<b>{'x' * 300}", "c"))
    }
    page, complaints, _ = visit(
        render_comparisons(ng.compare(circuits, draws=20)), width=400, color_scheme=scheme
    )
    page.locator("#heat [data-at='0,1']").click()
    for tab in ("neurons", "edges", "paths", "pairs"):
        page.locator(f"#tab-{tab}").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert HOSTILE in page.locator("#pair h2").inner_text()
    assert page.locator("img").count() == page.locator("h1 b").count() == 0
    assert complaints == []
