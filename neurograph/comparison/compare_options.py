"""The options of a comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from neurograph.effects.budget import parse_budget
from neurograph.effects.contrast import Ablation
from neurograph.errors import OptionError
from neurograph.matching.alignment import ALIGNMENTS, Align
from neurograph.utils.checks import a_share, is_number, listed, one_of, whole

__all__ = ["ACROSS", "CompareOptions", "Match"]

Match = Literal["identity", "activation"] | Mapping[Any, Any]
ACROSS = ("target", "data")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
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

    def checked(self) -> CompareOptions:
        """Return the options; OptionError naming the first that means nothing."""
        if not isinstance(self.match, Mapping):
            one_of(self.match, "match", ("identity", "activation"))
        one_of(self.align, "align", ALIGNMENTS)
        for each in listed(self.across, "across"):
            one_of(each, "across", ACROSS)
        one_of(self.ablation, "ablation", get_args(Ablation))
        if self.ablation == "counterfactual":
            raise OptionError(
                "ablation='counterfactual' needs counterfactuals of the data: choose another"
            )
        parse_budget(self.budget)
        least = {"samples": 4, "draws": 0, "transplants": 0, "seed": 0}
        if is_number(self.reference):
            least["reference"] = 2
        numbers: dict[str, Any] = {
            name: whole(getattr(self, name), name, least=n) for name, n in least.items()
        }
        budget = self.budget if isinstance(self.budget, str) else int(self.budget)
        share = a_share(self.least, "least", zero=True)
        return replace(self, **numbers, least=share, budget=budget)

    def describe(self) -> dict[str, Any]:
        """Options as JSON can hold them; data and a mapping are only named."""
        described = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "progress"}
        described["match"] = self.match if isinstance(self.match, str) else "mapping"
        described["across"] = sorted(self.across)
        described["data"] = None if self.data is None else "given"
        described["reference"] = self.reference if isinstance(self.reference, int) else "given"
        return described
