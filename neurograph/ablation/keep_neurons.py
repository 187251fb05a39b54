"""Runs in which only some neurons keep their values, and all others have ablated ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from neurograph.ablation.index import Components, Flags
from neurograph.ablation.replacements import Ablated
from neurograph.data.source import Batch
from neurograph.effects.experiment import Experiment
from neurograph.errors import ModelError
from neurograph.model.hooks import find_place, passing
from neurograph.model.observe import call_model
from neurograph.replay.run import Outcome

__all__ = ["KeepNeurons"]

_CHECKED = 2  # samples on which it is checked that sets can share a batch


class KeepNeurons:
    """The model with all but some neurons ablated, several sets in one batch.

    Neurons are ablated as they leave their layers; everything else is computed: kept neurons from
    what the ablated ones left of their inputs.

    Parameters
    ----------
    experiment : Experiment
        Open.
    components : Components
        Neurons.
    """

    at_once = 64

    def __init__(self, experiment: Experiment, components: Components) -> None:
        self.experiment, self.components = experiment, components
        model = experiment.replay.model
        self._places = {name: find_place(name, model) for (name,) in components.sizes}
        inputs = [n for n in experiment.graph if experiment.recording.layers[n].is_input]
        self._plan = experiment.wiring.suffix(inputs)
        self._shared: bool | None = None

    def __call__(self, kept: Flags, ablated: Ablated) -> Iterator[tuple[slice, slice, Any]]:
        """Run some sets.

        Parameters
        ----------
        kept : ndarray of bool, [sets, neurons]
        ablated : callable

        Yields
        ------
        sets, samples : slice
        output
            What the model returned: for each of the sets a row for each of the samples.
        """
        silenced = dict(self._silenced(kept))
        for sets, samples in self.experiment.chunks(len(kept), [self._plan]):
            together = range(sets.start, sets.stop)
            if len(together) > 1 and not self._can_share(silenced, ablated, sets):
                for number in together:
                    alone = slice(number, number + 1)
                    yield alone, samples, self._run(silenced, ablated, alone, samples)
            else:
                yield sets, samples, self._run(silenced, ablated, sets, samples)

    def _silenced(self, kept: Flags) -> Iterator[tuple[str, Tensor]]:
        """Mark the elements of each layer's rows that are ablated, ``[sets, elements]``."""
        for (layer,), flags in self.components.parts(kept):
            members = self.experiment.units(layer).members
            width = self.experiment.recording.main(layer)[0].numel()
            off = torch.zeros(len(flags), width, dtype=torch.bool, device=members.device)
            for row, some in zip(off, torch.from_numpy(~flags).to(members.device), strict=True):
                row[members[some].flatten()] = True
            yield layer, off

    def _run(
        self, silenced: dict[str, Tensor], ablated: Ablated, sets: slice, samples: slice
    ) -> Any:
        recording, count = self.experiment.recording, sets.stop - sets.start

        def change(layer: str, tensor: Tensor) -> Tensor:
            layout, off = recording.layers[layer].layout, silenced[layer][sets][:, None]
            moving = self.experiment.moving(layer)
            if moving is not None:
                off = off & moving[samples]
            rows = layout.rows(tensor)
            values = ablated(layer)[samples]
            own = rows.flatten(1)
            own = own if len(own) == 1 else own.view(count, len(values), -1)
            changed = torch.where(off, values, own).view(-1, *rows.shape[1:])
            passed = layout.tensor(changed).to(tensor)
            return passed.contiguous() if tensor.is_contiguous() else passed

        def repeated(leaf: Tensor) -> Tensor:
            return leaf[samples].repeat(count, *[1] * (leaf.dim() - 1))

        active = [place for name, place in self._places.items() if silenced[name][sets].any()]
        batch: Batch = recording.batch.map(repeated)
        with passing(self.experiment.replay.model, active, change):
            return call_model(self.experiment.replay.model, batch)

    def _can_share(self, silenced: dict[str, Tensor], ablated: Ablated, sets: slice) -> bool:
        """Find out once whether sets in one batch give what each gives alone."""
        experiment = self.experiment
        if experiment.replay.one_by_one:
            return False
        if self._shared is None:
            few = slice(0, min(_CHECKED, experiment.recording.size))
            first = slice(sets.start, sets.start + 1)
            last = slice(sets.stop - 1, sets.stop)
            ends = {n: torch.cat([off[first], off[last]]) for n, off in silenced.items()}
            try:
                both = self._targets(ends, ablated, slice(0, 2), few)
                alone = [self._targets(silenced, ablated, some, few) for some in (first, last)]
                self._shared = _agree(both, torch.cat(alone))
            except (ModelError, RuntimeError):
                self._shared = False
        return self._shared

    def _targets(
        self, silenced: dict[str, Tensor], ablated: Ablated, sets: slice, samples: slice
    ) -> Tensor:
        output = self._run(silenced, ablated, sets, samples)
        return self.experiment.targets(Outcome(output), sets.stop - sets.start, samples)


def _agree(some: Tensor, others: Tensor) -> bool:
    """Whether two tensors of one shape differ by rounding only."""
    close = 1000 * torch.finfo(some.dtype).eps
    scale = float(others.abs().max())
    return torch.allclose(some, others, rtol=close, atol=close * scale, equal_nan=True)
