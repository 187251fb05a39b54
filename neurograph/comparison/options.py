"""The options of a comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from neurograph.errors import OptionError
from neurograph.faithfulness.ablated import Ablation, check_ablations
from neurograph.matching.alignment import ALIGNMENTS, Align
from neurograph.scoring.budget import parse_budget

__all__ = ["ACROSS", "Match", "Options"]

Match = Literal["identity", "activation"] | Mapping[Any, Any]
ACROSS = ("target", "data")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `compare`, as it documents them."""

    match: Match
    align: Align
    across: Collection[str]
    data: Any
    samples: int
    least: float
    draws: int
    budget: int | str
    transplants: int
    ablation: Ablation
    reference: int | Any
    seed: int
    progress: bool | None

    def checked(self) -> Options:
        """Return the options; OptionError naming the first that means nothing."""
        if not isinstance(self.match, Mapping) and self.match not in ("identity", "activation"):
            raise OptionError(
                f"match={self.match!r} is neither 'identity', 'activation' nor a mapping"
            )
        if self.align not in ALIGNMENTS:
            raise OptionError(f"align={self.align!r} is none of {', '.join(ALIGNMENTS)}")
        if isinstance(self.across, str) or not set(self.across) <= set(ACROSS):
            raise OptionError(f"across={self.across!r}: pass some of {ACROSS}, like ('target',)")
        for name, least in (("samples", 4), ("draws", 0), ("transplants", 0), ("reference", 2)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise OptionError(f"{name}={value} must be {least} or more")
        if not 0 <= self.least < 1:
            raise OptionError(f"least={self.least} must lie in [0, 1)")
        if self.seed < 0:
            raise OptionError(f"seed={self.seed} must not be negative")
        check_ablations([self.ablation], twins=False)
        parse_budget(self.budget)
        return self

    def describe(self) -> dict[str, Any]:
        """Options as JSON can hold them; data and a mapping are only named."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "progress"}
        told["match"] = self.match if isinstance(self.match, str) else "mapping"
        told["across"] = sorted(self.across)
        told["data"] = None if self.data is None else "given"
        told["reference"] = self.reference if isinstance(self.reference, int) else "given"
        return told
