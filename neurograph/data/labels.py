"""Which class each sample of the data is of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from neurograph.data.reading import in_order, label_array
from neurograph.data.source import Batch, Source
from neurograph.errors import DataError, OptionError
from neurograph.utils.checks import shown

__all__ = ["Label", "Labelled"]

Label = int | float | str
"""What a class is called."""


class Labelled:
    """Batches whose labels are classes: an integer ``[samples]`` each, which indexes ``classes``.

    The data are read once beforehand, without the model, to know and to check all classes.

    Parameters
    ----------
    source : Source
    labels : bool, sequence, ndarray, Series or Tensor
        One class for each sample, in the order of the data; True for what the batches hold, False
        for 0 everywhere.
    names : sequence of str, optional
        What the classes are called, in ascending order of their labels.

    Attributes
    ----------
    classes : tuple
        Their labels, ascending, or their names.
    counts : tuple of int
        Samples of each.

    Raises
    ------
    DataError
        No labels, labels of another length than the data, several a sample, or missing ones.
    OptionError
        As many names as there are classes are not given.
    """

    def __init__(self, source: Source, labels: Any, names: Sequence[str] | None = None) -> None:
        if not isinstance(labels, bool) and source.shuffled:
            raise DataError(
                "labels= cannot be matched with the samples of a DataLoader that shuffles or of an "
                "IterableDataset: make a loader with shuffle=False, or batches with their labels"
            )
        self._source = source
        self._given = labels if isinstance(labels, bool) else _array(labels)
        counts: dict[Label, int] = {}
        for _, found in self._read():
            for label, count in zip(*np.unique(found, return_counts=True), strict=True):
                key = label.item()
                counts[key] = counts.get(key, 0) + int(count)
        self._labels = sorted(counts)
        if names is not None and any(isinstance(label, str) for label in self._labels):
            self._labels = [n for n in in_order(map(str, self._labels), names) if n in counts]
            names = list(map(str, self._labels))
        self.counts = tuple(counts[label] for label in self._labels)
        if names is not None and len(names) != len(self._labels):
            raise OptionError(
                f"class_names has {len(names)} names for the {len(self._labels)} classes "
                f"{', '.join(map(str, self._labels[:5]))}"
            )
        if names is not None and len(set(names)) < len(names):
            raise OptionError(f"class_names={shown(names)}: pass names that differ")
        known = source.classes if self._given is True and names is None else None
        if known is not None:
            names = [known[int(label)] for label in self._labels]
        self.classes: tuple[Label, ...] = tuple(self._labels if names is None else names)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches with the numbers of their samples' classes as labels."""
        numbers = {label: number for number, label in enumerate(self._labels)}
        for batch, found in self._read():
            yield replace(batch, labels=torch.tensor([numbers[label] for label in found.tolist()]))

    def require(self, classes: int, samples: int) -> None:
        """Raise DataError if there are fewer classes, or a class has fewer samples."""
        if len(self.classes) < classes:
            raise DataError(
                f"all labels are {self.classes[0]!r}: at least {classes} classes are compared"
            )
        for label, count in zip(self.classes, self.counts, strict=True):
            if count < samples:
                raise DataError(
                    f"class {label!r} has {count} of {sum(self.counts)} samples, fewer than "
                    f"{samples}: leave it out or merge it with another (bin labels that are "
                    "continuous)"
                )

    def _read(self) -> Iterator[tuple[Batch, np.ndarray]]:
        start = 0
        for batch in self._source:
            if self._given is False:
                yield batch, np.zeros(batch.size, dtype=np.int64)
            elif self._given is True:
                if batch.labels is None:
                    raise DataError("the data hold no labels: pass labels=, one class a sample")
                yield batch, _checked(_array(batch.labels), batch.size)
            else:
                stop = start + batch.size
                if stop <= len(self._given):
                    yield batch, _checked(self._given[start:stop], batch.size)
                start = stop
        if not isinstance(self._given, bool) and start != len(self._given):
            raise DataError(f"labels has {len(self._given)} entries for {start} samples")


def _array(labels: Any) -> np.ndarray:
    found = label_array(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise DataError(f"labels has shape {found.shape}: pass one class a sample, [samples]")
    missing = np.flatnonzero(pd.isna(found))
    if len(missing):
        raise DataError(f"labels has no class for sample {missing[0]}: fill or drop it first")
    if found.dtype.kind == "b" or (found.dtype.kind == "f" and (found == np.round(found)).all()):
        found = found.astype(np.int64)
    if found.dtype.kind not in "iufU":
        raise DataError(f"labels has dtype {found.dtype}: pass integers or strings")
    return found


def _checked(found: np.ndarray, size: int) -> np.ndarray:
    if len(found) != size:
        raise DataError(f"a batch of {size} samples has {len(found)} labels")
    return found
