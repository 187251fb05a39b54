"""Which layer goes with which, against all ways to keep both orders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from neurograph.circuit.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.matching.alignment import align_layers, closeness_in_depth, pairs_in_order
from tests.matching.attached import circuit_of

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def stack(*widths: int, names: Sequence[str] | None = None) -> Circuit:
    """Circuit of a chain of Linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for i, (a, b) in enumerate(itertools.pairwise((3, *widths, 2))):
        model.add_module(names[i] if names else f"l{i}", nn.Linear(a, b))
    return circuit_of(model, X)


def never(_a: Sequence[str], _b: Sequence[str]) -> np.ndarray:
    raise AssertionError("asked for CKA")


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.integers(1, 4).flatmap(
            lambda columns: st.lists(
                st.integers(-2, 9), min_size=rows * columns, max_size=rows * columns
            ).map(lambda numbers: np.array(numbers, float).reshape(rows, columns))
        )
    )
)
def test_no_other_pairs_in_order_sum_to_more(similarity: np.ndarray) -> None:
    rows, columns = map(range, similarity.shape)
    best = max(
        sum(similarity[i, j] for i, j in zip(some, others, strict=True))
        for count in range(min(similarity.shape) + 1)
        for some in itertools.combinations(rows, count)
        for others in itertools.combinations(columns, count)
    )
    pairs = pairs_in_order(similarity)
    assert sum(similarity[pair] for pair in pairs) == best
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(pairs))
    assert all(similarity[pair] > 0 for pair in pairs)


def test_what_has_no_similarity_has_no_partner() -> None:
    assert pairs_in_order(np.array([[np.nan, 0.2], [0.0, np.nan]])) == [(0, 1)]
    assert pairs_in_order(np.full((2, 2), np.nan)) == []


def test_depth_spreads_the_shallower_over_the_deeper() -> None:
    assert pairs_in_order(closeness_in_depth(3, 5)) == [(0, 0), (1, 2), (2, 4)]
    assert pairs_in_order(closeness_in_depth(5, 3)) == [(0, 0), (2, 1), (4, 2)]
    assert pairs_in_order(closeness_in_depth(2, 2)) == [(0, 0), (1, 1)]
    assert pairs_in_order(closeness_in_depth(1, 3)) == [(0, 1)]


def test_equal_names_go_together_whatever_the_widths() -> None:
    found = align_layers(stack(4, 5), stack(6, 3), "auto", never)
    assert found == [("input", "input"), ("l0", "l0"), ("l1", "l1"), ("l2", "l2")]


def test_given_layers_go_together_whatever_their_names() -> None:
    a, b = stack(4, 5, 5), stack(4, names=("first", "last"))
    found = align_layers(a, b, "depth", never)
    assert found == [("input", "input"), ("l1", "first"), ("l3", "last")]


@pytest.mark.parametrize("align", ["auto", "cka"])
def test_similarity_decides_where_names_do_not(align: str) -> None:
    asked = []

    def cka(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        asked.append((a, b))
        return np.array([[0.1, 0.9, 0.2], [0.3, 0.8, 0.7]])

    a, b = stack(4, 5), stack(4, 4, 4, names=("x", "y", "z", "end"))
    found = align_layers(a, b, align, cka)  # type: ignore[arg-type]
    assert found == [("input", "input"), ("l0", "y"), ("l1", "z"), ("l2", "end")]
    assert asked == [(["l0", "l1"], ["x", "y", "z"])]


def test_cka_may_be_asked_for_where_names_agree() -> None:
    a, b = stack(4, 5), stack(4, 5)
    found = align_layers(a, b, "cka", lambda _a, _b: np.array([[0.1, 0.9], [0.1, 0.1]]))
    assert found == [("input", "input"), ("l0", "l1"), ("l2", "l2")]


def test_layers_without_neurons_take_no_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    circuit = circuit_of(model, torch.randint(7, (20, 3)))
    assert align_layers(circuit, circuit, "auto", never) == [("0", "0"), ("2", "2")]


def test_other_ways_are_refused() -> None:
    circuit = stack(4)
    with pytest.raises(OptionError, match="align='names' is none of 'auto', 'depth', 'cka'"):
        align_layers(circuit, circuit, "names", never)  # type: ignore[arg-type]
