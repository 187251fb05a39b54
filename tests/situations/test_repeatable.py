"""Forwards that draw random numbers, and forwards that change their model: nothing leaks.

Effects are held against plain hooks on a fresh copy of the model for every run, and the model
against a digest of everything that can be reached from it, by a walker of this file's own.
"""

from __future__ import annotations

import collections
import copy
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neurograph as ng
from neurograph.errors import ModelError

CONTRAST = (0.0, 1.0)
LAYERS = {"a": 4, "b": 2}


# -- models that change themselves -----------------------------------------------------------------


class Two(nn.Module):
    """Two layers; what a subclass does between them depends on what earlier runs left."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.start()

    def start(self) -> None:
        """Set up what runs will change."""

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.between(self.a(x))))


class Counter(Two):
    def start(self) -> None:
        self.calls = 0

    def between(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * self.calls


class ChangesAfterAFew(Counter):
    def between(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * (100 if self.calls > 5 else 1)


class History(Two):
    def start(self) -> None:
        self.seen: list[Any] = []
        self.last: collections.deque[int] = collections.deque(maxlen=3)
        self.shapes: set[Any] = set()

    def between(self, h: Tensor) -> Tensor:
        self.seen.append(h.mean())
        self.last.append(len(self.seen))
        self.shapes.add(tuple(h.shape))
        return h * len(self.seen) + len(self.last) + len(self.shapes)


class Nested(Two):
    class Plain:
        def __init__(self) -> None:
            self.counts = collections.defaultdict(int)
            self.inner = {"deep": [{"calls": 0}]}

    class Slotted:
        __slots__ = ("calls", "late")

        def __init__(self) -> None:
            self.calls = 0

    def start(self) -> None:
        self.plain, self.slotted = self.Plain(), self.Slotted()
        self.recent: collections.OrderedDict[str, int] = collections.OrderedDict(x=1, y=2)
        self.array = np.zeros(3)

    def between(self, h: Tensor) -> Tensor:
        self.plain.counts["run"] += 1
        self.plain.inner["deep"][0]["calls"] += 1
        self.slotted.calls += 1
        self.slotted.late = self.slotted.calls
        self.recent.move_to_end("x" if next(iter(self.recent)) == "x" else "y")
        self.array += 1
        first = 2 if next(iter(self.recent)) == "x" else 3
        return h * self.plain.counts["run"] * self.slotted.late * first + float(self.array.sum())


class ClassCounter(Two):
    runs = 0
    shared: ClassVar[list[int]] = []

    def between(self, h: Tensor) -> Tensor:
        type(self).runs += 1
        self.shared.append(1)
        return h * type(self).runs + len(self.shared)


class Buffers(Two):
    """A buffer re-assigned, one changed in place, a plain tensor of either kind."""

    def start(self) -> None:
        self.register_buffer("put", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("added", torch.zeros(4, dtype=torch.float64))
        self.plain, self.inside = torch.ones(4, dtype=torch.float64), [torch.ones(())]

    def between(self, h: Tensor) -> Tensor:
        self.put = self.put + 1
        self.added.add_(h.detach().mean(0) + 1)
        self.plain = self.plain * 2
        self.inside[0].mul_(1.5)
        return h * self.plain + self.put * self.added * float(self.inside[0])


class LargeBuffer(Two):
    """Larger than what is copied in any case, and written to where no version counts."""

    def start(self) -> None:
        self.register_buffer("large", torch.ones(300, 300, dtype=torch.float64))

    def between(self, h: Tensor) -> Tensor:
        self.large.data.mul_(0.5)
        return h * self.large[0, 0]


class Clamped(Two):
    def between(self, h: Tensor) -> Tensor:
        self.b.weight.data.clamp_(-0.2, 0.2)
        self.a.weight.data.mul_(0.5)
        return h


class Sparse(Two):
    def start(self) -> None:
        self.links = torch.eye(4, dtype=torch.float64).to_sparse()

    def between(self, h: Tensor) -> Tensor:
        self.links.mul_(2)
        return torch.sparse.mm(self.links, h.t()).t()


class SwappedData(Two):
    def between(self, h: Tensor) -> Tensor:
        self.a.weight.data = self.a.weight.data * 0.5
        self.a.bias.requires_grad_(False)
        self.b.weight.grad = torch.ones_like(self.b.weight)
        return h


class MaxNorm(Two):
    def start(self) -> None:
        self.table = nn.Embedding(5, 3, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        index = (x[:, 0] > 0).long()
        return super().forward(x + self.table(index))


class NormInTraining(Two):
    def start(self) -> None:
        self.norm = nn.BatchNorm1d(4)

    def between(self, h: Tensor) -> Tensor:
        self.norm.train()
        return self.norm(h) + self.norm.running_mean


class TogglesModes(Two):
    def between(self, h: Tensor) -> Tensor:
        factor = 2 if self.training else 1
        self.train(not self.training)
        return h * factor


class LateBuffer(Two):
    def between(self, h: Tensor) -> Tensor:
        if hasattr(self, "late"):
            h = h * 3
        else:
            self.register_buffer("late", torch.ones(2))
        return h


class LateHook(Two):
    def between(self, h: Tensor) -> Tensor:
        self.a.register_forward_hook(lambda _module, _args, output: output * 2)
        return h


class PowerIteration(Two):
    def start(self) -> None:
        self.b = nn.utils.spectral_norm(self.b)

    def forward(self, x: Tensor) -> Tensor:
        self.b.train()
        return super().forward(x)


class RunningNormal(Two):
    def start(self) -> None:
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

    def between(self, h: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return h - self.mean


class LazyCache(Two):
    """Built when first needed, and kept: no result depends on it."""

    def start(self) -> None:
        self.cache: dict[int, Tensor] = {}

    def between(self, h: Tensor) -> Tensor:
        if len(h) not in self.cache:
            self.cache[len(h)] = torch.linspace(0, 1, 4, dtype=h.dtype)
        return h + self.cache[len(h)]


class CountingLayer(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class LayerCounts(Two):
    def start(self) -> None:
        self.a = CountingLayer(3, 4)


class DrawsForNothing(Two):
    """What is drawn reaches nothing, or is the same whatever is drawn."""

    def between(self, h: Tensor) -> Tensor:
        random.random(), np.random.rand()  # noqa: NPY002
        return h + torch.zeros_like(torch.randn(len(h), 4)) + 0 * torch.rand(1).double()


class Stash(Two):
    """The second layer reads what the first one left in a place that both know."""

    class First(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            self.place["seen"] = output.sum(1, keepdim=True)
            return output

    class Second(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.place.get("seen", 0)

    def start(self) -> None:
        self.a, self.b = self.First(3, 4), self.Second(4, 2)
        self.a.place = self.b.place = {}


class GlueStash(Stash):
    """The same, but left by glue, which every replay executes."""

    def start(self) -> None:
        super().start()
        self.a = nn.Linear(3, 4)

    def between(self, h: Tensor) -> Tensor:
        self.b.place["seen"] = h.sum(1, keepdim=True)
        return h


STATEFUL = [
    *(Counter, ChangesAfterAFew, History, Nested, ClassCounter, Buffers, LargeBuffer, Clamped),
    *(
        Sparse,
        SwappedData,
        MaxNorm,
        NormInTraining,
        TogglesModes,
        LateBuffer,
        LateHook,
        PowerIteration,
    ),
    *(RunningNormal, LazyCache, LayerCounts, DrawsForNothing, GlueStash),
]


# -- the reference ---------------------------------------------------------------------------------


def make(kind: type[Two]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind().double(), torch.randn(16, 3, dtype=torch.float64)


def run(model: nn.Module, x: Tensor, layer: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Run a fresh copy of the model with one layer's output changed by a hook."""
    shared = {k: copy.copy(v) for k, v in vars(type(model)).items() if k in ("runs", "shared")}
    fresh = copy.deepcopy(model).eval()
    fresh.get_submodule(layer).register_forward_hook(lambda _m, _a, output: change(output.clone()))
    with torch.no_grad():
        output = fresh(x)
    for name, value in shared.items():
        if isinstance(value, list):
            vars(type(model))[name][:] = value
        else:
            setattr(type(model), name, value)
    return output


