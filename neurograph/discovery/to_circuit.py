"""From what a search found to a circuit: its graph, its numbers, and what measures its paths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from neurograph.audit.audit import audit_effects
from neurograph.audit.result import Audit
from neurograph.circuit.circuit import Circuit
from neurograph.discovery.claims import claims_of_circuit
from neurograph.discovery.frontier import Edges, Found
from neurograph.discovery.notes import search_notes
from neurograph.effects.exact import path_effects
from neurograph.effects.selection import SIGNS, sign_of
from neurograph.errors import OptionError
from neurograph.model.layers import INPUT_TYPE, Neuron, channels_first
from neurograph.model.observe import placed
from neurograph.study.study import Study

__all__ = ["assembled", "audited", "measure_paths"]

_KINDS = 4  # of effects
_BRANCHES = (
    "forward takes numbers out of tensors (as `if x.mean() > 0` does), each for the whole batch: "
    "where a move decides otherwise, all reference samples go another way together, and of what "
    "passes some readers by, the moved and the unmoved samples may decide at once"
)
_STATISTICS = ("mean", "std", "min", "max")
_PLAIN = ("type", "shape", "neurons", "parameters", "output")


def measure_paths(study: Study, paths: Sequence[tuple[Neuron, ...]]) -> list[tuple[float, float]]:
    """Measure the effects, and their standard errors, of paths of a study's model."""
    for path in paths:
        _check_path(study, path)
    study.check_unchanged()
    with study.open() as experiment:
        effects = path_effects(experiment, paths)
    return list(zip(effects.effect.tolist(), effects.stderr.tolist(), strict=True))


