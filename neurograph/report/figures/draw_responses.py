"""Response curves as small multiples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurograph.errors import OptionError
from neurograph.report.figures.style import (
    BLUE,
    GREY,
    PURPLE,
    VERMILLION,
    literal,
    look,
    outer,
    panels,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from neurograph.discovery.responses import ResponseCurves

__all__ = ["responses"]

_LOOKS = {
    "rising": (BLUE, "o"),
    "falling": (VERMILLION, "s"),
    "bent": (PURPLE, "D"),
    "flat": (GREY, "v"),
}
_WORDS = {
    "rising": "rising by {:.3g}",
    "falling": "falling by {:.3g}",
    "bent": "bent, {:.3g} wide",
    "flat": "flat",
}
_TICKS = (0, 0.25, 0.5, 0.75, 1)


def responses(curves: ResponseCurves, *, most: int = 12) -> Figure:
    """Draw response curves: the mean target against a neuron's quantile, a panel for each neuron.

    Parameters
    ----------
    curves : ResponseCurves
    most : int
        How many neurons: those that vary the target most, at most 30.

    Returns
    -------
    Figure
        All panels have the same scale, in units of the target. What a curve covers is
        shaded; titles say how wide that is, and whether the curve rises, falls or is bent.

    Raises
    ------
    OptionError
        `most` is less than 1, or more than fit.

    Examples
    --------
    >>> import torch
    >>> from neurograph import response_curves
    >>> model, X = torch.nn.Linear(3, 1), torch.rand(50, 3)
    >>> figure = responses(response_curves(model, X, 1, progress=False))
    >>> len(figure.axes)
    3
    """
    if most < 1:
        raise OptionError(f"most={most}: at least one neuron is drawn")
    summary = curves.summary()
    drawn = summary.head(most)
    target = literal(curves.target, 40)
    title = f"Mean target '{target}' at the quantiles of single neurons"
    if len(summary) > len(drawn):
        title += f"\nthe widest {len(drawn)} of {len(summary):,} curves"
    keys = [key for key in ("layer", "index", "position") if key in summary]
    places = drawn[keys].assign(panel=range(len(drawn)))
    by_panel = dict(list(curves.table.merge(places, on=keys).groupby("panel")))
    with look():
        figure, axes = panels(
            len(drawn), title, most=4, height=1.95, option="most", sharex=True, sharey=True
        )
        for panel, (ax, first, lowest) in enumerate(outer(axes)):
            _curve(ax, by_panel[panel], drawn.iloc[panel])
            ax.tick_params(labelbottom=lowest, labelleft=first)
        figure.supxlabel("quantile of the neuron's activation", fontsize=10)
        figure.supylabel(f"mean of '{target}'", fontsize=10)
    return figure


def _curve(ax: Axes, points: pd.DataFrame, summary: pd.Series) -> None:
    colour, marker = _LOOKS[summary["shape"]]
    ax.axhspan(summary["low"], summary["high"], color=colour, alpha=0.13, linewidth=0)
    ax.plot(points["level"], points["target"], color=colour, marker=marker, markersize=4.5)
    ax.set_xticks(_TICKS, ["0", "¼", "½", "¾", "1"])
    ax.set_xlim(-0.04, 1.04)
    words = _WORDS[summary["shape"]].format(summary["variation"])
    ax.set_title(f"{literal(summary['name'], 22)}\n{words}")
