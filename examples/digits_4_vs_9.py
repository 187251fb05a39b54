"""What makes a four no nine: the circuit of their difference in a network trained on MNIST."""

from __future__ import annotations

import torch
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
from pretrained import mnist
from report import measured, publish, tell_directions

PAIRS = 32


def four_minus_nine(logits: Tensor, _batch: object) -> Tensor:
    """The margin by which a four wins, one number a sample."""
    return logits[:, 4] - logits[:, 9]


def main() -> None:
    with measured("model and data"):
        model = mnist.load()
        images, labels = mnist.digits()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
    print(f"{right:.2%} of {len(images):,} digits recognised")

    # Each four has a nine beside it: a neuron moves from its value in the nine to that in the four.
    fours, nines = images[labels == 4], images[labels == 9]
    with measured("search"):
        circuit = ng.search(
            model,
            fours[:PAIRS],
            four_minus_nine,
            layers=[nn.Conv2d, "fc_layers.0"],
            contrast=ng.Counterfactual(nines[:PAIRS]),
            reference=PAIRS,
            keep="top:8",
            paths=50,
        )
    publish(circuit, "digits_4_vs_9", source="conv_layers.6")

    def margin() -> Tensor:
        return four_minus_nine(model(fours[:PAIRS]), None)

    names = ["conv_layers.6", "fc_layers.0"]
    in_nines = record(model, names, lambda: model(nines[:PAIRS]))
    for layer in names:
        check(circuit, model, strongest(circuit, layer), margin, in_nines, dim=1)
    knock_out(circuit, model, fours[PAIRS:], nines[PAIRS:])

    # The same by what the last hidden layer passes on: its direction is highest in fours, lowest
    # in nines.
    both = torch.cat([fours, nines])
    with measured("directions"):
        study = ng.Study(
            model,
            (both, [4] * len(fours) + [9] * len(nines)),
            four_minus_nine,
            layers=["conv_layers.6", "fc_layers.0"],
            basis={"fc_layers.0": ng.Active(1)},
            reference=2 * PAIRS,
        )
        tell_directions(study, "digits_4_vs_9")


def knock_out(circuit: ng.Circuit, model: nn.Module, fours: Tensor, nines: Tensor) -> None:
    """Give the neurons that speak for a four what they are in the average nine, on new digits."""
    kept = kept_neurons(circuit, "positive")
    in_nines = record(model, kept, lambda: model(nines))
    means = {layer: values.mean(0, keepdim=True) for layer, values in in_nines.items()}

    def recognised(neurons: Neurons) -> float:
        with ablated(model, neurons, means, dim=1):
            return (model(fours).argmax(1) == 4).float().mean().item()

    widths = {layer: values.shape[1] for layer, values in means.items()}
    without, chance = against_chance(recognised, kept, widths)
    print(
        f"{len(fours)} other fours are recognised without these {sum(map(len, kept.values()))} "
        f"neurons: {without:.1%}; without as many others, 20 times: "
        f"{mean_and_range(chance, '.1%')}"
    )


if __name__ == "__main__":
    main()
