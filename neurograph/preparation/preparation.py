"""What is found once of a model, its data and target, whatever is then asked of them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.activations.profile import (
    QUANTILES,
    add_statistics,
    check_weights,
    model_hash,
    wired,
)
from neurograph.data.source import (
    Batch,
    Drawn,
    Source,
    check_same_columns,
    concatenate,
    fingerprint,
)
from neurograph.effects.contrast import (
    Background,
    Contrast,
    LayerSamples,
    with_background,
)
from neurograph.effects.counterfactual import Reference
from neurograph.effects.experiment import Experiment
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.model.basis import Basis, find_bases
from neurograph.model.dictionary import Dictionary
from neurograph.model.layer_choice import Sites, find_sites, refuse_unsupported
from neurograph.model.neurons import Units, doubtful_heads, find_groups, units_of
from neurograph.model.observe import call_model, input_tensors, placed, undisturbed
from neurograph.model.positions import moving
from neurograph.model.state import ALONE, keeping
from neurograph.model.target import (
    Target,
    TargetFunction,
    check_finite,
    check_rows,
    resolve_target,
)
from neurograph.preparation.basis_finder import BasisFinder
from neurograph.preparation.preflight import (
    as_masked,
    check_replayed,
    check_samples,
    coarse,
    habits,
    mixing,
    numberless,
)
from neurograph.replay.mixing import Regrouped, differs
from neurograph.replay.padding import Padding, find_padding
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording, capture
from neurograph.replay.replay import Replay
from neurograph.replay.wiring import Wiring, confirm_wiring, without_layers
from neurograph.utils.checks import shown
from neurograph.utils.memory import parse_memory
from neurograph.utils.nested import flatten

__all__ = ["LayerStatistics", "Preparation", "Prepared", "with_statistics"]


LayerStatistics = Mapping[str, Mapping[str, Any]]
"""By layer, what `profile` puts on its node."""


class Preparation:
    """A model, data and a target made ready: recorded, wired, and profiled where that is needed.

    Everything is found when it is first asked for, and then kept.

    Parameters
    ----------
    model : Module
    data : Any
    target : int, str, callable or None
        As the user gave it.
    options : mapping of str to Any
        Those of `StudyOptions`, all of them, read.
    beyond : int
        How many of the samples that the seed draws first are left out: the reference samples of
        another preparation.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        target: int | str | TargetFunction | None,
        options: Mapping[str, Any],
        beyond: int = 0,
    ) -> None:
        self.model, self.data, self.asked, self.options = model, data, target, options
        self.beyond = beyond
        self._statistics: LayerStatistics | None = None
        self._levels = set(QUANTILES)
        self._experiments: dict[tuple[Background, bool], Experiment] = {}
        self.lock = threading.RLock()
        self.is_late = False  # whether a question came after others
        self.is_trusted = False  # whether the weights are known to be those that were prepared

    @functools.cached_property
    def prepared(self) -> Prepared:
        """What the runs of preparation found."""
        with placed(self.model, self.options["device"]):
            refuse_unsupported(self.model)
            check_weights(self.model)
            weights = model_hash(self.model)
            with ALONE, keeping(self.model, shared=True):
                return _prepare(self, weights)

    @functools.cached_property
    def finder(self) -> BasisFinder[Preparation]:
        """Finds bases of layers, where these have none."""
        return _finder(self, self.prepared.recording, self.prepared.samples)

    def within(self, bases: Mapping[str, Basis]) -> Preparation:
        """The same, with neurons of layers in bases, by the layers' names."""
        other = Preparation(self.model, self.data, self.asked, self.options, self.beyond)
        vars(other)["prepared"] = _in_bases(self.prepared, bases)
        other.lock, other.is_trusted = self.lock, self.is_trusted
        return other

    def check_unchanged(self) -> None:
        """ModelError if the model is another than it was when it was prepared.

        Its weights are compared, and, as what forward does may have changed besides (a module, a
        hook, a number), what it makes of the reference samples.
        """
        if "prepared" not in vars(self):
            return
        actual, target = self.prepared.recording, self.prepared.target
        if model_hash(self.model) != self.prepared.weights:
            raise ModelError(
                "the model's weights have changed since it was prepared: make a new Study, or "
                "search it again"
            )
        with placed(self.model, self.options["device"]), undisturbed(self.model):
            output = call_model(self.model, actual.batch)
            before, now = (target(out, lambda: actual.batch) for out in (actual.output, output))
        if differs(before, now):
            raise ModelError(
                "the model gives something else for the reference samples than when it was "
                "prepared, though its weights are the same (another module, a hook, another "
                "number in it?): make a new Study, or search it again"
            )

    def check_data(self) -> None:
        """DataError if the data are others than they were when they were hashed."""
        if "prepared" not in vars(self):
            return
        digest = fingerprint([])
        for batch in self.prepared.source:
            fingerprint(batch.tensors(), digest)
        if digest.hexdigest() != self.prepared.fingerprint:
            raise DataError(
                "the data have changed since they were prepared: make a new Study (data that "
                "draw random numbers: give profile=, so that they are read once)"
            )

    @property
    def known_statistics(self) -> LayerStatistics:
        """Statistics as far as they were needed."""
        return self._statistics or {}

    def statistics(self, contrast: Contrast) -> LayerStatistics:
        """Statistics of every layer over the data, with a contrast's quantiles; a pass over it.

        Those of a profile that was given, where there is one.
        """
        prepared, options = self.prepared, self.options
        if self._statistics is not None and set(contrast.quantiles) <= self._levels:
            return self._statistics
        graph = prepared.profiled
        levels = self._levels | set(contrast.quantiles)
        if prepared.example is not None:
            graph = graph.copy()
            with placed(self.model, options["device"]):
                if self.is_late:
                    self.check_data()
                add_statistics(
                    graph,
                    self.model,
                    self.data,
                    prepared.example,
                    levels=sorted(levels),
                    memory=options["memory"],
                    seed=options["seed"],
                    progress=options["progress"],
                )
        found = dict(graph.nodes(data=True))
        for name, layer in prepared.recording.layers.items():
            if layer.neurons and "mean" not in found.get(name, {"mean": None}):
                raise OptionError(
                    f"the profile has no statistics for {name!r}: use profile(), not layer_graph()"
                )
        self._statistics, self._levels = found, levels
        return found

    def experiment(self, contrast: Contrast, background: Background, *, routed: bool) -> Experiment:
        """Experiment on the reference samples, ready to be opened.

        Parameters
        ----------
        contrast, background
        routed : bool
            Whether layers that run on some rows only are layers; else they are glue.
        """
        prepared, options = self.prepared, self.options
        actual, wiring = prepared.recording, self.wiring(routed=routed)
        graph = wiring.layers
        statistics: LayerStatistics = {}
        if contrast.needs_statistics or background == "mean":
            # Here, where no stand-ins are in the model that the pass would meet.
            statistics = self.statistics(contrast)
            graph = with_statistics(graph, statistics)
        with placed(self.model, options["device"]):
            counterfactuals = contrast.counterfactuals(self._reference)

        def levels(layer: str) -> Tensor:
            known = statistics.get(layer, {}), actual, counterfactuals
            values = contrast.levels_of(LayerSamples(actual.layers[layer], *known))
            return values.to(actual.main(layer))

        # Later than a layer that overflows would be named by the pass for statistics.
        check_finite(prepared.target, actual.output, actual.batch)
        key = background, wiring is prepared.wiring
        if key in self._experiments:
            return self._experiments[key].with_levels(levels)
        with placed(self.model, options["device"]):
            recording = _background(self.model, actual, background, graph)
        self._experiments[key] = self._on(recording, wiring, levels)
        return self._experiments[key]

    @property
    def found_mixing(self) -> int:
        """Of how many experiments it was found on the way that interventions cannot share a batch.

        What was measured before that may be wrong.
        """
        return sum(experiment.replay.found_mixing for experiment in self._experiments.values())

    @property
    def _reference(self) -> Reference:
        """The reference samples, as what their counterfactuals are found by."""
        prepared, options = self.prepared, self.options
        actual, is_drawn = prepared.recording, isinstance(options["reference"], int)
        count = prepared.samples if is_drawn else actual.size
        return Reference(
            self.model, prepared.source, actual, prepared.reference, count, options["seed"]
        )

    def _on(
        self, recording: Recording, wiring: Wiring, levels: Callable[[str], Tensor]
    ) -> Experiment:
        """Experiment on a background."""
        prepared, options = self.prepared, self.options
        actual, real = prepared.recording, recording is prepared.recording

        def units(layer: str) -> Units:
            kind, channels = prepared.groups.get(layer, ("channel", None))
            each = options["positions"] == "each"
            found = units_of(actual.layers[layer], channels, kind, each)
            basis, device = actual.layers[layer].basis, actual.main(layer).device
            rest = basis is not None and basis.has_remainder
            elements, sizes = found.elements.to(device), found.sizes.to(device)
            return replace(found, elements=elements, sizes=sizes, has_remainder=rest)

        def may_move(layer: str) -> Tensor | None:
            mask = moving(prepared.inputs, actual.size, actual.layers[layer], options["positions"])
            return None if mask is None else mask.to(actual.main(layer).device)

        return Experiment(
            Replay(self.model, recording, real=real),
            wiring,
            prepared.target,
            units,
            levels,
            may_move,
            parse_memory(options["memory"]),
            real=real,
            coarse=prepared.is_coarse,
        )

    def wiring(self, *, routed: bool) -> Wiring:
        """Who reads whom, with or without layers that run on some rows only."""
        prepared = self.prepared
        if routed or not prepared.recording.sites.routed:
            return prepared.wiring
        return self._without_routed

    @functools.cached_property
    def _without_routed(self) -> Wiring:
        actual = self.prepared.recording
        wiring = without_layers(self.prepared.wiring, actual, routed=False)
        with placed(self.model, self.options["device"]), Replay(self.model, actual) as replay:
            return confirm_wiring(replay, wiring)


