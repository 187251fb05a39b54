"""The original algorithm against this library: same network, same reference samples, same numbers.

The original runs the whole model once for every neuron, quantile and part of the frontier, with a
masked pre-forward hook on the layer that reads the neuron. Its mask is put right here: outputs
outside the frontier keep what they compute from the unmoved input. The parts are what a search
measures: what raises the target, what lowers it, both, and everything. The loop is run for a random
sample of neurons of each layer and its time scaled to all of them; every effect of the sample is
compared.

Then the exact search of a wide network: the rate of its matrix products as a share of what this
machine multiplies in the same run, and the memory it takes above the model.

    python benchmarks/notebook_loop.py [--reference 32 734] [--sample 24] [--write FILE.md]
"""

from __future__ import annotations

import argparse
import itertools
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import neurograph
from neurograph.demos import heart
from neurograph.discovery.frontier import SearchState, find_neurons
from neurograph.effects.contrast import SWEEP
from neurograph.effects.exact_scorer import ExactScorer
from neurograph.effects.selection import SIGNS, TopQuantile
from neurograph.questions.study import Study
from peak_memory import PeakMemory

LAYERS = ["input", "linear1", "linear2", "linear3"]


def timed(work: Callable[[], object], repeats: int = 1) -> float:
    """Median seconds of some runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# -- the original loop -----------------------------------------------------------------------------


def hooked_target(
    model: nn.Module, x: Tensor, reader: nn.Module, neuron: int, value: Tensor, seen: Sequence[int]
) -> Tensor:
    """One whole-model call: the reader's chosen outputs see one input moved, the others do not."""
    unmoved: list[Tensor] = []
    mask = torch.zeros(reader.out_features, dtype=torch.bool)
    mask[list(seen)] = True

    def before(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        unmoved.append(args[0])
        moved = args[0].clone()
        moved[:, neuron] = value
        return (moved,)

    def after(module: nn.Module, _args: object, output: Tensor) -> Tensor:
        still = nn.functional.linear(unmoved[0], module.weight, module.bias)
        return torch.where(mask, output, still)

    hooks = reader.register_forward_pre_hook(before), reader.register_forward_hook(after)
    try:
        with torch.no_grad():
            return model(x)[:, 0]
    finally:
        for hook in hooks:
            hook.remove()


def loop_effects(
    study: Study, reader: str, writer: str, neurons: Sequence[int], seen: Sequence[int]
) -> tuple[Tensor, float]:
    """Effects of some neurons by the original loop, and the seconds it took."""
    model, x = study.model, study.experiment.recording.batch.args[0]
    module = model.get_submodule(reader)
    levels = study.experiment.levels(writer)[:, 0]
    # The hook stands behind the activation, so the loop moves activated values.
    levels = levels if writer == "input" else levels.tanh()
    effects = []
    start = time.perf_counter()
    for neuron in neurons:
        targets = [hooked_target(model, x, module, neuron, level[neuron], seen) for level in levels]
        effects.append((targets[-1] - targets[0]).mean())
    return torch.stack(effects), time.perf_counter() - start


def compare(model: nn.Module, X: Tensor, reference: int, sample: int) -> str:
    """One row of the loop's table."""
    options = {"contrast": SWEEP, "reference": reference, "progress": False}
    study = Study(model, X, 1, **options)
    keep = TopQuantile(0.95)

    def ours() -> SearchState:
        state = SearchState()
        with study.open() as experiment:
            for _ in find_neurons(experiment, ExactScorer(experiment), keep, state):
                pass
        return state

    found = ours()
    seconds = timed(ours, repeats=25)
    loop, worst = 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    calls = 0
    for writer, reader in itertools.pairwise(LAYERS):
        table = found.scores[writer]
        outputs = range(len(study.experiment.units(reader)))
        parts = {f"through_{sign}_effect": found.part(reader, sign) for sign in SIGNS}
        parts |= {"effect": found.part(reader, None), "total_effect": outputs}
        for key, seen in parts.items():
            if key not in table:
                continue
            scores = torch.from_numpy(table[key])
            chosen = torch.randperm(len(scores), generator=generator)[:sample].tolist()
            effects, took = loop_effects(study, reader, writer, chosen, seen)
            mine = scores[chosen]
            worst = max(worst, float((effects - mine).abs().max() / mine.abs().max()))
            loop += took * len(scores) / len(chosen)
            calls += 7 * len(scores)
    return (
        f"| {reference} | {calls:,} | {loop:.1f} s | {1e3 * seconds:.1f} ms | "
        f"{loop / seconds:,.0f} | {worst:.0e} |"
    )


# -- rate and memory -------------------------------------------------------------------------------


class MLP(nn.Sequential):
    def __init__(self, width: int, depth: int, outputs: int = 1) -> None:
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(width, width if i < depth - 1 else outputs), nn.ReLU()]
        super().__init__(*layers[:-1])


