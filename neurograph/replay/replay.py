"""Frozen-layer replay: run the model with chosen layers computed and all others from memory.

While a `Replay` is open, the `forward` of every layer is a stand-in that does what the current
`Plan` says: return the recorded output, return rows it was given, or compute. Everything
between the layers (the glue) is the model's own code, executed as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from neurograph.errors import ModelError
from neurograph.model.observe import (
    Forward,
    StopReplay,
    call_model,
    not_replayed,
    replaced_forwards,
    undisturbed,
)
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording
from neurograph.replay.run import CHECKED, Job, Outcome, Run
from neurograph.utils.nested import flatten, iter_tensors

__all__ = ["Replay"]

_CONTROL_BYTES = 2**26  # what controls may hold; the logits of a language model are large


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
    real : bool
        Whether that is known to be what a run of the model gives.
    """

    def __init__(self, model: nn.Module, recording: Recording, *, real: bool = False) -> None:
        self.model = model
        self.recording = recording
        self.real = real
        self._stack = contextlib.ExitStack()
        self.is_open = False
        # Set too where glue is found to mix the samples of a batch.
        self.one_by_one = recording.mixes or recording.fixed
        self.pools = False  # whether what is made of all samples reaches each, by the operations
        self.found_mixing = False  # that interventions influence each other was found on the way
        self.branches = False  # whether glue takes numbers out of tensors that layers reach
        self._checked: dict[Plan, Plan | None] = {}
        self._still: dict[tuple[Plan, int, int], Outcome] = {}  # of two worlds, nothing moved
        self._controls: dict[tuple[Any, ...], Outcome] = {}  # by themselves
        self._fits: set[tuple[Plan, int]] = set()  # plans that ran with so many rows
        self._run: Run | None = None

    def __enter__(self) -> Replay:
        modules = dict(self.model.named_modules())
        paths = {layer.module for layer in self.recording.layers.values() if not layer.is_input}
        with contextlib.ExitStack() as stack:
            stack.enter_context(undisturbed(self.model))
            stack.enter_context(
                replaced_forwards({path: modules[path] for path in paths}, self._stand_in)
            )
            self._stack = stack.pop_all()
        self.is_open = True
        return self

    def __exit__(self, *exception: object) -> None:
        self.is_open = False
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
        shares: Mapping[str, Tensor] | None = None,
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
        shares : dict of str to Tensor
            For nudged layers, how much of what they compute they pass on, beside the rows given:
            rows like those; all by default. Gradients pass through as if it were all. Flags say
            what is passed on as computed; elsewhere the rows given stand in, whatever was
            computed.
        listen : callable, optional
            `listen("arrived", call, arguments)` before and `listen("returned", call, output)`
            after every call of a layer.

        Returns
        -------
        Outcome
            With no output if the plan has probed layers: the run stops at the last of them.
        """
        job = Job(plan, given or {}, blocks, samples, masks or {}, shares or {}, listen)
        alone = replace(job, plan=self._full(plan))
        if listen is not None or blocks == 1:
            return self._alone(alone)
        if plan not in self._checked:
            self._checked[plan] = self._check(job, [plan, alone.plan])
        checked, rows = self._checked[plan], self._rows(job)
        if checked is None or self.one_by_one:
            return _joined([self._alone(alone.block(b, rows)) for b in range(blocks)])
        new = (plan, blocks * rows) not in self._fits
        if torch.is_grad_enabled() and not new:
            return self._execute(replace(job, plan=checked))
        # Idle rows may fit by chance: of 12 heads, one row can be viewed as 3 heads of 4 rows.
        try:
            outcome: Outcome | None
            if torch.is_grad_enabled():
                copies = {name: moved.clone() for name, moved in job.given.items()}
                outcome = self._execute(replace(job, plan=checked, given=copies))
            else:
                outcome = self._beside_control(job, checked)
        except ModelError:
            if checked == alone.plan:
                raise
            self._checked[plan] = self._check(job, [alone.plan])
            return self.run(plan, given, blocks=blocks, samples=samples, masks=masks, shares=shares)
        if outcome is not None and new:
            # A threshold may hide from one move what its company does, less likely from two: the
            # first moves one way, the last the other.
            for number in (0, blocks - 1):
                with torch.no_grad():
                    truth = self._execute(alone.block(number, rows))
                its = slice(number * rows, (number + 1) * rows)
                if outcome is not None and not _close(truth, outcome.at(its)):
                    outcome = None
        if outcome is None:
            # A move brings about what recorded values do not: a gate that all samples share opens.
            self.one_by_one = self.found_mixing = True
            return self.run(plan, given, blocks=blocks, samples=samples, masks=masks, shares=shares)
        self._fits.add((plan, blocks * rows))
        return outcome

    def _beside_control(self, job: Job, checked: Plan) -> Outcome | None:
        """Run interventions in one batch with a control, in which nothing moves.

        None where the control is not what it is by itself: then one of them influences others.
        """
        rows, recording = self._rows(job), self.recording
        still = {name: recording.main(name)[job.samples] for name in job.given}
        for name in job.plan.nudged:
            still[name] = torch.zeros_like(still[name])
        shares = {n: torch.ones_like(still[n], dtype=t.dtype) for n, t in job.shares.items()}
        control = replace(job, given=still, shares=shares, blocks=1)
        start, stop, _ = job.samples.indices(recording.size)
        masks = () if self.real else sorted(job.masks.items())  # else they matter at rest, too
        key = job.plan, start, stop, *((n, m.cpu().numpy().tobytes()) for n, m in masks)
        if key not in self._controls:
            if sum(map(_bytes, self._controls.values())) > _CONTROL_BYTES:
                self._controls.clear()
            copies = {name: given.clone() for name, given in still.items()}
            plan = self._full(job.plan)
            self._controls[key] = self._execute(replace(control, plan=plan, given=copies))
        outcome = self._execute(replace(Job.beside(job, control), plan=checked))
        moved = job.blocks * rows
        if not _close(self._controls[key], outcome.at(slice(moved, None))):
            return None
        return outcome.first(moved)

    def _alone(self, job: Job) -> Outcome:
        """Run one intervention by itself; two worlds are one batch even then."""
        if job.plan.worlds and self.one_by_one:
            self._check_worlds(job)
        return self._execute(job)

    def _check_worlds(self, job: Job) -> None:
        """ModelError where one of two worlds influences the other.

        That there are two must not matter while nothing is moved, nor what is moved but not seen.
        """
        start, stop, _ = job.samples.indices(self.recording.size)
        key = job.plan, start, stop
        base = self._still.get(key)
        if base is None:
            still = {name: self.recording.main(name)[job.samples] for name in job.given}
            base = self._of_worlds(job, still, seen=False)
            if not _close(base, self._of_worlds(job, still, seen=True)):
                self._refuse_worlds(job.plan)
            self._still[key] = base
        if not _close(base, self._of_worlds(job, job.given, seen=False)):
            self._refuse_worlds(job.plan)

    def _of_worlds(self, job: Job, given: Mapping[str, Tensor], *, seen: bool) -> Outcome:
        """Run with the moved world seen by all that may see it, or by nothing."""
        masks = {name: torch.full_like(mask, seen) for name, mask in job.masks.items()}
        copies = {name: rows.clone() for name, rows in given.items()}
        plan = replace(job.plan, output_moved=seen)
        try:
            return self._execute(replace(job, plan=plan, given=copies, masks=masks))
        except ModelError:
            if self.recording.fixed:
                self._refuse_worlds(plan)
            raise

    def _refuse_worlds(self, plan: Plan) -> NoReturn:
        size, names = self.recording.size, ", ".join(sorted(map(repr, plan.given)))
        why = (
            f"the model takes batches of {size} samples and no others: make it take any number"
            if self.recording.fixed
            else "there they would influence each other, as what the model makes of a sample "
            "depends on the others of its batch (statistics of it, say): take them of each sample"
        )
        raise ModelError(
            f"what layer {names} does by way of some of its readers takes two runs in one batch, "
            f"but {why}, or score total effects"
        )

    def _rows(self, job: Job) -> int:
        return len(range(self.recording.size)[job.samples])

    def _full(self, plan: Plan) -> Plan:
        """Return the plan with no layer idle."""
        return replace(plan, frozen=plan.frozen | (frozenset(self.recording.layers) - plan.busy))

    def _check(self, job: Job, plans: Sequence[Plan]) -> Plan | None:
        """Find out once how interventions can share a batch: by the first of the plans, or none.

        One intervention alone, on a few samples, with every layer frozen that the plan leaves
        idle, is the truth. Glue may take the batch size from an idle layer's output, or mix the
        samples of a batch; either shows when the first intervention runs beside the last.
        """
        job, rows = job.few(self._rows(job)), min(CHECKED, self._rows(job))
        full = self._full(job.plan)
        beside = Job.beside(job.block(0, rows), job.block(job.blocks - 1, rows))
        for plan in plans:
            try:
                truth = self._execute(replace(job.block(0, rows), plan=full))
                outcome = self._execute(replace(beside, plan=plan))
                if _close(truth, outcome.first(rows)):
                    return plan
            except (ModelError, RuntimeError):
                continue
        return None

    def _execute(self, job: Job) -> Outcome:
        run = Run(self.recording, job)
        self._run = run
        try:
            run.outcome.output = run.result(call_model(self.model, run.inputs()))
        except StopReplay:
            pass
        except ModelError as error:
            raise (error if error.__cause__ is None else not_replayed(error)) from error.__cause__
        finally:
            self._run = None
        missing = job.plan.probed - run.outcome.probed.keys()
        if missing:
            raise ModelError(
                f"layer {min(missing)!r} was called when the model was recorded but not when it "
                "was replayed: its forward depends on values that were moved"
            )
        return run.outcome


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


def _bytes(outcome: Outcome) -> int:
    return sum(x.nbytes for x in iter_tensors((outcome.output, outcome.probed)))


def _close(a: Outcome, b: Outcome) -> bool:
    some, others = (list(iter_tensors((o.output, o.probed))) for o in (a, b))
    return len(some) == len(others) and all(map(_agree, some, others))


def _agree(x: Tensor, y: Tensor) -> bool:
    """Whether two results differ by rounding only."""
    if x.shape != y.shape or not x.is_floating_point():
        return torch.equal(x, y)
    finite = x[x.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    eps = torch.finfo(x.dtype).eps
    close = (1000 if eps < 1e-4 else 8) * eps  # in half precision sums are rounded once
    return torch.allclose(x, y, rtol=close, atol=close * scale, equal_nan=True)
