"""A small circuit to draw, and a headless browser to look at its page with."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import networkx as nx
import pytest

from neurograph.circuit.circuit import Circuit, Path
from neurograph.model.layers import Neuron
from tests.report.pages import settle

INPUTS = (
    "ST_Slope=Flat ST_Slope=Up ExerciseAngina=Y ChestPainType=ASY Oldpeak Sex=M MaxHR "
    "Cholesterol FastingBS Age RestingBP RestingECG=LVH"
).split()


def circuit_like(
    kept: tuple[int, ...] = (8, 6, 4, 1),
    names: dict[int, str] | None = None,
    density: float = 0.7,
    seed: int = 0,
) -> Circuit:
    """Build a circuit of random effects with the attributes a real one has.

    `kept` counts the neurons of the input, of each hidden layer and of the output; `names`
    replaces the names of inputs.
    """
    rng = random.Random(seed)
    layers, graph = nx.DiGraph(), nx.DiGraph()
    titles = ["input", *(f"linear{k}" for k in range(1, len(kept)))]
    for k, (layer, count) in enumerate(zip(titles, kept, strict=True)):
        width = count if k in (0, len(kept) - 1) else max(count + 3, 64)
        kind = "Input" if k == 0 else "Linear"
        layers.add_node(layer, type=kind, shape=f"[{width}]", parameters=width * 9, neurons=width)
        layers.nodes[layer]["output"] = k == len(kept) - 1
        if k:
            layers.add_edge(titles[k - 1], layer)
        last = k == len(kept) - 1
        for index in sorted(rng.sample(range(width), count)):
            graph.add_node(Neuron(layer, index), **_neuron(rng, layer, index, last, names or {}))
    for before, after in pairwise(titles):
        for writer in [n for n in graph if n.layer == before]:
            for reader in [n for n in graph if n.layer == after]:
                if rng.random() < density or reader.layer == titles[-1]:
                    graph.add_edge(writer, reader, **_edge(rng, graph.nodes[writer]))
    paths = [path for sign in ("positive", "negative") for path in _paths(graph, titles, 25, sign)]
    return Circuit(
        graph=graph,
        layers=layers,
        strongest=tuple(sorted(paths, key=lambda path: -abs(path.effect))),
        target="disease",
        provenance={
            "model": {"class": "HeartNet"}, "seed": seed, "tau": float("nan"), "hash": "8f14e45f",
            "options": {"scorer": "auto", "quantiles": [0.05, 0.95], "background": "data"},
            "versions": {"torch": "2.9.0", "neurograph": "0.1.0"},
        },
    )  # fmt: skip


def _neuron(
    rng: random.Random, layer: str, index: int, last: bool, names: dict[int, str]
) -> dict[str, Any]:
    effect = 1.31 if last else rng.choice((1, -1)) * rng.lognormvariate(-2.6, 1.0)
    sign = "zero" if rng.random() < 0.08 else "positive" if effect > 0 else "negative"
    values = sorted(rng.gauss(effect, 1) for _ in range(60))
    cuts = {f"q{q}": values[round(q / 100 * 59)] for q in (0, 5, 25, 50, 75, 95, 100)}
    name = f"{layer}[{index}]"
    if layer == "input":
        name = names.get(index, INPUTS[index] if index < len(INPUTS) else f"feature {index}")
    return {
        "name": name, "layer": layer, "index": index, "sign": "positive" if last else sign,
        "effect": effect, "stderr": math.nan if rng.random() < 0.1 else abs(effect) * 0.06,
        "total_effect": effect * 1.2, "total_stderr": abs(effect) * 0.1, "target": last,
        "mean": sum(values) / 60, "std": 1.0, "min": values[0], "max": values[-1],
        "count": 734, **cuts,
    }  # fmt: skip


def _edge(rng: random.Random, writer: dict[str, Any]) -> dict[str, Any]:
    effect = writer["effect"] * rng.lognormvariate(-1.2, 1.0) * (1 if rng.random() < 0.85 else -1)
    sign = "positive" if effect > 0 else "negative"
    transfer = rng.uniform(-0.3, 0.3)
    return {"effect": effect, "stderr": abs(effect) * 0.08, "sign": sign, "transfer": transfer}


def _paths(graph: Any, titles: list[str], k: int, sign: str | None) -> list[Path]:
    """Walk backwards over strong edges: any chains will do, the page only lists them."""
    found: dict[tuple[Neuron, ...], float] = {(n,): 1.0 for n in graph if n.layer == titles[-1]}
    for _ in titles[1:]:
        grown = {
            (writer, *chain): effect * edge["effect"] / abs(graph.nodes[writer].get("effect") or 1)
            for chain, effect in found.items()
            for writer, edge in graph.pred[chain[0]].items()
        }
        found = dict(sorted(grown.items(), key=lambda item: -abs(item[1]))[: 8 * k])
    chosen = [
        Path(chain, effect, abs(effect) * 0.05, i % 3 != 2)
        for i, (chain, effect) in enumerate(found.items())
        if sign is None or (effect > 0) == (sign == "positive")
    ]
    return chosen[:k]


@pytest.fixture
def make_circuit() -> Callable[..., Any]:
    """Give tests the builder itself, to choose sizes and names."""
    return circuit_like


class Visit(NamedTuple):
    """An open page and all it complained of or asked for."""

    page: Any
    complaints: list[str]
    requests: list[str]


@pytest.fixture
def visit(browser: Any, tmp_path: FilePath) -> Iterator[Callable[..., Visit]]:
    """Open the text of a page in a fresh browser window."""
    contexts = []

    def open_page(text: str, width: int = 1400, **options: Any) -> Visit:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("window.neurograph && window.neurograph.ready")
        settle(page)
        return Visit(page, complaints, requests)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start one headless Chromium for all browser tests."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[
                "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--disable-component-update", "--disable-default-apps", "--no-first-run",
            ],
        )  # fmt: skip
        yield chromium
        chromium.close()
