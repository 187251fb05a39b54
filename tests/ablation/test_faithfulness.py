"""Faithfulness where it is known, and its arithmetic by hand."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy

import neurograph as ng
from neurograph.ablation.faithfulness_result import Faithfulness, areas
from neurograph.errors import DataError, OptionError
from neurograph.preparation.options import SIZES
from tests import zoo

F64 = torch.float64
WEIGHTS = [4.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0, 0.5, -0.5, 3.0]  # sum 10


def linear() -> tuple[nn.Module, Tensor]:
    """Ten hidden neurons, each a copy of the input, weighed and summed."""
    model = nn.Sequential(nn.Linear(1, 10), nn.Linear(10, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(1), model[0].bias.zero_(), model[1].bias.zero_()
        model[1].weight.copy_(torch.tensor([WEIGHTS]))
    return model, torch.linspace(0.5, 1.5, 20, dtype=F64)[:, None]


def of_neurons(effects: Any, layer: str = "0", name: str = "known") -> pd.Series:
    index = pd.MultiIndex.from_product([[layer], range(len(effects))], names=["layer", "index"])
    return pd.Series(np.asarray(effects, dtype=float), index, name=name)


def measured(**options: Any) -> Faithfulness:
    model, X = linear()
    given: dict[str, Any] = {"ablations": ["zero"], "draws": 4, "sizes": (0.2, 0.5, 0.8, 1)}
    return ng.faithfulness(model, X, 1, of_neurons(WEIGHTS), **(given | options))


def curve(found: Faithfulness, order: str, direction: str = "keep", **where: Any) -> list[float]:
    table = found.curves()
    for name, value in {"order": order, "direction": direction, **where}.items():
        table = table[table[name] == value]
    return table["faithfulness"].to_list()


# -- where it is known -----------------------------------------------------------------------------


def test_a_linear_model_is_faithful_by_the_sum_of_the_kept_weights() -> None:
    found = measured()
    assert curve(found, "signed") == pytest.approx([0.7, 1.3, 1.3, 1.0])
    assert curve(found, "absolute") == pytest.approx([0.7, 1.0, 1.05, 1.0])
    left = curve(found, "signed", "knock_out")
    assert left == pytest.approx([0.3, -0.3, -0.3, 0.0])


def test_areas_by_hand() -> None:
    found = measured().summary().set_index("order")
    f = [0.7, 1.3, 1.3, 1.0]
    cpr = 0.3 * (f[0] + f[1]) / 2 + 0.3 * (f[1] + f[2]) / 2 + 0.2 * (f[2] + f[3]) / 2
    cmd = 0.3 * (0.3 + 0.3) / 2 + 0.3 * 0.3 + 0.2 * (0.3 + 0) / 2
    got = found.loc["signed"]
    assert (got["cpr"], got["cmd"]) == pytest.approx((cpr, cmd))
    assert got["average"] == pytest.approx(sum(f) / 4)
    assert got["completeness"] == pytest.approx((0.3 - 0.3 - 0.3 + 0) / 4)
    assert np.isnan(got["cpr_low"])


def test_areas_of_the_benchmark_run_from_its_first_share_to_its_last() -> None:
    whole, none = areas(SIZES, [1] * 10), areas(SIZES, [0] * 10)
    assert (whole.cpr, whole.cmd, whole.average) == pytest.approx((0.999, 0, 1))
    assert (none.cpr, none.cmd, none.average) == pytest.approx((0, 0.999, 0))
    step = areas(SIZES, [0] * 9 + [1])
    assert (step.cpr, step.cmd) == pytest.approx((0.25, 0.749))


def test_the_planted_circuit_is_faithful_and_complete() -> None:
    """Three of twelve neurons carry the target; the others write to nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    X = torch.rand(30, 3, dtype=F64)
    with torch.no_grad():
        model[2].weight[0, 3:] = 0
    effects = of_neurons([3.0, 2.0, 1.0, *[0.0] * 9])
    found = ng.faithfulness(
        model, X, 1, effects, sizes=(0.25, 0.5), ablations=("zero", "mean"), draws=0
    )
    for ablation in ("zero", "mean"):
        assert curve(found, "signed", ablation=ablation) == pytest.approx([1, 1])
        assert curve(found, "signed", "knock_out", ablation=ablation) == pytest.approx([0, 0])
    np.testing.assert_allclose(found.draws.query("direction == 'keep'")["error"], 0, atol=1e-12)
    table = found.minimality(0.5)
    inside = table[table["inside"]]
    assert set(inside["index"][:3]) == {0, 1, 2}
    assert (inside["change"][:3].abs() > 1e-3).all()
    assert inside["change"][3:].to_numpy() == pytest.approx(0, abs=1e-12)
    assert table[~table["inside"]]["change"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert found.incompleteness(0.25)["incompleteness"].to_numpy() == pytest.approx(0, abs=1e-12)


def test_signed_and_absolute_differ_where_a_neuron_pushes_down() -> None:
    found = measured(sizes=(0.7,))
    assert curve(found, "signed") == pytest.approx([1.35])  # all that push up
    assert curve(found, "absolute") == pytest.approx([1.0])


def test_effects_that_name_another_sign_are_another_circuit() -> None:
    model, X = linear()
    rankings = {"right": of_neurons(WEIGHTS), "wrong": -of_neurons(WEIGHTS)}
    found = ng.faithfulness(model, X, 1, rankings, ablations=["zero"], sizes=(0.2, 1), draws=1)
    assert curve(found, "signed", ranking="wrong") == pytest.approx([-0.3, 1.0])
    assert curve(found, "absolute", ranking="wrong") == curve(found, "absolute", ranking="right")
    assert list(found.summary()["ranking"]) == ["right"] * 2 + ["wrong"] * 2 + ["random"]


# -- random circuits -------------------------------------------------------------------------------


def test_random_circuits_cover_what_all_of_their_size_do() -> None:
    """Of a linear model, the mean over all sets of a size is that share."""
    found = measured(draws=40, sizes=(0.2, 0.5, 0.8))
    table = found.curves().query("order == 'random' and direction == 'keep'")
    assert (table["faithfulness_low"] <= table["share"]).all()
    assert (table["share"] <= table["faithfulness_high"]).all()
    one = found.draws.query("order == 'random' and direction == 'keep' and share == 0.2")
    pairs = [sum(pair) / 10 for pair in itertools.combinations(WEIGHTS, 2)]
    gaps = np.abs(one["faithfulness"].to_numpy()[:, None] - np.array(pairs)).min(axis=1)
    assert gaps.max() < 1e-12
    assert one["faithfulness"].nunique() > 5


def test_random_circuits_grow_and_depend_on_the_seed_alone() -> None:
    found, other = measured(), measured()
    pd.testing.assert_frame_equal(found.draws, other.draws)
    assert not found.draws.equals(measured(seed=1).draws)
    assert not found.draws.query("order == 'random'").empty
    assert len(found.draws) == (2 + 4) * 4 * 2
    assert measured(draws=0).draws["order"].unique().tolist() == ["signed", "absolute"]


# -- what is ranked --------------------------------------------------------------------------------


def test_what_is_not_ranked_comes_last() -> None:
    model, X = linear()
    few = of_neurons(WEIGHTS)[[("0", 6), ("0", 5)]]  # both push down
    found = ng.faithfulness(model, X, 1, few, ablations=["zero"], sizes=(0.1, 0.2, 0.3), draws=0)
    assert curve(found, "signed") == pytest.approx([-0.1, -0.3, 0.1])  # then the first neuron
    assert found.components == 10


def test_neurons_that_the_output_alone_reads_stay() -> None:
    model, X = linear()
    both = pd.concat([of_neurons(WEIGHTS), of_neurons([9.0], "1")])
    found = ng.faithfulness(model, X, 1, both, ablations=["zero"], sizes=(0.2,), draws=0)
    assert found.components == 10
    assert curve(found, "signed") == pytest.approx([0.7])


def test_a_circuit_is_a_ranking_and_what_it_kept_is_measured() -> None:
    model, X = linear()
    circuit = ng.search(model, X, 1, keep="top:2", progress=False)
    hidden = [n for n in circuit.graph if n.layer != "1"]
    found = ng.faithfulness(model, X, 1, circuit, ablations=["zero"], draws=3)
    kept = found.draws.query("order == 'kept' and direction == 'keep'")
    assert kept["components"].tolist() == [len(hidden)]
    assert found.components == 11  # the circuit ranks the input too
    random = found.draws[found.draws["order"] == "random"]
    assert (random["share"] == kept["share"].item()).sum() == 2 * 3
    assert set(found.summary()["order"]) == {"signed", "absolute", "random"}
    weights = [w for i, w in enumerate(WEIGHTS) if ("0", i) in circuit.graph]
    assert kept["faithfulness"].item() == pytest.approx(sum(weights) / 10)
    assert found.minimality("kept")["inside"].sum() == len(hidden)
    share = f"{kept['faithfulness'].item():.3g}"
    assert f"as kept ({len(hidden)} of 11 neurons), zero: faithfulness {share}" in repr(found)


def test_a_circuit_brings_its_groups_and_positions() -> None:
    sample = zoo.attention(4, 2, 1, F64)
    X = sample.data(30, 0)
    options: dict[str, Any] = {
        "groups": {"q": 2},
        "positions": "each",
        "layers": ["q", "o", "head"],
    }
    circuit = ng.search(sample.model, X, 1, progress=False, **options)
    found = ng.faithfulness(sample.model, X, 1, circuit, draws=0, sizes=(0.5, 1))
    assert found.components == 3 * 2 + 3 * 4 + 3 * 4  # q heads, o, input, at three positions
    assert found.provenance["options"]["positions"] == "each"


@pytest.mark.parametrize("of", ["neurons", "edges"])
def test_scores_are_a_ranking(of: Any) -> None:
    """With positions in some layers and none in others."""
    sample = zoo.attention(4, 2, 1, F64)
    X = sample.data(30, 0)
    options: dict[str, Any] = {"positions": "each", "layers": ["q", "o", "head"]}
    scores = ng.score(sample.model, X, 1, of=of, scorer="gradient", progress=False, **options)
    found = ng.faithfulness(sample.model, X, 1, scores, draws=0, sizes=(0.1, 1), ablations=["zero"])
    assert found.of == of
    assert len(scores.table) == found.components + (2 if of == "neurons" else 0)  # the head's
    assert curve(found, "signed")[-1] == pytest.approx(1)
    named = ng.faithfulness(
        sample.model, X, 1, {"a": scores, "b": scores.ranking()}, draws=0, ablations=["zero"],
        sizes=(0.1, 1),
    )  # fmt: skip
    for name in "ab":
        assert curve(named, "signed", ranking=name) == curve(found, "signed")


# -- ends, metrics, what is left alone -------------------------------------------------------------


def test_where_nothing_kept_is_as_good_there_is_no_share() -> None:
    """The mean of a linear model is that of its mean neurons."""
    model, X = linear()
    found = ng.faithfulness(
        model, X, 1, of_neurons(WEIGHTS), ablations=("mean", "zero"), reference=X, sizes=(0.2, 1),
        draws=0,
    )  # fmt: skip
    ends = found.ends.set_index("ablation")
    assert ends.loc["mean", "full"] == pytest.approx(10)
    assert ends["significant"].to_dict() == {"mean": False, "zero": True}
    by_ablation = found.draws.groupby("ablation")["faithfulness"]
    assert by_ablation.apply(lambda f: f.isna().all()).to_dict() == {"mean": True, "zero": False}
    assert "the model does not differ significantly from nothing kept" in repr(found)
    assert ends.loc["zero", "stderr"] == pytest.approx((10 * X[:, 0]).std().item() / 20**0.5)


def test_of_a_fixed_output_other_samples_tell_nothing() -> None:
    """Every sample stands in for one other: the mean over all stays."""
    model, X = linear()
    found = ng.faithfulness(
        model, X, 1, of_neurons(WEIGHTS), ablations=["resample"], sizes=(0.2, 1), draws=0
    )
    assert found.draws["faithfulness"].isna().all()
    assert not found.ends["significant"].any()
    assert (found.draws.query("share == 0.2")["error"] > 0.1).all()


def test_a_metric_is_measured_beside_the_target() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[1].weight.copy_(torch.tensor([[3.0, 1.0, 0.0, 0.0]]))
    X = torch.randn(200, 4)
    y = (X[:, 0] > 0).long()
    found = ng.faithfulness(
        model, (X, y), 1, of_neurons([3.0, 1.0, 0.0, 0.0]), metric=BinaryAccuracy(),
        ablations=["zero"], sizes=(0.25, 0.5, 1), draws=2, reference=200, memory=2000,
    )  # fmt: skip
    got = found.curves().query("order == 'signed' and direction == 'keep'")["metric"].to_list()
    logits = 3 * X[:, 0] + X[:, 1]
    right = ((logits > 0).long() == y).float().mean().item()
    assert got == pytest.approx([1.0, right, right])
    assert found.metric == "BinaryAccuracy"
    assert found.ends["full_metric"].item() == pytest.approx(right)
    with pytest.raises(DataError, match="labels"):
        ng.faithfulness(model, X, 1, of_neurons([1.0] * 4), metric=BinaryAccuracy())


def test_incompleteness_by_hand() -> None:
    """In a linear model the part cancels: what is left differs by what the circuit lacks."""
    found = measured()
    table = found.incompleteness(0.2, draws=6)
    assert table["incompleteness"].to_numpy() == pytest.approx(10 - 7)
    assert table["share"].to_numpy() == pytest.approx(0.3)
    assert table["removed"].nunique() > 1
    added = found.minimality(0.2, most=3).query("not inside")
    assert added["change"].to_list() == pytest.approx([WEIGHTS[i] for i in added["index"]])
    assert len(added) == 3


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1)).train()
    X = torch.rand(20, 3)
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    ng.faithfulness(model, X, 1, of_neurons([1.0] * 4), draws=1)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all("forward" not in vars(m) and not m._forward_hooks for m in model.modules())


