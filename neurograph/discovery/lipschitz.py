"""Lipschitz constants of pointwise glue: how far it can stretch a change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from neurograph.replay.elementwise import Chain

__all__ = ["stretch"]

# Suprema of derivatives, rounded up.
_CONSTANT = {
    "abs": 1.0,
    "arctan": 1.0,
    "atan": 1.0,
    "clamp": 1.0,
    "clamp_max": 1.0,
    "clamp_min": 1.0,
    "clip": 1.0,
    "clone": 1.0,
    "cos": 1.0,
    "erf": 1.1284,
    "gelu": 1.13,
    "hardsigmoid": 0.16667,
    "hardtanh": 1.0,
    "mish": 1.09,
    "neg": 1.0,
    "relu": 1.0,
    "relu6": 1.0,
    "sigmoid": 0.25,
    "silu": 1.1,
    "sin": 1.0,
    "tanh": 1.0,
}


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> float:
    if min(alpha, scale, input_scale) < 0:
        return math.inf
    return scale * max(1.0, alpha * input_scale)


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> float:
    # Beyond the threshold it is the identity; the step there vanishes only if that is far out.
    return 1.0 if beta > 0 and threshold >= 20 else math.inf


_BY_ARGUMENTS: Mapping[str, Callable[..., float]] = {
    "add": lambda other, alpha=1: 1.0,
    "celu": lambda alpha=1.0: _elu(alpha, 1.0, 1.0 / alpha),
    "div": lambda other: abs(1.0 / other),
    "elu": _elu,
    "leaky_relu": lambda slope=0.01: max(1.0, abs(slope)),
    "mul": lambda other: abs(float(other)),
    "rsub": lambda other, alpha=1: abs(float(alpha)),
    "softplus": _softplus,
    "sub": lambda other, alpha=1: 1.0,
}


def stretch(chain: Chain) -> float:
    """Bound how much farther apart a chain can bring two values; inf where nothing is known.

    Returns
    -------
    float
        A constant c with ``|chain(a) - chain(b)| <= c |a - b|`` for all numbers a and b: the
        product of the operations' own Lipschitz constants.

    Examples
    --------
    >>> import torch
    >>> tanh = Chain().then(torch.ops.aten.tanh.default, (), {})
    >>> stretch(tanh), stretch(tanh.then(torch.ops.aten.mul.Tensor, (-3.0,), {}))
    (1.0, 3.0)
    >>> stretch(Chain().then(torch.ops.aten.exp.default, (), {}))
    inf
    """
    product = math.prod(_of(op, args, dict(kwargs)) for op, args, kwargs in chain.steps)
    return math.inf if math.isnan(product) else product


def _of(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    name = op._schema.name.removeprefix("aten::").rstrip("_")
    if name in _CONSTANT:
        return _CONSTANT[name]
    if name not in _BY_ARGUMENTS:
        return math.inf
    try:
        constant = _BY_ARGUMENTS[name](*args, **kwargs)
    except (TypeError, ValueError, ZeroDivisionError):  # a form that nobody thought of
        return math.inf
    return constant if constant >= 0 else math.inf  # NaN, too
