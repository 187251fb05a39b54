"""Two circuits compared: what they share, beside what chance would share, and what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurograph.circuit.circuit import Circuit
from neurograph.comparison.comparison_files import load_comparison, save_comparison
from neurograph.matching.matching import Matching
from neurograph.utils.checks import one_of

__all__ = ["STATUSES", "Comparison", "Status"]

Status = Literal["only_a", "only_b", "both", "flipped"]
STATUSES: tuple[Status, ...] = ("only_a", "only_b", "both", "flipped")

_TABLES = ("layers", "transplants", "_neurons", "_edges", "_paths")
_SIDED = (
    "neuron source target path effect stderr total_effect total_stderr layer kept share".split()
)
_SHARED = 12  # listed
_WHOSE = {"own": "its own circuit", "other": "the other circuit"}
_MIRRORED = {"only_a": "only_b", "only_b": "only_a", "a": "b", "b": "a"}


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two circuits side by side; made by `compare`.

    Attributes
    ----------
    a, b : Circuit
        Those compared, without their models.
    names : (str, str)
        What a and b are called.
    matching : Matching
        Which neuron of a's model is which of b's.
    measures : DataFrame
        Indexed by ``measure``, of which `neurograph.comparison.overlap.MEASURES` says what each
        is: ``value``, and of the same measure with the neurons of both circuits permuted within
        their layers ``null_mean``, ``null_low``, ``null_high`` (2.5% and 97.5% of the draws) and
        ``p_value``: the chance of a value at least as large. Where nearly all effects have one
        sign, chance gives nearly as much ``sign_agreement``.
    null : mapping of str to ndarray, [draws]
        Each measure under these permutations.
    layers : DataFrame
        A row for each pair of layers, and each layer without a partner: ``layer_a``, ``layer_b``
        (None if there is none); ``kept_a``, ``kept_b``, ``common``, numbers of neurons;
        ``jaccard`` with its ``null_mean`` and ``p_value``; ``share_a``, ``share_b``, of the sum of
        the absolute effects of all kept neurons; ``similarity``, mean over the pairs; ``cka``.
    transplants : DataFrame
        What is left of one model's target with some of its neurons kept and all others ablated:
        ``into`` (a or b: whose model), ``kept`` (``own``: its own circuit; ``other``: the neurons
        that match the other circuit's; ``random``: as many in each layer, drawn at random),
        ``neurons``; ``recovered``, how much of the samples' targets comes back, 1 − (error /
        error with nothing kept)²: 1 as the whole model, 0 as nothing, below 0 worse than nothing;
        ``recovered_low``, ``recovered_high`` (2.5% and 97.5% of the random draws); ``p_value`` (of
        ``other``: the chance of as much with random neurons); ``error``, the root mean square
        distance of the samples' targets to those of the whole model; ``value``, the mean target,
        and its ``faithfulness`` as `faithfulness` has it, which says little where the mean hardly
        depends on the model. Empty where a model is not attached.
    notes : tuple of str
        What to bear in mind: other targets, data or options, ties, errors that are not paired.
    provenance : mapping
        Options and versions. JSON-able.
    """

    a: Circuit
    b: Circuit
    names: tuple[str, str]
    matching: Matching
    measures: pd.DataFrame
    null: Mapping[str, np.ndarray]
    layers: pd.DataFrame
    transplants: pd.DataFrame
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _neurons: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    _edges: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    _paths: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    # -- tables ----------------------------------------------------------------------------------

    def neurons(self, status: Status | None = None) -> pd.DataFrame:
        """Table of the neurons of either circuit, those that changed most first.

        Parameters
        ----------
        status : {"only_a", "only_b", "both", "flipped"}, optional
            Only those kept in one, in both with effects of one sign, or of opposite signs.

        Returns
        -------
        DataFrame
            ``neuron_a``, ``neuron_b`` (a `Neuron`, None where it has no partner), ``name``,
            ``status``; ``effect_a``, ``stderr_a``, ``effect_b``, ``stderr_b`` (NaN where unknown),
            ``difference`` (b less a) with its ``stderr``, through the circuits and in units of the
            target; ``total_effect_a``, ``total_stderr_a``, ``total_effect_b``, ``total_stderr_b``
            through everything, NaN of layers that were not scored; ``similarity`` and ``tied`` of
            the pair; ``counted``, whether the measures count it: outputs that the target alone
            reads are given with the target.
        """
        return _chosen(self._neurons, status)

    def edges(self, status: Status | None = None) -> pd.DataFrame:
        """Table of the edges of either circuit, those that changed most first.

        Returns
        -------
        DataFrame
            ``source_a``, ``target_a``, ``source_b``, ``target_b`` (`Neuron` or None), ``name``,
            ``status``, effects and differences as `neurons` has them.
        """
        return _chosen(self._edges, status)

    def paths(self, status: Status | None = None) -> pd.DataFrame:
        """Table of the measured paths of either circuit, those that changed most first.

        Returns
        -------
        DataFrame
            ``path_a``, ``path_b`` (tuples of `Neuron`, or None), ``name``, ``status``, effects and
            differences as `neurons` has them. A path that one circuit alone has stored may still
            have an effect in the other's model.
        """
        return _chosen(self._paths, status)

    def to_frame(self) -> pd.DataFrame:
        """Table of the measures, see `measures`, as one with a column of names."""
        return self.measures.reset_index()

    # -- measures --------------------------------------------------------------------------------

    @property
    def neuron_jaccard(self) -> float:
        """Of the neurons that either circuit kept, the share that both kept."""
        return float(self.measures.at["neuron_jaccard", "value"])

    @property
    def spearman(self) -> float:
        """Rank correlation of the effects of the neurons that either circuit kept."""
        return float(self.measures.at["spearman", "value"])

    @property
    def p_value(self) -> float:
        """Chance of a neuron_jaccard as large, if neurons were permuted within their layers."""
        return float(self.measures.at["neuron_jaccard", "p_value"])

    def flipped(self) -> Comparison:
        """The same with a and b exchanged."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            names=(self.names[1], self.names[0]),
            matching=self.matching.flipped(),
            **{key: _flipped(getattr(self, key)) for key in _TABLES},
        )

    def __repr__(self) -> str:
        lines = [f"Comparison of {' and '.join(self.names)}, {self.matching!r}"]
        for row in self.measures.itertuples():
            line = f"  {row.Index}: {row.value:.3f}"
            if row.null_mean == row.null_mean:
                line += f" (by chance {row.null_mean:.3f}, p {row.p_value:.2g})"
            lines.append(line)
        for row in self.transplants[self.transplants["kept"] != "random"].itertuples():
            into = self.names[row.into == "b"]
            lines.append(
                f"  {into} with the neurons of {_WHOSE[row.kept]} alone: "
                f"{row.recovered:.0%} of its target"
            )
        lines += self._shared_parts()
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _shared_parts(self) -> list[str]:
        """Directions, families and features that both circuits hold, and how alike they are."""
        kinds = {n: d.get("kind") for n, d in self.a.layers.nodes(data=True)}
        table = self.neurons()
        found = table[table["status"].isin(["both", "flipped"]) & table["similarity"].notna()]
        return [
            f"  {self.a.name(row.neuron_a)} is {self.b.name(row.neuron_b)} in {self.names[1]}: "
            f"similarity {row.similarity:.2f}, effects {row.effect_a:+.3g} and {row.effect_b:+.3g}"
            for row in found.itertuples()
            if kinds.get(row.neuron_a[0])
        ][:_SHARED]

    # -- out of here -----------------------------------------------------------------------------

    def to_html(self, path: str | FilePath) -> None:
        """Write one offline HTML page to explore."""
        from neurograph.report.comparison_page import render_comparison
        from neurograph.report.document import write_page

        write_page(path, lambda: render_comparison(self))

    def save(self, path: str | FilePath) -> None:
        """Write both circuits and what was measured to one file (no pickle); see `load`."""
        save_comparison(vars(self), path)

    @staticmethod
    def load(path: str | FilePath) -> Comparison:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CircuitFileError
            The file is no comparison, is damaged, or was written by a newer version.
        """
        return Comparison(**load_comparison(path))


def _flipped(table: pd.DataFrame) -> pd.DataFrame:
    """Exchange the two models in a table."""
    mirror = {f"{name}_{one}": f"{name}_{other}" for name in _SIDED for one, other in ("ab", "ba")}
    turned = table.rename(columns=mirror)[list(table.columns)]
    if "difference" in table:
        turned["difference"] = -turned["difference"]
    for column in ("status", "into"):
        if column in table:
            turned[column] = turned[column].replace(_MIRRORED)
    return turned


def _chosen(table: pd.DataFrame, status: Status | None) -> pd.DataFrame:
    one_of(status, "status", (None, *STATUSES))
    return table if status is None else table[table["status"] == status].reset_index(drop=True)
