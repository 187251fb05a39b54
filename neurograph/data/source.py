"""Whatever users have as data, read as batches of model inputs with their labels."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
)

from neurograph.data.reading import (
    collated,
    in_order,
    is_scalar,
    of_numbers,
    read_inputs,
    read_labels,
)
from neurograph.data.taking import FEW, cast, find_casts, output_of
from neurograph.errors import DataError
from neurograph.model.batch import (
    LABEL_KEYS,
    Batch,
    as_batch,
    concatenate,
    describe_shapes,
    fingerprint,
    is_sole_argument,
    shape_of,
    unknown_key,
)
from neurograph.model.state import ALONE, Generators, drawn_alike
from neurograph.utils.checks import different_names
from neurograph.utils.nested import flatten, iter_tensors, leaf_names, main_index, tree_map

__all__ = [
    "Batch",
    "Drawn",
    "Source",
    "as_batch",
    "check_same_columns",
    "concatenate",
    "describe_shapes",
    "draw",
    "fingerprint",
]

_COLLATED = 3  # single samples that are tried as a batch


class Source:
    """Data of any kind as a stream of batches that can be read again and again.

    Parameters
    ----------
    data : Tensor, ndarray, DataFrame, (X, y) pair, dict, Dataset, DataLoader or list
        A batch (an item of a DataLoader or a list) is a tensor, a pair ``(inputs, labels)``, or a
        dict of keyword arguments. Several positional inputs are a tuple inside the pair:
        ``((x1, x2), y)``. The items of a list may be single samples too, as those of a Dataset
        are; where it cannot be seen which they are, the model is asked what it takes.
    model : Module
        Whose ``forward`` signature says which keys of a dict are inputs, and on whose device
        the batches go.
    batch_size : int
        Samples a batch where the data does not come in batches already.
    class_names : sequence of str, optional
        What labels that are words stand for, in the order of the model's outputs.

    Attributes
    ----------
    feature_names : tuple of str or None
        Columns of a DataFrame.
    classes : tuple of str or None
        What labels that are words stand for: batches hold their numbers, in the order of the class
        names, else in sorted order. Known once a batch was read.
    notes : tuple of str
        What was decided about the data while it was read, in plain sentences.

    Raises
    ------
    DataError
        Data of no known kind, an iterator that can be read only once, no samples, values that
        are NaN or infinite, columns that are not numbers, or samples of different shapes.
    """

    def __init__(
        self,
        data: Any,
        model: nn.Module,
        *,
        batch_size: int = 256,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._batch_size, self._class_names = batch_size, class_names
        self._model = model
        parameter = next(model.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        self._dtype = _float_dtype(model)
        self._parameters = inspect.signature(model.forward).parameters
        self._notes: dict[str, None] = {}
        self._casts: dict[int, torch.dtype] | None = None
        self._fixed: frozenset[int] | None = None
        self.classes: tuple[str, ...] | None = None
        if isinstance(data, Iterator):
            raise DataError(
                "data is an iterator, which can be read only once: pass a list of its batches, "
                "a Dataset or a DataLoader"
            )
        if isinstance(data, list) and of_numbers(data):
            data = collated(data)
        self._data = data
        self._generators = _generators(data)
        with ALONE:  # no other thread has them elsewhere meanwhile
            self._start = Generators(*self._generators)
        self._first_rows = ""  # a digest of them, once they were read
        self.feature_names = different_names(_columns(data), "the columns of data")

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided about the data while it was read."""
        return tuple(self._notes)

    @property
    def guessed_classes(self) -> tuple[str, ...]:
        """Labels that are words and were numbered in sorted order, as nobody named the classes."""
        return (self.classes or ()) if self._class_names is None else ()

    @property
    def shuffled(self) -> bool:
        """Whether samples may come in another order every time."""
        if not isinstance(self._data, DataLoader):
            return isinstance(self._data, IterableDataset)
        plain = type(self._data.batch_sampler) in (BatchSampler, type(None))
        in_order = isinstance(self._data.sampler, SequentialSampler)
        return not (isinstance(self._data.dataset, IterableDataset) or (plain and in_order))

    def __iter__(self) -> Iterator[Batch]:
        """Yield checked batches; DataError if there are none."""
        empty = True
        for position, raw in enumerate(self._read()):
            batch = self._batch(raw)
            if batch.size == 0:
                continue
            _check_finite(batch, position)
            if self._casts is None:
                self._settle(batch)
            if empty and not self._held:
                self._tell_others(batch)
            empty = False
            yield self._cast(batch)
        if empty:
            raise DataError("data holds no samples")

    # -- kinds of data ---------------------------------------------------------------------------

    @property
    def _held(self) -> bool:
        """Whether the data are values, which no code of theirs makes when they are read."""
        kinds = (Tensor, np.ndarray, pd.DataFrame, pd.Series, tuple, list, Mapping)
        return isinstance(self._data, kinds) and not _is_table(self._data)

    def _read(self) -> Iterable[Any]:
        """What the data yield, the same each time where random numbers make it."""
        if self._held:
            return self._raw()
        return drawn_alike(self._raw(), self._start, self._generators)

    def _raw(self) -> Iterable[Any]:
        data = self._data
        if isinstance(data, DataLoader):
            return data
        if isinstance(data, Dataset) or _is_table(data):
            return DataLoader(data, batch_size=self._batch_size, collate_fn=collated)
        if isinstance(data, PackedSequence):
            return [data]
        if isinstance(data, (Tensor, np.ndarray, pd.DataFrame, pd.Series)):
            return self._slices((data, None))
        if isinstance(data, Mapping):
            parts = [key for key, part in data.items() if _is_table(part)]
            if parts:
                raise DataError(f"data is a dict of datasets: pass one of them, [{parts[0]!r}] say")
            return self._slices(dict(data))
        if hasattr(data, "_fields") and any(f in self._parameters for f in data._fields):
            return self._slices(data._asdict())
        if isinstance(data, tuple) and len(data) == 2:
            return self._slices(data)
        if isinstance(data, tuple):
            raise DataError(
                f"data is a tuple of {len(data)}: pass (X, y), and several inputs as ((x1, x2), y)"
            )
        if isinstance(data, list):
            _check_list(data)
            return self._chunks(data) if data and self._holds_samples else data
        if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
            return data
        if hasattr(data, "to_numpy") or hasattr(data, "__array__"):
            return self._slices((data, None))
        raise DataError(
            f"data is {type(data).__name__}: pass a tensor, an (X, y) pair, a dict, a Dataset "
            "or a DataLoader"
        )

    def _chunks(self, samples: list[Any]) -> Iterator[Any]:
        for start in range(0, len(samples), self._batch_size):
            yield collated(samples[start : start + self._batch_size])

    @functools.cached_property
    def _holds_samples(self) -> bool:
        """Whether the items of a list are single samples rather than batches.

        One label, or no dimension, tells a sample. Else the model is asked: batches of rows, or
        rows, are what it returns a row for each of.
        """
        first, is_sample = self._data[0], _is_sample(self._data[0])
        if is_sample is not None:
            return is_sample
        tensors = list(iter_tensors(read_inputs(first, self._dtype)))
        flat = bool(tensors) and tensors[0].dim() < 2
        alike = len({_shapes(item) for item in self._data[:-1]}) <= 1
        ways = {False: lambda: first, True: lambda: collated(self._data[:_COLLATED])}
        fits = {kind: self._takes(make) for kind, make in ways.items() if alike or not kind}
        if flat and not fits[False] and not alike:
            collated(self._data)  # says how they differ
        chosen = flat if all(fits.get(kind) for kind in ways) else bool(fits.get(True))
        if fits[False] and fits.get(True) and tensors:
            what = "single samples" if chosen else f"batches of {tensors[0].shape[0]} samples"
            self._note(
                f"the items of the list are taken for {what} (the model takes them as batches and "
                "as single samples): pass one tensor, or batches, to choose"
            )
        return chosen

    def _takes(self, make: Any) -> bool:
        """Whether the model returns a row for each row of a batch."""
        try:
            batch = self._batch(make())
            self._settle(batch)
            output, self._casts = output_of(self._model, self._cast(batch)), None
        except DataError:
            return False
        leaves, _ = flatten(output)
        index = main_index(leaves)
        sizes = ((min(FEW, batch.size),), (batch.size,))
        return index is not None and leaves[index].shape[:1] in sizes

    def _slices(self, whole: Any) -> Iterator[Any]:
        inputs = whole[0] if isinstance(whole, tuple) else whole
        inputs = list(inputs) if _is_listed(inputs) else inputs
        if isinstance(inputs, list) and (of_numbers(inputs) or len(inputs) > self._most_inputs):
            inputs = collated(inputs)
        if isinstance(inputs, dict):
            apart = {key: inputs[key] for key in LABEL_KEYS if key in inputs}
            inputs = {**inputs, **read_labels(apart, self._dtype)}
        inputs = read_inputs(inputs, self._dtype)
        labels = self._labels(whole[1]) if isinstance(whole, tuple) else None
        sizes = [t.shape[0] for t in iter_tensors(inputs) if t.dim() > 0]
        if not sizes:
            raise DataError("data holds no tensor with a batch dimension")
        size = sizes[0]
        if isinstance(labels, Tensor) and labels.shape[:1] != (size,):
            raise DataError(f"X has {size} samples but y has shape {tuple(labels.shape)}")
        for start in range(0, size, self._batch_size):
            rows = slice(start, start + self._batch_size)

            def cut(leaf: Any, rows: slice = rows) -> Any:
                by_row = isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0
                if not by_row or leaf.shape[0] != size:
                    return leaf
                if isinstance(leaf, Tensor) and leaf.layout != torch.strided:
                    raise DataError("data is a sparse tensor: pass data.to_dense()")
                return leaf[rows]

            yield tree_map(cut, (inputs, labels) if isinstance(whole, tuple) else inputs)

    @property
    def _most_inputs(self) -> float:
        """How many positional inputs forward takes."""
        kinds = [p.kind for p in self._parameters.values()]
        return float("inf") if inspect.Parameter.VAR_POSITIONAL in kinds else len(kinds)

    # -- one batch -------------------------------------------------------------------------------

    def _batch(self, raw: Any) -> Batch:
        split = as_batch(raw, self._parameters)
        sole = len(split.args) == 1 and is_sole_argument(split.args[0], self._parameters)
        taken = {key for key in LABEL_KEYS if key in split.kwargs}
        tree = (split.args, dict(split.kwargs))
        args, kwargs = self._on_device(read_inputs(tree, self._dtype))
        batch = Batch(args, kwargs, self._on_device(self._labels(split.labels)))
        batch = replace(batch, fixed=self._without_rows(batch))
        if sole:
            self._check_sole(batch)
        if isinstance(raw, (tuple, list)):
            self._tell_unlike_labels(split)
        for key in sorted(taken):
            self._note(f"{key!r} of the data is passed to the model, whose forward takes it")
        if isinstance(raw, Mapping) and not sole:
            self._tell_left_out(raw, split)
        return batch

    def _without_rows(self, batch: Batch) -> frozenset[int]:
        """Which inputs have no row for each sample, by the first batch, and say so."""
        leaves, _ = flatten((batch.args, dict(batch.kwargs)))
        tensors = {i: x for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.dim() > 0}
        if self._fixed is None or not self._fixed <= tensors.keys():
            odd = {i: x for i, x in tensors.items() if x.shape[0] != batch.size}
            self._fixed = frozenset(odd)
            for i, tensor in odd.items():
                name = leaf_names((batch.args, dict(batch.kwargs)))[i].split(".", 1)[-1]
                self._note(
                    f"the input {name!r} ({shape_of(tensor)}) has no row for each of the "
                    f"{batch.size} samples: it is the same for all of them"
                )
        return self._fixed

    def _tell_unlike_labels(self, split: Batch) -> None:
        """Say of labels with several numbers a sample that they are no input, where one is free."""
        named = bool(split.kwargs)  # then what is no input is none
        if named or not isinstance(split.labels, Tensor) or split.labels.dim() < 2:
            return
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [name for name, p in self._parameters.items() if p.kind in kinds]
        free = [name for name in names[len(split.args) :] if name not in split.kwargs]
        if free:
            self._note(
                f"the second of the pair, [samples, {shape_of(split.labels[0])}], is taken for "
                f"labels, and {free[0]!r} of forward is left out: pass ((inputs, {free[0]}), None) "
                "if it is that"
            )

    def _tell_left_out(self, raw: Mapping[str, Any], split: Batch) -> None:
        open_ended = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())
        for key in LABEL_KEYS:
            if open_ended and key in raw and key not in split.kwargs:
                self._note(
                    f"{key!r} of the data is taken for labels and not passed to the model, whose "
                    "forward does not name it"
                )

    def _check_sole(self, batch: Batch) -> None:
        """DataError if the model does not take the dict as its one argument either."""
        name = next(iter(self._parameters))
        if self._casts is not None or output_of(self._model, batch) is not None:
            self._note(f"the data's dict is passed to the model whole, as its argument {name!r}")
            return
        raise unknown_key(next(iter(batch.args[0])), self._parameters)

    def _tell_others(self, first: Batch) -> None:
        """Say it where the data are others than when they were read before."""
        rows = first.map(lambda leaf: leaf[:FEW]).tensors()
        found = fingerprint(x for x in rows if x.layout == torch.strided).hexdigest()
        if found != (self._first_rows or found):
            self._note(
                "the data are others each time they are read (augmented at random, say): ranges "
                "are of one reading, effects of the reference samples of another"
            )
        self._first_rows = found

    def _labels(self, labels: Any) -> Any:
        """Labels as numbers: words as the numbers of their classes, in sorted order."""
        found = read_labels(labels, self._dtype)
        if not isinstance(found, np.ndarray):
            return found
        if self.classes is None:
            self.classes = self._words(found)
        known = {word: number for number, word in enumerate(self.classes)}
        return torch.tensor([known[word] for word in found.tolist()])

    def _words(self, first: np.ndarray) -> tuple[str, ...]:
        """All words among the labels, sorted: data in batches are read through for them."""
        words = set(first.tolist())
        if not isinstance(self._data, (tuple, Mapping)):
            for raw in self._raw():
                labels = read_labels(as_batch(raw, self._parameters).labels, self._dtype)
                words |= set(labels.tolist())
        if self._class_names is not None:
            return in_order(words, self._class_names)
        found = tuple(sorted(words))
        shown = ", ".join(f"{word!r} is {number}" for number, word in enumerate(found[:5]))
        self._note(f"labels are words and read as classes in sorted order: {shown}")
        return found

    def _on_device(self, tree: Any) -> Any:
        return tree_map(lambda x: x.to(self._device) if isinstance(x, Tensor) else x, tree)

    # -- what the model takes --------------------------------------------------------------------

    def _settle(self, batch: Batch) -> None:
        self._casts, sentence = find_casts(self._model, batch, self._dtype)
        if sentence is not None:
            self._note(sentence)

    def _cast(self, batch: Batch) -> Batch:
        return cast(batch, self._casts) if self._casts else batch

    def _note(self, sentence: str) -> None:
        self._notes[sentence] = None


