"""Tables of comparisons, as the examples that compare circuits print them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor, nn

import neurograph as ng

__all__ = ["MEASURES", "matrix", "measures", "spread", "survival"]

MEASURES = (
    "neuron_jaccard",
    "neuron_weighted_jaccard",
    "edge_jaccard",
    "edge_weighted_jaccard",
    "path_jaccard",
    "spearman",
    "sign_agreement",
)


def matrix(found: ng.Comparisons, measure: str = "neuron_jaccard") -> pd.DataFrame:
    """One measure of every pair, with what chance gives behind it."""
    values, chance = (found.measure(measure, column=c) for c in ("value", "null_mean"))
    written = [
        ["–" if value != value else f"{value:.2f} ({by_chance:.2f})" for value, by_chance in row]
        for row in map(zip, values.to_numpy(), chance.to_numpy())
    ]
    table = pd.DataFrame(written, columns=list(found.columns))
    table.insert(0, measure, list(found.rows))
    return table


def measures(found: ng.Comparisons) -> pd.DataFrame:
    """All measures: their mean and range over the pairs, beside chance."""
    cells = [cell.measures for cell in found.cells.values()]
    table = pd.concat(cells, keys=range(len(cells)), names=["pair"])
    rows = []
    for measure in MEASURES:
        told = table.xs(measure, level="measure")
        low, high = told["value"].min(), told["value"].max()
        rows.append(
            {
                "measure": measure,
                "mean": told["value"].mean(),
                "range": f"{low:.3f} to {high:.3f}",
                "by chance": told["null_mean"].mean(),
                "largest p": told["p_value"].max(),
                "pairs with p < 0.01": f"{int((told['p_value'] < 0.01).sum())} of {len(told)}",
            }
        )
    return pd.DataFrame(rows)


def spread(model: nn.Module, inputs: Tensor) -> float:
    """Standard deviation of a single logit over all samples."""
    return float(model(inputs).detach().std(correction=0))


def survival(cell: ng.Comparison, spreads: Mapping[str, float] | None = None) -> pd.DataFrame:
    """What is left of the target of both models with each circuit kept alone.

    Parameters
    ----------
    cell : Comparison
    spreads : mapping of str to float, optional
        Standard deviation of each model's target over the samples: then what is left is told as
        the share of its variance. Where targets lie on both sides of 0 alike, their mean is next
        to nothing, and shares of it tell little.
    """
    table = cell.transplants.copy()
    table.insert(0, "model", [cell.names[into == "b"] for into in table["into"]])
    if spreads is not None:
        table["left"] = 1 - (table["error"] / table["model"].map(spreads)) ** 2
    else:
        table["left"] = table["faithfulness"]
    return table
