"""Search the network while it learns, every few epochs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from neurograph.errors import OptionError
from neurograph.model.target import TargetFunction
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.options import SearchOptions, StudyOptions, read_options, split_options
from neurograph.questions.functions import search
from neurograph.training.random_state import seeded
from neurograph.training.snapshot import Snapshot
from neurograph.utils.atomic import check_writable
from neurograph.utils.checks import is_path, shown, whole

__all__ = ["CircuitCallback"]


class CircuitCallback(Callback):
    """Search the network every few epochs of its training, and once more at the end.

    Each circuit is saved as ``DIRECTORY/NAME-epoch=NNN.circuit``, numbered as Lightning numbers
    its checkpoints (from 0), and kept in `history`. Its numbers (`Snapshot.numbers`, among them how
    alike it and the circuit before it are) go to every logger of the trainer as ``NAME/…``, and to
    TensorBoard its strongest paths as text.

    Training is left as it would be without: weights, gradients, modes, buffers, random numbers.
    All searches see the same samples: whatever shuffles the data is seeded anew by ``seed`` for
    each of them.

    Parameters
    ----------
    data, target
        As for `neurograph.search`. Tensors or a data set of their own are best, rather than the
        loader that training reads from.
    every : int
        Search after so many epochs, and after the last.
    directory : str or pathlib.Path
        Where circuits go; created if need be, older circuits of the same name and epoch are
        replaced.
    name : str
        Tells callbacks apart: of files, and of what is logged.
    module : str, optional
        Which network: a path in the LightningModule, ``""`` for that itself. By default its
        ``model`` if it has one, else itself.
    **options
        Other options of `neurograph.search`, but for ``profile``.

    Attributes
    ----------
    history : list of Snapshot
        The circuits of the latest training, in order.

    Raises
    ------
    OptionError
        An unknown option or a value that means nothing: at once. Before the first step of
        training: no such module, a folder that cannot be written to.
    ModelError, DataError
        Before the first step of training: model, data and target do not go together.

    Notes
    -----
    A search that fails later, because the weights have become NaN, memory or disk is full, or for
    any other reason, does not end training: a RuntimeWarning and TensorBoard report it, and it
    leaves no circuit for this epoch. Ctrl-C during a search interrupts training as at any other
    time; circuits that were saved stay.

    In distributed training the first process searches while the others wait, and only it has a
    history. Weights that are spread over processes (FSDP) cannot be searched. A training that is
    resumed from a checkpoint begins a new history.

    Examples
    --------
    >>> import tempfile
    >>> from neurograph.training import TrainingModule
    >>> from torch.utils.data import TensorDataset
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> X = torch.rand(64, 3)
    >>> data = DataLoader(TensorDataset(X, X.sum(1, keepdim=True)), batch_size=16)
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> module = TrainingModule(model, nn.MSELoss(), learning_rate=0.01)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     watch = CircuitCallback(X, target=1, every=2, directory=folder)
    ...     quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    ...     trainer = pl.Trainer(
    ...         max_epochs=3, callbacks=watch, default_root_dir=folder, logger=False,
    ...         enable_checkpointing=False, accelerator="cpu", log_every_n_steps=1, **quiet
    ...     )
    ...     trainer.fit(module, data)
    >>> watch.to_frame()["epoch"].tolist()
    [1, 2]
    """

    def __init__(
        self,
        data: Any,
        target: int | str | TargetFunction | None = None,
        *,
        every: int = 5,
        directory: str | Path = "outputs",
        name: str = "circuit",
        module: str | None = None,
        **options: Any,
    ) -> None:
        every = whole(every, "every", least=1)
        if not is_path(directory):
            raise OptionError(f"directory={shown(directory)} is no path of a folder")
        self.history: list[Snapshot] = []
        self._data, self._target, self._every = data, target, every
        self._directory, self._name, self._module = Path(directory), name, module
        # Lightning shows a bar of its own, which a second one would tear.
        self._options = {"progress": False, **options}
        self._seed = _check(self._options)
        self._ended: int | None = None

    def to_frame(self) -> pd.DataFrame:
        """Table of the history: ``epoch``, ``step`` and what `Snapshot.numbers` gives."""
        return pd.DataFrame(
            [{"epoch": s.epoch, "step": s.step, **s.numbers()} for s in self.history]
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check, before any training is spent, that there is something to search."""
        self.history, self._ended = [], None
        if trainer.is_global_zero:
            self._directory.mkdir(parents=True, exist_ok=True)
            check_writable(self._path(0))
            with self._alone():
                model, options = (
                    self._network(pl_module),
                    split_options(SearchOptions, self._options, "search")[0],
                )
                study = BaseStudy(model, self._data, self._target, **options)
                recorded = study.experiment.recording
                study.target(recorded.output, lambda: recorded.batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Search if it is time to."""
        self._ended = trainer.current_epoch
        if (self._ended + 1) % self._every == 0:
            self._record(trainer, pl_module, self._ended)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Search what came out, unless the last epoch was searched."""
        if self._ended is not None and (self._ended + 1) % self._every:
            self._record(trainer, pl_module, self._ended)

    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        if trainer.is_global_zero:
            try:
                snapshot = self._search(pl_module, epoch, trainer.global_step)
            # Whatever went wrong with a measurement beside it, the training is worth more.
            except Exception as error:
                text = f"no circuit at epoch {epoch}: {type(error).__name__}: {error}"
                warnings.warn(f"{text}; training goes on", RuntimeWarning, stacklevel=2)
                self._log(trainer, {}, text)
            else:
                self.history.append(snapshot)
                self._log(trainer, snapshot.numbers(), snapshot.markdown())
        trainer.strategy.barrier("circuit")

    def _search(self, pl_module: pl.LightningModule, epoch: int, step: int) -> Snapshot:
        with self._alone():
            model = self._network(pl_module)
            circuit = search(model, self._data, self._target, **self._options)
        last = self.history[-1] if self.history else None
        snapshot = Snapshot.of(epoch, step, circuit, self._path(epoch), last)
        snapshot.circuit.save(snapshot.path)
        return snapshot

    def _log(self, trainer: pl.Trainer, numbers: dict[str, float], text: str) -> None:
        known = {f"{self._name}/{key}": n for key, n in numbers.items() if math.isfinite(n)}
        for logger in trainer.loggers:
            if known:
                logger.log_metrics(known, trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"{self._name}/paths", text, trainer.global_step)

    def _path(self, epoch: int) -> Path:
        return self._directory / f"{self._name}-epoch={epoch:03d}.circuit"

    def _network(self, pl_module: pl.LightningModule) -> nn.Module:
        if self._module is None:
            model = getattr(pl_module, "model", None)
            return model if isinstance(model, nn.Module) else pl_module
        try:
            return pl_module.get_submodule(self._module)
        except AttributeError as error:
            raise OptionError(f"module={self._module!r}: {error}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Search beside the training: on the same samples each time, with no trace left.

        The other processes of a distributed training wait meanwhile.
        """
        generators = list(_generators(self._data, self._options))
        states = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(self._seed)
            with seeded(self._seed):
                yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _check(given: dict[str, Any]) -> int:
    """Check options of searches, and return their seed."""
    if "profile" in given:
        raise OptionError("profile= is of other weights at each search: leave it out")
    of_study, own = split_options(SearchOptions, given, "search")
    read_options(SearchOptions, own, "search")
    return int(read_options(StudyOptions, of_study, "search")["seed"])


def _generators(data: Any, options: dict[str, Any]) -> Iterator[torch.Generator]:
    """Generators of the loaders among what is searched, each once."""
    contrast = options.get("contrast")
    seen: set[int] = set()
    for loader in (data, options.get("reference"), getattr(contrast, "data", None)):
        if isinstance(loader, DataLoader):
            batches = loader.batch_sampler
            for owner in (loader, loader.sampler, batches, getattr(batches, "sampler", None)):
                generator = getattr(owner, "generator", None)
                if isinstance(generator, torch.Generator) and id(generator) not in seen:
                    seen.add(id(generator))
                    yield generator
