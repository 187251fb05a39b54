"""Rankings as users have them, read as orders of a model's neurons or edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.ablation.index import Components, Flags, Of
from neurograph.circuit.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.model.layers import INPUT_TYPE, Neuron
from neurograph.utils.checks import shown

__all__ = [
    "ORDERS",
    "Order",
    "Ranking",
    "inputs_of",
    "kept_by",
    "options_of_ranking",
    "order_by",
    "read_rankings",
    "targets_of",
    "what",
]

Order = Literal["signed", "absolute"]
ORDERS: tuple[Order, Order] = ("signed", "absolute")

_COLUMNS: dict[Of, tuple[str, ...]] = {
    "neurons": ("layer", "index"),
    "edges": ("source_layer", "source_index", "target_layer", "target_index"),
}


@dataclass(frozen=True, eq=False)
class Ranking:
    """Effects of neurons or edges by one scorer.

    Attributes
    ----------
    effects : Series
        Indexed by what `Components.columns` says, positions left out where there are none.
    kept : list of tuple
        Neurons that a circuit kept; none where it is no circuit.
    """

    effects: pd.Series
    kept: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def of(self) -> Of:
        """What is ranked."""
        return "neurons" if "layer" in self.effects.index.names else "edges"

    def has_inputs(self, inputs: set[str]) -> bool:
        """Whether neurons of the model's inputs are ranked."""
        return self.of == "neurons" and not inputs.isdisjoint(self.effects.index.unique("layer"))


def read_rankings(ranking: Any, option: str = "ranking") -> dict[str, Ranking]:
    """Read what users pass as `ranking=`, by name.

    Parameters
    ----------
    ranking : Series, Circuit, scores, or mapping of str to any of these
    option : str
        What the argument is called, for errors.

    Raises
    ------
    OptionError
        It is nothing that ranks, its index says not what, or effects are missing or twice.
    """
    several = ranking if isinstance(ranking, Mapping) else {_name(ranking, option): ranking}
    if not several:
        raise OptionError(f"{option} is an empty mapping: pass at least one Series of effects")
    if len({str(name) for name in several}) < len(several):
        raise OptionError(f"{option} has names that are the same as text: {shown(list(several))}")
    found = {str(n): _read(f"{option} {str(n)!r}", value) for n, value in several.items()}
    kinds = {name: value.of for name, value in found.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name!r} {of}" for name, of in kinds.items())
        raise OptionError(f"rankings of one thing can be compared, but {listed} are ranked")
    return found


def what(rankings: Mapping[str, Ranking]) -> Of:
    """What is ranked by all of them."""
    return next(iter(rankings.values())).of


def options_of_ranking(ranking: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that say what the neurons of a circuit, or of scores, are, as far as it has some.

    Those that are given come first. OptionError for a basis that nobody gives.
    """
    one = next(iter(ranking.values()), None) if isinstance(ranking, Mapping) else ranking
    options = (getattr(one, "provenance", None) or {}).get("options", {})
    found = {key: options[key] for key in ("layers", "groups", "positions") if key in options}
    study = getattr(one, "_study", None)
    if options.get("basis") and study is not None:
        found["basis"] = study.options["basis"]
    elif options.get("basis") and "basis" not in given:
        raise OptionError("the neurons that are ranked are of a basis: pass basis= again")
    return {**found, **given}


def targets_of(ranking: Any) -> dict[str, str]:
    """Names of the targets that circuits and scores are of, by the ranking's name."""
    several = ranking if isinstance(ranking, Mapping) else {_name(ranking, "ranking"): ranking}
    known = {str(name): getattr(value, "target", None) for name, value in several.items()}
    return {name: target for name, target in known.items() if isinstance(target, str)}


def _name(ranking: Any, option: str) -> str:
    if isinstance(ranking, Circuit):
        return "circuit"
    return str(getattr(ranking, "name", None) or option)


def _read(name: str, value: Any) -> Ranking:
    kept: list[tuple[Any, ...]] = []
    if isinstance(value, Circuit):
        kept = [tuple(neuron) for neuron in value.graph]
    if not isinstance(value, pd.Series) and hasattr(value, "ranking"):
        value = value.ranking()
    if not isinstance(value, pd.Series):
        raise OptionError(
            f"{name} is {type(value).__name__}: pass a Series of effects, a Circuit, or "
            "what score() returns"
        )
    if value.index.nlevels == 2 and not any(value.index.names):
        value = value.rename_axis(list(_COLUMNS["neurons"]))
    _check(name, value)
    return Ranking(value.astype(float), kept)


def _check(name: str, series: pd.Series) -> None:
    names = set(series.index.names)
    if not any(names >= set(columns) for columns in _COLUMNS.values()):
        keys = " or ".join(f"({', '.join(columns)})" for columns in _COLUMNS.values())
        raise OptionError(
            f"{name} is indexed by {tuple(series.index.names)}: the index must be of {keys}, with "
            "positions where neurons have some"
        )
    if not pd.api.types.is_numeric_dtype(series) or not len(series):
        raise OptionError(f"{name} holds no effects: {len(series)} of {series.dtype}")
    for level in (n for n in names if str(n).endswith("index")):
        if not pd.api.types.is_integer_dtype(series.index.get_level_values(level)):
            raise OptionError(f"{name}: {level!r} numbers neurons, but holds no integers")
    if series.isna().any():
        raise OptionError(f"{name} of {_place(series, series.isna())} is NaN")
    if not series.index.is_unique:
        raise OptionError(f"{name} has {_place(series, series.index.duplicated())} twice")


def _place(series: pd.Series, where: Any) -> object:
    """What the first of some effects is of."""
    place = series.index[where][0]
    return Neuron(*place) if tuple(series.index.names) == _COLUMNS["neurons"] else place


def inputs_of(layers: Any) -> set[str]:
    """Names of the model's inputs in a layer graph."""
    return {name for name, kind in layers.nodes(data="type") if kind == INPUT_TYPE}


def order_by(ranking: Ranking, components: Components) -> dict[str, NDArray[np.int64]]:
    """Numbers of all components, the strongest first, by `signed` and by `absolute` effects.

    What is not ranked comes last, in the order of the model. Equal effects keep the order of the
    ranking.
    """
    numbers = components.numbers(ranking.effects.index)
    inside = numbers >= 0
    if not inside.any():
        raise OptionError(
            f"the ranking holds no {components.of} that can be left out: those of layers that the "
            "output alone reads always stay"
        )
    effects = np.zeros(len(components))
    place = np.arange(len(components)) + len(numbers)
    effects[numbers[inside]] = ranking.effects.to_numpy()[inside]
    place[numbers[inside]] = np.flatnonzero(inside)
    unranked = place >= len(numbers)
    strengths: dict[str, NDArray[np.float64]] = {"signed": effects, "absolute": np.abs(effects)}
    return {
        name: np.lexsort((place, -strength, unranked)).astype(np.int64)
        for name, strength in strengths.items()
    }


def kept_by(ranking: Ranking, components: Components) -> Flags | None:
    """Mark what a circuit kept; None where there is none, or nothing of it can be left out."""
    if not ranking.kept:
        return None
    names = ["layer", "index", "position"]
    table = pd.DataFrame([(*n, None)[:3] for n in ranking.kept], columns=names)
    numbers = components.numbers(pd.MultiIndex.from_frame(table))
    flags = np.zeros(len(components), dtype=bool)
    flags[numbers[numbers >= 0]] = True
    return flags if flags.any() else None
