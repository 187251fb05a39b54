"""Activation matching: neurons matched by what they do on the same data."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from neurograph.circuit.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.matching.alignment import Align, align_layers
from neurograph.matching.assignment import assign
from neurograph.matching.layers_of import is_given, layers_with_neurons, size_of
from neurograph.matching.matching import LayerMatch, Matching
from neurograph.matching.paired import side_by_side
from neurograph.matching.similarity import LayerPair, LayerSimilarity, layer_cka, measure_pairs

__all__ = ["by_activation", "with_cka"]


def by_activation(
    a: Circuit,
    b: Circuit,
    data: Any = None,
    *,
    align: Align = "auto",
    samples: int = 1000,
    least: float = 0.0,
    seed: int = 0,
    progress: bool | None = None,
) -> Matching:
    """Match neurons whose activations go together on the same data.

    Layers are aligned first, see `align_layers`. Of each pair of layers, neurons are paired so that
    the sum of similarities is greatest. For channels that is Pearson's correlation, over all
    positions that hold something where both layers have the same ones, else of the means over them;
    for groups of channels the root of the RV coefficient. What does not vary on the data has no
    partner. Features, and outputs, go by their index if there are as many in both models.

    Parameters
    ----------
    a, b : Circuit
        Attached to their models.
    data : as for `search`, optional
        By default a's own.
    align : {"auto", "depth", "cka"}
        How layers are aligned: by name where all have namesakes, else by CKA; by relative depth;
        or by CKA in any case.
    samples : int
        How many samples are drawn from the data, at most.
    least : float
        How similar two neurons must be to be paired, more than this; from 0 to below 1.
    seed : int
        Chooses the samples.
    progress : bool, optional
        Show progress bars; by default where a person watches.

    Raises
    ------
    OptionError
        A circuit has no model, an option means nothing, or positions of a layer have neurons of
        their own in one circuit alone.
    ModelError, DataError
        The weights changed since the search, or the data cannot be used.

    Notes
    -----
    Matching by correlation is that of Li, Yosinski, Clune, Lipson & Hopcroft (2015,
    arXiv:1511.07543).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from neurograph import search
    >>> model, other = (nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)) for _ in "ab")
    >>> weights = model.state_dict().items()
    >>> turned = {name: w.flip(0 if name[0] == "0" else -1) for name, w in weights}
    >>> _ = other.load_state_dict(turned)
    >>> data = torch.randn(50, 2)
    >>> a, b = (search(m, data, 0, scorer="gradient", paths=0) for m in (model, other))
    >>> by_activation(a, b).layers[1].pairs.tolist()
    [[0, 3], [1, 2], [2, 1], [3, 0]]
    """
    if not 0 <= least < 1:
        raise OptionError(f"least={least} must lie in [0, 1)")
    with side_by_side(a, b, data, samples=samples, seed=seed, progress=progress) as models:
        aligned = align_layers(a, b, align, functools.partial(layer_cka, models))
        for pair in aligned:
            _check_positions(a, b, pair)
        given = {pair for pair in aligned if _by_index(a, b, pair)}
        measured = measure_pairs(models, aligned, set(aligned) - given)
        # By map, which lets go of each matrix before the next pair is summed up.
        matches = tuple(map(functools.partial(_match, a, least), measured))
    return Matching("activation", matches)


def with_cka(
    matching: Matching,
    a: Circuit,
    b: Circuit,
    data: Any = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
) -> Matching:
    """Return a matching with the CKA of its layers; parameters and errors as for `by_activation`.

    Similarities of neurons stay as they are.
    """
    whole_a, whole_b = set(layers_with_neurons(a)), set(layers_with_neurons(b))
    pairs = [(m.a, m.b) for m in matching.layers if m.a in whole_a and m.b in whole_b]
    with side_by_side(a, b, data, samples=samples, seed=seed, progress=progress) as models:
        cka = {x.layers: _within(x.cka) for x in measure_pairs(models, pairs, ())}
    layers = (replace(m, cka=cka.get((m.a, m.b), math.nan)) for m in matching.layers)
    return replace(matching, layers=tuple(layers))


def _match(a: Circuit, least: float, pair: LayerSimilarity) -> LayerMatch:
    """Pair the neurons of two layers; by index where nothing else was measured."""
    cka = _within(pair.cka)
    if pair.similarity is None:
        every = range(size_of(a, pair.layers[0])[0])
        indices = zip(every, every, strict=True)
        return replace(LayerMatch.plain(*pair.layers, indices), cka=cka)
    made = assign(pair.similarity, least=least, overwrite=True)
    return LayerMatch(*pair.layers, made.pairs, made.similarity, made.tied, made.ties, cka)


def _by_index(a: Circuit, b: Circuit, pair: LayerPair) -> bool:
    """Whether task and data say which neuron is which."""
    one, other = pair
    given = is_given(a.layers, one) and is_given(b.layers, other)
    return given and size_of(a, one)[0] == size_of(b, other)[0]


def _check_positions(a: Circuit, b: Circuit, pair: LayerPair) -> None:
    positions = [size_of(circuit, layer)[1] for circuit, layer in zip((a, b), pair, strict=True)]
    if (positions[0] is None) != (positions[1] is None):
        single = pair[positions[0] is None]
        raise OptionError(
            f"positions of layer {single!r} have neurons of their own in one circuit alone: search "
            "both with positions='each', or neither"
        )


def _within(cka: float) -> float:
    """An estimate of what lies in 0..1."""
    return float(np.clip(cka, 0, 1))
