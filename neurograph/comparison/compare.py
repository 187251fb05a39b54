"""Compare circuits: two of them, or many pair by pair."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from neurograph.circuit.circuit import Circuit
from neurograph.comparison.compare_options import CompareOptions, Match
from neurograph.comparison.comparison import Comparison
from neurograph.comparison.comparisons import Comparisons
from neurograph.comparison.two_circuits import compare_circuits
from neurograph.effects.contrast import Ablation
from neurograph.errors import OptionError, SearchInterrupted
from neurograph.matching.alignment import Align
from neurograph.utils import checks
from neurograph.utils.checks import listed
from neurograph.utils.progress import Progress

__all__ = ["ManyCircuits", "compare"]

ManyCircuits = Sequence[Circuit] | Mapping[str, Circuit]


@overload
def compare(a: Circuit, b: Circuit, **options: Any) -> Comparison: ...


@overload
def compare(a: ManyCircuits, b: ManyCircuits | None = None, **options: Any) -> Comparisons: ...


def compare(  # type: ignore[misc]  # overloads cannot say: with the options below
    a: Circuit | ManyCircuits,
    b: Circuit | ManyCircuits | None = None,
    *,
    match: Match = "identity",
    names: Sequence[str] | None = None,
    across: Collection[str] = (),
    data: Any = None,
    samples: int = 1000,
    align: Align = "auto",
    least: float = 0.0,
    draws: int = 1000,
    budget: int | str = "10s",
    transplants: int = 20,
    ablation: Ablation = "mean",
    reference: int | Any = 64,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison | Comparisons:
    """Compare the circuits of two models: what they have in common, and what changed.

    Every overlap is put beside what chance would give: the same measure with the neurons of both
    models permuted within their layers. Circuits that have their models (as `search` returns
    them, or after `Circuit.attach`) are also run: effects sample by sample, and each circuit
    transplanted into the other's model.

    Parameters
    ----------
    a, b : Circuit, or sequences or mappings of names to circuits
        Two circuits give a `Comparison`. Several give `Comparisons`, a matrix: all pairs of `a`,
        or with `b` each of `a` beside each of `b`.
    match : {"identity", "activation"} or mapping
        Which neurons correspond. ``"identity"``: those of one name, in models of one architecture
        (checkpoints; fine-tuned, pruned; quantised, as float models of the rounded weights).
        ``"activation"``: those that are active alike on the same data, whatever seed, width or
        depth: layer by layer the one-to-one matching with the largest sum of correlations; inputs
        and outputs correspond by index. A mapping of a's neurons ``(layer, index)`` to b's, or of
        layers' names to names.
    names : sequence of str, optional
        What the circuits are called.
    across : collection of {"target", "data"}
        What may differ between the circuits: otherwise other targets and other data are refused.
    data : as for `search`, optional
        What activations are compared on, and models with transplants are run on; by default what
        the searches had.
    samples : int
        On how many samples of the data activations are compared.
    align : {"auto", "depth", "cka"}
        Which layers belong together for ``match="activation"``, in the order of both models: of
        equal relative depth, or the most alike by centred kernel alignment. ``"auto"`` goes by
        name where all names agree, else by alignment.
    least : float
        Neurons whose activations correlate no more than that stay unmatched.
    draws : int
        How many permutations; the smallest p-value is 1 / (draws + 1).
    budget : int or str
        A time, like ``"10s"``, for measuring effects in both models sample by sample, the strongest
        first; or how many neurons, edges and paths each. Differences of others have the errors of
        independent samples, and what one circuit alone knows stays unknown in the other.
    transplants : int
        How many random sets of neurons beside each transplant; 0 for no transplants.
    ablation : {"mean", "zero", "resample"}
        What neurons are that a transplant does not keep; see `faithfulness`.
    reference : int or data
        On how many samples of the data transplants are measured, or on which.
    seed : int
        Chooses samples and permutations.
    progress : bool, optional
        Show progress; by default where a person watches.

    Returns
    -------
    Comparison or Comparisons

    Raises
    ------
    OptionError
        Targets or data differ and `across` does not say so; architectures differ where neurons
        are matched by name; a mapping that is none; circuits without models where activations are
        asked for.
    ModelError
        A model's weights have changed since the search.
    SearchInterrupted
        On Ctrl-C among several circuits, a KeyboardInterrupt whose ``result`` is the `Comparisons`
        made until then.

    Notes
    -----
    Neurons are matched as by Li et al. 2015 (arXiv:1511.07543). Two neurons that act alike on all
    data, as duplicates do, cannot be told apart: chance chooses, and `Matching.ties` lists them.
    Layers are compared by linear centred kernel alignment (Kornblith et al. 2019,
    arXiv:1905.00414).

    Weighted overlaps are Ruzicka's index of effects as shares of the sum of their circuit's: the
    sum of the smaller shares over that of the larger, where opposite signs have nothing in common.
    Neurons of layers that the target alone reads do not count: the target names them.

    What chance says of matching by activation is whether neurons that act alike also matter alike.
    Wide untrained networks show a little of that: neurons that act alike also move about as far.

    The result does not depend on which circuit is named first, but for the sign of differences.

    Examples
    --------
    >>> import copy, torch, neurograph as ng
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    >>> other, order, X = copy.deepcopy(model), torch.randperm(16), torch.rand(100, 4)
    >>> with torch.no_grad():  # the same function, its hidden neurons in another order
    ...     for tensor in (other[0].weight, other[0].bias, other[2].weight.T):
    ...         _ = tensor.copy_(tensor[order].clone())
    >>> one, two = (ng.search(m, X, target=1, keep="top:3") for m in (model, other))
    >>> compare(one, two).neuron_jaccard < 1
    True
    >>> compare(one, two, match="activation").neuron_jaccard
    1.0
    """
    options = CompareOptions(
        match=match,
        align=align,
        across=across,
        data=data,
        samples=samples,
        least=least,
        draws=draws,
        budget=budget,
        transplants=transplants,
        ablation=ablation,
        reference=reference,
        seed=seed,
        progress=progress,
    ).checked()
    names = checks.names(names, "names")
    if isinstance(a, Circuit) and isinstance(b, Circuit):
        called = ("a", "b") if names is None else names
        if len(called) != 2 or called[0] == called[1]:
            raise OptionError(f"names={names!r}: pass two different names")
        return compare_circuits(a, b, (called[0], called[1]), options)
    if isinstance(a, Circuit) or isinstance(b, Circuit):
        raise OptionError("a and b: pass two circuits, or two lists of circuits, or one list")
    rows = _named(a, names if b is None else None, "a")
    columns = rows if b is None else _named(b, None, "b")
    return _matrix(rows, columns, options)


def _named(circuits: ManyCircuits, names: Sequence[str] | None, side: str) -> dict[str, Circuit]:
    if isinstance(circuits, Mapping):
        named = {str(name): circuit for name, circuit in circuits.items()}
    else:
        circuits = listed(circuits, side, "circuits")
        called = [str(i) for i in range(len(circuits))] if names is None else list(names)
        if len(called) != len(circuits) or len(set(called)) < len(called):
            raise OptionError(f"names={names!r}: pass {len(circuits)} different names")
        named = dict(zip(called, circuits, strict=True))
    for name, circuit in named.items():
        if not isinstance(circuit, Circuit):
            raise OptionError(f"{side}: {name!r} is {type(circuit).__name__}, no circuit")
    if not named:
        raise OptionError(f"{side} holds no circuits to compare")
    return named


def _matrix(
    rows: Mapping[str, Circuit], columns: Mapping[str, Circuit], options: CompareOptions
) -> Comparisons:
    names = tuple(rows), tuple(columns)
    square = names[0] == names[1]
    if square and len(rows) < 2:
        raise OptionError("one circuit cannot be compared with itself: pass two or more")
    pairs = itertools.combinations(rows, 2) if square else itertools.product(rows, columns)
    todo, cells = list(pairs), {}
    quiet = replace(options, progress=False)  # one bar is enough
    try:
        with Progress("comparing", options.progress, total=len(todo), unit="pairs") as bar:
            for pair in todo:
                bar.describe(f"comparing {pair[0]} and {pair[1]}")
                cells[pair] = compare_circuits(rows[pair[0]], columns[pair[1]], pair, quiet)
                bar.advance()
    except KeyboardInterrupt as stop:
        raise SearchInterrupted(Comparisons(*names, cells) if cells else None) from stop
    return Comparisons(*names, cells)
