"""Estimates agree with interventions to first order, and where models are linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.effects.budget import Schedule
from neurograph.effects.effects import Effects
from neurograph.effects.exact_scorer import ExactScorer
from neurograph.effects.experiment import Experiment
from neurograph.effects.gradient import GradientScorer, Integrated
from neurograph.effects.hybrid import HybridScorer
from neurograph.effects.routes import TARGET, Through
from neurograph.effects.scorer import Method, Scored, Scorer, as_method
from neurograph.effects.scorers import SCORERS
from neurograph.effects.slopes import AtBackground, along
from neurograph.questions.study import Study
from neurograph.utils.memory import PeakMeter
from tests import zoo
from tests.case import as_data

SAMPLES = 4
ESTIMATES = ["gradient", "hybrid", "integrated"]
SMOOTH = ["vit", "lstm", "lstm_cell", "convnext", "attention_weights", "gpt2_heads"]

MakeScorer = Callable[[str, Experiment], Scorer]
ChooseOutputs = Callable[[Experiment, str, int], Through]


class AffineNet(nn.Module):
    """Skips, shared readers and a direct way to the output, but nothing that bends."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.head, self.skip = nn.Linear(4, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h = h + self.down(self.up(h))
        return self.head(h) + self.skip(x)


def neurons_of(experiment: Experiment) -> list[str]:
    return [n for n in experiment.graph if experiment.recording.layers[n].neurons]


def all_edges(scorer: Scorer, experiment: Experiment, writer: str) -> dict[str, np.ndarray]:
    """Effects of all edges from a layer, ``[neurons, outputs]`` for each reader."""
    readers = {
        name: range(len(experiment.units(name)))
        for name in experiment.graph.successors(writer)
        if experiment.recording.layers[name].neurons
    }
    neurons = range(len(experiment.units(writer)))
    found = {name: np.zeros((len(neurons), len(outputs))) for name, outputs in readers.items()}
    for edges in scorer.edges(writer, neurons, readers, transfers=False):
        i, j = edges.pairs.numpy().T
        found[edges.reader][i, j] = edges.scored.effects.effect.numpy()
    return found


def effects_of(
    scorer: Scorer, layer: str, through: Through, neurons: range, readers: dict[str, range]
) -> Tensor:
    """Effects of nodes, totals and edges, one after the other."""
    nodes = scorer.nodes(layer, through).effects.effect
    totals = scorer.totals(layer, neurons).effects.effect
    table = torch.zeros(8, 6, dtype=torch.float64)
    for edges in scorer.edges(layer, neurons, readers):
        table[tuple(edges.pairs.T)] = edges.scored.effects.effect
    return torch.cat([nodes, totals, table.flatten()])


# -- where the model is affine ---------------------------------------------------------------------


