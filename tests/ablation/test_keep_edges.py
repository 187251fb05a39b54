"""Edges kept alone, against plain hooks, one run for each output of each layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.ablation.index import edges_of
from neurograph.ablation.keep_edges import KeepEdges
from tests import zoo
from tests.ablation.networks import F64, SMALL
from tests.ablation.slow import drawn, in_order, options, place, row, slow
from tests.case import Case, as_data
from tests.zoo.network import Network, column, maps, normal, vectors

ZOO = ("resnet_half", "lstm_states", "gpt2_heads", "bert_last", "mobilenet", "constants")
COLUMNS = [
    f"{end}_{name}" for end in ("source", "target") for name in ("layer", "index", "position")
]


def check(network: Network, ablation: str, shares: tuple[float, ...] = (0.4, 1)) -> None:
    case = Case(network, ablation, "data")
    truth = slow(case)
    count = truth.reference.neurons
    pairs = [(w, r) for w in truth.names for r in truth.readers(w)]
    edges = [(w, i, r, j) for w, r in pairs for i in range(count(w)) for j in range(count(r))]
    places = [(*place(case, w, i), *place(case, r, j)) for w, i, r, j in edges]
    ranking = drawn(places, COLUMNS, 0)
    found = ng.faithfulness(
        network.model, as_data(case.data), network.target, ranking,
        sizes=shares, draws=0, **options(case, ablation),
    )  # fmt: skip
    assert (found.of, found.components) == ("edges", len(edges))
    effects = in_order(ranking, places)
    strongest = np.argsort(-effects)
    for share in shares:
        flags = np.zeros(len(edges), dtype=bool)
        flags[strongest[: int(share * len(edges) + 1e-6)]] = True
        for direction, on in (("keep", flags), ("knock_out", ~flags)):
            kept = {pair: np.zeros((count(pair[0]), count(pair[1])), dtype=bool) for pair in pairs}
            for (w, i, r, j), flag in zip(edges, on, strict=True):
                kept[w, r][i, j] = flag
            wanted = float(truth.with_edges(kept).mean())
            got = row(found.draws, "signed", direction, share)
            assert got["value"] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("ablation", ["mean", "zero", "counterfactual"])
@pytest.mark.parametrize("name", SMALL)
def test_equals_hooks(name: str, ablation: str) -> None:
    check(SMALL[name](), ablation)


@pytest.mark.parametrize("name", ZOO)
def test_equals_hooks_on_every_kind_of_architecture(name: str) -> None:
    check(zoo.NETWORKS[name](0), "zero", (0.4,))


class Convolutions(nn.Module):
    """Convolutions with nothing but activations between them, one in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, stride=2, padding="valid", groups=2)
        self.c = nn.Conv2d(6, 3, 2, dilation=1, padding=1, bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.c(torch.relu(self.b(torch.sigmoid(self.a(x))))))
        return self.head(h.mean((2, 3)))


def convolutions() -> Network:
    model = zoo.settle(Convolutions(), 0)
    sites = maps("input", "a", "b", "c") | vectors("head")
    return Network("convolutions", model, normal(2, 6, 6), column(1), sites)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_convolutions_equal_hooks(ablation: str) -> None:
    check(convolutions(), ablation)


@pytest.mark.parametrize("network", [SMALL["mlp"], convolutions])
def test_masked_weights_equal_runs_of_every_set(network: object) -> None:
    """Both routes, on the same random edges."""
    case = Case(network(), "zero", "data")
    with case.study.open() as experiment:
        components = edges_of(experiment)
        runs = KeepEdges(experiment, components)
        assert len(runs._linear) >= 2

        def ablated(layer: str) -> Tensor:
            return experiment.levels(layer)[0]

        kept = np.random.default_rng(0).random((3, len(components))) < 0.5
        some = [output.clone() for _, _, output in runs(kept, ablated)]
        runs._linear = {}
        others = [output for _, _, output in runs(kept, ablated)]
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_an_mlp_equals_matrix_algebra() -> None:
    """Two layers by hand: masked weights on what is kept, the rest from ablated inputs."""
    model = zoo.mlp((3, 5, 2), "tanh", False, 0, F64).model
    X = torch.randn(40, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    pairs = [("input", i, "layers.0", j) for i in range(3) for j in range(5)]
    pairs += [("layers.0", i, "layers.1", j) for i in range(5) for j in range(2)]
    names = ["source_layer", "source_index", "target_layer", "target_index"]
    ranking = drawn(pairs, names, 1)
    found = ng.faithfulness(
        model, X, 0, ranking, sizes=(0.5,), ablations=["mean"], reference=X, draws=0
    )
    kept = set(ranking.sort_values(ascending=False).index[: int(0.5 * len(pairs))])
    one, two = (torch.zeros(layer.weight.shape, dtype=F64) for layer in model.layers)
    for mask, layer, writer in ((one, "layers.0", "input"), (two, "layers.1", "layers.0")):
        for j, i in np.ndindex(*mask.shape):
            mask[j, i] = (writer, i, layer, j) in kept
    first, last = model.layers
    mean = first(X).mean(0)
    h = (X * 1.0) @ (first.weight * one).T + X.mean(0) @ (first.weight * (1 - one)).T + first.bias
    seen = torch.tanh(h) @ (last.weight * two).T + last.bias
    seen = seen + torch.tanh(mean) @ (last.weight * (1 - two)).T
    got = row(found.draws, "signed", "keep", 0.5)["value"]
    assert got == pytest.approx(seen[:, 0].mean().item(), rel=1e-9)