def effects(model: nn.Module, x: Tensor) -> dict[tuple[str, int], float]:
    """Total effect of each neuron on output 1, moved from its least to its largest value."""
    found = {}
    for layer, width in LAYERS.items():
        seen: list[Tensor] = []
        run(model, x, layer, lambda h, seen=seen: (seen.append(h), h)[1])
        for i in range(width):

            def moved(h: Tensor, to: Tensor, i: int = i) -> Tensor:
                h[:, i] = to
                return h

            low, high = (
                run(model, x, layer, lambda h, to=to, moved=moved: moved(h, to))[:, 1]
                for to in (seen[0][:, i].min(), seen[0][:, i].max())
            )
            found[layer, i] = float((high - low).mean())
    return found


def digest(thing: Any, seen: set[int] | None = None) -> str:
    """Digest of everything that can be reached from a thing; written for these models."""
    seen = set() if seen is None else seen
    if isinstance(thing, (int, float, str, bool, bytes, type(None), torch.dtype, torch.device)):
        return f"{type(thing).__name__}:{thing!r}"
    if isinstance(thing, Tensor):
        kind, thing = thing, thing.to_dense() if thing.layout != torch.strided else thing
        numbers = hashlib.sha256(thing.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        known = (tuple(kind.shape), kind.dtype, kind.requires_grad, digest(kind.grad, seen))
        return f"{id(kind)}:{known}:{numbers}"
    if isinstance(thing, np.ndarray):
        return f"{id(thing)}:{thing.tobytes()!r}"
    if isinstance(thing, torch.Generator):
        return digest(thing.get_state(), seen).partition(":")[2]
    if isinstance(thing, random.Random):
        return repr(thing.getstate())
    if callable(thing) and not isinstance(thing, nn.Module):
        return f"{id(thing)}"
    if id(thing) in seen:
        return f"again:{id(thing)}"
    seen.add(id(thing))
    parts = "|".join(f"{key!r}={digest(value, seen)}" for key, value in _parts(thing))
    return f"{type(thing).__name__}:{id(thing)}:({parts})"


def _parts(thing: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(thing, dict):
        yield from thing.items()
    elif isinstance(thing, (list, tuple, set, collections.deque)):
        yield from enumerate(thing)
    for name in getattr(type(thing), "__slots__", ()):
        yield name, getattr(thing, name, "missing")
    yield from getattr(thing, "__dict__", {}).items()
    if isinstance(thing, Two):
        yield from ((k, v) for k, v in vars(type(thing)).items() if k in ("runs", "shared"))


def everything(model: nn.Module) -> tuple[str, ...]:
    """Digest of the model and of what is global."""
    return (
        digest(model),
        hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        repr(random.getstate()),
        hashlib.sha256(np.random.get_state()[1].tobytes()).hexdigest(),  # noqa: NPY002
        str((torch.get_default_dtype(), torch.is_grad_enabled())),
        str((torch.backends.cudnn.benchmark, torch.backends.mha.get_fastpath_enabled())),
    )


def scores(model: nn.Module, x: Tensor) -> dict[tuple[str, int], float]:
    table = ng.score(model, x, 1, scorer="exact", contrast=CONTRAST, progress=False).table
    return table.set_index(["layer", "index"]).effect.to_dict()


# -- state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STATEFUL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("training", [False, True])
def test_effects_equal_hooks_on_fresh_copies_and_nothing_is_left(
    kind: type[Two], training: bool
) -> None:
    model, x = make(kind)
    model.train(training)
    expected, before = effects(model, x), everything(model)
    found = scores(model, x)
    assert everything(model) == before
    again = scores(model, x)
    for neuron, effect in expected.items():
        assert found[neuron] == pytest.approx(effect, rel=1e-9, abs=1e-12), neuron
        assert again[neuron] == found[neuron]


@pytest.mark.parametrize("kind", STATEFUL, ids=lambda kind: kind.__name__)
def test_a_search_leaves_the_model_and_gives_the_same_again(kind: type[Two]) -> None:
    model, x = make(kind)
    expected, before = effects(model, x), everything(model)
    circuits = [ng.search(model, x, 1, contrast=CONTRAST, progress=False) for _ in range(2)]
    assert everything(model) == before
    tables = [circuit.neurons() for circuit in circuits]
    assert tables[0].equals(tables[1])
    last = tables[0][tables[0].layer == "b"]
    assert last.effect.tolist() == pytest.approx([expected["b", i] for i in last["index"]])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 1, 3, 8, 20])
