"""Passes measure what the reference measures, find what an enumeration finds, and never boast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neurograph.discovery.beam import Beam
from neurograph.discovery.strongest_paths import read_sources
from tests import zoo
from tests.case import Case
from tests.discovery.small import Residual, enumerated, opened, strongest, trained

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Softsign]
many_examples = settings(max_examples=30, suppress_health_check=list(HealthCheck))


@st.composite
def samples(draw: st.DrawFn) -> zoo.Sample:
    """Networks of every kind of glue, small enough to be enumerated."""
    seed, outputs = draw(st.integers(0, 10_000)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["mlp", "mlp", "mlp", "residual", "cnn", "shared", "attention"]))
    if kind == "mlp":
        widths = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
        activation = draw(st.sampled_from(sorted(zoo.ACTIVATIONS)))
        return zoo.mlp((*widths, outputs), activation, draw(st.booleans()), seed, torch.float64)
    if kind == "residual":
        return zoo.residual_mlp(draw(st.integers(2, 3)), outputs, seed, torch.float64)
    if kind == "cnn":
        return zoo.branched_cnn(2, outputs, seed, torch.float64)
    if kind == "shared":
        return zoo.shared_layer(draw(st.integers(2, 4)), outputs, seed, torch.float64)
    return zoo.attention(2, outputs, seed, torch.float64)


@many_examples
@given(
    samples(),
    st.sampled_from(["quantiles", "mean", "zero"]),
    st.sampled_from(["data", "mean", "zero"]),
)
def test_without_end_every_path_is_measured(
    sample: zoo.Sample, contrast: str, background: str
) -> None:
    case = Case(sample.network(0), contrast, background, 1 if sample.outputs == 1 else 0)
    study = case.study
    with study.open() as experiment:
        experiment.memory = 2**28  # that of a case is too small for all prefixes at once
        truth = enumerated(study)
        beam = Beam(experiment, read_sources(study, None), len(truth))
        found = beam.run(10**9)
    assert beam.total == len(truth)
    assert found.bound == 0
    assert not found.wider
    largest = max(map(abs, truth.values()))
    for path, effect in truth.items():
        measured, _ = found.best.get(path, (0.0, 0.0))
        assert measured == pytest.approx(effect, rel=1e-9, abs=1e-12 * (1 + largest))
    reference = case.reference
    for path, (effect, stderr) in list(found.best.items())[:2]:
        values = reference.values(path[0].layer, path[0].index)
        places = [(n.layer, n.index) for n in path]
        wanted = reference.effect(lambda v, places=places: reference.path(places, v), values)
        assert (effect, stderr) == pytest.approx(wanted, rel=1e-8, abs=1e-11 * (1 + largest))


@many_examples
@given(
    samples(),
    st.sampled_from(["data", "zero"]),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.booleans(),
)
def test_nothing_unmeasured_exceeds_the_bound(
    sample: zoo.Sample, background: str, width: int, floor: float, callable_target: bool
) -> None:
    target: Any = 1 if sample.outputs == 1 else 0
    if callable_target:
        target = lambda output, _batch: output[:, 0] ** 2  # noqa: E731
    study = opened(sample.model, sample.data(30, 1), target, background=background, reference=5)
    with study.open() as experiment:
        truth = enumerated(study)
        beam = Beam(experiment, read_sources(study, None), len(truth))
        least = floor * max(map(abs, truth.values()))
        found = beam.run(width, least)
    left = [abs(effect) for path, effect in truth.items() if path not in found.best]
    assert max(left, default=0.0) <= found.bound * (1 + 1e-9) + 1e-12
    for path, (effect, _) in found.best.items():
        assert effect == pytest.approx(truth[path], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_networks_give_up_their_strongest_paths_to_a_narrow_beam(
    activation: type[nn.Module], seed: int
) -> None:
    torch.manual_seed(seed)
    check_recall(zoo.plain([5, 9, 8, 7, 2], activation), torch.randn(80, 5), 0)


def labels(X: Tensor) -> Tensor:
    flat = X.flatten(1)
    return (flat[:, 0] * flat[:, 1] > 0).long() + (flat[:, 2] > 0.5).long()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_so_do_trained_ones(activation: type[nn.Module]) -> None:
    X = torch.randn(120, 5)
    check_recall(trained(zoo.plain([5, 10, 8, 3], activation), X, labels(X)), X, 1)


def test_so_do_residual_ones() -> None:
    X = torch.randn(120, 4)
    check_recall(trained(Residual(4, 5, 3), X, labels(X), 60), X, 2)


def test_so_do_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.Tanh(),
        nn.Linear(6, 2),
    )
    check_recall(model, torch.randn(40, 3, 6, 6), 0)


def test_so_do_attention_heads() -> None:
    sample = zoo.attention(4, 2, 3, torch.float64)
    groups = dict.fromkeys("qkvo", 2)
    check_recall(sample.model, sample.data(40, 1), 0, groups=groups, reference=8)


def check_recall(
    model: nn.Module, X: Tensor, target: int | Callable[..., Tensor], **options: Any
) -> None:
    """Of the true top 10, 50 and 100, a beam of twice a hundred finds at least 95 %."""
    study = opened(model, X, target, **{"reference": 16, **options})
    with study.open() as experiment:
        truth = enumerated(study)
        found = Beam(experiment, read_sources(study, None), 100).run(200)
    assert len(truth) > 1000
    assert found.measured <= 250
    for k in (10, 50, 100):
        wanted = set(strongest(truth, k))
        assert len(wanted & set(list(found.best)[:k])) >= 0.95 * len(wanted)


def test_memory_and_pieces_change_nothing() -> None:
    torch.manual_seed(0)
    X = torch.randn(30, 2, 5, 5)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    found = []
    for memory in ("512MB", 200_000):
        study = opened(model, X, 0, reference=8, memory=memory)
        with study.open() as experiment:
            beam = Beam(experiment, read_sources(study, None), 20)
            found.append(beam.run(1000).best)
    assert found[0].keys() == found[1].keys()
    for path, (effect, stderr) in found[0].items():
        assert found[1][path] == pytest.approx((effect, stderr), rel=1e-4)
