"""A circuit at one moment of training: its numbers, and its text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neurograph.circuit.circuit import Circuit, format_effect
from neurograph.comparison.overlap import MEASURES, overlap_by_name
from neurograph.effects.selection import SIGNS
from neurograph.report.console_tables import plain

__all__ = ["Snapshot"]

_PATHS_SHOWN = 10  # of each sign


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The circuit of one moment of training, as a search found it.

    Attributes
    ----------
    epoch : int
        How many epochs had ended before this one, as in the names of Lightning's checkpoints.
    step : int
        How many steps the optimizer had made.
    circuit : Circuit
        Without its model, whose weights are others by now; see `Circuit.attach`.
    path : pathlib.Path
        Its file.
    change : mapping of str to float, or None
        How alike it and the circuit before it are, by the names of
        `neurograph.comparison.overlap.MEASURES`; None for the first.
    """

    epoch: int
    step: int
    circuit: Circuit
    path: Path
    change: Mapping[str, float] | None

    @staticmethod
    def of(epoch: int, step: int, circuit: Circuit, path: Path, last: Snapshot | None) -> Snapshot:
        """Compare a circuit with the one before it, and let go of its model."""
        circuit = circuit.detach()
        change = None if last is None else overlap_by_name(last.circuit, circuit)
        return Snapshot(epoch, step, circuit, path, change)

    def numbers(self) -> dict[str, float]:
        """Count and weigh the circuit, as logged.

        Returns
        -------
        dict of str to float
            ``neurons_SIGN``, kept neurons whose effect has that sign; ``edges``;
            ``strongest_SIGN``, that of the strongest measured path of that sign, or NaN;
            ``effect_sum``, the sum of the kept neurons' absolute effects, all effects in units of
            the target; and the measures of `change`, NaN for the first.
        """
        graph = self.circuit.graph
        signs = [data["sign"] for _, data in graph.nodes(data=True)]
        numbers: dict[str, float] = {f"neurons_{sign}": signs.count(sign) for sign in SIGNS}
        numbers["edges"] = graph.number_of_edges()
        effects = [path.effect for path in self.circuit.strongest]
        up, down = max(effects, default=0.0), min(effects, default=0.0)
        numbers["strongest_positive"] = up if up > 0 else math.nan
        numbers["strongest_negative"] = down if down < 0 else math.nan
        numbers["effect_sum"] = math.fsum(abs(data["effect"]) for _, data in graph.nodes(data=True))
        unknown = dict.fromkeys(MEASURES, math.nan)
        return numbers | dict(unknown if self.change is None else self.change)

    def markdown(self) -> str:
        """Write the circuit and its strongest paths for TensorBoard."""
        lines = [
            plain(repr(self.circuit).splitlines()[0]),
            "",
            "| path | effect |",
            "| --- | --- |",
        ]
        for sign in SIGNS:
            for path in self.circuit.paths(_PATHS_SHOWN, sign=sign):
                names = plain(" → ".join(path.names)).replace("|", "\\|")
                mark = "" if path.measured else " (estimated)"
                lines.append(f"| {names} | {format_effect(path.effect, path.stderr)}{mark} |")
        return "\n".join(lines)
