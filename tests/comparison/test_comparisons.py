"""Many circuits: every pair, what most of them have, and what an interruption leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import neurograph as ng
from neurograph.comparison import compare as module
from neurograph.errors import OptionError, SearchInterrupted
from tests.comparison.handmade import circuit, inputs, network, shuffled

A, B, C, D, E = (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1))
ONE = circuit({A: 1.0, B: 2.0, D: 3.0}, {(A, D): 1.0}, [(A, D)])
TWO = circuit({A: 2.0, C: -1.0, D: 1.0}, {(A, D): 2.0}, [(A, D)])
THREE = circuit({A: -3.0, C: -2.0, E: 1.0}, {(C, E): 1.0})
CIRCUITS = {"one": ONE, "two": TWO, "three": THREE}


def test_every_pair_is_compared_once() -> None:
    found = ng.compare(CIRCUITS, draws=20)
    assert list(found.cells) == [("one", "two"), ("one", "three"), ("two", "three")]
    matrix = found.measure()
    assert matrix.loc["one", "two"] == matrix.loc["two", "one"] == 2 / 4
    assert np.isnan(np.diag(matrix)).all()
    alone = ng.compare(TWO, THREE, names=("two", "three"), draws=20)
    pd.testing.assert_frame_equal(found["two", "three"].measures, alone.measures)
    pd.testing.assert_frame_equal(found["three", "two"].neurons(), alone.flipped().neurons())
    p = found.measure("spearman", column="p_value")
    assert p.loc["two", "three"] == alone.measures.at["spearman", "p_value"]
    table = found.to_frame().set_index(["a", "b"])
    assert table.loc[("one", "two"), "neuron_jaccard"] == 2 / 4
    assert table.loc[("two", "three"), "spearman_p"] == p.loc["two", "three"]
    with pytest.raises(KeyError):
        found["one", "one"]


def test_rows_and_columns_may_differ() -> None:
    found = ng.compare([ONE, TWO], {"three": THREE}, draws=0)
    assert found.measure().shape == (2, 1)
    assert found.rows == ("0", "1")
    with pytest.raises(OptionError, match="all compared with each other"):
        found.stable()


def test_what_is_stable_is_counted() -> None:
    table = ng.compare(CIRCUITS, draws=0).stable().set_index("name")
    assert table.loc["a[0]", ["circuits", "positive"]].to_list() == [3, 2]
    assert table.loc["a[0]", "effect"] == 0.0
    assert table.loc["a[0]", "std"] == pytest.approx(np.std([1, 2, -3], ddof=1))
    assert table.loc["a[0]", ["effect_one", "effect_two", "effect_three"]].to_list() == [1, 2, -3]
    assert table.loc["a[2]", ["circuits", "share", "positive"]].to_list() == [2, 2 / 3, 0]
    assert np.isnan(table.loc["a[2]", "effect_one"])
    assert table["circuits"].is_monotonic_decreasing
    edges = ng.compare(CIRCUITS, draws=0).stable("edges").set_index("name")
    assert edges["circuits"].to_dict() == {"a[0] → b[0]": 2, "a[2] → b[1]": 1}
    paths = ng.compare(CIRCUITS, draws=0).stable("paths")
    assert paths[["name", "layer", "circuits"]].to_numpy().tolist() == [["a[0] → b[0]", "a", 2]]


def test_stable_neurons_are_those_that_match() -> None:
    model, X = network(4, 8, 2), inputs(4)
    twins = [model, *(shuffled(model, seed)[0] for seed in (1, 2))]
    circuits = [ng.search(m, X, 1, keep="top:2") for m in twins]
    found = ng.compare(circuits, match="activation", draws=0, transplants=0)
    assert (found.stable()["circuits"] == 3).all()
    assert len(found.stable()) == len(circuits[0].graph) - 1  # without the target's own
    assert found.stable()["std"].to_numpy() == pytest.approx(0, abs=1e-9)


def test_a_file_holds_all_of_them(tmp_path: Path) -> None:
    found = ng.compare(CIRCUITS, draws=10)
    found.save(tmp_path / "x")
    read = ng.Comparisons.load(tmp_path / "x")
    assert (read.rows, read.columns) == (found.rows, found.columns)
    pd.testing.assert_frame_equal(read.to_frame(), found.to_frame())
    pd.testing.assert_frame_equal(read.stable("edges"), found.stable("edges"))
    assert repr(read) == repr(found)


def test_an_interruption_leaves_what_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = module.compare_circuits, []

    def interrupted(*arguments: object) -> ng.Comparison:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "compare_circuits", interrupted)
    with pytest.raises(SearchInterrupted) as stop:
        ng.compare(CIRCUITS, draws=0)
    assert isinstance(stop.value.result, ng.Comparisons)
    assert list(stop.value.result.cells) == [("one", "two"), ("one", "three")]


@pytest.mark.parametrize(
    ("circuits", "told"),
    [
        ([ONE], "two or more"),
        ([], "no circuits"),
        ({"x": 3}, "'x' is int"),
    ],
)
def test_what_is_no_list_of_circuits_is_told(circuits: object, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        ng.compare(circuits)  # type: ignore[call-overload]


def test_measures_that_are_none_are_told() -> None:
    found = ng.compare(CIRCUITS, draws=0)
    with pytest.raises(OptionError, match="name='jaccard' is none of"):
        found.measure("jaccard")
    with pytest.raises(OptionError, match="of='layers'"):
        found.stable("layers")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="names="):
        ng.compare([ONE, TWO], names=["x"])
