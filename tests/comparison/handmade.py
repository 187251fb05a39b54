"""Circuits written down by hand, and models of which the answer is known."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from neurograph.circuit.circuit import Circuit
from neurograph.circuit.paths import Path
from neurograph.effects.selection import sign_of
from neurograph.model.layers import Neuron
from tests import zoo

LAYERS = {"a": 3, "b": 2}


def circuit(
    kept: Mapping[tuple[str, int], float],
    edges: Mapping[tuple[tuple[str, int], tuple[str, int]], float] | None = None,
    paths: Sequence[tuple[tuple[str, int], ...]] = (),
    sizes: Mapping[str, int] | None = None,
    others: Mapping[tuple[str, int], float] | None = None,
    positions: int | None = None,
) -> Circuit:
    """A circuit of layers that read each other in their order; `others` were scored, not kept."""
    sizes = sizes or LAYERS
    graph, layers = nx.DiGraph(), nx.DiGraph()
    names = list(sizes)
    for name, count in sizes.items():
        layers.add_node(name, neurons=count * (positions or 1), type="Linear", output=False)
        if positions is not None:
            layers.nodes[name]["positions"] = positions
    layers.add_edges_from(itertools.pairwise(names))
    shape = () if positions is None else (positions,)
    scores = {name: {"effect": np.zeros((count, *shape))} for name, count in sizes.items()}
    for place, effect in {**kept, **(others or {})}.items():
        scores[place[0]]["effect"][place[1:]] = effect
    for table in scores.values():
        table["stderr"] = np.full_like(table["effect"], 0.5)
    for place, effect in kept.items():
        neuron = Neuron(*place)
        named = dict(zip(("layer", "index", "position"), neuron, strict=False))
        effects = {"effect": effect, "stderr": 0.5, "sign": sign_of(effect)}
        graph.add_node(neuron, name=str(neuron), **named, **effects)
    for (u, v), effect in (edges or {}).items():
        graph.add_edge(Neuron(*u), Neuron(*v), effect=effect, stderr=0.5, sign="positive")
    known = [tuple(Neuron(*place) for place in path) for path in paths]
    strongest = tuple(Path(path, 1.0, 0.5, True, tuple(map(str, path))) for path in known)
    return Circuit(graph, layers, "up", strongest, scores)


def network(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    torch.manual_seed(seed)
    return zoo.plain(widths).double()


def inputs(features: int, samples: int = 200, seed: int = 0) -> Tensor:
    """Independent standard normal features."""
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed)).double()


def shuffled(model: nn.Sequential, seed: int = 1) -> tuple[nn.Sequential, dict[str, list[int]]]:
    """The same function with the neurons of all hidden layers in another order, and which."""
    generator, twin = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    linear = [i for i, part in enumerate(twin) if isinstance(part, nn.Linear)]
    orders = {}
    with torch.no_grad():
        for here, there in itertools.pairwise(linear):
            order = torch.randperm(twin[here].out_features, generator=generator)
            for tensor in (twin[here].weight, twin[here].bias, twin[there].weight.T):
                tensor.copy_(tensor[order].clone())
            orders[str(here)] = order.tolist()
    return twin, orders


def rescaled(model: nn.Sequential, seed: int = 2) -> nn.Sequential:
    """The same function with each hidden neuron scaled, and its readers' weights the other way."""
    generator, twin = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    linear = [i for i, part in enumerate(twin) if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for here, there in itertools.pairwise(linear):
            scale = 0.2 + 5 * torch.rand(twin[here].out_features, generator=generator).double()
            twin[here].weight.mul_(scale[:, None])
            twin[here].bias.mul_(scale)
            twin[there].weight.div_(scale)
    return twin
