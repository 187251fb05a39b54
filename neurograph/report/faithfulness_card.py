"""Faithfulness on a page: a table of areas, and curves as paths of an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neurograph.report.faithfulness_curves import (
    curve_limits,
    curve_looks,
    curves_of,
    rankings_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from neurograph.ablation.faithfulness_result import Faithfulness

__all__ = ["Card", "faithfulness_card"]

_WIDTH, _HEIGHT = 300.0, 96.0  # of one panel's axes, in units of the SVG
_RANKINGS = 6  # so many can be told apart


@dataclass(frozen=True)
class Line:
    """One curve: what it is, how it looks, and its path; `place` is that of its ranking."""

    label: str
    kind: str
    place: int
    path: str


@dataclass(frozen=True)
class Panel:
    """The curves of one ablation; heights of the ends, ticks, whether the ends differ."""

    ablation: str
    lines: tuple[Line, ...]
    stars: tuple[tuple[str, int, float, float], ...]
    band: str
    full: float
    empty: float
    ticks: tuple[tuple[float, str], ...]
    significant: bool


@dataclass(frozen=True)
class Card:
    """All that the page shows of one result.

    Attributes
    ----------
    target : str
        What is to be left.
    of : str
        ``neurons`` or ``edges``.
    count : str
        How many.
    rows : tuple of (ablation, (what, CPR, CMD))
        The summary, as written.
    panels : tuple of Panel
    keys : tuple of (kind, place, label)
        What the looks of the curves mean.
    width, height : float
    cut : bool
        Whether a curve leaves its panel.
    """

    target: str
    of: str
    count: str
    rows: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    panels: tuple[Panel, ...]
    keys: tuple[tuple[str, int, str], ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    cut: bool = False


def faithfulness_card(result: Faithfulness) -> Card:
    """Lay out what the page shows: of circuits kept alone, the areas and the curves."""
    curves, summary = result.curves(), result.summary()
    curves = curves[curves["direction"] == "keep"]
    names = rankings_of(curves)[:_RANKINGS]
    low, high, cut = curve_limits(curves)
    scale = _Scale(float(curves["share"].min()), low, high)
    ablations = list(dict.fromkeys(curves["ablation"]))
    significant = result.ends.set_index("ablation")["significant"]
    return Card(
        result.target,
        result.of,
        f"{result.components:,}",
        tuple((name, _rows(summary[summary["ablation"] == name])) for name in ablations),
        tuple(
            _panel(rows, str(name), names, scale, bool(significant.get(name, True)))
            for name, rows in curves.groupby("ablation", sort=False)
        ),
        tuple((order, i, _label(order, name)) for order, i, name in curve_looks(curves, names)),
        cut=cut,
    )


def _label(order: str, ranking: str) -> str:
    return "random" if order == "random" else f"{ranking}, {order}"


def _rows(summary: pd.DataFrame) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (
            _label(row.order, row.ranking),
            _written(row.cpr, row.cpr_low),
            _written(row.cmd, row.cmd_low),
        )
        for row in summary.itertuples()
    )


def _written(value: float, low: float) -> str:
    if math.isnan(value):
        return "–"
    number = f"{value:.2f}".replace("-", "−")
    return number if math.isnan(low) else f"{number} ± {value - low:.2f}"


@dataclass(frozen=True)
class _Scale:
    """Places in a panel: shares on a logarithmic axis, faithfulness upwards."""

    first: float
    low: float
    high: float

    def across(self, share: float) -> float:
        if self.first >= 1:
            return _WIDTH
        return round(_WIDTH * (1 - math.log(share) / math.log(self.first)), 1)

    def up(self, value: float) -> float:
        # Far enough outside to be cut, near enough for any browser.
        value = min(max(value, self.low - 1), self.high + 1)
        return round(_HEIGHT * (self.high - value) / (self.high - self.low), 1)

    def path(self, shares: Sequence[float], values: Sequence[float]) -> str:
        points = [
            f"{self.across(share)} {self.up(value)}"
            for share, value in zip(shares, values, strict=True)
            if np.isfinite(value)
        ]
        return "M" + "L".join(points) if points else ""

    def ticks(self) -> tuple[tuple[float, str], ...]:
        shares = [10.0**power for power in range(-6, 1) if 10.0**power >= self.first * 0.999]
        return tuple((self.across(share), f"{100 * share:g} %") for share in shares)


def _panel(
    table: pd.DataFrame, ablation: str, names: Sequence[str], scale: _Scale, significant: bool
) -> Panel:
    lines, stars, band = [], [], ""
    for order, place, name, points in curves_of(table, names):
        shares, values = points["share"], points["faithfulness"]
        if order != "kept":
            lines.append(Line(_label(order, name), order, place, scale.path(shares, values)))
        elif np.isfinite(values.iloc[0]):
            share, value = shares.iloc[0], values.iloc[0]
            label = f"{name}, kept: {100 * share:.3g} %, faithfulness {value:.2f}"
            stars.append((label, place, scale.across(share), scale.up(value)))
        if order == "random":
            known = points[points["faithfulness_low"].notna()]
            there = scale.path(known["share"], known["faithfulness_low"])
            back = scale.path(known["share"][::-1], known["faithfulness_high"][::-1])
            band = f"{there}L{back[1:]}Z" if there else ""
    ends = scale.up(1), scale.up(0)
    return Panel(ablation, tuple(lines), tuple(stars), band, *ends, scale.ticks(), significant)
