"""Vision transformers: a plain one with a class token, and one with shifted windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.network import Network, column, maps, normal, under, vectors
from tests.zoo.simple import settle


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Class token and positions are parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 4, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.position = nn.Parameter(torch.zeros(1, 5, 4))
        self.blocks = nn.Sequential(Block(4, 2), Block(4, 2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class WindowAttention(nn.Module):
    """Attention inside windows, with a bias for each head and relative position."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offset = place[:, None] - place[None] + window - 1
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows, `[batch × windows, tokens, width]`."""
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) / (width // self.heads) ** 0.5
        scores = scores + self.bias_table[self.index].permute(2, 0, 1)
        if mask is not None:
            windows = len(mask)
            scores = scores.view(-1, windows, self.heads, tokens, tokens) + mask[:, None]
            scores = scores.view(rows, self.heads, tokens, tokens)
        mixed = scores.softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))


class SwinBlock(nn.Module):
    """Cuts a map into windows, which a shifted block moves half a window along."""

    def __init__(self, width: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, 2, window)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)
        region = torch.zeros(1, size, size, 1)
        for i, rows in enumerate((slice(-window), slice(-window, -shift), slice(-shift, None))):
            for j, cols in enumerate((slice(-window), slice(-window, -shift), slice(-shift, None))):
                region[:, rows, cols] = 3 * i + j
        cut = self.partition(region)[..., 0]
        apart = cut[:, None] != cut[:, :, None]
        mask = torch.zeros(apart.shape).masked_fill(apart, -100.0) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def partition(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        w = self.window
        cut = x.view(batch, height // w, w, width // w, w, channels)
        return cut.transpose(2, 3).reshape(-1, w * w, channels)

    def merge(self, windows: Tensor, shape: torch.Size) -> Tensor:
        batch, height, width, channels = shape
        w = self.window
        cut = windows.view(batch, height // w, width // w, w, w, channels)
        return cut.transpose(2, 3).reshape(shape)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        if self.shift:
            h = torch.roll(h, (-self.shift, -self.shift), (1, 2))
        h = self.merge(self.attn(self.partition(h), self.mask), x.shape)
        if self.shift:
            h = torch.roll(h, (self.shift, self.shift), (1, 2))
        x = x + h
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 4, 2, 2)
        self.blocks = nn.Sequential(SwinBlock(4, 4, 2, 0), SwinBlock(4, 4, 2, 1))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))


def vit(seed: int) -> Network:
    sites = maps("input", "patch")
    for block in ("blocks.0", "blocks.1"):
        sites |= vectors(*under(block, "attn.qkv attn.proj up down"))
    sites |= vectors("head")
    return Network("vit", settle(ViT(), seed), normal(2, 8, 8), column(2), sites)


def swin(seed: int) -> Network:
    sites = maps("input", "patch")
    for block in ("blocks.0", "blocks.1"):
        sites |= vectors(*under(block, "attn.qkv attn.proj"), many=4)
        sites |= vectors(*under(block, "up down"))
    sites |= vectors("head")
    return Network("swin", settle(Swin(), seed), normal(2, 8, 8), column(1), sites)
