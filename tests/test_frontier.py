"""The whole backward search equals one written out slowly on the hooks-only reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import neurograph as ng
from neurograph.layers import Neuron
from neurograph.selection import SIGNS
from tests import zoo
from tests.reference import TARGET, Reference

KEEP = 2
Kept = dict[str, dict[str, dict[int, tuple[float, float]]]]

NETWORKS: dict[str, Callable[[int], zoo.Sample]] = {
    "mlp": lambda seed: zoo.mlp((4, 6, 5, 1), "tanh", False, seed, torch.float64),
    "residual": lambda seed: zoo.residual_mlp(4, 1, seed, torch.float64),
    "cnn": lambda seed: zoo.branched_cnn(3, 1, seed, torch.float64),
    "shared": lambda seed: zoo.shared_layer(4, 1, seed, torch.float64),
    "attention": lambda seed: zoo.attention(4, 1, seed, torch.float64),
}


def strongest(effects: list[tuple[float, float]], sense: int) -> list[int]:
    """The neurons to keep of one sign: farther from zero than their error, at most KEEP."""
    certain = [i for i, (e, se) in enumerate(effects) if e * sense > max(se, 0)]
    return sorted(certain, key=lambda i: -abs(effects[i][0]))[:KEEP]


def slow_search(reference: Reference) -> Kept:
    """The search by its definition, a layer and a neuron at a time."""
    kept: Kept = {sign: {} for sign in SIGNS}
    readers = {layer: reference.readers(layer) for layer in ["input", *reference.layers]}
    for layer in reversed(["input", *reference.layers]):
        starts = readers[layer] == {TARGET} or not any(
            reader in kept[sign] for sign in SIGNS for reader in readers[layer]
        )
        for sign, sense in (("positive", 1), ("negative", -1)):
            through: dict = {r: list(kept[sign][r]) for r in readers[layer] if r in kept[sign]}
            if TARGET in readers[layer]:
                through[TARGET] = None
            if not through:
                continue
            effects = [
                reference.effect(
                    lambda value, at=(layer, i), seen=through: reference.through(*at, value, seen),
                    reference.levels[layer][i],
                )
                for i in range(len(reference.levels[layer]))
            ]
            senses = (1, -1) if starts else (sense,)
            chosen = [i for s in senses for i in strongest(effects, s)]
            if chosen:
                kept[sign][layer] = {i: effects[i] for i in chosen}
    return kept


def reference_for(sample: zoo.Sample, X: torch.Tensor, positions: list[int]) -> Reference:
    """The reference on a few samples, with quantile levels from all the data."""
    network = sample.network()
    reference = Reference(network, {"x": X[positions]})
    every = Reference(network, {"x": X}).background
    reference.set_levels(
        {name: reference.quantiles(name, every[name], (0.05, 0.95)) for name in every}
    )
    return reference


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", NETWORKS)
def test_search_equals_the_slow_search(kind: str, seed: int) -> None:
    sample = NETWORKS[kind](seed)
    X = sample.data(25, seed)
    circuit = ng.search(sample.model, X, 1, keep=f"top:{KEEP}", reference=5, progress=False)
    reference = reference_for(sample, X, circuit.provenance["data"]["reference"])
    kept = slow_search(reference)
    for sign in SIGNS:
        wanted = {
            Neuron(layer, i): e for layer, found in kept[sign].items() for i, e in found.items()
        }
        nodes = circuit.graph.nodes(data=True)
        found = {n: d[f"{sign}_effect"] for n, d in nodes if f"{sign}_effect" in d}
        assert found.keys() == wanted.keys()
        for neuron, (effect, stderr) in wanted.items():
            assert found[neuron] == pytest.approx(effect, rel=1e-8, abs=1e-9)
            got = circuit.graph.nodes[neuron][f"{sign}_stderr"]
            assert got == pytest.approx(stderr, rel=1e-8, abs=1e-9)
    for neuron, data in circuit.graph.nodes(data=True):
        total, _ = reference.effect(
            lambda value, n=neuron: reference.total(*n, value),
            reference.levels[neuron[0]][neuron[1]],
        )
        assert data["total_effect"] == pytest.approx(total, rel=1e-8, abs=1e-9)
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
