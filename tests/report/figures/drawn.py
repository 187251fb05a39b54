"""Small data to draw, and what the artists of a figure hold."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor, nn

import neurograph as ng
from neurograph.ablation.faithfulness_result import Faithfulness
from neurograph.ablation.signals import Signals
from neurograph.discovery.exemplars import Exemplars
from neurograph.report import figures
from tests.zoo import settle

WILD = "cost_in_$ per $ \x1b[31m"
SHOWN = "cost_in_$ per $ \\x1b[31m"


@dataclass(frozen=True)
class Values:
    """What `distributions` reads of class values."""

    values: Mapping[str, Mapping[Any, np.ndarray]]
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """What `masking` reads of masking curves."""

    table: pd.DataFrame
    baseline: float = 0.9
    metric: str = "BinaryAccuracy"
    how: str = "zero"
    confidence: float = 0.95

    def summary(self) -> pd.DataFrame:
        return self.table


class Waves(nn.Module):
    """Curves of every shape: the hidden neurons' square, wave, line, line down, and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 5)
        nn.init.eye_(self.hidden.weight)
        nn.init.zeros_(self.hidden.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        parts = [h[:, 0] ** 2, torch.sin(3 * h[:, 1]), h[:, 2], -h[:, 3] / 2, 0 * h[:, 4]]
        return sum(parts)[:, None]  # type: ignore[index]


def values(classes: int = 2, neurons: int = 4) -> Values:
    generator = np.random.default_rng(0)
    found = {c: generator.normal(c, 1, (50 + c, neurons)) for c in range(classes)}
    return Values({"hidden": found})


def separations() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    size = np.linspace(-2, 2, 60)
    table = pd.DataFrame(
        {
            "layer": ["first"] * 40 + ["second"] * 20,
            "index": [*range(40), *range(20)],
            "class": "ill",
            "rest": "well",
            "test": generator.choice(["welch", "mann-whitney"], 60),
            "q": 10.0 ** -(5 * np.abs(size)),
            "cohens_d": size,
            "auc": 1 / (1 + np.exp(-size)),
        }
    )
    table["name"] = [
        f"{layer}[{i}]" for layer, i in zip(table["layer"], table["index"], strict=True)
    ]
    return table


def masked() -> Curves:
    shares = np.linspace(0.1, 0.9, 5)
    rows = [
        (ranking, group, share, top - slope * share, top - 0.5 * share, top - slope * share / 2)
        for ranking, top in (("effect", 0.9), ("gradient", 0.8))
        for group, slope in (("important", 0.4), ("unimportant", 0.05), ("random", 0.2))
        for share in shares
    ]
    return Curves(pd.DataFrame(rows, columns="ranking group share mean low high".split()))


def kept(rankings: Sequence[str] = ("exact", "gradient"), **changed: Any) -> Faithfulness:
    """Faithfulness as it would be: two rankings, one of them a circuit's, beside random ones."""
    shares = (0.001, 0.01, 0.1, 0.2, 0.5, 1.0)
    rows = []
    for ablation in ("mean", "zero"):
        for place, name in enumerate(rankings):
            for order, power in (("signed", 0.2), ("absolute", 0.5 + place / 4)):
                rows += [(name, order, ablation, share, 0, share**power) for share in shares]
        rows.append((rankings[0], "kept", ablation, 0.05, 0, 0.8))
        for draw in range(3):
            rows += [("random", "random", ablation, s, draw, s + draw / 20) for s in shares]
    table = pd.DataFrame(rows, columns="ranking order ablation share draw faithfulness".split())
    table = table.assign(components=(1000 * table["share"]).astype(int), value=0.0, error=0.0)
    both = [table.assign(direction="keep")]
    both.append(table.assign(direction="knock_out", faithfulness=1 - table["faithfulness"]))
    ends = pd.DataFrame({"ablation": ["mean", "zero"], "significant": True})
    options = {
        "draws": pd.concat(both, ignore_index=True),
        "ends": ends,
        "target": "well",
    } | changed
    return Faithfulness(**options, of="neurons", components=1000, metric=None, sizes=shares)


def curves(**options: Any) -> ng.ResponseCurves:
    X = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    chosen = {"neurons": "hidden", "progress": False} | options
    return ng.response_curves(Waves(), X, 1, **chosen)


def straight(neurons: int) -> ng.ResponseCurves:
    X = torch.randn(20, neurons, generator=torch.Generator().manual_seed(0))
    return ng.response_curves(nn.Linear(neurons, 1), X, 1, progress=False)


def shifts() -> pd.DataFrame:
    distance = np.linspace(0, 2, 30) ** 2
    return pd.DataFrame(
        {
            "layer": ["first"] * 20 + ["second"] * 10,
            "index": [*range(20), *range(10)],
            "mean_shift": np.where(np.arange(30) % 2, -1, 1) * distance,
            "wasserstein_std": distance,
        }
    )


def profiled() -> Any:
    model = settle(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), 0)
    X = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    return ng.profile(model, X, progress=False)


