"""Layers and neurons as users write them: the names printed anywhere, and tuples."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from neurograph.errors import OptionError
from neurograph.model.layers import Neuron
from neurograph.utils.checks import listed, printable, shown, whole

__all__ = ["Names", "Place", "Places", "name_table", "read_neuron", "read_place", "read_places"]

Place = str | Neuron | tuple[Any, ...]
"""A layer's name or a neuron: as a tuple, as printed (``"fc[3]"``, ``"fc[3]@1"``, a feature's or
class's name), or as ``"fc:3"``."""

Places = Place | Iterable[Place]
"""One place, or several."""

Names = Mapping[str, Neuron | None]
"""What neurons are called; None where several are called so."""

_FORMS = (
    r"(?P<layer>.+)(?:\[(?P<index>\d+)\]| (?:head|group) (?P<group>\d+))\s*"
    r"(?:@(?P<position>\d+)(?: .*)?)?",
    r"(?P<layer>.+):(?P<index>\d+)(?:@(?P<position>\d+))?",
)
_SHOWN = 8


def name_table(named: Iterable[tuple[str, Neuron]]) -> dict[str, Neuron | None]:
    """Neurons by what they are called."""
    table: dict[str, Neuron | None] = {}
    for name, neuron in named:
        table[name] = None if table.get(name, neuron) != neuron else neuron
    return table


def read_place(
    place: Place, option: str, layers: Collection[str] | None = None, names: Names | None = None
) -> str | Neuron:
    """Read one layer or neuron.

    Parameters
    ----------
    place : str, Neuron or tuple
    option : str
        What the argument is called, for errors.
    layers : collection of str, optional
        All there are. Without them a string is a neuron.
    names : mapping of str to Neuron, optional
        What neurons are called besides.

    Returns
    -------
    str or Neuron
        A layer, or a neuron of one; the layer need not have so many.

    Raises
    ------
    OptionError
        It is neither, or there is no such layer.

    Examples
    --------
    >>> layers = ["input", "fc", "lstm", "lstm:1"]
    >>> read_place("fc", "source", layers), read_place(("fc", 3), "source", layers)
    ('fc', Neuron('fc', 3))
    >>> [read_place(f"fc{end}", "source", layers) for end in (":3", "[3]", "[3]@1", " head 3")]
    [Neuron('fc', 3), Neuron('fc', 3), Neuron('fc', 3, 1), Neuron('fc', 3)]
    >>> read_place("lstm:1", "source", layers)  # a layer of that very name
    'lstm:1'
    >>> read_place("age", "source", layers, {"age": Neuron("input", 0)})
    Neuron('input', 0)
    """
    if isinstance(place, str):
        if layers is not None and place in layers:
            return place
        neuron = _named(place, option, names or {}) or _written(place, layers)
    else:
        neuron = _of_tuple(place, option)
    if layers is not None and (neuron is None or neuron.layer not in layers):
        asked = place if neuron is None else neuron.layer
        raise OptionError(
            f"{option}={shown(place)}: there is no layer{' or neuron' * (neuron is None)} "
            f"{shown(asked)}; {_known(str(asked), [*layers, *(names or {})], layers)}"
        )
    if neuron is None:
        raise _no_neuron(place, option)
    return neuron


def read_neuron(
    place: Place, option: str, layers: Collection[str] | None = None, names: Names | None = None
) -> Neuron:
    """Read one neuron; OptionError also for a whole layer. See `read_place`."""
    if isinstance(place, str) and names and names.get(place) is not None:
        place = names[place] or place  # also where a layer is called so
    found = read_place(place, option, layers, names)
    if isinstance(found, str):
        raise OptionError(
            f"{option}={found!r} is a layer: name one of its neurons, as ({found!r}, 0)"
        )
    return found


def read_places(
    places: Places, option: str, layers: Collection[str] | None = None, names: Names | None = None
) -> list[str | Neuron]:
    """Read one or several layers or neurons; see `read_place`.

    Examples
    --------
    >>> read_places(["fc:3", ("out", 0)], "through", ["fc", "out"])
    [Neuron('fc', 3), Neuron('out', 0)]
    >>> read_places(("fc", 3), "through", ["fc", "out"])  # a layer and a number are a neuron
    [Neuron('fc', 3)]
    """
    if isinstance(places, str | Neuron):
        return [read_place(places, option, layers, names)]
    several = tuple(listed(places, option, "names of layers, and of neurons as (layer, index)"))
    if len(several) > 1 and isinstance(several[0], str) and not isinstance(several[1], str | tuple):
        return [read_place(several, option, layers, names)]
    return [read_place(one, option, layers, names) for one in several]


def _named(place: str, option: str, names: Names) -> Neuron | None:
    called = place if place in names else printable(place)
    if called in names and names[called] is None:
        raise OptionError(
            f"{option}={place!r}: several neurons are called so, name one as (layer, index)"
        )
    return names.get(called)


def _written(place: str, layers: Collection[str] | None) -> Neuron | None:
    """A neuron written with its layer's name and its number."""
    for form in _FORMS:
        found = re.fullmatch(form, place)
        if found and (layers is None or found["layer"] in layers):
            parts = found.groupdict()
            position = parts["position"]
            index = int(parts["index"] or parts["group"])
            return Neuron(parts["layer"], index, None if position is None else int(position))
    return None


def _of_tuple(place: Any, option: str) -> Neuron:
    is_neuron = isinstance(place, tuple | list) and 2 <= len(place) <= 3
    if not is_neuron or not isinstance(place[0], str):
        raise _no_neuron(place, option)
    if len(place) == 3 and place[2] is None:
        place = place[:2]
    try:
        return Neuron(place[0], *(whole(number, option, least=0) for number in place[1:]))
    except OptionError:
        raise OptionError(
            f"{option}={shown(tuple(place))}: pass (layer, index), counted from 0"
        ) from None


def _no_neuron(place: object, option: str) -> OptionError:
    return OptionError(
        f"{option}={shown(place)} is no neuron: pass (layer, index), or a name like 'layer[index]'"
    )


def _known(asked: str, names: Collection[str], layers: Collection[str]) -> str:
    near = difflib.get_close_matches(asked, names, 3)
    if near:
        return f"near it are {', '.join(near)}"
    more = "…" if len(layers) > _SHOWN else ""
    return f"the model has {', '.join(list(layers)[:_SHOWN])}{more}"
