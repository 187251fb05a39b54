"""From a model, its data and options to an experiment ready to run, and to how it is recorded."""

from __future__ import annotations

import contextlib
import functools
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any, get_args

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.activations.profile import QUANTILES, check_weights, model_hash, profile, wired
from neurograph.data.source import Batch, Source, concatenate, draw, fingerprint
from neurograph.effects.budget import parse_budget
from neurograph.effects.contrast import (
    Background,
    Contrast,
    Counterfactual,
    FromMean,
    Quantiles,
    Resample,
    Twins,
    as_contrast,
    levels_of,
    with_background,
)
from neurograph.effects.experiment import Experiment
from neurograph.effects.resampling import Resampled, draw_donors
from neurograph.effects.scorer import ScorerName
from neurograph.effects.scorers import check_scorer
from neurograph.effects.selection import Keep, as_keep
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.model.layer_choice import INPUT_SIDE, Choice, Sites, find_sites, refuse_unsupported
from neurograph.model.layers import Neuron
from neurograph.model.neurons import (
    Groups,
    Units,
    describe_groups,
    doubtful_heads,
    find_groups,
    units_of,
)
from neurograph.model.observe import input_tensors, placed
from neurograph.model.positions import Positions, check_positions, moving, token_names
from neurograph.model.target import (
    Target,
    TargetFunction,
    check_rows,
    describe_target,
    resolve_target,
)
from neurograph.replay.padding import Padding, find_padding
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording, capture, recapture
from neurograph.replay.replay import Replay
from neurograph.replay.wiring import Wiring, confirm_wiring, without_layers
from neurograph.study.preflight import (
    as_masked,
    check_samples,
    coarse,
    habits,
    mixing,
    numberless,
    routing,
    sampled,
    stillness,
)
from neurograph.utils import checks
from neurograph.utils.checks import is_number, one_of, shown, whole
from neurograph.utils.memory import parse_memory
from neurograph.utils.nested import flatten

__all__ = ["Options", "Study", "prepare"]


@dataclass(frozen=True)
class Options:
    """The options of `search`, as it documents them."""

    layers: Choice | None = None
    groups: Mapping[str, Groups] | None = None
    positions: Positions = "all"
    contrast: str | tuple[float, ...] | Contrast = "quantiles"
    background: Background = "data"
    reference: int | Any = 32
    keep: str | Keep = "quantile:0.95"
    scorer: ScorerName = "auto"
    budget: int | str = "60s"
    paths: int = 100
    memory: int | str = "512MB"
    seed: int = 0
    device: torch.device | str | None = None
    feature_names: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    tokenizer: Any = None
    progress: bool | None = None

    def checked(self) -> Options:
        """Return the options read; OptionError naming the first that means nothing."""
        as_contrast(self.contrast)
        as_keep(self.keep)
        check_scorer(self.scorer)
        parse_budget(self.budget)
        parse_memory(self.memory)
        one_of(self.background, "background", get_args(Background))
        told = is_number(self.reference) or isinstance(self.reference, bool)
        return replace(
            self,
            positions=check_positions(self.positions),
            reference=whole(self.reference, "reference", least=1) if told else self.reference,
            budget=self.budget if isinstance(self.budget, str) else int(self.budget),
            paths=whole(self.paths, "paths", least=0),
            memory=self.memory if isinstance(self.memory, str) else int(self.memory),
            seed=whole(self.seed, "seed", least=0, most=2**63 - 1),
            feature_names=checks.different_names(self.feature_names, "feature_names"),
            class_names=checks.different_names(self.class_names, "class_names"),
        )


