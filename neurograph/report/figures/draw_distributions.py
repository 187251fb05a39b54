"""Activations by class, neuron by neuron."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurograph.errors import DataError, OptionError
from neurograph.model.layers import Neuron
from neurograph.report.figures.style import (
    DASHES,
    GREY,
    PALETTE,
    key,
    legend,
    literal,
    look,
    outer,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from neurograph.activations.values import ClassValues

__all__ = ["distributions"]

_BINS = 24
_FILLED = 4  # classes whose areas can still be told apart


def distributions(
    values: ClassValues,
    neurons: Iterable[Neuron | tuple[str, int]],
    *,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw how a neuron's activations are distributed in each class, a panel for each neuron.

    Parameters
    ----------
    values : ClassValues
        Its ``values`` hold, by layer and by label, arrays ``[rows, neurons]``.
    neurons : iterable of Neuron
        Which ones, at most 30.
    names : sequence of str, optional
        What they are called, in the same order; by default as `values` says.
    class_names : sequence of str, optional
        What labels 0, 1, … are called.

    Returns
    -------
    Figure
        Histograms of the same bins in every class, each of area 1. Above them, for each class,
        the ranges of 90 % and 50 % of its values, and the median.

    Raises
    ------
    OptionError
        No neuron, one that is not there, a name too few, or more neurons or classes than can be
        told apart.
    DataError
        A class without values, or values that are not finite.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> rows = np.random.default_rng(0).normal(size=(100, 2))
    >>> values = SimpleNamespace(values={"fc": {0: rows, 1: rows + 1}}, names={})
    >>> figure = distributions(values, [("fc", 0)], class_names=["well", "ill"])
    >>> figure.axes[0].get_title(loc="left")
    'fc[0]'
    """
    chosen = [Neuron(*neuron) for neuron in neurons]
    if not chosen:
        raise OptionError("neurons= is empty: name at least one")
    if names is not None and len(names) != len(chosen):
        raise OptionError(f"names has {len(names)} names for {len(chosen)} neurons")
    called = [_name(values, neuron) for neuron in chosen] if names is None else list(names)
    columns = [_columns(values, neuron) for neuron in chosen]
    labels = list(dict.fromkeys(label for by_class in columns for label in by_class))
    if len(labels) > len(PALETTE) * len(DASHES):
        raise OptionError(
            f"{len(labels)} classes cannot be told apart in one panel: give the values of at most "
            f"{len(PALETTE) * len(DASHES)}"
        )
    looks = {label: _look(i, len(labels)) for i, label in enumerate(labels)}
    with look():
        height = 2.1 + 0.08 * max(0, len(labels) - 4)
        figure, axes = panels(len(chosen), "Activations by class", height=height)
        for (ax, first, lowest), name, by_class in zip(outer(axes), called, columns, strict=True):
            _histograms(ax, by_class, looks)
            ax.set_title(literal(name, 30))
            if first:
                ax.set_ylabel("density")
            if lowest:
                ax.set_xlabel("activation")
        handles = [key(color=colour, linestyle=dash) for colour, dash, _ in looks.values()]
        handles.append(key(color=GREY, marker="o", linewidth=1, markersize=4))
        names = [_class_name(label, class_names) for label in labels]
        legend(figure, handles, [*names, "middle 90 %, middle 50 %, median"])
    return figure


def _columns(values: ClassValues, neuron: Neuron) -> dict[Any, NDArray[np.float64]]:
    """A neuron's values in each class."""
    if neuron.layer not in values.values:
        raise OptionError(
            f"there are no values of layer {neuron.layer!r}; there are those of "
            f"{', '.join(values.values)}"
        )
    by_class = {}
    for label, rows in values.values[neuron.layer].items():
        if not (0 <= neuron.index < rows.shape[1] and neuron.position is None):
            raise OptionError(
                f"there is no neuron {neuron}: {neuron.layer!r} has values of {rows.shape[1]}"
            )
        column = np.asarray(rows[:, neuron.index], dtype=np.float64)
        if not len(column) or not np.isfinite(column).all():
            what = "is not finite somewhere" if len(column) else "has no values"
            raise DataError(f"class {label!r} {what} at {neuron}")
        by_class[label] = column
    if not by_class:
        raise DataError(f"there is no class with values of layer {neuron.layer!r}")
    return by_class


def _name(values: ClassValues, neuron: Neuron) -> str:
    known = values.names.get(neuron.layer, ())
    return known[neuron.index] if 0 <= neuron.index < len(known) else str(neuron)


def _class_name(label: object, names: Sequence[str] | None) -> str:
    if names is not None and isinstance(label, (int, np.integer)) and 0 <= label < len(names):
        return str(names[int(label)])
    return str(label)


def _look(place: int, classes: int) -> tuple[str, Any, float]:
    """Colour, dashes and how much of a class's area is filled."""
    row, column = divmod(place, len(PALETTE))
    # Few classes differ in dashes too; many only where colours come again.
    dash = DASHES[column if classes <= len(DASHES) else row]
    return PALETTE[column], dash, 0.22 if classes <= _FILLED else 0.0


def _histograms(
    ax: Axes,
    by_class: Mapping[Any, NDArray[np.float64]],
    looks: Mapping[Any, tuple[str, Any, float]],
) -> None:
    edges = _edges(np.concatenate(list(by_class.values())))
    densities = {label: _density(column, edges) for label, column in by_class.items()}
    top = max(float(density.max()) for density in densities.values())
    step = top * min(0.11, 0.6 / len(densities))
    for place, (label, density) in enumerate(densities.items()):
        colour, dash, fill = looks[label]
        if fill:
            ax.stairs(density, edges, fill=True, color=colour, alpha=fill, linewidth=0)
        ax.stairs(density, edges, color=colour, linestyle=dash, linewidth=1.5)
        height = 1.06 * top + step * (len(densities) - place)
        _range(ax, by_class[label], height, colour)
    ticks = [tick for tick in ax.get_yticks() if 0 <= tick <= top]
    ax.set_yticks(ticks[:: max(1, len(ticks) // 3)])
    ax.spines["left"].set_bounds(0, top)
    ax.set_ylim(0, 1.1 * top + step * (len(densities) + 0.5))


def _range(ax: Axes, column: NDArray[np.float64], height: float, colour: str) -> None:
    low, first, middle, third, high = np.quantile(column, (0.05, 0.25, 0.5, 0.75, 0.95))
    ax.plot([low, high], [height] * 2, color=colour, linewidth=1)
    ax.plot([first, third], [height] * 2, color=colour, linewidth=3.2, solid_capstyle="butt")
    ax.plot([middle], [height], color=colour, marker="o", markersize=5, markeredgecolor="white")


def _density(column: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts, _ = np.histogram(column, edges)
    density: NDArray[np.float64] = counts / len(column) / np.diff(edges)
    return density


def _edges(pooled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of bins over all classes; some width where all values are one."""
    low, high = float(pooled.min()), float(pooled.max())
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:
        low, high = low - (0.5 * size or 0.5), high + (0.5 * size or 0.5)
    return np.linspace(low, high, _BINS + 1)
