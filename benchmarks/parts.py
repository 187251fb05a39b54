"""How many parts of its layers a network needs: neurons, directions, families, and random ones.

Parts of a kind pass alone, all else that a layer says being its mean; how much of the target's
variance comes back is measured on samples on which they were not found.

    python benchmarks/parts.py --write docs/parts.md
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import neurograph as ng
from neurograph.ablation.signals import ALL, NONE, Signals
from neurograph.demos import heart
from neurograph.report import figures
from notebook_loop import cpu_name
from race.models import Convolutions
from race.tasks import NotAvailable, mnist, repeated, trained_transformer

SHARES = (0.5, 0.8, 0.95)
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
AIM = 20  # neurons for each active direction, at 80%
EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass(frozen=True)
class Network:
    """A trained network, its data, what is explained, and which of its modules are layers."""

    name: str
    about: str
    model: nn.Module
    data: Any
    target: Any
    layers: Any = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="write the page and its figures")
    parser.add_argument("--only", nargs="*", help="names of networks")
    asked = parser.parse_args()
    text, summary = [], []
    for make in NETWORKS:
        if asked.only and make.__name__ not in asked.only:
            continue
        try:
            torch.manual_seed(0)
            network = make()
        except (NotAvailable, ImportError) as error:
            text.append(f"`{make.__name__}` is left out: {error}.")
            print(text[-1], flush=True)
            continue
        start = time.perf_counter()
        signals = measured(network)
        seconds = time.perf_counter() - start
        text += [*section(network, signals, seconds)]
        summary += [*in_all(network, signals)]
        if asked.write:
            figure = figures.signals(signals)
            figure.savefig(asked.write.parent / "figures" / f"parts_{make.__name__}.png", dpi=150)
            text.append(f"![Shares](figures/parts_{make.__name__}.png)")
    page = "\n\n".join([HEAD, table(pd.DataFrame(summary)), CPU, *text]) + "\n"
    print(page)
    if asked.write:
        asked.write.write_text(page, encoding="utf-8")


HEAD = """# How many parts a network needs

