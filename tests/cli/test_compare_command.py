"""The compare command prints, writes and refuses what the library would."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import neurograph as ng
from neurograph.cli.main import app
from neurograph.cli.objects import find_object
from neurograph.comparison.overlap import MEASURES

MODULE = """
import torch
from torch import nn

def Net():
    return nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2))

def wide():
    return nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 2))

def loader():
    return torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three circuits with the weights of their networks; the third is wider."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODULE)
    data = find_object("net.py:loader")
    for seed, name in enumerate(("a", "b", "c")):
        torch.manual_seed(seed)
        net = find_object("net.py:wide" if name == "c" else "net.py:Net")
        save_file(net.state_dict(), f"{name}.safetensors")
        ng.search(net, data, 1, keep="top:3").save(f"{name}.circuit")
    return tmp_path


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def done(*words: object) -> Any:
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result


def test_two_files_are_compared_and_a_page_is_written(here: Path) -> None:
    result = done("a.circuit", "b.circuit", "--html", "x.html", "--out", "x.comparison")
    wanted = ng.compare(ng.load("a.circuit"), ng.load("b.circuit"), names=("a", "b"))
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(MEASURES)]] == list(MEASURES)
    assert lines[1].split()[1] == f"{wanted.neuron_jaccard:.3f}"
    assert [line.split()[0] for line in lines[10:]] == list(wanted.neurons()["name"][:10])
    assert "<html" in Path("x.html").read_text()
    assert ng.Comparison.load("x.comparison").names == ("a", "b")
    assert result.stderr.splitlines()[:2] == ["wrote x.comparison", "wrote x.html"]
    assert "no model is attached to a and b" in result.stderr or "b and a" in result.stderr


def test_models_are_attached_and_matched_by_activation(here: Path) -> None:
    words = ["--match", "activation", "--data", "net.py:loader", "--out", "x.comparison"]
    words += ["--model", "net.py:Net", "--model", "net.py:wide", "--draws", 50, "--quiet"]
    words += ["--weights", "a.safetensors", "--weights", "c.safetensors"]
    result = done("a.circuit", "c.circuit", *words)
    assert result.stderr == ""
    found = ng.Comparison.load("x.comparison")
    assert found.matching.kind == "activation"
    assert set(found.transplants["into"]) == {"a", "b"}
    assert found.layers.query("layer_a == '0'")["similarity"].item() > 0.3


def test_many_files_give_a_matrix(here: Path) -> None:
    Path("more").mkdir()
    ng.load("a.circuit").save("more/a.circuit")
    files = ["a.circuit", "b.circuit", "more/a.circuit"]
    result = done(*files, "--format", "json", "--html", "x.html", "--quiet", "--draws", 20)
    rows = json.loads(result.stdout)
    assert [(row["a"], row["b"]) for row in rows] == [
        ("a.circuit", "b.circuit"),
        ("a.circuit", "more/a.circuit"),
        ("b.circuit", "more/a.circuit"),
    ]
    assert [row["neuron_jaccard"] == 1 for row in rows] == [False, True, False]
    assert "<html" in Path("x.html").read_text()


def test_measures_are_rows_of_csv(here: Path) -> None:
    result = done("a.circuit", "b.circuit", "--format", "csv", "--quiet", "--seed", 4)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    wanted = ng.compare(ng.load("a.circuit"), ng.load("b.circuit"), seed=4)
    assert [row["measure"] for row in rows] == list(MEASURES)
    assert [float(row["p_value"]) for row in rows] == wanted.measures["p_value"].to_list()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.circuit"], "two circuits or more"),
        (["a.circuit", "a.circuit"], "named twice"),
        (["a.circuit", "none.circuit"], "no circuit file"),
        (["a.circuit", "net.py"], "no circuit file, or a damaged one"),
        (["a.circuit", "c.circuit"], "of layer '0' the first has"),
        (["a.circuit", "b.circuit", "--match", "activation"], "attach"),
        (["a.circuit", "b.circuit", "--match", "names"], "--match 'names'"),
        (["a.circuit", "b.circuit", "--across", "seeds"], "--across "),
        (["a.circuit", "b.circuit", "--budget", "soon"], "--budget 'soon'"),
        (["a.circuit", "b.circuit", "--weights", "a.safetensors"], "need --model"),
        (["a.circuit", "b.circuit", "--model", "net.py:Net"], "needs --data"),
        (
            [
                "a.circuit",
                "b.circuit",
                "--model",
                "net.py:Net",
                "--data",
                "net.py:loader",
                "--weights",
                "a.safetensors",
            ],
            "--weights is given 1 times for 2 circuits",
        ),
        (["a.circuit", "b.circuit", "--html", "none/x.html"], "none"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(
    here: Path, words: list[str], told: str
) -> None:
    result = invoke(*words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert told in result.stderr
