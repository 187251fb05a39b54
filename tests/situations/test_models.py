"""Models that do unusual things: every number as plain hooks have it, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import neurograph as ng
from neurograph.ablation.masked_weights import find_linear_readers
from neurograph.data.source import Batch
from neurograph.errors import DataError, ModelError, NeurographError, OptionError
from neurograph.questions.study import Study
from neurograph.replay.plan import Plan
from neurograph.replay.recording import capture
from neurograph.replay.replay import Replay
from tests.situations.hooked import (
    SAMPLES,
    by_hooks,
    check,
    first,
    inputs,
    path,
    scored,
    seeded,
    total,
    values,
)

# -- who reads whom --------------------------------------------------------------------------------


class Heads(nn.Module):
    """Two heads, one of which an input switches off."""

    def __init__(self) -> None:
        super().__init__()
        self.rep, self.h0, self.h1 = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        r = torch.tanh(self.rep(x))
        return t * self.h1(r) + (1 - t) * self.h0(r)


class WhereHeads(Heads):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        r = torch.tanh(self.rep(x))
        return torch.where(t > 0.5, self.h1(r), self.h0(r))


class MaskedHeads(Heads):
    """Rows picked by a mask, and put back by another operation for each head."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        r = torch.tanh(self.rep(x))
        out = r.new_zeros(len(r), 1)
        out += self.h1(r).masked_fill(t < 0.5, 0)
        out.addcmul_(self.h0(r), 1 - t)
        return out


@pytest.mark.parametrize("kind", [Heads, WhereHeads, MaskedHeads])
@pytest.mark.parametrize("first_ones", [2, 20])
def test_branches_closed_in_the_first_samples(kind: type[nn.Module], first_ones: int) -> None:
    model, (x,) = seeded(kind), inputs(3)
    t = torch.ones(SAMPLES, 1, dtype=torch.float64)
    t[:first_ones] = 0
    check(model, (x, t), {"input.x": "input.0", "rep": "rep", "h0": "h0", "h1": "h1"})
    graph = ng.layer_graph(model, ((x, t), None))
    assert {("rep", "h0"), ("rep", "h1")} <= set(graph.edges)
    assert graph.nodes["h0"]["output"]
    assert graph.nodes["h1"]["output"]


class Gated(nn.Module):
    """A gate that no sample opens, but that its own move does."""

    def __init__(self) -> None:
        super().__init__()
        self.rep, self.gate = nn.Linear(3, 4), nn.Linear(4, 1)
        self.behind, self.head = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        r = torch.tanh(self.rep(x))
        gate = torch.relu(self.gate(r) + 5)
        return gate * self.behind(r) + self.head(r)


def test_a_gate_that_only_a_move_opens() -> None:
    model, (x,) = seeded(Gated), inputs(3)
    with torch.no_grad():
        model.gate.weight.copy_(torch.tensor([[8.0, 0.1, 0.2, -0.1]]))
        model.gate.bias.fill_(-6.9)
        model.rep.weight[0].zero_()
        model.rep.bias[0].fill_(-1.0)
        x[:, 0] += 1
        assert (model.gate(torch.tanh(model.rep(x))) + 5 < 0).all()
    found = scored(model, (x,), contrast="zero")
    for layer in ("rep", "gate", "behind"):
        rows = values(model, (x,), layer)
        for i in range(rows.shape[-1]):
            ends = torch.zeros(len(rows), dtype=rows.dtype), rows[:, i]
            wanted = total(model, (x,), layer, i, ends, first)
            assert found[layer][i] == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert abs(found["rep"][0]) > 0.1


class Hyper(nn.Module):
    """Weights of one layer that another one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.task, self.body, self.head = nn.Linear(2, 12), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        weight = self.body.weight + 0.1 * self.task(z).mean(0).view(4, 3)
        h = functional_call(self.body, {"weight": weight, "bias": self.body.bias}, (x,))
        return self.head(torch.relu(h))


def test_weights_that_another_layer_returns_are_read() -> None:
    model, (x, z) = seeded(Hyper), inputs(3, 2)
    graph = ng.layer_graph(model, ((x, z), None))
    assert ("task", "body") in graph.edges
    check(model, (x, z), {"task": "task", "body": "body", "input.x": "input.0"})


class Listed(nn.Module):
    """Takes another way by numbers that leave the tensor without an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        sizes = h.abs().mean(0).tolist()
        order = sorted(range(4), key=lambda i: sizes[i])
        return self.head(torch.relu(self.two(h))[:, order])


