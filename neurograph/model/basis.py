"""Bases: what a layer's neurons are other than its channels, each with a reading and a writing.

A basis writes the channels of a layer's rows as coordinates, from which they come back whole. What
moves, and what may see a move, are coordinates: everything that is measured of channels is measured
of them in the same way. What some directions leave over, the remainder, is a neuron of its own.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.layer_choice import matches
from neurograph.model.layers import Layer
from neurograph.utils.checks import one_of, shown, whole

__all__ = [
    "SMALLEST",
    "Bases",
    "Basis",
    "Directions",
    "Families",
    "FoundBasis",
    "FoundDirections",
    "describe_bases",
    "find_bases",
]

B = TypeVar("B", bound="Basis", covariant=True)

SMALLEST = 1e-6
"""Of the largest singular value: what is less is rounding."""


class Basis(ABC):
    """Coordinates of a layer's channels, and which of them move together as one neuron.

    Attributes
    ----------
    kind : str
        What the neurons are: ``direction``, ``family``, …
    """

    kind: str

    @property
    @abstractmethod
    def channels(self) -> int:
        """How many channels a layer has that it fits."""

    @property
    @abstractmethod
    def units(self) -> list[list[int]]:
        """Coordinates of each neuron."""

    @property
    def has_remainder(self) -> bool:
        """Whether the last neuron is what all others leave over."""
        return False

    @abstractmethod
    def coordinates(self, channels: Tensor) -> Tensor:
        """Write channels as coordinates: from ``[…, channels]`` to ``[…, coordinates]``."""

    @abstractmethod
    def from_coordinates(self, coordinates: Tensor) -> Tensor:
        """The inverse of `coordinates`."""

    def writing_of(self, neuron: int) -> Tensor:
        """What the channels change by while a neuron moves by 1, ``[channels]``, float64.

        NaN for the remainder, which has no one direction.
        """
        if self.has_remainder and neuron == len(self.units) - 1:
            return torch.full((self.channels,), torch.nan, dtype=torch.float64)
        moved = torch.zeros(2, sum(map(len, self.units)), dtype=torch.float64)
        moved[1, self.units[neuron]] = 1
        channels: Tensor = self.from_coordinates(moved)
        return channels[1] - channels[0]

    @abstractmethod
    def arrays(self) -> Mapping[str, Tensor]:
        """All that it is made of."""

    def __repr__(self) -> str:
        count = len(self.units)
        return f"{type(self).__name__}: {count} neurons of {self.channels} channels"

    def as_json(self) -> dict[str, Any]:
        """Say what it is, by its kind, its size and a hash of its numbers."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(name.encode() + str(tuple(array.shape)).encode())
            digest.update(array.detach().double().cpu().numpy().tobytes())
        return {"kind": self.kind, "neurons": len(self.units), "hash": digest.hexdigest()}


@dataclass(frozen=True, eq=False, repr=False)
class Directions(Basis):
    """Directions in the space of a layer's channels, and the remainder as the last neuron.

    A row x has the coordinates z that bring z W as near to it as can be: x W⁺, with W⁺ the
    pseudoinverse (for orthonormal directions, products with them). What is left, x - z W, is the
    remainder. Who moves a coordinate moves the row along the direction.

    Parameters
    ----------
    matrix : Tensor or ndarray, [directions, channels]
        One in each row, of any length, none a sum of others.
    readings : Tensor or ndarray, [directions, channels], optional
        What the coordinates are products with, in place of the pseudoinverse: their products with
        the directions are 1, with the others 0.

    Examples
    --------
    >>> basis = Directions([[0.6, 0.8]])
    >>> basis.coordinates(torch.tensor([10.0, 5.0]))  # 10 along it, (4, -3) is left
    tensor([10.,  4., -3.])
    """

    matrix: Any
    readings: Any = None
    kind = "direction"

    @functools.cached_property
    def writing(self) -> Tensor:
        """What one of each adds to a row, ``[directions, channels]``, float64."""
        found = _matrix(self.matrix, "directions")
        if torch.linalg.matrix_rank(found) < len(found):
            raise OptionError(
                f"of {len(found)} directions some are sums of others, or 0: only "
                f"{int(torch.linalg.matrix_rank(found))} are independent"
            )
        return found

    @functools.cached_property
    def reading(self) -> Tensor:
        """What the coordinates are, ``[channels, directions]``, float64."""
        if self.readings is None:
            inverse: Tensor = torch.linalg.pinv(self.writing)
            return inverse
        found = _matrix(self.readings, "readings").T
        one = torch.eye(len(self.writing), dtype=torch.float64)
        if found.T.shape != self.writing.shape or not torch.allclose(
            self.writing @ found, one, atol=1e-6
        ):
            raise OptionError(
                "readings= are not those of the directions: the product of each with its own must "
                "be 1, with the others 0"
            )
        return found

    @property
    def channels(self) -> int:
        """How many channels a layer has that it fits."""
        return self.writing.shape[1]

    @property
    def units(self) -> list[list[int]]:
        """One coordinate for each direction, and one for each channel of the remainder."""
        count, channels = self.writing.shape
        return [[i] for i in range(count)] + [list(range(count, count + channels))]

    @property
    def has_remainder(self) -> bool:
        """It has one."""
        return True

    def coordinates(self, channels: Tensor) -> Tensor:
        """Products with the pseudoinverse, then what they leave over."""
        z = channels @ self.reading.to(channels)
        return torch.cat([z, channels - z @ self.writing.to(channels)], -1)

    def from_coordinates(self, coordinates: Tensor) -> Tensor:
        """Sum of the directions and the remainder."""
        z, rest = coordinates[..., : len(self.writing)], coordinates[..., len(self.writing) :]
        return rest + z @ self.writing.to(coordinates)

    def arrays(self) -> Mapping[str, Tensor]:
        """The directions."""
        return {"matrix": self.writing, "readings": self.reading}


