"""Where samples lie in each tensor: every layer's rows against each sample run alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurograph.data.source import Batch
from neurograph.errors import ModelError
from neurograph.model.layers import Layout
from neurograph.replay.recording import Recording, capture
from neurograph.utils.nested import flatten

SIZE = 4


class Glue(nn.Module):
    """Two layers, and between them whatever a test wants."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor],
        after: Callable[[Tensor, int], Tensor],
        one: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.one, self.two = one or nn.Linear(3, 3), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(self.before(x))
        h = h[0] if isinstance(h, tuple) else h
        return self.two(torch.tanh(self.after(h, len(x))))


def made(model: nn.Module, x: Tensor) -> nn.Module:
    """Give a model random weights of its own, twice as exact as usual."""
    torch.manual_seed(0)
    model = model.double()
    with torch.no_grad():
        model(x)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.eval()


def alone(model: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """What each leaf module returns for each sample alone."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found.setdefault(name, []).append(flatten(output)[0][0])

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(keep(name)) for name, module in leaves]
    with torch.no_grad():
        for i in range(len(x)):
            model(x[i : i + 1])
    for handle in handles:
        handle.remove()
    return found


def check_rows(recording: Recording, model: nn.Module, x: Tensor, dim: int) -> None:
    """Compare all rows with the samples alone, which lie along `dim` in the first layer."""
    truth = alone(model, x)
    assert [n for n in recording.layers if n != "input" and ":" not in n] == list(truth)
    for name, values in truth.items():
        rows = recording.main(name)
        assert len(rows) == len(x)
        wanted = [value.movedim(dim if name == "one" else 0, 0).flatten() for value in values]
        torch.testing.assert_close(rows.flatten(1), torch.stack(wanted))
    assert torch.equal(recording.main("input"), x)


def recorded(model: nn.Module, x: Tensor) -> Recording:
    before = x.clone()
    recording = capture(model, Batch((x,), {}))
    assert torch.equal(x, before)
    return recording


def windows_outside(x: Tensor) -> Tensor:
    return x.transpose(0, 1).reshape(-1, x.shape[-1])


def from_windows_outside(h: Tensor, size: int) -> Tensor:
    return h.view(-1, size, h.shape[-1]).transpose(0, 1).flatten(1)


KINDS: dict[str, tuple[Glue, Layout]] = {
    "samples first": (Glue(lambda x: x, lambda h, _: h.flatten(1)), Layout(0)),
    "time first": (
        Glue(lambda x: x.transpose(0, 1), lambda h, _: h.transpose(0, 1).flatten(1)),
        Layout(1),
    ),
    "samples last": (
        Glue(
            lambda x: x.permute(1, 2, 0)[..., None].expand(-1, -1, -1, 3),
            lambda h, _: h.permute(2, 0, 1, 3).flatten(1),
        ),
        Layout(2),
    ),
    "a recurrent layer, time first": (
        Glue(
            lambda x: x.transpose(0, 1),
            lambda h, _: h.transpose(0, 1).flatten(1),
            nn.LSTM(3, 2),
        ),
        Layout(1),
    ),
    "windows of a sample": (
        Glue(lambda x: x.reshape(-1, 3), lambda h, size: h.view(size, -1)),
        Layout(0, -1),
    ),
    "samples of a window": (
        Glue(windows_outside, from_windows_outside),
        Layout(0, -1, adjacent=False),
    ),
    "windows in the second place": (
        Glue(
            lambda x: torch.stack([x, -x]).flatten(1, 2),
            lambda h, size: h.view(2, size, -1).transpose(0, 1).flatten(1),
        ),
        Layout(1, -1),
    ),
}


@pytest.mark.parametrize("length", [SIZE, 5, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_samples_however_a_model_lays_them_out(kind: str, length: int) -> None:
    glue, wanted = KINDS[kind]
    x = torch.randn(SIZE, length, 3, dtype=torch.float64)
    model = made(Glue(glue.before, glue.after, glue.one), x)
    recording = recorded(model, x)
    check_rows(recording, model, x, wanted.dim or 0)
    many = length if wanted.many < 0 else wanted.many
    assert recording.layers["one"].layout == Layout(wanted.dim, many, wanted.adjacent)
    assert recording.layers["two"].layout == Layout(0)
    assert recording.layouts == (Layout(0),)
    # What arrives lies as what is returned.
    assert recording.calls["one"].arriving[0] == recording.layers["one"].layout


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_few_samples_are_enough(kind: str, size: int) -> None:
    glue, wanted = KINDS[kind]
    x = torch.randn(size, 3, 3, dtype=torch.float64)
    model = made(Glue(glue.before, glue.after, glue.one), x)
    recording = recorded(model, x)
    check_rows(recording, model, x, wanted.dim or 0)
    assert recording.layers["one"].layout.dim == wanted.dim


def test_every_tensor_of_a_call_has_a_layout_of_its_own() -> None:
    x = torch.randn(SIZE, SIZE, 3)
    model = Glue(lambda x: x.transpose(0, 1), lambda h, _: h[-1], nn.LSTM(3, 2, 2))
    recording = recorded(made(model, x.double()), x.double())
    assert recording.calls["one"].layouts == (Layout(1), Layout(1), Layout(1))
    assert [n for n in recording.layers if n.startswith("one")] == ["one", "one:1.0", "one:1.1"]
    assert recording.layers["one:1.0"].shape == (2, 2)
    assert recording.main("one:1.1").shape == (SIZE, 2, 2)


# -- what is the same for every sample -------------------------------------------------------------


class Positions(nn.Module):
    """Positions are added to tokens; a table of weights is made of a learned prompt."""

    def __init__(self, *, placeholder: bool = False) -> None:
        super().__init__()
        self.enter, self.place, self.head = nn.Linear(3, 4), nn.Embedding(9, 4), nn.Linear(4, 2)
        self.table = nn.Linear(2, 4)
        self.prompt = nn.Parameter(torch.zeros(4, 2))
        self.placeholder = placeholder

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        h = self.enter(x) + self.place(places[None] if self.placeholder else places)
        return self.head(F.linear(h, self.table(self.prompt)).mean(1))


@pytest.mark.parametrize("placeholder", [False, True])
@pytest.mark.parametrize("length", [SIZE, 3])
def test_what_may_have_a_row_for_each_sample_is_told_from_what_may_not(
    length: int, placeholder: bool
) -> None:
    x = torch.randn(SIZE, length, 3, dtype=torch.float64)
    model = made(Positions(placeholder=placeholder), x)
    recording = recorded(model, x)
    place, table = recording.layers["place"], recording.layers["table"]
    assert place.layout == Layout(None, many=0 if placeholder else 1, spread=True)
    assert (place.shape, place.neurons) == ((length, 4), 4)
    rows = recording.main("place")
    assert rows.shape == (SIZE, length, 4)
    assert torch.equal(rows, model.place.weight[:length].expand_as(rows))
    # Weights are no rows: a matrix for each sample is none that F.linear takes.
    assert table.layout == Layout(None)
    assert table.neurons == 0
    assert recording.layers["enter"].layout == recording.layers["head"].layout == Layout(0)


# -- models that two sizes of batch do not get through alike ---------------------------------------


class Fixed(nn.Module):
    """Made for batches of four."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)).reshape(SIZE, 8))


def test_a_model_made_for_one_size_of_batch_is_still_recorded() -> None:
    x = torch.randn(SIZE, 2, 3, dtype=torch.float64)
    model = made(Fixed(), x)
    recording = recorded(model, x)
    assert {n: layer.layout for n, layer in recording.layers.items()} == {
        "input": Layout(0),
        "one": Layout(0),
        "two": Layout(0),
    }
    torch.testing.assert_close(recording.main("one"), model.one(x))
    held = 8 * (2 * 4 + 2)
    assert held <= recording.row_bytes <= 4 * held
    with pytest.raises(ModelError, match=r"raised RuntimeError on inputs of shape \(3, 2, 3\)"):
        recorded(model, x[:3])


class Routed(nn.Module):
    """Which layer runs depends on the values of the whole batch."""

    def __init__(self, choose: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.choose = choose
        self.large, self.small, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        h = self.large(x) if self.choose(x) else self.small(x)
        return self.head(torch.tanh(h).transpose(0, 1).mean(1))


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: bool(x.amax() > 5),  # not among the first few
        lambda x: bool(x.mean() > 0.5),  # nor in their mean
    ],
)
def test_where_few_samples_take_another_way_all_are_run_twice(
    choose: Callable[[Tensor], bool],
) -> None:
    x = torch.zeros(SIZE, SIZE, 3, dtype=torch.float64)
    x[-1] = 9.0
    model = made(Routed(choose), x)
    recording = recorded(model, x)
    assert set(recording.layers) == {"input", "large", "head"}
    assert recording.layers["large"].layout == Layout(1)
    torch.testing.assert_close(recording.main("large"), model.large(x))


def test_where_every_other_batch_takes_another_way_samples_come_first() -> None:
    model = Routed(lambda x: x.shape[1] == SIZE)
    x = torch.randn(SIZE, SIZE, 3, dtype=torch.float64)
    recording = recorded(made(model, x), x)
    assert set(recording.layers) == {"input", "large", "head"}
    assert recording.layers["head"].layout == Layout(0)


# -- the model is left as it was -------------------------------------------------------------------


def test_recording_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model.train()
    model[2].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(SIZE, 3)
    random_state = torch.get_rng_state()
    recorded(model, x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())


def test_memory_of_a_sample_is_what_a_run_takes() -> None:
    x = torch.randn(64, 100)
    model = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 1))
    row_bytes = recorded(model, x).row_bytes
    # The two wide tensors are alive at once; beside them what is copied to be kept.
    assert 2 * 4 * 1000 <= row_bytes <= 4 * 4 * 1000