class Numpy(Listed):
    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        order = h.detach().abs().mean(0).numpy().argsort()
        return self.head(torch.relu(self.two(h))[:, order.tolist()])


@pytest.mark.parametrize("kind", [Listed, Numpy])
def test_numbers_that_leave_without_an_operation(kind: type[nn.Module]) -> None:
    check(seeded(kind), inputs(3), ["one", "two", "input"])


# -- products with weights -------------------------------------------------------------------------


def stack() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    ).double()


def patched(model: nn.Sequential) -> None:
    old, up = model[2].forward, torch.randn(5, 6, dtype=torch.float64)
    model[2].forward = lambda h: old(h) + h @ up.T  # type: ignore[method-assign]


def slightly_patched(model: nn.Sequential) -> None:
    old = model[2].forward
    model[2].forward = lambda h: old(h) + 1e-5 * h.sum(1, keepdim=True)  # type: ignore


def hooked_behind(model: nn.Sequential) -> None:
    model[2].register_forward_hook(lambda _module, _args, output: output + 1)


def hooked_before(model: nn.Sequential) -> None:
    model[2].register_forward_pre_hook(lambda _module, args: (args[0].flip(1),))


def parametrised(model: nn.Sequential) -> None:
    parametrizations.weight_norm(model[2])
    parametrizations.orthogonal(model[4])


def spectral(model: nn.Sequential) -> None:
    model[2] = nn.utils.spectral_norm(model[2]).double()


def tied(model: nn.Sequential) -> None:
    model[2] = nn.Linear(6, 6).double()
    model[4] = nn.Linear(6, 6).double()
    model[4].weight = model[2].weight


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Unbiased(nn.Linear):
    """Computes what it should without ever using its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Mixture(nn.Linear):
    """Shifts every row by what the batch is like: no row stands for itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (1 + x.mean(0)))


def subclassed(kind: type[nn.Linear]) -> Callable[[nn.Sequential], None]:
    def change(model: nn.Sequential) -> None:
        model[2] = kind(6, 5).double()

    return change


@pytest.mark.parametrize(
    "change",
    [
        patched,
        slightly_patched,
        hooked_before,
        hooked_behind,
        parametrised,
        spectral,
        tied,
        subclassed(Doubled),
        subclassed(Unbiased),
        subclassed(Mixture),
    ],
)
def test_layers_that_compute_otherwise_than_their_weights_say(
    change: Callable[[nn.Sequential], None],
) -> None:
    torch.manual_seed(0)
    model, x = stack(), inputs(4)
    change(model)
    model.eval()
    check(model, x, ["input", "0", "2", "4"])
    options = {"reference": SAMPLES, "progress": False}
    found = ng.strongest_paths(model, x[0], target=1, k=3, **options)
    for strongest in found.paths:
        wanted = path(model, x, list(strongest.neurons), first)
        assert strongest.effect == pytest.approx(wanted, rel=1e-9, abs=1e-9)


class Fast(nn.Module):
    """Runs a layer with other weights than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.d = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        given = {"weight": self.a.weight + self.d, "bias": self.a.bias}
        return self.b(torch.relu(functional_call(self.a, given, (x,))))


class Swapped(Fast):
    def forward(self, x: Tensor) -> Tensor:
        own = self.a.weight.data
        self.a.weight.data = own + self.d.data
        try:
            h = self.a(x)
        finally:
            self.a.weight.data = own
        return self.b(torch.relu(h))


@pytest.mark.parametrize("kind", [Fast, Swapped])
def test_weights_that_are_others_during_the_call(kind: type[nn.Module]) -> None:
    model, (x,) = seeded(kind), inputs(3)
    found = scored(model, (x,))
    for layer in ("input", "a", "b"):
        wanted = by_hooks(model, (x,), layer, first)
        assert found[layer] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


# -- gradients that are absent ---------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 12), nn.Linear(12, 10), nn.Linear(10, 2)

    def between(self, h: Tensor) -> Tensor:
        return torch.relu(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.b(self.between(self.a(x)))))


class NoGrad(Plain):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Inference(Plain):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class PartlyInference(Plain):
    def between(self, h: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.relu(h)


class Detached(Plain):
    def between(self, h: Tensor) -> Tensor:
        return torch.relu(h.detach())


class Whole(Plain):
    """Integers on the way."""

    def between(self, h: Tensor) -> Tensor:
        return (10 * h).long().to(h)


class Rounded(Plain):
    """Gradients pass, but they are 0."""

    def between(self, h: Tensor) -> Tensor:
        return torch.round(10 * h)


class Chosen(Plain):
    def between(self, h: Tensor) -> Tensor:
        return nn.functional.one_hot(h.argmax(1), 12).to(h)


class OneBranch(Plain):
    """One of two ways is detached."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.o(torch.relu(self.b(h.detach())) + h[:, :10])


