"""Quality of screening: rank correlation and recall of estimates, where effects were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

__all__ = ["Screened", "Screening"]

_STRONGEST = 0.05  # the share of items whose recall is estimated


@dataclass(frozen=True, eq=False)
class Screened:
    """One screened set: its estimates, and what was measured of it.

    Attributes
    ----------
    estimates, effects : ndarray of float64, [items]
        Effects as estimated, and as far as known.
    measured : ndarray of bool, [items]
    spot : ndarray of int64
        Items measured because they were drawn at random from all.
    ranked : ndarray of int64
        Items measured because their estimates promised most.
    """

    estimates: np.ndarray
    effects: np.ndarray
    measured: np.ndarray
    spot: np.ndarray
    ranked: np.ndarray

    def spearman(self) -> float:
        """Rank correlation of estimates and effects over the random ones; NaN if all are equal."""
        one, other = self.estimates[self.spot], self.effects[self.spot]
        if len(one) < 3 or (one == one[0]).all() or (other == other[0]).all():
            return math.nan
        return float(scipy.stats.spearmanr(one, other).statistic)

    def found(self) -> tuple[float, float] | None:
        """How many the strongest are, and about how many of them were measured.

        The random ones that had not promised enough stand for all that were not measured; None
        where there are no such.
        """
        strength = np.abs(self.effects)
        beside = np.setdiff1d(self.spot, self.ranked)
        unseen = len(strength) - int(self.measured.sum())
        count = max(1.0, _STRONGEST * len(strength))
        if not unseen:
            return count, count
        if not len(beside):
            return None
        values = np.concatenate([strength[self.measured], strength[beside]])
        weights = np.ones(len(values))
        weights[-len(beside) :] = unseen / len(beside)
        seen = np.ones(len(values))
        seen[-len(beside) :] = 0
        order = np.argsort(-values, kind="stable")
        within = np.diff(weights[order].cumsum().clip(max=count), prepend=0.0)
        return count, float((within * seen[order]).sum())


@dataclass(frozen=True)
class Screening:
    """What was screened, what was verified, and how far to trust the screen.

    Attributes
    ----------
    scored, measured : int
        How many were scored in all, and how many of those by intervention.
    spearman : float or None
        Rank correlation of estimates and effects, of those measured at random; the mean over
        layers, by how many. None where nothing was screened, or all effects are equal.
    recall : float or None
        Estimated share of the strongest 5% that was measured; 1 where everything was. None where
        none were measured at random.
    blind : int
        How many of those scored are of layers where every estimate is 0, as no gradients pass or
        nothing moves: of these, random ones were measured.
    """

    scored: int
    measured: int
    spearman: float | None = None
    recall: float | None = 1.0
    blind: int = 0

    def __str__(self) -> str:
        if self.measured == self.scored:
            return f"all {self.scored:,} measured"
        text = f"{self.measured:,} of {self.scored:,} measured"
        if self.blind:
            text += (
                f"; {self.blind:,} had no estimate but 0, as no gradients pass or nothing moves: "
                "of these, random ones were measured"
            )
        if self.spearman is not None:
            text += f", the screen ranks with Spearman {self.spearman:.2f}"
        if self.recall is None:
            return f"{text}, the rest are estimates and the screen was not judged"
        return f"{text}, estimated recall of the strongest {_STRONGEST:.0%}: {self.recall:.2f}"

    @staticmethod
    def of(screened: Sequence[Screened], whole: int, estimated: int = 0) -> Screening:
        """Sum up sets that were screened, and so many items that were measured without.

        `estimated` were not asked to be measured: they do not speak for the screen.
        """
        scored = whole + estimated + sum(len(s.effects) for s in screened)
        measured = whole + sum(int(s.measured.sum()) for s in screened)
        ranks = [(s.spearman(), len(s.spot)) for s in screened]
        known = [(r, n) for r, n in ranks if not math.isnan(r)]
        weight = sum(n for _, n in known)
        spearman = sum(r * n for r, n in known) / weight if weight else None
        blind = sum(len(s.effects) for s in screened if not s.estimates.any())
        pairs = [pair for s in screened if (pair := s.found()) is not None]
        if not pairs:
            return Screening(
                scored, measured, spearman, None if screened or estimated else 1.0, blind
            )
        strongest, found = (sum(column) for column in zip(*pairs, strict=True))
        return Screening(scored, measured, spearman, found / strongest, blind)
