"""Layers and their neurons: names, and how one sample's values lie in a batched tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from neurograph.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from neurograph.model.basis import Basis

__all__ = [
    "INPUT_SIDE",
    "INPUT_TYPE",
    "Layer",
    "Layout",
    "Neuron",
    "channels_first",
]

INPUT_SIDE = ":input"
"""Behind the name of a module: its input side."""


class Neuron(tuple[Any, ...]):
    """One neuron of one layer: a channel, or a group of channels, at a position if it has one.

    A tuple ``(layer, index)``, or ``(layer, index, position)`` where every position of a
    sequence has neurons of its own, so that ``graph.nodes["linear1", 37]`` and
    ``graph.nodes[Neuron("linear1", 37)]`` are the same node.

    Examples
    --------
    >>> str(Neuron("linear1", 37)), str(Neuron("linear1", 37, 4))
    ('linear1[37]', 'linear1[37]@4')
    >>> Neuron("linear1", 37) == ("linear1", 37), Neuron("linear1", 37, 4).position
    (True, 4)
    """

    __slots__ = ()

    def __new__(cls, layer: str, index: int, position: int | None = None) -> Neuron:
        """Make a tuple of two, or of three where there is a position."""
        parts = (layer, index) if position is None else (layer, index, position)
        return super().__new__(cls, parts)

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Give `copy` what `__new__` takes."""
        return tuple(self)

    @property
    def layer(self) -> str:
        """The layer's name."""
        return str(self[0])

    @property
    def index(self) -> int:  # type: ignore[override]  # hides tuple.index, which nobody needs here
        """Which of the layer's channels, or of its groups."""
        return int(self[1])

    @property
    def position(self) -> int | None:
        """Which position of the sequence, where each has neurons of its own."""
        return int(self[2]) if len(self) > 2 else None

    def __str__(self) -> str:
        place = "" if self.position is None else f"@{self.position}"
        return f"{self.layer}[{self.index}]{place}"

    def __repr__(self) -> str:
        return f"Neuron({', '.join(map(repr, self))})"


