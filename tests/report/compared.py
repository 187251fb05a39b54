"""Comparisons with made-up numbers, as many and as odd as a page must bear."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from neurograph.circuit import Circuit
from neurograph.comparison.matching import LayerMatch, Matching
from neurograph.comparison.result import Comparison

MEASURES = (
    "neuron_jaccard neuron_weighted_jaccard edge_jaccard edge_weighted_jaccard path_jaccard "
    "spearman sign_agreement"
).split()
_EFFECTS = ["status", "effect_a", "stderr_a", "effect_b", "stderr_b", "difference", "stderr"]

Known = Mapping[Any, Mapping[str, Any]]


def by_index(a: Circuit, b: Circuit, layers: Mapping[str, str] | None = None) -> Matching:
    """Match neurons of equal index in layers of one name, or in those named, with some ties."""
    rng = np.random.default_rng(0)
    names = {layer: layer for layer in a.layers} if layers is None else layers
    matches = []
    for one, other in names.items():
        sizes = [g.layers.nodes[x]["neurons"] for g, x in ((a, one), (b, other))]
        pairs = np.stack([np.arange(min(sizes))] * 2, axis=1)
        similarity = rng.uniform(0.4, 1, len(pairs))
        tied = np.zeros(len(pairs), dtype=bool)
        tied[:2] = len(pairs) > 3
        ties = (((0, 1), (0, 1)),) if tied.any() else ()
        matches.append(LayerMatch(one, other, pairs, similarity, tied, ties, 0.83))
    return Matching("activation", tuple(matches))


def comparison_of(
    a: Circuit,
    b: Circuit,
    matching: Matching | None = None,
    names: tuple[str, str] = ("seed 0", "seed 1"),
    draws: int = 200,
    transplants: bool = True,
) -> Comparison:
    """Build a comparison as `compare` does, with drawn numbers where it would measure."""
    matching = by_index(a, b) if matching is None else matching
    neurons, edges, paths = _neurons(a, b, matching), _edges(a, b, matching), _paths(a, b, matching)
    measures, null = _measures(neurons, edges, paths, draws)
    return Comparison(
        a,
        b,
        names,
        matching,
        measures,
        null,
        _layers(a, b, matching, neurons),
        _transplants() if transplants else _transplants().iloc[:0],
        ("errors are not paired: the circuits were searched on other samples",),
        {"match": matching.kind, "draws": draws, "seed": 0},
        neurons,
        edges,
        paths,
    )


def _effects(item: Any, other: Any, known: tuple[Known, Known]) -> tuple[Any, ...]:
    """Status, effects and difference of something that either circuit has."""
    nothing = {"effect": math.nan, "stderr": math.nan}
    one, two = known[0].get(item, nothing), known[1].get(other, nothing)
    has = item in known[0], other in known[1]
    status = "both" if all(has) else "only_a" if has[0] else "only_b"
    if status == "both" and one["effect"] * two["effect"] < 0:
        status = "flipped"
    return (
        *(status, one["effect"], one["stderr"], two["effect"], two["stderr"]),
        two["effect"] - one["effect"],
        math.hypot(one["stderr"], two["stderr"]),
    )


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    change = [
        abs(r["difference"]) if r["difference"] == r["difference"] else
        abs(r["effect_a"] if r["effect_a"] == r["effect_a"] else r["effect_b"])
        for r in rows
    ]  # fmt: skip
    order = sorted(range(len(rows)), key=lambda i: (-change[i], rows[i]["name"]))
    return pd.DataFrame([rows[i] for i in order], dtype=object if not rows else None)


def _pairs(ours: Any, theirs: Any, there: Any, back: Any) -> list[tuple[Any, Any]]:
    """All of a's with what they are in b, then what only b has."""
    found = [(item, there(item)) for item in ours]
    seen = {other for _, other in found if other is not None}
    return [*found, *((back(other), other) for other in theirs if other not in seen)]


def _neurons(a: Circuit, b: Circuit, matching: Matching) -> pd.DataFrame:
    known = dict(a.graph.nodes(data=True)), dict(b.graph.nodes(data=True))
    pairs = _pairs(known[0], known[1], matching.to_b, matching.to_a)
    alike = matching.pairs().set_index(["layer_a", "index_a"])
    rows = []
    for here, there in pairs:
        source, neuron = (a, here) if here in known[0] else (b, there)
        row: dict[str, Any] = {"neuron_a": here, "neuron_b": there, "name": source.name(neuron)}
        row |= dict(zip(_EFFECTS, _effects(here, there, known), strict=True))
        matched = here is not None and there is not None
        row["similarity"] = float(alike.at[here[:2], "similarity"]) if matched else math.nan
        row["tied"] = bool(matched and alike.at[here[:2], "tied"])
        rows.append(row)
    columns = ["neuron_a", "neuron_b", "name", *_EFFECTS, "similarity", "tied"]
    return _table(rows).reindex(columns=columns)