@pytest.mark.parametrize("scorer", [*ESTIMATES, "auto"])
@pytest.mark.parametrize("contrast", ["quantiles", "mean", "zero"])
@pytest.mark.parametrize("background", ["data", "mean", "zero"])
def test_estimates_are_exact_where_the_model_is_affine(
    scorer: str,
    contrast: str,
    background: Any,
    scorer_of: MakeScorer,
    some_outputs: ChooseOutputs,
) -> None:
    model = zoo.settle(AffineNet(), 0)
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {
        "contrast": contrast,
        "background": background,
        "reference": SAMPLES,
        "memory": 20_000,
        "progress": False,
    }
    with Study(model, x, 1, **options).open() as experiment:
        tested, exact = scorer_of(scorer, experiment), ExactScorer(experiment)
        for layer in experiment.graph:
            through = some_outputs(experiment, layer, 1)
            every = range(len(experiment.units(layer)))
            for found, wanted in (
                (tested.nodes(layer, through), exact.nodes(layer, through)),
                (tested.totals(layer, every), exact.totals(layer, every)),
            ):
                for key in ("effect", "stderr"):
                    a, b = (getattr(s.effects, key) for s in (found, wanted))
                    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
            edges, truth = (all_edges(s, experiment, layer) for s in (tested, exact))
            for reader, effects in edges.items():
                np.testing.assert_allclose(effects, truth[reader], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scorer", ESTIMATES)
def test_a_channel_that_stands_twice_in_a_padded_group_counts_once(
    scorer: str, scorer_of: MakeScorer
) -> None:
    model = zoo.settle(AffineNet(), 0)
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    groups = {"enter": [[0, 1, 2], [3]], "up": [[0], [1, 2, 3, 4]]}
    options = {"groups": groups, "reference": SAMPLES, "progress": False}
    with Study(model, x, 1, **options).open() as experiment:
        through = {"up": None, "head": None}
        tested, exact = scorer_of(scorer, experiment), ExactScorer(experiment)
        found, wanted = tested.nodes("enter", through), exact.nodes("enter", through)
        torch.testing.assert_close(found.effects.effect, wanted.effects.effect)
        for writer in ("input", "enter", "up"):
            edges, truth = (all_edges(s, experiment, writer) for s in (tested, exact))
            for reader, effects in edges.items():
                np.testing.assert_allclose(effects, truth[reader], rtol=1e-9, atol=1e-12)


# -- to first order --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMOOTH)
def test_errors_shrink_quadratically(
    name: str,
    scorer_of: MakeScorer,
    some_outputs: ChooseOutputs,
    set_moves: Callable[[Experiment, float], None],
) -> None:
    """Half the step leaves a quarter of the error, of nodes, totals and edges."""
    network = zoo.NETWORKS[name](0)
    options = dict(reference=SAMPLES, progress=False, **network.options)
    study = Study(network.model, as_data(network.inputs(8, 1)), network.target, **options)
    checked = dict.fromkeys(ESTIMATES, 0)
    with study.open() as experiment:
        layers = [n for n in neurons_of(experiment) if some_outputs(experiment, n, 2)]
        for layer in layers[:: max(1, len(layers) // 5)]:
            through = some_outputs(experiment, layer, 2)
            every = range(len(experiment.units(layer)))[:8]
            reader = next((r for r in through if r != TARGET), None)
            readers = {reader: range(len(experiment.units(reader)))[:6]} if reader else {}

            errors: dict[str, list[Tensor]] = {scorer: [] for scorer in ESTIMATES}
            for step in (2e-3, 1e-3):
                set_moves(experiment, step)
                exact = effects_of(ExactScorer(experiment), layer, through, every, readers)
                for scorer in ESTIMATES:
                    tested = scorer_of(scorer, experiment)
                    estimates = effects_of(tested, layer, through, every, readers)
                    errors[scorer].append((estimates - exact).abs())
            for scorer, (far, near) in errors.items():
                if far.norm() < 1e-9:  # nothing but rounding
                    continue
                # Single errors may be smaller where second and third order cancel.
                assert far.norm() > 3.5 * near.norm(), (layer, scorer)
                curved = far > 1e-10
                assert (far[curved] > 3.4 * near[curved]).double().mean() > 0.9, (layer, scorer)
                checked[scorer] += int(curved.sum())
    assert checked["gradient"] > 20
    # These two are exact beyond first order in much of a model.
    assert min(checked.values()) > 0


# With half of the layers there is nothing that all of them do not show.
@pytest.mark.parametrize("name", [n for n in zoo.NETWORKS if not n.endswith("_half")])
def test_one_backward_run_gives_every_gradient(name: str) -> None:
    """Of a real run, all at once, and of each layer by itself: the same."""
    network = zoo.NETWORKS[name](0)
    options = dict(reference=SAMPLES, progress=False, **network.options)
    study = Study(network.model, as_data(network.inputs(8, 1)), network.target, **options)
    with study.open() as experiment:
        together, alone = AtBackground(experiment), AtBackground(experiment)
        experiment.real = True
        found = {layer: together.slope(layer) for layer in neurons_of(experiment)}
        experiment.real = False
        for layer, slope in found.items():
            torch.testing.assert_close(slope, alone.slope(layer), rtol=1e-9, atol=1e-11)
        assert any(bool(slope.any()) for slope in found.values())


# -- hybrid and integrated -------------------------------------------------------------------------


def bent(seed: int, last: nn.Module) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), last, nn.Linear(6, 1)
    ).double()


def test_hybrid_is_exact_where_all_behind_the_readers_is_linear() -> None:
    model, x = bent(0, nn.Identity()), torch.randn(40, 5, dtype=torch.float64)
    model[0].weight.data *= 3  # moves far into the bends
    with Study(model, x, 1, progress=False).open() as experiment:
        hybrid, exact = HybridScorer(experiment), ExactScorer(experiment)
        for layer in ("0", "2"):
            through = {next(experiment.graph.successors(layer)): [0]}
            found, wanted = hybrid.nodes(layer, through), exact.nodes(layer, through)
            torch.testing.assert_close(found.effects.effect, wanted.effects.effect)
        gradient = (
            GradientScorer(experiment, [AtBackground(experiment)])
            .nodes("0", {"2": [0]})
            .effects.effect
        )
        gap = (gradient - exact.nodes("0", {"2": [0]}).effects.effect).abs().max()
        assert gap > 0.01, "nothing bends here: the test would prove nothing"


def towards(share: float, end: Tensor, computed: Tensor) -> Tensor:
    """Part of the way to an end; gradients see what was computed."""
    return computed + share * (end - computed).detach()


@pytest.mark.parametrize("contrast", ["mean", "zero", "quantiles"])
def test_integrated_effects_are_gradients_averaged_along_the_joint_move(contrast: str) -> None:
    """Written out for one network: each layer goes part of the way from what it computes."""
    model, x = bent(1, nn.GELU()), torch.randn(40, 5, dtype=torch.float64)
    options, steps = {"contrast": contrast, "reference": SAMPLES, "progress": False}, 3
    with Study(model, x, 1, **options).open() as experiment:
        scorer = GradientScorer(experiment, along(experiment, steps))
        still = {n: experiment.recording.main(n) for n in ("input", "0", "2", "4")}
        ends = {n: [experiment.end(n, end) for end in (0, -1)] for n in still}
        wanted = {n: torch.zeros_like(rows) for n, rows in still.items()}
        edges = torch.zeros(SAMPLES, 8, 6, dtype=torch.float64)
        for end, sense in ((0, -1), (1, 1)):
            for step in range(steps):
                share = (step + 0.5) / steps

                def blended(
                    name: str, computed: Tensor, share: float = share, end: int = end
                ) -> Tensor:
                    return computed + share * (ends[name][end] - computed).detach()

                with torch.enable_grad():
                    rows = {"input": blended("input", still["input"].clone().requires_grad_())}
                    rows["0"] = blended("0", model[0](rows["input"]))
                    rows["2"] = blended("2", model[2](model[1](rows["0"])))
                    rows["4"] = blended("4", model[4](model[3](rows["2"])))
                    slopes = torch.autograd.grad(
                        rows["4"].sum(), list(rows.values()), retain_graph=True
                    )
                    bend = torch.autograd.grad(torch.tanh(rows["0"]).sum(), rows["0"])[0]
                weight = sense / steps
                for name, slope in zip(rows, slopes, strict=True):
                    wanted[name] += weight * slope * (ends[name][end] - still[name])
                moved = bend * (ends["0"][end] - still["0"])
                edges += weight * torch.einsum(
                    "si,pi,sp->sip", moved, model[2].weight.detach(), slopes[2]
                )
        for name, parts in wanted.items():
            found = scorer.totals(name, range(parts.shape[1])).effects.effect
            torch.testing.assert_close(found, parts.mean(0))
        np.testing.assert_allclose(all_edges(scorer, experiment, "0")["2"], edges.mean(0))


def test_estimates_average_over_samples() -> None:
    """The same samples twice give the same effects: nothing is summed that should be averaged."""
    model, x = bent(2, nn.Tanh()), torch.randn(40, 5, dtype=torch.float64)
    twice = torch.cat([x[:8], x[:8]])
    found: dict[int, list[Tensor]] = {}
    for reference in (x[:8], twice):
        options = {"reference": reference, "progress": False}
        with Study(model, x, 1, **options).open() as experiment:
            points = [AtBackground(experiment)], along(experiment, 3)
            scorers: list[Scorer] = [GradientScorer(experiment, some) for some in points]
            found[len(reference)] = [
                torch.from_numpy(all_edges(s, experiment, "0")["2"]) for s in scorers
            ] + [s.nodes("0", {"2": [1]}).effects.effect for s in scorers]
    for once, again in zip(found[8], found[16], strict=True):
        torch.testing.assert_close(once, again)


# -- memory ----------------------------------------------------------------------------------------


def test_gradients_take_a_few_copies_of_the_activations() -> None:
    """However many layers and heads: no copy of the residual stream for each of them."""
    network = zoo.NETWORKS["gpt2_heads"](0)
    inputs = network.inputs(16, 1)
    options = dict(reference=16, memory="1GB", progress=False, **network.options)
    with Study(network.model, as_data(inputs), network.target, **options).open() as experiment:
        layers = experiment.recording.layers
        copy = sum(experiment.recording.main(name).nbytes for name in layers)
        copy = max(copy, 16 * experiment.recording.row_bytes)
        with PeakMeter() as meter:
            gradient = GradientScorer(experiment, [AtBackground(experiment)])
            for layer in neurons_of(experiment):
                gradient.totals(layer, range(len(experiment.units(layer))))
                all_edges(gradient, experiment, layer)
        assert meter.peak < 6 * copy


# -- scorers for everything ------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("name", ["resnet", "gpt2_heads", "gpt2_each", "lstm_states", "bert_last"])
def test_every_scorer_scores_everything(name: str, scorer: str, scorer_of: MakeScorer) -> None:
    """Neurons, heads, positions: each has a finite effect, measured or not as it says."""
    network = zoo.NETWORKS[name](0)
    options = dict(reference=2, progress=False, **network.options)
    study = Study(network.model, as_data(network.inputs(6, 1)), network.target, **options)
    with study.open() as experiment:
        tested = scorer_of(scorer, experiment)
        layer = neurons_of(experiment)[-2]
        scored = tested.totals(layer, range(len(experiment.units(layer))))
        assert torch.isfinite(scored.effects.effect).all()
        estimated = scorer in ESTIMATES
        assert (scored.measured is not None and not scored.measured.any()) == estimated
        for effects in all_edges(tested, experiment, layer).values():
            assert np.isfinite(effects).all()


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_are_read_back_as_they_are_written(name: str) -> None:
    method = as_method(name)
    assert (method.name, method.as_json(), as_method(method)) == (name, name, method)


def test_a_scorer_with_settings_travels_with_the_circuit(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    options: dict[str, Any] = {"progress": False, "paths": 1}
    X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    circuit = ng.search(network, X, 1, scorer=Integrated(steps=8), **options)
    circuit.save(tmp_path / "net.circuit")
    loaded = ng.load(tmp_path / "net.circuit")
    assert loaded.provenance["options"]["scorer"] == {"name": "integrated", "steps": 8}
    assert as_method(loaded.provenance["options"]["scorer"]) == Integrated(steps=8)
    assert loaded.attach(network, X).is_attached
    scores = ng.score(network, X, 1, scorer=Integrated(steps=2), progress=False)
    assert "by integrated(steps=2)" in str(scores)
    coarse, usual = (
        ng.score(network, X, 1, scorer=scorer, progress=False).ranking()
        for scorer in (Integrated(steps=1), "integrated")
    )
    assert not np.allclose(coarse, usual.loc[coarse.index], rtol=1e-6)


class OneEach(ExactScorer):
    """The number of each neuron for its effect: known, and no registry holds it."""

    def totals(self, writer: str, neurons: Sequence[int]) -> Scored:
        effect = torch.tensor(list(neurons), dtype=torch.float64)
        unknown = torch.full_like(effect, torch.nan)
        return Scored.estimated(Effects(effect, unknown, unknown[:, None]))


@dataclass(frozen=True)
class Numbers(Method):
    """A scorer of a user's own."""

    def start(self, experiment: Experiment, schedule: Schedule) -> Scorer:
        return OneEach(experiment)


def test_a_scorer_of_ones_own_is_passed_as_an_object() -> None:
    scores = ng.score(
        nn.Sequential(nn.Linear(3, 1)), torch.rand(9, 3), 1, scorer=Numbers(), progress=False
    )
    assert scores.provenance["options"]["scorer"] == "numbers"
    assert scores.ranking().loc["input"].to_dict() == {0: 0.0, 1: 1.0, 2: 2.0}
    with pytest.raises(ng.NeurographError, match="scorer='numbers' is none of 'auto', 'exact'"):
        as_method("numbers")
    with pytest.raises(ng.NeurographError, match="steps"):
        Integrated(steps=0)
