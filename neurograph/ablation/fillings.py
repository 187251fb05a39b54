"""What silenced neurons pass on instead of their own values: zero, their means, other samples'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.data.source import Source, draw
from neurograph.errors import OptionError
from neurograph.model.hooks import Place, passing
from neurograph.model.layers import Layer
from neurograph.model.observe import call_model, undisturbed
from neurograph.utils.memory import parse_memory

__all__ = ["Fill", "Filling", "Means", "Others", "Zeros", "find_means", "find_others"]

Fill = Callable[[str, Tensor, int], Tensor]
"""``fill(layer, rows, run)``: what replaces a layer's rows, ``[*shape]`` or ``[rows, *shape]``."""

_MOST_ROWS = 2048
_BATCH = 256


class Zeros:
    """Silenced neurons pass on 0."""

    def start(self, _seed: int) -> Fill:
        """Make what fills the rows of the runs to come."""
        return lambda _layer, rows, _run: rows.new_zeros(())


@dataclass(frozen=True, eq=False)
class Means:
    """Silenced neurons pass on their means.

    Attributes
    ----------
    values : mapping of str to Tensor
        For each layer, ``[*shape]``, or where positions are pooled ``[channels, 1, …]``.
    pooled : frozenset of str
        Layers whose positions are pooled.
    """

    values: Mapping[str, Tensor]
    pooled: frozenset[str]

    def start(self, _seed: int) -> Fill:
        """Make what fills the rows of the runs to come."""

        def fill(layer: str, rows: Tensor, _run: int) -> Tensor:
            value = self.values[layer]
            if layer not in self.pooled:
                _check_shape(layer, value, rows)
            return value.to(rows)

        return fill


@dataclass(frozen=True, eq=False)
class Others:
    """Silenced neurons pass on what they are in samples drawn at random.

    Attributes
    ----------
    values : mapping of str to Tensor
        For each layer, ``[samples, *shape]``; one sample where all have the same.
    samples : int
    """

    values: Mapping[str, Tensor]
    samples: int

    def start(self, seed: int) -> Fill:
        """Make what fills the rows of the runs to come, with fresh draws for each run."""
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[int, Tensor] = {}
        last = -1

        def fill(layer: str, rows: Tensor, run: int) -> Tensor:
            nonlocal last
            if run != last:
                drawn.clear()
                last = run
            count, values = len(rows), self.values[layer]
            if count not in drawn:
                drawn[count] = torch.randint(self.samples, (count,), generator=generator)
            _check_shape(layer, values[0], rows)
            chosen = values if len(values) == 1 else values[drawn[count].to(values.device)]
            return chosen.to(rows)

        return fill


Filling = Zeros | Means | Others


def _check_shape(layer: str, value: Tensor, rows: Tensor) -> None:
    if value.shape != rows.shape[1:]:
        raise OptionError(
            f"layer {layer!r} is {tuple(rows.shape[1:])} here but {tuple(value.shape)} on data=: "
            "pass data of the shape that the model is run on"
        )


def find_means(profiled: nx.DiGraph, layers: Iterable[Layer]) -> Means:
    """Read the means of layers off a profile, position by position where it has them so.

    Raises
    ------
    OptionError
        The profile lacks a layer: nothing reads it.
    """
    values: dict[str, Tensor] = {}
    pooled = set()
    for layer in layers:
        if layer.name not in profiled:
            raise OptionError(f"nothing reads layer {layer.name!r}: silencing it changes nothing")
        mean: Tensor = profiled.nodes[layer.name]["mean"]
        if mean.dim() == len(layer.shape):
            values[layer.name] = mean.movedim(0, layer.channel_dim - 1)
        else:
            behind = len(layer.shape) - layer.channel_dim
            values[layer.name] = mean.view(-1, *[1] * behind)
            pooled.add(layer.name)
    return Means(values, frozenset(pooled))


def find_others(
    model: nn.Module,
    data: Any,
    layers: Mapping[str, Layer],
    places: Mapping[str, Place],
    row_bytes: int,
    seed: int,
    memory: int | str = "512MB",
) -> Others:
    """Keep what layers are in samples of the data, drawn by a seed.

    Parameters
    ----------
    model : Module
    data : data of any kind
    layers : mapping of str to Layer
        Layers to keep.
    places : mapping of str to Place
        Where each is caught.
    row_bytes : int
        Memory that one sample takes in a run.
    seed : int
    memory : int or str
        Of 2,048 samples so many are kept as fit.

    Raises
    ------
    DataError
        Samples of different shapes.
    """
    room, found = parse_memory(memory), dict[str, list[Tensor]]()
    source = Source(data, model, batch_size=max(1, min(_BATCH, room // row_bytes)))

    def keep(name: str, tensor: Tensor) -> Tensor:
        rows = layers[name].layout.rows(tensor)
        found.setdefault(name, []).append(rows.detach().clone())
        return tensor

    few = next(iter(source)).map(lambda leaf: leaf[:1])
    with undisturbed(model), passing(model, places.values(), keep):
        call_model(model, few)
    kept_bytes = sum(rows.nbytes for parts in found.values() for rows in parts)
    found.clear()
    batch, positions = draw(source, max(2, min(_MOST_ROWS, room // max(1, kept_bytes))), seed)
    step = max(1, min(_BATCH, room // row_bytes))
    with undisturbed(model), passing(model, places.values(), keep):
        for start in range(0, batch.size, step):
            rows = slice(start, start + step)
            call_model(model, batch.map(lambda leaf, rows=rows: leaf[rows].clone()))
    same = {name for name, layer in layers.items() if layer.layout.dim is None}
    values = {n: parts[0][:1] if n in same else torch.cat(parts) for n, parts in found.items()}
    return Others(values, len(positions))
