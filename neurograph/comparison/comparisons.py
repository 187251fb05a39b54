"""Many circuits compared pair by pair: seeds, targets, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd

from neurograph.circuit.circuit import Circuit
from neurograph.comparison.comparison import Comparison
from neurograph.comparison.comparison_files import load_comparisons, save_comparisons
from neurograph.comparison.overlap import MEASURES
from neurograph.comparison.pairs import Kind
from neurograph.comparison.stability import stable
from neurograph.errors import OptionError
from neurograph.utils.checks import one_of

__all__ = ["Comparisons"]

_COLUMNS = ("value", "null_mean", "null_low", "null_high", "p_value")


@dataclass(frozen=True, eq=False, repr=False)
class Comparisons:
    """A matrix of comparisons; made by `compare` of several circuits.

    Attributes
    ----------
    rows, columns : tuple of str
        What the circuits are called; the same if all were compared with each other.
    cells : mapping of (str, str) to Comparison
        By row and column. Of circuits compared with each other each pair stands once, the earlier
        one first, and none with itself.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Comparison]

    @property
    def is_square(self) -> bool:
        """Whether all circuits were compared with each other."""
        return self.rows == self.columns

    def __getitem__(self, pair: tuple[str, str]) -> Comparison:
        """Return the comparison of a row's circuit, as a, with a column's, as b.

        Raises
        ------
        KeyError
            These two were not compared.
        """
        row, column = pair
        if pair in self.cells:
            return self.cells[pair]
        if self.is_square and (column, row) in self.cells:
            return self.cells[column, row].flipped()
        raise KeyError(pair)

    def circuits(self) -> dict[str, Circuit]:
        """All circuits by name, rows first."""
        circuits: dict[str, Circuit] = {}
        for (row, column), cell in self.cells.items():
            circuits |= {row: cell.a, column: cell.b}
        return {name: circuits[name] for name in (*self.rows, *self.columns) if name in circuits}

    def measure(self, name: str = "neuron_jaccard", *, column: str = "value") -> pd.DataFrame:
        """Matrix of one measure, ``rows × columns``.

        Parameters
        ----------
        name : str
            One of the measures of `Comparison.measures`.
        column : {"value", "null_mean", "null_low", "null_high", "p_value"}
            What of it.

        Returns
        -------
        DataFrame
            NaN for a circuit beside itself.

        Raises
        ------
        OptionError
            There is no such measure or column.
        """
        first = next(iter(self.cells.values()), None)
        one_of(name, "name", tuple(MEASURES if first is None else first.measures.index))
        one_of(column, "column", _COLUMNS)
        table = pd.DataFrame(math.nan, index=list(self.rows), columns=list(self.columns))
        for (row, other), cell in self.cells.items():
            table.loc[row, other] = cell.measures.at[name, column]
            if self.is_square:
                table.loc[other, row] = table.loc[row, other]
        return table

    def stable(self, of: Kind = "neurons") -> pd.DataFrame:
        """Table of what several circuits have, what most of them have first.

        What corresponds is as in the comparisons with the first row's circuit; what that has no
        partner for stands by itself. Only for circuits that were all compared with each other.

        Parameters
        ----------
        of : {"neurons", "edges", "paths"}

        Returns
        -------
        DataFrame
            ``name``, ``layer`` (of a neuron, of an edge's or path's first one), ``circuits`` (how
            many have it), ``share`` (of all circuits), ``positive`` (in how many of these its
            effect is positive), ``effect`` and ``std`` (mean and standard deviation of its effect
            over these), and for each circuit a column ``effect_NAME``, NaN where it is not in it.

        Raises
        ------
        OptionError
            There is nothing such, rows and columns differ, or a circuit was not compared with the
            first one, as an interruption leaves it.
        """
        one_of(of, "of", ("neurons", "edges", "paths"))
        if not self.is_square:
            raise OptionError("stable() needs circuits that were all compared with each other")
        return stable(self.rows, self.cells, of)

    def to_frame(self) -> pd.DataFrame:
        """Table of one row a pair: ``a``, ``b``, every measure, its p-value as ``MEASURE_p``."""
        rows = []
        for (row, column), cell in self.cells.items():
            pair: dict[str, Any] = {"a": row, "b": column}
            measures = cell.measures
            rows.append(pair | dict(measures["value"]) | dict(measures["p_value"].add_suffix("_p")))
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        values = self.measure().to_numpy()
        known = values[~np.isnan(values)]
        head = f"{len(self.cells)} comparisons of {len(self.circuits())} circuits"
        if not len(known):
            return head
        return f"{head}: neuron_jaccard from {known.min():.3f} to {known.max():.3f}"

    # -- out of here -----------------------------------------------------------------------------

    def to_html(self, path: str | FilePath) -> None:
        """Write one offline HTML page: the matrix, and what is stable."""
        from neurograph.report.comparisons_page import render_comparisons
        from neurograph.report.document import write_page

        write_page(path, lambda: render_comparisons(self))

    def save(self, path: str | FilePath) -> None:
        """Write all circuits and comparisons to one file (no pickle); see `load`."""
        cells = {pair: vars(cell) for pair, cell in self.cells.items()}
        save_comparisons(self.rows, self.columns, self.circuits(), cells, path)

    @staticmethod
    def load(path: str | FilePath) -> Comparisons:
        """Read what `save` wrote; errors as of `Comparison.load`."""
        rows, columns, cells = load_comparisons(path)
        return Comparisons(rows, columns, {pair: Comparison(**x) for pair, x in cells.items()})
