"""Overlap over training: what each circuit of a series shares with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neurograph.errors import OptionError
from neurograph.report.figures.style import BLUE, GREY, key, legend, literal, look, outer, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from neurograph.comparison.comparisons import Comparisons

__all__ = ["history"]

_LOOK: dict[str, Any] = {"color": BLUE, "linestyle": "-", "marker": "o"}
_HEIGHT = 2.7
_COLUMNS = ("value", "null_low", "null_high")


def history(
    comparisons: Comparisons,
    *,
    measures: Sequence[str] = ("neuron_jaccard", "edge_jaccard", "spearman"),
    at: Sequence[float] | None = None,
    beside: str | None = None,
    xlabel: str = "circuit",
) -> Figure:
    """Draw what every circuit of a series shares with one of them, a panel for each measure.

    Parameters
    ----------
    comparisons : Comparisons
        Circuits compared with each other, in their order: checkpoints of a training.
    measures : sequence of str
        Of `Comparison.measures`.
    at : sequence of float, optional
        Where each circuit stands, its epoch or step; by default 0, 1, 2…
    beside : str, optional
        Which circuit the others are compared with; by default the last.
    xlabel : str
        What `at` is.

    Returns
    -------
    Figure
        The measure against `at`. The band is what chance gives: 95 % of draws in which the neurons
        of both circuits are permuted within their layers.

    Raises
    ------
    OptionError
        Circuits that were not all compared with each other, or a measure, name or number of places
        that does not fit them.
    """
    if not comparisons.is_square:
        raise OptionError("history needs circuits that were all compared with each other")
    if not measures:
        raise OptionError("measures is empty: choose one or more")
    names = list(comparisons.rows)
    beside = names[-1] if beside is None else beside
    if beside not in names:
        raise OptionError(f"beside={beside!r} is none of {', '.join(names)}")
    places = list(range(len(names))) if at is None else list(at)
    if len(places) != len(names):
        raise OptionError(f"at has {len(places)} places for {len(names)} circuits")
    others = [i for i, name in enumerate(names) if name != beside]
    x = [places[i] for i in others]
    tables = [
        {c: comparisons.measure(name, column=c)[beside] for c in _COLUMNS} for name in measures
    ]
    title = f"What circuits share with '{literal(beside, 40)}'"
    title += "\ngrey: 95 % of what permuted neurons share"
    with look():
        figure, axes = panels(
            len(tables), title, height=_HEIGHT, option="measures", sharex=True, sharey=True
        )
        for (ax, first, lowest), measure, table in zip(outer(axes), measures, tables, strict=True):
            value, low, high = (table[c].iloc[others] for c in _COLUMNS)
            ax.fill_between(x, low, high, color=GREY, alpha=0.25, linewidth=0)
            ax.plot(x, value, **_LOOK)
            ax.set_title(literal(measure.replace("_", " "), 30))
            ax.tick_params(labelleft=first, labelbottom=lowest)
            if lowest:
                ax.set_xlabel(literal(xlabel, 30))
            if first:
                ax.set_ylabel("value")
        band: dict[str, Any] = {"color": GREY, "alpha": 0.25, "linewidth": 8}
        legend(figure, [key(**_LOOK), key(**band)], ["measured", "by chance"])
    return figure
