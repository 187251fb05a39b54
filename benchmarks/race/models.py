"""The networks of the race: plain torch, so that every peer's environment can build them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Convolutions", "Heart", "Transformer"]


class Heart(nn.Module):
    """The heart-disease network: 17 features, two hidden layers with tanh, one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(17, 512)
        self.linear2 = nn.Linear(512, 1024)
        self.linear3 = nn.Linear(1024, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear3(torch.tanh(self.linear2(torch.tanh(self.linear1(x)))))


class Convolutions(nn.Module):
    """Two convolutions and a hidden layer for images ``[samples, 1, 28, 28]`` of ten digits.

    Every activation is a module of its own, as LRP needs it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 32, 5, stride=2), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(32, 64, 5, stride=2), nn.ReLU()
        self.hidden, self.relu3 = nn.Linear(64 * 4 * 4, 128), nn.ReLU()
        self.logits = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.logits(self.relu3(self.hidden(torch.flatten(x, 1))))


class Embed(nn.Module):
    def __init__(self, words: int, length: int, width: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(words, width), nn.Embedding(length, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.position.weight[: tokens.shape[1]]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.ln2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Transformer(nn.Module):
    """A pre-LN decoder: tokens ``[samples, 10]`` to logits ``[samples, 10, 64]``."""

    words, length, width, heads, depth = 64, 10, 128, 8, 4

    def __init__(self) -> None:
        super().__init__()
        self.embed = Embed(self.words, self.length, self.width)
        self.blocks = nn.ModuleList(Block(self.width, self.heads) for _ in range(self.depth))
        self.ln = nn.LayerNorm(self.width)
        self.unembed = nn.Linear(self.width, self.words)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.ln(x))
