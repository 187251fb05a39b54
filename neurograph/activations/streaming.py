"""Streaming data through a model with every layer's rows shown, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from neurograph.errors import DataError
from neurograph.model.batch import Batch
from neurograph.model.layers import Layer, channels_first
from neurograph.model.observe import input_tensors, observe, undisturbed
from neurograph.model.positions import attended
from neurograph.replay.recording import Recording
from neurograph.utils.nested import flatten, main_index
from neurograph.utils.progress import Progress

__all__ = ["Arrived", "parts_that_fit", "stream"]


@dataclass(frozen=True)
class Arrived:
    """What a layer returned for one batch.

    Attributes
    ----------
    layer : Layer
    values : Tensor, [samples, channels, *positions]
        Of a layer that runs on some rows only ``[rows, channels]``, whatever samples they are of.
    attended : Tensor of bool, [samples, positions], or None
        Which positions hold something; None where all do.
    batch : Batch
    """

    layer: Layer
    values: Tensor
    attended: Tensor | None
    batch: Batch

    def of_channels(self, part: slice) -> Arrived:
        """Return what some of the channels hold."""
        return replace(self, values=self.values[:, part])

    def of_class(self, number: int) -> Arrived:
        """Return the samples whose label is that number; all of what is the same for every one."""
        if len(self.values) != len(self.batch.labels):
            return self
        chosen = (self.batch.labels == number).to(self.values.device)
        mask = None if self.attended is None else self.attended[chosen]
        return replace(self, values=self.values[chosen], attended=mask)

    def sample_means(self) -> Tensor:
        """Mean over the positions that hold something, ``[samples, channels]``."""
        if self.values.dim() == 2:
            return self.values
        if self.attended is None:
            return self.values.flatten(2).mean(dim=2)
        there = self.attended[:, None].to(self.values)
        return (self.values * there).sum(dim=2) / there.sum(dim=2).clamp(min=1)

    def at_positions(self) -> Tensor:
        """Values of all positions that hold something, ``[samples × positions, channels]``."""
        values = self.values.movedim(1, -1)
        if self.attended is not None:
            return values[self.attended]
        return values.reshape(-1, values.shape[-1])


def stream(
    model: nn.Module,
    batches: Iterable[Batch],
    recording: Recording,
    names: Collection[str],
    receive: Callable[[Arrived], bool],
    *,
    title: str,
    progress: bool | None,
) -> set[str]:
    """Run batches through the model and show `receive` what the named layers return.

    Where it says that it cannot take something, the batch is the last. The model runs in eval mode
    without gradients. DataError if a batch does not run through every named layer.

    Returns
    -------
    set of str
        Layers of which something was not taken.
    """
    refused: set[str] = set()
    with undisturbed(model), Progress(title, progress, unit="samples") as bar:
        for batch in batches:
            inputs = input_tensors(model, batch)
            silent = {name for name in names if not recording.layers[name].routed}

            def visit(
                call: str,
                path: str,
                _arguments: Any,
                output: Any,
                batch: Batch = batch,
                inputs: Mapping[str, Tensor] = inputs,
                silent: set[str] = silent,
            ) -> None:
                call = path if path in recording.sites.routed else call
                wanted = [x for x in recording.by_call.get(call, ()) if x.name in names]
                leaves = flatten(output)[0] if wanted else []
                for layer in wanted:
                    silent.discard(layer.name)
                    if layer.routed:
                        rows = leaves[main_index(leaves) or 0].flatten(0, -2)
                        receive(Arrived(layer, rows, None, batch))
                    elif not receive(_arrived(layer, leaves[layer.leaf], inputs, batch)):
                        refused.add(layer.name)

            for name, tensor in inputs.items():
                visit(name, "", None, tensor)
            observe(model, batch, recording.sites, visit, routed=True)
            if silent:
                raise DataError(
                    f"layer {min(silent)!r} ran on the first samples but not on a batch of "
                    f"{batch.size}: the model takes different layers for different data. Search "
                    "the data of each kind by themselves"
                )
            if refused:
                break
            bar.advance(batch.size)
    return refused


def _arrived(layer: Layer, tensor: Tensor, inputs: Mapping[str, Tensor], batch: Batch) -> Arrived:
    rows, mask = layer.layout.fitted(tensor, batch.size).rows(tensor), None
    if layer.layout.dim is not None and rows.dim() == 3:  # a sequence
        # Masks fit by length, and this batch may have another one than the first samples.
        mask = attended(inputs, replace(layer, shape=tuple(rows.shape[1:])))
    rows = layer.coordinates(rows)
    return Arrived(layer, channels_first(rows, layer.channel_dim), mask, batch)


def parts_that_fit(
    sizes: Mapping[str, tuple[int, int]], room: int
) -> Iterator[tuple[dict[str, slice], int]]:
    """Cut the neurons of layers into parts, to be collected in one pass over the data each.

    Parameters
    ----------
    sizes : mapping of str to (int, int)
        How many neurons each layer has, and how many bytes each of them takes.
    room : int
        Bytes that one pass may take; a single neuron may take more.

    Yields
    ------
    parts : dict of str to slice
    taken : int
        Bytes.

    Examples
    --------
    >>> list(parts_that_fit({"a": (2, 4), "b": (5, 4)}, 12))
    [({'a': slice(0, 2, None)}, 8), ({'b': slice(0, 3, None)}, 12), ({'b': slice(3, 5, None)}, 8)]
    """
    parts: dict[str, slice] = {}
    taken = 0
    for name, (neurons, size) in sizes.items():
        step = max(1, room // max(1, size))
        for start in range(0, neurons, step):
            part = slice(start, min(start + step, neurons))
            more = size * (part.stop - start)
            if parts and (taken + more > room or name in parts):
                yield parts, taken
                parts, taken = {}, 0
            parts[name] = part
            taken += more
    if parts:
        yield parts, taken
