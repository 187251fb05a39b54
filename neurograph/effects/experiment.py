"""What stays fixed while effects are measured, and the moves whose effects they are."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.batch import Batch, shape_of
from neurograph.model.neurons import Units
from neurograph.model.target import Target
from neurograph.replay.elementwise import (
    Chain,
    PossibleChain,
    Product,
    as_product,
    confirmed_chains,
    possible_chains,
)
from neurograph.replay.plan import Plan
from neurograph.replay.pooling import pools_samples
from neurograph.replay.recording import Recording
from neurograph.replay.replay import Replay
from neurograph.replay.run import Outcome
from neurograph.replay.wiring import Wiring

__all__ = ["Experiment", "Moves"]

_SHARING = 6  # interventions in a batch from which on a control beside them costs little
_CACHED_BYTES = 24 * 2**20


@dataclass(frozen=True, eq=False)
class Moves:
    """Interventions on single neurons of one layer: blocks of one row a sample.

    Attributes
    ----------
    layer : str
    neurons : Tensor of int64, [blocks]
        Which neuron each block moves.
    values : Tensor, [blocks, samples or 1, elements of a neuron]
        Where to.
    """

    layer: str
    neurons: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.neurons)

    def cut(self, blocks: slice, samples: slice = slice(None)) -> Moves:
        """Return some of the blocks, for some of the samples."""
        values = self.values[blocks]
        values = values[:, samples] if values.shape[1] > 1 else values
        return Moves(self.layer, self.neurons[blocks], values)

    @staticmethod
    def between(layer: str, values: Tensor, neurons: Tensor, still: Tensor) -> tuple[Moves, Tensor]:
        """Moves of neurons to each of their levels, equal ones only once.

        Parameters
        ----------
        layer : str
        values : Tensor, [neurons, levels, samples or 1, elements of a neuron]
        neurons : Tensor of int64, [neurons]
        still : Tensor, [neurons, samples, elements of a neuron]
            The background: a move to it is the same for all neurons.

        Returns
        -------
        moves : Moves
        block : Tensor of int64, [neurons, levels]
            Which block holds each neuron at each level.
        """
        new = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        new[:, 1:] = (values[:, 1:] != values[:, :-1]).flatten(2).any(dim=2)
        unmoved = (values == still[:, None]).flatten(2).all(dim=2)
        new &= ~unmoved
        first = unmoved.flatten().nonzero()[:1, 0]  # stands for all that do not move
        block = (new.flatten().cumsum(0) - 1 + len(first)).view_as(new)
        block[unmoved] = 0
        chosen = torch.cat([first, new.flatten().nonzero()[:, 0]])
        owner = neurons[:, None].expand_as(new).flatten()[chosen]
        return Moves(layer, owner, values.flatten(0, 1)[chosen]), block


@dataclass
class _Glue:
    """What is known of the glue between layers, and whether it may be made use of."""

    narrow: bool
    ways: Mapping[tuple[str, str], PossibleChain] | None = None  # as one run shows them
    chains: Mapping[tuple[str, str], Chain] | None = None  # confirmed, once one is asked for
    blocked: list[tuple[str, str]] | None = None


class Experiment:
    """One model, background, contrast and target: all that is fixed while effects are measured.

    A context manager: the model is under replay inside the block and as it was outside.

    Parameters
    ----------
    replay : Replay
        Of the background's recording.
    wiring : Wiring
        Who reads whom.
    target : Target
    units : callable
        From a layer's name to its neurons.
    levels : callable
        From a layer's name to the values its elements move between,
        ``[levels, samples or 1, elements]``.
    moving : callable
        From a layer's name to which elements of each row may move, ``[samples, elements]``, or
        None where all may.
    memory : int
        Bytes that the rows of one replay may take.
    real : bool
        Whether the background is what a run of the model gives, and so consistent.
    coarse : bool
        Whether targets are computed so coarsely that rounding decides about effects: then nothing
        is added to what was rounded before, as the narrow route does, and effects that stand out
        of their standard error are no rounding.
    """

    def __init__(
        self,
        replay: Replay,
        wiring: Wiring,
        target: Target,
        units: Callable[[str], Units],
        levels: Callable[[str], Tensor],
        moving: Callable[[str], Tensor | None],
        memory: int,
        real: bool,
        coarse: bool = False,
    ) -> None:
        self.replay = replay
        self.recording: Recording = replay.recording
        self.wiring = wiring
        self.graph = wiring.layers
        self.target = target
        self.memory = memory
        self.real = real
        self.coarse = coarse
        self._glue = _Glue(narrow=not coarse)
        self.units = functools.cache(units)
        self.moving = functools.cache(moving)
        self.levels = functools.cache(self._restricted(levels))
        self._moves: dict[tuple[str, int], tuple[list[int], bool, Moves, Tensor]] = {}
        self._arriving: dict[tuple[str, str], Tensor] = {}
        self._computed: dict[tuple[str, str], Tensor] = {}

    def _restricted(self, levels: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        """What may not move has its background value at every level."""

        def restricted(layer: str) -> Tensor:
            values, moving = levels(layer), self.moving(layer)
            if moving is None:
                return values
            still = self.recording.main(layer).flatten(1)
            return torch.where(moving, values, still)

        return restricted

    def __enter__(self) -> Experiment:
        self.replay.__enter__()
        try:
            if self._glue.ways is None:  # also tells whether interventions may share a batch
                self._glue.ways = possible_chains(self.replay)
                if not self.replay.one_by_one and pools_samples(self.replay):
                    self.replay.one_by_one = self.replay.pools = True
        except BaseException:
            self.replay.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.replay.__exit__(*exception)

    @property
    def narrow(self) -> bool:
        """Whether products of weights may stand for calls of Linear layers behind chains."""
        return self._glue.narrow

    @narrow.setter
    def narrow(self, may: bool) -> None:
        self._glue.narrow = may

    @property
    def chains(self) -> Mapping[tuple[str, str], Chain]:
        """Pointwise glue between a layer and its reader, where products of weights may stand."""
        glue = self._glue
        if glue.chains is None and glue.narrow and glue.ways is not None and self.replay.is_open:
            glue.chains = confirmed_chains(self.replay, glue.ways)
        return (glue.chains or {}) if glue.narrow else {}

    def blocked(self, find: Callable[[Experiment], list[tuple[str, str]]]) -> list[tuple[str, str]]:
        """Edges that no gradients pass, found once by `find(experiment)`, whatever the contrast."""
        if self._glue.blocked is None:
            self._glue.blocked = find(self)
        return self._glue.blocked

    def with_levels(self, levels: Callable[[str], Tensor]) -> Experiment:
        """The same experiment with another contrast; what is found out of the model is shared."""
        other = copy.copy(self)
        other.levels = functools.cache(other._restricted(levels))
        other._moves = {}
        return other

    def of_outputs(self, most: int) -> list[Experiment]:
        """The same experiment on each output of the model for its target; OptionError for many."""
        logits = self.target.logits(self.recording.output)
        columns = 1 if logits.dim() == 1 else logits.shape[1]
        if logits.dim() > 2 or columns > most:
            raise OptionError(
                f"of='outputs' takes a gradient of each output, and the model's are "
                f"{shape_of(logits[0])} for each sample: at most {most} in a row can be read"
            )
        found = [copy.copy(self) for _ in range(columns)]
        for index, other in enumerate(found):
            other.target = Target(f"output[{index}]", index, leaf=self.target.leaf)
        return found

    def linear(self, layer: str) -> Product:
        """Return what a layer that chains lead to computes."""
        product = as_product(self.replay.model.get_submodule(self.recording.layers[layer].module))
        assert product is not None
        return product

    def arriving(self, writer: str, reader: str) -> Tensor:
        """What arrives at a reader behind a chain, all layers at background."""
        edge = writer, reader
        if edge not in self._arriving:
            self._arriving[edge] = self.chains[edge](self.recording.main(writer).clone())
        return self._arriving[edge]

    def computed(self, writer: str, reader: str) -> Tensor:
        """What a reader behind a chain computes from that; its own background may be another."""
        edge = writer, reader
        if edge not in self._computed:
            self._computed[edge] = self.linear(reader)(self.arriving(*edge))
        return self._computed[edge]

    def moves(
        self, layer: str, neurons: Sequence[int], *, levels: bool = False
    ) -> tuple[Moves, Tensor]:
        """Moves of some neurons to both ends of the contrast, or to all its levels.

        See `Moves.between`. The last ones of each layer are kept, as both signs move the same
        neurons.
        """
        wanted = list(neurons)
        key = layer, self.units(layer).widest(wanted)
        known = self._moves.get(key)
        if known is None or known[:2] != (wanted, levels):
            which = slice(None) if levels else [0, -1]
            known = self._moves[key] = (wanted, levels, *self._between(layer, wanted, which))
        return known[2:]

    def end(self, layer: str, which: int) -> Tensor:
        """Rows of a layer with all its neurons at one level of the contrast."""
        rows, values = self.recording.main(layer), self.levels(layer)[which]
        moved = torch.where(self.units(layer).owner >= 0, values.to(rows), rows.flatten(1))
        return moved.view_as(rows)

    def _between(self, layer: str, neurons: list[int], which: Any) -> tuple[Moves, Tensor]:
        levels = self.levels(layer)[which]
        index = torch.tensor(neurons, device=levels.device)
        members = self.units(layer).members(index)
        values = levels[:, :, members].movedim(2, 0)
        still = self.recording.main(layer).flatten(1)[:, members].movedim(1, 0)
        return Moves.between(layer, values, index, still)

    def mask(self, layer: str, neurons: Sequence[int] | None) -> Tensor:
        """Mark which elements of a row are of some neurons (None: of all), and may move.

        Returns
        -------
        Tensor of bool, [*shape], or [samples, *shape] where that differs between samples
        """
        shape, units = self.recording.layers[layer].shape, self.units(layer)
        mask = torch.ones(math.prod(shape), dtype=torch.bool, device=units.elements.device)
        if neurons is not None:
            flags = torch.zeros(len(units), dtype=torch.bool, device=mask.device)
            flags[list(neurons)] = True
            mask = units.mask(flags)
        moving = self.moving(layer)
        return mask.view(shape) if moving is None else (mask & moving).view(-1, *shape)

    def rows(self, moves: Moves, samples: slice) -> Tensor:
        """Rows of a layer's main tensor with each block's neuron moved, all else background."""
        main = self.recording.main(moves.layer)[samples]
        still = main.flatten(1)
        rows = still[None].repeat(len(moves), 1, 1)
        members = self.units(moves.layer).members(moves.neurons, moves.values.shape[2])
        values = moves.values.to(rows).expand(-1, len(still), -1)
        rows.scatter_(2, members[:, None].expand(-1, len(still), -1), values)
        return rows.view(-1, *main.shape[1:])

    def targets(self, outcome: Outcome, blocks: int, samples: slice) -> Tensor:
        """Read the target off a replay, ``[blocks, samples]``."""

        def batch() -> Batch:
            few = self.recording.batch.map(lambda leaf: leaf[samples])
            return few.map(lambda leaf: leaf.repeat(blocks, *[1] * (leaf.dim() - 1)))

        return self.target(outcome.output, batch).reshape(blocks, -1)

    def chunks(
        self, blocks: int, plans: Sequence[Plan], extra_bytes: int = 0, *, together: int = 1
    ) -> Iterator[tuple[slice, slice]]:
        """Cut blocks × samples into pieces whose rows fit the memory budget in every plan.

        On a CPU, pieces of several blocks are cut to what its caches hold of the widest layer:
        larger ones would only wait for memory. `together` blocks are run for each one counted.
        """
        sizes = [self._widths(plan) for plan in plans]
        worlds = 2 if any(plan.worlds for plan in plans) else 1
        busy = min(worlds * self.recording.row_bytes, max(map(sum, sizes)))
        busy = max(busy, *map(self._while_running, plans))  # what is inside calls, too
        # What an operator takes for itself, such as a convolution's copies in a layout of its own,
        # was measured at up to 1.5 times its tensors.
        row_bytes = together * (4 * busy + extra_bytes)
        pieces = math.ceil(self.recording.size / max(1, self.memory // row_bytes))
        samples_at_once = math.ceil(self.recording.size / pieces)
        if self.replay.one_by_one:
            samples_at_once = self.recording.size  # what a sample does depends on the others
        if self.on_cpu:
            widest = together * (2 * max(map(max, sizes)) + extra_bytes)
            rows = min(self.memory // row_bytes, _CACHED_BYTES // widest)
        else:
            rows = self.memory // row_bytes
        blocks_at_once = rows // samples_at_once
        if blocks_at_once < blocks:  # one more is run beside several, a control: few run alone
            blocks_at_once = blocks_at_once - 1 if blocks_at_once >= _SHARING else 1
        blocks_at_once = max(1, blocks_at_once)
        for first in range(0, blocks, blocks_at_once):
            for start in range(0, self.recording.size, samples_at_once):
                yield (
                    slice(first, min(first + blocks_at_once, blocks)),
                    slice(start, min(start + samples_at_once, self.recording.size)),
                )

    def sample_pieces(self) -> Iterator[slice]:
        """Cut the samples into pieces that can be run forwards and backwards."""
        size = self.recording.size
        kept = sum(self._row_bytes.values())  # a backward pass needs about all that was computed
        step = size if self.replay.one_by_one else max(1, self.memory // (4 * kept))
        for start in range(0, size, step):
            yield slice(start, min(start + step, size))

    def _widths(self, plan: Plan) -> list[int]:
        """Bytes of one row of each layer that passes rows on."""
        worlds = 2 if plan.worlds else 1
        return [worlds * self._row_bytes[name] for name in plan.busy | plan.probed]

    def work(self, plan: Plan) -> int:
        """Bytes of one row of all layers that pass rows on, together."""
        return sum(self._widths(plan))

    def _while_running(self, plan: Plan) -> int:
        """Bytes of one row that are alive at once while the plan's layers run."""
        calls = {self.recording.layers[name].call for name in plan.busy | plan.probed} | {""}
        known = self.recording.call_bytes
        return (2 if plan.worlds else 1) * max(known.get(call, 0) for call in calls)

    @functools.cached_property
    def _row_bytes(self) -> dict[str, int]:
        """Bytes of one sample's output, for each layer."""
        return {
            name: self.recording.main(name).nbytes // self.recording.size + 1
            for name in self.recording.layers
        }

    @functools.cached_property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU."""
        return self.recording.main(next(iter(self.recording.layers))).device.type == "cpu"
