"""Families that are found: those that were planted, those of scikit-learn, and what is none."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.errors import OptionError
from neurograph.model.basis import Families
from neurograph.model.clusters import Clusters, RandomFamilies
from tests import zoo
from tests.case import as_data

F64 = torch.float64
X = torch.randn(60, 4, generator=torch.Generator().manual_seed(3), dtype=F64)
QUIET: dict[str, Any] = {"reference": 16, "progress": False}


def perceptron(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2)
    ).double()


def rows_and_slopes() -> tuple[Tensor, Tensor]:
    model = perceptron()
    rows = model[0](X).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(model[1:](rows)[:, 1].sum(), rows)
    return rows.detach(), slopes


def found_in(study: ng.Study, layer: str) -> Families:
    basis = study.experiment.recording.layers[layer].basis
    assert isinstance(basis, Families)
    return basis


def effects_of(study: ng.Study, layer: str) -> np.ndarray:
    table = study.score().table.query(f"layer == {layer!r}")
    return table.set_index("index")["effect"].sort_index().to_numpy()


# Channels of an input each, at another strength, some turned round and read turned round.
# So weak that tanh is nearly linear.
PLANTED = {0: (1, 0.2), 1: (0, 0.1), 2: (1, -0.1), 3: (2, 0.3), 4: (0, -0.05), 5: (2, 0.02)}


def planted() -> nn.Sequential:
    """Channel 6 is constant, 7 is not read."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        for channel, (source, strength) in PLANTED.items():
            model[0].weight[channel, source] = strength
            model[2].weight[0, channel] = (-3.0, 1.0, 0.5)[source] * (1 if strength > 0 else -1)
        model[0].weight[7, 3] = model[0].bias[6] = model[2].weight[0, 6] = 1
    return model


def test_planted_families_are_found() -> None:
    study = ng.Study(planted(), X, None, basis={"0": Clusters(4)}, **QUIET)
    families = found_in(study, "0").members
    # Who does most is first, of families and of members; what does nothing is last.
    assert families == [{1: 1, 4: -1}, {0: 1, 2: -1}, {3: 1, 5: 1}, {6: 1, 7: 1}]
    assert [list(f) for f in families] == [[1, 4], [0, 2], [3, 5], [6, 7]]
    effects = effects_of(study, "0")
    assert effects[3] == 0
    assert np.abs(effects[:3]).min() > 0


def test_the_partition_is_that_of_scikit_learn() -> None:
    from sklearn.cluster import AgglomerativeClustering

    rows, slopes = rows_and_slopes()
    done = ((rows - rows.mean(0)) * slopes).T.numpy()
    profiles = done / np.linalg.norm(done, axis=1, keepdims=True)
    for count in range(1, 10):
        labels = AgglomerativeClustering(count, linkage="ward").fit_predict(profiles)
        found = Clusters(count).find(rows, slopes)
        assert {frozenset(unit) for unit in found.units} == {
            frozenset(np.flatnonzero(labels == label)) for label in range(count)
        }
        strengths = [np.abs(done[unit]).sum() for unit in found.units]
        assert strengths == sorted(strengths, reverse=True)


def test_signs_are_those_of_the_common_movement() -> None:
    """By the definition: of the first principal component, weighted by gradients."""
    from sklearn.decomposition import PCA

    rows, slopes = rows_and_slopes()
    weighted = (rows * slopes.square().mean(0).sqrt()).numpy()
    (family,) = Clusters(1).find(rows, slopes).members
    signs = np.sign(PCA(1).fit(weighted).components_[0])
    assert {channel: signs[channel] * signs[next(iter(family))] for channel in family} == family
    assert set(family.values()) == {1, -1}


