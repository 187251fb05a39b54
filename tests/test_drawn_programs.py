"""Programs drawn at random: every effect is what plain hooks say, or the model is refused."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import neurograph as ng
from neurograph.effects.effects import Effects
from neurograph.effects.exact import node_effects, total_effects
from neurograph.errors import NeurographError
from neurograph.questions.study import Study
from tests.case import Case, as_data
from tests.drawn import GIVES, TAKES, Plan, build, network
from tests.drawn_steps import DOES, Step
from tests.reference import Reference, Run, Seen
from tests.zoo import Network

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
        # Little memory cuts work into many pieces; what mixes the samples of a batch depends on
        # how the data are cut, which the reference does not do.
        memory = 10**6 if self.program.branches else 20_000
        options = {"reference": SAMPLES, "memory": memory, "progress": False}
        target = self.network.target
        self.study = Study(self.program, as_data(self.data), target, **options)
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

    def agree(self, effects: Effects, wanted: list[tuple[float, float]], told: str) -> None:
        try:
            self.check(effects, wanted)
        except AssertionError as error:
            raise AssertionError(f"{told}: {effects.effect.tolist()}, hooks {wanted}") from error

    def through(self, writer: str, index: int, seen: Seen) -> tuple[float, float]:
        """What hooks say of a neuron through outputs of its readers."""
        return self.effect(
            lambda i, value: self.reference.through(writer, i, value, seen), writer, index
        )

    def some(self, layer: str, generator: np.random.Generator) -> list[int]:
        """Two neurons of a layer, or its only one."""
        count = self.reference.neurons(layer)
        assert self.study.layers.nodes[layer]["neurons"] == count, layer
        return sorted(generator.choice(count, min(2, count), replace=False).tolist())

    def known(self) -> list[str]:
        """Layers with neurons, in the library's order; those the reference has too."""
        graph = self.study.layers
        missing = set(graph) - set(self.reference.sites) - self.program.ragged
        assert not missing, f"layers that no hook sees: {missing}"
        return [n for n in graph if n in self.reference.levels and graph.nodes[n]["neurons"]]


def compare(drawn: Drawn, generator: np.random.Generator) -> int:
    """Compare some totals, node effects and paths; how many were compared."""
    layers, compared = drawn.known(), 0
    with drawn.study.open() as experiment:
        for layer in layers:
            some = drawn.some(layer, generator)
            total = functools.partial(drawn.reference.total, layer)
            wanted = [drawn.effect(total, layer, i) for i in some]
            drawn.agree(total_effects(experiment, layer, some), wanted, f"total of {layer}{some}")
            compared += len(some)
        for writer in () if drawn.program.branches else layers:
            readers = [n for n in drawn.study.layers.successors(writer) if n in layers]
            if readers:
                seen = drawn.subsets(readers, int(generator.integers(1000)))
                index = drawn.some(writer, generator)[0]
                told = drawn.through(writer, index, seen)
                got = node_effects(experiment, writer, [index], seen)
                drawn.agree(got, [told], f"{writer}[{index}] through {seen}")
                compared += 1
    return compared


def compare_circuit(drawn: Drawn, circuit: ng.Circuit, generator: np.random.Generator) -> int:
    """Compare some kept neurons, edges and measured paths; how many were compared."""
    if drawn.program.branches or not set(circuit.layers) <= set(drawn.reference.sites):
        return 0
    edges = list(circuit.graph.edges(data=True))
    compared = 0
    for number in generator.permutation(len(edges))[:2]:
        one, other, told = edges[number]
        wanted = drawn.through(one.layer, one.index, {other.layer: [other.index]})
        drawn.agree(_effects(told), [wanted], f"edge {one} → {other}")
        compared += 1
    for number in generator.permutation(len(circuit.strongest))[:2]:
        path = circuit.strongest[number]
        steps = [(n.layer, n.index) for n in path.neurons]
        wanted = drawn.effect(lambda _, v, steps=steps: drawn.reference.path(steps, v), *steps[0])
        drawn.agree(_effects(vars(path)), [wanted], f"path {path}")
        compared += 1
    return compared


