"""What the rankings are worth: every one judged by the same evaluator, on the same samples.

`neurograph.faithfulness` keeps only what a ranking puts first, at the shares of the Mechanistic
Interpretability Benchmark (Mueller et al. 2025, arXiv:2504.13151). CPR is the area under the curve
of circuits of the largest effects, CMD the area between 1 and the curve of circuits of the largest
sizes of effect. For edges, auto-circuit's own evaluator is asked about some of the same circuits.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

import neurograph as ng
from neurograph.ablation.faithfulness_result import areas
from neurograph.preparation.options import SIZES
from race.edges import GROUPS, LAYERS, READERS, edges
from race.plan import CONTENDERS, ENTRIES, OWN
from race.sides.neurograph import target
from race.tasks import Loaded, load

__all__ = ["judge"]

CHANCE = 3  # random orders, whose curves are averaged
ASKED = (0.05, 0.2)  # shares at which the other evaluator is asked
EXACT = f"{OWN} exact"
COLUMNS = {
    "neurons": ["layer", "index"],
    "edges": ["source_layer", "source_index", "target_layer", "target_index"],
}
Scores = dict[tuple[Any, ...], float]


def judge(name: str, folder: Path, environments: Path) -> None:
    """Write ``<task>.quality.json``: curves, areas, agreement of numbers and of evaluators."""
    task = load(name, folder)
    found = dict(_measured(name, folder))
    ranked = {e: s for e, s in found.items() if _ranks(name, e)}
    facts: dict[str, Any] = {"agreement": _agreement(found), "curves": {}}
    if ranked:
        facts |= _curves(task, ranked)
    if task.task.of == "edges" and ranked:
        facts["evaluators"] = _other_evaluator(task, ranked, facts, folder, environments)
    (folder / f"{name}.quality.json").write_text(json.dumps(facts))


def _measured(name: str, folder: Path) -> Any:
    for entry in ENTRIES:
        path = folder / f"{entry.key}.json"
        if entry.task == name and path.exists():
            facts = json.loads(path.read_text())
            if facts["status"] == "measured" and facts["scores"]:
                yield (
                    f"{entry.contender} {entry.method}",
                    {tuple(place): score for *place, score in facts["scores"]},
                )


def _ranks(name: str, label: str) -> bool:
    return any(e.task == name and e.ranks and label == f"{e.contender} {e.method}" for e in ENTRIES)


# -- numbers -------------------------------------------------------------------------------------


def _agreement(found: Mapping[str, Scores]) -> dict[str, Any]:
    """How each contender's numbers compare with our exact effects, on what both scored.

    Edge attribution patching is compared with our gradients besides, as it is the same estimate.
    """
    pairs = [(label, EXACT) for label in found if label != EXACT]
    pairs.append(("auto-circuit gradient", f"{OWN} gradient"))
    facts: dict[str, Any] = {}
    for label, other in pairs:
        common = [p for p in found.get(label, ()) if p in found.get(other, ())]
        if common:
            a, b = (np.array([found[one][place] for place in common]) for one in (label, other))
            facts[label if other == EXACT else f"{label} with gradient"] = {
                "common": len(common),
                "largest_difference": float(np.abs(a - b).max()),
                "largest_effect": float(np.abs(b).max()),
                "spearman": float(spearmanr(a, b).statistic),
                "spearman_absolute": float(spearmanr(np.abs(a), np.abs(b)).statistic),
            }
    return facts


# -- curves --------------------------------------------------------------------------------------


def _curves(task: Loaded, ranked: Mapping[str, Scores]) -> dict[str, Any]:
    """Faithfulness of every ranking at every size."""
    places = list(next(iter(ranked.values())))
    columns = COLUMNS[task.task.of]
    own: list[tuple[Any, ...]] = []
    given: dict[str, Any] = {}
    if task.task.of == "edges":
        # What a head makes of its own queries, keys and values is no edge between writers, and
        # always stays.
        own = _inside_heads()
        given = {"layers": LAYERS, "groups": GROUPS}
        places = list(edges(task.model))
    total = len(own) + len(places)
    sizes = [(len(own) + int(share * len(places)) + 0.5) / total for share in SIZES[:-1]] + [1.0]
    distinct = list(dict.fromkeys(sizes))
    if task.corrupt is None:
        given["ablations"] = ["mean"]
    else:
        given |= {"ablations": ["counterfactual"], "corrupt": task.corrupt}

    def series(scores: Scores) -> pd.Series:
        rows = [*((place, np.inf) for place in own), *((p, scores[p]) for p in places)]
        index = pd.MultiIndex.from_tuples([place for place, _ in rows], names=columns)
        return pd.Series([score for _, score in rows], index)

    rankings = {label: series(scores) for label, scores in ranked.items() if "chance" not in label}
    for seed in range(CHANCE):
        values = np.random.default_rng(seed).standard_normal(len(places))
        rankings[f"chance {seed}"] = series(dict(zip(places, values.tolist(), strict=True)))
    result = ng.faithfulness(
        task.model,
        task.every,
        target,
        rankings,
        sizes=distinct,
        draws=0,
        reference=(task.clean, task.labels),
        progress=False,
        **given,
    )
    kept = result.draws[result.draws["direction"] == "keep"]
    curves: dict[str, Any] = {}
    for (label, order), table in kept.groupby(["ranking", "order"], sort=False):
        at = dict(zip(table["share"], table["faithfulness"], strict=True))
        curves.setdefault(label, {})[order] = [float(at[size]) for size in sizes]
    drawn = [curves.pop(f"chance {seed}") for seed in range(CHANCE)]
    curves["chance random"] = {
        order: np.mean([draw[order] for draw in drawn], axis=0).tolist() for order in drawn[0]
    }
    for one in curves.values():
        one["cpr"] = areas(SIZES, one["signed"]).cpr
        one["cmd"] = areas(SIZES, one["absolute"]).cmd
    ends = result.ends.iloc[0]
    return {
        "curves": curves,
        "sizes": list(SIZES),
        "components": len(places),
        "counts": [int(share * len(places)) for share in SIZES],
        "full": float(ends["full"]),
        "empty": float(ends["empty"]),
    }


def _inside_heads() -> list[tuple[Any, ...]]:
    from race.models import Transformer

    heads = range(Transformer.heads)
    return [
        (f"blocks.{block}.attention.{name}", i, f"blocks.{block}.attention.o_proj:input", j)
        for block in range(Transformer.depth)
        for name in READERS
        for i in heads
        for j in heads
    ]


# -- another evaluator ---------------------------------------------------------------------------


def _other_evaluator(
    task: Loaded,
    ranked: Mapping[str, Scores],
    facts: Mapping[str, Any],
    folder: Path,
    environments: Path,
) -> dict[str, Any]:
    """Ask auto-circuit's `run_circuits` for the margins of some of the circuits."""
    peer = CONTENDERS["auto-circuit"]
    python = peer.python(environments)
    if python is None or not python.exists():
        return {"why": f"{peer.name}: not installed, skipped"}
    labels = [label for label in (EXACT, f"{peer.name} gradient") if label in ranked]
    places = list(edges(task.model))
    counts = [int(share * len(places)) for share in ASKED]
    orders = {label: [[*p, ranked[label][p]] for p in places] for label in labels}
    question, answer = folder / "circuits.json", folder / "circuits.answer.json"
    question.write_text(json.dumps({"task": task.task.name, "orders": orders, "counts": counts}))
    script = Path(__file__).parent.parent / "peers.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(script), "--circuits", "--folder", str(folder)],
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode != 0:
        return {"why": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    theirs = json.loads(answer.read_text())
    rows = []
    gap = facts["full"] - facts["empty"]
    for label in labels:
        for share, count in zip(ASKED, counts, strict=True):
            ours = facts["curves"][label]["absolute"][list(SIZES).index(share)]
            value = theirs[label].get(str(count))
            if value is not None:  # None: equal scores, so that it kept another number
                rows.append([label, count, facts["empty"] + gap * ours, value])
    return {"rows": rows}
