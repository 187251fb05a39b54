"""Whether a model does the same twice, and if not, where and why: before anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from neurograph.data.source import Batch, fingerprint
from neurograph.errors import ModelError
from neurograph.model.layer_choice import Sites
from neurograph.model.observe import Forward, Inside, Visit, observe, replaced_forwards
from neurograph.model.state import Generators, KeptModel
from neurograph.replay.layouts import Watched, watch
from neurograph.utils.nested import copied, flatten

__all__ = ["check_repeats"]

_OFTEN = 8  # runs with other random numbers, where some are drawn: not all of them always matter

_Events = list[tuple[str, Any]]
"""What happened in a run, in order: where, in words, and the tensors seen there or a digest."""

_DRAW = (
    "draw them outside forward and pass them as an input, or use their mean in eval mode "
    "(dropout: training=self.training)"
)
_ALONE = f"so what a sample gets depends on who shares its batch: {_DRAW}"


def check_repeats(
    model: nn.Module, batch: Batch, sites: Sites, kept: KeptModel, inside: Inside | None = None
) -> tuple[Watched, bool]:
    """Run a model again from the same state and compare what every layer gets and returns.

    The first run also shows what a run changes in the model, to be put back after each. Where
    random numbers are drawn, more runs draw others: what does not matter may be random.

    Parameters
    ----------
    model : Module
        Inside `undisturbed`.
    batch : Batch
    sites : Sites
    kept : KeptModel
        What `undisturbed` keeps of the model.
    inside : callable, optional
        As for `observe`, for the run that is recorded.

    Returns
    -------
    run : Watched
        What every layer returned.
    draws : bool
        Whether random numbers are drawn.

    Raises
    ------
    ModelError
        Two runs differ by more than rounding, random numbers matter, or a layer hands something
        on through the state of the model, where replays would miss it.
    """
    run, start = _Runs(model, batch, sites, inside), Generators()
    first, drew = _learn(run, kept)
    python = start.python_moved()
    drew = drew or any(python) or start.torch_moved() or bool(kept.generators)
    start.restore()
    (again, recorded), end = run.recorded(), Generators()
    if _difference(first, again):  # by rounding, perhaps
        run.exact = False
        start.restore()
        first = run()
        start.restore()
        again, recorded = run.recorded()
        if where := _difference(first, again):
            raise ModelError(
                f"the model gives something else {where} when it runs again on the same samples, "
                "though its state and all random generators are the same: make forward depend on "
                "its inputs and weights alone (not on time, the order of a set, files or globals)"
            )
    for _ in range(_OFTEN if drew else 0):
        with kept.other_draws():
            where = _difference(first, run())
        if any(a and not b for a, b in zip(python, end.python_moved(), strict=True)):
            raise ModelError(
                "the model seeds Python's or NumPy's generator in forward and draws from it, "
                f"{_ALONE}"
            )
        if where:
            raise ModelError(
                f"the model draws random numbers in eval mode that matter {where}, "
                f"{_cause(run, start, first, kept)}"
            )
    if kept.changing:
        _check_handed_on(run, first, kept)
    return recorded, drew


def _learn(run: _Runs, kept: KeptModel) -> tuple[_Events, bool]:
    """Run once and find what that changes; also, whether operators drew random numbers."""
    start = Generators()
    try:
        with kept.learning() as guard:
            return run(), guard.drew
    except ModelError:  # perhaps for being watched
        start.restore()
        return run(), True


def _cause(run: _Runs, start: Generators, first: _Events, kept: KeptModel) -> str:
    """Which generator must be put back for the model to repeat, and what to do about it."""
    if not any(_difference(first, run()) for _ in range(_OFTEN)):
        own = "from a generator of the model's own" if kept.generators else "seeded in forward"
        return f"{own}, {_ALONE}"
    for _ in range(_OFTEN):
        start.restore(python=False)
        if _difference(first, run()):
            return f"from Python's or NumPy's generator: {_DRAW}"
    return f"from torch's generator: {_DRAW}"


def _check_handed_on(run: _Runs, first: _Events, kept: KeptModel) -> None:
    """ModelError if anything depends on what a layer changed: replays do not run every layer."""

    def stand_in(_path: str, forward: Forward) -> Forward:
        def alone(*args: Any, **kwargs: Any) -> Any:
            with kept.without_trace():
                return forward(*args, **kwargs)

        return alone

    modules = dict(run.model.named_modules())
    layers = {path: modules[path] for path in run.sites.outputs if path not in run.containers}
    with replaced_forwards(layers, stand_in):
        where = _difference(first, run())
    if where:
        raise ModelError(
            f"something {where} depends on what a layer before it left in the model's state "
            "(an attribute or a buffer), which nothing can see or hold: hand it on by arguments "
            "and return values of forward"
        )


class _Runs:
    """Runs of a model on the same samples, each as a list of events.

    Attributes
    ----------
    exact : bool
        Whether events hold digests, which are equal only if every bit is, or the tensors.
    containers : set of str
        Modules that called layers.
    """

    def __init__(self, model: nn.Module, batch: Batch, sites: Sites, inside: Inside | None) -> None:
        self.model, self.batch, self.sites, self.inside = model, batch, sites, inside
        self.exact = True
        self.containers: set[str] = set()

    def __call__(self) -> _Events:
        events: _Events = []
        seen = observe(self.model, self.batch, self.sites, self._visit(events))
        self.containers = seen.containers
        return [*events, ("behind the last layer", self._see(seen.output))]

    def recorded(self) -> tuple[_Events, Watched]:
        """Run, and copy what every layer returned besides."""
        events: _Events = []
        run = watch(self.model, self.batch, self.sites, self.inside, self._visit(events))
        return [*events, ("behind the last layer", self._see(run.output))], run

    @property
    def _see(self) -> Callable[[Any], Any]:
        return _digest if self.exact else copied

    def _visit(self, events: _Events) -> Visit:
        def visit(call: str, _path: str, arguments: Any, output: Any) -> None:
            events.append((f"before layer {call!r}", self._see(arguments)))
            events.append((f"inside layer {call!r}", self._see(output)))

        return visit


def _digest(tree: Any) -> str:
    leaves = flatten(tree)[0]
    dense = (leaf.detach() for leaf in leaves if isinstance(leaf, Tensor))
    digest = fingerprint(t if t.layout == torch.strided else t.to_dense() for t in dense)
    digest.update(repr([x for x in leaves if isinstance(x, (int, float, str))]).encode())
    return str(digest.hexdigest())


def _difference(some: _Events, others: _Events) -> str | None:
    """Where two runs first differ by more than rounding, in words."""
    for one, other in zip_longest(some, others):
        if one is None or other is None or one[0] != other[0] or not _same(one[1], other[1]):
            return str((one or other)[0])
    return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str):
        return bool(a == b)
    some, others = flatten(a)[0], flatten(b)[0]
    return len(some) == len(others) and all(map(_close, some, others))


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and (not isinstance(a, (int, float, str)) or a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    a, b = a.to_dense(), b.to_dense()
    close = min(1000 * torch.finfo(a.dtype).eps, 0.02)
    finite = a[a.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=close, atol=close * scale, equal_nan=True)
