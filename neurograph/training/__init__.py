"""Training with PyTorch Lightning: any network, and its circuit while it learns.

This room is the only part of the package that needs Lightning; nothing else imports it on its own.
"""

try:
    import pytorch_lightning as _needed  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"training needs PyTorch Lightning ({error}): pip install 'neurograph-torch[train]'"
    ) from error

from neurograph.training.binary import binary_classifier
from neurograph.training.callback import CircuitCallback
from neurograph.training.fit import Fitted, fit
from neurograph.training.module import TrainingModule
from neurograph.training.snapshot import Snapshot

__all__ = [
    "CircuitCallback",
    "Fitted",
    "Snapshot",
    "TrainingModule",
    "binary_classifier",
    "fit",
]
