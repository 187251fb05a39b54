"""Frozen-layer replay: run the model with chosen layers computed and all others from memory.

While a `Replay` is open, the `forward` of every layer is a stand-in that does what the current
`Plan` says: return the recorded output, return rows it was given, or compute. Everything
between the layers (the glue) is the model's own code, executed as it is.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.data import Batch
from neurograph.errors import ModelError
from neurograph.layers import Layer, Layout
from neurograph.nested import flatten, iter_tensors
from neurograph.observe import (
    Forward,
    StopReplay,
    call_model,
    call_name,
    main_argument,
    replaced_forwards,
    undisturbed,
)
from neurograph.recording import Call, Recording
from neurograph.sites import INPUT_SIDE

__all__ = ["Outcome", "Plan", "Replay"]

_CHECKED = 2  # samples on which it is checked that interventions can share a batch


@dataclass(frozen=True)
class Plan:
    """What each layer does in one replay; a layer in none of the sets is `idle`.

    Attributes
    ----------
    given : frozenset of str
        Return the rows supplied with the run.
    live : frozenset of str
        Compute from what arrives and pass it on.
    open : frozenset of str
        The same, for layers left out of the search: where there are two worlds they compute in
        both, as glue does.
    probed : frozenset of str
        Compute from what arrives, keep that, but pass on the recorded output (repeated if the
        layer is frozen too).
    frozen : frozenset of str
        Pass on the recorded output, repeated for every intervention.
    mixed : frozenset of str
        Compute in the moved world and pass that on where the mask supplied with the run says
        so; elsewhere the recorded output or, if the layer is live too, what it computes in the
        unmoved world (only with `worlds`).
    worlds : bool
        Run two worlds side by side, rows of the unmoved one first. Only given layers, and open
        ones behind them, differ between them: a given layer returns its recorded output in the
        unmoved world.
    output_moved : bool
        Which world's model output is returned (only with `worlds`).

    Notes
    -----
    An idle layer passes on its recorded output for a single sample: nothing that is computed
    depends on it, so the glue behind it need not be executed for every intervention.
    """

    given: frozenset[str] = frozenset()
    live: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()
    probed: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()
    worlds: bool = False
    output_moved: bool = True

    @property
    def busy(self) -> frozenset[str]:
        """Layers that pass on a row for every intervention."""
        return self.given | self.live | self.open | self.frozen | self.mixed


@dataclass
class Outcome:
    """What a replay returned: the model's output, and the rows that probed layers computed."""

    output: Any = None
    layouts: tuple[Layout, ...] = ()
    probed: dict[str, Tensor] = field(default_factory=dict)

    def first(self, rows: int) -> Outcome:
        """Return what belongs to the first rows."""
        probed = {name: values[:rows] for name, values in self.probed.items()}
        cut = _on_rows(self.output, self.layouts, lambda values: values[:rows])
        return Outcome(cut, self.layouts, probed)


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


