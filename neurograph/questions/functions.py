"""Questions as one-liners: make a study, ask it, and return the answer, which holds the study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from neurograph.circuit.circuit import Circuit
from neurograph.discovery.responses import ResponseCurves
from neurograph.discovery.scores import Scores
from neurograph.discovery.strongest_paths import StrongestPaths
from neurograph.effects.contrast import Quantiles
from neurograph.model.target import TargetFunction
from neurograph.preparation.options import (
    FaithfulnessOptions,
    PathOptions,
    ResponseOptions,
    ScoreOptions,
    SearchOptions,
    StudyOptions,
    read_options,
    split_options,
    with_options,
)
from neurograph.questions.study import Study

if TYPE_CHECKING:  # this needs SciPy, which takes a while to load
    from neurograph.ablation.faithfulness_result import Faithfulness

__all__ = ["faithfulness", "response_curves", "score", "search", "strongest_paths"]

_SAMPLES = 128  # that faithfulness is of, if nothing else is said


class _SearchOptions(StudyOptions, SearchOptions, total=False):
    pass


@with_options(SearchOptions, StudyOptions)
def search(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None = None,
    **options: Unpack[_SearchOptions],
) -> Circuit:
    """Find the neurons and paths that push one output up or down, each measured by intervention.

    From the target's layers backwards, every neuron is moved between two values, only the kept
    outputs of its readers may see it, and the change of the target is measured: once through those
    whose total effect raises the target and once through those that lower it, so that neither
    hides the other. The strongest of either sign through either are kept.

    Parameters
    ----------
    model, data, target
        As for `Study`.
    keep : str or rule
        Of each layer, of either sign, through the neurons that raise the target and through those
        that lower it: ``"quantile:0.95"`` (of the effects of that sign), ``"top:20"``,
        ``"share:0.8"`` (of their sum), or ``"above:0.1"`` (in units of the target).
    scorer : str or Method
        ``"exact"`` measures every neuron and edge by intervention. Three estimate: ``"gradient"``
        is linear from the move to the target (edge attribution patching), ``"hybrid"`` computes
        the readers and is linear behind them, ``"integrated"`` averages gradients while all
        neurons move at once. ``"auto"`` measures everything if the budget allows; if not
        it screens by gradients, measures what they promise most, and says how well they ranked.
        One with settings is an object: ``Integrated(steps=8)`` of `neurograph.effects.gradient`.
    budget : int or str
        For ``"auto"``: a time, like ``"60s"`` or ``"5min"``, for the whole search; or how many
        neurons of each layer and sign are measured, which is the same on every machine. Only
        measured neurons are kept; a few, drawn at random, are measured beside them.
    paths : int
        How many paths of each sign are measured and stored.
    **options
        Those of `Study`: ``profile``, ``layers``, ``groups``, ``positions``, ``contrast``,
        ``background``, ``reference``, ``memory``, ``seed``, ``device``, ``feature_names``,
        ``class_names``, ``tokenizer``, ``progress``. By a `seed`, the result is the same bit for
        bit on one machine, where a time as `budget` suffices to measure everything.

    Returns
    -------
    Circuit
        Effects are means over the reference samples of target(last value) − target(first
        value), with standard errors, in units of the target.

    Raises
    ------
    ModelError
        The model cannot be replayed, raised, or has NaN in weights or activations.
    DataError, OptionError
        Unusable data or options; the message names what and says what to do.
    SearchInterrupted
        On Ctrl-C, a KeyboardInterrupt whose ``result`` is what was found until then.

    Notes
    -----
    At the end some of the effects are computed again by forward hooks alone on the plain model,
    at least one of each layer. If they differ by more than rounding, slower routes are tried, and
    where none gives what hooks give, a ModelError names the layer and the likely reason.

    Effects through chosen outputs are path patching (Wang et al. 2023, arXiv:2211.00593;
    Goldowsky-Dill et al. 2023, arXiv:2304.05969) with an output mask.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    ...     _ = model[2].weight.copy_(torch.tensor([[3.0, -1.0]])), model[2].bias.zero_()
    >>> X = torch.linspace(0, 1, 101)[:, None].expand(101, 2)
    >>> circuit = search(model, X, target=1, feature_names=["up", "down"])
    >>> print(next(circuit.paths(1, sign="positive")))
    up → 0[0] → output +2.7000 ± 0.0000
    """
    of_study, own = split_options(SearchOptions, options, "search")
    return Study(model, data, target, **of_study).search(**own)


class _ScoreOptions(StudyOptions, ScoreOptions, total=False):
    pass


@with_options(ScoreOptions, StudyOptions)
def score(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None = None,
    **options: Unpack[_ScoreOptions],
) -> Scores:
    """Score every neuron, or every edge, of a model.

    Unlike a search this follows no frontier: a neuron's effect is the total one, through
    everything, and an edge's that of one neuron on one output of a reader, all else at background.

    Parameters
    ----------
    model, data, target
        As for `Study`.
    of : {"neurons", "edges"}
        Edges are those of all pairs of layers that the layer graph joins: many, in a wide model.
    scorer, budget
        As for `search`. A number as budget measures so many neurons of each layer and sign, and
        its square of edges between each two layers.
    **options
        Those of `Study`.

    Returns
    -------
    Scores

    Raises
    ------
    ModelError, DataError, OptionError
        As for `search`.
    SearchInterrupted
        On Ctrl-C, a KeyboardInterrupt whose ``result`` is the `Scores` of the layers done.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    ...     _ = model[2].weight.copy_(torch.tensor([[3.0, -1.0]])), model[2].bias.zero_()
    >>> X = torch.linspace(0, 1, 101)[:, None].expand(101, 2)
    >>> found = score(model, X, target=1, of="edges")
    >>> print(str(found).splitlines()[0])
    Scores of 6 edges for 'output' by auto: all 6 measured
    >>> found.ranking().xs("2", level="target_layer").round(2).to_dict()
    {('0', 0, 0): 2.7, ('0', 1, 0): -0.9}
    """
    of_study, own = split_options(ScoreOptions, options, "score")
    return Study(model, data, target, **of_study).score(**own)


class _PathOptions(StudyOptions, PathOptions, total=False):
    pass


@with_options(PathOptions, StudyOptions)
def strongest_paths(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None = None,
    k: int = 100,
    **options: Unpack[_PathOptions],
) -> StrongestPaths:
    """Find the k paths with the largest effects, among all that the model has.

    Unlike `Circuit.paths`, this looks at every neuron, not at those that a search kept: a path
    may well lower a neuron that pushes down.

    Prefixes of paths grow from the sources on, each step measured, and of every layer the most
    promising are kept; more and more of them, until it is certain that no other path is stronger
    or the budget is spent. Certain it is where every path was measured, or where Lipschitz
    constants of the pointwise glue and the weights say that the others cannot be stronger. They
    say something where Linear layers are joined by such glue and the target is an output's index.

    Parameters
    ----------
    model, data, target
        As for `Study`.
    k : int
        How many paths.
    sign : {"positive", "negative"}, optional
        Only paths whose effect has this sign.
    sources : str, Neuron, or several of them, optional
        Where paths begin: a layer's name stands for all of its neurons. By default the model's
        inputs, or where these are no floating-point numbers the layers that read them.
    budget : int or str
        A time, like ``"60s"`` or ``"5min"``: the first pass is finished in any case. Or how many
        prefixes are kept at each layer, which gives the same on every machine.
    **options
        Those of `Study`; of a contrast of several levels, a path goes from the first to the last.

    Returns
    -------
    StrongestPaths

    Raises
    ------
    ModelError, DataError
        As for `search`.
    OptionError
        A layer or neuron that does not exist, or any other option that means nothing here.
    SearchInterrupted
        On Ctrl-C, a KeyboardInterrupt whose ``result`` is the `StrongestPaths` found until then.

    Notes
    -----
    Comparisons are up to the rounding of the model's own numbers. While the budget does not end
    the search, the result is the same each time.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    ...     _ = model[0].bias.fill_(1.0), model[2].bias.zero_()
    ...     _ = model[2].weight.copy_(torch.tensor([[3.0, -1.0]]))
    >>> X = torch.linspace(0, 1, 101)[:, None].expand(101, 2)
    >>> strongest_paths(model, X, target=1, feature_names=["up", "other"], progress=False)
    The 2 strongest of 4 paths to 'output', certainly
      up → 0[0] → output +2.7000 ± 0.0000
      other → 0[1] → output +0.90000 ± 0.00000
    """
    of_study, own = split_options(PathOptions, options, "strongest_paths")
    return Study(model, data, target, **of_study).strongest_paths(k, **own)


class _ResponseOptions(StudyOptions, ResponseOptions, total=False):
    pass


@with_options(ResponseOptions, StudyOptions)
def response_curves(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None = None,
    **options: Unpack[_ResponseOptions],
) -> ResponseCurves:
    """Measure the target while each neuron moves through the quantiles of its activations.

    One neuron at a time is set to each quantile in turn, everything after it is computed, and the
    mean target over the reference samples is what the curve shows: the total effect, through
    everything, with every level run through the model.

    Parameters
    ----------
    model, data, target
        As for `Study`.
    neurons : str, Neuron, or several of them, optional
        Which neurons: a layer's name stands for all of its neurons. By default those of the
        modules that `layers` chooses; without it, those of the model's inputs.
    levels : sequence of float
        Two or more ascending quantiles in [0, 1].
    **options
        Those of `Study`, but for the contrast, which `levels` take the place of.

    Returns
    -------
    ResponseCurves

    Raises
    ------
    ModelError, DataError
        As for `search`.
    OptionError
        A layer or neuron that does not exist, fewer than two levels, or any other option that
        means nothing here.

    Notes
    -----
    With ``background="data"`` these are partial dependence curves (Friedman 2001, *Ann. Statist.*
    29) of any neuron, not of the inputs alone.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():  # |x|
    ...     _ = model[0].weight.copy_(torch.tensor([[1.0], [-1.0]])), model[0].bias.zero_()
    ...     _ = model[2].weight.fill_(1.0), model[2].bias.zero_()
    >>> X = torch.arange(-50.0, 51.0)[:, None] / 50
    >>> curves = response_curves(model, X, 1, levels=(0, 0.5, 1), progress=False)
    >>> curves.table[["name", "level", "value", "target"]]
           name  level  value  target
    0  input[0]    0.0   -1.0     1.0
    1  input[0]    0.5    0.0     0.0
    2  input[0]    1.0    1.0     1.0
    >>> curves
    Response curves of 'output' at 3 levels, neurons: 1 bent
    """
    of_study, own = split_options(ResponseOptions, options, "response_curves")
    sweep = Quantiles(read_options(ResponseOptions, own, "response_curves")["levels"])
    return Study(model, data, target, **of_study | {"contrast": sweep}).responses(**own)


class _FaithfulnessOptions(StudyOptions, FaithfulnessOptions, total=False):
    pass


@with_options(FaithfulnessOptions, StudyOptions, reference=_SAMPLES)
def faithfulness(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None,
    ranking: Any,
    **options: Unpack[_FaithfulnessOptions],
) -> Faithfulness:
    """Keep only the neurons or edges that a ranking puts first, and see what is left of a target.

    At each size the first components are kept and all others ablated, then the other way round.
    Random circuits of equal size are measured beside them.

    Parameters
    ----------
    model, data, target
        As for `Study`. A target that is about each sample's own answer, such as the logit of its
        label, tells most: of a fixed output, ablations to the mean and to other samples may leave
        the mean as it is.
    ranking : Series, Circuit, scores, or mapping of str to any of these
        Effects: of neurons, indexed by ``layer, index``, or of edges, indexed by ``source_layer,
        source_index, target_layer, target_index``; with ``position``, ``source_position`` and
        ``target_position`` where neurons have some. A circuit ranks all neurons that were scored,
        by the stronger effect of both signs, and what it kept is measured too. What is not ranked
        comes last. Several rankings, by name, are compared on the same neurons or edges.
    sizes : sequence of float
        Ascending shares, in (0, 1], of all neurons or edges; ``⌊share × number⌋`` are kept.
    ablations : sequence of {"mean", "resample", "zero", "counterfactual"}
        What an ablated neuron is: its mean over the data, at each position where shapes are
        fixed; what it is in another reference sample, the same one for all neurons, at the same
        position; 0; what it is in the sample's counterfactual.
    draws : int
        How many series of random circuits.
    confidence : float
        Level of the intervals.
    metric : torchmetrics.Metric, optional
        Measured beside the target, of the reference samples and their labels; see
        `masking_curves`.
    corrupt : data, optional
        Counterfactuals of all samples of the data, in the same order, for
        ``"counterfactual"``. By default those of the study's contrast, where it is
        a `Counterfactual`.
    **options
        Those of `Study`, but for `contrast` and `background`. By default ``layers``, ``groups``
        and ``positions`` are those of a circuit, and 128 samples are run, as `reference` says;
        the `seed` also chooses random circuits and other samples.

    Returns
    -------
    Faithfulness

    Raises
    ------
    OptionError
        Options that mean nothing, or a ranking of what the model has not.
    ModelError, DataError
        As for `search`; also no labels where there is a metric.

    Notes
    -----
    **Neurons** that can be ablated are those that another layer reads; the model's inputs are
    among them if a ranking holds some. A kept neuron is computed from what the ablated ones left
    of its inputs. **Edges** are all that lead from a neuron, or an input, to a neuron of a layer
    that reads it. A neuron is computed from an input in which the writers of its kept edges have
    the values of this run, and all other writers their ablated ones; the target sees the layers
    that it reads as they are in this run. In both, all that is no neuron that may move (padding,
    other positions) is left alone.

    With m the mean target over the reference samples, C a circuit, M the whole model and ∅
    nothing, faithfulness is f = (m(C) − m(∅)) / (m(M) − m(∅)).

    A neuron or edge costs nothing by itself, but each size of each order is a run of the model
    for each ablation. Edges take a run of each reader for every different set of writers that
    its neurons keep; linear layers and convolutions behind pointwise glue take one.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(4))
    ...     _ = model[1].weight.copy_(torch.tensor([[3.0, 1.0, 0.0, 0.0]]))
    >>> import pandas as pd
    >>> index = pd.MultiIndex.from_product([["0"], range(4)], names=["layer", "index"])
    >>> found = faithfulness(
    ...     model, torch.ones(10, 4), 1, pd.Series([3.0, 1.0, 0.0, 0.0], index, name="weights"),
    ...     sizes=(0.25, 0.5, 1), ablations=["zero"],
    ... )
    >>> kept = found.curves().query("order == 'signed' and direction == 'keep'")
    >>> kept[["share", "components", "value", "faithfulness"]].to_string(index=False).splitlines()
    [' share  components  value  faithfulness',
     '  0.25           1    3.0          0.75',
     '  0.50           2    4.0          1.00',
     '  1.00           4    4.0          1.00']
    """
    from neurograph.ablation.rankings import options_of_ranking

    of_study, own = split_options(FaithfulnessOptions, options, "faithfulness")
    known = of_study
    if of_study.get("profile") is None:
        known = options_of_ranking(ranking, of_study)
    given = {"reference": _SAMPLES, "contrast": "mean", **known}
    return Study(model, data, target, **given).faithfulness(ranking, **own)
