"""The scalar that a search explains: an output index, or any function of the output."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neurograph.errors import DataError, ModelError, NeurographError, OptionError
from neurograph.model.batch import Batch, shape_of
from neurograph.utils.checks import printable, shown, whole
from neurograph.utils.nested import flatten, leaf_names, main_index

__all__ = [
    "LogitDifference",
    "Target",
    "TargetFunction",
    "check_finite",
    "check_rows",
    "describe_target",
    "logit_difference",
    "logits_of",
    "resolve_target",
]

TargetFunction = Callable[[Any, Batch], Tensor]

_SHOWN = 5


@dataclass(frozen=True)
class LogitDifference:
    """The logit of one token less that of another; made by `logit_difference`.

    Attributes
    ----------
    correct, wrong : int or None
        Token ids; None where each sample brings its own pair as its labels.
    position : "last" or int
    name : str
    inverted : bool
        Whether the attention mask is 0 where tokens are.
    """

    correct: int | None
    wrong: int | None
    position: str | int
    name: str
    inverted: bool = False

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Return one difference a row."""
        logits = logits_of(output)
        if logits.dim() not in (2, 3):
            raise OptionError(
                f"logit_difference needs logits of shape [samples, words] or [samples, positions, "
                f"words], not {tuple(logits.shape)}"
            )
        if logits.dim() == 3:
            rows = torch.arange(len(logits), device=logits.device)
            logits = logits[rows, self._at(logits, batch)]
        pairs = self._pairs(batch).to(logits.device)
        beyond = pairs[(pairs < 0) | (pairs >= logits.shape[1])]
        if len(beyond):
            raise OptionError(
                f"logit_difference: token {int(beyond[0])} is outside the {logits.shape[1]} words "
                "that the model has logits for"
            )
        if len(pairs) not in (1, len(logits)):
            raise _no_pairs(pairs)
        found = logits.gather(1, pairs.expand(len(logits), 2))
        return found[:, 0] - found[:, 1]

    def _pairs(self, batch: Batch) -> Tensor:
        if self.correct is not None and self.wrong is not None:
            return torch.tensor([[self.correct, self.wrong]])
        try:
            pairs = torch.as_tensor(batch.labels)
        except (RuntimeError, TypeError, ValueError):
            raise _no_pairs(batch.labels) from None
        if pairs.dim() != 2 or pairs.shape[1] != 2:
            raise _no_pairs(pairs)
        return pairs.long()

    def _at(self, logits: Tensor, batch: Batch) -> Tensor | int:
        length = logits.shape[1]
        if isinstance(self.position, int):
            if not -length <= self.position < length:
                raise OptionError(
                    f"logit_difference: position={self.position} is outside the {length} positions "
                    "of the logits"
                )
            return self.position
        # Beside a decoder's inputs the plain mask is the encoder's, which has no logits.
        prefix = "decoder_" if any(name.startswith("decoder_") for name in batch.kwargs) else ""
        mask = batch.kwargs.get(f"{prefix}attention_mask")
        if mask is None or mask.dim() != 2 or mask.shape[1] != length:
            return length - 1
        places = torch.arange(length, device=mask.device)
        return torch.where((mask != 0) != self.inverted, places, -1).amax(dim=1).to(logits.device)


def _no_pairs(labels: Any) -> OptionError:
    described = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
    return OptionError(
        f"logit_difference needs labels of shape [samples, 2], the ids of the correct and the "
        f"wrong token, not {described}: or name the two tokens"
    )