def with_statistics(graph: nx.DiGraph, statistics: LayerStatistics) -> nx.DiGraph:
    """Layer graph with statistics on its nodes."""
    known = graph.copy()
    for name, data in known.nodes(data=True):
        data.update({k: v for k, v in statistics.get(name, {}).items() if k not in data})
    return known


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the runs of preparation found.

    Attributes
    ----------
    source : Source
        The data as batches.
    profiled : networkx.DiGraph
        The profile that was given, or the layer graph of a few samples from all of the data.
    example : Recording or None
        Of these few samples; None beside a profile that was given.
    recording : Recording
        Of the reference samples.
    wiring : Wiring
        Who reads whom, confirmed on the reference samples.
    target : Target
    inputs : dict of str to Tensor
        The model's inputs for the reference samples, by name.
    groups : dict
        What channels are taken together, as `find_groups` gives it.
    feature_names : tuple of str or None
    samples : int
        How many the data hold.
    fingerprint : str
        SHA-256 of the data.
    reference : tuple of int
        Which samples are the reference, or their numbers among those that were given.
    weights : str
        SHA-256 of the model's weights.
    is_coarse : bool
        Whether targets are computed so coarsely that rounding decides about effects.
    notes : tuple of str
        What was decided for the user, in sentences.
    """

    source: Source
    profiled: nx.DiGraph
    example: Recording | None
    recording: Recording
    wiring: Wiring
    target: Target
    inputs: Mapping[str, Tensor]
    groups: Mapping[str, tuple[str, list[list[int]]]]
    feature_names: tuple[str, ...] | None
    samples: int
    fingerprint: str
    reference: tuple[int, ...]
    weights: str
    is_coarse: bool
    notes: tuple[str, ...]


def _prepare(preparation: Preparation, weights: str) -> Prepared:
    model, data, options = preparation.model, preparation.data, preparation.options
    asked = preparation.asked
    given, example = options["profile"], None
    if given is not None:
        _check_profiled(given, weights)
    source = Source(data, model, class_names=options["class_names"])
    _check_target(asked, source, model, options)
    walk = _Walk(source, options, preparation.beyond)
    if given is None:
        profiled, example = wired(model, walk, options["layers"])
    else:
        profiled = given
    sites = _sites(model, options, profiled)
    batch, positions = _reference(walk, model, options)
    _check_size(profiled, batch)
    with _naming_reference(options):
        others = Regrouped(model, batch)
        actual = capture(model, batch, sites, like=example, others=others)
        actual = _without_unknown(actual, profiled)
        wiring = without_layers(Wiring.of(profiled), actual)
        _check_profile(wiring.layers, actual, made=given is None)
    asked = as_masked(asked, profiled.graph.get("padding"))
    target = resolve_target(asked, actual.output, options["class_names"], size=actual.size)
    check_rows(target, actual.output, actual.batch)
    padding = _padding(model, actual, target, profiled)
    actual = padding.on(actual)
    mixed = list(mixing(others, target, actual))  # the last runs are of other samples
    with Replay(model, actual) as replay:
        check_replayed(replay, target)
        wiring = confirm_wiring(replay, wiring)
    searched = {name: actual.layers[name] for name in wiring.layers}
    groups = find_groups({} if options["groups"] is None else options["groups"], searched, model)
    finder = _finder(preparation, actual, walk.samples)
    bases = find_bases({} if options["basis"] is None else options["basis"], searched, finder)
    both = groups.keys() & bases.keys()
    if both:
        raise OptionError(f"layer {min(both)!r} has groups= and basis=: pass one of the two")
    if bases and given is not None:
        raise OptionError(
            "profile= has statistics of channels, and basis= has other neurons: pass one of the two"
        )
    coarsely = list(coarse(target, actual))
    notes = [
        *doubtful_heads(groups, searched),
        *source.notes,
        *target.notes,
        *padding.notes,
        *habits(model, actual),
        *mixed,
        *coarsely,
        *finder.notes,
        *_qualities(actual, bases),
    ]
    prepared = Prepared(
        source,
        profiled,
        example,
        actual,
        wiring,
        target,
        input_tensors(model, actual.batch),
        groups,
        _feature_names(options["feature_names"], source.feature_names, actual),
        walk.samples,
        walk.hash,
        positions,
        weights,
        bool(coarsely),
        tuple(dict.fromkeys(notes)),
    )
    return _in_bases(prepared, bases) if bases else prepared


def _qualities(actual: Recording, bases: Mapping[str, Basis]) -> Iterator[str]:
    """Say how well dictionaries write what layers pass on."""
    for name, basis in bases.items():
        if isinstance(basis, Dictionary):
            rows = actual.main(name).movedim(actual.layers[name].channel_dim, -1)
            with contextlib.suppress(OptionError):  # rows that do not vary
                explained, active = basis.quality(rows)
                yield (
                    f"the dictionary of {name!r} reconstructs {explained:.1%} of the variance of "
                    f"the reference samples, with {active:.1f} features at a time"
                )


def _in_bases(prepared: Prepared, bases: Mapping[str, Basis]) -> Prepared:
    """The same, with neurons of some layers in bases."""
    recording, example, wiring = prepared.recording, prepared.example, prepared.wiring
    recording = recording.with_bases(bases)

    @functools.cache
    def told(graph: nx.DiGraph) -> nx.DiGraph:
        graph = graph.copy()
        for name in graph.nodes & bases.keys():
            graph.nodes[name]["neurons"] = recording.layers[name].neurons
        return graph

    return replace(
        prepared,
        profiled=told(prepared.profiled),
        example=None if example is None else example.with_bases(bases),
        recording=recording,
        wiring=Wiring(told(wiring.layers), told(wiring.whole), told(wiring.possible)),
        groups={**prepared.groups, **{n: (b.kind, b.units) for n, b in bases.items()}},
    )


def _finder(preparation: Preparation, actual: Recording, samples: int) -> BasisFinder[Preparation]:
    """Find directions in a preparation of the channels themselves, on samples of its own."""
    options = preparation.options
    drawn = actual.size if isinstance(options["reference"], int) else 0

    def plain(count: int, beyond: int) -> Preparation:
        own = {"basis": None, "reference": count, "progress": False}
        own["seed"] = options["seed"] + (not beyond)  # no others are left: at least not the same
        own = {**options, **own}
        return Preparation(preparation.model, preparation.data, preparation.asked, own, beyond)

    return BasisFinder(
        plain, actual, samples, drawn, parse_memory(options["memory"]), options["seed"]
    )


def _padding(model: nn.Module, actual: Recording, target: Target, profiled: nx.DiGraph) -> Padding:
    """What is padding, as the reference samples show it, or the data where these have none."""
    padding = find_padding(model, [actual.batch], actual, target)
    known: Padding = padding if padding.tried else profiled.graph.get("padding", padding)
    return known


def _check_profiled(profiled: Any, weights: str) -> None:
    """OptionError for what is no profile, or one of other weights: its quantiles are not these."""
    if not isinstance(profiled, nx.DiGraph):
        raise OptionError(f"profile={shown(profiled)}: pass what profile() returned")
    made = profiled.graph.get("model")
    if made is not None and made != weights:
        raise OptionError(
            f"the profile was made of another model, or of other weights ({made[:12]}…): call "
            "profile(model, data) again, or leave profile= out"
        )


def _check_size(profiled: nx.DiGraph, batch: Batch) -> None:
    size = profiled.graph.get("batch", batch.size)
    if size != batch.size:
        raise OptionError(
            f"the model takes batches of {size} samples and no others, but the background has "
            f"{batch.size}: pass reference={size}, and data in batches of {size}"
        )


def _background(
    model: nn.Module, actual: Recording, chosen: Background, profiled: nx.DiGraph
) -> Recording:
    """Set the background; layers left out compute what that makes them, as they are glue."""
    background = with_background(actual, chosen, profiled)
    left_out = {name for name in background.layers if not background.is_searched(name)}
    if background is actual or not left_out:
        return background
    calls = dict(background.calls)

    def hear(event: str, call: str, value: Any) -> None:
        if event == "returned" and any(n.name in left_out for n in background.by_call[call]):
            leaves = [x.clone() if isinstance(x, Tensor) else x for x in flatten(value)[0]]
            calls[call] = replace(calls[call], leaves=leaves)

    plan = Plan(frozen=frozenset(background.layers) - left_out, open=frozenset(left_out))
    with Replay(model, background) as replay:
        replay.run(plan, listen=hear)
    return replace(background, calls=calls)


def _sites(model: nn.Module, options: Mapping[str, Any], profiled: nx.DiGraph) -> Sites:
    """Say which modules are layers: what the profile says, which `layers=` must not contradict."""
    sites: Sites | None = profiled.graph.get("sites")
    if sites is None:
        raise OptionError(
            "the profile says nothing of its layers: use profile(), not layer_graph()"
        )
    asked = None if options["layers"] is None else find_sites(model, options["layers"])
    if asked is not None and asked.without(sites.routed) != sites:
        raise OptionError("layers= differs from those of the profile: leave one of the two out")
    return sites


class _Walk:
    """The data's batches; who first reads them all has them hashed and reference samples drawn.

    Attributes
    ----------
    hash : str
        SHA-256 of the data.
    samples : int
        How many there are.
    drawn : Drawn or None
        The reference samples, where these are drawn from the data.
    """

    def __init__(self, source: Source, options: Mapping[str, Any], beyond: int = 0) -> None:
        self.source, self._options, self._beyond = source, options, beyond
        self.hash, self.samples = "", 0
        self.drawn: Drawn | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self.hash:
            yield from self.source
            return
        digest, samples, count = fingerprint([]), 0, self._options["reference"]
        drawn = None
        if isinstance(count, int):
            drawn = Drawn(count, self._options["seed"], self._beyond)
        for batch in self.source:
            fingerprint(batch.tensors(), digest)
            samples += batch.size
            if drawn is not None:
                drawn.add(batch)
            yield batch
        self.hash, self.samples, self.drawn = digest.hexdigest(), samples, drawn


def _reference(
    walk: _Walk, model: nn.Module, options: Mapping[str, Any]
) -> tuple[Batch, tuple[int, ...]]:
    """Draw or take the background samples."""
    if not walk.hash:  # nothing else had to read the data
        for _ in walk:
            pass
    if walk.drawn is not None:
        return walk.drawn.result()
    given = Source(options["reference"], model)
    check_same_columns(walk.source, given, "reference")
    try:
        batch = concatenate(list(given)).map(torch.clone)  # the user may write to theirs
    except DataError as error:
        raise DataError(f"reference: {error}") from error
    return batch, tuple(range(batch.size))


def _check_target(
    target: int | str | TargetFunction | None,
    source: Source,
    model: nn.Module,
    options: Mapping[str, Any],
) -> None:
    """Try a target on the samples that it will be asked about: only these may have labels."""
    if not isinstance(options["reference"], int):
        source = Source(options["reference"], model, class_names=options["class_names"])
    with _naming_reference(options):
        check_samples(target, source, model, options["class_names"])


@contextlib.contextmanager
def _naming_reference(options: Mapping[str, Any]) -> Iterator[None]:
    """Say that it is the reference samples that a model does not take, where they were given."""
    try:
        yield
    except (DataError, ModelError, OptionError) as error:
        if isinstance(options["reference"], int):
            raise
        raise DataError(f"reference= does not fit: {error}") from error


def _without_unknown(actual: Recording, profiled: nx.DiGraph) -> Recording:
    """Leave out what values chose for the first time; other unknown layers are another model's."""
    known = Wiring.of(profiled).whole
    layers = (layer for layer in actual.layers.values() if layer.call not in known)
    alike = {numberless(path) for path in actual.sites.routed}
    unknown = {layer.module for layer in layers if numberless(layer.module) in alike}
    return actual.without(frozenset(unknown)) if unknown else actual


