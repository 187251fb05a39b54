"""Neurons of a layer as sets of elements, against sets written out one index at a time."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import neurograph as ng
from neurograph.data.source import Batch
from neurograph.errors import OptionError
from neurograph.model.layer_choice import find_sites
from neurograph.model.layers import Layer, Neuron
from neurograph.model.neurons import Units, find_groups, units_of
from neurograph.replay.recording import capture


def layer_of(shape: tuple[int, ...], channel_dim: int, name: str = "l") -> Layer:
    return Layer(name, name, name, "Linear", shape, channel_dim, shape[channel_dim - 1], 1)


def written_out(
    layer: Layer, groups: list[list[int]] | None, each: bool
) -> dict[tuple[int, int | None], set[int]]:
    """The elements of every neuron, by number and position, from all indices of a row."""
    places = list(itertools.product(*map(range, layer.shape)))
    flat = {place: number for number, place in enumerate(places)}
    found: dict[tuple[int, int | None], set[int]] = {}
    for unit, group in enumerate(groups or [[c] for c in range(layer.neurons)]):
        for place, number in flat.items():
            if place[layer.channel_dim - 1] in group:
                position = place[2 - layer.channel_dim] if each and len(layer.shape) == 2 else None
                found.setdefault((unit, position), set()).add(number)
    return found


SHAPES = [((6,), 1), ((4, 6), 2), ((6, 4), 1), ((6, 2, 3), 1), ((2, 3, 6), 3), ((3, 6, 2), 2)]
GROUPS: dict[str, list[list[int]] | None] = {
    "channels": None,
    "equal": [[0, 1, 2], [3, 4, 5]],
    "uneven": [[5], [0, 3, 1], [2, 4]],
    "overlapping": [[0, 1], [1, 2, 3]],
}


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(("shape", "channel_dim"), SHAPES)
def test_members_are_those_written_out(
    shape: tuple[int, ...], channel_dim: int, groups: str, each: bool
) -> None:
    layer = layer_of(shape, channel_dim)
    units = units_of(layer, GROUPS[groups], "channel" if groups == "channels" else "group", each)
    wanted = written_out(layer, GROUPS[groups], each)
    assert len(units) == len(wanted)
    assert units.plain == (groups == "channels" and not (each and len(shape) == 2))
    for number in range(len(units)):
        neuron = units.neuron(number)
        assert set(units.members(number).tolist()) == wanted[neuron.index, neuron.position]
        assert units.unit(neuron) == number


@pytest.mark.parametrize("groups", GROUPS)
def test_elements_that_stand_twice_count_once(groups: str) -> None:
    units = units_of(layer_of((4, 6), 2), GROUPS[groups], "group", True)
    for members, once in zip(units.members().tolist(), units.once().tolist(), strict=True):
        seen: set[int] = set()
        for member, counts in zip(members, once, strict=True):
            assert counts == (member not in seen)
            seen.add(member)


def test_masks_mark_the_elements_of_chosen_neurons_and_no_others() -> None:
    units = Units("l", torch.tensor([0, 3, 4]), torch.tensor([2, 1]), 6)
    assert units.owner.tolist() == [0, -1, -1, 0, 1, -1]
    flags = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
    wanted = [[0, 3], [4], [], [0, 3, 4]]
    assert [row.nonzero().flatten().tolist() for row in units.mask(flags)] == wanted


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 2**32), st.integers(0, 9)
)
def test_neurons_of_any_sizes_are_summed_and_parted(
    sizes: list[int], seed: int, wider: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    elements = torch.randperm(sum(sizes) + 3, generator=generator)[: sum(sizes)]
    units = Units("l", elements, torch.tensor(sizes), sum(sizes) + 3)
    written = [part.tolist() for part in torch.split(elements, sizes)]
    chosen = torch.randperm(len(sizes), generator=generator)[: 1 + seed % len(sizes)].tolist()
    width = max(sizes[i] for i in chosen) + wider * (len(set(sizes)) > 1)
    assert units.widest(chosen) == max(sizes[i] for i in chosen)
    members, once = units.members(chosen, width).tolist(), units.once(chosen, width).tolist()
    for number, row, counts in zip(chosen, members, once, strict=True):
        own = written[number]
        assert row == own + own[-1:] * (width - len(own))
        assert counts == [1] * len(own) + [0] * (width - len(own))
    values = torch.randn(2, units.width, generator=generator, dtype=torch.float64)
    for neurons in (None, chosen):
        found = units.sums(values, neurons)
        for at, number in enumerate(range(len(sizes)) if neurons is None else neurons):
            wanted = values[:, written[number]].sum(1)
            torch.testing.assert_close(found[:, at], wanted)
    parts = units.alike(chosen)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(chosen)))
    padded = sum(len(p) * max(sizes[chosen[i]] for i in p) for p in parts)
    assert padded <= 4 * sum(sizes[i] for i in chosen)


@pytest.mark.parametrize(
    "neuron",
    [
        Neuron("l", 3),
        Neuron("l", -1),
        Neuron("l", 0, 0),
        Neuron("l", 0, -1),
    ],
)
def test_a_neuron_that_is_not_there_is_told(neuron: Neuron) -> None:
    units = units_of(layer_of((4, 3), 2), None, "channel", False)
    with pytest.raises(OptionError, match=r"no neuron l\["):
        units.unit(neuron)


@pytest.mark.parametrize(
    "neuron",
    [
        Neuron("l", 0),
        Neuron("l", 3, 0),
        Neuron("l", 0, 4),
        Neuron("l", 1, 4),
        Neuron("l", 1, -1),
        Neuron("l", -1, 3),
    ],
)
def test_a_neuron_without_its_position_or_beyond_it_is_told(neuron: Neuron) -> None:
    units = units_of(layer_of((4, 3), 2), None, "channel", True)
    with pytest.raises(OptionError, match=r"no neuron l\["):
        units.unit(neuron)


def test_neurons_are_called_by_what_they_are() -> None:
    layer, tokens = layer_of((2, 6), 2, "attn"), ["the", "cat"]
    plain = units_of(layer, None, "channel", False)
    assert plain.name(plain.neuron(4), tokens) == "attn[4]"
    heads = units_of(layer, GROUPS["equal"], "head", False)
    assert heads.name(heads.neuron(1), tokens) == "attn head 1"
    each = units_of(layer, None, "channel", True)
    assert each.name(Neuron("attn", 4, 1), tokens) == "attn[4] @1 'cat'"
    assert each.name(Neuron("attn", 4, 1), None) == "attn[4] @1"
    both = units_of(layer, GROUPS["equal"], "head", True)
    assert both.name(Neuron("attn", 1, 0), tokens) == "attn head 1 @0 'the'"
    assert both.name(Neuron("attn", 1, 0), None) == "attn head 1 @0"


# -- groups --------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Four heads share two keys and values, as in most language models of today."""

    def __init__(self, **known: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 8)
        for name, value in known.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q_proj(x), self.k_proj(x)
        return self.o_proj(q * torch.cat([k, k], dim=-1).tanh())