def logit_difference(
    correct: int | str | None = None,
    wrong: int | str | None = None,
    *,
    tokenizer: Any = None,
    position: str | int = "last",
) -> LogitDifference:
    """Target for language models: one token's logit less another's.

    Parameters
    ----------
    correct, wrong : int or str, optional
        Token ids, or words of one token with their leading space. Without them every sample
        brings its own pair: labels ``[samples, 2]`` of ids.
    tokenizer : optional
        With ``encode(text, add_special_tokens=False)``, to read words.
    position : "last" or int
        Where the logits are read; the last position is the last attended one of each sample.

    Raises
    ------
    OptionError
        One token without the other, a word without a tokenizer or of several tokens.

    Examples
    --------
    >>> target = logit_difference(3, 1)
    >>> target.name
    'logit(3) − logit(1)'
    >>> target(torch.tensor([[0.0, 1.0, 2.0, 5.0]]), Batch((torch.zeros(1, 1),), {}))
    tensor([4.])
    """
    if (correct is None) != (wrong is None):
        raise OptionError(
            "correct= and wrong= belong together: pass both tokens, or none and labels"
        )
    if not (isinstance(position, str) and position == "last"):
        try:
            position = whole(position, "position")
        except OptionError:
            raise OptionError(
                f"position={shown(position)} is neither 'last' nor a number"
            ) from None
    right, other = (None if w is None else _token_id(w, tokenizer) for w in (correct, wrong))
    logits = [f"logit({word})" for word in (correct, wrong)]
    name = "logit difference" if correct is None else " − ".join(logits)
    return LogitDifference(right, other, position, name)


