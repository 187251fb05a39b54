"""The commonest case: one logit a sample, trained on binary cross-entropy."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import BinaryAccuracy

from neurograph.errors import ModelError
from neurograph.training.module import TrainingModule

__all__ = ["binary_classifier"]


def binary_classifier(model: nn.Module, **options: Any) -> TrainingModule:
    """Make a training module of a network with one logit: cross-entropy and ``accuracy``.

    Parameters
    ----------
    model : torch.nn.Module
        Returns logits ``[batch]`` or ``[batch, 1]``; labels are 0 or 1, of any dtype.
    **options
        ``learning_rate``, ``optimizer`` and ``optimizer_options`` of `TrainingModule`.

    Returns
    -------
    TrainingModule
        While training it raises ModelError if there is not one logit a sample.

    Examples
    --------
    >>> import torch
    >>> module = binary_classifier(nn.Linear(3, 1), learning_rate=0.01)
    >>> module.predict_step(torch.zeros(5, 3), 0).shape
    torch.Size([5])
    """
    metrics = {"accuracy": BinaryAccuracy()}
    return TrainingModule(model, _cross_entropy, metrics, predict=_probabilities, **options)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.numel() != len(labels):
        raise ModelError(
            f"model must return one logit a sample, [batch] or [batch, 1]: it returned "
            f"{tuple(logits.shape)} for {len(labels)} samples"
        )
    logits = logits.reshape(len(labels))
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def _probabilities(logits: Tensor) -> Tensor:
    return logits.reshape(len(logits)).sigmoid()