def model_of(attention: Attention) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.Sequential(attention, nn.Linear(8, 1)))


def groups_in(model: nn.Module, asked: dict[str, Any], layers: Any = None) -> dict[str, Any]:
    recording = capture(model, Batch((torch.rand(4, 3),), {}), find_sites(model, layers))
    searched = {n: layer for n, layer in recording.layers.items() if recording.is_searched(n)}
    return find_groups(asked, searched, model)


HEADS = {
    "its size": {"head_dim": 2},
    "its size before a number": {"head_dim": 2, "num_heads": 2, "embed_dim": 8},
    "number and width": {"num_heads": 4, "embed_dim": 8},
    "other words": {"n_head": 4, "n_embd": 8},
    "a config": {"config": SimpleNamespace(num_attention_heads=4, hidden_size=8)},
    "a config with a size": {"config": SimpleNamespace(d_kv=2, num_heads=2, d_model=8)},
    "a config that leaves it open": {
        "config": SimpleNamespace(head_dim=None, num_attention_heads=4, hidden_size=8)
    },
}


@pytest.mark.parametrize("on", ["the module", "a parent", "the model"])
@pytest.mark.parametrize("kind", HEADS)
def test_heads_are_found_around_the_layer(kind: str, on: str) -> None:
    attention = Attention(**(HEADS[kind] if on == "the module" else {}))
    model = model_of(attention)
    holder = {"the module": attention, "a parent": model[1], "the model": model}[on]
    for name, value in HEADS[kind].items():
        setattr(holder, name, value)
    asked = dict.fromkeys(("q_proj", "k_proj", "o_proj:input"), "heads")
    found = groups_in(model, asked, [*asked])
    pairs = [[i, i + 1] for i in range(0, 8, 2)]
    assert found == {
        "1.0.q_proj": ("head", pairs),
        "1.0.k_proj": ("head", pairs[:2]),
        "1.0.o_proj:input": ("head", pairs),
    }


