"""One real run of a model, kept: what every layer returned, and how samples lie in it."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from neurograph.data import Batch
from neurograph.errors import ModelError, OptionError
from neurograph.layers import INPUT_TYPE, Layer, Layout, is_convolution, main_index
from neurograph.memory import PeakMeter
from neurograph.nested import Rebuild, flatten, iter_tensors, leaf_names, tree_map
from neurograph.observe import Observed, input_tensors, observe, undisturbed
from neurograph.sites import INPUT_SIDE, Sites, find_owners, find_sites, refuse_unsupported

__all__ = ["Call", "Recording", "capture"]

_FEW = 2


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
    """

    layers: Mapping[str, Layer]
    calls: Mapping[str, Call]
    batch: Batch
    output: Any
    layouts: tuple[Layout, ...]
    size: int
    sites: Sites
    row_bytes: int

    def main(self, name: str) -> Tensor:
        """Return the rows of a layer, ``[size, …]``; one row if it is the same for all."""
        layer = self.layers[name]
        tensor = self.calls[layer.call].leaves[layer.leaf]
        if not isinstance(tensor, Tensor):
            raise ModelError(f"layer {name!r} returns no tensor")
        return layer.layout.rows(tensor)

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
        return layer.call.endswith(INPUT_SIDE) or layer.module not in self.sites.left_out

    def with_rows(self, rows: Mapping[str, Tensor]) -> Recording:
        """Return the recording with other rows for some layers."""
        calls = dict(self.calls)
        for name, values in rows.items():
            layer = self.layers[name]
            leaves = list(calls[layer.call].leaves)
            leaves[layer.leaf] = layer.layout.tensor(values)
            calls[layer.call] = replace(calls[layer.call], leaves=leaves)
        return replace(self, calls=calls)


def capture(model: nn.Module, batch: Batch, sites: Sites | None = None) -> Recording:
    """Run the model on a batch and record what every layer returned.

    It is run once more on a few of the samples: what changes in shape tells where in each tensor
    the samples lie.

    Raises
    ------
    ModelError
        The model is of a kind that cannot be replayed, raised, has no layers, or uses the
        parameters of a module without calling it.
    """
    refuse_unsupported(model)
    sites = find_sites(model) if sites is None else sites
    with undisturbed(model):
        run = _watch(model, batch, sites)
        twin, row_bytes = _twin(model, batch, sites, run)
    layouts = {call: seen.layouts(twin.get(call)) for call, seen in run.calls.items()}
    given = input_tensors(model, batch)
    inputs = {name: _input_call(tensor.clone(), run.size) for name, tensor in given.items()}
    modules = dict(model.named_modules())
    convolved = {
        shape[1:]
        for seen in run.calls.values()
        if is_convolution(modules[seen.path])
        for shape in seen.arriving
        if shape is not None
    }
    layers = {name: _describe_input(name, c, convolved) for name, c in inputs.items()}
    calls = dict(inputs)
    for call, seen in run.calls.items():
        if seen.path in run.containers and not call.endswith(INPUT_SIDE):
            continue
        out, arriving = layouts[call]
        calls[call] = Call(seen.leaves, seen.rebuild, out, arriving)
        for layer in _describe(call, seen, modules[seen.path], out):
            layers[layer.name] = layer
    _check_found(sites, layers)
    own = flatten(run.output)[0]
    few = flatten(twin.output)[0] if twin.output is not None else None
    returned = tuple(_layouts(own, few, run.size, twin.size))
    return Recording(layers, calls, batch, run.output, returned, run.size, sites, row_bytes)


