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
from torch.utils._pytree import tree_flatten, tree_unflatten

from neurograph.capture import (
    Forward,
    Recording,
    StopReplay,
    call_model,
    call_name,
    replaced_forwards,
    undisturbed,
)
from neurograph.data import Batch
from neurograph.errors import ModelError
from neurograph.layers import iter_tensors, main_tensor, replace_main, tree_map

__all__ = ["Outcome", "Plan", "Replay", "along_channels"]


@dataclass(frozen=True)
class Plan:
    """What each layer does in one replay; a layer in none of the sets is `idle`.

    Attributes
    ----------
    given : frozenset of str
        Return the rows supplied with the run.
    live : frozenset of str
        Compute from what arrives and pass it on.
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
        Run two worlds side by side, rows of the unmoved one first. Only a given layer differs
        between them: it returns its recorded output in the unmoved world.
    output_moved : bool
        Which world's model output is returned (only with `worlds`).

    Notes
    -----
    An idle layer passes on its recorded output for a single sample: nothing that is computed
    depends on it, so the glue behind it need not be executed for every intervention.
    """

    given: frozenset[str] = frozenset()
    live: frozenset[str] = frozenset()
    probed: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()
    worlds: bool = False
    output_moved: bool = True

    @property
    def busy(self) -> frozenset[str]:
        """Layers that pass on a row for every intervention."""
        return self.given | self.live | self.frozen | self.mixed


