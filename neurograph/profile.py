"""One pass over the data: the layer graph with every neuron's activation statistics on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.capture import Recording, capture, input_tensors, observe, placed, undisturbed
from neurograph.data import Batch, Source
from neurograph.errors import DataError, ModelError
from neurograph.layers import Layer, channels_first, main_tensor
from neurograph.memory import parse_memory
from neurograph.progress import Progress
from neurograph.replay import Replay
from neurograph.statistics import ActivationStatistics, Statistics
from neurograph.wiring import read_graph

__all__ = ["QUANTILES", "check_weights", "profile"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_EXAMPLE_ROWS = 4
_FEWEST_ROWS = 64
_MOST_ROWS = 2048


def profile(
    model: nn.Module,
    data: Any,
    *,
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
        Everything is read, once; the memory it takes does not grow with its length.
    levels : sequence of float
        Quantile levels in [0, 1].
    memory : int or str
        Bytes, or like ``"512MB"``: bounds the rows kept for quantiles. Quantiles are exact up to
        that many samples, after which `rank_error` states their accuracy.
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
        shape, positions are pooled and the tensors are ``[neurons]``. Units are the layer's own.

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
    check_weights(model)
    with placed(model, device):
        source = Source(data, model)
        recording = capture(model, next(iter(source)).map(lambda leaf: leaf[:_EXAMPLE_ROWS]))
        with Replay(model, recording) as replay:
            graph = read_graph(replay)
        rows = _rows(recording, memory)
        collected = _collect(model, source, recording, rows, levels, seed, progress)
    for name, metric in collected.items():
        _add_statistics(graph, name, metric.compute())
    return graph


def check_weights(model: nn.Module) -> None:
    """Raise ModelError naming the first parameter or buffer that is not finite."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"weights {name!r} hold NaN or infinity: load a checkpoint that is whole"
            )


def _add_statistics(graph: nx.DiGraph, name: str, statistics: Statistics) -> None:
    """Put a layer's statistics on its node; ModelError if its activations are not finite."""
    if not statistics.finite:
        raise ModelError(
            f"layer {name!r} returns NaN or infinity on this data: look for an overflow there "
            "or above it"
        )
    graph.nodes[name].update(vars(statistics))


def _rows(recording: Recording, memory: int | str) -> int:
    """How many samples' activations may be kept."""
    bytes_per_row = sum(
        4 * recording.main(name).numel() // recording.size
        for name, layer in recording.layers.items()
        if layer.neurons
    )
    affordable = parse_memory(memory) // 2 // max(bytes_per_row, 1)
    return max(_FEWEST_ROWS, min(_MOST_ROWS, affordable))


def _collect(
    model: nn.Module,
    source: Source,
    recording: Recording,
    rows: int,
    levels: Sequence[float],
    seed: int,
    progress: bool | None,
) -> dict[str, ActivationStatistics]:
    """Stream the data through the model; again with positions pooled where shapes vary."""
    layers = {n: layer for n, layer in recording.layers.items() if layer.neurons}
    pooled: set[str] = set()
    while True:
        metrics = {
            name: _statistics_for(recording.main(name), layer, name in pooled, levels, rows, seed)
            for name, layer in layers.items()
        }
        varying = _stream(model, source, layers, metrics, pooled, progress)
        if not varying:
            return metrics
        pooled |= varying


def _statistics_for(
    example: Tensor, layer: Layer, pooled: bool, levels: Sequence[float], rows: int, seed: int
) -> ActivationStatistics:
    shape = (layer.neurons,) if pooled else tuple(_first(example, layer).shape[1:])
    dtype = torch.float64 if example.dtype == torch.float64 else torch.float32
    metric = ActivationStatistics(shape, quantiles=levels, reservoir=rows, seed=seed, dtype=dtype)
    return metric.to(example.device)


def _first(tensor: Tensor, layer: Layer) -> Tensor:
    return channels_first(tensor, layer.channel_dim)


def _stream(
    model: nn.Module,
    source: Source,
    layers: dict[str, Layer],
    metrics: dict[str, ActivationStatistics],
    pooled: set[str],
    progress: bool | None,
) -> set[str]:
    """Update the metrics with every batch; return layers whose shape turned out to vary."""
    varying: set[str] = set()

    def update(name: str, output: Any) -> None:
        tensor = main_tensor(output)
        if name not in layers or tensor is None:
            return
        values = _first(tensor, layers[name])
        if name in pooled:
            values = values.movedim(1, -1).reshape(-1, layers[name].neurons)
        elif values.shape[1:] != metrics[name].shape:
            varying.add(name)
        if not varying:
            metrics[name].update(values)

    with undisturbed(model), Progress("profiling", progress, unit="samples") as bar:
        for batch in source:
            for name, tensor in input_tensors(model, batch).items():
                update(name, tensor)
            observe(model, batch, lambda name, _path, _args, output: update(name, output))
            if varying:
                return varying
            _check_layers(batch, layers, metrics)
            bar.advance(batch.size)
    return varying


def _check_layers(
    batch: Batch, layers: dict[str, Layer], metrics: dict[str, ActivationStatistics]
) -> None:
    silent = [name for name in layers if not int(metrics[name].count)]
    if silent:
        raise DataError(
            f"layer {silent[0]!r} ran on the first samples but not on a batch of {batch.size}: "
            "the model takes different layers for different data"
        )
