"""CKA of layers from batches, against formulas over all samples at once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from neurograph.matching.cka import LayerCKA, gram, unbiased_hsic
from tests.matching.attached import arrived


def cka(a: list[Tensor], b: list[Tensor], size: int = 10**6) -> np.ndarray:
    found = LayerCKA()
    for start in range(0, len(a[0]), size):
        parts = [[arrived(x[start : start + size]) for x in side] for side in (a, b)]
        found.add(*parts)
    return found.matrix()


def textbook(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. (2019), section 3, on all samples: biased, little so for many of them."""
    x, y = (z.flatten(1).double() - z.flatten(1).double().mean(0) for z in (x, y))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def turned(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]


def test_hsic_is_the_mean_over_four_different_samples() -> None:
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    every = [
        float(k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q])
        for i, j, q, r in itertools.permutations(range(7), 4)
    ]
    found = unbiased_hsic(*(m.clone().fill_diagonal_(0)[None] for m in (k, l)))
    assert float(found) == pytest.approx(np.mean(every), rel=1e-10)
    # means do not matter, which `gram` takes away
    centred = unbiased_hsic(gram(arrived(x + 3))[None], gram(arrived(y - 5))[None])
    assert float(centred) == pytest.approx(np.mean(every), rel=1e-10)


def test_many_samples_give_what_the_textbook_gives() -> None:
    x = torch.randn(2000, 6)
    y = x @ torch.randn(6, 4) + torch.randn(2000, 4)
    z = torch.randn(2000, 2, 3) + y[:, :2, None]
    found = cka([x, y], [y, z], size=500)
    for (i, a), (j, b) in itertools.product(enumerate([x, y]), enumerate([y, z])):
        assert found[i, j] == pytest.approx(textbook(a, b), abs=0.01)
    assert found[1, 0] == pytest.approx(1)


def test_turning_and_scaling_change_nothing() -> None:
    x, y = (torch.randn(40, 5, dtype=torch.float64) for _ in range(2))
    y += x
    before, after = cka([x], [y], 20), cka([x @ turned(5) * 7 + 3], [y @ turned(5) / 100 - 1], 20)
    np.testing.assert_allclose(after, before, rtol=1e-9)
    np.testing.assert_allclose(cka([x], [x @ turned(5) * 3]), 1, rtol=1e-9)


def test_wide_layers_that_have_nothing_in_common_are_near_nothing() -> None:
    """The plain formula sees them as alike, as there are fewer samples than elements."""
    x, y = torch.randn(400, 1000), torch.randn(400, 1000)
    assert textbook(x[:100], y[:100]) > 0.8
    assert abs(float(cka([x], [y], 100).item())) < 0.02


def test_what_does_not_vary_is_like_nothing() -> None:
    x, still = torch.randn(20, 3), torch.full((20, 3), 0.1)
    still *= 1 + torch.finfo(torch.float32).eps * torch.randint(-1, 2, (20, 3))
    found = cka([x, still], [x, still], 10)
    assert found[0, 0] == pytest.approx(1)
    assert np.isnan([found[0, 1], found[1, 0], found[1, 1]]).all()


def test_a_layer_of_many_elements_is_summed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(12, 3, 4, 5)
    whole = gram(arrived(x))
    monkeypatch.setattr("neurograph.matching.cka._AT_ONCE", 100)
    torch.testing.assert_close(gram(arrived(x)), whole)
    flat = x.double().flatten(1) - x.double().flatten(1).mean(0)
    torch.testing.assert_close(whole, (flat @ flat.T).fill_diagonal_(0))
