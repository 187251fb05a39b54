"""Null distribution of overlaps: neurons permuted within their layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.comparison.circuit_arrays import Numbers, Side
from neurograph.utils.progress import Progress

__all__ = ["beside_null", "chance", "permuted"]

_INTERVAL = (0.025, 0.975)


def permuted(
    a: Side, b: Side, partner: Numbers, draws: int, seed: int, progress: bool | None
) -> Iterator[Numbers]:
    """Draw matchings in which the neurons of both models are permuted within their layers.

    As many neurons correspond as before, but which ones do is chance. Neurons of single positions
    move with their index. Outputs that the target alone reads stay where they are.

    Yields
    ------
    ndarray of int64, [neurons of b]
        As `partners` gives it.
    """
    generator = np.random.default_rng(seed)
    with Progress("permuting neurons", progress, total=draws, unit="draws") as bar:
        for _ in range(draws):
            now = _order(a, generator)
            drawn = partner[_order(b, generator)]
            yield np.where(drawn >= 0, now[drawn], -1)
            bar.advance()


def _order(side: Side, generator: np.random.Generator) -> Numbers:
    """Permute the numbers of the neurons of each layer."""
    order = np.arange(len(side))
    for span in side.free():
        numbers = order[span.start : span.stop].reshape(span.indices, -1)
        order[span.start : span.stop] = generator.permutation(numbers, axis=0).flatten()
    return order


def chance(value: float, null: NDArray[np.float64]) -> float:
    """Chance of a value at least as large under the null, which counts the value among its draws.

    That keeps it from being 0 (Phipson and Smyth 2010, *Stat. Appl. Genet. Mol. Biol.* 9). NaN
    where the value is, or all draws are.

    Examples
    --------
    >>> chance(0.5, np.array([0.1, 0.2, 0.5]))
    0.5
    """
    known = null[~np.isnan(null)]
    if math.isnan(value) or not len(known):
        return math.nan
    # A rounding difference is none.
    least = value - 1e-12 * max(1.0, abs(value))
    return (1 + int((known >= least).sum())) / (1 + len(known))


def beside_null(real: Mapping[str, float], draws: NDArray[np.float64]) -> pd.DataFrame:
    """Table of the measures beside their null; draws ``[draws, measures]``."""
    values = np.array(list(real.values()))
    table = pd.DataFrame({"value": values}, index=pd.Index(real, name="measure"))
    known = [column[~np.isnan(column)] for column in draws.T]
    table["null_mean"] = [column.mean() if len(column) else math.nan for column in known]
    for end, level in zip(("null_low", "null_high"), _INTERVAL, strict=True):
        table[end] = [np.quantile(c, level) if len(c) else math.nan for c in known]
    table["p_value"] = [chance(*column) for column in zip(values, draws.T, strict=True)]
    return table
