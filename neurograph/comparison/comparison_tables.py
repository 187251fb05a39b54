"""Tables of a comparison: neurons, edges and paths of either circuit, with their differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurograph.comparison.circuit_arrays import EffectArray, Side
from neurograph.comparison.differences import Samples, paired_stderr
from neurograph.comparison.pairs import Pairs
from neurograph.effects.effect_table import TOTAL
from neurograph.matching.matching import Matching
from neurograph.model.layers import Neuron

__all__ = ["column_of", "compared_edges", "compared_neurons", "compared_paths"]

_EFFECTS = ["effect_a", "stderr_a", "effect_b", "stderr_b", "difference", "stderr"]


def compared_neurons(
    a: Side,
    b: Side,
    pairs: Pairs,
    samples: Sequence[Samples | None],
    matching: Matching,
    *,
    paired: bool,
) -> pd.DataFrame:
    """Table as `Comparison.neurons` gives it."""
    known = [
        {n: (float(s.effect[n]), float(s.stderr[n])) for n in pairs.known(i)}
        for i, s in enumerate((a, b))
    ]
    kept = [set(np.flatnonzero(side.kept).tolist()) for side in (a, b)]
    sampled = [{} if s is None else s.neurons for s in samples]
    effects = _effects(pairs, known, kept, sampled, paired=paired)
    neurons = [
        [None if n is None else s.neuron(n) for n in ns] for s, ns in ((a, pairs.a), (b, pairs.b))
    ]
    decided = {
        (m.a, i): (similarity, tied)
        for m in matching.layers
        for i, similarity, tied in zip(
            m.pairs[:, 0].tolist(), m.similarity.tolist(), m.tied.tolist(), strict=True
        )
    }
    alike = [
        (math.nan, False) if here is None or there is None else decided[here[:2]]
        for here, there in zip(*neurons, strict=True)
    ]
    names = [_name(a, b, here, there) for here, there in zip(*neurons, strict=True)]
    table = pd.DataFrame(
        {"neuron_a": column_of(neurons[0]), "neuron_b": column_of(neurons[1]), "name": names}
    )
    for letter, side, own in zip("ab", (a, b), neurons, strict=True):
        totals = [_total(side, neuron) for neuron in own]
        effects[f"{TOTAL.effect}_{letter}"] = [effect for effect, _ in totals]
        effects[f"{TOTAL.stderr}_{letter}"] = [stderr for _, stderr in totals]
    table = pd.concat([table, effects], axis=1)
    table["similarity"] = [similarity for similarity, _ in alike]
    table["tied"] = np.array([tied for _, tied in alike], dtype=bool)
    places = [(a, x) if x is not None else (b, y) for x, y in zip(pairs.a, pairs.b, strict=True)]
    table["counted"] = np.array([not side.is_end(number) for side, number in places], dtype=bool)
    return _by_change(table)


def _total(side: Side, neuron: Neuron | None) -> tuple[float, float]:
    """Total effect of a neuron and its standard error; NaN where it was not scored."""
    table = {} if neuron is None else side.circuit.scores.get(neuron.layer, {})
    if neuron is None or TOTAL.effect not in table:
        return math.nan, math.nan
    one = TOTAL.read(table).at(neuron[1:])
    return float(one.effect), float(one.stderr)


def compared_edges(
    a: Side, b: Side, pairs: Pairs, samples: Sequence[Samples | None], *, paired: bool
) -> pd.DataFrame:
    """Table as `Comparison.edges` gives it."""
    known = [
        dict(
            zip(
                map(tuple, s.edges.tolist()),
                zip(s.edge_effect.tolist(), s.edge_stderr.tolist(), strict=True),
                strict=True,
            )
        )
        for s in (a, b)
    ]
    sampled = [{} if s is None else s.edges for s in samples]
    effects = _effects(pairs, known, known, sampled, paired=paired)
    columns: dict[str, Any] = {}
    for letter, side, edges in (("a", a, pairs.a), ("b", b, pairs.b)):
        for place, end in enumerate(("source", "target")):
            columns[f"{end}_{letter}"] = column_of(
                [None if edge is None else side.neuron(edge[place]) for edge in edges]
            )
    ends = [
        [
            _name(a, b, here, there)
            for here, there in zip(columns[f"{end}_a"], columns[f"{end}_b"], strict=True)
        ]
        for end in ("source", "target")
    ]
    table = pd.DataFrame(columns)
    table["name"] = [" → ".join(names) for names in zip(*ends, strict=True)]
    return _by_change(pd.concat([table, effects], axis=1))


def compared_paths(
    a: Side, b: Side, pairs: Pairs, samples: Sequence[Samples | None], *, paired: bool
) -> pd.DataFrame:
    """Table as `Comparison.paths` gives it."""
    known = [
        {
            numbers: (path.effect, path.stderr)
            for numbers, path in zip(s.paths, s.circuit.strongest, strict=True)
        }
        for s in (a, b)
    ]
    sampled = [{} if s is None else s.paths for s in samples]
    effects = _effects(pairs, known, known, sampled, paired=paired)
    paths = [
        [None if path is None else tuple(s.neuron(n) for n in path) for path in listed]
        for s, listed in ((a, pairs.a), (b, pairs.b))
    ]
    table = pd.DataFrame({"path_a": column_of(paths[0]), "path_b": column_of(paths[1])})
    table["name"] = [
        " → ".join(
            _name(a, b, x, y)
            for x, y in zip(here or (None,) * len(there), there or (None,) * len(here), strict=True)
        )
        for here, there in zip(*paths, strict=True)
    ]
    return _by_change(pd.concat([table, effects], axis=1))


def column_of(items: Sequence[Any]) -> pd.Series:
    """Column of tuples, which pandas must not take for rows."""
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return pd.Series(column, dtype=object)


def _name(a: Side, b: Side, here: Neuron | None, there: Neuron | None) -> str:
    """What a neuron is called, by the first circuit that has it."""
    for side, neuron in ((a, here), (b, there)):
        if neuron is not None and neuron in side.circuit.graph:
            return side.circuit.name(neuron)
    return str(here if here is not None else there)


def _effects(
    pairs: Pairs,
    known: Sequence[Mapping[Any, tuple[float, float]]],
    kept: Sequence[Iterable[Any]],
    samples: Sequence[Mapping[Any, EffectArray]],
    *,
    paired: bool,
) -> pd.DataFrame:
    """Status, effects in both and their difference, a row for each pair.

    Where a circuit does not know an effect, it is that of the samples measured in its model.
    """
    rows = []
    for here, there in zip(pairs.a, pairs.b, strict=True):
        effects = [_effect(x, k, s) for x, k, s in zip((here, there), known, samples, strict=True)]
        (one, one_stderr), (other, other_stderr) = effects
        is_kept = here in kept[0], there in kept[1]
        status = "both" if all(is_kept) else "only_a" if is_kept[0] else "only_b"
        if status == "both" and one * other < 0:
            status = "flipped"
        stderr = math.hypot(one_stderr, other_stderr)
        if paired and here in samples[0] and there in samples[1]:
            stderr = paired_stderr(samples[0][here], samples[1][there])
        rows.append((status, one, one_stderr, other, other_stderr, other - one, stderr))
    return pd.DataFrame(rows, columns=["status", *_EFFECTS])


def _effect(
    item: Any, known: Mapping[Any, tuple[float, float]], samples: Mapping[Any, EffectArray]
) -> tuple[float, float]:
    effect, stderr = known.get(item, (math.nan, math.nan)) if item is not None else (math.nan,) * 2
    if math.isnan(effect) and item in samples:
        values = samples[item]
        return float(values.mean()), paired_stderr(np.zeros_like(values), values)
    return effect, stderr


def _by_change(table: pd.DataFrame) -> pd.DataFrame:
    """Sort by how much an effect changed; one that is known in one model alone is all change."""
    change = table["difference"].abs()
    change = change.fillna(table["effect_a"].abs()).fillna(table["effect_b"].abs())
    order = change.to_frame("change").assign(name=table["name"])
    order = order.sort_values(["change", "name"], ascending=[False, True], kind="stable").index
    return table.loc[order].reset_index(drop=True)
