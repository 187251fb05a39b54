"""Models that mix the samples of a batch: it is said."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import neurograph as ng


class Centred(nn.Module):
    """Takes the batch's mean off what a layer returns, or does not."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.one, self.head, self.mixes = nn.Linear(3, 4), nn.Linear(4, 2), mixes

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.head(torch.tanh(hidden - hidden.mean(0) if self.mixes else hidden))


def test_that_samples_of_a_batch_are_mixed_is_said() -> None:
    X = torch.rand(40, 3)
    for mixes in (True, False):
        circuit = ng.search(Centred(mixes), X, 1, reference=8, progress=False)
        assert any("others of its batch" in note for note in circuit.notes) is mixes
