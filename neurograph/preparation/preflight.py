"""Checks of a model, its data and a target before anything is measured, and notes on them."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.data.source import Source
from neurograph.data.taking import FEW
from neurograph.effects.contrast import Contrast
from neurograph.effects.effects import COARSE, rounding
from neurograph.effects.experiment import Experiment
from neurograph.errors import DataError, ModelError, NeurographError, OptionError
from neurograph.model.batch import Batch, shape_of
from neurograph.model.observe import call_model, input_tensors, not_replayed, undisturbed
from neurograph.model.positions import INVERTED, Positions
from neurograph.model.target import (
    LogitDifference,
    Target,
    TargetFunction,
    check_rows,
    resolve_target,
)
from neurograph.replay.mixing import Regrouped, differs
from neurograph.replay.padding import Padding
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording
from neurograph.replay.replay import Replay
from neurograph.replay.run import Outcome
from neurograph.utils.nested import iter_tensors

_SHOWN = 3  # examples in a sentence
_COARSE = 0.01  # of the targets' spread

__all__ = [
    "as_masked",
    "check_replayed",
    "check_samples",
    "coarse",
    "habits",
    "mixing",
    "numberless",
    "routing",
    "sampled",
    "stillness",
]


def stillness(
    experiment: Experiment,
    profiled: nx.DiGraph,
    names: Sequence[str] | None,
    positions: Positions,
) -> Iterator[str]:
    """Say where nothing can be seen to move, or be told from chance; `names` are features'."""
    recording = experiment.recording
    if positions != "all" and not any(layer.is_sequence for layer in recording.layers.values()):
        yield f"positions={positions!r} changes nothing: no layer has one axis of positions"
    if recording.size == 1:
        yield "there is one reference sample: effects have no standard error"
    has = {name for name in profiled if recording.layers[name].neurons}
    without = [
        name
        for name in profiled
        if name not in has
        and recording.layers[name].layout.varies
        and not recording.layers[name].is_input
    ]
    if without:
        more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
        yield (
            f"no neurons in {', '.join(without[:_SHOWN])}{more}: what they return is complex, no "
            "floating-point numbers, or one number a sample. No path leads through them, so that "
            "only total effects hold what does"
        )
    for name in profiled:
        if name in has and has.isdisjoint(profiled.predecessors(name)):
            levels, units = experiment.levels(name), experiment.units(name)
            moves = units.sums((levels[0] != levels[-1]).any(dim=0)[None].double())[0] > 0
            if recording.layers[name].is_input and len(recording.layers[name].shape) > 2:
                shape = "×".join(map(str, recording.layers[name].shape))
                yield (
                    f"a feature of {name!r} ({shape}) is a channel, moved at all its positions at "
                    "once (for single pixels wrap the model in a Module that takes them flat)"
                )
            if moves.any() and recording.layers[name].is_input:
                still = (~moves).nonzero()[:, 0].tolist()
                named = names if names is not None and units.plain else None
                yield from _still([named[i] if named else str(units.neuron(i)) for i in still])
            elif not moves.any():
                yield (
                    f"no neuron of layer {name!r} moves: its values are the same at both ends of "
                    "the contrast (in all samples, where these are quantiles), so its effects are 0"
                )


def sampled(contrast: Contrast, profiled: nx.DiGraph) -> Iterator[str]:
    """Say that a contrast's quantiles are of some rows, where there were more than are kept."""
    errors = {name: data.get("rank_error", 0) for name, data in profiled.nodes(data=True)}
    drawn = [name for name, error in errors.items() if error]
    if drawn and any(0 < level < 1 for level in contrast.quantiles):
        yield (
            f"quantiles of {'all layers' if len(drawn) > _SHOWN else ', '.join(drawn)} are of rows "
            "drawn at random, not of all: the share of rows below one is within "
            f"{max(errors.values()):.2g} of its level (with probability 0.99)"
        )


def _still(features: Sequence[str]) -> Iterator[str]:
    if features:
        more = f" and {len(features) - _SHOWN} more" if len(features) > _SHOWN else ""
        yield (
            f"{', '.join(features[:_SHOWN])}{more}: no effect could be measured, since the first "
            "and the last value of the contrast are the same in these data (contrast=(0, 1) moves "
            "a feature from its smallest to its largest value)"
        )


