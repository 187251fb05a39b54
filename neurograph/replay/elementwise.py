"""Glue that treats every element alike, written down as the operations that really ran.

Between most neighbouring layers stands an activation and nothing else. Where that is so, what
one moved neuron does to its reader can be computed for that neuron alone. It is established by
watching the operations while the model runs, never by reading its code: a chain holds only
operations that PyTorch itself tags as pointwise, each with a single tensor operand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from neurograph.errors import ModelError
from neurograph.model.layer_choice import INPUT_SIDE
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording
from neurograph.replay.replay import Replay
from neurograph.utils.nested import iter_tensors, storages

__all__ = [
    "Chain",
    "Computes",
    "PossibleChain",
    "Product",
    "Reads",
    "as_product",
    "confirmed_chains",
    "find_chains",
    "find_output_chain",
    "possible_chains",
]

_ATEN = torch.ops.aten
_RENAMES = {_ATEN.detach.default, _ATEN.alias.default, _ATEN.clone.default}
_RESHAPES = {_ATEN.view.default, _ATEN._unsafe_view.default}
_READS = {_ATEN._local_scalar_dense.default, _ATEN.equal.default}
_LEAVES = {"tolist", "numpy", "__array__", "__dlpack__"}  # run no operation
_ROWS = slice(0, 2)
_AT_ONCE = 8  # samples on which a chain is tried at a time, more where they are small
_AT_ONCE_BYTES = 2**22
_MOVES = 3  # ways to move the layers that chains start from


@dataclass(frozen=True)
class Chain:
    """Pointwise operations, applied one after the other.

    Attributes
    ----------
    steps : tuple of (operation, arguments, keyword arguments)
        Each operation takes the running tensor first, then these.
    """

    steps: tuple[tuple[Any, tuple[Any, ...], tuple[tuple[str, Any], ...]], ...] = ()

    def __str__(self) -> str:
        names = [getattr(op, "__name__", str(op)).split(".")[0] for op, _, _ in self.steps]
        return " → ".join(names) or "identity"

    def __call__(self, values: Tensor) -> Tensor:
        """Apply to values of any shape; the argument may be overwritten."""
        for op, args, kwargs in self.steps:
            if torch.is_grad_enabled():
                values = values.clone()  # the step before may need for its gradient what it gave
            values = op(values, *args, **dict(kwargs))
        return values

    def then(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Chain:
        """Return the chain with one more observed operation."""
        op = _in_place(func) or func
        return Chain((*self.steps, (op, args, tuple(kwargs.items()))))


def _in_place(func: Any) -> Any | None:
    """Find the in-place twin of an operation, which saves a copy of a large batch."""
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    packet = getattr(_ATEN, f"{name}_", None)
    return getattr(packet, func._overloadname, None) if packet is not None else None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow tensors through pointwise operations from the layers that returned them."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = recording.layers
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.found: dict[tuple[str, str], Chain] = {}
        self.data_dependent = False
        self.read = False  # whether a number was taken out of a tensor that moves
        self._moving: dict[int, Any] = {}  # memory that moved layers reach; held, so never reused

    def taken(self, arguments: Any) -> None:
        """Note that values of tensors left for Python."""
        self.read |= self._moves(arguments)

    def hear(self, event: str, name: str, value: Any) -> None:
        layer = self.layers.get(name)
        if event == "returned":
            if isinstance(value, Tensor) and layer is not None and layer.layout.plain:
                self.known[value] = (name, Chain())
            self._mark(tensor for tensor in iter_tensors(value) if tensor.is_floating_point())
        elif event == "arrived":
            args, kwargs = value
            if len(args) == 1 and not kwargs and args[0] in self.known:
                writer, chain = self.known[args[0]]
                self.found[writer, name] = chain

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        origin = self._origin(func, args, kwargs)
        moving = self._moves((args, kwargs))
        result = func(*args, **kwargs)
        if moving and func in _READS:
            self.read = True
        elif moving:
            self._mark(iter_tensors(result))
        if func._schema.is_mutable:
            self._forget_shared(args)
        if origin is not None and isinstance(result, Tensor) and self._is_like(result, origin[2]):
            writer, chain, _ = origin
            if func not in _RENAMES | _RESHAPES:
                chain = chain.then(func, args[1:], kwargs)
            self.known[result] = (writer, chain)
        return result

    def _mark(self, tensors: Iterable[Tensor]) -> None:
        for storage in storages(list(tensors)):
            self._moving[storage._cdata] = storage

    def _moves(self, tree: Any) -> bool:
        return any(storage._cdata in self._moving for storage in storages(tree))

    def _origin(self, func: Any, args: Any, kwargs: Any) -> tuple[str, Chain, Any] | None:
        """Say where the operand comes from, if the operation is pointwise in it alone."""
        tensors = list(iter_tensors((args, kwargs)))
        if len(tensors) != 1 or not args or args[0] is not tensors[0]:
            return None
        pointwise = torch.Tag.pointwise in func.tags
        random = torch.Tag.nondeterministic_seeded in func.tags
        if (not pointwise and func not in _RENAMES | _RESHAPES) or random:
            return None
        if args[0] not in self.known:
            return None
        return (*self.known[args[0]], (args[0].shape, args[0].dtype))

    @staticmethod
    def _is_like(result: Tensor, operand: Any) -> bool:
        return bool((result.shape, result.dtype) == operand)

    def _forget_shared(self, args: Any) -> None:
        """Forget every tensor whose memory an in-place operation may have written."""
        written = {storage._cdata for storage in storages(args)}
        for tensor in list(self.known):
            if not written.isdisjoint(storage._cdata for storage in storages(tensor)):
                del self.known[tensor]


class Reads(TorchFunctionMode):
    """Call `taken(arguments)` where values leave tensors without any operation running."""

    def __init__(self, taken: Callable[[Any], None]) -> None:
        super().__init__()
        self._taken = taken

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _LEAVES:
            self._taken((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class Product(NamedTuple):
    """What a module that multiplies by its weight computes: ``x @ weight.T + bias``."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute it."""
        return linear(inputs, self.weight, self.bias)


