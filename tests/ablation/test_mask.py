"""Ablated neurons, against hooks and weights changed by hand."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import neurograph as ng
from neurograph.ablation.mask import mask_neurons
from neurograph.errors import DataError, ModelError, OptionError
from tests import zoo
from tests.case import as_data
from tests.reference import Reference
from tests.zoo import Network

FAST = sorted(set(zoo.WHOLE) - {"t5", "llama", "bert", "gpt2"})
BY_DATA = (
    "resnet swin lstm lstm_states lstm_cell encoder_time_first attention_weights shared constants "
    "tuple_output layers_called_inputs"
).split()


class Twice(nn.Module):
    """A linear network whose one cell is called twice, with an input beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(torch.tanh(self.cell(x))))


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 3, 2, bias=False),
        nn.Flatten(),
        nn.Linear(75, 2),
    )


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    )


def check_silenced(
    network: Network, site: str, how: str, data: Any, value: Callable[[Reference], Tensor]
) -> None:
    """Ablate the first and the last neuron of a site, and compare with the reference's hooks."""
    arguments = network.inputs(6, 0)
    reference = Reference(network, arguments)
    chosen = sorted({0, reference.neurons(site) - 1})
    dim, values = network.sites[site].channel, reference.background[site].clone()
    values.movedim(dim, 0)[chosen] = value(reference).movedim(dim, 0)[chosen]
    wanted = reference.target(reference.run({site: values}).output)
    with torch.no_grad():
        before = network.target(network.model(**arguments), None)
        with mask_neurons(network.model, {site: chosen}, how, data=data) as model:  # type: ignore[arg-type]
            got = network.target(model(**arguments), None)
        after = network.target(network.model(**arguments), None)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert torch.equal(before, after)


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAST)
def test_zero_equals_hooks_by_hand(name: str) -> None:
    """Every layer of every kind of network; called by name alone, without data."""
    network = zoo.WHOLE[name](0)
    reference = Reference(network, network.inputs(6, 0))
    for site in reference.layers:
        if reference.neurons(site):
            check_silenced(
                network, site, "zero", None, lambda r, s=site: torch.zeros_like(r.background[s])
            )


@pytest.mark.parametrize("name", BY_DATA)
def test_mean_equals_hooks_by_hand(name: str) -> None:
    network = zoo.WHOLE[name](0)
    every = Reference(network, network.inputs(11, 1))
    for site in network.sites:
        if every.neurons(site):
            data = as_data(network.inputs(11, 1))
            check_silenced(
                network, site, "mean", data, lambda r, s=site: r.mean(s, every.background[s])
            )


@pytest.mark.parametrize("name", ["resnet", "named_output", "layer_called_input"])
def test_inputs_can_be_silenced(name: str) -> None:
    network = zoo.WHOLE[name](0)
    data = as_data(network.inputs(3, 1))
    for site in Reference(network, network.inputs(6, 0)).inputs:
        check_silenced(
            network, site, "zero", data, lambda r, s=site: torch.zeros_like(r.background[s])
        )


@pytest.mark.parametrize("in_place", [False, True])
def test_glue_that_writes_in_place(in_place: bool) -> None:
    network = zoo.mlp((3, 6, 5, 2), "tanh", in_place, 0, torch.float64).network()
    for site in ("layers.0", "layers.1"):
        check_silenced(
            network, site, "zero", None, lambda r, s=site: torch.zeros_like(r.background[s])
        )


def test_float32_and_whole_layers() -> None:
    model, x = plain(), torch.randn(5, 4)
    with mask_neurons(model, {"2": range(5)}):
        torch.testing.assert_close(model(x), model[4].bias.expand(5, 2))


def test_pooled_means_where_samples_differ_in_length() -> None:
    model = nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    batches = [torch.randint(9, (2, length)) for length in (3, 5, 4)]
    with torch.no_grad():
        values = torch.cat([model[:2](x).flatten(0, 1) for x in batches])
        mean = values.mean(0)
        for x in batches:
            h = model[:2](x)
            h[..., 2] = mean[2]
            with mask_neurons(model, [("1", 2)], "mean", data=batches):
                torch.testing.assert_close(model(x), model[2:](h))