def audited(
    study: Study, circuit: Circuit, *, seconds: float | None = None, effects: int | None = None
) -> Audit:
    """Compute some effects of a circuit again by forward hooks alone.

    Parameters
    ----------
    study : Study
        Of the circuit's model.
    circuit : Circuit
    seconds : float, optional
        What that may take; the first few are computed in any case.
    effects : int, optional
        About how many; by default one to four of each kind, by the size of the circuit.
    """
    study.check_unchanged()
    known = sum(table["effect"].size for table in circuit.scores.values())
    size = known + circuit.graph.number_of_edges()
    of_each = min(4, 1 + size // 5000) if effects is None else max(1, effects // _KINDS)
    with placed(study.model, study.options.device):
        seed = study.options.seed
        claims, estimates = claims_of_circuit(circuit, study.experiment, of_each=of_each, seed=seed)
        return audit_effects(study.experiment, claims, seconds=seconds, estimates=estimates)


def _check_path(study: Study, path: tuple[Neuron, ...]) -> None:
    for neuron in path:
        if neuron.layer not in study.profiled:
            raise OptionError(f"the model has no neuron {neuron}")
        study.experiment.units(neuron.layer).unit(neuron)
    for writer, reader in itertools.pairwise(path):
        if not study.profiled.has_edge(writer.layer, reader.layer):
            raise OptionError(f"{reader.layer!r} does not read {writer.layer!r}: no such path")
    if not study.profiled.nodes[path[-1].layer]["output"]:
        raise OptionError(f"the path ends in {path[-1]}, which the target does not read")


def assembled(study: Study, found: Found, *, complete: bool) -> Circuit:
    """Assemble the circuit of what was found."""
    graph = nx.DiGraph(target=study.target.name)
    for layer in study.profiled:
        kept = found.part(layer, None)
        units = study.experiment.units(layer) if kept else None
        if units is None:
            continue
        tokens, statistics = study.tokens(layer), _statistics(study, layer, kept)
        for unit, numbers in zip(kept, statistics, strict=True):
            neuron = units.neuron(unit)
            effects = _effects(study, found, neuron, unit)
            graph.add_node(neuron, **_names(study, neuron, tokens), **effects, **numbers)
    for edges in found.edges:
        graph.add_edges_from(_edges(study, edges))
    layers = nx.DiGraph()
    for name, data in study.profiled.nodes(data=True):
        layers.add_node(name, **{key: data[key] for key in _PLAIN})
        if data["neurons"]:
            units = study.experiment.units(name)
            layers.nodes[name]["neurons"] = len(units)
            if units.positions is not None:
                layers.nodes[name]["positions"] = units.positions
    layers.add_edges_from(study.profiled.edges)
    names = study.feature_names
    if names is not None:
        (only,) = (n for n in layers if layers.nodes[n]["type"] == INPUT_TYPE and n in found.scores)
        layers.nodes[only]["names"] = list(names)
    provenance = {**study.provenance, "complete": complete, "notes": _notes(study, found)}
    if found.screening:
        provenance["screening"] = {phase: asdict(s) for phase, s in found.screening.items()}
    scores = {name: _by_position(study, name, table) for name, table in found.scores.items()}
    return Circuit(graph, layers, study.target.name, (), scores, provenance, study)


def _edges(study: Study, edges: Edges) -> Iterator[tuple[Neuron, Neuron, dict[str, Any]]]:
    start, end = study.experiment.units(edges.writer), study.experiment.units(edges.reader)
    keys = ("effect", "stderr", "measured", "transfer")
    rows = zip(edges.pairs.tolist(), *(getattr(edges, key).tolist() for key in keys), strict=True)
    for (i, j), *values in rows:
        told = dict(zip(keys, values, strict=True))
        yield start.neuron(i), end.neuron(j), told | {"sign": sign_of(told["effect"])}


def _notes(study: Study, found: Found) -> list[str]:
    def name(layer: str, unit: int) -> str:
        return study.name(study.experiment.units(layer).neuron(unit), study.tokens(layer))

    told = [_BRANCHES] if study.experiment.replay.branches else []
    return [*study.provenance["notes"], *told, *search_notes(found, study.target.name, name)]


def _by_position(study: Study, layer: str, table: dict[str, Any]) -> dict[str, Any]:
    """Scores as ``[neurons, positions]`` where each position has neurons of its own."""
    positions = study.experiment.units(layer).positions
    if positions is None:
        return table
    return {key: values.reshape(-1, positions) for key, values in table.items()}


def _names(study: Study, neuron: Neuron, tokens: Sequence[str] | None) -> dict[str, Any]:
    """Attributes that say which neuron this is."""
    named: dict[str, Any] = {"layer": neuron.layer, "index": neuron.index}
    if neuron.position is not None:
        named["position"] = neuron.position
        if tokens:
            named["token"] = tokens[neuron.position]
    return {"name": study.name(neuron, tokens), **named}


def _effects(study: Study, found: Found, neuron: Neuron, unit: int) -> dict[str, Any]:
    """Attributes that say what a neuron does."""
    table = found.scores[neuron.layer]

    def numbers(kind: str) -> dict[str, Any]:
        return {f"{kind}{key}": float(table[f"{kind}{key}"][unit]) for key in ("effect", "stderr")}

    def measured(kind: str) -> bool:
        return bool(table[f"{kind}measured"][unit]) if f"{kind}measured" in table else True

    attributes = numbers("")
    attributes |= {"measured": measured(""), "sign": sign_of(attributes["effect"])}
    attributes |= numbers("total_") | {"total_measured": measured("total_")}
    attributes["target"] = bool(study.profiled.nodes[neuron.layer]["output"])
    if neuron in found.direct:
        direct, direct_stderr = found.direct[neuron]
        attributes |= {"direct_effect": direct, "direct_stderr": direct_stderr}
    for sign in SIGNS:
        if f"through_{sign}_effect" in table:
            attributes |= numbers(f"through_{sign}_")
    return attributes


def _statistics(study: Study, layer: str, units: Sequence[int]) -> list[dict[str, Any]]:
    """Statistics of neurons as plain numbers; means over what moves together."""
    node, recorded = study.profiled.nodes[layer], study.experiment.recording.layers[layer]
    shape = channels_first(torch.empty(1, *recorded.shape, device="meta"), recorded.channel_dim)
    members = study.experiment.units(layer).members[list(units)]

    def means(values: Tensor) -> list[float]:
        pooled = values.dim() == 1
        values = values.view(-1, *[1] * (shape.dim() - 2)) if pooled else values
        flat = values.expand(shape.shape[1:]).movedim(0, recorded.channel_dim - 1).flatten()
        found: list[float] = flat[members].double().mean(dim=1).tolist()
        return found

    columns = {key: means(node[key]) for key in _STATISTICS}
    for level, values in zip(node["levels"], node["quantiles"], strict=True):
        columns[f"q{100 * level:g}"] = means(values)
    count = int(node["count"])
    return [
        {"count": count, **{key: values[i] for key, values in columns.items()}}
        for i in range(len(units))
    ]
