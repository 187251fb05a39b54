"""Effects on the target: what they are, and how differences of single samples become one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["COARSE", "ULPS", "Effects", "estimate", "gathered", "rounding", "summarise"]

ULPS = 4
"""Values that differ by no more units in the last place differ by rounding."""


COARSE = 1e-4
"""Of which floating-point types have no smaller distance from 1 to the next number: half ones."""

_STANDS_OUT = 5  # standard errors


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of some neurons of one layer on the target, in the target's units.

    Attributes
    ----------
    effect : Tensor of float64, [neurons]
        Mean over the reference samples of target(last level) − target(first level).
    stderr : Tensor of float64, [neurons]
        Standard error of that mean; NaN where there is a single sample.
    response : Tensor of float64, [neurons, levels]
        Mean target at each level that was run (both ends at least); NaN where the effects are
        estimates.
    """

    effect: Tensor
    stderr: Tensor
    response: Tensor

    def __len__(self) -> int:
        return len(self.effect)

    def at(self, which: Tensor) -> Effects:
        """Return the effects of some of the neurons."""
        return Effects(self.effect[which], self.stderr[which], self.response[which])

    @staticmethod
    def joined(parts: Sequence[Effects]) -> Effects:
        """Return the effects of several sets of neurons, one after the other."""
        keys = ("effect", "stderr", "response")
        return Effects(*(torch.cat([getattr(part, key) for part in parts]) for key in keys))

    def updated(self, which: Tensor, others: Effects) -> Effects:
        """Return the effects with those of some neurons replaced; no responses."""
        effect = self.effect.index_copy(0, which, others.effect)
        stderr = self.stderr.index_copy(0, which, others.stderr)
        return Effects(effect, stderr, torch.full_like(effect, math.nan)[:, None])


def gathered(pieces: Iterable[tuple[slice, slice, Tensor]], blocks: int, samples: int) -> Tensor:
    """Put targets of some blocks and samples together, in the target's own dtype.

    That may be finer than the layers': a model that computes in half precision inside.
    """
    whole = torch.empty(blocks, samples)
    for number, (some, few, targets) in enumerate(pieces):
        if not number:
            dtype = targets.dtype if targets.is_floating_point() else whole.dtype
            whole = targets.new_empty(blocks, samples, dtype=dtype)
        whole[some, few] = targets
    return whole


def summarise(targets: Tensor, block: Tensor, *, coarse: bool = False) -> Effects:
    """Reduce targets to effects.

    Parameters
    ----------
    targets : Tensor, [blocks, samples]
    block : Tensor of int64, [neurons, levels]
        Which block holds each neuron at each level.
    coarse : bool
        Whether effects may be less than rounding and no rounding; see `Experiment`.

    Notes
    -----
    An effect that the targets' own rounding could make is 0: rows that agree can still differ in
    their last bits, as matrix products round by where in a batch a row stands. Where targets are
    coarse it is not if it stands out of its standard error, as rounding does not: means of many
    samples are finer than their last bits.
    """
    samples = targets.shape[1]
    differences = (targets[block[:, -1]] - targets[block[:, 0]]).double()
    effect, response = differences.mean(dim=1), targets.mean(dim=1).double()
    if samples > 1:
        stderr = differences.std(dim=1, correction=1) / math.sqrt(samples)
    else:
        stderr = torch.full_like(effect, math.nan)
    hidden = effect.abs() <= rounding(response, targets.dtype)
    if coarse:
        hidden &= ~((stderr > 0) & (effect.abs() > _STANDS_OUT * stderr))
    effect = torch.where(hidden, 0.0, effect)
    return Effects(effect, stderr, response[block])


def estimate(differences: Tensor) -> Effects:
    """Reduce estimated differences of the target, ``[neurons, samples]``, to effects."""
    values = differences.double()
    mean, samples = values.mean(dim=1), values.shape[1]
    spread = values.std(dim=1, correction=1) if samples > 1 else torch.full_like(mean, math.nan)
    return Effects(mean, spread / math.sqrt(samples), torch.full_like(mean, math.nan)[:, None])


def rounding(response: Tensor, dtype: torch.dtype) -> Tensor:
    """Largest difference of mean targets, computed in a dtype, that their rounding could make."""
    eps = torch.finfo(dtype).eps
    # In half precision products are summed finer, and rounded once.
    return (ULPS if eps < COARSE else 1) * eps * response.abs().amax()