Computes = Product | Callable[[Tensor], Tensor]
"""What a layer should compute from the only tensor that arrives."""


def as_product(module: nn.Module) -> Product | None:
    """Product that a module would compute if it used its weight as Linear does, if it has one.

    Whether it does shows by comparison alone: see `find_chains`.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.dim() != 2:
        return None
    if bias is not None and not (isinstance(bias, Tensor) and bias.shape == weight.shape[:1]):
        return None
    return Product(weight.detach(), None if bias is None else bias.detach())


def find_chains(
    replay: Replay,
    serves: Callable[[nn.Module], Computes | None] = as_product,
) -> dict[tuple[str, str], Chain]:
    """Chains from each layer to each layer that reads it alone and computes as expected.

    Parameters
    ----------
    replay : Replay
        Open.
    serves : callable
        Gives what a module should compute from the only tensor that arrives, or None where it is
        of no use. Chains hold where that is what it does return, in value, shape and dtype, from
        what was recorded and from moved layers: whatever its type, its hooks or who swaps its
        weights.
    """
    return confirmed_chains(replay, possible_chains(replay, serves))


def possible_chains(
    replay: Replay,
    serves: Callable[[nn.Module], Computes | None] = as_product,
) -> dict[tuple[str, str], PossibleChain]:
    """Chains as one run shows them, and what the layers behind should compute.

    The parameters are those of `find_chains`. An open replay in which values of layers decide
    what is run learns that here: interventions cannot share a batch then.
    """
    modules = dict(replay.model.named_modules())
    layers = replay.recording.layers
    watch = _Watch(replay.recording)
    with watch, Reads(watch.taken), contextlib.suppress(ModelError):
        watch.data_dependent = True  # unless few samples go the same way through the model
        replay.run(Plan(frozen=frozenset(layers)), listen=watch.hear, samples=_ROWS)
        watch.data_dependent = watch.read
    if watch.data_dependent:
        # A number taken out of a tensor is one for the whole batch: interventions cannot share.
        replay.one_by_one = replay.branches = True
        return {}
    ways: dict[tuple[str, str], PossibleChain] = {}
    for (writer, reader), chain in watch.found.items():
        if reader.endswith(INPUT_SIDE) or reader not in layers or not layers[reader].layout.plain:
            continue
        computes = serves(modules[layers[reader].module])
        if computes is not None and layers[writer].neurons and layers[reader].neurons:
            ways[writer, reader] = PossibleChain(chain, computes)
    return ways


class PossibleChain(NamedTuple):
    """A chain, and what a layer behind it should compute."""

    chain: Chain
    computes: Computes


@torch.no_grad()
def confirmed_chains(
    replay: Replay, ways: Mapping[tuple[str, str], PossibleChain]
) -> dict[tuple[str, str], Chain]:
    """Chains of those of the ways that compute what the model's own code does.

    All readers are computed in one run from what is recorded, and from all their writers moved.
    """
    left = dict(ways)
    for samples in _pieces(replay.recording):
        for number in range(_MOVES + 1):
            if not left:
                return {}
            rows = {w: _moved(replay.recording.main(w)[samples], number) for w, _ in left}
            plan = Plan(
                given=frozenset(rows),
                frozen=frozenset(replay.recording.layers) - frozenset(rows),
                probed=frozenset(reader for _, reader in left),
            )
            given = {name: tensor.clone() for name, tensor in rows.items()}
            try:
                found = replay.run(plan, given, samples=samples).probed
            except ModelError:
                return {}
            left = {
                (writer, reader): way
                for (writer, reader), way in left.items()
                if _computes(way, rows[writer], found[reader])
            }
    return {edge: way.chain for edge, way in left.items()}


def _pieces(recording: Recording) -> Iterator[slice]:
    size, step = recording.size, max(_AT_ONCE, _AT_ONCE_BYTES // recording.row_bytes)
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _moved(rows: Tensor, number: int) -> Tensor:
    """Rows as they are (0), mixed among the samples (1), or far away on either side (2, 3)."""
    if number == 0:
        return rows
    generator = torch.Generator().manual_seed(number // 2)
    noise = torch.rand(rows.shape, generator=generator, dtype=torch.float64).to(rows.device)
    if number == 1:
        return torch.where(noise < 0.5, rows, rows.roll(1, 0))
    scale = (rows.abs().max() + 1) * (4 if number == 2 else -4)
    return rows + (2 * noise - 1).to(rows) * scale


def _computes(way: PossibleChain, rows: Tensor, found: Tensor) -> bool:
    """Whether a way gives what was found, but for rounding."""
    try:
        wanted: Tensor = way.computes(way.chain(rows.clone()))
    except (RuntimeError, TypeError, ValueError):
        return False
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    # Both come from the same operations on the same shapes: they hardly differ even by rounding.
    close = min(16 * torch.finfo(found.dtype).eps, 1e-3)
    finite = found[found.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(wanted, found, rtol=close, atol=close * scale, equal_nan=True)


def find_output_chain(
    replay: Replay, read: Callable[[Any], Tensor]
) -> tuple[str, Chain] | tuple[None, None]:
    """Find the layer that a part of the model's output is made of by a chain, and that chain.

    `read` takes the part, a tensor, out of what the model returns. None where there is no such
    layer: several layers have a share, or something else than a chain stands between.
    """
    watch, layers = _Watch(replay.recording), frozenset(replay.recording.layers)
    found: tuple[str, Chain] | None = None
    with watch, Reads(watch.taken), contextlib.suppress(ModelError):
        output = read(replay.run(Plan(frozen=layers), listen=watch.hear, samples=_ROWS).output)
        if not watch.read and output in watch.known:
            found = watch.known[output]
    if found is None:
        return None, None
    writer, chain = found
    way = PossibleChain(chain, lambda values: values)
    plan = Plan(given=frozenset({writer}), frozen=layers - {writer})
    with contextlib.suppress(ModelError):
        for number in range(_MOVES + 1):
            rows = _moved(replay.recording.main(writer), number)
            output = read(replay.run(plan, {writer: rows.clone()}).output)
            if not _computes(way, rows, output):
                return None, None
        return writer, chain
    return None, None
