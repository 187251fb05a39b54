"""Graph, effects, replay and restoration on one network of every kind of architecture."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.data.source import Batch
from neurograph.effects.exact import node_effects, path_effects, total_effects
from neurograph.effects.exact_scorer import ExactScorer
from neurograph.errors import NeurographError, OptionError
from neurograph.model.layer_choice import find_sites
from neurograph.questions.study import Study
from neurograph.replay.recording import Recording, capture
from neurograph.replay.replay import Replay
from neurograph.replay.wiring import read_wiring
from tests import zoo
from tests.case import Case, as_data, edge_effects
from tests.reference import TARGET, Reference, without_fused_kernels

SEED = 0
NAMES = sorted(zoo.NETWORKS)
# Only "zero" moves what is the same for every sample.
CONTRASTS = ["quantiles", "zero"]
LAYERS, NEURONS = 3, 3
every_network = pytest.mark.parametrize("name", NAMES)


@functools.cache
def case_of(name: str, contrast: str = "quantiles") -> Case:
    return Case(zoo.NETWORKS[name](SEED), contrast, "data")


def chosen(generator: np.random.Generator, items: Any, count: int) -> list[Any]:
    """Some of the items at random, in their order."""
    known = list(items)
    picks = generator.choice(len(known), size=min(count, len(known)), replace=False)
    return [known[i] for i in sorted(picks)]


def writers(case: Case, generator: np.random.Generator) -> list[str]:
    """Some layers with neurons that something reads, some of them of an unusual layout."""
    usual = zoo.Site("").batch, zoo.Site("").many, zoo.Site("").leaf
    sites = {
        name: site
        for name, site in case.network.sites.items()
        if case.reference.neurons(name) and case.reference.readers(name)
    }
    unusual = [n for n, site in sites.items() if (site.batch, site.many, site.leaf) != usual]
    unusual += [n for n in sites if n not in unusual and "#" in n]
    rest = [name for name in sites if name not in unusual]
    return chosen(generator, unusual, LAYERS) + chosen(generator, rest, LAYERS)


# -- the layer graph -------------------------------------------------------------------------------


@every_network
def test_layer_graph_is_the_causal_truth(name: str) -> None:
    network = zoo.NETWORKS[name](SEED)
    example = network.inputs(4, 1)
    reference = Reference(network, example)
    chosen = network.options.get("layers")
    graph = ng.layer_graph(network.model, as_data(example), layers=chosen)
    assert list(graph) == list(network.sites)
    neurons = dict(graph.nodes(data="neurons"))
    assert neurons == {site: reference.channels(site) for site in network.sites}
    truth = {site: reference.readers(site) for site in network.sites}
    found = {site: set(graph.successors(site)) for site in graph}
    assert found == {site: readers - {TARGET} for site, readers in truth.items()}
    ends = {site for site, is_output in graph.nodes(data="output") if is_output}
    assert ends == {site for site, readers in truth.items() if TARGET in readers}


# -- effects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", CONTRASTS)
@every_network
def test_node_effects(name: str, contrast: str) -> None:
    case, generator = case_of(name, contrast), np.random.default_rng(1)
    with case.study.open() as experiment:
        for writer in writers(case, generator):
            everyone = case.reference.readers(writer)
            readers = [site for site in case.network.sites if site in everyone]
            seen = case.subsets(readers, len(writer))
            neurons = chosen(generator, case.neurons(writer), NEURONS)
            if readers:
                one = readers[int(generator.integers(len(readers)))]
                case.check_nodes(experiment, writer, {one: seen[one]}, neurons)
            through = seen | ({TARGET: None} if TARGET in everyone else {})
            if len(through) > 1 or not readers:
                case.check_nodes(experiment, writer, through, neurons)


@every_network
def test_edge_effects(name: str) -> None:
    case, generator = case_of(name), np.random.default_rng(2)
    reference = case.reference
    with case.study.open() as experiment:
        for writer in writers(case, generator):
            readers = reference.readers(writer) - {TARGET}
            neurons = chosen(generator, case.neurons(writer), NEURONS)
            for reader in chosen(generator, sorted(readers), 1):
                output = int(generator.integers(len(case.neurons(reader))))
                seen = {reader: [output]}
                wanted = [
                    case.effect(
                        lambda i, v, at=writer, seen=seen: reference.through(at, i, v, seen),
                        writer,
                        index,
                    )
                    for index in neurons
                ]
                case.check(edge_effects(experiment, writer, neurons, reader, output), wanted)
                # As circuits are made: all edges at once, but for those that move nothing.
                found = dict.fromkeys(range(len(neurons)), (0.0, 0.0))
                for edges in ExactScorer(experiment).edges(writer, neurons, seen):
                    effects = edges.scored.effects
                    numbers = zip(effects.effect.tolist(), effects.stderr.tolist(), strict=True)
                    found |= zip(edges.pairs[:, 0].tolist(), numbers, strict=True)
                scale = max(1.0, *(abs(effect) for effect, _ in wanted))
                np.testing.assert_allclose(
                    np.array([found[i] for i in range(len(neurons))]), wanted, atol=1e-9 * scale
                )


@pytest.mark.parametrize("contrast", CONTRASTS)
@every_network
def test_total_effects(name: str, contrast: str) -> None:
    case, generator = case_of(name, contrast), np.random.default_rng(3)
    with case.study.open() as experiment:
        for writer in writers(case, generator):
            neurons = chosen(generator, case.neurons(writer), 2 * NEURONS)
            wanted = [
                case.effect(lambda i, v, at=writer: case.reference.total(at, i, v), writer, index)
                for index in neurons
            ]
            case.check(total_effects(experiment, writer, neurons), wanted)


def walks(
    case: Case, generator: np.random.Generator, starts: list[str]
) -> Iterator[list[tuple[str, int]]]:
    """Random paths to the target, from every start that has one: sites and numbers of neurons."""
    reference = case.reference
    ends = {site for site in case.network.sites if TARGET in reference.readers(site)}
    useful = {s for s in case.network.sites if ends & ({s} | reference.descendants(s))}
    for start in starts:
        path, at = [], start
        while at != TARGET and at in useful:
            path.append((at, int(generator.integers(len(case.neurons(at))))))
            readers = reference.readers(at) & (useful | {TARGET})
            at = sorted(readers)[int(generator.integers(len(readers)))]
        if path:
            yield path


@every_network
def test_path_effects(name: str) -> None:
    case, generator = case_of(name), np.random.default_rng(4)
    paths = list(walks(case, generator, 2 * writers(case, generator)))
    with case.study.open() as experiment:
        named = [[experiment.units(at).neuron(i) for at, i in path] for path in paths]
        found = path_effects(experiment, named)
    wanted = [
        case.effect(lambda _, value, path=path: case.reference.path(path, value), *path[0])
        for path in paths
    ]
    case.check(found, wanted)


# -- replay ----------------------------------------------------------------------------------------


def own_rows(recording: Recording, layer: str, blocks: int, samples: slice) -> Tensor:
    """A layer's recorded values for some interventions and samples: rows first, as runs take."""
    rows = recording.main(layer)[samples]
    return rows.repeat(blocks, *[1] * (rows.dim() - 1))


