"""Every effect the library returns equals the hooks-only reference."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurograph.effects.exact import node_effects, path_effects, total_effects
from neurograph.model.layers import Neuron
from neurograph.questions.study import Study
from tests import zoo
from tests.case import Case, edge_effects
from tests.reference import TARGET

CONTRASTS = ["quantiles", (0.25, 0.75), "sweep", "mean", "zero", "counterfactual", "resample"]
BACKGROUNDS = ["data", "mean", "zero"]
many_examples = settings(max_examples=30, suppress_health_check=list(HealthCheck))
dtypes = st.sampled_from([torch.float64, torch.float32])
seeds = st.integers(0, 10_000)


@st.composite
def samples(draw: st.DrawFn) -> zoo.Sample:
    dtype, seed = draw(dtypes), draw(seeds)
    kind = draw(st.sampled_from(["mlp", "mlp", "residual", "cnn", "shared", "attention"]))
    outputs = draw(st.integers(1, 3))
    width = draw(st.integers(2, 4))
    if kind == "mlp":
        widths = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
        activation = draw(st.sampled_from(sorted(zoo.ACTIVATIONS)))
        return zoo.mlp((*widths, outputs), activation, draw(st.booleans()), seed, dtype)
    if kind == "residual":
        return zoo.residual_mlp(width, outputs, seed, dtype)
    if kind == "cnn":
        return zoo.branched_cnn(width, outputs, seed, dtype)
    if kind == "shared":
        return zoo.shared_layer(width, outputs, seed, dtype)
    return zoo.attention(4, outputs, seed, dtype)


def case_of(
    sample: zoo.Sample, contrast: str | tuple[float, float] = "quantiles", background: str = "data"
) -> Case:
    """The library gets an output's index, and the reference the network's callable."""
    target = sample.outputs - 1
    index = 1 if sample.outputs == 1 else target
    return Case(sample.network(target), contrast, background, index)


@many_examples
@given(samples())
def test_layer_graph_is_the_causal_truth(sample: zoo.Sample) -> None:
    case = case_of(sample)
    graph = case.study.layers
    for writer in ["input", *sample.layers]:
        truth = case.reference.readers(writer)
        assert set(graph.successors(writer)) == truth - {TARGET}
        assert graph.nodes[writer]["output"] == (TARGET in truth)


@many_examples
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_node_effects_through_one_reader(
    sample: zoo.Sample, seed: int, contrast: str, background: str
) -> None:
    case = case_of(sample, contrast, background)
    edges = list(case.study.layers.edges)
    writer, reader = edges[seed % len(edges)]
    with case.study.open() as experiment:
        case.check_nodes(experiment, writer, case.subsets([reader], seed), case.neurons(writer))


@many_examples
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_node_effects_through_all_readers_and_the_target(
    sample: zoo.Sample, seed: int, contrast: str, background: str
) -> None:
    case = case_of(sample, contrast, background)
    graph = case.study.layers
    writer = sorted(graph)[seed % len(graph)]
    through: dict = case.subsets(list(graph.successors(writer)), seed)
    if graph.nodes[writer]["output"]:
        through[TARGET] = None
    if through:
        with case.study.open() as experiment:
            case.check_nodes(experiment, writer, through, case.neurons(writer))


BRANCHED = {
    "residual": lambda seed: zoo.residual_mlp(3, 1, seed, torch.float64),
    "cnn": lambda seed: zoo.branched_cnn(2, 1, seed, torch.float64),
    "shared": lambda seed: zoo.shared_layer(3, 1, seed, torch.float64),
    "attention": lambda seed: zoo.attention(4, 1, seed, torch.float64),
}


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", BRANCHED)
def test_node_effects_where_one_reader_descends_from_another(kind: str, background: str) -> None:
    case = case_of(BRANCHED[kind](3), background=background)
    graph = case.study.layers
    tried = 0
    with case.study.open() as experiment:
        for writer in graph:
            readers = list(graph.successors(writer))
            if any(nx.has_path(graph, a, b) for a in readers for b in readers if a != b):
                case.check_nodes(
                    experiment, writer, case.subsets(readers, tried), case.neurons(writer)
                )
                tried += 1
    assert tried


@many_examples
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_edge_effects(sample: zoo.Sample, seed: int, contrast: str, background: str) -> None:
    case = case_of(sample, contrast, background)
    edges = list(case.study.layers.edges)
    writer, reader = edges[seed % len(edges)]
    sources, outputs = case.neurons(writer), list(case.neurons(reader))[:3]
    with case.study.open() as experiment:
        found = [edge_effects(experiment, writer, sources, reader, p) for p in outputs]
    for output, effects in zip(outputs, found, strict=True):
        seen = {reader: [output]}
        wanted = [
            case.effect(
                lambda i, value, seen=seen: case.reference.through(writer, i, value, seen),
                writer,
                index,
            )
            for index in sources
        ]
        case.check(effects, wanted)


@many_examples
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_total_effects(sample: zoo.Sample, seed: int, contrast: str, background: str) -> None:
    case = case_of(sample, contrast, background)
    layer = ["input", *sample.layers][seed % (1 + len(sample.layers))]
    with case.study.open() as experiment:
        found = total_effects(experiment, layer, case.neurons(layer))
    wanted = [
        case.effect(lambda i, value: case.reference.total(layer, i, value), layer, index)
        for index in case.neurons(layer)
    ]
    case.check(found, wanted)


@many_examples
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_path_effects(sample: zoo.Sample, seed: int, contrast: str, background: str) -> None:
    case = case_of(sample, contrast, background)
    graph = case.study.layers
    generator = np.random.default_rng(seed)
    ends = [n for n in graph if graph.nodes[n]["output"]]
    routes = [p for start in graph for end in ends for p in nx.all_simple_paths(graph, start, end)]
    routes = [routes[i] for i in generator.permutation(len(routes))[:4]]
    paths = [
        [Neuron(name, int(generator.integers(len(case.neurons(name))))) for name in route]
        for route in routes
        for _ in range(2)
    ]
    with case.study.open() as experiment:
        found = path_effects(experiment, paths)
    wanted = [
        case.effect(lambda _, value, path=path: case.reference.path(path, value), *path[0])
        for path in paths
    ]
    case.check(found, wanted)


def test_effects_through_readers_sum_to_the_total_where_the_model_is_linear() -> None:
    class Linear(zoo.ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            h = h + self.down(self.up(h))
            return self.head(h) + self.skip(x)

    model = zoo.settle(Linear(3, 4, 1), 0, torch.float64)
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    study = Study(model, x, 1, progress=False)
    with study.open() as experiment:
        for layer in ("input", "enter", "up"):
            neurons = range(experiment.recording.layers[layer].neurons)
            readers = list(study.layers.successors(layer))
            assert readers
            parts = [node_effects(experiment, layer, neurons, {r: None}).effect for r in readers]
            total = total_effects(experiment, layer, neurons).effect
            torch.testing.assert_close(sum(parts), total, rtol=1e-9, atol=1e-9)
            edges = [
                edge_effects(experiment, layer, neurons, r, p).effect
                for r in readers
                for p in range(experiment.recording.layers[r].neurons)
            ]
            torch.testing.assert_close(sum(edges), total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_narrow_and_direct_routes_agree(seed: int) -> None:
    """The shortcut for Linear readers behind pointwise glue is the same as running the model."""
    case = case_of(zoo.mlp((3, 6, 5, 2), "gelu", False, seed, torch.float64), "sweep")
    with case.study.open() as experiment:
        assert {str(c).rstrip("_") for c in experiment.chains.values()} == {"identity", "gelu"}
        narrow = node_effects(experiment, "layers.0", range(6), {"layers.1": [0, 3]})
        experiment.narrow = False
        direct = node_effects(experiment, "layers.0", range(6), {"layers.1": [0, 3]})
    torch.testing.assert_close(narrow.effect, direct.effect, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(narrow.response, direct.response, rtol=1e-12, atol=1e-13)