BLIND = [NoGrad, Inference, PartlyInference, Detached, Whole, Rounded, Chosen, OneBranch]


@pytest.mark.parametrize("kind", BLIND)
def test_estimates_without_gradients_are_refused_by_name(kind: type[nn.Module]) -> None:
    model, args = seeded(kind), inputs(4)
    layers = ["a", "input"] if kind is Chosen else ["a", "b", "input"]
    check(model, args, layers)
    for scorer in ("gradient", "integrated", "hybrid"):
        with pytest.raises(ModelError, match=f"scorer='{scorer}'.*scorer='exact'"):
            scored(model, args, scorer=scorer)


@pytest.mark.parametrize("kind", BLIND)
def test_auto_measures_in_random_order_where_no_gradients_pass(kind: type[nn.Module]) -> None:
    model, args = seeded(kind), inputs(4)
    options = {"reference": SAMPLES, "progress": False}
    exact = scored(model, args)
    found = ng.score(model, args[0], 1, scorer="auto", budget=2, **options)
    measured = found.table[found.table["measured"]]
    for layer, index, effect in zip(
        measured["layer"], measured["index"], measured["effect"], strict=True
    ):
        assert effect == pytest.approx(exact[layer][index], rel=1e-9, abs=1e-12)
    assert found.screening is not None
    assert found.screening.blind >= 12
    assert "no gradients pass" in str(found)


def test_where_gradients_pass_nothing_is_said() -> None:
    model, args = seeded(Plain), inputs(4)
    found = ng.score(model, args[0], 1, scorer="auto", budget=2, reference=8, progress=False)
    assert found.screening is not None
    assert found.screening.blind == 0
    assert "no gradients pass" not in str(found)
    for scorer in ("gradient", "integrated", "hybrid"):
        assert scored(model, args, scorer=scorer)["a"]


# -- layers that are called as often as values say -------------------------------------------------


class Loop(nn.Module):
    """Calls a layer as often as values say."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.cell, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for _ in range(1 + int(h[:, 0].mean() > 0)):
            h = torch.tanh(self.cell(h))
        return self.head(h)


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_a_layer_that_is_called_as_often_as_values_say(shift: float) -> None:
    model, (x,) = seeded(Loop), inputs(3)
    with torch.no_grad():
        model.enter.bias[0] += shift
    found = scored(model, (x,))
    wanted = by_hooks(model, (x,), "enter", first)
    assert found["enter"] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


# -- how models are run ----------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 12), nn.Linear(12, 10), nn.Linear(10, 2)
        self.reentrant = reentrant

    def middle(self, h: Tensor) -> Tensor:
        return torch.tanh(self.b(torch.relu(h)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.reentrant is None:
            return self.o(self.middle(h))
        return self.o(checkpoint(self.middle, h, use_reentrant=self.reentrant))


@pytest.mark.parametrize("scorer", ["exact", "gradient", "integrated", "hybrid", "auto"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_change_nothing(scorer: str, reentrant: bool) -> None:
    args = inputs(4)
    with_and_without = [
        scored(seeded(lambda kind=kind: Checkpointed(kind)), args, scorer=scorer, reference=8)
        for kind in (reentrant, None)
    ]
    assert with_and_without[0] == with_and_without[1]
    found, plain = with_and_without
    assert found["b"]
    assert plain["b"]


class Halved(nn.Module):
    """Runs in bfloat16 inside, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.o(torch.relu(self.b(torch.relu(self.a(x))))).float()


@pytest.mark.parametrize("scorer", ["exact", "gradient", "integrated", "hybrid", "auto"])
def test_autocast_inside_forward(scorer: str) -> None:
    torch.manual_seed(0)
    model, (x,) = Halved(), inputs(4)
    x = x.float()
    found = scored(model, (x,), scorer=scorer)
    for layer in ("input", "a", "b", "o"):
        rows = values(model, (x,), layer)
        ends = torch.stack([rows.double().quantile(q, dim=0) for q in (0.05, 0.95)]).to(rows)
        for i in range(rows.shape[1]):
            wanted = total(model, (x,), layer, i, ends[:, i], first)
            close = 1e-3 if scorer in ("exact", "auto") else 0.15
            assert found[layer][i] == pytest.approx(wanted, abs=close)


