"""Data of every kind gives the same batches; what cannot be used is told by name."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import neurograph as ng
from neurograph.data.source import Batch, Source, concatenate, draw
from neurograph.errors import DataError
from tests import zoo


class Pairs(Dataset):
    def __init__(self, X: Tensor, y: Tensor) -> None:
        self.X, self.y = X, y

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.X[i], self.y[i]


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, features: Tensor, scale: float = 1.0, labels: Tensor | None = None) -> Tensor:
        return self.layer(features) * scale


X = torch.rand(23, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(23)
KINDS = {
    "tensor": X,
    "array": X.numpy().astype(np.float64),
    "frame": pd.DataFrame(X.numpy(), columns=["a", "b", "c"]),
    "pair": (X, Y),
    "pair of arrays": (X.numpy(), Y.numpy()),
    "dataset": Pairs(X, Y),
    "tensor dataset": TensorDataset(X, Y),
    "loader": DataLoader(Pairs(X, Y), batch_size=7),
    "list of batches": [(X[:10], Y[:10]), (X[10:], Y[10:])],
    "list of tensors": [X[:10], X[10:]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_samples(kind: str) -> None:
    model = nn.Linear(3, 1)
    source = Source(KINDS[kind], model, batch_size=5)
    for _ in range(2):  # it can be read again
        whole = concatenate(list(source))
        assert whole.size == 23
        torch.testing.assert_close(whole.args[0], X)
    if "pair" in kind or "dataset" in kind or "loader" in kind:
        assert whole.labels.tolist() == Y.tolist()


def test_every_kind_of_data_gives_the_same_circuit() -> None:
    sample = zoo.mlp((3, 5, 1), "tanh", False, 0, torch.float32)
    circuits = [ng.search(sample.model, data, 1, progress=False) for data in KINDS.values()]
    assert len({c.provenance["data"]["samples"] for c in circuits}) == 1
    for circuit in circuits[1:]:
        assert set(circuit.graph) == set(circuits[0].graph)
        for one, other in zip(circuit.strongest, circuits[0].strongest, strict=True):
            assert one.effect == pytest.approx(other.effect, rel=1e-4, abs=1e-6)
    names = {str(p.names[0]) for p in ng.search(sample.model, KINDS["frame"], 1).strongest}
    assert names <= {"a", "b", "c"}


def test_a_dict_batch_is_keyword_arguments_and_its_labels_are_set_aside() -> None:
    model = Keywords()
    for data in (
        {"features": X, "scale": 2.0, "target": Y},
        ({"features": X, "scale": 2.0}, Y),
    ):
        (batch,) = Source(data, model)
        assert set(batch.kwargs) == {"features", "scale"}
        assert batch.labels.tolist() == Y.tolist()
    assert batch.map(lambda t: t[:2]).kwargs["scale"] == 2.0
    circuit = ng.search(model, {"features": X}, 1, keep="share:1", progress=False)
    assert {n.layer for n in circuit.graph} == {"input", "layer"}
    with pytest.raises(DataError, match=r"key 'colour'.*takes features, scale, labels"):
        list(Source({"features": X, "colour": X}, model))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.empty(0, 3), "no samples"),
        ([], "no samples"),
        (iter([X]), "read only once"),
        ((X, Y, Y), "tuple of 3"),
        ([(X, Y, Y)], "tuple of 3"),
        ((X, Y[:5]), r"X has 23 samples but y has shape \(5,\)"),
        (pd.DataFrame({"a": ["x", "y"]}), "not numbers"),
        (3.0, "data is float"),
        ("heart.csv", "data is str"),
    ],
)
def test_unusable_data_is_told(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(Source(data, nn.Linear(3, 1)))


def test_samples_of_different_shapes_cannot_be_one_reference() -> None:
    with pytest.raises(DataError, match=r"2×3, 4×3.*pad"):
        concatenate([Batch((torch.rand(1, n, 3),), {}) for n in (2, 4)])


def test_draw_is_uniform_without_replacement_and_ignores_how_data_is_batched() -> None:
    model = nn.Linear(1, 1)
    values = torch.arange(100.0)[:, None]
    hits = np.zeros(100)
    for seed in range(300):
        batch, positions = draw(Source(values, model, batch_size=13), 10, seed)
        assert positions == tuple(sorted(set(positions)))
        assert batch.args[0].flatten().tolist() == list(positions)
        hits[list(positions)] += 1
        again = draw(Source(values, model, batch_size=50), 10, seed)[1]
        assert again == positions
    # Each sample is drawn 30 times on average, with a standard deviation of 5.2.
    assert hits.sum() == 3000
    assert 8 < hits.min() <= hits.max() < 56
    assert draw(Source(values, model), 500, 0)[1] == tuple(range(100))
