"""Circuits that are known beforehand are what is measured: compiled, hand-written and planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from tests.planted import planted
from tests.programs import PROGRAMS, WORDS
from tests.ranking import auroc, planted_aurocs, program_edges
from tests.rasp import Program, load
from tests.trained import (
    LENGTH,
    SEEING,
    YEAR,
    Greater,
    greater_than,
    later_years,
    margin,
    modular_addition,
)

SCORERS = ["auto", "exact", "hybrid", "gradient", "integrated"]

COMPILED = Path(__file__).parents[2] / "shared" / "ground_truth"


def check_ranking(program: Program, effects: dict) -> None:
    """Every true edge has an effect, and no false one."""
    wrong = {edge: e for edge, e in effects.items() if (e != 0) != program.edges[edge]}
    assert not wrong
    assert auroc(effects, program.edges) == 1


@pytest.mark.skipif(not COMPILED.exists(), reason=f"{COMPILED.name} is not beside the project")
@pytest.mark.parametrize("name", ["hist", "frac_prevs"])
def test_compiled_programs_are_found_by_resampling(name: str) -> None:
    program, logits = load(COMPILED, name)
    with torch.no_grad():
        torch.testing.assert_close(program.model(program.ids), logits, rtol=0, atol=1e-5)
    for seed in range(3):
        check_ranking(program, program_edges(program, contrast="resample", seed=seed))
    plain = program_edges(program, mixture, "rms", contrast="resample")
    assert auroc(plain, program.edges) == 1
    # By shuffling samples alone, or by zeros, one or the other goes wrong.
    others = {c: auroc(program_edges(program, contrast=c), program.edges) for c in ("mean", "zero")}
    assert min(others.values()) < 1


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("length", [4, 6, 9])
def test_hand_written_programs_are_found_by_resampling(name: str, length: int) -> None:
    program = PROGRAMS[name](length)
    check_ranking(program, program_edges(program, contrast="resample"))


def mixture(output: Tensor, _batch: Any) -> Tensor:
    """Target: all logits at once, each with a weight of its own."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(output.shape[1:], generator=generator, dtype=output.dtype)
    return (output * weights).flatten(1).sum(1)


@pytest.mark.parametrize("name", PROGRAMS)
def test_plain_logits_will_do_where_samples_are_not_averaged(name: str) -> None:
    program = PROGRAMS[name](6)
    effects = program_edges(program, mixture, "rms", contrast="resample")
    assert auroc(effects, program.edges) == 1


def test_constants_break_zeroing_and_positions_break_plain_resampling() -> None:
    """Why there is a contrast that does both."""
    count, reverse = PROGRAMS["count"](5), PROGRAMS["reverse"](5)
    assert auroc(program_edges(count, contrast="zero"), count.edges) < 1
    for contrast in ("mean", "quantiles"):
        assert auroc(program_edges(reverse, contrast=contrast), reverse.edges) < 1


def test_hand_written_programs_do_what_they_say() -> None:
    said = {
        "translate": lambda words, i: words[i] % WORDS,
        "previous": lambda words, i: words[i - 1] - 1 if i else None,
        "reverse": lambda words, i: words[len(words) - 1 - i] - 1,
        "backwards_class": lambda words, i: int(words[len(words) - 1 - i] <= 2),
        "count": lambda words, _: words.count(1),
        "induction": _follower,
    }
    assert said.keys() == PROGRAMS.keys()
    for name, build in PROGRAMS.items():
        program = build(7)
        logits = program.data[1]
        told = logits.argmax(2) if logits.shape[2] > 1 else logits[..., 0].round()
        for ids, row in zip(program.ids.tolist(), told.tolist(), strict=True):
            words = ids[1:]
            for i, answer in enumerate(row[1:]):
                wanted = said[name](words, i)
                assert wanted is None or answer == wanted, (name, words, i)