def test_autocast_inside_forward_can_be_searched() -> None:
    torch.manual_seed(0)
    model, (x,) = Halved(), inputs(4)
    circuit = ng.search(model, x.float(), 1, progress=False, keep="top:3")
    assert circuit.strongest


class Graph(nn.Module):
    """Mixes nodes by a sparse matrix, or by a dense one."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        adjacency = torch.eye(5) + torch.diag(torch.ones(4), 1)
        self.register_buffer("adjacency", adjacency.double().to_sparse(layout=layout))
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        samples, nodes, width = h.shape
        flat = h.permute(1, 0, 2).reshape(nodes, -1)
        mixed = torch.sparse.mm(self.adjacency, flat).view(nodes, samples, width)
        return self.two(torch.relu(mixed)).mean(0)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_buffers(layout: torch.layout) -> None:
    torch.manual_seed(0)
    model = Graph(layout).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 5, 3, generator=generator, dtype=torch.float64)
    before = model.adjacency.to_dense().clone()
    found = check(model, (x,), ["input", "one"])
    assert set(found) == {"input", "one", "two"}
    assert len(found["two"]) == 2
    for scorer in ("gradient", "integrated", "hybrid", "auto"):
        assert scored(model, (x,), scorer=scorer)
    assert torch.equal(model.adjacency.to_dense(), before)


class OneSize(nn.Module):
    """A hidden state made for 16 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x, x.new_zeros(1, 16, 5))[0][:, -1])


class LastState(OneSize):
    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x, x.new_zeros(1, 16, 5))[1][0])


def batches(size: int = 16, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size * count, 7, 3, generator=generator, dtype=torch.float64)
    return list(x.split(size))


@pytest.mark.parametrize("kind", [OneSize, LastState])
def test_a_model_made_for_one_batch_size(kind: type[nn.Module]) -> None:
    model, data = seeded(kind), batches()
    few = data[1]
    scores = ng.score(model, data, 1, scorer="exact", reference=few, progress=False)
    found = scores.table.set_index(["layer", "index"]).effect
    every = torch.cat(data)
    for i in range(3):
        ends = torch.stack([every[..., i].quantile(q, dim=0) for q in (0.05, 0.95)])
        wanted = total(model, (few,), "input", i, ends, first)
        assert found["input", i] == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    state = "r" if kind is OneSize else "r:1"
    assert [found[state, i] != 0 for i in range(5)] == [True] * 5
    circuit = ng.search(model, data, 1, reference=16, progress=False)
    assert circuit.strongest
    with pytest.raises(OptionError, match="reference=16"):
        ng.search(model, data, 1, progress=False)
    with pytest.raises(ModelError, match="drop_last"):
        ng.search(model, torch.cat(data), 1, progress=False)


class ResidualOneSize(OneSize):
    def forward(self, x: Tensor) -> Tensor:
        h = self.r(x, x.new_zeros(1, 16, 5))[0][:, -1]
        return self.o(h) + h[:, :2]


class Closure(nn.Module):
    """Hands a layer's output on inside a function, where nothing sees it arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.called = Called()

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.head(self.called(lambda: h))


class Called(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, get: Callable[[], Tensor]) -> Tensor:
        return torch.tanh(get() @ self.weight)


@pytest.mark.parametrize("ask", [ng.score, ng.response_curves, ng.search, ng.strongest_paths])
def test_what_arrives_unseen_is_refused_whoever_asks(ask: Callable[..., object]) -> None:
    X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(NeurographError):
        ask(seeded(Closure), X, 0, progress=False)


class Wrapped(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return torch.distributions.Categorical(logits=super().forward(x))


def test_what_is_returned_inside_an_object_is_refused() -> None:
    X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    for target in (0, lambda output, _: output.logits[:, 0]):
        with pytest.raises(
            ModelError, match="returned Categorical, in which no tensor can be seen"
        ):
            ng.search(Wrapped(3, 2), X, target, progress=False)


class GluedOneSize(OneSize):
    def forward(self, x: Tensor) -> Tensor:
        h = self.r(x, x.new_zeros(1, 16, 5))[0][:, -1]
        return self.o(h + x.new_zeros(16, 5)) + h[:, :2]


def test_two_runs_in_one_batch_where_a_model_takes_one_size() -> None:
    """Where only layers that are held take no more it works, else it is named."""
    circuit = ng.search(seeded(ResidualOneSize), batches(), 1, reference=16, progress=False)
    assert circuit.audited.agrees
    model, data = seeded(GluedOneSize), batches()
    assert len(ng.score(model, data, 1, scorer="exact", reference=16, progress=False).table)
    with pytest.raises(ModelError, match="batches of 16 samples and no others"):
        ng.search(model, data, 1, reference=16, progress=False)


# -- what replays keep -----------------------------------------------------------------------------


class Takes(nn.Module):
    """Takes the batch size from a layer, or mixes the samples of a batch."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        size = self.one(x).shape[0]
        h = self.two(x)
        h = h - h.mean(0) if self.mixes else h
        return self.three(h.reshape(size, 2, -1).flatten(1))


