"""The race against peers: same model, same samples, same run; what it costs and what it finds.

Each entry of the plan (`race/plan.py`) runs in a process of its own, in its library's environment
(`make peers` makes them), and writes a JSON file; the page is made from these files. A library
that is not installed is skipped by name.

    python benchmarks/peers.py --list
    python benchmarks/peers.py --write docs/peers.md [--only induction] [--render]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from race.plan import CONTENDERS, ENTRIES, Entry, listing

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".venv-peers"
FOLDER = ROOT / "build" / "race"
LIMIT = 600.0  # seconds for one entry
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "disabled"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the plan and stop")
    parser.add_argument("--only", default="", help="entries whose key contains this")
    parser.add_argument("--render", action="store_true", help="make the page of what was measured")
    parser.add_argument("--write", type=Path, help="the page; its figures go to figures/ beside it")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the JSON files go")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    # Used by this script, in other environments: run one entry here; answer what quality.py asks.
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    parser.add_argument("--circuits", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print(listing())
        return
    if options.entry:
        one_entry(options.entry, options.folder)
        return
    if options.circuits:
        other_evaluator(options.folder)
        return
    if not options.render:
        race(options.only, options.folder, options.environments)
    if options.write:
        from race.page import write

        write(options.write, options.folder)


def race(only: str, folder: Path, environments: Path) -> None:
    """Train what is raced on, run the entries one after the other, judge the rankings."""
    from race import tasks

    begun = time.perf_counter()
    chosen = [entry for entry in ENTRIES if only in entry.key]
    missing: dict[str, str] = {}
    digits = environments / "captum" / "bin" / "python"
    for name in dict.fromkeys(entry.task for entry in chosen):
        try:
            tasks.prepare(name, folder, digits)
        except tasks.NotAvailable as why:
            missing[name] = str(why)
    for entry in chosen:
        outcome = (
            {"status": "skipped", "why": missing[entry.task]} if entry.task in missing else None
        )
        outcome = outcome or started(entry, folder, environments)
        write_json(folder / f"{entry.key}.json", {"entry": entry.key} | outcome)
        print(said(entry, outcome), flush=True)
    from race.quality import judge

    for name in dict.fromkeys(entry.task for entry in chosen):
        if name not in missing:
            judge(name, folder, environments)
    print(f"{time.perf_counter() - begun:.0f} s in all")


def started(entry: Entry, folder: Path, environments: Path) -> dict[str, Any]:
    """Run an entry in a process of its own, in its library's environment."""
    contender = CONTENDERS[entry.contender]
    python = contender.python(environments) or Path(sys.executable)
    if not python.exists():
        return {
            "status": "skipped",
            "why": f"{contender.name}: not installed, skipped (make peers)",
        }
    command = [str(python), __file__, "--entry", entry.key, "--folder", str(folder)]
    # One thread: seconds of the processor are compared, and memory without pools of threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | OFFLINE
    if contender.environment is not None:
        environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "why": f"not done after {LIMIT:.0f} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"status": "failed", "why": last[:300]}
    path = folder / f"{entry.key}.raw.json"
    outcome: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return outcome


def one_entry(key: str, folder: Path) -> None:
    from race.run import run_entry

    entry = next(entry for entry in ENTRIES if entry.key == key)
    write_json(folder / f"{key}.raw.json", run_entry(entry, folder))


def other_evaluator(folder: Path) -> None:
    from race.sides.auto_circuit import circuits
    from race.tasks import load

    asked = json.loads((folder / "circuits.json").read_text())
    found = circuits(load(asked["task"], folder), asked["orders"], asked["counts"])
    write_json(folder / "circuits.answer.json", found)


def said(entry: Entry, outcome: dict[str, Any]) -> str:
    if outcome["status"] != "measured":
        return f"{entry.key}: {outcome['status']}: {outcome['why']}"
    return (
        f"{entry.key}: {outcome['count']} scores in {outcome['seconds']:.3f} s "
        f"(+ {outcome['setup_seconds']:.3f} s set-up), {outcome['above_bytes'] / 1e6:.0f} MB"
    )


def write_json(path: Path, what: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what))


if __name__ == "__main__":
    main()
