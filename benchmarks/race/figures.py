"""The race's figures: time a score against ours, and curves of faithfulness."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurograph.report.figures.style import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    PALETTE,
    PURPLE,
    VERMILLION,
    key,
    legend,
    look,
    panels,
)
from race.plan import OWN
from race.results import CHAMPION, Results, each

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

ORDERS = {"signed": "largest effects kept", "absolute": "largest sizes of effect kept"}


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Draw what there is; names of the files, by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    speed = _speed(results)
    if speed is not None:
        drawn["speed"] = _saved(speed, folder, "peers_speed")
    for name, quality in results.quality.items():
        if quality.get("curves"):
            drawn[name] = _saved(_curves(name, quality), folder, f"peers_{name}")
    return drawn


def _saved(figure: Figure, folder: Path, name: str) -> str:
    figure.savefig(folder / f"{name}.png", dpi=150)
    return f"{name}.png"


def _speed(results: Results) -> Figure | None:
    """Time a score of each peer's method, as a multiple of ours of the same kind."""
    bars: list[tuple[str, float]] = []
    for entry, outcome in results.entries:
        if (
            entry.kind not in ("exact", "gradient", "integrated")
            or entry.contender == OWN
            or outcome["status"] != "measured"
        ):
            continue
        same = "input_edges" if entry.method == "neuron_conductance" else entry.kind
        mine = results.measured(entry.task, OWN, same)
        if mine is not None:
            what = f"{entry.task}, {entry.kind}: {entry.contender} {entry.method}"
            bars.append((what.replace("_", " "), each(outcome) / each(mine)))
    if not bars:
        return None
    with look():
        title = "Time of the processor a score, as a multiple of ours of the same kind"
        figure, (ax,) = panels(1, title, most=1, height=0.5 + 0.34 * len(bars))
        places = range(len(bars))[::-1]
        for place, (_, ratio) in zip(places, bars, strict=True):
            faster = ratio >= 1
            ax.barh(place, ratio - 1, left=1, color=GREEN if faster else VERMILLION, height=0.62)
            ax.annotate(
                f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×",
                (ratio, place),
                (4 if faster else -4, 0),
                textcoords="offset points",
                ha="left" if faster else "right",
                va="center",
                fontsize=9,
            )
        ax.set_xscale("log")
        ax.axvline(1, color="black", linewidth=1)
        ax.set_yticks(list(places), [what for what, _ in bars])
        ax.set_xlabel("their time / ours: to the right of 1 we are faster")
        ratios = [ratio for _, ratio in bars]
        ax.set_xlim(min(0.5, min(ratios) / 2.5), 2.5 * max(*ratios, 1))
        ticks = [
            t for t in (0.01, 0.1, 1, 10, 100, 1000) if ax.get_xlim()[0] < t < ax.get_xlim()[1]
        ]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    return figure


def _curves(name: str, quality: dict[str, Any]) -> Figure:
    """Faithfulness against the share that is kept, by both orders, and what of it is lead."""
    curves = quality["curves"]
    shown = [i for i, count in enumerate(quality["counts"]) if count]
    shares = [100 * quality["sizes"][i] for i in shown]
    ours = curves.get(f"{OWN} {CHAMPION}")
    with look():
        title = f"{name}: faithfulness of circuits of every size"
        figure, axes = panels(4 if ours else 2, title, most=2, height=2.6, sharex=True)
        handles: dict[str, Any] = {}
        for label, style in _styles(curves):
            handles[label] = key(**style)
            for row, order in enumerate(ORDERS):
                line = [curves[label][order][i] for i in shown]
                axes[row if ours is None else 2 * row].plot(shares, line, **style)
                if ours is not None and not label.startswith("chance"):
                    base = [ours[order][i] for i in shown]
                    lead = [a - b for a, b in zip(line, base, strict=True)]
                    axes[2 * row + 1].plot(shares, lead, **style)
        for i, ax in enumerate(axes):
            order, zoomed = list(ORDERS)[i if ours is None else i // 2], ours and i % 2
            ax.set_xscale("log")
            ax.axhline(0 if zoomed else 1, color="black", linestyle="--", linewidth=0.8)
            ax.set_title(f"the same, less {OWN} {CHAMPION}" if zoomed else ORDERS[order])
            ticks = [share for share in shares if share in (0.1, 1, 10, 100)]
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            if zoomed:
                ax.set_ylim(*_limits(ax.get_ylim()))
            elif ours or i == 0:
                ax.set_ylabel("faithfulness")
        for ax in axes[-2:]:
            ax.set_xlabel("% kept")
        legend(figure, list(handles.values()), list(handles))
    return figure


def _limits(seen: tuple[float, float]) -> tuple[float, float]:
    """Around 0, and near it: a ranking that is far off would flatten the others."""
    return max(seen[0], -0.15), min(max(seen[1], 0.02), 0.15)


def _styles(curves: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ours in blues, chance in grey, each peer in a colour."""
    own = itertools.cycle(itertools.product(DASHES[:2], (BLUE, PALETTE[5])))
    peers = itertools.cycle(
        zip((VERMILLION, GREEN, PURPLE, PALETTE[4]), [*DASHES[1:], DASHES[1]], strict=True)
    )
    for label in sorted(curves, key=lambda one: not one.startswith(OWN)):
        if label.startswith("chance"):
            yield label, {"color": GREY, "linestyle": DASHES[2], "linewidth": 1}
        elif label == f"{OWN} {CHAMPION}":
            yield label, {"color": "black", "linestyle": "-", "linewidth": 1}
        elif label.startswith(OWN):
            dash, colour = next(own)
            yield label, {"color": colour, "linestyle": dash}
        else:
            colour, dash = next(peers)
            yield label, {"color": colour, "linestyle": dash}
