"""What the page shows of faithfulness: a table of areas, and curves as paths of an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from neurograph.ablation.faithfulness_result import Faithfulness

__all__ = ["Card", "card"]

_WIDTH, _HEIGHT = 300.0, 96.0  # of one panel's axes, in units of the SVG
_LOW, _HIGH = -1.0, 2.0  # beyond, a curve leaves its panel
_RANKINGS = 6  # so many can be told apart
_ORDERS = ("signed", "absolute")


@dataclass(frozen=True)
class Line:
    """One curve: what it is, how it looks, and its path; `place` is that of its ranking."""

    label: str
    kind: str
    place: int
    path: str


@dataclass(frozen=True)
class Panel:
    """The curves of one ablation; heights of the two ends, and the ticks of the shares."""

    ablation: str
    lines: tuple[Line, ...]
    stars: tuple[tuple[str, int, float, float], ...]
    band: str
    full: float
    empty: float
    ticks: tuple[tuple[float, str], ...]
    told: bool


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


def card(found: Faithfulness) -> Card:
    """Lay out what the page shows: of circuits kept alone, the areas and the curves."""
    curves, summary = found.curves(), found.summary()
    curves = curves[curves["direction"] == "keep"]
    names = list(dict.fromkeys(curves.loc[curves["order"] != "random", "ranking"]))[:_RANKINGS]
    held = curves[["faithfulness", "faithfulness_low", "faithfulness_high"]].to_numpy()
    held = held[np.isfinite(held)]
    low, high = min([0.0, *held]), max([1.0, *held])
    scale = _Scale(float(curves["share"].min()), max(low, _LOW), min(high, _HIGH))
    ablations = list(dict.fromkeys(curves["ablation"]))
    told = found.ends.set_index("ablation")["told"]
    keys = [
        (order, place, f"{name}, {order}")
        for place, name in enumerate(names)
        for order in (*_ORDERS, "kept")
        if ((curves["ranking"] == name) & (curves["order"] == order)).any()
    ]
    if (curves["order"] == "random").any():
        keys.append(("random", 0, "random"))
    return Card(
        found.target,
        found.of,
        f"{found.components:,}",
        tuple((name, _rows(summary[summary["ablation"] == name])) for name in ablations),
        tuple(
            _panel(rows, str(name), names, scale, bool(told.get(name, True)))
            for name, rows in curves.groupby("ablation", sort=False)
        ),
        tuple(keys),
        cut=bool(low < _LOW or high > _HIGH),
    )


def _rows(summary: pd.DataFrame) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (
            "random" if row.order == "random" else f"{row.ranking}, {row.order}",
            _told(row.cpr, row.cpr_low),
            _told(row.cmd, row.cmd_low),
        )
        for row in summary.itertuples()
    )


def _told(value: float, low: float) -> str:
    if math.isnan(value):
        return "–"
    written = f"{value:.2f}".replace("-", "−")
    return written if math.isnan(low) else f"{written} ± {value - low:.2f}"


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
        found = [
            f"{self.across(share)} {self.up(value)}"
            for share, value in zip(shares, values, strict=True)
            if np.isfinite(value)
        ]
        return "M" + "L".join(found) if found else ""

    def ticks(self) -> tuple[tuple[float, str], ...]:
        shares = [10.0**power for power in range(-6, 1) if 10.0**power >= self.first * 0.999]
        return tuple((self.across(share), f"{100 * share:g} %") for share in shares)


def _panel(
    curves: pd.DataFrame, ablation: str, names: Sequence[str], scale: _Scale, told: bool
) -> Panel:
    lines, stars = [], []
    curves = curves.sort_values("share")
    for place, name in enumerate(names):
        for order, rows in curves[curves["ranking"] == name].groupby("order", sort=False):
            values = rows["faithfulness"]
            if order in _ORDERS:
                path = scale.path(rows["share"], values)
                lines.append(Line(f"{name}, {order}", str(order), place, path))
            elif order == "kept" and np.isfinite(values.iloc[0]):
                share, value = rows["share"].iloc[0], values.iloc[0]
                label = f"{name}, kept: {100 * share:.3g} %, faithfulness {value:.2f}"
                stars.append((label, place, scale.across(share), scale.up(value)))
    random = curves[curves["order"] == "random"]
    if len(random):
        path = scale.path(random["share"], random["faithfulness"])
        lines.insert(0, Line("random", "random", 0, path))
    known = random[random["faithfulness_low"].notna()]
    there = scale.path(known["share"], known["faithfulness_low"])
    back = scale.path(known["share"][::-1], known["faithfulness_high"][::-1])
    band = f"{there}L{back[1:]}Z" if there else ""
    ends = scale.up(1), scale.up(0)
    return Panel(ablation, tuple(lines), tuple(stars), band, *ends, scale.ticks(), told)
