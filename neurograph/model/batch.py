"""One batch: what the model gets, and the labels beside it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from neurograph.errors import DataError
from neurograph.utils.nested import flatten, iter_tensors

__all__ = [
    "LABEL_KEYS",
    "Batch",
    "as_batch",
    "concatenate",
    "describe_shapes",
    "fingerprint",
    "shape_of",
]

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""Keys of a dict that are labels, where the model's forward does not take them by name."""

Parameters = Mapping[str, inspect.Parameter]


@dataclass(frozen=True)
class Batch:
    """One batch: what `model(*args, **kwargs)` gets, and the labels beside it (or None).

    `fixed` are the leaves of the inputs that are the same for all samples, by their number, however
    long they are: an edge list, say, which has two rows for any number of samples.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    labels: Any = None
    fixed: frozenset[int] = frozenset()

    @functools.cached_property
    def size(self) -> int:
        """How many samples: the first dimension of the first input tensor that is not fixed."""
        leaves, _ = flatten((self.args, dict(self.kwargs)))
        rows = (x for i, x in enumerate(leaves) if isinstance(x, Tensor) and i not in self.fixed)
        first = next(rows, None)
        if first is None or first.dim() == 0:
            raise DataError("a batch holds no tensor with a batch dimension: pass model inputs")
        return int(first.shape[0])

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors among the model's inputs."""
        return iter_tensors((self.args, dict(self.kwargs)))

    def map(self, change: Any) -> Batch:
        """Return the batch with `change` applied to every tensor that has one row a sample."""
        leaves, rebuild = flatten((self.args, dict(self.kwargs), self.labels))
        changed = [
            change(leaf) if self._by_row(leaf, number) else leaf
            for number, leaf in enumerate(leaves)
        ]
        args, kwargs, labels = rebuild(changed)
        return Batch(args, kwargs, labels, self.fixed)

    def has_rows(self, tensor: Tensor) -> bool:
        """Whether an input has a row for each sample rather than being the same for all."""
        leaves, _ = flatten((self.args, dict(self.kwargs)))
        return any(leaf is tensor and self._by_row(leaf, i) for i, leaf in enumerate(leaves))

    def _by_row(self, leaf: Any, number: int) -> bool:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or number in self.fixed:
            return False
        return int(leaf.shape[0]) == self.size


def as_batch(raw: Any, parameters: Parameters) -> Batch:
    """Split one batch, as a loader gives it, into the model's inputs and the labels.

    Parameters
    ----------
    raw : Tensor, pair or dict
        Inputs, ``(inputs, labels)`` with several inputs as ``((x1, x2), y)``, or keyword
        arguments. Of these ``labels``, ``label``, ``targets``, ``target`` or ``y`` are labels;
        what forward takes by that name is an input as well. Where forward takes one argument and
        none of the keys, the dict is that argument. A named tuple is read as a dict if forward
        takes its fields.
    parameters : mapping
        Those of the model's ``forward``.

    Raises
    ------
    DataError
        A tuple of another length, a key that ``forward`` does not take, or an argument that it
        needs and nobody gives.

    Examples
    --------
    >>> parameters = inspect.signature(lambda x: x).parameters
    >>> as_batch({"x": torch.ones(2), "y": torch.zeros(2)}, parameters).labels
    tensor([0., 0.])
    """
    inputs, labels = _by_field(raw, parameters), None
    if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
        if len(inputs) > 2 or not inputs:
            raise DataError(
                f"a batch is a tuple of {len(inputs)}: make it (inputs, labels), with several "
                "inputs as ((x1, x2), y) or a dict of keyword arguments"
            )
        labels = inputs[1] if len(inputs) == 2 else None
        inputs = _by_field(inputs[0], parameters)
    if isinstance(inputs, Mapping):
        args, kwargs, found = _keywords(inputs, parameters)
        batch = Batch(args, kwargs, found if labels is None else labels)
    elif isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
        batch = Batch(tuple(inputs), {}, labels)
    else:
        batch = Batch((inputs,), {}, labels)
    _check_arguments(batch, parameters)
    return batch


def _by_field(value: Any, parameters: Parameters) -> Any:
    """A named tuple as a dict, if its fields are what forward takes."""
    fields: Sequence[str] = getattr(value, "_fields", ())
    if isinstance(value, tuple) and any(field in parameters for field in fields):
        return dict(zip(fields, value, strict=True))
    return value


