"""A study of the library beside the reference, on the same network, data and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurograph.effects.contrast import Contrast, Counterfactual
from neurograph.effects.effects import Effects
from neurograph.effects.exact import node_effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.resampling import draw_donors
from neurograph.questions.study import Study
from tests.reference import Reference, Seen
from tests.zoo import Network

SAMPLES, ROWS = 4, 23
_QUANTILES = {"quantiles": (0.05, 0.95), "sweep": (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)}


def edge_effects(
    experiment: Experiment, writer: str, neurons: Sequence[int], reader: str, output: int
) -> Effects:
    """Effects of the edges from neurons to one output of a reader, each measured by itself."""
    return node_effects(experiment, writer, neurons, {reader: [output]})


def as_data(arguments: Mapping[str, Any]) -> Any:
    """Data as users have them: a tensor if there is one input, else by name."""
    return next(iter(arguments.values())) if len(arguments) == 1 else dict(arguments)


class Case:
    """One network, contrast and background, for the library and for the reference.

    Parameters
    ----------
    network : Network
    contrast, background
        As for `Study`; the contrast `counterfactual` brings counterfactual samples of its own.
    target : int, optional
        What the library gets for a target, if not the network's own callable.
    """

    def __init__(
        self,
        network: Network,
        contrast: str | tuple[float, float],
        background: str,
        target: int | None = None,
    ) -> None:
        self.network = network
        self.data, self.corrupt = network.inputs(ROWS, 1), network.inputs(ROWS, 2)
        chosen: str | tuple[float, float] | Contrast = contrast
        if contrast == "counterfactual":
            chosen = Counterfactual(as_data(self.corrupt))
        options = dict(
            contrast=chosen,
            background=background,  # type: ignore[arg-type]
            reference=SAMPLES,
            memory=100_000,  # small, so that work is cut into many pieces
            progress=False,
            **network.options,
        )
        wanted = network.target if target is None else target
        self.study: Study = Study(network.model, as_data(self.data), wanted, **options)
        positions = list(self.study.provenance["data"]["reference"])
        self.reference = Reference(network, _rows(self.data, positions))
        self._set(contrast, background, _rows(self.corrupt, positions))

    def _set(
        self, contrast: str | tuple[float, float], background: str, corrupt: Mapping[str, Any]
    ) -> None:
        """Give the reference its levels and background, by NumPy over all data."""
        reference = self.reference
        every = Reference(self.network, self.data).background
        twins = Reference(self.network, corrupt).background
        q = contrast if isinstance(contrast, tuple) else _QUANTILES.get(contrast)
        levels: dict[str, Tensor] = {}
        still: dict[str, Tensor] = {}
        for name, actual in reference.background.items():
            if not reference.neurons(name):
                continue
            mean, zero = reference.mean(name, every[name]), torch.zeros_like(actual)
            if q is None:
                low = {"mean": mean, "zero": zero, "counterfactual": twins[name]}
                if contrast == "resample":
                    low["resample"] = _resampled(actual)
                levels[name] = torch.stack([low[str(contrast)], actual])
            else:
                levels[name] = reference.quantiles(name, every[name], q)
            self._pad(name, levels, every[name], q)
            still[name] = {"data": actual, "mean": mean, "zero": zero}[background]
        reference.set_levels(levels)
        reference.background |= still

    def _pad(
        self, name: str, levels: dict[str, Tensor], every: Tensor, q: Sequence[float] | None
    ) -> None:
        """What is padding neither moves nor counts: positions are pooled."""
        actual = self.reference.background[name]
        mask, own = _real(self.data), _real(self.reference.arguments)
        if mask is None or bool(mask.all()) or every.dim() != 3 or every.shape[:2] != mask.shape:
            return
        assert own is not None
        channels = range(actual.shape[-1])
        if not own.all() and name not in self.reference.units:
            self.reference.units[name] = [(c, own.bool()) for c in channels]
        if q is not None:
            pooled = torch.from_numpy(np.quantile(every[mask.bool()].numpy(), q, axis=0))
            levels[name] = pooled[:, None, None].expand(-1, *actual.shape)

    def neurons(self, layer: str) -> range:
        return range(self.reference.neurons(layer))

    def effect(
        self, measure: Callable[[int, Tensor], Tensor], layer: str, index: int
    ) -> tuple[float, float]:
        """What the reference says of `measure(neuron, value)` over a neuron's levels."""
        values = self.reference.values(layer, index)
        return self.reference.effect(lambda value: measure(index, value), values)

    def check(self, effects: Effects, wanted: list[tuple[float, float]]) -> None:
        exact = next(self.network.model.parameters()).dtype == torch.float64
        scale = max([1e-3, *(abs(e) for e, _ in wanted)])
        # float32 rounds each target to about 1e-7 of its size, which bounds what a small
        # difference of two of them can say.
        size = max(float(effects.response.abs().max()) + scale, 0.1)
        atol = 1e-9 * max(size, 1.0) if exact else 3e-6 * size
        got = np.stack([effects.effect.numpy(), effects.stderr.numpy()], axis=1)
        rtol = 1e-9 if exact else 1e-4
        np.testing.assert_allclose(got, np.array(wanted), rtol=rtol, atol=atol)

    def check_nodes(
        self, experiment: Experiment, layer: str, through: Seen, neurons: Sequence[int]
    ) -> None:
        """Compare the effects of some neurons of a layer through the given readers."""
        reference = self.reference
        wanted = [
            self.effect(lambda i, v: reference.through(layer, i, v, through), layer, index)
            for index in neurons
        ]
        self.check(node_effects(experiment, layer, neurons, through), wanted)

    def subsets(self, layers: Sequence[str], seed: int) -> dict[str, Sequence[int] | None]:
        """Some outputs of each layer, at least one."""
        generator = np.random.default_rng(seed)
        return {
            name: sorted(
                generator.choice(
                    list(self.neurons(name)),
                    size=generator.integers(1, len(self.neurons(name)) + 1),
                    replace=False,
                ).tolist()
            )
            for name in layers
        }


def _real(arguments: Mapping[str, Any]) -> Tensor | None:
    """Where real positions are, by either convention of masks."""
    if "padding" in arguments:
        return ~arguments["padding"]
    mask: Tensor | None = arguments.get("attention_mask")
    return mask


def _resampled(actual: Tensor) -> Tensor:
    """Values ``[samples, positions, channels]`` from random positions of other samples.

    Of networks in which no position is the same in all samples, and nothing is padding.
    """
    donors = draw_donors(len(actual), 0).tolist()
    taken = actual[donors]
    if actual.dim() == 3:
        length = actual.shape[1]
        chances = torch.rand(actual.shape[:2], generator=torch.Generator().manual_seed(0))
        for sample, donor in enumerate(donors):
            for place in range(length):
                taken[sample, place] = actual[donor, int(chances[sample, place] * length)]
    return taken


def _rows(arguments: Mapping[str, Any], positions: list[int]) -> dict[str, Any]:
    return {name: value[positions] for name, value in arguments.items()}