def test_nothing_is_left_when_forward_raises(error: type[BaseException], after: int) -> None:
    runs: list[int] = []  # the test's own, so not put back

    def count(*_: Any) -> None:
        runs.append(1)

    class Raising(Buffers):
        def between(self, h: Tensor) -> Tensor:
            self.a.weight.data.mul_(0.5)
            self.norm = nn.Linear(1, 1)
            h = super().between(h)
            if len(runs) > after:
                raise error("stop")
            return h

    model, x = make(Raising)
    model.register_forward_hook(count)
    before = everything(model)
    with pytest.raises((ModelError, KeyboardInterrupt)):
        ng.search(model, x, 1, contrast=CONTRAST, progress=False)
    assert everything(model) == before


def test_hooks_and_instance_forwards_of_the_user_survive() -> None:
    model, x = make(Counter)
    plain, calls = model.a.forward, []
    model.a.forward = lambda x: plain(x) * 2
    handle = model.b.register_forward_hook(lambda *_: calls.append(1))
    before = everything(model)
    scores(model, x)
    assert everything(model) == before
    assert calls
    handle.remove()
    assert not model.b._forward_hooks


def test_what_is_global_is_restored() -> None:
    class Global(Two):
        def forward(self, x: Tensor) -> Tensor:
            torch.set_default_dtype(torch.float64)
            torch.backends.cudnn.benchmark = True
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
            return super().forward(x)

    model, x = make(Global)
    before = everything(model)
    expected = effects(make(Two)[0], x)
    torch.set_default_dtype(torch.float32)
    torch.backends.cudnn.benchmark = False
    found = scores(model, x)
    assert everything(model)[4:] == before[4:]
    assert found["a", 0] == pytest.approx(expected["a", 0], rel=1e-9)


