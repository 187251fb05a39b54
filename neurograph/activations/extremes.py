"""The samples in which neurons are highest and lowest, and some in between, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurograph.activations.reservoir import RowChoice, choose_next, choose_rows, no_keys
from neurograph.errors import OptionError

__all__ = ["Extreme", "Extremes"]


class Extreme(NamedTuple):
    """A sample of the data, and the value that a neuron has there."""

    sample: int
    value: float


class Extremes:
    """For each neuron the samples of its highest and its lowest values, and a random few.

    What is kept of a stream does not depend on how it was cut into batches, and what several
    streams kept can be merged: of equal values the first samples are kept.

    Parameters
    ----------
    neurons : int
        How many.
    count : int
        How many samples are kept at each end.
    reservoir : int
        How many are kept at random, the same for all neurons.
    seed, stream : int
        Choose these, as for `ActivationStatistics`.

    Examples
    --------
    >>> extremes = Extremes(1, 2, reservoir=5)
    >>> values = torch.tensor([[3.0], [1.0], [5.0], [2.0], [4.0]])
    >>> extremes.update(values, values, first=0)
    >>> [extreme.sample for extreme in extremes.highest(0)], extremes.lowest(0)[0]
    ([2, 4], Extreme(sample=1, value=1.0))
    >>> extremes.between(0, 1)
    [Extreme(sample=0, value=3.0)]
    """

    def __init__(
        self, neurons: int, count: int, *, reservoir: int, seed: int = 0, stream: int = 0
    ) -> None:
        self.neurons, self.count, self.reservoir = neurons, count, reservoir
        self.seed, self.stream, self.rows = seed, stream, 0
        nothing = torch.empty(0, neurons, dtype=torch.float64)
        self._ends = {sign: (nothing, nothing.long()) for sign in (1, -1)}
        self._keys = no_keys(reservoir, torch.device("cpu"))
        self._samples = torch.full((reservoir,), -1)
        self._values = torch.empty(reservoir, neurons, dtype=torch.float64)

    def update(self, high: Tensor, low: Tensor, first: int) -> None:
        """Add samples.

        Parameters
        ----------
        high, low : Tensor, [samples, neurons]
            The highest and the lowest value that each has anywhere in a sample: -inf and inf where
            it has none.
        first : int
            Number of the first of these samples; the others follow.
        """
        high, low = high.double().cpu(), low.double().cpu()
        samples = torch.arange(first, first + len(high))
        every = samples[:, None].expand(-1, self.neurons)
        self._keep(1, high, every)
        self._keep(-1, low, every)
        choice = choose_next(self._keys, self.rows, len(high), self.seed, self.stream)
        self._take(choice, samples, high)
        self.rows += len(high)

    def merge_state(self, other: Extremes) -> None:
        """Add what another has seen, of other samples and with another stream."""
        if (other.neurons, other.count, other.reservoir) != (
            self.neurons,
            self.count,
            self.reservoir,
        ):
            raise OptionError("extremes of other neurons, or of another count, do not merge")
        for sign, (values, samples) in other._ends.items():
            self._keep(sign, sign * values, samples)
        held = min(other.rows, other.reservoir)
        keys = other._keys[:held].numpy()
        choice = choose_rows(self._keys, self.rows, keys)
        self._take(choice, other._samples[:held], other._values[:held])
        self.rows += other.rows

    def highest(self, neuron: int) -> list[Extreme]:
        """Samples in which a neuron is highest, the first first."""
        return self._end(neuron, 1)

    def lowest(self, neuron: int) -> list[Extreme]:
        """Samples in which it is lowest."""
        return self._end(neuron, -1)

    def between(self, neuron: int, count: int) -> list[Extreme]:
        """Samples that are evenly spread over those kept at random, by rank, the highest first."""
        samples, values = self.drawn
        values = values[:, neuron]
        order = np.lexsort((samples, -values.numpy()))
        order = order[values[torch.from_numpy(order)].isfinite().numpy()]
        places = (np.arange(1, count + 1) * len(order) / (count + 1)).astype(int)
        chosen = order[np.unique(places)] if len(order) else []
        return [Extreme(int(samples[i]), float(values[i])) for i in chosen]

    @property
    def drawn(self) -> tuple[Tensor, Tensor]:
        """Samples kept at random, and the neurons' highest values there: [samples, neurons]."""
        held = min(self.rows, self.reservoir)
        return self._samples[:held], self._values[:held]

    def _end(self, neuron: int, sign: int) -> list[Extreme]:
        values, samples = (x[:, neuron] for x in self._ends[sign])
        return [
            Extreme(int(sample), float(sign * value))
            for value, sample in zip(values, samples, strict=True)
            if value.isfinite()
        ]

    def _keep(self, sign: int, values: Tensor, samples: Tensor) -> None:
        """Keep what is largest once multiplied by the sign, and of equals the first samples."""
        known, numbers = self._ends[sign]
        values, samples = torch.cat([known, sign * values]), torch.cat([numbers, samples])
        order = samples.argsort(dim=0, stable=True)
        values, samples = values.gather(0, order), samples.gather(0, order)
        order = values.argsort(dim=0, descending=True, stable=True)[: self.count]
        self._ends[sign] = values.gather(0, order), samples.gather(0, order)

    def _take(self, choice: RowChoice, samples: Tensor, values: Tensor) -> None:
        self._keys = choice.keys
        for slots, chosen in choice.moves:
            self._samples[slots], self._values[slots] = samples[chosen], values[chosen]
