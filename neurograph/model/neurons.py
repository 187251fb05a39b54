"""Neurons as sets of elements of a layer's rows: channels, groups of them, positions."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.errors import OptionError
from neurograph.model.layer_choice import INPUT_SIDE, matches
from neurograph.model.layers import Layer, Neuron
from neurograph.model.neuron_index import neuron_at, number_of
from neurograph.utils.checks import is_number, shown, whole

__all__ = [
    "Channels",
    "Groups",
    "Units",
    "channels_of",
    "describe_groups",
    "doubtful_heads",
    "find_groups",
    "units_of",
]

Groups = str | int | Sequence[Sequence[int]]
"""How channels are taken together: attention heads, a number of equal groups, or lists of them."""

Channels = Sequence[Sequence[int]]
"""The channels of each neuron of a layer."""

# What libraries call the projections from which heads come, and the one behind them.
_OF_HEADS = re.compile(
    r"(?i)((to_|w)?_?(q|k|v|qkv|kv|query|key|value)(_?(proj|lin|linear|layer))?s?|query_key_value"
    r"|c_attn|in_proj)"
)
_BEHIND_HEADS = re.compile(r"(?i)(to_|w)?_?(o|out)(_?(proj|lin|linear|layer))?|c_proj|dense|proj")
_HEAD_SIZES = "head_dim attention_head_size key_value_proj_dim d_kv".split()
_HEAD_COUNTS = "num_heads num_attention_heads n_heads n_head nhead".split()
_ALL = slice(None)
_WIDTHS = "embed_dim hidden_size d_model n_embd dim".split()


@dataclass(frozen=True, eq=False)
class Units:
    """The neurons of one layer.

    Attributes
    ----------
    layer : str
    elements : Tensor of int64, [elements of all neurons]
        Which elements of a flattened row the neurons are, one neuron after the other.
    sizes : Tensor of int64, [neurons]
        How many of them each neuron has.
    width : int
        How many elements a row has.
    kind : str
        ``channel``, ``group``, ``head``, or what the neurons of a basis are.
    positions : int or None
        How many positions have neurons of their own; None where a neuron spans all.
    has_remainder : bool
        Whether the last of them is what the others leave over.
    """

    layer: str
    elements: Tensor
    sizes: Tensor
    width: int
    kind: str = "channel"
    positions: int | None = None
    has_remainder: bool = False

    @property
    def plain(self) -> bool:
        """Whether each neuron is one channel at all positions."""
        return self.kind == "channel" and self.positions is None

    def __len__(self) -> int:
        return len(self.sizes)

    def widest(self, neurons: Any = _ALL) -> int:
        """How many elements the widest of some neurons has; 0 if there are none."""
        if self._table is not None:
            return self._table.shape[1]
        sizes = self.sizes[neurons]
        return int(sizes.max()) if sizes.numel() else 0

    def members(self, neurons: Any = _ALL, width: int | None = None) -> Tensor:
        """Say which elements of a row some neurons are.

        Parameters
        ----------
        neurons : index, optional
            As tensors take it; all, if none is given.
        width : int, optional
            As that of the widest of them, or more.

        Returns
        -------
        Tensor of int64, [neurons, width]
            Neurons of fewer elements have their last one several times.
        """
        if self._table is not None:
            return self._table[neurons]
        places, sizes = self._places(neurons, width)
        first = (self.sizes.cumsum(0) - self.sizes)[neurons]
        return self.elements[first[..., None] + places.clamp_max(sizes - 1)]

    def once(self, neurons: Any = _ALL, width: int | None = None) -> Tensor:
        """For each of the members, 1, or 0 where it is a further time the last one."""
        if self._table is not None:
            return torch.ones_like(self._table[neurons])
        places, sizes = self._places(neurons, width)
        return (places < sizes).to(self.elements)

    def _places(self, neurons: Any, width: int | None) -> tuple[Tensor, Tensor]:
        width = self.widest(neurons) if width is None else width
        places = torch.arange(width, device=self.elements.device)
        return places, self.sizes[neurons][..., None]

    @functools.cached_property
    def _table(self) -> Tensor | None:
        """Members of all neurons, where all have equally many."""
        count = len(self)
        if not count or bool((self.sizes == self.sizes[0]).all()):
            return self.elements.view(count, -1) if count else self.elements.view(0, 0)
        return None

    def alike(self, neurons: Sequence[int]) -> list[Tensor]:
        """Part neurons by how many elements they have, where one table of all would be mostly air.

        Returns
        -------
        list of Tensor of int64
            Places among `neurons`: those of one part have about as many elements.
        """
        sizes = self.sizes[list(neurons)]
        every = torch.arange(len(sizes), device=sizes.device)
        if self._table is not None or self.widest(list(neurons)) * len(sizes) <= 4 * sizes.sum():
            return [every]
        scale = sizes.double().log2().floor()
        return [every[scale == one] for one in torch.unique(scale)]

    def sums(self, values: Tensor, neurons: Sequence[int] | None = None) -> Tensor:
        """Sum values over the elements of each of some neurons.

        Parameters
        ----------
        values : Tensor, [samples, elements]
        neurons : sequence of int, optional
            All, if none is given.

        Returns
        -------
        Tensor, [samples, neurons]
        """
        if self._table is not None:
            members = self._table if neurons is None else self._table[list(neurons)]
            return values[:, members].sum(2)
        wanted = range(len(self)) if neurons is None else neurons
        found = values.new_zeros(len(values), len(wanted))
        for some in self.alike(wanted):
            which = torch.as_tensor(wanted, device=some.device)[some]
            found[:, some] = (values[:, self.members(which)] * self.once(which)).sum(2)
        return found

    @functools.cached_property
    def owner(self) -> Tensor:
        """The neuron that each element of a row belongs to, -1 where it is none's, ``[elements]``.

        No element is of two neurons.
        """
        owner = torch.full((self.width,), -1, device=self.elements.device)
        numbers = torch.arange(len(self), device=owner.device)
        owner[self.elements] = numbers.repeat_interleave(self.sizes)
        return owner

    def mask(self, flags: Tensor) -> Tensor:
        """Mark the elements of a row that belong to some neurons.

        Parameters
        ----------
        flags : Tensor of bool, [..., neurons]

        Returns
        -------
        Tensor of bool, [..., elements]
            Each element has its neuron's flag; False where it is none's.
        """
        if not len(self):
            return flags.new_zeros(*flags.shape[:-1], self.width)
        flags = flags.to(self.owner.device)
        return flags[..., self.owner.clamp_min(0)] & (self.owner >= 0)

    def neuron(self, unit: int) -> Neuron:
        """Name the neuron with a number."""
        return neuron_at(self.layer, unit, self.positions)

    def unit(self, neuron: Neuron) -> int:
        """Number a neuron; OptionError if the layer has none such."""
        position, positions = neuron.position, self.positions
        if (position is None) == (positions is None):
            unit = number_of(neuron, positions)
            if 0 <= unit < len(self) and 0 <= (position or 0) < (positions or 1):
                return unit
        raise OptionError(f"the model has no neuron {neuron}")

    def name(self, neuron: Neuron, tokens: Sequence[str] | None) -> str:
        """How a neuron is called: heads and tokens by name."""
        if self.kind == "channel" and neuron.position is None:
            return str(neuron)
        which = f"[{neuron.index}]" if self.kind == "channel" else f" {self.kind} {neuron.index}"
        if self.has_remainder and neuron.index == len(self) // (self.positions or 1) - 1:
            which = " remainder"
        if neuron.position is None:
            return f"{self.layer}{which}"
        token = f" {tokens[neuron.position]!r}" if tokens else ""
        return f"{self.layer}{which} @{neuron.position}{token}"


def units_of(layer: Layer, groups: Sequence[Sequence[int]] | None, kind: str, each: bool) -> Units:
    """Neurons of a layer: its channels or groups of them, at all positions or at each.

    Parameters
    ----------
    layer : Layer
    groups : sequence of sequence of int, optional
        Channels of each group.
    kind : str
        What the groups are.
    each : bool
        Whether every position of a sequence has neurons of its own.

    Examples
    --------
    >>> layer = Layer("l", "l", "l", "Linear", (2, 3), 2, 3, 0)  # 2 positions of 3 channels
    >>> units_of(layer, None, "channel", False).members().tolist()
    [[0, 3], [1, 4], [2, 5]]
    >>> units_of(layer, [[0, 1], [2]], "group", True).members().tolist()
    [[0, 1], [3, 4], [2, 2], [5, 5]]
    """
    size = 1
    for length in layer.shape:
        size *= length
    elements = torch.arange(size).view(layer.shape).movedim(layer.channel_dim - 1, 0)
    by_channel = elements.reshape(layer.neurons, size // max(layer.neurons, 1))
    positions = by_channel.shape[1] if each and layer.is_sequence else None
    if groups is None:
        chosen, lengths = by_channel, [1] * len(by_channel)
    else:
        chosen = by_channel[torch.tensor([channel for group in groups for channel in group])]
        lengths = [len(group) for group in groups]
    sizes = torch.tensor(lengths, dtype=torch.int64)
    if positions is None:
        sizes = sizes * by_channel.shape[1]
        return Units(layer.name, chosen.flatten(), sizes, size, kind)
    each_position = [part.T.flatten() for part in torch.split(chosen, lengths)]
    found = torch.cat(each_position) if each_position else chosen.flatten()
    return Units(layer.name, found, sizes.repeat_interleave(positions), size, kind, positions)


def channels_of(units: Units, layer: Layer) -> Channels | None:
    """Channels of each of a layer's neurons, all positions together; None if each is a channel.

    Examples
    --------
    >>> layer = Layer("l", "l", "l", "Linear", (2, 3), 2, 3, 0)  # 2 positions of 3 channels
    >>> channels_of(units_of(layer, [[0, 2], [1]], "group", True), layer)
    [[0, 2], [1]]
    """
    if units.kind == "channel":
        return None
    inner = math.prod(layer.shape[layer.channel_dim :])
    every = range(0, len(units), units.positions or 1)
    return [torch.unique(units.members(i) // inner % layer.neurons).tolist() for i in every]


def find_groups(
    asked: Mapping[str, Groups], layers: Mapping[str, Layer], model: nn.Module
) -> dict[str, tuple[str, list[list[int]]]]:
    """Read `groups=`: what the groups of each matching layer are, and the channels of each.

    Raises
    ------
    OptionError
        It is no mapping, a pattern matches no layer, channels do not divide, or nothing says how
        large heads are.
    """
    if not isinstance(asked, Mapping):
        raise OptionError(
            f"groups={shown(asked)} says not of which layers: pass {{'PATTERN': GROUPS}}"
        )
    sites = {
        name: layer.site for name, layer in layers.items() if layer.neurons and not layer.is_input
    }
    found: dict[str, tuple[str, list[list[int]]]] = {}
    for pattern, groups in asked.items():
        wanted = set(matches(str(pattern), set(sites.values())))
        if not wanted:
            raise OptionError(f"groups={pattern!r} matches no layer; there are {', '.join(sites)}")
        for name, site in sites.items():
            if site in wanted:
                found[name] = _read(groups, layers[name], model)
    return found


def describe_groups(asked: Mapping[str, Groups]) -> dict[str, Any]:
    """Say what `groups=` was as JSON holds it: arrays and ranges as lists."""
    return {
        pattern: groups if isinstance(groups, str) else _number_or_lists(groups)
        for pattern, groups in asked.items()
    }


def _number_or_lists(groups: Any) -> int | list[list[int]]:
    return int(groups) if is_number(groups) else _lists(groups)


def _read(groups: Groups, layer: Layer, model: nn.Module) -> tuple[str, list[list[int]]]:
    channels = layer.neurons
    if isinstance(groups, str) and groups == "heads":  # an array would compare by elements
        _check_heads(layer, model)
        size = _head_size(layer, model)
        return "head", _equal(layer, channels // size if channels % size == 0 else 0, size)
    if is_number(groups):
        groups = whole(groups, "groups")
        count = groups if groups > 0 and channels % groups == 0 else 0
        return "group", _equal(layer, count, channels // count if count else 0)
    lists = _lists(groups)
    if not lists or not all(lists) or any(not 0 <= c < channels for g in lists for c in g):
        raise OptionError(
            f"groups={shown(groups)} for layer {layer.name!r}: pass 'heads', a number of groups, "
            f"or lists of its channels 0…{channels - 1}"
        )
    known = Counter(channel for group in lists for channel in group)
    again = next((channel for channel, count in known.items() if count > 1), None)
    if again is not None:
        raise OptionError(
            f"groups= for layer {layer.name!r} have channel {again} twice: a channel moves with "
            "one group"
        )
    return "group", lists


def _lists(groups: Any) -> list[list[int]]:
    """Read lists of channels; none where it is something else."""
    try:
        return [[operator.index(channel) for channel in group] for group in groups]
    except TypeError:
        return []


def _equal(layer: Layer, count: int, size: int) -> list[list[int]]:
    if not count:
        raise OptionError(
            f"the {layer.neurons} channels of layer {layer.name!r} cannot be divided so: pass "
            "lists of channels in groups="
        )
    return [list(range(start, start + size)) for start in range(0, count * size, size)]


def doubtful_heads(
    groups: Mapping[str, tuple[str, Sequence[Sequence[int]]]], layers: Mapping[str, Layer]
) -> Iterator[str]:
    """Say of which layers only the user says that their channels lie head by head."""
    for name, (kind, _) in groups.items():
        layer, part = layers[name], layers[name].module.split(".")[-1]
        behind = layer.call.endswith(INPUT_SIDE)
        by_name = _is_behind_heads(layer.module) if behind else _OF_HEADS.fullmatch(part)
        if kind == "head" and not by_name:
            yield (
                f"neighbouring channels of {name!r} are taken for heads, which neither its name "
                "nor its side says: those of queries, keys and values have heads, and the input "
                "side of the projection behind them"
            )


def _is_behind_heads(path: str) -> bool:
    """Whether a module is called as the projection behind the heads of attention is."""
    own = path.split(".")[-1]
    certain = own in ("o_proj", "out_proj") or "att" in path.lower()
    return bool(_BEHIND_HEADS.fullmatch(own)) and certain


def _check_heads(layer: Layer, model: nn.Module) -> None:
    """OptionError for a side of a module where all heads are mixed."""
    module = model.get_submodule(layer.module)
    own = layer.module.split(".")[-1]
    behind = [n for n, _ in module.named_modules() if _BEHIND_HEADS.fullmatch(n.split(".")[-1])]
    if isinstance(module, nn.MultiheadAttention):
        advice = (
            "nn.MultiheadAttention mixes its heads before it returns. Write attention with a "
            "projection that is called (a Linear), and take the input side of that"
        )
    elif behind and not _BEHIND_HEADS.fullmatch(own):
        advice = f"take the input side of its projection, '{layer.module}.{behind[0]}{INPUT_SIDE}'"
    elif _BEHIND_HEADS.fullmatch(own) and not layer.call.endswith(INPUT_SIDE):
        advice = "take the input side of the projection behind the heads of attention"
        if _is_behind_heads(layer.module):
            advice = f"take its input side, '{layer.module}{INPUT_SIDE}'"
    else:
        return
    raise OptionError(
        f"groups='heads' for layer {layer.name!r}: its channels are no heads, as all heads are "
        f"mixed there: {advice}"
    )


def _head_size(layer: Layer, model: nn.Module) -> int:
    """Channels of one attention head, from the modules around the layer or their config."""
    parts = layer.module.split(".")
    for depth in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        for source in (module, getattr(module, "config", None)):
            of_values = getattr(source, "v_head_dim", None)
            if layer.call.endswith(INPUT_SIDE) and type(of_values) is int:
                return of_values
            size = _size_in(source)
            if size:
                return size
    raise OptionError(
        f"nothing around layer {layer.name!r} says how large its heads are: pass the number of "
        "groups, or lists of channels, in groups="
    )


def _size_in(source: Any) -> int | None:
    def number(names: Sequence[str]) -> int | None:
        values = (getattr(source, name, None) for name in names)
        return next((v for v in values if type(v) is int and v > 0), None)

    size, count, width = number(_HEAD_SIZES), number(_HEAD_COUNTS), number(_WIDTHS)
    if size:
        return size
    return width // count if count and width else None
