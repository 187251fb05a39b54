"""Exemplars: the samples in which neurons are highest and lowest, and some in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurograph.activations.extremes import Extreme, Extremes
from neurograph.activations.streaming import Arrived, stream
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.model.batch import Batch
from neurograph.model.layers import Layer, Neuron
from neurograph.model.neuron_index import PLACE, drop_empty_positions, place_of
from neurograph.model.neurons import channels_of
from neurograph.model.observe import input_tensors, placed
from neurograph.model.positions import moving, token_names
from neurograph.preparation.base_study import BaseStudy
from neurograph.preparation.named_neurons import find_named
from neurograph.preparation.options import ExemplarOptions, read_options
from neurograph.utils.memory import parse_memory

__all__ = ["ENDS", "Exemplars", "Shown", "find_exemplars"]

ENDS = ("highest", "between", "lowest")
_RESERVOIR = 512  # samples among which those between are found
_STAND_OUT = 3  # features
_LISTED = 5  # neurons
_AROUND = 6  # tokens on each side of the one where a neuron peaks
_SAME = 1e-4  # of the value: what is read again may differ by rounding


@dataclass(frozen=True, eq=False)
class Shown:
    """A sample as one may look at it, for one neuron.

    Attributes
    ----------
    inputs : mapping of str to ndarray
        The model's inputs for the sample, by name.
    values : ndarray, [*positions]
        The neuron's value at every position, NaN where it is not read.
    place : tuple of int, or None
        The position at which it has the value that it was chosen for; None where it has none.
    tokens : list of str or None
        What stands at each position of the input, where these are tokens.
    features : list of (name, value, deviations)
        Of a row of a table what goes most with the neuron: how far it is from the mean of the
        data, in standard deviations, times its correlation with the neuron over some hundred
        samples. Where the neuron is highest what raises it, where it is lowest what lowers it.
    """

    inputs: Mapping[str, NDArray[Any]]
    values: NDArray[np.float64]
    place: tuple[int, ...] | None
    tokens: Sequence[str] | None
    features: Sequence[tuple[str, float, float]]

    @property
    def picture(self) -> NDArray[np.float64] | None:
        """The image among the inputs, ``[height, width]`` or with 3 colours behind, in 0…1."""
        for values in self.inputs.values():
            image = values.transpose(1, 2, 0) if values.ndim == 3 else values
            if values.dtype.kind != "f" or image.ndim not in (2, 3):
                continue
            if image.ndim == 3 and image.shape[2] == 1:
                image = image[..., 0]
            if image.ndim == 2 or image.shape[2] == 3:
                low, high = float(image.min()), float(image.max())
                return (image.astype(np.float64) - low) / ((high - low) or 1.0)
        return None

    def __str__(self) -> str:
        if self.tokens is None:
            return ", ".join(f"{name} {x:.3g} ({z:+.1f} sd)" for name, x, z in self.features)
        at_token = self.place is not None and self.values.shape == (len(self.tokens),)
        peak = self.place[0] if at_token and self.place else None
        first = 0 if peak is None else max(0, peak - _AROUND)
        parts = [
            f"«{token.strip()}»" if first + i == peak else token.strip()
            for i, token in enumerate(self.tokens[first : first + 2 * _AROUND + 1])
        ]
        ahead, more = first > 0, first + len(parts) < len(self.tokens)
        return " ".join(["…"] * ahead + parts + ["…"] * more)


@dataclass(frozen=True, eq=False, repr=False)
class Exemplars:
    """What makes neurons fire: samples in which they are highest and lowest; by `Study.exemplars`.

    Attributes
    ----------
    table : DataFrame
        A row for each neuron and sample: ``layer``, ``index``, ``name``; ``end`` (``highest``,
        ``between``, ``lowest``) and ``rank`` from 1 on; ``sample``, its number in the data from 0
        on; ``value`` of the neuron there, in the layer's units; ``place`` where it has that value
        (the position of a sequence, row and column of a map, None elsewhere); ``label`` of the
        sample, where the data hold one; ``shows``, what it is in words: the features of a row
        of a table that go most with the neuron, tokens around the place. ``position`` behind
        ``index`` where positions have neurons of their own.
    shown : mapping of (Neuron, int) to Shown
        By neuron and sample, what a picture of it needs.
    provenance : mapping
        Model hash, data fingerprint, options, versions, seed: how it was found. JSON-able. The
        rest holds samples of the data, and is not to be passed on where these are not.
    """

    table: pd.DataFrame
    shown: Mapping[tuple[Neuron, int], Shown]
    provenance: Mapping[str, Any]

    def of(self, neuron: Neuron | tuple[Any, ...]) -> pd.DataFrame:
        """Rows of the table of one neuron; OptionError where there are none."""
        keys = [key for key in ("layer", "index", "position") if key in self.table]
        chosen = self.table
        for key, value in zip(keys, neuron, strict=False):
            chosen = chosen[chosen[key] == value]
        if chosen.empty:
            raise OptionError(f"there are no exemplars of {neuron}: name it in neurons=")
        return chosen.reset_index(drop=True)

    def in_words(self, neuron: Neuron | tuple[Any, ...]) -> list[str]:
        """Say in which samples a neuron is highest and lowest, a line for each."""
        return [
            f"  {row.end}: {row.value:.3g} in sample {row.sample}"
            + ("" if row.label is None else f", {row.label}")
            + (f": {row.shows}" if row.shows else "")
            for row in self.of(neuron).itertuples()
        ]

    def __repr__(self) -> str:
        neurons = list(dict.fromkeys(neuron for neuron, _ in self.shown))
        lines = [f"Exemplars of {len(neurons)} neuron{'s' * (len(neurons) > 1)}"]
        for neuron in neurons[:_LISTED]:
            lines += [self.of(neuron)["name"].iloc[0], *self.in_words(neuron)]
        return "\n".join(lines + ["…"] * (len(neurons) > _LISTED))


def find_exemplars(study: BaseStudy, options: Mapping[str, Any]) -> Exemplars:
    """Find the samples that make neurons of a study fire; see `Study.exemplars`."""
    own = read_options(ExemplarOptions, options, "exemplars")
    if study.source.shuffled:
        raise DataError(
            "samples of a DataLoader that shuffles, or of an IterableDataset, have no numbers by "
            "which exemplars could be found again: make a loader with shuffle=False"
        )
    asked = _hidden(study) if own["neurons"] is None else own["neurons"]
    chosen = find_named(study, asked, "neurons")
    readers = {layer: _Reader(study, layer, numbers) for layer, numbers in chosen.items()}
    found = {
        layer: Extremes(
            len(numbers), own["count"], reservoir=_RESERVOIR, seed=study.options["seed"]
        )
        for layer, numbers in chosen.items()
    }

    def add(layer: str, _batch: Batch, first: int, values: Tensor) -> None:
        values = values.reshape(*values.shape[:2], -1)
        unread = values.isnan()
        high = values.masked_fill(unread, -torch.inf).amax(2)
        found[layer].update(high, values.masked_fill(unread, torch.inf).amin(2), first)

    _run(study, readers, add, "looking for exemplars")
    exemplars = [
        _Exemplar(layer, place, end, rank, *extreme)
        for layer, extremes in found.items()
        for place in range(extremes.neurons)
        for end, ends in _ends(extremes, place, own).items()
        for rank, extreme in enumerate(ends, 1)
    ]
    return _looked_at(study, readers, exemplars, found, own)


def _hidden(study: BaseStudy) -> list[str]:
    recorded = study.experiment.recording.layers
    layers = [n for n in study.layers if recorded[n].neurons and not recorded[n].routed]
    return [n for n in layers if not recorded[n].is_input] or layers


def _ends(extremes: Extremes, place: int, own: Mapping[str, Any]) -> dict[str, list[Extreme]]:
    """Samples of each end of a neuron; of few data, none is in two of them for the same value."""
    found: dict[str, list[Extreme]] = {end: [] for end in ENDS}
    known: set[Extreme] = set()
    for end, extreme in (
        *(("highest", extreme) for extreme in extremes.highest(place)),
        *(("lowest", extreme) for extreme in extremes.lowest(place)),
        *(("between", extreme) for extreme in extremes.between(place, own["between"])),
    ):
        if extreme not in known:
            found[end].append(extreme)
        known.add(extreme)
    return found


@dataclass(frozen=True)
class _Exemplar:
    layer: str
    place: int  # among the neurons that were asked about
    end: str
    rank: int
    sample: int
    value: float


class _Reader:
    """Reads neurons of a layer off what it returns for a batch.

    The value of a neuron of several channels is their mean; of attention heads, and of what is
    left over, whose channels have no common direction, the Euclidean norm.
    """

    def __init__(self, study: BaseStudy, layer: str, numbers: Sequence[int]) -> None:
        units, self.layer = study.experiment.units(layer), study.experiment.recording.layers[layer]
        if self.layer.routed:
            raise OptionError(
                f"layer {layer!r} runs on rows that values choose, and nothing says of which "
                "samples these are: it has no exemplars"
            )
        self.neurons = [units.neuron(number) for number in numbers]
        self._where = study.options["positions"]
        known, last = channels_of(units, self.layer), len(units) // (units.positions or 1) - 1
        self._channels = [[n.index] if known is None else known[n.index] for n in self.neurons]
        self._has_norm = [
            units.kind == "head" or (units.has_remainder and neuron.index == last)
            for neuron in self.neurons
        ]

    def __call__(self, arrived: Arrived, inputs: Mapping[str, Tensor], size: int) -> Tensor:
        """Values ``[samples, neurons, *positions]``, NaN where a neuron is not read."""
        values = arrived.values.expand(size, *arrived.values.shape[1:])
        if all(len(channels) == 1 for channels in self._channels):
            found = values[:, [channels[0] for channels in self._channels]]
        else:
            found = torch.stack([*map(self._joined, self._parts(values), self._has_norm)], 1)
        if not found.isfinite().all():
            raise ModelError(
                f"layer {self.layer.name!r} returns NaN or infinity on this data: look for an "
                "overflow there or above it"
            )
        dim = self.layer.channel_dim
        shape = tuple(values.movedim(1, dim).shape[1:])
        may = moving(inputs, size, replace(self.layer, shape=shape), self._where)
        if may is not None:
            there = may.view(-1, *shape).movedim(dim, 1)[:, :1]
            found = found.masked_fill(~there.to(found.device), torch.nan)
        if self.neurons[0].position is not None:
            own = torch.tensor([neuron.position for neuron in self.neurons], device=found.device)
            elsewhere = torch.arange(found.shape[2], device=found.device) != own[:, None]
            found = found.masked_fill(elsewhere, torch.nan)
        return found

    def _parts(self, values: Tensor) -> Iterator[Tensor]:
        return (values[:, channels] for channels in self._channels)

    @staticmethod
    def _joined(channels: Tensor, norm: bool) -> Tensor:
        return channels.norm(dim=1) if norm else channels.mean(1)


Receive = Callable[[str, Batch, int, Tensor], None]


def _run(
    study: BaseStudy,
    readers: Mapping[str, _Reader],
    receive: Receive,
    title: str,
    wanted: Collection[int] | None = None,
) -> None:
    """Run the data, or the batches that hold the wanted samples, and pass on what is read.

    `receive` gets the layer, the batch, the number of its first sample, and the values.
    """
    first, size = 0, 0

    def batches() -> Iterator[Batch]:
        nonlocal first, size
        for batch in study.source:
            first, size = first + size, batch.size
            if wanted is None or any(first <= sample < first + size for sample in wanted):
                yield batch

    def arrive(arrived: Arrived) -> bool:
        batch, name = arrived.batch, arrived.layer.name
        values = readers[name](arrived, input_tensors(study.model, batch), batch.size)
        receive(name, batch, first, values)
        return True

    with study.asking(), placed(study.model, study.options["device"]):
        stream(
            study.model,
            batches(),
            study.experiment.recording,
            readers,
            arrive,
            title=title,
            progress=study.options["progress"],
        )


def _looked_at(
    study: BaseStudy,
    readers: Mapping[str, _Reader],
    exemplars: Sequence[_Exemplar],
    found: Mapping[str, Extremes],
    own: Mapping[str, Any],
) -> Exemplars:
    """Read the chosen samples again, and show them."""
    chosen, look = {exemplar.sample for exemplar in exemplars}, _Look(study)
    drawn = next(iter(found.values())).drawn[0].tolist()  # the same for all layers
    wanted = chosen | set(drawn if look.table is not None else ())
    known: dict[tuple[str, int], Tensor] = {}
    samples: dict[int, Batch] = {}
    room = parse_memory(study.options["memory"])

    def take(layer: str, batch: Batch, first: int, values: Tensor) -> None:
        nonlocal room
        for sample in sorted(wanted & {*range(first, first + batch.size)}):
            place = sample - first
            if sample in chosen:
                known[layer, sample] = values[place].double().cpu()
                room -= values[place].numel() * 8
            if sample not in samples:
                samples[sample] = _sample(batch, place)
                sizes = (x.numel() * x.element_size() for x in samples[sample].tensors())
                room -= sum(sizes) * (sample in chosen)  # rows of a table are small
        if room < 0:
            raise OptionError(
                f"the {len(chosen)} samples of {len(exemplars)} exemplars take more memory than "
                "memory=: ask for fewer neurons=, or a smaller count="
            )

    _run(study, readers, take, "reading exemplars", wanted)
    look.learn(samples[sample] for sample in drawn if look.table is not None)
    rows, shown = [], {}
    for one in exemplars:
        reader, batch = readers[one.layer], samples[one.sample]
        neuron = reader.neurons[one.place]
        over = found[one.layer].drawn[1][:, one.place]
        seen = look(reader.layer, batch, known[one.layer, one.sample][one.place], one, over)
        shown[neuron, one.sample] = seen
        rows.append(
            dict(zip(PLACE, place_of(neuron), strict=True))
            | {"name": study.name(neuron, study.tokens(one.layer))}
            | {"end": one.end, "rank": one.rank, "sample": one.sample, "value": one.value}
            | {"place": seen.place, "label": look.label(batch), "shows": str(seen)}
        )
    described = {"count": own["count"], "between": own["between"]}
    return Exemplars(
        drop_empty_positions(pd.DataFrame(rows)),
        shown,
        study.provenance_with(described, without=("contrast", "background", "reference")),
    )


def _sample(batch: Batch, place: int) -> Batch:
    """One sample of a batch, copied."""
    rows = slice(place, place + 1)
    labels = batch.labels
    try:
        label = None if labels is None or len(labels) != batch.size else labels[place]
    except TypeError:  # a number for all, or several for each
        label = None
    return replace(replace(batch, labels=None).map(lambda x: x[rows].cpu().clone()), labels=label)


class _Look:
    """Shows samples: tokens, features of a table that stand out, inputs as they are."""

    def __init__(self, study: BaseStudy) -> None:
        self._study = study
        recorded = study.experiment.recording.layers
        tables = [x for x in recorded.values() if x.is_input and x.neurons and len(x.shape) == 1]
        self.table = tables[0].name if len(tables) == 1 and tables[0].basis is None else None
        self._rows = np.empty((0, 0))

    def learn(self, batches: Iterable[Batch]) -> None:
        """Take rows of the table, over which features are correlated with neurons."""
        rows = [input_tensors(self._study.model, batch)[str(self.table)] for batch in batches]
        self._rows = torch.cat(rows).double().numpy() if rows else self._rows

    def __call__(
        self, layer: Layer, batch: Batch, values: Tensor, one: _Exemplar, over: Tensor
    ) -> Shown:
        """Show a sample; DataError where the neuron has another value now than it had.

        `over` are the neuron's values in the rows that were learned.
        """
        away = (values - one.value).abs().nan_to_num(math.inf)
        peak = int(away.flatten().argmin()) if away.numel() else 0
        if not float(away.flatten()[peak]) <= _SAME * max(1.0, abs(one.value)):
            raise DataError(
                f"sample {one.sample} has other values when it is read again: exemplars need data "
                "that are the same each time, and a model whose samples keep to themselves"
            )
        place = tuple(map(int, np.unravel_index(peak, values.shape))) if values.dim() else None
        inputs = input_tensors(self._study.model, batch)
        own = {name: _array(x[0]) for name, x in inputs.items() if batch.has_rows(x)}
        tokens = self._tokens(layer, inputs, tuple(values.shape))
        return Shown(own, values.numpy(), place, tokens, self._features(own, one, over.numpy()))

    def label(self, batch: Batch) -> Any:
        """The class of a sample, by name where it has one."""
        if batch.labels is None or np.ndim(batch.labels) > 0:
            return None  # several for each sample, pairs of tokens say, are no class
        value = batch.labels.item() if hasattr(batch.labels, "item") else batch.labels
        names = self._study.options["class_names"] or self._study.source.classes
        whole = isinstance(value, int | float) and float(value).is_integer()
        if whole and names is not None and 0 <= int(value) < len(names):
            return names[int(value)]
        return int(value) if whole else value

    def _tokens(
        self, layer: Layer, inputs: Mapping[str, Tensor], positions: tuple[int, ...]
    ) -> list[str] | None:
        """Name tokens: those of the layer's positions, else of an input of ids."""
        tokenizer = self._study.options["tokenizer"] or str
        of_ids = (x for x in inputs.values() if x.dim() == 2 and not x.is_floating_point())
        lengths = sorted({x.shape[1] for x in of_ids}, key=lambda n: positions != (n,))
        for length in lengths:
            sequence = replace(layer, shape=(length, 1), channel_dim=2)
            found = token_names(inputs, sequence, tokenizer)
            if found is not None:
                return found
        return None

    def _features(
        self, inputs: Mapping[str, NDArray[Any]], one: _Exemplar, over: NDArray[np.float64]
    ) -> list[tuple[str, float, float]]:
        """Features of a row that go most with the neuron."""
        if self.table is None or self.table not in inputs:
            return []
        study, row = self._study, inputs[self.table].astype(np.float64)
        known = study.statistics[self.table]
        mean, std = (known[key].double().cpu().numpy() for key in ("mean", "std"))
        away = np.divide(row - mean, std, out=np.zeros_like(row), where=std > 0)
        pushes = away * _correlations(self._rows, over)
        if one.end == "between":
            pushes = np.abs(pushes)
        first = np.argsort(pushes if one.end == "lowest" else -pushes, kind="stable")[:_STAND_OUT]
        return [(study.name(Neuron(self.table, int(i))), row[i], away[i]) for i in first]


def _array(tensor: Tensor) -> NDArray[Any]:
    """As numpy has it, which knows no bfloat16."""
    found: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def _correlations(rows: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of each column with some values; 0 where either does not vary."""
    usable = np.isfinite(values)
    columns, values = rows[usable], values[usable]
    if len(values) < 2:
        return np.zeros(rows.shape[1])
    columns, values = columns - columns.mean(0), values - values.mean()
    sizes = np.sqrt((columns**2).sum(0) * (values**2).sum())
    found: NDArray[np.float64] = np.divide(
        values @ columns, sizes, out=np.zeros(rows.shape[1]), where=sizes > 0
    )
    return found
