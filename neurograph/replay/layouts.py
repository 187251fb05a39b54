"""Where the samples of a batch lie in each tensor, found by running on two numbers of samples."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from neurograph.data.taking import FEW
from neurograph.errors import ModelError
from neurograph.model.batch import Batch
from neurograph.model.layer_choice import Sites, find_owners
from neurograph.model.layers import Layout
from neurograph.model.observe import (
    Forward,
    Inside,
    Observed,
    Visit,
    call_model,
    call_name,
    observe,
    replaced_forwards,
)
from neurograph.utils.memory import PeakMeter
from neurograph.utils.nested import (
    Rebuild,
    copied,
    flatten,
    iter_tensors,
    leaf_names,
    storages,
    tree_map,
)

__all__ = ["Layouts", "Watched", "WatchedCall", "find_layouts", "same_rows", "takes_rows", "watch"]

_SAME = {False: Layout(None), True: Layout(None, many=0)}


@dataclass(frozen=True)
class WatchedCall:
    """One call in one run of `size` samples; of its arguments only the shapes."""

    path: str
    leaves: list[Any]
    rebuild: Rebuild
    names: list[str]
    arriving: list[tuple[int, ...] | None]
    size: int

    def layouts(self, twin: WatchedCall | None) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
        """Layouts of what it returned and of its arguments, by the same call in another run."""
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
class Watched:
    """One run of `size` samples: every call, and what the model returned."""

    size: int
    calls: dict[str, WatchedCall]
    output: Any
    containers: frozenset[str]


_REFUSED = Watched(1, {}, None, frozenset())
"""Instead of a run on another number of samples, where the model takes no other."""


def watch(
    model: nn.Module,
    batch: Batch,
    sites: Sites,
    inside: Inside | None = None,
    visit: Visit | None = None,
) -> Watched:
    """Run the model on a batch and copy what every call returned; the rest as for `observe`."""
    calls: dict[str, WatchedCall] = {}
    size = batch.size

    def keep(call: str, path: str, arguments: Any, output: Any) -> None:
        if visit is not None:
            visit(call, path, arguments, output)
        leaves, rebuild = flatten(copied(output))
        arriving = [
            tuple(x.shape) if isinstance(x, Tensor) else None for x in flatten(arguments)[0]
        ]
        calls[call] = WatchedCall(path, leaves, rebuild, leaf_names(output), arriving, size)

    seen = observe(model, batch, sites, keep, inside)
    return Watched(size, calls, copied(seen.output), frozenset(seen.containers))


@dataclass(frozen=True)
class Layouts:
    """What two runs tell.

    Attributes
    ----------
    calls : dict of str to pair of tuples of Layout
        Of each call: of the leaves it returned, and of those of its arguments.
    output : tuple of Layout
        Of the leaves of the model's output.
    row_bytes : int
        Memory that one sample takes in a run, at most.
    call_bytes : dict of str to int
        Of that, what is alive at once while a call and the glue before it run. The glue behind
        the last call has the empty name.
    routed : frozenset of str
        Paths of modules whose rows do not follow the samples: they run on those rows that values
        choose.
    mixes : bool
        Whether what the model returns for a sample depends on how many others there are.
    fixed : bool
        Whether the model takes this number of samples and no other.
    """

    calls: dict[str, tuple[tuple[Layout, ...], tuple[Layout, ...]]]
    output: tuple[Layout, ...]
    row_bytes: int
    call_bytes: dict[str, int]
    routed: frozenset[str]
    mixes: bool
    fixed: bool


def find_layouts(model: nn.Module, batch: Batch, sites: Sites, run: Watched) -> Layouts:
    """Run the model once more, on few samples, and compare with the run of all.

    Raises
    ------
    ModelError
        Glue uses the parameters of a module that is never called.
    """
    twin, row_bytes = _twin(model, batch, sites, run)
    calls = {call: seen.layouts(twin.calls.get(call)) for call, seen in run.calls.items()}
    if not twin.calls:
        calls = _by_one_sample(model, batch, sites, run, calls)
    _spread(model, batch, run, calls)
    few = None if twin.output is None else flatten(twin.output)[0]
    output = tuple(_layouts(flatten(run.output)[0], few, run.size, twin.size))
    call_bytes = _call_bytes(model, batch.map(lambda leaf: leaf[: twin.size]), sites)
    routed = _routed(model, batch, sites, run, twin, calls)
    mixes = few is not None and not all(
        _same(layout, a, b, min(run.size, twin.size))
        for layout, a, b in zip(output, flatten(run.output)[0], few, strict=False)
        if layout.dim is not None and isinstance(a, Tensor) and a.is_floating_point()
    )
    return Layouts(calls, output, row_bytes, call_bytes, routed, mixes, twin is _REFUSED)


def _twin(model: nn.Module, batch: Batch, sites: Sites, run: Watched) -> tuple[Watched, int]:
    """Run on another number of samples, watching memory and hidden parameters.

    On the first few; on everything twice where few take another way through the model.
    """
    doubled = batch.map(lambda leaf: torch.cat([leaf, leaf]))
    few = batch.map(lambda leaf: leaf[:FEW]) if batch.size > FEW else doubled
    refused = True
    for other in (few, doubled):
        meter, uses = PeakMeter(), _Uses(model, sites)
        try:
            with meter:
                twin = watch(model, other, sites, uses.start)
        except ModelError:
            continue  # a model made for one batch size
        refused = False
        if twin.calls.keys() == run.calls.keys() and _comparable(run, twin):
            uses.check(run)
            return twin, meter.peak // twin.size + 1
    nothing = _REFUSED if refused else Watched(run.size, {}, None, frozenset())
    total = sum(t.nbytes for seen in run.calls.values() for t in iter_tensors(seen.leaves))
    return nothing, 2 * total // run.size + 1


def _call_bytes(model: nn.Module, batch: Batch, sites: Sites) -> dict[str, int]:
    """Memory that one sample takes while each call runs."""
    meter, laps = PeakMeter(), dict[str, int]()

    def visit(call: str, _path: str, _arguments: Any, _output: Any) -> None:
        laps[call] = meter.lap() // batch.size + 1

    with contextlib.suppress(ModelError), meter:  # a model made for one batch size
        observe(model, batch, sites, visit)
        laps[""] = meter.lap() // batch.size + 1
    return laps


def _comparable(run: Watched, twin: Watched) -> bool:
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
            storage.data_ptr(): path
            for path, module in find_owners(model).items()
            if path in sites.outputs
            for storage in storages(list(module.parameters(recurse=False)))
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
        for storage in storages((args, kwargs or {})):
            owner = self._owner.get(storage.data_ptr())
            if owner is not None and owner not in running:
                self._uses.add((owner, running[-1] if running else None))
        return func(*args, **(kwargs or {}))

    def check(self, run: Watched) -> None:
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
            return _SAME[len(shape) > 1 and shape[0] == 1]
        for dim in differing:
            if shape[dim] % size == 0 and shape[dim] * few_size == few[dim] * size:
                return Layout(dim, shape[dim] // size)
    by_row = bool(shape) and shape[0] % size == 0 and shape[0] > 0
    return Layout(0, shape[0] // size) if by_row else Layout(None)


def _same(layout: Layout, a: Tensor, b: Tensor, samples: int) -> bool:
    x, y = layout.rows(a)[:samples], layout.rows(b)[:samples]
    if x.shape != y.shape:
        return False
    return torch.allclose(x.double(), y.double(), rtol=1e-3, atol=1e-5, equal_nan=True)


def _by_one_sample(
    model: nn.Module,
    batch: Batch,
    sites: Sites,
    run: Watched,
    layouts: dict[str, tuple[tuple[Layout, ...], tuple[Layout, ...]]],
) -> dict[str, tuple[tuple[Layout, ...], tuple[Layout, ...]]]:
    """Layouts by what changes where the first sample is what the second one is."""

    def replaced(leaf: Tensor) -> Tensor:
        return torch.cat([leaf[1:2], leaf[1:]])

    other = _again(model, batch.map(replaced), sites)
    found = dict(layouts)
    for call, (out, arriving) in layouts.items():
        twin = None if other is None else other.calls.get(call)
        if twin is None or len(twin.leaves) != len(out):
            continue
        better = []
        for a, b, layout in zip(run.calls[call].leaves, twin.leaves, out, strict=True):
            dim = _changed_dim(a, b, run.size) if isinstance(a, Tensor) else None
            better.append(layout if dim is None else Layout(dim))
        found[call] = tuple(better), arriving
    return found


def _changed_dim(a: Tensor, b: Any, size: int) -> int | None:
    """The dimension of that size along which nothing but the first entry changed."""
    if not isinstance(b, Tensor) or a.shape != b.shape or torch.equal(a, b):
        return None
    changed = (a != b).nonzero().amax(0).tolist()
    dims = [d for d, last in enumerate(changed) if a.shape[d] == size and not last]
    return dims[0] if len(dims) == 1 else None


def _routed(
    model: nn.Module,
    batch: Batch,
    sites: Sites,
    run: Watched,
    twin: Watched,
    layouts: dict[str, tuple[tuple[Layout, ...], tuple[Layout, ...]]],
) -> frozenset[str]:
    """Modules that run on rows which values choose, so that rows do not follow the samples.

    Their rows are more or fewer in no proportion to the samples; or they do not turn round when
    the samples do, and those of samples that stay as they are change when others are replaced.
    """
    suspects, routed = set(), set()
    turned = _again(model, batch.map(lambda leaf: leaf.flip(0)), sites)
    for call, (out, _) in layouts.items():
        seen = run.calls[call]
        few = twin.calls[call].leaves if call in twin.calls else []
        for a, b, layout in zip(seen.leaves, few, out, strict=False):
            tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
            if tensors and layout.dim is None and a.shape != b.shape:
                routed.add(seen.path)
        if turned is not None and not _follows(seen, turned.calls.get(call), out, slice(None)):
            suspects.add(call)
    if suspects:
        half = _again(model, batch.map(_half_replaced), sites)
        for call in suspects:
            if half is None or not _follows(
                run.calls[call], half.calls.get(call), layouts[call][0], slice(1, None, 2)
            ):
                routed.add(run.calls[call].path)
    return frozenset(routed - run.containers)


def _again(model: nn.Module, batch: Batch, sites: Sites) -> Watched | None:
    with contextlib.suppress(ModelError):
        return watch(model, batch, sites)
    return None


def _half_replaced(leaf: Tensor) -> Tensor:
    """Rows of which every other one is what the next one is."""
    rows = leaf.clone()
    last = len(leaf) - len(leaf) % 2
    rows[0:last:2] = leaf[1:last:2]
    return rows


def _follows(
    seen: WatchedCall, other: WatchedCall | None, layouts: tuple[Layout, ...], unchanged: slice
) -> bool:
    """Whether a call returned the same for the samples that are: turned round if all are."""
    if other is None or len(other.leaves) != len(seen.leaves):
        return False
    for a, b, layout in zip(seen.leaves, other.leaves, layouts, strict=True):
        if not isinstance(a, Tensor) or not a.is_floating_point():
            continue
        if not isinstance(b, Tensor) or a.shape != b.shape:
            return False
        x, y = layout.rows(a), layout.rows(b)
        if layout.dim is not None:
            x, y = (x.flip(0), y) if unchanged == slice(None) else (x[unchanged], y[unchanged])
        if not same_rows(x, y):
            return False
    return True


def same_rows(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors of one shape differ by the rounding of another order at most."""
    close = max(1e-3, torch.finfo(x.dtype).eps * 10)
    if x.numel() and x.shape == y.shape:  # as it mostly is: within a part of the largest value
        largest, apart = x.abs().max(), (x - y).abs().max()
        if largest.isfinite() and apart <= close * largest:
            return True
    finite = x[x.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(x.double(), y.double(), rtol=close, atol=close * scale, equal_nan=True)


def _spread(
    model: nn.Module,
    batch: Batch,
    run: Watched,
    layouts: dict[str, tuple[tuple[Layout, ...], tuple[Layout, ...]]],
) -> None:
    """Find which tensors that are the same for all samples may have a row for each instead.

    Mostly they may: a model that adds positions to its tokens does not mind how many rows of
    them there are. They are tried together, then one by one.
    """
    fixed = {
        call
        for call, (out, _) in layouts.items()
        for leaf, layout in zip(run.calls[call].leaves, out, strict=True)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and layout.dim is None
    }
    fixed = {call for call in fixed if run.calls[call].path not in run.containers}
    for calls in [fixed, *({call} for call in sorted(fixed))]:
        if calls and takes_rows(model, batch, run, calls):
            for call in calls:
                out, arriving = layouts[call]
                layouts[call] = tuple(replace(x, spread=x.dim is None) for x in out), arriving
            if calls == fixed:
                return


def takes_rows(model: nn.Module, batch: Batch, run: Watched, spread: set[str]) -> bool:
    """Whether a model gives the same output if some calls return a row for each sample."""
    counts: Counter[str] = Counter()

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        one = leaf if leaf.dim() > 1 and leaf.shape[0] == 1 else leaf[None]
        return one.repeat(run.size, *[1] * (one.dim() - 1))

    def stand_in(path: str, forward: Forward) -> Forward:
        def called(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            return tree_map(rows, output) if call_name(path, counts) in spread else output

        return called

    modules = dict(model.named_modules())
    paths = {run.calls[call].path for call in spread}
    try:
        with replaced_forwards({path: modules[path] for path in paths}, stand_in):
            output = call_model(model, batch)
    except ModelError:
        return False
    pairs = zip(iter_tensors(output), iter_tensors(run.output), strict=False)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)
