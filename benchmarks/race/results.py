"""What was measured, read back from its files, and what follows from it: ratios and verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from race.plan import ENTRIES, OWN, Entry

__all__ = ["CHAMPION", "Aim", "Results", "aims"]

CHAMPION = "auto"  # what a user gets who chooses no scorer
JOINT = "integrated"  # what is meant for circuits kept alone: a part of what all do together
EVEN = 0.005  # of faithfulness, what counts as no difference


@dataclass(frozen=True, eq=False)
class Results:
    """Everything that a race wrote.

    Attributes
    ----------
    entries : list of (Entry, dict)
        In the order of the plan; those that have never run are not there.
    quality : dict
        For each task what `race.quality.judge` wrote.
    tasks : dict
        For each task what `race.tasks.prepare` wrote of it.
    """

    entries: list[tuple[Entry, dict[str, Any]]]
    quality: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]

    @staticmethod
    def read(folder: Path) -> Results:
        """Read a folder of JSON files."""

        def saved(name: str) -> Any:
            path = folder / name
            return json.loads(path.read_text()) if path.exists() else None

        entries = [(entry, saved(f"{entry.key}.json")) for entry in ENTRIES]
        names = list(dict.fromkeys(entry.task for entry in ENTRIES))
        quality = {name: saved(f"{name}.quality.json") for name in names}
        tasks = {name: saved(f"{name}.json") for name in names}
        return Results(
            [(entry, one) for entry, one in entries if one is not None],
            {name: one for name, one in quality.items() if one},
            {name: one for name, one in tasks.items() if one},
        )

    def of(self, task: str) -> list[tuple[Entry, dict[str, Any]]]:
        """Entries of a task."""
        return [(entry, outcome) for entry, outcome in self.entries if entry.task == task]

    def measured(self, task: str, contender: str, method: str) -> dict[str, Any] | None:
        """What one entry measured; None if it did not run."""
        for entry, outcome in self.of(task):
            if (entry.contender, entry.method) == (contender, method):
                return outcome if outcome["status"] == "measured" else None
        return None


def each(outcome: dict[str, Any]) -> float:
    """Seconds a score, set-up included."""
    return float((outcome["seconds"] + outcome["setup_seconds"]) / outcome["count"])


@dataclass(frozen=True)
class Aim:
    """What was aimed at, what was measured, and whether that is enough (None: not measured)."""

    aim: str
    measured: str
    met: bool | None


# -- pairs that are compared ---------------------------------------------------------------------

EXACT = (
    ("induction", "exact edge effects", "auto-circuit", "patching", 10.0),
    ("heart", "exact effects of neurons", "captum", "ablation", 1.0),
    ("heart", "exact effects of neurons", "notebook", "loop", 10.0),
    ("digits", "exact effects of neurons", "captum", "ablation", 1.0),
)


def aims(results: Results) -> Iterator[Aim]:
    """Every aim with what became of it, the losses as plain as the gains."""
    for task, what, contender, method, times in EXACT:
        yield _exact(results, task, what, contender, method, times)
    for task in results.tasks:
        yield from _gradient(results, task)
        yield from _same_gradients(results, task)
        yield from _memory(results, task)
    for task in results.quality:
        yield from _curves(results, task)
    yield from _evaluators(results)


def _exact(
    results: Results, task: str, what: str, contender: str, method: str, times: float
) -> Aim:
    peer, own = results.measured(task, contender, method), results.measured(task, OWN, "exact")
    more = (
        f"{times:g} times the rate of {contender}" if times > 1 else f"no slower than {contender}"
    )
    aim = f"{task}: {what}, {more}"
    if peer is None or own is None:
        return Aim(aim, "not measured", None)
    ratio = each(peer) / each(own)
    text = f"{1e3 * each(own):.2f} ms against {1e3 * each(peer):.2f} ms each: {ratio:.1f} times"
    met = ratio >= times
    agreement = results.quality.get(task, {}).get("agreement", {}).get(f"{contender} {method}")
    if agreement and contender != "notebook":  # whose effects are of other moves
        same = agreement["largest_difference"] <= 1e-4 * agreement["largest_effect"]
        text += (
            f"; of {agreement['common']:,} numbers the largest difference is "
            f"{agreement['largest_difference']:.0g}, the largest effect "
            f"{agreement['largest_effect']:.2f}"
        )
        met = met and same
    return Aim(aim, text, met)


def _gradient(results: Results, task: str) -> Iterator[Aim]:
    own = results.measured(task, OWN, "gradient")
    peers = {
        entry.contender: outcome
        for entry, outcome in results.of(task)
        if entry.kind in ("gradient", "relevance")
        and entry.contender != OWN
        and entry.ranks
        and outcome["status"] == "measured"
    }
    aim = f"{task}: gradient scores, no slower than the fastest peer"
    if own is None or not peers:
        yield Aim(aim, "not measured", None)
        return
    name = min(peers, key=lambda peer: each(peers[peer]))
    seconds = own["seconds"] + own["setup_seconds"]
    theirs = peers[name]["seconds"] + peers[name]["setup_seconds"]
    text = (
        f"{1e3 * seconds:.0f} ms, {1e3 * own['setup_seconds']:.0f} of them set-up, against "
        f"{1e3 * theirs:.0f} ms, {1e3 * peers[name]['setup_seconds']:.0f} of them set-up, "
        f"of {name}"
    )
    yield Aim(aim, text, seconds <= theirs)


def _same_gradients(results: Results, task: str) -> Iterator[Aim]:
    """Edge attribution patching is one estimate, whoever computes it."""
    for label, same in results.quality.get(task, {}).get("agreement", {}).items():
        if label.endswith(" with gradient"):
            yield Aim(
                f"{task}: the same gradient scores as {label.split()[0]}",
                f"of {same['common']:,} numbers the largest difference is "
                f"{same['largest_difference']:.0g}, the largest score {same['largest_effect']:.2f}",
                same["largest_difference"] <= 1e-4 * same["largest_effect"],
            )


def _memory(results: Results, task: str) -> Iterator[Aim]:
    """Peaks of each kind, against the most frugal peer's."""
    for kind in ("exact", "gradient", "integrated"):
        own = results.measured(task, OWN, kind)
        peers = {
            entry.contender: outcome["above_bytes"] / 1e6
            for entry, outcome in results.of(task)
            if entry.kind == kind
            and entry.contender not in (OWN, "notebook")
            and outcome["status"] == "measured"
            and entry.method != "neuron_conductance"
        }
        if own is not None and peers:
            name, mine = min(peers, key=lambda peer: peers[peer]), own["above_bytes"] / 1e6
            yield Aim(
                f"{task}: {kind} scores in no more memory than the most frugal peer",
                f"{mine:.0f} MB against {peers[name]:.0f} MB of {name}",
                mine <= peers[name],
            )


