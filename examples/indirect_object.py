"""Who gets the drink? The heads and neurons with which SmolLM2 finds the indirect object.

"When Mary and John went to the store, John gave a drink to" goes on with " Mary". In the
counterfactual of each prompt Mary is the one who gives, and everything that tells the two apart
moves.
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
from pretrained import smollm2
from report import measured, publish, tell_directions

TEMPLATE = "When {one} and {two} went to the {place}, {giver} gave a {thing} to"
SCENES = (
    ("Mary", "John", "store", "drink"),
    ("Tom", "Anna", "park", "ball"),
    ("Alice", "Bob", "school", "book"),
    ("David", "Sarah", "office", "letter"),
    ("Emma", "James", "beach", "drink"),
    ("Peter", "Lisa", "library", "book"),
    ("Kate", "Paul", "garden", "flower"),
    ("Mark", "Jane", "market", "ring"),
)
HEADS, NEURONS = "self_attn.o_proj:input", "mlp.down_proj:input"
DIRECTION = 20
"""The layer whose direction tells who gives; those of layers 22 and 24 are unclear."""


def main() -> None:
    with measured("model"):
        model, tokenizer = smollm2.load()

    def tokens(texts: list[str]) -> Tensor:
        # Without padding: this fails unless every prompt has as many tokens as the others.
        return tokenizer(texts, return_tensors="pt")["input_ids"]

    def prompts(giver: int) -> Tensor:
        return tokens(
            [
                TEMPLATE.format(one=s[0], two=s[1], giver=s[giver], place=s[2], thing=s[3])
                for s in SCENES
            ]
        )

    names = tokens([f" {name}" for scene in SCENES for name in scene[:2]]).view(-1, 2)
    clean, corrupt = prompts(giver=1), prompts(giver=0)

    @torch.no_grad()
    def margin(ids: Tensor) -> Tensor:
        """Logit of the first name minus that of the second, for each prompt."""
        logits = model(ids).logits[:, -1]
        return logits.gather(1, names).diff(dim=1).neg()[:, 0]

    with torch.no_grad():
        first = model(clean[:1]).logits[0, -1].softmax(0)[names[0, 0]].item()
    print(f"{tokenizer.decode(clean[0])!r} goes on with ' Mary': p = {first:.2f}")
    print(f"margin: {margin(clean).mean():+.2f} in the prompts, {margin(corrupt).mean():+.2f} "
          "in their counterfactuals")  # fmt: skip

    with measured("search"):
        circuit = ng.search(
            model,
            # A right and a wrong token for each prompt; logits of the last position are enough.
            ({"input_ids": clean, "logits_to_keep": 1}, names),
            ng.logit_difference(position="last"),
            layers=[HEADS, NEURONS],
            groups={HEADS: "heads"},
            positions="each",
            tokenizer=tokenizer,
            contrast=ng.Counterfactual(({"input_ids": corrupt, "logits_to_keep": 1}, names)),
            reference=len(SCENES),
            keep="above:0.1",
            budget=8,
            paths=20,
            memory="1GB",
        )
    publish(circuit, "indirect_object")

    def size(layer: str) -> int:
        return model.config.head_dim if layer.endswith(HEADS) else 1

    # A neuron here is a head or MLP neuron at one token: elsewhere it stays what it is.
    best = strongest(circuit, f"*.{HEADS}")
    values = record(model, [best.layer], lambda: model(clean))
    in_counterfactuals = record(model, [best.layer], lambda: model(corrupt))
    values[best.layer][:, best.position] = in_counterfactuals[best.layer][:, best.position]
    check(circuit, model, best, lambda: margin(clean), values, size=size)

    # The whole heads, at every token, of those that the positive circuit holds anywhere.
    kept = kept_neurons(circuit, "positive")
    heads = {layer: kept[layer] for layer in kept if layer.endswith(HEADS)}
    in_counterfactuals = record(model, heads, lambda: model(corrupt))

    def margin_without(neurons: Neurons) -> float:
        with ablated(model, neurons, in_counterfactuals, size=size):
            return margin(clean).mean().item()

    widths = dict.fromkeys(heads, model.config.num_attention_heads)
    without, chance = against_chance(margin_without, heads, widths)
    print(
        f"margin with the circuit's {sum(map(len, heads.values()))} heads as in the "
        f"counterfactuals: {without:+.2f}; with as many other heads of the same layers, 20 times: "
        f"{mean_and_range(chance, '+.2f')}"
    )

    # The same by what attention of one layer passes on at the last token: its direction is highest
    # where the second name gives, so that the first one gets, and lowest where the first gives.
    both = torch.stack([clean, corrupt], 1).flatten(0, 1)
    with measured("directions"):
        study = ng.Study(
            model,
            ({"input_ids": both, "logits_to_keep": 1}, names.repeat_interleave(2, 0)),
            ng.logit_difference(position="last"),
            layers=[f"model.layers.{DIRECTION}.{HEADS}"],
            basis={HEADS: ng.Active(1, samples=len(SCENES))},
            positions="last",
            reference=len(SCENES),
            tokenizer=tokenizer,
            memory="1GB",
        )
        tell_directions(study, "indirect_object")


if __name__ == "__main__":
    main()
