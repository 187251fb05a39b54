"""The masking experiment where its outcome is known, and its arithmetic by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassF1Score,
)

import neurograph as ng
from neurograph.ablation.importance import at_random, by_effect
from neurograph.ablation.mask import mask_neurons
from neurograph.ablation.masking_curves import MaskingCurves, masking_curves
from neurograph.errors import DataError, OptionError
from tests import zoo

HOWS = ("zero", "mean", "resample")
MATTER = [("hidden", i) for i in (1, 4, 5, 8)]


class Planted(nn.Module):
    """Twelve hidden neurons, of which four carry the sign of the first input to the logit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.hidden, self.head = nn.Linear(3, 12), nn.Linear(12, 1, bias=False)
        matter = [index for _, index in MATTER]
        with torch.no_grad():
            self.hidden.weight[matter] = torch.tensor([2.0, 0.0, 0.0])
            self.hidden.bias[matter] = 0.0
            self.head.weight.zero_()
            self.head.weight[0, matter] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x)))


def planted_data(rows: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(rows, 3, generator=generator)
    X[:, 0] = torch.where(torch.arange(rows) % 2 == 0, X[:, 0].abs(), -X[:, 0].abs()) + 0.0
    return X, (X[:, 0] > 0).long()


def known() -> pd.Series:
    """Importance as it was planted."""
    index = pd.MultiIndex.from_tuples([("hidden", i) for i in range(12)], names=["layer", "index"])
    return pd.Series([float(key in MATTER) for key in index], index, name="truth")


def slopes(model: nn.Module, data: Any, target: Any, **options: Any) -> pd.Series:
    """Importance by gradient × activation."""
    options = {"scorer": "gradient", "contrast": "zero", "progress": False, **options}
    return by_effect(ng.score(model, data, target, **options))


def values(found: MaskingCurves, group: str, share: float, ranking: str = "truth") -> np.ndarray:
    table = found.draws.query("group == @group and share == @share and ranking == @ranking")
    return table["value"].to_numpy()


# -- where the outcome is known --------------------------------------------------------------------


@pytest.mark.parametrize("how", HOWS)
def test_only_important_neurons_cost_anything(how: Any) -> None:
    data = planted_data()
    found = masking_curves(
        Planted(), data, BinaryAccuracy(), known(), important=1 / 3, shares=(0.5, 1.0), how=how
    )
    assert found.baseline == 1.0
    assert found.important == {"truth": 4}
    assert (values(found, "unimportant", 0.5) == 1.0).all()
    assert (values(found, "unimportant", 1.0) == 1.0).all()
    ruined = values(found, "important", 1.0)
    if how == "resample":  # predictions of other samples: right by chance, 200 coins a draw
        assert (np.abs(ruined - 0.5) < 5 * (0.25 / 200) ** 0.5).all()
        assert len(set(ruined)) > 1
    else:  # the logit is the same for all samples
        assert (ruined == 0.5).all()
    damage = found.damage().loc["truth"]
    assert damage["unimportant"] == 0
    assert damage["difference"] == damage["important"] > damage["random"] >= 0


@pytest.mark.parametrize("scorer", ["exact", "gradient"])
def test_rankings_find_what_was_planted(scorer: Any) -> None:
    X, _ = planted_data()
    found = by_effect(ng.score(Planted(), X, 1, scorer=scorer, contrast="zero"))
    assert set(found.nlargest(4).index) == set(MATTER)
    assert (found.drop(index=MATTER) == 0).all()


@pytest.mark.parametrize("how", HOWS)
def test_a_whole_group_equals_masking_it_by_hand(how: Any) -> None:
    """At share 1 all important neurons are ablated, whatever is drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    X, y = torch.randn(90, 3), torch.randint(3, (90,))
    chosen = [("0", 1), ("2", 3), ("0", 4)]
    importance = at_random(slopes(model, X, 0).index)
    metric = MulticlassAccuracy(3, average="micro")
    found = masking_curves(
        model, (X, y), metric, importance, important=chosen, shares=[1.0], draws=3, how=how
    )
    assert found.baseline == pytest.approx(float((model(X).argmax(1) == y).float().mean()))
    got = values(found, "important", 1.0, "random")
    if how == "resample":
        assert len(got) == 3
        return
    with torch.no_grad(), mask_neurons(model, chosen, how, data=X):
        wanted = float((model(X).argmax(1) == y).float().mean())
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_every_value_is_that_of_some_set_of_the_group() -> None:
    """With one neuron at a time, draws are evenly those of the group's neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    X = torch.randn(40, 3)
    y = model(X).detach().flatten() + 0.1 * torch.randn(40)
    importance = slopes(model, X, 1)
    found = masking_curves(
        model, (X, y), MeanSquaredError(), importance, shares=[1 / 3], draws=60, important=0.5
    )
    order = importance.sort_values(ascending=False).index
    single = {}
    for neuron in order:
        with torch.no_grad(), mask_neurons(model, [neuron]):
            single[neuron] = float((model(X).flatten() - y).square().mean())
    groups = {"important": order[:3], "unimportant": order[3:], "random": order}
    for group, members in groups.items():
        got = values(found, group, 1 / 3, "effect")
        gaps = np.abs(got[:, None] - np.array([single[n] for n in members])[None])
        assert gaps.min(axis=1).max() < 1e-6
        counts = np.bincount(gaps.argmin(axis=1), minlength=len(members))
        assert stats.chisquare(counts).pvalue > 1e-3


# -- counts, draws and intervals -------------------------------------------------------------------


def curves(**options: Any) -> MaskingCurves:
    given: dict[str, Any] = {"important": 0.25, "draws": 4, "shares": (0.3, 0.6, 1.0)} | options
    # Of probabilities and labels the Brier score: every neuron that matters shows in it.
    return masking_curves(Planted(), planted_data(), MeanSquaredError(), known(), **given)


def test_as_many_neurons_in_every_group() -> None:
    found = curves(important=[("hidden", i) for i in range(9)])
    counts = found.draws.groupby(["group", "share"])["neurons"].unique()
    for group, share in counts.index:
        wanted = round(9 * share)
        if group == "unimportant":
            wanted = min(wanted, 3)
        assert counts[group, share].tolist() == [wanted]
    assert len(found.draws) == 3 * 3 * 4
    assert found.important == {"truth": 9}
    assert list(found.draws.columns) == "ranking group share neurons draw value".split()


def test_reproducible_by_seed() -> None:
    for how in ("zero", "resample"):
        one, other = curves(how=how), curves(how=how)
        pd.testing.assert_frame_equal(one.draws, other.draws)
        assert not one.draws.equals(curves(how=how, seed=1).draws)


def test_batches_do_not_matter() -> None:
    X, y = planted_data()
    whole = curves()
    loader = DataLoader(TensorDataset(X, y), batch_size=33)
    for data in (loader, [(X[:50], y[:50]), (X[50:], y[50:])], {"x": X, "labels": y}):
        found = masking_curves(
            Planted(),
            data,
            MeanSquaredError(),
            known(),
            important=0.25,
            draws=4,
            shares=(0.3, 0.6, 1.0),
            memory="20KB",
        )
        pd.testing.assert_frame_equal(found.draws, whole.draws)


def test_random_neurons_are_the_same_for_all_rankings() -> None:
    model, (X, y) = Planted(), planted_data()
    rankings = {
        "truth": known(),
        "chance": at_random(known().index, 1).sample(frac=1, random_state=0),
    }
    found = masking_curves(model, (X, y), MeanSquaredError(), rankings, shares=(0.5, 1.0))
    for share in (0.5, 1.0):
        one, other = (values(found, "random", share, name) for name in rankings)
        np.testing.assert_array_equal(one, other)
    assert values(found, "random", 0.5).std() > 0
    assert list(found.damage().index) == ["truth", "chance"]
    # Each ranking as if it were alone.
    for name in rankings:
        series = rankings[name]
        alone = masking_curves(
            model, (X, y), MeanSquaredError(), series.reindex(known().index), shares=(0.5, 1.0)
        )
        pd.testing.assert_frame_equal(
            alone.draws.drop(columns="ranking"),
            found.draws.query("ranking == @name").drop(columns="ranking").reset_index(drop=True),
        )


def made(values: dict[str, list[list[float]]], **options: Any) -> MaskingCurves:
    """Curves of given values: for each group, for each share, the draws."""
    rows = [
        ("c", group, share, 5, draw, value)
        for group, table in values.items()
        for share, line in zip((0.5, 1.0), table, strict=True)
        for draw, value in enumerate(line)
    ]
    table = pd.DataFrame(rows, columns="ranking group share neurons draw value".split())
    given: dict[str, Any] = {"higher_is_better": True} | options
    return MaskingCurves(table, 0.9, "m", how="zero", important={"c": 10}, **given)


VALUES = {
    "important": [[0.5, 0.6, 0.7], [0.2, 0.1, 0.4]],
    "unimportant": [[0.9, 0.9, 0.9], [0.8, 0.85, 0.95]],
    "random": [[0.7, 0.8, 0.9], [0.6, 0.65, 0.5]],
}


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_intervals_are_students(confidence: float) -> None:
    found = made(VALUES, confidence=confidence).summary()
    assert list(found.columns) == "ranking group share neurons mean low high".split()
    lines = found.set_index(["group", "share"])
    for group, table in VALUES.items():
        for share, line in zip((0.5, 1.0), table, strict=True):
            row = lines.loc[(group, share)]
            mean, error = np.mean(line), stats.sem(line)
            low, high = (mean, mean)
            if error > 1e-12:
                low, high = stats.t.interval(confidence, 2, mean, error)
            np.testing.assert_allclose([row["mean"], row["low"], row["high"]], [mean, low, high])
    constant = lines.loc[("unimportant", 0.5)]
    assert constant["low"] == constant["high"] == 0.9


@pytest.mark.parametrize("higher", [True, False])
def test_damage_is_the_area_above_the_curves(higher: bool) -> None:
    found = made(VALUES, higher_is_better=higher).damage().loc["c"]
    sense = 1 if higher else -1
    for group, table in VALUES.items():
        assert found[group] == pytest.approx(sense * (0.9 - np.mean(table)))
    gaps = sense * (np.mean(VALUES["unimportant"], axis=0) - np.mean(VALUES["important"], axis=0))
    assert found["difference"] == pytest.approx(gaps.mean())
    wanted = stats.t.interval(0.95, 2, gaps.mean(), stats.sem(gaps))
    np.testing.assert_allclose([found["low"], found["high"]], wanted)


def test_one_draw_has_no_interval() -> None:
    found = curves(draws=1)
    assert found.summary()[["low", "high"]].isna().all(axis=None)
    assert found.damage()[["low", "high"]].isna().all(axis=None)
    assert found.damage()["difference"].notna().all()


# -- metrics and outputs ---------------------------------------------------------------------------


class Shaped(nn.Module):
    """A network whose logits come in some shape."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shape, self.one, self.two = shape, nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Any:
        logits = self.two(torch.tanh(self.one(x))) + 0.1
        if self.shape == "flat":
            return logits[:, 0]
        if self.shape == "mapping":
            return {"logits": logits}
        return logits.sigmoid() if self.shape == "probabilities" else logits


@pytest.mark.parametrize("shape", ["column", "flat", "mapping"])
@pytest.mark.parametrize("labels", ["long", "float", "bool", "column"])
def test_single_logits_of_any_shape(shape: str, labels: str) -> None:
    model, X = Shaped(shape), torch.randn(80, 3)
    y = (X[:, 0] + 0.3 * torch.randn(80)) > 0
    kinds = {"long": y.long(), "float": y.float(), "bool": y, "column": y.float()[:, None]}
    importance = at_random(pd.MultiIndex.from_product([["one"], range(5)]))
    options: dict[str, Any] = {"shares": [0.5], "draws": 2}
    with torch.no_grad():
        logits = Shaped("flat")(X)
    accuracy = float(((logits > 0) == y).float().mean())
    area = float((logits[y][:, None] > logits[~y][None]).float().mean())
    for metric, wanted in ((BinaryAccuracy(), accuracy), (BinaryAUROC(), area)):
        found = masking_curves(model, (X, kinds[labels]), metric, importance, **options)
        assert found.baseline == pytest.approx(wanted, abs=1e-6)


def test_probabilities_are_not_taken_for_logits() -> None:
    model, X = Shaped("probabilities"), torch.randn(80, 3)
    y = (X[:, 0] > 0).long()
    importance = at_random(pd.MultiIndex.from_product([["one"], range(5)]))
    with pytest.raises(OptionError, match=r"in \[0, 1\] for all samples.*predictions=torch.flat"):
        masking_curves(model, (X, y), BinaryAccuracy(), importance)
    found = masking_curves(
        model, (X, y), BinaryAccuracy(), importance, predictions=torch.flatten, draws=1
    )
    wanted = float(((model(X)[:, 0] > 0.5) == y).float().mean())
    assert found.baseline == pytest.approx(wanted)


def test_regression_is_read_as_it_is_and_lower_is_better() -> None:
    model, X = Shaped("column"), torch.randn(50, 3)
    y = model(X)[:, 0].detach()
    found = masking_curves(model, (X, y), MeanSquaredError(), slopes(model, X, 1), draws=2)
    assert found.baseline == pytest.approx(0, abs=1e-12)
    assert (found.metric, found.higher_is_better) == ("MeanSquaredError", False)
    damage = found.damage().loc["effect"]
    assert damage["important"] > 0
    assert damage["important"] == pytest.approx(
        found.draws.query("group == 'important'").value.mean()
    )


def test_several_classes_and_any_metric() -> None:
    sample = zoo.branched_cnn(3, 3, 0, torch.float32)
    X, y = sample.data(30, 0), torch.arange(30) % 3
    importance = slopes(sample.model, X, 0)
    found = masking_curves(sample.model, (X, y), MulticlassF1Score(3), importance, draws=2)
    wanted = MulticlassF1Score(3)(sample.model(X), y)
    assert found.baseline == pytest.approx(float(wanted))


def test_samples_of_different_shapes() -> None:
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up, self.out = nn.Embedding(9, 3), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.up(self.table(ids))).mean(1))

    model = Tokens()
    batches = [(torch.randint(9, (4, n)), torch.randint(2, (4,))) for n in (3, 5, 2)]
    importance = at_random(pd.MultiIndex.from_product([["up"], range(6)]))
    found = masking_curves(
        model, batches, MulticlassAccuracy(2, average="micro"), importance, draws=2, how="mean"
    )
    hits = [(model(x).argmax(1) == y).float().mean() for x, y in batches]
    assert found.baseline == pytest.approx(float(sum(hits)) / 3)


def test_the_users_metric_is_left_alone() -> None:
    metric = BinaryAccuracy()
    metric.update(torch.tensor([0.9]), torch.tensor([1]))
    before = copy.deepcopy(metric.metric_state)
    masking_curves(Planted(), planted_data(), metric, known(), draws=1, shares=[1.0])
    assert before.keys() == metric.metric_state.keys()
    for name, value in metric.metric_state.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[name]))


# -- circuits and groups ---------------------------------------------------------------------------


def test_neurons_of_a_circuit_as_the_important_ones() -> None:
    model, (X, y) = Planted(), planted_data()
    circuit = ng.search(model, X, 1, keep="top:4", paths=0)
    importance = by_effect(circuit)
    found = masking_curves(
        model, (X, y), BinaryAccuracy(), importance, important=circuit, shares=[1.0], draws=2
    )
    assert found.important == {"circuit": 4}
    assert (values(found, "important", 1.0, "circuit") == 0.5).all()
    with pytest.raises(OptionError, match=r"important has (input|head)\[\d\], of which importance"):
        masking_curves(model, (X, y), BinaryAccuracy(), importance, important=list(circuit.graph))
    options: dict[str, Any] = {"important": circuit, "shares": [1.0], "draws": 2}
    itself = masking_curves(model, (X, y), BinaryAccuracy(), circuit, **options)
    pd.testing.assert_frame_equal(itself.draws, found.draws)


def test_groups_are_silenced_whole() -> None:
    sample = zoo.attention(4, 2, 0, torch.float64)
    X = sample.data(30, 0)
    y = torch.arange(30) % 2
    options: dict[str, Any] = {"groups": {"up": 3}}
    importance = slopes(sample.model, X, 0, **options)
    found = masking_curves(
        sample.model,
        (X, y),
        MulticlassAccuracy(2, average="micro"),
        importance,
        important=[("up", 1)],
        shares=[1.0],
        draws=1,
        **options,
    )
    with torch.no_grad(), mask_neurons(sample.model, {"up": [2, 3]}):
        wanted = float((sample.model(X).argmax(1) == y).float().mean())
    assert values(found, "important", 1.0, "effect") == pytest.approx(wanted)


# -- what goes wrong -------------------------------------------------------------------------------


class Interrupting(BinaryAccuracy):
    """Ctrl-C in the middle of the third run."""

    runs = 0

    def update(self, preds: Tensor, target: Tensor) -> None:
        type(self).runs += 1
        if type(self).runs == 3:
            raise KeyboardInterrupt
        super().update(preds, target)


@pytest.mark.parametrize("how", HOWS)
def test_nothing_stays_masked_after_an_interruption(how: Any) -> None:
    model = Planted().train()
    state = copy.deepcopy(model.state_dict())
    Interrupting.runs = 0
    with pytest.raises(KeyboardInterrupt):
        masking_curves(model, planted_data(), Interrupting(), known(), how=how)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def changed(**given: Any) -> dict[str, Any]:
    return {"data": planted_data(), "metric": BinaryAccuracy(), "importance": known()} | given


def named(*pairs: tuple[str, Any]) -> pd.Series:
    index = pd.MultiIndex.from_tuples(pairs, names=["layer", "index"])
    return pd.Series(np.arange(len(pairs), dtype=float), index, name="truth")


NAN = known()
NAN.iloc[3] = np.nan
REFUSED: list[tuple[dict[str, Any], str]] = [
    (changed(shares=(0.5, 1.5)), "shares=1.5 is no number"),
    (changed(shares=(0,)), "shares=0 is no number"),
    (changed(shares=()), "shares= is empty"),
    (changed(draws=0), r"draws=0"),
    (changed(confidence=1), "confidence=1 is no number in"),
    (changed(seed=-1), "seed=-1 must be 0 or more"),
    (changed(how="nil"), r"how='nil' is none of"),
    (changed(memory="much"), r"memory='much'"),
    (changed(important=1.0), "important=1.0 is no number in"),
    (changed(important=[("hidden", 40)]), r"important has hidden\[40\], of which importance"),
    (changed(important=[("hidden", i) for i in range(12)]), r"important are all of the neurons"),
    (changed(important=[]), r"important are none of the neurons"),
    (changed(important="hidden"), "important='hidden': pass a list"),
    (changed(importance=named(("nine", 0), ("hidden", 1))), r"no layer 'nine'; near it are"),
    (changed(importance=named(("hidden", 0), ("hidden", 12))), r"no neuron hidden\[12\]"),
    (changed(importance=named(("hidden", 0), ("hidden", 0))), r"has hidden\[0\] twice"),
    (changed(importance=named(("hidden", 0))), r"has 1 neurons"),
    (
        changed(importance=named(("hidden", "a"), ("hidden", "b"))),
        r"'index' numbers neurons, but holds no",
    ),
    (changed(importance=NAN), r"'truth' of hidden\[3\] is NaN"),
    (changed(importance=pd.Series([1.0, 2.0])), r"the index must be of \(layer, index\)"),
    (changed(importance=3), r"importance 'importance' is int: pass a Series"),
    (changed(importance={}), r"importance is an empty mapping"),
    (changed(importance={"a": known(), "b": 3}), r"importance 'b' is int: pass a Series"),
    (
        changed(importance={"a": known(), "b": known().iloc[1:]}),
        r"'b' and 'a' are not of the same neurons; only one of them has hidden\[0\]",
    ),
    (changed(metric="accuracy"), r"metric is str, not a torchmetrics.Metric"),
    (changed(metric=MetricCollection([BinaryAccuracy()])), r"metric is MetricCollection"),
    (changed(predictions=lambda out: out), r"shape \(200, 1\) with labels of shape \(200,\)"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_bad_requests_say_what_and_why(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        masking_curves(Planted(), **given)


def test_metrics_that_do_not_fit_are_refused() -> None:
    sample = zoo.mlp((3, 4, 3), "tanh", False, 0, torch.float32)
    X = sample.data(9, 0)
    several: Metric = MulticlassAccuracy(3, average=None)
    for metric, message in (
        (several, r"MulticlassAccuracy gives \(3,\), not one number"),
        (BinaryAccuracy(), r"BinaryAccuracy does not take predictions of shape \(9, 3\) with"),
    ):
        with pytest.raises(OptionError, match=message):
            masking_curves(
                sample.model, (X, torch.arange(9) % 3), metric, slopes(sample.model, X, 0)
            )


def test_bad_data() -> None:
    X, y = planted_data()
    for data, message in (
        (X, "no labels"),
        ((X[:0], y[:0]), "no samples"),
        ([(X, y[:5])], r"labels have shape \(5,\) for 200 samples"),
        ([(X, [object()] * 200)], "labels are object: pass one number or word"),
    ):
        with pytest.raises(DataError, match=message):
            masking_curves(Planted(), data, BinaryAccuracy(), known())


def test_one_class_of_labels_is_enough() -> None:
    X, y = planted_data()
    found = masking_curves(
        Planted(), (X[y == 1], y[y == 1]), BinaryAccuracy(), known(), draws=2, shares=[1.0]
    )
    assert found.baseline == 1.0
