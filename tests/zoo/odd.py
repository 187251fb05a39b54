"""Networks that break one habit each: shared, reparametrised, branching, oddly named, constant."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from tests.zoo.network import Network, Site, column, maps, normal, vectors
from tests.zoo.simple import SharedLayer, settle


class Normed(nn.Module):
    """A convolution, a Linear and a head, whose weights `norm` may rewrite."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.conv = norm(nn.Conv1d(2, 3, 3, padding=1))
        self.linear = norm(nn.Linear(3, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x)).mean(2)
        return self.head(torch.tanh(self.linear(h)))


class Stretched(nn.Module):
    """A parametrisation with a parameter and a layer of its own."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.ones(rows))
        self.turn = nn.Linear(rows, rows, bias=False)

    def forward(self, weight: Tensor) -> Tensor:
        turned = self.turn(weight.movedim(0, -1)).movedim(-1, 0)
        return turned * F.softplus(self.stretch).view(-1, *[1] * (weight.dim() - 1))


class Branching(nn.Module):
    """Takes one of two ways for the whole batch, by the mean of a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        h = self.two(h.relu() if h.mean() > 0 else h.tanh())
        return self.head(h.tanh())


class NamedOutput(nn.Module):
    """Two inputs of different kinds, a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.signal = nn.Linear(3, 3), nn.Conv1d(2, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.table(left)) * torch.sigmoid(self.signal(right)).mean(2)
        return {"hidden": hidden, "logits": self.head(hidden)}


class TupleOutput(nn.Module):
    """A nested tuple out, one part of which a layer reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        one = self.one(x)
        two = self.two(torch.tanh(one))
        return one, (two.relu(), self.head(two.relu()))


@dataclass
class Answer:
    """An output that PyTorch's pytrees do not look into."""

    logits: Tensor
    extra: tuple[Tensor, str]


class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.side, self.head = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Answer:
        h = torch.tanh(self.one(x))
        return Answer(self.head(h), (self.side(h), "side"))


class LayerCalledInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.input(x)) + x[:, :1])


class LayersCalledInputs(nn.Module):
    """Layers with the very names that the model's inputs would have."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.ModuleDict({"left": nn.Linear(3, 4), "right": nn.Linear(2, 4)})
        self.head = nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        h = torch.tanh(self.input["left"](left)) + self.input["right"](right)
        return self.head(h)


class Constants(nn.Module):
    """Layers that see no data: positions without a batch dimension, and a learned prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.position = nn.Embedding(6, 4)
        self.prompt = nn.Parameter(torch.zeros(3, 2))
        self.context = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x) + self.position(torch.arange(x.shape[1], device=x.device))
        h = torch.tanh(h + self.context(self.prompt).mean(0))
        return self.head(h.mean(1))


def shared(seed: int) -> Network:
    sites = vectors("input", "cell", "cell#1", "head")
    return Network("shared", settle(SharedLayer(3, 2), seed), normal(3), column(1), sites)


def _normed(name: str, seed: int, norm: Callable[[nn.Module], nn.Module]) -> Network:
    sites = maps("input", "conv") | vectors("linear", "head")
    return Network(name, settle(Normed(norm), seed), normal(2, 5), column(0), sites)


def _hooked_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # old, but models in use have it
        return torch.nn.utils.weight_norm(module)


def weight_norm_hook(seed: int) -> Network:
    return _normed("weight_norm_hook", seed, _hooked_weight_norm)


def weight_norm(seed: int) -> Network:
    return _normed("weight_norm", seed, parametrizations.weight_norm)


def parametrised(seed: int) -> Network:
    def stretched(module: nn.Module) -> nn.Module:
        rows = next(module.parameters()).shape[0]
        return parametrize.register_parametrization(module, "weight", Stretched(rows))

    return _normed("parametrised", seed, stretched)


def branching(seed: int) -> Network:
    sites = vectors("input", "one", "two", "head")
    return Network("branching", settle(Branching(), seed), normal(3), column(1), sites)


def _pair(left: tuple[int, ...], right: tuple[int, ...]) -> Callable[[int, int], dict[str, Any]]:
    def inputs(rows: int, seed: int) -> dict[str, Any]:
        first, second = normal(*left)(rows, seed), normal(*right)(rows, seed + 100_000)
        return {"left": first["x"], "right": second["x"]}

    return inputs


def named_output(seed: int) -> Network:
    sites = vectors("input.left") | maps("input.right") | vectors("table") | maps("signal")
    sites |= vectors("head")

    def target(output: dict[str, Tensor], _batch: object) -> Tensor:
        return output["logits"][:, 1] * output["hidden"][:, 0]

    model = settle(NamedOutput(), seed)
    return Network("named_output", model, _pair((3,), (2, 4)), target, sites)


def tuple_output(seed: int) -> Network:
    sites = vectors("input", "one", "two", "head")

    def target(output: tuple[Tensor, tuple[Tensor, Tensor]], _batch: object) -> Tensor:
        return output[1][1][:, 0] + output[0][:, 1].square()

    return Network("tuple_output", settle(TupleOutput(), seed), normal(3), target, sites)


def dataclass_output(seed: int) -> Network:
    sites = vectors("input", "one", "head", "side")

    def target(output: Answer, _batch: object) -> Tensor:
        return output.logits[:, 1] - output.extra[0][:, 0]

    return Network("dataclass_output", settle(DataclassOutput(), seed), normal(3), target, sites)


def layer_called_input(seed: int) -> Network:
    sites = vectors("model:input", "input", "head")
    model = settle(LayerCalledInput(), seed)
    return Network("layer_called_input", model, normal(3), column(0), sites)


def layers_called_inputs(seed: int) -> Network:
    sites = vectors("model:input.left", "model:input.right", "input.left", "input.right", "head")
    model = settle(LayersCalledInputs(), seed)
    return Network("layers_called_inputs", model, _pair((3,), (2,)), column(0), sites)


def constants(seed: int) -> Network:
    sites: dict[str, Site] = vectors("input", "enter")
    sites |= vectors("position", batch=None)
    sites |= {n: Site(n, batch=None, moves=False) for n in ("context.0", "context.2")}
    sites |= vectors("head")
    # As many positions as the tests take reference samples.
    return Network("constants", settle(Constants(), seed), normal(4, 3), column(1), sites)
