"""Train a binary classifier with PyTorch Lightning, and get its best epoch back.

This is the only file of the package that needs Lightning; nothing else imports it on its own.
"""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from neurograph.errors import DataError, ModelError, OptionError
from neurograph.weights import load_weights

try:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Callback, ModelCheckpoint
    from pytorch_lightning.utilities.seed import isolate_rng
    from torchmetrics.classification import BinaryAccuracy
except ImportError as error:  # pragma: no cover
    raise ImportError(
        f"training needs PyTorch Lightning ({error}): pip install 'neurograph-torch[train]'"
    ) from error

__all__ = ["Classifier", "Fitted", "fit"]

# Inputs and labels; the length is open because a TensorDataset does not say it either.
Batch = tuple[Tensor, ...]


class Classifier(pl.LightningModule):
    """Any network with one logit, trained on binary cross-entropy with Adam.

    Logs ``STAGE_loss`` and ``STAGE_accuracy`` once an epoch, for the stages ``train``,
    ``validation`` and ``test``.

    Parameters
    ----------
    model : torch.nn.Module
        Maps inputs ``[batch, ...]`` to logits ``[batch]`` or ``[batch, 1]``.
    learning_rate : float
        Adam's.

    Examples
    --------
    >>> classifier = Classifier(nn.Linear(3, 1))
    >>> classifier(torch.zeros(5, 3)).shape
    torch.Size([5, 1])
    >>> classifier.hparams.learning_rate
    0.001
    """

    def __init__(self, model: nn.Module, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.learning_rate = learning_rate
        # One a stage, as validation runs in the middle of a training epoch.
        self.train_accuracy = BinaryAccuracy()
        self.validation_accuracy = BinaryAccuracy()
        self.test_accuracy = BinaryAccuracy()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's logits for ``inputs``."""
        logits: Tensor = self.model(inputs)
        return logits

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of one batch of ``(inputs, labels)``."""
        return self._step("train", batch)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log one batch's loss and accuracy."""
        self._step("validation", batch)

    def test_step(self, batch: Batch, index: int) -> None:
        """Log one batch's loss and accuracy."""
        self._step("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def _step(self, stage: str, batch: Batch) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        if logits.numel() != len(labels):
            raise ModelError(
                f"model must return one logit a sample, [batch] or [batch, 1]: it returned "
                f"{tuple(logits.shape)} for {len(labels)} samples"
            )
        logits = logits.reshape(len(labels))
        loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        accuracy = getattr(self, f"{stage}_accuracy")
        accuracy(logits.detach(), labels)
        logged: dict[str, Any] = {f"{stage}_loss": loss, f"{stage}_accuracy": accuracy}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss


@dataclass(frozen=True)
class Fitted:
    """What a training run leaves behind.

    Attributes
    ----------
    model : torch.nn.Module
        The network with the weights of its best epoch, in evaluation mode, on the CPU.
    checkpoint : pathlib.Path
        The file these weights were read from.
    test_accuracy : float
        The share of the test samples that this network gets right, in 0..1.
    history : tuple of dict
        One entry an epoch: ``epoch``, and loss and accuracy of training and validation.
    """

    model: nn.Module
    checkpoint: Path
    test_accuracy: float
    history: tuple[dict[str, float], ...]


def fit(
    model: nn.Module,
    train: Dataset[Batch],
    validation: Dataset[Batch],
    test: Dataset[Batch],
    *,
    directory: str | Path,
    name: str = "best",
    epochs: int = 20,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    accelerator: str = "cpu",
    progress: bool | None = None,
) -> Fitted:
    """Train ``model`` in place, and return it as it was in its best epoch.

    The best epoch is the one with the lowest validation loss. Its checkpoint is written to
    ``directory`` and read back (weights only) before the network is tested. The caller's random
    state is left as it was.

    Parameters
    ----------
    model : torch.nn.Module
        A network with one logit, see `Classifier`.
    train, validation, test : torch.utils.data.Dataset
        Of pairs ``(input, label)``, labels 0 or 1. Training samples are shuffled anew each epoch.
    directory : str or pathlib.Path
        Where the checkpoint goes; created if need be.
    name : str
        The checkpoint is ``directory/NAME.ckpt``; an older one of that name is replaced.
    epochs, batch_size, learning_rate
        The training's length, the samples in a step, Adam's step size.
    seed : int
        Seeds shuffling and whatever else is random in training. The network's own first weights
        are the caller's.
    accelerator : str
        Lightning's name of the device: ``"cpu"``, ``"gpu"``, ``"auto"``…
    progress : bool, optional
        Whether to show a progress bar on stderr. Default: if that is a terminal.

    Returns
    -------
    Fitted
        The network and how it did.

    Raises
    ------
    OptionError
        If a number is out of range.
    DataError
        If a dataset is empty, or no epoch had a finite loss.
    ModelError
        If the network has not one logit a sample.
    OSError
        If ``directory`` cannot be created.
    """
    _check(
        epochs, batch_size, learning_rate, {"train": train, "validation": validation, "test": test}
    )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    history = _History(epochs, progress)
    best = ModelCheckpoint(
        directory,
        name,
        monitor="validation_loss",
        save_weights_only=True,
        enable_version_counter=False,
    )
    loaders = _loaders(train, validation, test, batch_size, seed)
    with _quietly(), isolate_rng(), history.bar:
        torch.manual_seed(seed)
        trainer = _trainer(epochs, accelerator, [best, history])
        classifier = Classifier(model, learning_rate)
        trainer.fit(classifier, loaders[0], loaders[1])
        if best.best_model_score is None or not best.best_model_score.isfinite():
            raise DataError(
                "no epoch had a finite validation loss: look for NaN in the data, or lower "
                f"learning_rate={learning_rate}"
            )
        load_weights(model, best.best_model_path)
        [tested] = trainer.test(classifier, loaders[2], verbose=False)
    model.cpu().eval()
    checkpoint = directory / f"{name}.ckpt"
    return Fitted(model, checkpoint, tested["test_accuracy"], tuple(history.epochs))


def _check(
    epochs: int, batch_size: int, learning_rate: float, datasets: dict[str, Dataset[Batch]]
) -> None:
    if epochs < 1:
        raise OptionError(f"epochs={epochs}: train for 1 epoch or more")
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: take 1 sample or more in a step")
    if not learning_rate > 0:
        raise OptionError(f"learning_rate={learning_rate}: it must be above 0")
    for name, dataset in datasets.items():
        if len(dataset) == 0:  # type: ignore[arg-type]  # Dataset need not say that it is sized
            raise DataError(f"{name} is empty: give at least one pair (input, label)")


def _loaders(
    train: Dataset[Batch],
    validation: Dataset[Batch],
    test: Dataset[Batch],
    batch_size: int,
    seed: int,
) -> tuple[DataLoader[Batch], ...]:
    shuffle = torch.Generator().manual_seed(seed)
    return (
        DataLoader(train, batch_size, shuffle=True, generator=shuffle),
        # Nothing is learnt here, so larger batches only save time.
        DataLoader(validation, 16 * batch_size),
        DataLoader(test, 16 * batch_size),
    )


def _trainer(epochs: int, accelerator: str, callbacks: list[Callback]) -> pl.Trainer:
    return pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


class _History(Callback):
    """Keeps each epoch's figures, and moves the progress bar, which the caller opens and closes."""

    def __init__(self, epochs: int, progress: bool | None) -> None:
        console = Console(stderr=True)
        self.epochs: list[dict[str, float]] = []
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (console.is_terminal if progress is None else progress),
        )
        self._task = self.bar.add_task("", total=epochs, figures="")

    # Not on_validation_epoch_end: training figures come later than that.
    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append({"epoch": trainer.current_epoch, **figures})
        text = f"validation accuracy {figures['validation_accuracy']:.3f}"
        self.bar.update(self._task, advance=1, figures=text)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence Lightning's notices and advice, and keep Ctrl-C what it is."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    main = threading.current_thread() is threading.main_thread()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric")
            yield
    except SystemExit as stop:
        # Lightning answers Ctrl-C by leaving the process; that is for the caller to decide.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if main and on_interrupt is not None:
            signal.signal(signal.SIGINT, on_interrupt)
