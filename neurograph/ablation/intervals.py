"""Means over draws, with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

__all__ = ["interval", "means_over_draws"]


def interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Mean of independent values with Student's t confidence interval of it.

    Examples
    --------
    >>> interval(np.array([1.0, 2.0, 3.0]), 0.95)  # 2 ± 4.303 / √3
    (2.0, -0.484..., 4.484...)
    """
    from scipy.special import stdtrit

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    # Rounding must not make equal values vary.
    spread = 0.0 if np.ptp(values) == 0 else float(np.std(values, ddof=1))
    reach = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * spread / math.sqrt(len(values))
    return mean, mean - reach, mean + reach


def means_over_draws(
    draws: pd.DataFrame, keys: Sequence[str], measured: Sequence[str], confidence: float
) -> pd.DataFrame:
    """Means of rows that have the same keys, in the order in which these come.

    Returns
    -------
    DataFrame
        The keys; ``draws``, how many rows; each measured column, followed by its ``_low`` and
        ``_high``.
    """
    rows = []
    for key, table in draws.groupby(list(keys), sort=False):
        row = [*key, len(table)]
        for name in measured:
            row += interval(table[name].to_numpy(), confidence)
        rows.append(row)
    columns = [f"{name}{end}" for name in measured for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*keys, "draws", *columns])
