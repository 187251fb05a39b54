"""What an ordinary Lightning run saves is loaded by the API and by the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy
from typer.testing import CliRunner

import neurograph as ng
from neurograph.cli.main import app
from neurograph.cli.objects import find_object
from neurograph.model.weights import WeightsError, load_weights
from neurograph.training import TrainingModule
from tests.training.small import QUIET, points, trainer

pytestmark = [pytest.mark.filterwarnings(warning) for warning in QUIET]

MODULE = """
from torch import nn
from tests.training.small import network, points

def build():
    return network(2)

def samples():
    return points(50, 1).tensors
"""


class Handwritten(pl.LightningModule):
    """As users write them: a schedule, a weighted loss, metrics with states that are saved."""

    def __init__(self, net: nn.Module, learning_rate: float = 0.05, name: str = "mine") -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.net = net
        self.loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
        self.accuracy, self.area = MulticlassAccuracy(2), BinaryAUROC()
        self.accuracy.persistent(True)
        self.area.persistent(True)  # a list of all that it has seen

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        output = self.net(batch[0])
        self.accuracy(output, batch[1])
        self.area.update(output.softmax(1)[:, 1], batch[1])
        self.log("accuracy", self.accuracy)
        return self.loss(output, batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    (tmp_path / "net.py").write_text(MODULE)
    yield tmp_path
    sys.path[:] = before


def run(folder: Path, kind: str) -> tuple[nn.Module, Path]:
    """Train with Lightning's defaults; return the network and the checkpoint it left."""
    torch.manual_seed(3)
    model = find_object(f"{folder}/net.py:build")
    loss = nn.CrossEntropyLoss(weight=torch.ones(2))
    module = (
        Handwritten(model)
        if kind == "handwritten"
        else TrainingModule(model, loss, MulticlassAccuracy(2), learning_rate=0.05)
    )
    monitored = "accuracy" if kind == "handwritten" else "train_MulticlassAccuracy"
    extra = [EarlyStopping(monitored, mode="max"), LearningRateMonitor(), ModelCheckpoint()]
    fitting = trainer(folder, logger=True, enable_checkpointing=True, callbacks=extra)
    fitting.fit(module, DataLoader(points(50, 1), 10, shuffle=True))
    [path] = folder.rglob("*.ckpt")
    assert path.name == "epoch=1-step=10.ckpt"
    return model.eval(), path


@pytest.mark.parametrize("kind", ["handwritten", "training module"])
def test_a_run_with_defaults_is_explored_from_its_checkpoint(here: Path, kind: str) -> None:
    model, path = run(here, kind)
    content = torch.load(path, weights_only=True)
    assert {"optimizer_states", "lr_schedulers", "loops", "callbacks"} <= set(content)
    assert content["hyper_parameters"]["learning_rate"] == 0.05
    fresh = load_weights(find_object("net.py:build"), path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])

    words = ["explore", "net.py:build", "--data", "net.py:samples", "--target", "1", "--quiet"]
    words += ["--keep", "top:3", "--out", "x.circuit", "--weights"]
    result = CliRunner().invoke(app, [*words, str(path.relative_to(here))])
    assert result.exit_code == 0, result.output
    found = ng.load("x.circuit")
    wanted = ng.search(model, points(50, 1).tensors, 1, keep="top:3")
    assert found.provenance["model"] == wanted.provenance["model"]
    assert found.neurons().equals(wanted.neurons())
    listed = CliRunner().invoke(app, ["paths", "x.circuit", "--top", "5", "--format", "json"])
    effects = [row["effect"] for row in json.loads(listed.stdout)]
    assert effects == [path.effect for path in wanted.paths(5)]
    assert len(effects) == 5


def test_a_checkpoint_of_another_network_is_refused(here: Path) -> None:
    _, path = run(here, "handwritten")
    with pytest.raises(WeightsError, match="not of this model"):
        load_weights(nn.Sequential(nn.Linear(2, 9), nn.Linear(9, 2)), path)


def test_a_module_among_the_hyper_parameters_is_refused_by_name(here: Path) -> None:
    module = Handwritten(nn.Linear(2, 2))
    module.save_hyperparameters({"net": nn.Linear(2, 2)})  # as without ignore=
    fitting = trainer(here, enable_checkpointing=True, max_epochs=1)
    fitting.fit(module, DataLoader(points(50, 1), 10))
    [path] = here.rglob("*.ckpt")
    with pytest.raises(WeightsError, match=r"\(torch.nn.modules.linear.Linear\)"):
        load_weights(nn.Linear(2, 2), path)