def test_provenance_is_plain() -> None:
    found = measured()
    assert json.loads(json.dumps(found.provenance)) == found.provenance
    told = found.provenance["options"]
    assert (told["ablations"], told["draws"], told["sizes"]) == (["zero"], 4, [0.2, 0.5, 0.8, 1.0])
    assert repr(found).startswith("Faithfulness to 'output' of circuits of 10 neurons\n  known")


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sizes": ()}, "ascending"),
        ({"sizes": (0.5, 0.2)}, "ascending"),
        ({"sizes": (0.5, 1.5)}, "sizes=1.5 is no number"),
        ({"draws": -1}, "draws=-1"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"seed": -1}, "seed=-1"),
        ({"ablations": "zero"}, "one or more"),
        ({"ablations": ()}, "one or more"),
        ({"ablations": ("zero", "zero")}, "each once"),
        ({"ablations": ("none",)}, "'none'"),
        ({"ablations": ("counterfactual",)}, "corrupt="),
        ({"corrupt": torch.ones(20, 1)}, "belong together"),
        ({"ablations": ("resample",), "reference": 1}, "there is one"),
        ({"groups": {"0": [[0, 1], [1, 2]]}}, "have channel 1 twice"),
        ({"metric": "accuracy"}, "torchmetrics.Metric"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], told: str) -> None:
    if options.get("metric") and not isinstance(options["metric"], Metric):
        model, X = linear()
        with pytest.raises(OptionError, match=told):
            ng.faithfulness(model, (X, torch.ones(20)), 1, of_neurons(WEIGHTS), **options)
        return
    with pytest.raises(OptionError, match=told):
        measured(**options)