def test_a_tree_is_cut_and_its_families_are_opened() -> None:
    rows, slopes = rows_and_slopes()
    cuts = [Clusters(count).find(rows, slopes) for count in range(1, 10)]
    for cut, finer in itertools.pairwise(cuts):
        (wanted,) = (
            number
            for number, unit in enumerate(cut.units)
            if not any(set(unit) == set(other) for other in finer.units)
        )
        opened = cut.opened(wanted)
        assert {frozenset(unit) for unit in opened.units} == set(map(frozenset, finer.units))
        assert opened.units[:wanted] == cut.units[:wanted]
    whole = cuts[0]
    for into in range(1, 10):
        assert {frozenset(u) for u in whole.opened(0, into).units} == {
            frozenset(u) for u in cuts[into - 1].units
        }
    alone = whole.opened(0, 9)
    assert alone.units == [[channel] for channel in whole.units[0]]
    assert (alone.signs == 1).all()
    for family in whole.opened(0, 3).members:
        assert next(iter(family.values())) == 1
        turns = {whole.members[0][channel] * sign for channel, sign in family.items()}
        assert len(turns) == 1  # the same, or all turned round


def test_channels_alone_are_the_neurons_of_before() -> None:
    wanted = effects_of(ng.Study(perceptron(), X, 1, **QUIET), "0")
    study = ng.Study(perceptron(), X, 1, basis={"0": Clusters(9)}, **QUIET)
    order = [unit[0] for unit in found_in(study, "0").units]
    np.testing.assert_allclose(effects_of(study, "0"), wanted[order], rtol=1e-9)


def test_circuits_of_families(tmp_path: Path) -> None:
    model, basis = perceptron(), {"0": Clusters(4), "2": Clusters(2, samples=40)}
    study = ng.Study(model, X, 1, basis=basis, **QUIET)
    circuit = study.search(keep="top:2")
    assert circuit.audited.agrees
    assert set(circuit.neurons()["name"]) & {"0 family 0", "0 family 1", "0 family 2"}
    known = circuit.provenance["options"]["basis"]
    assert known == {
        "0": {"kind": "clusters", "count": 4, "samples": 512, "of": "target"},
        "2": {"kind": "clusters", "count": 2, "samples": 40, "of": "target"},
    }
    # As if they had been given.
    given = {layer: Families(found_in(study, layer).members) for layer in ("0", "2")}
    again = ng.Study(model, X, 1, basis=given, **QUIET)
    for scorer in ("exact", "gradient"):
        pd.testing.assert_frame_equal(
            study.score(scorer=scorer).table, again.score(scorer=scorer).table
        )
    curve = study.faithfulness(study.score(), ablations=["mean"], draws=1)
    assert np.isfinite(curve.draws["value"]).all()
    assert study.strongest_paths(3).paths
    circuit.save(tmp_path / "x.circuit")
    attached = ng.load(tmp_path / "x.circuit").attach(model, X, basis=basis)
    assert [p.effect for p in attached.paths(3)] == pytest.approx(
        [p.effect for p in circuit.paths(3)], rel=1e-9
    )
    # One of them opened: the others are as they were.
    families = study.find_basis("0", basis["0"])
    opened = ng.Study(model, X, 1, basis={**given, "0": families.opened(0)}, **QUIET)
    np.testing.assert_allclose(effects_of(opened, "0")[2:], effects_of(study, "0")[1:], rtol=1e-9)


@pytest.mark.parametrize("name", ["resnet", "gpt2", "encoder_masked"])
def test_families_are_found_in_maps_and_sequences(name: str) -> None:
    network = zoo.WHOLE[name](0)
    data = as_data(network.inputs(23, 1))
    layers = ng.layer_graph(network.model, data)
    layer = next(
        n
        for n, d in layers.nodes(data=True)
        if layers.out_degree(n) and d["neurons"] > 2 and d["type"] != "Input"
    )
    options: dict[str, Any] = {"reference": 4, "progress": False}
    options |= {"basis": {layer: Clusters(3, samples=8)}}
    studies = [ng.Study(network.model, data, network.target, **options) for _ in range(2)]
    one, other = (study.score(scorer="exact").table for study in studies)
    assert len(one[one["layer"] == layer]) == 3
    pd.testing.assert_frame_equal(one, other)  # signs and order are always the same
    assert studies[0].audit().agrees


