"""Every kind of architecture: beside itself perfect, beside other weights finite and drawable."""

from __future__ import annotations

import numpy as np
import pytest

import neurograph as ng
from neurograph.comparison.overlap import MEASURES
from neurograph.report.comparison_page import render_comparison
from tests import zoo
from tests.case import as_data

ROWS = 12
SEEN_OTHERWISE = {
    "gpt2": "gpt2_each",
    "llama": "llama_heads",
    "bert": "bert_last",
    "lstm": "lstm_first",
}
"""Networks of which a view with other neurons is compared."""


def circuit_of(name: str, seed: int) -> ng.Circuit:
    network = zoo.NETWORKS[name](seed)
    return ng.search(
        network.model,
        as_data(network.inputs(ROWS, 1)),
        network.target,
        keep="top:1",
        paths=2,
        reference=4,
        **network.options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SEEN_OTHERWISE.get(name, name) for name in zoo.WHOLE))
def test_compared_with_itself_and_with_other_weights(name: str) -> None:
    a, b = circuit_of(name, 0), circuit_of(name, 1)
    same = ng.compare(a, a, match="activation", draws=0, transplants=0, budget=1)
    paired = {(m.a, m.b) for m in same.matching.layers}
    assert paired == {(layer, layer) for layer, _ in paired}
    told = ng.compare(a, a, draws=3, transplants=0, reference=4, budget=8)
    values = told.measures["value"].dropna()
    assert values.to_numpy() == pytest.approx(np.ones(len(values)))
    assert (told.neurons()["difference"] == 0).all()
    other = ng.compare(a, b, draws=3, transplants=1, reference=4, budget=8)
    for table in (other.neurons("only_a"), other.neurons("only_b")):
        assert table[["difference", "stderr"]].notna().all(axis=None)
    assert set(other.measures.index) == set(MEASURES)
    assert "<html" in render_comparison(other)
