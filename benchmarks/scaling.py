"""How the cost of measuring grows, and whether memory stays within its budget.

Time is processor time of one thread, divided by the work that a user asks for: interventions times
what one row costs in the layers that must be computed for it. Only ratios of one run are told: 1.0
along a row is linear growth, less is fixed cost shared among more, more would be a hidden
quadratic.

Memory is what the process takes above the model, sampled while it measures a few neurons of the
widest layer of real networks. Networks whose packages are missing are named and left out.

    python benchmarks/scaling.py [--only time|memory] [--write FILE.md]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import neurograph
from neurograph.data.source import Source
from neurograph.effects.exact import node_effects, total_effects
from neurograph.effects.exact_scorer import ExactScorer
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import TARGET, choose_route
from neurograph.effects.scorer import Edges
from neurograph.model.observe import call_model
from neurograph.questions.study import Study
from neurograph.utils.memory import parse_memory
from peak_memory import PeakMemory

sys.path.append(str(Path(__file__).parents[1] / "examples"))  # trained networks, where it exists

BUDGETS = ("64MB", "256MB", "1GB")
MOVED = 4  # neurons, and outputs that they have edges to


def cpu_seconds(work: Callable[[], object], least: float = 0.5) -> float:
    """Processor seconds of one run: the quickest of at least three, after one to warm up."""
    work()
    runs: list[float] = []
    while len(runs) < 3 or sum(runs) < least:
        start = time.process_time()
        work()
        runs.append(time.process_time() - start)
    return min(runs)


# -- networks of any width and depth ---------------------------------------------------------------


class Case(NamedTuple):
    """A network, data for it, and the layer whose neurons move: as many as `width`."""

    model: nn.Module
    data: Tensor
    writer: str


Build = Callable[[int, int], Case]


def mlp(width: int, depth: int) -> Case:
    """Build an MLP: a layer of `width`, then `depth` layers of 256."""
    layers: list[nn.Module] = [nn.Linear(64, width)]
    for i in range(depth):
        layers += [nn.ReLU(), nn.Linear(width if i == 0 else 256, 256)]
    return Case(nn.Sequential(*layers, nn.ReLU(), nn.Linear(256, 1)), torch.randn(256, 64), "0")


class Block(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inside, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(inside)) + x)


def resnet(width: int, depth: int) -> Case:
    """Build a ResNet of 16 channels on 12 × 12 maps: a block of `width`, then `depth` of 16."""
    blocks = [Block(16, width if i == 0 else 16) for i in range(depth + 1)]
    stem, head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 2)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(stem, nn.ReLU(), *blocks, pool, head)
    return Case(model, torch.randn(128, 3, 12, 12), "2.conv1")


def gpt2(width: int, depth: int) -> Case:
    """Build a GPT-2 of 64 channels, 4 heads, 16 tokens: an MLP of `width`, then `depth` blocks."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 64, "n_head": 4, "n_layer": depth + 1, "n_positions": 16, "vocab_size": 256}
    shape |= {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, n_inner=256))
    first = GPT2LMHeadModel(GPT2Config(**{**shape, "n_layer": 1}, n_inner=width))
    model.transformer.h[0] = first.transformer.h[0]
    return Case(model, torch.randint(0, 256, (128, 16)), "transformer.h.0.mlp.c_fc")


def first_output(output: object, _batch: object) -> Tensor:
    """Read one number a sample off a tensor or the logits of a language model."""
    logits = getattr(output, "logits", output)
    return logits.flatten(1)[:, -1]


# -- time ------------------------------------------------------------------------------------------


def through_everything(experiment: Experiment, writer: str) -> dict[str, Sequence[int] | None]:
    """All outputs of all readers, the target among them."""
    through: dict[str, Sequence[int] | None] = dict.fromkeys(experiment.graph.successors(writer))
    return through | ({TARGET: None} if experiment.graph.nodes[writer]["output"] else {})


