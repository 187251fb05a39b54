"""Replay and capture: what runs, what is restored, what is refused."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import neurograph as ng
from neurograph.data.source import Batch
from neurograph.effects.exact import node_effects
from neurograph.questions.study import Study
from neurograph.replay.plan import Plan
from neurograph.replay.recording import capture
from neurograph.replay.replay import Replay
from neurograph.replay.wiring import read_wiring, target_layers
from tests import zoo
from tests.reference import Reference


def batch(x: Tensor) -> Batch:
    return Batch((x,), {})


def counted(model: nn.Module) -> dict[str, int]:
    """Count the real computations of each layer (its own forward, not its stand-in)."""
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        original = module.forward

        def forward(x: Tensor, name: str = name, original: object = original) -> Tensor:
            counts[name] = counts.get(name, 0) + 1
            return original(x)  # type: ignore[operator]

        module.forward = forward
    return counts


def test_suffix_computes_descendants_only_and_equals_the_whole_model() -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float64)
    x = sample.data(3, 0)
    recording = capture(sample.model, batch(x))
    counts = counted(sample.model)
    with Replay(sample.model, recording) as replay:
        wiring = read_wiring(replay)
        counts.clear()
        rows = recording.main("conv").repeat(5, 1, 1, 1)
        outcome = replay.run(wiring.suffix(["conv"]), {"conv": rows}, blocks=5)
    torch.testing.assert_close(outcome.output, recording.output.repeat(5, 1), rtol=1e-12, atol=0)
    assert set(counts) == {"branch", "head"}


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_suffix_agrees_at_other_batch_sizes(blocks: int) -> None:
    for sample in (
        zoo.branched_cnn(3, 2, 0, torch.float64),
        zoo.residual_mlp(4, 2, 0, torch.float64),
        zoo.attention(4, 2, 0, torch.float64),
        zoo.shared_layer(4, 2, 0, torch.float64),
    ):
        recording = capture(sample.model, batch(sample.data(3, 0)))
        with Replay(sample.model, recording) as replay:
            wiring = read_wiring(replay)
            for name in recording.layers:
                value = recording.main(name)
                rows = value.repeat(blocks, *[1] * (value.dim() - 1))
                out = replay.run(wiring.suffix([name]), {name: rows}, blocks=blocks).output
                wanted = recording.output.repeat(blocks, 1)
                torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


class Heads(nn.Module):
    """One row of 24 fits a view for 4 samples, as 3 heads, but not one for 21."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(4, 24), nn.Linear(24, 24)
        self.out, self.mlp, self.head = nn.Linear(2, 24), nn.Linear(24, 24), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.embed(x)
        b = a + self.out(self.query(a).view(len(a), -1, 2).mean(1))
        return self.head(b + self.mlp(b).relu_())


def test_idle_rows_that_fit_some_batch_sizes_by_chance() -> None:
    torch.manual_seed(0)
    model, x = Heads().double(), torch.randn(3, 4, dtype=torch.float64)
    recording = capture(model, batch(x))
    with Replay(model, recording) as replay:
        plan, rows = read_wiring(replay).suffix(["mlp"]), recording.main("mlp")
        for blocks in (2, 7, 2):
            out = replay.run(plan, {"mlp": rows.repeat(blocks, 1)}, blocks=blocks).output
            torch.testing.assert_close(out, recording.output.repeat(blocks, 1))


