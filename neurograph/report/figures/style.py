"""The look of every figure: colours, sizes, small multiples, and names as they are written."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from neurograph.errors import DataError, OptionError
from neurograph.report.console_tables import plain

try:
    import matplotlib
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text
except ImportError as error:
    raise ImportError(
        f"figures need matplotlib ({error}): pip install 'neurograph-torch[plot]'"
    ) from error

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import BboxBase

__all__ = [
    "BLUE",
    "DASHES",
    "GREEN",
    "GREY",
    "PALETTE",
    "PURPLE",
    "VERMILLION",
    "Points",
    "check_columns",
    "key",
    "legend",
    "literal",
    "look",
    "name_points",
    "outer",
    "panels",
    "shortened",
]

Points = Sequence[tuple[float, float, str]]
"""Places in a panel, and what stands there."""

# Okabe & Ito (2008), without the yellow, which white paper swallows, and the black of the text.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, "#E69F00", "#56B4E9")
GREY = "#4D4D4D"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))

_WIDTH = 8.0  # inches: 800 pixels, what a README shows
_MOST_PANELS = 30
_INK = "#222222"
# Where a name may stand: how far from its point, in points, and which end of it is there.
_BESIDE = (
    ((6, 0), "left", "center"),
    ((-6, 0), "right", "center"),
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
    ((16, 9), "left", "bottom"),
    ((-16, 9), "right", "bottom"),
    ((16, -9), "left", "top"),
    ((-16, -9), "right", "top"),
)
_NEAR = 10  # points; a line leads to names that stand farther off
_LEADER = {"arrowstyle": "-", "linewidth": 0.7, "color": GREY, "shrinkA": 0, "shrinkB": 2}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": _INK,
    "text.usetex": False,
    "text.parse_math": True,
    "figure.facecolor": "white",
    "figure.edgecolor": "white",
    "figure.titlesize": 12,
    "figure.titleweight": "normal",
    "axes.facecolor": "white",
    "axes.edgecolor": "#666666",
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.titlecolor": "auto",
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.labelsize": 10,
    "axes.labelweight": "normal",
    "axes.labelpad": 4,
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": True,
    "axes.spines.bottom": True,
    "axes.xmargin": 0.03,
    "axes.ymargin": 0.05,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.labelcolor": None,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "patch.linewidth": 1.4,
}


@contextmanager
def look() -> Iterator[None]:
    """Draw in this look, whatever the user's own settings are; these return afterwards."""
    with matplotlib.rc_context(_STYLE):
        yield


def shortened(text: object, most: int) -> str:
    """Cut a long name in the middle: names of modules differ at either end.

    Examples
    --------
    >>> shortened("encoder.layer.11.attention.output.dense[37]", 24)
    'encoder…output.dense[37]'
    """
    written = plain(text)
    if len(written) <= most:
        return written
    start = (most - 1) // 3
    return f"{written[:start]}…{written[start - most + 1 :]}"


def literal(text: object, most: int = 60) -> str:
    r"""Write a name so that matplotlib shows it as it is: no control characters, no mathematics.

    Examples
    --------
    >>> print(literal("cost_in_$ per $"))
    cost_in_\$ per \$
    """
    return shortened(text, most).replace("$", r"\$")


