"""The layer graph with the statistics of every neuron over the data on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.activations.statistics import ActivationStatistics, Statistics, merged
from neurograph.activations.streaming import Arrived, parts_that_fit, stream
from neurograph.data.labels import Label, Labelled
from neurograph.data.source import Batch, Source, fingerprint
from neurograph.data.taking import FEW
from neurograph.errors import ModelError
from neurograph.model.layer_choice import Choice, refuse_unsupported
from neurograph.model.layers import channels_first
from neurograph.model.observe import placed
from neurograph.replay.padding import find_padding
from neurograph.replay.recording import Recording
from neurograph.replay.wiring import wire
from neurograph.utils.checks import a_share, listed, whole
from neurograph.utils.memory import parse_memory
from neurograph.utils.nested import dense_parts

__all__ = ["QUANTILES", "add_statistics", "check_weights", "model_hash", "profile", "wired"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BATCH = 256
_FEWEST_ROWS = 64
_MOST_ROWS = 2048


def profile(
    model: nn.Module,
    data: Any,
    *,
    layers: Choice | None = None,
    labels: Any = None,
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
        Which modules are layers, as for `search`: with ``["fc*", "fc*:input"]`` both sides of
        them.
    labels : bool or one class for each sample, optional
        Also collect statistics of each class: True reads the labels in the data.
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
        pooled and the tensors are ``[neurons]``. Units are the layer's own. With `labels`, each
        also has ``classes``, a dict of `Statistics` with these fields.

    Raises
    ------
    ModelError
        The model cannot be replayed, raised, or has NaN or infinite weights or activations.
    DataError
        No data, NaN or infinity in it, or labels that do not fit it.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> graph = profile(model, torch.rand(100, 2), levels=(0.05, 0.95))
    >>> graph.nodes["0"]["quantiles"].shape, graph.nodes["0"]["count"]
    (torch.Size([2, 3]), 100)
    """
    refuse_unsupported(model)
    check_weights(model)
    levels = [a_share(q, "levels", zero=True, one=True) for q in listed(levels, "levels")]
    seed = whole(seed, "seed", least=0)
    with placed(model, device):
        graph, recording = wired(model, Source(data, model), layers)
        add_statistics(
            graph,
            model,
            data,
            recording,
            labels=labels,
            levels=levels,
            memory=memory,
            seed=seed,
            progress=progress,
        )
        graph.graph["model"] = model_hash(model)
    return graph