def test_the_nearest_module_says_how_large_heads_are() -> None:
    model = model_of(Attention(head_dim=4))
    model.head_dim = 2  # type: ignore[assignment]
    (_, heads) = groups_in(model, {"q_proj": "heads"})["1.0.q_proj"]
    assert heads == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("make", "layer", "told"),
    [
        (lambda: nn.TransformerEncoderLayer(8, 4, 8, batch_first=True), "1.0.self_attn", "mixes"),
        (lambda: Attention(head_dim=2), "1.0.o_proj", r"input side, '1\.0\.o_proj:input'"),
        (lambda: Attention(head_dim=2), "1.0", r"its projection, '1\.0\.o_proj:input'"),
    ],
)
def test_what_mixes_heads_has_none(make: Any, layer: str, told: str) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Sequential(make()))
    layers = capture(model, Batch((torch.rand(4, 5, 3),), {}), find_sites(model, layer)).layers
    with pytest.raises(OptionError, match=f"its channels are no heads.*{told}"):
        find_groups({layer: "heads"}, layers, model)


def test_behind_attention_heads_have_the_size_of_values() -> None:
    attention = Attention(head_dim=1, v_head_dim=4)
    found = groups_in(model_of(attention), {"o_proj:input": "heads"}, ["o_proj:input"])
    assert found["1.0.o_proj:input"][1] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    found = groups_in(model_of(attention), {"q_proj": "heads"}, ["q_proj"])
    assert len(found["1.0.q_proj"][1]) == 8


def test_heads_that_only_the_user_knows_of_are_told() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    model.head_dim = 2  # type: ignore[assignment]
    circuit = ng.search(model, torch.rand(20, 3), 1, groups={"0": "heads"}, progress=False)
    assert any("channels of '0' are taken for heads" in note for note in circuit.notes)
    mlp = nn.Sequential(OrderedDict(fc=nn.Linear(3, 8), mlp=nn.Sequential()))
    mlp.mlp.add_module("c_proj", nn.Linear(8, 1))
    mlp.head_dim = 2  # type: ignore[assignment]
    options: dict[str, Any] = {"layers": "c_proj:input", "groups": {"c_proj:input": "heads"}}
    circuit = ng.search(mlp, torch.rand(20, 3), 1, progress=False, **options)
    assert any("of 'mlp.c_proj:input' are taken for heads" in note for note in circuit.notes)
    named = nn.Sequential(OrderedDict(q_proj=nn.Linear(3, 8), rest=nn.Linear(8, 1)))
    named.head_dim = 2  # type: ignore[assignment]
    circuit = ng.search(named, torch.rand(20, 3), 1, groups={"q_proj": "heads"}, progress=False)
    assert not any("taken for heads" in note for note in circuit.notes)


