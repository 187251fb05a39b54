"""What a budget allows is measured, and what is said of the screen is true."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import neurograph as ng
from neurograph.effects.auto import Verifier
from neurograph.effects.budget import Allowance, Budget
from neurograph.effects.effects import Effects
from neurograph.effects.screening import Screened, Screening
from tests import zoo


class Clock:
    """A clock that only moves when something is measured: time without waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


class Bench:
    """A thousand effects, a screen that ranks them roughly, and a price for measuring one."""

    def __init__(self, noise: float, clock: Clock | None = None, price: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.truth = torch.randn(1000, generator=generator, dtype=torch.float64).pow(3)
        error = torch.randn(1000, generator=generator, dtype=torch.float64)
        self.promise = self.truth + noise * error
        self.clock, self.price, self.measured = clock, price, 0

    def effects(self, values: Tensor) -> Effects:
        return Effects(values, torch.zeros_like(values), values[:, None])

    def estimate(self) -> Effects:
        return self.effects(self.promise)

    def measure(self, some: Tensor) -> Effects:
        self.measured += len(some)
        if self.clock:
            self.clock.now += self.price * len(some)
        return self.effects(self.truth[some])

    def verify(self, verifier: Verifier) -> Any:
        return verifier.verify(1000, self.estimate, self.measure, work=1e12, cost=1.0)


def test_what_fits_the_time_is_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    bench = Bench(1.0, clock, price=0.01)  # ten seconds for all
    verifier = Verifier(Budget(seconds=11), 0, Allowance(clock.now + 11, 1.0))
    scored = bench.verify(verifier)
    assert scored.measured is None
    torch.testing.assert_close(scored.effects.effect, bench.truth)
    assert verifier.report() == Screening(1000, 1000, None, 1.0)


@pytest.mark.parametrize("seconds", [1.0, 3.0, 6.0])
def test_the_time_is_kept_and_the_most_promising_come_first(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    clock = Clock(monkeypatch)
    bench = Bench(0.5, clock, price=0.01)
    start = clock.now
    verifier = Verifier(Budget(seconds=seconds), 0, Allowance(start + seconds, 1.0))
    scored = bench.verify(verifier)
    assert 0.5 * seconds < clock.now - start < 1.4 * seconds
    measured = scored.measured
    assert int(measured.sum()) == bench.measured < 1000
    torch.testing.assert_close(scored.effects.effect[measured], bench.truth[measured])
    torch.testing.assert_close(scored.effects.effect[~measured], bench.promise[~measured])
    # Of those left out none promised more than one that was taken for its promise.
    spot = verifier.screened[0].spot
    taken = measured.clone()
    taken[spot] = False
    assert bench.promise[~measured].abs().max() <= bench.promise[taken].abs().min()


@pytest.mark.parametrize("noise", [0.2, 2.0, 10.0])
def test_what_is_said_of_the_screen_is_near_the_truth(noise: float) -> None:
    """Spearman and recall from the few measured at random, against those of all thousand."""
    bench, said = Bench(noise), []
    for seed in range(300):
        verifier = Verifier(Budget(count=50), seed, Allowance(0.0, 1.0))
        scored = bench.verify(verifier)
        said.append(verifier.report())
    truth = float(spearmanr(bench.promise.numpy(), bench.truth.numpy()).statistic)
    ranks = [report.spearman for report in said if report.spearman is not None]
    recalls = [report.recall for report in said if report.recall is not None]
    assert len(ranks) == len(recalls) == 300
    assert abs(np.mean(ranks) - truth) < 0.05
    strongest = bench.truth.abs().topk(50).indices
    taken = torch.zeros(1000, dtype=torch.bool)
    for sense in (1, -1):
        taken[(sense * bench.promise).topk(50).indices] = True
    recall = float(taken[strongest].double().mean())
    assert abs(np.mean(recalls) - recall) < 0.15
    assert int(scored.measured.sum()) < 135


def test_recall_is_one_where_everything_was_measured() -> None:
    values = np.arange(5.0)
    everything = np.arange(5)
    whole = Screened(values, values, np.ones(5, dtype=bool), everything, everything)
    assert whole.found() == (1.0, 1.0)
    report = Screening.of([whole], 7)
    assert (report.scored, report.measured, report.recall) == (12, 12, 1.0)
    assert report.spearman == pytest.approx(1.0)
    assert str(report) == "all 12 measured"


def test_nothing_is_said_of_a_screen_that_was_not_judged() -> None:
    values, first = np.arange(50.0), np.arange(4)
    measured = np.zeros(50, dtype=bool)
    measured[first] = True
    report = Screening.of([Screened(values, values, measured, first[:0], first)], 0)
    assert (report.measured, report.spearman, report.recall) == (4, None, None)
    assert str(report) == "4 of 50 measured, the rest are estimates and the screen was not judged"


def test_time_is_shared_out_by_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    allowance = Allowance(clock.now + 10, 4.0)
    assert allowance.share(1.0) == pytest.approx(2.5)
    clock.now += 1  # what was saved goes to the others
    assert allowance.share(1.0) == pytest.approx(3.0)
    clock.now += 9
    assert allowance.share(2.0) == 0.0


def test_a_search_on_a_tiny_budget_gives_its_best_so_far() -> None:
    """Hardly any time: a few of each layer are measured, only these are kept, and it says so."""
    sample = zoo.mlp((6, 300, 200, 1), "tanh", False, 0, torch.float64)
    x = sample.data(60, 0)
    circuit = ng.search(sample.model, x, 1, budget="1ms", paths=3, progress=False)
    told = circuit.provenance["screening"]["nodes"]
    assert 0 < told["measured"] < told["scored"]
    assert circuit.screened()[0].startswith("effects of neurons: ")
    assert circuit.screened()[0] in repr(circuit)
    assert all(data["measured"] for _, data in circuit.graph.nodes(data=True))
    exact = ng.search(sample.model, x, 1, scorer="exact", paths=0, progress=False)
    assert exact.screened() == []
    measured = circuit.scores["layers.1"]["measured"]
    assert 0 < measured.sum() < 200
    assert measured[circuit.neurons(layer="layers.1")["index"]].all()


@pytest.mark.parametrize("scorer", ["gradient", "hybrid", "integrated"])
def test_a_search_by_estimates_says_so(scorer: Any) -> None:
    sample = zoo.mlp((4, 12, 8, 1), "tanh", False, 0, torch.float64)
    x = sample.data(60, 0)
    circuit = ng.search(sample.model, x, 1, scorer=scorer, keep="top:3", paths=5, progress=False)
    exact = ng.search(sample.model, x, 1, keep="top:3", paths=5, progress=False)
    inner = [d for n, d in circuit.graph.nodes(data=True) if n.layer != "layers.2"]
    assert inner
    assert not any(data["measured"] or data["total_measured"] for data in inner)
    assert all(path.measured for path in circuit.strongest)
    assert "screening" not in circuit.provenance
    shared = set(circuit.graph) & set(exact.graph)
    assert len(shared) > len(exact.graph) / 2  # nothing is far from linear here
    # Integrated effects are parts of a joint move, not what a neuron does alone.
    for neuron in shared if scorer != "integrated" else ():
        one, other = circuit.graph.nodes[neuron], exact.graph.nodes[neuron]
        assert one["total_effect"] == pytest.approx(other["total_effect"], rel=0.5, abs=0.02)
