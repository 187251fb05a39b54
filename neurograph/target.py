"""The scalar that a search explains: an output index, or any function of the output."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neurograph.checks import shown, whole
from neurograph.data import Batch
from neurograph.errors import ModelError, NeurographError, OptionError
from neurograph.layers import main_index
from neurograph.nested import flatten

__all__ = [
    "LogitDifference",
    "Target",
    "TargetFunction",
    "logit_difference",
    "logits_of",
    "resolve_target",
]

TargetFunction = Callable[[Any, Batch], Tensor]


@dataclass(frozen=True)
class LogitDifference:
    """The logit of one token less that of another; made by `logit_difference`.

    Attributes
    ----------
    correct, wrong : int or None
        Token ids; None where each sample brings its own pair as its labels.
    position : "last" or int
    name : str
    """

    correct: int | None
    wrong: int | None
    position: str | int
    name: str

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
        return torch.where(mask != 0, places, -1).amax(dim=1).to(logits.device)


def _no_pairs(labels: Any) -> OptionError:
    told = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
    return OptionError(
        f"logit_difference needs labels of shape [samples, 2], the ids of the correct and the "
        f"wrong token, not {told}: or name the two tokens"
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
        position = whole(position, "position")
    right, other = (None if w is None else _token_id(w, tokenizer) for w in (correct, wrong))
    told = [f"logit({word})" for word in (correct, wrong)]
    name = "logit difference" if correct is None else " − ".join(told)
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
    """

    name: str
    index: int | None = None
    sign: int = 1
    function: TargetFunction | None = None

    def __call__(self, output: Any, batch: Callable[[], Batch]) -> Tensor:
        """Return one value a row; `batch()` makes the matching batch where it is needed."""
        if self.function is None:
            logits = logits_of(output)
            column = logits if logits.dim() == 1 else logits[:, self.index]
            return column if self.sign > 0 else -column
        given = batch()
        try:
            values: Any = self.function(output, given)
        except NeurographError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise OptionError(
                f"the target {self.name!r} raised {type(error).__name__}: {reason}"
            ) from error
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
        names = (getattr(target, key, None) for key in ("name", "__name__"))
        name = next((n for n in names if isinstance(n, str)), type(target).__name__)
        return Target(name, function=target)
    if type(target) is not int:  # a bool would pass for an index
        raise OptionError(f"target is {shown(target)}: pass an output index or a callable")
    logits = logits_of(output)
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


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a model returned: so called, or the first floating-point tensor.

    Raises
    ------
    ModelError
        There is none.
    """
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
