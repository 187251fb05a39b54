"""Neurons matched by activation: what is known to correspond is found."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from neurograph.circuit.circuit import Circuit
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.matching.activation import by_activation, with_cka
from neurograph.matching.given import by_name
from neurograph.matching.matching import LayerMatch, Matching
from neurograph.model.layers import Neuron
from tests import zoo
from tests.matching.attached import circuit_of

Orders = dict[str, Tensor]


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return zoo.plain(widths)


def inputs(rows: int = 200, features: int = 5) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(1))


def matched(a: Circuit, b: Circuit, **options: object) -> Matching:
    return by_activation(a, b, progress=False, **options)  # type: ignore[arg-type]


def layer(matching: Matching, name: str) -> LayerMatch:
    return next(match for match in matching.layers if match.a == name)


# -- permuted neurons ------------------------------------------------------------------------------


def reorder(
    module: nn.Module, out: Tensor | None = None, into: Tensor | None = None, names: str = ""
) -> None:
    """Permute what a module returns, and what it reads."""
    for name, tensor in module.state_dict().items():
        if tensor.dim() and out is not None:
            tensor.copy_(tensor[out].clone())
        if name == "weight" and into is not None:
            tensor.copy_(tensor[:, into].clone())


def permuted_mlp() -> tuple[nn.Module, nn.Module, Tensor, Orders]:
    model = mlp(5, 12, 9, 2)
    other, p, q = copy.deepcopy(model), torch.randperm(12), torch.randperm(9)
    reorder(other[0], p)
    reorder(other[2], q, p)
    reorder(other[4], None, q)
    return model, other, inputs(), {"0": p, "2": q}


def permuted_cnn() -> tuple[nn.Module, nn.Module, Tensor, Orders]:
    """Convolutions, BatchNorm, a residual sum and a concatenation."""
    sample = zoo.branched_cnn(6, 2, 0, torch.float32)
    model = sample.model
    other, p, q, r = copy.deepcopy(model), torch.randperm(6), torch.randperm(7), torch.randperm(2)
    reorder(other.stem, p)
    reorder(other.norm, p)
    reorder(other.conv, q, p)
    reorder(other.norm2, q)
    reorder(other.downsample, q, p)
    reorder(other.branch, r, q)
    reorder(other.head, None, torch.cat([q, 7 + r]))
    return model, other, sample.data(60, 1), {"stem": p, "conv": q, "downsample": q, "branch": r}


def permuted_residual() -> tuple[nn.Module, nn.Module, Tensor, Orders]:
    sample = zoo.residual_mlp(8, 2, 0, torch.float32)
    model = sample.model
    other, p, q = copy.deepcopy(model), torch.randperm(8), torch.randperm(9)
    reorder(other.enter, p)
    reorder(other.norm, p)
    reorder(other.up, q, p)
    reorder(other.down, p, q)
    reorder(other.head, None, p)
    return model, other, sample.data(200, 1), {"enter": p, "up": q, "down": p}


def permuted_attention() -> tuple[nn.Module, nn.Module, Tensor, Orders]:
    """Heads change places, and the channels within them."""
    sample = zoo.attention(6, 2, 0, torch.float32)
    model = sample.model
    other, up = copy.deepcopy(model), torch.randperm(8)
    p, v = torch.tensor([5, 3, 4, 0, 2, 1]), torch.tensor([3, 5, 4, 1, 0, 2])
    for module in (other.q, other.k):
        reorder(module, p)
    reorder(other.v, v)
    reorder(other.o, None, v)
    reorder(other.up, up)
    reorder(other.down, None, up)
    return model, other, sample.data(80, 1), {"q": p, "k": p, "v": v, "up": up}


PERMUTED = (permuted_mlp, permuted_cnn, permuted_residual, permuted_attention)


@pytest.mark.parametrize("permuted", PERMUTED)
def test_permuted_neurons_are_found(
    permuted: Callable[[], tuple[nn.Module, nn.Module, Tensor, Orders]],
) -> None:
    model, other, X, orders = permuted()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(X), other.eval()(X), rtol=1e-3, atol=1e-4)
    a, b = circuit_of(model, X), circuit_of(other, X)
    found = matched(a, b)
    assert [m.a for m in found.layers] == [m.b for m in found.layers] == list(a.layers)
    for match in found.layers:
        size = a.layers.nodes[match.a]["neurons"]
        order = orders.get(match.a, torch.arange(size))
        np.testing.assert_array_equal(match.pairs[:, 0], np.arange(size), err_msg=match.a)
        np.testing.assert_array_equal(order[match.pairs[:, 1]], match.pairs[:, 0])
        assert match.cka == pytest.approx(1, abs=1e-5)
        if match.a in orders:
            np.testing.assert_allclose(match.similarity, 1, atol=1e-5)
        assert match.ties == ()
        assert not match.tied.any()
    back = matched(b, a).flipped()
    for there, here in zip(back.layers, found.layers, strict=True):
        np.testing.assert_array_equal(there.pairs, here.pairs)


def test_heads_that_change_places_are_found() -> None:
    model, other, X, _ = permuted_attention()
    options = {
        "layers": ["q", "o:input", "up"],
        "groups": {"o:input": 2, "q": [[0, 1, 2], [3, 4, 5]]},
    }
    found = matched(*(circuit_of(m, X, **options) for m in (model, other)))
    for name in ("q", "o:input"):
        match = layer(found, name)
        assert match.pairs.tolist() == [[0, 1], [1, 0]]
        np.testing.assert_allclose(match.similarity, 1, atol=1e-5)
    assert len(layer(found, "up").pairs) == 8


def test_neurons_of_single_positions_go_along_with_their_index() -> None:
    model, other, X, orders = permuted_attention()
    found = matched(*(circuit_of(m, X, positions="each") for m in (model, other)))
    for name, order in orders.items():
        match = layer(found, name)
        np.testing.assert_array_equal(order[match.pairs[:, 1]], match.pairs[:, 0])
        assert found.to_a(Neuron(name, 0, 2)) == (name, int(order[0]), 2)
    whole = circuit_of(other, X)
    with pytest.raises(OptionError, match="positions of layer 'input' have neurons of their own"):
        matched(circuit_of(model, X, positions="each"), whole)


# -- what is no permutation ------------------------------------------------------------------------


def test_rescaling_a_relu_layer_changes_nothing() -> None:
    model, X = mlp(5, 12, 9, 2), inputs()
    other, scale = copy.deepcopy(model), torch.rand(12) * 10 + 0.1
    with torch.no_grad():
        other[0].weight *= scale[:, None]
        other[0].bias *= scale
        other[2].weight /= scale
    a, b = circuit_of(model, X), circuit_of(other, X)
    for match, same in zip(matched(a, b).layers, matched(a, a).layers, strict=True):
        np.testing.assert_array_equal(match.pairs, same.pairs)
        np.testing.assert_allclose(match.similarity, same.similarity, atol=1e-5)


def test_neurons_of_a_narrower_model_are_found_in_a_wider_one() -> None:
    model, X = mlp(5, 12, 9, 2), inputs()
    wide, p, q = mlp(5, 30, 20, 2, seed=1), torch.randperm(30)[:12], torch.randperm(20)[:9]
    with torch.no_grad():
        wide[0].weight[p], wide[0].bias[p] = model[0].weight, model[0].bias
        wide[2].weight[q] *= 0.01  # reads the others a little
        wide[2].weight[q[:, None], p] = model[2].weight
        wide[2].bias[q] = model[2].bias
    found = matched(circuit_of(model, X), circuit_of(wide, X))
    np.testing.assert_array_equal(layer(found, "0").pairs[:, 1], p)
    np.testing.assert_array_equal(layer(found, "2").pairs[:, 1], q)
    assert layer(found, "2").similarity.min() > 0.99


def with_a_duplicate(model: nn.Sequential, neuron: int) -> nn.Sequential:
    """The same function, one hidden neuron twice, the new one last."""
    first, second = model[0], model[2]
    wider = nn.Linear(first.in_features, first.out_features + 1)
    reader = nn.Linear(first.out_features + 1, second.out_features)
    with torch.no_grad():
        wider.weight.copy_(torch.cat([first.weight, first.weight[neuron, None]]))
        wider.bias.copy_(torch.cat([first.bias, first.bias[neuron, None]]))
        reader.weight.copy_(torch.cat([second.weight, second.weight[:, neuron, None] / 2], 1))
        reader.weight[:, neuron] /= 2
        reader.bias.copy_(second.bias)
    return nn.Sequential(wider, *model[1:2], reader, *model[3:])


def test_a_duplicated_neuron_is_a_tie_and_nothing_else_is() -> None:
    model, X = mlp(5, 12, 9, 2), inputs()
    a, b = circuit_of(with_a_duplicate(model, 4), X), circuit_of(model, X)
    both = matched(a, a)
    assert layer(both, "0").ties == (((4, 12), (4, 12)),)
    assert np.flatnonzero(layer(both, "0").tied).tolist() == [4, 12]
    assert len(layer(both, "0").pairs) == 13
    one = matched(a, b)
    assert layer(one, "0").ties == (((4, 12), (4,)),)
    assert layer(one, "0").tied.sum() == 1
    for found in (both, one):
        assert all(not match.ties for match in found.layers if match.a != "0")


def test_dead_neurons_have_no_partner() -> None:
    model, X = mlp(5, 12, 9, 2), inputs()
    with torch.no_grad():
        model[0].weight[[2, 7]] = 0
    a = circuit_of(model, X)
    found = layer(matched(a, a), "0")
    alive = [i for i in range(12) if i not in (2, 7)]
    assert found.pairs.tolist() == [[i, i] for i in alive]
    assert found.ties == ()


def test_unlike_neurons_have_no_partner() -> None:
    X = inputs()
    a, b = circuit_of(mlp(5, 12, 2), X), circuit_of(mlp(5, 12, 2, seed=3), X)
    whole, some = (layer(matched(a, b, least=least), "0") for least in (0.0, 0.8))
    assert whole.similarity.min() > 0
    assert some.similarity.min() > 0.8
    assert 0 < len(some.pairs) < len(whole.pairs)


# -- layers ----------------------------------------------------------------------------------------


def test_layers_of_models_of_different_depth_are_aligned() -> None:
    """A layer that changes nothing is put in between: the others find their partners."""
    shallow, X = mlp(5, 12, 9, 2), inputs()
    still = nn.Linear(12, 12)
    with torch.no_grad():
        still.weight.copy_(torch.eye(12))
        still.bias.zero_()
    names = ["first", "act", "still", "act2", "second", "act3", "head"]
    parts = [shallow[0], nn.ReLU(), still, nn.ReLU(), shallow[2], nn.ReLU(), shallow[4]]
    deep = nn.Sequential()
    for name, part in zip(names, parts, strict=True):
        deep.add_module(name, copy.deepcopy(part))
    a, b = circuit_of(shallow, X), circuit_of(deep, X)
    found = matched(a, b)
    layers = [("input", "input"), ("0", "first"), ("2", "second"), ("4", "head")]
    assert [(m.a, m.b) for m in found.layers] == layers
    assert [m.cka for m in found.layers] == pytest.approx([1] * 4, abs=1e-5)
    assert all((m.pairs[:, 0] == m.pairs[:, 1]).all() for m in found.layers)
    assert [(m.b, m.a) for m in matched(b, a).layers] == layers
    assert layer(matched(a, b, align="depth"), "0").b == "first"


def test_outputs_go_by_index_if_there_are_as_many() -> None:
    X = inputs()
    a, b = circuit_of(mlp(5, 12, 3), X), circuit_of(mlp(5, 12, 3, seed=3), X)
    for name in ("input", "2"):
        match = layer(matched(a, b), name)
        assert match.pairs.tolist() == [[i, i] for i in range(len(match.pairs))]
        assert np.isnan(match.similarity).all()
    more = circuit_of(nn.Sequential(*a.study.model[:2], nn.Linear(12, 4)), X)
    match = layer(matched(a, more), "2")
    assert not np.isnan(match.similarity).any()


def test_cka_of_a_matching_by_name() -> None:
    X = inputs()
    a, b = circuit_of(mlp(5, 12, 9, 2), X), circuit_of(mlp(5, 12, 9, 2, seed=3), X)
    named = with_cka(by_name(a, b), a, b, progress=False)
    found = matched(a, b)
    assert [m.cka for m in named.layers] == pytest.approx([m.cka for m in found.layers])
    assert named.layers[0].cka == pytest.approx(1)
    assert 0.1 < named.layers[1].cka < 0.99
    assert named.kind == "identity"
    assert np.isnan(named.layers[1].similarity).all()


# -- data ------------------------------------------------------------------------------------------


def test_both_models_see_the_same_samples_of_any_data() -> None:
    model, X = mlp(5, 12, 9, 2), inputs()
    a = circuit_of(model, X)
    loader = DataLoader(TensorDataset(X, torch.zeros(len(X))), batch_size=16, shuffle=True)
    for data in (X.numpy(), (X, torch.zeros(len(X))), loader, [{"input": X}]):
        for samples in (1000, 30):
            found = layer(by_activation(a, a, data, samples=samples, progress=False), "0")
            np.testing.assert_allclose(found.similarity, 1)


def test_models_of_different_precision_get_what_each_takes() -> None:
    model, X = mlp(5, 12, 9, 2), inputs()
    a, b = circuit_of(model, X), circuit_of(copy.deepcopy(model).double(), X.double())
    for one, other in ((a, b), (b, a)):
        found = layer(matched(one, other), "2")
        assert found.pairs.tolist() == [[i, i] for i in range(9)]
        np.testing.assert_allclose(found.similarity, 1)


def test_seeds_choose_samples() -> None:
    X = inputs(400)
    a, b = circuit_of(mlp(5, 12, 2), X), circuit_of(mlp(5, 12, 2, seed=3), X)
    first, again, other = (
        layer(matched(a, b, samples=50, seed=seed), "0").similarity for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("memory", ["10KB", "40KB"])
def test_small_budgets_find_the_same(memory: str) -> None:
    X = inputs()
    models = mlp(5, 40, 30, 20, 2), mlp(5, 40, 30, 20, 2, seed=3)
    whole = matched(*(circuit_of(m, X) for m in models))
    small = matched(*(circuit_of(m, X, memory=memory) for m in models))
    for one, other in zip(whole.layers, small.layers, strict=True):
        np.testing.assert_array_equal(one.pairs, other.pairs)
        np.testing.assert_allclose(one.similarity, other.similarity, rtol=1e-6, atol=1e-9)


def test_models_are_left_as_they_were() -> None:
    sample = zoo.branched_cnn(4, 2, 0, torch.float32)
    model, X = sample.model.train(), sample.data(30, 0)
    a = circuit_of(model, X)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    matched(a, a)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_refusals() -> None:
    model, X = mlp(5, 12, 2), inputs()
    a = circuit_of(model, X)
    with pytest.raises(OptionError, match="attach"):
        matched(a, a.detach())
    with pytest.raises(OptionError, match=r"least=1\.5 must lie in \[0, 1\)"):
        matched(a, a, least=1.5)
    with pytest.raises(OptionError, match="samples=3: matching takes 4 or more"):
        matched(a, a, samples=3)
    with pytest.raises(DataError, match="data has 3 samples: matching takes 4 or more"):
        by_activation(a, a, X[:3], progress=False)
    with pytest.raises(ModelError, match="layer '0' returns NaN or infinity"):
        by_activation(a, a, torch.full((8, 5), 3e38), progress=False)
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(ModelError, match="weights have changed since it was prepared"):
        matched(a, a)
