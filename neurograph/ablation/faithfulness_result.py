"""Faithfulness of circuits of every size, as tables, and the areas under its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy

from neurograph.ablation.completeness import Circuits, Size, incompleteness, minimality
from neurograph.ablation.intervals import interval, means_over_draws
from neurograph.ablation.rankings import Order
from neurograph.effects.contrast import Ablation
from neurograph.errors import OptionError

__all__ = ["Areas", "Faithfulness", "areas"]

_CURVE = ["ranking", "order", "ablation", "direction", "share", "components"]
_LINE = ["ranking", "order", "ablation"]


@dataclass(frozen=True)
class Areas:
    """Areas under and beside one curve of faithfulness.

    Attributes
    ----------
    cpr : float
        Area under the curve, of faithfulness against the share that is kept. The more the better,
        without a bound: a circuit that drives the target beyond the model's own gains by it.
    cmd : float
        Area between the curve and 1. The less the better; 0 for a circuit that does as the model
        does, at every size.
    average : float
        Mean faithfulness over the sizes.
    """

    cpr: float
    cmd: float
    average: float


def areas(shares: Sequence[float], faithfulness: Sequence[float]) -> Areas:
    """Sum a curve up, by the rule of the Mechanistic Interpretability Benchmark.

    Trapezoids over the shares on a linear axis, from the first share to the last (Mueller et al.
    2025, arXiv:2504.13151): circuit performance ratio and circuit-model distance.

    Parameters
    ----------
    shares : sequence of float
        Ascending; of a single one the areas are NaN.
    faithfulness : sequence of float
        At each.

    Examples
    --------
    >>> areas([0.0, 0.5, 1.0], [0.0, 1.5, 1.0])
    Areas(cpr=1.0, cmd=0.5, average=0.833...)
    """
    x, f = np.array(shares, dtype=float), np.array(faithfulness, dtype=float)
    if len(x) < 2:  # a point has no area
        return Areas(math.nan, math.nan, float(f.mean()))
    under = float(scipy.integrate.trapezoid(f, x))
    return Areas(under, float(scipy.integrate.trapezoid(np.abs(1 - f), x)), float(f.mean()))


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness:
    """What is left of a target with circuits kept, and with them ablated; by `faithfulness`.

    Attributes
    ----------
    draws : DataFrame
        A row for each circuit measured: ``ranking`` (name), ``order`` (``signed``: largest effect
        first; ``absolute``: largest size of effect first; ``kept``: what a circuit kept;
        ``random``, whose ranking is ``random`` too), ``ablation``, ``direction`` (``keep``: all
        but the circuit is ablated; ``knock_out``: the circuit alone is), ``share``,
        ``components``, ``draw``; ``value``, the mean target over the reference samples;
        ``faithfulness``; ``error``, the root mean square over these samples of the difference to
        the model's own target; with a metric, ``metric``.
    ends : DataFrame
        A row for each ablation: ``ablation``; ``full`` and ``empty``, the mean target of the whole
        model and with everything ablated; their ``difference`` with its ``stderr`` over the
        samples; ``significant``, whether the difference is not 0 at the level of confidence. Where
        it may be, faithfulness is a share of noise; where it is 0 up to rounding,
        faithfulness is NaN. With a metric, ``full_metric`` and ``empty_metric``.
    of : str
        ``neurons`` or ``edges``.
    components : int
        How many of them there are.
    target : str
        What the target is called.
    metric : str or None
        What the metric is called.
    sizes : tuple of float
        Shares of the components that are kept.
    confidence : float
        Level of the intervals.
    provenance : mapping
        Model hash, data fingerprint, options, versions, seed: how it was found. JSON-able.
    """

    draws: pd.DataFrame
    ends: pd.DataFrame
    of: str
    components: int
    target: str
    metric: str | None
    sizes: tuple[float, ...]
    confidence: float = 0.95
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _circuits: Circuits | None = field(default=None)

    def curves(self) -> pd.DataFrame:
        """Means over the draws, with Student's t confidence intervals.

        Returns
        -------
        DataFrame
            ``ranking, order, ablation, direction, share, components, draws``; ``value``,
            ``faithfulness``, ``error`` and, with a metric, ``metric``, each followed by its
            ``_low`` and ``_high``: where the mean over all possible random circuits may be. They
            are NaN for a single circuit, and know nothing of the chance that lies in the samples.
        """
        measured = ["value", "faithfulness", "error", *(["metric"] if self.metric else [])]
        return means_over_draws(self.draws, _CURVE, measured, self.confidence)

    def summary(self) -> pd.DataFrame:
        """A line for each ranking, order and ablation; for random circuits with intervals.

        Returns
        -------
        DataFrame
            ``ranking, order, ablation``; ``cpr``, ``cmd`` and ``average`` faithfulness of circuits
            kept alone, see `areas`; ``completeness``, the average faithfulness of what is left
            with them ablated, the smaller the more complete (Marks et al. 2024,
            arXiv:2403.19647). Each is followed by its ``_low`` and ``_high``: NaN but for random
            circuits, of which each draw is a nested series.
        """
        sized = self.draws[self.draws["share"].isin(self.sizes) & (self.draws["order"] != "kept")]
        names = ["cpr", "cmd", "average", "completeness"]
        rows = []
        for key, table in sized.groupby(_LINE, sort=False):
            found = np.array([_summed(draw) for _, draw in table.groupby("draw", sort=False)])
            row = list(key)
            for column in found.T:
                row += interval(column, self.confidence)
            rows.append(row)
        columns = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
        return pd.DataFrame(rows, columns=[*_LINE, *columns])

    def incompleteness(
        self,
        size: Size,
        *,
        ranking: str | None = None,
        order: Order = "signed",
        ablation: Ablation | None = None,
        draws: int = 20,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Say how alike circuit and model stay as random parts of the circuit are ablated.

        Parameters
        ----------
        size : float or "kept"
            The share of all components that the circuit is; or what a circuit kept.
        ranking : str, optional
            The first one by default.
        order : {"signed", "absolute"}
        ablation : str, optional
            One of those measured; the first by default.
        draws : int
            How many parts K of the circuit C, each component in K with probability one half.
        seed : int
            Chooses them.

        Returns
        -------
        DataFrame
            ``draw``, ``removed`` (size of K), the mean targets ``circuit`` m(C∖K) and ``model``
            m(M∖K), their distance ``incompleteness``, and that as a ``share`` of m(M) − m(∅). The
            mean over the draws is the score of Wang et al. 2023 (arXiv:2211.00593).
        """
        circuits = self._again()
        chosen = circuits.circuit(size, ranking, order)
        method = circuits.ablation(ablation)
        return circuits.ask(lambda m: incompleteness(m, chosen, method, draws, seed))

    def minimality(
        self,
        size: Size,
        *,
        ranking: str | None = None,
        order: Order = "signed",
        ablation: Ablation | None = None,
        most: int = 100,
        seed: int = 0,
    ) -> pd.DataFrame:
        """What each component does for one circuit, beside what others would do for it.

        Parameters
        ----------
        size, ranking, order, ablation
            As for `incompleteness`.
        most : int
            How many components of the circuit are tried, and how many others; if there are more,
            they are drawn at random.
        seed : int
            Chooses them.

        Returns
        -------
        DataFrame
            Where a component is; ``inside``, whether it is of the circuit; ``change``, by how much
            it raises the mean target of the circuit: with it less without it. The circuit's own
            come first, in both the largest changes. A circuit is minimal if all of its own do
            more than the others.
        """
        circuits = self._again()
        chosen = circuits.circuit(size, ranking, order)
        method = circuits.ablation(ablation)
        return circuits.ask(lambda m: minimality(m, chosen, method, most, seed))

    def _again(self) -> Circuits:
        if self._circuits is None:
            raise OptionError("this result has no model to measure on: call faithfulness() again")
        return self._circuits

    def __repr__(self) -> str:
        head = f"Faithfulness to {self.target!r} of circuits of {self.components} {self.of}"
        unclear = self.ends.loc[~self.ends["significant"], "ablation"]
        lines = [
            f"  {name}: the model does not differ significantly from nothing kept, so what follows "
            "of it are shares of noise: take a target about each sample's own answer"
            for name in unclear
        ]
        kept = self.draws[(self.draws["order"] == "kept") & (self.draws["direction"] == "keep")]
        lines += [
            f"  {row.ranking}, as kept ({row.components} of {self.components} {self.of}), "
            f"{row.ablation}: faithfulness {row.faithfulness:.3g}"
            for row in kept.itertuples()
        ]
        lines += [
            f"  {row.ranking}, {row.order}, {row.ablation}: CPR {row.cpr:.3g}, CMD {row.cmd:.3g}"
            for row in self.summary().itertuples()
        ]
        lines += [f"  note: {note}" for note in self.provenance.get("notes", ())]
        return "\n".join([head, *lines])


def _summed(draw: pd.DataFrame) -> tuple[float, ...]:
    """Areas and completeness of one series of circuits."""
    by_share = draw.pivot(index="share", columns="direction", values="faithfulness")
    found = areas(by_share.index.to_list(), by_share["keep"].to_list())
    return found.cpr, found.cmd, found.average, float(by_share["knock_out"].mean(skipna=False))