def checkpoints(epochs: int = 5) -> ng.Comparisons:
    """Circuits of a network whose weights move from some random ones to others."""
    ends = [settle(nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1)), s) for s in (0, 1)]
    X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)).double()
    circuits = {}
    for epoch in range(epochs):
        model = copy.deepcopy(ends[0])
        for moved, last in zip(model.parameters(), ends[1].parameters(), strict=True):
            moved.data.lerp_(last.data, epoch / (epochs - 1))
        found = ng.search(model, X, 1, keep="top:2", paths=5, progress=False)
        circuits[f"epoch {epoch}"] = found.detach()
    return ng.compare(circuits, draws=50, progress=False)


def parts_study() -> ng.Study:
    """Two hidden layers of data whose features and classes have wild names."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1)]
    names = [WILD, "worst fractal dimension", "b"]
    X = pd.DataFrame(torch.rand(60, 3).numpy(), columns=names)
    y = np.arange(60) % 2
    classes = ["malignant or worse", WILD]
    return ng.Study(nn.Sequential(*layers), (X, y), 1, class_names=classes, progress=False)


def signals() -> Signals:
    return parts_study().signals(counts=(1, 2, 4), draws=2)


def exemplars() -> Exemplars:
    return parts_study().exemplars(neurons=["0[0]", "0[1]"], count=2)


FIGURES = {
    "distributions": lambda: figures.distributions(values(), [("hidden", i) for i in range(4)]),
    "many classes": lambda: figures.distributions(values(9), [("hidden", 0), ("hidden", 1)]),
    "exemplars": lambda: figures.exemplars(exemplars()),
    "faithfulness": lambda: figures.faithfulness(kept()),
    "history": lambda: figures.history(checkpoints(3)),
    "masking": lambda: figures.masking(masked()),
    "quantile bands": lambda: figures.quantile_bands(profiled()),
    "responses": lambda: figures.responses(curves()),
    "separation": lambda: figures.separation(separations()),
    "signals": lambda: figures.signals(signals()),
    "shift": lambda: figures.shift(shifts()),
}


def titles(figure: Figure) -> list[str]:
    """First lines of the panels' titles."""
    return [title(ax).split("\n")[0] for ax in figure.axes]


def title(ax: Axes) -> str:
    return ax.get_title(loc="left")


def texts(figure: Figure) -> list[Text]:
    """Every text that shows; ticks beyond the ends of an axis do not."""
    figure.draw_without_rendering()
    hidden = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        beyond = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
        hidden |= {label for tick in beyond for label in (tick.label1, tick.label2)}
    return [
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_visible() and text not in hidden
        if text.get_text().strip()
    ]


def legend(figure: Figure) -> list[str]:
    (only,) = figure.legends
    return [text.get_text() for text in only.get_texts()]