def _generators(data: Any) -> tuple[torch.Generator, ...]:
    """Random generators that a loader draws its order from, beside the global ones."""
    if not isinstance(data, DataLoader):
        return ()
    holders = (data, data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None))
    found = {id(own): own for thing in holders if (own := getattr(thing, "generator", None))}
    return tuple(own for own in found.values() if isinstance(own, torch.Generator))


def _is_table(data: Any) -> bool:
    """Whether data is rows of dicts by number, as a `datasets.Dataset` is."""
    named = all(hasattr(data, name) for name in ("column_names", "__getitem__", "__len__"))
    return named and not isinstance(data, Mapping)


def _is_listed(inputs: Any) -> bool:
    """Whether inputs are samples by number, in something that is no list."""
    if isinstance(inputs, (Tensor, tuple, str, Mapping)) or hasattr(inputs, "__array__"):
        return False
    return all(hasattr(inputs, name) for name in ("__getitem__", "__len__"))


def _check_list(items: list[Any]) -> None:
    """DataError for a list that was meant as a pair: its tensors are not alike."""
    shapes = [tuple(x.shape) for x in items if hasattr(x, "shape")]
    if len(shapes) == len(items) and len({len(shape) for shape in shapes}) > 1:
        described = ", ".join("×".join(map(str, shape)) for shape in shapes[:3])
        raise DataError(
            f"data is a list of things that are not alike ({described}): pass inputs and labels as "
            "a tuple (X, y), or a list of batches"
        )


