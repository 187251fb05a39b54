"""The layer graph with the statistics of every neuron over the data on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.activations.statistics import ActivationStatistics, Statistics
from neurograph.data import Batch, Source
from neurograph.errors import DataError, ModelError
from neurograph.layers import Layer, channels_first
from neurograph.memory import parse_memory
from neurograph.nested import flatten
from neurograph.positions import attended
from neurograph.progress import Progress
from neurograph.replay.observe import input_tensors, observe, placed, undisturbed
from neurograph.replay.recording import Recording, capture
from neurograph.replay.replay import Replay
from neurograph.replay.wiring import read_wiring
from neurograph.sites import Choice, find_sites, refuse_unsupported

__all__ = ["QUANTILES", "check_weights", "profile"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BATCH = 256
_EXAMPLE_ROWS = 2
_FEWEST_ROWS = 64
_MOST_ROWS = 2048


def profile(
    model: nn.Module,
    data: Any,
    *,
    layers: Choice | None = None,
    levels: Sequence[float] = QUANTILES,
    memory: int | str = "512MB",
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> nx.DiGraph:
    """Layer graph of a model with the statistics of its neurons over the data.

    Parameters
    ----------
    model : Module
        Any eager model; it is run in eval mode and left as it was.
    data : Tensor, ndarray, DataFrame, (X, y) pair, dict, Dataset, DataLoader or list of batches
        Everything is read; the memory it takes does not grow with its length.
    layers : str, type, predicate, or several of them, optional
        Which modules are layers, as for `search`.
    levels : sequence of float
        Quantile levels in [0, 1].
    memory : int or str
        Bytes, or like ``"512MB"``: bounds the samples run at once, where the data does not come
        in batches, and the rows kept for quantiles, of some layers at a time where it must.
        Quantiles are exact up to that many samples, after which `rank_error` states their
        accuracy.
    seed : int
        Chooses the kept rows.
    device : device, optional
        Where to run; the model is moved there and back. By default it stays where it is.
    progress : bool, optional
        Show a progress bar; by default where a person watches.

    Returns
    -------
    networkx.DiGraph
        The graph of `layer_graph`; each layer of floating-point neurons also has ``count`` (int),
        ``mean``, ``std``, ``min``, ``max`` (tensors ``[neurons, *positions]``), ``quantiles``
        (``[levels, neurons, *positions]``), ``levels`` and ``rank_error``. Where samples differ in
        shape, or an attention mask says that some are padded, positions that hold something are
        pooled and the tensors are ``[neurons]``. Units are the layer's own.

    Raises
    ------
    ModelError
        The model cannot be replayed, raised, or has NaN or infinite weights or activations.
    DataError
        No data, or NaN or infinity in it.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> graph = profile(model, torch.rand(100, 2), levels=(0.05, 0.95))
    >>> graph.nodes["0"]["quantiles"].shape, graph.nodes["0"]["count"]
    (torch.Size([2, 3]), 100)
    """
    refuse_unsupported(model)
    check_weights(model)
    with placed(model, device):
        source = Source(data, model)
        few = next(iter(source)).map(lambda leaf: leaf[:_EXAMPLE_ROWS])
        recording = capture(model, few, find_sites(model, layers))
        with Replay(model, recording) as replay:
            graph = read_wiring(replay).layers
        graph.graph["sites"] = recording.sites
        room = parse_memory(memory) // 3  # for rows kept, for rows at work, and for copies
        rows = min(_BATCH, room // recording.row_bytes)
        source = Source(data, model, batch_size=max(_EXAMPLE_ROWS, rows))
        collect = _Collect(model, source, recording, levels, seed, progress)
        for parts, rows in _passes(recording, list(graph), room):
            for name, metric in collect(parts, rows).items():
                _add_statistics(graph, name, metric.compute())
                metric.reset()  # else its rows stay until the garbage collector finds them
    return graph


def check_weights(model: nn.Module) -> None:
    """Raise ModelError naming the first parameter or buffer that is not finite."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"weights {name!r} hold NaN or infinity: load a checkpoint that is whole"
            )


def _add_statistics(graph: nx.DiGraph, name: str, statistics: Statistics) -> None:
    """Put a layer's statistics on its node, or join them to those of the neurons before them.

    ModelError if its activations are not finite.
    """
    if not statistics.finite:
        raise ModelError(
            f"layer {name!r} returns NaN or infinity on this data: look for an overflow there "
            "or above it"
        )
    node = graph.nodes[name]
    for field, value in vars(statistics).items():
        if isinstance(value, Tensor) and field in node:
            value = torch.cat([node[field], value], dim=1 if field == "quantiles" else 0)
        node[field] = value