@pytest.mark.parametrize("mixes", [False, True])
def test_shares_are_cut_with_the_blocks(mixes: bool) -> None:
    model, (x,) = seeded(lambda: Takes(mixes)), inputs(4, samples=3)
    recording = capture(model, Batch((x,), {}))
    rows = recording.main("two")
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(4 * 3, 4, generator=generator, dtype=torch.float64)
    added = torch.rand(4 * 3, 4, generator=generator, dtype=torch.float64)
    plan = Plan(live=frozenset({"three"}), nudged=frozenset({"two"}))
    with Replay(model, recording) as replay:
        output = replay.run(plan, {"two": added}, blocks=4, shares={"two": shares}).output
    wanted = []
    for some in range(4):
        part = slice(3 * some, 3 * some + 3)
        h = rows * shares[part] + added[part]
        h = h - h.mean(0) if mixes else h
        wanted.append(model.three(h))
    torch.testing.assert_close(output, torch.cat(wanted).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "patched", "circular", "subclass"])
def test_convolutions_are_masked_where_their_weights_say_what_they_compute(kind: str) -> None:
    class Scaled(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return 1.5 * super().forward(x)

    torch.manual_seed(0)
    mode = "circular" if kind == "circular" else "zeros"
    second = nn.Conv1d(3, 2, 3, padding=1, padding_mode=mode)
    if kind == "patched":
        own = second.forward
        second.forward = lambda x: own(x) + 0.01 * x[:, :1]  # type: ignore[method-assign]
    elif kind == "subclass":
        second = Scaled(3, 2, 3, padding=1)
    model = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), second, nn.Flatten())
    x = torch.randn(10, 2, 6, generator=torch.Generator().manual_seed(0))
    study = Study(model, x, 1, reference=8, progress=False)
    with study.open() as experiment:
        served = find_linear_readers(experiment, {"2": ["0"], "0": ["input"]})
    assert set(served) == ({"0", "2"} if kind == "plain" else {"0"})


def test_layers_inside_a_transform_are_named() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(lambda row: self.head(torch.tanh(self.one(row))))(x)

    with pytest.raises(ModelError, match="layer 'one' is called inside a transform"):
        ng.score(Mapped(), torch.rand(20, 3), 1, progress=False)


def test_gradients_that_forward_takes_itself_are_told() -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                energy = torch.tanh(self.one(x)).sum()
                (force,) = torch.autograd.grad(energy, x)
            return self.head(force)

    with pytest.raises(ModelError, match="forward takes gradients of layers"):
        ng.score(Energy(), torch.rand(20, 3), 1, progress=False)


LEFT: dict[str, Any] = {}


class Leaves(nn.Linear):
    """Leaves what it computes on itself, and in a global."""

    def forward(self, x: Tensor) -> Tensor:
        self.own = LEFT["global"] = super().forward(x)
        return self.own


class Finds(nn.Module):
    """Reads that beside its input."""

    def __init__(self, where: str, other: nn.Module) -> None:
        super().__init__()
        self.one, self.where, self.other = nn.Linear(5, 2), where, [other]

    def forward(self, x: Tensor) -> Tensor:
        ways = {"own": lambda: self.other[0].own, "global": lambda: LEFT["global"]}
        return self.one(x.relu()) + ways[self.where]()[:, :2]


@pytest.mark.parametrize("where", ["own", "global"])
def test_what_a_layer_leaves_elsewhere_is_named_with_the_way_out(where: str) -> None:
    torch.manual_seed(0)
    first = Leaves(4, 5)
    model = nn.Sequential(nn.Sequential(first, Finds(where, first)), nn.Linear(2, 2))
    X = torch.randn(30, 4)
    with pytest.raises(ModelError, match=r"runs by itself.*leaves on itself or in a global"):
        ng.search(model, X, 1, progress=False)
    whole = ng.search(model, X, 1, layers=["0", "1"], progress=False)
    assert whole.audit().agrees
    assert set(whole.layers) == {"input", "0", "1"}