@dataclass
class Outcome:
    """What a replay returned: the model's output, and what the probed layers computed."""

    output: Any = None
    probed: dict[str, Any] = field(default_factory=dict)

    def first(self, rows: int) -> Outcome:
        """Return what belongs to the first rows."""
        output, probed = tree_map(
            lambda x: x[:rows] if isinstance(x, Tensor) and x.dim() else x,
            (self.output, self.probed),
        )
        return Outcome(output, probed)


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
            Rows for each given layer's main tensor: `blocks` interventions of one row for each
            sample, samples running fastest. In-place glue may overwrite them.
        blocks : int
            How many interventions.
        samples : slice
            Which of the recorded samples.
        masks : dict of str to bool Tensor
            For each mixed layer, which channels see the moved world.
        listen : callable, optional
            `listen("arrived", layer, arguments)` before and `listen("returned", layer, output)`
            after every layer call.

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

        One intervention alone, with every layer frozen that the plan leaves idle, is the truth.
        Glue may take the batch size from an idle layer's output, or mix the samples of a batch;
        either shows when the first intervention runs beside the last.
        """
        rows = self._rows(job)
        full = self._full(job.plan)
        truth = self._execute(replace(job.block(0, rows), plan=full))
        beside = _Job.beside(job.block(0, rows), job.block(job.blocks - 1, rows))
        for plan in (job.plan, full):
            try:
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

    def inputs(self) -> Batch:
        """Return the model's arguments, each tensor as the plan says."""
        names = iter([n for n, layer in self.recording.layers.items() if layer.is_input])
        batch = self.recording.batch
        leaves, spec = tree_flatten((batch.args, dict(batch.kwargs)))
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.dim() > 0:
                name = next(names)
                leaves[i] = self._pass_on(name)
                if self.job.listen is not None:
                    self.job.listen("returned", name, leaves[i])
        args, kwargs = tree_unflatten(leaves, spec)
        return Batch(args, kwargs)

    def result(self, output: Any) -> Any:
        """Return the model's output, of one world where there are two."""
        plan = self.job.plan
        if not plan.worlds:
            return output
        return tree_map(lambda x: self._half(x, moved=plan.output_moved), output)

    def call(self, path: str, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Do what the plan says for the next call of a module."""
        name = call_name(path, self._calls)
        plan, listen = self.job.plan, self.job.listen
        if listen is not None:
            listen("arrived", name, (args, kwargs))
        if name in plan.mixed:
            output = self._mix(name, forward, args, kwargs)
        elif name in plan.live:
            output = self._compute(forward, args, kwargs)
        else:
            if name in plan.probed:
                self._probe(name, forward(*args, **kwargs))
            output = self._pass_on(name)
        if listen is not None:
            listen("returned", name, output)
        return output

    def _probe(self, name: str, output: Any) -> None:
        self.outcome.probed[name] = main_tensor(output)
        if len(self.outcome.probed) == len(self.job.plan.probed):
            raise StopReplay

    def _pass_on(self, name: str) -> Any:
        """Return a layer's given rows, or a copy of its recorded ones: glue may write to them."""
        plan = self.job.plan
        recorded = self.recording.outputs.get(name)
        if recorded is None:
            raise ModelError(
                f"layer {name!r} was not called when the model was recorded but is when it is "
                "replayed: its forward depends on values that were moved"
            )
        if name not in plan.given:
            if name not in plan.frozen:
                return self._one_row(recorded)
            return self._repeat(recorded, self.job.blocks * (2 if plan.worlds else 1))
        moved = self.job.given[name]
        if plan.worlds:
            still = self._repeat(self.recording.main(name), self.job.blocks)
            return replace_main(
                self._repeat(recorded, 2 * self.job.blocks), torch.cat([still, moved])
            )
        if isinstance(recorded, Tensor):
            return moved
        return replace_main(self._repeat(recorded, self.job.blocks), moved)

    def _repeat(self, value: Any, blocks: int) -> Any:
        size, samples = self.recording.size, self.job.samples

        def repeated(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if leaf.dim() == 0 or leaf.shape[0] != size:
                return leaf.clone()
            rows = leaf[samples]
            return rows.repeat(blocks, *[1] * (rows.dim() - 1)) if blocks > 1 else rows.clone()

        return tree_map(repeated, value)

    def _one_row(self, value: Any) -> Any:
        def first(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            by_row = leaf.dim() > 0 and leaf.shape[0] == self.recording.size
            return (leaf[:1] if by_row else leaf).clone()

        return tree_map(first, value)

    def _half(self, leaf: Any, *, moved: bool) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == 2 * self._rows:
            return leaf[self._rows :] if moved else leaf[: self._rows]
        return leaf

    def _compute(self, forward: Forward, args: Any, kwargs: Any) -> Any:
        if not self.job.plan.worlds:
            return forward(*args, **kwargs)
        return tree_map(self._twice, self._in_world(forward, args, kwargs, moved=False))

    def _in_world(self, forward: Forward, args: Any, kwargs: Any, *, moved: bool) -> Any:
        args, kwargs = tree_map(lambda x: self._half(x, moved=moved), (args, kwargs))
        return forward(*args, **kwargs)

    def _twice(self, leaf: Any) -> Any:
        by_row = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == self._rows
        return torch.cat([leaf, leaf]) if by_row else leaf

    def _mix(self, name: str, forward: Forward, args: Any, kwargs: Any) -> Any:
        if name in self.job.plan.live:
            still = self._in_world(forward, args, kwargs, moved=False)
        else:
            still = self._repeat(self.recording.outputs[name], self.job.blocks)
        moved = main_tensor(self._in_world(forward, args, kwargs, moved=True))
        unmoved = main_tensor(still)
        if moved is None or unmoved is None:
            raise ModelError(f"layer {name!r} returns no floating-point tensor")
        layer = self.recording.layers[name]
        mask = along_channels(self.job.masks[name], layer.channel_dim, moved.dim())
        mixed = torch.where(mask, moved, unmoved)
        return tree_map(self._twice, replace_main(still, mixed))


def along_channels(values: Tensor, channel_dim: int, dims: int) -> Tensor:
    """Shape one value a channel so that it broadcasts against a batched output."""
    return values.view(-1, *[1] * (dims - channel_dim - 1))


def _joined(outcomes: list[Outcome]) -> Outcome:
    """Join the outcomes of blocks that ran one by one."""

    def join(*leaves: Any) -> Any:
        batched = isinstance(leaves[0], Tensor) and leaves[0].dim() > 0
        return torch.cat(leaves) if batched else leaves[0]

    output, probed = tree_map(join, *[(o.output, o.probed) for o in outcomes])
    return Outcome(output, probed)


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
