"""Profiles: statistics of every layer over all the data, on the layer graph."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import neurograph as ng
from tests import zoo
from tests.reference import Reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_equal_numpy_over_all_outputs(dtype: torch.dtype) -> None:
    sample = zoo.branched_cnn(3, 2, 0, dtype)
    X = sample.data(600, 0)
    graph = ng.profile(sample.model, X)
    every = Reference(sample.network(), {"x": X})
    for name, values in every.background.items():
        node, wanted = graph.nodes[name], values.double().numpy()
        assert node["count"] == 600
        assert node["rank_error"] == 0
        close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10}
        np.testing.assert_allclose(node["mean"], wanted.mean(0), **close, err_msg=name)
        np.testing.assert_allclose(node["std"], wanted.std(0, ddof=1), **close)
        np.testing.assert_allclose(node["min"], wanted.min(0), **close)
        np.testing.assert_allclose(node["max"], wanted.max(0), **close)
        table = np.quantile(wanted, node["levels"], axis=0)
        np.testing.assert_allclose(node["quantiles"], table, **close)


def test_layer_attributes() -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float64)
    graph = ng.layer_graph(sample.model, sample.data(4, 0))
    conv = graph.nodes["conv"]
    assert (conv["type"], conv["shape"], conv["neurons"]) == ("Conv2d", "4×3×3", 4)
    assert conv["parameters"] == sum(p.numel() for p in sample.model.conv.parameters())
    assert graph.nodes["input"]["type"] == "Input"
    assert graph.nodes["input"]["neurons"] == 2
    assert [n for n, d in graph.nodes(data=True) if d["output"]] == ["head"]


def test_samples_run_at_once_follow_the_memory_budget() -> None:
    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return super().forward(x)

    model, X = nn.Sequential(Counting(50, 50)), torch.randn(500, 50)
    batches = {}
    for memory in ("1GB", "20KB"):
        sizes: list[int] = []
        node = ng.profile(model, X, memory=memory, progress=False).nodes["0"]
        batches[memory] = max(sizes)
        torch.testing.assert_close(node["mean"], model(X).mean(0))
    assert batches["1GB"] == 256
    assert batches["20KB"] < 30


def test_reservoir_is_bounded_by_the_memory_budget_and_says_so() -> None:
    sample = zoo.mlp((3, 50, 2), "tanh", False, 0, torch.float32)
    X = sample.data(4000, 0)
    exact = ng.profile(sample.model, X[:2000]).nodes["layers.0"]
    assert exact["rank_error"] == 0
    bounded = ng.profile(sample.model, X, memory="200KB").nodes["layers.0"]
    assert bounded["count"] == 4000
    assert 0.05 < bounded["rank_error"] < 0.2
    with torch.no_grad():
        values = sample.model.layers[0](X).numpy()
    ranks = (values[None] <= bounded["quantiles"].numpy()[:, None]).mean(1)
    assert np.abs(ranks - np.array(bounded["levels"])[:, None]).max() <= bounded["rank_error"]
    np.testing.assert_allclose(bounded["max"], values.max(0), rtol=1e-6)


@pytest.mark.parametrize("memory", ["20KB", "60KB", "200KB"])
def test_layers_larger_than_the_memory_budget_are_profiled_in_parts(memory: str) -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float64)
    X = sample.data(50, 0)
    whole, parts = ng.profile(sample.model, X), ng.profile(sample.model, X, memory=memory)
    for name, node in whole.nodes(data=True):
        assert node["rank_error"] == parts.nodes[name]["rank_error"] == 0
        for field in ("mean", "std", "min", "max", "quantiles"):
            torch.testing.assert_close(parts.nodes[name][field], node[field])


WIDE = """
import resource, torch, neurograph as ng
from torch import nn
torch.manual_seed(0)
width = 4096
model = nn.Sequential(
    nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
)
X = torch.randn(256, 64)
with torch.no_grad():
    model(X)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
circuit = ng.search(model, X, 1, keep="top:4", progress=False)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(circuit.strongest) > 0
print((after - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_a_wide_network_is_searched_within_a_gigabyte_above_the_model() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WIDE], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1000


def test_profile_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ng.profile(model, torch.rand(50, 3))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("memory", ["512MB", "30KB"])
def test_statistics_of_each_class_equal_numpy(memory: str) -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float64)
    X, labels = sample.data(120, 0), np.array(["left", "right", "right"])[np.arange(120) % 3]
    graph = ng.profile(sample.model, X, labels=labels, memory=memory)
    every = Reference(sample.network(), {"x": X})
    for name, values in every.background.items():
        node, wanted = graph.nodes[name], values.double().numpy()
        assert list(node["classes"]) == ["left", "right"]
        np.testing.assert_allclose(node["mean"], wanted.mean(0), rtol=1e-10)
        np.testing.assert_allclose(node["std"], wanted.std(0, ddof=1), rtol=1e-10)
        for label, found in node["classes"].items():
            part = wanted[labels == label]
            assert found.count == len(part)
            np.testing.assert_allclose(found.mean, part.mean(0), rtol=1e-10)
            np.testing.assert_allclose(found.std, part.std(0, ddof=1), rtol=1e-10)
            np.testing.assert_allclose(found.max, part.max(0), rtol=1e-10)
            if memory == "512MB":
                table = np.quantile(part, found.levels, axis=0)
                np.testing.assert_allclose(found.quantiles, table, rtol=1e-10)


def test_labels_of_the_data_are_read_where_asked() -> None:
    torch.manual_seed(0)
    model, X = nn.Sequential(nn.Linear(2, 3)), torch.rand(30, 2)
    batches = [(X[i : i + 7], (X[i : i + 7, 0] > 0.5).float()) for i in range(0, 30, 7)]
    found = ng.profile(model, batches, labels=True).nodes["input"]["classes"]
    assert float(found[0].max[0]) <= 0.5 < float(found[1].min[0])
    assert found[0].count + found[1].count == 30
    assert "classes" not in ng.profile(model, batches).nodes["input"]


def test_both_sides_of_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    X = torch.randn(50, 2)
    graph = ng.profile(model, X, layers=["0", "2", "0:input", "2:input"])
    with torch.no_grad():
        wanted = {"0:input": X, "0": model[0](X), "2:input": model[:2](X), "2": model(X)}
    for name, values in wanted.items():
        torch.testing.assert_close(graph.nodes[name]["max"], values.amax(0))
        torch.testing.assert_close(graph.nodes[name]["mean"], values.mean(0))
