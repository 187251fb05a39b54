"""Causal shift as a figure: how far activations of later neurons move, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurograph.errors import DataError, OptionError
from neurograph.report.figures.style import (
    BLUE,
    GREY,
    VERMILLION,
    check_columns,
    key,
    legend,
    literal,
    look,
    name_points,
    panels,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from neurograph.ablation.causal_shift import CausalShift

__all__ = ["shift"]

_ROW = 0.55  # inches that a layer takes
_MOST_LAYERS = 40
_FEWEST_BOXED = 5  # neurons; fewer say more by themselves
_LOOKS = {1: ("mean rises", BLUE, "^"), -1: ("mean falls", VERMILLION, "v"), 0: ("same", GREY, "o")}
_BOX: dict[str, Any] = {"facecolor": "none", "edgecolor": "black", "linewidth": 0.9}


def shift(shifts: CausalShift | pd.DataFrame, *, named: int = 3) -> Figure:
    """Draw how far activations shift when neurons are ablated, a row for each later layer.

    Parameters
    ----------
    shifts : CausalShift or DataFrame
        What `causal_shift` returned, or rows of its table: columns ``layer``, ``index``,
        ``mean_shift`` and ``wasserstein_std``, the Wasserstein distance in standard deviations of
        the neuron; ``name`` if there is one.
    named : int
        How many neurons of each layer are named, those that shift most.

    Returns
    -------
    Figure
        A point is a neuron; boxes hold the middle half of a layer's neurons, with the
        median, where there are five or more.
        Neurons without a distance, because they did not vary before, are counted alone.

    Raises
    ------
    OptionError
        `named` is negative, or there are more layers than fit.
    DataError
        The table is empty, lacks a column, or a distance is negative or infinite.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"layer": "fc", "index": [0, 1], "mean_shift": [-0.3, 0.1]})
    >>> figure = shift(table.assign(wasserstein_std=[0.5, 0.2]), named=1)
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['[0]']
    """
    if named < 0:
        raise OptionError(f"named={named} must not be negative")
    table: pd.DataFrame = getattr(shifts, "table", shifts)
    check_columns(table, ["layer", "index", "mean_shift", "wasserstein_std"], "shifts")
    distances = table["wasserstein_std"]
    if ((distances < 0) | np.isinf(distances)).any():
        raise DataError("column wasserstein_std holds distances that are negative or infinite")
    by_layer = dict(list(table.groupby("layer", sort=False)))
    if len(by_layer) > _MOST_LAYERS:
        raise OptionError(
            f"{len(by_layer)} layers do not fit: give a table of at most {_MOST_LAYERS}"
        )
    title = "Shift of later neurons' activations when neurons are ablated"
    if distances.isna().any():
        title += f"\nwithout {distances.isna().sum():,} that did not vary before"
    with look():
        figure, (ax,) = panels(1, title, most=1, height=0.7 + _ROW * len(by_layer))
        generator = np.random.default_rng(0)  # only spreads points within their row
        points = []
        for place, rows in enumerate(by_layer.values()):
            points += _row(ax, place, rows[rows["wasserstein_std"].notna()], named, generator)
        ax.set_yticks(range(len(by_layer)), [literal(layer, 30) for layer in by_layer])
        ax.set_ylim(len(by_layer) - 0.4, -0.6)
        ax.set_xlim(left=0)
        ax.set_xlabel("Wasserstein distance, standard deviations of the neuron")
        looks = [_LOOKS[sign] for sign in _LOOKS if (np.sign(table["mean_shift"]) == sign).any()]
        handles = [key(color=c, marker=m, linestyle="none", markersize=6) for _, c, m in looks]
        legend(figure, handles, [label for label, _, _ in looks])
        name_points(figure, [(ax, points)])
    return figure


def _row(
    ax: Axes, place: int, rows: pd.DataFrame, named: int, generator: np.random.Generator
) -> list[tuple[float, float, str]]:
    """Draw the neurons of one layer; which of them to name."""
    if rows.empty:
        return []
    distances = rows["wasserstein_std"].to_numpy(dtype=float)
    heights = place + generator.uniform(-0.22, 0.22, len(rows))
    signs = np.sign(rows["mean_shift"].to_numpy(dtype=float))
    for sign, (_, colour, marker) in _LOOKS.items():
        some = signs == sign
        if some.any():
            ax.scatter(
                distances[some],
                heights[some],
                s=16,
                c=colour,
                marker=marker,
                alpha=0.5,
                linewidth=0,
            )
    if len(distances) >= _FEWEST_BOXED:
        first, middle, third = np.quantile(distances, (0.25, 0.5, 0.75))
        ax.broken_barh([(first, third - first)], (place - 0.3, 0.6), **_BOX)
        ax.vlines(middle, place - 0.3, place + 0.3, color="black", linewidth=1.8)
    names = rows["name"] if "name" in rows else rows["index"].map("[{}]".format)
    return [
        (distances[i], heights[i], literal(names.iloc[i], 24))
        for i in (-distances).argsort(kind="stable")[:named]
    ]
