"""Two models run side by side on the same samples."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neurograph.activations.collect import Arrived, stream
from neurograph.circuit import Circuit
from neurograph.data import Batch, Source, draw
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.memory import parse_memory
from neurograph.nested import iter_tensors, tree_map
from neurograph.progress import Progress
from neurograph.replay.observe import placed
from neurograph.replay.recording import Recording
from neurograph.study import Study

__all__ = ["FEWEST", "TwoModels", "Values", "side_by_side"]

FEWEST = 4
"""Samples of a batch: with fewer the unbiased estimate of HSIC would divide by zero."""

_BATCH = 256

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
    with placed(one.model, one.options.device), placed(other.model, other.options.device):
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
    a, b : Study
    size : int
        How many samples.
    room : int
        Bytes that a batch of both models' activations may take; that sums over batches may take;
        and that copies at work may take: a third of the smaller memory budget each.
    """

    def __init__(
        self, a: Study, b: Study, for_a: Batch, for_b: Batch, progress: bool | None
    ) -> None:
        self.a, self.b, self.size = a, b, for_a.size
        self.room = min(parse_memory(study.options.memory) for study in (a, b)) // 3
        self._batches = for_a, for_b
        self._progress = progress
        self._kept: list[tuple[Values, Values]] = []

    def fits(self, names_a: Collection[str], names_b: Collection[str]) -> bool:
        """Whether what the layers return for all samples can be kept."""
        sizes = _bytes(self.a, names_a) + _bytes(self.b, names_b)
        return sizes * self.size <= self.room

    def run(
        self, names_a: Collection[str], names_b: Collection[str], title: str
    ) -> Iterator[tuple[Values, Values]]:
        """Yield what the named layers of both models return, batch by batch.

        Batches are of at least 4 samples. What fits is kept, so that a second run costs nothing.
        """
        if self._kept:
            known = self._kept[0]
            if known[0].keys() >= set(names_a) and known[1].keys() >= set(names_b):
                yield from self._kept
                return
        keep, kept = self.fits(names_a, names_b), []
        self._kept = []
        with Progress(title, self._progress, total=self.size, unit="samples") as bar:
            for part in self._parts():
                found = (
                    _values(self.a, _cut(self._batches[0], part), names_a),
                    _values(self.b, _cut(self._batches[1], part), names_b),
                )
                yield found
                if keep:
                    kept.append(found)
                bar.advance(part.stop - part.start)
        self._kept = kept

    def _parts(self) -> Iterator[slice]:
        """Cut the samples into batches of nearly one size, none too small."""
        row = self.a.experiment.recording.row_bytes + self.b.experiment.recording.row_bytes
        most = min(_BATCH, max(FEWEST, self.room // row))
        pieces = min(-(-self.size // most), self.size // FEWEST)
        bounds = [self.size * i // pieces for i in range(pieces + 1)]
        return map(slice, bounds, bounds[1:])


def _bytes(study: Study, names: Collection[str]) -> int:
    """How much the layers return for one sample."""
    recording = study.experiment.recording
    return sum(recording.main(name)[:1].nbytes for name in names)


def _cut(batch: Batch, part: slice) -> Batch:
    return batch.map(lambda leaf: leaf[part])


def _values(study: Study, batch: Batch, names: Collection[str]) -> Values:
    """Run one model on one batch."""
    found: dict[str, Arrived] = {}

    def receive(arrived: Arrived) -> bool:
        found[arrived.layer.name] = _copied(arrived)
        return True

    recording = study.experiment.recording
    fitting = _as_recorded(batch, recording)
    stream(study.model, [fitting], recording, names, receive, title="", progress=False)
    return found


def _copied(arrived: Arrived) -> Arrived:
    """Copy what glue may overwrite later, without what padding holds; ModelError if not finite."""
    values, mask = arrived.values, arrived.attended
    values = values.clone() if mask is None else values.masked_fill(~mask[:, None], 0)
    if not torch.isfinite(values).all():
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
    known = {t.dtype for t in _inputs(recording.batch) if t.is_floating_point()}
    if len(known) != 1:
        return batch
    (dtype,) = known

    def cast(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    args, kwargs = tree_map(cast, (batch.args, dict(batch.kwargs)))
    return Batch(args, kwargs, batch.labels)


def _inputs(batch: Batch) -> Iterator[Tensor]:
    return iter_tensors((batch.args, dict(batch.kwargs)))