def _token_id(word: int | str, tokenizer: Any) -> int:
    if not isinstance(word, str):
        try:
            return operator.index(word)
        except TypeError:
            raise OptionError(f"the token {word!r} is neither an id nor a word") from None
    if tokenizer is None:
        raise OptionError(f"the token {word!r} is a word: pass tokenizer=, or its id")
    if not hasattr(tokenizer, "encode"):
        raise OptionError(
            f"tokenizer is {type(tokenizer).__name__}: pass an object with encode(text), or the "
            "tokens' ids"
        )
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        raise OptionError(f"{word!r} is {len(ids)} tokens, not one: choose another, or pass an id")
    return int(ids[0])


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
    asked : int or None
        The index that a user would pass for it: of a single output 0 or 1, or None for the output
        as it is.
    leaf : int or None
        Which leaf of the output holds the logits, where no name says so.
    notes : tuple of str
        What was decided about it, in plain sentences.
    """

    name: str
    index: int | None = None
    sign: int = 1
    function: TargetFunction | None = None
    asked: int | None = None
    leaf: int | None = None
    notes: tuple[str, ...] = ()

    def __call__(self, output: Any, batch: Callable[[], Batch]) -> Tensor:
        """Return one value a row; `batch()` makes the matching batch where it is needed."""
        if self.function is None:
            logits = self.logits(output)
            column = logits if logits.dim() == 1 else logits[:, self.index]
            return column if self.sign > 0 else -column
        given = batch()
        values = self.called(output, given)
        if not isinstance(values, Tensor) or values.shape != (given.size,):
            returned = shape_of(values) if isinstance(values, Tensor) else type(values).__name__
            labels = " These data hold no labels: batch.labels is None" * (given.labels is None)
            raise OptionError(
                f"the target {self.name!r} returned {returned} for {given.size} samples: it must "
                "return one number a sample, a tensor of shape [batch], and samples must lie in "
                f"dimension 0 of the inputs.{labels}"
            )
        if values.is_complex():
            raise OptionError(
                f"the target {self.name!r} returned complex numbers: effects are of one real "
                "number a sample, so take the real part, the angle or the absolute value"
            )
        return values.float() if values.dtype == torch.bool else values

    def called(self, output: Any, batch: Batch) -> Any:
        """What the function returns; OptionError with what it raised."""
        assert self.function is not None
        try:
            return self.function(output, batch)
        except NeurographError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            if batch.labels is None:
                reason += " (these data hold no labels, batch.labels is None: pass (X, y) for some)"
            raise OptionError(
                f"the target {self.name!r} raised {type(error).__name__}: {reason}"
            ) from error

    def logits(self, output: Any) -> Tensor:
        """Read the tensor that the target is a column of off what the model returned."""
        if self.leaf is None:
            return logits_of(output)
        found: Tensor = flatten(output)[0][self.leaf]
        return found


def resolve_target(
    target: int | str | TargetFunction | None,
    output: Any,
    class_names: Sequence[str] | None,
    *,
    size: int | None = None,
) -> Target:
    """Check a target against the model's output and name it.

    Parameters
    ----------
    target : int, str, callable or None
        An output index, one of the class names, a function, or None for the one output of a model
        as it is. With an index a single output is read as a binary classifier's logit: target 1 is
        the output, target 0 is minus the output.
    output : nested tensors
        What the model returned.
    class_names : sequence of str, optional
    size : int, optional
        For how many samples: tells which tensors of the output hold them.

    Raises
    ------
    OptionError
        An index out of range, an unknown name, a name list of the wrong length, or an unusable
        output.
    """
    if target is not None and callable(target):
        names = (getattr(target, key, None) for key in ("name", "__name__"))
        name = next((n for n in names if isinstance(n, str)), type(target).__name__)
        return Target(name, function=target)
    logits, leaf, notes = _find_logits(output, size)
    if logits.dim() > 2:
        raise OptionError(
            f"the output is {shape_of(logits)}, so the target {target!r} names no single number a "
            "sample: pass target=callable(output, batch) -> [batch]"
        )
    columns = 1 if logits.dim() < 2 else logits.shape[1]
    alone = columns == 1 and isinstance(target, str) and [target] == list(class_names or ())
    if target is None or alone:
        return replace(_whole(columns, class_names), leaf=leaf, notes=notes)
    if not columns:
        raise OptionError("the model has no outputs: its output has 0 columns")
    choices = 2 if columns == 1 else columns
    if class_names is not None and len(class_names) != choices:
        raise OptionError(f"class_names has {len(class_names)} names for {choices} targets")
    index = _index(target, choices, class_names)
    if columns > 1:
        name = f"output[{index}]" if class_names is None else printable(class_names[index])
        return Target(name, index, asked=index, leaf=leaf, notes=notes)
    plain = "output" if index else "-output (target 0 of a binary logit)"
    name = plain if class_names is None else printable(class_names[index])
    if not index:
        notes += (
            "the model has a single output, which is read as a binary logit: target 0 is minus the "
            "output, target 1 the output (target=None explains it as it is)",
        )
    return Target(name, 0, 1 if index else -1, asked=index, leaf=leaf, notes=notes)


def _whole(columns: int, class_names: Sequence[str] | None) -> Target:
    """The only output as it is."""
    if columns == 1:
        alone = class_names is not None and len(class_names) == 1
        return Target(printable(class_names[0]) if class_names and alone else "output", 0)
    names = [repr(name) for name in class_names or ()]
    options = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    raise OptionError(
        f"the model has {columns} outputs: pass target=, one of 0…{columns - 1}"
        f"{f' or of {options}' if options else ''}, or a callable(output, batch) -> [batch]"
    )


def _index(target: Any, choices: int, class_names: Sequence[str] | None) -> int:
    """Read an index as users write it: a whole number of any library, or a class name."""
    if isinstance(target, str):
        return _named(target, class_names)
    is_bool = isinstance(target, bool) or "bool" in str(getattr(target, "dtype", ""))
    try:
        index = None if is_bool else operator.index(target)
    except TypeError:
        index = None
    if index is None:
        raise OptionError(
            f"target is {shown(target)}: pass an output index, a class name, or a callable "
            "(labels go beside the inputs: data=(X, y))"
        )
    if index < 0:
        raise OptionError(
            f"target {index} is negative: targets count from 0, and the last is {choices - 1}"
        )
    if index >= choices:
        raise OptionError(f"target {index} is out of range: the model has targets 0…{choices - 1}")
    return index


def _named(target: str, class_names: Sequence[str] | None) -> int:
    if class_names is None:
        raise OptionError(
            f"target={target!r} is a name: pass class_names=, in the order of the outputs"
        )
    known = [str(name) for name in class_names]
    if known.count(target) == 1:
        return known.index(target)
    if target in known:
        raise OptionError(f"target={target!r} names several classes: pass its index")
    close = difflib.get_close_matches(target, known, 1, 0)
    hint = f": did you mean {close[0]!r}?" if close else ""
    raise OptionError(f"target={target!r} is none of class_names{hint}")


def _find_logits(output: Any, size: int | None) -> tuple[Tensor, int | None, tuple[str, ...]]:
    """Find the logits, which leaf they are where no name says so, and a note on that."""
    if _called_logits(output) is not None:
        return logits_of(output), None, ()
    logits = logits_of(output, size)
    leaves, _ = flatten(output)
    leaf = next((i for i, x in enumerate(leaves) if x is logits), None)
    if leaf is None:
        return logits, None, ()
    names, many = leaf_names(output), [i for i, x in enumerate(leaves) if _may_be(x, size)]
    if len(many) < 2:
        return logits, leaf, ()
    listed = ", ".join(f"{names[i]!r} ({shape_of(leaves[i])})" for i in many[:_SHOWN])
    note = (
        f"the model returns several tensors and calls none of them logits: {listed}; explained is "
        f"{names[leaf]!r} (pass target=callable(output, batch) -> [batch] for another)"
    )
    return logits, leaf, (note,)


def _may_be(leaf: Any, size: int | None) -> bool:
    """Whether a leaf of an output may hold what is explained: a floating row for each sample."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.dim() == 0:
        return False
    return size is None or leaf.shape[0] == size