# -- one run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """One call in one run of `size` samples; of the arguments only the shapes."""

    path: str
    leaves: list[Any]
    rebuild: Rebuild
    names: list[str]
    arriving: list[tuple[int, ...] | None]
    size: int

    def layouts(self, twin: _Seen | None) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
        few = None if twin is None else twin.leaves
        size = self.size if twin is None else twin.size
        out = tuple(_layouts(self.leaves, few, self.size, size))
        shapes = [None] * len(self.arriving) if twin is None else twin.arriving
        if len(shapes) != len(self.arriving):
            shapes = [None] * len(self.arriving)
        like = {layout.many: layout for layout in out}
        arriving = []
        for a, b in zip(self.arriving, shapes, strict=True):
            layout = _find_layout(a, b, self.size, size)
            minor = not like.get(layout.many, layout).adjacent
            arriving.append(replace(layout, adjacent=False) if minor else layout)
        return out, tuple(arriving)


@dataclass(frozen=True)
class _Run:
    size: int
    calls: dict[str, _Seen]
    output: Any
    containers: frozenset[str]

    def get(self, call: str) -> _Seen | None:
        return self.calls.get(call)


def _watch(
    model: nn.Module, batch: Batch, sites: Sites, inside: Callable[[Observed], Any] | None = None
) -> _Run:
    calls: dict[str, _Seen] = {}
    size = batch.size

    def visit(call: str, path: str, arguments: Any, output: Any) -> None:
        copied = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, output)
        leaves, rebuild = flatten(copied)
        arriving = [
            tuple(x.shape) if isinstance(x, Tensor) else None for x in flatten(arguments)[0]
        ]
        calls[call] = _Seen(path, leaves, rebuild, leaf_names(output), arriving, size)

    seen = observe(model, batch.map(torch.clone), sites, visit, inside)
    output = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, seen.output)
    return _Run(size, calls, output, frozenset(seen.containers))


def _twin(model: nn.Module, batch: Batch, sites: Sites, run: _Run) -> tuple[_Run, int]:
    """Run on another number of samples, watching memory and hidden parameters.

    On the first few; on everything twice where few take another way through the model.
    """
    doubled = batch.map(lambda leaf: torch.cat([leaf, leaf]))
    few = batch.map(lambda leaf: leaf[:_FEW]) if batch.size > _FEW else doubled
    for other in (few, doubled):
        meter, uses = PeakMeter(), _Uses(model, sites)
        try:
            with meter:
                twin = _watch(model, other, sites, uses.start)
        except ModelError:
            continue  # a model made for one batch size
        if twin.calls.keys() == run.calls.keys() and _comparable(run, twin):
            uses.check(run)
            return twin, meter.peak // twin.size + 1
    nothing = _Run(run.size, {}, None, frozenset())
    total = sum(t.nbytes for seen in run.calls.values() for t in iter_tensors(seen.leaves))
    return nothing, 2 * total // run.size + 1


