"""What every example prints and writes: its time and memory, its circuit, its page."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import neurograph as ng
from neurograph.report import figures

__all__ = ["OUTPUTS", "measured", "publish", "tell_directions"]

OUTPUTS = Path(__file__).resolve().parents[1] / "outputs"


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print how long a block took, and the most memory the process has held until then."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kilobytes, macOS bytes.
    gigabytes = peak / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"{what}: {seconds:.1f} s, peak memory {gigabytes:.2f} GB", flush=True)


def publish(circuit: ng.Circuit, name: str, source: str | None = None) -> None:
    """Print what a circuit holds and its strongest paths; write its page and file to outputs/.

    Paths begin at the layer `source`, by default at the model's inputs.
    """
    neurons, edges = len(circuit.graph), circuit.graph.number_of_edges()
    print(f"\ncircuit of {circuit.target}: {neurons} neurons, {edges} edges")
    for line in circuit.screened() or ["measured exactly, by intervention: all neurons and edges"]:
        print(line)
    for line in (*circuit.notes, str(circuit.audited)):
        print(line)
    for sign in ("positive", "negative"):
        for path in circuit.paths(3, sign=sign, source=source):
            print(f"  {path}")
    OUTPUTS.mkdir(exist_ok=True)
    circuit.save(OUTPUTS / f"{name}.circuit")
    circuit.to_html(OUTPUTS / f"{name}.html")
    print(f"the whole circuit, to explore: outputs/{name}.html")


def tell_directions(
    study: ng.Study, name: str, *, keep: str = "top:3", layers: list[str] | None = None
) -> ng.Circuit:
    """Print the circuit of a study's directions, and what makes them high; write both to outputs/.

    Exemplars are of the first direction of every layer that has some, or of the named ones.
    """
    circuit = study.search(keep=keep)
    print(f"\nby directions: {len(circuit.graph)} parts, {circuit.graph.number_of_edges()} edges")
    for line in circuit.notes:
        print(line)
    for sign in ("positive", "negative"):
        for path in circuit.paths(2, sign=sign):
            print(f"  {path}")
    kinds = {layer: data.get("kind") for layer, data in circuit.layers.nodes(data=True)}
    chosen = layers or [layer for layer, kind in kinds.items() if kind == "direction"]
    found = study.exemplars(neurons=[(layer, 0) for layer in chosen], count=4, between=0)
    print(found)
    OUTPUTS.mkdir(exist_ok=True)
    circuit.to_html(OUTPUTS / f"{name}_directions.html")
    figures.exemplars(found, most=3).savefig(OUTPUTS / f"{name}_directions.png", dpi=150)
    print(f"to look at: outputs/{name}_directions.html, outputs/{name}_directions.png")
    return circuit
