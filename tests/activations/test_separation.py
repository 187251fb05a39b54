"""Separation: every column against scipy, neuron by neuron, and against known distributions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

from neurograph.activations.separation import separation
from neurograph.activations.two_samples import Ranks, divergences
from neurograph.activations.values import class_values
from neurograph.errors import DataError, ModelError, OptionError
from tests import zoo
from tests.reference import Reference


def as_they_are(*columns: np.ndarray) -> tuple[nn.Module, torch.Tensor]:
    """A model whose only layer returns its inputs, and these columns as inputs."""
    X = torch.tensor(np.stack(columns, axis=1))
    model = nn.Linear(X.shape[1], X.shape[1]).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(X.shape[1]))
        model.bias.zero_()
    return nn.Sequential(model), X


def inputs_of(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["layer"] == "input"].reset_index(drop=True)


def one_by_one(a: np.ndarray, b: np.ndarray, alpha: float = 0.05) -> dict[str, Any]:
    """What the columns say of one neuron, by scipy's functions for one sample each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normal = [stats.shapiro(x[:5000]).pvalue for x in (a, b)]
    both = min(normal) >= alpha
    done = stats.ttest_ind(a, b, equal_var=False) if both else stats.mannwhitneyu(a, b)
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    x, y = ((v - v.mean()) / v.std(ddof=1) for v in (a, b))
    return {
        "n": len(a),
        "n_rest": len(b),
        "mean": a.mean(),
        "std_rest": b.std(ddof=1),
        "shapiro_p": normal[0],
        "shapiro_p_rest": normal[1],
        "test": "welch" if both else "mann-whitney",
        "statistic": done.statistic,
        "p": done.pvalue,
        "cohens_d": (a.mean() - b.mean()) / math.sqrt(pooled),
        "auc": stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)),
        "shape_p": stats.ks_2samp(x, y).pvalue,
    }


def drawn(samples: int, seed: int) -> list[np.ndarray]:
    """Neurons of many kinds: normal, skewed, bounded, of few values, tied at zero."""
    generator = np.random.default_rng(seed)
    normal = generator.normal(size=(samples, 4))
    return [
        normal[:, 0],
        normal[:, 1] * 3 + 1000,
        np.exp(normal[:, 2]),
        np.tanh(3 * normal[:, 3]),
        generator.integers(0, 3, samples).astype(float),
        np.maximum(0, generator.normal(size=samples) + 0.5),
    ]


@pytest.mark.parametrize(("first", "second"), [(40, 70), (300, 150), (6, 30), (5, 7)])
def test_equals_scipy_one_neuron_at_a_time(first: int, second: int) -> None:
    a, b = drawn(first, 0), drawn(second, 1)
    b = [values + shift for values, shift in zip(b, (0, 2, 0.5, 0.1, 1, 0), strict=True)]
    model, X = as_they_are(*(np.concatenate(pair) for pair in zip(a, b, strict=True)))
    labels = np.repeat([1, 0], [first, second])
    table = inputs_of(separation(model, X, labels))
    assert table["class"].eq(1).all()
    assert table["rest"].eq(0).all()
    for i, row in table.iterrows():
        for column, wanted in one_by_one(a[i], b[i]).items():
            if isinstance(wanted, str):
                assert row[column] == wanted
            else:
                near = 0.05 if column == "shape_p" else 1e-12
                assert row[column] == pytest.approx(wanted, rel=1e-9, abs=near), (i, column)


def test_values_are_those_of_the_layers() -> None:
    sample = zoo.branched_cnn(3, 2, 0, torch.float64)
    X = sample.data(60, 0)
    labels = np.arange(60) % 2
    table = separation(sample.model, X, labels)
    every = Reference(sample.network(), {"x": X})
    assert set(table["layer"]) == {n for n in every.background if every.neurons(n)}
    for name in set(table["layer"]):
        values = every.background[name].numpy()
        means = values.reshape(*values.shape[:2], -1).mean(2)
        part = table[table["layer"] == name]
        assert part["index"].tolist() == list(range(means.shape[1]))
        np.testing.assert_allclose(part["mean"], means[labels == 1].mean(0), atol=1e-12)
        np.testing.assert_allclose(part["mean_rest"], means[labels == 0].mean(0), atol=1e-12)
        for i, row in part.reset_index().iterrows():
            wanted = one_by_one(means[labels == 1, i], means[labels == 0, i])
            assert row["p"] == pytest.approx(wanted["p"], rel=1e-6)


def test_padding_does_not_count() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 2)
            self.head = nn.Linear(2, 1)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(input_ids) * attention_mask[..., None]).sum(1)

    torch.manual_seed(0)
    model = Embedded()
    ids = torch.randint(0, 5, (12, 4))
    mask = torch.ones(12, 4, dtype=torch.long)
    mask[::3, 2:] = 0
    found = class_values(
        model, {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(12) % 2}
    )
    with torch.no_grad():
        there = mask[..., None].float()
        means = (model.embed(ids) * there).sum(1) / there.sum(1)
    for label, values in found.values["embed"].items():
        wanted = means[torch.arange(12) % 2 == label].numpy()
        np.testing.assert_allclose(np.sort(values, axis=0), np.sort(wanted, axis=0), rtol=1e-5)


