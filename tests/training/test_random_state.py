"""Seeds hold inside a block, and leave no trace behind it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from neurograph.training.random_state import seeded


def draw() -> tuple[float, float, float]:
    # NumPy's old global state is what data sets draw from.
    return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002


def test_a_seed_holds_for_all_three_and_others_come_back() -> None:
    torch.manual_seed(5)
    with seeded(1):
        first = draw()
    between = draw()
    with seeded(1):
        assert draw() == first
    with seeded(2):
        assert not set(draw()) & set(first)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(5)
    assert draw() == between


def test_states_come_back_after_an_error() -> None:
    torch.manual_seed(5)
    wanted = draw()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt), seeded(1):
        raise KeyboardInterrupt
    assert draw() == wanted
