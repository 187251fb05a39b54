"""Programs drawn at random: every effect is what plain hooks say, or the model is refused."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import neurograph as ng
from neurograph.errors import NeurographError
from neurograph.scoring.exact import node_effects, path_effects, total_effects
from neurograph.study import Options, prepare
from tests.case import Case, as_data
from tests.drawn import DOES, GIVES, TAKES, Plan, Step, build, network
from tests.reference import Reference, Run

ROWS, SAMPLES = 23, 4
PROGRAMS = int(os.environ.get("NEUROGRAPH_PROGRAMS", "60"))
"""How many are drawn: more by hand than in every run of the suite."""


class Fresh(Reference):
    """Runs a new copy of the program each time, so that nothing it keeps can be read again."""

    def __init__(self, plan: Plan, arguments: Mapping[str, Any]) -> None:
        self.plan = plan
        super().__init__(network(plan), arguments)
        order = [*self.inputs, *(n for n in self.layers if n in self.background)]
        self.layers = [n for n in self.layers if n in self.background]
        self.sites = {n: self.sites[n] for n in order}

    def run(self, forced: Mapping[str, Tensor]) -> Run:
        self.model = build(self.plan)
        return super().run(forced)

    def total(self, layer: str, index: int, value: Tensor) -> Tensor:
        """Target when one neuron moves and all else runs."""
        return self.target(self.run({layer: self.moved(layer, index, value)}).output)


class Drawn(Case):
    """A study of a drawn program beside the reference."""

    def __init__(self, plan: Plan) -> None:
        self.network = network(plan)
        self.program = self.network.model
        self.data = self.network.inputs(ROWS, 1)
        options = Options(reference=SAMPLES, memory=20_000, progress=False)
        target = self.network.target
        self.study = prepare(self.program, as_data(self.data), target, options, None)
        positions = list(self.study.provenance["data"]["reference"])
        arguments = {name: value[positions] for name, value in self.data.items()}
        self.reference = Fresh(plan, arguments)
        every = Fresh(plan, self.data).background
        self.reference.set_levels(
            {
                name: self.reference.quantiles(name, every[name], (0.05, 0.95))
                for name in self.reference.sites
                if self.reference.neurons(name) and name in every
                if name not in self.program.ragged
            }
        )

    def known(self) -> list[str]:
        """Layers with neurons, in the library's order; those the reference has too."""
        graph = self.study.profiled
        missing = set(graph) - set(self.reference.sites) - self.program.ragged
        assert not missing, f"layers that no hook sees: {missing}"
        return [n for n in graph if n in self.reference.levels and graph.nodes[n]["neurons"]]


def compare(drawn: Drawn, generator: np.random.Generator) -> int:
    """Compare some totals, node effects, edges and paths; how many were compared."""
    reference, graph = drawn.reference, drawn.study.profiled
    layers, compared = drawn.known(), 0
    with drawn.study.open() as experiment:
        for layer in layers:
            count = reference.neurons(layer)
            assert graph.nodes[layer]["neurons"] == count, layer
            some = sorted(set(generator.choice(count, min(2, count), replace=False).tolist()))
            wanted = [drawn.effect(lambda i, v: reference.total(layer, i, v), layer, i) for i in some]
            check(drawn, total_effects(experiment, layer, some), wanted, f"total of {layer}{some}")
            compared += len(some)
        if drawn.program.branches:
            return compared
        for writer in layers:
            readers = [n for n in graph.successors(writer) if n in layers]
            if readers:
                subset = drawn.subsets(readers, int(generator.integers(1000)))
                some = [int(generator.integers(reference.neurons(writer)))]
                wanted = [
                    drawn.effect(lambda i, v: reference.through(writer, i, v, subset), writer, i)
                    for i in some
                ]
                got = node_effects(experiment, writer, some, subset)
                check(drawn, got, wanted, f"{writer}{some} through {subset}")
                compared += 1
        for path in paths(graph, layers, reference, generator):
            neurons = [ng.Neuron(*n) for n in path]
            got = path_effects(experiment, [neurons])
            wanted = [drawn.effect(lambda i, v: reference.path(path, v), *path[0])]
            check(drawn, got, wanted, f"path {path}")
            compared += 1
    return compared


def paths(
    graph: nx.DiGraph, layers: Sequence[str], reference: Reference, generator: np.random.Generator
) -> list[list[tuple[str, int]]]:
    """Two paths at random, from anywhere to where the target reads."""
    found = []
    for start in generator.permutation(layers)[:2]:
        path = [str(start)]
        while after := [n for n in graph.successors(path[-1]) if n in layers]:
            path.append(str(generator.choice(after)))
        if graph.nodes[path[-1]]["output"]:
            found.append([(n, int(generator.integers(reference.neurons(n)))) for n in path])
    return found


