"""The reference and the networks it is used on, against models taken apart by hand."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tests import zoo
from tests.reference import TARGET, Reference, tensors, without_fused_kernels

every_network = pytest.mark.parametrize("name", sorted(zoo.WHOLE))


@contextlib.contextmanager
def hooked(model: nn.Module, see: Callable[[str, Any], Any]) -> Iterator[None]:
    """Show `see(call, output)` every call of a layer; what it returns replaces the output."""
    running: list[str] = []
    containers: set[str] = set()
    counts: Counter[str] = Counter()

    def enter(path: str) -> Callable[..., None]:
        def on_arrival(*_: Any) -> None:
            containers.update(running)
            running.append(path)

        return on_arrival

    def leave(path: str) -> Callable[..., Any]:
        def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
            running.pop()
            if path in containers:
                return None
            counts[path] += 1
            return see(path if counts[path] == 1 else f"{path}#{counts[path] - 1}", output)

        return on_output

    with contextlib.ExitStack() as stack:
        stack.enter_context(without_fused_kernels())
        stack.enter_context(torch.no_grad())
        for path, module in model.named_modules():
            owns = parametrize.is_parametrized(module) or [*module.parameters(recurse=False)]
            apart = ".parametrizations" in path or "Norm" in type(module).__name__
            if owns and not apart:
                stack.callback(module.register_forward_pre_hook(enter(path)).remove)
                stack.callback(module.register_forward_hook(leave(path)).remove)
        yield


@every_network
def test_sites_are_what_the_model_calls_in_order(name: str) -> None:
    network = zoo.NETWORKS[name](0)
    inputs = network.input_names(network.inputs(2, 0))
    assert list(inputs) == list(network.sites)[: len(inputs)]
    shapes: dict[int, dict[str, list[Any]]] = {}
    for rows in (4, 7):
        seen: dict[str, list[Any]] = {}
        with hooked(network.model, lambda call, out, seen=seen: seen.update({call: out})):
            output = network.model(**network.inputs(rows, 1))
        assert network.target(output, None).shape == (rows,)
        outputs = {call: tree_leaves(out) for call, out in seen.items()}
        given = {s: [network.inputs(rows, 1)[a]] for s, a in inputs.items()}
        shapes[rows] = given | outputs
    assert list(dict.fromkeys(site.call for site in network.sites.values())) == list(shapes[4])
    for site in network.sites.values():
        few, many = (shapes[rows][site.call][site.leaf].shape for rows in (4, 7))
        if site.batch is None:
            assert few == many
        else:
            assert (few[site.batch], many[site.batch]) == (4 * site.many, 7 * site.many)


@every_network
def test_further_tensors_are_sites_where_something_reads_them(name: str) -> None:
    network = zoo.NETWORKS[name](0)
    arguments = network.inputs(4, 1)
    reference = Reference(network, arguments)
    listed = {(site.call, site.leaf) for site in network.sites.values()}
    assert all(reference.readers(n) for n, s in network.sites.items() if s.leaf)

    def spoilt(call: str, output: Any) -> Any:
        leaves, spec = tree_flatten(output)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and (call, i) not in listed:
                leaves[i] = torch.full_like(leaf, 77)
        return tree_unflatten(leaves, spec)

    with hooked(network.model, spoilt):
        output = network.model(**arguments)
    for got, wanted in zip(tensors(output), reference.run({}).arrived[TARGET], strict=True):
        assert torch.equal(got, wanted)


def reference_of(name: str) -> tuple[zoo.Network, Reference, dict[str, Any]]:
    """A network, its reference on four samples, and all data; levels are quantiles."""
    network = zoo.NETWORKS[name](0)
    data = network.inputs(15, 1)
    reference = Reference(network, {k: v[2:6] for k, v in data.items()})
    every = Reference(network, data).background
    reference.set_levels(
        {
            n: reference.quantiles(n, every[n], (0.05, 0.95))
            for n in reference.sites
            if reference.neurons(n)
        }
    )
    return network, reference, data


def test_readers_of_a_residual_network() -> None:
    reference = reference_of("resnet")[1]
    both = {"stage2.0.conv1", "stage2.0.downsample.0"}
    assert reference.readers("stem") == {"stage1.0.conv1"} | both
    assert reference.readers("stage1.0.conv2") == both
    assert reference.readers("fc") == {TARGET}
    assert reference.descendants("stage2.0.conv1") == {"stage2.0.conv2", "fc"}


def test_readers_of_cells_and_states() -> None:
    reference = reference_of("lstm_cell")[1]
    assert reference.readers("cell:1") == {"cell#1", "cell#1:1"}
    assert reference.readers("cell#1:1") == {"cell#2"}
    states = reference_of("lstm_states")[1]
    assert states.readers("encoder") == set()
    assert states.readers("encoder:1.1") == {"decoder", "decoder:1.1"}
    assert states.readers("decoder:1.1") == {TARGET}


def test_readers_of_a_mask_are_the_attentions() -> None:
    network = zoo.NETWORKS["encoder_masked"](0)
    reference = Reference(network, network.inputs(4, 1))
    attentions = {f"encoder.layers.{i}.self_attn" for i in range(2)}
    assert reference.readers("input.padding") == attentions


def test_an_lstm_with_time_first_by_hand() -> None:
    network, reference, data = reference_of("lstm")
    model = network.model
    with torch.no_grad():
        every = model.lstm(data["x"].transpose(0, 1))[0]
        still = model.lstm(data["x"][2:6].transpose(0, 1))[0]
        for neuron in range(4):
            level = np.quantile(every[:, :, neuron].numpy(), 0.95, axis=1)
            moved = still.clone()
            moved[:, :, neuron] = torch.from_numpy(level)[:, None]
            wanted = model.head(torch.tanh(moved).mean(0))
            value = reference.levels["lstm"][neuron, -1]
            torch.testing.assert_close(reference.total("lstm", neuron, value), wanted[:, 1])
            half = model.head(torch.tanh(still).mean(0))
            half[:, 0] = wanted[:, 0]
            unseen = reference.through("lstm", neuron, value, {"head": [0]})
            torch.testing.assert_close(unseen, half[:, 1])


def test_a_loop_of_cells_by_hand() -> None:
    network, reference, data = reference_of("lstm_cell")
    cell, head = network.model.cell, network.model.head
    x = data["x"][2:6]
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    value = reference.levels["cell:1"][2, 0]
    with torch.no_grad():
        hidden, memory = cell(x[:, 0], (zeros, zeros))
        after = cell(x[:, 1], (hidden, memory))
        memory = memory.clone()
        memory[:, 2] = value
        seen = cell(x[:, 1], (hidden, memory))
        whole = head(cell(x[:, 2], seen)[0])
        one = after[0].clone()
        one[:, 1] = seen[0][:, 1]
        part = head(cell(x[:, 2], (one, after[1]))[0])
    torch.testing.assert_close(reference.total("cell:1", 2, value), whole[:, 0])
    got = reference.through("cell:1", 2, value, {"cell#1": [1]})
    torch.testing.assert_close(got, part[:, 0])
    path = [("cell:1", 2), ("cell#1", 1), ("cell#2", 0), ("head", 0)]
    with torch.no_grad():
        last = cell(x[:, 2], after)[0].clone()
        last[:, 0] = cell(x[:, 2], (one, after[1]))[0][:, 0]
        torch.testing.assert_close(reference.path(path, value), head(last)[:, 0])


def test_windows_by_hand() -> None:
    network, reference, data = reference_of("swin")
    path, neuron = "blocks.1.attn.qkv", 5
    kept: list[Tensor] = []

    def keep(call: str, output: Tensor) -> None:
        if call == path:
            kept.append(output.clone())

    with hooked(network.model, keep):
        network.model(**data)
    table = kept[0].unflatten(0, (15, 4))[..., neuron].numpy()
    levels = torch.from_numpy(np.quantile(table, [0.05, 0.95], axis=0))  # [2, windows, tokens]

    def move(call: str, output: Tensor) -> Tensor | None:
        if call != path:
            return None
        cut = output.unflatten(0, (4, 4)).clone()
        cut[..., neuron] = levels[1]
        return cut.flatten(0, 1)

    with hooked(network.model, move):
        wanted = network.model(data["x"][2:6])
    got = reference.total(path, neuron, reference.levels[path][neuron, 1])
    torch.testing.assert_close(got, wanted[:, 1])


def test_constants_by_hand() -> None:
    network, reference, data = reference_of("constants")
    model = network.model
    assert reference.readers("context.0") == {"context.2"}
    position = reference.background["position"]
    torch.testing.assert_close(reference.levels["position"][1], position[:, 1].expand(2, -1))
    with torch.no_grad():
        place = model.position.weight[:4].clone()
        place[:, 1] = 0
        h = model.enter(data["x"][2:6]) + place + model.context(model.prompt).mean(0)
        wanted = model.head(torch.tanh(h).mean(1))
    got = reference.total("position", 1, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(got, wanted[:, 1])


def test_attention_weights_that_only_the_target_sees_by_hand() -> None:
    network, reference, data = reference_of("attention_weights")
    value = reference.levels["attention:1"][1, 1]  # [samples, queries]
    with torch.no_grad():
        logits, _ = network.model(data["x"][2:6])
    wanted = logits[:, 0] + value[:, 0].square()
    got = reference.through("attention:1", 1, value, {TARGET: None})
    torch.testing.assert_close(got, wanted)


def test_a_frozen_call_keeps_the_tensors_that_are_no_sites() -> None:
    network = zoo.NETWORKS["lstm_states"](0)
    sites = {name: site for name, site in network.sites.items() if name != "decoder:1.1"}
    reference = Reference(replace(network, sites=sites), network.inputs(4, 1))
    still = reference.run({}).output
    moved = {"input": reference.background["input"] + 5}
    assert torch.equal(reference.run(reference.frozen(moved)).output, still)
    assert not torch.equal(reference.run(moved).output, still)


class Patches:
    """Plain runs of a model in which some tensors of some calls are replaced, all else is live."""

    def __init__(self, name: str) -> None:
        self.network, self.reference, data = reference_of(name)
        self.arguments = {k: v[2:6] for k, v in data.items()}

    def run(self, patch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """What every site computed, and the target."""
        network, computed = self.network, {}
        arguments = dict(self.arguments)
        for site, argument in network.input_names(arguments).items():
            arguments[argument] = patch.get(site, arguments[argument]).clone()

        def see(call: str, output: Any) -> Any:
            leaves, spec = tree_flatten(output)
            for name, site in network.sites.items():
                if site.call == call:
                    computed[name] = leaves[site.leaf].clone()
                    leaves[site.leaf] = patch.get(name, leaves[site.leaf]).clone()
            return tree_unflatten(leaves, spec)

        with hooked(network.model, see):
            output = network.model(**arguments)
        return computed, network.target(output, None)

    def moves(self) -> Iterator[tuple[str, int, Tensor, Tensor]]:
        """A neuron of every site: its value, and the site's tensor with it."""
        for i, (name, levels) in enumerate(self.reference.levels.items()):
            if self.network.sites[name].batch is not None:
                neuron = i % len(levels)
                value = levels[neuron, i % 2]
                yield name, neuron, value, self.reference.moved(name, neuron, value)


@every_network
def test_totals_are_those_of_a_plain_patch(name: str) -> None:
    patches = Patches(name)
    for site, neuron, value, moved in patches.moves():
        _, wanted = patches.run({site: moved})
        got = patches.reference.total(site, neuron, value)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@every_network
def test_edges_to_an_only_reader_are_those_of_two_plain_patches(name: str) -> None:
    patches = Patches(name)
    reference = patches.reference
    for site, neuron, value, moved in patches.moves():
        readers = reference.readers(site)
        if len(readers) != 1 or TARGET in readers:
            continue
        (reader,) = readers
        output = neuron % reference.neurons(reader)
        seen = patches.run({site: moved})[0][reader]
        dim = patches.network.sites[reader].channel
        change = patches.run({})[0][reader]
        change.movedim(dim, 0)[output] = seen.movedim(dim, 0)[output]
        _, wanted = patches.run({reader: change})
        got = reference.through(site, neuron, value, {reader: [output]})
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
