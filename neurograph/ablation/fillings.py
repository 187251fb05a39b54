"""Replacement values for ablated neurons under hooks: zero, means, values of other samples.

Zeros and means are those of ablation (`neurograph.effects.contrast`). Samples are drawn anew:
there each reference sample has another one of them, but inside a block users run what they like,
any number of samples in any order, so every run draws among samples of the data that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.data.source import Source, draw
from neurograph.effects.contrast import by_rows
from neurograph.errors import OptionError
from neurograph.model.hooks import HookPoint, passing
from neurograph.model.layers import Layer
from neurograph.model.observe import call_model, undisturbed
from neurograph.utils.memory import parse_memory

__all__ = ["Fill", "Filling", "means", "others", "zeros"]

Fill = Callable[[str, Tensor, int], Tensor]
"""``fill(layer, rows, run)``: what replaces a layer's rows, ``[*shape]`` or ``[rows, *shape]``."""
Filling = Callable[[int], Fill]
"""From a seed to what fills the rows of the runs to come."""

_MOST_ROWS = 2048
_BATCH = 256


def zeros(_seed: int) -> Fill:
    """Ablated neurons pass on 0."""
    return lambda _layer, rows, _run: rows.new_zeros(())


def means(profiled: nx.DiGraph, layers: Iterable[Layer]) -> Filling:
    """Ablated neurons pass on their means, position by position where the profile has them so.

    Raises
    ------
    OptionError
        The profile lacks a layer: nothing reads it.
    """
    values: dict[str, Tensor] = {}
    pooled = set()
    for layer in layers:
        if layer.name not in profiled:
            raise OptionError(f"nothing reads layer {layer.name!r}: ablating it changes nothing")
        mean: Tensor = profiled.nodes[layer.name]["mean"]
        values[layer.name] = by_rows(mean[None], layer)[0]
        if mean.dim() < len(layer.shape):
            pooled.add(layer.name)

    def fill(layer: str, rows: Tensor, _run: int) -> Tensor:
        if layer not in pooled:
            _check_shape(layer, values[layer], rows)
        return values[layer].to(rows)

    return lambda _seed: fill


def others(
    model: nn.Module,
    data: Any,
    layers: Mapping[str, Layer],
    places: Mapping[str, HookPoint],
    row_bytes: int,
    seed: int,
    memory: int | str = "512MB",
) -> Filling:
    """Ablated neurons pass on what they are in samples of the data, drawn afresh for each run.

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
        Chooses the samples that are kept to draw from.
    memory : int or str
        Of 2,048 samples so many are kept as fit.

    Raises
    ------
    DataError
        Samples of different shapes.
    """
    room, found = parse_memory(memory), dict[str, list[Tensor]]()
    step = max(1, min(_BATCH, room // row_bytes))
    source = Source(data, model, batch_size=step)

    def keep(name: str, tensor: Tensor) -> Tensor:
        rows = layers[name].layout.rows(tensor)
        found.setdefault(name, []).append(rows.detach().clone())
        return tensor

    few = next(iter(source)).map(lambda leaf: leaf[:1])
    with undisturbed(model), passing(model, places.values(), keep):
        call_model(model, few)
    kept_bytes = sum(rows.nbytes for parts in found.values() for rows in parts)
    found.clear()
    batch, _ = draw(source, max(2, min(_MOST_ROWS, room // max(1, kept_bytes))), seed)
    with undisturbed(model), passing(model, places.values(), keep):
        for start in range(0, batch.size, step):
            rows = slice(start, start + step)
            call_model(model, batch.map(lambda leaf, rows=rows: leaf[rows].clone()))
    same = {name for name, layer in layers.items() if layer.layout.dim is None}
    values = {n: parts[0][:1] if n in same else torch.cat(parts) for n, parts in found.items()}

    def filling(seed: int) -> Fill:
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[int, Tensor] = {}
        last = -1

        def fill(layer: str, rows: Tensor, run: int) -> Tensor:
            nonlocal last
            if run != last:
                drawn.clear()
                last = run
            count, known = len(rows), values[layer]
            if count not in drawn:
                drawn[count] = torch.randint(batch.size, (count,), generator=generator)
            _check_shape(layer, known[0], rows)
            chosen = known if len(known) == 1 else known[drawn[count].to(known.device)]
            return chosen.to(rows)

        return fill

    return filling


def _check_shape(layer: str, value: Tensor, rows: Tensor) -> None:
    if value.shape != rows.shape[1:]:
        raise OptionError(
            f"layer {layer!r} is {tuple(rows.shape[1:])} here but {tuple(value.shape)} on data=: "
            "pass data of the shape that the model is run on"
        )
