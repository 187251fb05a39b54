"""What every test has: the same random numbers each time it runs."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples on every run: what one machine finds, another must be able to see.
settings.register_profile("same everywhere", derandomize=True, deadline=None)
settings.load_profile("same everywhere")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker waits for the last of it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for code that draws from the global generator
    torch.manual_seed(0)
