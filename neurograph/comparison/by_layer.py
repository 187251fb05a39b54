"""What two circuits have in common layer by layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.comparison.null import chance
from neurograph.comparison.sides import Effects, Numbers, Side, share
from neurograph.matching.matching import Matching

__all__ = ["count_by_layer", "layer_table"]


def layer_table(
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
    shares = [share(np.where(side.counted, side.effect, 0.0)) for side in (a, b)]
    rows: list[tuple[Any, ...]] = []
    seen: tuple[set[str], set[str]] = set(), set()
    for place, match in enumerate(matching.layers):
        kept = _kept(a, match.a), _kept(b, match.b)
        either = sum(kept) - common[place]
        jaccards = null[:, place] / np.maximum(sum(kept) - null[:, place], 1)
        jaccard = common[place] / either if either else math.nan
        free = bool(either) and _is_free(a, match.a)
        rows.append(
            (
                match.a,
                match.b,
                *kept,
                int(common[place]),
                jaccard,
                float(jaccards.mean()) if free and len(null) else math.nan,
                chance(jaccard, jaccards) if free else math.nan,
                *(_share(*part) for part in ((a, shares[0], match.a), (b, shares[1], match.b))),
                float(np.nanmean(match.similarity))
                if not np.isnan(match.similarity).all()
                else math.nan,
                match.cka,
            )
        )
        seen[0].add(match.a)
        seen[1].add(match.b)
    for place, (side, weights) in enumerate(zip((a, b), shares, strict=True)):
        for layer, span in side.spans.items():
            if layer not in seen[place] and span.indices:
                ends = (layer, None) if place == 0 else (None, layer)
                kept = (_kept(side, layer), 0) if place == 0 else (0, _kept(side, layer))
                part = _share(side, weights, layer)
                own = (part, math.nan) if place == 0 else (math.nan, part)
                rows.append((*ends, *kept, 0, *(math.nan,) * 3, *own, math.nan, math.nan))
    columns = [
        "layer_a",
        "layer_b",
        "kept_a",
        "kept_b",
        "common",
        "jaccard",
        "null_mean",
        "p_value",
    ]
    columns += ["share_a", "share_b", "similarity", "cka"]
    return pd.DataFrame(rows, columns=columns)


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


def _share(side: Side, weights: Effects, layer: str) -> float:
    """Share of the circuit's effects that a layer has; NaN where the target names its neurons."""
    span = side.spans[layer]
    return (
        float(np.abs(weights[span.start : span.stop]).sum()) if _is_free(side, layer) else math.nan
    )
