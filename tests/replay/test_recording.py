"""A recording that takes over how another is laid out is the one that finds it out by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurograph.data.source import Source, concatenate
from neurograph.model.batch import Batch
from neurograph.model.layer_choice import find_sites
from neurograph.replay.recording import Recording, capture
from tests import zoo


def batch_of(network: zoo.Network, samples: int, seed: int) -> Batch:
    inputs = network.inputs(samples, seed)
    data = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    return concatenate(list(Source(data, network.model)))


def summary(recording: Recording) -> dict[str, Any]:
    return {
        "layers": list(recording.layers.items()),
        "calls": {n: (c.layouts, c.arriving) for n, c in recording.calls.items()},
        "output": recording.layouts,
        "size": recording.size,
        "flags": (recording.mixes, recording.fixed, recording.draws),
        "sites": recording.sites,
    }


@pytest.mark.parametrize("name", sorted(zoo.NETWORKS))
def test_networks(name: str) -> None:
    network = zoo.NETWORKS[name](0)
    sites = find_sites(network.model, network.options.get("layers"))
    few = capture(network.model, batch_of(network, 8, 1), sites)
    batch = batch_of(network, 6, 2)
    by_itself = capture(network.model, batch, few.sites)
    taken = capture(network.model, batch, few.sites, like=few)
    assert summary(taken) == summary(by_itself)
    for layer in taken.layers:
        assert torch.equal(taken.main(layer), by_itself.main(layer))


class Switching(nn.Module):
    """Does something else where a number of samples is reached, or a value."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(3, 4), nn.Linear(4, 2), how

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        if self.how == "mean" and len(x) > 10:
            hidden = hidden - hidden.mean(0)
        if self.how == "order" and len(x) > 10:
            hidden = hidden * torch.arange(len(x))[:, None]
        if self.how == "rows" and bool((x > 5).any()):
            hidden = self.second(hidden[x[:, 0] > 5]).sum() + hidden
        return self.second(hidden)


@pytest.mark.parametrize("how", ["mean", "order", "rows"])
def test_what_only_these_samples_show_is_found(how: str) -> None:
    torch.manual_seed(0)
    model, rows = Switching(how), torch.rand(20, 3)
    few = capture(model, Batch((rows[:8],), {}))
    rows[::3] *= 9
    batch = Batch((rows,), {})
    by_itself, taken = capture(model, batch), capture(model, batch, few.sites, like=few)
    assert summary(taken) == summary(by_itself)
    assert taken.mixes or taken.layers.keys() != few.layers.keys()
