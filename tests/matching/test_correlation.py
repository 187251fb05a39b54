"""Correlations of neurons over batches, against NumPy over all rows at once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neurograph.matching.correlation import Correlation
from neurograph.model.layers import Layer
from neurograph.model.neurons import channels_of, units_of
from tests.matching.attached import arrived

EPS = torch.finfo(torch.float32).eps


def streamed(a: Tensor, b: Tensor, cuts: list[int], **groups: list[list[int]]) -> np.ndarray:
    found = Correlation(**groups)
    bounds = sorted({0, len(a), *(cut for cut in cuts if cut < len(a))})
    for start, stop in itertools.pairwise(bounds):
        found.add(arrived(a[start:stop]), arrived(b[start:stop]))
    return found.matrix(*(torch.finfo(x.dtype).eps for x in (a, b)))


def plain(a: Tensor, b: Tensor) -> np.ndarray:
    """NumPy's, of `[rows, channels]`."""
    with np.errstate(invalid="ignore"):  # of what does not vary
        whole = np.corrcoef(a.double().numpy(), b.double().numpy(), rowvar=False)
    return np.atleast_2d(whole)[: a.shape[1], a.shape[1] :]


def rv_root(x: Tensor, y: Tensor) -> float:
    """Root of the RV coefficient, from its definition with `[rows, rows]` products."""
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return float(((k * l).sum() / (k.norm() * l.norm())).sqrt())


@given(
    seed=st.integers(0, 99),
    rows=st.integers(3, 40),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    cuts=st.lists(st.integers(1, 40), max_size=5),
    offset=st.sampled_from([0.0, 1.0, -1e6]),
)
def test_batches_of_any_size_give_what_numpy_gives(
    seed: int, rows: int, widths: tuple[int, int], cuts: list[int], offset: float
) -> None:
    torch.manual_seed(seed)
    mixed = torch.randn(rows, sum(widths), dtype=torch.float64)
    mixed = mixed @ torch.randn(sum(widths), sum(widths), dtype=torch.float64)
    mixed[: rows // 2] *= 10  # batches that are not alike
    mixed += offset
    a, b = mixed.split(widths, dim=1)
    np.testing.assert_allclose(streamed(a, b, cuts), plain(a, b), atol=1e-7 if offset else 1e-12)


def test_a_small_spread_on_a_large_mean_survives_in_float32() -> None:
    a = 1000 + torch.randn(900, 3)
    b = a[:, [2, 0]] + torch.randn(900, 2)
    a[:100] += 5  # the first batch says little of the others
    np.testing.assert_allclose(streamed(a, b, [100, 350]), plain(a, b), atol=1e-10)


def test_what_does_not_vary_has_no_correlation() -> None:
    a, b = torch.randn(60, 4), torch.randn(60, 3)
    a[:, 1] = 0.1
    a[:, 2] = 3.0 * (1 + EPS * torch.randint(-1, 2, (60,)))  # but for rounding
    b[:, 0] = 0.0
    found = streamed(a, b, [7, 40])
    assert np.isnan(found[[1, 2]]).all()
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_allclose(found[[0, 3], 1:], plain(a, b)[[0, 3], 1:], atol=1e-10)


def test_maps_count_at_every_position_they_share() -> None:
    a, b = torch.randn(9, 3, 4, 5), torch.randn(9, 2, 4, 5)
    wide = [x.movedim(1, -1).flatten(0, -2) for x in (a, b)]
    np.testing.assert_allclose(streamed(a, b, [4]), plain(*wide), atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 5), (2,), ()])
def test_other_positions_count_by_the_mean_of_a_sample(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(9, 3, 3, 3), torch.randn(9, 2, *shape)
    means = [
        x.double().flatten(1) if x.dim() == 2 else x.double().flatten(2).mean(2) for x in (a, b)
    ]
    np.testing.assert_allclose(streamed(a, b, [4]), plain(*means), atol=1e-12)


def test_padding_does_not_count() -> None:
    a, b = torch.randn(8, 3, 5), torch.randn(8, 2, 5)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 5, 4, 1, 2])[:, None]
    whole = Correlation()
    whole.add(arrived(a, mask), arrived(b, mask))
    rows = [x.movedim(1, -1)[mask] for x in (a, b)]
    np.testing.assert_allclose(whole.matrix(), plain(*rows), atol=1e-12)

    other = Correlation()  # of a map without positions in common
    other.add(arrived(a, mask), arrived(b[..., :1].squeeze(2)))
    means = torch.stack(
        [row[:, there].double().mean(1) for row, there in zip(a, mask, strict=True)]
    )
    np.testing.assert_allclose(other.matrix(), plain(means, b[..., 0]), atol=1e-12)


def test_groups_are_compared_by_the_root_of_rv() -> None:
    a = torch.randn(50, 6)
    b = a @ torch.randn(6, 5) + torch.randn(50, 5)
    groups_a, groups_b = [[0, 1, 2], [3, 4, 5]], [[4, 0], [1, 2, 3]]
    found = streamed(a, b, [9, 30], groups_a=groups_a, groups_b=groups_b)
    for i, group in enumerate(groups_a):
        for j, other in enumerate(groups_b):
            assert found[i, j] == pytest.approx(rv_root(a[:, group], b[:, other]), abs=1e-10)
    one = streamed(a, b, [9, 30], groups_a=groups_a)
    assert one.shape == (2, 5)
    assert one[1, 3] == pytest.approx(rv_root(a[:, 3:], b[:, 3:4]), abs=1e-10)


def test_a_group_of_one_channel_is_that_channel() -> None:
    a, b = torch.randn(50, 4), torch.randn(50, 4)
    b[:, 0] -= a[:, 0]
    found = streamed(a, b, [20], groups_a=[[1, 2], [0]], groups_b=[[0], [3, 1]])
    assert found[1, 0] == pytest.approx(plain(a, b)[0, 0])
    assert found[1, 0] < -0.5
    assert found[0, 0] == pytest.approx(rv_root(a[:, 1:3], b[:, :1]))


def test_a_group_varies_if_one_of_its_channels_does() -> None:
    a = torch.randn(50, 4)
    a[:, 1:] = 2.0
    found = streamed(a, a, [20], groups_a=[[0, 1], [2, 3]], groups_b=[[0, 1], [2, 3]])
    assert found[0, 0] == pytest.approx(1)
    assert np.isnan([found[0, 1], found[1, 0], found[1, 1]]).all()


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("shape", "dim"), [((6,), 1), ((3, 6), 2), ((6, 3), 1), ((6, 2, 2), 1)])
def test_channels_of_groups_are_read_back(shape: tuple[int, ...], dim: int, each: bool) -> None:
    layer = Layer("l", "l", "l", "Linear", shape, dim, 6, 1)
    groups = [[0, 5], [1, 2, 3]]
    assert channels_of(units_of(layer, groups, "head", each), layer) == groups
    assert channels_of(units_of(layer, None, "channel", each), layer) is None