def _columns(data: Any) -> Any:
    inputs = data[0] if isinstance(data, tuple) and data else data
    if isinstance(inputs, (list, tuple, Mapping)) or _is_table(inputs):
        return None
    return inputs.columns if hasattr(inputs, "columns") and hasattr(inputs, "to_numpy") else None


def _is_sample(item: Any) -> bool | None:
    """Whether an item of a list is a single sample (one label) or a batch; None if unknown."""
    if isinstance(item, Tensor | np.ndarray):
        return True if item.ndim == 0 else None
    if isinstance(item, Mapping):
        labels = next((item[key] for key in LABEL_KEYS if key in item), None)
        inputs: Any = {key: value for key, value in item.items() if key not in LABEL_KEYS}
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        inputs, labels = item
    else:
        return None
    if labels is None:
        return None
    if is_scalar(labels):
        return True
    tensors = [t for t in iter_tensors(read_inputs(inputs, torch.float32)) if t.dim() > 0]
    count = len(labels) if hasattr(labels, "__len__") else None
    return False if tensors and count == tensors[0].shape[0] else None


def _shapes(item: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(t.shape) for t in iter_tensors(read_inputs(item, torch.float32)))


def _float_dtype(model: nn.Module) -> torch.dtype:
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(dtypes, torch.get_default_dtype())


