"""Tables of comparisons, as the examples that compare circuits print them."""

from __future__ import annotations

import pandas as pd

import neurograph as ng

__all__ = ["matrix", "measures", "transplants"]


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
    for measure in cells[0].index:
        pairs = table.xs(measure, level="measure")
        low, high = pairs["value"].min(), pairs["value"].max()
        rows.append(
            {
                "measure": measure,
                "mean": pairs["value"].mean(),
                "range": f"{low:.3f} to {high:.3f}",
                "by chance": pairs["null_mean"].mean(),
                "largest p": pairs["p_value"].max(),
                "pairs with p < 0.01": f"{int((pairs['p_value'] < 0.01).sum())} of {len(pairs)}",
            }
        )
    return pd.DataFrame(rows)


def transplants(found: ng.Comparison) -> pd.DataFrame:
    """What comes back in both models with each circuit kept alone, with whose model it is."""
    table = found.transplants.copy()
    table.insert(0, "model", [found.names[into == "b"] for into in table["into"]])
    return table
