"""Along which dimension the channels of a layer lie: the last, or the first of a map."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from neurograph.model.module_types import has_channels_first, has_channels_last, is_convolution
from neurograph.model.observe import Forward, replaced_forwards
from neurograph.utils.nested import iter_tensors

__all__ = ["Maps", "watching_maps"]

TensorShape = tuple[int, ...]


class _Seen(NamedTuple):
    """Shapes, without samples, that a module of known type got and returned."""

    path: str
    first: bool
    convolves: bool
    arrived: frozenset[TensorShape]
    returned: frozenset[TensorShape]

    @property
    def shapes(self) -> frozenset[TensorShape]:
        return self.arrived | self.returned


class Maps:
    """Where channels lie, as modules of known type show in one run.

    Convolutions, norms and pools of maps have them in dimension 1; Linear, LayerNorm, attention and
    recurrent layers in the last one. Any other module has them where those inside it have them, or
    where those of the whole model have them that handle a tensor of this shape. Where both kinds
    do, maps (two dimensions of positions, or more) go by the first kind, sequences by the second.
    """

    def __init__(self, seen: Iterable[_Seen]) -> None:
        self._seen = list(seen)
        self._convolved = {s for one in self._seen if one.convolves for s in one.arrived}

    def of_input(self, shape: TensorShape) -> bool:
        """Whether a convolution takes an input of the model as it is."""
        return shape in self._convolved

    def of_module(self, path: str, module: nn.Module, shape: TensorShape) -> bool:
        """Whether what a module returns has its channels in dimension 1."""
        if has_channels_first(module):
            return True
        if has_channels_last(module) or len(shape) < 2:
            return False
        inside = [one for one in self._seen if one.path.startswith(f"{path}.")]
        chosen = inside or self._seen
        first = {known for one in chosen if one.first for known in one.shapes}
        last = {known for one in chosen if not one.first for known in one.shapes}
        if shape in first:
            return len(shape) > 2 or shape not in last
        # A block may return a map of another size than those inside it, with as many channels.
        channels = {known[0] for known in first if len(known) == len(shape)}
        ends = {known[-1] for known in first | last if len(known) == len(shape)}
        return bool(inside) and len(shape) > 2 and shape[0] in channels and shape[-1] not in ends


@contextlib.contextmanager
def watching_maps(model: nn.Module, seen: list[_Seen]) -> Iterator[None]:
    """See what each module handles in the runs inside, if any has channels in dimension 1."""
    modules = {path: m for path, m in model.named_modules() if path}
    known = {p: m for p, m in modules.items() if has_channels_first(m) or has_channels_last(m)}

    def stand_in(path: str, forward: Forward) -> Forward:
        first, convolves = has_channels_first(known[path]), is_convolution(known[path])
        # Sequences are normalised and pooled along either dimension: there only convolutions tell.
        least = 3 if first and not convolves else 2

        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            arrived, returned = (
                frozenset(tuple(x.shape[1:]) for x in iter_tensors(tree) if x.dim() > least)
                for tree in ((args, kwargs), output)
            )
            seen.append(_Seen(path, first, convolves, arrived, returned))
            return output

        return run

    watched = known if any(map(has_channels_first, known.values())) else {}
    with replaced_forwards(watched, stand_in):
        yield
