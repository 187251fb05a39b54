"""Train with Lightning's Trainer, and get the best epoch back."""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader, Dataset

from neurograph.errors import DataError, OptionError
from neurograph.model.weights import load_weights
from neurograph.training.module import TrainingModule
from neurograph.training.random_state import seeded

__all__ = ["Fitted", "fit"]


@dataclass(frozen=True)
class Fitted:
    """What a training run leaves behind.

    Attributes
    ----------
    model : torch.nn.Module
        The network with the weights of its best epoch, in evaluation mode, on the CPU.
    checkpoint : pathlib.Path
        The file these weights were read from.
    test : mapping of str to float
        ``test_loss`` and ``test_METRIC`` of this network; empty without test samples.
    history : tuple of dict
        One entry an epoch: ``epoch``, and loss and metrics of training and validation.
    """

    model: nn.Module
    checkpoint: Path
    test: Mapping[str, float]
    history: tuple[dict[str, float], ...]


def fit(
    module: TrainingModule,
    train: Dataset[Any],
    validation: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    directory: str | Path,
    name: str = "best",
    epochs: int = 20,
    batch_size: int = 8,
    monitor: str = "validation_loss",
    mode: Literal["min", "max"] = "min",
    seed: int = 0,
    accelerator: str = "cpu",
    callbacks: Sequence[Callback] = (),
    tensorboard: str | Path | None = None,
    progress: bool | None = None,
) -> Fitted:
    """Train a network in place, and return it as it was in its best epoch.

    The best epoch's checkpoint is written to ``directory`` and read back (weights only) before the
    network is tested. The caller's random state is left as it was.

    Parameters
    ----------
    module : TrainingModule
        The network with its loss, metrics and optimizer.
    train, validation, test : torch.utils.data.Dataset
        Of pairs ``(input, label)``, or of dicts. Training samples are shuffled anew each epoch.
    directory : str or pathlib.Path
        Where the checkpoint goes; created if need be.
    name : str
        The checkpoint is ``directory/NAME.ckpt``; an older one of that name is replaced.
    epochs, batch_size
        The training's length, the samples in a step.
    monitor : str
        What decides which epoch is best: ``validation_loss`` or ``validation_METRIC``.
    mode : {"min", "max"}
        Whether the lowest or the highest is best.
    seed : int
        Seeds shuffling and whatever else is random in training. The network's own first weights
        are the caller's.
    accelerator : str
        Lightning's name of the device: ``"cpu"``, ``"gpu"``, ``"auto"``…
    callbacks : sequence of pytorch_lightning.Callback
        What else happens while training, a `CircuitCallback` for instance.
    tensorboard : str or pathlib.Path, optional
        A directory for TensorBoard: each run adds ``NAME/version_N``, with loss and metrics by
        epoch, the hyper-parameters, and the best epoch's numbers beside these. By default nothing
        is logged; no other place is written to.
    progress : bool, optional
        Whether to show a progress bar on stderr. Default: if that is a terminal.

    Returns
    -------
    Fitted
        The network and how it did.

    Raises
    ------
    OptionError
        If a number is out of range, or nothing is called like ``monitor``.
    DataError
        If a dataset is empty, or ``monitor`` was finite in no epoch.
    OSError
        If a directory cannot be created.

    Notes
    -----
    This is Lightning's Trainer with what a small study needs. For anything more, give the module
    to a `pytorch_lightning.Trainer` of your own.

    Examples
    --------
    >>> import tempfile
    >>> from neurograph.training import binary_classifier
    >>> from torch.utils.data import TensorDataset
    >>> X = torch.linspace(-1, 1, 64)[:, None]
    >>> data = TensorDataset(X, (X[:, 0] > 0).long())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     module = binary_classifier(nn.Linear(1, 1), learning_rate=0.1)
    ...     fitted = fit(module, data, data, directory=folder, epochs=3, progress=False)
    >>> fitted.history[-1]["validation_accuracy"] > 0.9
    True
    """
    _check(module, epochs, batch_size, monitor, mode)
    _check_data({"train": train, "validation": validation, "test": test})
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    history = _History(epochs, monitor, progress)
    best = ModelCheckpoint(
        directory,
        name,
        monitor=monitor,
        mode=mode,
        save_weights_only=True,
        enable_version_counter=False,
    )
    logger = _logger(tensorboard, name, epochs=epochs, batch_size=batch_size, seed=seed)
    loaders = _loaders(train, validation, test, batch_size, seed)
    with _quietly(), seeded(seed), history.bar:
        trainer = _trainer(directory, epochs, accelerator, [*callbacks, history, best], logger)
        trainer.fit(module, loaders["train"], loaders["validation"])
        if best.best_model_score is None or not best.best_model_score.isfinite():
            raise DataError(
                f"no epoch had a finite {_words(monitor)}: look for NaN in the data, or lower "
                f"learning_rate={module.hparams['learning_rate']}"
            )
        load_weights(module, best.best_model_path)
        tested: dict[str, float] = {}
        if "test" in loaders:
            [measured] = trainer.test(module, loaders["test"], verbose=False)
            tested.update(measured)
        if logger is not None:
            _log_run(logger, history.best(mode), tested)
    module.model.cpu().eval()
    return Fitted(module.model, directory / f"{name}.ckpt", tested, tuple(history.epochs))


