"""Overlap of two circuits layer by layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.comparison.circuit_arrays import EffectArray, Numbers, Side, share
from neurograph.comparison.null import chance
from neurograph.matching.matching import Matching

__all__ = ["compared_layers", "count_by_layer"]

_COUNTS = dict.fromkeys(("kept_a", "kept_b", "common"), 0)
_UNKNOWN = dict.fromkeys(
    ("jaccard", "null_mean", "p_value", "share_a", "share_b", "similarity", "cka"), math.nan
)
_ALONE: dict[str, Any] = {"layer_a": None, "layer_b": None, **_COUNTS, **_UNKNOWN}
"""The columns, with what they hold of a layer without a partner."""


def compared_layers(
    a: Side, b: Side, matching: Matching, common: Numbers, null: NDArray[np.int64]
) -> pd.DataFrame:
    """Table as `Comparison.layers` has it.

    Parameters
    ----------
    a, b : Side
    matching : Matching
    common : ndarray of int64, [pairs of layers]
        How many neurons both keep, see `count_by_layer`.
    null : ndarray of int64, [draws, pairs of layers]
        The same by chance.
    """
    sides = {"a": a, "b": b}
    shares = {x: share(np.where(side.counted, side.effect, 0.0)) for x, side in sides.items()}

    def own(letter: str, layer: str) -> dict[str, Any]:
        return {
            f"layer_{letter}": layer,
            f"kept_{letter}": _kept(sides[letter], layer),
            f"share_{letter}": _share(sides[letter], shares[letter], layer),
        }

    rows = []
    for match, both, drawn in zip(matching.layers, common.tolist(), null.T, strict=True):
        row = own("a", match.a) | own("b", match.b)
        beside = _beside_chance(row["kept_a"] + row["kept_b"], both, drawn, _is_free(a, match.a))
        known = match.similarity[~np.isnan(match.similarity)]
        similarity = float(known.mean()) if len(known) else math.nan
        rows.append(_ALONE | row | beside | {"similarity": similarity, "cka": match.cka})
    for letter, side in sides.items():
        matched = {getattr(match, letter) for match in matching.layers}
        alone = [x for x, span in side.spans.items() if span.indices and x not in matched]
        rows += [_ALONE | own(letter, layer) for layer in alone]
    return pd.DataFrame(rows, columns=[*_ALONE])


def _beside_chance(kept: int, common: int, null: NDArray[np.int64], free: bool) -> dict[str, float]:
    """The share of the kept neurons of two layers that is common, and what chance says of it."""
    either = kept - common
    jaccard = common / either if either else math.nan
    overlap = {"common": common, "jaccard": jaccard}
    if not either or not free:
        return overlap
    by_chance = null / np.maximum(kept - null, 1)
    mean = float(by_chance.mean()) if len(null) else math.nan
    return overlap | {"null_mean": mean, "p_value": chance(jaccard, by_chance)}


def count_by_layer(a: Side, b: Side, matching: Matching, partner: Numbers) -> Numbers:
    """How many kept neurons each pair of layers has in common."""
    both = np.flatnonzero(b.kept & (partner >= 0))
    both = both[a.kept[partner[both]]]
    return np.array(
        [
            int((_inside(a, m.a, partner[both]) & _inside(b, m.b, both)).sum())
            for m in matching.layers
        ],
        dtype=np.int64,
    )


def _inside(side: Side, layer: str, numbers: Numbers) -> NDArray[np.bool_]:
    span = side.spans[layer]
    return (numbers >= span.start) & (numbers < span.stop)


def _kept(side: Side, layer: str) -> int:
    span = side.spans[layer]
    return int(side.kept[span.start : span.stop].sum())


def _is_free(side: Side, layer: str) -> bool:
    return side.spans[layer] in set(side.free())


def _share(side: Side, weights: EffectArray, layer: str) -> float:
    """Share of the circuit's effects that a layer has; NaN where the target names its neurons."""
    span = side.spans[layer]
    return (
        float(np.abs(weights[span.start : span.stop]).sum()) if _is_free(side, layer) else math.nan
    )
