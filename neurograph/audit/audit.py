"""Audit of a result: some of its effects computed again by forward hooks alone."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from neurograph.audit.hooked import Hooked
from neurograph.audit.reasons import NARROW, SHARED, likely_reason
from neurograph.audit.result import Audit, Claim, Disagreement
from neurograph.effects.effects import COARSE
from neurograph.effects.experiment import Experiment

__all__ = ["audit_effects", "choose_claims", "take_slower"]

KINDS = ("node", "edge", "total", "path")
_ULPS, _COARSE_ULPS = 64, 16
_LEAST = 8  # effects looked at whatever that takes
_EXPLAINED = 5  # disagreements that are kept and explained


def choose_claims(
    layers: Sequence[str] | np.ndarray,
    effects: Sequence[float] | np.ndarray,
    *,
    seed: int,
    most: int,
) -> list[int]:
    """Choose effects to audit: positions, the most telling first.

    The strongest of all; then one of each layer, in turns its strongest, one that is 0 or else the
    weakest, and one at random; then the others of these; then any. What is NaN is not chosen.

    Parameters
    ----------
    layers : sequence of str
        Whose effect each is.
    effects : sequence of float
    seed : int
        Says the order of the layers, and what is drawn.
    most : int
        How many at most.

    Examples
    --------
    >>> choose_claims(["a", "a", "a", "b"], [0.5, -2.0, 0.0, 1.0], seed=0, most=3)
    [1, 3, 2]
    """
    size = np.abs(np.asarray(effects, dtype=float))
    known = np.flatnonzero(~np.isnan(size))
    generator = np.random.default_rng(seed)
    names = np.asarray(layers, dtype=object)
    inside: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(names[known]):
        inside[name] = known[names[known] == name]
    order = [list(inside)[i] for i in generator.permutation(len(inside))]
    rounds: list[list[int]] = [[known[size[known].argmax()]] if len(known) else [], [], []]
    for turn, name in enumerate(order):
        places = inside[name]
        strongest, weakest = places[size[places].argmax()], places[size[places].argmin()]
        for number, place in enumerate((strongest, weakest, generator.choice(places))):
            rounds[(number + turn) % 3].append(place)
    others = generator.permutation(known)[:most]
    return [int(i) for i in dict.fromkeys([*itertools.chain(*rounds), *others])][:most]


def audit_effects(
    experiment: Experiment,
    claims: Iterable[Claim],
    *,
    seconds: float | None = None,
    estimates: int = 0,
) -> Audit:
    """Compute effects again by forward hooks alone, on all reference samples.

    Parameters
    ----------
    experiment : Experiment
        What they are effects of; not open. Its model must be on its device.
    claims : iterable of Claim
        The most telling first. Estimates do not belong among them.
    seconds : float, optional
        What that may take; the first few are looked at in any case.
    estimates : int
        How many effects of the result are estimates: the audit says so.

    Notes
    -----
    Rounding is what the coarsest floating-point type among the layers' and the model's results may
    do (products in TF32 count as such), of which ``eps`` is the distance from 1 to the next number:
    a share ``√eps`` of the root mean square of
    the samples' own differences (1.5e-8 in float64, 3e-4 in float32: matrix products of other
    shapes add in another order, and later layers enlarge that), and ``64 eps / √samples`` of the
    largest target (rounding of single samples averages out; 16 eps in half precision, where that
    is more than many effects). What differs by more is wrong.
    """
    until = math.inf if seconds is None else time.monotonic() + seconds
    hooked = Hooked(experiment)
    eps = hooked.eps
    counts: Counter[str] = Counter()
    largest, where, layers, wrong = 0.0, "", dict[str, None](), list[tuple[Claim, Tensor]]()
    with hooked.held():
        for number, claim in enumerate(claims):
            if number >= _LEAST and time.monotonic() > until:
                break
            if not hooked.can_tell(claim.kind, claim.neurons[0]):
                continue
            targets = hooked.targets(claim.kind, claim.neurons, claim.through)
            counts[claim.kind] += 1
            layers |= dict.fromkeys(neuron.layer for neuron in claim.neurons)
            difference = abs(claim.effect - float((targets[1] - targets[0]).mean()))
            if not difference <= largest:
                largest, where = difference, claim.neurons[0].layer
            if not agree(claim.effect, claim.stderr, targets, eps):
                wrong.append((claim, targets))
    disagreements = []
    for claim, targets in wrong[:_EXPLAINED]:
        agrees = functools.partial(agree, targets=targets, eps=eps)
        reason = likely_reason(experiment, hooked, claim, agrees)
        disagreements.append(_disagreement(claim, targets, reason, eps))
    return Audit(
        {kind: counts[kind] for kind in KINDS if counts[kind]},
        largest,
        where,
        tuple(name for name in experiment.graph if name in layers),
        len(wrong),
        tuple(disagreements),
        estimates,
        tuple(hooked.unseen),
    )


def take_slower(experiment: Experiment, audit: Audit) -> str:
    """Leave out the shortcuts that made effects wrong; say which, or nothing if none did."""
    reasons = [wrong.reason for wrong in audit.disagreements]
    narrow = next((reason for reason in reasons if NARROW in reason), "")
    shared = any(SHARED in reason for reason in reasons)
    if narrow and experiment.narrow:
        experiment.narrow = False
    elif shared and not experiment.replay.one_by_one:
        experiment.replay.one_by_one = True
    else:
        return ""
    first = audit.disagreements[0]
    return (
        f"a shortcut gave wrong effects at layer {first.layer!r} ({first.reason}), so everything "
        "was measured without it"
    )


def agree(effect: float, stderr: float, targets: Tensor, eps: float) -> bool:
    """Whether an effect and its standard error are those of targets ``[2, samples]``.

    A standard error of NaN says nothing, as of a single sample.
    """
    own, error = _summary(targets)
    size = targets.shape[1]
    spread = (targets[1] - targets[0]).square().mean().sqrt()
    ulps = _COARSE_ULPS if eps > COARSE else _ULPS
    rounding = ulps * eps / math.sqrt(size) * float(targets.abs().max())
    allowed = math.sqrt(eps) * float(spread) + rounding
    same = abs(effect - own) <= allowed
    return same and (math.isnan(stderr) or math.isnan(error) or abs(stderr - error) <= allowed)


def _summary(targets: Tensor) -> tuple[float, float]:
    differences, size = targets[1] - targets[0], targets.shape[1]
    error = float(differences.std()) / math.sqrt(size) if size > 1 else math.nan
    return float(differences.mean()), error


def _disagreement(claim: Claim, targets: Tensor, reason: str, eps: float) -> Disagreement:
    claimed, found = claim.effect, _summary(targets)[0]
    name = " → ".join(map(str, claim.neurons))
    if agree(claimed, math.nan, targets, eps):
        claimed, found = claim.stderr, _summary(targets)[1]
    return Disagreement(claim.neurons[0].layer, claim.kind, name, claimed, found, reason)
