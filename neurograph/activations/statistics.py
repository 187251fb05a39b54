"""One-pass statistics of activations: moments, extremes and quantiles in constant memory.

Moments are sums of gaps to a centre that rests on many rows, the shifted data of Chan, Golub &
LeVeque (1983, *The American Statistician* 37): a small std on a large mean survives.
Quantiles come from a uniform sample of whole rows: reservoir.py.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from neurograph.activations.reservoir import Choice, choose, choose_next, no_keys
from neurograph.errors import DataError, OptionError

__all__ = ["ActivationStatistics", "Statistics", "by_itself", "merged"]

_SORT_AT_ONCE = 2**22  # elements; bounds what quantiles take in memory beside the sample
_ADD_AT_ONCE = 2**17  # elements for each thread, which stay in its cache from pass to pass

_by_itself = ContextVar("_by_itself", default=False)


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """Compute statistics of this process's rows alone, however many processes there are.

    For a process that computes while the others wait for it: they would never join the merging.
    """
    token = _by_itself.set(True)
    try:
        yield
    finally:
        _by_itself.reset(token)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What `ActivationStatistics.compute` found; tensors are ``[*shape]``.

    ``std`` divides by ``count - 1`` and is 0 for one row. ``quantiles``, ``[len(levels), *shape]``,
    are interpolated linearly, as in `numpy.quantile`. ``rank_error`` is 0 while every row was kept,
    else ``sqrt(ln(2 / 0.01) / 2m)`` for m kept rows: with probability 0.99, the share of rows below
    an element's quantile is that close to its level. (Dvoretzky, Kiefer & Wolfowitz 1956, Massart
    1990, for independent draws; without replacement, Hoeffding 1963 has the same for each level.)
    """

    count: int
    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor
    quantiles: Tensor
    levels: tuple[float, ...]
    rank_error: float

    @property
    def finite(self) -> bool:
        """Whether every value was finite: NaN and inf show in ``min`` or ``max``."""
        return bool((self.min.isfinite() & self.max.isfinite()).all())

    def quantile(self, q: float) -> Tensor:
        """Quantile at ``q``, ``[*shape]``; `OptionError` (a ValueError) if not in ``levels``."""
        for i, level in enumerate(self.levels):
            if math.isclose(level, q, abs_tol=1e-9):
                return self.quantiles[i]
        raise OptionError(f"q={q} is not among levels={self.levels}: ask for it in `quantiles`.")