@every_network
def test_suffix_gives_the_real_output(name: str) -> None:
    case = case_of(name)
    network = case.network
    arguments = network.inputs(3, 1)
    with torch.no_grad(), without_fused_kernels():
        real = network.target(network.model(**arguments), None)
    layers = writers(case, np.random.default_rng(5))
    layers = [layer for layer in layers if network.sites[layer].batch is not None]
    sites = find_sites(network.model, network.options.get("layers"))
    recording = capture(network.model, Batch((), arguments), sites)
    with Replay(network.model, recording) as replay:
        wiring = read_wiring(replay)
        for layer in layers:
            plan = wiring.suffix([layer])
            for blocks, samples in ((1, slice(None)), (3, slice(None)), (3, slice(1, 3))):
                rows = {layer: own_rows(recording, layer, blocks, samples)}
                outcome = replay.run(plan, rows, blocks=blocks, samples=samples)
                got = network.target(outcome.output, None)
                wanted = real[samples].repeat(blocks)
                torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


# -- the model is left as it was -------------------------------------------------------------------


def state(model: nn.Module) -> list[Any]:
    """Everything about a model, and around it, that the library must not leave changed."""
    modules = [
        (name, module.training, sorted(module.__dict__), _hooks(module))
        for name, module in model.named_modules()
    ]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    values = [(n, t.requires_grad, t.grad is None, t.tolist()) for n, t in tensors]
    around = [torch.get_rng_state().tolist(), torch.backends.mha.get_fastpath_enabled()]
    return [modules, values, around, torch.is_grad_enabled()]


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    return {k: list(v.items()) for k, v in vars(module).items() if "_hooks" in k}


def unsettled(network: zoo.Network) -> nn.Module:
    """The network's model, partly in train mode and partly without gradients."""
    model = network.model
    with torch.no_grad():
        model(**network.inputs(2, 0))  # some models set themselves up in their first call
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    return model


def spoilt(network: zoo.Network, arguments: dict[str, Any]) -> dict[str, Any]:
    """Inputs that the first layers cannot take: too many channels, or unknown words."""
    wrong = {}
    for site, argument in network.input_names(arguments).items():
        value = arguments[argument]
        dim = network.sites[site].channel
        wrong[argument] = torch.cat([value, value], dim) if value.is_floating_point() else value
        if value.dtype == torch.int64:
            wrong[argument] = value + 1000
    return wrong


@every_network
def test_the_model_is_left_as_it_was(name: str) -> None:
    network = zoo.NETWORKS[name](SEED)
    model = unsettled(network)
    data = network.inputs(6, 1)
    options = dict(reference=3, progress=False, **network.options)
    fails = False

    def failing(output: Any, batch: Any) -> Tensor:
        if fails:
            raise ZeroDivisionError
        return network.target(output, batch)

    before = state(model)
    study = Study(model, as_data(data), failing, **options)
    _ = study.statistics
    assert state(model) == before
    writer = next(n for n, layer in study.layers.nodes(data=True) if layer["neurons"])
    with study.open() as experiment:
        total_effects(experiment, writer, [0])
    assert state(model) == before
    fails = True
    with pytest.raises(OptionError, match="ZeroDivisionError"), study.open() as experiment:
        node_effects(experiment, writer, [0], dict.fromkeys(study.layers.successors(writer)))
    assert state(model) == before
    batches = [as_data(data), as_data(spoilt(network, data))]
    with pytest.raises(NeurographError):
        _ = Study(model, batches, network.target, **options).statistics
    assert state(model) == before
