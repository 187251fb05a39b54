"""Five heart networks that differ in their seed alone: what of their circuits is the same?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import TensorDataset

import neurograph as ng
from neurograph.demos import heart
from neurograph.training import Fitted, binary_classifier, fit
from notes import Notes, run
from overlaps import matrix, measures, transplants

STRONGEST = 10  # paths of each sign


def train(
    data: heart.HeartData,
    seed: int,
    folder: Path,
    epochs: int,
    model: heart.HeartNet | None = None,
    callbacks: Sequence[Any] = (),
) -> Fitted:
    """Train as the demo does, but with the split of `data` whatever the seed."""
    return fit(
        binary_classifier(untrained(seed) if model is None else model, learning_rate=1e-3),
        TensorDataset(*data.train),
        TensorDataset(*data.validation),
        directory=folder / "networks",
        name=f"heart_{seed}",
        epochs=epochs,
        seed=seed,
        callbacks=callbacks,
        progress=False,
    )


def untrained(seed: int) -> heart.HeartNet:
    """The network as it is before the first step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return heart.HeartNet().eval()


def report(
    note: Notes,
    folder: Path,
    *,
    seeds: int = 5,
    epochs: int = 20,
    sizes: Sequence[int] = (12, 48, 96),
    draws: int = 1000,
) -> ng.Comparisons:
    """Train, search, compare and write; the pages go to `folder`."""
    data = heart.load_data(0)
    held_out = heart.Split(*map(torch.cat, zip(data.validation, data.test, strict=True)))
    models = {
        f"seed {seed}": train(data, seed, folder, epochs).model.requires_grad_(False)
        for seed in range(seeds)
    }
    by_size = {keep: compared(models, data, keep, draws) for keep in sizes}
    keep, found = next(iter(by_size.items()))
    note(
        f"{seeds} networks of 17 → 512 → 1024 → 1, trained for {epochs} epochs on the same "
        f"{len(data.train.y)} patients; first weights and the order of patients differ. Circuits "
        f"of the logit, {keep} neurons of each layer and sign, as the demo has them; neurons "
        f"matched by activation. Accuracy on {len(held_out.y)} other patients: "
        + ", ".join(f"{_accuracy(model, held_out):.3f}" for model in models.values())
        + ".",
        "Shared neurons of each pair, behind them what chance gives:",
        matrix(found),
        "All measures over the pairs:",
        measures(found),
    )
    _features(note, found)
    _hidden(note, found)
    _paths(note, found)
    note(
        "What is left of a network's target when it keeps its own circuit alone, the neurons that "
        "match another network's, or as many at random, all others at their means: how much of "
        "the patients' logits comes back, mean (least to most) over all pairs, both ways.",
        pd.concat([_left(some, keep) for keep, some in by_size.items()]),
        "The pairs are not independent: each network is in several.",
    )
    first, second = list(models)[:2]
    found[first, second].to_html(folder / "compare_heart_seeds_0_1.html")
    found.to_html(folder / "compare_heart_seeds.html")
    return found


def compared(
    models: dict[str, heart.HeartNet], data: heart.HeartData, keep: int, draws: int
) -> ng.Comparisons:
    """Circuits of "disease" of all networks, beside each other."""
    circuits = {
        name: ng.search(
            model,
            data.train,
            target=1,
            keep=f"top:{keep}",
            feature_names=data.feature_names,
            class_names=data.class_names,
            progress=False,
        )
        for name, model in models.items()
    }
    return ng.compare(
        circuits, match="activation", reference=len(data.train.y), draws=draws, progress=False
    )


