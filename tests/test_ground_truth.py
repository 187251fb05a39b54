"""Circuits that are known beforehand are what is measured: compiled, hand-written and planted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.programs import PROGRAMS, WORDS
from tests.ranking import auroc, program_edges
from tests.rasp import Program, load

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
    # By shuffling samples alone, or by zeros, one or the other goes wrong.
    others = {c: auroc(program_edges(program, contrast=c), program.edges) for c in ("mean", "zero")}
    assert min(others.values()) < 1


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("length", [4, 6, 9])
def test_hand_written_programs_are_found_by_resampling(name: str, length: int) -> None:
    program = PROGRAMS[name](length)
    check_ranking(program, program_edges(program, contrast="resample"))


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
