"""zennit-crp: relevance of channels, and its graph of the most relevant ones, run as it comes."""

from __future__ import annotations

from typing import Any

import torch
from crp.attribution import AttributionGraph, CondAttribution
from crp.concepts import ChannelConcept
from crp.graph import trace_model_graph
from zennit.composites import EpsilonPlusFlat

from race.measure import Outcome, Work
from race.tasks import Loaded

__all__ = ["METHODS"]

WIDTH = 8


def relevance(task: Loaded) -> Work:
    """Relevance of the winning logit less that of the twin's: the margin's, as it is linear."""
    attribution = CondAttribution(task.model, no_param_grad=True)
    layers = list(task.task.layers)

    def of(column: int) -> dict[str, torch.Tensor]:
        conditions = [{"y": [int(label)]} for label in task.labels[:, column]]
        x = task.clean.clone().requires_grad_()
        found = attribution(x, conditions, EpsilonPlusFlat(), record_layer=layers)
        return {
            name: t.detach().flatten(2).sum(2) if t.dim() > 2 else t.detach()
            for name, t in found.relevances.items()
        }

    def work() -> Outcome:
        won, lost = of(0), of(1)
        scores: list[list[Any]] = []
        for layer in layers:
            mean = (won[layer] - lost[layer]).double().mean(0).tolist()
            scores += [[layer, i, s] for i, s in enumerate(mean)]
        return Outcome(scores)

    return work


def graph(task: Loaded) -> Work:
    """The channels of each layer that the strongest of the layer above are relevant through."""
    layers = list(task.task.layers)
    attribution = CondAttribution(task.model, no_param_grad=True)
    traced = trace_model_graph(task.model, task.clean[:1], [*layers, "logits"])
    concepts = {name: ChannelConcept() for name in [*layers, "logits"]}
    built = AttributionGraph(attribution, traced, concepts)

    def work() -> Outcome:
        edges: list[list[Any]] = []
        for sample, label in zip(task.clean, task.labels[:, 0].tolist(), strict=True):
            x = sample[None].clone().requires_grad_()
            found = built(
                x,
                EpsilonPlusFlat(),
                label,
                "logits",
                target=label,
                width=[WIDTH] * len(layers),
                verbose=False,
            )
            for (reader, output), below in found.connections.items():
                edges += [[w, i, reader, output, s] for w, i, s in below]
        return Outcome([], count=len(edges), facts={"edges": len(edges)})

    return work


METHODS = {"graph": graph, "relevance": relevance}
