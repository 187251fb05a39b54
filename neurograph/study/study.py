"""A study: a model, data and a target made ready once, and asked as often as one likes."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Unpack

import networkx as nx
import pandas as pd
from torch import nn

from neurograph.activations.profile import model_hash
from neurograph.effects.contrast import Contrast, as_contrast
from neurograph.effects.exact import path_effects
from neurograph.effects.experiment import Experiment
from neurograph.errors import ModelError, OptionError
from neurograph.model.layer_choice import INPUT_SIDE, Sites, refuse_unsupported
from neurograph.model.layers import Neuron
from neurograph.model.neurons import describe_groups
from neurograph.model.observe import input_tensors, placed
from neurograph.model.positions import token_names
from neurograph.model.target import Target, TargetFunction, describe_target
from neurograph.replay.wiring import Wiring
from neurograph.study.options import StudyOptions, read_options, with_options
from neurograph.study.preflight import sampled, stillness
from neurograph.study.preparation import Preparation, Statistics, with_statistics
from neurograph.utils.checks import whole

if TYPE_CHECKING:
    from neurograph.ablation.faithfulness import FaithfulnessOptions
    from neurograph.ablation.faithfulness_result import Faithfulness
    from neurograph.audit.result import Audit
    from neurograph.circuit.circuit import Circuit
    from neurograph.discovery.responses import ResponseCurves, ResponseOptions
    from neurograph.discovery.scores import ScoreOptions, Scores
    from neurograph.discovery.search import SearchOptions
    from neurograph.discovery.strongest_paths import PathOptions, StrongestPaths

__all__ = ["Study"]


@with_options(StudyOptions)
class Study:
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
        is asked, too, if its weights are others than they were at the first question.
    DataError, OptionError
        Unusable data or options; the message names what and says what to do.

    Examples
    --------
    >>> import torch
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

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        target: int | str | TargetFunction | None = None,
        **options: Unpack[StudyOptions],
    ) -> None:
        refuse_unsupported(model)
        self.model, self.data = model, data
        self.options: Mapping[str, Any] = read_options(StudyOptions, options, "a study")
        self._preparation = Preparation(model, data, target, self.options)
        self._derived: dict[Any, Study] = {}
        self._routed = True
        self._further_notes: list[str] = []

    def __repr__(self) -> str:
        ready = "prepared" in vars(self._preparation)
        state = f"target {self.target.name!r}" if ready else "nothing was asked yet"
        return f"Study of {type(self.model).__name__}: {state}"

    # -- questions -------------------------------------------------------------------------------

    def search(self, **options: Unpack[SearchOptions]) -> Circuit:
        """Find the circuit behind the target; `keep`, `scorer`, … as for `neurograph.search`."""
        from neurograph.discovery.search import ask

        return ask(self, options)

    def score(self, **options: Unpack[ScoreOptions]) -> Scores:
        """Score every neuron, or every edge; `of`, `scorer`, … as for `neurograph.score`."""
        from neurograph.discovery.scores import ask

        return ask(self, options)

    def strongest_paths(self, k: int = 100, **options: Unpack[PathOptions]) -> StrongestPaths:
        """Find the k strongest paths of the whole model; as `neurograph.strongest_paths`."""
        from neurograph.discovery.strongest_paths import ask

        return ask(self, k, options)

    def responses(self, **options: Unpack[ResponseOptions]) -> ResponseCurves:
        """Measure the target against neurons' quantiles; as `neurograph.response_curves`."""
        from neurograph.discovery.responses import ask

        return ask(self, options)

    def faithfulness(self, ranking: Any, **options: Unpack[FaithfulnessOptions]) -> Faithfulness:
        """Keep what a ranking puts first, ablate all else; as `neurograph.faithfulness`."""
        from neurograph.ablation.faithfulness import ask

        return ask(self, ranking, options)

    def separation(self, labels: Any = None, *, alpha: float = 0.05) -> pd.DataFrame:
        """Test whether each neuron tells classes apart; as `neurograph.separation`."""
        from neurograph.activations.separation import separation

        names = "layers memory seed device feature_names class_names progress".split()
        own = {name: self.options[name] for name in names}
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
        from neurograph.discovery.claims import audit_result

        self.check_unchanged()
        return audit_result(self, of, effects=whole(effects, "effects", least=1))

    def measure_paths(self, paths: Sequence[Sequence[Neuron]]) -> list[tuple[float, float]]:
        """Measure the effects of paths, and their standard errors, in units of the target.

        Raises
        ------
        OptionError
            A neuron that there is not, or a step between layers that do not read each other.
        """
        for path in paths:
            self._check_path(path)
        with self.open() as experiment:
            effects = path_effects(experiment, paths)
        return list(zip(effects.effect.tolist(), effects.stderr.tolist(), strict=True))

    def _check_path(self, path: Sequence[Neuron]) -> None:
        for neuron in path:
            if neuron.layer not in self.layers:
                raise OptionError(f"the model has no neuron {neuron}")
            self.experiment.units(neuron.layer).unit(neuron)
        for writer, reader in itertools.pairwise(path):
            if not self.layers.has_edge(writer.layer, reader.layer):
                raise OptionError(f"{reader.layer!r} does not read {writer.layer!r}: no such path")
        if not self.layers.nodes[path[-1].layer]["output"]:
            raise OptionError(f"the path ends in {path[-1]}, which the target does not read")

    # -- what was found --------------------------------------------------------------------------

    @property
    def layer_graph(self) -> nx.DiGraph:
        """Who reads whom; as from `neurograph.layer_graph`."""
        return self.wiring.layers.copy()

    @property
    def profile(self) -> nx.DiGraph:
        """The layer graph with statistics of all neurons; as from `neurograph.profile`."""
        graph = with_statistics(self.wiring.layers, self.statistics)
        graph.graph["model"] = self._preparation.prepared.weights
        return graph

    @property
    def target(self) -> Target:
        """What is explained, read off the model's output."""
        return self._preparation.prepared.target

    @property
    def asked(self) -> int | TargetFunction | None:
        """The target as one may pass it again: an index even where a name was given."""
        return self.target.function or self.target.asked

    @property
    def wiring(self) -> Wiring:
        """Who reads whom, and the plans of replays that follow from it."""
        return self._preparation.wiring(routed=self._routed)

    @property
    def layers(self) -> nx.DiGraph:
        """The graph of the layers that are searched, in the order they run; not to be changed."""
        return self.wiring.layers

    @property
    def statistics(self) -> Statistics:
        """Statistics over the data, by layer."""
        return self._preparation.statistics(self.contrast)

    @functools.cached_property
    def contrast(self) -> Contrast:
        """The values between which neurons move."""
        return as_contrast(self.options["contrast"])

    @functools.cached_property
    def experiment(self) -> Experiment:
        """All that stays fixed while effects are measured."""
        background = self.options["background"]
        return self._preparation.experiment(self.contrast, background, routed=self._routed)

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the input's features, where they have some."""
        return self._preparation.prepared.feature_names

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the user while preparing, in plain sentences."""
        experiment, layers, names = self.experiment, self.layers, self.feature_names
        known = with_statistics(layers, self._preparation.known_statistics)
        notes = [
            *self._further_notes,
            *stillness(experiment, layers, names, self.options["positions"]),
            *self._preparation.prepared.notes,
            *sampled(self.contrast, known),
        ]
        return tuple(dict.fromkeys(notes))

    def add_note(self, sentence: str) -> None:
        """Note what a question found out about the model that holds for all further ones."""
        if sentence not in self._further_notes:
            self._further_notes.append(sentence)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from, as JSON can hold it: model, data, target, options, notes."""
        return self.provenance_with({})

    def provenance_with(
        self, own: Mapping[str, Any], without: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Provenance of the result of a question, with the question's own options.

        Parameters
        ----------
        own : mapping of str to Any
            Options of the question, beside those of the study.
        without : sequence of str
            Options of the study that the question does not use.
        """
        prepared = self._preparation.prepared
        sites = prepared.recording.sites
        options = _describe(self.options, self.contrast, sites)
        kept = {name: value for name, value in options.items() if name not in without}
        routed = {"routed": sorted(sites.routed)} if sites.routed else {}
        model = {"class": type(self.model).__name__, "hash": prepared.weights, **routed}
        data = {
            "fingerprint": prepared.fingerprint,
            "samples": prepared.samples,
            "reference": list(prepared.reference),
        }
        shortcuts = {} if not self._further_notes else self._shortcuts()
        return {
            **shortcuts,
            "model": model,
            "data": data,
            "target": describe_target(self.target),
            "options": {**kept, **own},
            "versions": dict(_versions()),
            "notes": list(self.notes),
        }

    def _shortcuts(self) -> dict[str, bool]:
        """Which shortcuts were taken, as who attaches a circuit must know that lacks one."""
        experiment = self.experiment
        return {"narrow": experiment.narrow, "one_by_one": experiment.replay.one_by_one}

    # -- names -----------------------------------------------------------------------------------

    def tokens(self, layer: str) -> list[str] | None:
        """What stands at each position of a layer; None without a tokenizer."""
        if self.options["tokenizer"] is None:
            return None
        recording = self.experiment.recording
        inputs = input_tensors(self.model, recording.batch)
        return token_names(inputs, recording.layers[layer], self.options["tokenizer"])

    def name(self, neuron: Neuron, tokens: Sequence[str] | None = None) -> str:
        """What a neuron is called: a feature, the target, or ``layer[index]``.

        `tokens` are those of its layer, if the positions are to be named.
        """
        layer = self.experiment.recording.layers[neuron.layer]
        units = self.experiment.units(neuron.layer)
        if layer.is_input and self.feature_names is not None and units.plain:
            return self.feature_names[neuron.index]
        if units.plain and self._is_target_column(neuron):
            return self.target.name
        return units.name(neuron, tokens)

    def _is_target_column(self, neuron: Neuron) -> bool:
        """Whether a neuron is the very output column that the target is."""
        layer = self.experiment.recording.layers[neuron.layer]
        only = [n for n, d in self.layers.nodes(data=True) if d["output"]] == [neuron.layer]
        return only and len(layer.shape) == 1 and neuron.index == self.target.index

    # -- running ---------------------------------------------------------------------------------

    def at(self, *, routed: bool = True, **options: Any) -> Study:
        """The same study with another contrast or background, which share its preparation.

        Parameters
        ----------
        routed : bool
            Whether layers that run on some rows only are layers; else they are glue.
        **options
            ``contrast``, ``background``.
        """
        key = (routed, *sorted(options.items(), key=lambda item: item[0]))
        others = {n: v for n, v in options.items() if v != self.options[n]}
        if not others and routed == self._routed:
            return self
        if key not in self._derived:
            other = copy.copy(self)
            for name in ("experiment", "contrast"):
                vars(other).pop(name, None)
            other.options, other._routed = {**self.options, **options}, routed
            self._derived[key] = other
        return self._derived[key]

    @contextlib.contextmanager
    def open(self) -> Iterator[Experiment]:
        """Put the model on its device and under replay."""
        experiment = self.experiment
        if self._preparation.was_opened:
            self.check_unchanged()
        self._preparation.was_opened = True
        with placed(self.model, self.options["device"]), experiment:
            yield experiment

    def check_unchanged(self) -> None:
        """ModelError if the weights are others now: replays would mix them with old outputs."""
        if model_hash(self.model) != self._preparation.prepared.weights:
            raise ModelError(
                "the model's weights have changed since it was prepared: make a new Study, or "
                "search it again"
            )


def _describe(options: Mapping[str, Any], contrast: Contrast, sites: Sites) -> dict[str, Any]:
    """Options as JSON can hold them; data among them is only named."""
    outputs = (sites.outputs | sites.routed) - sites.left_out
    chosen = [*outputs, *(n + INPUT_SIDE for n in sites.inputs)]
    described: dict[str, Any] = {
        "layers": sorted(chosen) if sites.left_out or sites.asked else None,
        "groups": describe_groups(options["groups"] or {}),
        "positions": options["positions"],
        "contrast": contrast.as_json(),
        "background": options["background"],
        "reference": options["reference"] if isinstance(options["reference"], int) else "given",
        "memory": options["memory"],
        "seed": options["seed"],
        "profile": "made" if options["profile"] is None else "given",
    }
    for key in ("feature_names", "class_names"):
        names = options[key]
        described[key] = None if names is None else list(map(str, names))
    return described


@functools.cache  # reading them takes milliseconds
def _versions() -> Mapping[str, str]:
    packages = {"neurograph": "neurograph-torch", "torch": "torch", "networkx": "networkx"}
    versions = {"python": platform.python_version()}
    for name, distribution in packages.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(distribution)
    return versions
