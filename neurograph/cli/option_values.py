"""Values of command-line options as they are written: contrasts, groups, positions, lists."""

from __future__ import annotations

import re
from collections.abc import Sequence

from neurograph.errors import OptionError

__all__ = [
    "read_contrast",
    "read_groups",
    "read_names",
    "read_position",
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
        if pattern in groups:
            raise OptionError(f"--groups names {pattern!r} twice: give each pattern once")
        groups[pattern] = int(value) if value.isdecimal() else value
    return groups


def read_position(words: str) -> str | int:
    """Read a position's number, or leave a name.

    Examples
    --------
    >>> read_position("-1"), read_position("each")
    (-1, 'each')
    """
    return int(words) if re.fullmatch(r"-?\d+", words) else words