def add_statistics(
    graph: nx.DiGraph,
    model: nn.Module,
    data: Any,
    recording: Recording,
    *,
    levels: Sequence[float],
    labels: Any = None,
    memory: int | str,
    seed: int,
    progress: bool | None,
) -> None:
    """Put statistics over the data on a layer graph; `graph` and `recording` as from `wired`."""
    room = parse_memory(memory) // 3  # for rows kept, for rows at work, and for copies
    rows = min(_BATCH, room // recording.row_bytes)
    source = Source(data, model, batch_size=max(FEW, rows))
    labelled = None if labels is None or labels is False else Labelled(source, labels)
    collect = _Collect(model, source, labelled, recording, levels, seed, progress)
    for parts, rows in _passes(recording, list(graph), room // len(collect.classes)):
        for name, metrics in collect(parts, rows).items():
            _add_statistics(graph, name, metrics)
            for metric in metrics.values():
                metric.reset()  # its rows are of no more use, and others come


def model_hash(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, with their names."""
    digest = fingerprint([])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode())
        fingerprint(dense_parts(tensor), digest)
    return str(digest.hexdigest())


def wired(
    model: nn.Module, source: Iterable[Batch], layers: Choice | None
) -> tuple[nx.DiGraph, Recording]:
    """The layer graph as `profile` makes it, without statistics, and the few samples it is of."""
    wiring, recording = wire(model, source, layers)
    graph = wiring.layers
    padding = find_padding(model, source, recording)
    graph.graph.update(sites=recording.sites, padding=padding)
    if recording.fixed:
        graph.graph["batch"] = recording.size
    return graph, padding.on(recording)


def check_weights(model: nn.Module) -> None:
    """Raise ModelError naming the first parameter or buffer that is not finite."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not all(map(_is_finite, dense_parts(tensor))):
            raise ModelError(
                f"weights {name!r} hold NaN or infinity: load a checkpoint that is whole"
            )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype in (torch.float32, torch.float64) and tensor.numel():
        return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # in one reading
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _add_statistics(
    graph: nx.DiGraph, name: str, metrics: dict[Label | None, ActivationStatistics]
) -> None:
    """Put a layer's statistics on its node, or join them to those of the neurons before them.

    ModelError if its activations are not finite.
    """
    node = graph.nodes[name]
    found = {label: metric.compute() for label, metric in metrics.items()}
    whole = found.pop(None) if None in found else merged(list(metrics.values())).compute()
    if not whole.finite:
        raise ModelError(
            f"layer {name!r} returns NaN or infinity on this data: look for an overflow there "
            "or above it"
        )
    node.update(_joined({key: node[key] for key in vars(whole) if key in node}, vars(whole)))
    if found:
        before = node.get("classes", {})
        node["classes"] = {
            label: Statistics(**_joined(vars(before[label]) if before else {}, vars(part)))
            for label, part in found.items()
        }


def _joined(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Join fields of statistics along the neurons; what is no tensor is the same in both."""

    def join(key: str) -> Any:
        if key not in before or not isinstance(more[key], Tensor):
            return more[key]
        return torch.cat([before[key], more[key]], dim=1 if key == "quantiles" else 0)

    return {key: join(key) for key in more}


def _passes(
    recording: Recording, names: list[str], memory: int
) -> Iterator[tuple[dict[str, slice], int]]:
    """Cut the work into passes over the data.

    Yields which neurons of which layers are profiled together, and how many samples' activations
    are kept of them.
    """
    sizes = {}
    for name in names:
        if neurons := recording.layers[name].neurons:
            sizes[name] = (neurons, 4 * recording.main(name)[:1].numel() // neurons)
    for parts, taken in parts_that_fit(sizes, memory // _FEWEST_ROWS):
        whole = all(part == slice(0, sizes[name][0]) for name, part in parts.items())
        affordable = memory // max(1, taken)
        yield parts, max(_FEWEST_ROWS, min(_MOST_ROWS, affordable)) if whole else _FEWEST_ROWS


class _Collect:
    """Streams the data through the model; again with positions pooled where it must be."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        labelled: Labelled | None,
        recording: Recording,
        levels: Sequence[float],
        seed: int,
        progress: bool | None,
    ) -> None:
        self.model, self.recording = model, recording
        self.batches: Iterable[Batch] = source if labelled is None else labelled
        self.classes: tuple[Label | None, ...] = (None,) if labelled is None else labelled.classes
        self.levels, self.seed, self.progress = levels, seed, progress
        self.pooled: set[str] = set()
        self.parts: dict[str, slice] = {}

    def __call__(
        self, parts: dict[str, slice], rows: int
    ) -> dict[str, dict[Label | None, ActivationStatistics]]:
        self.parts = parts
        while True:
            metrics = {
                name: {c: self._metric(name, rows, i) for i, c in enumerate(self._classes(name))}
                for name in parts
            }
            varying = self._stream(metrics)
            if not varying:
                return metrics
            self.pooled |= varying

    def _classes(self, name: str) -> tuple[Label | None, ...]:
        """Classes by which a layer is profiled; nothing says of which sample a routed row is."""
        return (None,) if self.recording.layers[name].routed else self.classes

    def _metric(self, name: str, rows: int, number: int) -> ActivationStatistics:
        layer, example = self.recording.layers[name], self.recording.main(name)
        first = channels_first(example, layer.channel_dim)[:, self.parts[name]]
        shape = first.shape[1:]
        if name in self.pooled:  # a row is a position then, and takes as much less
            shape, rows = shape[:1], min(_MOST_ROWS, rows * shape[1:].numel())
        metric = ActivationStatistics(
            shape,
            quantiles=self.levels,
            reservoir=rows if len(self.levels) else 1,  # kept for quantiles alone
            seed=self.seed,
            stream=number,
            dtype=torch.float64 if example.dtype == torch.float64 else torch.float32,
        )
        return metric.to(example.device)

    def _stream(self, metrics: dict[str, dict[Label | None, ActivationStatistics]]) -> set[str]:
        """Update the metrics with every batch; return layers that turned out to need pooling."""

        def receive(arrived: Arrived) -> bool:
            name = arrived.layer.name
            part = arrived.of_channels(self.parts[name])
            return all(
                self._update(metric, part if label is None else part.of_class(number))
                for number, (label, metric) in enumerate(metrics[name].items())
            )

        return stream(
            self.model,
            self.batches,
            self.recording,
            metrics,
            receive,
            title="profiling",
            progress=self.progress,
        )

    def _update(self, metric: ActivationStatistics, arrived: Arrived) -> bool:
        """Add a batch's values of a layer; say whether that could be done position by position."""
        if arrived.layer.name in self.pooled:
            metric.update(arrived.at_positions())
        elif arrived.attended is not None or arrived.values.shape[1:] != metric.shape:
            return False
        else:
            metric.update(arrived.values)
        return True
