"""One offline HTML page of many comparisons: a heat map of each measure, and what is stable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neurograph.comparison.pairs import Kind
from neurograph.report.comparison_cards import measure_titles, transplant_cards
from neurograph.report.document import Tab, assemble, tab_fields

if TYPE_CHECKING:
    import pandas as pd

    from neurograph.comparison.comparisons import Comparisons

__all__ = ["MATRIX_TABS", "render_comparisons"]

_STABLE_SHOWN = 2000  # rows of each table that travel with the page
_NUMBERS = ("value", "null_mean", "null_low", "null_high", "p_value")
_STABLE = ("name", "layer", "circuits", "share", "positive", "effect", "std")
_KINDS: tuple[Kind, ...] = ("neurons", "edges", "paths")
_STATUSES = ("only_a", "both", "flipped", "only_b")

MATRIX_TABS = (
    Tab("neurons", "Stable neurons"),
    Tab("edges", "Stable edges"),
    Tab("paths", "Stable paths"),
    Tab("pairs", "All pairs"),
)
"""The tabs in their order, those of `_KINDS` where each circuit was compared with the first."""


def render_comparisons(comparisons: Comparisons) -> str:
    """Draw many comparisons as one HTML page that needs no network and no other file.

    Parameters
    ----------
    comparisons : Comparisons
        The matrix, see `compare`.

    Returns
    -------
    str
        The page; the same comparisons always give the same text.
    """
    rows, columns = comparisons.rows, comparisons.columns
    notes, measures = _shared_notes(comparisons), _measures(comparisons)
    has_stable = _all_beside_first(comparisons)
    tabs = [tab for tab in MATRIX_TABS if has_stable or tab.name not in _KINDS]
    title = (
        f"{len(rows)} circuits compared"
        if comparisons.is_square
        else f"{len(rows)} circuits compared with {len(columns)}"
    )
    return assemble(
        "comparisons.html.j2",
        styles=("page.css", "linked_tables.css", "comparisons.css"),
        scripts=("kit.js", "linked_tables.js", "tabs.js", "comparisons.js"),
        data=_payload(comparisons, measures, notes)
        | {"stable": _all_stable(comparisons) if has_stable else {}},
        title=title,
        targets=_targets(comparisons),
        notes=notes,
        further_notes=any(set(cell.notes) - set(notes) for cell in comparisons.cells.values()),
        stable=has_stable,
        measures=measures,
        tabs=tabs,
        **tab_fields(tabs, comparisons),
    )


def _payload(
    comparisons: Comparisons, measures: list[tuple[str, str, str]], notes: list[str]
) -> dict[str, Any]:
    """Gather the matrix and its pairs, as values JSON can hold."""
    return {
        "rows": comparisons.rows,
        "columns": comparisons.columns,
        "square": comparisons.is_square,
        "measures": measures,
        "numbers": {
            name: {key: comparisons.measure(name, column=key).to_numpy() for key in _NUMBERS}
            for name, *_ in measures
        },
        "pairs": [_pair(comparisons, row, column, notes) for row, column in comparisons.cells],
    }


def _all_stable(comparisons: Comparisons) -> dict[str, Any]:
    return {kind: _stable(comparisons.stable(kind)) for kind in _KINDS}


def _all_beside_first(comparisons: Comparisons) -> bool:
    """Whether each circuit was compared with the first, as what is stable needs."""
    first, *others = comparisons.rows or ("",)
    pairs = [(first, other) for other in others]
    return comparisons.is_square and bool(pairs) and all(p in comparisons.cells for p in pairs)


def _measures(comparisons: Comparisons) -> list[tuple[str, str, str]]:
    """Names of the measures with what they are called and mean."""
    first = next(iter(comparisons.cells.values()), None)
    names = [] if first is None else [str(name) for name in first.measures.index]
    return [(name, *measure_titles(name)) for name in names]


def _pair(comparisons: Comparisons, row: str, column: str, notes: list[str]) -> dict[str, Any]:
    """What the page says of one pair beside its measures."""
    cell = comparisons.cells[row, column]
    status = cell.neurons()["status"].tolist()
    return {
        "row": comparisons.rows.index(row),
        "column": comparisons.columns.index(column),
        "counts": [status.count(name) for name in _STATUSES],
        "sentences": [card.sentence for card in transplant_cards(cell)],
        "notes": [note for note in cell.notes if note not in notes],
    }


def _stable(table: pd.DataFrame) -> dict[str, Any]:
    """A table of what is stable: its circuits' effects by place, as names may be anything."""
    shown, first = table.head(_STABLE_SHOWN), len(_STABLE)
    numbers = shown.iloc[:, :first].set_axis(list(_STABLE), axis=1).to_dict("records")
    effects = shown.iloc[:, first:].to_numpy(dtype=float)
    return {
        "circuits": [str(name).removeprefix("effect_") for name in table.columns[first:]],
        "rows": [
            row | {"effects": own} for row, own in zip(numbers, effects.tolist(), strict=True)
        ],
        "all": len(table),
    }


def _targets(comparisons: Comparisons) -> list[str]:
    targets = [c.target for cell in comparisons.cells.values() for c in (cell.a, cell.b)]
    return list(dict.fromkeys(targets))


def _shared_notes(comparisons: Comparisons) -> list[str]:
    """Notes that all pairs have; others are shown with their pair."""
    every = [cell.notes for cell in comparisons.cells.values()]
    return [note for note in every[0] if all(note in notes for notes in every)] if every else []