def _passes(
    recording: Recording, names: list[str], memory: int
) -> Iterator[tuple[dict[str, slice], int]]:
    """Cut the work into passes over the data.

    Yields which neurons of which layers are profiled together, and how many samples' activations
    are kept of them.
    """
    parts: dict[str, slice] = {}
    free = room = memory // _FEWEST_ROWS
    for name in names:
        neurons = recording.layers[name].neurons
        size = 4 * recording.main(name)[:1].numel() // max(1, neurons)
        step = max(1, room // max(1, size))
        for start in range(0, neurons, step):
            part = slice(start, min(start + step, neurons))
            taken = size * (part.stop - start)
            if parts and (taken > free or name in parts):
                yield parts, _FEWEST_ROWS
                parts, free = {}, room
            parts[name] = part
            free -= taken
    if parts:
        whole = all(part.start == 0 for part in parts.values())
        affordable = memory // max(1, room - free)
        yield parts, max(_FEWEST_ROWS, min(_MOST_ROWS, affordable)) if whole else _FEWEST_ROWS


class _Collect:
    """Streams the data through the model; again with positions pooled where it must be."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        recording: Recording,
        levels: Sequence[float],
        seed: int,
        progress: bool | None,
    ) -> None:
        self.model, self.source, self.recording = model, source, recording
        self.levels, self.seed, self.progress = levels, seed, progress
        self.pooled: set[str] = set()
        self.parts: dict[str, slice] = {}

    def __call__(self, parts: dict[str, slice], rows: int) -> dict[str, ActivationStatistics]:
        self.parts = parts
        while True:
            metrics = {name: self._metric(name, rows) for name in parts}
            varying = self._stream(metrics)
            if not varying:
                return metrics
            self.pooled |= varying

    def _metric(self, name: str, rows: int) -> ActivationStatistics:
        layer, example = self.recording.layers[name], self.recording.main(name)
        first = channels_first(example, layer.channel_dim)[:, self.parts[name]]
        shape = tuple(first.shape[1:2] if name in self.pooled else first.shape[1:])
        metric = ActivationStatistics(
            shape,
            quantiles=self.levels,
            reservoir=rows,
            seed=self.seed,
            dtype=torch.float64 if example.dtype == torch.float64 else torch.float32,
        )
        return metric.to(example.device)

    def _stream(self, metrics: dict[str, ActivationStatistics]) -> set[str]:
        """Update the metrics with every batch; return layers that turned out to need pooling."""
        varying: set[str] = set()
        with undisturbed(self.model), Progress("profiling", self.progress, unit="samples") as bar:
            for batch in self.source:
                inputs = input_tensors(self.model, batch)

                def visit(
                    call: str,
                    _path: str,
                    _arguments: Any,
                    output: Any,
                    inputs: dict[str, Tensor] = inputs,
                    size: int = batch.size,
                ) -> None:
                    leaves = flatten(output)[0]
                    for layer in self.recording.by_call.get(call, ()):
                        if layer.name in metrics:
                            values = _rows(layer, leaves[layer.leaf], size)
                            varying.update(self._update(metrics[layer.name], layer, values, inputs))

                for name, tensor in inputs.items():
                    visit(name, "", None, tensor)
                observe(self.model, batch, self.recording.sites, visit)
                if varying:
                    return varying
                _check_layers(batch, metrics)
                bar.advance(batch.size)
        return varying

    def _update(
        self,
        metric: ActivationStatistics,
        layer: Layer,
        rows: Tensor,
        inputs: dict[str, Tensor],
    ) -> set[str]:
        """Add a batch's values of a layer; if that cannot be position by position, its name."""
        values = channels_first(rows, layer.channel_dim)[:, self.parts[layer.name]]
        # Masks fit by length, and this batch may have another one than the example.
        by_row = layer.layout.dim is not None
        mask = attended(inputs, replace(layer, shape=tuple(rows.shape[1:]))) if by_row else None
        if layer.name in self.pooled:
            values = values.movedim(1, -1)
            values = values.reshape(-1, values.shape[-1]) if mask is None else values[mask]
        elif mask is not None or values.shape[1:] != metric.shape:
            return {layer.name}
        metric.update(values)
        return set()


def _rows(layer: Layer, tensor: Tensor, size: int) -> Tensor:
    """Rows of a layer's tensor in a batch of any size."""
    layout = layer.layout
    if layout.dim is not None and tensor.shape[layout.dim] != size * layout.many:
        layout = replace(layout, many=tensor.shape[layout.dim] // size)
    return layout.rows(tensor)


def _check_layers(batch: Batch, metrics: dict[str, ActivationStatistics]) -> None:
    silent = [name for name, metric in metrics.items() if not int(metric.count)]
    if silent:
        raise DataError(
            f"layer {silent[0]!r} ran on the first samples but not on a batch of {batch.size}: "
            "the model takes different layers for different data"
        )
