"""Any network with any loss, any metrics and any of torch's optimizers, for Lightning's Trainer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from neurograph.data.source import Batch, as_batch
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.utils.nested import tree_map

__all__ = ["STAGES", "Loss", "Metrics", "TrainingModule"]

Loss = Callable[[Any, Any], Any]
"""From the model's output and the labels to one number."""

Metrics = Metric | MetricCollection | Mapping[str, Metric] | Sequence[Metric]

STAGES = ("train", "validation", "test")


class TrainingModule(pl.LightningModule):
    """Any network, trained by any loss, for any `pytorch_lightning.Trainer`.

    Logs ``STAGE_loss`` and ``STAGE_METRIC`` once an epoch, for the stages ``train``,
    ``validation`` and ``test``. A batch is ``(inputs, labels)`` or a dict of keyword arguments, as
    for `neurograph.search`. For schedulers or several optimizers, override
    `configure_optimizers`.

    Parameters
    ----------
    model : torch.nn.Module
        The network; never a hyper-parameter, so that checkpoints hold its weights alone.
    loss : callable
        ``(output, labels) -> scalar``; where it is a module, it is trained and moved along.
    metrics : torchmetrics.Metric, MetricCollection, mapping or sequence of Metric, optional
        Each computes one number. Each stage has copies of its own, which follow the device. A
        mapping names them; else they are called what their classes are.
    predict : callable, optional
        From the model's output to what the metrics compare with the labels, such as
        `torch.sigmoid`; the output itself by default. `predict_step` returns the same.
    learning_rate : float
        The optimizer's step size.
    optimizer : str
        A class of `torch.optim` by its name.
    optimizer_options : mapping, optional
        What else the optimizer takes, such as ``{"weight_decay": 0.01}``; plain values.

    Raises
    ------
    OptionError
        An unknown optimizer or option, a learning rate that is not above 0, an object that is no
        metric; and while training, a loss that is not one number.
    DataError
        While training, a batch without labels or with unknown keys.

    Notes
    -----
    ``hparams`` holds ``learning_rate``, ``optimizer`` and ``optimizer_options``, plain values that
    are read back by ``TrainingModule.load_from_checkpoint(path, model=..., loss=...,
    weights_only=True)``. Binary metrics of torchmetrics take numbers that all happen to lie in
    0..1 for probabilities, even if they are logits: give them probabilities by `predict`.

    Examples
    --------
    >>> from torchmetrics.classification import MulticlassAccuracy
    >>> metrics = {"accuracy": MulticlassAccuracy(3)}
    >>> module = TrainingModule(nn.Linear(2, 3), nn.CrossEntropyLoss(), metrics, learning_rate=0.1)
    >>> module(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    >>> module.hparams.learning_rate
    0.1
    >>> list(module.validation_metrics)
    ['validation_accuracy']
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        metrics: Metrics | None = None,
        *,
        predict: Callable[[Any], Any] | None = None,
        learning_rate: float = 1e-3,
        optimizer: str = "Adam",
        optimizer_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Plain before they are saved: NumPy's numbers, say, are nothing that weights_only reads.
        learning_rate = float(learning_rate)
        optimizer_options = {k: _plain(k, v) for k, v in (optimizer_options or {}).items()}
        _check_optimizer(optimizer, learning_rate, optimizer_options)
        self.save_hyperparameters(ignore=["model", "loss", "metrics", "predict"])
        self.model = model
        self.loss = loss
        self.predict = _same if predict is None else predict
        collection = _collection(metrics)
        # One a stage, as validation runs in the middle of a training epoch.
        self.train_metrics, self.validation_metrics, self.test_metrics = (
            collection.clone(prefix=f"{stage}_") for stage in STAGES
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output."""
        return self.model(*args, **kwargs)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Return the loss of one batch."""
        return self._step("train", batch)

    def validation_step(self, batch: Any, index: int) -> None:
        """Log one batch's loss and metrics."""
        self._step("validation", batch)

    def test_step(self, batch: Any, index: int) -> None:
        """Log one batch's loss and metrics."""
        self._step("test", batch)

    def predict_step(self, batch: Any, index: int) -> Any:
        """Return what `predict` makes of the output for one batch, labelled or not."""
        given = self._batch(batch)
        return self.predict(self(*given.args, **given.kwargs))

    def configure_optimizers(self) -> Any:
        """Return the optimizer of all parameters that are not frozen."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            raise ModelError("model has no parameter to train: all are frozen, or there are none")
        options: Mapping[str, Any] = self.hparams["optimizer_options"]
        optimizer = getattr(torch.optim, self.hparams["optimizer"])
        return optimizer(parameters, lr=self.hparams["learning_rate"], **options)

    def _batch(self, raw: Any) -> Batch:
        return as_batch(raw, inspect.signature(self.model.forward).parameters)

    def _step(self, stage: str, raw: Any) -> Tensor:
        batch = self._batch(raw)
        if batch.labels is None:
            raise DataError(
                f"a {stage} batch has no labels: make it (inputs, labels), or a dict with 'labels'"
            )
        output = self(*batch.args, **batch.kwargs)
        loss: Any = self.loss(output, batch.labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            returned = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise OptionError(f"loss returned {returned}: it must return one number, a mean say")
        metrics = getattr(self, f"{stage}_metrics")
        with torch.no_grad():
            metrics.update(self.predict(tree_map(_detached, output)), batch.labels)
        by_epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": batch.size}
        self.log(f"{stage}_loss", loss, sync_dist=True, **by_epoch)
        self.log_dict(metrics, **by_epoch)
        return loss


def _same(output: Any) -> Any:
    return output


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _collection(metrics: Metrics | None) -> MetricCollection:
    given = [] if metrics is None else metrics
    try:
        collection = MetricCollection(dict(given) if isinstance(given, Mapping) else given)
    except ValueError as error:
        raise OptionError(
            f"metrics={metrics!r}: pass a torchmetrics Metric, several of them, or a mapping of "
            "names to them"
        ) from error
    if "loss" in collection:
        raise OptionError("metrics has one called 'loss', as the loss itself is: rename it")
    return collection


def _plain(name: str, value: Any) -> Any:
    """Return a value that a checkpoint can hold for weights_only, or OptionError."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, list)):
        items = [_plain(name, item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise OptionError(
        f"optimizer_options[{name!r}] is {type(value).__name__}: give a number, a string, or a "
        "list of them, or override configure_optimizers"
    )


def _check_optimizer(name: str, learning_rate: float, options: Mapping[str, Any]) -> None:
    if not learning_rate > 0:
        raise OptionError(f"learning_rate={learning_rate}: it must be above 0")
    known = [key for key, value in vars(torch.optim).items() if _is_optimizer(value)]
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3) or ["Adam", "AdamW", "SGD"]
        raise OptionError(f"optimizer={name!r} is none of torch.optim, such as {', '.join(near)}")
    try:
        getattr(torch.optim, name)([torch.zeros(1)], lr=learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise OptionError(f"optimizer_options={dict(options)}: {name} says {error}") from error


def _is_optimizer(value: Any) -> bool:
    base = torch.optim.Optimizer
    return isinstance(value, type) and issubclass(value, base) and value is not base
