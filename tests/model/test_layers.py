"""Neurons are tuples wherever tuples go; layouts turn tensors into rows and back."""

from __future__ import annotations

import copy
import pickle

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from neurograph.model.layers import Layer, Layout, Neuron, channels_first
from neurograph.model.module_types import is_convolution
from neurograph.utils.nested import main_index

NEURONS = [Neuron("linear1", 37), Neuron("h.0:1.0", 0, 4), Neuron("cell#1:input", 2, 0)]


# -- neurons -------------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_neuron_is_the_tuple_of_its_parts(neuron: Neuron) -> None:
    parts = tuple(neuron)
    assert neuron == parts
    assert hash(neuron) == hash(parts)
    assert (neuron.layer, neuron.index) == parts[:2]
    assert neuron.position == (parts[2] if len(parts) == 3 else None)
    assert {parts: "found"}[neuron] == "found"
    assert eval(repr(neuron)) == neuron
    graph = nx.DiGraph()
    graph.add_node(neuron, effect=1.0)
    assert graph.nodes[parts]["effect"] == 1.0


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_neuron_survives_copies_and_pickle(neuron: Neuron) -> None:
    twins = [copy.copy(neuron), copy.deepcopy(neuron), copy.deepcopy([neuron])[0]]
    twins += [
        pickle.loads(pickle.dumps(neuron, protocol))  # noqa: S301 - our own bytes
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    ]
    for twin in twins:
        assert type(twin) is Neuron
        assert twin == neuron
        assert (twin.layer, twin.index, twin.position) == (
            neuron.layer,
            neuron.index,
            neuron.position,
        )


def test_a_neuron_says_where_it_is() -> None:
    assert [str(neuron) for neuron in NEURONS] == [
        "linear1[37]",
        "h.0:1.0[0]@4",
        "cell#1:input[2]@0",
    ]
    assert repr(NEURONS[0]) == "Neuron('linear1', 37)"
    assert repr(NEURONS[1]) == "Neuron('h.0:1.0', 0, 4)"


def test_position_nought_is_a_position() -> None:
    assert Neuron("a", 1, 0) != Neuron("a", 1)
    assert Neuron("a", 1, 0).position == 0
    assert len({Neuron("a", 1), Neuron("a", 1, 0), Neuron("a", 1, 1), Neuron("a", 2)}) == 4
    assert sorted([Neuron("b", 0), Neuron("a", 1, 0), Neuron("a", 1), Neuron("a", 0, 5)]) == [
        ("a", 0, 5),
        ("a", 1),
        ("a", 1, 0),
        ("b", 0),
    ]


# -- layouts -------------------------------------------------------------------------------------


def laid_out(samples: list[Tensor], dim: int, adjacent: bool) -> Tensor:
    """What a model would return for `samples` of `[many, …]` each, put together slice by slice."""
    many = len(samples[0])
    if adjacent:
        slices = [sample[i] for sample in samples for i in range(many)]
    else:
        slices = [sample[i] for i in range(many) for sample in samples]
    return torch.stack(slices, dim=dim)


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(0, 3),
    st.booleans(),
)
def test_rows_are_the_samples_and_tensor_puts_them_back(
    size: int, many: int, shape: list[int], dim: int, adjacent: bool
) -> None:
    dim = min(dim, len(shape))
    drawn = torch.randn(size, many, *shape, generator=torch.Generator().manual_seed(0))
    tensor = laid_out(list(drawn), dim, adjacent)
    layout = Layout(dim, many, adjacent)
    rows = layout.rows(tensor)
    assert torch.equal(rows, drawn[:, 0] if many == 1 else drawn)
    back = layout.tensor(rows)
    assert torch.equal(back, tensor)
    # More rows than were recorded are laid out in the same way.
    repeated = layout.tensor(torch.cat([rows, rows]))
    assert torch.equal(repeated, laid_out([*drawn, *drawn], dim, adjacent))
    assert layout.varies
    assert layout.plain == (dim == 0 and many == 1)


@given(st.lists(st.integers(1, 3), max_size=3), st.booleans())
def test_what_is_the_same_for_all_is_one_row(shape: list[int], spread: bool) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layout = Layout(None, spread=spread)
    rows = layout.rows(tensor)
    assert torch.equal(rows, tensor[None])
    assert torch.equal(layout.tensor(rows), tensor)
    assert torch.equal(layout.tensor(rows.repeat(3, *[1] * len(shape))), torch.stack([tensor] * 3))
    assert layout.varies == spread
    assert not layout.plain
    placeholder = Layout(None, many=0, spread=spread)  # with a batch dimension of 1
    assert torch.equal(placeholder.rows(tensor[None]), tensor[None])
    assert torch.equal(placeholder.tensor(tensor[None]), tensor[None])


# -- layers --------------------------------------------------------------------------------------


def test_what_a_layer_is() -> None:
    tokens = Layer("fc", "fc", "fc", "Linear", (5, 8), 2, 8, 72)
    assert tokens.is_sequence
    assert not tokens.is_input
    given_ = Layer("input", "", "input", "Input", (3,), 1, 3, 0)
    assert given_.is_input
    assert not given_.is_sequence
    assert not Layer("c", "c", "c", "Conv2d", (4, 6, 6), 1, 4, 40).is_sequence


def test_channels_come_second() -> None:
    rows = torch.arange(24).view(2, 3, 4)
    assert channels_first(rows, 2).shape == (2, 4, 3)
    assert torch.equal(channels_first(rows, 2)[:, 1], rows[:, :, 1])
    assert torch.equal(channels_first(rows, 1), rows)


def test_convolutions_of_every_kind_have_maps() -> None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kinds += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    assert all(is_convolution(kind(1, 1, 1)) for kind in kinds)
    assert not is_convolution(nn.Linear(1, 1))


def test_the_main_leaf_is_the_first_of_floating_point() -> None:
    assert main_index([None, torch.tensor([1]), torch.rand(2), torch.rand(3)]) == 2
    assert main_index([torch.tensor([True]), "word"]) is None
