"""Which bracket is open? The circuit that carries one character through two LSTMs to the end.

After "[OC" the next character is "]", after "(OC" it is ")". The texts differ in one character,
so whatever differs at the end was remembered.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
from pretrained import recurrent
from report import measured, publish, tell_directions

TITLES = (
    "[OC",
    "My dog at the beach [OC",
    "A drawing of my cat [OC",
    "Sunset over the lake [OC",
    "[Serious",
    "What is your best advice? [Serious",
    "Looking for a team [PS4",
    "Anyone up for a raid? [PS4",
    "The new trailer is out [Spoilers",
    "About the last episode [Spoilers",
    "My first attempt at this [1920x1080",
    "The harbour at night [1920x1080",
)


def many_titles() -> list[str]:
    """1,024 titles that end in a tag, half of them behind each of the two brackets."""
    starts = "My |A drawing of my |Sunset over the |What is |Looking for |The new |About the |At "
    ends = "cat |lake |best advice |team |trailer |last episode |beach |house "
    tags = "OC Serious PS4 Spoilers 1920x1080 Request Discussion Image".split()
    return [
        f"{start}{end}{bracket}{tag}"
        for start in starts.split("|")
        for end in ends.split("|")
        for tag in tags
        for bracket in "[("
    ]


def main() -> None:
    with measured("model"):
        model, codes = recurrent.load()
    square = recurrent.encode(codes, TITLES)
    round_ = recurrent.encode(codes, [title.replace("[", "(") for title in TITLES])

    def which_bracket(logits: Tensor, _batch: object) -> Tensor:
        """How much likelier "]" is than ")", in nats."""
        return logits[:, codes["]"]] - logits[:, codes[")"]]

    with torch.no_grad():
        for bracket, batch in (("[", square), ("(", round_)):
            odds = which_bracket(model(batch), None)
            print(f"after {bracket!r}: ']' against ')' {odds.mean():+.2f} nats on average")

    with measured("search"):
        circuit = ng.search(
            model,
            square,
            which_bracket,
            layers=["embedding", "rnn_1", "rnn_2"],
            groups={"embedding": 1},  # one neuron: which characters are read
            contrast=ng.Counterfactual(round_),
            reference=len(TITLES),
            keep="top:8",
            paths=50,
        )
    publish(circuit, "recurrent_text", source="embedding")

    def odds() -> Tensor:
        return which_bracket(model(square), None)

    layers = ["rnn_1", "rnn_2"]
    after_round = record(model, layers, lambda: model(round_))
    for layer in layers:
        check(circuit, model, strongest(circuit, layer), odds, after_round)

    def odds_without(neurons: Neurons) -> float:
        with ablated(model, neurons, after_round):
            return odds().mean().item()

    kept = kept_neurons(circuit, "positive")
    memory = {layer: kept[layer] for layer in layers}
    widths = {layer: after_round[layer].shape[-1] for layer in layers}
    without, chance = against_chance(odds_without, memory, widths)
    print(
        f"']' against ')' with the circuit's {sum(map(len, memory.values()))} LSTM units as if "
        f"'(' had been read: {without:+.2f} nats; with as many others, 20 times: "
        f"{mean_and_range(chance, '+.2f')}"
    )

    # The same by what each LSTM passes on, at the last character: the direction of rnn_2 is high
    # after "[" and low after "(", and a size such as 1920x1080 in brackets lowers it.
    characters = {code: character for character, code in codes.items()}
    with measured("directions"):
        study = ng.Study(
            model,
            torch.stack([square, round_], 1).flatten(0, 1),
            which_bracket,
            layers=["embedding", *layers],
            groups={"embedding": 1},
            basis={layer: ng.Active(1, samples=len(TITLES)) for layer in layers},
            positions="last",
            reference=len(TITLES),
            tokenizer=lambda code: characters.get(code, "·"),
        )
        tell_directions(study, "recurrent_text")


if __name__ == "__main__":
    main()
