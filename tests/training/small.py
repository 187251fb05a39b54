"""Small networks, data and a silent Trainer for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import TensorDataset

# What Lightning says about loaders of a few samples, and about itself.
QUIET = ("ignore:.*(val_dataloader|does not have many workers|logging interval|LeafSpec)",)


def points(samples: int, seed: int) -> TensorDataset:
    """Return points of the plane, labelled by a line with some noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 2, generator=generator)
    noise = 0.3 * torch.randn(samples, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] - inputs[:, 1] + noise > 0).long())


def network(outputs: int = 1) -> nn.Sequential:
    """Return a network in which a forward pass of training moves buffers and random numbers."""
    torch.manual_seed(2)  # a seed with which paths of both signs are learnt
    return nn.Sequential(
        nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, outputs)
    )


def trainer(directory: Path, **options: Any) -> pl.Trainer:
    given: dict[str, Any] = {"max_epochs": 2, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(
        default_root_dir=directory,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{**given, **options},
    )
