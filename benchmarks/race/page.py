"""The race as a page: what was aimed at, what it costs, what it finds, and what is lost."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from race.plan import CONTENDERS, ENTRIES, OWN, Entry
from race.results import CHAMPION, EVEN, Results, aims, each, peers_of
from race.tasks import TASKS

__all__ = ["page", "write"]

INTRO = """# The race against peers

Written by `python benchmarks/peers.py --write docs/peers.md`, which `make bench` runs too; the
peers' environments are made by `make peers`, and a peer that is not installed is skipped by name.

Same trained network, same samples, same run. Every method runs in a process of its own on one
thread, is first tried on two samples, which pays for imports, and then timed; the quickest of up to
five runs counts. Seconds are those of the processor, of all threads and child processes: time on a
clock says little where a machine is shared. *Set-up* is what happens once for a model and its
samples: our recordings and layer graph, auto-circuit's wrapped model; sums and ratios include it.
*Memory* is the peak of the process above what was resident before. Methods of a kind are compared
as they come, with the settings listed at the end; integrated ones take different numbers of steps.

Rankings are judged by one evaluator, `neurograph.faithfulness`: only what a ranking puts first is
kept, all else is ablated, at the shares of the Mechanistic Interpretability Benchmark (Mueller et
al. 2025, [arXiv:2504.13151](https://arxiv.org/abs/2504.13151)). Faithfulness is 1 where the margin
is the whole model's and 0 where it is that of nothing kept. CPR is the area under the curve of
circuits of the largest effects, the more the better; CMD the area between 1 and the curve of
circuits of the largest sizes of effect, the less the better.
"""

OUTSIDE = """## Not in the race

- nnsight and TransformerLens by themselves: they give hooks, and what is scored with them is
  written by whoever uses them. auto-circuit runs on TransformerLens.
- ACDC, EAP-IG: the first takes a run of the model for every edge and threshold, the second asks for
  CUDA. Their scores, exact and attribution patching, are those of auto-circuit here.
- ipe needs Python 3.12 and scores paths rather than edges; circuit-tracer needs transcoders.
"""


def write(path: Path, folder: Path) -> None:
    """Write the page, and its figures beside it where matplotlib is installed."""
    results = Results.read(folder)
    figures = None
    if importlib.util.find_spec("matplotlib") is not None:
        from race.figures import draw

        figures = draw(results, path.parent / "figures")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results, figures or {}), encoding="utf-8")


def page(results: Results, figures: dict[str, str]) -> str:
    """Markdown of everything that was measured."""
    parts = [INTRO, *_machine(results), *_verdicts(results)]
    if "speed" in figures:
        parts.append(f"![Seconds a score, as multiples of ours](figures/{figures['speed']})\n")
    for name in TASKS:
        parts += _task(results, name, figures)
    parts += [*_evaluators(results), *_skipped(results), OUTSIDE, *_plan(results)]
    return "\n".join(parts).rstrip() + "\n"


def _machine(results: Results) -> Iterator[str]:
    found: dict[str, str] = {}
    for _, outcome in results.entries:
        found |= outcome.get("versions", {})
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    listed = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    processor = names[0] if names else platform.processor()
    yield f"{listed}; {processor}, {os.cpu_count()} cores.\n"
    trials: dict[str, float] = {}
    for entry, outcome in results.entries:
        if outcome["status"] == "measured" and entry.kind in ("gradient", "relevance"):
            least = trials.get(entry.contender, outcome["trial_seconds"])
            trials[entry.contender] = min(least, outcome["trial_seconds"])
    if trials:
        listed = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in trials.items())
        yield (
            "What is left out: a new process had computed for "
            f"{listed} when it had imported all and tried gradients or relevance on two samples.\n"
        )


def _verdicts(results: Results) -> Iterator[str]:
    """What was aimed at, and what of it is lost."""
    yield "## What was aimed at\n"
    yield "| aim | measured | |\n| --- | --- | --- |"
    lost = []
    for aim in aims(results):
        mark = {True: "✓", False: "**lost**", None: "–"}[aim.met]
        yield f"| {aim.aim} | {aim.measured} | {mark} |"
        if aim.met is False:
            lost.append(aim)
    yield ""
    yield "## What we lose\n"
    if not lost:
        yield "None of the aims above."
    for aim in lost:
        yield f"- {aim.aim}: {aim.measured}."
    yield ""


def _task(results: Results, name: str, figures: dict[str, str]) -> Iterator[str]:
    rows, task = results.of(name), TASKS[name]
    if not rows:
        return
    yield f"## {name}\n"
    accuracy = results.tasks.get(name, {}).get("accuracy")
    known = "" if accuracy is None else f"; {100 * accuracy:.1f} % right on samples held out"
    yield f"{task.about[0].upper()}{task.about[1:]}{known}. Ablation: {task.ablation}.\n"
    yield from _costs(results, name)
    quality = results.quality.get(name, {})
    if quality.get("curves"):
        yield from _quality(quality, task.of)
    if name in figures:
        yield f"![Faithfulness by share kept, {name}](figures/{figures[name]})\n"


def _costs(results: Results, name: str) -> Iterator[str]:
    """A row an entry; against ours of the same kind."""
    agreement = results.quality.get(name, {}).get("agreement", {})
    own = {
        entry.kind: outcome
        for entry, outcome in results.of(name)
        if entry.contender == OWN and entry.ranks and outcome["status"] == "measured"
    }
    yield (
        "| method | scores | s | of it set-up | ms a score | against ours of the kind | MB | "
        "Spearman with exact |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for entry, outcome in results.of(name):
        if outcome["status"] != "measured" or entry.kind == "chance":
            continue
        peer = own.get(entry.kind)
        ratio = "–"
        if entry.contender != OWN and peer is not None:
            times = each(outcome) / each(peer)
            ratio = f"{times:.1f} × our time" if times >= 1 else f"**{times:.2f} × our time**"
        same = agreement.get(_label(entry))
        rank = "1" if _label(entry) == f"{OWN} exact" else "–"
        if same is not None:
            rank = f"{same['spearman_absolute']:.3f}"
        yield (
            f"| {entry.contender}: {entry.method} ({entry.kind}) | {outcome['count']:,} | "
            f"{outcome['seconds'] + outcome['setup_seconds']:.3f} | "
            f"{outcome['setup_seconds']:.3f} | "
            f"{1e3 * each(outcome):.3f} | {ratio} | {outcome['above_bytes'] / 1e6:.0f} | {rank} |"
        )
    yield ""


def _quality(quality: dict[str, Any], of: str) -> Iterator[str]:
    curves, sizes, counts = quality["curves"], quality["sizes"], quality["counts"]
    shown = [i for i, count in enumerate(counts) if count and sizes[i] < 1]
    peers = peers_of(curves)
    yield (
        f"Faithfulness of the {of} of largest effect kept alone, of {quality['components']:,}; "
        f"mean margin {quality['full']:.2f} of the model, {quality['empty']:.2f} of nothing kept. "
        f"Bold: the best, and what is within {EVEN:g} of it.\n"
    )
    yield (
        "| ranking | "
        + " | ".join(f"{100 * sizes[i]:g} % ({counts[i]})" for i in shown)
        + " | CPR | CMD |"
    )
    yield "| --- |" + " --- |" * (len(shown) + 2)
    top = [max(c["signed"][i] for c in curves.values()) for i in shown]
    cpr = max(c["cpr"] for c in curves.values())
    cmd = min(c["cmd"] for c in curves.values())
    order = [k for k in curves if k.startswith(OWN)] + list(peers)
    order += [k for k in curves if k not in order]
    for label in order:
        one = curves[label]
        cells = [
            _bold(one["signed"][i], best > EVEN and best - EVEN <= one["signed"][i], 2)
            for i, best in zip(shown, top, strict=True)
        ]
        cells += [_bold(one["cpr"], cpr - EVEN <= one["cpr"], 3)]
        cells += [_bold(one["cmd"], one["cmd"] <= cmd + EVEN / 5, 3)]
        contender, method = label.split(" ", 1)
        yield f"| {contender}: {method} | {' | '.join(cells)} |"
    yield ""
    if any(label.startswith("notebook") for label in curves):
        yield (
            "The loop's effects are on the logit, as they were; their sign is not that of the "
            "margin, which shows in circuits of the largest effects, but not in CMD.\n"
        )


def _bold(value: float, best: bool, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return f"**{text}**" if best else text


def _label(entry: Entry) -> str:
    return f"{entry.contender} {entry.method}"


def _evaluators(results: Results) -> Iterator[str]:
    for name, quality in results.quality.items():
        rows = quality.get("evaluators", {}).get("rows")
        if not rows:
            continue
        yield f"## Two evaluators, {name}\n"
        yield (
            "Mean margins with the edges of the largest sizes of effect kept alone, by "
            "`neurograph.faithfulness` and by auto-circuit's `run_circuits` (tree patching, "
            "resample ablation).\n"
        )
        yield "| ranking | edges kept | neurograph | auto-circuit |\n| --- | --- | --- | --- |"
        for label, count, ours, theirs in rows:
            yield f"| {label.replace(' ', ': ', 1)} | {count} | {ours:.5f} | {theirs:.5f} |"
        yield ""


def _skipped(results: Results) -> Iterator[str]:
    rows = [
        (entry, outcome) for entry, outcome in results.entries if outcome["status"] != "measured"
    ]
    if rows:
        yield "## Skipped\n"
        for entry, outcome in rows:
            yield f"- {entry.key} ({outcome['status']}): {outcome['why']}"
        yield ""


def _plan(results: Results) -> Iterator[str]:
    yield "## What is called\n"
    yield (
        f"`scorer='{CHAMPION}'` is what a user gets who chooses none. Libraries: "
        + "; ".join(f"{c.name} ({c.about}; {c.licence})" for c in CONTENDERS.values())
        + ".\n"
    )
    yield "| entry | call |\n| --- | --- |"
    for entry in ENTRIES:
        yield f"| {entry.key} | {entry.about.replace('|', '/')} |"
    yield ""
