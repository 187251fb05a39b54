"""Results of an audit: the claims it looked at, and what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from neurograph.errors import ModelError
from neurograph.model.layers import Neuron

__all__ = ["Audit", "Claim", "Disagreement"]


@dataclass(frozen=True)
class Claim:
    """An effect as a result tells it, to be computed again.

    Attributes
    ----------
    kind : {"node", "edge", "total", "path"}
    neurons : tuple of Neuron
        The neuron whose effect it is; of an edge both ends, of a path all.
    effect, stderr : float
        In units of the target.
    through : mapping of str to sequence of int or None, optional
        Of a node: for each reader that sees the move, which of its outputs do (None: all); ``""``
        is the target, which sees what reaches it through glue alone.
    """

    kind: str
    neurons: tuple[Neuron, ...]
    effect: float
    stderr: float = math.nan
    through: Mapping[str, Sequence[int] | None] | None = None


@dataclass(frozen=True)
class Disagreement:
    """An effect that hooks do not confirm.

    Attributes
    ----------
    layer : str
        Where the move begins.
    kind, name : str
        Of which effect.
    claimed, found : float
        As the result has it, and by hooks; where these agree it is their standard errors.
    reason : str
        What is likely wrong, in words; ``"unknown"`` where no attempt showed it.
    """

    layer: str
    kind: str
    name: str
    claimed: float
    found: float
    reason: str

    def __str__(self) -> str:
        return (
            f"the {self.kind} effect of {self.name} is {self.claimed:+.6g} but {self.found:+.6g} "
            f"by hooks; likely reason: {self.reason}"
        )


@dataclass(frozen=True)
class Audit:
    """How many effects were computed again by forward hooks alone, and how far they agree.

    Attributes
    ----------
    counts : mapping of str to int
        How many effects of each kind: ``node``, ``edge``, ``total``, ``path``.
    largest : float
        The largest difference of an effect, in units of the target.
    where : str
        The layer in which that was.
    layers : tuple of str
        Layers whose effects were looked at.
    failed : int
        How many effects differ by more than rounding.
    disagreements : tuple of Disagreement
        The first few of these.
    estimates : int
        Effects of the result that are estimates, which no audit can confirm.
    unseen : tuple of str
        Layers that the model runs without calling their modules, where hooks see nothing.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    largest: float = 0.0
    where: str = ""
    layers: tuple[str, ...] = ()
    failed: int = 0
    disagreements: tuple[Disagreement, ...] = ()
    estimates: int = 0
    unseen: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing differs by more than rounding."""
        return not self.failed

    def check(self) -> Audit:
        """Return the audit; ModelError naming layer and likely reason where it failed."""
        if not self.agrees:
            raise ModelError(f"{self}; this result is not to be trusted")
        return self

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        fields = asdict(self)
        return fields | {key: list(fields[key]) for key in ("layers", "disagreements", "unseen")}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Audit:
        """Read what `as_json` gave."""
        read = {key: tuple(fields[key]) for key in ("layers", "unseen")}
        known = tuple(Disagreement(**one) for one in fields["disagreements"])
        return cls(**{**fields, **read, "disagreements": known})

    def __str__(self) -> str:
        count = sum(self.counts.values())
        if not count:
            text = "audit: no effect was computed again"
        else:
            text = (
                f"audit passed: {count} effects computed again by plain forward hooks, on "
                f"{len(self.layers)} layers; largest difference {self.largest:.0e}"
            )
        if self.failed:
            first = self.disagreements[0]
            text = (
                f"audit failed at layer {first.layer!r}: {self.failed} of {count} effects are not "
                f"what hooks alone give; {first}"
            )
        if self.estimates:
            text += f"; {self.estimates:,} estimates were not audited"
        if self.unseen:
            text += f"; hooks see nothing of {', '.join(self.unseen)}"
        return text
