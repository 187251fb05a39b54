"""Screen and verify: gradients estimate all effects, interventions measure what promises most.

What can be measured whole within its share of the budget is. Elsewhere a few are measured that
promise most, which tells how long one takes, and a few at random, which tell how well the screen
ranks; then the others, from the largest estimate down, while the time lasts.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurograph.effects.budget import Allowance, Budget, Schedule
from neurograph.effects.differentiable import blind_layers, find_blocked
from neurograph.effects.edges import Probe, probe_edges
from neurograph.effects.effects import Effects
from neurograph.effects.exact import node_effects, total_effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.gradient import GradientScorer
from neurograph.effects.routes import Through, fits_narrow
from neurograph.effects.scorer import Edges, Method, Scored, Scorer
from neurograph.effects.screening import Screened, Screening
from neurograph.effects.slopes import AtBackground

__all__ = ["Auto", "AutoScorer", "Verifier"]

_SURELY = 5e7  # bytes of rows that any machine runs in a second
_FEWEST_SPOT = 8
_SPOT = 32  # measured at random in each layer, to judge the screen and the time
_FIRST = 4  # measured at least: they tell what one takes
_PIECES = 8  # in which the rest of a share is used: the clock is looked at in between
_AT_ONCE = 32  # neurons whose edges are estimated before the clock is looked at


class Verifier:
    """Measures what promises most within a budget, and remembers how the screen did.

    Parameters
    ----------
    budget : Budget
    seed : int
        Chooses the random ones.
    allowance : Allowance
        The time to share out; unused where the budget is a number.
    """

    def __init__(self, budget: Budget, seed: int, allowance: Allowance) -> None:
        self.budget, self.allowance = budget, allowance
        self.generator = np.random.default_rng(seed)
        self.screened: list[Screened] = []
        self.whole = 0  # items that were measured without a screen
        self.estimated = 0  # and those beside them that were not asked to be measured

    def verify(
        self,
        items: int,
        estimate: Callable[[], Effects],
        measure: Callable[[Tensor], Effects],
        *,
        work: float,
        cost: float,
        surely: Sequence[int] = (),
        alone: bool = False,
    ) -> Scored:
        """Score a set of items.

        Parameters
        ----------
        items : int
            How many there are.
        estimate : callable
            Gives estimates of all of them.
        measure : callable
            Gives exact effects of some, by their numbers.
        work : float
            Bytes of the rows that measuring all of them takes.
        cost : float
            Of the time, in the unit of the allowance.
        surely : sequence of int
            Items that are measured whatever it takes.
        alone : bool
            Measure these alone, where not all can be.
        """
        first = torch.as_tensor(list(surely), dtype=torch.long)
        if self.budget.count is not None:
            if items <= 2 * self.budget.count:
                return self._all(items, measure)
            if alone:
                return self._only(estimate, measure, first)
            return self._count(items, estimate, measure, self.budget.count, first)
        seconds = self.allowance.share(cost)
        if items <= _FIRST or work / _SURELY <= seconds:
            return self._all(items, measure)
        if alone:
            return self._only(estimate, measure, first, time.monotonic() + seconds)
        return self._time(items, estimate, measure, time.monotonic() + seconds, first)

    def report(self) -> Screening:
        """Sum up all sets so far."""
        return Screening.of(self.screened, self.whole, self.estimated)

    def _all(self, items: int, measure: Callable[[Tensor], Effects]) -> Scored:
        self.whole += items
        return Scored(measure(torch.arange(items)), None)

    def _only(
        self,
        estimate: Callable[[], Effects],
        measure: Callable[[Tensor], Effects],
        some: Tensor,
        until: float = -math.inf,
    ) -> Scored:
        """Measure these; the others too if that turns out to fit, else they are estimates."""
        pieces = _Pieces(estimate(), measure)
        if not len(some) and until > time.monotonic():
            some = torch.arange(_FIRST)  # they tell what one takes
        pieces(some.to(pieces.known.device))
        rest = (~pieces.known).nonzero()[:, 0]
        if pieces.each * len(rest) <= until - time.monotonic():
            pieces(rest)
            self.whole += len(pieces.known)
            return Scored(pieces.effects, None)
        self.whole += len(some)
        self.estimated += len(rest)
        return Scored(pieces.effects, pieces.known)

    def _count(
        self,
        items: int,
        estimate: Callable[[], Effects],
        measure: Callable[[Tensor], Effects],
        count: int,
        first: Tensor,
    ) -> Scored:
        """Measure so many of each sign, and a random few beside them."""
        estimated = estimate()
        promise = self._promise(estimated)
        promising = [sign.topk(min(count, items)).indices for sign in (promise, -promise)]
        ranked = torch.unique(torch.cat([*promising, first.to(promising[0])]))
        few = max(_FEWEST_SPOT, count // 4)
        spot = torch.from_numpy(self._spot(items, few)).to(ranked.device)
        chosen = torch.unique(torch.cat([ranked, spot]))
        effects = estimated.updated(chosen, measure(chosen))
        return self._noted(estimated, effects, spot, ranked)

    def _time(
        self,
        items: int,
        estimate: Callable[[], Effects],
        measure: Callable[[Tensor], Effects],
        until: float,
        first: Tensor,
    ) -> Scored:
        estimated = estimate()
        pieces = _Pieces(estimated, measure)
        promise = self._promise(estimated).abs()
        promise[first.to(promise.device)] += math.inf
        order = promise.argsort(descending=True, stable=True)
        begun = max(_FIRST, len(first))
        pieces(order[:begun])  # whatever it takes: something must be measured
        rest = order[begun:]
        if pieces.each * len(rest) <= until - time.monotonic():
            pieces(rest)
            self.whole += items
            return Scored(pieces.effects, None)
        drawn = torch.from_numpy(self._spot(items, _SPOT)).to(order.device)
        judged = time.monotonic() + (until - time.monotonic()) / 4
        spot = pieces.until(judged, drawn, _FIRST)
        ranked = pieces.until(until, rest, _SPOT)
        return self._noted(estimated, pieces.effects, spot, torch.cat([order[:begun], ranked]))

    def _promise(self, estimated: Effects) -> Tensor:
        """What the estimates promise; random numbers where they say nothing."""
        if estimated.effect.any():
            return estimated.effect.clone()
        return torch.from_numpy(self.generator.uniform(-1, 1, len(estimated))).to(estimated.effect)

    def _spot(self, items: int, count: int) -> np.ndarray:
        return self.generator.permutation(items)[: min(_SPOT, count)]

    def _noted(self, estimated: Effects, effects: Effects, spot: Tensor, ranked: Tensor) -> Scored:
        measured = torch.zeros_like(effects.effect, dtype=torch.bool)
        measured[spot] = measured[ranked] = True
        tensors = (estimated.effect, effects.effect, measured, spot, ranked)
        self.screened.append(Screened(*(tensor.cpu().numpy() for tensor in tensors)))
        return Scored(effects, measured)


class _Pieces:
    """Items measured piece by piece; `each` is what one took in the last of them."""

    def __init__(self, estimated: Effects, measure: Callable[[Tensor], Effects]) -> None:
        self.effects, self.each, self._measure = estimated, 0.0, measure
        self.known = torch.zeros_like(estimated.effect, dtype=torch.bool)

    def __call__(self, some: Tensor) -> None:
        """Measure some items."""
        start = time.monotonic()
        if len(some):
            self.effects = self.effects.updated(some, self._measure(some))
            self.known[some] = True
            self.each = (time.monotonic() - start) / len(some)

    def until(self, moment: float, items: Tensor, fewest: int) -> Tensor:
        """Measure items in their order while there is time; return those that are measured."""
        done = 0
        while done < len(items) and (left := moment - time.monotonic()) > 0:
            more = max(fewest, int(left / max(self.each, 1e-9) / _PIECES))
            some = items[done : done + more]
            self(some[~self.known[some]])
            done += more
        return items[:done]


@dataclass(frozen=True)
class Auto(Method):
    """Measure what fits the budget: gradients screen, interventions verify what they promise."""

    estimates = False
    takes_budget = True

    def start(self, experiment: Experiment, schedule: Schedule) -> Scorer:
        """Make the scorer for one experiment."""
        return AutoScorer(experiment, schedule)


class AutoScorer(Scorer):
    """Gradients screen, interventions verify.

    Parameters
    ----------
    experiment : Experiment
    schedule : Schedule
    """

    def __init__(self, experiment: Experiment, schedule: Schedule) -> None:
        self.experiment, self.point = experiment, AtBackground(experiment)
        self.screen = GradientScorer(experiment, [self.point])
        self._blind = functools.cache(self._find_blind)
        self._surely: Sequence[int] = ()
        self._alone = False
        budget, phases = schedule.budget, schedule.phases
        graph = experiment.graph
        layers = [name for name in graph if experiment.recording.layers[name].neurons]
        nodes = sum(self._work(name, len(experiment.units(name))) for name in layers)
        # Through either part of the frontier, and both; of how many edges is not known yet.
        costs = {"nodes": 3 * nodes, "totals": nodes, "edges": graph.number_of_edges()}
        together: dict[float, float] = defaultdict(float)
        for phase, share in phases.items():
            together[share] += costs[phase]
        allowances = {
            share: Allowance(schedule.start + share * (budget.seconds or 0.0), cost)
            for share, cost in together.items()
        }
        self.verifiers = {}
        for phase, share in phases.items():
            among = budget
            if budget.count is not None and phase == "edges":
                among = Budget(count=budget.count**2)
            self.verifiers[phase] = Verifier(among, schedule.seed, allowances[share])

    def measuring(self, some: Sequence[int], *, alone: bool) -> Scorer:
        """The same scorer, which measures these in any case."""
        scorer = copy.copy(self)
        scorer._surely, scorer._alone = some, alone
        return scorer

    def _find_blind(self) -> frozenset[str]:
        """Layers of which gradients do not tell everything."""
        layers = self.experiment.recording.layers
        routed = {name for name in self.experiment.graph if layers[name].routed}
        return blind_layers(self.experiment, self.experiment.blocked(find_blocked)) | routed

    def nodes(self, writer: str, through: Through) -> Scored:
        """Effects of all neurons of a layer through chosen outputs of its readers."""
        neurons = len(self.experiment.units(writer))
        work = self._work(writer, neurons)
        return self.verifiers["nodes"].verify(
            neurons,
            lambda: self._nodes(writer, through),
            lambda some: node_effects(self.experiment, writer, some.tolist(), through),
            work=work,
            cost=work,
            surely=self._surely,
            alone=self._alone,
        )

    def totals(self, writer: str, neurons: Sequence[int]) -> Scored:
        """Effects of neurons through everything."""
        chosen = torch.as_tensor(list(neurons))
        work = self._work(writer, len(chosen))
        return self.verifiers["totals"].verify(
            len(chosen),
            lambda: self._totals(writer, neurons),
            lambda some: total_effects(self.experiment, writer, chosen[some.cpu()].tolist()),
            work=work,
            cost=self._work(writer, len(self.experiment.units(writer))),
            surely=self._surely,
            alone=self._alone,
        )

    def edges(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        *,
        transfers: bool = True,
    ) -> Iterator[Edges]:
        """Effects of the edges that move anything; readers are computed exactly for the screen."""
        experiment, verifier = self.experiment, self.verifiers["edges"]
        near = {n: seen for n, seen in readers.items() if fits_narrow(experiment, writer, n)}
        far = {name: seen for name, seen in readers.items() if name not in near}
        if near:
            yield from self._probed(writer, neurons, near, 0, 1.0)
        timed = verifier.budget.seconds is not None and not transfers
        step = _AT_ONCE if timed else len(neurons)
        for start in range(0, len(neurons) if far else 0, step):
            some = neurons[start : start + step]
            if timed and time.monotonic() > verifier.allowance.until:
                yield from _not_reached(far, len(neurons), start)
                return
            yield from self._probed(writer, some, far, start, len(some) / len(neurons))

    def _probed(
        self,
        writer: str,
        neurons: Sequence[int],
        readers: Mapping[str, Sequence[int]],
        start: int,
        cost: float,
    ) -> Iterator[Edges]:
        """Verify the edges from some neurons; `start` is the place of the first among all."""
        verifier, left = self.verifiers["edges"], set(readers)
        for probe in probe_edges(self.experiment, writer, neurons, readers):
            scored = verifier.verify(
                len(probe.pairs),
                functools.partial(self._estimate, probe),
                probe.measure,
                work=self._work(probe.reader, len(probe.pairs)),
                cost=cost,
            )
            left.discard(probe.reader)
            pairs = probe.pairs + probe.pairs.new_tensor([start, 0])
            yield Edges(probe.reader, pairs, probe.transfer, scored)
        verifier.allowance.left -= cost * len(left)

    def _nodes(self, writer: str, through: Through) -> Effects:
        if writer in self._blind():
            return _nothing(self.experiment, writer, len(self.experiment.units(writer)))
        return self.screen.nodes(writer, through).effects

    def _totals(self, writer: str, neurons: Sequence[int]) -> Effects:
        if writer in self._blind():
            return _nothing(self.experiment, writer, len(neurons))
        return self.screen.totals(writer, neurons).effects

    def _estimate(self, probe: Probe) -> Effects:
        if probe.reader in self._blind():
            return _nothing(self.experiment, probe.reader, len(probe.pairs))
        return probe.estimate(self.point.slope(probe.reader))

    def report(self) -> dict[str, Screening]:
        """Say for each phase what was screened and verified."""
        return {phase: verifier.report() for phase, verifier in self.verifiers.items()}

    def _work(self, layer: str, moves: int) -> float:
        """Bytes of the rows that so many moves of a layer's neurons take, all layers together."""
        experiment = self.experiment
        row = experiment.work(experiment.wiring.suffix([layer]))
        return 2.0 * moves * experiment.recording.size * row


def _nothing(experiment: Experiment, layer: str, items: int) -> Effects:
    """Estimates where no gradients pass: they say nothing, and 0 stands for that."""
    device = experiment.recording.main(layer).device
    zeros = torch.zeros(items, dtype=torch.float64, device=device)
    unknown = torch.full_like(zeros, torch.nan)
    return Effects(zeros, unknown, unknown[:, None])


def _not_reached(readers: Mapping[str, Sequence[int]], neurons: int, start: int) -> Iterator[Edges]:
    """Edges from the neurons behind `start`, for which there was no time: effects of NaN."""
    for reader, outputs in readers.items():
        pairs = torch.cartesian_prod(torch.arange(start, neurons), torch.arange(len(outputs)))
        unknown = torch.full((len(pairs),), torch.nan, dtype=torch.float64)
        effects = Effects(unknown, unknown, unknown[:, None])
        yield Edges(reader, pairs.view(-1, 2), unknown, Scored.estimated(effects))