class Opens(nn.Module):
    """A gate that one large value opens for all samples of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.head(h + torch.relu(h.amax() - 50))


@pytest.mark.parametrize("kind", ["rows that fit by chance", "a gate for all"])
def test_a_plan_that_is_run_again_in_another_way_keeps_its_shares(kind: str) -> None:
    by_chance = kind == "rows that fit by chance"
    torch.manual_seed(0)
    model, x = (Heads() if by_chance else Opens()).double(), torch.randn(3, 4, dtype=torch.float64)
    layer, blocks = ("mlp", 7) if by_chance else ("one", 5)
    recording = capture(model, batch(x))
    rows = recording.main(layer)
    shares, added = torch.rand(2, blocks * 3, rows.shape[1], dtype=torch.float64)
    if not by_chance:
        added[2 * 3 + 2] += 100  # neither of the first or last block, nor of the first two samples
    frozen = frozenset({"embed", "out"} if by_chance else {"input"})
    plan = Plan(live=frozenset({layer, "head"}), frozen=frozen, nudged=frozenset({layer}))
    wanted = []
    for some in range(blocks):
        part = slice(3 * some, 3 * some + 3)
        nudged = rows * shares[part] + added[part]
        hook = model.get_submodule(layer).register_forward_hook(lambda *_, h=nudged: h)
        with torch.no_grad():
            wanted.append(model(x))
        hook.remove()
    with Replay(model, recording) as replay:
        given, kept = {layer: added}, {layer: shares}
        output = replay.run(plan, given, blocks=blocks, shares=kept).output
    torch.testing.assert_close(output, torch.cat(wanted))


def test_memory_inside_a_call_is_known() -> None:
    class Wasteful(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * x.repeat(1, 1000).sum()

    recording = capture(nn.Sequential(nn.Linear(2, 5), Wasteful(5, 3)), batch(torch.rand(8, 2)))
    inside = 5 * 1000 * 4
    assert recording.call_bytes["0"] < inside <= recording.call_bytes["1"] < 1.1 * inside


def test_in_place_glue_does_not_reach_the_recording() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h.relu_()
            h += 1
            out = self.second(h)
            out += h
            x.zero_()
            return out

    model = InPlace()
    x = torch.rand(5, 3)
    kept = x.clone()
    recording = capture(model, batch(x))
    before = {name: recording.main(name).clone() for name in recording.layers}
    assert torch.equal(x, kept)
    with Replay(model, recording) as replay:
        read_wiring(replay)
        replay.run(Plan(frozen=frozenset(recording.layers)))
    for name, value in before.items():
        assert torch.equal(recording.main(name), value)
    assert torch.equal(recording.main("input"), kept)


def test_plans_are_data_that_say_what_runs() -> None:
    sample = zoo.mlp((3, 4, 5, 6, 1), "tanh", False, 0, torch.float64)
    with Replay(sample.model, capture(sample.model, batch(sample.data(2, 0)))) as replay:
        wiring = read_wiring(replay)
    assert target_layers(wiring.layers) == ["layers.3"]
    assert wiring.suffix(["layers.1"]) == Plan(
        given=frozenset({"layers.1"}), live=frozenset({"layers.2", "layers.3"})
    )
    assert wiring.direct("layers.0", ["layers.1"]) == Plan(
        given=frozenset({"layers.0"}), probed=frozenset({"layers.1"})
    )
    residual = zoo.residual_mlp(4, 2, 0, torch.float64)
    with Replay(residual.model, capture(residual.model, batch(residual.data(2, 0)))) as replay:
        wiring = read_wiring(replay)
    plan = wiring.suffix(["down"])
    # `enter` skips over `down` into the head, and the head adds to the skip: both must be there
    # for every intervention. Only `up` feeds nothing that still runs.
    assert plan.live == {"head"}
    assert plan.frozen == {"enter", "skip"}


class TakesBatchSize(nn.Module):
    """Takes the batch size from a layer that nothing computed depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        size = self.one(x).shape[0]
        h = self.two(x)
        return self.three(h.reshape(size, 2, -1).flatten(1))


def test_glue_that_takes_the_batch_size_from_an_idle_layer_still_works() -> None:
    model = TakesBatchSize().double()
    x = torch.rand(3, 4, dtype=torch.float64)
    recording = capture(model, batch(x))
    with Replay(model, recording) as replay:
        plan = read_wiring(replay).suffix(["two"])
        assert "one" not in plan.busy
        rows = recording.main("two").repeat(4, 1)
        out = replay.run(plan, {"two": rows}, blocks=4).output
    torch.testing.assert_close(out, recording.output.repeat(4, 1))


class Centred(nn.Module):
    """Takes the batch's mean away: what a sample gets depends on who else is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.two(torch.tanh(h - h.mean(0)))


class Branching(Centred):
    """Takes another way through the data where a value says so."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.two(h.relu() if h[:, 0].mean() > 0.2 else h.tanh())


