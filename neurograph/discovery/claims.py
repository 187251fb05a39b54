"""Effects of a result to audit: the strongest, the weakest and others of each layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurograph.audit.audit import audit_effects, choose_claims
from neurograph.audit.result import Audit, Claim
from neurograph.circuit.circuit import Circuit
from neurograph.effects.effect_table import CIRCUIT, TOTAL
from neurograph.effects.exact import total_effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import TARGET
from neurograph.model.layers import Neuron
from neurograph.model.observe import placed
from neurograph.preparation.base_study import BaseStudy

__all__ = ["audit_result"]

_SCORES = 16  # audited of a table


_KINDS = 4  # of effects that a circuit has


def audit_result(
    study: BaseStudy,
    of: Circuit | pd.DataFrame | None = None,
    *,
    effects: int | None = None,
    seconds: float | None = None,
) -> Audit:
    """Compute some effects of a result again by forward hooks alone.

    Parameters
    ----------
    study : BaseStudy
        That the result was found in.
    of : Circuit or table of scores, optional
        By default total effects, measured here.
    effects : int, optional
        About how many; by default one to four of each kind, by the size of a circuit, 16 scores.
    seconds : float, optional
        What that may take; the first few are computed in any case.
    """
    experiment, seed = study.experiment, study.options["seed"]
    if of is None:
        claims, estimates = _totals(study, effects or _SCORES), 0
    elif isinstance(of, Circuit):
        size = sum(table["effect"].size for table in of.scores.values())
        size += of.graph.number_of_edges()
        each = min(4, 1 + size // 5000) if effects is None else max(1, effects // _KINDS)
        claims, estimates = claims_of_circuit(of, experiment, of_each=each, seed=seed)
    else:
        most = _SCORES if effects is None else effects
        claims, estimates = claims_of_table(of, experiment, most=most, seed=seed)
    with placed(study.model, study.options["device"]):
        return audit_effects(experiment, claims, seconds=seconds, estimates=estimates)


def _totals(study: BaseStudy, effects: int) -> list[Claim]:
    """Measure total effects of some neurons of each layer, drawn at random."""
    generator = np.random.default_rng(study.options["seed"])
    with study.open() as experiment:
        layers = [name for name in study.layers if experiment.recording.layers[name].neurons]
        each, claims = math.ceil(effects / max(1, len(layers))), []
        for layer in layers:
            units = experiment.units(layer)
            chosen = np.sort(generator.permutation(len(units))[:each]).tolist()
            found = total_effects(experiment, layer, chosen)
            numbers = zip(found.effect.tolist(), found.stderr.tolist(), strict=True)
            claims += [
                Claim("total", (units.neuron(unit),), *number)
                for unit, number in zip(chosen, numbers, strict=True)
            ]
    return claims


def claims_of_circuit(
    circuit: Circuit, experiment: Experiment, *, of_each: int, seed: int
) -> tuple[list[Claim], int]:
    """Effects of a circuit to audit, and how many of its effects are estimates.

    The kinds come in turns, `of_each` of edges and paths, one more of effects through the circuit,
    and of total effects so many besides one of each layer. The latter two are drawn from all
    neurons, kept or not.
    """
    kept: dict[str, list[int]] = {}
    for neuron in circuit.graph:
        kept.setdefault(neuron.layer, []).append(experiment.units(neuron.layer).unit(neuron))

    def seen_of(layer: str) -> dict[str, Sequence[int] | None]:
        readers = circuit.layers.successors(layer)
        seen: dict[str, Sequence[int] | None] = {r: sorted(kept[r]) for r in readers if r in kept}
        return seen | ({TARGET: None} if circuit.layers.nodes[layer]["output"] else {})

    through = {layer: seen_of(layer) for layer in circuit.scores}
    is_whole = not circuit.provenance.get("part", False)
    nodes = [layer for layer in circuit.scores if through[layer]] if is_whole else []
    layers = list(circuit.scores)
    tables = [
        _of_neurons(circuit, layers, experiment, len(layers) + of_each, seed),
        _of_neurons(circuit, nodes, experiment, of_each + 1, seed + 1, through),
        _of_edges(circuit, experiment, of_each, seed + 2),
        _of_paths(circuit, of_each, seed + 3),
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*tables))
    return [claim for claim in turns if claim is not None], _estimates(circuit)


def _of_neurons(
    circuit: Circuit,
    layers: Sequence[str],
    experiment: Experiment,
    most: int,
    seed: int,
    through: Mapping[str, Any] | None = None,
) -> Iterator[Claim]:
    """Total effects; or those through what is kept of each layer's readers, where it is given."""
    if not layers:
        return
    kind = TOTAL if through is None else CIRCUIT
    tables = [kind.read(circuit.scores[layer]).reshaped(-1) for layer in layers]
    # NaN where they are estimates, which are no claims.
    effects = np.concatenate([np.where(t.measured, t.effect, np.nan) for t in tables])
    errors = np.concatenate([table.stderr for table in tables])
    names = np.repeat(np.array(layers, dtype=object), [len(table) for table in tables])
    units = np.concatenate([np.arange(len(table)) for table in tables])
    for i in choose_claims(names, effects, seed=seed, most=most):
        layer = str(names[i])
        neuron = experiment.units(layer).neuron(int(units[i]))
        seen = None if through is None else through[layer]
        name = "total" if through is None else "node"
        yield Claim(name, (neuron,), float(effects[i]), float(errors[i]), seen)


