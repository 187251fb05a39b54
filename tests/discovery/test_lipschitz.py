"""Lipschitz constants hold for every pair of numbers, and are hardly larger than they must be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograph.data.source import Batch
from neurograph.discovery.lipschitz import stretch
from neurograph.model.target import logits_of
from neurograph.replay.elementwise import Chain, find_chains, find_output_chain
from neurograph.replay.recording import capture
from neurograph.replay.replay import Replay

Glue = Callable[[Tensor], Tensor]

KNOWN: dict[str, Glue] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "steep elu": lambda x: F.elu(x, alpha=3.0),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, alpha=0.5),
    "softplus": F.softplus,
    "sharp softplus": lambda x: F.softplus(x, beta=5.0),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "leaky the other way": lambda x: F.leaky_relu(x, -2.0),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -2.0, 2.0),
    "hardsigmoid": F.hardsigmoid,
    "clamp": lambda x: torch.clamp(x, -1, 3),
    "arithmetic": lambda x: (x * 3 - 1) / 2 + 4,
    "other way round": lambda x: 1 - x * 2,
    "sine": torch.sin,
    "absolute": torch.abs,
    "in place": lambda x: x.mul_(2).relu_().add_(1),
    "several": lambda x: torch.tanh(F.softplus(x * 2.0) - 0.5),
}
UNKNOWN: dict[str, Glue] = {
    "exp": torch.exp,
    "power": lambda x: x**2,
    "coarse softplus": lambda x: F.softplus(x, threshold=1.0),
    "hidden by a zero": lambda x: torch.exp(x) * 0.0,
}


class Glued(nn.Module):
    def __init__(self, glue: Glue) -> None:
        super().__init__()
        self.first, self.second, self.glue = nn.Linear(3, 4), nn.Linear(4, 2), glue

    def forward(self, x: Tensor) -> Tensor:
        return self.glue(self.second(self.glue(self.first(x))))


def chains(glue: Glue) -> tuple[Chain, tuple[str | None, Chain | None]]:
    """The chain between two layers, and that to the output."""
    model = Glued(glue)
    with Replay(model, capture(model, Batch((torch.randn(5, 3),), {}))) as replay:
        return find_chains(replay)["first", "second"], find_output_chain(replay, logits_of)


@pytest.mark.parametrize("name", KNOWN)
def test_no_two_numbers_are_brought_farther_apart(name: str) -> None:
    chain, (end, ending) = chains(KNOWN[name])
    assert end == "second"
    assert str(ending) == str(chain)
    constant = stretch(chain)
    x = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    slopes = chain(x.clone()).diff().abs() / x.diff()
    a, b = (9 * torch.randn(2, 20_000, dtype=torch.float64)).unbind()
    far = (chain(a.clone()) - chain(b.clone())).abs() / (a - b).abs()
    assert max(slopes.max(), far.max()) <= constant * (1 + 1e-9)
    tight = 1.01 if name != "several" else 2.1  # the steepest places need not coincide
    assert constant <= tight * slopes.max()


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_has_no_bound(name: str) -> None:
    assert stretch(chains(UNKNOWN[name])[0]) == math.inf


@pytest.mark.parametrize(
    "glue",
    [
        lambda x: x.softmax(-1),
        lambda x: x + torch.ones_like(x),
        lambda x: x[:, :1],
        lambda x: x * float(x.sum()),
    ],
)
def test_an_output_behind_other_glue_has_no_chain(glue: Glue) -> None:
    model = Glued(torch.relu)
    model.glue = lambda x: glue(x) if x.shape[1] == 2 else x.relu()
    with Replay(model, capture(model, Batch((torch.randn(5, 3),), {}))) as replay:
        assert find_output_chain(replay, logits_of) == (None, None)
