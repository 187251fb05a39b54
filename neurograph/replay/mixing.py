"""Whether a model makes of a sample the same whatever other samples share its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.errors import ModelError
from neurograph.model.batch import Batch
from neurograph.model.layers import Layout
from neurograph.model.observe import call_model
from neurograph.utils.nested import copied, flatten

__all__ = ["Regrouped", "differs", "mixes_samples"]


def _regrouped(batch: Batch) -> Iterator[tuple[Batch, slice, slice]]:
    """Batches that hold samples in other company, with rows of it and the same samples' rows there.

    The first half alone tells of statistics and ranks; all of them behind others, of whatever goes
    to those who come first (capacities, running sums), which the first half would not notice.
    """
    half, size = batch.size // 2, batch.size
    if half:
        yield batch.map(lambda leaf: leaf[:half]), slice(0, half), slice(0, half)
    behind = batch.map(lambda leaf: torch.cat([leaf[half:], leaf[:half], leaf]))
    yield behind, slice(0, size), slice(size, 2 * size)


class Regrouped:
    """A model's outputs for a batch's samples in other company, each run once.

    Iterating gives what `_regrouped` does, with the output behind each batch; nothing for batches
    that the model does not take.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self._outputs: list[Any] = []

    def __iter__(self) -> Iterator[tuple[Batch, Any, slice, slice]]:
        return self.run(lambda other, _here, _there: call_model(self.model, other))

    def run(
        self, call: Callable[[Batch, slice, slice], Any]
    ) -> Iterator[tuple[Batch, Any, slice, slice]]:
        """The same, but what was not run before is run by `call(batch, rows here, rows there)`."""
        for number, (other, here, there) in enumerate(_regrouped(self.batch)):
            if number == len(self._outputs):
                output = _REFUSED
                with contextlib.suppress(ModelError):  # a model made for one batch size
                    output = copied(call(other, here, there))
                self._outputs.append(output)
            if self._outputs[number] is not _REFUSED:
                yield other, self._outputs[number], here, there


_REFUSED = object()


def mixes_samples(others: Regrouped, output: object, layouts: Sequence[Layout]) -> bool:
    """Whether the output of a sample changes with the others of its batch.

    Parameters
    ----------
    others : Regrouped
    output : nested structure
        What the model returns for it.
    layouts : sequence of Layout
        Where in each leaf of the output the samples lie.
    """
    leaves, _ = flatten(output)
    for other, again, here, there in others:
        for layout, a, b in zip(layouts, leaves, flatten(again)[0], strict=False):
            if not isinstance(a, Tensor) or not isinstance(b, Tensor) or layout.dim is None:
                continue
            lies = a.dim() == b.dim() and b.shape[layout.dim] == layout.many * other.size
            rows = (layout.rows(a)[here], layout.rows(b)[there]) if lies else None
            if rows is not None and a.is_floating_point() and differs(*rows):
                return True
    return False


def differs(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by more than the rounding of another batch size."""
    a, b = a.detach().double(), b.detach().double()
    close = 1e-4 * float(a.nan_to_num(0, 0, 0).abs().max()) if a.numel() else 0.0
    return a.shape != b.shape or not torch.allclose(a, b, rtol=1e-3, atol=close, equal_nan=True)