def _keywords(
    inputs: Mapping[str, Any], parameters: Parameters
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Split a dict batch into positional and keyword arguments, and labels."""
    kwargs = dict(inputs)
    named = [key for key in LABEL_KEYS if key in kwargs]
    apart = [key for key in named if key not in parameters]
    labels = kwargs[(apart + named)[0]] if named else None
    if is_sole_argument(inputs, parameters):
        return (kwargs,), {}, labels
    for key in apart:
        del kwargs[key]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in kwargs if key not in parameters]
    if unknown and not open_ended:
        raise unknown_key(unknown[0], parameters)
    return (), kwargs, labels


def unknown_key(key: Any, parameters: Parameters) -> DataError:
    """Say that forward does not take a key of the data."""
    return DataError(
        f"the batch has the key {key!r}, which the model's forward does not take (it takes "
        f"{', '.join(parameters) or 'nothing'}): leave it out, or name it as forward does"
    )


def is_sole_argument(inputs: Any, parameters: Parameters) -> bool:
    """Whether a dict may be the one argument of forward rather than its keyword arguments."""
    if not isinstance(inputs, Mapping) or any(key in parameters for key in inputs):
        return False
    kinds = [p for p in parameters.values() if p.kind is not p.VAR_POSITIONAL]
    if not kinds or any(p.kind in (p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in kinds):
        return False
    return sum(p.default is p.empty for p in kinds) <= 1


def _check_arguments(batch: Batch, parameters: Parameters) -> None:
    """DataError naming what forward needs and the batch does not have, or a packed sequence."""
    for tree in (*batch.args, *batch.kwargs.values()):
        if isinstance(tree, PackedSequence):
            raise DataError(
                "the data hold a PackedSequence, which has no row for each sample: pass the padded "
                "tensor and the lengths, and let the model read each sample's last step by its "
                "length (or pack inside forward)"
            )
    positional = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    given = {p.name for p in positional[: len(batch.args)]} | set(batch.kwargs)
    missing = [p.name for p in positional if p.default is p.empty and p.name not in given]
    if missing:
        raise DataError(
            f"the model's forward needs {missing[0]!r} (it takes {', '.join(parameters)}), which "
            f"the data do not hold: pass several inputs as a dict of keyword arguments, or as "
            f"((x1, x2), y), with None for y where there are no labels"
        )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches of equal structure along the batch dimension."""
    if len(batches) == 1:
        return batches[0]

    fixed = batches[0].fixed

    def join(number: int, leaves: Sequence[Any]) -> Any:
        if number in fixed:
            if not all(torch.equal(leaf, leaves[0]) for leaf in leaves):
                raise DataError(
                    f"an input of shape {shape_of(leaves[0])} has no row for each sample but is "
                    "not the same in all batches: give it a row for each, or make one batch"
                )
            return leaves[0]
        if isinstance(leaves[0], Tensor) and leaves[0].dim() > 0:
            shapes = {tuple(leaf.shape[1:]) for leaf in leaves}
            if len(shapes) > 1:
                first = ", ".join(shape_of(leaf[0]) for leaf in leaves[:1])
                others = {shape_of(leaf[0]) for leaf in leaves} - {first}
                raise DataError(
                    f"samples have different shapes ({first}, {', '.join(sorted(others))}): pad "
                    "them to one shape, with an attention_mask that is 0 where padding is"
                )
            return torch.cat(list(leaves))
        return leaves[0]

    trees = [flatten((b.args, dict(b.kwargs), b.labels)) for b in batches]
    groups = zip(*(leaves for leaves, _ in trees), strict=True)
    args, kwargs, labels = trees[0][1]([join(i, group) for i, group in enumerate(groups)])
    return Batch(args, kwargs, labels, fixed)


def fingerprint(tensors: Iterable[Tensor], digest: Any = None) -> Any:
    """Feed shapes, dtypes and bytes of tensors to a SHA-256 digest and return it."""
    digest = hashlib.sha256() if digest is None else digest
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest


def shape_of(tensor: Tensor) -> str:
    """A shape as people write it.

    Examples
    --------
    >>> shape_of(torch.zeros(3, 4)), shape_of(torch.zeros(()))
    ('3×4', 'a single number')
    """
    return "×".join(map(str, tensor.shape)) or "a single number"


def describe_shapes(batch: Batch) -> str:
    """Shapes of a batch's inputs, for error messages; labels that forward takes are named."""
    shapes = ", ".join(str(tuple(t.shape)) for t in batch.tensors())
    passed = [key for key in LABEL_KEYS if key in batch.kwargs]
    if not passed:
        return shapes
    return (
        f"{shapes} ({passed[0]!r} among them, as forward takes it: where it is not meant for the "
        "model, pass (inputs, labels))"
    )
