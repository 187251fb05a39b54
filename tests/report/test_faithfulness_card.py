"""What the page shows of faithfulness: its numbers, its curves, and names that are no markup."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neurograph.ablation.faithfulness_result import Faithfulness
from neurograph.errors import OptionError
from neurograph.report.circuit_page import render_circuit
from neurograph.report.faithfulness_card import faithfulness_card
from tests.report.pages import HOSTILE

Make = Callable[..., Any]
SHARES = (0.01, 0.1, 1.0)


def found(name: str = "exact", ablations: tuple[str, ...] = ("mean", "zero")) -> Faithfulness:
    rows = []
    for ablation in ablations:
        for direction in ("keep", "knock_out"):
            head = (ablation, direction)
            rows += [
                (name, "signed", *head, s, 0, f) for s, f in zip(SHARES, (0.5, 3, 1), strict=True)
            ]
            rows += [
                (name, "absolute", *head, s, 0, f)
                for s, f in zip(SHARES, (0, -0.5, 1), strict=True)
            ]
            rows.append((name, "kept", *head, 0.05, 0, 0.8))
            for draw in range(3):
                rows += [("random", "random", *head, s, draw, s + draw / 10) for s in SHARES]
    columns = "ranking order ablation direction share draw faithfulness".split()
    draws = pd.DataFrame(rows, columns=columns).assign(components=1, value=0.0, error=0.0)
    ends = pd.DataFrame({"ablation": ablations, "significant": [a != "mean" for a in ablations]})
    return Faithfulness(draws, ends, "edges", 1234, "disease", None, SHARES)


def points(path: str) -> np.ndarray:
    return np.array([[float(x) for x in pair.split()] for pair in path[1:].split("L")])


def test_the_table_is_the_summary() -> None:
    shown = faithfulness_card(found())
    assert (shown.of, shown.count) == ("edges", "1,234")
    assert [name for name, _ in shown.rows] == ["mean", "zero"]
    signed, absolute, random = shown.rows[0][1]
    cpr = 0.09 * (0.5 + 3) / 2 + 0.9 * (3 + 1) / 2
    cmd = 0.09 * (0.5 + 2) / 2 + 0.9 * 2 / 2
    assert signed == ("exact, signed", f"{cpr:.2f}", f"{cmd:.2f}")
    assert absolute[1] == f"{0.09 * -0.5 / 2 + 0.9 * 0.5 / 2:.2f}"
    assert re.fullmatch(r"0\.\d\d ± 0\.\d\d", random[1])


def test_the_curves_are_those_of_circuits_kept_alone() -> None:
    shown = faithfulness_card(found())
    panel = shown.panels[1]
    assert (panel.ablation, panel.significant, shown.panels[0].significant) == ("zero", True, False)
    random, signed, absolute = panel.lines
    assert [line.label for line in panel.lines] == ["random", "exact, signed", "exact, absolute"]
    across = points(signed.path)[:, 0]
    np.testing.assert_allclose(across, [0, shown.width / 2, shown.width], atol=0.1)
    scale = panel.empty - panel.full
    low = points(absolute.path)[:, 1]
    np.testing.assert_allclose((panel.empty - low) / scale, [0, -0.5, 1], atol=0.01)
    high = points(signed.path)[:, 1]
    np.testing.assert_allclose((panel.empty - high) / scale, [0.5, 3, 1], atol=0.01)
    assert shown.cut  # at 2
    assert high[1] < 0 <= high[0]
    ((label, _, x, y),) = panel.stars
    assert label == "exact, kept: 5 %, faithfulness 0.80"
    assert (panel.empty - y) / scale == pytest.approx(0.8, abs=0.01)
    assert 0 < x < shown.width
    assert panel.ticks == ((0.0, "1 %"), (shown.width / 2, "10 %"), (shown.width, "100 %"))
    assert panel.band.endswith("Z")
    assert len(points(random.path)) == 3


def test_what_is_nan_is_not_drawn() -> None:
    some = found()
    draws = some.draws.assign(faithfulness=some.draws["faithfulness"].where(some.draws.index < 5))
    empty = Faithfulness(draws, some.ends, "edges", 9, "disease", None, SHARES)
    shown = faithfulness_card(empty)
    assert [line.path for line in shown.panels[1].lines] == [""] * 3
    assert shown.panels[1].stars == ()
    assert shown.rows[1][1][0] == ("exact, signed", "–", "–")


def test_without_random_circuits() -> None:
    some = found()
    draws = some.draws[some.draws["order"] != "random"]
    shown = faithfulness_card(Faithfulness(draws, some.ends, "edges", 9, "disease", None, SHARES))
    assert shown.panels[0].band == ""
    assert [kind for kind, _, _ in shown.keys] == ["signed", "absolute", "kept"]


def test_the_page_shows_it_where_it_is_given(make_circuit: Make, tmp_path: Path) -> None:
    circuit = make_circuit()
    assert 'id="faithfulness"' not in render_circuit(circuit)
    page = render_circuit(circuit, found())
    assert page.count('<svg class="faith"') == 2
    assert "share of noise" in page
    circuit.to_html(tmp_path / "page.html", faithfulness=found())
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page


def test_names_are_no_markup(make_circuit: Make) -> None:
    page = render_circuit(make_circuit(), found(HOSTILE))
    assert HOSTILE not in page
    assert "&lt;img src=x onerror=alert(1)&gt;, signed" in page


def test_faithfulness_of_another_target_or_model_is_refused(make_circuit: Make) -> None:
    circuit = make_circuit()
    assert circuit.target == found().target
    with pytest.raises(
        OptionError, match=r"another target than the circuit \('other' beside 'dise"
    ):
        render_circuit(circuit, replace(found(), target="other"))
    circuit = replace(circuit, provenance={**circuit.provenance, "model": {"hash": "a"}})
    assert render_circuit(circuit, replace(found(), provenance={"model": {"hash": "a"}}))
    with pytest.raises(OptionError, match="of another model"):
        render_circuit(circuit, replace(found(), provenance={"model": {"hash": "b"}}))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on the PATH")
def test_a_browser_draws_it_and_complains_of_nothing(
    browser: Any, make_circuit: Make, tmp_path: Path
) -> None:
    make_circuit().to_html(tmp_path / "page.html", faithfulness=found(HOSTILE))
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("window.neurograph && window.neurograph.ready")
    shown = page.locator("#faithfulness")
    assert HOSTILE in shown.inner_text()
    box = shown.bounding_box()
    for svg in shown.locator("svg.faith").all():
        inside = svg.bounding_box()
        assert inside["width"] > 200
        assert inside["x"] + inside["width"] <= box["x"] + box["width"]
    line = shown.locator("svg.faith .signed").first
    assert line.evaluate("path => path.getTotalLength()") > 100
    assert line.evaluate("path => getComputedStyle(path).stroke") not in ("none", "")
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()
