"""Masking curves as a figure: what is left of a model as neurons are ablated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from neurograph.errors import DataError
from neurograph.report.figures.style import (
    BLUE,
    GREY,
    VERMILLION,
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

    from neurograph.ablation.masking_curves import MaskingCurves

__all__ = ["masking"]

_LOOKS = {
    "important": (VERMILLION, "-", "o"),
    "unimportant": (BLUE, (0, (4, 1.5)), "s"),
    "random": (GREY, (0, (1, 1.2)), "^"),
}


def masking(curves: MaskingCurves) -> Figure:
    """Draw masking curves with their intervals, a panel for each ranking.

    Parameters
    ----------
    curves : MaskingCurves

    Returns
    -------
    Figure
        The metric against the share of the important neurons that are ablated, in percent: of
        these neurons, of as many unimportant ones, and of as many drawn at random. Bands are the
        intervals of the summary, the dashed line is the whole model.

    Raises
    ------
    DataError
        The summary is empty, lacks a column, or has a group that is none of the three.
    """
    table = curves.summary()
    columns = "ranking group share mean low high".split()
    check_columns(table, columns, "masking curves")
    groups = list(dict.fromkeys(table["group"]))
    unknown = [group for group in groups if group not in _LOOKS]
    if unknown:
        raise DataError(f"group {unknown[0]!r} is none of {', '.join(_LOOKS)}")
    by_ranking = dict(list(table.groupby("ranking", sort=False)))
    metric = literal(_spoken(curves.metric), 40)
    how = literal(curves.how, 20)
    title = (
        f"{metric[:1].upper()}{metric[1:]} with neurons ablated (how='{how}')\n"
        f"mean of the draws, {100 * curves.confidence:g} % confidence interval"
    )
    with look():
        figure, axes = panels(
            len(by_ranking), title, height=2.9, option="importance", sharex=True, sharey=True
        )
        for (ax, first, lowest), (ranking, rows) in zip(
            outer(axes), by_ranking.items(), strict=True
        ):
            ax.axhline(curves.baseline, color="black", linestyle="--", linewidth=1)
            for group, line in rows.groupby("group", sort=False):
                _line(ax, line.sort_values("share"), str(group))
            ax.set_title(f"by {literal(ranking, 34)}")
            ax.tick_params(labelbottom=lowest, labelleft=first)
            if first:
                ax.set_ylabel(metric)
            if lowest:
                ax.set_xlabel("share of the important\nneurons ablated, %")
        handles = [
            key(color=colour, linestyle=dash, marker=marker)
            for colour, dash, marker in (_LOOKS[group] for group in groups)
        ]
        whole = key(color="black", linestyle="--", linewidth=1)
        legend(figure, [*handles, whole], [*groups, "whole model"])
    return figure


def _spoken(metric: str) -> str:
    """Write the name of a class as words: BinaryAUROC is binary AUROC."""
    words = re.findall(r"[A-Z]+[0-9]*(?![a-z])|[A-Z]?[^A-Z]+", metric)
    return " ".join(word if word.isupper() else word.lower() for word in words)


def _line(ax: Axes, rows: pd.DataFrame, group: str) -> None:
    colour, dash, marker = _LOOKS[group]
    share = 100 * rows["share"]
    ax.fill_between(share, rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    ax.plot(share, rows["mean"], color=colour, linestyle=dash, marker=marker)
