"""The whole backward search equals one written out slowly on the hooks-only reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import neurograph as ng
from neurograph.discovery import frontier
from neurograph.effects.selection import SIGNS, sign_of
from neurograph.model.layers import Neuron
from tests import zoo
from tests.reference import TARGET, Reference

KEEP = 2

NETWORKS: dict[str, Callable[[int], zoo.Sample]] = {
    "mlp": lambda seed: zoo.mlp((4, 6, 5, 1), "tanh", False, seed, torch.float64),
    "residual": lambda seed: zoo.residual_mlp(4, 1, seed, torch.float64),
    "cnn": lambda seed: zoo.branched_cnn(3, 1, seed, torch.float64),
    "shared": lambda seed: zoo.shared_layer(4, 1, seed, torch.float64),
    "attention": lambda seed: zoo.attention(4, 1, seed, torch.float64),
}


Effect = tuple[float, float]
Ways = dict[str, dict[str, list[Effect]]]


def strongest(effects: list[Effect], sense: int) -> list[int]:
    """The neurons to keep of one sign: farther from zero than their error, at most KEEP."""
    certain = [i for i, (e, se) in enumerate(effects) if e * sense > max(se, 0)]
    return sorted(certain, key=lambda i: -abs(effects[i][0]))[:KEEP]


def slow_search(reference: Reference) -> tuple[dict[str, set[int]], Ways]:
    """The search by its definition, a layer and a neuron at a time: what is kept, all effects."""
    kept: dict[str, set[int]] = {}
    found: Ways = {}
    layers = ["input", *reference.layers]
    for layer in reversed(layers):
        readers = reference.readers(layer)

        def seen(sign: str, readers: set[str] = readers) -> dict:
            """The kept neurons that raise the target in total, those that lower it, or all."""
            through: dict = {}
            for reader in readers - {TARGET}:
                signs = {
                    i: "negative" if found[reader]["total"][i][0] < 0 else "positive"
                    for i in kept.get(reader, ())
                }
                chosen = sorted(i for i in signs if sign in ("all", signs[i]))
                through |= {reader: chosen} if chosen else {}
            return through | ({TARGET: None} if TARGET in readers and sign != "negative" else {})

        def effects(measure: Callable, layer: str = layer) -> list[Effect]:
            return [
                reference.effect(lambda value, i=i: measure(layer, i, value), levels)
                for i, levels in enumerate(reference.levels[layer])
            ]

        ways = {sign: seen(sign) for sign in ("positive", "negative", "all")}
        found[layer] = {
            sign: effects(lambda *at, through=through: reference.through(*at, through))
            for sign, through in ways.items()
            if through
        }
        found[layer]["total"] = effects(reference.total)
        rankings = [found[layer][sign] for sign in SIGNS if sign in found[layer]]
        kept[layer] = {i for effects in rankings for s in (1, -1) for i in strongest(effects, s)}
    return kept, found


def reference_for(sample: zoo.Sample, X: torch.Tensor, positions: list[int]) -> Reference:
    """The reference on a few samples, with quantile levels from all the data."""
    network = sample.network()
    reference = Reference(network, {"x": X[positions]})
    every = Reference(network, {"x": X}).background
    reference.set_levels(
        {name: reference.quantiles(name, every[name], (0.05, 0.95)) for name in every}
    )
    return reference


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", NETWORKS)
def test_search_equals_the_slow_search(kind: str, seed: int) -> None:
    sample = NETWORKS[kind](seed)
    X = sample.data(25, seed)
    circuit = ng.search(sample.model, X, 1, keep=f"top:{KEEP}", reference=5, progress=False)
    reference = reference_for(sample, X, circuit.provenance["data"]["reference"])
    kept, found = slow_search(reference)
    wanted = {Neuron(layer, i) for layer, some in kept.items() for i in some}
    assert set(circuit.graph) == wanted
    keys = {"positive": "through_positive_", "negative": "through_negative_", "all": ""}
    keys["total"] = "total_"
    for layer, ways in found.items():
        table = circuit.scores[layer]
        for way, effects in ways.items():
            got = np.stack([table[f"{keys[way]}effect"], table[f"{keys[way]}stderr"]], axis=1)
            np.testing.assert_allclose(got, effects, rtol=1e-8, atol=1e-9)
        for neuron in (n for n in wanted if n.layer == layer):
            data = circuit.graph.nodes[neuron]
            for way in ways:
                got = data[f"{keys[way]}effect"], data[f"{keys[way]}stderr"]
                assert got == pytest.approx(ways[way][neuron.index], rel=1e-8, abs=1e-9)
            assert data["sign"] == sign_of(data["effect"])
    for writer, reader, data in circuit.graph.edges(data=True):
        seen = {reader.layer: [reader.index]}
        effect, _ = reference.effect(
            lambda value, w=writer, seen=seen: reference.through(*w, value, seen),
            reference.levels[writer[0]][writer[1]],
        )
        assert data["effect"] == pytest.approx(effect, rel=1e-8, abs=1e-9)
    for path in circuit.strongest[:5]:
        (layer, index), *_ = path.neurons
        effect, _ = reference.effect(
            lambda value, path=path: reference.path(path.neurons, value),
            reference.levels[layer][index],
        )
        assert path.effect == pytest.approx(effect, rel=1e-8, abs=1e-9)


def test_too_many_edges_are_cut_to_the_strongest_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = zoo.mlp((4, 12, 10, 1), "tanh", False, 0, torch.float64)
    x = sample.data(60, 0)
    options: dict = {"keep": "share:1", "paths": 0, "progress": False}
    whole = ng.search(sample.model, x, 1, **options).edges()
    monkeypatch.setattr(frontier, "_MOST_EDGES", 20)
    circuit = ng.search(sample.model, x, 1, **options)
    assert circuit.edges()["effect"].tolist() == whole["effect"].tolist()[:20]
    assert len(circuit.graph) == len(ng.search(sample.model, x, 1, **options).graph)
    assert f"only the strongest 20 of {len(whole)} edges are in the circuit" in str(circuit)