@dataclass(frozen=True)
class FoundBasis(ABC, Generic[B]):
    """A basis of a layer that is found from its rows, and the target's gradients by them.

    Parameters
    ----------
    count : int
        How many directions, or families.
    samples : int
        On how many samples of the data, drawn by the study's seed; of all positions of each.
    of : {"target", "outputs"}
        Whose gradients are meant: the target's, or those of each output of the model, at most 100.
    """

    count: int
    samples: int = 512
    of: Literal["target", "outputs"] = "target"

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", whole(self.count, "count", least=1))
        object.__setattr__(self, "samples", whole(self.samples, "samples", least=2))
        one_of(self.of, "of", ("target", "outputs"))

    @abstractmethod
    def find(self, rows: Tensor, slopes: Tensor, *, fewer: bool = False) -> B:
        """Find it.

        Parameters
        ----------
        rows, slopes : Tensor of float64, [rows, channels]
            What the layer passed on, and the gradients by that: of several outputs one below
            another.
        fewer : bool
            Whether fewer will do where there are no more.

        Raises
        ------
        OptionError
            There are fewer directions, or families, than were asked for, or none.
        """

    def as_json(self) -> dict[str, Any]:
        """Say what is asked for."""
        return {"kind": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True)
class FoundDirections(FoundBasis[Directions]):
    """Directions of a layer that are found."""

    def _first(self, matrix: Tensor, what: str, *, fewer: bool) -> Tensor:
        """Return right singular vectors of a matrix, those of the largest values first."""
        _, sizes, vectors = torch.linalg.svd(matrix, full_matrices=False)
        rank = int((sizes > SMALLEST * sizes[0]).sum()) if len(sizes) and sizes[0] > 0 else 0
        if rank < (1 if fewer else self.count):
            raise OptionError(
                f"there are {rank} directions {what} on these samples, fewer than count="
                f"{self.count}: ask for fewer, or pass more samples="
            )
        first: Tensor = vectors[: min(self.count, rank)]
        return first