class Rows(nn.Module):
    """Sequences as rows of one matrix between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x.flatten(0, 1)).tanh()).view(len(x), -1)


def test_samples_with_several_rows_each() -> None:
    model, long, short = Rows(), torch.randn(6, 4, 2), torch.randn(5, 2, 2)
    with torch.no_grad():
        h = model.one(long)
        mean = h.mean(0)[:, 1]
        for x in (long, torch.randn(3, 4, 2)):
            g = model.one(x)
            g[..., 1] = mean
            with mask_neurons(model, {"one": [1]}, "mean", data=long):
                torch.testing.assert_close(model(x), model.two(g.tanh())[..., 0])
        with (
            mask_neurons(model, {"one": [1]}, "mean", data=long),
            pytest.raises(OptionError, match=r"layer 'one' is \(2, 3\) here but \(4, 3\) on data="),
        ):
            model(short)
        g = model.one(short)
        g[..., 1] = 0
        with mask_neurons(model, {"one": [1]}, "zero", data=long):
            torch.testing.assert_close(model(short), model.two(g.tanh())[..., 0])


# -- neurons without their weights -----------------------------------------------------------------


def edited(model: nn.Module, path: str, channels: list[int]) -> nn.Module:
    """Copy a model, with the rows of some channels set to zero by hand."""
    twin = copy.deepcopy(model)
    module: Any = twin.get_submodule(path)
    with torch.no_grad():
        for channel in channels:
            if "Transpose" in type(module).__name__:
                group, place = divmod(channel, module.out_channels // module.groups)
                width = module.in_channels // module.groups
                module.weight[group * width : (group + 1) * width, place] = 0
            else:
                module.weight[channel] = 0
            if module.bias is not None:
                module.bias[channel] = 0
    return twin


@pytest.mark.parametrize("path", ["0", "2", "4"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_zero_is_as_without_weights_for_convolutions(
    path: str, layout: torch.memory_format
) -> None:
    model, x = convolutions(), torch.randn(3, 2, 5, 5)
    model.to(memory_format=layout)
    state = copy.deepcopy(model.state_dict())
    for channels in ([0], [2, 1]):
        wanted = edited(model, path, channels)(x)
        with mask_neurons(model, {path: channels}):
            torch.testing.assert_close(model(x), wanted)
        check_same(state, model)


def check_same(state: dict[str, Tensor], model: nn.Module) -> None:
    """Every bit of the state, the sign of zeros and what NaN hold included."""
    for name, value in model.state_dict().items():
        assert value.numpy().tobytes() == state[name].numpy().tobytes(), name


@torch.no_grad()
def test_zero_is_as_without_weights_for_linear_layers() -> None:
    model, x = plain(), torch.randn(7, 4)
    state = copy.deepcopy(model.state_dict())
    with mask_neurons(model, [("0", 1), ("2", 0), ("0", 4)]):
        torch.testing.assert_close(model(x), edited(edited(model, "0", [1, 4]), "2", [0])(x))
    check_same(state, model)


@torch.no_grad()
def test_zero_is_as_without_weights_for_a_layer_called_twice() -> None:
    model, x = Twice(), torch.randn(4, 3)
    with mask_neurons(model, [("cell", 2), ("cell#1", 2)]):
        torch.testing.assert_close(model(x), edited(model, "cell", [2])(x))


# -- resampling ------------------------------------------------------------------------------------


@contextlib.contextmanager
def seen(model: nn.Module, *paths: str) -> Iterator[dict[str, Tensor]]:
    """What modules return in the end, by hooks of a user's own."""
    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for path in paths:
            hook = model.get_submodule(path).register_forward_hook(
                lambda _m, _a, out, path=path: found.__setitem__(path, out.clone())
            )
            stack.callback(hook.remove)
        yield found


