"""Quantiles by a uniform sample of rows beside quantiles by KLL sketches.

Sketches are those of Karnin, Lang & Liberty (2016) as Apache DataSketches has them, which are left
out where the package is missing: pip install datasketches. Part of the report of activations.py.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from neurograph.activations.profile import QUANTILES
from neurograph.activations.statistics import ActivationStatistics
from notebook_loop import timed
from scaling import skipped

__all__ = ["compared"]

BATCH, GROUP = 256, 16
ROWS, COLUMNS, WIDTH = 200_000, 16, 1024
KLL_K = 200

DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails (Cauchy)": lambda rng, shape: rng.standard_cauchy(shape),
    "discrete (Poisson, mean 3)": lambda rng, shape: rng.poisson(3, shape),
    "rectified, half of it 0": lambda rng, shape: rng.normal(size=shape).clip(0),
    "drifting (normal, ascending)": lambda rng, shape: np.sort(rng.normal(size=shape), axis=0),
    "periodic (0 … 255, again and again)": lambda _, shape: (
        np.arange(shape[0])[:, None] % 256 + np.zeros(shape)
    ),
}


class Sample:
    """Our statistics, asked for quantiles alone."""

    name = "row sample, 2,048 rows"
    bound = math.sqrt(math.log(2 / 0.01) / 2 / 2048)

    def __init__(self, columns: int, seed: int = 0) -> None:
        self.metric = ActivationStatistics((columns,), quantiles=QUANTILES, seed=seed)

    def update(self, values: np.ndarray) -> None:
        self.metric.update(torch.from_numpy(values))

    def quantiles(self) -> np.ndarray:
        return self.metric.compute().quantiles.numpy()

    def size(self) -> int:
        return sum(state.nbytes for state in self.metric.state.values())


class Kll:
    """KLL sketches of all columns."""

    name = f"KLL sketches, k = {KLL_K}"

    def __init__(self, columns: int) -> None:
        from datasketches import kll_floats_sketch, vector_of_kll_floats_sketches

        self.bound = kll_floats_sketch.get_normalized_rank_error(KLL_K, False)
        self.sketches = vector_of_kll_floats_sketches(KLL_K, columns)

    def update(self, values: np.ndarray) -> None:
        self.sketches.update(values)

    def quantiles(self) -> np.ndarray:
        return np.asarray(self.sketches.get_quantiles(list(QUANTILES))).T

    def size(self) -> int:
        return sum(len(sketch) for sketch in self.sketches.serialize())


def cost_row(sketch: Any) -> str:
    """Time of an update and size, after many rows of 1024 columns."""
    values = np.random.default_rng(0).normal(size=(8, BATCH, WIDTH)).astype(np.float32)
    groups = [
        timed(lambda: [sketch.update(values[number % 8]) for number in range(GROUP)]) / GROUP
        for _ in range(16)
    ]
    return (
        f"| {sketch.name} | {1e3 * statistics.median(groups[-8:]):.2f} ms | "
        f"{sketch.size() / 1e6:.1f} MB | {sketch.bound:.3f} |"
    )


def rank_errors(data: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Largest distance of a level to the ranks that its quantile has in the data, by column."""
    worst = np.zeros(data.shape[1])
    for column, ordered in enumerate(np.sort(data, axis=0).T):
        for level, quantile in zip(QUANTILES, quantiles[:, column], strict=True):
            below, upto = (np.searchsorted(ordered, quantile, side) for side in ("left", "right"))
            error = max(below / len(ordered) - level, level - upto / len(ordered), 0)
            worst[column] = max(worst[column], error)
    return worst


def error_row(name: str, kinds: Sequence[type]) -> str:
    data = DRAWS[name](np.random.default_rng(1), (ROWS, COLUMNS)).astype(np.float32)
    cells = []
    for kind in kinds:
        sketch = kind(COLUMNS)
        for start in range(0, ROWS, BATCH):
            sketch.update(data[start : start + BATCH])
        errors = rank_errors(data, sketch.quantiles())
        cells.append(f"{np.median(errors):.4f} | {errors.max():.4f}")
    return f"| {name} | {' | '.join(cells)} |"


COST = f"""## Quantiles

A uniform sample of rows beside KLL sketches of each element (Karnin, Lang & Liberty 2016; Apache
DataSketches' `vector_of_kll_floats_sketches`). An update is of {BATCH} × {WIDTH} float32 values;
the sample's includes the moments. The size is that of the state, or of the serialised sketches. The
bound holds with probability 0.99: the sample's for all quantiles of an element at once, a sketch's,
the package's own constant, for each.

| | update | size | rank error at most |
| --- | --- | --- | --- |"""
ERRORS = f"""
Rank errors as measured: the largest over the levels {", ".join(f"{q:g}" for q in QUANTILES)}, in
the median and the worst of {COLUMNS} columns of {ROWS:,} rows, in batches of {BATCH}.
"""
CONCLUSION = f"""
**Why a sample.** It is a handful of torch operations, so it stays on the model's device and no
activation is copied off it. Its `state` is tensors of fixed shapes, which
safetensors and `torch.distributed` take as they are. Samples of several processes merge into a
uniform sample of all rows, exactly; rows stay whole; a layer is updated far more quickly, with its
moments. At the levels 0.05 and 0.95, the default contrast, the standard error of rank is
{math.sqrt(0.05 * 0.95 / 2048):.3f}.

**Where KLL is better.** Its error for the memory."""


def conclusion(sizes: Sequence[int]) -> str:
    if len(sizes) < 2:
        return CONCLUSION
    from datasketches import kll_floats_sketch

    k = KLL_K * sizes[0] // sizes[1]
    bound = kll_floats_sketch.get_normalized_rank_error(k, False)
    return (
        f"{CONCLUSION} With k = {KLL_K} it promises {Kll(1).bound:.3f} in\n"
        f"{sizes[1] / sizes[0]:.2f} of what the sample takes for {Sample.bound:.3f}; with as much "
        f"memory, k = {k}, it would promise\n{bound:.4f}. Where every percentile of long data must "
        "be sharp, sketches are the right tool."
    )


def compared() -> Iterator[str]:
    """The report on quantiles, line by line, as it is measured."""
    kinds: list[type] = []
    sizes = []
    yield COST
    for kind in (Sample, Kll):
        with skipped(kind.name) as missing:
            sketch = kind(WIDTH)
            yield cost_row(sketch)
            kinds.append(kind)
            sizes.append(sketch.size())
        yield from missing
    yield ERRORS
    yield f"| data | {' | '.join(f'{kind.name}: median | worst' for kind in kinds)} |"
    yield f"| --- |{' --- | --- |' * len(kinds)}"
    for name in DRAWS:
        yield error_row(name, kinds)
    yield conclusion(sizes)