def edges(*rows: tuple[Any, ...]) -> pd.Series:
    names = ["source_layer", "source_index", "target_layer", "target_index"]
    return pd.Series(1.0, pd.MultiIndex.from_tuples(rows, names=names))


@pytest.mark.parametrize(
    ("ranking", "told"),
    [
        (3, "is int"),
        ({}, "empty"),
        (pd.Series([1.0, 2.0]), "indexed by"),
        (of_neurons([]), "no effects"),
        (of_neurons([1.0, np.nan]), "NaN"),
        (pd.concat([of_neurons([1.0]), of_neurons([2.0])]), "twice"),
        (of_neurons([1.0], "9"), "'9'"),
        (of_neurons([1.0] * 11), r"0\[10\]"),
        (of_neurons([1.0], "1"), "always stay"),
        (edges(("0", 0, "input", 0)), "does not read"),
        (edges(("0", 0, "1", 1)), r"1\[1\]"),
        ({"a": of_neurons([1.0]), "b": edges(("0", 0, "1", 0))}, "'b' edges"),
    ],
)
def test_rankings_that_cannot_be_read(ranking: Any, told: str) -> None:
    model, X = linear()
    with pytest.raises(OptionError, match=told):
        ng.faithfulness(model, X, 1, ranking)


def test_circuits_that_there_are_not() -> None:
    found = measured()
    for options, told in (
        ({"size": 2.0}, "size=2.0"),
        ({"size": "kept"}, "'kept'"),
        ({"size": 0.5, "ranking": "other"}, "'other'"),
        ({"size": 0.5, "ablation": "mean"}, "'mean'"),
    ):
        with pytest.raises(OptionError, match=told):
            found.incompleteness(**options)
        with pytest.raises(OptionError, match=told):
            found.minimality(**options)
