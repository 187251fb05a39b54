"""Interface of scorers: effects of nodes, of whole neurons, and of edges."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from neurograph.effects.budget import Schedule
from neurograph.effects.effects import Effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import Through
from neurograph.effects.scorers import SCORERS
from neurograph.effects.screening import Screening
from neurograph.errors import OptionError
from neurograph.utils.checks import shown

__all__ = ["Edges", "Method", "Scored", "Scorer", "as_method", "method_text"]


class Scored(NamedTuple):
    """Effects, and which of them were measured by intervention, ``[neurons]`` (None: all)."""

    effects: Effects
    measured: Tensor | None

    @staticmethod
    def estimated(effects: Effects) -> Scored:
        """Effects of which none was measured."""
        return Scored(effects, torch.zeros_like(effects.effect, dtype=torch.bool))


class Edges(NamedTuple):
    """Edges from some neurons of a writer to some outputs of a reader.

    `pairs` ``[edges, 2]`` are positions among those asked for, `transfer` ``[edges]`` how far each
    neuron moves the output, as a share of its own range (NaN where it was not asked for).
    """

    reader: str
    pairs: Tensor
    transfer: Tensor
    scored: Scored


class Scorer(abc.ABC):
    """One way to say what moving neurons does to the target, at work in one experiment."""

    experiment: Experiment

    @abc.abstractmethod
    def nodes(self, writer: str, through: Through) -> Scored:
        """Effects of all neurons of a layer through chosen outputs of its readers."""

    @abc.abstractmethod
    def totals(self, writer: str, neurons: Sequence[int]) -> Scored:
        """Effects of neurons through everything."""

    @abc.abstractmethod
    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,
    ) -> Iterator[Edges]:
        """Effects of the edges from neurons to outputs; those that move nothing may be left out."""

    def measuring(self, some: Sequence[int], *, alone: bool) -> Scorer:
        """Scorer that measures some of the neurons it is asked about in any case.

        With `alone` no others, where not all can be. The scorer itself, unless it chooses what to
        measure.
        """
        return self

    def report(self) -> dict[str, Screening]:
        """Say for each phase what was screened and measured; nothing where there is no screen."""
        return {}


@dataclass(frozen=True)
class Method(abc.ABC):
    """A scorer with its settings, as users name or pass it: ``scorer="exact"`` or ``Exact()``.

    Subclasses are frozen dataclasses whose fields JSON can hold. `SCORERS` lists those that have a
    name; others can be passed as objects.

    Attributes
    ----------
    estimates : bool
        Whether effects are estimates; others are measured, as far as they decide about anything.
    takes_budget : bool
        Whether the budget limits what is measured.
    """

    estimates: ClassVar[bool] = True
    takes_budget: ClassVar[bool] = False

    @abc.abstractmethod
    def start(self, experiment: Experiment, schedule: Schedule) -> Scorer:
        """Make the scorer for one experiment; ModelError where it would be blind."""

    @property
    def name(self) -> str:
        """What users call it."""
        return type(self).__name__.lower()

    def as_json(self) -> str | dict[str, Any]:
        """Describe it as `as_method` reads it: its name, with the settings that are not usual."""
        settings = {one.name: getattr(self, one.name) for one in fields(self)}
        unusual = {f.name: settings[f.name] for f in fields(self) if settings[f.name] != f.default}
        return {"name": self.name, **unusual} if unusual else self.name


def as_method(scorer: str | Method | Mapping[str, Any]) -> Method:
    """Read a scorer as users write it, or as `Method.as_json` does.

    Examples
    --------
    >>> as_method("integrated"), as_method({"name": "integrated", "steps": 8})
    (Integrated(steps=5), Integrated(steps=8))
    """
    if isinstance(scorer, Method):
        return scorer
    settings = dict(scorer) if isinstance(scorer, Mapping) else {"name": scorer}
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in SCORERS:
        raise OptionError(
            f"scorer={shown(scorer)} is none of {', '.join(map(repr, SCORERS))}, and no object "
            "like Integrated(steps=8)"
        )
    kind: type[Method] = getattr(importlib.import_module(SCORERS[name]), name.capitalize())
    known = [one.name for one in fields(kind)]
    for setting in settings:
        if setting not in known:
            raise OptionError(
                f"scorer={name!r} has no setting {setting!r}; it has {', '.join(known) or 'none'}"
            )
    return kind(**settings)


def method_text(scorer: str | Mapping[str, Any] | None) -> str:
    """What `Method.as_json` says, on one line.

    Examples
    --------
    >>> method_text("exact"), method_text({"name": "integrated", "steps": 8})
    ('exact', 'integrated(steps=8)')
    """
    if not isinstance(scorer, Mapping):
        return str(scorer)
    settings = ", ".join(f"{key}={value!r}" for key, value in scorer.items() if key != "name")
    return f"{scorer['name']}({settings})"