def test_families_at_random_are_of_equal_sizes() -> None:
    rows, slopes = rows_and_slopes()
    draws = [RandomFamilies(4, seed=seed).find(rows, slopes) for seed in (0, 0, 1)]
    assert sorted(map(len, draws[0].units)) == [2, 2, 2, 3]
    assert draws[0].members == draws[1].members != draws[2].members
    done = ((rows - rows.mean(0)) * slopes).abs().sum(0)
    strengths = [float(done[unit].sum()) for unit in draws[0].units]
    assert strengths == sorted(strengths, reverse=True)


def test_fewer_samples_than_families_will_do() -> None:
    study = ng.Study(perceptron(), X, 1, basis={"0": Clusters(5, samples=3)}, **QUIET)
    assert len(found_in(study, "0").units) == 5


def test_a_layer_of_one_neuron_is_a_family() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    study = ng.Study(model, X, None, basis={"0": Clusters(1)}, **QUIET)
    assert found_in(study, "0").members == [{0: 1}]


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_what_does_nothing_is_one_family_until_it_must_open(count: int) -> None:
    rows, slopes = X @ torch.randn(4, 8, dtype=F64), torch.ones(60, 8, dtype=F64)
    rows[:, 2], slopes[:, [4, 7]] = 5.0, 0
    families = Clusters(count).find(rows, slopes).units
    silent = [unit for unit in families if {2, 4, 7} & set(unit)]
    assert families[-len(silent) :] == silent
    assert sorted(itertools.chain(*silent)) == [2, 4, 7]
    assert len(silent) == max(1, count - 5)


class Blind(nn.Module):
    """A target that one layer does not reach by gradients, and a layer that never varies."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 1)
        with torch.no_grad():
            self.two.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.one(x).detach(), self.two(x)], 1))
        return found


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        ({"one": Clusters(4)}, "layer 'one': there are 3 channels, fewer than count=4 families"),
        ({"one": Clusters(2)}, "layer 'one': no channel does anything to the target"),
        ({"two": Clusters(2)}, "layer 'two': no channel does anything to the target"),
    ],
)
def test_where_no_families_are_is_told(basis: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        _ = ng.Study(Blind().double(), X, None, basis=basis, **QUIET).layer_graph


class Root(nn.Module):
    """It adds the root of 0, which has no finite gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x).sqrt()


@pytest.mark.parametrize("kind", [Clusters, ng.Active])
def test_gradients_that_are_not_finite_are_told(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3), Root(), nn.Linear(3, 1)).double()
    study = ng.Study(model, X, None, basis={"0": kind(2)}, **QUIET)
    with pytest.raises(OptionError, match="layer '0': gradients of the target by it are NaN"):
        _ = study.layer_graph


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"family": 2}, "family=2: there are 2 families"),
        ({"family": -1}, "family=-1"),
        ({"family": 0, "into": 4}, "into=4, but family 0 has 3 channels"),
        ({"family": 1}, "into=2, but family 1 has 1 channel:"),
        ({"family": 0, "into": 0}, "into=0"),
        ({"family": 0}, "family 0 was given, not found, .* pass into=3"),
    ],
)
def test_what_cannot_be_opened_is_told(asked: dict[str, int], message: str) -> None:
    families = Families([{0: 1, 2: -1, 3: -1}, {1: 1}])
    assert families.opened(0, 3).members == [{0: 1}, {2: 1}, {3: 1}, {1: 1}]
    with pytest.raises(OptionError, match=message):
        families.opened(**asked)


@pytest.mark.parametrize("given", [{"count": 0}, {"count": 2, "samples": 1}])
def test_numbers_that_mean_nothing_are_told(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"count=|samples="):
        Clusters(**given)
