"""Any network, loss, metrics and optimizer are trained, and their settings come back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from neurograph.errors import DataError, ModelError, OptionError
from neurograph.training import TrainingModule
from tests.training.small import QUIET, network, points, trainer

pytestmark = [pytest.mark.filterwarnings(warning) for warning in QUIET]


def three_classes() -> TensorDataset:
    inputs, labels = points(50, 1).tensors
    return TensorDataset(inputs, labels + (inputs[:, 0] > 0.5))


def test_loss_and_metrics_are_those_of_all_samples_of_the_epoch(tmp_path: Path) -> None:
    # These three share their states, which must not mix with the fourth or between stages.
    metrics = MetricCollection(
        {
            "precision": MulticlassPrecision(3),
            "recall": MulticlassRecall(3),
            "f1": MulticlassF1Score(3),
            "accuracy": MulticlassAccuracy(3, average="micro"),
        }
    )
    weight = torch.tensor([1.0, 2.0, 0.5])
    module = TrainingModule(network(3), nn.CrossEntropyLoss(weight=weight), metrics)
    data = three_classes()
    loader = DataLoader(data, batch_size=10)  # equal batches, so that means of means are means
    run = trainer(tmp_path)
    run.fit(module, loader, loader)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    module.eval()
    with torch.no_grad():
        logits = module(data.tensors[0])
        losses = [
            nn.functional.cross_entropy(logits[i : i + 10], data.tensors[1][i : i + 10], weight)
            for i in range(0, 50, 10)
        ]
    found, labels = logits.argmax(1).numpy(), data.tensors[1].numpy()
    right = found == labels
    of_class = [labels == c for c in range(3)]
    recall = np.mean([right[members].mean() for members in of_class])
    precision = np.mean([right[found == c].mean() if (found == c).any() else 0 for c in range(3)])
    assert logged["validation_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert logged["validation_accuracy"] == pytest.approx(right.mean())
    assert logged["validation_recall"] == pytest.approx(recall)
    assert logged["validation_precision"] == pytest.approx(precision)
    names = {f"{s}_{n}" for s in ("train", "validation") for n in ["loss", *metrics]}
    assert set(logged) == names


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 1), nn.Linear(3, 1)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"sum": self.left(left)[:, 0] + self.right(right)[:, 0]}


def gap(output: dict[str, Tensor], labels: Tensor) -> Tensor:
    return (output["sum"] - labels).square().mean()


@pytest.mark.parametrize("kind", ["dict", "pair"])
def test_batches_are_read_as_by_a_search(tmp_path: Path, kind: str) -> None:
    left, right, labels = torch.rand(12, 2), torch.rand(12, 3), torch.rand(12)
    rows: list[Any] = [
        {"left": a, "right": b, "labels": y} if kind == "dict" else ((a, b), y)
        for a, b, y in zip(left, right, labels, strict=True)
    ]
    module = TrainingModule(Sum(), gap, {"mse": MeanSquaredError()}, predict=lambda o: o["sum"])
    run = trainer(tmp_path)
    run.fit(module, DataLoader(rows, 4), DataLoader(rows, 4))  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = gap(module(left, right), labels)
    for name in ("loss", "mse"):
        assert run.callback_metrics[f"validation_{name}"].item() == pytest.approx(wanted.item())
    without = [{k: v for k, v in row.items() if k != "labels"} for row in rows if kind == "dict"]
    predicted = run.predict(module, DataLoader(without or rows, 4))  # type: ignore[arg-type]
    assert torch.equal(torch.cat(predicted), module(left, right)["sum"].detach())


def test_metrics_are_made_for_each_stage_and_follow_the_device() -> None:
    given = MulticlassAccuracy(3)
    weight = torch.ones(3)
    module = TrainingModule(network(3), nn.CrossEntropyLoss(weight), [given]).to("meta")
    stages = [module.train_metrics, module.validation_metrics, module.test_metrics]
    names = ["train_MulticlassAccuracy", "validation_MulticlassAccuracy", "test_MulticlassAccuracy"]
    assert [next(iter(stage)) for stage in stages] == names
    copies = [next(iter(stage.values())) for stage in stages]
    assert len({id(metric) for metric in [given, *copies]}) == 4
    assert {metric.tp.device.type for metric in copies} == {"meta"}
    assert module.loss.weight.device.type == "meta"
    assert given.tp.device.type == "cpu"


@pytest.mark.parametrize("rate", [0.25, np.float64(0.25), np.float32(0.25)])
def test_hyper_parameters_are_plain_and_reload(tmp_path: Path, rate: float) -> None:
    options = {"momentum": np.float64(0.5), "nesterov": True}
    module = TrainingModule(
        network(), gap, learning_rate=rate, optimizer="SGD", optimizer_options=options
    )
    run = trainer(tmp_path, max_epochs=0)
    run.fit(module, DataLoader(points(4, 1)))
    run.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    wanted = {
        "learning_rate": 0.25,
        "optimizer": "SGD",
        "optimizer_options": {"momentum": 0.5, "nesterov": True},
    }
    assert content["hyper_parameters"] == wanted
    fresh = network()
    nn.init.zeros_(fresh[0].weight)
    read = TrainingModule.load_from_checkpoint(tmp_path / "x.ckpt", model=fresh, loss=gap)
    assert dict(read.hparams) == wanted
    assert torch.equal(fresh[0].weight, module.model[0].weight)
    optimizer = read.configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.25, 0.5, True)


class Wide(TrainingModule):
    def __init__(self, width: int, learning_rate: float = 0.1) -> None:
        super().__init__(nn.Linear(width, 1), gap, learning_rate=learning_rate)


def test_a_subclass_reloads_by_its_own_arguments(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=0)
    run.fit(Wide(7, 0.5), DataLoader(points(4, 1)))
    run.save_checkpoint(tmp_path / "x.ckpt")
    read = Wide.load_from_checkpoint(tmp_path / "x.ckpt")
    assert read.model.in_features == 7
    assert read.configure_optimizers().param_groups[0]["lr"] == 0.5


def test_what_lightning_tunes_is_what_is_used() -> None:
    module = TrainingModule(network(), gap)
    module.hparams.learning_rate = 0.75  # what its learning-rate finder does
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.75


def test_frozen_parameters_are_left_to_the_caller() -> None:
    model = network()
    model[0].requires_grad_(False)
    [group] = TrainingModule(model, gap).configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    with pytest.raises(ModelError, match="no parameter to train"):
        TrainingModule(model.requires_grad_(False), gap).configure_optimizers()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rate": 0}, "learning_rate=0.0: it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"optimizer": "Adm"}, "optimizer='Adm' is none of torch.optim, such as Adam"),
        ({"optimizer": "lr_scheduler"}, "'lr_scheduler' is none of"),
        ({"optimizer_options": {"momentum": 1}}, "optimizer_options={'momentum': 1}: Adam says"),
        ({"optimizer_options": {"eps": -1}}, "Adam says Invalid epsilon"),
        ({"optimizer_options": {"eps": nn}}, r"optimizer_options\['eps'\] is module"),
        ({"metrics": nn.Linear(1, 1)}, "pass a torchmetrics Metric"),
        ({"metrics": {"accuracy": "accuracy"}}, "pass a torchmetrics Metric"),
        ({"metrics": {"loss": MeanSquaredError()}}, "one called 'loss'"),
    ],
)
def test_what_makes_no_sense_is_told_at_once(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        TrainingModule(network(), gap, **options)


@pytest.mark.parametrize(
    ("loss", "batch", "error", "told"),
    [
        (
            nn.MSELoss(reduction="none"),
            (torch.ones(4, 2), torch.ones(4, 1)),
            OptionError,
            r"\(4, 1",
        ),
        (lambda o, y: 3, (torch.ones(4, 2), torch.ones(4)), OptionError, "loss returned int"),
        (nn.MSELoss(), torch.ones(4, 2), DataError, "a train batch has no labels"),
        (nn.MSELoss(), {"input": torch.ones(4, 2), "x": torch.ones(4)}, DataError, "the key 'x'"),
    ],
)
def test_what_cannot_be_learnt_from_is_told(
    loss: Any, batch: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        TrainingModule(network(), loss).training_step(batch, 0)


def test_nothing_else_imports_lightning_and_training_says_how_to_get_it() -> None:
    code = """
import sys
import neurograph, neurograph.cli.main, neurograph.model.weights, neurograph.demos.heart
assert not {"pytorch_lightning", "lightning"} & set(sys.modules)
sys.modules["pytorch_lightning"] = None
try:
    import neurograph.training.fit
except ImportError as error:
    assert "pip install 'neurograph-torch[train]'" in str(error), error
else:
    sys.exit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
