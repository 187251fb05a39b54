"""Values of command-line options as they are written: neurons, groups, positions, lists."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from neurograph.errors import OptionError

if TYPE_CHECKING:
    from neurograph.layers import Neuron

__all__ = [
    "read_contrast",
    "read_groups",
    "read_names",
    "read_place",
    "read_positions",
    "read_through",
]


def read_names(words: str | None) -> list[str] | None:
    """Read names between commas.

    Examples
    --------
    >>> read_names("a, b,c")
    ['a', 'b', 'c']
    """
    return None if words is None else [word.strip() for word in words.split(",")]


def read_contrast(words: str) -> str | tuple[float, ...]:
    """Read quantiles between commas, or leave the name of a contrast.

    Examples
    --------
    >>> read_contrast("0.25,0.75"), read_contrast("sweep")
    ((0.25, 0.75), 'sweep')
    """
    try:
        return tuple(float(level) for level in words.split(","))
    except ValueError:
        return words


def read_groups(words: Sequence[str] | None) -> dict[str, str | int]:
    """Read what follows each pattern: a number of groups, or a name.

    Examples
    --------
    >>> read_groups(["q_proj=heads", "layers.*.mlp=4"])
    {'q_proj': 'heads', 'layers.*.mlp': 4}
    """
    groups: dict[str, str | int] = {}
    for each in words or ():
        pattern, equals, value = (part.strip() for part in each.rpartition("="))
        if not (pattern and equals and value):
            raise OptionError(f"--groups takes PATTERN=heads or PATTERN=N, not {each!r}")
        groups[pattern] = int(value) if value.isdecimal() else value
    return groups


def read_positions(words: str) -> str | int:
    """Read a position's number, or leave a name.

    Examples
    --------
    >>> read_positions("-1"), read_positions("each")
    (-1, 'each')
    """
    return int(words) if re.fullmatch(r"-?\d+", words) else words


def read_place(words: str, layers: Collection[str]) -> str | Neuron:
    """Read a layer, or a neuron as LAYER:N, LAYER[N] or LAYER[N]@POSITION.

    Examples
    --------
    >>> read_place("fc", ["fc"]), read_place("fc:3", ["fc"]), read_place("fc[3]@1", ["fc"])
    ('fc', Neuron('fc', 3), Neuron('fc', 3, 1))
    >>> read_place("lstm:1", ["lstm", "lstm:1"])  # a layer of that very name
    'lstm:1'
    """
    from neurograph.layers import Neuron

    forms = (r"(.+)\[(\d+)\]\s*(?:@(\d+))?", r"(.+):(\d+)")
    found = next((match for form in forms if (match := re.fullmatch(form, words))), None)
    if found is None or words in layers:
        return words
    layer, *numbers = found.groups()
    return Neuron(layer, *(int(number) for number in numbers if number is not None))


def read_through(words: Sequence[str] | None, layers: Collection[str]) -> str | list[Neuron] | None:
    """Read one layer, or any number of neurons.

    Examples
    --------
    >>> read_through(["fc:3", "out:0"], ["fc", "out"]), read_through(["fc"], ["fc"])
    ([Neuron('fc', 3), Neuron('out', 0)], 'fc')
    """
    places = [read_place(each, layers) for each in words or ()]
    neurons = [place for place in places if not isinstance(place, str)]
    if len(places) == len(neurons):
        return neurons or None
    if len(places) > 1:
        raise OptionError(
            "--through takes one layer, or any number of neurons as LAYER:N or LAYER[N]@POSITION"
        )
    return str(places[0])
