"""Whatever users have as data, read as batches of model inputs with their labels."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from neurograph.errors import DataError
from neurograph.nested import iter_tensors, tree_map

__all__ = [
    "Batch",
    "Source",
    "as_batch",
    "concatenate",
    "describe_shapes",
    "draw",
    "fingerprint",
]

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """One batch: what `model(*args, **kwargs)` gets, and the labels beside it (or None)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    labels: Any = None

    @functools.cached_property
    def size(self) -> int:
        """How many samples: the first dimension of the first input tensor."""
        first = next(self.tensors(), None)
        if first is None or first.dim() == 0:
            raise DataError("a batch holds no tensor with a batch dimension: pass model inputs")
        return int(first.shape[0])

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors among the model's inputs."""
        return iter_tensors((self.args, dict(self.kwargs)))

    def map(self, change: Any) -> Batch:
        """Return the batch with `change` applied to every tensor that has one row a sample."""
        size = self.size

        def on_rows(leaf: Any) -> Any:
            by_row = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
            return change(leaf) if by_row else leaf

        args, kwargs, labels = tree_map(on_rows, (self.args, dict(self.kwargs), self.labels))
        return Batch(args, kwargs, labels)


class Source:
    """Data of any kind as a stream of batches that can be read again and again.

    Parameters
    ----------
    data : Tensor, ndarray, DataFrame, (X, y) pair, dict, Dataset, DataLoader or list of batches
        A batch (an item of the last two) is a tensor, a pair ``(inputs, labels)``, or a dict of
        keyword arguments. Several positional inputs are a tuple inside the pair:
        ``((x1, x2), y)``.
    model : Module
        Whose ``forward`` signature says which keys of a dict are inputs, and on whose device
        the batches go.
    batch_size : int
        Samples a batch where the data does not come in batches already.

    Raises
    ------
    DataError
        Data of no known kind, an iterator that can be read only once, no samples, or values
        that are NaN or infinite.
    """

    def __init__(self, data: Any, model: nn.Module, *, batch_size: int = 256) -> None:
        self._data = data
        self._batch_size = batch_size
        parameter = next(model.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        self._dtype = _float_dtype(model)
        self._parameters = inspect.signature(model.forward).parameters
        self.feature_names = (
            tuple(map(str, _inputs_of(data).columns))
            if isinstance(_inputs_of(data), pd.DataFrame)
            else None
        )
        if isinstance(data, Iterator):
            raise DataError(
                "data is an iterator, which can be read only once: pass a list of its batches, "
                "a Dataset or a DataLoader"
            )

    @property
    def shuffled(self) -> bool:
        """Whether samples come in another order every time."""
        return isinstance(self._data, DataLoader) and isinstance(self._data.sampler, RandomSampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield checked batches; DataError if there are none."""
        empty = True
        for position, raw in enumerate(self._raw()):
            batch = self._batch(raw)
            if batch.size == 0:
                continue
            _check_finite(batch, position)
            empty = False
            yield batch
        if empty:
            raise DataError("data holds no samples")

    def _raw(self) -> Iterable[Any]:
        data = self._data
        if isinstance(data, DataLoader):
            return data
        if isinstance(data, Dataset):
            return DataLoader(data, batch_size=self._batch_size)
        if isinstance(data, tuple) and len(data) == 2:
            return self._slices(data)
        if isinstance(data, (Tensor, np.ndarray, pd.DataFrame)):
            return self._slices((data, None))
        if isinstance(data, Mapping):
            return self._slices(dict(data))
        if isinstance(data, tuple):
            raise DataError(
                f"data is a tuple of {len(data)}: pass (X, y), and several inputs as ((x1, x2), y)"
            )
        if isinstance(data, Iterable) and not isinstance(data, str):
            return data
        raise DataError(
            f"data is {type(data).__name__}: pass a tensor, an (X, y) pair, a dict, a Dataset "
            "or a DataLoader"
        )

    def _slices(self, whole: Any) -> Iterator[Any]:
        whole = tree_map(self._tensor, whole)
        inputs = whole[0] if isinstance(whole, tuple) else whole
        sizes = [t.shape[0] for t in iter_tensors(inputs) if t.dim() > 0]
        if not sizes:
            raise DataError("data holds no tensor with a batch dimension")
        size = sizes[0]
        labels = whole[1] if isinstance(whole, tuple) else None
        if isinstance(labels, Tensor) and labels.shape[:1] != (size,):
            raise DataError(f"X has {size} samples but y has shape {tuple(labels.shape)}")
        for start in range(0, size, self._batch_size):
            rows = slice(start, start + self._batch_size)

            def cut(leaf: Any, rows: slice = rows) -> Any:
                by_row = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
                return leaf[rows] if by_row else leaf

            yield tree_map(cut, whole)

    def _tensor(self, leaf: Any) -> Any:
        if isinstance(leaf, (pd.DataFrame, pd.Series)):
            leaf = leaf.to_numpy()
        if isinstance(leaf, np.ndarray):
            if leaf.dtype == object:
                raise DataError("data has columns that are not numbers: encode them first")
            leaf = torch.as_tensor(leaf)
            # NumPy's default is float64; a model in float32 could not take it.
            return leaf.to(self._dtype) if leaf.is_floating_point() else leaf
        return leaf

    def _batch(self, raw: Any) -> Batch:
        raw = tree_map(self._tensor, raw)
        raw = tree_map(lambda x: x.to(self._device) if isinstance(x, Tensor) else x, raw)
        return as_batch(raw, self._parameters)


def as_batch(raw: Any, parameters: Mapping[str, inspect.Parameter]) -> Batch:
    """Split one batch, as a loader gives it, into the model's inputs and the labels.

    Parameters
    ----------
    raw : Tensor, pair or dict
        Inputs, ``(inputs, labels)`` with several inputs as ``((x1, x2), y)``, or keyword
        arguments, of which ``labels``, ``label``, ``targets``, ``target`` or ``y`` are labels
        unless the model cannot do without them.
    parameters : mapping
        Those of the model's ``forward``.

    Raises
    ------
    DataError
        A tuple of another length, or a key that ``forward`` does not take.

    Examples
    --------
    >>> parameters = inspect.signature(lambda x: x).parameters
    >>> as_batch({"x": torch.ones(2), "y": torch.zeros(2)}, parameters).labels
    tensor([0., 0.])
    """
    inputs, labels = raw, None
    if isinstance(raw, (tuple, list)):
        if len(raw) > 2 or not raw:
            raise DataError(
                f"a batch is a tuple of {len(raw)}: make it (inputs, labels), with several "
                "inputs as ((x1, x2), y) or a dict of keyword arguments"
            )
        inputs, labels = raw[0], raw[1] if len(raw) == 2 else None
    if isinstance(inputs, Mapping):
        kwargs, found = _keywords(inputs, parameters)
        return Batch((), kwargs, found if labels is None else labels)
    args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return Batch(args, {}, labels)


def _keywords(
    inputs: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> tuple[dict[str, Any], Any]:
    """Split a dict batch into keyword arguments and labels."""
    kwargs, labels = dict(inputs), None
    required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
    for key in _LABEL_KEYS:
        if key in kwargs and key not in required:
            labels = kwargs.pop(key)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in kwargs if key not in parameters]
    if unknown and not open_ended:
        raise DataError(
            f"the batch has the key {unknown[0]!r}, which the model's forward does not "
            f"take (it takes {', '.join(parameters)})"
        )
    return kwargs, labels


def _inputs_of(data: Any) -> Any:
    return data[0] if isinstance(data, tuple) and data else data


def _float_dtype(model: nn.Module) -> torch.dtype:
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(dtypes, torch.get_default_dtype())


def _check_finite(batch: Batch, position: int) -> None:
    for tensor in batch.tensors():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            where = torch.nonzero(~torch.isfinite(tensor))[0].tolist()
            raise DataError(
                f"data holds NaN or infinity in batch {position} at position {where}: "
                "fill or drop it first"
            )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches of equal structure along the batch dimension."""
    if len(batches) == 1:
        return batches[0]

    def join(*leaves: Any) -> Any:
        if isinstance(leaves[0], Tensor) and leaves[0].dim() > 0:
            shapes = {tuple(leaf.shape[1:]) for leaf in leaves}
            if len(shapes) > 1:
                raise DataError(
                    f"samples have different shapes ({', '.join(map(str, sorted(shapes)))}): "
                    "pad them to one shape"
                )
            return torch.cat(leaves)
        return leaves[0]

    trees = [(b.args, dict(b.kwargs), b.labels) for b in batches]
    args, kwargs, labels = tree_map(join, *trees)
    return Batch(args, kwargs, labels)


def draw(source: Iterable[Batch], count: int, seed: int) -> tuple[Batch, tuple[int, ...]]:
    """Draw `count` samples uniformly without replacement, in the order they came.

    Every sample gets a random key and the smallest keys stay, so one pass is enough and the
    length of the data need not be known (reservoir sampling by priorities).

    Returns
    -------
    batch : Batch
        The samples; all of them if there are no more than `count`.
    positions : tuple of int
        Where in the data they stood.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[float, int, Batch]] = []
    start = 0
    for batch in source:
        keys = torch.rand(batch.size, generator=generator, dtype=torch.float64)
        limit = max(k for k, _, _ in kept) if len(kept) == count else float("inf")
        rows = keys.argsort()[:count]
        rows = rows[keys[rows] < limit]
        drawn = zip(keys[rows].tolist(), rows.tolist(), strict=True)
        kept += [(key, start + row, _row(batch, row)) for key, row in drawn]
        kept = sorted(kept, key=lambda item: item[0])[:count]
        start += batch.size
    kept.sort(key=lambda item: item[1])
    return concatenate([b for _, _, b in kept]), tuple(position for _, position, _ in kept)


def _row(batch: Batch, row: int) -> Batch:
    return batch.map(lambda leaf: leaf[row : row + 1])


def fingerprint(tensors: Iterable[Tensor], digest: Any = None) -> Any:
    """Feed shapes, dtypes and bytes of tensors to a SHA-256 digest and return it."""
    digest = hashlib.sha256() if digest is None else digest
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest


def describe_shapes(batch: Batch) -> str:
    """Shapes of a batch's inputs, for error messages."""
    shapes = [str(tuple(t.shape)) for t in batch.tensors()]
    return ", ".join(shapes)