def _of_edges(circuit: Circuit, experiment: Experiment, most: int, seed: int) -> Iterator[Claim]:
    edges = [(u, v, d) for u, v, d in circuit.graph.edges(data=True) if d["measured"]]
    effects = [data["effect"] for _, _, data in edges]
    for i in choose_claims([u.layer for u, _, _ in edges], effects, seed=seed, most=most):
        yield _edge(experiment, edges[i][:2], effects[i], edges[i][2]["stderr"])


def _edge(
    experiment: Experiment, ends: tuple[Neuron, Neuron], effect: float, stderr: float
) -> Claim:
    reader = ends[1].layer
    seen = {reader: [experiment.units(reader).unit(ends[1])]}
    return Claim("edge", ends, effect, stderr, seen)


def _of_paths(circuit: Circuit, most: int, seed: int) -> Iterator[Claim]:
    paths = [path for path in circuit.strongest if path.measured]
    starts = [path.neurons[0].layer for path in paths]
    for i in choose_claims(starts, [path.effect for path in paths], seed=seed, most=most):
        yield Claim("path", paths[i].neurons, paths[i].effect, paths[i].stderr)


def _estimates(circuit: Circuit) -> int:
    known = [
        kind.read(table).measured
        for table in circuit.scores.values()
        for kind in (CIRCUIT, TOTAL)
        if kind.effect in table
    ]
    edges = sum(not measured for _, _, measured in circuit.graph.edges(data="measured"))
    return edges + sum(int((~measured).sum()) for measured in known)


def claims_of_table(
    table: pd.DataFrame, experiment: Experiment, *, most: int, seed: int
) -> tuple[list[Claim], int]:
    """Effects of a table of scores to audit, and how many are estimates; see `Scores.table`."""
    known = table["measured"].to_numpy(dtype=bool) & table["effect"].notna().to_numpy()
    ends = ["source_", "target_"] if "source_layer" in table else [""]
    effects = np.where(known, table["effect"].to_numpy(dtype=float), np.nan)
    names = table[f"{ends[0]}layer"].to_numpy(dtype=object)
    claims = []
    for i in choose_claims(names, effects, seed=seed, most=max(most, len(set(names)))):
        row = table.iloc[i]
        effect, stderr = float(row["effect"]), float(row["stderr"])
        neurons = tuple(_neuron(row, end) for end in ends)
        if len(neurons) == 2:
            claims.append(_edge(experiment, neurons, effect, stderr))
        else:
            claims.append(Claim("total", neurons, effect, stderr))
    return claims, int((table["effect"].notna().to_numpy() & ~known).sum())


def _neuron(row: pd.Series, end: str) -> Neuron:
    position = row.get(f"{end}position")
    place = None if position is None or pd.isna(position) else int(position)
    return Neuron(str(row[f"{end}layer"]), int(row[f"{end}index"]), place)