def _comparable(run: _Run, twin: _Run) -> bool:
    """Whether every tensor of the two runs differs in the batch dimension at most."""
    return all(
        a.dim() == b.dim() and sum(m != n for m, n in zip(a.shape, b.shape, strict=True)) <= 1
        for call, seen in run.calls.items()
        for a, b in zip(
            iter_tensors(seen.leaves), iter_tensors(twin.calls[call].leaves), strict=False
        )
    )


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watch who uses the parameters of which module: itself, a layer around it, or glue."""

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = {
            parameter.untyped_storage().data_ptr(): path
            for path, module in find_owners(model).items()
            if path in sites.outputs
            for parameter in module.parameters(recurse=False)
        }
        self._seen: Observed | None = None
        self._uses: set[tuple[str, str | None]] = set()
        self._explicit = bool(sites.asked) or bool(sites.left_out)

    def start(self, seen: Observed) -> _Uses:
        self._seen = seen
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        running = self._seen.running if self._seen else []
        for tensor in iter_tensors((args, kwargs or {})):
            owner = self._owner.get(tensor.untyped_storage().data_ptr())
            if owner is not None and owner not in running:
                self._uses.add((owner, running[-1] if running else None))
        return func(*args, **(kwargs or {}))

    def check(self, run: _Run) -> None:
        """Raise ModelError for a module whose parameters glue uses though it is never called."""
        if self._explicit:
            return
        called = {seen.path for seen in run.calls.values()} | run.containers
        for owner, user in sorted(self._uses, key=str):
            if owner not in called and (user is None or user in run.containers):
                raise ModelError(
                    f"module {owner!r} owns parameters that the model uses without calling it, so "
                    f"nothing can see or hold what it computes: call it in forward, or choose the "
                    "layers without it by layers="
                )


# -- where samples lie ---------------------------------------------------------------------------


def _layouts(
    leaves: list[Any], few: list[Any] | None, size: int, few_size: int
) -> Iterator[Layout]:
    if few is None or len(few) != len(leaves):
        few = [None] * len(leaves)
    for a, b in zip(leaves, few, strict=True):
        if not isinstance(a, Tensor):
            yield Layout(None)
            continue
        shape = tuple(b.shape) if isinstance(b, Tensor) else None
        layout = _find_layout(tuple(a.shape), shape, size, few_size)
        if layout.many > 1 and isinstance(b, Tensor):
            other = replace(layout, adjacent=False)
            n = min(size, few_size)
            if not _same(layout, a, b, n) and _same(other, a, b, n):
                layout = other
        yield layout


def _find_layout(
    shape: tuple[int, ...] | None, few: tuple[int, ...] | None, size: int, few_size: int
) -> Layout:
    """Find the dimension that follows the number of samples."""
    if shape is None:
        return Layout(None)
    if few is not None and len(few) == len(shape):
        differing = [i for i, (a, b) in enumerate(zip(shape, few, strict=True)) if a != b]
        if not differing:
            return Layout(None)
        for dim in differing:
            if shape[dim] % size == 0 and shape[dim] * few_size == few[dim] * size:
                return Layout(dim, shape[dim] // size)
    by_row = bool(shape) and shape[0] % size == 0 and shape[0] > 0
    return Layout(0, shape[0] // size) if by_row else Layout(None)


def _same(layout: Layout, a: Tensor, b: Tensor, samples: int) -> bool:
    x, y = layout.rows(a)[:samples], layout.rows(b)[:samples]
    return torch.allclose(x.double(), y.double(), rtol=1e-3, atol=1e-5, equal_nan=True)


# -- layers --------------------------------------------------------------------------------------


def _describe(
    call: str, seen: _Seen, module: nn.Module, layouts: Sequence[Layout]
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
        by_map = is_convolution(module)
        dim = 1 + (layout.many > 1) if by_map else max(rows.dim() - 1, 0)
        varies = rows.dim() > 1 and layout.dim is not None
        neurons = int(rows.shape[dim]) if varies else 0
        shape = tuple(rows.shape[1:])
        yield Layer(name, seen.path, call, kind, shape, dim, neurons, parameters, leaf, layout)


def _input_call(tensor: Tensor, size: int) -> Call:
    layout = Layout(0 if tensor.shape[0] == size else None)
    return Call([tensor], lambda leaves: leaves[0], (layout,))


def _describe_input(name: str, call: Call, convolved: set[tuple[int, ...]]) -> Layer:
    """Neurons of an input: channels where a convolution takes it as it is, else features."""
    (layout,), (tensor,) = call.layouts, call.leaves
    shape = tuple(layout.rows(tensor).shape[1:])
    dim = 1 if shape in convolved else len(shape)
    moves = dim > 0 and tensor.is_floating_point() and layout.dim is not None
    neurons = shape[dim - 1] if moves else 0
    return Layer(name, "", name, INPUT_TYPE, shape, dim, neurons, 0, 0, layout)


def _check_found(sites: Sites, layers: Mapping[str, Layer]) -> None:
    found = {
        layer.module + (INPUT_SIDE if layer.call.endswith(INPUT_SIDE) else "")
        for layer in layers.values()
        if not layer.is_input
    }
    if not found:
        raise ModelError("the model called no module that owns parameters: nothing to search")
    for pattern, wanted in sites.asked.items():
        if wanted.isdisjoint(found):
            raise OptionError(
                f"layers={pattern!r} matches {min(wanted)!r}, which the model never calls as a "
                "layer on this data: its kernel may be fused into the module around it, or layers "
                "inside it were chosen too"
            )
