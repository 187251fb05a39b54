"""Training keeps the best epoch, brings it back from its file, and leaves the process as it was."""

from __future__ import annotations

import logging
import random
import re
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from neurograph.errors import DataError, ModelError, OptionError
from neurograph.model.weights import load_weights
from neurograph.training import Fitted, TrainingModule, binary_classifier, fit
from tests.training.small import points as make_data


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))


def run(directory: Path, model: nn.Module | None = None, **options: object) -> Fitted:
    given = {"epochs": 4, **options}
    module = binary_classifier(
        model or make_model(), learning_rate=given.pop("learning_rate", 0.02)
    )
    data = (make_data(64, 1), make_data(32, 2), make_data(32, 3))
    return fit(module, *data, directory=directory, **given)


def loss_of(model: nn.Module, data: TensorDataset) -> float:
    inputs, labels = data.tensors
    with torch.no_grad():
        logits = model(inputs).reshape(-1)
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.float()).item()


def test_learns_and_reports_the_accuracy_of_the_model_it_returns(tmp_path: Path) -> None:
    model = make_model()
    fitted = run(tmp_path, model, epochs=8)
    assert fitted.model is model
    assert not model.training
    inputs, labels = make_data(32, 3).tensors
    with torch.no_grad():
        right = (model(inputs).reshape(-1) > 0) == labels.bool()
    assert fitted.test["test_accuracy"] == pytest.approx(right.float().mean().item())
    assert fitted.test["test_accuracy"] > 0.8
    assert fitted.test["test_loss"] == pytest.approx(loss_of(model, make_data(32, 3)), rel=1e-5)


def test_history_has_every_figure_of_every_epoch(tmp_path: Path) -> None:
    history = run(tmp_path).history
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]
    figures = {f"{s}_{f}" for s in ("train", "validation") for f in ("loss", "accuracy")}
    assert all(set(entry) == {"epoch", *figures} for entry in history)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_the_best_epoch_comes_back_not_the_last(tmp_path: Path) -> None:
    # A step size at which the validation loss gets worse again.
    fitted = run(tmp_path, epochs=12, learning_rate=0.5)
    losses = [entry["validation_loss"] for entry in fitted.history]
    assert min(losses) < losses[-1]
    assert loss_of(fitted.model, make_data(32, 2)) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize("monitor", ["validation_loss", "validation_accuracy"])
def test_the_best_epoch_may_be_the_highest_of_anything(tmp_path: Path, monitor: str) -> None:
    fitted = run(tmp_path, epochs=6, learning_rate=0.5, monitor=monitor, mode="max")
    best = max(fitted.history, key=lambda entry: entry[monitor])
    assert best[monitor] > min(entry[monitor] for entry in fitted.history)
    assert loss_of(fitted.model, make_data(32, 2)) == pytest.approx(best["validation_loss"], 1e-5)


