"""What pages of comparisons say in words and small plots: measures, layers, transplants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurograph.comparison.overlap import MEASURES

if TYPE_CHECKING:
    from neurograph.comparison.comparison import Comparison

__all__ = [
    "LayerCard",
    "MeasureCard",
    "TransplantCard",
    "layer_cards",
    "matched",
    "measure_cards",
    "measure_titles",
    "transplant_cards",
    "written",
    "written_p",
]

Layers = tuple[str | None, tuple[str, ...]]

_BINS = 24
_WIDTH, _HEIGHT = 168.0, 34.0  # of a small plot, in units of the SVG


@dataclass(frozen=True)
class MeasureCard:
    """One measure beside its null; places are those in a plot ``168 × 34``."""

    name: str
    title: str
    meaning: str
    value: str
    mean: str
    interval: str
    p: str
    bars: str
    band: tuple[float, float] | None
    mark: float | None
    ends: tuple[str, str]


@dataclass(frozen=True)
class LayerCard:
    """One pair of layers, or a layer alone, as written; shares are also numbers."""

    a: str | None
    b: str | None
    kept: tuple[int, int]
    common: int
    jaccard: str
    null: str
    p: str
    shares: tuple[tuple[float, str], tuple[float, str]]
    alike: str
    cka: str


@dataclass(frozen=True)
class TransplantCard:
    """What is left of one model's target.

    Attributes
    ----------
    sentence : str
    rows : tuple of (what, neurons, bar, ends of the interval or None, text)
        Bars in percent of their room.
    p, errors : str
        Of the distances to the whole model.
    """

    sentence: str
    rows: tuple[tuple[str, int, float, tuple[float, float] | None, str], ...]
    p: str
    errors: str


def written(value: float, places: int = 2) -> str:
    """Write a number with a minus; a dash where it is unknown.

    Examples
    --------
    >>> written(-0.125), written(float("nan"))
    ('−0.12', '–')
    """
    return "–" if math.isnan(value) else _minus(f"{value:.{places}f}")


def written_p(p: float) -> str:
    """Write a p-value: ``p = 0.02``; nothing where it is unknown.

    Examples
    --------
    >>> written_p(0.0213), written_p(0.0004), written_p(float("nan"))
    ('p = 0.021', 'p < 0.001', '')
    """
    if math.isnan(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def percent(share: float) -> str:
    """Write a share as a percentage.

    Examples
    --------
    >>> percent(0.834), percent(-0.1)
    ('83 %', '−10 %')
    """
    return "–" if math.isnan(share) else _minus(f"{100 * share:.0f}") + " %"


def _minus(number: str) -> str:
    """Write a number's sign, but none of zero."""
    return number.replace("-", "−" if float(number) else "")


def measure_titles(name: str) -> tuple[str, str]:
    """What a measure is called, and what it is; its bare name if a file has one of elsewhere."""
    measure = MEASURES.get(name)
    return (name, "") if measure is None else (measure.title, measure.meaning)


def measure_cards(comparison: Comparison) -> tuple[MeasureCard, ...]:
    """Lay out all measures with their distributions."""
    return tuple(
        _measure(str(name), row, np.asarray(comparison.null.get(str(name), ()), dtype=float))
        for name, row in zip(
            comparison.measures.index, comparison.measures.to_dict("records"), strict=True
        )
    )


def _measure(name: str, row: dict[str, float], null: NDArray[np.float64]) -> MeasureCard:
    title, meaning = measure_titles(name)
    known = null[np.isfinite(null)]
    around = [*known.tolist(), *(x for x in (row["value"],) if math.isfinite(x))]
    low, high = (min(around), max(around)) if around else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.05
    # A share has no room below 0.
    low, high = max(low - room, min(low, 0.0)), high + room

    def across(value: float) -> float:
        return round(_WIDTH * (value - low) / (high - low), 1)

    band = row["null_low"], row["null_high"]
    has_null = len(known) > 0 and not any(map(math.isnan, band))
    return MeasureCard(
        name,
        title,
        meaning,
        written(row["value"]),
        written(row["null_mean"]),
        f"{written(band[0])}, {written(band[1])}" if has_null else "–",
        written_p(row["p_value"]),
        _bars(known, low, high),
        (across(band[0]), across(band[1])) if has_null else None,
        across(row["value"]) if math.isfinite(row["value"]) else None,
        (written(low), written(high)),
    )


def _bars(values: NDArray[np.float64], low: float, high: float) -> str:
    """Path of a histogram."""
    if not len(values):
        return ""
    counts, _ = np.histogram(values, bins=_BINS, range=(low, high))
    step, tall = _WIDTH / _BINS, _HEIGHT / counts.max()
    return "".join(
        f"M{i * step + 0.5:.1f} {_HEIGHT:g}v{-count * tall:.1f}h{step - 1:.1f}V{_HEIGHT:g}Z"
        for i, count in enumerate(counts.tolist())
        if count
    )


