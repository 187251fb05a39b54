"""Layer alignment: which layer of one model goes with which of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurograph.circuit.circuit import Circuit
from neurograph.errors import OptionError
from neurograph.matching.layers_of import is_end, layers_with_neurons
from neurograph.model.layers import INPUT_TYPE

__all__ = ["ALIGNMENTS", "Align", "align_layers", "closeness_in_depth", "pairs_in_order"]

Align = Literal["auto", "depth", "cka"]
ALIGNMENTS: tuple[Align, ...] = ("auto", "depth", "cka")

Similarity = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]
"""From layers of a and of b to how alike they are, ``[layers of a, layers of b]``."""


def align_layers(a: Circuit, b: Circuit, align: Align, cka: Similarity) -> list[tuple[str, str]]:
    """Pair the layers of two models that have neurons, each at most once, in the order of a's.

    Inputs go with inputs and outputs with outputs, in order. The others go with their namesakes
    for ``"auto"``, where all have one; else so that both models' order is kept and the sum of
    similarities is greatest: of how alike they are, or for ``"depth"`` of how deep they lie.
    What has no partner then is left out.

    Parameters
    ----------
    a, b : Circuit
    align : {"auto", "depth", "cka"}
    cka : callable
        Asked only where it decides.

    Raises
    ------
    OptionError
        Another `align`.
    """
    if align not in ALIGNMENTS:
        raise OptionError(f"align={align!r} is none of {', '.join(map(repr, ALIGNMENTS))}")
    (inputs, hidden, outputs), others = _by_kind(a), _by_kind(b)
    pairs = [*zip(inputs, others[0], strict=False), *zip(outputs, others[2], strict=False)]
    if align == "auto" and set(hidden) == set(others[1]):
        pairs += [(name, name) for name in hidden]
    elif hidden and others[1]:
        if align == "depth":
            similarity = closeness_in_depth(len(hidden), len(others[1]))
        else:
            similarity = cka(hidden, others[1])
        pairs += [(hidden[i], others[1][j]) for i, j in pairs_in_order(similarity)]
    place = {name: i for i, name in enumerate(a.layers)}
    return sorted(pairs, key=lambda pair: place[pair[0]])


def _by_kind(circuit: Circuit) -> tuple[list[str], list[str], list[str]]:
    """Inputs, hidden layers and outputs that have neurons."""
    kinds: tuple[list[str], list[str], list[str]] = [], [], []
    for name in layers_with_neurons(circuit):
        is_input = circuit.layers.nodes[name]["type"] == INPUT_TYPE
        kinds[0 if is_input else 2 if is_end(circuit.layers, name) else 1].append(name)
    return kinds


def closeness_in_depth(a: int, b: int) -> NDArray[np.float64]:
    """How near to each other layers lie, of models with so many: 1 at the same relative depth.

    The first lies at 0 and the last at 1, an only one half way.

    Examples
    --------
    >>> closeness_in_depth(2, 3)
    array([[1. , 0.5, 0. ],
           [0. , 0.5, 1. ]])
    """
    depths = [np.linspace(0, 1, n) if n > 1 else np.array([0.5]) for n in (a, b)]
    closeness: NDArray[np.float64] = 1 - np.abs(depths[0][:, None] - depths[1][None])
    return closeness


def pairs_in_order(similarity: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pair rows with columns in ascending order so that the sum of similarities is greatest.

    What is not above 0, or NaN, makes no pair. By dynamic programming, as sequences are aligned
    (Needleman & Wunsch 1970, *J. Mol. Biol.* 48) at no cost for gaps.

    Examples
    --------
    >>> pairs_in_order(np.array([[0.2, 0.9, 0.1], [0.8, 0.3, 0.6]]))
    [(0, 1), (1, 2)]
    """
    worth = np.where(similarity > 0, similarity, 0.0)
    rows, columns = worth.shape
    best = np.zeros((rows + 1, columns + 1))  # of the first so many rows and columns
    for i in range(rows):
        for j in range(columns):
            best[i + 1, j + 1] = max(best[i, j] + worth[i, j], best[i, j + 1], best[i + 1, j])
    pairs = []
    i, j = rows, columns
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]