class ActivationStatistics(Metric):
    """Count, mean, std, min, max and quantiles of each element of ``[rows, *shape]`` values.

    Parameters
    ----------
    shape : tuple of int
        Shape of one row.
    quantiles : sequence of float
        Levels in [0, 1]; 0 and 1 are the exact min and max.
    reservoir : int
        Rows kept for quantiles, which are exact up to that many rows: the memory it takes.
    seed, stream : int
        Choose the kept rows, with the ``torch.distributed`` rank. Metrics to be merged need a
        ``stream`` each: rows at the same position of one stream are kept or dropped together.
    dtype : torch.dtype
        float32 or float64, of kept rows and results. Moments are float64, but squared deviations
        within a batch are summed in ``dtype``: beyond 1e18 use float64.
    **kwargs
        Options of `torchmetrics.Metric`.

    Examples
    --------
    >>> metric = ActivationStatistics((2,), quantiles=(0.0, 0.5, 1.0))
    >>> metric.update(torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 90.0]]))
    >>> found = metric.compute()
    >>> found.count, found.mean.tolist(), found.quantile(0.5).tolist(), found.rank_error
    (3, [3.0, 40.0], [2.0, 20.0], 0.0)
    """

    count: Tensor
    centre: Tensor
    gaps: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor
    keys: Tensor
    rows: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        quantiles: Sequence[float] = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0),
        reservoir: int = 2048,
        seed: int = 0,
        stream: int = 0,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if reservoir < 1 or min(shape, default=1) < 1:
            raise OptionError(f"{reservoir=} and the sizes in shape={tuple(shape)} must be >= 1.")
        if dtype not in (torch.float32, torch.float64):
            raise OptionError(f"dtype={dtype} must be torch.float32 or torch.float64.")
        self.shape, self.levels, self.reservoir = tuple(shape), _levels(quantiles), reservoir
        self.seed, self.stream, self._own = seed, stream, torch.empty(0)
        double = torch.empty(0, dtype=torch.float64)
        states = {"count": torch.tensor(0), "centre": double.to(dtype), "gaps": double}
        states |= {"squares": double, "low": double.to(dtype), "high": double.to(dtype)}
        states |= {"keys": double, "rows": double.to(dtype)}  # full sizes come with `_claim`
        for name, state in states.items():
            self.add_state(name, state, persistent=True)  # `sync` reduces rows with their keys

    @property
    def sample(self) -> Tensor:
        """Kept rows in random order, ``[min(count, reservoir), *shape]``: a copy."""
        return self.rows[self.keys.argsort()[: int(self.count)]]

    def forward(self, values: Tensor) -> None:
        """Call ``update``: statistics of a batch alone would cost a copy of the kept rows."""
        self.update(values)

    def update(self, values: Tensor) -> None:
        """Add ``[rows, *shape]`` values of any real dtype; `DataError` for another shape."""
        if values.ndim == 0 or values.shape[1:] != self.shape:
            raise DataError(f"values has shape {tuple(values.shape)}, not [rows, *{self.shape}].")
        if not (total := len(values)):
            return
        self._claim()
        before, dtype = int(self.count), self.low.dtype
        # The centre is a mean of a quarter of all rows or more. From one of fewer, gaps could be so
        # large that float32 loses the spread in them, and that their sums all but cancel.
        if total > before:
            self._recentre(values.mean(0, dtype=dtype))
        elif (before + total).bit_length() > before.bit_length():
            self._recentre(self._mean().to(dtype))
        for some in _portions(values):
            some = some.to(dtype).contiguous()
            torch.minimum(self.low, some.amin(0), out=self.low)
            torch.maximum(self.high, some.amax(0), out=self.high)
            gaps = some - self.centre
            self.gaps.add_(gaps.sum(0))
            self.squares.add_(gaps.mul_(gaps).sum(0))
        self._keep(choose_next(self.keys, before, total, self.seed, self.stream), values)
        self.count.add_(total)

    def reset(self) -> None:
        """Forget every row, and hand back the memory that they took."""
        super().reset()
        self._own = torch.empty(0)

    def compute(self) -> Statistics:
        """Statistics of all rows, of all processes; `DataError` if there are none."""
        quantiles, count = self.quantiles_at(self.levels), int(self.count)
        low, high = self.low.clone(), self.high.clone()
        mean = self._mean().to(low.dtype).clamp(low, high)
        squares = (self.squares - self.gaps * self.gaps / count).clamp(min=0)
        std = (squares / max(count - 1, 1)).sqrt().to(low.dtype)
        std = std.masked_fill(low == high, 0)  # rounding must not make a constant vary
        error = math.sqrt(math.log(2 / 0.01) / 2 / self.reservoir) * (count > self.reservoir)
        return Statistics(count, mean, std, low, high, quantiles, self.levels, error)

    def quantiles_at(self, levels: Sequence[float]) -> Tensor:
        """Quantiles at any levels of this process's rows, ``[len(levels), *shape]``; NaN if one is.

        `OptionError` for levels outside [0, 1], `DataError` if there are no rows.
        """
        if not self.count:
            raise DataError("there is no data: call `update` with at least one row first.")
        rows, parts = self.rows.flatten(1) if self.shape else self.rows[:, None], []
        if not len(levels):
            return self.rows.new_empty(0, *self.shape)
        held = min(int(self.count), self.reservoir)
        place = torch.tensor(_levels(levels), dtype=torch.float64) * (held - 1)
        for some in rows.chunk(rows.numel() // _SORT_AT_ONCE + 1, dim=1):
            # numpy sorts several times faster than torch
            columns = torch.from_numpy(np.sort(some[:held].cpu().T, axis=1))
            a, b = columns[:, place.floor().long()], columns[:, place.ceil().long()]
            parts.append(torch.where(a == b, a, a.double().lerp(b.double(), place.frac()).to(a)).T)
        out = torch.cat(parts, dim=1).view(-1, *self.shape).to(self.device)
        for i, level in enumerate(levels):
            out[i] = self.low if level == 0 else self.high if level == 1 else out[i]
        return out.masked_fill_(self.low.isnan(), math.nan)

    def merge_state(self, incoming_state: Mapping[str, Any] | Metric) -> None:
        """Add the rows that another metric, or its ``metric_state``, has seen.

        `OptionError` if its shape or reservoir differs, or if it drew from the same stream.
        """
        states: Any = getattr(incoming_state, "metric_state", incoming_state)
        part = {name: states[name].to(self.device) for name in self._defaults}
        if not part["count"]:
            return
        if part["rows"].shape != (self.reservoir, *self.shape):
            raise OptionError(
                f"incoming_state keeps rows {tuple(part['rows'].shape)}, this metric "
                f"{(self.reservoir, *self.shape)}: build both with the same reservoir and shape."
            )
        if torch.isin(part["keys"], self.keys[self.keys < 1]).any():
            raise OptionError(
                f"incoming_state has random keys of this metric (seed={self.seed}, stream="
                f"{self.stream}): give each metric its own `stream`, and merge none twice."
            )
        self._claim()
        count, extra = int(self.count), int(part["count"])
        mine = count * self.centre.double() + self.gaps
        other = extra * part["centre"].double() + part["gaps"]
        self._recentre(((mine + other) / (count + extra)).to(self.low.dtype))
        shift = part["centre"].double() - self.centre
        self.squares.add_(part["squares"] + shift * (2 * part["gaps"] + extra * shift))
        self.gaps.add_(part["gaps"] + extra * shift)
        torch.minimum(self.low, part["low"], out=self.low)
        torch.maximum(self.high, part["high"], out=self.high)
        new = part["keys"][:extra].cpu().numpy()
        self._keep(choose(self.keys, count, new), part["rows"])
        self.count.add_(extra)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Replace the states by the merged states of all processes, see `torchmetrics.Metric`."""
        self._claim()  # a process without data must gather tensors of full size too
        super().sync(*args, **kwargs)
        if self.count.ndim:  # gathered states are stacked
            states = {name: getattr(self, name).unbind() for name in self._defaults}
            for name, (first, *_) in states.items():
                setattr(self, name, first)
            for i in range(1, len(states["count"])):
                self.merge_state({name: state[i] for name, state in states.items()})

    def _wrap_compute(self, compute: Callable[[], Statistics]) -> Callable[[], Statistics]:
        @functools.wraps(compute)  # the base's wrapper squeezes tensors, refuses frozen dataclasses
        def synced() -> Statistics:
            try:
                merge = self._to_sync and not _by_itself.get()
                self.sync(dist_sync_fn=self.dist_sync_fn, should_sync=merge)
                return compute()
            finally:
                self.unsync(should_unsync=self._is_synced)

        return synced

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> Metric:
        super()._apply(fn, exclude_state=tuple(self._defaults))
        homes: list[dict[str, Any]] = [self._defaults, self.__dict__]
        for home in homes:  # moved, never converted: `.to(torch.half)` would ruin the moments
            home.update({name: home[name].to(self.device) for name in self._defaults})
        return self

    def _mean(self) -> Tensor:
        return self.centre + self.gaps / self.count

    def _recentre(self, centre: Tensor) -> None:
        shift = self.centre.double() - centre
        self.squares.add_(shift * (2 * self.gaps + self.count * shift))
        self.gaps.add_(self.count * shift)
        self.centre = centre

    def _keep(self, choice: Choice, rows: Tensor) -> None:
        self.keys = choice.keys
        for slots, chosen in choice.moves:
            self.rows[slots] = rows[chosen].to(self.rows.dtype)

    def _claim(self) -> None:
        if self.rows is self._own:
            return
        # States are written in place, so those that came from outside (loaded, restored after a
        # sync, made in inference mode) are copied before the first write.
        with torch.inference_mode(False):
            for name in self._defaults:
                setattr(self, name, getattr(self, name).clone())
            if not len(self.rows):
                self.centre = self.centre.new_zeros(self.shape)
                self.gaps = self.gaps.new_zeros(self.shape)
                self.squares = torch.zeros_like(self.gaps)
                self.low = self.low.new_full(self.shape, math.inf)
                self.high = -self.low
                self.keys = no_keys(self.reservoir, self.keys.device)
                self.rows = self.rows.new_empty(self.reservoir, *self.shape)
            self._own = self.rows


def _portions(values: Tensor) -> Iterator[Tensor]:
    """Some rows at a time: as many as stay in the processor's cache."""
    step = len(values)
    if values.is_cpu:
        step = max(1, _ADD_AT_ONCE * torch.get_num_threads() * step // values.numel())
    for start in range(0, len(values), step):
        yield values[start : start + step]


def merged(metrics: Sequence[ActivationStatistics]) -> ActivationStatistics:
    """Return a new metric of the rows of all metrics, say one per class, each of its own stream."""
    if not metrics:
        raise OptionError("metrics is empty: pass at least one metric.")
    result = deepcopy(metrics[0])
    for metric in metrics[1:]:
        result.merge_state(metric)
    return result


def _levels(levels: Sequence[float]) -> tuple[float, ...]:
    for level in levels:
        if not 0 <= level <= 1:
            raise OptionError(f"quantile level {level} is outside [0, 1].")
    return tuple(float(level) for level in levels)
