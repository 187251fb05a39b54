"""What comparing two models takes in time and memory, by size: neurons matched, and all of it.

    python benchmarks/matching.py [--only NAME] [--write FILE]

Networks of random weights: pairs with different weights, which have nothing to be found in common
but what their inputs force on them, and a network beside its own neurons permuted and noise added
to its weights, as after a little more training.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import scipy
import torch
from torch import Tensor, nn

import neurograph
from neurograph.circuit.circuit import Circuit
from neurograph.matching import activation
from neurograph.matching.matching import Matching
from notebook_loop import cpu_name
from peak_memory import PeakMemory

SAMPLES = 1000
NOISE = 0.02  # of the weights' own spread


def mlp(seed: int, widths: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential()
    for a, b in itertools.pairwise((64, *widths, 10)):
        model.extend([nn.Linear(a, b), nn.ReLU()])
    return model[:-1].eval()


def cnn(seed: int, channels: tuple[int, ...]) -> nn.Sequential:
    """Convolutions with BatchNorm on maps of 32 × 32, halved after every second one."""
    torch.manual_seed(seed)
    model, before = nn.Sequential(), 3
    for i, width in enumerate(channels):
        stride = 2 if i and i % 2 == 0 else 1
        model.extend([nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()])
        before = width
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)])
    return model.eval()


def retrained(model: nn.Sequential) -> nn.Sequential:
    """The hidden neurons permuted, and some noise on the weights."""
    order: Tensor | None = None
    owners = [m for m in model if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear | nn.Conv2d):
                if order is not None:
                    module.weight.copy_(module.weight[:, order])
                if module is not owners[-1]:
                    order = torch.randperm(len(module.weight))
                    module.weight.copy_(module.weight[order])
                    module.bias.copy_(module.bias[order])
                module.weight += NOISE * module.weight.std() * torch.randn_like(module.weight)
    return model


CASES: dict[str, tuple[Callable[[int], nn.Sequential], tuple[int, ...]]] = {
    "MLP, 4 × 1,000": (lambda seed: mlp(seed, (1000,) * 4), (64,)),
    "MLP, 4 × 5,000": (lambda seed: mlp(seed, (5000,) * 4), (64,)),
    "MLP, 2 × 10,000": (lambda seed: mlp(seed, (10_000,) * 2), (64,)),
    "CNN, 64 to 512 channels": (
        lambda seed: cnn(seed, (64, 64, 128, 128, 256, 256, 512, 512)),
        (3, 32, 32),
    ),
}


def attached(model: nn.Module, X: Tensor) -> Circuit:
    options: dict[str, Any] = {"scorer": "gradient", "paths": 20, "keep": "top:50"}
    return neurograph.search(model, X, 0, progress=False, **options)


class Cost(NamedTuple):
    """Of matching: seconds, of all threads together, and of these for assignments with ties; bytes.

    And the seconds of a whole comparison.
    """

    seconds: float
    busy: float
    assigning: float
    peak: int
    whole: float


def measured(a: Circuit, b: Circuit) -> tuple[Matching, Cost]:
    assigning, assign = 0.0, activation.assign

    def watched(*args: Any, **options: Any) -> Any:
        nonlocal assigning
        start = time.process_time()
        found = assign(*args, **options)
        assigning += time.process_time() - start
        return found

    activation.assign = watched
    try:
        with PeakMemory() as memory:
            start, busy = time.perf_counter(), time.process_time()
            found = activation.by_activation(a, b, samples=SAMPLES, progress=False)
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
    finally:
        activation.assign = assign
    start = time.perf_counter()
    neurograph.compare(a, b, match="activation", samples=SAMPLES, progress=False)
    return found, Cost(seconds, busy, assigning, memory.peak, time.perf_counter() - start)


def rows(name: str) -> Iterator[str]:
    make, shape = CASES[name]
    X = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    a = attached(make(0), X)
    for other in ("other weights", "permuted, with noise"):
        model = make(1) if other == "other weights" else retrained(make(0))
        found, cost = measured(a, attached(model, X))
        inner = found.layers[1:-1]
        pairs = sum(len(match.pairs) for match in inner)
        similarity = sum(float(match.similarity.sum()) for match in inner) / pairs
        yield (
            f"| {name} | {other} | {pairs:,} | {cost.seconds:.1f} s | {cost.busy:.1f} s | "
            f"{cost.assigning:.1f} s | {cost.peak / 1e9:.2f} GB | {similarity:.2f} | "
            f"{cost.whole:.1f} s |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    lines = [
        f"{SAMPLES:,} samples, a memory budget of 512 MB; {cpu_name()}, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, scipy {scipy.__version__}. Time by the clock; that "
        "of all threads, and of it that for assignment and ties. Memory is above the models, at "
        "most. The whole comparison, of circuits of 50 neurons of each layer and sign, matches "
        "again and has the default options: 1,000 permutations, 10 s for differences, transplants "
        "with 20 random sets each way.",
        "",
        "| model | beside | pairs | time | of processors | for assignment | memory | mean r | "
        "whole comparison |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        print(line, flush=True)
    for name in CASES if options.only is None else [options.only]:
        for line in rows(name):
            print(line, flush=True)
            lines.append(line)
    if options.write is not None:
        options.write.write_text("\n".join(["# What comparing takes", "", *lines, ""]))


if __name__ == "__main__":
    main()
