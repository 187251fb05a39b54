"""Values as users hold them, read as tensors: columns, arrays, numbers, words, single samples."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_complex_dtype, is_numeric_dtype
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from neurograph.errors import DataError
from neurograph.utils.nested import tree_map

__all__ = [
    "collated",
    "in_order",
    "is_scalar",
    "label_array",
    "of_numbers",
    "read_inputs",
    "read_labels",
]

_PAD = (
    "pad them to one length, with an attention_mask among the inputs that is 0 where padding is "
    "(or pass batches of equal lengths)"
)
_SHOWN = 5


def read_inputs(value: Any, dtype: torch.dtype) -> Any:
    """Read a nested structure of inputs: what holds numbers becomes a tensor.

    Parameters
    ----------
    value : nested structure
    dtype : torch.dtype
        What floating-point numbers that are not in tensors become: the model's own.

    Raises
    ------
    DataError
        Columns that are not numbers or have missing values, or rows of different lengths.
    """
    if isinstance(value, Tensor):
        _check_plain(value)
    if isinstance(value, (Tensor, PackedSequence)) or value is None or is_scalar(value):
        return value
    if isinstance(value, Mapping):
        return {key: read_inputs(part, dtype) for key, part in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], list) and of_numbers(value):
        return _tensor(_array(value), dtype)
    if isinstance(value, (tuple, list)):
        parts = [read_inputs(part, dtype) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, pd.DataFrame):
        return _tensor(_frame(value), dtype)
    if isinstance(value, pd.Series):
        return _tensor(_column(value, f"column {value.name!r}"), dtype)
    if isinstance(value, np.ndarray) or hasattr(value, "to_numpy") or hasattr(value, "__array__"):
        return _tensor(_array(value), dtype)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Its fields are leaves of their own; a leaf that is no structure comes back as it is.
        return tree_map(lambda leaf: leaf if leaf is value else read_inputs(leaf, dtype), value)
    return value


def read_labels(value: Any, dtype: torch.dtype) -> Any:
    """Read labels: numbers as a tensor, words and categories as an array of str.

    Raises
    ------
    DataError
        A sample without a label.
    """
    if isinstance(value, Tensor) or value is None:
        return value
    if isinstance(value, Mapping):
        return {key: read_labels(part, dtype) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and not all(x is None or is_scalar(x) for x in value):
        if of_numbers(value):
            return _tensor(_array(list(value)), dtype)
        return type(value)(read_labels(part, dtype) for part in value)
    if isinstance(value, pd.DataFrame):
        return _tensor(_frame(value), dtype)
    found = label_array(value)
    return found if found.dtype.kind == "U" else _tensor(found, dtype)


def in_order(words: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """Class names, checked to hold all labels that are words.

    Raises
    ------
    DataError
        A label is none of them: its number among the model's outputs is not known.
    """
    for word in sorted(words):
        if word not in names:
            raise DataError(
                f"labels hold {word!r}, which is none of class_names ({', '.join(names)}): where "
                "labels are words, class_names are these words, in the order of the model's outputs"
            )
    return tuple(names)


def label_array(value: Any) -> np.ndarray:
    """Labels as an array of numbers where they are, else of str; DataError where one is missing."""
    if isinstance(value, pd.DataFrame):
        value = value.iloc[:, 0] if value.shape[1] == 1 else value.to_numpy()
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        found = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    elif np.ma.is_masked(value):
        found = _array(value)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        found = value
    elif isinstance(value, np.ndarray) and value.ndim > 1:
        found = _array(value)
    else:
        series = value if isinstance(value, pd.Series) else pd.Series(_listed(value))
        if isinstance(series.dtype, pd.CategoricalDtype):
            series = series.astype(series.cat.categories.dtype)
        missing = np.flatnonzero(series.isna())
        if len(missing):
            raise DataError(f"labels has no class for sample {missing[0]}: fill or drop it first")
        series = series.infer_objects()
        found = (
            _plain(series) if is_numeric_dtype(series.dtype) else np.array([*map(str, series)], "U")
        )
    return found


def _listed(value: Any) -> Any:
    """What pandas makes a column of."""
    if isinstance(value, (np.ndarray, pd.Index, pd.api.extensions.ExtensionArray)):
        return value
    if hasattr(value, "to_numpy"):
        return value.to_numpy()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise DataError(f"labels are {type(value).__name__}: pass one number or word a sample")
    return list(value)


def is_scalar(value: Any) -> bool:
    """Whether a value is one number or word."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0
    return isinstance(value, (str, bytes, numbers.Number, np.generic))


def of_numbers(value: Any) -> bool:
    """Whether a value is a list (of lists) of numbers, judged by the first of each.

    Examples
    --------
    >>> of_numbers([[1, 2], [3, 4]]), of_numbers(["a"]), of_numbers([])
    (True, False, False)
    """
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return is_scalar(value) and not isinstance(value, (str, bytes))


