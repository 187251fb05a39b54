"""Samples in which neurons are highest and lowest, as one looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neurograph.errors import OptionError
from neurograph.report.figures.style import BLUE, VERMILLION, literal, look, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from neurograph.discovery.exemplars import Exemplars, Shown

__all__ = ["exemplars"]

_TOKENS = 7  # in a panel
_FAR = 4.0  # standard deviations, which are shaded most


def exemplars(found: Exemplars, *, most: int = 4) -> Figure:
    """Draw exemplars, a row of panels for each neuron, from where it is highest to the lowest.

    Parameters
    ----------
    found : Exemplars
    most : int
        How many neurons: the first of them.

    Returns
    -------
    Figure
        Images as they are, the place where a map peaks outlined; of rows of a table the features
        that stand out, blue where they are above the mean of the data and shaded by how many
        standard deviations; tokens around the place where a neuron peaks, shaded by its value.

    Raises
    ------
    OptionError
        `most` is less than 1, or more panels than fit.

    Examples
    --------
    >>> import torch
    >>> from neurograph import Study
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 1))
    >>> study = Study(model, torch.rand(20, 4), progress=False)
    >>> figure = exemplars(study.exemplars(neurons="0", count=2, between=0))
    >>> len(figure.axes)
    8
    """
    if most < 1:
        raise OptionError(f"most={most}: at least one neuron is drawn")
    places = dict.fromkeys(neuron for neuron, _ in found.shown)
    drawn = {neuron: found.of(neuron) for neuron in list(places)[:most]}
    ordered = {neuron: _ordered(rows) for neuron, rows in drawn.items()}
    columns = max(map(len, ordered.values()))
    title = "Samples in which neurons are highest and lowest"
    if len(places) > len(drawn):
        title += f": the first {len(drawn)} of {len(places):,} neurons"
    is_table = all(shown.features and shown.tokens is None for shown in found.shown.values())
    with look():
        height = 1.7 if is_table else 2.1
        count = len(drawn) * columns
        figure, axes = panels(count, title, most=columns, height=height, option="most")
        for row, (neuron, rows) in enumerate(ordered.items()):
            for column in range(columns):
                ax = axes[row * columns + column]
                if column >= len(rows):
                    _bare(ax)
                    continue
                one = rows.iloc[column]
                _sample(ax, found.shown[neuron, int(one["sample"])], one["value"])
                lines = [f"{one['value']:.3g} in {one['sample']}"]
                lines += [] if one["label"] is None else [literal(one["label"], 18)]
                head = literal(one["name"], 20) if column == 0 else ""
                ax.set_title("\n".join([head, *lines]), fontsize=9)
    return figure


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("value", ascending=False, kind="stable")


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[], frame_on=False)


def _sample(ax: Axes, shown: Shown, value: float) -> None:
    picture = shown.picture
    if shown.tokens is not None:
        _tokens(ax, shown)
    elif picture is not None:
        ax.imshow(picture, cmap="gray", interpolation="nearest")
        _outline(ax, picture.shape[:2], shown)
        ax.set(xticks=[], yticks=[])
    elif shown.features:
        lines = [(f"{name} {x:.3g}", z / _FAR, False) for name, x, z in shown.features]
        _lines(ax, lines, len(lines))
    else:
        _bare(ax)
        ax.text(0.5, 0.5, f"{value:.3g}", ha="center", va="center", fontsize=9)


def _tokens(ax: Axes, shown: Shown) -> None:
    tokens = list(shown.tokens or ())
    values = shown.values if shown.values.shape == (len(tokens),) else np.zeros(len(tokens))
    peak = shown.place[0] if shown.place and len(shown.place) == 1 else 0
    first = max(0, min(peak - _TOKENS // 2, len(tokens) - _TOKENS))
    shades = np.nan_to_num(values / (float(np.nanmax(np.abs(values), initial=0)) or 1.0))
    some = range(first, min(len(tokens), first + _TOKENS))
    _lines(ax, [(tokens[i].strip() or "␣", float(shades[i]), i == peak) for i in some], _TOKENS)


def _lines(ax: Axes, lines: Sequence[tuple[str, float, bool]], room: int) -> None:
    """Write lines, each shaded between -1 and 1, one of them in bold."""
    _bare(ax)
    for number, (text, shade, bold) in enumerate(lines):
        colour = BLUE if shade > 0 else VERMILLION
        ax.text(
            0.5,
            1 - (number + 0.5) / room,
            literal(text, 20),
            ha="center",
            va="center",
            fontsize=9,
            weight="bold" if bold else "normal",
            bbox={"facecolor": colour, "alpha": 0.6 * min(1.0, abs(shade)), "lw": 0, "pad": 1.5},
        )


def _outline(ax: Axes, size: tuple[int, int], shown: Shown) -> None:
    """Outline the part of an image that lies where a map peaks, by its share of the map."""
    from matplotlib.patches import Rectangle

    if shown.place is None or len(shown.place) != 2:
        return
    height, width = (n / m for n, m in zip(size, shown.values.shape, strict=True))
    row, column = shown.place
    corner = column * width - 0.5, row * height - 0.5
    ax.add_patch(Rectangle(corner, width, height, fill=False, color=VERMILLION, linewidth=1.4))