@torch.no_grad()
def test_resampling_takes_all_neurons_of_a_sample_from_one_other() -> None:
    model, data, x = plain(), torch.randn(40, 4), torch.randn(9, 4)
    first = model[0](data)
    second = model[:3](data)
    chosen = {"0": [1, 3], "2": [0, 4]}
    runs = []
    with mask_neurons(model, chosen, "resample", data=data, seed=3), seen(model, "0", "2") as found:
        for _ in range(3):
            out = model(x)
            donors = (found["0"][:, None, 1] == first[None, :, 1]).float().argmax(1)
            assert torch.equal(found["0"][:, [1, 3]], first[donors][:, [1, 3]])
            assert torch.equal(found["2"][:, [0, 4]], second[donors][:, [0, 4]])
            assert torch.equal(found["0"][:, [0, 2, 4, 5]], model[0](x)[:, [0, 2, 4, 5]])
            assert torch.equal(out, model[4](found["2"].tanh()))
            runs.append(donors)
    assert not torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[1], runs[2])
    with mask_neurons(model, chosen, "resample", data=data, seed=3), seen(model, "0") as found:
        model(x)
        donors = (found["0"][:, None, 1] == first[None, :, 1]).float().argmax(1)
        assert torch.equal(donors, runs[0])


@torch.no_grad()
def test_every_sample_is_drawn_as_often() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    data = torch.arange(5.0)[:, None]
    values = model[0](data)[:, 0]
    with mask_neurons(model, {"0": [0]}, "resample", data=data), seen(model, "0") as found:
        model(torch.zeros(5000, 1))
        counts = torch.stack([(found["0"][:, 0] == value).sum() for value in values])
    assert counts.sum() == 5000
    assert ((counts - 1000).abs() < 4.5 * 800**0.5).all()


@pytest.mark.parametrize("name", ["resnet", "lstm_states", "encoder_time_first", "constants"])
@torch.no_grad()
def test_resampling_in_other_layouts(name: str) -> None:
    """A whole layer of other samples: rows of the data, in the model's own layout."""
    network = zoo.WHOLE[name](0)
    every = Reference(network, network.inputs(11, 1))
    arguments = network.inputs(6, 0)
    reference = Reference(network, arguments)
    for site in reference.layers:
        if not reference.neurons(site):
            continue
        batch = network.sites[site].batch
        chosen = {site: range(reference.neurons(site))}
        place = network.sites[site]
        with (
            mask_neurons(
                network.model, chosen, "resample", data=as_data(network.inputs(11, 1))
            ) as model,
            leaf_of(model, place.call, place.leaf) as found,
        ):
            got = network.target(model(**arguments), None)
        passed, donors = found[0], every.background[site]
        if batch is None:
            assert torch.equal(passed, reference.background[site])
        else:
            rows, others = passed.movedim(batch, 0), donors.movedim(batch, 0)
            many = network.sites[site].many
            rows, others = rows.unflatten(0, (-1, many)), others.unflatten(0, (-1, many))
            close = [torch.tensor([torch.allclose(r, o) for o in others]) for r in rows]
            assert all(one.sum() >= 1 for one in close)
        wanted = reference.target(reference.run({site: passed}).output)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@contextlib.contextmanager
def leaf_of(model: nn.Module, call: str, leaf: int) -> Iterator[list[Tensor]]:
    """Every tensor that stands at one place in what a call's module returns."""
    found: list[Tensor] = []

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        found.append(torch.utils._pytree.tree_leaves(output)[leaf].clone())

    hook = model.get_submodule(call).register_forward_hook(look)
    yield found
    hook.remove()


# -- the model around it ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored_when_the_block_raises(how: Any, stop: type[BaseException]) -> None:
    model, data = plain().train(), torch.randn(8, 4)
    model[1].eval()
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    masked = mask_neurons(model, {"0": [0, 5], "2": [1]}, how, data=data)
    with pytest.raises(stop), masked:
        raise stop if hooks_of(model) and model(data).any() else AssertionError
    assert hooks_of(model) == 0
    assert torch.backends.mha.get_fastpath_enabled()
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    check_same(state, model)


def test_restored_when_the_model_raises_halfway() -> None:
    model, x = Twice(), torch.randn(2, 3)
    with mask_neurons(model, [("cell#1", 0)]):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.randn(2, 7))
        got = model(x)  # calls are counted from the start again
    h = model.cell(torch.tanh(model.cell(x)))
    h = h * torch.tensor([0.0, 1.0, 1.0])
    torch.testing.assert_close(got, model.head(h))


