"""Curves of faithfulness: how much of a target circuits of every size carry."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neurograph.errors import DataError, OptionError
from neurograph.report.figures.style import (
    DASHES,
    GREY,
    PALETTE,
    check_columns,
    key,
    legend,
    literal,
    look,
    outer,
    panels,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from neurograph.ablation.faithfulness_result import Faithfulness

__all__ = ["faithfulness"]

_DIRECTIONS = {"keep": "kept alone", "knock_out": "knocked out"}
_ORDERS = {"signed": (DASHES[0], "o"), "absolute": (DASHES[1], "s")}
_KEPT = "*"
_LOW, _HIGH = -1.0, 2.0  # beyond, a curve leaves the panel
_END: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}


def faithfulness(found: Faithfulness, *, rankings: Collection[str] | None = None) -> Figure:
    """Draw curves of faithfulness, a panel for each ablation and direction.

    Parameters
    ----------
    found : Faithfulness
    rankings : collection of str, optional
        Which rankings, by name; all by default.

    Returns
    -------
    Figure
        Faithfulness against the share of the neurons or edges that a circuit holds, in percent, on
        a logarithmic axis: above, circuits kept alone, below, the model with them knocked out. By
        signed and by absolute effects, and where a circuit is a ranking, what it kept. The band is
        the interval of random circuits' mean; dashed lines are the whole model, 1, and everything
        ablated, 0.

    Raises
    ------
    DataError
        There are no curves, or they lack a column.
    OptionError
        More rankings than can be told apart, or one that there is not.
    """
    table = found.curves()
    columns = "ranking order ablation direction share faithfulness".split()
    check_columns(table, [*columns, "faithfulness_low", "faithfulness_high"], "faithfulness")
    names = _chosen(table, rankings)
    ablations = list(dict.fromkeys(table["ablation"]))
    directions = [name for name in _DIRECTIONS if name in set(table["direction"])]
    low, high, cut = _limits(table)
    title = (
        f"Faithfulness to '{literal(found.target, 40)}' of circuits of {found.of}\n"
        f"random: mean of the draws, {100 * found.confidence:g} % confidence interval"
    )
    with look():
        figure, axes = panels(
            len(directions) * len(ablations),
            f"{title}; cut at {_LOW:g} and {_HIGH:g}" if cut else title,
            most=len(ablations) if len(ablations) > 1 else 2,
            option="ablations",
            sharex=True,
            sharey=True,
        )
        places = [(d, a) for d in directions for a in ablations]
        for (ax, first, lowest), (direction, ablation) in zip(outer(axes), places, strict=True):
            here = (table["direction"] == direction) & (table["ablation"] == ablation)
            _panel(ax, table[here], names)
            others = "others " if direction == "keep" else ""
            ax.set_title(f"{_DIRECTIONS[direction]}, {others}{ablation}")
            ax.set_ylim(low, high)
            ax.tick_params(labelbottom=lowest, labelleft=first)
            if first:
                ax.set_ylabel("faithfulness")
            if lowest:
                ax.set_xlabel(f"share of the {found.of}, %")
        legend(figure, *_legend(table, names))
    return figure


def _chosen(table: pd.DataFrame, rankings: Collection[str] | None) -> list[str]:
    known = list(dict.fromkeys(table.loc[table["order"] != "random", "ranking"]))
    chosen = known if rankings is None else list(rankings)
    for name in chosen:
        if name not in known:
            raise OptionError(f"rankings has {name!r}, which is none of {', '.join(known)}")
    if not chosen:
        raise DataError("there is no ranking to draw")
    if len(chosen) > len(PALETTE):
        raise OptionError(
            f"{len(chosen)} rankings cannot be told apart: choose at most {len(PALETTE)} with "
            "rankings="
        )
    return chosen


def _limits(table: pd.DataFrame) -> tuple[float, float, bool]:
    """Limits that hold 0, 1 and all curves, if these do not go too far."""
    held = table[["faithfulness", "faithfulness_low", "faithfulness_high"]].to_numpy()
    held = held[np.isfinite(held)]
    low, high = min([0.0, *held]), max([1.0, *held])
    return max(low, _LOW) - 0.08, min(high, _HIGH) + 0.08, bool(low < _LOW or high > _HIGH)


def _panel(ax: Axes, rows: pd.DataFrame, names: Sequence[str]) -> None:
    ax.set_xscale("log")
    ax.tick_params(which="minor", color="#666666", width=0.6, length=2)
    for end in (0, 1):
        ax.axhline(end, **_END)
    random = rows[rows["order"] == "random"].sort_values("share")
    if len(random):
        share = 100 * random["share"]
        low, high = random["faithfulness_low"], random["faithfulness_high"]
        ax.fill_between(share, low, high, color=GREY, alpha=0.25, linewidth=0)
        ax.plot(share, random["faithfulness"], color=GREY, linestyle=DASHES[2])
    for name, colour in zip(names, PALETTE, strict=False):
        for order, line in rows[rows["ranking"] == name].groupby("order", sort=False):
            line = line.sort_values("share")
            share, value = 100 * line["share"], line["faithfulness"]
            if order == "kept":
                ax.plot(share, value, _KEPT, color=colour, markersize=12, markeredgecolor="black")
            elif order in _ORDERS:
                dash, marker = _ORDERS[str(order)]
                ax.plot(share, value, color=colour, linestyle=dash, marker=marker)
    ax.xaxis.set_major_formatter(lambda percent, _place: f"{percent:g}")
    if rows["faithfulness"].isna().all():
        ax.text(0.5, 0.5, "nothing kept is\nas good as all", ha="center", transform=ax.transAxes)


def _legend(table: pd.DataFrame, names: Sequence[str]) -> tuple[list[Line2D], list[str]]:
    handles = []
    labels = []
    for name, colour in zip(names, PALETTE, strict=False):
        orders = set(table.loc[table["ranking"] == name, "order"])
        for order, (dash, marker) in _ORDERS.items():
            if order in orders:
                handles.append(key(color=colour, linestyle=dash, marker=marker))
                labels.append(f"{literal(name, 24)}, {order}")
        if "kept" in orders:
            star: dict[str, Any] = {"marker": _KEPT, "markersize": 12, "markeredgecolor": "black"}
            handles.append(key(color=colour, linestyle="", **star))
            labels.append(f"{literal(name, 24)}, kept")
    if "random" in set(table["order"]):
        handles.append(key(color=GREY, linestyle=DASHES[2]))
        labels.append("random")
    return [*handles, key(**_END)], [*labels, "whole model and nothing"]
