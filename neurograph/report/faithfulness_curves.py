"""Curves of faithfulness as pages and figures draw them: which there are, and how high they go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CUT", "Curve", "curve_limits", "curve_looks", "curves_of", "rankings_of"]

CUT = (-1.0, 2.0)  # beyond, a curve leaves its panel
_ORDERS = ("signed", "absolute", "kept")


class Curve(NamedTuple):
    """One curve: of a ranking in an order, of what it kept, or of random circuits.

    Attributes
    ----------
    order : {"signed", "absolute", "kept", "random"}
    place : int
        Of its ranking among those drawn: its colour.
    ranking : str
    points : DataFrame
        Rows of `Faithfulness.curves`, by ascending share.
    """

    order: str
    place: int
    ranking: str
    points: pd.DataFrame


def rankings_of(table: pd.DataFrame) -> list[str]:
    """Names of the rankings that there are curves of, random circuits aside."""
    return list(dict.fromkeys(table.loc[table["order"] != "random", "ranking"]))


def curves_of(table: pd.DataFrame, rankings: Sequence[str]) -> Iterator[Curve]:
    """Yield the curves of one panel, from the back to the front."""
    table = table.sort_values("share", kind="stable")
    random = table[table["order"] == "random"]
    if len(random):
        yield Curve("random", 0, "random", random)
    for place, ranking in enumerate(rankings):
        own = table[table["ranking"] == ranking]
        for order in _ORDERS:
            points = own[own["order"] == order]
            if len(points):
                yield Curve(order, place, ranking, points)


def curve_looks(table: pd.DataFrame, rankings: Sequence[str]) -> list[tuple[str, int, str]]:
    """Order, place and ranking of each look in all panels, as a legend lists them."""
    looks = [(curve.order, curve.place, curve.ranking) for curve in curves_of(table, rankings)]
    return sorted(looks, key=lambda look: look[0] == "random")


def curve_limits(table: pd.DataFrame) -> tuple[float, float, bool]:
    """Limits that hold 0, 1 and all curves within `CUT`, and whether any goes further."""
    held = table[["faithfulness", "faithfulness_low", "faithfulness_high"]].to_numpy()
    held = held[np.isfinite(held)]
    low, high = min([0.0, *held]), max([1.0, *held])
    return max(low, CUT[0]), min(high, CUT[1]), bool(low < CUT[0] or high > CUT[1])
