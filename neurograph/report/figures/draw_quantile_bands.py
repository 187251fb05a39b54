"""Quantiles of all neurons of a layer, as bands."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurograph.errors import DataError, OptionError
from neurograph.report.figures.style import key, legend, literal, look, outer, panels

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["quantile_bands"]

_SHADES = ("#DCEAF4", "#A9CCE6", "#5FA2D0", "#2F7FB8")  # outer to inner
_MEDIAN = "#003A5C"


def quantile_bands(graph: nx.DiGraph, *, layers: Collection[str] | None = None) -> Figure:
    """Draw the quantiles of every neuron's activations, a panel for each layer.

    Parameters
    ----------
    graph : networkx.DiGraph
        From `profile`.
    layers : collection of str, optional
        Which layers, at most 30; by default all that have neurons.

    Returns
    -------
    Figure
        Neurons stand side by side in the order of their medians. Bands lie between quantiles as
        far from either end (0 and 1, 0.05 and 0.95, …), as the profile has them; units are the
        layer's own. Of neurons with several positions the mean quantile is drawn.

    Raises
    ------
    OptionError
        A layer that is not there or has no neurons, or more of them than fit.
    DataError
        The graph holds no quantiles, or none in pairs around the median.

    Examples
    --------
    >>> import torch
    >>> from neurograph import profile
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> [ax.get_title(loc="left") for ax in quantile_bands(profile(model, torch.rand(50, 2))).axes]
    ['input, 2 neurons', '0, 8 neurons', '2, 1 neuron']
    """
    chosen = _chosen(graph, layers)
    tables = {name: _table(name, graph.nodes[name]) for name in chosen}
    with look():
        figure, axes = panels(
            len(chosen), "Activations over the data: quantiles of every neuron", option="layers"
        )
        seen: dict[str, Artist] = {}
        for (ax, first, lowest), (name, (levels, table)) in zip(
            outer(axes), tables.items(), strict=True
        ):
            seen |= _bands(ax, levels, table)
            count = table.shape[1]
            ax.set_title(f"{literal(name, 26)}, {count:,} neuron{'s' * (count != 1)}")
            if first:
                ax.set_ylabel("activation")
            if lowest:
                ax.set_xlabel("neurons, by median")
        legend(figure, list(seen.values()), list(seen))
    return figure


def _chosen(graph: nx.DiGraph, layers: Collection[str] | None) -> list[str]:
    known = [name for name, data in graph.nodes(data=True) if "quantiles" in data]
    if not known:
        raise DataError("the graph holds no quantiles: make it with profile(), not layer_graph()")
    if isinstance(layers, str):
        layers = [layers]
    for name in layers or ():
        if name not in known:
            raise OptionError(
                f"layers: there are no quantiles of {name!r}; the graph has {', '.join(known)}"
            )
    chosen = known if layers is None else list(dict.fromkeys(layers))
    if not chosen:
        raise OptionError("layers= is empty: name some, or leave it out for all")
    return chosen


def _table(name: str, node: dict[str, Any]) -> tuple[list[float], NDArray[np.float64]]:
    """Levels, and quantiles ``[levels, neurons]`` in the order of the medians."""
    levels = [float(level) for level in node["levels"]]
    if 0.5 not in levels or len(levels) < 3:
        raise DataError(
            f"the profile of layer {name!r} has the quantiles {levels}: bands need 0.5, and others "
            "in pairs around it"
        )
    quantiles = node["quantiles"].double().cpu().numpy()
    table = quantiles.reshape(*quantiles.shape[:2], -1).mean(axis=2)
    order = table[levels.index(0.5)].argsort(kind="stable")
    return levels, table[:, order]


def _bands(ax: Axes, levels: list[float], table: NDArray[np.float64]) -> dict[str, Artist]:
    """Draw the bands and the median; what each is, for the legend."""
    edges = np.arange(table.shape[1] + 1) + 0.5
    ends = {round(level, 9): table[i] for i, level in enumerate(levels)}
    pairs = [low for low in ends if low < 0.5 and round(1 - low, 9) in ends]
    shades = _SHADES[: len(pairs)] if len(pairs) > 1 else _SHADES[1:2]
    seen: dict[str, Artist] = {}
    for low, shade in zip(pairs, shades, strict=False):
        high = round(1 - low, 9)
        label = f"{100 * low:g}–{100 * high:g} % of the data"
        seen[label] = ax.stairs(
            ends[high], edges, baseline=ends[low], fill=True, color=shade, linewidth=0
        )
    ax.stairs(ends[0.5], edges, baseline=None, color=_MEDIAN, linewidth=1.3)
    seen["median"] = key(color=_MEDIAN, linewidth=1.3)
    ax.set_xlim(edges[0], edges[-1])
    if len(edges) > 6:
        ax.locator_params(axis="x", integer=True, nbins=5)
    else:
        ax.set_xticks(range(1, len(edges)))
    return seen
