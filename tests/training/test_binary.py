"""One logit a sample, whatever its shape, is scored as what it means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neurograph.training import binary_classifier
from tests.training.small import QUIET, trainer

pytestmark = [pytest.mark.filterwarnings(warning) for warning in QUIET]


@pytest.mark.parametrize("model", [nn.Identity(), nn.Flatten(0)])
def test_small_logits_are_not_taken_for_probabilities(tmp_path: Path, model: nn.Module) -> None:
    # All of them say 1, though as probabilities most would say 0.
    logits = torch.tensor([[0.1], [0.2], [0.3], [0.9]])
    labels = torch.tensor([1, 1, 1, 0])
    module = binary_classifier(model)
    run = trainer(tmp_path)
    [found] = run.test(module, DataLoader(TensorDataset(logits, labels), 4), verbose=False)
    assert found["test_accuracy"] == 0.75
    wanted = -torch.where(labels > 0, logits[:, 0].sigmoid(), 1 - logits[:, 0].sigmoid()).log()
    assert found["test_loss"] == pytest.approx(wanted.mean().item())
    assert torch.equal(module.predict_step(logits, 0), logits[:, 0].sigmoid())