def _matrix(values: Any, what: str) -> Tensor:
    """Read a matrix of numbers, as float64; a copy."""
    try:
        found = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise OptionError(f"{what}={shown(values)} are no matrix of numbers") from None
    if found.dim() != 2 or not found.numel():
        raise OptionError(f"{what} have shape {tuple(found.shape)}: pass [directions, channels]")
    if not found.isfinite().all():
        raise OptionError(f"{what} hold NaN or infinity")
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Families(Basis):
    """Channels that move together, those with a minus sign the other way.

    Parameters
    ----------
    members : sequence of mapping of int to float
        Of each family its channels, with 1 or -1.
    merges : sequence of (int, int)
        What families that were found are made of, for `opened`: a tree, numbered as SciPy does.
        Each merge joins two nodes; the channels are nodes 0, 1, …, and what merge i makes is node
        channels + i.

    Examples
    --------
    >>> families = Families([{0: 1, 2: -1}, {1: 1}])
    >>> families.units, families.coordinates(torch.tensor([1.0, 2.0, 3.0]))
    ([[0, 2], [1]], tensor([ 1.,  2., -3.]))
    """

    members: Sequence[Mapping[int, float]]
    merges: Sequence[tuple[int, int]] = ()
    kind = "family"

    @functools.cached_property
    def signs(self) -> Tensor:
        """1 or -1 of each channel, float64."""
        known: dict[int, float] = {}
        if not all(isinstance(family, Mapping) for family in self.members):
            raise OptionError(
                "families map channels to 1 or -1, as [{0: 1, 2: -1}, {1: 1}]; channels "
                "that all move one way may be groups="
            )
        for family in self.members:
            for channel, sign in family.items():
                if channel in known:
                    raise OptionError(f"families have channel {channel} twice: it moves with one")
                if sign not in (1, -1):
                    raise OptionError(f"families: the sign of channel {channel} is {sign}, not ±1")
                known[int(channel)] = float(sign)
        if not all(self.members) or sorted(known) != list(range(len(known))):
            raise OptionError(
                "families must be of all channels 0, 1, …, each in one, and none empty: make one "
                "of those that are left"
            )
        return torch.tensor([known[channel] for channel in range(len(known))], dtype=torch.float64)

    @property
    def channels(self) -> int:
        """How many channels a layer has that it fits."""
        return len(self.signs)

    @property
    def units(self) -> list[list[int]]:
        """Channels of each family."""
        return [[int(channel) for channel in family] for family in self.members]

    def opened(self, family: int, into: int = 2) -> Families:
        """Open a family into smaller ones, and at last into its channels.

        Parameters
        ----------
        family : int
            Which one, by its number.
        into : int
            How many; at most one for each of its channels.

        Returns
        -------
        Families
            The same but for that one: in its place are those that it is made of, the one with its
            first channel first; the numbers of those behind it rise. The first channel of each has
            a plus sign.

        Raises
        ------
        OptionError
            There is no such family, it has not so many channels, or nobody knows what it is made
            of: families that were given, not found, open into their channels alone.

        Examples
        --------
        >>> Families([{0: 1, 2: -1}, {1: 1}]).opened(0).units
        [[0], [2], [1]]
        """
        if whole(family, "family", least=0) >= len(self.members):
            raise OptionError(f"family={family}: there are {len(self.members)} families, from 0 on")
        opened = self.members[family]
        if whole(into, "into", least=1) > len(opened):
            raise OptionError(
                f"into={into}, but family {family} has {len(opened)} "
                f"channel{'s' * (len(opened) > 1)}: none opens into more families than that"
            )
        parts = {channel: [channel] for channel in opened}  # by the nodes of the tree
        for node, (a, b) in enumerate(self.merges, start=self.channels):
            if len(parts) > into and a in parts and b in parts:
                parts[node] = parts.pop(a) + parts.pop(b)
        if len(parts) > into:
            raise OptionError(
                f"into={into}: family {family} was given, not found, and opens into its "
                f"{len(opened)} channels alone: pass into={len(opened)}"
            )
        order = list(opened)
        smaller = sorted(sorted(map(order.index, part)) for part in parts.values())
        inside = [
            {order[i]: opened[order[i]] * opened[order[part[0]]] for i in part} for part in smaller
        ]
        members = [*self.members[:family], *inside, *self.members[family + 1 :]]
        return Families(members, self.merges)

    def coordinates(self, channels: Tensor) -> Tensor:
        """Channels, those with a minus sign turned round."""
        return channels * self.signs.to(channels)

    def from_coordinates(self, coordinates: Tensor) -> Tensor:
        """The same again."""
        return self.coordinates(coordinates)

    def arrays(self) -> Mapping[str, Tensor]:
        """Signs, and which channels are whose."""
        sizes = torch.tensor([len(unit) for unit in self.units])
        order = torch.tensor([channel for unit in self.units for channel in unit])
        return {"signs": self.signs, "sizes": sizes, "order": order}


Bases = Mapping[str, Any]
"""By pattern, what the neurons of layers that match are: a `Basis`, a matrix of directions, or what
finds one, as `Active` and `Clusters` do."""


def find_bases(
    asked: Bases, layers: Mapping[str, Layer], find: Callable[[str, FoundBasis[Basis]], Basis]
) -> dict[str, Basis]:
    """Read `basis=`: the basis of each layer that matches.

    Parameters
    ----------
    asked : mapping of str to basis
    layers : mapping of str to Layer
    find : callable
        From a layer's name and `FoundBasis` to what it is there.

    Raises
    ------
    OptionError
        It is no mapping, a pattern matches no layer, or a basis is none or does not fit; the
        message names the layer.
    """
    if not isinstance(asked, Mapping):
        raise OptionError(
            f"basis={shown(asked)} says not of which layers: pass {{'PATTERN': directions}}"
        )
    sites = {name: layer.site for name, layer in layers.items() if layer.neurons}
    found: dict[str, Basis] = {}
    for pattern, basis in asked.items():
        wanted = set(matches(str(pattern), set(sites.values())))
        if not wanted:
            raise OptionError(f"basis={pattern!r} matches no layer; there are {', '.join(sites)}")
        known = None if isinstance(basis, FoundBasis) else _read(basis)
        for name in (name for name, site in sites.items() if site in wanted):
            found[name] = find(name, basis) if known is None else known
            _check(found[name], layers[name])
    return found


def _read(basis: Any) -> Basis:
    return basis if isinstance(basis, Basis) else Directions(basis)


def _check(basis: Basis, layer: Layer) -> None:
    try:
        channels = basis.channels
    except OptionError as error:
        raise OptionError(f"basis of layer {layer.name!r}: {error}") from None
    if layer.routed:
        raise OptionError(
            f"basis of layer {layer.name!r}: it runs on rows that values choose, and keeps its "
            "channels"
        )
    if channels != layer.neurons:
        raise OptionError(
            f"basis of layer {layer.name!r} is of {channels} channels, but the layer has "
            f"{layer.neurons}"
        )


def describe_bases(asked: Bases) -> dict[str, Any]:
    """Say what `basis=` was as JSON holds it."""
    return {
        str(pattern): (basis if isinstance(basis, FoundBasis) else _read(basis)).as_json()
        for pattern, basis in asked.items()
    }