def test_gradients_and_training_are_the_users() -> None:
    model, x = plain().train(), torch.randn(5, 4)
    with mask_neurons(model, {"0": [1]}):
        model(x).square().sum().backward()
        assert model.training
    twin = plain()
    mask = torch.ones(6)
    mask[1] = 0
    twin[2:](torch.tanh(twin[0](x) * mask)).square().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert not model[0].weight.grad[1].any()


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        def inner(h: Tensor) -> Tensor:
            return self.two(torch.tanh(self.one(h)))

        return checkpoint(inner, x, use_reentrant=False)


def test_modules_computed_again_for_their_gradients() -> None:
    model, x = Checkpointed(), torch.randn(6, 3)
    with mask_neurons(model, {"one": [2]}):
        model(x).sum().backward()
    assert not model.one.weight.grad[2].any()
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0])
    twin = copy.deepcopy(model)
    twin.zero_grad()
    twin.two(torch.tanh(twin.one(x) * mask)).sum().backward()
    torch.testing.assert_close(model.two.weight.grad, twin.two.weight.grad)


@torch.no_grad()
def test_blocks_can_be_nested() -> None:
    model, x = plain(), torch.randn(5, 4)
    state = copy.deepcopy(model.state_dict())
    with mask_neurons(model, {"0": [1]}):
        outer = model(x)
        with mask_neurons(model, {"0": [1, 2], "2": [0]}):
            both = model(x)
        assert torch.equal(model(x), outer)
    torch.testing.assert_close(outer, edited(model, "0", [1])(x))
    torch.testing.assert_close(both, edited(edited(model, "0", [1, 2]), "2", [0])(x))
    check_same(state, model)


@torch.no_grad()
def test_inner_means_are_those_of_the_masked_model() -> None:
    model, data, x = plain(), torch.randn(30, 4), torch.randn(5, 4)
    with (
        mask_neurons(model, {"0": range(6)}),
        mask_neurons(model, {"2": [1]}, "mean", data=data),
    ):
        got = model(x)
    h = model[2](torch.zeros(5, 6))  # nothing varies any more: the mean is the value
    torch.testing.assert_close(got, model[4](h.tanh()))


@torch.no_grad()
def test_hooks_of_a_user_see_what_passes_on() -> None:
    model, x = plain(), torch.randn(5, 4)
    with mask_neurons(model, {"0": [1]}), seen(model, "0") as found:
        model(x)
    assert not found["0"][:, 1].any()
    assert found["0"][:, 0].any()


@torch.no_grad()
def test_fused_kernels_do_not_go_around() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model, x = nn.Sequential(layer, nn.Linear(4, 2)).eval(), torch.randn(3, 5, 4)
    assert torch.backends.mha.get_fastpath_enabled()
    with mask_neurons(model, {"0.linear1": [0, 3]}):
        got = model(x)
    h = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
    hidden = F.relu(layer.linear1(h))
    hidden[..., [0, 3]] = 0
    wanted = model[1](layer.norm2(h + layer.linear2(hidden)))
    torch.testing.assert_close(got, wanted)


def test_arguments_in_which_nothing_is_silenced_stay_the_same_objects() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Keeping(3, 3)

        def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
            return self.layer(x, cache=cache)

    class Keeping(nn.Linear):
        def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
            cache.append(x)
            return super().forward(x)

    model, cache, x = Cached(), list[Tensor](), torch.randn(2, 3)
    with mask_neurons(model, {"layer:input": [1]}):
        model(x, cache=cache)
    assert len(cache) == 1
    assert torch.equal(cache[0], x * torch.tensor([1.0, 0.0, 1.0]))


# -- which neurons ---------------------------------------------------------------------------------


@torch.no_grad()
def test_input_sides_and_modules_without_weights() -> None:
    model, x = plain(), torch.randn(5, 4)
    keep = torch.ones(6)
    keep[2] = 0
    wanted = model[2:](torch.tanh(model[0](x)) * keep)
    for layer, data in (("2:input", None), ("1", None), ("2:input", x), ("1", x)):
        with mask_neurons(model, {layer: [2]}, data=data):
            torch.testing.assert_close(model(x), wanted)
    mean = torch.tanh(model[0](x)).mean(0) * (1 - keep)
    with mask_neurons(model, {"2:input": [2]}, "mean", data=x):
        torch.testing.assert_close(model(x), model[2:](torch.tanh(model[0](x)) * keep + mean))


