"""Faithfulness curves as a figure: how much of a target circuits of every size carry."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from neurograph.errors import DataError, OptionError
from neurograph.report.faithfulness_curves import (
    CUT,
    curve_limits,
    curve_looks,
    curves_of,
    rankings_of,
)
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

_DIRECTIONS = {"keep": "kept alone", "knock_out": "ablated"}
_ORDERS: dict[str, dict[str, Any]] = {
    "signed": {"linestyle": DASHES[0], "marker": "o"},
    "absolute": {"linestyle": DASHES[1], "marker": "s"},
    "kept": {"linestyle": "", "marker": "*", "markersize": 12, "markeredgecolor": "black"},
}
_END: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}


def faithfulness(result: Faithfulness, *, rankings: Collection[str] | None = None) -> Figure:
    """Draw curves of faithfulness, a panel for each ablation and direction.

    Parameters
    ----------
    result : Faithfulness
    rankings : collection of str, optional
        Which rankings, by name; all by default.

    Returns
    -------
    Figure
        Faithfulness against the share of the neurons or edges that a circuit holds, in percent, on
        a logarithmic axis: above, circuits kept alone, below, the model with them ablated. By
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
    table = result.curves()
    columns = "ranking order ablation direction share faithfulness".split()
    check_columns(table, [*columns, "faithfulness_low", "faithfulness_high"], "faithfulness")
    names = _chosen(table, rankings)
    ablations = list(dict.fromkeys(table["ablation"]))
    directions = [name for name in _DIRECTIONS if name in set(table["direction"])]
    low, high, cut = curve_limits(table)
    title = (
        f"Faithfulness to '{literal(result.target, 40)}' of circuits of {result.of}\n"
        f"random: mean of the draws, {100 * result.confidence:g} % confidence interval"
    )
    with look():
        figure, axes = panels(
            len(directions) * len(ablations),
            f"{title}; cut at {CUT[0]:g} and {CUT[1]:g}" if cut else title,
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
            ax.set_ylim(low - 0.08, high + 0.08)
            ax.tick_params(labelbottom=lowest, labelleft=first)
            if first:
                ax.set_ylabel("faithfulness")
            if lowest:
                ax.set_xlabel(f"share of the {result.of}, %")
        legend(figure, *_legend(table, names))
    return figure


def _chosen(table: pd.DataFrame, rankings: Collection[str] | None) -> list[str]:
    known = rankings_of(table)
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


def _panel(ax: Axes, rows: pd.DataFrame, names: Sequence[str]) -> None:
    ax.set_xscale("log")
    ax.tick_params(which="minor", color="#666666", width=0.6, length=2)
    for end in (0, 1):
        ax.axhline(end, **_END)
    for order, place, _, points in curves_of(rows, names):
        share = 100 * points["share"]
        if order == "random":
            low, high = points["faithfulness_low"], points["faithfulness_high"]
            ax.fill_between(share, low, high, color=GREY, alpha=0.25, linewidth=0)
        ax.plot(share, points["faithfulness"], **_look_of(order, place))
    ax.xaxis.set_major_formatter(lambda percent, _place: f"{percent:g}")
    if rows["faithfulness"].isna().all():
        ax.text(0.5, 0.5, "nothing kept is\nas good as all", ha="center", transform=ax.transAxes)


def _look_of(order: str, place: int) -> dict[str, Any]:
    if order == "random":
        return {"color": GREY, "linestyle": DASHES[2]}
    return {"color": PALETTE[place], **_ORDERS[order]}


def _legend(table: pd.DataFrame, names: Sequence[str]) -> tuple[list[Line2D], list[str]]:
    looks = curve_looks(table, names)
    handles = [key(**_look_of(order, place)) for order, place, _ in looks]
    labels = [
        "random" if order == "random" else f"{literal(name, 24)}, {order}"
        for order, _, name in looks
    ]
    return [*handles, key(**_END)], [*labels, "whole model and nothing"]