def _check(module: TrainingModule, epochs: int, batch_size: int, monitor: str, mode: str) -> None:
    if not isinstance(module, TrainingModule):
        raise OptionError(
            f"module is {type(module).__name__}: give TrainingModule(model, loss), or "
            "binary_classifier(model)"
        )
    if epochs < 1:
        raise OptionError(f"epochs={epochs}: train for 1 epoch or more")
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size}: take 1 sample or more in a step")
    if mode not in ("min", "max"):
        raise OptionError(f"mode={mode!r} is neither 'min' nor 'max'")
    known = ["validation_loss", *module.validation_metrics]
    if monitor not in known:
        raise OptionError(f"monitor={monitor!r} is not logged: choose among {', '.join(known)}")


def _check_data(datasets: Mapping[str, Dataset[Any] | None]) -> None:
    for name, dataset in datasets.items():
        # Dataset need not say that it is sized.
        if dataset is not None and len(dataset) == 0:  # type: ignore[arg-type]
            raise DataError(f"{name} is empty: give at least one pair (input, label)")


def _loaders(
    train: Dataset[Any],
    validation: Dataset[Any],
    test: Dataset[Any] | None,
    batch_size: int,
    seed: int,
) -> dict[str, DataLoader[Any]]:
    shuffle = torch.Generator().manual_seed(seed)
    loaders = {"train": DataLoader(train, batch_size, shuffle=True, generator=shuffle)}
    # Nothing is learnt here, so larger batches only save time.
    loaders["validation"] = DataLoader(validation, 16 * batch_size)
    if test is not None:
        loaders["test"] = DataLoader(test, 16 * batch_size)
    return loaders


def _trainer(
    directory: Path,
    epochs: int,
    accelerator: str,
    callbacks: list[Callback],
    logger: TensorBoardLogger | None,
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        callbacks=callbacks,
        logger=logger or False,
        default_root_dir=directory,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _logger(
    directory: str | Path | None, name: str, **hyper_parameters: int
) -> TensorBoardLogger | None:
    """Make a logger that knows those hyper-parameters that the module does not."""
    if directory is None:
        return None
    logger = TensorBoardLogger(directory, name, default_hp_metric=False)
    logger.log_hyperparams(hyper_parameters)
    return logger


def _log_run(
    logger: TensorBoardLogger, best: Mapping[str, float], tested: dict[str, float]
) -> None:
    """Log the run as a whole, which TensorBoard compares with others by hyper-parameters."""
    numbers = {f"best/{key}": value for key, value in best.items()} | tested
    logger.log_hyperparams(dict(logger.hparams), numbers)
    logger.finalize("success")


def _words(name: str) -> str:
    return name.replace("_", " ")


class _History(Callback):
    """Keeps each epoch's figures, and moves the progress bar, which the caller opens and closes."""

    def __init__(self, epochs: int, monitor: str, progress: bool | None) -> None:
        console = Console(stderr=True)
        self.monitor = monitor
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
        text = f"{_words(self.monitor)} {figures[self.monitor]:.3f}"
        self.bar.update(self._task, advance=1, figures=text)

    def best(self, mode: str) -> dict[str, float]:
        """Figures of the best epoch, the first of equals as for `ModelCheckpoint`."""
        known = [figures for figures in self.epochs if math.isfinite(figures[self.monitor])]
        return (min if mode == "min" else max)(known, key=lambda figures: figures[self.monitor])


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
