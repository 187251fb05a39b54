"""Positions of sequences: which hold real tokens, which may move, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.layers import Layer
from neurograph.utils.checks import printable, shown, whole

__all__ = [
    "INVERTED",
    "Positions",
    "attended",
    "check_positions",
    "is_mask",
    "masks_for",
    "may_say_padding",
    "moving",
    "says_token",
    "token_names",
]

Positions = Literal["all", "last", "each"] | int
"""Where the neurons of a sequence are: a channel at every position at once, at the last one, at
one by number, or each position with neurons of its own."""

INVERTED = "~"
"""Before the name of a mask that is not 0 where padding is."""

_MASK, _IDS, _DECODER = "attention_mask", "input_ids", "decoder"
_CALLED = ("mask", "pad")
_NAMES_SHOWN = 3


def check_positions(positions: Positions) -> Positions:
    """Read which positions are meant; OptionError for what names none."""
    if isinstance(positions, str) and positions in ("all", "last", "each"):
        return positions
    try:
        return whole(positions, "positions")
    except OptionError:
        raise OptionError(
            f"positions={shown(positions)} is none of 'all', 'last', 'each' or a number"
        ) from None


def attended(inputs: Mapping[str, Tensor], layer: Layer) -> Tensor | None:
    """Find which positions of a layer hold real tokens, by the mask that it has been shown to have.

    Parameters
    ----------
    inputs : mapping of str to Tensor
        The model's inputs by name, among them masks ``[rows, positions]``.
    layer : Layer

    Returns
    -------
    Tensor of bool, [rows, positions], or None
        None where every position counts.
    """
    if not layer.is_sequence or layer.mask is None:
        return None
    tensor = inputs.get(layer.mask.removeprefix(INVERTED))
    if tensor is None or tensor.dim() != 2 or tensor.shape[1] != _length(layer):
        return None
    tokens = says_token(inputs, layer.mask)
    return None if bool(tokens.all()) else tokens


def says_token(inputs: Mapping[str, Tensor], mask: str) -> Tensor:
    """Where a mask says that a token is, ``[rows, positions]``: not 0, or 0 if it is inverted."""
    tensor = inputs[mask.removeprefix(INVERTED)]
    return tensor == 0 if mask.startswith(INVERTED) else tensor != 0


def is_mask(name: str, tensor: Tensor) -> bool:
    """Whether an input may be a mask of positions: called so, and of 0 and 1 alone.

    An ``attention_mask`` may hold any whole numbers, as segments have.
    """
    called = name.split(".")[-1].lower()
    if not any(word in called for word in _CALLED) or tensor.dim() != 2:
        return False
    if called.endswith(_MASK) and not tensor.is_floating_point():
        return True
    return bool(((tensor == 0) | (tensor == 1)).all())


def may_say_padding(name: str) -> bool:
    """Whether an input is called a mask, or lengths, whatever it holds."""
    called = name.split(".")[-1].lower()
    lengths = any(part.startswith("len") for part in called.split("_"))
    return lengths or any(word in called for word in _CALLED)


def masks_for(inputs: Mapping[str, Tensor], layer: Layer) -> list[str]:
    """Inputs that may be the mask of a layer, by name and length; what it is called like first.

    A layer of a decoder, or of a part that masks are called by, has its own attention mask alone.
    """
    if not layer.is_sequence:
        return []
    length = _length(layer)
    own = {n: t for n, t in inputs.items() if t.dim() == 2 and t.shape[1] == length}
    found = [name for name, tensor in own.items() if is_mask(name, tensor)]
    prefix = _own_prefix(_fitting(inputs, layer), layer)
    plain = [name for name in found if name.split(".")[-1] == _named(prefix, _MASK)]
    family = [name for name in found if name.endswith(_MASK) and name not in plain]
    others = [name for name in found if not name.endswith(_MASK)]
    return [*plain, *others, *([] if plain or prefix else family)]


def _fitting(inputs: Mapping[str, Tensor], layer: Layer) -> dict[str, Tensor]:
    """Inputs of one number for each position of a layer, by the names of their arguments."""
    length = _length(layer)
    return {
        name.split(".")[-1]: tensor
        for name, tensor in inputs.items()
        if tensor.dim() == 2 and tensor.shape[1] == length
    }


def _length(layer: Layer) -> int:
    return layer.shape[2 - layer.channel_dim]


def _own_prefix(fitting: Mapping[str, Tensor], layer: Layer) -> str:
    """What the names of a layer's own inputs begin with, as ``decoder`` in a decoder.

    Where there are inputs of a decoder, all outside the encoder is the decoder's: the head.
    """
    ends = (_MASK, _IDS)
    known = {n.removesuffix(end).rstrip("_") for n in fitting for end in ends if n.endswith(end)}
    parts = layer.module.split(".")
    own = [prefix for prefix in parts if prefix in known]
    return own[0] if own else _DECODER * (_DECODER in known and "encoder" not in parts)


def _named(prefix: str, end: str) -> str:
    return f"{prefix}_{end}" if prefix else end


def moving(
    inputs: Mapping[str, Tensor], size: int, layer: Layer, positions: Positions
) -> Tensor | None:
    """Find which elements of each row may move.

    Returns
    -------
    Tensor of bool, [size, elements], or None
        None where all may.

    Raises
    ------
    OptionError
        There is no such position.
    """
    if not layer.is_sequence:
        return None
    length = _length(layer)
    mask = attended(inputs, layer)
    if positions == "last":
        mask = _last(torch.ones(size, length, dtype=torch.bool) if mask is None else mask)
    elif isinstance(positions, int):
        if not -length <= positions < length:
            raise OptionError(
                f"positions={positions} is outside the {length} positions of layer {layer.name!r}"
            )
        there = torch.arange(length, device=None if mask is None else mask.device)
        there = (there == positions % length).expand(size, -1)
        mask = there if mask is None else mask & there
    if mask is None:
        return None
    return mask.unsqueeze(layer.channel_dim).expand(-1, *layer.shape).flatten(1)


def _last(mask: Tensor) -> Tensor:
    """The last attended position of each row alone."""
    behind = mask.flip(1).cumsum(1).flip(1)
    return mask & (behind == 1)


def token_names(inputs: Mapping[str, Tensor], layer: Layer, tokenizer: Any) -> list[str] | None:
    """What stands at each position of a layer in the reference samples.

    The token where all samples agree, the first few that differ joined by ``|`` elsewhere; None
    where no input of token ids is as long, or several are and none is called ``input_ids``.
    """
    if not layer.is_sequence:
        return None
    fitting = _fitting(inputs, layer)
    prefix = _own_prefix(fitting, layer)
    ids = fitting.get(_named(prefix, _IDS))
    if ids is None and not prefix:  # inputs may have any name; of two, who reads which is unknown
        known = [x for n, x in fitting.items() if _are_ids(x) and not is_mask(n, x)]
        ids = known[0] if len(known) == 1 else None
    if ids is None:
        return None
    names = []
    for column in ids.T.tolist():
        tokens = dict.fromkeys(_token(tokenizer, token) for token in column)
        shown = list(tokens)[:_NAMES_SHOWN]
        names.append("|".join(shown) + ("|…" if len(tokens) > _NAMES_SHOWN else ""))
    return names


def _are_ids(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def _token(tokenizer: Any, token: int) -> str:
    try:
        if hasattr(tokenizer, "decode"):
            return printable(str(tokenizer.decode([token])))
        if callable(tokenizer):
            return printable(str(tokenizer(token)))
    except Exception as error:
        raise OptionError(
            f"tokenizer raised {type(error).__name__} for the token {token}: {error}"
        ) from error
    raise OptionError(
        f"tokenizer is {type(tokenizer).__name__}: pass an object with decode([id]), or a function "
        "from a token id to its name"
    )