def _effects(told: Mapping[str, Any]) -> Effects:
    one = [torch.tensor([told[key]], dtype=torch.float64) for key in ("effect", "stderr")]
    return Effects(*one, torch.zeros(1, 2, dtype=torch.float64))


def fingerprint(thing: Any, seen: dict[int, int] | None = None) -> str:
    """All that can be reached from a module, as one string: values, and which objects they are."""
    seen = {} if seen is None else seen
    if isinstance(thing, Tensor):
        told = hashlib.sha256(thing.detach().contiguous().numpy().tobytes()).hexdigest()[:12]
        mine = id(thing) if isinstance(thing, nn.Parameter) else ""
        kind = f"{thing.dtype}{tuple(thing.shape)}{thing.requires_grad}{thing.grad is None}"
        return f"{kind}{told}{mine}"
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
    generator = np.random.default_rng(seed)
    result = unharmed(plan)
    try:
        drawn = Drawn(plan)
        compared = compare(drawn, generator)
        if isinstance(result, NeurographError):
            raise result
        compared += compare_circuit(drawn, result, generator)
    except NeurographError as error:
        told = str(error)
        assert "\n" not in told
        names = [n for n, _ in build(plan).named_modules() if n]
        assert any(n in told for n in (*names, *plan.takes, "model", "Program", "forward")), told
        return told, 0
    assert not noisy(plan), "a model that gives something else each time was not refused"
    return "", compared


def search(made: Network, data: Any) -> ng.Circuit:
    return ng.search(
        made.model,
        data,
        made.target,
        keep="top:2",
        scorer="exact",
        reference=SAMPLES,
        paths=4,
        progress=False,
    )


def noisy(plan: Plan) -> bool:
    """Whether two runs of new copies give other outputs."""
    made = [network(plan) for _ in range(2)]
    with torch.no_grad():
        one, two = (m.target(m.model(**m.inputs(SAMPLES, 1)), None) for m in made)
    return made[0].model.noisy and not torch.equal(one, two)


def unharmed(plan: Plan) -> ng.Circuit | NeurographError:
    """Searching leaves model, data and random numbers alone, and twice gives the same bits.

    The circuit, or why there is none.
    """
    made, told = network(plan), []
    result: ng.Circuit | NeurographError
    data = as_data(made.inputs(ROWS, 1))

    def state() -> tuple[str, str, str]:
        numbers = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
        return fingerprint(made.model), fingerprint(data), numbers

    before = state()
    for _ in range(2):
        try:
            result = circuit = search(made, data)
            # The audit takes as many effects as its share of the time allows.
            known = {k: v for k, v in circuit.provenance.items() if k != "audit"}
            told.append((str(known), *map(_bits, (circuit.neurons(), circuit.edges()))))
        except NeurographError as error:
            result = error
            told.append(str(error))
        for what, one, two in zip(("model", "data", "generator"), before, state(), strict=True):
            assert one == two, f"{what} changed: {difference(one, two)}"
    assert told[0] == told[1], "a second call gave other bits"
    return result


def _bits(table: pd.DataFrame) -> str:
    return str(table.to_json(double_precision=15))


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


@pytest.mark.slow
@settings(max_examples=PROGRAMS)
@given(PLANS)
def test_every_effect_is_what_hooks_say_or_the_program_is_refused(plan: Plan) -> None:
    note(str(build(plan)))
    refused, compared = judge(plan)
    event(
        f"refused: {refused}"
        if refused
        else f"agreed: {min(compared, 30) // 10 * 10} effects or more"
    )


def test_runs_before_anything_is_known_leave_no_trace() -> None:
    """Ids are tried as other numbers before a run was watched: the counter must not go on."""
    judge(Plan((Step("counter", 0, 0, 1),), ("ids",), "tensor", 0, False))
    told, _ = judge(
        Plan((Step("counter", 0, 0, 1), Step("linear", 0, 0, 0)), ("ids",), "tensor", 0, False)
    )
    assert not told