@torch.no_grad()
def test_a_model_that_is_a_layer_itself() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with mask_neurons(model, [("model", 1)]):
        assert not model(x)[:, 1].any()
        assert model(x)[:, 0].any()


@torch.no_grad()
def test_a_convolution_without_a_batch() -> None:
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), torch.randn(2, 5, 5)
    with mask_neurons(model, {"0": [1]}):
        assert not model(x)[1].any()
        assert model(x)[0].any()


@torch.no_grad()
def test_one_position_of_a_sequence() -> None:
    network = zoo.WHOLE["encoder_time_first"](0)
    model, arguments = network.model, network.inputs(5, 0)
    reference = Reference(network, arguments)
    site = "encoder.layers.0.linear1"  # [time, samples, channels]
    values = reference.background[site].clone()
    values[1, :, 4] = 0
    values[:, :, 2] = 0
    wanted = reference.target(reference.run({site: values}).output)
    data = as_data(network.inputs(3, 1))
    with mask_neurons(model, [(site, 4, 1), (site, 2)], data=data):
        torch.testing.assert_close(network.target(model(**arguments), None), wanted)
    with (
        pytest.raises(OptionError, match=r"linear1' has 4 positions"),
        mask_neurons(model, [(site, 4, 9)], data=data),
    ):
        pass
    with (
        pytest.raises(OptionError, match="needs data="),
        mask_neurons(model, [(site, 4, 1)]),
    ):
        pass


@torch.no_grad()
def test_groups_move_together() -> None:
    network = zoo.attention(4, 2, 0, torch.float64)
    model, x = network.model, network.data(5, 0)
    with mask_neurons(model, {"q": [2, 3]}):
        wanted = model(x)
    with mask_neurons(model, {"q": [1]}, data=x, groups={"q": 2}):
        assert torch.equal(model(x), wanted)
    with (
        pytest.raises(OptionError, match="layer 'q' has 2 neurons"),
        mask_neurons(model, {"q": [2]}, data=x, groups={"q": 2}),
    ):
        pass
    with (
        pytest.raises(OptionError, match="groups= needs data="),
        mask_neurons(model, {"q": [1]}, groups={"q": 2}),
    ):
        pass


@torch.no_grad()
def test_circuits_are_their_hidden_neurons() -> None:
    model, X = plain(), torch.randn(50, 4)
    circuit = ng.search(model, X, 1, keep="top:2", paths=0)
    hidden = [n for n in circuit.graph if n.layer in ("0", "2")]
    assert 0 < len(hidden) < len(circuit.graph)
    with mask_neurons(model, hidden):
        wanted = model(X)
    with mask_neurons(model, circuit):
        assert torch.equal(model(X), wanted)
    everything = list(circuit.graph)
    with mask_neurons(model, everything, data=X):
        assert not torch.equal(model(X), wanted)


@torch.no_grad()
def test_circuits_of_groups_and_positions() -> None:
    network = zoo.attention(4, 2, 0, torch.float64)
    model, X = network.model, network.data(20, 0)
    circuit = ng.search(model, X, 1, groups={"q": 2, "up": 3}, keep="top:1", paths=0)
    chosen = [n.index for n in circuit.graph if n.layer == "up"]
    assert chosen
    with mask_neurons(model, {"up": [2 * i + j for i in chosen for j in (0, 1)]}):
        wanted = model(X)
    with mask_neurons(model, circuit.subgraph([("up", i) for i in chosen]), data=X):
        assert torch.equal(model(X), wanted)
    last = ng.search(model, X, 1, positions="last", keep="top:1", paths=0)
    with pytest.raises(OptionError, match=r"one position \('last'\)"), mask_neurons(model, last):
        pass
    each = ng.search(model, X, 1, positions="each", keep="top:1", paths=0)
    with mask_neurons(model, each, data=X):
        assert not torch.equal(model(X), wanted)


# -- what cannot be done ---------------------------------------------------------------------------