def row_flops(experiment: Experiment, writer: str) -> int:
    """Multiply-adds, times two, of one move of one neuron on one sample."""
    route = choose_route(experiment, writer, through_everything(experiment, writer))
    sample = slice(0, 1)
    move = experiment.moves(writer, [0])[0].cut(slice(0, 1), sample)

    def run() -> None:
        given = route.given(move, sample)
        experiment.replay.run(route.plans[-1], given, samples=sample, masks=route.masks)

    run()  # what all moves share is computed once
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def node_cost(build: Build, width: int, depth: int, samples: int) -> float:
    """Seconds of exact effects of a whole layer, for each FLOP that they need."""
    with opened(build, width, depth, samples) as (experiment, writer):
        through, flops = through_everything(experiment, writer), row_flops(experiment, writer)
        neurons = range(len(experiment.units(writer)))
        seconds = cpu_seconds(lambda: node_effects(experiment, writer, neurons, through))
        return seconds / (2 * len(neurons) * samples * flops)  # both ends of the contrast


def edge_cost(build: Build, width: int, neurons: int, outputs: int) -> float:
    """Seconds of exact effects of edges to one reader, for each of them."""
    with opened(build, width, 2, 16) as (experiment, writer):
        reader = next(iter(experiment.graph.successors(writer)))
        wanted = {reader: range(outputs)}

        def work() -> list[Edges]:
            return list(ExactScorer(experiment).edges(writer, range(neurons), wanted))

        return cpu_seconds(work) / sum(len(edges.pairs) for edges in work())


@contextlib.contextmanager
def opened(build: Build, width: int, depth: int, samples: int) -> Iterator[tuple[Experiment, str]]:
    """Open an experiment on a network with random weights."""
    torch.manual_seed(0)
    case = build(width, depth)
    options = {"reference": samples, "progress": False}
    study = Study(case.model.eval(), case.data, first_output, **options)
    with study.open() as experiment:
        yield experiment, case.writer


def grown(title: str, sizes: Sequence[object], costs: Iterable[float]) -> str:
    """One row: costs relative to the first."""
    known = list(costs)
    columns = ", ".join(map(str, sizes)), ", ".join(f"{cost / known[0]:.2f}" for cost in known)
    return f"| {title} | {columns[0]} | {columns[1]} |"


def time_rows(build: Build, width: int) -> Iterator[str]:
    """Rows of one network: everything that may grow, one after the other."""
    name = build.__name__
    at = functools.partial(node_cost, build)
    widths, depths, samples = [width * 2**i for i in range(4)], [2, 4, 8], [8, 16, 32, 64, 128]
    yield grown(f"{name}: neurons", widths, (at(w, 2, 16) for w in widths))
    yield grown(f"{name}: layers behind", depths, (at(width, d, 16) for d in depths))
    yield grown(f"{name}: reference samples", samples, (at(width, 2, n) for n in samples))
    edges = [(4, 4), (8, 8), (16, 16)]
    costs = (edge_cost(build, width, n, m) for n, m in edges)
    yield grown(f"{name}: edges", [n * m for n, m in edges], costs)


# -- memory ----------------------------------------------------------------------------------------


class Real(NamedTuple):
    """A trained network, data for it, and its widest layer, of which a few neurons move."""

    name: str
    model: nn.Module
    data: Any
    reference: int
    writer: str
    options: dict[str, Any]


def efficientnet() -> Real:
    from pretrained import efficientnet_lite0

    model, images = efficientnet_lite0.load(), torch.randn(64, 3, 224, 224)
    layers = {"layers": ["blocks.*.expand", "blocks.*.project", "head"]}
    return Real("EfficientNet-Lite0", model, images, 8, "blocks.1.expand", layers)


def smollm2() -> Real:
    from pretrained import smollm2

    name = "model.layers.15.mlp.down_proj:input"
    data = {"input_ids": torch.randint(0, 49152, (32, 16))}
    return Real("SmolLM2-135M", smollm2.load()[0], data, 16, name, {"layers": name})


def minilm() -> Real:
    from pretrained import minilm

    ids = torch.randint(1000, 30000, (64, 16))
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    layers = {"layers": "intermediate.dense"}
    writer = "bert.encoder.layer.0.intermediate.dense"
    return Real("MiniLM-L6", minilm.load()[0], data, 32, writer, layers)


def mnist() -> Real:
    from pretrained import mnist

    return Real("MNIST CNN", mnist.load(), torch.randn(512, 1, 28, 28), 256, "conv_layers.0", {})


def lstm() -> Real:
    from pretrained import recurrent

    model, codes = recurrent.load()
    return Real("LSTM", model, torch.randint(0, len(codes), (256, 40)), 64, "rnn_1", {})


