"""A study: a model, data and target made ready once, and asked as often as one likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from neurograph.audit.result import Audit
from neurograph.circuit.circuit import Circuit
from neurograph.discovery.claims import audit_result
from neurograph.discovery.composition import composition
from neurograph.discovery.exemplars import Exemplars, find_exemplars
from neurograph.discovery.responses import ResponseCurves, find_responses
from neurograph.discovery.scores import Scores, find_scores
from neurograph.discovery.search import find_circuit
from neurograph.discovery.strongest_paths import StrongestPaths, find_strongest_paths
from neurograph.errors import OptionError
from neurograph.preparation.base_study import BaseStudy, differing
from neurograph.preparation.options import (
    ExemplarOptions,
    FaithfulnessOptions,
    PathOptions,
    ResponseOptions,
    ScoreOptions,
    SearchOptions,
    SignalOptions,
    StudyOptions,
    with_options,
)
from neurograph.utils.checks import shown, whole

if TYPE_CHECKING:  # these need SciPy, which takes a while to load
    from neurograph.ablation.faithfulness_result import Faithfulness
    from neurograph.ablation.signals import Signals

__all__ = ["Study"]


@with_options(StudyOptions)
class Study(BaseStudy):
    """A model, data and a target made ready: ask it as often as you like.

    Nothing is run until something is asked. Then what all questions need is found once: which
    layers there are and who reads whom, where samples lie in each tensor, the reference samples as
    the model runs them, the neurons' statistics where they are needed. A second question finds it
    there.

    Parameters
    ----------
    model : Module
        Any eager model; it is run in eval mode and left as it was. Nothing else may run it
        meanwhile, as its layers have stand-ins; questions in other threads wait.
    data : Tensor, ndarray, DataFrame, (X, y) pair, dict, Dataset, DataLoader or list of batches
        Several positional inputs are a tuple in a pair: ``((x1, x2), y)``.
    target : int, str, callable or None
        An output index, a class name, ``(output, batch) -> [batch]``, or None for a single output
        as it is (regression). With an index a single output is read as a binary logit: target 1 is
        the output, target 0 minus the output, which is said.
    profile : networkx.DiGraph, optional
        From `neurograph.profile`; made from the data if not given.
    layers : str, type, predicate, or several of them, optional
        Which modules are layers; all else is glue. A pattern is compared with the last names of
        a module's path (``"o_proj"``, ``"layers.*.mlp"``), and means the module's input side
        with ``:input`` behind; a predicate takes ``(path, module)``. By default every module
        that owns parameters directly, but for normalisations.
    groups : mapping of str to groups, optional
        For layers that match a pattern, channels that move together as one neuron: ``"heads"``
        (of attention: where queries, keys or values come from, or on the input side of the
        projection behind them; their size is found in the module or its config), a number of
        equal groups, or lists of channels.
    basis : mapping of str to basis, optional
        For layers that match a pattern, what their neurons are instead of channels: directions in
        the space of the channels, ``[directions, channels]`` (a probe, the columns of any matrix
        transposed), `Active` or `Principal` ones that are found, `Families` of channels with
        signs, or `Clusters`, families that are found. The last neuron is what directions leave
        over, the remainder.
    positions : "all", "last", "each" or int
        Of layers with one axis of positions (tokens, time steps): whether a neuron is a channel
        at all of them, at the last or at a certain one alone, or each position has neurons
        ``(layer, channel, position)``. A mask among the inputs is honoured where moving what it
        calls padding leaves the target as it is, whichever way it is read: what is
        padding neither moves nor counts. Image maps always move whole.
    contrast : str, tuple or contrast
        Values a neuron moves between: ``"quantiles"`` (0.05 → 0.95 of its activations), a tuple
        of ascending quantiles, ``"pooled"`` (quantiles over all positions), ``"sweep"`` (all
        seven), ``"mean"`` or ``"zero"`` (→ its actual value in each sample), ``"resample"`` (its
        value elsewhere in another sample → its own), or a ``Counterfactual(data)``.
    background : {"data", "mean", "zero"}
        What everything else is meanwhile: real reference samples, means, or zero.
    reference : int or data
        How many samples are the background (drawn by `seed`), or the samples themselves.
    memory : int or str
        Bytes, or like ``"512MB"``, for the rows of interventions run at once.
    seed : int
        Chooses reference samples, and whatever else is drawn.
    device : device, optional
        Where to run; the model is moved there and back. By default it stays where it is.
    feature_names, class_names : sequence of str, optional
        Names of the input's features and of the targets; a DataFrame's columns name features.
    tokenizer : optional
        With ``decode([id])``, or a function from a token's id to its name: names positions.
    progress : bool, optional
        Show progress; by default where a person watches.

    Raises
    ------
    ModelError
        The model cannot be replayed, raised, or has NaN in weights or activations; when something
        is asked, too, if it is another model than it was at the first question.
    DataError, OptionError
        Unusable data or options; the message names what and says what to do.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[0].bias.zero_()
    ...     _ = model[2].weight.copy_(torch.tensor([[3.0, -1.0]])), model[2].bias.zero_()
    >>> X = torch.linspace(0, 1, 101)[:, None].expand(101, 2)
    >>> study = Study(model, X, 1, feature_names=["up", "down"], progress=False)
    >>> print(study.strongest_paths(1))
    The 1 strongest of 4 paths to 'output', certainly
      up → 0[0] → output +2.7000 ± 0.0000
    >>> study.search().features()[["name", "total_effect"]].round(2).values.tolist()
    [['up', 2.7], ['down', -0.9]]
    """

    @with_options(SearchOptions)
    def search(self, **options: Unpack[SearchOptions]) -> Circuit:
        """Find the circuit behind the target; `keep`, `scorer`, … as for `neurograph.search`."""
        return self.answer(lambda: find_circuit(self, options))

    @with_options(ScoreOptions)
    def score(self, **options: Unpack[ScoreOptions]) -> Scores:
        """Score every neuron, or every edge; `of`, `scorer`, … as for `neurograph.score`."""
        return self.answer(lambda: find_scores(self, options))

    @with_options(PathOptions)
    def strongest_paths(self, k: int = 100, **options: Unpack[PathOptions]) -> StrongestPaths:
        """Find the k strongest paths of the whole model; as `neurograph.strongest_paths`."""
        return self.answer(lambda: find_strongest_paths(self, k, options))

    @with_options(ResponseOptions)
    def responses(self, **options: Unpack[ResponseOptions]) -> ResponseCurves:
        """Measure the target against neurons' quantiles; as `neurograph.response_curves`."""
        return self.answer(lambda: find_responses(self, options))

    @with_options(ExemplarOptions)
    def exemplars(self, **options: Unpack[ExemplarOptions]) -> Exemplars:
        """Find the samples of the data in which neurons are highest and lowest.

        Parameters
        ----------
        neurons : str, Neuron, or several of them, optional
            Layers or neurons, the graph of a circuit among them; by default those of all hidden
            layers.
        count : int
            How many samples at each end.
        between : int
            How many in between, evenly spread by rank over a random few.

        Returns
        -------
        Exemplars
            A table of samples, and what a picture of them needs. A neuron's value in a sample is
            the highest, at the lower end the lowest, at any of the positions where it may move; of
            several channels their mean, of heads and of what is left over the Euclidean norm.

        Raises
        ------
        DataError
            Samples have no numbers, as the data are shuffled, or differ when they are read again.
        OptionError
            No such neuron, or they take more than `memory`.

        Examples
        --------
        >>> import torch
        >>> model, X = torch.nn.Linear(2, 1), torch.tensor([[0.0, 1.0], [5.0, 2.0], [1.0, 0.0]])
        >>> found = Study(model, X, progress=False).exemplars(neurons="input", count=1, between=0)
        >>> found.table[["name", "end", "sample", "value"]].values.tolist()[:2]
        [['input[0]', 'highest', 1, 5.0], ['input[0]', 'lowest', 0, 0.0]]
        """
        return self.answer(lambda: find_exemplars(self, options))

    @with_options(FaithfulnessOptions)
    def faithfulness(self, ranking: Any, **options: Unpack[FaithfulnessOptions]) -> Faithfulness:
        """Keep what a ranking puts first, ablate all else; as `neurograph.faithfulness`.

        On the study's reference samples: `reference=` says how many.
        """
        from neurograph.ablation.faithfulness import find_faithfulness

        return self.answer(lambda: find_faithfulness(self, ranking, options))

    @with_options(SignalOptions)
    def signals(self, **options: Unpack[SignalOptions]) -> Signals:
        """Measure how many signals each hidden layer passes on to the target.

        Parameters
        ----------
        of : {"target", "outputs"}
            Whether it is the target that comes back, or all outputs of the model, at most 100.
        parts : sequence of str
            What may pass: ``active`` or ``principal`` directions, the ``neurons`` of the largest
            attributions, of 32 ``families`` of a layer those that do most (of `Clusters`),
            ``random`` directions, ``random neurons``, ``random families`` of equal sizes.
        counts : sequence of int
            How many of them: the strongest, while all else that the layer says is its mean over
            the data.
        samples : int
            On how many samples parts are found: others than the reference samples, on which the
            shares are measured, where enough are left.
        draws : int
            How many times what is random is drawn.
        confidence : float
            Level of the intervals.

        Returns
        -------
        Signals
            A table of shares, of each layer and of all at once, and the fewest parts that bring
            back a share.
        """
        from neurograph.ablation.signals import find_signals

        return self.answer(lambda: find_signals(self, options))

    def composition(self, layer: str) -> pd.DataFrame:
        """List the channels that the neurons of a layer's basis are made of, with their shares.

        Returns
        -------
        DataFrame
            A row for each neuron and channel, the largest share first: ``index`` of the neuron,
            ``channel`` and its ``name``; ``weight``, what the channel changes by while the neuron
            moves by 1; ``share`` of the sum of squares of a neuron's weights. What is left over,
            the remainder, has no one direction and no rows.

        Raises
        ------
        OptionError
            There is no such layer, or it has no basis.

        Examples
        --------
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
        >>> study = Study(model, torch.rand(9, 1), basis={"0": [[0.6, -0.8]]}, progress=False)
        >>> study.composition("0")[["name", "weight", "share"]].round(2).values.tolist()
        [['0[1]', -0.8, 0.64], ['0[0]', 0.6, 0.36]]
        """
        with self.asking():
            return composition(self, layer)

    def separation(self, labels: Any = None, *, alpha: float = 0.05) -> pd.DataFrame:
        """Test whether each neuron tells classes apart; as `neurograph.separation`."""
        from neurograph.activations.separation import separation

        names = "layers memory seed device feature_names class_names progress".split()
        own = {name: self.options[name] for name in names}
        with self.asking():
            self._preparation.check_data()
            return separation(self.model, self.data, labels, alpha=alpha, **own)

    def audit(self, effects: int = 40, *, of: Circuit | Scores | None = None) -> Audit:
        """Compute effects again by forward hooks alone, at least one of each layer.

        Parameters
        ----------
        effects : int
            About how many.
        of : Circuit or Scores, optional
            Whose; by default total effects that are measured for it.

        Returns
        -------
        Audit
            How many were compared, the largest difference, on which layers; and what differs by
            more than rounding, with the likely reason: ``audit.agrees``, ``audit.check()``.
        """
        if of is not None:
            self._check_own(of)
        of = of.table if isinstance(of, Scores) else of
        effects = whole(effects, "effects", least=1)
        return self.answer(lambda: audit_result(self, of, effects=effects))

    def _check_own(self, result: Circuit | Scores) -> None:
        """OptionError for a result of another study, whose effects are not to be compared."""
        if not isinstance(result, Circuit | Scores):
            raise OptionError(f"of={shown(result)}: pass a Circuit or Scores of this study")
        other = differing(result.provenance, self.provenance)
        if other:
            raise OptionError(f"of= is of another study: its {other} differs, ask its own study")