class Either(nn.Module):
    """One layer or another, by the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.low, self.high = nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.high(h) if float(x.mean()) > 0.5 else self.low(h)


@pytest.mark.parametrize("kind", ["in the data", "in the reference samples"])
def test_layers_for_some_data_alone_are_named_with_the_way_out(kind: str) -> None:
    torch.manual_seed(0)
    low, high = torch.rand(300, 4) - 1, torch.rand(300, 4) + 1
    data, options = (torch.cat([low, high]), {}) if kind == "in the data" else (low, {})
    if kind == "in the reference samples":
        options = {"reference": high[:5], "contrast": "zero"}
    with pytest.raises((ModelError, DataError), match=r"'(low|high)' ran on.*data of each kind by"):
        ng.search(Either(), data, 1, progress=False, **options)
    assert ng.search(Either(), low, 1, progress=False).audited.agrees


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.PReLU(3))
    second = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)]
    return nn.Sequential(block, nn.MaxPool2d(2), second, *head).double().eval()


@pytest.mark.parametrize(
    ("layer", "channels"), [("0", 3), ("0.1", 3), ("0.2", 3), ("1", 3), ("2", 5), ("3", 5)]
)
def test_channels_of_maps_are_where_convolutions_have_them(layer: str, channels: int) -> None:
    model, X = convolutional(), torch.rand(20, 2, 8, 6).double()
    scores = ng.score(model, X, 1, layers=[layer, "5"], contrast="zero", reference=20)
    found = scores.table.set_index(["layer", "index"])["effect"]
    assert len(found.loc[layer]) == channels
    assert len(found.loc["input"]) == 2
    with torch.no_grad():
        for j in range(channels):

            def ablate(_m: Any, _a: Any, out: Tensor, j: int = j) -> Tensor:
                return out.index_fill(1, torch.tensor([j]), 0.0)

            handle = model.get_submodule(layer).register_forward_hook(ablate)
            without = model(X)[:, 1]
            handle.remove()
            wanted = float((model(X)[:, 1] - without).mean())
            assert found[layer, j] == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_channels_of_a_block_are_masked_where_data_tell_where_they_are() -> None:
    model, X = convolutional(), torch.rand(20, 2, 8, 6).double()
    with (
        pytest.raises(OptionError, match=r"layer '0' \(20×3×8×6\).*pass the data"),
        ng.mask_neurons(model, [("0", 1)]),
    ):
        model(X)
    with torch.no_grad():
        wanted = model[1:](model[0](X).index_fill(1, torch.tensor([1]), 0.0))
        with ng.mask_neurons(model, [("0", 1)], data=X):
            assert torch.allclose(model(X), wanted)


class Clipped(nn.Module):
    """Scales all samples of its batch together once any value is beyond a limit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, width), nn.Linear(width, 1)
        self.limit = math.inf

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.two(h * (self.limit / h.abs().amax()).clamp(max=1))


