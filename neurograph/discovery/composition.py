"""What neurons of a basis are made of: channels of their layer, with their shares."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from neurograph.errors import OptionError
from neurograph.preparation.base_study import BaseStudy

__all__ = ["composition", "in_words"]

_NAMED = 4  # channels, in words


def composition(study: BaseStudy, layer: str, neurons: Iterable[int] | None = None) -> pd.DataFrame:
    """List the channels of a layer along which neurons of its basis move it; by default all.

    Returns
    -------
    DataFrame
        As `Study.composition` has it.

    Raises
    ------
    OptionError
        There is no such layer, or it has no basis.
    """
    recorded = study.experiment.recording.layers
    basis = recorded[layer].basis if layer in recorded else None
    if basis is None:
        known = [name for name, one in recorded.items() if one.basis is not None]
        raise OptionError(
            f"layer={layer!r} has no basis in this study; these have: {', '.join(known) or 'none'}"
        )
    rows: list[tuple[int, int, float, float]] = []
    for index in range(len(basis.units)) if neurons is None else neurons:
        weights = basis.writing_of(index)
        if not weights.isnan().any():
            shares = weights.square() / weights.square().sum()
            order = shares.argsort(descending=True, stable=True).tolist()
            rows += [(index, c, float(weights[c]), float(shares[c])) for c in order if weights[c]]
    table = pd.DataFrame(rows, columns=["index", "channel", "weight", "share"])
    names = study.feature_names if recorded[layer].is_input else None
    called = [f"{layer}[{c}]" if names is None else names[c] for c in table["channel"]]
    table.insert(2, "name", called)
    return table


def in_words(table: pd.DataFrame, index: int) -> str:
    """Say what one of them is made of, those with a minus sign moving the other way.

    Examples
    --------
    >>> columns = ["index", "channel", "name", "weight", "share"]
    >>> rows = [(0, 3, "a[3]", -0.8, 0.64), (0, 1, "a[1]", 0.6, 0.36)]
    >>> table = pd.DataFrame(rows, columns=columns)
    >>> in_words(table, 0), in_words(table, 1)
    ('−a[3] 64%, a[1] 36%', '')
    """
    own = table[table["index"] == index]
    signs = {True: "\N{MINUS SIGN}", False: ""}
    parts = [f"{signs[x.weight < 0]}{x.name} {x.share:.0%}" for x in own.head(_NAMED).itertuples()]
    more = [f"and {len(own) - _NAMED} more"] if len(own) > _NAMED else []
    return ", ".join(parts + more)