class Scaled(nn.Module):
    """A loss that is trained itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        return (output[:, 0] - self.scale * labels).square().mean() + self.scale.square()


def test_a_loss_that_learns_comes_back_too_and_tests_are_optional(tmp_path: Path) -> None:
    loss = Scaled()
    data = make_data(32, 1)
    fitted = fit(TrainingModule(make_model(), loss), data, data, directory=tmp_path, epochs=2)
    assert fitted.test == {}
    state = torch.load(fitted.checkpoint, weights_only=True)["state_dict"]
    assert state["loss.scale"] == loss.scale != 1
    with torch.no_grad():
        found = loss(fitted.model(data.tensors[0]), data.tensors[1]).item()
    best = min(entry["validation_loss"] for entry in fitted.history)
    assert found == pytest.approx(best, rel=1e-5)


def test_the_checkpoint_is_the_returned_model_and_holds_only_weights(tmp_path: Path) -> None:
    fitted = run(tmp_path / "new" / "folder", name="plane")
    assert fitted.checkpoint == tmp_path / "new" / "folder" / "plane.ckpt"
    content = torch.load(fitted.checkpoint, weights_only=True)
    assert content["hyper_parameters"]["learning_rate"] == 0.02
    read = load_weights(make_model(), fitted.checkpoint)
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(value, read.state_dict()[name])


def test_an_older_checkpoint_is_replaced(tmp_path: Path) -> None:
    run(tmp_path)
    fitted = run(tmp_path, seed=5)
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    read = load_weights(make_model(), tmp_path / "best.ckpt")
    assert torch.equal(read[0].weight, fitted.model[0].weight)


def test_a_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    one, two, other = (run(tmp_path, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.model[0].weight, two.model[0].weight)
    assert one.history == two.history
    assert not torch.equal(one.model[0].weight, other.model[0].weight)


def test_the_process_is_left_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = make_model(), [make_data(64, seed) for seed in (1, 2, 3)]
    # numpy's old global state is what Lightning would reseed.
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    level = logging.getLogger("pytorch_lightning").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(binary_classifier(model), *data, directory=tmp_path, epochs=1, progress=False)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert logging.getLogger("pytorch_lightning").level == level
    assert capfd.readouterr() == ("", "")


def test_tensorboard_has_every_epoch_and_the_settings_and_nothing_lies_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    directory, logs = tmp_path / "out", tmp_path / "logs"
    fitted = run(directory, name="plane", tensorboard=logs)
    run(directory, name="plane", tensorboard=logs, epochs=1)
    assert [path.name for path in directory.iterdir()] == ["plane.ckpt"]
    assert sorted(path.name for path in (logs / "plane").iterdir()) == ["version_0", "version_1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "logs", "out"]
    assert not list((tmp_path / "here").iterdir())

    events = EventAccumulator(str(logs / "plane" / "version_0")).Reload()
    for stage in ("train", "validation"):
        for figure in (f"{stage}_loss", f"{stage}_accuracy"):
            found = [event.value for event in events.Scalars(figure)]
            assert found == pytest.approx([entry[figure] for entry in fitted.history])
    assert [event.value for event in events.Scalars("epoch")][:4] == [0, 0, 1, 1]
    best = min(fitted.history, key=lambda entry: entry["validation_loss"])
    numbers = {f"best/{key}": value for key, value in best.items()} | fitted.test
    for name, value in numbers.items():
        assert events.Scalars(name)[-1].value == pytest.approx(value)
    told = str(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert all(name in told for name in ("learning_rate", "Adam", "epochs", "batch_size", "seed"))


def test_progress_is_shown_on_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal then
    run(tmp_path)
    output, errors = capfd.readouterr()
    assert output == ""
    assert "4/4" in re.sub(r"\x1b\[[0-9;]*m", "", errors)


class Interrupted(Dataset[tuple[Tensor, ...]]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        raise KeyboardInterrupt


def test_ctrl_c_stays_ctrl_c(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    data = make_data(16, 0)
    with pytest.raises(KeyboardInterrupt):
        fit(binary_classifier(make_model()), Interrupted(), data, data, directory=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"mode": "best"}, "mode='best' is neither"),
        ({"monitor": "val_loss"}, "choose among validation_loss, validation_accuracy"),
    ],
)
def test_options_that_make_no_sense_are_named(
    tmp_path: Path, option: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        run(tmp_path, **option)


def test_an_empty_dataset_is_named(tmp_path: Path) -> None:
    data = make_data(8, 0)
    with pytest.raises(DataError, match="validation is empty"):
        fit(binary_classifier(make_model()), data, make_data(0, 0), data, directory=tmp_path)


def test_a_bare_network_is_told_what_it_needs(tmp_path: Path) -> None:
    data = make_data(8, 0)
    with pytest.raises(OptionError, match=r"module is Sequential: give TrainingModule"):
        fit(make_model(), data, data, directory=tmp_path)  # type: ignore[arg-type]


def test_data_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    data = make_data(8, 0)
    bad = TensorDataset(data.tensors[0] * float("nan"), data.tensors[1])
    with pytest.raises(DataError, match="finite validation loss"):
        fit(binary_classifier(make_model()), bad, data, data, directory=tmp_path, epochs=2)


def test_more_than_one_logit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"one logit a sample.*\(8, 3\) for 8"):
        run(tmp_path, nn.Linear(2, 3))


def test_a_directory_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(tmp_path / "file")
