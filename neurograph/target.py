"""The scalar that a search explains: an output index, or any function of the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from neurograph.data import Batch
from neurograph.errors import ModelError, OptionError
from neurograph.layers import main_index
from neurograph.nested import flatten

__all__ = ["Target", "TargetFunction", "resolve_target"]

TargetFunction = Callable[[Any, Batch], Tensor]


@dataclass(frozen=True)
class Target:
    """One number a sample, read off the model's output.

    Attributes
    ----------
    name : str
        How it is called in tables and pages.
    index : int or None
        The output column, where the target is one.
    sign : int
        -1 where the target is minus that column.
    function : callable or None
        `(output, batch) -> [rows]`, where the target is not a column.
    """

    name: str
    index: int | None = None
    sign: int = 1
    function: TargetFunction | None = None

    def __call__(self, output: Any, batch: Callable[[], Batch]) -> Tensor:
        """Return one value a row; `batch()` makes the matching batch where it is needed."""
        if self.function is None:
            logits = _logits(output)
            column = logits if logits.dim() == 1 else logits[:, self.index]
            return column if self.sign > 0 else -column
        given = batch()
        values: Any = self.function(output, given)
        if not isinstance(values, Tensor) or values.shape != (given.size,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise OptionError(
                f"the target {self.name!r} returned {shape} for {given.size} samples: it must "
                "return one number a sample, a tensor of shape [batch]"
            )
        return values


def resolve_target(
    target: int | TargetFunction, output: Any, class_names: Sequence[str] | None
) -> Target:
    """Check a target against the model's output and name it.

    A model with a single output is read as a binary classifier's logit: target 1 is the
    output, target 0 is minus the output.

    Raises
    ------
    OptionError
        An index out of range, a name list of the wrong length, or an unusable output.
    """
    if callable(target):
        return Target(getattr(target, "__name__", type(target).__name__), function=target)
    if type(target) is not int:  # a bool would pass for an index
        raise OptionError(f"target is {target!r}: pass an output index or a callable")
    logits = _logits(output)
    if logits.dim() > 2:
        raise OptionError(
            f"the output has shape {tuple(logits.shape)}, so the index {target} names no single "
            "number a sample: pass target=callable(output, batch) -> [batch]"
        )
    columns = 1 if logits.dim() == 1 else logits.shape[1]
    choices = 2 if columns == 1 else columns
    if not 0 <= target < choices:
        raise OptionError(f"target {target} is out of range: the model has targets 0…{choices - 1}")
    if class_names is not None and len(class_names) != choices:
        raise OptionError(f"class_names has {len(class_names)} names for {choices} targets")
    if columns > 1:
        name = f"output[{target}]" if class_names is None else str(class_names[target])
        return Target(name, index=target)
    plain = "output" if target else "-output"
    name = plain if class_names is None else str(class_names[target])
    return Target(name, index=0, sign=1 if target else -1)


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    leaves, _ = flatten(output)
    index = main_index(leaves)
    if index is None:
        raise ModelError(
            f"the model returned {type(output).__name__}, which holds no floating-point tensor: "
            "pass target=callable(output, batch) -> [batch]"
        )
    tensor: Tensor = leaves[index]
    return tensor
