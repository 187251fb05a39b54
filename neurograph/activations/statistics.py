"""One-pass statistics of activations: moments, extremes and quantiles in constant memory.

Moments are sums of gaps to a centre that rests on many rows, the shifted data of Chan, Golub &
LeVeque (1983, *The American Statistician* 37): a small std on a large mean survives.
Quantiles come from a uniform sample of whole rows: reservoir.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurograph.activations.reservoir import RowChoice, choose_next, choose_rows, no_keys
from neurograph.errors import DataError, OptionError

__all__ = ["ActivationStatistics", "Statistics", "merged"]

_SORT_AT_ONCE = 2**22  # elements; bounds what quantiles take in memory beside the sample
_ADD_AT_ONCE = 2**17  # elements for each thread, which stay in its cache from pass to pass
_ADD_ROWS = 32  # at least, so that adding their sums costs little beside making them


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics as `ActivationStatistics.compute` returns them; tensors are ``[*shape]``.

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


class ActivationStatistics:
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
        Choose the kept rows, with the ``torch.distributed`` rank. Statistics to be merged need a
        ``stream`` each: rows at the same position of one stream are kept or dropped together.
    dtype : torch.dtype
        float32 or float64, of kept rows and results. Moments are float64, but squared deviations
        within a batch are summed in ``dtype``: beyond 1e18 use float64.

    Attributes
    ----------
    count : int
        Rows seen.
    keys : Tensor of float64, [reservoir]
        Random key of each kept row; infinite where there is none yet.
    rows : Tensor, [reservoir, *shape]
        Kept rows. Empty, as all tensors here, until there is data.

    Examples
    --------
    >>> metric = ActivationStatistics((2,), quantiles=(0.0, 0.5, 1.0))
    >>> metric.update(torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 90.0]]))
    >>> found = metric.compute()
    >>> found.count, found.mean.tolist(), found.quantile(0.5).tolist(), found.rank_error
    (3, [3.0, 40.0], [2.0, 20.0], 0.0)
    """

    count: int
    centre: Tensor
    moments: Tensor  # sums of gaps to the centre and of their squares, [2, elements]
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
    ) -> None:
        if reservoir < 1 or min(shape, default=1) < 1:
            raise OptionError(f"{reservoir=} and the sizes in shape={tuple(shape)} must be >= 1.")
        if dtype not in (torch.float32, torch.float64):
            raise OptionError(f"dtype={dtype} must be torch.float32 or torch.float64.")
        self.shape, self.levels, self.reservoir = tuple(shape), _levels(quantiles), reservoir
        self.seed, self.stream, self.dtype = seed, stream, dtype
        self._allocate(torch.device("cpu"), 0)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.rows.device

    @property
    def sample(self) -> Tensor:
        """Kept rows in random order, ``[min(count, reservoir), *shape]``: a copy."""
        return self.rows[self.keys.argsort()[: self.count]]

    @property
    def state(self) -> dict[str, Tensor]:
        """All that was seen, for `merge_state`, as tensors: to be saved or sent to a process."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return {"count": torch.tensor(self.count), **tensors}

    def to(self, device: torch.device | str) -> ActivationStatistics:
        """Move to a device; dtypes stay as they are."""
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).to(device))
        return self

    def update(self, values: Tensor) -> None:
        """Add ``[rows, *shape]`` values of any real dtype; `DataError` for another shape."""
        if values.ndim == 0 or values.shape[1:] != self.shape:
            raise DataError(f"values has shape {tuple(values.shape)}, not [rows, *{self.shape}].")
        values, total, before = values.detach(), len(values), self.count
        if not total:
            return
        if not before:
            self._allocate(self.device, self.reservoir)
        # The centre is a mean of a quarter of all rows or more. From one of fewer, gaps could be so
        # large that float32 loses the spread in them, and that their sums all but cancel.
        if total > before:
            self._recentre(values.mean(0, dtype=self.dtype).flatten())
        elif (before + total).bit_length() > before.bit_length():
            self._recentre(mean := self._mean().to(self.dtype))
            if (before * mean * mean <= 16 * self.moments[1]).all():  # 0 is as good, and quicker
                self._recentre(torch.zeros_like(mean), at_zero=True)
        self._add(values)
        self._keep(choose_next(self.keys, before, total, self.seed, self.stream), values)
        self.count += total

    def reset(self) -> None:
        """Forget every row, and hand back the memory that they took."""
        self._allocate(self.device, 0)

    def compute(self) -> Statistics:
        """Statistics of all rows; `DataError` if there are none."""
        quantiles, count = self.quantiles_at(self.levels), self.count
        low, high, (gaps, squares) = self.low.clone(), self.high.clone(), self.moments
        mean = self._mean().to(self.dtype).clamp(low, high)
        squares = (squares - gaps * gaps / count).clamp(min=0)
        std = (squares / max(count - 1, 1)).sqrt().to(self.dtype)
        std = std.masked_fill(low == high, 0)  # rounding must not make a constant vary
        mean, std, low, high = (x.view(self.shape) for x in (mean, std, low, high))
        error = math.sqrt(math.log(2 / 0.01) / 2 / self.reservoir) * (count > self.reservoir)
        return Statistics(count, mean, std, low, high, quantiles, self.levels, error)

    def quantiles_at(self, levels: Sequence[float]) -> Tensor:
        """Quantiles at any levels, ``[len(levels), *shape]``; NaN where a value is.

        `OptionError` for levels outside [0, 1], `DataError` if there are no rows.
        """
        if not self.count:
            raise DataError("there is no data: call `update` with at least one row first.")
        rows, parts = self.rows.view(self.reservoir, -1), []
        if not len(levels):
            return self.rows.new_empty(0, *self.shape)
        held = min(self.count, self.reservoir)
        place = torch.tensor(_levels(levels), dtype=torch.float64) * (held - 1)
        for some in rows.chunk(rows.numel() // _SORT_AT_ONCE + 1, dim=1):
            # numpy sorts several times faster than torch
            columns = torch.from_numpy(np.sort(some[:held].cpu().T, axis=1))
            a, b = columns[:, place.floor().long()], columns[:, place.ceil().long()]
            parts.append(torch.where(a == b, a, a.double().lerp(b.double(), place.frac()).to(a)).T)
        out = torch.cat(parts, dim=1).to(self.device)
        for i, level in enumerate(levels):
            out[i] = self.low if level == 0 else self.high if level == 1 else out[i]
        return out.masked_fill_(self.low.isnan(), math.nan).view(-1, *self.shape)

    def merge_state(self, incoming_state: ActivationStatistics | Mapping[str, Tensor]) -> None:
        """Add the rows that others, or their `state`, have seen: say in another process.

        `OptionError` if shape or reservoir differ, or if they were drawn from the same stream.
        """
        if isinstance(incoming_state, ActivationStatistics):
            incoming_state = incoming_state.state
        part = {name: tensor.to(self.device) for name, tensor in incoming_state.items()}
        if not (extra := int(part["count"])):
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
        if not (count := self.count):
            self._allocate(self.device, self.reservoir)
        mine = count * self.centre.double() + self.moments[0]
        other = extra * part["centre"].double() + part["moments"][0]
        self._recentre(((mine + other) / (count + extra)).to(self.dtype))
        shift = part["centre"].double() - self.centre
        self.moments.add_(_moved(part["moments"], shift, extra))
        torch.minimum(self.low, part["low"], out=self.low)
        torch.maximum(self.high, part["high"], out=self.high)
        self._keep(choose_rows(self.keys, count, part["keys"][:extra].cpu().numpy()), part["rows"])
        self.count += extra

    def _mean(self) -> Tensor:
        return self.centre + self.moments[0] / self.count

    def _recentre(self, centre: Tensor, at_zero: bool = False) -> None:
        self.moments = _moved(self.moments, self.centre.double() - centre, self.count)
        self.centre, self._at_zero = centre, at_zero

    def _add(self, values: Tensor) -> None:
        """Add to extremes and moments, some rows and columns at a time."""
        for some, part in _tiles(values, self.dtype):
            low, high, centre, moments = self.low, self.high, self.centre, self.moments
            if part is not None:
                low, high, centre, moments = (x[..., part] for x in (low, high, centre, moments))
            torch.minimum(low, some.amin(0), out=low)
            torch.maximum(high, some.amax(0), out=high)
            gaps = some if self._at_zero else some - centre
            sums = gaps.new_empty(2, gaps.shape[1])
            torch.sum(gaps, 0, out=sums[0])
            torch.sum(gaps * gaps if self._at_zero else gaps.mul_(gaps), 0, out=sums[1])
            moments.add_(sums)

    def _keep(self, choice: RowChoice, rows: Tensor) -> None:
        self.keys = choice.keys
        for slots, chosen in choice.moves:
            self.rows[slots] = rows[chosen].to(self.dtype)

    def _allocate(self, device: torch.device, reservoir: int) -> None:
        """Make what stands for no rows, with room for so many that are kept."""
        self.count, self._at_zero = 0, False
        with torch.inference_mode(False):  # what is made there could not be written to elsewhere
            elements = math.prod(self.shape) if reservoir else 0
            self.low = torch.full((elements,), math.inf, dtype=self.dtype, device=device)
            self.high = -self.low
            self.centre = torch.zeros_like(self.low)
            self.moments = self.low.new_zeros(2, elements, dtype=torch.float64)
            self.rows = self.low.new_empty(reservoir, *self.shape)
            self.keys = no_keys(reservoir, self.rows.device)


_TENSORS = ("centre", "moments", "low", "high", "keys", "rows")


def _moved(moments: Tensor, shift: Tensor, count: int) -> Tensor:
    """Moments of so many rows about another centre: the old one less the new one is `shift`."""
    gaps, squares = moments
    more = count * shift
    return torch.stack([gaps + more, squares + shift * (2 * gaps + more)])


def _tiles(values: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, slice | None]]:
    """Some rows and columns at a time, as many as stay in the processor's cache; None: all."""
    total = len(values)
    rows, wide = total, values.numel()
    if values.is_cpu:
        wide = _ADD_AT_ONCE * torch.get_num_threads() // _ADD_ROWS
        rows = max(_ADD_ROWS, wide * _ADD_ROWS * total // values.numel())
    for start in range(0, total, rows):
        some = values if rows >= total else values[start : start + rows]
        some = some.to(dtype).contiguous().view(len(some), -1)
        if some.shape[1] <= wide:
            yield some, None
            continue
        for first in range(0, some.shape[1], wide):
            part = slice(first, first + wide)
            yield some[:, part], part


def merged(metrics: Sequence[ActivationStatistics]) -> ActivationStatistics:
    """Statistics of the rows of all metrics, say one per class, each of its own stream."""
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