def routing(recording: Recording, profiled: nx.DiGraph) -> Iterator[str]:
    """Say which modules run on some rows only, and which of them are no layers for that."""
    sites, called = recording.sites, {layer.module for layer in recording.layers.values()}
    alike = {numberless(path) for path in sites.routed}
    never = sorted(n for n in sites.outputs - called if numberless(n) in alike)
    layers = sorted(sites.routed & set(profiled))
    glue = sorted(sites.routed - sites.left_out - set(profiled))
    if layers:
        yield (
            "run on rows that values choose, so their neurons move on these alone, and what is "
            f"before them has edges to what is behind, none to them: {', '.join(layers)}"
        )
    if glue:
        yield (
            "glue, without neurons of their own here, as they run on rows that values choose: "
            f"{', '.join(glue)}"
        )
    if never:
        yield f"values chose no rows for these, so that they have no neurons: {', '.join(never)}"


def numberless(path: str) -> str:
    """Path of a module without its numbers, which experts of one kind have in common."""
    return re.sub(r"\d+", "*", path)


def _check_alone(target: Target, actual: Recording, together: Tensor) -> None:
    """OptionError for a target function that mixes samples: it is called on some of them, too.

    `together` is what it gives for all.
    """
    few = actual.size // 2
    if target.function is None or not few:
        return
    cut = Outcome(actual.output, actual.layouts).first(few).output
    some = actual.batch.map(lambda leaf: leaf[:few])
    mixes = False
    with contextlib.suppress(NeurographError):
        mixes = differs(together[:few], target(cut, lambda: some))
    if mixes:
        raise OptionError(
            f"the target {target.name!r} makes of a sample something that depends on the others of "
            "its batch: one number of each sample by itself is needed (no means, ranks or softmax "
            "over dimension 0)"
        )


def _check_again(target: Target, output: Any, batch: Batch) -> None:
    """OptionError for a target function that gives something else when it is called again."""
    if target.function is not None:
        first, again = (target(output, lambda: batch).nan_to_num() for _ in range(2))
        if not torch.equal(first, again):
            raise OptionError(
                f"the target {target.name!r} gives something else for the same output when it is "
                "called again: make it depend on the output and the batch alone (no random "
                "numbers, no counting)"
            )


def habits(model: nn.Module, actual: Recording) -> Iterator[str]:
    """Say what a model does beside computing: random numbers that it draws, hooks of its own."""
    if actual.draws:
        yield (
            "the model draws random numbers in eval mode; they did not matter in the runs "
            "that were compared, but where they do seldom, effects hold that chance, too"
        )
    modules = dict(model.named_modules())
    hooked = sorted(path for path in actual.modules if modules[path]._forward_hooks)
    if hooked:
        more = f" and {len(hooked) - _SHOWN} more" if len(hooked) > _SHOWN else ""
        yield (
            f"forward hooks stand behind {', '.join(hooked[:_SHOWN])}{more}: a neuron is what "
            "forward returns, before them, and moves there"
        )


def coarse(target: Target, actual: Recording) -> Iterator[str]:
    """Say it where targets are computed so coarsely that many effects may be rounding."""
    values = target(actual.output, lambda: actual.batch).detach()
    spread = float(values.double().std()) if len(values) > 1 else 0.0
    step = float(rounding(values.double(), values.dtype)) if values.is_floating_point() else 0.0
    half = values.is_floating_point() and torch.finfo(values.dtype).eps > COARSE
    if half or step > _COARSE * spread > 0:
        dtype = str(values.dtype).removeprefix("torch.")
        yield (
            f"targets of about {float(values.abs().max()):.3g} are computed in {dtype}, to about "
            f"{step:.1g}, and differ by {spread:.1g}: smaller effects count as 0 unless they stand "
            "out of their standard errors. Finer: model.double(), or a target nearer to 0"
        )


def mixing(others: Regrouped, target: Target, actual: Recording) -> Iterator[str]:
    """Say it where the target of a sample depends on the others of its batch."""
    mixes = False
    with undisturbed(others.model):
        together = target(actual.output, lambda: actual.batch)
        _check_alone(target, actual, together)
        for other, output, here, there in others:
            with contextlib.suppress(NeurographError):  # a target made for one batch size
                found = target(output, itertools.repeat(other).__next__)
                mixes = mixes or differs(together[here], found[there])
    if mixes:
        yield (
            "what the model makes of a sample depends on the others of its batch (on statistics of "
            f"it, say): effects are those of the {actual.size} reference samples run together, and "
            "ranges those of batches as the data were cut (batches of a loader; else at most 256, "
            "fewer where memory= allows fewer)"
        )