def peers_of(curves: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in curves.items() if k.split()[0] not in (OWN, "chance")}


def _curves(results: Results, task: str) -> Iterator[Aim]:
    for scorer in (CHAMPION, JOINT):
        yield from _curves_by(results, task, scorer)


def _curves_by(results: Results, task: str, scorer: str) -> Iterator[Aim]:
    quality = results.quality[task]
    curves = quality.get("curves", {})
    own, peers = curves.get(f"{OWN} {scorer}"), peers_of(curves)
    aim = f"{task}: at or above the best peer's curve at every size, scorer='{scorer}'"
    if own is None or not peers:
        yield Aim(aim, "not measured", None)
        return
    below = []
    for i, share in enumerate(quality["sizes"]):
        best = max(peers, key=lambda peer: peers[peer]["signed"][i])
        lead = own["signed"][i] - peers[best]["signed"][i]
        if lead < -EVEN:
            below.append(f"{-lead:.2f} below {best} at {100 * share:g} %")
    yield Aim(aim, "; ".join(below) or "nowhere below", not below)
    best = min(peers, key=lambda peer: peers[peer]["cmd"])
    text = f"{own['cmd']:.3f}, the best peer {peers[best]['cmd']:.3f} ({best})"
    yield Aim(
        f"{task}: CMD at or below the best peer's, scorer='{scorer}'",
        text,
        own["cmd"] <= peers[best]["cmd"] + EVEN / 5,
    )


def _evaluators(results: Results) -> Iterator[Aim]:
    for task, quality in results.quality.items():
        outcome = quality.get("evaluators")
        if outcome is None:
            continue
        aim = f"{task}: auto-circuit's own evaluator finds the same mean margins"
        if not outcome.get("rows"):
            yield Aim(aim, outcome.get("why", "not measured"), None)
            continue
        worst = max(abs(ours - theirs) for _, _, ours, theirs in outcome["rows"])
        size = abs(quality["full"] - quality["empty"])
        yield Aim(
            aim,
            f"{len(outcome['rows'])} circuits, largest difference {worst:.0e} of {size:.1f}",
            worst <= 1e-4 * size,
        )
