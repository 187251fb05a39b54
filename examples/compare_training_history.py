"""When does a circuit appear? The heart network's, at ten moments of its training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

import neurograph as ng
from compare_heart_seeds import train, untrained
from neurograph.demos import heart
from neurograph.training import CircuitCallback
from notes import Notes, run
from overlaps import matrix

HALF = 0.5
CHANCE = 0.01
NAMES = {
    "neuron_jaccard": "neurons shared",
    "neuron_weighted_jaccard": "the same, weighted by effects",
    "edge_jaccard": "edges shared",
}


def report(
    note: Notes,
    folder: Path,
    *,
    epochs: int = 20,
    checkpoints: int = 10,
    keep: int = 12,
    draws: int = 1000,
) -> ng.Comparisons:
    """Train, search on the way, compare and write; the page goes to `folder`."""
    data = heart.load_data(0)
    options: dict[str, Any] = {
        "keep": f"top:{keep}",
        "feature_names": data.feature_names,
        "class_names": data.class_names,
    }
    model = untrained(0)
    before = ng.search(model, data.train, target=1, progress=False, **options).detach()
    watch = CircuitCallback(
        data.train, 1, every=epochs // checkpoints, directory=folder / "history", **options
    )
    fitted = train(data, 0, folder, epochs, model, [watch])
    circuits = {0: before} | {s.epoch + 1: s.circuit for s in watch.history}
    found = ng.compare(
        {f"epoch {epoch}": circuit for epoch, circuit in circuits.items()},
        draws=draws,
        progress=False,
    )
    table = _with_last(found, list(circuits), fitted.history)
    note(
        f"The network of seed 0, searched every {epochs // checkpoints} epochs of {epochs}, and "
        "once before the first (epoch 0: random weights). Neurons correspond by name. What each "
        "circuit shares with the last, with what chance gives in brackets:",
        table,
        _said(found, list(circuits), fitted.history),
        "Shared neurons of all pairs:",
        matrix(found),
    )
    _draw(note, found, list(circuits))
    found.to_html(folder / "compare_training_history.html")
    return found


def appears(found: ng.Comparisons, measure: str) -> str | None:
    """The first circuit from which on all share more than half with the last, not by chance."""
    last = found.rows[-1]
    values, chance = (found.measure(measure, column=c)[last] for c in ("value", "p_value"))
    there = None
    for name in reversed(found.rows[:-1]):
        if not (values[name] > HALF and chance[name] < CHANCE):
            break
        there = name
    return there


def _with_last(
    found: ng.Comparisons, epochs: list[int], losses: tuple[dict[str, float], ...]
) -> pd.DataFrame:
    last, rows = found.rows[-1], []
    for epoch, name in zip(epochs, found.rows, strict=True):
        row: dict[str, object] = {"epoch": epoch}
        for measure in (*NAMES, "spearman"):
            if name == last:
                row[measure] = "–"
                continue
            overlap = found[name, last].measures.loc[measure]
            row[measure] = f"{overlap['value']:.2f} ({overlap['null_mean']:.2f})"
            if measure == "neuron_jaccard":
                row["p"] = float(overlap["p_value"])
        row["validation loss"] = losses[epoch - 1]["validation_loss"] if epoch else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def _said(found: ng.Comparisons, epochs: list[int], losses: tuple[dict[str, float], ...]) -> str:
    first = {words: appears(found, measure) or "never" for measure, words in NAMES.items()}
    best = min(range(len(losses)), key=lambda epoch: losses[epoch]["validation_loss"]) + 1
    early, late = (losses[epoch - 1]["validation_loss"] for epoch in (epochs[1], epochs[-1]))
    steps = [found[pair].neuron_jaccard for pair in itertools.pairwise(found.rows)]
    start = found[found.rows[0], found.rows[-1]].measures.loc["neuron_jaccard"]
    return (
        "More than half is shared, and p < 0.01, from then on: "
        + "; ".join(f"{words}: {name}" for words, name in first.items())
        + f". Validation loss is {early:.3f} at epoch {epochs[1]}, {late:.3f} at the end and "
        f"lowest at epoch {best}. Neighbours share {steps[0]:.2f} in the first step from random "
        f"weights, {min(steps[1:]):.2f} to {max(steps[1:]):.2f} in all later ones: in this one "
        "training the circuit drifts rather than appears, and where half is passed depends on what "
        "is counted. "
        f"The random network's circuit shares {start['value']:.2f} of its neurons with the last, "
        f"{start['null_mean']:.2f} by chance (p {start['p_value']:.3f})."
    )


def _draw(note: Notes, found: ng.Comparisons, epochs: list[int]) -> None:
    try:
        from neurograph.report import figures
    except ImportError as missing:
        print(f"no figure: {missing}")
        return
    figure = figures.history(found, at=epochs, xlabel="epoch")
    note.figure(figure, "history", "What circuits share with the last, by epoch")


if __name__ == "__main__":
    run(__file__, "# A training's circuits", report)
