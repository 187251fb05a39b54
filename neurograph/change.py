"""How far a circuit has moved from another of the same network: between two epochs, say."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from neurograph.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.selection import SIGNS

__all__ = ["Change", "circuit_change", "stronger"]


@dataclass(frozen=True)
class Change:
    """How alike two circuits of one architecture are, neuron by neuron; 1 everywhere if equal.

    Attributes
    ----------
    neuron_jaccard, edge_jaccard : float
        Of the neurons, and edges, that either circuit kept, the share that both kept (the Jaccard
        index), in 0..1; 1 where neither kept any.
    effect_spearman : float
        Spearman's rank correlation, in -1..1, of the effects of all neurons that both searches
        scored, kept or not. A neuron that both signs' searches scored counts once, with the
        stronger effect. NaN with fewer than two neurons, or where all effects are equal.
    sign_agreement : float
        Of the neurons that both circuits kept, the share that pushes the target the same way, in
        0..1; NaN where there are none.
    """

    neuron_jaccard: float
    edge_jaccard: float
    effect_spearman: float
    sign_agreement: float


def circuit_change(before: Circuit, after: Circuit) -> Change:
    """Compare two circuits of one architecture; a neuron is the same where its name is.

    Parameters
    ----------
    before, after : Circuit
        Found in the same layers, in any state of the weights.

    Returns
    -------
    Change

    Raises
    ------
    OptionError
        Their layers, or how many neurons these have, differ.

    Examples
    --------
    >>> import torch, neurograph as ng
    >>> from torch import nn
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> model, X = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.rand(50, 3)
    >>> up = ng.search(model, X, target=1)
    >>> down = ng.search(model, X, target=0)
    >>> change = circuit_change(up, down)
    >>> change.neuron_jaccard, change.sign_agreement, round(change.effect_spearman, 6)
    (1.0, 0.0, -1.0)
    """
    _check_layers(before, after)
    one, other = before.graph.nodes, after.graph.nodes
    both = one.keys() & other.keys()
    same = sum(one[n]["effect"] * other[n]["effect"] > 0 for n in both)
    return Change(
        neuron_jaccard=_jaccard(one.keys(), other.keys()),
        edge_jaccard=_jaccard(before.graph.edges.keys(), after.graph.edges.keys()),
        effect_spearman=_spearman(*_scored_by_both(before, after)),
        sign_agreement=same / len(both) if both else math.nan,
    )


def _check_layers(before: Circuit, after: Circuit) -> None:
    one, other = ({n: d["neurons"] for n, d in c.layers.nodes(data=True)} for c in (before, after))
    for layer in {**one, **other}:
        if one.get(layer) != other.get(layer) or layer not in one or layer not in other:
            told = [f"{s[layer]} neurons" if layer in s else "no such layer" for s in (one, other)]
            raise OptionError(
                f"the circuits are not of one architecture: of {layer!r} the first has {told[0]}, "
                f"the second {told[1]}; search both with the same layers= and groups="
            )


def _jaccard(one: Set[object], other: Set[object]) -> float:
    either = len(one | other)
    return len(one & other) / either if either else 1.0


def _scored_by_both(
    before: Circuit, after: Circuit
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Effects of the neurons of all layers that both circuits have scores of, ``[neurons]``."""
    parts: tuple[list[NDArray[np.float64]], ...] = ([], [])
    for layer in (name for name in before.scores if name in after.scores):
        pair = [stronger(circuit, layer) for circuit in (before, after)]
        if pair[0].shape != pair[1].shape:
            raise OptionError(
                f"the circuits have {pair[0].shape} and {pair[1].shape} neurons and positions at "
                f"{layer!r}: search both on samples of the same length"
            )
        for part, effects in zip(parts, pair, strict=True):
            part.append(effects.flatten())
    one, other = (np.concatenate(part) if part else np.empty(0) for part in parts)
    return one, other


def stronger(circuit: Circuit, layer: str) -> NDArray[np.float64]:
    """Effects of all neurons of a layer, by the search of the sign in which each is stronger."""
    table = circuit.scores[layer]
    found = np.stack([table[sign] for sign in SIGNS if sign in table])
    strongest = np.abs(found).argmax(axis=0)
    effects: NDArray[np.float64] = np.take_along_axis(found, strongest[None], axis=0)[0]
    return effects


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    # SciPy warns of what this answers.
    if len(one) < 2 or (one == one[0]).all() or (other == other[0]).all():
        return math.nan
    return float(spearmanr(one, other).statistic)