@dataclass(frozen=True)
class Layout:
    """Where the samples of a batch lie in a tensor.

    Everything is computed on *rows*, ``[samples, …]``; models see tensors as they laid them out.

    Attributes
    ----------
    dim : int or None
        The batch dimension; None if the tensor is the same for every sample (positions, say).
    many : int
        How many slices along it one sample has (windows of an image, for one). Without a batch
        dimension, 0 if one of length 1 stands in its place.
    adjacent : bool
        Whether these are neighbours: samples outside, slices inside.
    spread : bool
        Whether the model takes a row for each sample where it made one for all.
    """

    dim: int | None = 0
    many: int = 1
    adjacent: bool = True
    spread: bool = False

    @property
    def varies(self) -> bool:
        """Whether samples have rows of their own, or may have."""
        return self.dim is not None or self.spread

    @property
    def plain(self) -> bool:
        """Whether rows are the tensor itself."""
        return self.dim == 0 and self.many == 1

    def fitted(self, tensor: Tensor, size: int | None) -> Layout:
        """How `size` samples lie in a tensor, if each may have other numbers of slices."""
        if self.dim is None or not size or tensor.shape[self.dim] % size:
            return self
        return replace(self, many=tensor.shape[self.dim] // size)

    def resized(self, shape: tuple[int, ...], size: int, other: int) -> tuple[int, ...] | None:
        """Shape of another number of samples; None where this is no shape of `size` of them."""
        if self.dim is None:
            return shape
        if self.dim >= len(shape) or shape[self.dim] != self.many * size:
            return None
        return (*shape[: self.dim], self.many * other, *shape[self.dim + 1 :])

    def rows(self, tensor: Tensor) -> Tensor:
        """View a model's tensor as rows; what is the same for every sample is one row."""
        if self.plain:
            return tensor
        if self.dim is None:
            return tensor if self.many == 0 else tensor[None]
        moved = tensor.movedim(self.dim, 0)
        if self.many == 1:
            return moved
        if len(moved) % self.many:
            raise ModelError(
                f"a tensor ({'×'.join(map(str, tensor.shape))}) does not hold {self.many} slices "
                "of each sample, as it did before: the model cuts or packs its batch by how many "
                "samples there are, or by their values, so they cannot be told apart"
            )
        if self.adjacent:
            return moved.reshape(-1, self.many, *moved.shape[1:])
        return moved.reshape(self.many, -1, *moved.shape[1:]).transpose(0, 1)

    def tensor(self, rows: Tensor) -> Tensor:
        """Lay rows out as the model does; the inverse of `rows`."""
        if self.plain:
            return rows
        if self.dim is None:
            return rows if self.many == 0 or len(rows) > 1 else rows[0]
        if self.many > 1:
            rows = (rows if self.adjacent else rows.transpose(0, 1)).flatten(0, 1)
        return rows.movedim(0, self.dim)


@dataclass(frozen=True)
class Layer:
    """One call of one parameter-owning module, or one input of the model.

    A call that returns several floating-point tensors is one layer for each of them; the input
    side of a module can be a layer too.

    Attributes
    ----------
    name : str
        ``named_modules()`` path, with ``#1``, ``#2``, … from the second call on; then ``:KEYS``
        for any but the first tensor it returns, ``:input`` for its input side; ``input`` or
        ``input.NAME`` for the model's inputs.
    module : str
        The ``named_modules()`` path; empty for an input.
    call : str
        The call that it belongs to: a path with its number, with ``:input`` for an input side.
    type : str
        Class name of the module; ``Input`` for an input.
    shape : tuple of int
        Shape of one row, which is one sample's output.
    channel_dim : int
        Dimension of the rows along which the channels lie.
    neurons : int
        How many channels; 0 where the output is not floating point (token ids, masks) or is the
        same for every sample.
    parameters : int
        How many parameters the module owns directly.
    leaf : int
        Which leaf of the call's nested output it is.
    layout : Layout
        How samples lie in that tensor.
    mask : str or None
        The input of the model that says which of its positions are padding, with ``~`` before it
        where it is not 0 for padding; None where all count.
    routed : bool
        Whether its module runs on those rows that values choose, as experts do. A neuron of it is
        its channel on whatever rows these are, and one of its rows holds what all of them are set
        to, NaN where they stay as computed: so are all recorded ones.
    basis : Basis or None
        What its neurons are where they are not its channels: shape and number are then those of
        the coordinates.
    """

    name: str
    module: str
    call: str
    type: str
    shape: tuple[int, ...]
    channel_dim: int
    neurons: int
    parameters: int
    leaf: int = 0
    layout: Layout = Layout()
    mask: str | None = None
    routed: bool = False
    basis: Basis | None = None

    def rows(self, tensor: Tensor) -> Tensor:
        """View the layer's tensor as rows, in its basis."""
        return self.coordinates(self.layout.rows(tensor))

    def coordinates(self, rows: Tensor) -> Tensor:
        """Rows of channels in its basis."""
        if self.basis is None:
            return rows
        dim = self.channel_dim
        return self.basis.coordinates(rows.movedim(dim, -1)).movedim(-1, dim)

    def tensor(self, rows: Tensor) -> Tensor:
        """Lay rows out as the model does; the inverse of `rows`."""
        if self.basis is not None:
            dim = self.channel_dim
            channels = self.basis.from_coordinates(rows.movedim(dim, -1))
            rows = channels.movedim(-1, dim).contiguous()  # glue may view it in other shapes
        return self.layout.tensor(rows)

    def within(self, basis: Basis) -> Layer:
        """The same layer, with neurons in a basis."""
        width = sum(map(len, basis.units))
        shape = list(self.shape)
        shape[self.channel_dim - 1] = width
        return replace(self, shape=tuple(shape), neurons=width, basis=basis)

    @property
    def is_input(self) -> bool:
        """Whether this is an input of the model rather than a module."""
        return self.type == INPUT_TYPE

    @property
    def site(self) -> str:
        """What `layers=` and other patterns call it: its module, and the side if that is the input.

        Inputs of the model go by their names.
        """
        if self.is_input:
            return self.name
        return self.module + (INPUT_SIDE if self.call.endswith(INPUT_SIDE) else "")

    @property
    def is_sequence(self) -> bool:
        """Whether its channels have one axis of positions, as tokens or time steps have."""
        return len(self.shape) == 2


INPUT_TYPE = "Input"


def channels_first(rows: Tensor, dim: int) -> Tensor:
    """View ``[rows, …, channels at dim, …]`` as ``[rows, channels, *positions]``."""
    return rows.movedim(dim, 1)
