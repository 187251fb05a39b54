"""Which channels see the espresso? Its circuit in EfficientNet-Lite0, then the network without it.

A channel moves from its mean over other pictures to what it is in the coffee picture. Each block
of the network widens its input and filters every channel by itself: those channels are searched.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage import data
from torch import Tensor, nn

import neurograph as ng
from hooks import (
    Neurons,
    ablated,
    against_chance,
    check,
    kept_neurons,
    mean_and_range,
    record,
    strongest,
)
from pretrained import efficientnet_lite0
from report import measured, publish, tell_directions


def views(picture: np.ndarray) -> list[np.ndarray]:
    """Four overlapping crops of a picture, each with its mirror image."""
    height, width = (size * 9 // 10 for size in picture.shape[:2])
    crops = [picture[:height, :width], picture[:height, -width:]]
    crops += [picture[-height:, :width], picture[-height:, -width:]]
    return [np.ascontiguousarray(view) for crop in crops for view in (crop, crop[:, ::-1])]


def main() -> None:
    with measured("model and pictures"):
        model, names = efficientnet_lite0.load(), efficientnet_lite0.class_names()
        pictures = {
            "coffee": data.coffee(),
            "chelsea": data.chelsea(),
            "rocket": data.rocket(),
            "astronaut": data.astronaut(),
            "retina": data.retina(),
        }
    with torch.no_grad():
        chances = model(efficientnet_lite0.preprocess(pictures.values())).softmax(1)
    for name, chance in zip(pictures, chances, strict=True):
        channels = ", ".join(f"{names[i]} {chance[i]:.2f}" for i in chance.topk(3).indices.tolist())
        print(f"  {name}: {channels}")

    coffee = efficientnet_lite0.preprocess(views(pictures.pop("coffee")))
    others = efficientnet_lite0.preprocess(v for p in pictures.values() for v in views(p))
    espresso = names.index("espresso")
    with measured("search"):
        circuit = ng.search(
            model,
            others,
            espresso,
            layers=["stem", "depthwise", "head"],  # the widened features of each block
            contrast="mean",
            reference=coffee,
            keep="top:4",
            budget=16,
            paths=20,
            memory="2GB",
            class_names=names,
        )
    publish(circuit, "image_channels", source="blocks.13.depthwise")

    kept = kept_neurons(circuit, "positive")
    elsewhere = record(model, kept, lambda: model(others))
    means = {layer: values.mean(0, keepdim=True) for layer, values in elsewhere.items()}
    check(
        circuit, model, strongest(circuit, "head"), lambda: model(coffee)[:, espresso], means, dim=1
    )
    knock_out(model, coffee, espresso, kept, means)

    # The same by what the head passes on, over all five pictures.
    with measured("directions"):
        study = ng.Study(
            model,
            torch.cat([coffee, others]),
            espresso,
            layers=["blocks.13.depthwise", "head"],
            basis={"head": ng.Active(1, samples=32)},
            reference=8,
            memory="2GB",
            class_names=names,
        )
        tell_directions(study, "image_channels")


def knock_out(
    model: nn.Module, coffee: Tensor, espresso: int, kept: Neurons, means: dict[str, Tensor]
) -> None:
    """Set the channels that speak for espresso to their means, and as many others."""

    def logit(channels: Neurons) -> float:
        with ablated(model, channels, means, dim=1):
            return model(coffee)[:, espresso].mean().item()

    def chance(channels: Neurons) -> float:
        with ablated(model, channels, means, dim=1):
            return model(coffee).softmax(1)[:, espresso].mean().item()

    widths = {layer: values.shape[1] for layer, values in means.items()}
    print(
        f"espresso in the 8 views of the coffee, without {sum(map(len, kept.values()))} channels:"
    )
    for what, measure in (("logit", logit), ("probability", chance)):
        without, random = against_chance(measure, kept, widths)
        print(
            f"  {what} {measure({}):.3f}; without the circuit's {without:.3f}; without as many "
            f"others, 20 times: {mean_and_range(random, '.3f')}"
        )


if __name__ == "__main__":
    main()
