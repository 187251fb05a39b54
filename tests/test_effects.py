"""Every effect the library returns equals the hooks-only reference."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurograph.contrast import Contrast, Counterfactual
from neurograph.layers import Neuron
from neurograph.scoring.exact import edge_effects, node_effects, path_effects, total_effects
from neurograph.scoring.experiment import Effects, Experiment
from neurograph.study import Options, Study, prepare
from tests import zoo
from tests.reference import TARGET, Reference

SAMPLES, ROWS = 4, 23
CONTRASTS = ["quantiles", (0.25, 0.75), "sweep", "mean", "zero", "counterfactual"]
BACKGROUNDS = ["data", "mean", "zero"]
slow = settings(max_examples=30, suppress_health_check=list(HealthCheck))
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


class Case:
    """A study of the library and the reference of the same model, contrast and background."""

    def __init__(
        self, sample: zoo.Sample, contrast: str | tuple[float, float], background: str
    ) -> None:
        self.sample = sample
        self.x = sample.data(ROWS, 1)
        self.corrupt = sample.data(ROWS, 2)
        chosen: str | tuple[float, float] | Contrast = contrast
        if contrast == "counterfactual":
            chosen = Counterfactual(self.corrupt)
        options = Options(
            contrast=chosen,
            background=background,  # type: ignore[arg-type]
            reference=SAMPLES,
            memory=20_000,  # small, so that work is cut into many pieces
            progress=False,
        )
        target = sample.outputs - 1
        self.study: Study = prepare(
            sample.model, self.x, 1 if sample.outputs == 1 else target, options, None
        )
        positions = self.study.provenance["data"]["reference"]
        few = self.x[positions]
        self.reference = Reference(
            sample.model, few, sample.layers, sample.channels, lambda out: out[:, target]
        )
        self._levels(contrast, self.corrupt[positions])
        self._background(background)

    def _every(self, x: Tensor) -> dict[str, Tensor]:
        other = Reference(
            self.sample.model, x, self.sample.layers, self.sample.channels, lambda out: out[:, 0]
        )
        return other.background

    def _levels(self, contrast: str | tuple[float, float], corrupt: Tensor) -> None:
        """The values neurons move between, by NumPy over all data: `[levels, samples|1, …]`."""
        every, twins = self._every(self.x), self._every(corrupt)
        quantiles = {"quantiles": (0.05, 0.95), "sweep": (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)}
        for name, actual in self.reference.background.items():
            dim = self.sample.channels[name]
            if contrast in quantiles or isinstance(contrast, tuple):
                q = contrast if isinstance(contrast, tuple) else quantiles[contrast]
                table = np.quantile(every[name].numpy(), q, axis=0)
                values = torch.from_numpy(np.asarray(table)).to(actual)[:, None]
            else:
                low = {
                    "mean": every[name].mean(0, keepdim=True).expand_as(actual),
                    "zero": torch.zeros_like(actual),
                    "counterfactual": twins[name],
                }[str(contrast)]
                values = torch.stack([low, actual])
            self.reference.levels[name] = values.movedim(dim + 1, 0)

    def _background(self, background: str) -> None:
        every = self._every(self.x)
        for name, actual in list(self.reference.background.items()):
            if background == "mean":
                mean = every[name].mean(0, keepdim=True)
                self.reference.background[name] = mean.expand_as(actual)
            elif background == "zero":
                self.reference.background[name] = torch.zeros_like(actual)

    def values(self, layer: str, index: int) -> Tensor:
        return self.reference.levels[layer][index]

    def neurons(self, layer: str) -> range:
        return range(self.study.experiment.recording.layers[layer].neurons)

    def check(self, effects: Effects, wanted: list[tuple[float, float]]) -> None:
        exact = self.reference.x.dtype == torch.float64
        scale = max([1e-3, *(abs(e) for e, _ in wanted)])
        # float32 rounds each target to about 1e-7 of its size, which bounds what a small
        # difference of two of them can say.
        size = max(float(effects.response.abs().max()) + scale, 0.1)
        kind = {"rtol": 1e-9, "atol": 1e-9} if exact else {"rtol": 1e-4, "atol": 3e-6 * size}
        got = np.stack([effects.effect.numpy(), effects.stderr.numpy()], axis=1)
        np.testing.assert_allclose(got, np.array(wanted), **kind)


def check_nodes(case: Case, experiment: Experiment, layer: str, through: dict) -> None:
    neurons = case.neurons(layer)
    wanted = [
        case.reference.effect(
            lambda value, i=i: case.reference.through(layer, i, value, through),
            case.values(layer, i),
        )
        for i in neurons
    ]
    case.check(node_effects(experiment, layer, neurons, through), wanted)


def subsets(case: Case, layers: list[str], seed: int) -> dict[str, list[int]]:
    """Some outputs of each layer, at least one."""
    generator = np.random.default_rng(seed)
    return {
        name: sorted(
            generator.choice(
                list(case.neurons(name)),
                size=generator.integers(1, len(case.neurons(name)) + 1),
                replace=False,
            ).tolist()
        )
        for name in layers
    }


@slow
@given(samples(), seeds)
def test_layer_graph_is_the_causal_truth(sample: zoo.Sample, seed: int) -> None:
    case = Case(sample, "quantiles", "data")
    graph = case.study.profiled
    for writer in ["input", *sample.layers]:
        truth = case.reference.readers(writer, seed)
        assert set(graph.successors(writer)) == truth - {TARGET}
        assert graph.nodes[writer]["output"] == (TARGET in truth)


@slow
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_node_effects_through_one_reader(
    sample: zoo.Sample, seed: int, contrast: str, background: str
) -> None:
    case = Case(sample, contrast, background)
    edges = list(case.study.profiled.edges)
    writer, reader = edges[seed % len(edges)]
    with case.study.open() as experiment:
        check_nodes(case, experiment, writer, subsets(case, [reader], seed))


@slow
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_node_effects_through_all_readers_and_the_target(
    sample: zoo.Sample, seed: int, contrast: str, background: str
) -> None:
    case = Case(sample, contrast, background)
    graph = case.study.profiled
    writer = sorted(graph)[seed % len(graph)]
    through: dict = subsets(case, list(graph.successors(writer)), seed)
    if graph.nodes[writer]["output"]:
        through[TARGET] = None
    if through:
        with case.study.open() as experiment:
            check_nodes(case, experiment, writer, through)


BRANCHED = {
    "residual": lambda seed: zoo.residual_mlp(3, 1, seed, torch.float64),
    "cnn": lambda seed: zoo.branched_cnn(2, 1, seed, torch.float64),
    "shared": lambda seed: zoo.shared_layer(3, 1, seed, torch.float64),
    "attention": lambda seed: zoo.attention(4, 1, seed, torch.float64),
}


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", BRANCHED)
def test_node_effects_where_one_reader_descends_from_another(kind: str, background: str) -> None:
    case = Case(BRANCHED[kind](3), "quantiles", background)
    graph = case.study.profiled
    tried = 0
    with case.study.open() as experiment:
        for writer in graph:
            readers = list(graph.successors(writer))
            if any(nx.has_path(graph, a, b) for a in readers for b in readers if a != b):
                check_nodes(case, experiment, writer, subsets(case, readers, tried))
                tried += 1
    assert tried


@slow
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_edge_effects(sample: zoo.Sample, seed: int, contrast: str, background: str) -> None:
    case = Case(sample, contrast, background)
    edges = list(case.study.profiled.edges)
    writer, reader = edges[seed % len(edges)]
    sources, outputs = case.neurons(writer), list(case.neurons(reader))[:3]
    with case.study.open() as experiment:
        found = [edge_effects(experiment, writer, sources, reader, p) for p in outputs]
    for output, effects in zip(outputs, found, strict=True):
        seen = {reader: [output]}
        wanted = [
            case.reference.effect(
                lambda value, i=i, seen=seen: case.reference.through(writer, i, value, seen),
                case.values(writer, i),
            )
            for i in sources
        ]
        case.check(effects, wanted)


@slow
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_total_effects(sample: zoo.Sample, seed: int, contrast: str, background: str) -> None:
    case = Case(sample, contrast, background)
    layer = ["input", *sample.layers][seed % (1 + len(sample.layers))]
    with case.study.open() as experiment:
        found = total_effects(experiment, layer, case.neurons(layer))
    wanted = [
        case.reference.effect(
            lambda value, i=i: case.reference.total(layer, i, value), case.values(layer, i)
        )
        for i in case.neurons(layer)
    ]
    case.check(found, wanted)


@slow
@given(samples(), seeds, st.sampled_from(CONTRASTS), st.sampled_from(BACKGROUNDS))
def test_path_effects(sample: zoo.Sample, seed: int, contrast: str, background: str) -> None:
    case = Case(sample, contrast, background)
    graph = case.study.profiled
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
        case.reference.effect(
            lambda value, path=path: case.reference.path(path, value), case.values(*path[0])
        )
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
    study = prepare(model, x, 1, Options(progress=False), None)
    with study.open() as experiment:
        for layer in ("input", "enter", "up"):
            neurons = range(experiment.recording.layers[layer].neurons)
            readers = list(study.profiled.successors(layer))
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
    case = Case(zoo.mlp((3, 6, 5, 2), "gelu", False, seed, torch.float64), "sweep", "data")
    with case.study.open() as experiment:
        assert {str(c).rstrip("_") for c in experiment.chains.values()} == {"identity", "gelu"}
        narrow = node_effects(experiment, "layers.0", range(6), {"layers.1": [0, 3]})
        experiment.chains = {}
        direct = node_effects(experiment, "layers.0", range(6), {"layers.1": [0, 3]})
    torch.testing.assert_close(narrow.effect, direct.effect, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(narrow.response, direct.response, rtol=1e-12, atol=1e-13)
