"""The race's figures: time a score against ours, and curves of faithfulness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurograph.report.figures.style import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    PALETTE,
    VERMILLION,
    key,
    legend,
    look,
    panels,
)
from race.plan import OWN
from race.results import Results, each

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]


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
    for entry, told in results.entries:
        own = {"exact": "exact", "gradient": "gradient", "integrated": "integrated"}.get(entry.kind)
        if own is None or entry.contender == OWN or told["status"] != "measured":
            continue
        mine = results.measured(
            entry.task, OWN, own if entry.method != "neuron_conductance" else "input_edges"
        )
        if mine is not None:
            what = f"{entry.task}, {entry.kind}: {entry.contender} {entry.method}"
            bars.append((what.replace("_", " "), each(told) / each(mine)))
    if not bars:
        return None
    with look():
        title = "Time of the processor a score, as a multiple of ours of the same kind"
        figure, (ax,) = panels(1, title, most=1, height=0.5 + 0.34 * len(bars))
        places = range(len(bars))[::-1]
        colours = [GREEN if ratio >= 1 else VERMILLION for _, ratio in bars]
        ax.barh(list(places), [ratio for _, ratio in bars], color=colours, height=0.62, left=0)
        ax.set_xscale("log")
        ax.axvline(1, color="black", linewidth=1)
        for place, (_, ratio) in zip(places, bars, strict=True):
            ax.annotate(
                f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×",
                (max(ratio, 1.0), place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        ax.set_yticks(list(places), [what for what, _ in bars])
        ax.set_xlabel("their time / our time (green: we are faster)")
        low, high = min(r for _, r in bars), max(r for _, r in bars)
        ax.set_xlim(min(0.5, low / 1.5), 3 * high)
    return figure


def _curves(name: str, quality: dict[str, Any]) -> Figure:
    """Faithfulness against the share that is kept, by both orders."""
    curves = quality["curves"]
    shown = [i for i, count in enumerate(quality["counts"]) if count]
    shares = [100 * quality["sizes"][i] for i in shown]
    orders = {"signed": "largest effects kept", "absolute": "largest sizes of effect kept"}
    with look():
        title = f"{name}: faithfulness of circuits of every size"
        figure, axes = panels(2, title, most=2, height=3.2, sharey=True)
        handles: dict[str, Any] = {}
        peers = iter(zip([*PALETTE[1:]] * 2, [*DASHES[1:]] * 3, strict=False))
        own = iter(zip((BLUE,) * 6, ("-", *DASHES[1:], ":"), strict=False))
        for label in sorted(curves, key=lambda one: not one.startswith(OWN)):
            if label.startswith("chance"):
                style: dict[str, Any] = {"color": GREY, "linestyle": DASHES[2], "linewidth": 1}
            elif label.startswith(OWN):
                colour, dash = next(own)
                style = {"color": colour, "linestyle": dash}
            else:
                colour, dash = next(peers)
                style = {"color": colour, "linestyle": dash}
            for ax, order in zip(axes, orders, strict=True):
                ax.plot(shares, [curves[label][order][i] for i in shown], **style)
            handles[label] = key(**style)
        for ax, told in zip(axes, orders.values(), strict=True):
            ax.set_xscale("log")
            ax.axhline(1, color="black", linestyle="--", linewidth=0.8)
            ax.set_title(told)
            ax.set_xlabel("% kept")
            ax.set_xticks([s for s in shares if s in (0.1, 1, 10, 100)])
            ax.set_xticklabels([f"{s:g}" for s in shares if s in (0.1, 1, 10, 100)])
        axes[0].set_ylabel("faithfulness")
        legend(figure, list(handles.values()), list(handles))
    return figure