def test_what_one_neuron_alone_does_to_a_whole_batch_reaches_no_other() -> None:
    torch.manual_seed(0)
    model, X = Clipped(400).double(), torch.randn(300, 4).double()
    with torch.no_grad():
        model.one.weight[250] *= 4
        ends = model.one(X).quantile(torch.tensor([0.05, 0.95], dtype=X.dtype), dim=0)
        model.limit = float(ends.abs().max()) * 0.9  # only the ends of neuron 250 are beyond it
    samples = X[model.one(X).abs().amax(1) < model.limit][:8]
    found = ng.score(model, X, 1, reference=samples, scorer="exact", progress=False).table
    found = found.set_index(["layer", "index"])["effect"]
    with torch.no_grad():
        for j in range(240, 260):
            rows = [model.one(samples).index_fill(1, torch.tensor([j]), float(v[j])) for v in ends]
            targets = [
                model.two(h * (model.limit / h.abs().amax()).clamp(max=1))[:, 0] for h in rows
            ]
            wanted = float((targets[1] - targets[0]).mean())
            assert found["one", j] == pytest.approx(wanted, rel=1e-9), j


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_effects_below_the_last_bit_of_a_target_are_measured_by_many_samples(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
    with torch.no_grad():
        model[2].bias += 20 if dtype == torch.bfloat16 else 200
    X = torch.randn(400, 4)
    fine = ng.score(model.double(), X.double(), 1, reference=300, scorer="exact", progress=False)
    scores = ng.score(
        model.to(dtype), X.to(dtype), 1, reference=300, scorer="exact", progress=False
    )
    wanted, found = (s.table.set_index(["layer", "index"])["effect"] for s in (fine, scores))
    large = wanted[wanted.abs() > 0.1]
    assert len(large) > 4
    assert np.abs(found[large.index] - large).max() < 0.05
    assert any("computed in" in note for note in scores.provenance["notes"])
    assert not any("computed in" in note for note in fine.provenance["notes"])


def test_a_target_in_another_dtype_is_audited_by_that() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    X = torch.rand(50, 4).double()
    for kind in (torch.float32, torch.bfloat16):
        circuit = ng.search(model, X, lambda out, _, kind=kind: out[:, 1].to(kind), progress=False)
        assert circuit.audited.agrees


class Pieces(nn.Module):
    """Runs its layers on pieces of the batch."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.one, self.two, self.size = nn.Linear(4, 5), nn.Linear(5, 2), size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.two(self.one(part).relu()) for part in x.split(self.size)])


def test_a_batch_cut_in_pieces_is_right_where_it_fits_one_and_else_named() -> None:
    torch.manual_seed(0)
    model, X = Pieces(64).double(), torch.randn(40, 4).double()
    plain = nn.Sequential(model.one, nn.ReLU(), model.two)
    cut, whole = (ng.search(m, X, 1, reference=24, progress=False) for m in (model, plain))
    assert cut.audited.agrees
    assert np.allclose(cut.neurons()["effect"], whole.neurons()["effect"], rtol=1e-9)
    for of in ("neurons", "edges"):
        effects = [ng.score(m, X, 1, of=of, progress=False).table["effect"] for m in (model, plain)]  # type: ignore[arg-type]
        assert np.allclose(*effects, rtol=1e-9, atol=1e-12)
    with pytest.raises(ModelError, match=r"one, two, ….*on pieces of it"):
        ng.search(Pieces(3).double(), X, 1, progress=False)


def test_layers_without_neurons_are_named() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3, dtype=torch.complex64), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x.to(torch.complex64)).abs())

    torch.manual_seed(0)
    X = torch.randn(40, 4)
    circuit = ng.search(Complex(), X, 1, progress=False)
    assert any("no neurons in one" in note for note in circuit.notes)
    empty = nn.Sequential(nn.Linear(4, 0), nn.ReLU(), nn.Linear(0, 2))
    assert any("no neurons in 0" in note for note in ng.search(empty, X, 1, progress=False).notes)
    with pytest.raises(OptionError, match="no edges to score"):
        ng.score(empty, X, 1, of="edges", progress=False)


def test_a_device_without_values_is_refused_before_the_weights_go_there() -> None:
    model = nn.Linear(4, 2)
    before = model.weight.clone()
    with pytest.raises(OptionError, match="device='meta' holds no values"):
        ng.search(model, torch.rand(20, 4), 1, device="meta", progress=False)
    assert torch.equal(model.weight, before)


def test_searches_of_one_model_in_several_threads_wait_for_each_other() -> None:
    torch.manual_seed(0)
    model, X = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2)), torch.rand(50, 4)
    alone = ng.search(model, X, 1, progress=False).neurons()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: ng.search(model, X, 1, progress=False), range(6)))
    assert all(one.neurons().equals(alone) for one in found)
    assert model.training
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_compiles_itself_and_what_has_no_eval_are_named() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x)
            return torch.cond(h.sum() > 0, lambda h: self.two(h), lambda h: h.sin(), (h,))  # type: ignore[no-any-return]

    X = torch.rand(20, 4)
    with pytest.raises(ModelError, match=r"Unsupported.*write it eagerly"):
        ng.search(Either(), X, 1, progress=False)
    exported = torch.export.export(nn.Linear(4, 2), (X,)).module()
    with pytest.raises(ModelError, match=r"torch\.export"):
        ng.search(exported, X, 1, progress=False)


class Positions(nn.Module):
    """Adds what it has learnt of each position."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Patches(nn.Module):
    """A transformer on patches of a series, as many as they are wide; or of other numbers."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.cut, self.pos = nn.Conv1d(2, width, 4, stride=4), Positions(length, width)
        self.more = nn.Conv1d(width, length, 1)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.cut(x)
        tokens = self.pos(maps.transpose(1, 2)) + self.more(maps).mean(2, keepdim=True) * 0.1
        return self.head(self.encoder(tokens).mean(1))


class Windows(nn.Module):
    """Rows, columns, channels behind a convolution, merged to half as many once."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.one = nn.Conv2d(3, 4, 2, stride=2), nn.Sequential(nn.Linear(4, 4), nn.GELU())
        self.merge, self.two = nn.Linear(16, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(self.cut(x).movedim(1, -1))
        n, rows, columns, channels = h.shape
        h = h.view(n, rows // 2, 2, columns // 2, 2, channels).transpose(2, 3).flatten(3)
        return self.head(self.two(self.merge(h)).mean((1, 2)))


BEHIND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, int]] = {
    "a layer of as many tokens as channels": (lambda: Patches(8, 8), (2, 32), "encoder", 8),
    "positions of as many": (lambda: Patches(8, 8), (2, 32), "pos", 8),
    "positions of other numbers": (lambda: Patches(8, 16), (2, 64), "pos", 8),
    "a block of rows and columns": (Windows, (3, 16, 16), "two", 8),
    "a block before": (Windows, (3, 16, 16), "one", 4),
}


@pytest.mark.parametrize("kind", BEHIND)
def test_channels_behind_convolutions_are_last_where_those_around_have_them_last(
    kind: str,
) -> None:
    make, shape, layer, channels = BEHIND[kind]
    torch.manual_seed(0)
    model, X = make().double().eval(), torch.randn(12, *shape).double()
    scores = ng.score(model, X, 1, layers=[layer, "head"], contrast="zero", reference=12)
    found = scores.table.set_index(["layer", "index"])["effect"]
    assert len(found.loc[layer]) == channels
    with torch.no_grad():
        for j in range(channels):

            def ablate(_m: Any, _a: Any, out: Tensor, j: int = j) -> Tensor:
                return out.index_fill(out.dim() - 1, torch.tensor([j]), 0.0)

            handle = model.get_submodule(layer).register_forward_hook(ablate)
            without = model(X)[:, 1]
            handle.remove()
            wanted = float((model(X)[:, 1] - without).mean())
            assert found[layer, j] == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("background", ["mean", "zero"])
def test_residuals_are_searched_under_every_background(background: Any) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x).relu()
            return self.head((h + self.two(h)).relu())

    torch.manual_seed(0)
    model, X = Residual().double(), torch.randn(60, 4).double()
    for scorer in ("exact", "auto"):
        circuit = ng.search(model, X, 1, background=background, scorer=scorer, progress=False)  # type: ignore[arg-type]
        assert circuit.audit().agrees
        assert {n.layer for n in circuit.graph} == {"input", "one", "two", "head"}


