"""Neurons in any basis: the same numbers as channels where those are the basis, or made to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.errors import OptionError
from neurograph.model.basis import Directions, Families
from neurograph.model.directions import Active, Principal
from tests import zoo
from tests.case import as_data

F64 = torch.float64
SCORERS = ("exact", "gradient", "integrated", "hybrid", "auto")


def orthogonal(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0]
    return found


class Own(nn.Module):
    """What a module computes, with its channels turned: a layer, as it has a parameter."""

    def __init__(self, module: nn.Module, turn: Tensor, dim: int) -> None:
        super().__init__()
        self.turn, self.dim = nn.Parameter(turn), dim
        self.run = [module]  # hidden, so that the module itself is no layer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = self.run[0](*args, **kwargs)
        return (found.movedim(self.dim, -1) @ self.turn.T).movedim(-1, self.dim)


class Turned(nn.Module):
    """A module whose channels are turned, and turned back by glue: its neurons are directions."""

    def __init__(self, module: nn.Module, turn: Tensor, dim: int) -> None:
        super().__init__()
        self.own, self.dim = Own(module, turn, dim), dim

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        turned: Tensor = self.own(*args, **kwargs)
        return (turned.movedim(self.dim, -1) @ self.own.turn).movedim(-1, self.dim)


def table(study: ng.Study, renamed: dict[str, str], **options: Any) -> pd.Series:
    """Effects by place, layers by the names that they have in the model that is as it was."""
    found = study.score(**options).table.copy()
    ends = [name for name in found if str(name).endswith(("layer", "index", "position"))]
    for name in (n for n in ends if str(n).endswith("layer")):
        found[name] = found[name].replace(renamed)
    return found.set_index(ends)["effect"].sort_index()


def perceptron(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2)
    ).double()


X = torch.randn(50, 4, generator=torch.Generator().manual_seed(3), dtype=F64)


# -- directions that are channels ------------------------------------------------------------------


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("of", ["neurons", "edges"])
def test_unit_vectors_are_the_neurons(scorer: str, of: Any) -> None:
    options: dict[str, Any] = {"reference": 8, "progress": False}
    plain = ng.Study(perceptron(), X, 1, **options)
    based = ng.Study(perceptron(), X, 1, basis={"0": torch.eye(7), "2": np.eye(6)}, **options)
    wanted = table(plain, {}, of=of, scorer=scorer)
    found = table(based, {}, of=of, scorer=scorer)
    np.testing.assert_allclose(found[wanted.index], wanted, rtol=1e-9, atol=1e-12)
    assert (found.drop(wanted.index).abs() < 1e-12).all()  # of the remainder, which is nothing


@pytest.mark.parametrize("contrast", ["quantiles", "mean", "zero", "resample"])
@pytest.mark.parametrize("background", ["data", "mean", "zero"])
def test_the_remainder_of_unit_vectors_is_the_group_of_all_others(
    contrast: Any, background: Any
) -> None:
    options: dict[str, Any] = {"reference": 8, "progress": False}
    options |= {"contrast": contrast, "background": background}
    groups = {"0": [[2], [5], [0, 1, 3, 4, 6]]}
    wanted = table(ng.Study(perceptron(), X, 1, groups=groups, **options), {})
    basis = {"0": torch.eye(7)[[2, 5]] * torch.tensor([[2.0], [0.5]])}  # whatever their length
    found = table(ng.Study(perceptron(), X, 1, basis=basis, **options), {})
    assert list(found.index) == list(wanted.index)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_families_of_one_sign_are_groups_and_a_minus_turns_a_channel_round() -> None:
    options: dict[str, Any] = {"reference": 8, "progress": False}
    members: list[dict[int, float]] = [{2: 1, 0: 1}, {1: 1, 3: 1, 4: 1, 5: 1, 6: 1}]
    wanted = table(
        ng.Study(perceptron(), X, 1, groups={"0": [[2, 0], [1, 3, 4, 5, 6]]}, **options), {}
    )
    found = table(ng.Study(perceptron(), X, 1, basis={"0": Families(members)}, **options), {})
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    # The same network with channel 0 turned round, and read turned round.
    model = perceptron()
    with torch.no_grad():
        model[0].weight[0] *= -1
        model[0].bias[0] *= -1
        model[2].weight[:, 0] *= -1
    members[0][0] = -1  # tanh is odd: what comes behind is the same
    turned = table(ng.Study(model, X, 1, basis={"0": Families(members)}, **options), {})
    np.testing.assert_allclose(turned, wanted, rtol=1e-9, atol=1e-12)


# -- directions that are made channels -------------------------------------------------------------


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("of", ["neurons", "edges"])
def test_directions_are_the_neurons_of_a_model_that_was_turned(scorer: str, of: Any) -> None:
    turns = {"0": orthogonal(7), "2": orthogonal(6, 1)}
    model = perceptron()
    turned = nn.Sequential(
        Turned(model[0], turns["0"], -1), model[1], Turned(model[2], turns["2"], -1), *model[3:]
    )
    options: dict[str, Any] = {"reference": 8, "progress": False}
    wanted = table(
        ng.Study(turned, X, 1, **options), {"0.own": "0", "2.own": "2"}, of=of, scorer=scorer
    )
    found = table(ng.Study(model, X, 1, basis=turns, **options), {}, of=of, scorer=scorer)
    np.testing.assert_allclose(found[wanted.index], wanted, rtol=1e-9, atol=1e-11)
    assert (found.drop(wanted.index).abs() < 1e-11).all()


def replaced(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
    return model


@pytest.mark.parametrize("positions", ["all", "last", "each"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet", nn.Conv2d), ("gpt2", "c_fc"), ("vit", nn.Linear)],
)
def test_directions_of_maps_and_sequences(name: str, kind: Any, positions: Any) -> None:
    """A direction of channels: at all positions, at one, at each."""
    made = [zoo.WHOLE[name](0) for _ in range(2)]
    data, target = as_data(made[0].inputs(12, 1)), made[0].target
    options: dict[str, Any] = {"reference": 3, "progress": False, "positions": positions}
    path, module = next(
        (p, m)
        for p, m in made[0].model.named_modules()
        if (p.endswith(kind) if isinstance(kind, str) else isinstance(m, kind))
        and ng.layer_graph(made[0].model, data).out_degree(p)
    )
    channels = ng.layer_graph(made[0].model, data).nodes[path]["neurons"]
    turn = orthogonal(channels).to(next(module.parameters()).dtype)
    dim = 1 if isinstance(module, nn.Conv2d) else -1
    other = replaced(made[1].model, path, Turned(made[1].model.get_submodule(path), turn, dim))
    wanted = table(ng.Study(other, data, target, **options), {f"{path}.own": path})
    found = table(ng.Study(made[0].model, data, target, basis={path: turn}, **options), {})
    # Which of the input's dimensions are channels, a convolution that reads it tells; it is hidden.
    wanted = wanted[wanted.index.get_level_values("layer") != "input"]
    own = wanted[wanted.index.get_level_values("layer") == path]
    assert len(own) >= channels
    assert own.abs().max() > 0
    scale = float(wanted.abs().max())
    exact = turn.dtype == F64
    np.testing.assert_allclose(
        found[wanted.index], wanted, rtol=1e-4, atol=(1e-9 if exact else 3e-5) * scale
    )


# -- what they add up to ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 6])
def test_directions_and_the_remainder_add_up_where_the_model_is_linear(count: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 6), nn.Linear(6, 1)).double()
    basis = {"1": torch.randn(count, 6, dtype=F64)}  # neither orthogonal nor of one length
    study = ng.Study(model, X, None, basis=basis, contrast="zero", reference=16, progress=False)
    effects = table(study, {})["1"]
    assert len(effects) == count + 1
    reference = X[study.provenance["data"]["reference"]]
    wanted = (model(reference) - model[2].bias).mean().item()
    assert effects.sum() == pytest.approx(wanted, rel=1e-9)


def test_effects_of_a_direction_are_those_of_a_hook() -> None:
    model, direction = perceptron(), torch.tensor([[1.0, 2, 0, -1, 0, 0.5, 0]], dtype=F64)
    study = ng.Study(model, X, 1, basis={"0": direction}, reference=8, progress=False)
    found = table(study, {})["0"]
    rows = model[0](X)
    weights = direction[0] / direction.square().sum()
    ends = torch.quantile(rows @ weights, torch.tensor([0.05, 0.95], dtype=F64))
    reference = X[study.provenance["data"]["reference"]]
    means = []
    for end in ends:
        hook = model[0].register_forward_hook(
            lambda _m, _a, out, end=end: out + (end - out @ weights)[:, None] * direction[0]
        )
        means.append(model(reference)[:, 1].mean().item())
        hook.remove()
    assert found[0] == pytest.approx(means[1] - means[0], rel=1e-9)


# -- everything else that is asked of neurons ------------------------------------------------------


def test_circuits_of_directions() -> None:
    model = perceptron()
    study = ng.Study(
        model, X, 1, basis={"0": orthogonal(7)[:3], "2": orthogonal(6)[:2]}, progress=False
    )
    circuit = study.search(keep="top:2")
    assert circuit.audited.agrees
    names = set(circuit.neurons()["name"])
    assert {"0 direction 0", "2 remainder"} & names
    assert all(path.measured for path in circuit.paths(5))
    found = study.faithfulness(circuit, ablations=["mean", "zero"], draws=2, sizes=(0.5, 1.0))
    assert np.isfinite(found.draws["value"]).all()
    curves = study.responses(neurons=[("0", 0), ("0", 3)])
    assert len(curves.table)
    assert study.strongest_paths(5).paths
    assert study.profile.nodes["0"]["mean"].shape == (10,)
    assert "direction" in str(circuit.provenance["options"]["basis"])


def test_a_circuit_knows_that_its_neurons_are_of_a_basis(tmp_path: Path) -> None:
    model, basis = perceptron(), {"0": orthogonal(7)[:3]}
    circuit = ng.search(model, X, 1, basis=basis, keep="top:2", reference=16, progress=False)
    # What the circuit's own study has, functions take from it.
    found = ng.faithfulness(model, X, 1, circuit, ablations=["mean"], draws=1, progress=False)
    study = ng.Study(model, X, 1, basis=basis, reference=128, contrast="mean", progress=False)
    again = study.faithfulness(circuit, ablations=["mean"], draws=1)
    pd.testing.assert_frame_equal(found.draws, again.draws)
    circuit.save(tmp_path / "x.circuit")
    loaded = ng.load(tmp_path / "x.circuit")
    assert loaded.provenance["options"]["basis"] == circuit.provenance["options"]["basis"]
    with pytest.raises(OptionError, match="of a basis, which no file holds: pass basis="):
        loaded.attach(model, X)
    with pytest.raises(OptionError, match=r"basis= says .* but the circuit was found with"):
        loaded.attach(model, X, basis={"0": orthogonal(7)[:2]})
    attached = loaded.attach(model, X, basis=basis)
    assert [p.effect for p in attached.paths(3)] == pytest.approx(
        [p.effect for p in circuit.paths(3)], rel=1e-9
    )
    with pytest.raises(OptionError, match="the neurons that are ranked are of a basis"):
        ng.faithfulness(model, X, 1, loaded)
    with (
        pytest.raises(OptionError, match="neurons in '0' are of a basis, not channels"),
        ng.mask_neurons(model, circuit),
    ):
        pass


def test_directions_of_two_models_are_matched_by_activation() -> None:
    """The same directions in another order are found again."""
    basis = orthogonal(7)[:3]
    options: dict[str, Any] = {"keep": "top:3", "reference": 16, "progress": False}
    a = ng.search(perceptron(), X, 1, basis={"0": basis}, **options)
    b = ng.search(perceptron(), X, 1, basis={"0": basis[[2, 0, 1]]}, **options)
    pairs = ng.compare(a, b, match="activation", draws=0).matching.pairs()
    own = pairs[pairs["layer_a"] == "0"]
    assert dict(zip(own["index_a"], own["index_b"], strict=True)) == {0: 1, 1: 2, 2: 0, 3: 3}


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (torch.eye(3), "says not of which layers"),
        ({"nowhere": torch.eye(7)}, "matches no layer; there are input, 0"),
        ({"0": torch.eye(3)}, "layer '0' is of 3 channels, but the layer has 7"),
        ({"0": torch.full((1, 7), torch.nan)}, "layer '0': directions hold NaN"),
        ({"0": torch.ones(2, 7)}, "layer '0': of 2 directions some are sums of others"),
        ({"0": torch.zeros(1, 7)}, "of 1 directions some are sums of others, or 0"),
        ({"0": torch.ones(8, 7)}, "only 1 are independent"),
        ({"0": torch.ones(7)}, r"shape \(7,\): pass \[directions, channels\]"),
        ({"0": "all"}, "no matrix of numbers"),
        ({"0": Families([{0: 1, 1: 1}])}, "is of 2 channels, but the layer has 7"),
        ({"0": Families([{0: 1}, {0: 1}])}, "channel 0 twice"),
        ({"0": Families([{0: 2.0}])}, "sign of channel 0 is 2.0"),
        ({"0": Families([{1: 1}])}, "families must be of all channels"),
    ],
)
def test_what_is_no_basis_is_told(basis: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        _ = ng.Study(perceptron(), X, 1, basis=basis, progress=False).layer_graph


def test_groups_and_profiles_do_not_go_with_a_basis() -> None:
    options: dict[str, Any] = {"basis": {"0": Directions(torch.eye(7)[:2])}, "progress": False}
    with pytest.raises(OptionError, match="layer '0' has groups= and basis="):
        _ = ng.Study(perceptron(), X, 1, groups={"0": 7}, **options).layer_graph
    with pytest.raises(OptionError, match="profile= has statistics of channels"):
        _ = ng.Study(perceptron(), X, 1, profile=ng.profile(perceptron(), X), **options).layer_graph


# -- directions that are found ---------------------------------------------------------------------


def test_the_active_direction_is_what_the_target_reads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    study = ng.Study(
        model, X, None, basis={"0": Active(1)}, contrast="zero", reference=16, progress=False
    )
    basis = study.experiment.recording.layers["0"].basis
    assert isinstance(basis, Directions)
    # What it reads is the weights of the next layer, whatever the covariance.
    reading, weight = basis.reading[:, 0], model[1].weight[0]
    assert abs(torch.cosine_similarity(reading, weight, dim=0).item()) == pytest.approx(1, abs=1e-9)
    effects = table(study, {})["0"]
    assert abs(effects[1]) < 1e-9 < abs(effects[0])  # the remainder does nothing
    rows = model[0](X)
    rises = torch.autograd.grad(model[1:](rows).sum(), rows)[0] @ basis.writing[0]
    assert rises.sum() > 0
    places = pd.MultiIndex.from_tuples([("1", 0), ("0", 0), ("0", 1)])
    kept = pd.Series([3.0, 2.0, 1.0], places)  # the remainder last
    found = study.faithfulness(kept, ablations=["zero"], sizes=(0.67, 1.0), draws=0)
    own = found.draws.query("order == 'signed' and direction == 'keep' and components == 2")
    assert own["faithfulness"].item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("samples", [50, 5])
def test_active_directions_are_eigenvectors_of_whitened_gradients(samples: int) -> None:
    """By the definition, also where there are fewer samples than channels."""
    model = perceptron()
    rows = model[0](X[:samples])
    slopes = torch.autograd.grad(model[1:](rows)[:, 1].sum(), rows)[0]
    rows = rows.detach()
    found = Active(3).find(rows, slopes)
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / samples)
    half = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    wanted, axes = torch.linalg.eigh(half @ slopes.T @ slopes @ half)
    order = wanted.argsort(descending=True)[:3]
    for writing, axis in zip(found.writing, (half @ axes)[:, order].T, strict=True):
        gap = min((writing - axis).abs().max(), (writing + axis).abs().max())
        assert gap < 1e-6 * axis.abs().max()
    coordinates = found.coordinates(centred)[:, :3]
    np.testing.assert_allclose(coordinates.square().mean(0), 1, rtol=1e-6)  # whitened
    np.testing.assert_allclose(coordinates.T @ coordinates / samples, np.eye(3), atol=1e-6)


def test_principal_directions_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    rows = perceptron()[0](X).detach()
    found = Principal(3).find(rows, torch.zeros_like(rows)).writing.numpy()
    wanted = PCA(3).fit(rows.numpy()).components_
    np.testing.assert_allclose(np.abs((found * wanted).sum(1)), 1, rtol=1e-9)


@pytest.mark.parametrize("kind", [Active, Principal])
@pytest.mark.parametrize("name", ["resnet", "gpt2", "encoder_masked"])
def test_directions_are_found_in_maps_and_sequences(name: str, kind: type[Active]) -> None:
    network = zoo.WHOLE[name](0)
    data = as_data(network.inputs(23, 1))
    layers = ng.layer_graph(network.model, data)
    layer = next(
        n
        for n, d in layers.nodes(data=True)
        if layers.out_degree(n) and d["neurons"] > 2 and d["type"] != "Input"
    )
    options: dict[str, Any] = {"reference": 4, "progress": False}
    options |= {"basis": {layer: kind(2, samples=8)}}
    studies = [ng.Study(network.model, data, network.target, **options) for _ in range(2)]
    one, other = (table(study, {})[layer] for study in studies)
    assert len(one) == 3
    pd.testing.assert_series_equal(one, other)  # signs and order are always the same
    assert studies[0].audit().agrees
    described = studies[0].provenance["options"]["basis"][layer]
    assert described == {
        "kind": kind.__name__.lower(),
        "count": 2,
        "samples": 8,
        "of": "target",
    }


def test_fewer_samples_than_asked_for_are_told() -> None:
    options: dict[str, Any] = {"basis": {"0": Active(2)}, "reference": 4, "progress": False}
    assert not any(
        "directions were found" in n for n in ng.Study(perceptron(), X, 1, **options).notes
    )
    small = ng.Study(perceptron(), X, 1, memory="4KB", **options)
    (note,) = (n for n in small.notes if "directions were found" in n)
    assert "not 512: memory= has room for no more" in note


def test_models_of_one_batch_size_find_basis_too() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.view(10, 4))

    batches = list(X.split(10))
    study = ng.Study(Fixed(), batches, 1, basis={"0": Active(2)}, reference=10, progress=False)
    assert len(table(study, {}).filter(like="inner.0", axis=0)) == 3


def test_a_circuit_of_found_directions_is_attached_again(tmp_path: Path) -> None:
    model, basis = perceptron(), {"0": Active(2), "2": Principal(2)}
    circuit = ng.search(model, X, 1, basis=basis, progress=False)
    circuit.save(tmp_path / "x.circuit")
    attached = ng.load(tmp_path / "x.circuit").attach(model, X, basis=basis)
    assert [p.effect for p in attached.paths(3)] == [p.effect for p in circuit.paths(3)]


class Blind(nn.Module):
    """A target that one layer does not reach by gradients, and a layer that never varies."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 1)
        with torch.no_grad():
            self.two.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x).detach(), self.two(x)], 1))


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        ({"0": Principal(7)}, "layer '0': there are 4 directions in which the values vary"),
        ({"0": Active(5)}, "layer '0': there are 4 directions that move the target"),
        ({"0": Active(3, samples=3)}, "layer '0': there are 2 directions that move the target"),
        ({"2": Active(2)}, "layer '2': there are 1 directions that move the target"),
    ],
)
def test_more_directions_than_there_are_is_told(basis: Any, message: str) -> None:
    model = perceptron()
    if "2" in basis:  # behind it everything is linear: a single gradient
        model = nn.Sequential(model[0], model[1], model[2], model[4])
    study = ng.Study(model, X, 1, basis=basis, progress=False)
    with pytest.raises(OptionError, match=message):
        _ = study.layer_graph