def _called_logits(output: Any, depth: int = 1) -> Tensor | None:
    """Find a tensor called logits: a field or key of the output, or of one of its parts."""
    if isinstance(output, Mapping):
        found, parts = output.get("logits"), list(output.values())
    else:
        found = None if isinstance(output, Tensor) else getattr(output, "logits", None)
        listed = isinstance(output, (tuple, list))
        parts = list(output) if listed else list(getattr(output, "__dict__", {}).values())
    if isinstance(found, Tensor):
        return found
    deeper = (_called_logits(part, depth - 1) for part in parts if depth)
    return next((part for part in deeper if part is not None), None)


def logits_of(output: Any, size: int | None = None) -> Tensor:
    """Find the logits in what a model returned: so called, or the first floating-point tensor.

    Of the latter, the first with a row for each of `size` samples, where there is one; else the
    first that is no single number, as a loss is.

    Raises
    ------
    ModelError
        There is none.
    """
    named = _called_logits(output)
    if named is not None:
        return named
    leaves, _ = flatten(output)
    for count in dict.fromkeys((size, None)):
        found = next((x for x in leaves if _may_be(x, count)), None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    index = main_index(leaves)
    if index is None:
        raise ModelError(
            f"the model returned {type(output).__name__}, which holds no floating-point tensor: "
            "pass target=callable(output, batch) -> [batch], or a model that returns logits (no "
            "argmax)"
        )
    tensor: Tensor = leaves[index]
    return tensor


def describe_target(target: Target) -> dict[str, Any]:
    """Describe a target as JSON can hold it; `kind` says what `index` None means."""
    kind = "index" if target.asked is not None else "output"
    kind = "callable" if target.function is not None else kind
    return {"name": target.name, "index": target.asked, "kind": kind}


def check_finite(target: Target, output: Any, batch: Batch) -> None:
    """Raise ModelError where the target of a run is no number."""
    values = target(output, lambda: batch)
    if not values.isfinite().all():
        place = int((~values.isfinite()).flatten().nonzero()[0])
        raise ModelError(
            f"the target {target.name!r} is NaN or infinite ({values.flatten()[place].item()}) for "
            f"reference sample {place}, where nothing is moved: choose one that is finite there"
        )


def check_rows(target: Target, output: Any, batch: Batch) -> None:
    """Raise DataError unless the target is one number for each sample of a run.

    Samples lie in dimension 0 of the inputs, and must lie there in the output.
    """
    if target.function is None:
        logits = target.logits(output)
        rows_of = f"the output is {shape_of(logits)}"
        rows = logits.shape[0] if logits.dim() else 0
    else:
        values = target.called(output, batch)
        if not isinstance(values, Tensor) or values.dim() != 1:
            target(output, lambda: batch)  # says what it returned
        rows_of = f"the target {target.name!r} returns {shape_of(values)}"
        rows = len(values)
    if rows != batch.size:
        inputs = " and ".join(shape_of(tensor) for tensor in batch.tensors())
        raise DataError(
            f"dimension 0 of the inputs is {batch.size} ({inputs}) but {rows_of}: samples must lie "
            "in dimension 0 of the first input and of the output. Time first: wrap the model in a "
            "Module whose forward calls model(x.transpose(0, 1)), and pass samples first. A mean "
            "over the batch: return a row for each sample. A single sample: pass X[None]"
        )
    labels = batch.labels
    if target.sign < 0 and isinstance(labels, Tensor) and not ((labels == 0) | (labels == 1)).all():
        raise OptionError(
            f"target={target.asked} is class {target.asked} of a binary logit, minus the output, "
            f"but the labels are no 0 and 1 ({shown(labels.flatten()[:3].tolist())}…): pass "
            "target=None for a number as it is"
        )