def check_replayed(replay: Replay, target: Target) -> None:
    """ModelError where the target is another though every layer returns what was recorded.

    To be called after a run on other samples: what forward reads beside the layers' outputs, of a
    global say, is then of these.
    """
    actual = replay.recording
    output = replay.run(Plan(frozen=frozenset(actual.layers))).output
    one, other = (target(out, lambda: actual.batch) for out in (actual.output, output))
    if differs(one, other):
        raise not_replayed(ModelError(f"the target {target.name!r} is another then"))


def check_samples(
    target: int | str | TargetFunction | None,
    source: Source,
    model: nn.Module,
    class_names: Sequence[str] | None,
) -> None:
    """Run two small batches: whatever number of samples goes in must come out of the target.

    Before anything else, as all that is measured otherwise mixes samples with something else.
    """
    first = next(iter(source))
    few = [_take(first, count) for count in (FEW, FEW + 1)]
    failed: ModelError | None = None
    widths: dict[int, int] = {}
    with undisturbed(model) as kept:
        for batch in [*few, first]:
            try:
                with kept.learning():  # the first runs of all show what a run changes
                    output = call_model(model, batch)
            except ModelError as error:  # a model made for one batch size
                failed = failed or error
                if batch is first:
                    return  # recording it will tell
                continue
            if batch is first and failed is not None:
                _check_fixed(model, first, failed)
            if next(iter_tensors(output), None) is None:
                raise ModelError(
                    f"the model returned {type(output).__name__}, in which no tensor can be seen: "
                    "wrap it in a Module that returns a tensor, tuple, dict or dataclass"
                )
            resolved = resolve_target(target, output, class_names, size=batch.size)
            try:
                check_rows(resolved, output, batch)
            except DataError:  # tell it with the shapes that the data have
                with contextlib.suppress(ModelError):
                    check_rows(resolved, call_model(model, first), first)
                raise
            _check_again(resolved, output, batch)
            if resolved.index is not None and (logits := resolved.logits(output)).dim() == 2:
                widths[batch.size] = logits.shape[1]
                _check_width(widths)
            if batch is few[-1]:
                return


def _check_width(widths: dict[int, int]) -> None:
    """OptionError where how many outputs there are depends on how many samples are run.

    `widths` says how many there were, by the number of samples.
    """
    if len(set(widths.values())) > 1:
        shapes = " and ".join(f"{size}×{width}" for size, width in widths.items())
        raise OptionError(
            f"the output is {shapes} for batches of {' and '.join(map(str, widths))} samples: its "
            "columns are the samples of a batch (similarities of pairs, say), so that an index "
            "means another one in each batch. Pass target=callable(output, batch) -> [batch] of "
            "embeddings, or wrap the model in a Module that returns them"
        )


def _check_fixed(model: nn.Module, batch: Batch, error: ModelError) -> None:
    """DataError if a model takes all samples but not some, beside what is the same for all."""
    for name, tensor in input_tensors(model, batch).items():
        if not batch.has_rows(tensor):
            raise DataError(
                f"{name.split('.', 1)[-1]!r} ({shape_of(tensor)}) has no row for each of the "
                f"{batch.size} samples, and the model does not run on some of them beside it: each "
                "sample must stand alone. Of nodes and edges make it a whole graph (features "
                "[graphs, nodes, features], the edge list for all); of ids and offsets a bag (ids "
                "[samples, words])"
            ) from error


def as_masked(target: Any, padding: Padding | None) -> Any:
    """Let a difference of logits read the attention mask as the layers do."""
    if not isinstance(target, LogitDifference) or padding is None:
        return target
    read = {mask for mask in padding.masks.values() if mask.endswith("attention_mask")}
    return replace(target, inverted=bool(read) and all(m.startswith(INVERTED) for m in read))


def _take(batch: Batch, count: int) -> Batch:
    """Some samples of a batch, again from its first where it has fewer."""
    rows = torch.arange(count) % batch.size
    return batch.map(lambda leaf: leaf[rows.to(leaf.device)])
