"""Neuron ablation: runs in which some neurons keep their values, and all others are ablated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neurograph.ablation.index import Components, Flags
from neurograph.ablation.replacements import Ablated
from neurograph.effects.experiment import Experiment

__all__ = ["KeepNeurons"]


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
        layers = frozenset(name for (name,) in components.sizes)
        self._is_one = len(layers) == 1  # what comes before it stays as it is, and is not run
        wiring = experiment.wiring
        whole = replace(wiring.everything(), nudged=layers)
        self._plan = wiring.suffix(layers) if self._is_one else whole

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
        experiment = self.experiment
        for sets, samples in experiment.chunks(len(kept), [self._plan]):
            added: dict[str, Tensor] = {}
            shares: dict[str, Tensor] = {}
            for (layer,), flags in self.components.parts(kept[sets]):
                rows = experiment.recording.main(layer)[samples]
                values, on = ablated(layer)[samples], self._kept(layer, flags, samples)
                both = len(flags), *values.shape
                added[layer] = values.expand(both).reshape(-1, *rows.shape[1:])
                shares[layer] = on.expand(both).reshape(-1, *rows.shape[1:])
            count = sets.stop - sets.start
            if self._is_one:
                kept_rows = {
                    name: torch.where(on, self._repeated(name, samples, count), added[name])
                    for name, on in shares.items()
                }
                added, shares = kept_rows, {}
            run = experiment.replay.run(
                self._plan, added, blocks=count, samples=samples, shares=shares
            )
            yield sets, samples, run.output

    def _repeated(self, layer: str, samples: slice, sets: int) -> Tensor:
        rows = self.experiment.recording.main(layer)[samples]
        return rows.repeat(sets, *[1] * (rows.dim() - 1))

    def _kept(self, layer: str, kept: Flags, samples: slice) -> Tensor:
        """Mark the elements of a layer's rows that are kept, ``[sets, samples or 1, elements]``.

        What is no neuron, or may not move, such as padding, is left alone.
        """
        off = self.experiment.units(layer).mask(torch.from_numpy(~kept))[:, None]
        moving = self.experiment.moving(layer)
        return ~off if moving is None else ~(off & moving[samples])