class Replay:
    """Run a model from a recording, computing only what a plan asks for.

    Use as a context manager: the stand-ins exist only inside the block, and the model is left
    as it was found (forwards, training flags, buffers, random state).

    Parameters
    ----------
    model : Module
        The model that was recorded.
    recording : Recording
        What layers return when they are not computed.
    """

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self.model = model
        self.recording = recording
        self._stack = contextlib.ExitStack()
        self.one_by_one = False  # set where glue is known to mix the samples of a batch
        self._checked: dict[Plan, Plan | None] = {}
        self._run: _Run | None = None

    def __enter__(self) -> Replay:
        modules = dict(self.model.named_modules())
        paths = {layer.module for layer in self.recording.layers.values() if not layer.is_input}
        with contextlib.ExitStack() as stack:
            stack.enter_context(undisturbed(self.model))
            stack.enter_context(
                replaced_forwards({path: modules[path] for path in paths}, self._stand_in)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _stand_in(self, path: str, forward: Forward) -> Forward:
        def replayed(*args: Any, **kwargs: Any) -> Any:
            if self._run is None:
                return forward(*args, **kwargs)
            return self._run.call(path, forward, args, kwargs)

        return replayed

    def run(
        self,
        plan: Plan,
        given: Mapping[str, Tensor] | None = None,
        *,
        blocks: int = 1,
        samples: slice = slice(None),
        masks: Mapping[str, Tensor] | None = None,
        listen: Callable[[str, str, Any], None] | None = None,
    ) -> Outcome:
        """Replay the model once.

        Parameters
        ----------
        plan : Plan
            What each layer does.
        given : dict of str to Tensor
            Rows for each given layer: `blocks` interventions of one row for each sample, samples
            running fastest. In-place glue may overwrite them.
        blocks : int
            How many interventions.
        samples : slice
            Which of the recorded samples.
        masks : dict of str to bool Tensor
            For each mixed layer, which elements of a row see the moved world: ``[*shape]``, or
            ``[size, *shape]`` where that differs between the recorded samples.
        listen : callable, optional
            `listen("arrived", call, arguments)` before and `listen("returned", call, output)`
            after every call of a layer.

        Returns
        -------
        Outcome
            With no output if the plan has probed layers: the run stops at the last of them.
        """
        job = _Job(plan, given or {}, blocks, samples, masks or {}, listen)
        alone = replace(job, plan=self._full(plan))
        if listen is not None or blocks == 1:
            return self._execute(alone)
        if plan not in self._checked:
            self._checked[plan] = self._check(job)
        checked = self._checked[plan]
        if checked is None or self.one_by_one:
            rows = self._rows(job)
            return _joined([self._execute(alone.block(b, rows)) for b in range(blocks)])
        return self._execute(replace(job, plan=checked))

    def _rows(self, job: _Job) -> int:
        return len(range(self.recording.size)[job.samples])

    def _full(self, plan: Plan) -> Plan:
        """Return the plan with no layer idle."""
        return replace(plan, frozen=plan.frozen | (frozenset(self.recording.layers) - plan.busy))

    def _check(self, job: _Job) -> Plan | None:
        """Find out once how interventions can share a batch: by the plan, frozen, or not at all.

        One intervention alone, on a few samples, with every layer frozen that the plan leaves
        idle, is the truth. Glue may take the batch size from an idle layer's output, or mix the samples of a batch;
        either shows when the first intervention runs beside the last.
        """
        job, rows = job.few(self._rows(job)), min(_CHECKED, self._rows(job))
        full = self._full(job.plan)
        beside = _Job.beside(job.block(0, rows), job.block(job.blocks - 1, rows))
        for plan in (job.plan, full):
            try:
                truth = self._execute(replace(job.block(0, rows), plan=full))
                outcome = self._execute(replace(beside, plan=plan))
                if _close(truth, outcome.first(rows)):
                    return plan
            except (ModelError, RuntimeError):
                continue
        return None

    def _execute(self, job: _Job) -> Outcome:
        run = _Run(self.recording, job)
        self._run = run
        try:
            run.outcome.output = run.result(call_model(self.model, run.inputs()))
        except StopReplay:
            pass
        finally:
            self._run = None
        missing = job.plan.probed - run.outcome.probed.keys()
        if missing:
            raise ModelError(
                f"layer {min(missing)!r} was called when the model was recorded but not when it "
                "was replayed: its forward depends on values that were moved"
            )
        return run.outcome


@dataclass(frozen=True)
class _Job:
    """The arguments of one replay."""

    plan: Plan
    given: Mapping[str, Tensor]
    blocks: int
    samples: slice
    masks: Mapping[str, Tensor]
    listen: Callable[[str, str, Any], None] | None

    def block(self, number: int, rows: int) -> _Job:
        """Return the job of one of the blocks."""
        some = slice(number * rows, (number + 1) * rows)
        # Copies: glue may write to what it gets, and these rows are needed again.
        return replace(self, given={n: t[some].clone() for n, t in self.given.items()}, blocks=1)

    def few(self, rows: int) -> _Job:
        """Return the job for its first few samples, given how many it has."""
        if rows <= _CHECKED:
            return self
        start = self.samples.start or 0
        given = {
            name: t.view(-1, rows, *t.shape[1:])[:, :_CHECKED].flatten(0, 1)
            for name, t in self.given.items()
        }
        return replace(self, given=given, samples=slice(start, start + _CHECKED))

    @staticmethod
    def beside(one: _Job, other: _Job) -> _Job:
        """Return the job of two blocks in one batch."""
        given = {name: torch.cat([t, other.given[name]]) for name, t in one.given.items()}
        return replace(one, given=given, blocks=2)


class _Run:
    """One replay under way: what each layer call returns, in the order the calls come."""

    def __init__(self, recording: Recording, job: _Job) -> None:
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
                leaves[i] = self._passed_on(self.recording.layers[name])
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
        if recorded is None:
            raise ModelError(
                f"layer {call!r} was not called when the model was recorded but is when it is "
                "replayed: its forward depends on values that were moved"
            )
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
        if listen is not None:
            listen("returned", call, output)
        return output

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
        self.outcome.probed[layer.name] = layer.layout.rows(tensor)
        if len(self.outcome.probed) == len(self.job.plan.probed):
            raise StopReplay

    def _passed_on(self, layer: Layer) -> Any:
        """Return a layer's given rows, or a copy of its recorded ones: glue may write to them."""
        plan, layout = self.job.plan, layer.layout
        recorded = self.recording.calls[layer.call].leaves[layer.leaf]
        if layer.name not in plan.given:
            return self._recorded(recorded, layout, busy=layer.name in plan.frozen)
        rows = self.job.given[layer.name]
        if plan.worlds:
            rows = torch.cat([self._repeated(recorded, layout, self.job.blocks), rows])
        return layout.tensor(rows)

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
        moved = layout.rows(computed.output(moved=True)[layer.leaf])
        if layer.name in plan.live:
            still = layout.rows(computed.output(moved=False)[layer.leaf])
        else:
            recorded = self.recording.calls[layer.call].leaves[layer.leaf]
            still = self._repeated(recorded, layout, self.job.blocks)
        mask = self.job.masks[layer.name]
        if mask.dim() == moved.dim():  # it differs between samples
            mask = mask[self.job.samples]
            mask = mask.repeat(self.job.blocks, *[1] * (mask.dim() - 1))
        mixed = torch.where(mask, moved, still)
        return layout.tensor(torch.cat([mixed, mixed]))

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

    def __init__(self, run: _Run, recorded: Call, forward: Forward, args: Any, kwargs: Any) -> None:
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


def _joined(outcomes: list[Outcome]) -> Outcome:
    """Join the outcomes of blocks that ran one by one."""
    layouts = outcomes[0].layouts
    probed = {n: torch.cat([o.probed[n] for o in outcomes]) for n in outcomes[0].probed}
    if outcomes[0].output is None:
        return Outcome(None, layouts, probed)
    trees = [flatten(o.output)[0] for o in outcomes]
    _, rebuild = flatten(outcomes[0].output)
    leaves = []
    for layout, *parts in zip(layouts, *trees, strict=True):
        batched = isinstance(parts[0], Tensor) and layout.dim is not None
        rows = [layout.rows(part) for part in parts] if batched else []
        leaves.append(layout.tensor(torch.cat(rows)) if batched else parts[0])
    return Outcome(rebuild(leaves), layouts, probed)


def _close(a: Outcome, b: Outcome) -> bool:
    some, others = (list(iter_tensors((o.output, o.probed))) for o in (a, b))
    return len(some) == len(others) and all(map(_agree, some, others))


def _agree(x: Tensor, y: Tensor) -> bool:
    """Whether two results differ by rounding only."""
    if x.shape != y.shape or not x.is_floating_point():
        return torch.equal(x, y)
    finite = x[x.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    close = 1000 * torch.finfo(x.dtype).eps
    return torch.allclose(x, y, rtol=close, atol=close * scale, equal_nan=True)