def test_q_is_benjamini_hochberg_over_all_rows() -> None:
    generator = np.random.default_rng(0)
    columns = [generator.normal(size=80) for _ in range(30)]
    labels = np.arange(80) % 2
    columns[3] += labels
    table = separation(*as_they_are(*columns), labels)
    p = np.sort(table["p"])
    scaled = np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(table["q"]), np.minimum(scaled, 1))
    assert (table["separates"] == (table["q"] < 0.05)).all()
    assert table.loc[table["separates"], "index"].unique().tolist() == [3]


def test_classes_that_do_not_differ_seldom_separate() -> None:
    # 2,000 neurons without an effect: a false discovery rate of 0.05 allows few runs with any.
    runs, p = [], []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        columns = [generator.normal(size=60) for _ in range(200)]
        table = separation(*as_they_are(*columns), np.arange(60) % 2)
        runs.append(table["separates"].any())
        p += inputs_of(table)["p"].tolist()
    assert sum(runs) <= 2
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_divergences_of_normal_distributions() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=(20_000, 2))
    b = generator.normal([0, 1], 1, size=(20_000, 2))
    forth, back, js = divergences(Ranks.of(a.T, b.T))
    assert forth[0] < 0.01
    assert forth[1] == pytest.approx(0.5, rel=0.1)  # (μ₁ − μ₂)² / 2 for unit variances
    assert back[1] == pytest.approx(0.5, rel=0.1)
    x = np.linspace(-8, 9, 20_001)
    p, q = stats.norm.pdf(x), stats.norm.pdf(x - 1)
    middle = (p + q) / 2
    exact = np.trapezoid(p * np.log(p / middle) + q * np.log(q / middle), x) / 2
    assert js[1] == pytest.approx(exact, rel=0.05)


def test_divergences_are_bounded_and_do_not_depend_on_scale() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(200, 3)), generator.normal([0, 1, 50], 1, size=(100, 3))
    found = divergences(Ranks.of(a.T, b.T))
    for before, after in zip(found, divergences(Ranks.of(np.exp(a.T), np.exp(b.T))), strict=True):
        np.testing.assert_array_equal(before, after)
    js = found[2]
    assert (js >= 0).all()
    assert js[0] < js[1] < js[2] < math.log(2)
    assert js[2] > 0.9 * math.log(2) - 0.1


def test_shift_and_ratio_only_where_shapes_agree() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 400)
    shifted = generator.normal(size=800) * np.where(labels, 2, 1) + 3 * labels
    reshaped = np.where(labels, generator.exponential(size=800), generator.normal(size=800))
    table = inputs_of(separation(*as_they_are(shifted, reshaped), labels))
    a, b = shifted[labels == 1], shifted[labels == 0]
    assert table.loc[0, "mean_shift"] == pytest.approx(a.mean() - b.mean())
    assert table.loc[0, "variance_ratio"] == pytest.approx(a.var(ddof=1) / b.var(ddof=1))
    assert table.loc[1, "shape_p"] < 0.001
    assert np.isnan(table.loc[1, ["mean_shift", "variance_ratio"]].astype(float)).all()


def test_several_classes_are_each_compared_with_the_rest() -> None:
    columns = drawn(90, 0)
    labels = np.array(["a", "b", "c"])[np.arange(90) % 3]
    columns[2] = columns[2] + (labels == "b")
    table = inputs_of(separation(*as_they_are(*columns), labels))
    assert table["class"].tolist() == ["a", "b", "c"] * len(columns)
    for _, row in table.iterrows():
        values = columns[row["index"]]
        wanted = one_by_one(values[labels == row["class"]], values[labels != row["class"]])
        assert row["p"] == pytest.approx(wanted["p"], rel=1e-9)
        assert row["auc"] == pytest.approx(wanted["auc"])
        done = stats.kruskal(*(values[labels == c] for c in "abc"))
        assert row["kruskal_h"] == pytest.approx(done.statistic)
        assert row["kruskal_p"] == pytest.approx(done.pvalue)
    once = table.drop_duplicates("index")
    everything = np.tile(once["kruskal_p"], 2)  # the layer's outputs are its inputs
    np.testing.assert_allclose(
        once["kruskal_q"], stats.false_discovery_control(everything)[: len(once)]
    )