def _other_layers(name: str, where: str) -> ModelError:
    return ModelError(
        f"layer {name!r} ran {where}: the model takes different layers for different data, which "
        "have no effects in common. Search the data of each kind by themselves"
    )


def _check_profile(profiled: nx.DiGraph, actual: Recording, *, made: bool) -> None:
    """OptionError where a profile that was given, ModelError where one just made, does not fit."""
    for name, layer in actual.layers.items():
        whole = Wiring.of(profiled).whole
        if layer.routed:
            continue
        if name not in whole and layer.leaf == min(n.leaf for n in actual.by_call[layer.call]):
            if made:
                raise _other_layers(
                    name, "on the reference samples but not on the first of the data"
                )
            raise OptionError(f"the profile lacks layer {name!r}: profile this model, this way")
    for name in profiled:
        if name not in actual.layers:
            if made:
                raise _other_layers(
                    name, "on the first of the data but not on the reference samples"
                )
            raise OptionError(f"the model never called layer {name!r} of the profile on this data")
        layer = actual.layers[name]
        known = profiled.nodes[name]["neurons"]
        if known != layer.neurons:
            raise OptionError(
                f"the profile has {known} neurons for layer {name!r}, the model {layer.neurons}"
            )


def _feature_names(
    given: Sequence[str] | None, columns: Sequence[str] | None, recording: Recording
) -> tuple[str, ...] | None:
    """Read names that were given, or else the columns of the data, where they are features."""
    inputs = [layer for layer in recording.layers.values() if layer.is_input and layer.neurons]
    names = given or (columns if inputs else None)
    if names is None:
        return None
    places = {name: place for place, name in enumerate(columns or ())}
    for place, name in enumerate(given or ()):
        if places.get(name, place) != place:
            raise OptionError(
                f"feature_names[{place}] is {name!r}, but the data have that column at "
                f"{places[name]}: leave feature_names= out (the columns are named already), "
                "or give them in the columns' order"
            )
    if len(inputs) != 1:
        raise OptionError(f"feature_names name one input, but the model has {len(inputs)}")
    if len(names) != inputs[0].neurons:
        raise OptionError(
            f"feature_names has {len(names)} names for {inputs[0].neurons} input features"
        )
    return tuple(map(str, names))
