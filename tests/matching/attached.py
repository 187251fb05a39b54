"""Circuits with their models, for what compares models: what they kept does not matter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import neurograph as ng
from neurograph.activations.streaming import Arrived
from neurograph.circuit.circuit import Circuit
from neurograph.model.layers import Layer


def circuit_of(model: nn.Module, data: Any, target: Any = 0, **options: Any) -> Circuit:
    """A circuit found in no time."""
    told = {"scorer": "gradient", "paths": 0, "reference": 4, "progress": False} | options
    return ng.search(model, data, target, **told)


def arrived(values: torch.Tensor, attended: torch.Tensor | None = None) -> Arrived:
    """What a layer returned, `[samples, channels, *positions]`."""
    layer = Layer("l", "l", "l", "Linear", tuple(values.shape[1:]), 1, values.shape[1], 1)
    return Arrived(layer, values, attended, None)  # type: ignore[arg-type]
