"""Resampling: where the values come from that neurons move from, and what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.cli.option_values import read_contrast
from neurograph.effects.contrast import Contrast, Counterfactual, Quantiles, Resample, as_contrast
from neurograph.effects.resampling import draw_donors
from neurograph.errors import OptionError
from neurograph.model.observe import input_tensors
from neurograph.model.positions import attended
from neurograph.questions.study import Study
from tests import zoo
from tests.rasp import likeness

SIZE, LENGTH = 6, 5


class Tokens(nn.Module):
    """Embeddings of tokens and of positions, then something to read."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(9, 3), nn.Embedding(LENGTH, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.place(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.token(ids) + places)).sum(1)


def sentences(rows: int, first: int = 0) -> Tensor:
    """Token ids that begin with one and the same."""
    ids = torch.randint(1, 9, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = first
    return ids


def study_of(model: nn.Module, X: Any, contrast: Any, **options: Any) -> Study:
    told = {"reference": SIZE, "progress": False, **options}
    return Study(model, X, lambda out, _: out[:, 0], contrast=contrast, **told)


def low(study: Study, layer: str) -> Tensor:
    """What a layer's rows move from, in their own shape."""
    shape = study.experiment.recording.layers[layer].shape
    return study.experiment.levels(layer)[0].view(-1, *shape)


@pytest.mark.parametrize("size", [2, 3, 8, 33])
def test_everybody_takes_from_one_and_gives_to_one(size: int) -> None:
    donors = draw_donors(size, 5)
    assert sorted(donors.tolist()) == list(range(size))
    assert (donors != torch.arange(size)).all()
    assert torch.equal(donors, draw_donors(size, 5))


def test_without_positions_it_is_patching_from_another_sample() -> None:
    sample = zoo.attention(4, 2, 0, torch.float64)
    X = sample.data(20, 0)
    resampled = study_of(sample.model, X, Resample(positions=False))
    places = list(resampled.provenance["data"]["reference"])
    twins = X.clone()
    twins[places] = X[places][draw_donors(SIZE, 0)]
    patched = study_of(sample.model, X, Counterfactual(twins))
    for layer in sample.layers:
        wanted = patched.experiment.levels(layer)
        torch.testing.assert_close(resampled.experiment.levels(layer), wanted)


def test_values_come_from_positions_that_vary_and_constants_stay() -> None:
    model, ids = Tokens(), sentences(30)
    study = study_of(model, ids, "resample")
    own = ids[list(study.provenance["data"]["reference"])]
    assert (own[:, 1:] != own[:1, 1:]).any(0).all()
    found, donors = low(study, "token"), draw_donors(SIZE, 0).tolist()
    with torch.no_grad():
        assert torch.equal(found[:, 0], model.token(own)[:, 0])
        for sample, donor in enumerate(donors):
            given = model.token(own[donor, 1:])
            for value in found[sample, 1:]:
                assert (value == given).all(1).any()  # all channels from one place
        assert not torch.equal(found[:, 1:], model.token(own[donors])[:, 1:])


def test_what_is_the_same_in_all_samples_changes_places() -> None:
    model = Tokens()
    found = low(study_of(model, sentences(30), "resample"), "place")
    table = model.place.weight.detach()
    which = (found[:, :, None] == table).all(3)
    assert (which.sum(2) == 1).all()
    assert which.any(1).any(0).all()  # every row of the table arrives somewhere
    assert not torch.equal(found[0], found[1])
    kept = low(study_of(model, sentences(30), Resample(positions=False)), "place")
    assert torch.equal(kept, table.expand_as(kept))


def test_a_constant_is_one_up_to_what_hardly_varies() -> None:
    """A BOS token that has seen others differs in its last bits, and is still the same."""

    class Leaky(Tokens):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.token(ids)
            return self.head(x + 1e-6 * x.mean(1, keepdim=True)).sum(1)

    model = Leaky()
    study = study_of(model, sentences(30), "resample", layers=["head:input", "head"])
    actual = study.experiment.recording.main("head:input")
    assert actual[:, 0].std(0).max() > 0
    assert torch.equal(low(study, "head:input")[:, 0], actual[:, 0])


def test_padding_gives_nothing_and_stays() -> None:
    network = zoo.NETWORKS["bert"](0)
    arguments = network.inputs(12, 1)
    length = arguments["input_ids"].shape[1]
    ends = torch.randint(1, length + 1, (12,), generator=torch.Generator().manual_seed(2))
    arguments["attention_mask"] = (torch.arange(length) < ends[:, None]).long()
    for contrast in (Resample(), Resample(positions=False)):
        options = dict(contrast=contrast, reference=12, progress=False, **network.options)
        study = Study(network.model, dict(arguments), network.target, **options)
        recording, donors = study.experiment.recording, draw_donors(12, 0).tolist()
        inputs, seen = input_tensors(network.model, recording.batch), 0
        for name, layer in recording.layers.items():
            real = attended(inputs, layer)
            if real is None or not layer.neurons:
                continue
            actual, found = recording.main(name), low(study, name)
            assert torch.equal(found[~real], actual[~real])
            for sample, donor in enumerate(donors):
                given = torch.cat([actual[donor][real[donor]], actual[sample]])
                assert all((value == given).all(1).any() for value in found[sample])
            seen += int((found != actual).any())
        assert seen > 3


@pytest.mark.parametrize("positions", ["all", "last", "each", 2])
def test_any_position_can_move(positions: Any) -> None:
    model, ids = Tokens(), sentences(30)
    found = ng.search(
        model,
        (ids, model(ids).detach()),
        likeness,
        contrast="resample",
        positions=positions,
        layers=["token", "place"],
        keep="top:50",
        progress=False,
    )
    layers = set(found.neurons()["layer"])
    # Of a single position nothing can be told apart from the rest but by other positions.
    assert layers == {"token", "place"}


def test_runs_repeat_and_seeds_differ() -> None:
    model, ids = Tokens(), sentences(30)
    first, again = (low(study_of(model, ids, "resample", seed=3), "token") for _ in range(2))
    assert torch.equal(first, again)
    same = {"reference": ids[:SIZE]}
    one, other = (low(study_of(model, ids, "resample", seed=s, **same), "token") for s in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("contrast", ["resample", "pooled", Resample(positions=False)])
def test_a_file_says_which_contrast_it_was(contrast: str | Contrast, tmp_path: Path) -> None:
    model, ids = Tokens(), sentences(30)
    data = ids, model(ids).detach()
    options: dict[str, Any] = {"layers": ["token", "place", "head"], "progress": False}
    circuit = ng.search(model, data, likeness, contrast=contrast, **options)
    told = circuit.provenance["options"]["contrast"]
    assert told["type"] == type(as_contrast(contrast)).__name__
    circuit.save(tmp_path / "x.circuit")
    attached = ng.load(tmp_path / "x.circuit").attach(model, data, target=likeness)
    path = circuit.strongest[0]
    (measured,) = attached.measure([path.neurons])
    assert measured.effect == pytest.approx(path.effect, rel=1e-9)


def test_one_sample_has_nobody_to_take_from() -> None:
    sample = zoo.mlp((3, 4, 2), "tanh", False, 0, torch.float64)
    with pytest.raises(OptionError, match="pass reference=2"):
        ng.search(
            sample.model, sample.data(9, 0), 0, contrast="resample", reference=1, progress=False
        )


def test_pooled_quantiles_are_of_all_positions_together() -> None:
    model, ids = Tokens(), sentences(30)
    study = study_of(model, ids, Quantiles((0.25, 0.75), pooled=True))
    table = model.place.weight.detach().numpy()
    got = study.experiment.levels("place").view(2, LENGTH, 3)
    wanted = np.quantile(table, [0.25, 0.75], axis=0)
    np.testing.assert_allclose(got, np.broadcast_to(wanted[:, None], got.shape), rtol=1e-5)
    values = study.experiment.recording.main("token").flatten(0, 1).numpy()
    got = study.experiment.levels("token").view(2, LENGTH, 3)
    wanted = np.quantile(values, [0.25, 0.75], axis=0)
    np.testing.assert_allclose(got[:, 3], wanted, rtol=1e-5)


def test_pooled_quantiles_leave_padding_out() -> None:
    network, arguments = zoo.NETWORKS["bert"](0), zoo.NETWORKS["bert"](0).inputs(8, 1)
    arguments["attention_mask"][:, -1] = 0
    given = {"contrast": "pooled", "reference": 8, "progress": False, **network.options}
    study = Study(network.model, dict(arguments), network.target, **given)
    layer = next(n for n, d in study.experiment.recording.layers.items() if d.type == "Embedding")
    values = study.experiment.recording.main(layer)[:, :-1].flatten(0, 1)
    wanted = np.quantile(values.numpy(), [0.05, 0.95], axis=0)
    got = study.experiment.levels(layer)[..., : values.shape[1]]  # of the first position
    np.testing.assert_allclose(got, np.broadcast_to(wanted[:, None], got.shape), rtol=1e-9)
    assert len(ng.score(network.model, dict(arguments), network.target, **given).table) > 0


def test_it_has_a_name_everywhere() -> None:
    assert as_contrast(read_contrast("resample")) == Resample()
    assert as_contrast(read_contrast("pooled")) == Quantiles(pooled=True)
    model, ids = Tokens(), sentences(30)
    scores = ng.score(model, (ids, model(ids).detach()), likeness, contrast="resample")
    assert scores.provenance["options"]["contrast"] == {"type": "Resample", "positions": True}
    assert (scores.table["effect"] >= 0).all()