@dataclass(frozen=True, eq=False)
class Study:
    """A model and data made ready: an experiment, the profile, and where it all came from.

    `data` is as the user gave them, `asked` the target: an index even where a name was given.
    """

    model: nn.Module
    data: Any
    asked: int | TargetFunction | None
    options: Options
    experiment: Experiment
    profiled: nx.DiGraph
    target: Target
    feature_names: tuple[str, ...] | None
    provenance: dict[str, Any]

    def tokens(self, layer: str) -> list[str] | None:
        """What stands at each position of a layer; None without a tokenizer."""
        if self.options.tokenizer is None:
            return None
        recording = self.experiment.recording
        inputs = input_tensors(self.model, recording.batch)
        return token_names(inputs, recording.layers[layer], self.options.tokenizer)

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
        only = [n for n, d in self.profiled.nodes(data=True) if d["output"]] == [neuron.layer]
        return only and len(layer.shape) == 1 and neuron.index == self.target.index

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the user while preparing, in plain sentences."""
        return tuple(self.provenance["notes"])

    def check_unchanged(self) -> None:
        """ModelError if the weights are others now: replays would mix them with old outputs."""
        if model_hash(self.model) != self.provenance["model"]["hash"]:
            raise ModelError("the model's weights have changed since the search: search it again")

    @contextlib.contextmanager
    def open(self) -> Iterator[Experiment]:
        """Put the model on its device and under replay."""
        with placed(self.model, self.options.device), self.experiment as experiment:
            yield experiment


def prepare(
    model: nn.Module,
    data: Any,
    target: int | str | TargetFunction | None,
    options: Options,
    profiled: nx.DiGraph | None,
    *,
    statistics: bool = True,
    routed: bool = True,
) -> Study:
    """Profile, draw the reference samples, record them, and set up the experiment.

    Without `statistics` a pass over the data is spared where neither contrast nor background asks
    for any: then the layer graph holds none. Without `routed` layers, what runs on some rows only
    is glue.
    """
    refuse_unsupported(model)
    options = options.checked()
    contrast = as_contrast(options.contrast)
    check_weights(model)
    if profiled is not None:
        _check_profiled(profiled, model)
    with placed(model, options.device):
        source = Source(data, model, class_names=options.class_names)
        _check_target(target, source, model, options)
        made = profiled is None
        needed = statistics or _needs_statistics(contrast, options.background)
        if profiled is None and needed:
            profiled = _profile(model, data, contrast, options, whole=statistics)
        elif profiled is None:
            profiled, _ = wired(model, data, options.layers)
        sites = _sites(model, options, profiled)
        batch, positions, data_hash, samples = _reference(source, model, options)
        _check_size(profiled, batch)
        with _told_of_reference(options):
            actual = _without_unknown(capture(model, batch, sites), profiled)
            profiled = without_layers(
                Wiring.of(profiled),
                actual,
                routed=routed and not isinstance(contrast, Counterfactual | Resample),
            ).layers
            _check_profile(profiled, actual, needed, made=made)
        target = as_masked(target, profiled.graph.get("padding"))
        resolved = resolve_target(target, actual.output, options.class_names, size=actual.size)
        check_rows(resolved, actual.output, actual.batch)
        padding = _padding(model, actual, resolved, profiled)
        actual = padding.on(actual)
        inputs = input_tensors(model, actual.batch)
        twins = _twins(contrast, model, source, positions, samples, actual, options)
        with Replay(model, actual) as replay:
            profiled = confirm_wiring(replay, Wiring.of(profiled)).layers
        told = [
            *routing(actual, profiled),
            *habits(model, actual),
            *mixing(model, resolved, actual),
            *sampled(contrast, profiled),
        ]
        coarsely = [*coarse(resolved, actual)]
        background = _background(model, actual, options.background, profiled)
    searched = {name: actual.layers[name] for name in profiled}
    groups = find_groups({} if options.groups is None else options.groups, searched, model)

    def units(layer: str) -> Units:
        kind, channels = groups.get(layer, ("channel", None))
        each = options.positions == "each"
        found = units_of(actual.layers[layer], channels, kind, each)
        return replace(found, members=found.members.to(actual.main(layer).device))

    def levels(layer: str) -> Tensor:
        values = levels_of(contrast, actual.layers[layer], profiled.nodes[layer], actual, twins)
        return values.to(actual.main(layer))

    def may_move(layer: str) -> Tensor | None:
        mask = moving(inputs, actual.size, actual.layers[layer], options.positions)
        return None if mask is None else mask.to(actual.main(layer).device)

    experiment = Experiment(
        Replay(model, background, real=options.background == "data"),
        Wiring.of(profiled),
        resolved,
        units,
        levels,
        may_move,
        parse_memory(options.memory),
        real=options.background == "data",
        coarse=bool(coarsely),
    )
    names = _feature_names(options.feature_names, source.feature_names, actual)
    notes = [
        *stillness(experiment, profiled, names, options.positions),
        *doubtful_heads(groups, searched),
        *source.notes,
        *resolved.notes,
        *padding.notes,
        *told,
        *coarsely,
    ]
    provenance = {
        "model": _describe_model(model, actual.sites),
        "data": {"fingerprint": data_hash, "samples": samples, "reference": list(positions)},
        "target": describe_target(resolved),
        "options": _describe(options, contrast, sites) | {"profile": "made" if made else "given"},
        "versions": dict(_versions()),
        "notes": list(dict.fromkeys(notes)),
    }
    asked = resolved.function or resolved.asked
    return Study(model, data, asked, options, experiment, profiled, resolved, names, provenance)


def _padding(model: nn.Module, actual: Recording, target: Target, profiled: nx.DiGraph) -> Padding:
    """What is padding, as the reference samples show it, or the data where these have none."""
    padding = find_padding(model, [actual.batch], actual, target)
    known: Padding = padding if padding.tried else profiled.graph.get("padding", padding)
    return known


def _check_profiled(profiled: Any, model: nn.Module) -> None:
    """OptionError for what is no profile, or one of other weights: its quantiles are not these."""
    if not isinstance(profiled, nx.DiGraph):
        raise OptionError(f"profile={shown(profiled)}: pass what profile() returned")
    made = profiled.graph.get("model")
    if made is not None and made != model_hash(model):
        raise OptionError(
            f"the profile was made of another model, or of other weights ({made[:12]}…): call "
            "profile(model, data) again, or leave profile= out"
        )


def _describe_model(model: nn.Module, sites: Sites) -> dict[str, Any]:
    routed = {"routed": sorted(sites.routed)} if sites.routed else {}
    return {"class": type(model).__name__, "hash": model_hash(model), **routed}


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


def _needs_statistics(contrast: Contrast, background: Background) -> bool:
    return isinstance(contrast, Quantiles | FromMean) or background == "mean"


def _profile(
    model: nn.Module, data: Any, contrast: Contrast, options: Options, *, whole: bool
) -> nx.DiGraph:
    """Profile with all the quantiles that circuits tell, or with those of the contrast alone."""
    wanted = contrast.levels if isinstance(contrast, Quantiles) else ()
    return profile(
        model,
        data,
        layers=options.layers,
        levels=sorted({*(QUANTILES if whole else ()), *wanted}),
        memory=options.memory,
        seed=options.seed,
        progress=options.progress,
    )


def _sites(model: nn.Module, options: Options, profiled: nx.DiGraph) -> Sites:
    """Say which modules are layers: what the profile says, which `layers=` must not contradict."""
    sites: Sites | None = profiled.graph.get("sites")
    if sites is None:
        raise OptionError(
            "the profile says nothing of its layers: use profile(), not layer_graph()"
        )
    asked = None if options.layers is None else find_sites(model, options.layers)
    if asked is not None and asked.without(sites.routed) != sites:
        raise OptionError("layers= differs from those of the profile: leave one of the two out")
    return sites


def _reference(
    source: Source, model: nn.Module, options: Options
) -> tuple[Batch, tuple[int, ...], str, int]:
    """Draw or take the background samples; hash the data on the way."""
    digest, count = fingerprint([]), 0

    def hashed() -> Iterator[Batch]:
        nonlocal count
        for batch in source:
            fingerprint(batch.tensors(), digest)
            count += batch.size
            yield batch

    if isinstance(options.reference, int):
        batch, positions = draw(hashed(), options.reference, options.seed)
    else:
        for _ in hashed():
            pass
        given = Source(options.reference, model)
        _check_columns(source, given, "reference")
        try:
            batch = concatenate(list(given))
        except DataError as error:
            raise DataError(f"reference: {error}") from error
        positions = tuple(range(batch.size))
    return batch, positions, digest.hexdigest(), count


def _check_target(
    target: int | str | TargetFunction | None, source: Source, model: nn.Module, options: Options
) -> None:
    """Try a target on the samples that it will be asked about: only these may have labels."""
    if not isinstance(options.reference, int):
        source = Source(options.reference, model, class_names=options.class_names)
    with _told_of_reference(options):
        check_samples(target, source, model, options.class_names)


@contextlib.contextmanager
def _told_of_reference(options: Options) -> Iterator[None]:
    """Say that it is the reference samples that a model does not take, where they were given."""
    try:
        yield
    except (DataError, ModelError, OptionError) as error:
        if isinstance(options.reference, int):
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


def _check_profile(
    profiled: nx.DiGraph, actual: Recording, statistics: bool, *, made: bool
) -> None:
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
        if statistics and layer.neurons and "mean" not in profiled.nodes[name]:
            raise OptionError(
                f"the profile has no statistics for {name!r}: use profile(), not layer_graph()"
            )
        known = profiled.nodes[name]["neurons"]
        if known != layer.neurons:
            raise OptionError(
                f"the profile has {known} neurons for layer {name!r}, the model {layer.neurons}"
            )


def _twins(
    contrast: Contrast,
    model: nn.Module,
    source: Source,
    positions: tuple[int, ...],
    samples: int,
    actual: Recording,
    options: Options,
) -> Twins | None:
    """Find what neurons move from, where that is other samples."""
    if isinstance(contrast, Counterfactual):
        count = samples if isinstance(options.reference, int) else actual.size
        return _corrupt(contrast, model, source, positions, count, actual)
    if not isinstance(contrast, Resample):
        return None
    inputs, donors = input_tensors(model, actual.batch), draw_donors(actual.size, options.seed)
    return Resampled(actual, inputs, donors, options.seed if contrast.positions else None)


def _check_columns(source: Source, other: Source, option: str) -> None:
    """DataError for a table whose columns are not those of the data, in their order."""
    known, found = source.feature_names, other.feature_names
    if known is not None and found is not None and known != found:
        first = next((n for n, m in zip(found, known, strict=False) if n != m), found[-1])
        raise DataError(
            f"{option}: its columns are not those of the data in the same order ({first!r} is the "
            "first that differs): reorder them, as other[list(data.columns)]"
        )


def _corrupt(
    contrast: Counterfactual,
    model: nn.Module,
    source: Source,
    positions: tuple[int, ...],
    count: int,
    actual: Recording,
) -> Recording:
    """Record the counterfactual twins of the reference samples, of so many samples in all."""
    twins = Source(contrast.data, model)
    if source.shuffled or twins.shuffled:
        raise DataError(
            "contrast=Counterfactual(data): a loader that shuffles or draws gives no sample its "
            "twin: pass data and counterfactuals in one order (shuffle=False)"
        )
    _check_columns(source, twins, "contrast=Counterfactual(data)")
    try:
        everything = concatenate(list(twins))
    except DataError as error:
        raise DataError(f"contrast=Counterfactual(data): {error}") from error
    if everything.size != count:
        raise DataError(
            f"the counterfactual data has {everything.size} samples, not {count}: give each sample "
            "of the data its twin, in the same order (of the reference samples, where reference= "
            "holds them)"
        )
    batch = everything.map(lambda leaf: leaf[list(positions)])
    for clean, twin in zip(actual.batch.tensors(), batch.tensors(), strict=True):
        if clean.shape != twin.shape:
            raise DataError(
                f"a clean input has shape {tuple(clean.shape)} but its counterfactual "
                f"{tuple(twin.shape)}: pairs must have the same shape"
            )
    return recapture(model, batch, actual)


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


def _describe(options: Options, contrast: Contrast, sites: Sites) -> dict[str, Any]:
    """Options as JSON can hold them; data among them is only named."""
    keep = as_keep(options.keep)
    outputs = (sites.outputs | sites.routed) - sites.left_out
    chosen = [*outputs, *(n + INPUT_SIDE for n in sites.inputs)]
    told: dict[str, Any] = {
        "layers": sorted(chosen) if sites.left_out or sites.asked else None,
        "groups": describe_groups({} if options.groups is None else options.groups),
        "positions": options.positions,
        "contrast": {"type": type(contrast).__name__},
        "background": options.background,
        "reference": options.reference if isinstance(options.reference, int) else "given",
        "keep": {"type": type(keep).__name__, **asdict(keep)},
        "scorer": options.scorer,
        "budget": options.budget,
        "paths": options.paths,
        "memory": options.memory,
        "seed": options.seed,
    }
    if not isinstance(contrast, Counterfactual):  # it holds data
        # Lists for tuples, so that it is equal to what is read back from a file; a switch that is
        # off is left out, as it was before there was one.
        fields = json.loads(json.dumps(asdict(contrast)))
        told["contrast"] |= {key: value for key, value in fields.items() if value is not False}
    for key in ("feature_names", "class_names"):
        names = getattr(options, key)
        told[key] = None if names is None else list(map(str, names))
    return told


@functools.cache  # reading them takes milliseconds
def _versions() -> Mapping[str, str]:
    packages = {"neurograph": "neurograph-torch", "torch": "torch", "networkx": "networkx"}
    versions = {"python": platform.python_version()}
    for name, distribution in packages.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(distribution)
    return versions