def test_large_tensors_that_runs_leave_alone_are_not_copied() -> None:
    from neurograph.model.observe import undisturbed

    model = nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 600))
    with undisturbed(model) as kept, kept.learning():
        copied = [getattr(one, "content", None) for _, one in kept._before]
        model(torch.zeros(2, 600))
    assert not kept.changing
    assert sum(content.nbytes for content in copied if content is not None) < 10_000


# -- random numbers --------------------------------------------------------------------------------


class Noisy(Two):
    def __init__(self, draw: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = lambda h: draw(self, h)  # type: ignore[method-assign]


def seeded(model: nn.Module, h: Tensor) -> Tensor:
    torch.manual_seed(0)
    return h + torch.randn_like(h)


def apart(model: nn.Module, h: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return seeded(model, h)


def numpy_seeded(model: nn.Module, h: Tensor) -> Tensor:
    np.random.seed(0)  # noqa: NPY002
    return h + torch.from_numpy(np.random.randn(*h.shape))  # noqa: NPY002


def own_generator(model: nn.Module, h: Tensor) -> Tensor:
    return h + torch.randn(h.shape, generator=model.generator, dtype=h.dtype)


def own_random(model: nn.Module, h: Tensor) -> Tensor:
    return h * torch.tensor([[model.random.random()] for _ in h])


def own_numpy(model: nn.Module, h: Tensor) -> Tensor:
    return h + torch.from_numpy(model.numpy.normal(size=h.shape))


TORCH = {
    "randn": lambda _, h: h + torch.randn_like(h),
    "dropout": lambda _, h: F.dropout(h, 0.3, training=True),
    "bernoulli": lambda _, h: h * torch.bernoulli(torch.full_like(h, 0.5)),
    "gumbel": lambda _, h: F.gumbel_softmax(h),
    "sampled": lambda _, h: h * torch.multinomial(h.softmax(1), 1),
    "shuffled": lambda _, h: h[:, torch.randperm(4)],
    "dropout left in training": lambda model, h: model.drop.train()(h),
    "rarely": lambda _, h: h * 2 if torch.rand(()) < 0.3 else h,
}
PYTHON = {
    "random": lambda _, h: h * random.random(),
    "numpy": lambda _, h: h + torch.from_numpy(np.random.randn(*h.shape)),  # noqa: NPY002
    "layer drop": lambda _, h: h if random.random() < 0.5 else 2 * h,
}
ALONE = {
    "seeded": seeded,
    "seeded apart": apart,
    "numpy seeded": numpy_seeded,
    "own generator": own_generator,
    "own random": own_random,
    "own numpy": own_numpy,
}
RUNS: list[int] = []
OTHER = {
    "a global": lambda _, h: (RUNS.append(1), h + len(RUNS) % 5)[1],
}


def noisy(draw: Callable[[nn.Module, Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Noisy(draw).double()
    model.drop, model.generator = nn.Dropout(0.5), torch.Generator().manual_seed(1)
    model.random, model.numpy = random.Random(1), np.random.default_rng(1)
    return model, torch.randn(16, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        *((draw, "before layer 'b', from torch's generator: draw them") for draw in TORCH.values()),
        *((draw, "before layer 'b', from Python's or NumPy's") for draw in PYTHON.values()),
        *((draw, "a sample gets depends on who shares its batch") for draw in ALONE.values()),
        *((draw, "something else before layer 'b' when it runs again") for draw in OTHER.values()),
    ],
    ids=[*TORCH, *PYTHON, *ALONE, *OTHER],
)
def test_random_numbers_that_matter_are_refused_by_name(
    draw: Callable[[nn.Module, Tensor], Tensor], told: str
) -> None:
    model, x = noisy(draw)
    before = everything(model)
    for call in (
        lambda: ng.search(model, x, 1, progress=False),
        lambda: ng.score(model, x, 1, scorer="exact", progress=False),
        lambda: ng.layer_graph(model, x),
    ):
        with pytest.raises(ModelError) as refused:
            call()
        assert told in str(refused.value)
        assert "\n" not in str(refused.value)
        assert everything(model) == before


class NoisyLayer(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        return output + torch.randn_like(output)


class NoisyInside(Two):
    def start(self) -> None:
        self.a = NoisyLayer(3, 4)


class NoisyAtTheEnd(Two):
    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        return output + torch.randn_like(output)


class Autoencoder(nn.Module):
    """Of the variational kind: noise is scaled by one layer and shifted by another."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.decoder = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x), 2, dtype=x.dtype)
        return self.decoder(self.mean(x) + noise * (0.5 * self.spread(x)).exp())


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (NoisyInside, "inside layer 'a'"),
        (NoisyAtTheEnd, "behind the last layer"),
        (Autoencoder, "before layer 'decoder'"),
    ],
)
def test_it_is_said_where_random_numbers_come_in(kind: type[Two], where: str) -> None:
    model, x = make(kind)
    with pytest.raises(ModelError, match=f"matter {where}, from torch's generator"):
        ng.score(model, x, 1, scorer="exact", progress=False)


# -- layers that hand something on where nothing can see it ----------------------------------------


def test_what_a_layer_leaves_for_another_is_refused_by_name() -> None:
    model, x = make(Stash)
    before = everything(model)
    with pytest.raises(ModelError, match="something inside layer 'b' depends on what a layer"):
        ng.score(model, x, 1, scorer="exact", progress=False)
    assert everything(model) == before


def test_random_numbers_that_do_not_matter_and_hooks_are_told() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            torch.rand(2)
            return self.head(torch.tanh(self.one(x)))

    X = torch.rand(30, 3)
    model = Idle()
    notes = ng.score(model, X, 1, progress=False).provenance["notes"]
    assert any("draws random numbers" in note for note in notes)
    assert not any("forward hooks" in note for note in notes)
    model.one.register_forward_hook(lambda _module, _args, output: 2 * output)
    notes = ng.score(model, X, 1, progress=False).provenance["notes"]
    assert any("forward hooks stand behind one: a neuron is what" in note for note in notes)
