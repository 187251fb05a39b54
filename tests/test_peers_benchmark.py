"""The race against peers: its plan, peers that are not there, a page made of written results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers
    from race import edges, models, page, plan, results

    return SimpleNamespace(
        peers=peers, edges=edges, models=models, page=page, plan=plan, results=results
    )


def test_the_plan_lists_every_entry_and_needs_no_library() -> None:
    # -S: without site-packages
    done = subprocess.run(
        [sys.executable, "-S", BENCHMARKS / "peers.py", "--list"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert any(line.startswith("induction.auto-circuit.patching") for line in lines)
    assert len(lines) == 1 + len({line.split()[0] for line in lines[1:]})


def test_every_entry_has_its_contender_and_its_task(race: SimpleNamespace) -> None:
    from race.tasks import TASKS

    for entry in race.plan.ENTRIES:
        assert entry.contender in race.plan.CONTENDERS
        assert entry.task in TASKS
        side = BENCHMARKS / "race" / "sides" / f"{entry.contender.replace('-', '_')}.py"
        assert f'"{entry.method}"' in side.read_text()


def test_a_peer_that_is_not_installed_is_skipped_by_name(
    race: SimpleNamespace, tmp_path: Path
) -> None:
    for entry in race.plan.ENTRIES:
        if race.plan.CONTENDERS[entry.contender].environment is None:
            continue
        outcome = race.peers.started(entry, tmp_path, tmp_path / "nowhere")
        assert outcome["status"] == "skipped"
        assert outcome["why"].startswith(f"{entry.contender}: not installed, skipped")
        assert "scores" not in outcome


def test_a_side_whose_library_lacks_a_part_says_which(
    race: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from race.run import run_entry

    monkeypatch.setitem(sys.modules, "auto_circuit", None)
    monkeypatch.delitem(sys.modules, "race.sides.auto_circuit", raising=False)
    entry = next(e for e in race.plan.ENTRIES if e.contender == "auto-circuit")
    outcome = run_entry(entry, tmp_path)
    assert outcome["status"] == "skipped"
    assert "auto_circuit" in outcome["why"]


def test_edges_are_those_of_a_factorised_transformer(race: SimpleNamespace) -> None:
    found = list(race.edges.edges(race.models.Transformer()))
    # per block: 24 head inputs and an MLP, which read 1 + 9 b and 9 (b + 1) writers; logits, 37
    assert len(found) == sum(24 * (1 + 9 * b) + 9 * (b + 1) for b in range(4)) + 37 == 1519
    assert len(set(found)) == len(found)
    assert ("blocks.1.mlp", 0, "blocks.1.attention.q_proj", 0) not in found
    assert ("blocks.1.attention.o_proj:input", 7, "blocks.1.mlp", 0) in found


def measured(seconds: float, scores: list[Any], **outcome: Any) -> dict[str, Any]:
    return {
        "status": "measured",
        "scores": scores,
        "count": len(scores),
        "facts": {},
        "trial_seconds": 0.1,
        "setup_seconds": 0.0,
        "seconds": seconds,
        "above_bytes": 10_000_000,
        "versions": {"torch": "2"},
    } | outcome


def test_a_page_is_made_of_what_was_written(race: SimpleNamespace, tmp_path: Path) -> None:
    """Made-up numbers: twice as fast as captum but a worse curve, which the page must not hide."""
    scores = [["conv1", 0, 1.0], ["conv1", 1, 0.5]]
    files = {
        "digits.neurograph.exact": measured(1.0, scores),
        "digits.captum.ablation": measured(2.0, scores),
        "digits.zennit-crp.graph": {"status": "skipped", "why": "zennit-crp: not installed"},
    }
    for key, outcome in files.items():
        (tmp_path / f"{key}.json").write_text(json.dumps({"entry": key} | outcome))
    (tmp_path / "digits.json").write_text('{"accuracy": 0.9}')
    curve = {"signed": [0.2, 1.0], "absolute": [0.2, 1.0], "cpr": 0.3, "cmd": 0.4}
    better = {"signed": [0.6, 1.0], "absolute": [0.6, 1.0], "cpr": 0.7, "cmd": 0.1}
    agreement = {
        "common": 2,
        "largest_difference": 0.0,
        "largest_effect": 1.0,
        "spearman": 1.0,
        "spearman_absolute": 1.0,
    }
    quality = {
        "agreement": {"captum ablation": agreement},
        "curves": {"neurograph auto": curve, "captum ablation": better},
        "sizes": [0.5, 1.0],
        "counts": [1, 2],
        "components": 2,
        "full": 1.0,
        "empty": 0.0,
    }
    (tmp_path / "digits.quality.json").write_text(json.dumps(quality))
    results = race.results.Results.read(tmp_path)
    aims = {aim.aim: aim for aim in race.results.aims(results)}
    assert aims["digits: exact effects of neurons, no slower than captum"].met is True
    assert "2.0 times" in aims["digits: exact effects of neurons, no slower than captum"].measured
    curves = [aim for name, aim in aims.items() if "curve" in name or "CMD" in name]
    # By the default scorer, and by the one that was not measured.
    assert [aim.met for aim in curves] == [False, False, None]
    assert "0.40 below captum ablation at 50 %" in curves[0].measured
    text = race.page.page(results, {})
    assert text.count("**lost**") == 2
    lost = text.split("## What we lose")[1].split("##")[0]
    assert "0.40 below captum ablation" in lost
    assert "digits.zennit-crp.graph (skipped): zennit-crp: not installed" in text
    assert "| captum: ablation (exact) | 2 | 2.000 |" in text


def test_margins_are_of_the_right_answer_over_the_other(race: SimpleNamespace) -> None:
    from race.tasks import margin

    labels = torch.tensor([[1, 0], [0, 2]])
    logits = torch.tensor([[1.0, 4.0, 0.0], [2.0, 0.0, 5.0]])
    assert margin(logits, labels).tolist() == [3.0, -3.0]
    assert margin(logits[:, None].expand(2, 7, 3), labels).tolist() == [3.0, -3.0]
    assert margin(torch.tensor([[2.0], [3.0]]), torch.tensor([[1, 1], [0, 0]])).tolist() == [2, -3]
