"""One replay under way: what each call of a layer returns, as the plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from neurograph.errors import ModelError
from neurograph.model.batch import Batch
from neurograph.model.layer_choice import INPUT_SIDE
from neurograph.model.layers import Layer, Layout
from neurograph.model.observe import Forward, StopReplay, call_name, main_argument
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Call, Recording
from neurograph.replay.routed import rows_of_blocks
from neurograph.utils.nested import flatten, main_index

__all__ = ["CHECKED", "Job", "Outcome", "Run"]

CHECKED = 2
"""Samples on which it is checked that interventions can share a batch."""


@dataclass
class Outcome:
    """What a replay returned.

    Attributes
    ----------
    output : nested tensors
        The model's own.
    layouts : tuple of Layout
        Of its leaves.
    probed : dict of str to Tensor
        Rows that probed layers computed.
    passed : dict of str to Tensor
        Rows that nudged layers passed on, where these are sums.
    """

    output: Any = None
    layouts: tuple[Layout, ...] = ()
    probed: dict[str, Tensor] = field(default_factory=dict)
    passed: dict[str, Tensor] = field(default_factory=dict)

    def at(self, rows: slice) -> Outcome:
        """Return what belongs to some of the rows."""
        probed = {name: values[rows] for name, values in self.probed.items()}
        if self.output is None:
            return Outcome(None, self.layouts, probed)
        cut = _on_rows(self.output, self.layouts, lambda values: values[rows])
        return Outcome(cut, self.layouts, probed)

    def first(self, rows: int) -> Outcome:
        """Return what belongs to the first rows."""
        return self.at(slice(rows))


def _on_rows(tree: Any, layouts: tuple[Layout, ...], change: Callable[[Tensor], Tensor]) -> Any:
    """Change the rows of every tensor of a nested structure that has some."""
    leaves, rebuild = flatten(tree)
    if len(leaves) != len(layouts):
        raise ModelError(
            "a module returned or was given another structure when replayed than when recorded: "
            "its forward depends on values that were moved"
        )
    return rebuild(
        [
            layout.tensor(change(layout.rows(leaf)))
            if isinstance(leaf, Tensor) and layout.dim is not None
            else leaf
            for leaf, layout in zip(leaves, layouts, strict=True)
        ]
    )


@dataclass(frozen=True)
class Job:
    """The arguments of one replay."""

    plan: Plan
    given: Mapping[str, Tensor]
    blocks: int
    samples: slice
    masks: Mapping[str, Tensor]
    shares: Mapping[str, Tensor]
    listen: Callable[[str, str, Any], None] | None

    def block(self, number: int, rows: int) -> Job:
        """Return the job of one of the blocks."""
        some = slice(number * rows, (number + 1) * rows)
        # Copies: glue may write to what it gets, and these rows are needed again.
        given = {n: t[some].clone() for n, t in self.given.items()}
        shares = {n: t[some] for n, t in self.shares.items()}
        return replace(self, given=given, shares=shares, blocks=1)

    def few(self, rows: int) -> Job:
        """Return the job for its first few samples, given how many it has."""
        if rows <= CHECKED:
            return self
        start = self.samples.start or 0

        def first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            blocks = {n: t.reshape(-1, rows, *t.shape[1:]) for n, t in tensors.items()}
            return {name: t[:, :CHECKED].flatten(0, 1) for name, t in blocks.items()}

        some = slice(start, start + CHECKED)
        return replace(self, given=first(self.given), shares=first(self.shares), samples=some)

    @staticmethod
    def beside(one: Job, other: Job) -> Job:
        """Return the job of the blocks of both in one batch."""
        given = {name: torch.cat([t, other.given[name]]) for name, t in one.given.items()}
        shares = {name: torch.cat([t, other.shares[name]]) for name, t in one.shares.items()}
        return replace(one, given=given, shares=shares, blocks=one.blocks + other.blocks)


class Run:
    """One replay under way: what each layer call returns, in the order the calls come."""

    def __init__(self, recording: Recording, job: Job) -> None:
        self.recording = recording
        self.job = job
        self.outcome = Outcome()
        self._calls: Counter[str] = Counter()
        self._rows = job.blocks * len(range(recording.size)[job.samples])

    # -- the model's ends ------------------------------------------------------------------------

    def inputs(self) -> Batch:
        """Return the model's arguments, each tensor as the plan says."""
        names = iter([n for n, layer in self.recording.layers.items() if layer.is_input])
        batch = self.recording.batch
        leaves, rebuild = flatten((batch.args, dict(batch.kwargs)))
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.dim() > 0:
                name = next(names)
                layer = self.recording.layers[name]
                leaves[i] = self._nudge(layer, self._passed_on(layer))
                if self.job.listen is not None:
                    self.job.listen("returned", name, leaves[i])
        args, kwargs = rebuild(leaves)
        return Batch(args, kwargs)

    def result(self, output: Any) -> Any:
        """Return the model's output, of one world where there are two."""
        plan = self.job.plan
        self.outcome.layouts = self.recording.layouts
        if not plan.worlds:
            return output
        return self._world(output, self.recording.layouts, moved=plan.output_moved)

    # -- one call --------------------------------------------------------------------------------

    def call(self, path: str, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Do what the plan says for the next call of a module, on its input side and on both."""
        call = call_name(path, self._calls)
        if path in self.recording.sites.inputs:
            args, kwargs = self._enter(call + INPUT_SIDE, args, kwargs)
        if path not in self.recording.modules:
            return forward(*args, **kwargs)
        own = self.recording.layers.get(path)
        if own is not None and own.routed:
            return self._routed(own, forward(*args, **kwargs))
        return self._layer(call, forward, args, kwargs)

    def _enter(self, call: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Let the input side of a module do what the plan says: a layer that computes nothing."""
        arriving = main_argument((args, kwargs))
        passed = self._layer(call, lambda x: x, (arriving,), {})
        leaves, rebuild = flatten((args, kwargs))
        changed: tuple[Any, Any] = rebuild([passed if x is arriving else x for x in leaves])
        return changed

    def _layer(self, call: str, forward: Forward, args: Any, kwargs: Any) -> Any:
        recorded = self.recording.calls.get(call)
        if recorded is None:  # what is moved made the model call it: nobody's, like glue
            return forward(*args, **kwargs)
        plan, listen = self.job.plan, self.job.listen
        if listen is not None:
            listen("arrived", call, (args, kwargs))
        layers = self.recording.by_call[call]
        names = {layer.name for layer in layers}
        computed = _Computed(self, recorded, forward, args, kwargs)
        for layer in layers:
            if layer.name in plan.probed:
                self._probe(layer, computed.output()[layer.leaf])
        if (
            len(layers) == 1
            and len(recorded.leaves) == 1
            and names <= (plan.live | plan.open) - plan.mixed
        ):
            output = computed.whole(layers[0].name in plan.open)
        else:
            output = self._assemble(recorded, layers, names, computed)
        if not names.isdisjoint(plan.nudged):
            leaves = flatten(output)[0]
            for own in layers:
                leaves[own.leaf] = self._nudge(own, leaves[own.leaf])
            output = recorded.rebuild(leaves)
        if listen is not None:
            listen("returned", call, output)
        return output

    def _routed(self, layer: Layer, output: Any) -> Any:
        """Set what is given of a layer that runs on some rows only, on whatever rows these are.

        What moves is behind whatever chose the rows: each intervention has the same ones.
        """
        leaves, rebuild = flatten(output)
        main = main_index(leaves)
        if layer.name not in self.job.plan.given or main is None or not leaves[main].numel():
            return output
        rows = self.job.given[layer.name]
        put = rows.view(self.job.blocks, -1, rows.shape[-1])[:, :1]  # the same for all samples
        if self.job.plan.worlds:
            put = torch.cat([torch.full_like(put, torch.nan), put])
        tensor = leaves[main]
        flat = tensor.flatten(0, -2)
        whose = rows_of_blocks(flat.detach(), len(put))
        if whose is None:
            raise ModelError(
                f"nothing tells which rows of layer {layer.name!r} are of which samples, as values "
                "choose them: leave it out by layers="
            )
        values = torch.empty_like(flat)
        values[whose.flatten()] = put.expand(*whose.shape, -1).flatten(0, 1)
        leaves[main] = torch.where(values.isnan(), flat, values).view_as(tensor)
        return rebuild(leaves)

    def _assemble(
        self, recorded: Call, layers: tuple[Layer, ...], names: set[str], computed: _Computed
    ) -> Any:
        """Put a call's output together, each of its tensors as the plan says."""
        plan = self.job.plan
        if not names.isdisjoint(plan.live | plan.open):
            leaves = list(computed.leaves(both=not names.isdisjoint(plan.open)))
        else:
            busy, own = not names.isdisjoint(plan.busy), {layer.leaf for layer in layers}
            leaves = [
                None if i in own else self._recorded(leaf, layout, busy=busy)
                for i, (leaf, layout) in enumerate(
                    zip(recorded.leaves, recorded.layouts, strict=True)
                )
            ]
        for layer in layers:
            if layer.name in plan.mixed:
                leaves[layer.leaf] = self._mixed(layer, computed)
            elif layer.name not in plan.live | plan.open:
                leaves[layer.leaf] = self._passed_on(layer)
        return recorded.rebuild(leaves)

    def _probe(self, layer: Layer, tensor: Tensor) -> None:
        self.outcome.probed[layer.name] = layer.rows(tensor)
        if len(self.outcome.probed) == len(self.job.plan.probed):
            raise StopReplay

    def _passed_on(self, layer: Layer) -> Any:
        """Return a layer's given rows, or a copy of its recorded ones: glue may write to them."""
        plan, layout = self.job.plan, layer.layout
        recorded = self.recording.calls[layer.call].leaves[layer.leaf]
        if layer.name not in plan.given:
            return self._recorded(recorded, layout, busy=layer.name in plan.frozen)
        tensor = layer.tensor(self.job.given[layer.name])
        if plan.worlds:
            still = self._repeated(recorded, layout, self.job.blocks)
            return layout.tensor(torch.cat([still, layout.rows(tensor)]))
        return tensor

    def _nudge(self, layer: Layer, tensor: Any) -> Any:
        if layer.name not in self.job.plan.nudged:
            return tensor
        rows, added = layer.rows(tensor), self.job.given[layer.name]
        share = self.job.shares.get(layer.name)
        if share is not None and share.dtype == torch.bool:
            passed = layer.tensor(torch.where(share, rows, added))
            return passed.contiguous() if tensor.is_contiguous() else passed  # as glue expects it
        if share is not None:  # gradients see the whole
            rows = rows + (rows * (share - 1)).detach()
        rows = rows + added
        self.outcome.passed[layer.name] = rows
        return layer.tensor(rows.clone())  # glue may write to what it gets

    def _recorded(self, leaf: Any, layout: Layout, *, busy: bool) -> Any:
        """Return a copy of a recorded leaf, for every row or for one sample."""
        if not isinstance(leaf, Tensor):
            return leaf
        if layout.dim is None:
            return leaf.clone()
        if not busy:
            return layout.tensor(layout.rows(leaf)[:1].clone())
        blocks = self.job.blocks * (2 if self.job.plan.worlds else 1)
        return layout.tensor(self._repeated(leaf, layout, blocks))

    def _repeated(self, leaf: Tensor, layout: Layout, blocks: int) -> Tensor:
        """Rows of a recorded leaf for the run's samples, for each block."""
        rows = layout.rows(leaf)
        count = len(range(self.recording.size)[self.job.samples])
        if layout.dim is not None:
            rows = rows[self.job.samples]
        elif layout.spread:
            rows = rows.expand(count, *rows.shape[1:])
        return rows.repeat(blocks, *[1] * (rows.dim() - 1)) if blocks > 1 else rows.clone()

    def _mixed(self, layer: Layer, computed: _Computed) -> Tensor:
        plan, layout = self.job.plan, layer.layout
        moved = layer.rows(computed.output(moved=True)[layer.leaf])
        if layer.name in plan.live:
            still = layer.rows(computed.output(moved=False)[layer.leaf])
        else:
            recorded = self.recording.calls[layer.call].leaves[layer.leaf]
            still = layer.coordinates(self._repeated(recorded, layout, self.job.blocks))
        mask = self.job.masks[layer.name]
        if mask.dim() == moved.dim():  # it differs between samples
            mask = mask[self.job.samples]
            mask = mask.repeat(self.job.blocks, *[1] * (mask.dim() - 1))
        mixed = torch.where(mask, moved, still)
        return layer.tensor(torch.cat([mixed, mixed]))

    # -- worlds ----------------------------------------------------------------------------------

    def _world(self, tree: Any, layouts: tuple[Layout, ...], *, moved: bool) -> Any:
        """Return the rows of one of two worlds; what has no row for each stays."""

        def half(rows: Tensor) -> Tensor:
            if len(rows) != 2 * self._rows:
                return rows
            return rows[self._rows :] if moved else rows[: self._rows]

        return _on_rows(tree, layouts, half)

    def _doubled(self, leaf: Any, layout: Layout) -> Any:
        if not isinstance(leaf, Tensor) or layout.dim is None:
            return leaf
        rows = layout.rows(leaf)
        return layout.tensor(torch.cat([rows, rows])) if len(rows) == self._rows else leaf


class _Computed:
    """What a call computes from what arrives, each world at most once."""

    def __init__(self, run: Run, recorded: Call, forward: Forward, args: Any, kwargs: Any) -> None:
        self.run, self.recorded, self.forward = run, recorded, forward
        self.arguments = args, kwargs
        self._known: dict[bool | None, Any] = {}

    def _tree(self, moved: bool | None) -> Any:
        """Output in one world, or (None) for all rows that arrive."""
        if moved not in self._known:
            args, kwargs = self.arguments
            if moved is not None:
                layouts = self.recorded.arriving or self.recorded.layouts
                args, kwargs = self.run._world((args, kwargs), layouts, moved=moved)
            self._known[moved] = self.forward(*args, **kwargs)
        return self._known[moved]

    def output(self, *, moved: bool | None = None) -> list[Any]:
        """Leaves of the output in one world, or of all rows."""
        return flatten(self._tree(moved))[0]

    def whole(self, both: bool) -> Any:
        """Return the output for every row; the unmoved world's twice, unless both differ."""
        if both or not self.run.job.plan.worlds:
            return self._tree(None)
        return self.recorded.rebuild(self.leaves(both=both))

    def leaves(self, *, both: bool) -> list[Any]:
        """Return the leaves of `whole`."""
        if both or not self.run.job.plan.worlds:
            return self.output()
        pairs = zip(self.output(moved=False), self.recorded.layouts, strict=True)
        return [self.run._doubled(leaf, layout) for leaf, layout in pairs]
