"""Arguments read as what they should be, or refused by name."""

from __future__ import annotations

import math
import numbers
import operator
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from neurograph.errors import OptionError

__all__ = [
    "a_share",
    "different_names",
    "is_number",
    "is_path",
    "listed",
    "names",
    "one_of",
    "printable",
    "shown",
    "whole",
]

_SHOWN = 60


def shown(value: object) -> str:
    """What a value looks like, on one line and not too long of it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def is_number(value: object) -> bool:
    """Whether a value is a single number, as Python or NumPy have it; True is none."""
    return isinstance(value, numbers.Number | np.generic) and not isinstance(value, bool)


def is_path(value: object) -> bool:
    """Whether a value may be the path of a file."""
    return isinstance(value, str | os.PathLike) and "\0" not in str(value)


def whole(value: Any, option: str, *, least: int | None = None, most: int = sys.maxsize) -> int:
    """Read a whole number, as Python, NumPy or torch have it.

    Raises
    ------
    OptionError
        It is no such number (True and 2.0 are not), or outside the range.

    Examples
    --------
    >>> import numpy as np
    >>> whole(np.int64(3), "draws", least=1)
    3
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise OptionError(f"{option}={shown(value)} is no whole number")
    if least is not None and number < least:
        raise OptionError(f"{option}={number} must be {least} or more")
    if number > most:
        raise OptionError(f"{option}={number} must be {most} or less")
    return number


def a_share(value: Any, option: str, *, zero: bool = False, one: bool = False) -> float:
    """Read a number between 0 and 1, either included where it may be; OptionError if not.

    Examples
    --------
    >>> a_share(1, "share", one=True)
    1.0
    """
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if is_real else math.nan
    if not (0 < number < 1 or (zero and number == 0) or (one and number == 1)):
        low, high = "(["[zero], ")]"[one]
        raise OptionError(f"{option}={shown(value)} is no number in {low}0, 1{high}")
    return number


def one_of(value: Any, option: str, known: Iterable[str | None]) -> None:
    """Raise OptionError for what is none of some words."""
    words = list(known)
    if not (value is None or isinstance(value, str)) or value not in words:
        options = ", ".join(repr(word) for word in words if word is not None)
        raise OptionError(f"{option}={shown(value)} is none of {options}")


def names(value: Any, option: str) -> tuple[str, ...] | None:
    """Read several names; None stays None; OptionError for a single string and for no sequence."""
    if value is None:
        return None
    if isinstance(value, Set):
        raise OptionError(f"{option}={shown(value)} has no order: pass a list of names")
    found = listed(value, option, "names")
    odd = [one for one in found if not isinstance(one, str) and not is_number(one)]
    if odd:
        raise OptionError(f"{option}: {shown(odd[0])} is no name: pass strings, or numbers")
    return tuple(map(str, found))


def different_names(value: Any, option: str) -> tuple[str, ...] | None:
    r"""Read names by which things are told apart; OptionError for one that stands twice.

    Examples
    --------
    >>> different_names(["age", "two\nlines"], "feature_names")
    ('age', 'two\\nlines')
    """
    found = names(value, option)
    if found is None:
        return None
    known = Counter(map(printable, found))
    for name, count in known.items():
        if count > 1:
            raise OptionError(f"{option}: {name!r} stands there {count} times; names must differ")
    return tuple(known)


def printable(name: str) -> str:
    r"""Write what would break a line, or turn its direction, as an escape.

    Examples
    --------
    >>> printable("Größe\u202e\n")
    'Größe\\u202e\\n'
    """
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return "".join(escaped)


def listed(values: Any, option: str, what: str = "values") -> list[Any]:
    """Read several of anything; OptionError for one alone, for a mapping, and for no iterable."""
    try:
        if not isinstance(values, str | bytes | Mapping):
            return list(values)
    except TypeError:
        pass
    raise OptionError(f"{option}={shown(values)}: pass a list of {what}")
