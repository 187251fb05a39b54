"""Causal shift: later distributions before and after an ablation, against hooks and scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

import neurograph as ng
from neurograph.ablation.causal_shift import causal_shift
from neurograph.errors import DataError, OptionError
from tests import zoo
from tests.reference import Reference

CUT = [("layers.0", 1), ("layers.0", 4)]


@pytest.mark.parametrize("memory", ["512MB", "20KB"])
def test_distances_equal_scipy_on_what_hooks_see(memory: str) -> None:
    sample = zoo.mlp((3, 8, 6, 2), "tanh", False, 0, torch.float64)
    X = sample.data(70, 0)
    labels = np.arange(70) % 2
    shift = causal_shift(sample.model, X, CUT, how="zero", labels=labels, memory=memory)
    before = Reference(sample.network(), {"x": X}).background

    def ablate(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, [1, 4]] = 0
        return changed

    handle = sample.model.layers[0].register_forward_hook(ablate)
    after = Reference(sample.network(), {"x": X}).background
    handle.remove()

    assert shift.neurons == tuple(CUT)
    assert set(shift.table["layer"]) == {"layers.1", "layers.2"}
    assert len(shift.table) == 6 + 2
    for _, row in shift.table.iterrows():
        a, b = (x[row["layer"]][:, row["index"]].numpy() for x in (before, after))
        assert row["wasserstein"] == pytest.approx(stats.wasserstein_distance(a, b))
        assert row["wasserstein_std"] == pytest.approx(row["wasserstein"] / a.std(ddof=1))
        assert row["mean_shift"] == pytest.approx(b.mean() - a.mean())
        assert row["std_after"] == pytest.approx(b.std(ddof=1))
        assert row["change"] == pytest.approx(np.abs(a - b).mean())
        for x, when in ((a, "before"), (b, "after")):
            u = stats.mannwhitneyu(x[labels == 1], x[labels == 0]).statistic
            assert row[f"auc_{when}"] == pytest.approx(
                u / (labels == 1).sum() / (labels == 0).sum()
            )


def test_only_what_depends_on_the_ablated_is_compared() -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float64)
    X = sample.data(30, 0)
    graph = ng.layer_graph(sample.model, X)
    later = [n for n in graph if graph.in_degree(n) and graph.out_degree(n)]
    shift = causal_shift(sample.model, X, [(later[-1], 0)])
    reached = {name for name in graph if name in shift.table["layer"].to_numpy()}
    assert reached
    assert later[0] not in reached
    assert (shift.table["change"] > 0).any()
    assert "auc_before" not in shift.table
    named = causal_shift(sample.model, X, [(later[-1], 0)], class_names=["a", "b"])
    assert named.table.equals(shift.table)


def test_an_ablation_of_what_nothing_uses_shifts_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    X = torch.randn(40, 2, dtype=torch.float64)
    for how in ("zero", "mean", "resample"):
        table = causal_shift(model, X, [("0", 1)], how=how).table
        assert (table["wasserstein"] == 0).all()
        assert (table["change"] == 0).all()
        assert (causal_shift(model, X, [("0", 0)], how=how).table["change"] > 0).all()


def test_ablated_neurons_are_not_compared_with_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    table = causal_shift(model, torch.randn(40, 2), {"0": [0], "2": [1, 2]}).table
    assert table[table["layer"] == "2"]["index"].tolist() == [0, 3]


def test_several_classes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    X = torch.randn(60, 2, dtype=torch.float64)
    labels = np.array(["a", "b", "c"])[np.arange(60) % 3]
    row = causal_shift(model, X, [("0", 0)], labels=labels).table.iloc[0]
    with torch.no_grad():
        values = model(X)[:, 0].numpy()
    wanted = stats.kruskal(*(values[labels == c] for c in "abc")).statistic
    assert row["kruskal_h_before"] == pytest.approx(wanted)


def test_the_shift_on_the_graphs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    X = torch.randn(60, 2)
    shift = causal_shift(model, X, [("0", 2)])
    rows = shift.table[shift.table["layer"] == "2"]
    node = shift.layers.nodes["2"]
    assert node["most_wasserstein"] == rows["wasserstein_std"].max()
    assert rows["wasserstein_std"].iloc[node["most_shifted"]] == node["most_wasserstein"]
    assert shift.layers.nodes["0"]["ablated"] == 1

    circuit = ng.search(model, X, 1, keep="top:6", progress=False)
    marked = shift.mark(circuit)
    told = rows.set_index("index")
    for neuron in (n for n in marked.graph if n.layer == "2"):
        for key in ("wasserstein_std", "mean_before", "mean_after"):
            assert marked.graph.nodes[neuron][key] == told.loc[neuron.index, key]
            assert key not in circuit.graph.nodes[neuron]
    assert marked.graph.nodes["0", 2]["ablated"] == "mean"
    marked.save(tmp_path / "marked.circuit")
    again = ng.load(tmp_path / "marked.circuit")
    assert dict(again.graph.nodes(data=True)) == dict(marked.graph.nodes(data=True))
    marked.to_html(tmp_path / "marked.html")
    assert "moved by the ablation" in (tmp_path / "marked.html").read_text()


def test_bad_neurons_and_data() -> None:
    model, X = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.randn(20, 2)
    with pytest.raises(OptionError, match=r"no layer '7'; there are input, 0, 1"):
        causal_shift(model, X, [("7", 0)])
    with pytest.raises(DataError, match="the DataLoader shuffles"):
        causal_shift(model, DataLoader(X, 5, shuffle=True), [("0", 0)])
    with pytest.raises(OptionError, match="no other layer depends on 1"):
        causal_shift(model, X, [("1", 0)])
    with pytest.raises(OptionError, match="3"):
        causal_shift(model, X, [("0", 3)])
