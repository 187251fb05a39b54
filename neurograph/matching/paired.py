"""Two models run side by side on the same samples."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neurograph.activations.streaming import Arrived, stream
from neurograph.circuit.circuit import Circuit
from neurograph.data.source import Batch, Source, draw
from neurograph.data.taking import FEW
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.model.observe import placed
from neurograph.preparation.base_study import BaseStudy
from neurograph.replay.recording import Recording
from neurograph.utils.memory import parse_memory
from neurograph.utils.nested import tree_map
from neurograph.utils.progress import Progress

__all__ = ["FEWEST", "TwoModels", "Values", "side_by_side"]

FEWEST = 4
"""Samples: with fewer the unbiased estimate of HSIC would divide by zero."""

_BATCH = 256
_SMALL_BATCH = 16  # smaller ones estimate CKA worse: 4 at a time twice as far off

Values = Mapping[str, Arrived]
"""What some layers returned for a batch, a row for each sample; where nothing is attended, 0."""


@contextlib.contextmanager
def side_by_side(
    a: Circuit,
    b: Circuit,
    data: Any = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
) -> Iterator[TwoModels]:
    """Put the models of two circuits on their devices, with samples drawn for both.

    Parameters
    ----------
    a, b : Circuit
        Attached to their models.
    data : as for `search`, optional
        By default a's own.
    samples : int
        How many are drawn at most.
    seed : int
        Chooses them.
    progress : bool, optional
        Show progress bars; by default where a person watches.

    Raises
    ------
    OptionError
        A circuit has no model, or `samples` is below 4.
    ModelError
        A model's weights have changed since its search.
    DataError
        There are fewer than 4 samples, or they cannot be used.
    """
    if samples < FEWEST:
        raise OptionError(f"samples={samples}: matching takes {FEWEST} or more")
    one, other = a.study, b.study
    one.check_unchanged()
    other.check_unchanged()
    with placed(one.model, one.options["device"]), placed(other.model, other.options["device"]):
        drawn, _ = draw(Source(one.data if data is None else data, one.model), samples, seed)
        if drawn.size < FEWEST:
            raise DataError(f"data has {drawn.size} samples: matching takes {FEWEST} or more")
        raw = (drawn.args, drawn.labels) if drawn.args else dict(drawn.kwargs)
        again = next(iter(Source([raw], other.model)))
        yield TwoModels(one, other, drawn, again, progress)


class TwoModels:
    """Two models and the samples that both run on; made by `side_by_side`.

    Attributes
    ----------
    a, b : BaseStudy
    size : int
        How many samples.
    room : int
        Bytes that activations held of both models may take; that running a model may take; and
        that sums over batches may take: a third of the smaller memory budget each.
    """

    def __init__(
        self, a: BaseStudy, b: BaseStudy, for_a: Batch, for_b: Batch, progress: bool | None
    ) -> None:
        self.a, self.b, self.size = a, b, for_a.size
        self.room = min(parse_memory(study.options["memory"]) for study in (a, b)) // 3
        self._batches = for_a, for_b
        self._progress = progress
        self._kept: list[tuple[Values, Values]] = []

    def fits(self, names_a: Collection[str], names_b: Collection[str]) -> bool:
        """Whether what the layers return for all samples can be held."""
        return self._row_bytes(names_a, names_b) * self.size <= self.room

    def run(
        self, names_a: Collection[str], names_b: Collection[str], title: str
    ) -> Iterator[tuple[Values, Values]]:
        """Yield what the named layers of both models return, batch by batch.

        Batches are of 16 samples or more, where there are so many. What fits is kept, so that a
        second run costs nothing.
        """
        if self._kept:
            known = self._kept[0]
            if known[0].keys() >= set(names_a) and known[1].keys() >= set(names_b):
                yield from self._kept
                return
        keep, kept = self.fits(names_a, names_b), []
        self._kept = []
        with Progress(title, self._progress, total=self.size, unit="samples") as bar:
            for part in self._parts(self._row_bytes(names_a, names_b)):
                arrived = (
                    _values(self.a, _cut(self._batches[0], part), names_a, self.room),
                    _values(self.b, _cut(self._batches[1], part), names_b, self.room),
                )
                yield arrived
                if keep:
                    kept.append(arrived)
                bar.advance(part.stop - part.start)
        self._kept = kept

    def _row_bytes(self, names_a: Collection[str], names_b: Collection[str]) -> int:
        """How much the layers return for one sample."""
        named = ((self.a, names_a), (self.b, names_b))
        mains = (s.experiment.recording.main(name) for s, names in named for name in names)
        return sum(rows[:1].nbytes for rows in mains)

    def _parts(self, row_bytes: int) -> Iterator[slice]:
        """Cut the samples into batches of nearly one size."""
        most = max(_SMALL_BATCH, min(_BATCH, self.room // max(1, row_bytes)))
        pieces = max(1, min(-(-self.size // most), self.size // _SMALL_BATCH))
        bounds = [self.size * i // pieces for i in range(pieces + 1)]
        return map(slice, bounds, bounds[1:])


def _cut(batch: Batch, part: slice) -> Batch:
    return batch.map(lambda leaf: leaf[part])


def _values(study: BaseStudy, batch: Batch, names: Collection[str], room: int) -> Values:
    """Run one model on one batch, as many samples at a time as there is room for."""
    parts_of: dict[str, list[Arrived]] = {name: [] for name in names}

    def receive(arrived: Arrived) -> bool:
        parts_of[arrived.layer.name].append(_copied(arrived))
        return True

    recording = study.experiment.recording
    batch = _as_recorded(batch, recording)
    step = max(FEW, room // recording.row_bytes)
    some = [_cut(batch, slice(start, start + step)) for start in range(0, batch.size, step)]
    stream(study.model, some, recording, names, receive, title="", progress=False)
    return {name: _joined(parts, batch) for name, parts in parts_of.items()}


def _joined(parts: list[Arrived], batch: Batch) -> Arrived:
    if len(parts) == 1:
        return parts[0]
    mask = None
    if any(part.attended is not None for part in parts):
        every = parts[0].values.new_ones(1, *parts[0].values.shape[2:], dtype=torch.bool)
        masks = [(part.attended, len(part.values)) for part in parts]
        mask = torch.cat([every.expand(n, -1) if m is None else m for m, n in masks])
    values = torch.cat([part.values for part in parts])
    return replace(parts[0], values=values, attended=mask, batch=batch)


def _copied(arrived: Arrived) -> Arrived:
    """Copy what glue may overwrite later, without what padding holds; ModelError if not finite."""
    values, mask = arrived.values, arrived.attended
    values = values.clone() if mask is None else values.masked_fill(~mask[:, None], 0)
    if not values.sum(dtype=torch.float64).isfinite():
        raise ModelError(
            f"layer {arrived.layer.name!r} returns NaN or infinity on this data: look for an "
            "overflow there or above it"
        )
    size = arrived.batch.size
    if len(values) != size:  # the same for every sample
        values = values.expand(size, *values.shape[1:])
    return replace(arrived, values=values)


def _as_recorded(batch: Batch, recording: Recording) -> Batch:
    """Give the inputs the precision that a model had in its search: the other may have another."""
    known = {t.dtype for t in recording.batch.tensors() if t.is_floating_point()}
    if len(known) != 1:
        return batch
    (dtype,) = known

    def cast(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    args, kwargs = tree_map(cast, (batch.args, dict(batch.kwargs)))
    return replace(batch, args=args, kwargs=kwargs)