def panels(
    count: int,
    title: str,
    *,
    most: int = 3,
    height: float = 2.3,
    option: str = "neurons",
    **shared: Any,
) -> tuple[Figure, list[Axes]]:
    """Make a figure of small multiples, filled row by row.

    Parameters
    ----------
    count : int
        How many panels.
    title : str
        Of the figure; names in it are `literal` already.
    most : int
        Panels side by side; as many rows as that takes are filled evenly.
    height : float
        Of a row, in inches.
    option : str
        What a caller chooses fewer panels by.
    **shared
        Of `Figure.subplots`: ``sharex``, ``sharey``.

    Raises
    ------
    OptionError
        More panels than a page can hold.
    """
    if count > _MOST_PANELS:
        raise OptionError(
            f"{count} panels do not fit one figure: choose at most {_MOST_PANELS} with {option}="
        )
    rows = math.ceil(count / most)
    columns = math.ceil(count / rows)
    lines = 1 + title.count("\n")
    height *= min(1.5, math.sqrt(most / columns))  # wide panels are higher too
    size = (_WIDTH, rows * height + 0.25 + 0.2 * lines)
    figure = Figure(figsize=size, dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.07))
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    figure.suptitle(title, x=0.012, ha="left")
    axes: list[Axes] = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    for ax in axes[:count]:
        # Ticks are made when a figure is drawn, in whatever look there is by then.
        ax.tick_params(labelsize=9, labelcolor=_INK, color="#666666", width=0.8, length=3)
    return figure, axes[:count]


def outer(axes: Sequence[Axes]) -> Iterator[tuple[Axes, bool, bool]]:
    """Give each panel with whether it is the first of its row, and the last of its column."""
    places = [ax.get_subplotspec() for ax in axes]
    spans = [(p.rowspan.start, p.colspan.start) for p in places if p is not None]
    lowest = {column: row for row, column in sorted(spans)}
    for ax, (row, column) in zip(axes, spans, strict=True):
        yield ax, column == 0, lowest[column] == row


def key(**look_of: Any) -> Line2D:
    """Line or marker that stands for a group in a legend."""
    return Line2D([], [], **look_of)


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[object]) -> None:
    """Put one legend below all panels."""
    names = [literal(label, 40) for label in labels]
    # A leading underscore would hide an entry.
    shown = [f"\N{NO-BREAK SPACE}{text}" if text.startswith("_") else text for text in names]
    for columns in range(len(shown), 0, -1):
        # Matplotlib fills columns first, but rows are read first.
        order = [i for column in range(columns) for i in range(column, len(shown), columns)]
        made = figure.legend(
            [handles[i] for i in order],
            [shown[i] for i in order],
            loc="outside lower center",
            ncols=columns,
        )
        if columns == 1 or made.get_window_extent().width <= figure.bbox.width:
            return
        made.remove()


def name_points(figure: Figure, points: Sequence[tuple[Axes, Points]]) -> None:
    """Write names beside points of panels, the first ones first; none over another.

    The figure is laid out for it, so all else must be drawn already.
    """
    figure.draw_without_rendering()
    for ax, named in points:
        _name_points(ax, named)


def _name_points(ax: Axes, points: Points) -> None:
    inside = ax.get_window_extent()
    scattered = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    others = ax.transData.transform(np.concatenate([np.empty((0, 2)), *scattered]))
    taken: list[BboxBase] = []
    for x, y, name in points:
        best: tuple[int, Annotation, BboxBase] | None = None
        for offset, across, up in _BESIDE:
            text = ax.annotate(
                name,
                (x, y),
                offset,
                textcoords="offset points",
                ha=across,
                va=up,
                fontsize=9,
                arrowprops=_LEADER if abs(offset[0]) > _NEAR else None,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
            text.set_in_layout(False)
            text.get_window_extent()  # puts it in its place
            box = Text.get_window_extent(text)  # without the line
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1
            within &= inside.y0 <= box.y0 and box.y1 <= inside.y1
            hidden = int(((others > box.min) & (others < box.max)).all(axis=1).sum())
            if any(box.overlaps(other) for other in taken) or not within:
                text.remove()
            elif best is None or hidden < best[0]:
                if best:
                    best[1].remove()
                best = hidden, text, box
            else:
                text.remove()
        if best:
            taken.append(best[2])


def check_columns(table: pd.DataFrame, columns: Collection[str], what: str) -> None:
    """Raise DataError where a table is empty or lacks columns."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"the table of {what} lacks the columns {', '.join(missing)}")
    if table.empty:
        raise DataError(f"the table of {what} is empty: there is nothing to draw")