def layer_cards(comparison: Comparison, order: Sequence[Layers]) -> tuple[LayerCard, ...]:
    """Write the table of layers, in an order of (layer of a or None, layers of b)."""
    table = comparison.layers
    places = [{(a, b): i for b in of_b or (None,)} for i, (a, of_b) in enumerate(order)]
    place = {pair: i for column in places for pair, i in column.items()}
    most = (
        float(np.nan_to_num(table[["share_a", "share_b"]].to_numpy(float)).max(initial=0.0)) or 1.0
    )
    cards = [
        LayerCard(
            _layer(row["layer_a"]),
            _layer(row["layer_b"]),
            (int(row["kept_a"]), int(row["kept_b"])),
            int(row["common"]),
            written(row["jaccard"]),
            written(row["null_mean"]),
            written_p(row["p_value"]),
            (_share(row["share_a"], most), _share(row["share_b"], most)),
            written(row["similarity"]),
            written(row["cka"]),
        )
        for row in table.to_dict("records")
    ]
    return tuple(sorted(cards, key=lambda card: place.get((card.a, card.b), len(place))))


def _layer(name: Any) -> str | None:
    return name if isinstance(name, str) else None


def _share(share: float, most: float) -> tuple[float, str]:
    return (0.0 if math.isnan(share) else round(100 * share / most, 1)), percent(share)


def matched(comparison: Comparison) -> str:
    """Say how neurons were matched."""
    matching = comparison.matching
    pairs = sum(len(match.pairs) for match in matching.layers)
    ways = {
        "identity": "Neurons of one name are the same",
        "activation": "Neurons are matched by how alike their activations are",
        "mapping": "Neurons are matched as a mapping said",
    }
    sentence = (
        f"{ways.get(matching.kind, f'Neurons are matched by {matching.kind}')}: {pairs:,} pairs"
    )
    sentence += f" in {len(matching.layers):,} {_plural('layer', len(matching.layers))}"
    known = [match.similarity for match in matching.layers]
    values = np.concatenate(known) if known else np.empty(0)
    values = values[np.isfinite(values)]
    if len(values):
        sentence += f", mean similarity {written(float(values.mean()))}"
    ties = sum(len(match.ties) for match in matching.layers)
    if ties:
        sentence += f"; {ties:,} {_plural('tie', ties)}, where chance chose"
    return sentence + "."


def transplant_cards(comparison: Comparison) -> tuple[TransplantCard, ...]:
    """Say in words what survives in each model."""
    table = comparison.transplants
    return tuple(
        _transplant(rows.to_dict("records"), comparison.names, into)
        for into in ("a", "b")
        if len(rows := table[table["into"] == into] if len(table) else table)
    )


def _transplant(rows: list[dict[str, Any]], names: tuple[str, str], into: str) -> TransplantCard:
    host, guest = names if into == "a" else names[::-1]
    by_kind = {row["kept"]: row for row in rows}
    parts = []
    if other := by_kind.get("other"):
        left = percent(other["recovered"])
        parts.append(
            f"{host} keeps only the neurons that match the circuit of {guest}: "
            f"{left} of its target is left"
        )
    if own := by_kind.get("own"):
        parts.append(f"with its own circuit {percent(own['recovered'])}")
    if drawn := by_kind.get("random"):
        share = percent(drawn["recovered"])
        parts.append(f"with as many random neurons {share}{_interval(drawn)}")
    names_of = {"other": f"matching {guest}", "own": "its own circuit", "random": "random"}
    lines = tuple(
        (
            names_of.get(kind, kind),
            int(row["neurons"]),
            _bar(row["recovered"]),
            None
            if math.isnan(row["recovered_low"])
            else (_bar(row["recovered_low"]), _bar(row["recovered_high"])),
            percent(row["recovered"]) + _interval(row),
        )
        for kind, row in ((kind, by_kind[kind]) for kind in names_of if kind in by_kind)
    )
    errors = ", ".join(
        f"{names_of[kind]} {by_kind[kind]['error']:.3g}"
        for kind in names_of
        if kind in by_kind and not math.isnan(by_kind[kind]["error"])
    )
    p = written_p(by_kind["other"]["p_value"]) if "other" in by_kind else ""
    return TransplantCard("; ".join(parts) + ".", lines, p, errors)


def _interval(row: dict[str, Any]) -> str:
    low, high = row["recovered_low"], row["recovered_high"]
    return "" if math.isnan(low) else f" [{percent(low)}, {percent(high)}]"


def _bar(share: float) -> float:
    """Place on a bar from 0 to 120 percent of the target."""
    return 0.0 if math.isnan(share) else round(min(max(share, 0.0), 1.2) / 1.2 * 100, 1)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
