"""Which modules are layers, what their neurons are, and how their outputs are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# torch has no public pytree module yet; this one is stable and knows Hugging Face's outputs.
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from neurograph.errors import ModelError

__all__ = [
    "INPUT_TYPE",
    "Layer",
    "Neuron",
    "channel_dim",
    "channels_first",
    "find_owners",
    "is_convolution",
    "iter_tensors",
    "main_tensor",
    "refuse_unsupported",
    "replace_main",
    "tree_leaves",
    "tree_map",
]


class Neuron(NamedTuple):
    """One channel of one layer's output.

    A named tuple, so that ``graph.nodes["linear1", 37]`` and
    ``graph.nodes[Neuron("linear1", 37)]`` are the same node.

    Examples
    --------
    >>> str(Neuron("linear1", 37))
    'linear1[37]'
    """

    layer: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    def __str__(self) -> str:
        return f"{self.layer}[{self.index}]"


@dataclass(frozen=True)
class Layer:
    """One call of one parameter-owning module, or one input of the model.

    Attributes
    ----------
    name : str
        ``named_modules()`` path, with ``#1``, ``#2``, … from the second call on; ``input`` or
        ``input.NAME`` for the model's inputs.
    module : str
        The ``named_modules()`` path; empty for an input.
    type : str
        Class name of the module; ``Input`` for an input.
    shape : tuple of int
        Shape of the output for one sample (no batch dimension).
    channel_dim : int
        Dimension of the *batched* output along which the neurons lie.
    neurons : int
        How many neurons; 0 where the output is not floating point (token ids, masks).
    parameters : int
        How many parameters the module owns directly.
    """

    name: str
    module: str
    type: str
    shape: tuple[int, ...]
    channel_dim: int
    neurons: int
    parameters: int

    @property
    def is_input(self) -> bool:
        """Whether this is an input of the model rather than a module."""
        return self.type == INPUT_TYPE


INPUT_TYPE = "Input"

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_WRAPPERS = {
    "DataParallel": "pass its .module instead",
    "DistributedDataParallel": "pass its .module instead",
    "FullyShardedDataParallel": "gather the weights into the plain model and pass that",
    "OptimizedModule": "pass the model as it was before torch.compile (its ._orig_mod)",
}


def refuse_unsupported(model: nn.Module) -> None:
    """Raise ModelError for what cannot be replayed, naming the module and the way out."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is {type(model).__name__}, not a torch.nn.Module")
    for name, module in model.named_modules():
        kind, where = type(module).__name__, f"module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{where} is a ScriptModule, which takes no Python forward: "
                "pass the eager model it was scripted from"
            )
        if kind in _WRAPPERS:
            raise ModelError(f"{where} is wrapped in {kind}: {_WRAPPERS[kind]}")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ModelError(f"{where} was compiled in place: pass a copy that was not")
        if ".quantized" in type(module).__module__:
            raise ModelError(
                f"{where} ({kind}) is quantised: pass the float model it was converted from"
            )


def is_normalisation(module: nn.Module) -> bool:
    """Whether a module is a normalisation, which counts as glue by default."""
    return "Norm" in type(module).__name__


def find_owners(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that own parameters directly: every one that may turn out to be a layer.

    Whether one is a layer or only a container around layers shows when the model runs.
    Normalisation modules are glue; what a parametrisation adds belongs to its owner.
    """
    owners: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if parametrize.is_parametrized(module):
            inside.append(f"{name}.parametrizations" if name else "parametrizations")
        owns = next(module.parameters(recurse=False), None) is not None
        if (owns or parametrize.is_parametrized(module)) and not is_normalisation(module):
            owners[name] = module
    return owners


def is_convolution(module: nn.Module) -> bool:
    """Whether a module's channels lie along dimension 1."""
    return isinstance(module, _CONVOLUTIONS)


def channel_dim(module: nn.Module, output: Tensor) -> int:
    """Dimension of a module's batched output along which its neurons lie."""
    return 1 if is_convolution(module) else output.dim() - 1


def _main_index(leaves: list[Any]) -> int | None:
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return index
    return None


def main_tensor(output: Any) -> Tensor | None:
    """First floating-point tensor of a nested output: the one whose channels are neurons."""
    leaves = tree_leaves(output)
    index = _main_index(leaves)
    return None if index is None else leaves[index]


def replace_main(output: Any, value: Tensor) -> Any:
    """Return the nested output with its main tensor replaced."""
    leaves, spec = tree_flatten(output)
    index = _main_index(leaves)
    if index is None:
        raise ModelError("an output without a floating-point tensor has no neurons to move")
    leaves[index] = value
    return tree_unflatten(leaves, spec)


def channels_first(values: Tensor, dim: int) -> Tensor:
    """View ``[rows, …, channels at dim, …]`` as ``[rows, channels, *positions]``."""
    return values.movedim(dim, 1)


def iter_tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a nested structure, in order."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf
