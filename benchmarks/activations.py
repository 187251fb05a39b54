"""What collecting statistics of activations costs in time and memory, and how good they are.

Time is told as a share of the forward passes it comes with, in the same run. Quantiles are compared
with KLL sketches (Karnin, Lang & Liberty 2016) as Apache DataSketches has them, if that package is
installed: pip install datasketches

    OMP_NUM_THREADS=1 python benchmarks/activations.py [--only time|memory|quantiles] [--write FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import neurograph
from neurograph.activations.statistics import ActivationStatistics
from neurograph.demos.heart import HeartNet
from neurograph.model.layer_choice import find_sites
from neurograph.utils.memory import parse_memory
from notebook_loop import cpu_name, timed
from peak_memory import PeakMemory
from scaling import Block
from sketches import compared

BATCH = 256
START = 8  # batches
GROUP = 16  # batches: choices among rows are made for so many at once
AIM = 0.2  # of the forward passes
MEMORY = "512MB"  # what `profile` takes by default


class Case(NamedTuple):
    """A network, some batches for it, and how often it is run."""

    name: str
    model: nn.Module
    batches: list[Tensor]
    groups: int
    passes: int
    repeats: int


def heart() -> Case:
    name = "heart network, 17 → 512 → 1024 → 1"
    return Case(name, HeartNet().eval(), list(torch.randn(16, BATCH, 17)), 10, 200, 5)


def resnet() -> Case:
    """Build a ResNet of 18 convolutions in blocks, 16 to 64 channels, maps of 32 × 32 to 8 × 8."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.ReLU()]
    for channels in (16, 32, 64):
        if channels > 16:
            layers.append(nn.Conv2d(channels // 2, channels, 1, stride=2, bias=False))
        layers += [Block(channels, channels) for _ in range(3)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    images = list(torch.randn(4, BATCH, 3, 32, 32))
    return Case("ResNet of 32 × 32 images", model.eval(), images, 1, 4, 3)


# -- time ------------------------------------------------------------------------------------------

Receive = Callable[[str, Tensor], object]


@contextlib.contextmanager
def watched(model: nn.Module, receive: Receive, inputs: bool) -> Iterator[None]:
    """Show the outputs of all layers, and their inputs too, by forward hooks."""
    hooks = []
    for name in find_sites(model).outputs:
        module = model.get_submodule(name)

        def before(_module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
            receive(f"{name}:input", args[0])

        def after(_module: nn.Module, _args: object, output: Tensor, name: str = name) -> None:
            receive(name, output)

        hooks.append(module.register_forward_hook(after))
        if inputs:
            hooks.append(module.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def row_sizes(case: Case, inputs: bool) -> list[int]:
    """Elements of one row of each tensor that is shown."""
    sizes: list[int] = []
    with watched(case.model, lambda _, tensor: sizes.append(tensor[0].numel()), inputs):
        case.model(case.batches[0])
    return sizes


def rows_kept(case: Case, inputs: bool) -> int:
    """Rows that fit a third of the memory, as `profile` has it."""
    return min(2048, parse_memory(MEMORY) // 3 // (4 * sum(row_sizes(case, inputs))))


def forward_flops(case: Case) -> int:
    """Floating-point operations of one sample's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        case.model(case.batches[0])
    return counter.get_total_flops() // BATCH


def shares(case: Case, inputs: bool, receive: Receive, counts: Sequence[int]) -> list[float]:
    """Time in `receive` over the rest of the forward passes, for so many batches after another."""
    spent: list[float] = []

    def clocked(name: str, tensor: Tensor) -> None:
        start = time.perf_counter()
        receive(name, tensor)
        spent.append(time.perf_counter() - start)

    found = []
    with watched(case.model, clocked, inputs):
        for count in counts:
            spent.clear()
            start = time.perf_counter()
            for number in range(count):
                case.model(case.batches[number % len(case.batches)])
            found.append(sum(spent) / (time.perf_counter() - start - sum(spent)))
    return found


def time_row(case: Case, inputs: bool) -> str:
    rows = rows_kept(case, inputs)

    def run(counts: Sequence[int]) -> list[float]:
        metrics: dict[str, ActivationStatistics] = {}

        def receive(name: str, values: Tensor) -> None:
            if name not in metrics:
                metrics[name] = ActivationStatistics(values.shape[1:], reservoir=rows)
            metrics[name].update(values)

        found = shares(case, inputs, receive, counts)
        return found + shares(case, inputs, lambda name, x: metrics[name].update(x[:2]), [START])

    run([1])  # loads code
    runs = [run([START, *[GROUP] * case.groups]) for _ in range(case.repeats)]
    once = [shares(case, inputs, lambda _, x: x.amin(0), [START])[0] for _ in range(case.repeats)]
    found = [
        statistics.median(run[0] for run in runs),
        statistics.median(share for run in runs for share in run[1:-1]),
        statistics.median(run[-1] for run in runs),
        statistics.median(once),
    ]
    shown = [f"**{share:.2f}**" if share > AIM else f"{share:.2f}" for share in found]
    elements = sum(row_sizes(case, inputs))
    sides = "inputs and outputs" if inputs else "outputs"
    return (
        f"| {case.name} | {sides} | {elements:,} | {forward_flops(case) / elements:.0f} | {rows} | "
        f"{' | '.join(shown)} |"
    )


def profile_row(case: Case) -> str:
    """A row on `profile` as a whole: what twice the data take longer than the data."""
    batches = [case.batches[i % len(case.batches)] for i in range(2 * case.passes)]
    data = torch.cat(batches)
    half = data[: case.passes * BATCH]

    def plain() -> None:
        with torch.no_grad():
            for batch in half.split(BATCH):
                case.model(batch)

    def profiled(data: Tensor) -> None:
        neurograph.profile(case.model, data, memory=MEMORY, progress=False)

    profiled(half)
    runs = [
        (timed(plain), timed(lambda: profiled(data)), timed(lambda: profiled(half)))
        for _ in range(case.repeats)
    ]
    forward = statistics.median(run[0] for run in runs)
    more = statistics.median(run[1] - run[2] for run in runs)
    constant = statistics.median(2 * run[2] - run[1] for run in runs)
    return (
        f"| {case.name} | {1e3 * forward / case.passes:.1f} ms | "
        f"{1e3 * more / case.passes:.1f} ms | {more / forward - 1:.2f} | "
        f"{1e3 * max(0, constant):.0f} ms |"
    )


# -- memory ----------------------------------------------------------------------------------------


class Stream:
    """Batches that are drawn when they are asked for, the same each time."""

    def __init__(self, samples: int, features: int) -> None:
        self.samples, self.features = samples, features

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, self.samples, BATCH):
            rows = min(BATCH, self.samples - start)
            yield torch.randn(rows, self.features, generator=generator)


def memory_row(samples: int) -> str:
    torch.set_num_threads(1)
    model = HeartNet()
    neurograph.profile(model, Stream(10 * BATCH, 17), memory=MEMORY, progress=False)  # loads code
    with PeakMemory() as memory:
        graph = neurograph.profile(model, Stream(samples, 17), memory=MEMORY, progress=False)
    node = graph.nodes["linear2"]
    return (
        f"| {node['count']:,} | {memory.peak / 1e6:.0f} MB | {memory.stays / 1e6:.0f} MB | "
        f"{node['rank_error']:.3f} |"
    )


# -- the page --------------------------------------------------------------------------------------

TIME = f"""## Time

Count, mean, std, min, max and the row sample of the tensors that layers give (and take), batches of
{BATCH} samples, per channel and position, as `profile` collects them. Told as a share of the
forward passes, which cost so many FLOP for each element that is collected. *Start* is the first
{START} batches, while rows are still being kept; from then on few are. Two things are told beside:
*calls*, the same updates with two rows of each tensor, and *once*, one `amin` over the whole
tensors in place of the statistics. The aim is {AIM:g}; **bold** is more.

| network | tensors | elements a sample | FLOP each | rows kept | start | steady | calls | once |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""
WHY = """
Six passes are made over the elements: least, largest, gap to the centre, sum, square, sum; five
where gaps to 0 do as well. They work on portions that stay in the cache, so that only the first
has to fetch them. One pass for all would need a compiled kernel. In narrow layers the calls
cost as much as the work, for between two layers the model drives their code out of the cache;
one update for all of them would cost more, as their values have to be copied side by side. In
the start, each row is copied into memory that was never touched before; that ends with the rows
to be kept."""
PROFILE = """
`profile` as a whole, with the model's input among its layers: what a batch takes, read off the
difference between once and twice the data, beside a plain forward pass. What it takes however long
the data are, finding layers and sorting the sample, stands apart.

| network | forward | `profile` | more | constant |
| --- | --- | --- | --- | --- |"""
MEMORY_TABLE = """## Memory

Resident memory above where it stood, in a process of its own, while `profile` reads the heart
network's activations on samples that are drawn as it goes, and what stays of it: the graph.

| samples | peak | stays | rank error |
| --- | --- | --- | --- |"""


def time_section() -> Iterator[str]:
    cases = [heart(), resnet()]
    yield TIME
    for case in cases:
        for inputs in (False, True):
            yield time_row(case, inputs)
    yield WHY
    yield PROFILE
    for case in cases:
        yield profile_row(case)
    yield ""


def memory_section() -> Iterator[str]:
    yield MEMORY_TABLE
    fresh = multiprocessing.get_context("spawn")  # memory of one's own for each
    with ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as processes:
        yield from processes.map(memory_row, (10_000, 100_000, 1_000_000))
    yield ""


def sections(only: str | None) -> Iterator[str]:
    """The report, line by line, as it is measured."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield "# Statistics of activations\n"
    yield (
        f"Written by `make bench`: torch {torch.__version__}, {threads} thread{'s' * (threads > 1)}"
        f", {cpu_name()}. Medians of one run on a shared machine; shares and ratios compare within "
        "it.\n"
    )
    parts = {"time": time_section, "memory": memory_section, "quantiles": compared}
    for name, part in parts.items():
        if only in (None, name):
            yield from part()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["time", "memory", "quantiles"])
    parser.add_argument("--write", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    lines = []
    for line in sections(options.only):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        options.write.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