@pytest.mark.parametrize(("layer", "kind"), [("one", Active), ("two", Active), ("two", Principal)])
def test_gradients_that_vanish_and_layers_that_do_not_vary(layer: str, kind: Any) -> None:
    study = ng.Study(Blind().double(), X, None, basis={layer: kind(1)}, progress=False)
    with pytest.raises(OptionError, match=rf"layer '{layer}': there are 0 directions"):
        _ = study.layer_graph


@pytest.mark.parametrize("given", [{"count": 0}, {"count": 1.5}, {"count": 1, "samples": 1}])
def test_numbers_that_mean_nothing_are_told(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"count=|samples="):
        Active(**given)


def test_readings_must_be_those_of_the_directions() -> None:
    Directions([[1.0, 0.0]], [[1.0, 5.0]]).coordinates(torch.ones(2))
    with pytest.raises(OptionError, match="readings= are not those"):
        Directions([[1.0, 0.0]], [[2.0, 5.0]]).coordinates(torch.ones(2))


def test_comparing_tells_which_signals_two_models_share() -> None:
    """The second model is the first with its hidden layers turned: nothing else is shared."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    second = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    second.load_state_dict(first.state_dict())
    turn = orthogonal(9)
    with torch.no_grad():
        second[0].weight.copy_(turn @ first[0].weight)
        second[0].bias.copy_(turn @ first[0].bias)
        second[1].weight.copy_(first[1].weight @ turn.T)
    options: dict[str, Any] = {"basis": {"0": Active(1)}, "reference": 20, "progress": False}
    circuits = [ng.Study(m, X, None, **options).search(keep="top:4") for m in (first, second)]
    found = ng.compare(*circuits, match="activation", draws=2)
    own = found.neurons().set_index("name").loc["0 direction 0"]
    assert own["status"] == "both"
    assert own["similarity"] == pytest.approx(1, abs=1e-9)
    assert own["effect_a"] == pytest.approx(own["effect_b"], rel=1e-6)
    line = f"0 direction 0 is 0 direction 0 in b: similarity 1.00, effects {own['effect_a']:+.3g}"
    assert line in repr(found)
    plain = [ng.search(m, X, None, reference=20, progress=False) for m in (first, second)]
    assert "similarity 1.00" not in repr(ng.compare(*plain, match="activation", draws=2))


def test_glue_may_view_maps_in_other_shapes() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(48, 1)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.conv(x)
            return self.fc(maps.view(len(x), 48))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, images = Viewing().double(), torch.rand(30, 1, 6, 6, dtype=F64)
    options: dict[str, Any] = {"reference": 5, "progress": False}
    based = ng.Study(model, images, None, basis={"conv": torch.eye(3, dtype=F64)}, **options)
    wanted = table(ng.Study(model, images, None, **options), {})
    for scorer in SCORERS:
        found = table(based, {}, scorer=scorer)
        np.testing.assert_allclose(found["conv"][:3], wanted["conv"], rtol=1e-9)
