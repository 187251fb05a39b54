"""What is made of several samples and reaches each is found by the operations that ran."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from tests import zoo
from tests.case import as_data
from tests.situations.hooked import passing

Between = Callable[[Tensor], Tensor]

# None of them shows in data from 0 to 1: thresholds are too far away.
TOGETHER: dict[str, Between] = {
    "largest": lambda h: h / h.abs().max().clamp(min=100),
    "any of a neuron": lambda h: h * (1 - (h > 50).any(0).to(h)),
    "any at all": lambda h: torch.where((h > 50).any(), 2 * h, h),
    "products of samples": lambda h: h + (h @ h.T > 1e4).to(h) @ h,
    "sum over those before": lambda h: h * (1 + ((h > 50).to(h).cumsum(0) > 0).to(h)),
    "ranks": lambda h: h + (h.argsort(0).argsort(0) > 1000).to(h),
    "the first one": lambda h: h + (h[0] - 50).relu(),
    "the neighbour": lambda h: h + (h.roll(1, 0) - 50).relu(),
    "share of all": lambda h: h + (h.softmax(0) > 0.99).to(h),
}
APART: dict[str, Between] = {
    "pointwise": lambda h: h.tanh() * h.sum(1, keepdim=True),
    "ranks of neurons": lambda h: h + h.argsort(1).to(h),
    "told, not used": lambda h: (h.mean(), h)[1],
    "shapes": lambda h: h.new_ones(h.shape) * h.T.T,
    "a constant": lambda h: h + torch.arange(6.0).to(h).cumsum(0),
}


class Net(nn.Module):
    def __init__(self, between: Between) -> None:
        super().__init__()
        self.one, self.head, self.between = nn.Linear(6, 6), nn.Linear(6, 1), between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.one(x)))


@pytest.mark.parametrize("kind", [*TOGETHER, *APART])
def test_samples_that_meet_are_found_whatever_the_values(kind: str) -> None:
    model = Net((TOGETHER | APART)[kind]).double()
    study = ng.Study(model, torch.rand(60, 6).double(), 1, reference=16, progress=False)
    assert not study.experiment.recording.mixes
    with study.open() as experiment:
        assert experiment.replay.pools is (kind in TOGETHER)
    assert any("run one by one" in note for note in study.notes) is (kind in TOGETHER)


@pytest.mark.parametrize("name", sorted(zoo.NETWORKS))
def test_architectures_keep_samples_apart(name: str) -> None:
    network = zoo.NETWORKS[name](0)
    study = ng.Study(
        network.model,
        as_data(network.inputs(12, 1)),
        network.target,
        reference=4,
        progress=False,
        **network.options,
    )
    with study.open() as experiment:
        assert not experiment.replay.pools


class Gate(nn.Module):
    """Opens for all where neuron 2 is low for one; matters where neuron 3 is ablated."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(6, 6), nn.Linear(6, 1, bias=False)
        with torch.no_grad():
            self.one.weight.copy_(torch.eye(6))
            self.one.bias.zero_()
            self.head.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        gate = (h[:, 2:3] < 0.1).to(h).amax(0, keepdim=True)
        return self.head(h + gate * (0.1 - h[:, 3:4]).relu() * 10)


def test_a_gate_that_one_set_opens_is_closed_for_the_others() -> None:
    model, X = Gate().double(), torch.rand(16, 6).double() * 0.8 + 0.15
    index = pd.MultiIndex.from_product([["one"], range(6)], names=["layer", "index"])
    ranking = pd.Series([6.0, 5, 4, 3, 2, 1], index)
    found = ng.faithfulness(
        model, X, None, ranking, ablations=["zero"], sizes=(0.2, 0.4, 0.5, 0.7, 0.9), draws=2,
        reference=X,
    )  # fmt: skip
    rows = found.draws.query("order == 'signed' and direction == 'keep'")
    for count, value in zip(rows["components"], rows["value"], strict=True):

        def ablate(output: Tensor, kept: int = count) -> Tensor:
            return torch.cat([output[:, :kept], torch.zeros_like(output[:, kept:])], 1)

        with passing(model, {"one": ablate}):
            wanted = float(model(X).mean())
        assert value == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("size", [10, 16, 32, 64, 131])
def test_padded_maps_in_glue_are_not_taken_for_samples(size: int) -> None:
    """Of size 33, say, which 11 samples divide: no layer is so wide, so nothing says it before."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            maps = torch.nn.functional.pad(torch.relu(self.first(x)), (0, 1, 0, 1))
            return self.last(maps.mean((2, 3)))  # type: ignore[no-any-return]

    study = ng.Study(Padded(), torch.rand(6, 1, size, size), None, progress=False)
    with study.open() as experiment:
        assert not experiment.replay.pools