def _edges(a: Circuit, b: Circuit, matching: Matching) -> pd.DataFrame:
    known = (
        {e: a.graph.edges[e] for e in a.graph.edges},
        {e: b.graph.edges[e] for e in b.graph.edges},
    )
    move = [lambda edge, to=to: tuple(map(to, edge)) for to in (matching.to_b, matching.to_a)]
    rows = []
    for here, there in _pairs(known[0], known[1], *move):
        row: dict[str, Any] = dict(zip(("source_a", "target_a"), here, strict=True))
        row |= dict(zip(("source_b", "target_b"), there, strict=True))
        source, edge = (a, here) if here in known[0] else (b, there)
        row["name"] = " → ".join(map(source.name, edge))
        rows.append(row | dict(zip(_EFFECTS, _effects(here, there, known), strict=True)))
    columns = ["source_a", "target_a", "source_b", "target_b", "name", *_EFFECTS]
    return _table(rows).reindex(columns=columns)


def _paths(a: Circuit, b: Circuit, matching: Matching) -> pd.DataFrame:
    known = tuple(
        {p.neurons: {"effect": p.effect, "stderr": p.stderr} for p in circuit.strongest}
        for circuit in (a, b)
    )

    def mover(to: Any) -> Any:
        def move(path: Any) -> Any:
            found = tuple(map(to, path))
            return None if None in found else found

        return move

    rows = []
    pairs = _pairs(known[0], known[1], mover(matching.to_b), mover(matching.to_a))
    for here, there in pairs:
        source, path = (a, here) if here in known[0] else (b, there)
        row: dict[str, Any] = {"path_a": here, "path_b": there}
        row["name"] = " → ".join(map(source.name, path))
        rows.append(row | dict(zip(_EFFECTS, _effects(here, there, known), strict=True)))
    return _table(rows).reindex(columns=["path_a", "path_b", "name", *_EFFECTS])


def _measures(
    neurons: pd.DataFrame, edges: pd.DataFrame, paths: pd.DataFrame, draws: int
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)

    def jaccard(table: pd.DataFrame) -> float:
        status = table["status"]
        return float(status.isin(["both", "flipped"]).mean()) if len(table) else math.nan

    values = [jaccard(t) for t in (neurons, neurons, edges, edges, paths)] + [0.42, math.nan]
    null = {name: rng.beta(4, 14, draws) for name in MEASURES}
    null["spearman"] = rng.normal(0, 0.2, draws)
    rows = []
    for name, value in zip(MEASURES, values, strict=True):
        drawn = null[name]
        known = len(drawn) and not math.isnan(value)
        low, high = np.quantile(drawn, [0.025, 0.975]) if known else (math.nan, math.nan)
        p = (1 + (drawn >= value).sum()) / (1 + draws) if known else math.nan
        mean = float(drawn.mean()) if known else math.nan
        rows.append((value, mean, float(low), float(high), float(p)))
    columns = ["value", "null_mean", "null_low", "null_high", "p_value"]
    index = pd.Index(MEASURES, name="measure")
    return pd.DataFrame(rows, index=index, columns=columns), null


def _layers(a: Circuit, b: Circuit, matching: Matching, neurons: pd.DataFrame) -> pd.DataFrame:
    def kept(circuit: Circuit, layer: str | None) -> int:
        return sum(n.layer == layer for n in circuit.graph)

    ends = [(m.a, m.b) for m in matching.layers]
    ends += [(x, None) for x in a.layers if x not in {m.a for m in matching.layers}]
    ends += [(None, x) for x in b.layers if x not in {m.b for m in matching.layers}]
    common = neurons[neurons["status"].isin(["both", "flipped"])]
    rows = []
    for one, other in ends:
        both = sum(n.layer == one for n in common["neuron_a"])
        either = kept(a, one) + kept(b, other) - both
        pair = one is not None and other is not None
        rows.append(
            (one, other, kept(a, one), kept(b, other), both)
            + ((both / (either or 1), 0.1, 0.03) if pair else (math.nan,) * 3)
            + (math.nan if one is None else 0.4, math.nan if other is None else 0.25)
            + ((0.8, 0.83) if pair else (math.nan, math.nan))
        )
    columns = "layer_a layer_b kept_a kept_b common jaccard null_mean p_value share_a share_b"
    return pd.DataFrame(rows, columns=[*columns.split(), "similarity", "cka"])


def _transplants() -> pd.DataFrame:
    columns = (
        "into kept neurons value faithfulness faithfulness_low faithfulness_high error p_value"
    )
    nan = math.nan
    rows = [
        ("b", "own", 19, 2.0, 0.91, nan, nan, 0.3, nan),
        ("b", "other", 17, 1.8, 0.83, nan, nan, 0.41, 0.048),
        ("b", "random", 17, 0.3, 0.12, 0.03, 0.25, 2.2, nan),
        ("a", "own", 17, 2.0, 1.04, nan, nan, 0.2, nan),
        ("a", "other", 19, -0.1, -0.06, nan, nan, 2.4, 0.62),
        ("a", "random", 19, 0.3, 0.09, -0.2, 0.3, 2.3, nan),
    ]
    return pd.DataFrame(rows, columns=columns.split())


def without_layer(circuit: Circuit, layer: str) -> Circuit:
    """Leave a layer out of a circuit and of its model, as another architecture would have none."""
    layers = circuit.layers.copy()
    for before, after in itertools.product(layers.pred[layer], layers.succ[layer]):
        layers.add_edge(before, after)
    layers.remove_node(layer)
    graph: nx.DiGraph = circuit.graph.copy()
    graph.remove_nodes_from([n for n in circuit.graph if n.layer == layer])
    kept = tuple(p for p in circuit.strongest if all(n in graph for n in p.neurons))
    return Circuit(graph, layers, circuit.target, kept, {}, circuit.provenance)
