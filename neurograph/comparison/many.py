"""Many circuits compared pair by pair: seeds, targets, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Literal

import pandas as pd

from neurograph.comparison.result import Comparison

__all__ = ["Comparisons"]


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
        """Return the comparison of a row's circuit, as a, with a column's, as b."""
        raise NotImplementedError

    def measure(self, name: str = "neuron_jaccard", *, column: str = "value") -> pd.DataFrame:
        """Matrix of one measure, ``rows × columns``; `column` may be ``p_value`` or a null's.

        A circuit beside itself is NaN.
        """
        raise NotImplementedError

    def stable(self, of: Literal["neurons", "edges", "paths"] = "neurons") -> pd.DataFrame:
        """Table of what several circuits have, what most of them have first.

        Returns
        -------
        DataFrame
            ``name``, ``layer`` (of neurons), ``circuits`` (how many have it), ``share`` (of all
            circuits), ``positive`` (in how many its effect is positive), ``effect`` and ``std``
            (mean and standard deviation over all circuits of its effect, where not NaN), and one
            column for each circuit: its effect there.
        """
        raise NotImplementedError

    def to_frame(self) -> pd.DataFrame:
        """Table of one row a pair: ``a``, ``b``, every measure, and its p as ``MEASURE_p``."""
        raise NotImplementedError

    def to_html(self, path: str | FilePath) -> None:
        """Write one offline HTML page: the matrix, and what is stable."""
        from neurograph.report.comparisons import write_page

        write_page(self, path)