def memory_rows(real: Real) -> Iterator[str]:
    """Rows of one network: what each step takes with each budget."""
    call_model(real.model, next(iter(Source(real.data, real.model))).map(lambda leaf: leaf[:2]))
    for budget in BUDGETS:
        options = dict(**real.options, memory=budget, reference=real.reference, progress=False)
        layers = real.options.get("layers")
        with PeakMemory() as profiling:
            graph = neurograph.profile(
                real.model, real.data, layers=layers, memory=budget, progress=False
            )
        with PeakMemory() as recording:
            study = Study(real.model, real.data, first_output, **options, profile=graph)
        with study.open() as experiment:
            with PeakMemory() as nodes:
                total_effects(experiment, real.writer, range(MOVED))
                through = through_everything(experiment, real.writer)
                node_effects(experiment, real.writer, range(MOVED), through)
            with PeakMemory() as edges:
                edges_of(experiment, real.writer)
        stays = profiling.stays + recording.stays
        above = [profiling.peak - profiling.stays, nodes.peak, edges.peak]
        peaks = [compared_with(peak, parse_memory(budget)) for peak in above]
        row = f"{real.name} | {experiment.recording.row_bytes / 1e6:.1f} MB"
        yield f"| {row} | {budget} | {' | '.join(peaks)} | {stays / 1e6:.0f} MB |"
        del graph, study, experiment


def edges_of(experiment: Experiment, writer: str) -> None:
    """Measure the edges of a few neurons to as many outputs of the first reader."""
    for reader in list(experiment.graph.successors(writer))[:1]:
        outputs = range(min(MOVED, len(experiment.units(reader))))
        for _ in ExactScorer(experiment).edges(writer, range(MOVED), {reader: outputs}):
            pass


def compared_with(peak: int, budget: int) -> str:
    megabytes = f"{peak / 1e6:.0f} MB"
    return megabytes if peak <= budget else f"**{megabytes}**"


# -- the page --------------------------------------------------------------------------------------

TIME = """## Time

Exact effects of all neurons of one layer through everything that reads it, by processor time. It
is divided by neurons × ends × reference samples × the FLOPs of one move, and told relative to the
smallest size: 1 is linear, less is fixed cost shared among more, and what grows along a row would
be a hidden quadratic. Edges are told by their number, all of one layer's to one reader.

| what grows | sizes | time / work |
| --- | --- | --- |"""
MEMORY = f"""## Memory

Resident memory of the process above the model and above what stays, sampled every 2 ms: while the
data is profiled, while {MOVED} neurons of the widest layer are measured (totals, and through their
readers), and while their edges are. What stays, statistics of the profile and the recorded
reference samples, grows with the layers and not with the budget. Nothing can take less than one
sample takes in a run. **Bold** is more than the budget.

| network | one sample | `memory=` | profile | neurons | edges | stays |
| --- | --- | --- | --- | --- | --- | --- |"""


def sections(only: str | None) -> Iterator[str]:
    """The report, line by line, as it is measured."""
    yield "# Scaling\n"
    yield (
        f"Written by `make bench`: torch {torch.__version__}, one thread of {machine()}. "
        "Everything is told relative to the same run.\n"
    )
    if only != "memory":
        yield TIME
        for build, width in ((mlp, 256), (resnet, 16), (gpt2, 32)):
            with skipped(build.__name__) as missing:
                yield from time_rows(build, width)
            yield from missing
        yield ""
    if only != "time":
        yield MEMORY
        neurograph.profile(nn.Linear(2, 2), torch.randn(4, 2), progress=False)  # loads libraries
        for load in (mnist, lstm, minilm, smollm2, efficientnet):
            with skipped(load.__name__) as missing:
                yield from memory_rows(load())
            yield from missing


@contextlib.contextmanager
def skipped(name: str) -> Iterator[list[str]]:
    """Say which network was left out because a package is missing."""
    missing: list[str] = []
    try:
        yield missing
    except (ImportError, SystemExit) as error:
        reason = getattr(error, "name", None) or str(error).split(":")[0]
        missing.append(f"| {name} | left out: {reason} is not installed |")


def machine() -> str:
    """Kind of processor in words."""
    kind = platform.machine().lower()
    return {"x86_64": "an x86 CPU", "amd64": "an x86 CPU"}.get(kind, f"an {kind} CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["time", "memory"], help="one half of the report")
    parser.add_argument("--write", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for line in sections(options.only):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        options.write.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
