"""Chance is as told: a known distribution, and uniform p-values where nothing is shared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom, kstest

import neurograph as ng
from neurograph.comparison.circuit_arrays import partners, side_of
from neurograph.comparison.null import chance, permuted
from neurograph.comparison.overlap import MEASURES, Overlaps
from neurograph.matching.given import by_name
from neurograph.matching.matching import LayerMatch, Matching
from tests.comparison.handmade import circuit, inputs, network


def test_the_overlap_of_permuted_neurons_is_hypergeometric() -> None:
    sizes = {"a": 12, "b": 9}
    kept = {"a": (5, 4), "b": (3, 6)}
    sides = [
        side_of(circuit({(n, i): 1.0 for n in sizes for i in range(kept[n][k])}, sizes=sizes))
        for k in (0, 1)
    ]
    partner = partners(*sides, by_name(*(side.circuit for side in sides)))
    overlaps = Overlaps(*sides)
    drawn = [len(overlaps.shared(p).neurons.b) for p in permuted(*sides, partner, 4000, 0, False)]
    # The sum of two layers' overlaps: their distributions convolved.
    wanted = np.ones(1)
    for name, size in sizes.items():
        wanted = np.convolve(wanted, hypergeom(size, *kept[name]).pmf(range(size + 1)))
    found = np.bincount(drawn, minlength=len(wanted)) / len(drawn)
    assert found == pytest.approx(wanted, abs=4 * np.sqrt(0.25 / len(drawn)))


def test_as_many_neurons_correspond_and_any_may() -> None:
    one = side_of(circuit({}, sizes={"a": 4}))
    other = side_of(circuit({}, sizes={"a": 6}))
    matching = Matching("activation", (LayerMatch.plain("a", "a", [(0, 1), (2, 5)]),))
    drawn = np.array(list(permuted(one, other, partners(one, other, matching), 600, 0, False)))
    assert ((drawn >= 0).sum(axis=1) == 2).all()
    pairs = {(int(a), j) for row in drawn for j, a in enumerate(row) if a >= 0}
    assert len(pairs) == 4 * 6


def test_positions_of_a_neuron_stay_together() -> None:
    one, other = (side_of(circuit({}, sizes={"a": 5}, positions=3)) for _ in range(2))
    partner = partners(one, other, by_name(one.circuit, other.circuit))
    for drawn in permuted(one, other, partner, 20, 0, False):
        places = drawn.reshape(5, 3)
        assert (places % 3 == np.arange(3)).all()
        assert (places // 3 == places[:, :1] // 3).all()


def test_outputs_of_the_target_stay_where_they_are() -> None:
    model, X = network(3, 8, 5), inputs(3)
    side = side_of(ng.search(model, X, target=4))
    partner = partners(side, side, by_name(side.circuit, side.circuit))
    span = side.spans["2"]
    for drawn in permuted(side, side, partner, 20, 0, False):
        assert (drawn[span.start : span.stop] == partner[span.start : span.stop]).all()


def test_a_chance_counts_the_value_itself() -> None:
    null = np.array([0.0, 0.25, 0.5, 0.75])
    assert chance(1.0, null) == 1 / 5
    assert chance(0.5, null) == 3 / 5
    assert chance(-1.0, null) == 1.0
    assert np.isnan(chance(np.nan, null))
    assert np.isnan(chance(1.0, np.array([np.nan])))


@pytest.mark.slow
def test_unrelated_models_are_at_the_null() -> None:
    """P-values of pairs of random models are uniform on their grid, for every measure."""
    X, pairs = inputs(5), 30
    generator = np.random.default_rng(0)
    matches = ("identity", "activation")
    told: dict[tuple[str, str], list[float]] = {
        (match, name): [] for match in matches for name in MEASURES
    }
    for seed in range(pairs):
        circuits = [
            ng.search(
                network(5, 14, 10, 2, seed=1000 * k + seed),
                X,
                target=1,
                keep="quantile:0.7",
                reference=16,
                paths=10,
            )
            for k in (1, 2)
        ]
        for match in matches:
            given = [found.detach() for found in circuits] if match == "identity" else circuits
            found = ng.compare(*given, match=match, draws=39, transplants=0, seed=seed)
            for name in MEASURES:
                value, null = found.measures.at[name, "value"], found.null[name]
                # Lot decides between equal values: else p-values of a count are too large.
                above, equal = (null > value + 1e-12).sum(), (np.abs(null - value) <= 1e-12).sum()
                p_value = (above + generator.uniform() * (equal + 1)) / (len(null) + 1)
                told[match, name].append(p_value)
                assert found.measures.at[name, "p_value"] >= p_value
    for key, values in told.items():
        assert kstest(values, "uniform").pvalue > 0.002, key


def test_the_null_is_drawn_from_its_seed() -> None:
    torch.manual_seed(0)
    a, b = (ng.search(network(3, 8, 1, seed=s), inputs(3), 1).detach() for s in (0, 1))
    one, same, other = (ng.compare(a, b, seed=s, draws=50).null["spearman"] for s in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()
