"""Assignments against all permutations, and ties against all exchanges, one by one."""

from __future__ import annotations

import itertools
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurograph.matching.assignment import TOLERANCE, Assignment, assign

NAN = np.nan


def matrices(values: st.SearchStrategy[float]) -> Any:
    def of_shape(shape: tuple[int, int]) -> Any:
        size = shape[0] * shape[1]
        lists = st.lists(values, min_size=size, max_size=size)
        return lists.map(lambda numbers: np.array(numbers).reshape(shape))

    return st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(of_shape)


def best_sum(similarity: np.ndarray, least: float) -> float:
    """Greatest sum, beyond `least`, over all ways to pair some rows with some columns."""
    gains = np.nan_to_num(similarity, nan=least) - least
    count = min(gains.shape)
    return max(
        sum(max(0.0, gains[i, j]) for i, j in zip(rows, columns, strict=True))
        for rows in itertools.combinations(range(gains.shape[0]), count)
        for columns in itertools.permutations(range(gains.shape[1]), count)
    )


def exchangeable(similarity: np.ndarray, found: Assignment, least: float) -> set[Any]:
    """Groups by trying every exchange of two."""
    s = np.fmax(similarity, least)  # what is below is as good as no pair
    pairs = [tuple(pair) for pair in found.pairs.tolist()]
    graph = nx.Graph((("a", i), ("b", j)) for i, j in pairs)
    for (i, j), (k, l) in itertools.combinations(pairs, 2):  # noqa: E741
        if s[i, j] + s[k, l] - s[i, l] - s[k, j] <= TOLERANCE:
            graph.add_edge(("a", i), ("a", k))
    rows, columns = (set(range(n)) - {p[d] for p in pairs} for d, n in enumerate(s.shape))
    for i, j in pairs:
        for k in rows:
            if similarity[k, j] > least and s[i, j] - s[k, j] <= TOLERANCE:
                graph.add_edge(("a", k), ("b", j))
        for l in columns:  # noqa: E741
            if similarity[i, l] > least and s[i, j] - s[i, l] <= TOLERANCE:
                graph.add_edge(("a", i), ("b", l))
    return {
        tuple(tuple(sorted(n for side, n in part if side == s)) for s in "ab")
        for part in nx.connected_components(graph)
        if len(part) > 2
    }


@given(
    matrices(st.sampled_from([-0.5, 0.0, 0.1, 0.2, 0.5, 0.9, 1.0])), st.sampled_from([0.0, 0.15])
)
def test_sums_and_ties_are_those_of_trying_everything(similarity: np.ndarray, least: float) -> None:
    found = assign(similarity, least=least)
    i, j = found.pairs.T
    np.testing.assert_array_equal(found.similarity, similarity[i, j])
    assert (found.similarity > least).all()
    assert len(set(i)) == len(set(j)) == len(i)
    assert (np.diff(i) > 0).all()
    assert (found.similarity - least).sum() == pytest.approx(best_sum(similarity, least))
    assert set(found.ties) == exchangeable(similarity, found, least)
    tied = {row for rows, _ in found.ties for row in rows}
    assert found.tied.tolist() == [row in tied for row in i.tolist()]


@given(matrices(st.floats(-1, 1)), st.integers(0, 15), st.integers(0, 15))
def test_what_has_no_similarity_is_left_out(similarity: np.ndarray, row: int, column: int) -> None:
    row, column = row % len(similarity), column % len(similarity.T)
    similarity[row], similarity[:, column] = NAN, NAN
    found = assign(similarity)
    assert row not in found.pairs[:, 0]
    assert column not in found.pairs[:, 1]
    assert found.similarity.sum() == pytest.approx(best_sum(similarity, 0.0))


def test_nothing_to_pair() -> None:
    for shape in ((0, 3), (3, 0), (2, 2)):
        found = assign(np.full(shape, NAN))
        assert (found.pairs.shape, found.ties) == ((0, 2), ())


def test_an_exchange_that_loses_more_than_rounding_is_no_tie() -> None:
    close = np.array([[0.8, 0.3], [0.8, 0.3 + 3e-6]])
    assert assign(close).ties == ()
    close[1, 1] = 0.3 + 3e-7
    assert assign(close).ties == (((0, 1), (0, 1)),)


def test_large_matrices_in_pieces_have_the_same_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    similarity = rng.uniform(0, 1, (60, 50))
    order = rng.permutation(50)
    for one, other in ((3, 40), (40, 55), (10, 11)):
        similarity[other] = similarity[one]
    similarity[:, order[7]] = similarity[:, order[30]]
    whole = assign(similarity)
    monkeypatch.setattr("neurograph.matching.assignment._AT_ONCE", 200)
    pieces = assign(similarity)
    assert whole.ties == pieces.ties
    assert set(whole.ties) == exchangeable(similarity, whole, 0.0)