REFUSED: list[tuple[nn.Module, Any, dict[str, Any], str]] = [
    (plain(), [("nine", 0)], {}, r"no layer 'nine'; near it are"),
    (plain(), [("0#x", 0)], {}, r"no layer '0#x'"),
    (plain(), [("", 0)], {}, r"no layer ''"),
    (plain(), [("0#1", 0)], {"data": torch.zeros(2, 4)}, r"no layer '0#1'; near it are"),
    (plain(), [("0", 6)], {}, r"no neuron 0\[6\]: layer '0' has 6 neurons"),
    (plain(), [("0:input", 4)], {}, r"no neuron 0:input\[4\]: layer '0:input' has 4"),
    (plain(), [("1", 6)], {"data": torch.zeros(2, 4)}, r"layer '1' has 6 neurons"),
    (convolutions(), [("2", 6)], {}, r"layer '2' has 6 neurons"),
    (plain(), [("0", -1)], {}, "counted from 0"),
    (plain(), ["0"], {}, r"'0' is no neuron: pass \(layer, index\)"),
    (plain(), "0", {}, "neurons='0': pass a list"),
    (plain(), 3, {}, "neurons=3: pass a list"),
    (plain(), [("0", 1.5)], {}, r"neurons=\('0', 1.5\): pass"),
    (plain(), {"0": 1}, {}, r"neurons\['0'\]=1: pass a list of indices"),
    (plain(), [("0", 1)], {"how": "nil"}, r"how='nil' is none of 'zero', 'mean'"),
    (plain(), [("0", 1)], {"how": "mean"}, r"how='mean' needs data="),
    (plain(), [("0", 1)], {"how": "resample"}, r"how='resample' needs data="),
    (plain(), [("input", 1)], {}, r"'input' is an input of the model: pass data="),
    (
        nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 1)),
        [("input", 0)],
        {"data": torch.zeros(2, 4, dtype=torch.long)},
        r"layer 'input' has no neurons",
    ),
]


@pytest.mark.parametrize(("model", "neurons", "options", "message"), REFUSED)
def test_bad_requests_say_what_and_why(
    model: nn.Module, neurons: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message), mask_neurons(model, neurons, **options):
        pass
    assert hooks_of(model) == 0


def test_bad_models_and_data() -> None:
    with (
        pytest.raises(ModelError, match=r"pass its \.module"),
        mask_neurons(nn.DataParallel(plain()), [("0", 0)]),
    ):
        pass
    with (
        pytest.raises(DataError, match="no samples"),
        mask_neurons(plain(), [("0", 0)], "mean", data=torch.zeros(0, 4)),
    ):
        pass
    with (
        pytest.raises(DataError, match="different shapes"),
        mask_neurons(
            Rows(), [("one", 0)], "resample", data=[torch.zeros(2, 3, 2), torch.zeros(2, 4, 2)]
        ),
    ):
        pass


def test_names_that_only_running_can_refuse() -> None:
    model, x = Twice(), torch.randn(2, 3)
    with (
        pytest.raises(OptionError, match="layer 'cell#2' was to be ablated, but the model was"),
        mask_neurons(model, [("cell#2", 0)]),
    ):
        model(x)
    with mask_neurons(model, [("cell#2", 0)]):
        pass  # nothing ran
    with (
        pytest.raises(OptionError, match="no layer 'cell:1'"),
        mask_neurons(model, [("cell:1", 0)]),
    ):
        model(x)
    wide = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    with (
        pytest.raises(OptionError, match=r"no neuron 1\[5\]: layer '1' has 3 neurons"),
        mask_neurons(wide, [("1", 5)]),
    ):
        wide(x)
    assert hooks_of(model) == hooks_of(wide) == 0


def test_no_neurons_change_nothing() -> None:
    model, x = plain(), torch.randn(3, 4)
    for nothing in ([], {}, {"0": []}):
        with mask_neurons(model, nothing) as same:
            assert torch.equal(same(x), model(x))
    assert same is model


def test_weight_norm_can_be_silenced_by_its_output() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)), nn.Linear(3, 1))
    x = torch.randn(4, 2)
    with mask_neurons(model, [("0", 1)]):
        got = model(x)
    torch.testing.assert_close(got, model[1](model[0](x) * torch.tensor([1.0, 0.0, 1.0])))
