"""Small networks for tests of circuits, in float64."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests import zoo
from tests.zoo.chosen import heads
from tests.zoo.network import Network

F64 = torch.float64


def attention() -> Network:
    """Heads of two channels before they are mixed."""
    network = zoo.attention(4, 2, 1, F64).network()
    groups = dict.fromkeys("qkv", 2)
    return replace(network, options={"groups": groups}, units=heads(2, lambda n: n in groups))


SMALL = {
    "mlp": lambda: zoo.mlp((3, 5, 4, 2), "gelu", False, 0, F64).network(),
    "in place": lambda: zoo.mlp((3, 5, 4, 2), "relu", True, 0, F64).network(),
    "residual mlp": lambda: zoo.residual_mlp(4, 2, 1, F64).network(),
    "cnn": lambda: zoo.branched_cnn(3, 2, 2, F64).network(),
    "shared": lambda: zoo.shared_layer(3, 2, 3, F64).network(),
    "attention": attention,
}
