"""Small networks of many shapes, with random weights, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.network import Network, Site, column

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "scaled": lambda x: F.softplus(x * 2.0) - 0.5,
    "none": lambda x: x,
}


@dataclass(frozen=True)
class Sample:
    """A network, an input shape, its layers in call order and their channel dimensions."""

    model: nn.Module
    shape: tuple[int, ...]
    layers: tuple[str, ...]
    channels: dict[str, int]
    outputs: int

    def data(self, rows: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, *self.shape, generator=generator, dtype=torch.float64)
        return x.to(next(self.model.parameters()).dtype)

    def network(self, output: int = 0) -> Network:
        """The same with its sites, one output for a target."""
        sites = {name: Site(name, channel=dim) for name, dim in self.channels.items()}
        return Network(
            type(self.model).__name__,
            self.model,
            lambda rows, seed: {"x": self.data(rows, seed)},
            column(output),
            sites,
        )


def settle(model: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Give a model random weights and running statistics that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    model.to(torch.float64)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.dim() > 1:
                tensor.copy_(1.5 * noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(
                    0.3 * noise + (1.0 if "norm" in name.lower() and "weight" in name else 0.0)
                )
    return model.to(dtype).eval()


class MLP(nn.Module):
    def __init__(self, widths: tuple[int, ...], activation: str, in_place: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.activation, self.in_place = ACTIVATIONS[activation], in_place

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.layers) - 1:
                # Not idempotent, so that rows which are used twice by mistake go wrong.
                x = x.mul_(0.7).add_(0.1).relu_() if self.in_place else self.activation(x)
        return x


class ResidualMLP(nn.Module):
    """Skips over a layer and over two, one straight to the output; a norm in between."""

    def __init__(self, features: int, width: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width + 1)
        self.down = nn.Linear(width + 1, width)
        self.head = nn.Linear(width, outputs)
        self.skip = nn.Linear(features, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h = h + self.down(F.gelu(self.up(self.norm(h))))
        return self.head(torch.tanh(h)) + torch.tanh(self.skip(x))


class BranchedCNN(nn.Module):
    """A residual block with a downsample branch, a concatenation, in-place ReLU, BatchNorm."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels + 1, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(channels + 1)
        self.downsample = nn.Conv2d(channels, channels + 1, 1, stride=2, bias=False)
        self.branch = nn.Conv2d(channels + 1, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(channels + 3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.stem(x)))
        identity = self.downsample(h)
        out = self.norm2(self.conv(h))
        out += identity
        out = self.relu(out)
        out = torch.cat([out, self.branch(out)], dim=1)
        return self.head(F.adaptive_avg_pool2d(out, 1).flatten(1))


class SharedLayer(nn.Module):
    """One Linear called twice, with its first output skipping to the head."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.cell = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.cell(x))
        second = torch.tanh(self.cell(first))
        return self.head(first + second)


class Attention(nn.Module):
    """A one-block transformer on continuous tokens; the first token is read out."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width + 2), nn.Linear(width + 2, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        h = self.norm(x)
        q, k, v = (
            f(h).view(batch, tokens, 2, width // 2).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.o(mixed)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


def plain(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with activations between, with the weights that torch draws."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [nn.Linear(a, b), activation()]
    return nn.Sequential(*parts[:-1])


def mlp(
    widths: tuple[int, ...], activation: str, in_place: bool, seed: int, dtype: torch.dtype
) -> Sample:
    names = tuple(f"layers.{i}" for i in range(len(widths) - 1))
    model = settle(MLP(widths, activation, in_place), seed, dtype)
    return Sample(model, widths[:1], names, dict.fromkeys(("input", *names), 1), widths[-1])


def residual_mlp(width: int, outputs: int, seed: int, dtype: torch.dtype) -> Sample:
    names = ("enter", "up", "down", "head", "skip")
    model = settle(ResidualMLP(3, width, outputs), seed, dtype)
    return Sample(model, (3,), names, dict.fromkeys(("input", *names), 1), outputs)


def branched_cnn(channels: int, outputs: int, seed: int, dtype: torch.dtype) -> Sample:
    names = ("stem", "downsample", "conv", "branch", "head")
    model = settle(BranchedCNN(channels, outputs), seed, dtype)
    return Sample(model, (2, 5, 5), names, dict.fromkeys(("input", *names), 1), outputs)


def shared_layer(width: int, outputs: int, seed: int, dtype: torch.dtype) -> Sample:
    names = ("cell", "cell#1", "head")
    model = settle(SharedLayer(width, outputs), seed, dtype)
    return Sample(model, (width,), names, dict.fromkeys(("input", *names), 1), outputs)


def attention(width: int, outputs: int, seed: int, dtype: torch.dtype) -> Sample:
    names = ("q", "k", "v", "o", "up", "down", "head")
    model = settle(Attention(width, outputs), seed, dtype)
    channels = dict.fromkeys(("input", *names), 2) | {"head": 1}
    return Sample(model, (3, width), names, channels, outputs)