Written by `python benchmarks/parts.py --write docs/parts.md`. Of every hidden layer at once so many
parts pass, while all else that they say is its mean over the data. Counted is how many parts, of
all layers together, bring back 50, 80 and 95 % of the target's variance over samples on which they
were not found (an interval of sizes is tried, so that each is at most half as large again as
need be). `gap`: how much more comes back on the samples on which parts were found, at the count
for 80 %, in points of a hundred. `of a direction`: neurons for each active direction, at 80 %; the
aim was 20. The networks of tables and images pass one to three signals a layer on. The two that
read words or characters do not: where attention must still tell them apart, each of the 64 words is
a signal of its own, and so are a hundred characters."""
CPU = f"{cpu_name()}, one run each."


def measured(network: Network) -> Signals:
    study = ng.Study(
        network.model,
        network.data,
        network.target,
        layers=network.layers,
        reference=256,
        memory="1GB",
        progress=False,
    )
    return study.signals(counts=COUNTS, samples=512, draws=2)


def in_all(network: Network, signals: Signals) -> Iterator[dict[str, Any]]:
    """Rows of the first table: parts needed of all layers together."""
    own = signals.table[signals.table["layer"] == ALL]
    if own.empty:
        own = signals.table
    own = own[own["parts"] != NONE]
    widths = signals.table[signals.table["layer"] != ALL].groupby("layer")["count"].max()
    totals = {kind: [] for kind in own["parts"].unique()}
    for kind, rows in own.groupby("parts", sort=False):
        for share in SHARES:
            enough = rows.loc[rows["share"] >= share, "count"]
            totals[kind].append(
                None if enough.empty else int(widths.clip(upper=enough.min()).sum())
            )
    for kind, rows in own.groupby("parts", sort=False):
        enough = rows[rows["share"] >= SHARES[1]]
        gap = "" if enough.empty else enough["found_on"].iloc[0] - enough["share"].iloc[0]
        yield {
            "network": network.name,
            "parts": kind,
            **{f"{share:.0%}": n for share, n in zip(SHARES, totals[kind], strict=True)},
            "gap": "" if gap == "" or gap != gap else f"{100 * gap:+.1f}",
            "of a direction": ratio(totals) if kind == "active" else "",
        }


def ratio(totals: dict[str, list[int | None]]) -> str:
    neurons, active = totals["neurons"][1], totals["active"][1]
    return "" if not neurons or not active else f"{neurons / active:.0f}"


def section(network: Network, signals: Signals, seconds: float) -> Iterator[str]:
    yield f"## {network.name}\n\n{network.about}. {seconds:.0f} s."
    needed = {share: signals.needed(share) for share in SHARES}
    rows = [
        {
            "layer": layer,
            **{
                kind: " / ".join(number(needed[share].loc[layer, kind]) for share in SHARES)
                for kind in needed[SHARES[0]].columns
            },
        }
        for layer in needed[SHARES[0]].index
    ]
    yield "Of each layer, for 50 / 80 / 95 %:"
    yield table(pd.DataFrame(rows))


def number(value: float) -> str:
    return "–" if value != value else f"{value:.0f}"


def table(rows: pd.DataFrame) -> str:
    cells = [
        [("–" if x is None or x != x else x) for x in row] for row in rows.itertuples(index=False)
    ]
    cells = [[f"{x:.0f}" if isinstance(x, float) else str(x) for x in row] for row in cells]
    lines = [list(rows.columns), ["---"] * len(rows.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# -- networks --------------------------------------------------------------------------------------


def heart_network() -> Network:
    data = heart.load_data(0)
    with tempfile.TemporaryDirectory() as folder:
        model = heart.train(0, folder, progress=False).model
    about = "17 → 512 → 1024 → 1 with tanh; the logit, on 734 patients"
    return Network("heart", about, model, data.train, 1)


def one_against_the_others(logits: Tensor, _batch: object) -> Tensor:
    """The margin of a four."""
    return logits[:, 4] - (logits.sum(1) - logits[:, 4]) / (logits.shape[1] - 1)


def trained(model: nn.Module, X: Tensor, y: Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        some = torch.randint(len(X), (128,))
        optimizer.zero_grad()
        cross_entropy(model(X[some]), y[some]).backward()
        optimizer.step()
    return model.eval()


def digits_mlp() -> Network:
    from sklearn.datasets import load_digits

    found = load_digits()
    X, y = torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)]
    model = trained(nn.Sequential(*layers), X, y, 800)
    about = "64 → 256 → 128 → 10 with ReLU; four against the mean of the others, 1,797 digits"
    return Network("digits MLP", about, model, (X, y), one_against_the_others)


def digits_cnn() -> Network:
    images, shown = mnist()
    model = trained(Convolutions(), images, shown, 600)
    about = "32 and 64 channels, 128 hidden neurons; four against the others, 5,000 MNIST digits"
    return Network("digits CNN", about, model, (images, shown), one_against_the_others)


def next_word(logits: Tensor, batch: Any) -> Tensor:
    """The margin of the word that comes next, over the mean."""
    last = logits[:, -1]
    return last.gather(1, batch.labels[:, None])[:, 0] - last.mean(1)


def induction() -> Network:
    model = trained_transformer()
    words, _ = repeated(2000)
    about = "4 layers, 8 heads, width 128, on repeated words; the next word against the mean"
    data = (words[:, :-1], words[:, -1])
    layers = ["embed", "o_proj", "mlp.2"]  # all that writes to the stream
    return Network("induction", about, model.eval(), data, next_word, layers)


def example(name: str) -> Any:
    """A module of the examples; packages that it needs may be missing."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


def bracket() -> Network:
    module = example("pretrained.recurrent")
    model, codes = module.load()
    about = (
        "A character model of two LSTMs, pretrained; how much likelier ] is than ), 1,024 titles"
    )
    data = module.encode(codes, example("recurrent_text").many_titles())
    target = ng.logit_difference(codes["]"], codes[")"])
    return Network("bracket", about, model, data, target, ["embedding", "rnn_1", "rnn_2"])


NETWORKS: list[Callable[[], Network]]
NETWORKS = [heart_network, digits_mlp, digits_cnn, induction, bracket]


if __name__ == "__main__":
    main()
