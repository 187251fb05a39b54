"""How much of the target few parts of a layer bring back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurograph.ablation.signals import NONE
from neurograph.errors import OptionError
from neurograph.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILLION,
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

    from neurograph.ablation.signals import Signals

__all__ = ["signals"]

_LOOKS = {
    "active": (BLUE, "-", "o"),
    "principal": (GREEN, "-", "s"),
    "neurons": (VERMILLION, "-", "D"),
    "families": (PURPLE, "-", "^"),
    "random": (GREY, ":", "o"),
    "random neurons": (GREY, "--", "D"),
    "random families": (GREY, "-.", "^"),
}


def signals(found: Signals, *, most: int = 12) -> Figure:
    """Draw how much of the target few parts bring back, a panel for each layer.

    Parameters
    ----------
    found : Signals
    most : int
        How many layers: the first and, where there is one, that of all layers at once.

    Returns
    -------
    Figure
        Shares against how many parts pass, with their intervals, and where nothing passes; below 0
        nothing is drawn.

    Raises
    ------
    OptionError
        `most` is less than 1, or more than fit.

    Examples
    --------
    >>> import torch
    >>> from neurograph import Study
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    >>> figure = signals(Study(model, torch.rand(40, 3), progress=False).signals(counts=(1, 2)))
    >>> len(figure.axes)
    1
    """
    if most < 1:
        raise OptionError(f"most={most}: at least one layer is drawn")
    layers = list(found.table["layer"].unique())
    drawn = layers if len(layers) <= most else [*layers[: most - 1], layers[-1]]
    title = f"How much of '{literal(found.target, 40)}' comes back when few parts pass"
    if len(drawn) < len(layers):
        title += f"\n{len(drawn)} of {len(layers)} layers"
    kinds = [kind for kind in found.table["parts"].unique() if kind != NONE]
    with look():
        figure, axes = panels(
            len(drawn), title, most=3, option="most", height=2.2, sharex=True, sharey=True
        )
        for (ax, first, lowest), layer in zip(outer(axes), drawn, strict=True):
            _shares(ax, found.table[found.table["layer"] == layer])
            ax.set_title(literal(layer, 34))
            ax.tick_params(labelleft=first, labelbottom=lowest)
            if first:
                ax.set_ylabel("share that comes back")
            if lowest:
                ax.set_xlabel("parts of each layer that pass")
        looks = [_LOOKS[kind] for kind in kinds]
        handles = [key(color=c, linestyle=dash, marker=m, markersize=4) for c, dash, m in looks]
        handles.append(key(color=GREY, linewidth=1, linestyle=(0, (1, 3))))
        legend(figure, handles, [*kinds, "nothing passes"])
    return figure


def _shares(ax: Axes, table: pd.DataFrame) -> None:
    none = table[table["parts"] == NONE]["share"]
    for share in none:
        ax.axhline(share, color=GREY, linewidth=1, linestyle=(0, (1, 3)))
    for kind, rows in table[table["parts"] != NONE].groupby("parts", sort=False):
        colour, dash, marker = _LOOKS[kind]
        counts = rows["count"]
        ax.fill_between(counts, rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
        above = 2 if colour == GREY else 3
        (line,) = ax.plot(counts, rows["share"], color=colour, linestyle=dash, zorder=above)
        line.set(marker=marker, markersize=4)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_ylim(-0.03, 1.03)