def test_groups_by_number_and_by_list() -> None:
    model = model_of(Attention())
    lists = [[0], [3, 1], range(4, 8)]
    found = groups_in(model, {"q_proj": 2, "k_proj": 4, "o_proj": lists, "1.1": 1})
    assert found == {
        "1.0.q_proj": ("group", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        "1.0.k_proj": ("group", [[0], [1], [2], [3]]),
        "1.0.o_proj": ("group", [[0], [3, 1], [4, 5, 6, 7]]),
        "1.1": ("group", [[0]]),
    }
    array = torch.arange(8).view(4, 2).numpy()
    assert groups_in(model, {"q_proj": array})["1.0.q_proj"][1][1] == [2, 3]


def test_the_input_side_has_groups_of_its_own() -> None:
    model = model_of(Attention(head_dim=2))
    layers = ["o_proj", "o_proj:input"]
    (name,) = groups_in(model, {"o_proj:input": "heads"}, layers)
    assert name == "1.0.o_proj:input"
    (name,) = groups_in(model, {"o_proj": 4}, layers)
    assert name == "1.0.o_proj"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"v_proj": "heads"}, r"'v_proj' matches no layer; there are 0, 1\.0\.q_proj"),
        ({"input": 3}, "'input' matches no layer"),
        ({"o_proj": [[0, 1], [1, 2]]}, "have channel 1 twice"),
        ({"q_proj": "heads"}, "nothing around layer '1.0.q_proj' says how large"),
        ({"q_proj": 3}, "8 channels of layer '1.0.q_proj' cannot be divided"),
        ({"q_proj": 0}, "cannot be divided"),
        ({"q_proj": -2}, "cannot be divided"),
        ({"q_proj": 16}, "cannot be divided"),
        ({"q_proj": "head"}, r"'head' for layer '1\.0\.q_proj': pass 'heads', a number"),
        ({"q_proj": []}, r"lists of its channels 0…7"),
        ({"q_proj": [[0], []]}, r"lists of its channels 0…7"),
        ({"q_proj": [[0, 8]]}, r"lists of its channels 0…7"),
        ({"q_proj": [[-1]]}, r"lists of its channels 0…7"),
        ({"q_proj": [0, 1]}, r"lists of its channels 0…7"),
        ({"q_proj": [["a"]]}, r"lists of its channels 0…7"),
        ({"q_proj": [[0.5]]}, r"lists of its channels 0…7"),
        ({"q_proj": 2.0}, "groups=2.0 is no whole number"),
        ({"q_proj": None}, r"pass 'heads', a number"),
        ({"q_proj": True}, r"pass 'heads', a number"),
    ],
)
def test_groups_that_mean_nothing_are_told(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        groups_in(model_of(Attention()), asked)


def test_heads_that_do_not_divide_the_channels_are_told() -> None:
    with pytest.raises(OptionError, match=r"8 channels of layer '1\.0\.q_proj' cannot be divided"):
        groups_in(model_of(Attention(head_dim=3)), {"q_proj": "heads"})


def test_groups_that_name_no_layers_are_told() -> None:
    with pytest.raises(OptionError, match=r"groups='heads' says not of which layers"):
        groups_in(model_of(Attention(head_dim=2)), "heads")  # type: ignore[arg-type]


@pytest.mark.parametrize("lists", [[range(4), (4, 6, 7)], np.arange(8).reshape(2, 4)])
def test_a_circuit_says_what_its_groups_were(lists: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, X = model_of(Attention()), torch.randn(30, 3)
    circuit = ng.search(model, X, 1, groups={"q_proj": lists}, keep="share:1", progress=False)
    assert circuit.provenance["options"]["groups"] == {"q_proj": [list(each) for each in lists]}
    assert {n.index for n in circuit.graph if n.layer == "1.0.q_proj"} <= {0, 1}
    circuit.save(tmp_path / "x.circuit")
    again = ng.load(tmp_path / "x.circuit").attach(model, X)
    (path,) = again.measure([circuit.strongest[0].neurons])
    assert path.effect == circuit.strongest[0].effect


def test_neurons_of_several_sizes_are_described_by_each_element_once() -> None:
    """Means and transfers of groups that are not equally large, from their definitions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    model, data = model.double(), torch.randn(60, 3, dtype=torch.float64)
    lists = [[5], [0, 3, 1], [2, 4]]
    study = ng.Study(model, data, None, groups={"2": lists}, reference=60, progress=False)
    circuit = study.search(keep="top:9")
    rows = model[:3](data).detach()
    low, high = torch.quantile(rows, torch.tensor([0.05, 0.95], dtype=rows.dtype), dim=0)
    ends = torch.quantile(
        model[0](data).detach(), torch.tensor([0.05, 0.95], dtype=rows.dtype), dim=0
    )
    for unit, group in enumerate(lists):
        node = circuit.graph.nodes[Neuron("2", unit)]
        assert node["mean"] == pytest.approx(rows[:, group].mean().item())
        span = (high - low)[group]
        for writer in range(6):
            moved = []
            for end in ends:
                inner = model[0](data).detach()
                inner[:, writer] = end[writer]
                moved.append(model[2](torch.tanh(inner)).detach()[:, group])
            wanted = (((moved[1] - moved[0]) * span).sum(1) / span.square().sum()).mean().item()
            edge = circuit.graph.edges[Neuron("0", writer), Neuron("2", unit)]
            assert edge["transfer"] == pytest.approx(wanted, rel=1e-9)
