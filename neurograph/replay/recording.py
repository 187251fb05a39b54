"""One real run of a model, kept: what every layer returned, and how samples lie in it."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.data.source import Batch, concatenate, draw
from neurograph.data.taking import FEW, output_of
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.model.basis import Basis
from neurograph.model.layer_choice import INPUT_SIDE, Sites, find_sites, refuse_unsupported
from neurograph.model.layers import INPUT_TYPE, Layer, Layout
from neurograph.model.observe import input_tensors, not_replayed, observe, undisturbed
from neurograph.replay.layouts import (
    Watched,
    WatchedCall,
    find_layouts,
    same_rows,
    takes_rows,
    watch,
)
from neurograph.replay.maps import Maps, watching_maps
from neurograph.replay.mixing import Regrouped, mixes_samples
from neurograph.replay.repeat import check_repeats
from neurograph.replay.routed import find_routed
from neurograph.utils.nested import Rebuild, flatten, main_index

__all__ = ["Call", "Recording", "capture", "capture_few", "recapture"]

_SPREAD = 8  # samples by which layers and their readers are found
_COMPANIES = 2  # in which samples are run again
_SELDOM, _SELDOM_BYTES = 128, 2**28  # the same where values choose what is run, in that memory


@dataclass(frozen=True)
class Call:
    """What one call of a module (or one input of the model) gave.

    Attributes
    ----------
    leaves : list
        The leaves of what it returned, its tensors as the model laid them out.
    rebuild : callable
        Makes that nested output of such leaves.
    layouts : tuple of Layout
        Of each leaf.
    arriving : tuple of Layout
        Of each leaf of its arguments.
    """

    leaves: list[Any]
    rebuild: Rebuild
    layouts: tuple[Layout, ...]
    arriving: tuple[Layout, ...] = ()


@dataclass(frozen=True)
class Recording:
    """One real run of the model for `size` samples.

    Attributes
    ----------
    layers : dict of str to Layer
        In the order they were called, the inputs first.
    calls : dict of str to Call
        What each call returned (for an input: the input).
    batch : Batch
        The inputs and labels that were run.
    output : nested tensors
        What the model returned.
    layouts : tuple of Layout
        Of each leaf of the model's output.
    size : int
        How many samples.
    sites : Sites
        Which modules were recorded.
    row_bytes : int
        Memory that one sample takes in a run, at most.
    call_bytes : dict of str to int
        Of that, what is alive at once while a call and the glue before it run (and, under the
        empty name, the glue behind the last).
    mixes : bool
        Whether what the model returns for a sample depends on how many others there are.
    fixed : bool
        Whether the model takes this number of samples and no other.
    draws : bool
        Whether a run draws random numbers, though none that were seen to matter.
    """

    layers: Mapping[str, Layer]
    calls: Mapping[str, Call]
    batch: Batch
    output: Any
    layouts: tuple[Layout, ...]
    size: int
    sites: Sites
    row_bytes: int
    call_bytes: Mapping[str, int]
    mixes: bool = False
    fixed: bool = False
    draws: bool = False

    def main(self, name: str) -> Tensor:
        """Return the rows of a layer, ``[size, …]``; one row if all must have the same."""
        layer = self.layers[name]
        tensor = self.calls[layer.call].leaves[layer.leaf]
        if not isinstance(tensor, Tensor):
            raise ModelError(
                f"layer {name!r} returned a tensor in one run and {type(tensor).__name__} in "
                "another: leave it out, by naming the others in layers="
            )
        rows = layer.rows(tensor)
        return rows.expand(self.size, *rows.shape[1:]) if layer.layout.spread else rows

    @functools.cached_property
    def by_call(self) -> Mapping[str, tuple[Layer, ...]]:
        """The layers of each call."""
        found: dict[str, list[Layer]] = defaultdict(list)
        for layer in self.layers.values():
            found[layer.call].append(layer)
        return {call: tuple(layers) for call, layers in found.items()}

    @functools.cached_property
    def modules(self) -> frozenset[str]:
        """Paths of the modules whose outputs are layers."""
        outputs = (n for n in self.layers.values() if not n.call.endswith(INPUT_SIDE))
        return frozenset(layer.module for layer in outputs if not layer.is_input)

    def is_searched(self, name: str) -> bool:
        """Whether a layer was not left out."""
        layer = self.layers[name]
        chosen = layer.is_input or layer.call.endswith(INPUT_SIDE)
        return chosen or layer.module not in self.sites.left_out

    def without(self, routed: frozenset[str]) -> Recording:
        """Return the recording with some modules as glue, but for layers that run on some rows."""
        layers = {
            n: layer
            for n, layer in self.layers.items()
            if layer.routed or layer.module not in routed
        }
        gone = {layer.call for layer in self.layers.values()} - {x.call for x in layers.values()}
        calls = {name: call for name, call in self.calls.items() if name not in gone}
        sites = self.sites.without(routed)
        _check_found(sites, layers)
        return replace(self, layers=layers, calls=calls, sites=sites)

    def with_bases(self, bases: Mapping[str, Basis]) -> Recording:
        """Return the recording with neurons of some layers in bases."""
        layers = {n: x.within(bases[n]) if n in bases else x for n, x in self.layers.items()}
        return replace(self, layers=layers)

    def with_rows(self, rows: Mapping[str, Tensor]) -> Recording:
        """Return the recording with other rows for some layers."""
        calls = dict(self.calls)
        for name, values in rows.items():
            layer = self.layers[name]
            leaves = list(calls[layer.call].leaves)
            values = values[:1] if layer.layout.dim is None else values
            leaves[layer.leaf] = layer.tensor(values)
            calls[layer.call] = replace(calls[layer.call], leaves=leaves)
        return replace(self, calls=calls)


def capture_few(model: nn.Module, source: Iterable[Batch], sites: Sites | None = None) -> Recording:
    """Record a few samples, drawn from all of the data; see `capture`.

    Where the model does not take so few, it gets the first batch as it comes; where values choose
    what is run, more, as few would miss what is chosen seldom.
    """
    first, few = _few(source, _SPREAD)
    try:
        found = capture(model, few, sites)
        if not found.sites.routed:
            return found
        count = max(_SPREAD, min(_SELDOM, _SELDOM_BYTES // found.row_bytes))
        with contextlib.suppress(ModelError):
            return capture(model, _few(source, count)[1], sites)
        return found
    except ModelError as error:
        with contextlib.suppress(ModelError):
            return capture(model, first, sites)
        if not str(error).startswith("the model raised"):
            raise
        if output_of(model, few) is not None:
            raise not_replayed(error) from error.__cause__
        flat = all(leaf.dim() < 2 for leaf in few.tensors())
        alone = "Numbers alone are samples of one feature: pass X[:, None]. " if flat else ""
        raise ModelError(
            f"{error}. ({alone}Are these the features that the model takes, without labels, "
            "samples first? If it was made for batches of one size, pass data in such batches — "
            "DataLoader(…, drop_last=True) — and that size as reference=.)"
        ) from error.__cause__


def _few(source: Iterable[Batch], count: int) -> tuple[Batch, Batch]:
    """The first batch, and so many samples of all batches in which samples have the same shape.

    Among them the very first ones.
    """
    first: Batch | None = None

    def alike() -> Iterator[Batch]:
        nonlocal first
        for batch in source:
            bare = Batch(batch.args, batch.kwargs)
            first = bare if first is None else first
            if _shapes(bare) == _shapes(first):
                yield bare

    try:
        few, positions = draw(alike(), count, 0)
        assert first is not None
        ahead = [i for i in range(min(FEW, first.size)) if i not in positions]
        if ahead:
            few = concatenate([first.map(lambda leaf: leaf[ahead]), few])
    except DataError:
        if first is None:
            raise
        few = first.map(lambda leaf: leaf[:count])
    return first, few


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in batch.tensors()]


def capture(
    model: nn.Module,
    batch: Batch,
    sites: Sites | None = None,
    *,
    like: Recording | None = None,
    others: Regrouped | None = None,
) -> Recording:
    """Run the model on a batch and record what every layer returned.

    It is run twice, as only what repeats can be replayed, and once more on a few of the samples:
    what changes in shape tells where in each tensor the samples lie; and in other company, which
    tells whether samples influence each other.

    Parameters
    ----------
    model : Module
    batch : Batch
    sites : Sites, optional
        Which modules are recorded; by default every one that owns parameters.
    like : Recording, optional
        Of other samples: where these are laid out alike, that need not be found again.
    others : Regrouped, optional
        Runs of these samples in other company, which others want as well.

    Raises
    ------
    ModelError
        The model is of a kind that cannot be replayed, raised, does not repeat, has no layers, or
        uses the parameters of a module without calling it.
    """
    refuse_unsupported(model)
    sites = find_sites(model) if sites is None else sites
    others = Regrouped(model, batch) if others is None else others
    shapes: list[Any] = []
    with undisturbed(model) as kept:
        watching = functools.partial(watching_maps, model, shapes)
        run, draws = check_repeats(model, batch, sites, kept, lambda _: watching())
        if like is not None and sites == like.sites and _is_like(run, like, batch, others):
            layers = {name: replace(layer, mask=None) for name, layer in like.layers.items()}
            return replace(_taken_over(model, batch, run, like), layers=layers, draws=draws)
        layouts = find_layouts(model, batch, sites, run)
        mixes = layouts.mixes or mixes_samples(others, run.output, layouts.output)
    given = input_tensors(model, batch)
    calls = {
        name: _input_call(tensor.clone(), batch.has_rows(tensor)) for name, tensor in given.items()
    }
    sites = sites.without(layouts.routed)
    modules = dict(model.named_modules())
    order, routed = find_routed(model, batch, sites)
    maps = Maps(shapes)
    layers = {name: _describe_input(name, call, maps) for name, call in calls.items()}
    for call, seen in run.calls.items():
        if seen.path in run.containers and not call.endswith(INPUT_SIDE):
            continue
        if seen.path in sites.routed:
            continue
        out, arriving = layouts.calls[call]
        calls[call] = Call(seen.leaves, seen.rebuild, out, arriving)
        for layer in _describe(call, seen, modules[seen.path], out, maps):
            layers[layer.name] = layer
    for path, tensor in routed.items():
        layers[path], calls[path] = _describe_routed(path, modules[path], tensor)
    if routed:  # where they are called, as layers come in that order
        layers = dict(sorted(layers.items(), key=lambda item: order.get(item[1].call, -1)))
    _check_found(sites, layers)
    return Recording(
        layers,
        calls,
        batch,
        run.output,
        layouts.output,
        run.size,
        sites,
        layouts.row_bytes,
        layouts.call_bytes,
        mixes,
        layouts.fixed,
        draws,
    )


def recapture(model: nn.Module, batch: Batch, like: Recording) -> Recording:
    """Record what every layer returns for other samples of the same shapes, laid out alike.

    Raises
    ------
    ModelError
        Other layers are called, or some return another structure.
    """
    with undisturbed(model):
        run = watch(model, batch, like.sites)
    return _taken_over(model, batch, run, like)


def _is_like(run: Watched, like: Recording, batch: Batch, others: Regrouped) -> bool:
    """Whether samples lie in all tensors as in a recording of others, and keep to themselves.

    For each sample the same calls get and return tensors of the same shapes; and they do so in
    other company, where samples lie elsewhere and are half or twice as many, in value as well.
    """
    if batch.size <= FEW or like.mixes or like.fixed or like.sites.routed:
        return False
    calls = {c: seen for c, seen in run.calls.items() if not _is_container(c, seen.path, run)}
    known = {name: c for name, c in like.calls.items() if not like.by_call[name][0].is_input}
    alike = (
        calls.keys() == known.keys()
        and _same_inputs(others.model, batch, like)
        and _same_shapes(flatten(run.output)[0], run, flatten(like.output)[0], like.layouts, like)
        and all(
            len(seen.arriving) == len(known[c].arriving)
            and _same_shapes(seen.leaves, run, known[c].leaves, known[c].layouts, like)
            for c, seen in calls.items()
        )
        and _spread_again(run, known, others)
    )
    agreed: list[bool] = []  # of each run in other company

    def watched(other: Batch, here: slice, there: slice) -> Any:
        called: dict[str, bool] = {}

        def visit(call: str, path: str, arguments: Any, output: Any) -> None:
            if _is_container(call, path, run) or not all(called.values()):
                return
            called[call] = call in calls and _same_rows(
                calls[call], known[call], run.size, arguments, output, other.size, here, there
            )

        result = observe(others.model, other, like.sites, visit).output
        agreed.append(called.keys() == calls.keys() and all(called.values()))
        return result

    for _ in others.run(watched) if alike else ():
        if not all(agreed):
            return False
    return len(agreed) == _COMPANIES and not mixes_samples(others, run.output, like.layouts)


def _spread_again(run: Watched, known: Mapping[str, Call], others: Regrouped) -> bool:
    """Whether what was one row for all may be a row for each of these samples, too."""
    spread = {call for call, c in known.items() if any(layout.spread for layout in c.layouts)}
    return not spread or takes_rows(others.model, others.batch, run, spread)


def _is_container(call: str, path: str, run: Watched) -> bool:
    return path in run.containers and not call.endswith(INPUT_SIDE)


def _same_inputs(model: nn.Module, batch: Batch, like: Recording) -> bool:
    given, known = input_tensors(model, batch), input_tensors(model, like.batch)
    return given.keys() == known.keys() and all(
        batch.has_rows(tensor) == like.batch.has_rows(known[name])
        and _same_shapes([tensor], batch, [known[name]], like.calls[name].layouts, like)
        for name, tensor in given.items()
    )


def _same_shapes(
    leaves: Sequence[Any],
    run: Watched | Batch,
    known: Sequence[Any],
    layouts: Sequence[Layout],
    like: Recording,
) -> bool:
    """Whether tensors have for each sample the shapes that others had in a recording."""
    if len(leaves) != len(known):
        return False
    return all(
        a.dtype == b.dtype and layout.resized(tuple(b.shape), like.size, run.size) == a.shape
        if isinstance(a, Tensor) and isinstance(b, Tensor)
        else type(a) is type(b)
        for a, b, layout in zip(leaves, known, layouts, strict=True)
    )


def _same_rows(
    seen: WatchedCall,
    known: Call,
    size: int,
    arguments: Any,
    output: Any,
    other_size: int,
    here: slice,
    there: slice,
) -> bool:
    """Whether a call gets and returns the same for the same samples in other company."""
    leaves, arriving = flatten(output)[0], flatten(arguments)[0]
    if (len(leaves), len(arriving)) != (len(seen.leaves), len(seen.arriving)):
        return False
    for shape, leaf, layout in zip(seen.arriving, arriving, known.arriving, strict=True):
        wanted = None if shape is None else layout.resized(shape, size, other_size)
        if wanted != (tuple(leaf.shape) if isinstance(leaf, Tensor) else None):
            return False
    for a, b, layout in zip(seen.leaves, leaves, known.layouts, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            if type(a) is not type(b):
                return False
        elif layout.resized(tuple(a.shape), size, other_size) != b.shape:
            return False
        elif a.is_floating_point():
            fixed = layout.dim is None
            rows = (a, b) if fixed else (layout.rows(a)[here], layout.rows(b)[there])
            if not same_rows(*rows):
                return False
    return True


def _taken_over(model: nn.Module, batch: Batch, run: Watched, like: Recording) -> Recording:
    """Recording of other samples that are laid out alike."""
    given = input_tensors(model, batch)
    calls = {
        name: _input_call(tensor.clone(), batch.has_rows(tensor)) for name, tensor in given.items()
    }
    for call, known in like.calls.items():
        if call in calls:
            continue
        if like.by_call[call][0].routed:
            calls[call] = known
            continue
        seen = run.calls.get(call)
        if seen is None or len(seen.leaves) != len(known.leaves):
            raise ModelError(
                f"layer {call!r} is called or returns otherwise on other samples: the model's "
                "forward depends on values"
            )
        calls[call] = Call(seen.leaves, seen.rebuild, known.layouts, known.arriving)
    return replace(like, calls=calls, batch=batch, output=run.output, size=run.size)


def _describe(
    call: str,
    seen: WatchedCall,
    module: nn.Module,
    layouts: Sequence[Layout],
    maps: Maps,
) -> Iterator[Layer]:
    """Layers of a call: one for each floating-point tensor that it returns."""
    leaves = seen.leaves
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    main = main_index(leaves)
    kind = type(module).__name__
    if main is None:
        yield Layer(call, seen.path, call, kind, (), 0, 0, parameters)
        return
    for leaf, (tensor, layout) in enumerate(zip(leaves, layouts, strict=True)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        name = call if leaf == main else f"{call}:{seen.names[leaf]}"
        rows = layout.rows(tensor)
        by_map = layout.dim == 0 and maps.of_module(seen.path, module, tuple(tensor.shape[1:]))
        dim = 1 + (layout.many > 1) if by_map else max(rows.dim() - 1, 0)
        has = rows.dim() > 1 and layout.varies and rows.numel() > 0
        neurons = int(rows.shape[dim]) if has else 0
        shape = tuple(rows.shape[1:])
        yield Layer(name, seen.path, call, kind, shape, dim, neurons, parameters, leaf, layout)


def _describe_routed(path: str, module: nn.Module, tensor: Tensor) -> tuple[Layer, Call]:
    """Layer of a module that runs on some rows only; in its one row, all stay as computed."""
    channels, layout = tensor.shape[-1], Layout(None, spread=True)
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    kind, shape = type(module).__name__, (channels,)
    layer = Layer(path, path, path, kind, shape, 1, channels, parameters, 0, layout, routed=True)
    row = torch.full_like(tensor.flatten(0, -2)[0], torch.nan)
    return layer, Call([row], lambda leaves: leaves[0], (layout,))


def _input_call(tensor: Tensor, has_rows: bool) -> Call:
    layout = Layout(0 if has_rows else None)
    return Call([tensor], lambda leaves: leaves[0], (layout,))


def _describe_input(name: str, call: Call, maps: Maps) -> Layer:
    """Neurons of an input: channels where a convolution takes it as it is, else features."""
    (layout,), (tensor,) = call.layouts, call.leaves
    shape = tuple(layout.rows(tensor).shape[1:])
    dim = 1 if maps.of_input(shape) else len(shape)
    moves = dim > 0 and tensor.is_floating_point() and layout.varies
    neurons = shape[dim - 1] if moves else 0
    return Layer(name, "", name, INPUT_TYPE, shape, dim, neurons, 0, 0, layout)


def _check_found(sites: Sites, layers: Mapping[str, Layer]) -> None:
    found = {layer.site for layer in layers.values() if not layer.is_input}
    for pattern, wanted in sites.asked.items():
        routed = sorted(w for w in wanted if w.removesuffix(INPUT_SIDE) in sites.routed)
        if routed and wanted.isdisjoint(found):
            raise OptionError(
                f"layers={pattern!r} matches {routed[0]!r}, which runs on the rows that values "
                "choose for it: it counts as glue and cannot be searched"
            )
        if wanted.isdisjoint(found):
            raise OptionError(
                f"layers={pattern!r} matches {min(wanted)!r}, which the model never calls as a "
                "layer on this data: its kernel may be fused into the module around it, or layers "
                "inside it were chosen too"
            )
    if not found:
        if routed := sorted(sites.routed - sites.left_out):
            raise ModelError(
                f"all layers ({', '.join(routed[:3])}, …) run on other rows than the batch has, on "
                "pieces of it or on rows that values choose: nothing to search. Where forward cuts "
                "the batch in pieces, let it take the batch whole"
            )
        raise ModelError("the model called no module that owns parameters: nothing to search")
