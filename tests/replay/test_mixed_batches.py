"""Models that mix the samples of a batch: it is said, and effects are as hooks have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.effects.exact import total_effects
from neurograph.errors import ModelError
from neurograph.preparation.base_study import BaseStudy
from tests.situations.hooked import by_hooks, first, scored


class Centred(nn.Module):
    """Takes the batch's mean off what a layer returns, or does not."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.one, self.head, self.mixes = nn.Linear(3, 4), nn.Linear(4, 2), mixes

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.head(torch.tanh(hidden - hidden.mean(0) if self.mixes else hidden))


def test_that_samples_of_a_batch_are_mixed_is_said() -> None:
    X = torch.rand(40, 3)
    for mixes in (True, False):
        circuit = ng.search(Centred(mixes), X, 1, reference=8, progress=False)
        assert any("others of its batch" in note for note in circuit.notes) is mixes


class Company(nn.Module):
    """What a sample gets depends on who shares its batch, not on any mean over it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one, self.head, self.kind = nn.Linear(4, 6), nn.Linear(6, 2), kind

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.one(x))
        total = hidden.sum(1)
        if self.kind == "ranks":
            chosen = total.argsort().argsort() < len(x) // 2
        elif self.kind == "gate":  # closed in the data, opened for all by what a move makes of one
            chosen = 1 + (hidden.max() > 1.45).expand(len(x))
        elif self.kind == "median":
            chosen = total < total.median()
        else:  # who comes first is served, which the first half by itself would not show
            chosen = (hidden[:, 0] > 0).cumsum(0) <= {"first": 8, "most": 19}[self.kind]
        return self.head(hidden) * chosen[:, None]


@pytest.mark.parametrize("kind", ["ranks", "median", "first", "most", "gate"])
def test_interventions_do_not_share_a_batch_where_samples_influence_each_other(kind: str) -> None:
    torch.manual_seed(0)
    model = Company(kind).double()
    X = torch.randn(40, 4, dtype=torch.float64)
    found = scored(model, (X,))
    for layer in ("input", "one"):
        wanted = by_hooks(model, (X,), layer, first)
        assert found[layer] == pytest.approx(wanted, abs=1e-9)
        assert any(abs(effect) > 1e-3 for effect in wanted.values())
    if kind == "gate":
        return  # nothing mixes samples while nothing moves
    notes = ng.score(model, X, 1, reference=40, progress=False).provenance["notes"]
    assert any("others of its batch" in note for note in notes)


class Threshold(nn.Module):
    """Takes the batch's mean off, and shows of it only on which side of it a sample is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x / 4 + (x > x.mean(0)).to(x))


@pytest.mark.parametrize("watched", [True, False])
def test_a_mean_behind_a_threshold_is_found(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing shows it at rest but the operations; else it shows when something moves.

    What was measured before that is measured again.
    """
    if not watched:
        monkeypatch.setattr("neurograph.effects.experiment.pools_samples", lambda _replay: False)
    model = Threshold().double()
    # Every half of the samples has about the same mean.
    X = torch.tensor([-1.0, 1.0]).double().repeat(8)[:, None] + torch.randn(16, 3).double() / 100
    wanted = by_hooks(model, (X,), "input", first)
    study = ng.Study(model, X, 1, reference=16, progress=False)
    assert not study.experiment.recording.mixes
    scores = study.score(of="neurons")
    found = scores.table.query("layer == 'input'").set_index("index")["effect"].to_dict()
    assert found == pytest.approx(wanted, abs=1e-9)
    assert any("interventions run one by one" in note for note in scores.provenance["notes"])

    asked: list[int] = []

    def question() -> torch.Tensor:
        asked.append(1)
        with other.open() as experiment:
            return total_effects(experiment, "input", [0, 1, 2]).effect

    other = BaseStudy(model, X, 1, reference=16, progress=False)
    assert other.answer(question).tolist() == pytest.approx(list(wanted.values()), abs=1e-9)
    assert len(asked) == (1 if watched else 2)
    assert other.answer(question).tolist() == pytest.approx(list(wanted.values()), abs=1e-9)
    assert len(asked) == (2 if watched else 3)


class Skipped(Company):
    """A residual sum, so that the target sees a layer beside those who read it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x[:, :2]


def test_two_runs_in_one_batch_are_refused_where_they_would_influence_each_other() -> None:
    torch.manual_seed(0)
    X = torch.randn(40, 4)
    options: dict[str, Any] = {"reference": 40, "progress": False}
    with pytest.raises(ModelError, match=r"'one' .*two runs in one batch.*depends on the others"):
        ng.search(Skipped("median"), X, 1, **options)
    totals = ng.score(Skipped("median"), X, 1, **options)
    assert totals.audit().agrees


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_target_that_is_no_number_is_told(value: float) -> None:
    with pytest.raises(ng.NeurographError, match="NaN"):
        ng.score(Centred(False), torch.rand(40, 3), lambda o, _: o[:, 0] * value, progress=False)
