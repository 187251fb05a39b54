"""Read data from the files people have: CSV, NumPy, torch and safetensors, never running any."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from neurograph.errors import DataError
from neurograph.utils.nested import flatten
from neurograph.utils.tensor_files import read_tensors

__all__ = ["SUFFIXES", "read_data"]


def read_data(path: str | Path, label: str | None = None) -> Any:
    """Read a file into data that `search` takes.

    Parameters
    ----------
    path : str or pathlib.Path
        ``.csv``: a header and numbers; ``.npy``, ``.npz``, ``.pt``, ``.pth``, ``.safetensors``:
        an array, or several by name. Arrays ``X`` and ``y`` are inputs and labels; other names
        are the arguments of the model's ``forward``.
    label : str, optional
        CSV column that is the label and no input.

    Returns
    -------
    DataFrame, (X, y) pair, Tensor, ndarray, or dict, tuple or list of these

    Raises
    ------
    DataError
        No such file, an unknown kind, a damaged one, a column that is not numeric, or anything
        that only unpickling could read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"'{path}' is of no known kind: give one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"no data at '{path}': give the path of a file that is there")
    if suffix == ".csv":
        return _read_csv(path, label)
    if label is not None:
        raise DataError(f"label={label!r} names a column of a CSV file, and '{path}' is none")
    return _by_name(_READERS[suffix](path), path)


def _read_csv(path: Path, label: str | None) -> Any:
    try:
        table = pd.read_csv(path, skipinitialspace=True)
    except ValueError as error:
        raise DataError(f"'{path}' is not a readable CSV file ({error})") from error
    if label is not None and label not in table:
        known = ", ".join(map(str, table.columns))
        raise DataError(f"'{path}' has no column {label!r} for the label; it has {known}")
    inputs = table if label is None else table.drop(columns=label)
    for column in inputs:
        _check_column(inputs[column], path)
    inputs = inputs.astype(np.float64)
    if label is None:
        return inputs
    # Labels may be words; only which are equal matters then.
    is_number = pd.api.types.is_numeric_dtype(table[label])
    return inputs, table[label].to_numpy() if is_number else pd.factorize(table[label], True)[0]


def _check_column(values: pd.Series, path: Path) -> None:
    numbers = pd.to_numeric(values, errors="coerce")
    odd = ~np.isfinite(numbers.to_numpy(np.float64))
    if not odd.any():
        return
    where = f"'{path}', row {odd.argmax() + 1}, column {values.name!r}"
    found = values.iloc[odd.argmax()]
    if pd.isna(found):
        raise DataError(f"{where}: the value is missing; fill or drop it first")
    raise DataError(
        f"{where}: {found!r} is not a finite number; encode the column, or drop it "
        "(if it is the label, say so with its name)"
    )


def _read_numpy(path: Path) -> Any:
    try:
        # A pickle among the arrays is refused.
        content = np.load(path, allow_pickle=False)
        return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else content
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' is not a readable file of NumPy arrays ({error})") from error


def _read_tensors(path: Path) -> Any:
    return read_tensors(path, DataError, kind="tensors", advice="save tensors alone")


def _by_name(content: Any, path: Path) -> Any:
    """Check that there are only arrays, and make a pair of those called X and y."""
    leaves = flatten(content)[0]
    odd = [leaf for leaf in leaves if not isinstance(leaf, (torch.Tensor, np.ndarray))]
    if odd or not leaves:
        found = type(odd[0]).__name__ if odd else "nothing"
        raise DataError(f"'{path}' holds {found}: save a tensor, or a dict or tuple of tensors")
    if not isinstance(content, Mapping):
        return content
    if set(content) == {"X", "y"}:
        return content["X"], content["y"]
    return next(iter(content.values())) if len(content) == 1 else dict(content)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_tensors,
    ".pth": _read_tensors,
    ".safetensors": _read_tensors,
}
SUFFIXES = (".csv", *_READERS)