def check(drawn: Drawn, effects: Any, wanted: list[tuple[float, float]], told: str) -> None:
    try:
        drawn.check(effects, wanted)
    except AssertionError as error:
        raise AssertionError(f"{told}: {effects.effect.tolist()} but hooks say {wanted}") from error


def fingerprint(thing: Any, seen: dict[int, int] | None = None) -> str:
    """All that can be reached from a module, as one string: values, and which objects they are."""
    seen = {} if seen is None else seen
    if isinstance(thing, Tensor):
        told = hashlib.sha256(thing.detach().contiguous().numpy().tobytes()).hexdigest()[:12]
        mine = id(thing) if isinstance(thing, nn.Parameter) else ""
        return f"{thing.dtype}{tuple(thing.shape)}{thing.requires_grad}{thing.grad is None}{told}{mine}"
    if isinstance(thing, (int, float, str, bool, torch.dtype, type(None))):
        return repr(thing)
    if id(thing) in seen:
        return f"#{seen[id(thing)]}"
    seen[id(thing)] = len(seen)
    if isinstance(thing, Mapping):
        return str([(fingerprint(k, seen), fingerprint(v, seen)) for k, v in thing.items()])
    if isinstance(thing, (list, tuple)):
        return str([fingerprint(v, seen) for v in thing])
    if isinstance(thing, (set, frozenset)):
        return str(sorted(fingerprint(v, seen) for v in thing))
    if isinstance(thing, nn.Module):
        return f"{type(thing).__name__}{fingerprint(vars(thing), seen)}"
    return f"{type(thing).__name__} at {id(thing)}"


def judge(plan: Plan, seed: int = 0) -> tuple[str, int]:
    """Compare one program with plain hooks; why it was refused, and how many effects agreed."""
    try:
        drawn = Drawn(plan)
        compared = compare(drawn, np.random.default_rng(seed))
    except NeurographError as error:
        drawn, told = None, str(error)
        assert "\n" not in told
        names = [n for n, _ in build(plan).named_modules() if n]
        assert any(n in told for n in (*names, *plan.takes, "model", "Program", "forward")), told
        reason, compared = told, 0
    else:
        reason = ""
        assert not noisy(plan), "a model that gives something else each time was not refused"
    unharmed(plan)
    return reason, compared


def noisy(plan: Plan) -> bool:
    """Whether two runs of new copies give other outputs."""
    made = [network(plan) for _ in range(2)]
    with torch.no_grad():
        one, two = (m.target(m.model(**m.inputs(SAMPLES, 1)), None) for m in made)
    return made[0].model.noisy and not torch.equal(one, two)


def unharmed(plan: Plan) -> None:
    """Scoring leaves model, data and random numbers alone, and twice gives the same bits."""
    tables = []
    made = network(plan)
    data = as_data(made.inputs(ROWS, 1))
    before = fingerprint(made.model), fingerprint(data), torch.get_rng_state().tolist()
    for _ in range(2):
        try:
            found = ng.score(
                made.model, data, made.target, of="edges", scorer="exact", reference=SAMPLES,
                progress=False,
            )
            tables.append(found.table)
        except NeurographError as error:
            tables.append(str(error))
        after = fingerprint(made.model), fingerprint(data), torch.get_rng_state().tolist()
        assert before[1:] == after[1:], "data or random numbers were changed"
        assert before == after, f"the model was changed: {difference(before[0], after[0])}"
    one, two = tables
    assert one == two if isinstance(one, str) else one.equals(two), "a second call gave other bits"


def difference(one: str, two: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0)
    return f"{one[max(0, at - 80) : at + 40]} / {two[max(0, at - 40) : at + 40]}"


_NUMBERS = st.integers(0, 3)
_STEPS = st.builds(
    Step,
    st.sampled_from([do for kind in DOES.values() for do in kind]),
    _NUMBERS,
    _NUMBERS,
    st.integers(0, 11),
)
PLANS = st.builds(
    Plan,
    st.lists(_STEPS, min_size=1, max_size=7).map(tuple),
    st.sampled_from(TAKES),
    st.sampled_from(GIVES),
    st.integers(0, 99),
    st.booleans(),
)


@settings(max_examples=PROGRAMS)
@given(PLANS)
def test_every_effect_is_what_hooks_say_or_the_program_is_refused(plan: Plan) -> None:
    note(str(build(plan)))
    refused, compared = judge(plan)
    event(f"refused: {refused}" if refused else f"agreed: {min(compared, 30) // 10 * 10} effects or more")
