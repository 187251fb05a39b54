"""Input dtypes: what a model takes, found by running it on a few samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.errors import ModelError
from neurograph.model.batch import Batch
from neurograph.model.observe import call_model, undisturbed
from neurograph.utils.nested import flatten

__all__ = ["FEW", "cast", "find_casts", "output_of"]

FEW = 2  # samples: with one, nothing tells a batch dimension from others


def find_casts(
    model: nn.Module, batch: Batch, dtype: torch.dtype
) -> tuple[dict[int, torch.dtype], str | None]:
    """Find which inputs must be converted: those that the model takes as its own dtype only.

    Whole numbers stay (ids of an embedding) unless the model fails on them and runs on
    floating-point numbers.

    Returns
    -------
    casts : dict of int to torch.dtype
        For leaves of the inputs, by their number.
    note : str or None
        A note for the result.
    """
    leaves, _ = flatten((batch.args, dict(batch.kwargs)))
    tensors = {i: x for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.dim() > 0}
    odd = [i for i, x in tensors.items() if x.dtype != dtype and not x.is_complex()]
    if not odd or output_of(model, batch) is not None:
        return {}, None
    for some in [odd, *([i] for i in odd)] if len(odd) > 1 else [odd]:
        casts = dict.fromkeys(some, dtype)
        if output_of(model, cast(batch, casts)) is not None:
            dtypes = ", ".join(str(tensors[i].dtype).removeprefix("torch.") for i in some)
            return casts, (
                f"inputs of {dtypes} are converted to {str(dtype).removeprefix('torch.')}: the "
                "model does not run on them as they are"
            )
    return {}, None


def cast(batch: Batch, casts: Mapping[int, torch.dtype]) -> Batch:
    """Return a batch with some leaves of its inputs in other dtypes."""
    leaves, rebuild = flatten((batch.args, dict(batch.kwargs)))
    changed = [x.to(casts[i]) if i in casts else x for i, x in enumerate(leaves)]
    args, kwargs = rebuild(changed)
    return replace(batch, args=args, kwargs=kwargs)


def output_of(model: nn.Module, batch: Batch) -> Any:
    """What a model returns for a few samples, or for all, as some take one number only.

    None where it runs on neither.
    """
    with undisturbed(model):
        for some in (batch.map(lambda leaf: leaf[:FEW]), batch):
            try:
                return call_model(model, some)
            except ModelError:
                continue
    return None