def _features(note: Notes, found: ng.Comparisons) -> None:
    many = len(found.rows)
    table = found.stable("neurons").set_index("name")
    totals = pd.DataFrame(
        {
            name: c.features().set_index("name")["total_effect"]
            for name, c in found.circuits().items()
        }
    )
    totals = totals.loc[totals.mean(axis=1).abs().sort_values(ascending=False).index]
    raises = (totals > 0).sum(axis=1)
    agreed = totals.mean(axis=1)[raises.isin([0, many])]
    starts = {sign: Counter[str]() for sign in ("positive", "negative")}
    for circuit in found.circuits().values():
        for sign, counter in starts.items():
            begun = {path.names[0] for path in circuit.paths(STRONGEST, sign=sign)}
            counter.update(begun)
    note(
        f"**Features** by total effect on the logit, through everything. {len(agreed)} of 17 have "
        f"one sign in all {many} networks: "
        + ", ".join(f"{'+' if effect > 0 else '−'} {name}" for name, effect in agreed.items())
        + f". Of 17 features with random signs, {17 * 2 / 2**many:.1f} would. The effect through a "
        "circuit lacks what goes through neurons that it did not keep, and may have the other "
        f"sign. The last columns tell how many circuits have one of their {STRONGEST} strongest "
        "paths up, or down, begin there.",
        pd.DataFrame(
            {
                "feature": name,
                "mean total effect": totals.loc[name].mean(),
                "std over seeds": totals.loc[name].std(),
                "raises it in": raises[name],
                "kept by": table["circuits"].get(name, 0),
                "mean effect through these circuits": table["effect"].get(name, np.nan),
                "begins paths up": starts["positive"][name],
                "begins paths down": starts["negative"][name],
            }
            for name in totals.index
        ),
    )


def _hidden(note: Notes, found: ng.Comparisons) -> None:
    table = found.stable("neurons")
    rows, names = [], list(found.rows)
    circuit = found.circuits()[names[0]]
    for layer in ("linear1", "linear2"):
        kept = table[table["layer"] == layer]
        width = len(circuit.effects_of(layer))
        # The chance that a neuron is kept by so many: circuits keep neurons independently.
        chance = np.array([1.0])
        for name in names:
            share = kept[f"effect_{name}"].notna().sum() / width
            chance = np.convolve(chance, [1 - share, share])
        one = kept["positive"].isin([0]) | (kept["positive"] == kept["circuits"])
        for many in range(2, len(names) + 1):
            there = kept["circuits"] == many
            rows.append(
                {
                    "layer": layer,
                    "kept by": many,
                    "neurons": int(there.sum()),
                    "expected by chance": width * chance[many],
                    "of one sign": int((there & one).sum()),
                }
            )
    note(
        "**Hidden neurons**, those that correspond counted once (as matched with the first seed):",
        pd.DataFrame(rows),
    )


def _paths(note: Notes, found: ng.Comparisons) -> None:
    table, many = found.stable("paths"), len(found.rows)
    counts = table["circuits"].value_counts()
    said = ", ".join(f"{counts.get(n, 0)} by {n}" for n in range(1, many + 1))
    shown = table[table["circuits"] > 1].head(5)
    note(
        f"**Paths.** Of {len(table)} measured paths, stored by so many circuits: {said}. Those in "
        "most circuits, named after the first that has them:",
        shown[["name", "circuits", "positive", "effect"]],
    )


def _left(found: ng.Comparisons, keep: int) -> pd.DataFrame:
    table = pd.concat(map(transplants, found.cells.values()))
    by_kept = table.groupby("kept", sort=False)["recovered"].agg(["mean", "min", "max"])
    ranges = {k: f"{m:.2f} ({low:.2f} to {high:.2f})" for k, m, low, high in by_kept.itertuples()}
    beyond = table.loc[table["kept"] == "other", "p_value"]
    return pd.DataFrame(
        [
            {
                "of each layer and sign": keep,
                "shared neurons": found.measure().stack().mean(),
                "own circuit": ranges["own"],
                "the other's": ranges["other"],
                "random": ranges["random"],
                "the other's better than all random": f"{(beyond < 0.05).sum()} of {len(beyond)}",
            }
        ]
    )


def _rows(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples(index=False))


def _accuracy(model: torch.nn.Module, patients: heart.Split) -> float:
    right = (model(patients.X).squeeze(1) > 0) == patients.y.bool()
    return float(right.float().mean())


if __name__ == "__main__":
    run(__file__, "# The heart network from five seeds", report)