def _check_finite(batch: Batch, position: int) -> None:
    inputs = (batch.args, dict(batch.kwargs))
    leaves = zip(leaf_names(inputs), flatten(inputs)[0], strict=True)
    tensors = {name: leaf for name, leaf in leaves if isinstance(leaf, torch.Tensor)}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            odd = ~torch.isfinite(tensor)
            where = f" of input {name.partition('.')[2]!r}" if len(tensors) > 1 else ""
            if bool((tensor[odd] == -torch.inf).all() & (tensor[~odd] == 0).all()):
                raise DataError(
                    f"batch {position}{where} is a mask that adds -infinity, which no effect can "
                    "be measured with: pass a boolean one and let forward make it, or "
                    "torch.finfo(dtype).min in place of -infinity"
                )
            raise DataError(
                f"data holds NaN or infinity in batch {position}{where} at position "
                f"{odd.nonzero()[0].tolist()}: fill or drop it first"
            )


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
    drawn = Drawn(count, seed)
    for batch in source:
        drawn.add(batch)
    return drawn.result()


class Drawn:
    """Samples drawn so far, as `draw` does, from batches that come one by one.

    Parameters
    ----------
    count, seed : int
        As for `draw`.
    beyond : int
        How many other samples to leave out: those that as large a `count` draws.
    """

    def __init__(self, count: int, seed: int, beyond: int = 0) -> None:
        self._count, self._beyond = count + beyond, beyond
        self._generator = torch.Generator().manual_seed(seed)
        # Of each sample its key, where it stood, and where it is among those taken of its batch.
        self._kept: list[tuple[float, int, Batch, int]] = []
        self.seen = 0  # samples

    def add(self, batch: Batch) -> None:
        """Draw among the samples of one more batch, too."""
        keys = torch.rand(batch.size, generator=self._generator, dtype=torch.float64)
        full = len(self._kept) == self._count
        limit = max(item[0] for item in self._kept) if full else float("inf")
        rows = keys.argsort()[: self._count]
        rows = rows[keys[rows] < limit]
        if len(rows):
            some = batch.map(lambda leaf: leaf[rows.to(leaf.device)])
            drawn = enumerate(zip(keys[rows].tolist(), rows.tolist(), strict=True))
            self._kept += [(key, self.seen + row, some, place) for place, (key, row) in drawn]
            self._kept = sorted(self._kept, key=lambda item: item[0])[: self._count]
        self.seen += batch.size

    def result(self) -> tuple[Batch, tuple[int, ...]]:
        """The samples and their positions; DataError where they do not fit together."""
        kept = sorted(self._kept[self._beyond :], key=lambda item: item[1])
        parts = []
        for _, group in itertools.groupby(kept, key=lambda item: id(item[2])):
            items = list(group)
            places = torch.tensor([place for *_, place in items])
            some = items[0][2]
            parts.append(some.map(lambda leaf, at=places: leaf[at.to(leaf.device)]))
        return concatenate(parts), tuple(position for _, position, _, _ in kept)


def check_same_columns(source: Source, other: Source, option: str) -> None:
    """DataError for a table whose columns are not those of the data, in their order."""
    known, found = source.feature_names, other.feature_names
    if known is not None and found is not None and known != found:
        first = next((n for n, m in zip(found, known, strict=False) if n != m), found[-1])
        raise DataError(
            f"{option}: its columns are not those of the data in the same order ({first!r} is the "
            "first that differs): reorder them, as other[list(data.columns)]"
        )
