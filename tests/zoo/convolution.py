"""Convolutional networks: residual, dense, mobile, ConvNeXt and U-shaped."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.network import Network, column, maps, normal, under, vectors
from tests.zoo.simple import settle


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, which is projected where shapes change."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inside != outside:
            project = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.stage1 = nn.Sequential(ResidualBlock(3, 3, 1))
        self.stage2 = nn.Sequential(ResidualBlock(3, 4, 2))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.stem(x))))
        x = self.stage2(self.stage1(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseLayer(nn.Module):
    """Norm, ReLU and convolution, twice, on the concatenation of all features so far."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 3, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, growth, 3, 1, 1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, 2, 1, bias=False)
        self.block = nn.ModuleList([DenseLayer(3, 2), DenseLayer(5, 2)])
        self.norm = nn.BatchNorm2d(7)
        self.transition = nn.Conv2d(7, 4, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.block:
            features.append(layer(features))
        x = self.transition(F.relu(self.norm(torch.cat(features, 1))))
        x = F.relu(self.norm2(F.avg_pool2d(x, 2)), inplace=True)
        return self.classifier(x.mean((2, 3)))


class MobileBlock(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection, skip."""

    def __init__(self, width: int, expanded: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, expanded, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(expanded)
        self.depthwise = nn.Conv2d(expanded, expanded, 3, 1, 1, groups=expanded, bias=False)
        self.norm2 = nn.BatchNorm2d(expanded)
        self.squeeze = nn.Conv2d(expanded, 2, 1)
        self.excite = nn.Conv2d(2, expanded, 1)
        self.project = nn.Conv2d(expanded, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(self.expand(x)))
        h = self.act(self.norm2(self.depthwise(h)))
        scale = self.act(self.squeeze(F.adaptive_avg_pool2d(h, 1)))
        h = torch.sigmoid(self.excite(scale)) * h
        return x + self.norm3(self.project(h))


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.block = MobileBlock(3, 5)
        self.head = nn.Conv2d(3, 4, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(F.silu(self.norm(self.stem(x))))
        x = F.silu(self.norm2(self.head(x)))
        return self.classifier(x.mean((2, 3)))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then Linears on channels-last maps, scaled by a parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.down(F.gelu(self.up(h)))
        return x + h.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 2, 2)
        self.blocks = nn.Sequential(ConvNeXtBlock(3), ConvNeXtBlock(3))
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class UNet(nn.Module):
    """Down twice and up twice, each way up beside what was there on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.norm1 = nn.Conv2d(2, 3, 3, 1, 1), nn.BatchNorm2d(3)
        self.down2, self.norm2 = nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4)
        self.bottom = nn.Conv2d(4, 4, 3, 1, 1)
        self.up2 = nn.ConvTranspose2d(4, 3, 2, 2)
        self.merge2 = nn.Conv2d(7, 3, 3, 1, 1)
        self.up1 = nn.ConvTranspose2d(3, 2, 2, 2)
        self.merge1 = nn.Conv2d(5, 3, 3, 1, 1)
        self.out = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm1(self.down1(x)))
        second = F.relu(self.norm2(self.down2(F.max_pool2d(first, 2))))
        h = F.relu(self.bottom(F.max_pool2d(second, 2)))
        h = F.relu(self.merge2(torch.cat([self.up2(h), second], 1)))
        h = F.relu(self.merge1(torch.cat([self.up1(h), first], 1)))
        return self.out(h)


def resnet(seed: int) -> Network:
    block1, block2 = "stage1.0", "stage2.0"
    sites = maps("input", "stem", *under(block1, "conv1 conv2"))
    sites |= maps(*under(block2, "conv1 conv2 downsample.0")) | vectors("fc")
    return Network("resnet", settle(ResNet(), seed), normal(2, 8, 8), column(1), sites)


def densenet(seed: int) -> Network:
    sites = maps("input", "stem", *under("block.0", "conv1 conv2"))
    sites |= maps(*under("block.1", "conv1 conv2"), "transition") | vectors("classifier")
    return Network("densenet", settle(DenseNet(), seed), normal(2, 8, 8), column(0), sites)


def mobilenet(seed: int) -> Network:
    sites = maps("input", "stem", *under("block", "expand depthwise squeeze excite project"))
    sites |= maps("head") | vectors("classifier.1")
    return Network("mobilenet", settle(MobileNet(), seed), normal(2, 6, 6), column(1), sites)


def convnext(seed: int) -> Network:
    sites = maps("input", "stem")
    for block in ("blocks.0", "blocks.1"):
        sites |= maps(f"{block}.depthwise") | vectors(*under(block, "up down"))
    sites |= vectors("head")
    return Network("convnext", settle(ConvNeXt(), seed), normal(2, 6, 6), column(0), sites)


def unet(seed: int) -> Network:
    sites = maps(*"input down1 down2 bottom up2 merge2 up1 merge1 out".split())

    def target(output: Tensor, _batch: object) -> Tensor:
        """How much more there is in one corner than elsewhere."""
        return output[:, 0, :4, :4].mean((1, 2)) - 0.5 * output[:, 0].mean((1, 2))

    return Network("unet", settle(UNet(), seed), normal(2, 8, 8), target, sites)