@pytest.mark.parametrize("kind", [Centred, Branching])
def test_glue_that_mixes_a_batch_gets_one_intervention_at_a_time(kind: type[nn.Module]) -> None:
    model = zoo.settle(kind(), 1, torch.float64)
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    study = Study(model, x, 1, reference=6, progress=False)
    few = study.experiment.recording.batch.args[0]
    sites = {name: zoo.Site(name) for name in ("input", "one", "two")}
    network = zoo.Network("two", model, lambda *_: {"x": x}, lambda out, _: out[:, 0], sites)
    reference = Reference(network, {"x": few})
    with study.open() as experiment:
        for layer, neurons in (("input", range(3)), ("one", range(4))):
            reader = {"input": "one", "one": "two"}[layer]
            found = node_effects(experiment, layer, neurons, {reader: None})
            levels = experiment.levels(layer)[:, 0]
            for i, effect in zip(neurons, found.effect.tolist(), strict=True):
                high, low = (
                    reference.through(layer, i, levels[side, i], {reader: None}) for side in (1, 0)
                )
                assert effect == pytest.approx(float((high - low).mean()), rel=1e-9, abs=1e-12)


def test_everything_is_restored_after_success_and_after_an_exception() -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float32)
    model = sample.model.train()
    model.norm.eval()
    own = model.conv.forward
    model.conv.__dict__["forward"] = own  # a user's own instance attribute must survive
    handle = model.stem.register_forward_hook(lambda *_: None)
    recording = capture(model, batch(sample.data(2, 0)))
    before = [dict(m.__dict__) for m in model.modules()]
    buffers = [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    replay = Replay(model, recording)
    with contextlib.suppress(ZeroDivisionError), replay:
        assert "forward" in model.stem.__dict__
        torch.rand(3)
        read_wiring(replay)
        raise ZeroDivisionError
    assert [dict(m.__dict__) for m in model.modules()] == before
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.conv.__dict__["forward"] is own
    handle.remove()


def test_buffers_that_forward_writes_are_restored() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x)

    model = Counting()
    ng.search(model, torch.rand(20, 2), 1, progress=False)
    assert model.calls.item() == 0


def test_containers_that_own_parameters_are_not_layers_but_parametrised_ones_are() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.inner = parametrizations.weight_norm(nn.Linear(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.inner(x)

    graph = ng.layer_graph(Scaled(), torch.rand(4, 3))
    assert list(graph) == ["input", "inner"]
    assert graph.nodes["inner"]["output"]


def test_layers_inside_a_transformer_encoder_are_seen() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    graph = ng.layer_graph(model, torch.rand(3, 5, 8))
    inner = "0.layers.0."
    assert set(graph) == {"input", *(inner + name for name in ("self_attn", "linear1", "linear2"))}
    assert graph.has_edge(inner + "self_attn", inner + "linear1")
    assert torch.backends.mha.get_fastpath_enabled()


def test_shared_layer_has_a_node_for_each_call() -> None:
    sample = zoo.shared_layer(3, 1, 0, torch.float64)
    graph = ng.layer_graph(sample.model, sample.data(3, 0))
    assert list(graph.edges) == [
        ("input", "cell"),
        ("cell", "cell#1"),
        ("cell", "head"),
        ("cell#1", "head"),
    ]


def test_several_inputs_are_layers_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return (self.a(left) * self.b(right)).sum(1)

    x, y = torch.rand(6, 2), torch.rand(6, 4)
    positional = ng.layer_graph(Two(), ((x, y), None))
    assert list(positional) == ["input.left", "input.right", "a", "b"]
    by_name = ng.layer_graph(Two(), {"left": x, "right": y})
    assert list(by_name.edges) == [("input.left", "a"), ("input.right", "b")]


@pytest.mark.parametrize("kind", ["direct", "suffix"])
def test_interventions_that_may_share_a_batch_are_one_run(kind: str) -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float64)
    recording = capture(sample.model, batch(sample.data(3, 0)))
    with Replay(sample.model, recording) as replay:
        wiring = read_wiring(replay)
        plan = wiring.suffix(["conv"]) if kind == "suffix" else wiring.direct("conv", ["head"])
        rows = recording.main("conv").repeat(7, 1, 1, 1)
        replay.run(plan, {"conv": rows.clone()}, blocks=7)  # which is checked
        calls = []
        handle = sample.model.register_forward_pre_hook(lambda *_: calls.append(1))
        replay.run(plan, {"conv": rows.clone()}, blocks=7)
        handle.remove()
    assert len(calls) == 1