def test_what_is_written_in_place_between_steps_keeps_its_gradient() -> None:
    torch.manual_seed(0)
    parts = [nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Tanh(), nn.Linear(6, 2)]
    model, X = nn.Sequential(*parts).double(), torch.randn(40, 4).double()
    plain = nn.Sequential(parts[0], nn.ReLU(), *parts[2:])
    for of in ("neurons", "edges"):
        found, wanted = (
            ng.score(m, X, 1, of=of, scorer="gradient", progress=False).ranking()  # type: ignore[arg-type]
            for m in (model, plain)
        )
        assert found.to_list() == pytest.approx(wanted.rename({"1": "1"}).to_list(), rel=1e-9)


def test_what_one_neuron_does_to_a_batch_is_seen_in_half_precision() -> None:
    torch.manual_seed(0)
    model, X = Clipped(60).bfloat16(), torch.randn(100, 4).bfloat16()
    with torch.no_grad():
        model.one.weight[30] *= 4
        ends = model.one(X).float().quantile(torch.tensor([0.05, 0.95]), dim=0)
        model.limit = float(ends.abs().max()) * 0.8
    samples = X[model.one(X).abs().amax(1) < model.limit][:12]
    options: dict[str, Any] = {"reference": samples, "scorer": "exact", "progress": False}
    scores = ng.score(model, X, 1, **options)
    found = scores.table.set_index(["layer", "index"])["effect"].loc["one"]
    with torch.no_grad():
        for j in (0, 15, 29, 31, 59):
            rows = [model.one(samples).index_fill(1, torch.tensor([j]), float(v[j])) for v in ends]
            targets = [
                model.two(h * (model.limit / h.abs().amax()).clamp(max=1))[:, 0] for h in rows
            ]
            wanted = float((targets[1].float() - targets[0].float()).mean())
            assert found[j] == pytest.approx(wanted, rel=0.05, abs=0.02)


def test_branches_that_a_batch_decides_are_told() -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x)
            return self.two(h.relu() if float(h.mean()) > 0 else h.tanh())

    torch.manual_seed(0)
    X = torch.randn(40, 4).double()
    circuit = ng.search(Switch().double(), X, 1, progress=False)
    assert any("takes numbers out of tensors" in note for note in circuit.notes)
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    assert not any(
        "out of tensors" in note for note in ng.search(plain, X, 1, progress=False).notes
    )
