"""Values of command-line options as they are written: contrasts, groups, positions, lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from neurograph.errors import OptionError

__all__ = [
    "read_basis",
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
    found = _by_pattern(words, "--groups", "PATTERN=heads or PATTERN=N")
    return {p: int(value) if value.isdecimal() else value for p, value in found.items()}


def read_basis(words: Sequence[str] | None) -> dict[str, Any] | None:
    """Read what follows each pattern: parts that are found, how many, or a dictionary's path.

    Examples
    --------
    >>> read_basis(["fc1=active:2"])
    {'fc1': Active(count=2, samples=512, of='target')}
    """
    from neurograph.model.clusters import Clusters
    from neurograph.model.dictionary_files import load_dictionary
    from neurograph.model.directions import Active, Principal

    kinds: dict[str, Any] = {"active": Active, "principal": Principal, "clusters": Clusters}
    found: dict[str, Any] = {}
    written = _by_pattern(words, "--basis", "PATTERN=active:N, principal:N, clusters:N or a path")
    for pattern, value in written.items():
        kind, _, count = value.partition(":")
        is_kind = kind in kinds and count.isdecimal()
        found[pattern] = kinds[kind](int(count)) if is_kind else load_dictionary(value)
    return found or None


def _by_pattern(words: Sequence[str] | None, option: str, form: str) -> dict[str, str]:
    """Split what an option that may be repeated gives to each pattern."""
    found: dict[str, str] = {}
    for each in words or ():
        pattern, equals, value = (part.strip() for part in each.rpartition("="))
        if not (pattern and equals and value):
            raise OptionError(f"{option} takes {form}, not {each!r}")
        if pattern in found:
            raise OptionError(f"{option} names {pattern!r} twice: give each pattern once")
        found[pattern] = value
    return found


def read_position(words: str) -> str | int:
    """Read a position's number, or leave a name.

    Examples
    --------
    >>> read_position("-1"), read_position("each")
    (-1, 'each')
    """
    return int(words) if re.fullmatch(r"-?\d+", words) else words
