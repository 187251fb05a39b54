"""Diagnosis of failed audits: which shortcut is wrong, found by trying one after another."""

from __future__ import annotations

import math
from collections.abc import Callable

import networkx as nx
import torch
from torch.nn.functional import linear

from neurograph.audit.hooked import Hooked
from neurograph.audit.result import Claim
from neurograph.effects.exact import node_effects, path_effects, total_effects
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import TARGET
from neurograph.errors import NeurographError

__all__ = ["NARROW", "SHARED", "UNREPEATED", "likely_reason"]

NARROW = "the narrow route's product of weights"
SHARED = "interventions that share a batch influence each other"
UNREPEATED = "the forward does not repeat itself"

Agrees = Callable[[float, float], bool]


def likely_reason(experiment: Experiment, hooked: Hooked, claim: Claim, agrees: Agrees) -> str:
    """Say in words what is likely wrong with a claim.

    Parameters
    ----------
    experiment : Experiment
        Not open.
    hooked : Hooked
    claim : Claim
    agrees : callable
        Whether an effect and its standard error are what hooks give.
    """
    unrepeated = hooked.unrepeated()
    if unrepeated is not None:
        return f"{UNREPEATED}: {f'layer {unrepeated!r}' if unrepeated else 'the output'} differs"
    start = claim.neurons[0].layer
    for writer in [start, *nx.descendants(experiment.graph, start)]:
        missing = hooked.readers(writer) - _known_readers(experiment, writer)
        if missing:
            reader = min(missing)
            subject = f"layer {reader!r} reads" if reader else "the output holds"
            return f"{subject} {writer!r}, which the layer graph does not know"
    narrow, shared = _slower(experiment, claim, agrees)
    parts = [f"{NARROW}{_whose(experiment, hooked)}"] * narrow + [SHARED] * shared
    return ", and ".join(parts) or "unknown"


def _slower(experiment: Experiment, claim: Claim, agrees: Agrees) -> tuple[bool, bool]:
    """Which shortcuts it takes to leave out until a claim is right; none where nothing helps."""
    with experiment:
        if agrees(*_again(experiment, claim)):
            return False, True  # right where it is measured by itself
        for narrow, shared in [(True, False), (False, True), (True, True)]:
            fast, together = experiment.narrow, experiment.replay.one_by_one
            try:
                experiment.narrow = fast and not narrow
                experiment.replay.one_by_one = shared or together
                if agrees(*_again(experiment, claim)):
                    return narrow, shared
            finally:
                experiment.narrow, experiment.replay.one_by_one = fast, together
    return False, False


def _whose(experiment: Experiment, hooked: Hooked) -> str:
    """Name the first layer that returns something else than its product of weights."""
    for (writer, reader), chain in experiment.chains.items():
        moved, computed = hooked.end(writer, reader)
        if computed is None:
            continue
        module = experiment.linear(reader)
        product = linear(chain(moved), module.weight, module.bias).to(computed)
        close = math.sqrt(torch.finfo(computed.dtype).eps)
        scale = float(computed.abs().max())
        if product.shape != computed.shape or not torch.allclose(
            product, computed, rtol=close, atol=close * scale
        ):
            return f" of layer {reader!r}"
    return ""


def _known_readers(experiment: Experiment, writer: str) -> set[str]:
    graph = experiment.graph
    return {*graph.successors(writer), *([TARGET] if graph.nodes[writer]["output"] else [])}


def _again(experiment: Experiment, claim: Claim) -> tuple[float, float]:
    """Measure a claim again through the library, as the experiment now goes about it."""
    first = claim.neurons[0]
    unit = experiment.units(first.layer).unit(first)
    try:
        if claim.kind == "total":
            effects = total_effects(experiment, first.layer, [unit])
        elif claim.kind == "path":
            effects = path_effects(experiment, [claim.neurons])
        else:
            effects = node_effects(experiment, first.layer, [unit], claim.through or {})
    except NeurographError:
        return math.nan, math.nan
    return float(effects.effect[0]), float(effects.stderr[0])
