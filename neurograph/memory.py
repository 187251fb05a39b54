"""Memory budgets: how users write them."""

from __future__ import annotations

import re

from neurograph.errors import OptionError

__all__ = ["parse_memory"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_memory(memory: int | str) -> int:
    """Bytes of a budget given as a number or like ``"512MB"``.

    Examples
    --------
    >>> parse_memory("1.5GB"), parse_memory(4096)
    (1500000000, 4096)
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMG]?i?B?)\s*", str(memory), re.IGNORECASE)
    unit = match and match.group(2).upper()
    try:
        size = int(float(match.group(1)) * _UNITS[unit or ""]) if match else 0
    except (KeyError, ValueError):
        size = 0
    if size <= 0:
        raise OptionError(f"memory={memory!r} is no size: write bytes, or like '512MB' or '2GB'")
    return size
