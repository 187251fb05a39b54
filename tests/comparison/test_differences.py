"""Differences between two models, and their errors, equal those of plain hooks sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.comparison.differences import paired_stderr, same_samples
from tests.comparison.handmade import inputs, network

X = inputs(4, 60)


def moved(
    model: nn.Sequential, rows: Tensor, layer: int, index: int, outputs: Sequence[int] | None
) -> Tensor:
    """Target at the 0.95 less the 0.05 quantile of a neuron, ``[samples]``.

    Only these outputs of the next Linear layer see it.
    """
    answers = []
    with torch.no_grad():
        whole = model[: layer + 1](X)
        still = model[: layer + 1](rows)
        for level in (0.05, 0.95):
            x = still.clone()
            x[:, index] = whole[:, index].quantile(level)
            seen = outputs
            for place in range(layer + 1, len(model)):
                part = model[place]
                after = part(x)
                if seen is not None and isinstance(part, nn.Linear):
                    kept = model[: place + 1](rows)
                    kept[:, seen] = after[:, seen]
                    after, seen = kept, None
                x = after
            answers.append(x[:, 1])
    return answers[1] - answers[0]


@pytest.fixture(scope="module")
def compared() -> tuple[list[nn.Sequential], list[ng.Circuit], ng.Comparison]:
    models = [network(4, 8, 6, 2, seed=seed) for seed in (0, 1)]
    circuits = [ng.search(m, X, 1, keep="quantile:0.6", reference=20, seed=3) for m in models]
    return models, circuits, ng.compare(*circuits, draws=5, transplants=0)


def stderr(one: Tensor, other: Tensor) -> float:
    difference = other - one
    return float(difference.std() / math.sqrt(len(difference)))


def test_neurons_differ_as_plain_torch_says(
    compared: tuple[list[nn.Sequential], list[ng.Circuit], ng.Comparison],
) -> None:
    models, circuits, told = compared
    rows = X[circuits[0].provenance["data"]["reference"]]
    assert same_samples(circuits[0].study, circuits[1].study)
    table = told.neurons()
    seen = table[[n.layer in ("0", "2") for n in table["neuron_a"]]]
    assert len(seen) > 6
    for row in seen.itertuples():
        effects = []
        for model, circuit, neuron in zip(
            models, circuits, (row.neuron_a, row.neuron_b), strict=True
        ):
            reader = str(int(neuron.layer) + 2)
            outputs = [n.index for n in circuit.graph if n.layer == reader]
            effects.append(moved(model, rows, int(neuron.layer), neuron.index, outputs))
        wanted = float(effects[1].mean() - effects[0].mean())
        assert row.difference == pytest.approx(wanted, abs=1e-9)
        assert row.effect_a == pytest.approx(float(effects[0].mean()), abs=1e-9)
        assert row.stderr == pytest.approx(stderr(*effects), abs=1e-9)


def test_edges_differ_as_plain_torch_says_whoever_kept_them(
    compared: tuple[list[nn.Sequential], list[ng.Circuit], ng.Comparison],
) -> None:
    models, circuits, told = compared
    rows = X[circuits[0].provenance["data"]["reference"]]
    table = told.edges()
    seen = table[[n.layer == "0" for n in table["source_a"]]]
    assert {"only_a", "only_b"} <= set(seen["status"])
    for row in seen.itertuples():
        effects = [
            moved(model, rows, 0, row.source_a.index, [row.target_a.index]) for model in models
        ]
        for told_effect, effect in zip((row.effect_a, row.effect_b), effects, strict=True):
            assert told_effect == pytest.approx(float(effect.mean()), abs=1e-9)
        assert row.stderr == pytest.approx(stderr(*effects), abs=1e-9)


def test_paths_of_one_circuit_are_measured_in_the_other_model(
    compared: tuple[list[nn.Sequential], list[ng.Circuit], ng.Comparison],
) -> None:
    _, circuits, told = compared
    table = told.paths("only_a")
    assert len(table) > 3
    there = circuits[1].measure(table["path_b"])
    assert table["effect_b"].to_list() == pytest.approx([path.effect for path in there], abs=1e-9)
    assert table["stderr_b"].to_list() == pytest.approx([path.stderr for path in there], abs=1e-9)
    assert table["stderr"].notna().all()


def test_samples_that_are_not_the_same_are_not_paired() -> None:
    model = network(4, 8, 2)
    circuits = [ng.search(model, X, 1, keep="top:3", reference=20, seed=seed) for seed in (0, 1)]
    assert not same_samples(circuits[0].study, circuits[1].study)
    told = ng.compare(*circuits, draws=5, transplants=0)
    table = told.neurons("both")
    added = (table["stderr_a"] ** 2 + table["stderr_b"] ** 2) ** 0.5
    assert table["stderr"].to_list() == pytest.approx(added.to_list())


def test_one_sample_has_no_error() -> None:
    assert math.isnan(paired_stderr(torch.zeros(1).numpy(), torch.ones(1).numpy()))


def test_estimates_are_measured_again_for_their_errors() -> None:
    models = [network(4, 8, 6, 2, seed=seed) for seed in (0, 1)]
    told = [
        ng.compare(
            *(ng.search(m, X, 1, keep="top:2", scorer=scorer, reference=20) for m in models),
            draws=0,
            transplants=0,
        )
        for scorer in ("exact", "gradient")
    ]
    exact, estimated = (
        dict(zip(t.neurons()["neuron_a"], t.neurons()["stderr"], strict=True)) for t in told
    )
    # Behind this layer all is linear: both searches see the same outputs.
    last = [n for n in exact if n.layer == "2" and n in estimated]
    assert last
    assert [estimated[n] for n in last] == pytest.approx([exact[n] for n in last])
