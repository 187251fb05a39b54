"""Rankings of neurons by importance: by total effects, by what class labels say, or by chance.

Every ranking is a Series of one number a neuron, the larger the more important, indexed by
``layer`` and ``index``. By default it is of the hidden layers: those between the inputs and what
only the output reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neurograph.ablation.chosen_neurons import hidden_layers
from neurograph.errors import OptionError
from neurograph.model.layer_choice import INPUT_SIDE
from neurograph.utils.checks import shown, whole

__all__ = ["at_random", "by_effect", "by_separation"]


def by_effect(ranked: Any, *, inputs: bool = False) -> pd.Series:
    """Importance by the size of effects: of a circuit through it, of scores through everything.

    Where each position has neurons of its own, it is the largest of a channel's. What has no
    effect that is known, as a circuit does not reach it, has 0.

    Parameters
    ----------
    ranked : Circuit or Scores
        From `search` or `score`: ``score(…, scorer="exact")`` gives ordinary ablation,
        ``score(…, scorer="gradient", contrast="zero")`` gradient × activation (Shrikumar et al.
        2016, arXiv:1605.01713). With `groups`, an index is that of a group.
    inputs : bool
        Include the model's inputs.

    Returns
    -------
    Series
        In units of the target.

    Raises
    ------
    OptionError
        It is neither, it ranks edges, or the model has no hidden layers.

    Examples
    --------
    >>> import torch
    >>> from neurograph import score
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    ...     _ = model[1].weight.copy_(torch.tensor([[3.0, -1.0]]))
    >>> X = torch.tensor([[1.0, 4.0], [2.0, 2.0]])
    >>> by_effect(score(model, X, 1, scorer="gradient", contrast="zero")).to_dict()
    {('0', 0): 4.5, ('0', 1): 3.0}
    """
    if not hasattr(ranked, "ranking") or not hasattr(ranked, "layers"):
        raise OptionError(f"ranked={shown(ranked)}: pass what search() or score() returned")
    ranking: pd.Series = ranked.ranking()
    if "layer" not in ranking.index.names:
        raise OptionError("ranked has effects of edges: pass those of neurons")
    sizes = ranking.abs().fillna(0).groupby(level=["layer", "index"]).max()
    hidden = hidden_layers(ranked.layers, inputs=inputs)
    if not hidden:
        raise OptionError(
            "the model has no hidden layers: every layer is an input, or only the output reads it"
        )
    known = set(sizes.index.unique("layer"))
    if "position" in ranking.index.names:  # else the number of a layer's neurons is known
        hidden = {layer: count for layer, count in hidden.items() if layer in known}
    pairs = [
        (layer, index)
        for layer, count in hidden.items()
        for index in (sizes[layer].index if layer in known else range(count))
    ]
    index = pd.MultiIndex.from_tuples(pairs, names=["layer", "index"])
    return sizes.reindex(index, fill_value=0.0).rename(ranking.name)


def by_separation(table: pd.DataFrame, *, inputs: bool = False) -> pd.Series:
    """Importance by how well a neuron tells classes apart: the distance of its AUC from chance.

    Parameters
    ----------
    table : DataFrame
        From `separation`; of a neuron with several rows, one a class, the largest counts.
    inputs : bool
        Include the model's inputs.

    Returns
    -------
    Series
        Named ``separation``: how far the AUC is from ½, from 0 to ½. It is of all layers of the
        table, which does not say whether only the output reads one: leave that out by
        ``.drop("fc", level="layer")``.

    Raises
    ------
    OptionError
        It is no such table, or holds no neurons.

    Examples
    --------
    >>> table = pd.DataFrame({"layer": "fc", "index": [0, 1, 1], "auc": [0.5, 0.6, 0.1]})
    >>> by_separation(table).to_dict()
    {('fc', 0): 0.0, ('fc', 1): 0.4}
    """
    columns = ("layer", "index", "auc")
    missing = [c for c in columns if not isinstance(table, pd.DataFrame) or c not in table]
    if missing:
        raise OptionError(f"table has no column {missing[0]!r}: pass what separation() returned")
    if not inputs:
        table = table[~_of_inputs(table["layer"])]
    values = (table["auc"] - 0.5).abs().groupby([table["layer"], table["index"]], sort=False).max()
    if values.empty:
        raise OptionError("table holds no neurons of hidden layers")
    return values.rename("separation")


def _of_inputs(layers: pd.Series) -> pd.Series:
    """Which names are those of the model's inputs; a module may have taken theirs."""
    first = f"model{INPUT_SIDE}" if layers.str.startswith(f"model{INPUT_SIDE}").any() else "input"
    return (layers == first) | layers.str.startswith(f"{first}.")


def at_random(index: pd.MultiIndex, seed: int = 0) -> pd.Series:
    """Importance by chance: what every other ranking is to be compared with.

    Parameters
    ----------
    index : MultiIndex
        Of another ranking.
    seed : int

    Returns
    -------
    Series
        Named ``random``, uniform in [0, 1).
    """
    if not isinstance(index, pd.Index):
        raise OptionError(f"index={shown(index)}: pass the index of another ranking")
    generator = np.random.default_rng(whole(seed, "seed", least=0))
    return pd.Series(generator.random(len(index)), index, name="random")
