"""Ablation by forward hooks: neurons of a model are ablated for the length of a block."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from neurograph.ablation.chosen_neurons import Neurons, features_of, groups_of, read_neurons
from neurograph.ablation.fillings import Filling, means, others, zeros
from neurograph.activations.profile import profile
from neurograph.data.source import Source
from neurograph.errors import OptionError
from neurograph.model.batch import shape_of
from neurograph.model.hooks import find_hook_point, passing, unknown_layer
from neurograph.model.layer_choice import INPUT_SIDE, find_sites, refuse_unsupported
from neurograph.model.layers import Layer, Layout, Neuron
from neurograph.model.module_types import has_channels_first, has_channels_last, is_convolution
from neurograph.model.neurons import Groups, find_groups, units_of
from neurograph.replay.recording import Recording, capture_few
from neurograph.utils.checks import one_of, whole

__all__ = ["How", "Masker", "check_how", "mask_neurons"]

How = Literal["zero", "mean", "resample"]
"""What ablating means: an output of 0, of the mean, or of another sample."""


@contextlib.contextmanager
def mask_neurons(
    model: nn.Module,
    neurons: Neurons,
    how: How = "zero",
    *,
    data: Any = None,
    groups: Mapping[str, Groups] | None = None,
    seed: int = 0,
) -> Iterator[nn.Module]:
    """Ablate neurons while inside the block; the model is as it was afterwards, come what may.

    Inside, the model is run as usual, by any code, with or without gradients. Blocks may be
    nested: inner ones act last.

    Parameters
    ----------
    model : Module
        Any eager model. Its modes, gradients and other hooks are left alone.
    neurons : iterable of Neuron or tuple, mapping of str to indices, or Circuit
        ``(layer, index)``: a channel, at all positions, of a layer named as in `layer_graph`
        (`cell#1` is the second call of `cell`, `fc:input` what arrives at `fc`, `input` the
        model's input). ``(layer, index, position)`` is one position of a sequence. Any module's
        path will do for a layer. Of a circuit, its neurons in hidden layers;
        ``list(circuit.graph)`` has its features too.
    how : {"zero", "mean", "resample"}
        ``"zero"``: they pass on 0. ``"mean"``: they pass on their mean over the data, at each
        position where shapes are fixed, else over all positions. ``"resample"``: each sample has
        the values that another, drawn at random for every run of the model, gives them; all
        neurons have them from the same one, so that what they say together stays plausible.
    data : data of any kind, optional
        As for `search`; needed for ``"mean"`` and ``"resample"`` (of at most 2,048 samples), and
        wherever an example is needed to tell how a tensor is laid out: for the model's inputs,
        positions and groups. With data, names and numbers are checked at once; without, of
        modules of unknown width, when the model is run.
    groups : mapping of str to groups, optional
        As for `search`: an index is that of a group in layers that match. By default the groups
        of the circuit.
    seed : int
        Chooses the samples of ``"resample"``.

    Yields
    ------
    Module
        The model.

    Raises
    ------
    OptionError
        An unknown layer or neuron, data that are needed but not given, or a layer that the model
        was run without calling.
    ModelError, DataError
        As for `profile`.

    Notes
    -----
    Mean and zero ablation are compared in Wang et al. 2023 (arXiv:2211.00593); resampling is
    that of causal scrubbing (Chan et al. 2022).

    Calls are counted from each call of the model, so run the model itself rather than parts of
    it. A search keeps what layers computed, not what hooks make of it: to search a model without
    some neurons, copy it and set their rows of weights and biases to 0.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_(), model[2].weight.fill_(1)
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> with mask_neurons(model, [("0", 1)]):
    ...     model(x).item()
    3.0
    >>> with mask_neurons(model, {"0": [1]}, "mean", data=torch.tensor([[0.0, 1.0], [0.0, 5.0]])):
    ...     model(x).item()
    6.0
    >>> model(x).item()
    7.0
    """
    names = None if data is None else Source(data, model).feature_names
    chosen = read_neurons(neurons, names=features_of(model, names))
    given = groups_of(neurons) if groups is None else groups
    masker = Masker(model, chosen, how, data=data, groups=given, seed=seed)
    with masker.masked(chosen, seed):
        yield model


def check_how(how: str) -> None:
    """Raise OptionError for a way of ablating that there is not."""
    one_of(how, "how", get_args(How))


class Masker:
    """A model made ready to have neurons of some layers ablated, again and again.

    Parameters
    ----------
    model : Module
    layers : iterable of str
        Names of the layers.
    how, data, groups
        As for `mask_neurons`.
    seed : int
        Chooses the samples kept for resampling.
    progress : bool, optional
        As for `profile`.

    Attributes
    ----------
    row_bytes : int
        Memory that one sample takes in a run; 0 without data.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str],
        how: How,
        *,
        data: Any = None,
        groups: Mapping[str, Groups] | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        check_how(how)
        refuse_unsupported(model)
        self.model, self.how = model, how
        self.places = {name: find_hook_point(name, model) for name in layers}
        self.layers: dict[str, Layer] = {}
        seed = whole(seed, "seed", least=0)
        self.groups: dict[str, list[list[int]]] = {}
        self.row_bytes = 0
        self._filling: Filling = zeros
        if data is None:
            self._check_without(groups)
            return
        choice = self._choice()
        recording = capture_few(model, Source(data, model), find_sites(model, choice))
        self.row_bytes = recording.row_bytes
        self.layers = {name: self._layer(name, recording) for name in self.places}
        if groups is not None:
            found = find_groups(groups, recording.layers, model)
            self.groups = {name: channels for name, (_, channels) in found.items()}
        if how == "mean":
            profiled = profile(
                model, data, layers=choice, levels=(0.5,), seed=seed, progress=progress
            )
            self._filling = means(profiled, self.layers.values())
        elif how == "resample":
            self._filling = others(model, data, self.layers, self.places, self.row_bytes, seed)

    def _check_without(self, groups: object) -> None:
        if self.how in ("mean", "resample"):
            raise OptionError(f"how={self.how!r} needs data=: the samples that values come from")
        for place in self.places.values():
            if place.path is None:
                raise OptionError(
                    f"{place.layer!r} is an input of the model: pass data=, which tells along "
                    "which dimension its features lie"
                )
        if groups is not None and not (isinstance(groups, Mapping) and not groups):
            raise OptionError("groups= needs data=, which tells how many channels layers have")

    def _choice(self) -> list[str] | None:
        """`layers=` with which these are layers; None for those that are by default."""
        usual = find_sites(self.model).outputs
        places = [place for place in self.places.values() if place.path is not None]
        if all(place.path in usual and not place.side for place in places):
            return None
        names = (f"{place.path}{INPUT_SIDE if place.side else ''}" for place in places)
        return list(dict.fromkeys(names))

    def _layer(self, name: str, recording: Recording) -> Layer:
        if name not in recording.layers:
            raise unknown_layer(name, recording.layers)
        if not recording.layers[name].neurons:
            raise OptionError(
                f"layer {name!r} has no neurons: its values are no floating-point numbers, or the "
                "same for every sample"
            )
        if recording.layers[name].routed and self.how == "resample":
            raise OptionError(
                f"how='resample' cannot ablate layer {name!r}, which runs on rows that values "
                "choose: other samples may have none; use how='mean' or 'zero'"
            )
        return recording.layers[name]

    # -- which neurons ---------------------------------------------------------------------------

    def check(self, chosen: Mapping[str, Sequence[Neuron]]) -> None:
        """Raise OptionError for the first neuron that the model has not."""
        for layer, neurons in chosen.items():
            self._check(layer, neurons)

    def _check(self, layer: str, neurons: Sequence[Neuron]) -> None:
        groups, known = self.groups.get(layer), self.layers.get(layer)
        width = self._width(layer) if known is None else known.neurons
        count = width if groups is None else len(groups)
        for neuron in neurons:
            if count is not None and neuron.index >= count:
                raise _no_neuron(neuron, f"{count} neurons")
            if neuron.position is None:
                continue
            if known is None:
                raise OptionError(
                    f"one position of layer {layer!r} needs data=, which tells how it lies: leave "
                    "positions out"
                )
            length = _positions(known)
            if neuron.position >= length:
                raise _no_neuron(neuron, f"{length or 'no'} positions")

    def _elements(self, layer: str, neurons: Sequence[Neuron]) -> Tensor:
        """Mark the elements of a row that neurons are, ``[*shape]``; or channels, at any position.

        Channels are marked in a shape that fits rows of other numbers of positions, too.
        """
        known, groups = self.layers[layer], self.groups.get(layer)
        marked = torch.zeros(known.shape, dtype=torch.bool)
        for each in {neuron.position is not None for neuron in neurons}:
            units = units_of(known, groups, "channel", each)
            flags = torch.zeros(len(units), dtype=torch.bool)
            own = [neuron for neuron in neurons if (neuron.position is not None) == each]
            flags[[units.unit(neuron) for neuron in own]] = True
            marked |= units.mask(flags).view(known.shape)
        if any(neuron.position is not None for neuron in neurons):
            return marked
        channels = marked.movedim(known.channel_dim - 1, 0).reshape(known.neurons, -1).any(1)
        return channels.view(-1, *[1] * (len(known.shape) - known.channel_dim))

    @property
    def _has_maps(self) -> bool:
        return any(has_channels_first(module) for module in self.model.modules())

    def _width(self, layer: str) -> int | None:
        """Neurons of a layer as far as its module tells without being run."""
        place = self.places[layer]
        module: Any = self.model.get_submodule(place.path or "")
        if place.part is not None:
            return None
        if isinstance(module, nn.Linear):
            return module.in_features if place.side else module.out_features
        if is_convolution(module):
            return int(module.in_channels if place.side else module.out_channels)
        return None

    # -- ablating --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def masked(self, chosen: Mapping[str, Sequence[Neuron]], seed: int) -> Iterator[None]:
        """Ablate some neurons for the length of a block; the seed is that of resampling."""
        self.check(chosen)
        chosen = {layer: neurons for layer, neurons in chosen.items() if neurons}
        marked = {n: self._elements(n, some) for n, some in chosen.items() if n in self.layers}
        at_positions = {n.layer for some in chosen.values() for n in some if n.position is not None}
        places = {layer: self.places[layer] for layer in chosen}
        fill = self._filling(seed)

        def change(layer: str, tensor: Tensor) -> Tensor:
            known = self.layers.get(layer)
            lying = Layout()
            if known is not None and not known.routed:
                lying = known.layout.fitted(tensor, log.size)
            rows = lying.rows(tensor)
            if known is None:
                ablated = self._channels(layer, chosen[layer], rows)
            else:
                ablated = marked[layer].to(rows.device)
                if layer in at_positions and ablated.shape != rows.shape[1:]:
                    raise OptionError(
                        f"layer {layer!r} is {tuple(rows.shape[1:])} here but "
                        f"{tuple(ablated.shape)} on data=: positions do not fit"
                    )
            values = torch.where(ablated, fill(layer, rows, log.runs), rows)
            changed = lying.tensor(values)
            return changed.contiguous() if tensor.is_contiguous() else changed

        with passing(self.model, places.values(), change) as log:
            yield
        routed = {name for name, layer in self.layers.items() if layer.routed}
        missed = [layer for layer in chosen if layer not in log.met | routed]
        if log.runs and missed:
            raise OptionError(
                f"layer {missed[0]!r} was to be ablated, but the model was run without calling it"
            )

    def _channels(self, layer: str, neurons: Sequence[Neuron], rows: Tensor) -> Tensor:
        """Mark the channels that neurons are, as far as a module tells where it has them."""
        behind = 0
        module = self.model.get_submodule(self.places[layer].path or "")
        if is_convolution(module):
            behind = len(module.kernel_size)  # type: ignore[arg-type]
        elif has_channels_first(module):
            behind = rows.dim() - 2
        elif rows.dim() > 2 and not has_channels_last(module) and self._has_maps:
            raise OptionError(
                f"which dimension of layer {layer!r} ({shape_of(rows)}) its channels are "
                "cannot be known without data=: pass the data"
            )
        ablated = torch.zeros(rows.shape[-1 - behind], dtype=torch.bool, device=rows.device)
        last = max(neurons, key=lambda neuron: neuron.index)
        if last.index >= len(ablated):
            raise _no_neuron(last, f"{len(ablated)} neurons")
        ablated[[neuron.index for neuron in neurons]] = True
        return ablated.view(-1, *[1] * behind)


def _no_neuron(neuron: Neuron, there: str) -> OptionError:
    return OptionError(f"the model has no neuron {neuron}: layer {neuron.layer!r} has {there}")


def _positions(layer: Layer) -> int:
    """How many positions neurons can be at; 0 where the layer is no sequence."""
    return math.prod(layer.shape) // max(layer.neurons, 1) if layer.is_sequence else 0