def _follower(words: list[int], i: int) -> int | None:
    """What came after the same word, where it was followed by one thing only."""
    after = {words[j] for j in range(1, len(words)) if words[j - 1] == words[i]}
    return after.pop() - 1 if len(after) == 1 else None


# -- planted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("seed", range(2))
def test_planted_circuits_are_found_by_every_scorer(scorer: str, seed: int) -> None:
    assert planted_aurocs(planted(seed), scorer=scorer) == (1, 1)


def test_distractors_work_but_reach_nothing_without_noise() -> None:
    for noise in (0.0, 0.3):
        network = planted(3, noise)
        whole, reached = _outputs(network.model, network.X, {})
        rest = {
            layer: [i for (at, i), true in network.neurons.items() if at == layer and not true]
            for layer in ("0", "2", "4")
        }
        for layer, others in rest.items():
            assert reached[layer][:, others].std(0).min() > 0.05
        ablated, _ = _outputs(network.model, network.X, rest)
        assert torch.allclose(ablated, whole, rtol=1e-12, atol=1e-12) == (noise == 0)


def _outputs(
    model: nn.Module, X: Tensor, silent: dict[str, list[int]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a model returns, some of its neurons at 0, and what its layers return."""
    reached: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def after(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            reached[name] = output.clone()
            output[:, silent.get(name, [])] = 0
            return output

        return after

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n]
    with torch.no_grad():
        output = model(X)
    for handle in handles:
        handle.remove()
    return output, reached


def test_noise_blurs_what_was_planted() -> None:
    clean, noisy = (planted_aurocs(planted(0, noise), scorer="exact") for noise in (0.0, 0.4))
    assert clean == (1, 1)
    assert 0.6 < noisy[0] < 1
    assert 0.6 < noisy[1] < 1


# -- trained ---------------------------------------------------------------------------------------


def test_addition_is_done_by_the_neurons_that_follow_one_frequency() -> None:
    network = modular_addition(prime=17, hidden=64, steps=1500)
    assert network.accuracy() == 1
    assert 8 < network.key.sum() < 60
    # What is known is measured first: those neurons are enough, and without them nothing works.
    assert network.accuracy(network.key) == 1
    assert network.accuracy(~network.key) < 0.25
    for contrast in ("resample", "mean"):
        scores = ng.score(
            network.model,
            (network.X, network.y),
            margin,
            layers=["0"],
            contrast=contrast,
            reference=64,
            scorer="exact",
            progress=False,
        )
        effects = scores.ranking()["0"]  # beside those of the inputs
        assert auroc(effects, dict(enumerate(network.key.tolist()))) > 0.99


def test_greater_than_goes_from_the_year_through_the_one_head_that_sees_it() -> None:
    network = greater_than(years=10, steps=200)
    # Beside a guess among the later years, which is the best that there is:
    best = float(torch.arange(1, 10).double().log()[9 - 1 - network.year].mean())
    assert network.loss() < best + 0.1
    for head in range(4):
        spoilt = _without_head(network, head) - network.loss()
        assert spoilt > 0.5 if head == SEEING else abs(spoilt) < 0.1
    for contrast in ("resample", "mean"):
        scores = ng.score(
            network.model,
            (network.ids, network.year),
            later_years,
            contrast=contrast,
            reference=64,
            scorer="exact",
            progress=False,
            **network.options,
        )
        effects = scores.ranking()
        assert set(effects.index[:2]) == {("embed", 0, YEAR), ("o_proj:input", SEEING, LENGTH - 1)}
        assert auroc(effects, network.neurons) == 1


def _without_head(network: Greater, head: int) -> float:
    """The loss with one head's output at its mean over the samples."""
    size = network.model.o_proj.in_features // 4

    def average(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        values = args[0].clone()
        part = slice(head * size, (head + 1) * size)
        values[..., part] = values[..., part].mean(0)
        return (values,)

    handle = network.model.o_proj.register_forward_pre_hook(average)
    try:
        return network.loss()
    finally:
        handle.remove()
