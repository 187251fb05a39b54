"""Edge ablation: neurons computed from their kept writers, and ablated values of the others.

Layers go one after the other, so that what a circuit computes is what its later neurons see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from neurograph.ablation.index import Components, Flags
from neurograph.ablation.masked_weights import LinearReader, find_linear_readers
from neurograph.ablation.replacements import Ablated
from neurograph.effects.experiment import Experiment
from neurograph.replay.wiring import target_layers

__all__ = ["KeepEdges"]


class KeepEdges:
    """The model with all but some edges ablated, one set after the other.

    A reader's neurons that keep the same writers share a run; those that keep different ones are
    blocks of one batch. The target sees the values of this run through glue alone.

    Parameters
    ----------
    experiment : Experiment
        Open.
    components : Components
        Edges.
    """

    at_once = 1

    def __init__(self, experiment: Experiment, components: Components) -> None:
        self.experiment, self.components = experiment, components
        graph = experiment.wiring.reach
        ends = target_layers(graph)
        matter = set(ends).union(*(nx.ancestors(graph, name) for name in ends))
        self._writers: dict[str, list[str]] = {}
        for writer, reader in components.sizes:
            if reader in matter:
                self._writers.setdefault(reader, []).append(writer)
        self._ends = [name for name in ends if name in self._writers]
        self._linear = find_linear_readers(experiment, self._writers)

    def __call__(self, kept: Flags, ablated: Ablated) -> Iterator[tuple[slice, slice, Any]]:
        """Run some sets; as `KeepNeurons`."""
        experiment = self.experiment
        recording = experiment.recording
        plan = experiment.wiring.suffix(self._ends)
        for number, flags in enumerate(kept):
            values = self._values(dict(self.components.parts(flags)), ablated)
            for _, samples in experiment.chunks(1, [plan]):
                # Copies: glue may write to what it gets.
                given = {
                    name: values[name][samples].view(-1, *recording.main(name).shape[1:]).clone()
                    for name in self._ends
                }
                outcome = experiment.replay.run(plan, given, samples=samples)
                yield slice(number, number + 1), samples, outcome.output

    def _values(self, kept: Mapping[tuple[str, ...], Flags], ablated: Ablated) -> dict[str, Tensor]:
        """What every layer passes on in the circuit, ``[samples, elements]``.

        The model's inputs, and what is no neuron that may move, are as recorded.
        """
        recording = self.experiment.recording
        values: dict[str, Tensor] = {}
        for name in self.components.units:
            still = recording.main(name).flatten(1)
            if name in self._writers:
                writers = self._writers[name]
                seen = {writer: kept[writer, name] for writer in writers}
                moved = {w: self._without(w, values[w], ablated) for w in writers}
                found = self._computed(name, seen, values, moved)
                values[name] = torch.where(self._may_move(name), found, still)
            else:
                values[name] = still
        return values

    def _may_move(self, layer: str) -> Tensor:
        own, moving = self.components.units[layer].owner >= 0, self.experiment.moving(layer)
        return own if moving is None else own & moving

    def _without(self, layer: str, values: Tensor, ablated: Ablated) -> Tensor:
        """What a layer passes on with all of its neurons ablated."""
        return torch.where(self._may_move(layer), ablated(layer), values)

    def _computed(
        self,
        reader: str,
        kept: Mapping[str, Flags],
        values: Mapping[str, Tensor],
        ablated: Mapping[str, Tensor],
    ) -> Tensor:
        """What a reader's neurons compute, each from its kept writers, ``[samples, elements]``."""
        known = self._linear.get(reader)
        if known is not None:
            return self._by_weights(known, kept[known.writer], values, ablated)
        columns = np.concatenate(list(kept.values()))
        packed = np.packbits(columns, axis=0)
        _, first, which = np.unique(packed, axis=1, return_index=True, return_inverse=True)
        sets = {
            writer: torch.from_numpy(flags[:, first].T.copy()).to(values[writer].device)
            for writer, flags in kept.items()
        }
        return self._by_running(reader, sets, which.reshape(-1), values, ablated)

    def _by_weights(
        self,
        known: LinearReader,
        kept: Flags,
        values: Mapping[str, Tensor],
        ablated: Mapping[str, Tensor],
    ) -> Tensor:
        """Weights set to zero where an edge is not kept, of what is left to see."""
        units = self.components.units
        owners = units[known.writer].owner, units[known.reader].owner
        mask = known.mask(torch.from_numpy(kept).to(owners[0].device), *owners)
        plan = self.experiment.wiring.direct(known.writer, [known.reader])
        parts = [
            known(values[known.writer][samples], ablated[known.writer][samples], mask)
            for _, samples in self.experiment.chunks(1, [plan])
        ]
        return torch.cat(parts).flatten(1)

    def _by_running(
        self,
        reader: str,
        sets: Mapping[str, Tensor],
        which: np.ndarray[Any, Any],
        values: Mapping[str, Tensor],
        ablated: Mapping[str, Tensor],
    ) -> Tensor:
        """Run the reader for every different set of writers that its neurons keep.

        Parameters
        ----------
        reader : str
        sets : mapping of str to bool Tensor
            For each writer ``[sets, neurons]``.
        which : ndarray of int, [outputs]
            The set that each of the reader's neurons keeps.
        values, ablated : mapping of str to Tensor
            Of each writer, ``[samples, elements]``.
        """
        experiment, owner = self.experiment, self.components.units[reader].owner
        found = experiment.recording.main(reader).flatten(1).clone()
        # The set of each element; of those that belong to no neuron, none.
        mine = torch.from_numpy(which).to(owner.device)[owner.clamp_min(0)]
        mine = torch.where(owner >= 0, mine, -1)
        plan = experiment.wiring.between(sets, [reader])
        for blocks, samples in experiment.chunks(len(next(iter(sets.values()))), [plan]):
            given = {
                writer: self._rows(writer, some[blocks], values[writer], ablated[writer], samples)
                for writer, some in sets.items()
            }
            count = blocks.stop - blocks.start
            outcome = experiment.replay.run(plan, given, blocks=count, samples=samples)
            probed = outcome.probed[reader].reshape(count, -1, len(owner))
            here = torch.nonzero((mine >= blocks.start) & (mine < blocks.stop)).flatten()
            found[samples, here] = probed[mine[here] - blocks.start, :, here].T
        return found

    def _rows(
        self, writer: str, kept: Tensor, values: Tensor, ablated: Tensor, samples: slice
    ) -> Tensor:
        """Rows of a writer, a block for each set of its neurons that is kept."""
        off = self.components.units[writer].mask(~kept)[:, None]
        rows = torch.where(off, ablated[samples], values[samples])
        return rows.view(-1, *self.experiment.recording.main(writer).shape[1:])
