"""Total effects by plain forward hooks: one run for each neuron and level, nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neurograph as ng

Target = Callable[[Any], Tensor]
SAMPLES = 40


@contextlib.contextmanager
def passing(model: nn.Module, change: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Change what modules return."""

    def hook(_module: nn.Module, _args: Any, output: Tensor, at: str) -> Tensor:
        return change[at](output)

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name in change:
            module = model.get_submodule(name)
            handle = module.register_forward_hook(lambda m, a, o, name=name: hook(m, a, o, name))
            stack.callback(handle.remove)
        yield


def total(
    model: nn.Module, args: tuple[Tensor, ...], layer: str, index: int, ends: Any, target: Target
) -> float:
    """Mean of target(last) − target(first), one channel of a layer set to each for all samples."""
    found = []
    for value in ends:

        def put(output: Tensor, value: Tensor = value) -> Tensor:
            moved = output.clone()
            moved[..., index] = torch.as_tensor(value, dtype=moved.dtype)
            return moved

        if layer.startswith("input"):
            number = int(layer.partition(".")[2] or 0)
            given = tuple(put(a) if i == number else a for i, a in enumerate(args))
            with passing(model, {}):
                found.append(target(model(*given)).double())
        else:
            with passing(model, {layer: put}):
                found.append(target(model(*args)).double())
    return float((found[-1] - found[0]).mean())


def values(model: nn.Module, args: tuple[Tensor, ...], layer: str) -> Tensor:
    """What a layer returns."""
    if layer.startswith("input"):
        return args[int(layer.partition(".")[2] or 0)]
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output.clone())
        return output

    with passing(model, {layer: keep}):
        model(*args)
    return kept[0]


def by_hooks(
    model: nn.Module, args: tuple[Tensor, ...], layer: str, target: Target
) -> dict[int, float]:
    """Total effect of every channel of a layer, from its 0.05 to its 0.95 quantile."""
    rows = values(model, args, layer)
    ends = torch.stack([rows.quantile(q, dim=0) for q in (0.05, 0.95)])
    return {i: total(model, args, layer, i, ends[..., i], target) for i in range(rows.shape[-1])}


def scored(model: nn.Module, args: tuple[Tensor, ...], **options: Any) -> dict[str, dict]:
    """What the library says, by layer and channel; all samples are the reference."""
    data = (args if len(args) > 1 else args[0], None)
    options = {"scorer": "exact", "reference": len(args[0]), "progress": False} | options
    table = ng.score(model, data, 1, **options).table
    found: dict[str, dict] = {}
    for layer, index, effect in zip(table["layer"], table["index"], table["effect"], strict=True):
        found.setdefault(layer, {})[index] = effect
    return found


def path(
    model: nn.Module, args: tuple[Tensor, ...], neurons: list[tuple[str, int]], target: Target
) -> float:
    """Effect of a move that travels along neurons only, each hop a run of the plain model."""
    start, channel = neurons[0]
    found = []
    for q in (0.05, 0.95):
        rows = values(model, args, start).clone()
        rows[..., channel] = rows.quantile(q, dim=0)[..., channel]
        layer = start
        for reader, index in neurons[1:]:
            given = (rows,) if layer == "input" else args
            here = {} if layer == "input" else {layer: lambda _, rows=rows: rows}
            with passing(model, here):
                moved = values(model, given, reader)
            rows = values(model, args, reader).clone()
            rows[..., index] = moved[..., index]
            layer = reader
        with passing(model, {layer: lambda _, rows=rows: rows}):
            found.append(target(model(*args)).double())
    return float((found[1] - found[0]).mean())


def first(output: Any) -> Tensor:
    """The target that index 1 means: column 1, or the only one."""
    return output[:, min(1, output.shape[1] - 1)]


def inputs(*sizes: int, seed: int = 0, samples: int = SAMPLES) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(samples, size, generator=generator, dtype=torch.float64) for size in sizes
    )


def check(
    model: nn.Module,
    args: tuple[Tensor, ...],
    layers: dict[str, str] | list[str],
    *,
    tolerance: float = 1e-9,
    **options: Any,
) -> dict[str, dict]:
    """Compare the total effects of layers; the library may call them otherwise than hooks do."""
    found = scored(model, args, **options)
    names = layers if isinstance(layers, dict) else {name: name for name in layers}
    for mine, theirs in names.items():
        wanted = by_hooks(model, args, theirs, first)
        assert found[mine] == pytest.approx(wanted, rel=tolerance, abs=tolerance), mine
        assert any(abs(effect) > 100 * tolerance for effect in wanted.values()), mine
    return found


def seeded(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return kind().double()
