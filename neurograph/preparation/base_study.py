"""A study: a model, data and a target made ready once, and asked as often as one likes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from types import MappingProxyType
from typing import Any, Self, TypeVar, Unpack

import networkx as nx
from torch import nn

from neurograph.data.source import Source
from neurograph.effects.contrast import Background, Contrast
from neurograph.effects.effects import Effects
from neurograph.effects.exact import path_effects
from neurograph.effects.experiment import Experiment
from neurograph.errors import NeurographError, OptionError
from neurograph.model.basis import B, Basis, FoundBasis, describe_bases
from neurograph.model.layer_choice import INPUT_SIDE, Sites, refuse_unsupported
from neurograph.model.layers import Neuron
from neurograph.model.neurons import describe_groups
from neurograph.model.observe import input_tensors, placed
from neurograph.model.positions import token_names
from neurograph.model.target import Target, TargetFunction, describe_target
from neurograph.preparation.options import StudyOptions, read_options
from neurograph.preparation.preflight import routing, sampled, stillness
from neurograph.preparation.preparation import LayerStatistics, Preparation, with_statistics
from neurograph.replay.wiring import Wiring

__all__ = ["MEANING", "BaseStudy", "differing"]

Answer = TypeVar("Answer")

_MIXING_NOTE = (
    "what moves in one sample may change others of its batch once it moves far enough, so "
    "interventions run one by one"
)
_VIEWS = 8  # kept: each may hold other samples
MEANING = ("layers", "groups", "basis", "positions", "contrast", "background")
"""Options without which effects mean something else."""


class BaseStudy:
    """What a question needs of a model, data and a target: prepared when first needed, and kept.

    Parameters
    ----------
    model, data, target, **options
        As for `Study`, which is this with its questions.
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
        self.options: Mapping[str, Any] = MappingProxyType(
            read_options(StudyOptions, options, "a study")
        )
        self._preparation = Preparation(model, data, target, self.options)
        self._derived: dict[Any, Self] = {}
        self._routed = True
        self._further_notes: list[str] = []

    def __repr__(self) -> str:
        ready = "prepared" in vars(self._preparation)
        state = f"target {self.target.name!r}" if ready else "nothing was asked yet"
        return f"{type(self).__name__} of {type(self.model).__name__}: {state}"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: Any) -> Self:
        return self  # a copy of a circuit measures on the same model

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__}, and what was asked of it, holds a model and cannot be "
            "pickled: pass on circuit.detach(), the file of circuit.save(path), or tables"
        )

    # -- measuring -------------------------------------------------------------------------------

    def measure_paths(self, paths: Sequence[Sequence[Neuron]]) -> list[tuple[float, float]]:
        """Measure the effects of paths, and their standard errors, in units of the target.

        Raises
        ------
        OptionError
            A neuron that there is not, or a step between layers that do not read each other.
        """
        for path in paths:
            self._check_path(path)

        def measured() -> Effects:
            with self.open() as experiment:
                return path_effects(experiment, paths)

        effects = self.answer(measured)
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
        with self.asking():
            return self.wiring.layers.copy()

    @property
    def profile(self) -> nx.DiGraph:
        """The layer graph with statistics of all neurons; as from `neurograph.profile`."""
        with self.asking():
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
        return self._preparation.wiring(routed=self._has_routed)

    @property
    def _has_routed(self) -> bool:
        """Whether layers that run on some rows only are layers; other samples may have no such."""
        return self._routed and not self.contrast.needs_counterfactuals

    @property
    def layers(self) -> nx.DiGraph:
        """The graph of the layers that are searched, in the order they run; not to be changed."""
        return self.wiring.layers

    @property
    def statistics(self) -> LayerStatistics:
        """Statistics over the data, by layer."""
        with self.asking():
            return self._preparation.statistics(self.contrast)

    @property
    def contrast(self) -> Contrast:
        """The values between which neurons move."""
        contrast: Contrast = self.options["contrast"]
        return contrast

    @functools.cached_property
    def experiment(self) -> Experiment:
        """All that stays fixed while effects are measured."""
        background = self.options["background"]
        return self._preparation.experiment(self.contrast, background, routed=self._has_routed)

    def find_basis(self, layer: str, wanted: FoundBasis[B], *, fewer: bool = False) -> B:
        """Find directions, or families, of a layer; as many as there are, if `fewer` will do."""
        with self.asking():
            return self._preparation.finder(layer, wanted, fewer=fewer)

    @property
    def source(self) -> Source:
        """The data, as batches."""
        return self._preparation.prepared.source

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
            *([_MIXING_NOTE] if experiment.replay.pools else []),
            *stillness(experiment, layers, names, self.options["positions"]),
            *self._preparation.prepared.notes,
            *self._preparation.finder.notes,
            *routing(self._preparation.prepared.recording, layers),
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

    def at(
        self,
        *,
        contrast: str | tuple[float, ...] | Contrast | None = None,
        background: Background | None = None,
        routed: bool | None = None,
    ) -> Self:
        """The same study with another contrast or background, which share its preparation.

        Parameters
        ----------
        contrast, background : optional
            As for `Study`.
        routed : bool, optional
            Whether layers that run on some rows only are layers; else they are glue.
        """
        given = {"contrast": contrast, "background": background}
        given = {name: value for name, value in given.items() if value is not None}
        wanted = read_options(StudyOptions, {**self.options, **given}, "a study")
        routed = self._routed if routed is None else routed
        key = routed, wanted["contrast"], wanted["background"]
        if key == (self._routed, self.options["contrast"], self.options["background"]):
            return self
        if key not in self._derived:
            other = type(self).__new__(type(self))
            vars(other).update(vars(self))
            vars(other).pop("experiment", None)
            other.options, other._routed = MappingProxyType(wanted), routed
            self._derived[key] = other
            while len(self._derived) > _VIEWS:
                self._derived.pop(next(iter(self._derived)))
        return self._derived[key]

    def _with(self, preparation: Preparation) -> Self:
        other = type(self).__new__(type(self))
        vars(other).update({k: v for k, v in vars(self).items() if k != "experiment"})
        other._preparation, other._derived = preparation, {}
        return other

    @contextlib.contextmanager
    def within(self, bases: Mapping[str, Basis]) -> Iterator[Self]:
        """The same study with neurons of layers in bases, by the layers' names, for a while."""
        other = self._with(self._preparation.within(bases))
        mine, theirs = self.experiment.replay, other.experiment.replay
        theirs.one_by_one |= mine.one_by_one
        try:
            yield other
        finally:
            if theirs.found_mixing:
                mine.one_by_one = mine.found_mixing = True

    def where_found(self, samples: int) -> Self:
        """The same study on the samples on which directions are found, so many."""
        return self._with(self._preparation.finder.preparation(samples))

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Answer one question at a time, of the model as it was prepared.

        A model that is another by now is refused, once for all that is run inside: replays would
        mix it with what the other returned. Questions of other threads wait.
        """
        preparation = self._preparation
        with preparation.lock:
            outermost = not preparation.is_trusted
            if outermost:
                preparation.is_late = "prepared" in vars(preparation)
                preparation.check_unchanged()
            preparation.is_trusted = True
            try:
                yield
            finally:
                preparation.is_trusted = not outermost

    def answer(self, question: Callable[[], Answer]) -> Answer:
        """Answer a question about the model as prepared; again if samples turn out to mix.

        That interventions which share a batch influence each other may show only when something
        moves far enough. What was measured before may be wrong, so the question is asked anew.
        """
        with self.asking():
            while True:
                before = self._preparation.found_mixing
                try:
                    result = question()
                except NeurographError:
                    if self._preparation.found_mixing == before:
                        raise
                else:
                    if self._preparation.found_mixing == before:
                        return result
                self.add_note(_MIXING_NOTE)

    @contextlib.contextmanager
    def open(self) -> Iterator[Experiment]:
        """Put the model on its device and under replay."""
        with self.asking(), placed(self.model, self.options["device"]), self.experiment as running:
            yield running

    def check_unchanged(self) -> None:
        """ModelError if the model is another than it was when it was prepared."""
        self._preparation.check_unchanged()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Name the first thing in which two provenances are of effects with another meaning."""
    parts = [("model", "hash"), ("data", "fingerprint"), ("data", "reference"), ("target", "name")]
    parts += [("options", name) for name in MEANING]
    for part, key in parts:
        if one[part].get(key) != other[part].get(key):
            return key if part == "options" else part
    return None


def _describe(options: Mapping[str, Any], contrast: Contrast, sites: Sites) -> dict[str, Any]:
    """Options as JSON can hold them; data among them is only named."""
    outputs = (sites.outputs | sites.routed) - sites.left_out
    chosen = [*outputs, *(n + INPUT_SIDE for n in sites.inputs)]
    described: dict[str, Any] = {
        "layers": sorted(chosen) if sites.left_out or sites.asked else None,
        "groups": describe_groups({} if options["groups"] is None else options["groups"]),
        "basis": describe_bases({} if options["basis"] is None else options["basis"]),
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
