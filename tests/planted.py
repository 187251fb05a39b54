"""Sparse networks of known wiring, planted among dense ones that do not matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

Place = tuple[str, int]
"""A layer, and which of its neurons."""


@dataclass(frozen=True)
class Planted:
    """A network with a circuit in it.

    Attributes
    ----------
    model : Module
    X : Tensor, [samples, inputs]
    neurons : dict of place to bool
        Inputs and hidden neurons, and whether each is in the circuit.
    edges : dict of (source, target) to bool
        All pairs of neighbouring layers, and whether each is in the circuit.
    """

    model: nn.Module
    X: Tensor
    neurons: Mapping[Place, bool]
    edges: Mapping[tuple[Place, Place], bool]


def planted(
    seed: int,
    noise: float = 0.0,
    *,
    inputs: tuple[int, int] = (5, 5),
    hidden: tuple[int, int] = (6, 26),
    depth: int = 3,
    reads: int = 2,
    samples: int = 256,
) -> Planted:
    """Plant a random sparse teacher in a tanh network.

    Parameters
    ----------
    seed : int
        Of the wiring, all weights, the order of the neurons, and the data.
    noise : float
        Standard deviation of what distractors add to everything that reads them, where all of
        them have standard deviation 1: at 0 they read inputs, teachers and each other, but
        nothing of them reaches a teacher or the output.
    inputs, hidden : (int, int)
        Teachers and distractors among the inputs, and in each hidden layer.
    depth : int
        Hidden layers.
    reads : int
        How many neurons of the layer before each teacher reads, at least. Every teacher is read.
    samples : int
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs, *[hidden] * depth]
    modules: list[nn.Module] = []
    wired: list[Tensor] = []
    orders = [torch.randperm(sum(size), generator=generator) for size in sizes]
    for (taught, rest), (teachers, others) in pairwise(sizes):
        links = _links(taught, teachers, reads, generator)
        weight = _weights((teachers + others, taught + rest), generator) / (taught + rest) ** 0.5
        weight[:teachers] = 0
        weight[:teachers, :taught] = links * _strengths(links.shape, generator)
        leak = torch.randn(teachers, rest, generator=generator, dtype=torch.float64)
        weight[:teachers, taught:] = noise * leak / rest**0.5
        modules += [_linear(weight, orders[len(wired)], orders[len(wired) + 1]), nn.Tanh()]
        wired.append(links)
    teachers, others = sizes[-1]
    out = torch.zeros(1, teachers + others, dtype=torch.float64)
    out[:, :teachers] = _strengths((1, teachers), generator)
    leak = torch.randn(1, others, generator=generator, dtype=torch.float64)
    out[:, teachers:] = noise * leak / others**0.5
    modules.append(_linear(out, orders[-1], torch.zeros(1, dtype=torch.long)))
    wired.append(torch.ones(1, teachers, dtype=torch.bool))
    X = torch.randn(samples, sum(inputs), generator=generator, dtype=torch.float64)
    model = nn.Sequential(*modules)
    names = ["input", *(str(2 * i) for i in range(depth + 1))]
    return Planted(model, X, *_truth(names, sizes, orders, wired))


def _links(taught: int, teachers: int, reads: int, generator: torch.Generator) -> Tensor:
    """Which teachers read which, ``[readers, read]``: each reads some, and each is read."""
    links = torch.zeros(teachers, taught, dtype=torch.bool)
    for row in links:
        row[torch.randperm(taught, generator=generator)[:reads]] = True
    for unread in (~links.any(0)).nonzero()[:, 0]:
        links[torch.randint(teachers, (1,), generator=generator), unread] = True
    return links


def _weights(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _strengths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights of either sign, none of them near 0."""
    size = 0.5 + 0.5 * torch.rand(shape, generator=generator, dtype=torch.float64)
    sign = torch.randint(2, shape, generator=generator) * 2 - 1
    return size * sign


def _linear(weight: Tensor, before: Tensor, after: Tensor) -> nn.Linear:
    """A Linear whose neurons stand in the given orders."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight[after][:, before])
        linear.bias.zero_()
    return linear


def _truth(
    names: list[str], sizes: list[tuple[int, int]], orders: list[Tensor], wired: list[Tensor]
) -> tuple[dict[Place, bool], dict[tuple[Place, Place], bool]]:
    """Read off what is in the circuit, neurons and edges as the model has them."""
    neurons = {
        (name, i): int(number) < size[0]
        for name, size, order in zip(names, sizes, orders, strict=False)
        for i, number in enumerate(order)
    }
    edges: dict[tuple[Place, Place], bool] = {}
    ends = [*orders, torch.zeros(1, dtype=torch.long)]
    for layer, links in enumerate(wired):
        readers, read = links.shape
        for i, source in enumerate(ends[layer].tolist()):
            for j, target in enumerate(ends[layer + 1].tolist()):
                inside = target < readers and source < read
                pair = (names[layer], i), (names[layer + 1], j)
                edges[pair] = inside and bool(links[target, source])
    return neurons, edges
