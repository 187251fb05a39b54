"""Modules that run on those rows that values choose, as experts do: which of them can be layers."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.errors import ModelError
from neurograph.model.batch import Batch
from neurograph.model.layer_choice import Sites
from neurograph.model.module_types import is_convolution
from neurograph.model.observe import observe, undisturbed
from neurograph.utils.nested import flatten, main_index

__all__ = ["find_routed", "rows_of_blocks"]

_MOST = 0.05  # by which rounding may differ, as a share, also in half precision


def find_routed(
    model: nn.Module, batch: Batch, sites: Sites
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Find which modules that run on some rows only can be layers, by running on twice the samples.

    They are called once in a run, and if samples come twice, it shows which rows are of which.

    Returns
    -------
    order : dict of str to int
        When each call comes.
    found : dict of str to Tensor
        By path what the module returned, ``[rows, …, channels]``.
    """
    order: dict[str, int] = {}
    if not sites.routed - sites.left_out:
        return order, {}
    found: list[dict[str, Tensor | None]] = []

    def visit(call: str, path: str, _arguments: Any, output: Any) -> None:
        order.setdefault(call, len(order))
        if path in sites.routed:
            leaves, _ = flatten(output)
            main = main_index(leaves)
            again = main is None or path in found[-1]
            found[-1][path] = None if again else leaves[main or 0].detach().clone()

    with undisturbed(model), contextlib.suppress(ModelError):
        for times in (1, 2):
            found.append({})
            again = batch.map(lambda leaf, times=times: torch.cat([leaf] * times))
            observe(model, again, sites, visit, routed=True)
        one, two = found
        return order, {
            path: tensor
            for path, tensor in one.items()
            if path not in sites.left_out
            and tensor is not None
            and (other := two.get(path)) is not None
            and tensor.dim() > 1
            and tensor.numel()
            and not is_convolution(model.get_submodule(path))
            and rows_of_blocks(other.flatten(0, -2), 2) is not None
        }
    return order, {}


def rows_of_blocks(rows: Tensor, blocks: int) -> Tensor | None:
    """Which rows ``[rows, channels]`` are of each of several blocks, which all have the same rows.

    They come block by block, or so in each of several stretches: one for each position, say, or for
    the first and the second choice. A stretch is as long as it can be.

    Returns
    -------
    Tensor of int64, [blocks, rows of a block], or None where there are no such stretches

    Examples
    --------
    >>> rows_of_blocks(torch.tensor([[1.0], [2.0], [1.0], [2.0], [5.0], [5.0]]), 2).tolist()
    [[0, 1, 4], [2, 3, 5]]
    """
    close = min(1000 * torch.finfo(rows.dtype).eps, _MOST)
    scale = float(rows.abs().nan_to_num(0.0, 0.0, 0.0).max()) if rows.numel() else 0.0
    alike = functools.partial(torch.isclose, rtol=close, atol=close * scale, equal_nan=True)
    found, start = [], 0
    while start < len(rows):
        rest = rows[start:]
        again = alike(rest, rest[:1]).all(1).nonzero()[:, 0]
        sizes = again[(again > 0) & (again * blocks <= len(rest))].tolist()
        for size in reversed(sizes if blocks > 1 else [len(rest)]):
            parts = rest[: blocks * size].view(blocks, size, -1)
            if alike(parts, parts[:1]).all():
                break
        else:
            return None
        found.append(start + torch.arange(blocks * size, device=rows.device).view(blocks, size))
        start += blocks * size
    return torch.cat(found, 1) if found else None
