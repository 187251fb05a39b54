"""One neuron of a circuit in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neurograph.circuit.circuit import Circuit
from neurograph.circuit.paths import format_effect
from neurograph.effects.effect_table import CIRCUIT, THROUGH, TOTAL, EffectKind
from neurograph.model.layers import Neuron

__all__ = ["explain"]

_VERBS = {"positive": "raise", "negative": "lower"}


def _effect(data: Mapping[str, Any], kind: EffectKind) -> str:
    mark = "" if data.get(kind.measured, True) else " (estimated)"
    return format_effect(data[kind.effect], data[kind.stderr]) + mark


def _warning(data: Mapping[str, Any]) -> str:
    return ": the signs disagree" if data[CIRCUIT.effect] * data[TOTAL.effect] < 0 else ""


def _left_out(circuit: Circuit, neuron: Neuron) -> str:
    table = circuit.scores[neuron.layer]
    data = {key: float(values[neuron[1:]]) for key, values in table.items()}
    names = circuit.layers.nodes[neuron.layer].get("names")
    name = names[neuron.index] if names else str(neuron)
    parts = [f"  effect on {circuit.target}: {_effect(data, CIRCUIT)} through the circuit"]
    if TOTAL.effect in data:
        parts.append(f", {_effect(data, TOTAL)} in total{_warning(data)}")
    return f"{name} ({neuron}), not kept\n{''.join(parts)}"


def explain(circuit: Circuit, neuron: Neuron, k: int) -> str:
    """Describe one neuron, with so many edges and paths; see `Circuit.explain`."""
    if neuron not in circuit.graph:
        return _left_out(circuit, neuron)
    data = circuit.graph.nodes[neuron]
    channel = "kind" not in circuit.layers.nodes.get(neuron.layer, {})  # else it names another
    lines = [f"{data['name']}{f' ({neuron})' * channel}, {data['sign']}"]
    lines.append(
        f"  effect on {circuit.target}: {_effect(data, CIRCUIT)} through the circuit (the kept "
        f"neurons that read it), {_effect(data, TOTAL)} in total{_warning(data)}"
    )
    parts = [
        f"{_effect(data, kind)} through those that {_VERBS[sign]} {circuit.target}"
        for sign, kind in THROUGH.items()
        if kind.effect in data
    ]
    if len(parts) > 1:
        lines.append(f"  of that: {', '.join(parts)}")
    if "made_of" in data:
        lines.append(f"  made of: {data['made_of']}")
    if "mean" in data:
        lines.append(
            f"  activation: mean {data['mean']:.3g}, std {data['std']:.3g}, "
            f"from {data['min']:.3g} to {data['max']:.3g} over {data['count']} values"
        )
    for title, edges in (
        ("reads", [(u, d) for u, _, d in circuit.graph.in_edges(neuron, data=True)]),
        ("is read by", [(v, d) for _, v, d in circuit.graph.out_edges(neuron, data=True)]),
    ):
        edges.sort(key=lambda e: -abs(e[1]["effect"]))
        parts = [
            f"{circuit.name(n)} {format_effect(d['effect'], d['stderr'])}" for n, d in edges[:k]
        ]
        if parts:
            more = f" and {len(edges) - k} more" if len(edges) > k else ""
            lines.append(f"  {title}: {', '.join(parts)}{more}")
    lines += [f"  path: {path}" for path in circuit.paths(k, through=neuron)]
    return "\n".join(lines)