def matmul_rate() -> float:
    """Float32 multiply-adds a second of a large matrix product, times two."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    return 2 * 2048**3 / min(timed(lambda: a @ b) for _ in range(20))


def search_rate(width: int, depth: int) -> str:
    """One sentence on the rate of an exact search's matrix products."""
    torch.manual_seed(0)
    model, X = MLP(width, depth), torch.randn(512, width)
    study = Study(model, X, 1, progress=False)

    def search() -> None:
        state = SearchState()
        with study.open() as experiment:
            for _ in find_neurons(experiment, ExactScorer(experiment), TopQuantile(0.95), state):
                pass

    with FlopCounterMode(display=False) as counter:
        search()
    before = matmul_rate()
    seconds = timed(search)
    rate, after = counter.get_total_flops() / seconds, matmul_rate()
    peak = statistics.median([before, after])
    return (
        f"{depth} × {width} MLP, 32 reference samples, all effects of all neurons: "
        f"{counter.get_total_flops() / 1e12:.2f} TFLOP of matrix products in {seconds:.1f} s are "
        f"{rate / 1e9:.0f} GFLOP/s. In the same run this machine multiplied 2048 × 2048 float32 "
        f"matrices at {peak / 1e9:.0f} GFLOP/s: **{100 * rate / peak:.0f}%**."
    )


def search_memory(width: int, budget: str) -> str:
    """One row of the memory table: a whole search, profile and paths included."""
    torch.manual_seed(0)
    # a small search first: the code that a search loads is not what it takes
    neurograph.search(MLP(8, 3), torch.randn(512, 8), 1, progress=False)
    model, X = MLP(width, 3), torch.randn(512, width)
    model(X[:2])
    with PeakMemory() as memory:
        neurograph.search(model, X, 1, memory=budget, keep="top:8", progress=False)
    return f"| 3 × {width} MLP | {budget} | {memory.peak / 1e6:.0f} MB |"


LOOP = """## The original loop on the heart-disease network

All effects of all neurons of all layers (17 → 512 → 1024 → 1), through what raises the target,
through what lowers it, through both, and in total: one hooked call of the whole model for each
neuron, quantile (7) and part, against `find_neurons`, which runs the two quantiles that an effect
is made of. The loop ran for {sample} random neurons of each layer and part, and its time is scaled
to all; these effects are compared.

| reference samples | loop calls | loop | neurograph | ratio | largest difference / largest effect |
| --- | --- | --- | --- | --- | --- |"""
MEMORY = """## Memory

A whole search (profile, neurons, edges, paths; 512 samples), peak resident memory above the model
and loaded code. The budget bounds the tensors a step works on; the search's own results, which are
in the peak too, come on top.

| network | `memory=` | peak |
| --- | --- | --- |"""


def sections(options: argparse.Namespace) -> Iterator[str]:
    """The report, line by line, as it is measured."""
    yield "# Benchmarks\n"
    yield (
        f"Written by `make bench`: torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{cpu_name()}. Times are medians of one run on a shared machine; ratios compare within "
        "it.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        model = heart.train(0, folder, epochs=3).model
    X = heart.load_data(0).train.X
    yield LOOP.format(sample=options.sample)
    for reference in options.reference:
        yield compare(model, X, min(reference, len(X)), options.sample)
    yield "\n## Exact search of a wide network\n"
    yield search_rate(1024, 6)
    yield "\n" + MEMORY
    for budget in ("128MB", "512MB"):
        yield search_memory(4096, budget)


def cpu_name() -> str:
    """Model of the processor, as Linux knows it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=int, nargs="+", default=[8, 32, 128, 734])
    parser.add_argument("--sample", type=int, default=24)
    parser.add_argument("--write", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    lines = []
    for line in sections(options):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
