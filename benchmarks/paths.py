"""How many of the truly strongest paths a narrow beam finds, and when that is certain.

Truth is every path of a network measured, one by one (`path_effects`). Beside it: one pass of a
beam that keeps 200 prefixes at each layer, and `strongest_paths` as it is called by default.

    python benchmarks/paths.py --write docs/paths.md
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograph.demos import heart
from neurograph.discovery.beam import Beam
from neurograph.discovery.strongest_paths import StrongestPaths, read_sources
from neurograph.effects.exact import path_effects
from neurograph.model.layers import Neuron
from neurograph.questions.functions import strongest_paths
from neurograph.questions.study import Study
from notebook_loop import cpu_name

AT = (10, 50, 100)
WIDTH = 200
HEAD = [
    "network",
    "paths",
    f"recall, beam of {WIDTH}",
    "measured",
    "recall, default",
    "measured",
    "certain",
    "time",
    "ratio",
]
ROWS = 400


class Residual(nn.Module):
    """Two blocks that add to what they read."""

    def __init__(self, features: int, width: int, outputs: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(features, width), nn.Linear(width, outputs)
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for up, down in zip(self.up, self.down, strict=True):
            h = h + down(F.gelu(up(h)))
        return self.head(torch.relu(h))


class Attention(nn.Module):
    """A transformer block with norms; the mean over tokens is classified."""

    def __init__(self, width: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        h = self.norm(x)
        mixed = F.scaled_dot_product_attention(*(split(f(h)) for f in (self.q, self.k, self.v)))
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def mlp(*widths: int, activation: type[nn.Module]) -> nn.Module:
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [nn.Linear(a, b), activation()]
    return nn.Sequential(*parts[:-1])


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3),
    )  # fmt: skip


def trained(model: nn.Module, X: Tensor) -> nn.Module:
    """Fit three classes that hang on products of a few features."""
    flat = X.flatten(1)
    y = (flat[:, 0] * flat[:, 1] > 0).long() + (flat[:, 2] * flat[:, 3] > 0).long()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        optimiser.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimiser.step()
    return model


@dataclass
class Case:
    name: str
    model: nn.Module
    X: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)
    target: int = 0


def cases() -> Iterator[Case]:
    """Each network as drawn, and trained."""
    heads = {"groups": dict.fromkeys("qkvo", 4), "reference": 8}
    makers: list[tuple[str, Any, tuple[int, ...], Mapping[str, Any]]] = [
        ("MLP 8-40-40-3, ReLU", lambda: mlp(8, 40, 40, 3, activation=nn.ReLU), (8,), {}),
        ("MLP 8-16-16-16-3, GELU", lambda: mlp(8, 16, 16, 16, 3, activation=nn.GELU), (8,), {}),
        ("MLP 6-8-8-8-8-3, tanh", lambda: mlp(6, 8, 8, 8, 8, 3, activation=nn.Tanh), (6,), {}),
        ("residual MLP, 2 blocks of 5", lambda: Residual(4, 5, 3), (4,), {}),
        ("CNN, 3 convolutions", cnn, (3, 12, 12), {"reference": 8}),
        ("attention, 4 heads", lambda: Attention(8, 4, 3), (6, 8), heads),
    ]
    for name, make, shape, options in makers:
        for kind in ("random", "trained"):
            torch.manual_seed(0)
            model, X = make(), torch.randn(ROWS, *shape)
            yield Case(
                f"{name}, {kind}", trained(model, X) if kind == "trained" else model, X, options
            )


# -- truth -----------------------------------------------------------------------------------------


def every_path(study: Study, begin: Mapping[str, list[int]]) -> Iterator[tuple[Neuron, ...]]:
    graph, experiment = study.layers, study.experiment

    def onward(path: tuple[Neuron, ...]) -> Iterator[tuple[Neuron, ...]]:
        if graph.nodes[path[-1].layer]["output"]:
            yield path
        for reader in graph.successors(path[-1].layer):
            units = experiment.units(reader)
            for unit in range(len(units)):
                yield from onward((*path, units.neuron(unit)))

    for layer, numbers in begin.items():
        for number in numbers:
            yield from onward((experiment.units(layer).neuron(number),))


def recalls(truth: list[tuple[Neuron, ...]], found: list[tuple[Neuron, ...]]) -> str:
    each = (len(set(truth[:k]) & set(found[:k])) / k for k in AT)
    return " / ".join(f"{share:.2f}" for share in each)


def row(case: Case) -> str:
    start = time.perf_counter()
    found = strongest_paths(case.model, case.X, case.target, progress=False, **case.options)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    options = dict(progress=False, **case.options)
    study = Study(case.model, case.X, case.target, **options)
    begin = read_sources(study, None)
    with study.open() as experiment:
        paths = list(every_path(study, begin))
        effects = path_effects(experiment, paths).effect
        order = effects.abs().topk(AT[-1]).indices.tolist()
        truth, slow = [paths[i] for i in order], time.perf_counter() - start
        beam = Beam(experiment, begin, AT[-1])
        narrow = beam.run(WIDTH)
    assert found.total == beam.total == len(paths)
    cells = [
        case.name,
        f"{found.total:,}",
        recalls(truth, list(narrow.best)),
        f"{narrow.measured / found.total:.2%}",
        recalls(truth, [path.neurons for path in found.paths]),
        f"{found.measured / found.total:.2%}",
        "yes" if found.certain else "no",
        f"{seconds:.2f} s",
        f"{seconds / slow:.2f}",
    ]
    return line(cells)


def line(cells: list[str]) -> str:
    """Write a row of a table; tell whoever waits."""
    text = "| " + " | ".join(cells) + " |"
    print(text, file=sys.stderr)
    return text


# -- too many to enumerate one by one --------------------------------------------------------------


def large(name: str, model: nn.Module, X: Any, target: int) -> tuple[str, StrongestPaths]:
    start = time.perf_counter()
    found = strongest_paths(model, X, target, progress=False)
    seconds = time.perf_counter() - start
    ratio = found.bound / abs(found.paths[-1].effect)
    cells = [
        name,
        f"{found.total:,}",
        "yes" if found.certain else "no",
        f"{ratio:.2g}" if ratio > 1 else "1 or less",
        f"{seconds:.1f} s",
    ]
    return line(cells), found


def heart_agrees(model: nn.Module, X: Any, found: StrongestPaths) -> tuple[bool, float]:
    """Whether all 8.9 million paths, in plain arithmetic, have the same hundred; and seconds."""
    study = Study(model, X, 1, progress=False)
    experiment, start = study.experiment, time.perf_counter()
    low, high = experiment.levels("input")[[0, -1], 0]
    x = experiment.recording.main("input")
    w1, w2, w3 = (model.get_submodule(f"linear{i}").weight for i in (1, 2, 3))
    with torch.no_grad():
        z1 = model.get_submodule("linear1")(x)
        z2 = model.get_submodule("linear2")(z1.tanh())
        effects = torch.empty(len(w1[0]), len(w1), len(w2))
        for i, j in itertools.product(range(len(w1[0])), range(len(w1))):
            ends = [
                (z1[:, j] + w1[j, i] * (end[i] - x[:, i])).tanh() - z1[:, j].tanh()
                for end in (low, high)
            ]
            moved = [(z2 + end[:, None] * w2[:, j]).tanh() for end in ends]
            effects[i, j] = (moved[1] - moved[0]).mean(0) * w3[0]
    best = effects.abs().flatten().topk(AT[-1]).indices
    truth = {
        (int(n) // effects[0].numel(), int(n) // len(w2) % len(w1), int(n) % len(w2)) for n in best
    }
    searched = {tuple(neuron.index for neuron in path.neurons[:3]) for path in found.paths}
    return truth == searched, time.perf_counter() - start


def larger() -> tuple[list[str], str]:
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        model = heart.train(0, directory, progress=False).model
    X = heart.load_data(0).train
    first, found = large("heart network, 17-512-1024-1, tanh, trained", model, X, 1)
    agrees, seconds = heart_agrees(model, X, found)
    rows.append(first)
    for activation in (nn.ReLU, nn.GELU, nn.Tanh):
        for kind in ("random", "trained"):
            torch.manual_seed(0)
            net, Z = mlp(64, 128, 128, 128, 10, activation=activation), torch.randn(ROWS, 64)
            net = trained(net, Z) if kind == "trained" else net
            name = f"MLP 64-128-128-128-10, {activation.__name__}, {kind}"
            rows.append(large(name, net, Z, 0)[0])
    torch.manual_seed(0)
    rows.append(large("residual MLP, 2 blocks of 32, random", Residual(16, 32, 3), Z[:, :16], 0)[0])
    text = f"""The heart network's {found.total:,} paths were all computed besides, in plain \
matrix arithmetic ({seconds:.0f} s): its hundred strongest are \
{"the same" if agrees else "others"}."""
    return rows, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    path = parser.parse_args().write
    torch.manual_seed(0)
    strongest_paths(mlp(2, 2, 2, activation=nn.ReLU), torch.randn(9, 2), 0)  # first calls are slow
    rows = [row(case) for case in cases()]
    huge, text = larger()
    newline = "\n"
    text = f"""# The strongest paths

Written by `python benchmarks/paths.py --write docs/paths.md`: torch {torch.__version__}, \
{torch.get_num_threads()} threads, {cpu_name()}; a shared machine, so that times are rough.

## Recall

Truth is every path of the network measured one by one. Recall is how many of the true 10, 50 and
100 strongest are among as many found: by one pass of a beam of {WIDTH} prefixes a layer, and by
`strongest_paths` with its defaults, which widens the beam until the answer is certain. Measured is
the share of paths that were followed to the target; the others fell to a bound, or out of the
beam. The ratio is `strongest_paths` to the enumeration, profile and all.

{line(HEAD)}
{line(["---"] * len(HEAD))}
{newline.join(rows)}

Paths that end at another output of the network than the target do nothing; they count among the
paths all the same.

Reported for *Isolating Path Effects* (`ipe` 0.0.1), on language models and other data: recalls of
0.70 / 0.86 / 0.83 for message patching and 0.50 / 0.64 / 0.77 for path gradients. It was not run
here: it needs Python 3.12 and models of TransformerLens.

## Too many to measure

The hundred strongest again, with the default budget of 60 s. The bound is told as a share of the
weakest of them: up to 1, no path that was not measured can be stronger.

| network | paths | certain | bound | time |
| --- | --- | --- | --- | --- |
{newline.join(huge)}

{text}

A bound is known where Linear layers are joined by pointwise activations and the target is an
output's index: so for the whole of an MLP, and for the last layers of many other networks. Before
those, the answer is certain only once every prefix has been followed, which small networks allow.
A bound is of the steepest slope an activation has anywhere: near zero, where an untrained GELU
network lives, that is twice what it has there.
"""
    print(text)
    if path is not None:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