def test_constants_are_defined() -> None:
    labels = np.repeat([0, 1], 10)
    noise = np.random.default_rng(0).normal(size=20)
    columns = (np.full(20, 0.1), 0.1 + 0.2 * labels, np.where(labels, 1 / 3, noise))
    table = inputs_of(separation(*as_they_are(*columns), labels))
    assert table["test"].tolist() == ["constant", "mann-whitney", "mann-whitney"]
    never, differ, half = (row for _, row in table.iterrows())
    assert (never["p"], never["cohens_d"], never["auc"]) == (1, 0, 0.5)
    assert never["js"] == pytest.approx(0)
    assert (differ["cohens_d"], differ["auc"]) == (math.inf, 1)
    assert differ["p"] < 0.001
    assert (half["std"], half["shapiro_p"]) == (0, 0)
    assert np.isfinite(half[["p", "cohens_d", "kl"]].astype(float)).all()
    assert table[["p", "q", "auc", "kl", "kl_rest", "js", "shape_p"]].notna().all(axis=None)


def test_many_samples_are_thinned_and_said_so() -> None:
    generator = np.random.default_rng(0)
    values, labels = generator.normal(size=12_000), np.arange(12_000) % 3 == 0
    table = inputs_of(separation(*as_they_are(values), labels, samples=3000))
    assert table[["n", "n_rest"]].iloc[0].tolist() == [3000, 3000]
    assert table.attrs == {"counts": {0: 8000, 1: 4000}, "shapiro_samples": 5000}
    whole = inputs_of(separation(*as_they_are(values), labels, samples=20_000)).iloc[0]
    assert whole["n_rest"] == 8000
    assert 0 < whole["shapiro_p_rest"] <= 1
    assert whole["p"] == pytest.approx(
        stats.ttest_ind(values[labels], values[~labels], equal_var=False).pvalue
    )


def test_the_rest_keeps_its_proportions_when_thinned() -> None:
    # 100 samples of b at 0 and 900 of c at 1: of what is left of the rest, 1 in 10 is b's.
    labels = np.repeat(["a", "b", "c"], [100, 100, 900])
    values = np.select([labels == "a", labels == "b"], [0.5, 0.0], 1.0)
    table = inputs_of(separation(*as_they_are(values), labels, samples=50))
    row = table[table["class"] == "a"].iloc[0]
    assert row["mean_rest"] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("memory", ["30KB", "100KB"])
def test_memory_changes_nothing_but_the_number_of_passes(memory: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2))
    data = torch.randn(80, 3), torch.arange(80) % 2
    whole, parts = separation(model, data), separation(model, data, memory=memory)
    pd.testing.assert_frame_equal(whole, parts)


def test_names_and_labels_of_the_data() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 2)), columns=["age", "dose"])
    model = nn.Sequential(nn.Linear(2, 1))
    labels = pd.Series(np.arange(30) % 2)
    table = separation(model, (frame, labels), class_names=["healthy", "ill"])
    assert table["name"].tolist() == ["age", "dose", "0[0]"]
    assert table.loc[0, ["class", "rest"]].tolist() == ["ill", "healthy"]
    for given in (labels, labels.to_frame()):
        again = separation(model, frame, given, class_names=["healthy", "ill"])
        pd.testing.assert_frame_equal(table, again)


def data(samples: int = 20) -> torch.Tensor:
    return torch.randn(samples, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(20), "all labels are 0"),
        (np.arange(20) < 2, r"class 1 has 2 of 20 samples, fewer than 3"),
        (np.arange(19) % 2, "labels has 19 entries for 20 samples"),
        (np.arange(21) % 2, "labels has 21 entries for 20 samples"),
        (np.where(np.arange(20) == 4, np.nan, 1.0), "no class for sample 4"),
        (np.zeros((20, 2)), r"labels has shape \(20, 2\)"),
        (pd.DataFrame({"a": [0, 1] * 10, "b": 0}), r"labels has shape \(20, 2\)"),
        (np.linspace(0, 1, 20), "bin labels that are continuous"),
        (None, "the data hold no labels"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        separation(nn.Linear(2, 1), data(), labels)


def test_bad_data_and_options() -> None:
    labels = torch.arange(20) % 2
    broken = data()
    broken[3, 1] = math.nan
    with pytest.raises(DataError, match="NaN or infinity in batch 0"):
        separation(nn.Linear(2, 1), broken, labels)
    with pytest.raises(DataError, match="of a DataLoader that shuffles"):
        separation(nn.Linear(2, 1), DataLoader(data(), 5, shuffle=True), labels)
    with pytest.raises(OptionError, match=r"alpha=1\.5"):
        separation(nn.Linear(2, 1), data(), labels, alpha=1.5)
    with pytest.raises(OptionError, match="samples=0"):
        separation(nn.Linear(2, 1), data(), labels, samples=0)
    with pytest.raises(OptionError, match="class_names has 3 names for the 2 classes"):
        separation(nn.Linear(2, 1), data(), labels, class_names=["a", "b", "c"])
    with pytest.raises(OptionError, match="feature_names has 1 names"):
        separation(nn.Linear(2, 1), data(), labels, feature_names=["a"])

    class Overflowing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 0

    with pytest.raises(ModelError, match="neuron 0 of layer '0' has NaN or infinity"):
        separation(nn.Sequential(Overflowing(2, 1)), data(), labels)


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    separation(model, data(), torch.arange(20) % 2)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in m.__dict__ for m in model.modules())
