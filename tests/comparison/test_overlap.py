"""What two circuits share equals what one works out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import neurograph as ng
from neurograph.comparison.circuit_arrays import side_of
from neurograph.comparison.overlap import MEASURES, OverlapMeasure, Overlaps, overlap_by_name
from neurograph.errors import OptionError
from neurograph.report.comparison_page import render_comparison
from neurograph.report.comparisons_page import render_comparisons
from tests.comparison.handmade import circuit, inputs, network

A, B, C, D, E = (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1))


def test_shares_weights_ranks_and_signs_are_those_worked_out_by_hand() -> None:
    before = circuit(
        {A: 1.0, B: -2.0, D: 3.0},
        {(A, D): 1.0, (B, D): 3.0},
        [(A, D), (B, D)],
        others={C: 0.25},
    )
    after = circuit(
        {A: -1.0, B: -1.0, C: 1.0, D: 1.0, E: 2.0},
        {(A, D): 1.0, (C, E): 1.0},
        [(A, D)],
    )
    found = overlap_by_name(before, after)
    assert found["neuron_jaccard"] == 3 / 5
    assert found["edge_jaccard"] == 1 / 3
    assert found["path_jaccard"] == 1 / 2
    # Shares: 1, -2, 3 of 6 and -1, -1, 1, 1, 2 of 6; the first has turned around.
    common = min(2, 1) / 6 + min(3, 1) / 6
    assert found["neuron_weighted_jaccard"] == pytest.approx(common / (2 - common))
    common = min(1 / 4, 1 / 2)
    assert found["edge_weighted_jaccard"] == pytest.approx(common / (2 - common))
    # In the order of the neurons; the last was scored 0 before.
    pair = [1, -2, 0.25, 3, 0], [-1, -1, 1, 1, 2]
    assert found["spearman"] == pytest.approx(spearmanr(*pair).statistic)
    assert found["sign_agreement"] == 3 / 4


def test_neurons_without_a_partner_are_in_one_circuit_alone() -> None:
    one = side_of(circuit({A: 1.0, D: 1.0}, {(A, D): 1.0}, [(A, D)]))
    other = side_of(circuit({A: 1.0, D: 1.0}, {(A, D): 1.0}, [(A, D)]))
    partner = np.array([-1, 1, 2, 3, 4])  # nobody corresponds to the second circuit's A
    found = Overlaps(one, other)(partner)
    assert found["neuron_jaccard"] == 1 / 3
    assert (found["edge_jaccard"], found["path_jaccard"]) == (0.0, 0.0)
    assert math.isnan(found["spearman"])  # one pair is no ranking
    assert found["sign_agreement"] == 1.0


def test_a_circuit_is_itself_and_turns_with_its_target() -> None:
    model, X = network(3, 6, 1), inputs(3)
    up, down = (ng.search(model, X, target) for target in (1, 0))
    same, turned = (list(overlap_by_name(up, other).values()) for other in (up, down))
    assert same == [1.0, 1.0, 1.0, 1.0, 1.0, pytest.approx(1.0), 1.0]
    assert turned == [1.0, 0.0, 1.0, 0.0, 1.0, pytest.approx(-1.0), 0.0]


def test_what_only_the_target_reads_does_not_count() -> None:
    model, X = network(3, 6, 2), inputs(3)
    one, other = (ng.search(model, X, target, keep="top:1") for target in (0, 1))
    ends = ("2", 0), ("2", 1)
    assert ends[0] in one.graph
    assert ends[1] in other.graph
    found = overlap_by_name(one, other)
    hidden = [{n for n in c.graph if n.layer != "2"} for c in (one, other)]
    assert found["neuron_jaccard"] == len(hidden[0] & hidden[1]) / len(hidden[0] | hidden[1])


def test_nothing_kept_twice_is_the_same_and_has_no_signs() -> None:
    found = overlap_by_name(circuit({}), circuit({}))
    assert list(found.values())[:5] == [1.0] * 5
    assert math.isnan(found["spearman"])
    assert math.isnan(found["sign_agreement"])


def test_equal_effects_have_no_ranks() -> None:
    flat = circuit({A: 1.0, B: 1.0})
    assert math.isnan(overlap_by_name(flat, flat)["spearman"])


def test_ranks_with_ties_are_those_of_pandas() -> None:
    one = circuit({A: 1.0, B: 1.0, C: 2.0, D: -1.0, E: 0.5})
    other = circuit({A: 2.0, B: 1.0, C: 2.0, D: -3.0, E: -3.0})
    columns = pd.DataFrame({"one": [1, 1, 2, -1, 0.5], "other": [2, 1, 2, -3, -3]})
    wanted = columns.corr(method="spearman").at["one", "other"]
    assert overlap_by_name(one, other)["spearman"] == pytest.approx(wanted)


def test_single_positions_are_neurons_of_their_own() -> None:
    first, second = ("a", 0, 1), ("a", 0, 2)
    one = circuit({first: 1.0}, positions=4)  # type: ignore[dict-item]
    other = circuit({first: 1.0, second: 1.0}, positions=4)  # type: ignore[dict-item]
    assert overlap_by_name(one, other)["neuron_jaccard"] == 1 / 2


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"a": 4, "b": 2}, "of layer 'a' the first has 3 neurons, the second 4 neurons"),
        ({"a": 3}, "of layer 'b' the first has 2 neurons, the second no such layer"),
        ({"a": 3, "b": 2, "c": 1}, "of layer 'c' the first has no such layer, the second 1"),
        ({"b": 2, "a": 3}, "only in one of them '[ab]' reads '[ab]'"),
    ],
)
def test_other_architectures_are_told(sizes: dict[str, int], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        overlap_by_name(circuit({}), circuit({}, sizes=sizes))


def test_other_lengths_of_sequences_are_told() -> None:
    with pytest.raises(OptionError, match="at 2 positions each, the second 3 neurons at 4"):
        overlap_by_name(circuit({}, positions=2), circuit({}, positions=4))


def test_an_added_measure_is_in_every_table_and_on_every_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ng.compare({"x": circuit({A: 1.0}), "y": circuit({A: 1.0, B: 1.0})}, draws=10)
    added = OverlapMeasure(
        lambda shared: len(shared.neurons.a) / 4, "Quarter", "a fourth of the common"
    )
    monkeypatch.setitem(MEASURES, "quarter", added)  # type: ignore[arg-type]
    found = ng.compare({"x": circuit({A: 1.0}), "y": circuit({A: 1.0, B: 1.0})}, draws=10)
    cell = found["x", "y"]
    assert cell.measures.at["quarter", "value"] == 1 / 4
    assert len(cell.null["quarter"]) == 10
    assert found.to_frame()[["quarter", "quarter_p"]].notna().all(axis=None)
    assert found.measure("quarter").loc["x", "y"] == 1 / 4
    for page in (render_comparison(cell), render_comparisons(found)):
        assert "Quarter" in page
        assert "a fourth of the common" in page
    # What was compared before it was added has no such measure, and stays whole.
    assert "quarter" not in before.to_frame()
    with pytest.raises(OptionError, match="name='quarter' is none of"):
        before.measure("quarter")
