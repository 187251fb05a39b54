"""Which glue counts as pointwise, and that what is recorded of it computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograph.data.source import Batch
from neurograph.replay.elementwise import find_chains
from neurograph.replay.recording import capture
from neurograph.replay.replay import Replay

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "in place": lambda x: x.mul_(2).relu_().add_(1),
    "functional in place": lambda x: F.relu(x, inplace=True),
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "relu6": F.relu6,
    "elu": F.elu,
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "arithmetic": lambda x: (x * 3 - 1) / 2,
    "power": lambda x: x**2,
    "dropout in eval": lambda x: F.dropout(x, 0.5, training=False),
    "detached": lambda x: torch.tanh(x.detach()),
    "chain": lambda x: torch.exp(-torch.clamp(x, -1, 1)),
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "mixed with itself": lambda x: x * x.roll(1, -1),
    "squared by itself": lambda x: x * x,
    "flipped": lambda x: x.flip(-1),
    "reshaped": lambda x: x.view(-1, 2, 2).transpose(1, 2).reshape(x.shape),
    "depends on the data": lambda x: x * float(x.sum()),
    "view written": lambda x: (x.view(-1, 2).mul_(2), x)[1],
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "other dtype": lambda x: x.double().relu().float(),
}


class Glued(nn.Module):
    def __init__(self, glue: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.glue = nn.Linear(3, 4), nn.Linear(4, 2), glue

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.glue(self.first(x)))


def chains(model: nn.Module) -> dict:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with Replay(model, capture(model, Batch((x,), {}))) as replay:
        return find_chains(replay)


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_glue_is_a_chain_that_computes_the_same(name: str) -> None:
    chain = chains(Glued(POINTWISE[name]))["first", "second"]
    values = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(chain(values.clone()), POINTWISE[name](values.clone()))


@pytest.mark.parametrize("name", OTHER)
def test_other_glue_is_none(name: str) -> None:
    assert ("first", "second") not in chains(Glued(OTHER[name]))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Clipped(nn.Linear):
    """Like any other where activations are as usual, but not far away."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-3, 3))


def test_readers_have_chains_where_they_compute_what_their_weights_say() -> None:
    class Alike(nn.Linear):
        pass

    model = Glued(torch.relu)
    assert ("first", "second") in chains(model)
    handle = model.second.register_forward_hook(lambda module, args, output: output + 1)
    assert ("first", "second") in chains(model)  # what the hook adds is glue behind it
    handle.remove()
    model.second = Alike(4, 2)
    assert ("first", "second") in chains(model)
    for other in (Scaled(4, 2), Clipped(4, 2)):
        model.second = other
        assert ("first", "second") not in chains(model)
    model.second = nn.Linear(4, 2)
    own = model.second.forward
    model.second.forward = lambda x: own(x) + 1e-4 * own(x).sum(1, keepdim=True)
    assert ("first", "second") not in chains(model)


def test_a_residual_sum_is_no_chain() -> None:
    class Residual(Glued):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)) + x.sum(1, keepdim=True))

    assert set(chains(Residual(torch.relu))) == {("input", "first")}