def collated(samples: Sequence[Any]) -> Any:
    """Make one batch of single samples, each leaf with a row for each.

    Raises
    ------
    DataError
        Samples of different lengths, shapes, or keys.
    """
    first = samples[0]
    if isinstance(first, Mapping):
        if any(set(sample) != set(first) for sample in samples):
            raise DataError("samples have different keys: give each the same")
        return {key: collated([sample[key] for sample in samples]) for key in first}
    if isinstance(first, (tuple, list)) and not (isinstance(first, list) and of_numbers(first)):
        if any(len(sample) != len(first) for sample in samples):
            raise DataError(f"samples have different numbers of parts or of steps: {_PAD}")
        parts = [collated(part) for part in zip(*samples, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    if isinstance(first, Tensor):
        _check_equal([tuple(sample.shape) for sample in samples])
        return torch.stack(list(samples))
    if first is None:
        return None
    if isinstance(first, np.ndarray):
        _check_equal([sample.shape for sample in samples])
        return np.stack(samples)
    if isinstance(first, str):
        return np.array([*map(str, samples)], "U")
    if isinstance(first, list) or is_scalar(first):
        return _array(list(samples))
    if hasattr(first, "__array__"):
        return collated([np.asarray(sample) for sample in samples])
    return list(samples)


def _check_equal(shapes: Sequence[tuple[int, ...]]) -> None:
    other = next((shape for shape in shapes if shape != shapes[0]), None)
    if other is not None:
        one, two = ("×".join(map(str, shape)) or "1" for shape in (shapes[0], other))
        raise DataError(f"samples have different shapes ({one} and {two}): {_PAD}")


_UNUSUAL: Mapping[str, Callable[[Tensor], bool]] = {
    "on the meta device, without values: load it": lambda x: x.is_meta,
    "nested: pass samples padded to one shape, with a mask": lambda x: x.is_nested,
    "quantised: pass data.dequantize()": lambda x: x.is_quantized,
    "of 8-bit floating-point numbers: pass data.float()": lambda x: (
        x.is_floating_point() and x.element_size() == 1
    ),
}


def _check_plain(tensor: Tensor) -> None:
    """DataError for a tensor that has no plain rows of values."""
    for description, is_so in _UNUSUAL.items():
        if is_so(tensor):
            raise DataError(f"data is a tensor that is {description}")


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    # torch warns of memory that it may not write to, and takes no steps backwards.
    # Nor does it know longer numbers than 64 bits, or bytes in the other order.
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()
    tensor = torch.as_tensor(array)
    # NumPy's default is float64; a model in float32 could not take it.
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _array(value: Any) -> np.ndarray:
    if np.ma.is_masked(value):
        row = np.argwhere(np.ma.getmaskarray(value))[0].tolist()
        raise DataError(f"data is masked at position {row}, it has no value there: fill it first")
    try:
        found = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
        if found.dtype == object and found.size:
            found = np.array(found.tolist())
    except ValueError:
        raise DataError(f"samples have different lengths: {_PAD}") from None
    if found.dtype.kind not in "biuf":
        raise DataError("data holds values that are not numbers: encode them first")
    return found


def _frame(frame: pd.DataFrame) -> np.ndarray:
    """Columns side by side: whole numbers if all are, else floating-point."""
    frame = frame.infer_objects()
    kinds = dict(zip(map(str, frame.columns), frame.dtypes, strict=True))
    odd = [name for name, kind in kinds.items() if not _is_real(kind)]
    if odd:
        shown = ", ".join(f"{name!r} ({kinds[name]})" for name in odd[:_SHOWN])
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise DataError(
            f"data has columns that are not numbers: {shown}{more}; encode them first "
            "(pandas.get_dummies), or leave them out"
        )
    columns = [
        _column(frame.iloc[:, i], f"column {name!r}") for i, name in enumerate(map(str, frame))
    ]
    if not columns:
        raise DataError("data has no columns")
    whole = all(column.dtype.kind in "biu" for column in columns)
    return np.stack([c.astype(np.int64 if whole else np.float64) for c in columns], axis=1)


def _is_real(kind: Any) -> bool:
    return is_numeric_dtype(kind) and not is_complex_dtype(kind)


def _column(series: pd.Series, name: str) -> np.ndarray:
    series = series.infer_objects()
    if not _is_real(series.dtype):
        raise DataError(f"{name} is not real numbers ({series.dtype}): encode it first")
    if not isinstance(series.dtype, np.dtype):
        missing = np.flatnonzero(series.isna())
        if len(missing):
            raise DataError(f"{name} has no value in row {missing[0]}: fill or drop it first")
    return _plain(series)


def _plain(series: pd.Series) -> np.ndarray:
    """The values of a column of numbers without missing ones."""
    if isinstance(series.dtype, np.dtype):
        return np.asarray(series.to_numpy())
    kinds = {"b": np.bool_, "i": np.int64, "u": np.int64}
    kind = getattr(series.dtype, "kind", "f")
    return np.asarray(series.to_numpy(dtype=kinds.get(kind, np.float64)))
