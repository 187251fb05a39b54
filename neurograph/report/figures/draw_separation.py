"""Which neurons separate the classes: how surely, and how far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from neurograph.errors import DataError, OptionError
from neurograph.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    check_columns,
    key,
    legend,
    literal,
    look,
    name_points,
    outer,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["separation"]

EffectSize = Literal["auc", "cohens_d"]
_SIZES = {"auc": ("area under the ROC curve", 0.5), "cohens_d": ("Cohen's d", 0.0)}
_LOOKS = {"welch": (BLUE, "o"), "mann-whitney": (VERMILLION, "^"), "constant": (GREY, "x")}
_OTHER = (GREEN, "D")
_SMALLEST = float(np.finfo(np.float64).smallest_subnormal)
_NAMED = 2  # neurons at either side of a panel
_ON_EDGE = 1.08  # times the highest point: where q = 0 is drawn


def separation(
    table: pd.DataFrame, *, alpha: float = 0.05, effect_size: EffectSize = "cohens_d"
) -> Figure:
    """Draw how surely and how far neurons separate the classes, a panel for each layer.

    Parameters
    ----------
    table : DataFrame
        Columns ``layer``, ``index``, ``test``, ``q`` (of Benjamini & Hochberg) and that of the
        effect size, ``name`` if there is one, ``class`` if there are several.
    alpha : float
        Neurons with a smaller q separate.
    effect_size : {"cohens_d", "auc"}
        What is drawn to the right.

    Returns
    -------
    Figure
        −log₁₀ q against the effect size; the dashed line is `alpha`. A q too small for a float is
        drawn at the upper edge, and the panel says of how many; an infinite d at the side, counted
        in the title, as are neurons without a q.

    Raises
    ------
    OptionError
        `alpha` is not between 0 and 1, an unknown effect size, or more layers than fit.
    DataError
        The table is empty, lacks a column, or a q is no probability.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": "fc", "index": [0, 1], "test": "welch", "q": [1e-9, 0.4]})
    >>> figure = separation(table.assign(cohens_d=[1.2, 0.1]))
    >>> print(figure.axes[0].get_title(loc="left"))
    fc
    1 of 2 separate
    """
    if not 0 < alpha < 1:
        raise OptionError(f"alpha={alpha} is not between 0 and 1")
    if effect_size not in _SIZES:
        raise OptionError(f"effect_size={effect_size!r} is none of {', '.join(_SIZES)}")
    check_columns(table, ["layer", "index", "test", "q", effect_size], "separations")
    if ((table["q"] < 0) | (table["q"] > 1)).any():
        raise DataError("column q holds values outside [0, 1]")
    by_layer = dict(list(table.groupby("layer", sort=False)))
    label, middle = _SIZES[effect_size]
    with look():
        figure, axes = panels(
            len(by_layer),
            f"Neurons that separate {_classes(table)} at q < {alpha:g}",
            height=2.7,
            option="table",
            sharex=effect_size == "auc",
        )
        drawn = []
        for (ax, first, lowest), (layer, rows) in zip(outer(axes), by_layer.items(), strict=True):
            points = _points(rows, effect_size)
            _scatter(ax, points, alpha, middle)
            infinite = int(np.isinf(rows[effect_size]).sum())
            note = f", {infinite:,} at ±∞" if infinite else ""
            ax.set_title(f"{literal(layer, 34)}\n{_counted(rows, alpha)}{note}")
            if first:
                ax.set_ylabel("−log₁₀ q")
            if lowest:
                ax.set_xlabel(label)
            ax.tick_params(labelbottom=True)
            drawn.append((ax, points))
        tests = list(dict.fromkeys(test for _, points in drawn for test in points["test"]))
        handles = [_handle(test) for test in tests]
        line = key(color="black", linestyle="--", linewidth=1)
        legend(figure, [*handles, line], [*tests, f"q = {alpha:g}"])
        named = [(ax, _strongest(points, alpha, middle)) for ax, points in drawn]
        name_points(figure, named)
    return figure


def _classes(table: pd.DataFrame) -> str:
    """Say what is told apart, where the table does."""
    if not {"class", "rest"} <= set(table):
        return "the classes"
    pairs = table[["class", "rest"]].drop_duplicates()
    if len(pairs) > 1:
        return "a class from the rest"
    one, rest = (literal(pairs[column].iloc[0], 24) for column in ("class", "rest"))
    return f"'{one}' from '{rest}'"


def _counted(rows: pd.DataFrame, alpha: float) -> str:
    """How many neurons separate some classes, of how many, and how many have no q."""
    keys = [key for key in ("index", "position") if key in rows]
    by_neuron = rows.groupby(keys, dropna=False)["q"].min()
    counts = f"{(by_neuron < alpha).sum():,} of {len(by_neuron):,} separate"
    untested = int(by_neuron.isna().sum())
    return counts + (f", {untested:,} untested" if untested else "")


def _points(rows: pd.DataFrame, effect_size: str) -> pd.DataFrame:
    """Where neurons lie: columns x, y, test, name, and beyond (whether q is 0)."""
    known = rows[rows["q"].notna() & rows[effect_size].notna()]
    across = known[effect_size].to_numpy(dtype=float)
    finite = np.isfinite(across)
    edge = _ON_EDGE * max(np.abs(across[finite]), default=1.0)
    across = np.where(finite, across, np.sign(across) * edge)
    beyond = (known["q"] == 0).to_numpy()
    height = -np.log10(known["q"].to_numpy(dtype=float).clip(min=_SMALLEST))
    if beyond.any():
        highest = max(height[~beyond], default=-np.log10(_SMALLEST))
        height[beyond] = max(_ON_EDGE * highest, 1.0)
    names = known["name"] if "name" in known else known["index"].map("[{}]".format)
    return pd.DataFrame(
        {
            "x": across,
            "y": height + 0.0,  # −0 where q is 1
            "test": known["test"].to_numpy(),
            "name": names.to_numpy(),
            "beyond": beyond,
        }
    )


def _scatter(ax: Axes, points: pd.DataFrame, alpha: float, middle: float) -> None:
    ax.axvline(middle, color="#BBBBBB", linewidth=0.8, zorder=0)
    ax.axhline(-np.log10(alpha), color="black", linestyle="--", linewidth=1, zorder=3)
    size = float(np.interp(len(points), [20, 500], [34, 14]))
    for test, some in points.groupby("test", sort=False):
        colour, marker = _LOOKS.get(str(test), _OTHER)
        ax.scatter(
            some["x"], some["y"], s=size, color=colour, marker=marker, alpha=0.6, linewidth=0.6
        )
    beyond = points[points["beyond"]]
    if len(beyond):
        edge = float(beyond["y"].iloc[0])
        ax.axhspan(edge * (1 + 1 / _ON_EDGE) / 2, 1.2 * edge, color="#EEEEEE", zorder=0)
        ax.annotate(
            f"{len(beyond):,} with q below {_SMALLEST:.0e}",
            (0.5, edge),
            (0, 7),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= edge / _ON_EDGE])
        ax.set_ylim(top=1.2 * edge)
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))


def _strongest(points: pd.DataFrame, alpha: float, middle: float) -> list[tuple[float, float, str]]:
    """Neurons to name: of those that separate, the ones farthest to either side."""
    certain = points[points["y"] > -np.log10(alpha)].drop_duplicates("name")
    sides = (certain["x"] > middle, certain["x"] < middle)
    far = [certain[side].sort_values("x", kind="stable") for side in sides]
    ends = [far[0].iloc[: -_NAMED - 1 : -1], far[1].iloc[:_NAMED]]
    return [
        (x, y, literal(name, 22))
        for end in ends
        for x, y, name in zip(end["x"], end["y"], end["name"], strict=True)
    ]


def _handle(test: object) -> Line2D:
    colour, marker = _LOOKS.get(str(test), _OTHER)
    return key(color=colour, marker=marker, linestyle="none", markersize=6)
