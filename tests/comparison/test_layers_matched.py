"""Layer by layer: shares, overlaps and chance worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import hypergeom

import neurograph as ng
from tests.comparison.handmade import circuit

SIZES = {"in": 3, "mid": 8, "last": 2}
DRAWS = 2000


def test_shares_and_overlaps_of_each_layer() -> None:
    a = circuit({("in", 0): 1.0, ("mid", 0): -2.0, ("mid", 1): 3.0, ("mid", 2): 2.0}, sizes=SIZES)
    b = circuit({("in", 1): 0.5, ("mid", 1): 0.5, ("mid", 2): -1.0, ("mid", 5): 2.0}, sizes=SIZES)
    told = ng.compare(a, b, draws=DRAWS).layers.set_index("layer_a")
    assert told["layer_b"].tolist() == ["in", "mid", "last"]
    assert told["kept_a"].tolist() == [1, 3, 0]
    assert told["kept_b"].tolist() == [1, 3, 0]
    assert told["common"].tolist() == [0, 2, 0]
    assert told["share_a"].tolist() == [1 / 8, 7 / 8, 0]
    assert told["share_b"].tolist() == [0.5 / 4, 3.5 / 4, 0]
    assert told["jaccard"].tolist() == pytest.approx([0, 2 / 4, np.nan], nan_ok=True)
    # Three of eight and three of eight, drawn at random, share so many.
    shared = np.arange(4)
    chances = hypergeom(8, 3, 3).pmf(shared)
    mean = float(chances @ (shared / (6 - shared)))
    assert told.at["mid", "null_mean"] == pytest.approx(mean, abs=0.02)
    assert told.at["mid", "p_value"] == pytest.approx(chances[2:].sum(), abs=0.04)
    assert told.at["in", "null_mean"] == pytest.approx(1 / 3, abs=0.04)
    assert told.at["in", "p_value"] == 1
    assert told.loc["last", ["null_mean", "p_value"]].isna().all()


def test_layers_without_a_partner_stand_alone() -> None:
    a = circuit({("in", 0): 1.0, ("mid", 0): 3.0}, sizes=SIZES)
    b = circuit({("in", 0): 2.0, ("mid", 4): -2.0}, sizes=SIZES)
    layers = ng.compare(a, b, match={"in": "in"}, draws=10).layers
    sides = layers[["layer_a", "layer_b"]].to_numpy().tolist()
    assert sides == [["in", "in"], ["mid", None], ["last", None], [None, "mid"], [None, "last"]]
    assert layers["kept_a"].tolist() == [1, 1, 0, 0, 0]
    assert layers["kept_b"].tolist() == [1, 0, 0, 1, 0]
    assert layers["common"].tolist() == [1, 0, 0, 0, 0]
    shares = layers[["share_a", "share_b"]].to_numpy()
    nan = np.nan
    expected = [[0.25, 0.5], [0.75, nan], [0, nan], [nan, 0.5], [nan, 0]]
    assert shares == pytest.approx(np.array(expected), nan_ok=True)
    assert layers[["jaccard", "null_mean", "p_value"]].iloc[1:].isna().all(axis=None)
